"""Graphs: nodes to repair and nodes to keep, and the papers' protocol of training and splitting.

A node's output depends on its neighbours, so a model always runs on the whole graph: `Nodes` says which nodes are
meant, and all `Nodes` of one graph share its features and edges without copies. Any model called as
`model(x, edge_index)` that returns one row per node works; PyTorch Geometric is needed only for its own networks and
downloads. Real graphs are in `graph_data`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from nnrepair.errors import DataUnavailable, InvalidInput
from nnrepair.spec import Edits, LocalitySet


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


def _known(tensor: Tensor) -> _Known:
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
    some 1e-16 of the sum of all. Of larger tensors than _LOOKED_AT only every so-manieth entry is summed.
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
    copies = _known(tensor).copies
    if (dtype, like.device) not in copies:
        with torch.inference_mode(False):  # whoever asks next may differentiate
            copies[dtype, like.device] = tensor.to(like.device, dtype)
    return copies[dtype, like.device]


@dataclass(frozen=True, eq=False)
class Nodes:
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

    independent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_graph(self.x, self.edge_index)
        object.__setattr__(self, "index", _as_index(self.index, len(self.x)).to(self.x.device))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> Nodes:
        index = torch.as_tensor(index)
        return self._with(self.x, self.edge_index, self.index[index.to(self.index.device)].reshape(-1))

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

    >>> NodeEdits(Graph(torch.eye(3), torch.tensor([[0], [1]]), torch.tensor([0, 1, 1])), [2]).criterion.labels
    tensor([1])

    Args:
        data: anything with `x`, `edge_index` and `y`, such as a `Graph` or a `torch_geometric.data.Data`. Nothing else
            that it holds (edge weights, positions) reaches the model.
        nodes: (k,) node numbers, or a mask (n,).
        labels: (k,) what the nodes' classes should be; the data set's labels by default.

    Raises:
        InvalidInput: nodes or labels that do not fit the graph, or one node with two different labels.
    """
    inputs = Nodes(data.x, data.edge_index, nodes)
    labels = _labels(data, inputs.index, labels)
    order = torch.argsort(inputs.index, stable=True)
    node, label = inputs.index[order], labels[order]
    clash = node[1:][(node[1:] == node[:-1]) & (label[1:] != label[:-1])].tolist()
    if clash:
        raise InvalidInput(
            f"Nodes {_few(sorted(set(clash)))} are given two different labels each. Remove one of each pair."
        )
    return Edits(inputs, labels)


def NodeLocality(data: Any, mask: Any, labels: Any = True) -> LocalitySet:
    """Return a locality set of a graph's nodes.

    Args:
        data: anything with `x`, `edge_index` and `y`.
        mask: (n,) booleans, or (k,) node numbers.
        labels: True: the data set's, so that nodes which the model gets wrong are free to change; None: every decision
            of the model is to stay; or (k,) labels of the chosen nodes.

    Raises:
        InvalidInput: a mask or labels that do not fit the graph.
    """
    inputs = Nodes(data.x, data.edge_index, mask)
    if labels is None or labels is False:
        return LocalitySet(inputs)
    return LocalitySet(inputs, _labels(data, inputs.index, None if labels is True else labels))


def _check_graph(x: Any, edge_index: Any) -> None:
    for name, value in (("x", x), ("edge_index", edge_index)):
        if not isinstance(value, Tensor):
            raise InvalidInput(f"A graph's {name} must be a tensor, got {type(value).__name__}.")
    if x.ndim < 2 or not x.dtype.is_floating_point:
        raise InvalidInput(f"Node features must be floating and (n, ...), got {tuple(x.shape)} of {x.dtype}.")
    known = _known(x)
    if 0 not in known.checked:
        finite = torch.isfinite(x.flatten(1)).all(1)
        if not finite.all():
            raise InvalidInput(
                f"Node features contain NaN or infinity, at nodes {_few(torch.nonzero(~finite).flatten().tolist())}."
            )
        known.checked.add(0)
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
    known = _known(edge_index)
    if edge_index.numel() and len(x) not in known.checked:
        low, high = (int(v) for v in torch.aminmax(edge_index))
        if low < 0 or high >= len(x):
            raise InvalidInput(
                f"edge_index points to node {low if low < 0 else high}, but the graph has nodes 0..{len(x) - 1}."
            )
        known.checked.add(len(x))


def _as_index(given: Any, nodes: int) -> Tensor:
    """Return (k,) int64 node numbers from numbers or a mask."""
    try:
        index: Tensor = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"Nodes must be given as numbers or as a mask: {error}") from None
    if index.dtype == torch.bool:
        if tuple(index.shape) != (nodes,):
            raise InvalidInput(f"A mask of nodes must be ({nodes},), got {tuple(index.shape)}.")
        return torch.nonzero(index).flatten()
    if index.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=index.device)
    if index.ndim != 1 or index.dtype.is_floating_point or index.dtype.is_complex:
        raise InvalidInput(f"Node numbers must be integers (k,), got {tuple(index.shape)} of {index.dtype}.")
    bad = index[(index < 0) | (index >= nodes)].tolist()
    if bad:
        raise InvalidInput(f"Nodes {_few(bad)} are outside the graph, which has nodes 0..{nodes - 1}.")
    return index.long()


def _labels(data: Any, index: Tensor, target: Any) -> Tensor:
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
        raise InvalidInput(f"Nodes {_few(negative)} {reason}; classes are counted from 0.")
    return labels.long().to(index.device)


def _few(items: list[int]) -> str:
    return str(items[:10])[:-1] + (", ...]" if len(items) > 10 else "]")


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph with labelled nodes; every function here also takes a `torch_geometric.data.Data` in its place.

    Args:
        x: (n, features) floating.
        edge_index: (2, edges) int64; an undirected edge is listed in both directions.
        y: (n,) int64 classes.
        train_mask, val_mask, test_mask: (n,) bool, or None.
        undirected: that edge_index has both directions of every edge, which is then checked. A list with one direction
            runs as well, and every node then hears only half of its neighbours.

    Raises:
        InvalidInput: features, edges or masks that make no graph, or edges without their reverse where these are said
            to be there.

    >>> Graph(torch.eye(3), torch.tensor([[0], [1]]), torch.tensor([0, 1, 1])).num_classes
    2
    """

    x: Tensor
    edge_index: Tensor
    y: Tensor
    train_mask: Tensor | None = None
    val_mask: Tensor | None = None
    test_mask: Tensor | None = None
    undirected: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_graph(self.x, self.edge_index)
        if self.undirected:
            _refuse_one_way(self.edge_index, len(self.x))

    @property
    def num_nodes(self) -> int:
        """How many nodes there are."""
        return len(self.x)

    @property
    def num_features(self) -> int:
        """Features per node."""
        return int(self.x.shape[1])

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.y.max()) + 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_nodes} nodes, {self.num_features} features)"


def undirected(edge_index: Tensor, nodes: int) -> Tensor:
    """Return (2, m) the edges in both directions, each once, in ascending order.

    >>> undirected(torch.tensor([[0, 1, 2], [1, 0, 2]]), nodes=3)
    tensor([[0, 1, 2],
            [1, 0, 2]])

    Args:
        edge_index: (2, edges) integers.
        nodes: how many there are.
    """
    keys = torch.unique(torch.cat([_keys(edge_index, nodes), _keys(edge_index.flip(0), nodes)]))
    return torch.stack([keys // nodes, keys % nodes])


def _keys(edge_index: Tensor, nodes: int) -> Tensor:
    """Return (edges,) one number per edge."""
    return edge_index[0].long() * nodes + edge_index[1]


def _refuse_one_way(edge_index: Tensor, nodes: int) -> None:
    if tuple(edge_index.shape) == (nodes, nodes) and edge_index.dtype.is_floating_point:
        raise InvalidInput("Graph(undirected=True) checks a list of edges (2, edges), not an adjacency: leave it out.")
    known = _known(edge_index)
    if -nodes in known.checked:  # the same edges with other masks
        return
    forth, back = _keys(edge_index, nodes), _keys(edge_index.flip(0), nodes)
    single = ~torch.isin(back, forth)
    if single.any():
        count = int(single.sum())
        start, end = edge_index[:, single][:, 0].tolist()
        raise InvalidInput(
            f"{count} of {len(forth)} edges lack their reverse, such as {start} -> {end} without {end} -> {start}. Add "
            "them with edge_index = undirected(edge_index, nodes), or give undirected=False if directions are meant."
        )
    known.checked.add(-nodes)


@contextmanager
def _pyg(why: str) -> Iterator[None]:
    """Import PyTorch Geometric inside: quietly, and with advice where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of its own use of torch.jit
            yield
    except ModuleNotFoundError as error:
        raise DataUnavailable(f"{why}: pip install 'nnrepair[graph]'.") from error


def inductive_split(data: Any, seed: int, validation: int = 500, test: int = 500) -> Graph:
    """Return the graph with random masks: so many nodes to validate and to test, and all others to train on.

    >>> graph = Graph(torch.eye(5), torch.tensor([[0], [1]]), torch.tensor([0, 1, 1, 0, 1]))
    >>> inductive_split(graph, seed=0, validation=1, test=1).train_mask.sum()
    tensor(3)
    """
    count = len(data.x)
    if validation < 0 or test < 0 or validation + test >= count:
        raise InvalidInput(
            f"{validation} validation and {test} test nodes leave none of {count} to train on; take fewer."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    masks = [torch.zeros(count, dtype=torch.bool) for _ in range(3)]
    for mask, part in zip(masks, torch.split(order, [count - validation - test, validation, test]), strict=True):
        mask[part] = True
    masks = [mask.to(data.x.device) for mask in masks]
    if isinstance(data, Graph):
        return replace(data, train_mask=masks[0], val_mask=masks[1], test_mask=masks[2])
    return Graph(data.x, data.edge_index, data.y, *masks)


def network(
    kind: Literal["GCN", "GraphSAGE"],
    data: Any,
    *,
    hidden: int = 32,
    layers: int = 2,
    dropout: float = 0.1,
    seed: int = 0,
) -> nn.Module:
    """Build one of PyTorch Geometric's networks for a graph, untrained; its layers are `convs.0`, `convs.1`, ...

    The defaults are those with which editors of graph networks are compared on Cora.
    """
    if kind not in ("GCN", "GraphSAGE"):
        raise InvalidInput(f"Unknown network {kind!r}; choose GCN or GraphSAGE, or bring any module of your own.")
    with _pyg(f"{kind} is PyTorch Geometric's"):
        from torch_geometric.nn import models
    classes = int(data.y.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        built: nn.Module = getattr(models, kind)(data.x.shape[1], hidden, layers, classes, dropout=dropout)
    return built


def train(
    model: nn.Module, data: Any, *, epochs: int = 200, lr: float = 0.01, weight_decay: float = 0.0, seed: int = 0
) -> nn.Module:
    """Train a copy of a model inductively with Adam on the cross-entropy, and return it in eval mode.

    Inductively: only nodes of `data.train_mask` and edges among them are seen. The model given and the global random
    state stay as they were; the same seed gives the same result on the CPU.
    """
    if epochs < 1 or not (lr > 0 and math.isfinite(lr)):
        raise InvalidInput(f"epochs and lr must be positive, given {epochs} and {lr}.")
    if getattr(data, "train_mask", None) is None:
        raise InvalidInput("The graph has no train_mask: make one with inductive_split(data, seed).")
    nodes = _as_index(data.train_mask, len(data.x))
    if len(nodes) == 0:
        raise InvalidInput("The training set is empty.")
    model = copy.deepcopy(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InvalidInput("The model has no trainable parameters: set requires_grad_(True) on some.")
    device, dtype = parameters[0].device, parameters[0].dtype
    x, labels = data.x[nodes].to(device, dtype), _labels(data, nodes, None).to(device)
    edges = induced(data.edge_index, nodes, len(data.x)).to(device)
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        for _ in range(epochs):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x, edges), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.zero_grad()
    return model.eval()


def induced(edge_index: Tensor, nodes: Tensor, count: int) -> Tensor:
    """Return (2, edges) the edges among `nodes` of a graph with `count` nodes, in the numbers 0..len(nodes)-1."""
    number = torch.full((count,), -1, dtype=edge_index.dtype, device=edge_index.device)
    number[nodes] = torch.arange(len(nodes), dtype=edge_index.dtype, device=edge_index.device)
    edges = number[edge_index.long()]
    return edges[:, (edges >= 0).all(0)]


@torch.no_grad()
def mistakes(model: nn.Module, data: Any, mask: Any) -> Tensor:
    """Return (k,) the nodes of a mask that the model, run on the whole graph, gets wrong, in ascending order.

    These make edits: `NodeEdits(data, mistakes(model, data, data.val_mask))`. The model must be in eval mode.
    """
    like = next(model.parameters())
    nodes = Nodes(data.x, data.edge_index, mask).to(like)
    wrong = nodes.call(model).argmax(1) != _labels(data, nodes.index, None)
    return nodes.index[wrong].sort().values
