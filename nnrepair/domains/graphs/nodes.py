"""Nodes of a graph: as inputs of a model, as edits, as a locality set, as an edit scope.

A node's output depends on its neighbours, so a model always runs on the whole graph: `Nodes` says which nodes are
meant, and all `Nodes` of one graph share its features and edges without copies. Any model called as
`model(x, edge_index)` that returns one row per node works.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.domains.graphs.checks import as_index, check_graph, check_nodes, refuse_not_finite, refuse_weights
from nnrepair.domains.graphs.known import converted
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.rounding import counted, first
from nnrepair.spec.dense import dense
from nnrepair.spec.edits import Edits, EditScope, LocalitySet
from nnrepair.spec.hops import hops
from nnrepair.spec.inputs import Inputs
from nnrepair.spec.pyg import GraphNodes, is_graph


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
        x, edge_index = converted(self.x, like), converted(self.edge_index, like)
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

    def hops(self, others: Any, most: int) -> Tensor | None:
        """Return (len(others),) along how many edges other nodes are from the nearest of these, see `Inputs.hops`."""
        if not isinstance(others, Nodes) or others.edge_index is not self.edge_index:
            return None
        return hops(self.edge_index, len(self.x), self.index, most)[others.index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {counted(len(self.x), 'node')})"

    def _with(self, x: Tensor, edge_index: Tensor, index: Tensor) -> Nodes:
        """Return Nodes of parts that were checked before: looking through all edges again would take long."""
        nodes = object.__new__(type(self))
        for name, value in (("x", x), ("edge_index", edge_index), ("index", index)):
            object.__setattr__(nodes, name, value)
        return nodes


def NodeEdits(data: Any, nodes: Any, labels: Any = None, *, node_type: str | None = None) -> Edits:
    """Return edits of a graph's nodes.

    >>> from nnrepair.domains.graphs.graph import Graph
    >>> NodeEdits(Graph(torch.eye(3), torch.tensor([[0], [1]]), torch.tensor([0, 1, 1])), [2]).criterion.labels
    tensor([1])

    Args:
        data: anything with `x`, `edge_index` and `y`, such as a `Graph`; nothing else that it holds reaches the model,
            and edge weights are refused. Or a `Data` or `HeteroData` of PyTorch Geometric, of which a model gets what
            its forward names, or all but the labels: `forward(x, edge_index, edge_attr)`, `forward(data)`. Or the
            `CachedNetwork` that is to be repaired.
        nodes: (k,) node numbers, or a mask (n,).
        labels: (k,) what the nodes' classes should be; the data set's labels by default.
        node_type: of a `HeteroData`, whose nodes they are.

    Raises:
        InvalidInput: nodes or labels that do not fit the graph, or one node with two different labels.
    """
    inputs = inputs_of(data, nodes, node_type)
    labels = labels_of(graph_of(data, node_type), inputs.index, labels)
    order = torch.argsort(inputs.index, stable=True)
    node, label = inputs.index[order], labels[order]
    clash = node[1:][(node[1:] == node[:-1]) & (label[1:] != label[:-1])].tolist()
    if clash:
        raise InvalidInput(
            f"Nodes {first(sorted(set(clash)))} are given two different labels each. Remove one of each pair."
        )
    return Edits(inputs, labels)


def NodeLocality(data: Any, mask: Any, labels: Any = True, *, node_type: str | None = None) -> LocalitySet:
    """Return a locality set of a graph's nodes; with the test nodes, what `fix` takes as `test_set`.

    Args:
        data: as for `NodeEdits`.
        mask: (n,) booleans, or (k,) node numbers.
        labels: True: the data set's, so that nodes which the model gets wrong are free to change; None: every decision
            of the model is to stay; or (k,) labels of the chosen nodes.
        node_type: of a `HeteroData`, whose nodes they are.

    Raises:
        InvalidInput: a mask or labels that do not fit the graph.
    """
    inputs = inputs_of(data, mask, node_type)
    if labels is None or labels is False:
        return LocalitySet(inputs)
    return LocalitySet(inputs, labels_of(graph_of(data, node_type), inputs.index, None if labels is True else labels))


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


def of_type(data: Any, node_type: str | None) -> Any:
    """Return what has the features and labels of a graph's nodes of one type.

    Raises:
        InvalidInput: no such type, or none named where there are several.
    """
    types = list(getattr(data, "node_types", []))
    if node_type in types:
        return data[node_type]
    if types or node_type is not None:
        given = f"node_type={node_type!r}" if node_type is not None else "no node_type"
        hint = near_matches(str(node_type), types)
        raise InvalidInput(
            f"{given}: name one of the graph's types of nodes.{hint} Types: {', '.join(types) or 'one'}."
        )
    return data


def graph_of(data: Any, node_type: str | None = None) -> Any:
    """Return what has x and y: a graph itself, or that of a cached network."""
    if is_graph(data):
        return of_type(data, node_type)
    return data.graph if callable(getattr(data, "nodes", None)) else data


def inputs_of(data: Any, nodes: Any, node_type: str | None = None) -> Any:
    """Return nodes as inputs of the model: of a whole graph, or of a cached network."""
    if is_graph(data):
        store = of_type(data, node_type)
        inputs = GraphNodes(data, as_index(nodes, int(store.num_nodes)), node_type)
        if isinstance(getattr(store, "x", None), Tensor):
            check_nodes(len(store.x), None)
            refuse_not_finite(store.x)
        return inputs
    if node_type is not None:
        raise InvalidInput(f"node_type={node_type!r} is for a HeteroData; this graph has nodes of one type.")
    if callable(getattr(data, "nodes", None)):
        return data.nodes(nodes)
    if not (hasattr(data, "x") and hasattr(data, "edge_index")):
        raise InvalidInput(
            f"The graph must have x and edge_index, as a Graph or a Data object has; got {type(data).__name__}."
        )
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


def picked(nodes: Tensor, index: Any) -> Tensor:
    """Return (m,) some of the nodes (k,), by a slice, numbers or a mask."""
    chosen = nodes[index] if isinstance(index, slice) else nodes[torch.as_tensor(index).to(nodes.device)]
    return chosen.reshape(-1)


def labels_of(data: Any, index: Tensor, target: Any) -> Tensor:
    """Return (k,) the labels given, or the data set's own."""
    given = target is not None
    if not given:
        y = getattr(data, "y", None)
        if not isinstance(y, Tensor):
            raise InvalidInput("The graph has no labels y: give the labels of the nodes.")
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # Open Graph Benchmark
        count = len(data.x) if hasattr(data, "x") else int(data.num_nodes)
        if y.ndim != 1 or len(y) != count:
            raise InvalidInput(f"The graph's labels must be one per node ({count},), got {tuple(y.shape)}.")
        target = y[index.to(y.device)]
    labels = dense(target, "Labels", "integers (k,)")
    if labels.ndim != 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise InvalidInput(f"Labels must be integers (k,), got {tuple(labels.shape)} of {labels.dtype}.")
    if len(labels) != len(index):
        raise InvalidInput(f"Got {len(labels)} labels for {len(index)} nodes.")
    negative = index[(labels < 0).to(index.device)].tolist()
    if negative:
        reason = "are given negative labels" if given else "have no label in the data set"
        raise InvalidInput(f"Nodes {first(negative)} {reason}; classes are counted from 0.")
    return labels.long().to(index.device)
