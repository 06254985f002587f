"""Nodes of a graph: as inputs of a model, as edits, as a locality set, as an edit scope.

A node's output depends on its neighbours, so a model always runs on the whole graph: `Nodes` says which nodes are
meant, and all `Nodes` of one graph share its features and edges without copies. Any model called as
`model(x, edge_index)` that returns one row per node works.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from nnrepair.errors import InvalidInput
from nnrepair.spec.edits import Edits, EditScope, LocalitySet
from nnrepair.spec.inputs import Inputs


@dataclass
class _Known:
    """What is known of one shared tensor: for what it was checked, and its copies in other dtypes and on devices."""

    version: tuple[float, ...]
    checked: set[int] = field(default_factory=set)
    copies: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)


# Graphs are large and shared by many Nodes: each is checked once and converted once, and forgotten with its tensor.
_KNOWN: Any = WeakTensorKeyDictionary()
#: Entries of a tensor that are looked at to see whether it was changed behind PyTorch's back.
_LOOKED_AT = 4_000_000


def known(tensor: Tensor) -> _Known:
    """Return what is known of a tensor, which is nothing new once it has changed."""
    version = _version(tensor)
    if version is None:
        return _Known(())
    found: _Known | None = _KNOWN.get(tensor)
    if found is None or found.version != version:
        found = _KNOWN[tensor] = _Known(version)
    return found


@torch.no_grad()
def _version(tensor: Tensor) -> tuple[float, ...] | None:
    """Return what changes with the tensor's contents, or None where nothing does (tensors made in inference mode).

    PyTorch counts changes in place, but not those through `.data` or a numpy array that shares the memory. These show
    in sums, except where they cancel in all of them: two entries exchanged within a node's features, or a change of
    some 1e-16 of the sum of all. Of tensors larger than _LOOKED_AT only evenly spaced entries are summed.
    """
    if tensor.is_inference():
        return None
    if tensor.layout == torch.strided:
        values = tensor.detach()
    else:
        values = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    if values.numel() > _LOOKED_AT:
        values = values.reshape(-1)[:: -(-values.numel() // _LOOKED_AT)]
    if values.ndim > 1 and values.numel():
        flat = values.flatten(1)
        rows = flat.sum(int(len(flat) >= flat.shape[1]), dtype=torch.float64)  # one sum per node, or per edge
    else:
        rows = values.reshape(-1).double()
    place = torch.arange(len(rows), dtype=torch.float64, device=rows.device)
    sums = torch.stack([rows.sum(), (rows * place).sum(), values.abs().sum(dtype=torch.float64)])
    return (float(tensor._version), *sums.tolist())


def _to(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor on `like`'s device, in its dtype if it is floating: itself, or one copy for all who ask."""
    dtype = like.dtype if tensor.dtype.is_floating_point else tensor.dtype
    if (tensor.dtype, tensor.device) == (dtype, like.device):
        return tensor
    copies = known(tensor).copies
    if (dtype, like.device) not in copies:
        with torch.inference_mode(False):  # the copy may be differentiated later
            copies[dtype, like.device] = tensor.to(like.device, dtype)
    return copies[dtype, like.device]


@dataclass(frozen=True, eq=False)
class Nodes(Inputs):
    """Some nodes of a graph, as inputs of a model that is called as `model(x, edge_index)`.

    >>> nodes = Nodes(torch.eye(4), torch.tensor([[0, 1], [1, 2]]), [0, 3])
    >>> len(nodes), nodes[torch.tensor([1])].index
    (2, tensor([3]))

    Args:
        x: (n, ...) node features, shared. Copies in other dtypes or on other devices are made once, and again after x
            has changed, as far as sums over its entries show it where it is changed through `.data` or a numpy array.
            Give tensors of more than four million entries anew after such a change: only some entries are looked at.
        edge_index: (2, edges) int64, from the first row's nodes to the second's; or whatever tensor of shape (n, n) the
            model takes as adjacency, sparse or dense. Shared like x.
        index: the nodes meant: (k,) integers, or a mask (n,) of booleans.

    Raises:
        InvalidInput: features with NaN, edges or nodes outside the graph, wrong shapes or dtypes.
    """

    x: Tensor
    edge_index: Tensor
    index: Tensor

    independent = False

    def __post_init__(self) -> None:
        check_graph(self.x, self.edge_index)
        object.__setattr__(self, "index", as_index(self.index, len(self.x)).to(self.x.device))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> Nodes:
        return self._with(self.x, self.edge_index, picked(self.index, index))

    def to(self, like: Tensor) -> Nodes:
        """Return the same nodes on `like`'s device and in its dtype; nodes of one graph still share it afterwards."""
        x, edge_index = _to(self.x, like), _to(self.edge_index, like)
        if x is self.x and edge_index is self.edge_index:
            return self
        return self._with(x, edge_index, self.index.to(like.device))

    def call(self, model: nn.Module) -> Tensor:
        """Run the model on the whole graph and return the outputs of these nodes."""
        y = model(self.x, self.edge_index)
        if isinstance(y, Tensor) and (y.ndim == 0 or len(y) != len(self.x)):
            raise InvalidInput(
                f"The model returns outputs of shape {tuple(y.shape)} for a graph of {len(self.x)} nodes; it must "
                "return one row per node."
            )
        return y[self.index] if isinstance(y, Tensor) else y

    def own(self) -> Tensor:
        """Return (k, ...) the features of these nodes, without their neighbours'."""
        return self.x[self.index]

    def same(self) -> Tensor:
        """Return (k,) what is equal for two points where they are the same node."""
        return self.index

    def whole(self) -> Nodes:
        """Return all nodes of the graph."""
        return self._with(self.x, self.edge_index, torch.arange(len(self.x), device=self.x.device))

    def joined(self, other: Any) -> Nodes | None:
        """Return these nodes followed by the other's, to run in one pass; None when they are of different graphs."""
        if not isinstance(other, Nodes) or other.x is not self.x or other.edge_index is not self.edge_index:
            return None
        return self._with(self.x, self.edge_index, torch.cat([self.index, other.index]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {len(self.x)} nodes)"

    def _with(self, x: Tensor, edge_index: Tensor, index: Tensor) -> Nodes:
        """Return Nodes of parts that were checked before: looking through all edges again would take long."""
        nodes = object.__new__(type(self))
        for name, value in (("x", x), ("edge_index", edge_index), ("index", index)):
            object.__setattr__(nodes, name, value)
        return nodes


def NodeEdits(data: Any, nodes: Any, labels: Any = None) -> Edits:
    """Return edits of a graph's nodes.

    >>> from nnrepair.domains.graphs.graph import Graph
    >>> NodeEdits(Graph(torch.eye(3), torch.tensor([[0], [1]]), torch.tensor([0, 1, 1])), [2]).criterion.labels
    tensor([1])

    Args:
        data: anything with `x`, `edge_index` and `y`, such as a `Graph` or a `torch_geometric.data.Data`. Nothing else
            that it holds (edge attributes, positions) reaches the model; edge weights are refused. Or the
            `CachedNetwork` that is to be repaired.
        nodes: (k,) node numbers, or a mask (n,).
        labels: (k,) what the nodes' classes should be; the data set's labels by default.

    Raises:
        InvalidInput: nodes or labels that do not fit the graph, or one node with two different labels.
    """
    inputs = inputs_of(data, nodes)
    labels = labels_of(graph_of(data), inputs.index, labels)
    order = torch.argsort(inputs.index, stable=True)
    node, label = inputs.index[order], labels[order]
    clash = node[1:][(node[1:] == node[:-1]) & (label[1:] != label[:-1])].tolist()
    if clash:
        raise InvalidInput(
            f"Nodes {few(sorted(set(clash)))} are given two different labels each. Remove one of each pair."
        )
    return Edits(inputs, labels)


def NodeLocality(data: Any, mask: Any, labels: Any = True) -> LocalitySet:
    """Return a locality set of a graph's nodes; with the test nodes, what `fix` takes as `test_set`.

    Args:
        data: as for `NodeEdits`.
        mask: (n,) booleans, or (k,) node numbers.
        labels: True: the data set's, so that nodes which the model gets wrong are free to change; None: every decision
            of the model is to stay; or (k,) labels of the chosen nodes.

    Raises:
        InvalidInput: a mask or labels that do not fit the graph.
    """
    inputs = inputs_of(data, mask)
    if labels is None or labels is False:
        return LocalitySet(inputs)
    return LocalitySet(inputs, labels_of(graph_of(data), inputs.index, None if labels is True else labels))


def NodeScope(data: Any, nodes: Any, *, same_class: bool = False, without: Any = None) -> EditScope:
    """Return the neighbours of edited nodes, with their own labels: where an edit should do no harm, or carry over.

    All neighbours are the edit scope of a graph in Mazzia et al., "A survey on knowledge editing of neural networks"
    (2024). Neighbours of the same class are those that an edit can be hoped to carry over to.

    >>> from nnrepair.domains.graphs.graph import Graph
    >>> graph = Graph(torch.eye(4), torch.tensor([[0, 1, 2], [1, 2, 3]]), torch.tensor([0, 1, 1, 0]))
    >>> scope = NodeScope(graph, [2, 3])
    >>> scope.inputs.index, scope.of  # nodes 2 and 3 are edits themselves
    (tensor([1]), tensor([0]))

    Args:
        data: as for `NodeEdits`; it must have labels, and its edges must be a list. Neighbours without a label (-1) are
            left out.
        nodes: (k,) node numbers, or a mask (n,): the nodes that are edited, in the edits' order.
        same_class: only neighbours with the data set's class of the edited node.
        without: (n,) mask, or (m,) node numbers to leave out, such as nodes that the method may see.

    Raises:
        InvalidInput: nodes that do not fit the graph, or none of them with any such neighbour.
    """
    graph, chosen = graph_of(data), inputs_of(data, nodes).index.cpu()
    count = len(graph.x)
    place = torch.full((count,), -1)
    place[chosen] = torch.arange(len(chosen))
    if len(chosen) != int((place >= 0).sum()):
        raise InvalidInput("The edited nodes must be different from each other.")
    out = place >= 0
    if isinstance(graph.y, Tensor) and len(graph.y) == count:
        out |= graph.y.reshape(count, -1)[:, 0].cpu() < 0
    if without is not None:
        out[as_index(without, count).cpu()] = True
    pairs = []
    for start, end in _edges(graph):
        for edited, near in ((start, end), (end, start)):
            kept = (place[edited] >= 0) & ~out[near]
            pairs.append(place[edited[kept].long()] * count + near[kept])
    unique = torch.unique(torch.cat(pairs))
    of, near = unique // count, unique % count
    labels = labels_of(graph, near, None)
    if same_class:
        same = labels == labels_of(graph, chosen, None)[of]
        of, near, labels = of[same], near[same], labels[same]
    if not len(near):
        raise InvalidInput(
            f"None of the {len(chosen)} nodes has a neighbour{' of its class' if same_class else ''} that is not left "
            "out; leave the edit scope out."
        )
    return EditScope(inputs_of(data, near), labels, of)


def graph_of(data: Any) -> Any:
    """Return what has x and y: a graph itself, or that of a cached network."""
    return data.graph if callable(getattr(data, "nodes", None)) else data


def inputs_of(data: Any, nodes: Any) -> Any:
    """Return nodes as inputs of the model: of a whole graph, or of a cached network."""
    if callable(getattr(data, "nodes", None)):
        return data.nodes(nodes)
    refuse_weights(data)
    return Nodes(data.x, data.edge_index, nodes)


def _edges(graph: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the edges' starts and ends, in parts."""
    if hasattr(graph, "edges") and callable(getattr(graph.edges, "parts", None)):
        yield from graph.edges.parts()
    elif graph.edge_index.layout != torch.strided or graph.edge_index.dtype.is_floating_point:
        raise InvalidInput("An edit scope of neighbours needs a list of edges (2, edges), got an adjacency.")
    else:
        yield graph.edge_index[0].cpu(), graph.edge_index[1].cpu()


def check_nodes(count: int, y: Any, **masks: Any) -> None:
    """Refuse labels and masks that are not one per node.

    Args:
        count: of the nodes.
        y: (count,) or (count, 1) integers, or None.
        masks: (count,) booleans, or None.
    """
    if y is not None:
        whole = isinstance(y, Tensor) and not (y.dtype.is_floating_point or y.dtype == torch.bool)
        if not whole or tuple(y.shape) not in ((count,), (count, 1)):
            raise InvalidInput(f"Labels y must be integers, one per node ({count},), got {_told(y)}.")
    for name, mask in masks.items():
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) == (count,)
        if mask is not None and not fits:
            raise InvalidInput(f"{name} must be booleans, one per node ({count},), got {_told(mask)}.")


def _told(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def refuse_weights(data: Any) -> None:
    """Refuse a graph whose edges have weights: a model called as `model(x, edge_index)` would not see them."""
    if getattr(data, "edge_weight", None) is not None:
        raise InvalidInput(
            "The graph has edge_weight, which a model called as model(x, edge_index) does not see. If yours needs it, "
            "give an adjacency (n, n) with the weights in place of edge_index; otherwise set data.edge_weight = None."
        )


def check_graph(x: Any, edge_index: Any) -> None:
    """Refuse features and edges that make no graph; what was checked before is not looked through again."""
    for name, value in (("x", x), ("edge_index", edge_index)):
        if not isinstance(value, Tensor):
            hint = " Give a sparse adjacency (such as adj_t) in its place." if name == "edge_index" else ""
            raise InvalidInput(f"A graph's {name} must be a tensor, got {type(value).__name__}.{hint}")
    if x.ndim < 2 or not x.dtype.is_floating_point:
        raise InvalidInput(f"Node features must be floating and (n, ...), got {tuple(x.shape)} of {x.dtype}.")
    if x.layout != torch.strided:
        raise InvalidInput(f"Node features must be a plain tensor, got {x.layout}: give x.to_dense().")
    checked = known(x).checked
    if 0 not in checked:
        finite = torch.isfinite(x.flatten(1)).all(1)
        if not finite.all():
            raise InvalidInput(
                f"Node features contain NaN or infinity, at nodes {few(torch.nonzero(~finite).flatten().tolist())}."
            )
        checked.add(0)
    if edge_index.layout != torch.strided or edge_index.dtype.is_floating_point:  # an adjacency
        if tuple(edge_index.shape) != (len(x), len(x)):
            raise InvalidInput(
                f"An adjacency must be ({len(x)}, {len(x)}) for {len(x)} nodes, got {tuple(edge_index.shape)}. A list "
                "of edges is (2, edges) of int64."
            )
        return
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.dtype not in (torch.int64, torch.int32):
        raise InvalidInput(
            f"edge_index must be (2, edges) of int64, got {tuple(edge_index.shape)} of {edge_index.dtype}."
            + (" Transpose it: edge_index.t()." if edge_index.ndim == 2 and edge_index.shape[1] == 2 else "")
        )
    checked = known(edge_index).checked
    if edge_index.numel() and len(x) not in checked:
        low, high = (int(v) for v in torch.aminmax(edge_index))
        if low < 0 or high >= len(x):
            raise InvalidInput(
                f"edge_index points to node {low if low < 0 else high}, but the graph has nodes 0..{len(x) - 1}."
            )
        checked.add(len(x))


def picked(nodes: Tensor, index: Any) -> Tensor:
    """Return (m,) some of the nodes (k,), by a slice, numbers or a mask."""
    chosen = nodes[index] if isinstance(index, slice) else nodes[torch.as_tensor(index).to(nodes.device)]
    return chosen.reshape(-1)


def as_index(given: Any, nodes: int) -> Tensor:
    """Return (k,) int64 node numbers from numbers or a mask."""
    try:
        index: Tensor = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"Nodes must be given as numbers or as a mask: {error}") from None
    if index.dtype == torch.bool:
        if tuple(index.shape) != (nodes,):
            raise InvalidInput(f"A mask of nodes must be ({nodes},), got {tuple(index.shape)}.")
        return torch.nonzero(index).flatten()
    if index.dtype == torch.uint8:
        raise InvalidInput("Nodes are given as uint8, a mask or numbers: give mask.bool() or numbers.long().")
    if index.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=index.device)
    if index.ndim != 1 or index.dtype.is_floating_point or index.dtype.is_complex:
        raise InvalidInput(f"Node numbers must be integers (k,), got {tuple(index.shape)} of {index.dtype}.")
    if len(index) == nodes > 2 and bool(((index == 0) | (index == 1)).all()):
        raise InvalidInput(f"These {nodes} zeros and ones are a mask as numbers: give mask.bool().")
    bad = index[(index < 0) | (index >= nodes)].tolist()
    if bad:
        raise InvalidInput(f"Nodes {few(bad)} are outside the graph, which has nodes 0..{nodes - 1}.")
    return index.long()


def labels_of(data: Any, index: Tensor, target: Any) -> Tensor:
    """Return (k,) the labels given, or the data set's own."""
    given = target is not None
    if not given:
        y = getattr(data, "y", None)
        if not isinstance(y, Tensor):
            raise InvalidInput("The graph has no labels y: give the labels of the nodes.")
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # Open Graph Benchmark
        if y.ndim != 1 or len(y) != len(data.x):
            raise InvalidInput(f"The graph's labels must be one per node ({len(data.x)},), got {tuple(y.shape)}.")
        target = y[index.to(y.device)]
    labels: Tensor = torch.as_tensor(target)
    if labels.ndim != 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise InvalidInput(f"Labels must be integers (k,), got {tuple(labels.shape)} of {labels.dtype}.")
    if len(labels) != len(index):
        raise InvalidInput(f"Got {len(labels)} labels for {len(index)} nodes.")
    negative = index[(labels < 0).to(index.device)].tolist()
    if negative:
        reason = "are given negative labels" if given else "have no label in the data set"
        raise InvalidInput(f"Nodes {few(negative)} {reason}; classes are counted from 0.")
    return labels.long().to(index.device)


def few(items: list[int]) -> str:
    """Return the first ten of a list, for a message."""
    return str(items[:10])[:-1] + (", ...]" if len(items) > 10 else "]")
