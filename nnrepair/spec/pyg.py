"""Graphs as PyTorch Geometric holds them: whole graphs as points, or the nodes of one.

A model gets what its `forward` names: `forward(x, edge_index, batch)` these attributes, `forward(data)` all of them.
Labels (`y`) never reach it.
"""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, first_line
from nnrepair.fingerprint import digest_of_state
from nnrepair.rounding import first
from nnrepair.spec.dense import dense, refuse_names
from nnrepair.spec.hops import hops
from nnrepair.spec.inputs import Inputs, tensor_like

#: Graphs that run together.
GRAPHS = 256


def is_graph(given: Any) -> bool:
    """Whether something is a graph, or a batch of them, as PyTorch Geometric holds it."""
    pyg = sys.modules.get("torch_geometric.data")
    return pyg is not None and isinstance(given, pyg.Data | pyg.HeteroData)


def is_batch(given: Any) -> bool:
    """Whether a graph is several as one."""
    return is_graph(given) and hasattr(given, "to_data_list")


def called(model: nn.Module, data: Any) -> Any:
    """Return what a model returns for a graph, or for several as one: called by the names of its arguments."""
    names = _taken(_arguments(model), data)
    return model(**{name: getattr(data, name) for name in names}) if names else model(_unlabelled(data))


def _arguments(model: nn.Module) -> list[inspect.Parameter]:
    """Return the arguments that a network names; of one around another (other weights, edits beside it) that one's."""
    base: Any = model._modules.get("base")
    inner = vars(model).get("inner") or (base if hasattr(type(model), "carries") else None)
    if inner is not None:
        return _arguments(inner)
    told = [p for p in inspect.signature(model.forward).parameters.values() if p.kind in _NAMED]
    return told if told or base is None else _arguments(base)


def _taken(told: Sequence[inspect.Parameter], data: Any) -> list[str]:
    """Return the names of the attributes that a model takes; none where it takes the graph itself."""
    needed = [p.name for p in told if p.default is p.empty]
    if len(needed) <= 1 and (needed in ([], ["batch"]) or not _has(data, needed[0])):
        return []
    missing = [name for name in needed if not _has(data, name)]
    if missing:
        raise InvalidInput(
            f"The model's forward takes {', '.join(needed)}, and the graph has no {', '.join(missing)}; it has "
            f"{', '.join(map(str, data.keys()))}. Give the graph what is missing, or let forward take the graph: "
            "forward(self, data)."
        )
    return [p.name for p in told if p.name in needed or isinstance(getattr(data, p.name, None), Tensor | dict)]


_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _has(data: Any, name: str) -> bool:
    return getattr(data, name, None) is not None


@dataclass(frozen=True, eq=False)
class Graphs(Inputs):
    """Whole graphs, each of them a point.

    Args:
        graphs: `Data` or `HeteroData` objects of PyTorch Geometric, of one kind.
    """

    graphs: tuple[Any, ...]
    like: Tensor | None = None

    batch = GRAPHS

    @classmethod
    def of(cls, given: Any, what: str) -> tuple[Graphs, Tensor | None]:
        """Return graphs, and their labels (n, ...) where all of them have some.

        Args:
            given: a batch, or graphs.
            what: how messages call them.

        Raises:
            InvalidInput: features that are not finite, or labels that are not one per graph.
        """
        try:
            graphs = list(given.to_data_list()) if is_batch(given) else list(given)
        except RuntimeError as error:  # PyTorch Geometric: a batch that was put together by hand
            raise InvalidInput(
                f"{what}: the batch cannot be taken apart ({first_line(error)}). Give a list of graphs, or "
                "Batch.from_data_list(graphs)."
            ) from None
        kinds = {type(graph).__name__ for graph in graphs}
        if len(kinds) != 1:
            raise InvalidInput(f"{what}: all graphs must be of one kind, got {' and '.join(sorted(kinds))}.")
        for k, graph in enumerate(graphs):
            _refuse_no_numbers(graph, f"{what}: graph {k}")
        labels = [_label(graph, f"{what}: graph {k}") for k, graph in enumerate(graphs)]
        bare = cls(tuple(_unlabelled(graph) for graph in graphs))
        without = [k for k, label in enumerate(labels) if label is None]
        if len(without) == len(labels):
            return bare, None
        if without:
            raise InvalidInput(f"{what}: graphs {first(without)} have no label y, but others have; give all or none.")
        per_node = [k for k, (g, y) in enumerate(zip(graphs, labels, strict=True)) if y is not None and len(y) != 1]
        if per_node:
            raise InvalidInput(
                f"{what}: each graph of a list is one point, with one label y (1, ...); graph {per_node[0]} has y of "
                f"shape {tuple(graphs[per_node[0]].y.shape)}. Where nodes have labels, give the nodes of one graph: "
                "nnrepair.domains.graphs.NodeEdits(data, nodes)."
            )
        return bare, torch.cat([y for y in labels if y is not None])

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: Tensor) -> Graphs:
        chosen = torch.arange(len(self))[index.cpu()].reshape(-1).tolist()
        return replace(self, graphs=tuple(self.graphs[k] for k in chosen))

    def to(self, like: Tensor) -> Graphs:
        return replace(self, like=like.detach().flatten()[:1].clone())

    def call(self, model: nn.Module) -> Tensor:
        from torch_geometric.data import Batch

        together = Batch.from_data_list(list(self.graphs))
        if self.like is not None:
            together = together.apply(lambda part: tensor_like(part, self.like))
        y: Tensor = called(model, together)
        return y

    def same(self) -> Tensor:
        """Return (n, 4) a hash of each graph's tensors."""
        return torch.stack([torch.frombuffer(bytearray(_digest(graph)), dtype=torch.int64) for graph in self.graphs])

    def joined(self, other: Any) -> Graphs | None:
        if not isinstance(other, Graphs):
            return None
        return replace(self, graphs=self.graphs + other.graphs)

    def tensors(self) -> list[Tensor]:
        return [part for graph in self.graphs for _, part in _tensors(graph)]

    def copied(self) -> Graphs:
        return replace(self, graphs=tuple(graph.clone() for graph in self.graphs))

    def __repr__(self) -> str:
        return f"{len(self)} graphs"


@dataclass(frozen=True, eq=False)
class GraphNodes(Inputs):
    """Nodes of one graph, which a model computes all together.

    Args:
        data: `Data` or `HeteroData` of PyTorch Geometric, with whatever the model takes of it.
        index: (k,) int64, which nodes.
        node_type: of a `HeteroData`, the nodes' type; the model then returns one tensor for each type, or this one's.
    """

    data: Any
    index: Tensor
    node_type: str | None = None

    independent = False

    @property
    def count(self) -> int:
        """How many nodes of this type the graph has."""
        return int((self.data if self.node_type is None else self.data[self.node_type]).num_nodes)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor) -> GraphNodes:
        return replace(self, index=self.index[index.to(self.index.device)].reshape(-1))

    def to(self, like: Tensor) -> GraphNodes:
        return replace(self, data=_moved(self.data, like), index=self.index.to(like.device))

    def call(self, model: nn.Module) -> Tensor:
        y: Any = called(model, self.data)
        if isinstance(y, dict) and self.node_type in y:
            y = y[self.node_type]
        if not isinstance(y, Tensor):
            return y  # type: ignore[no-any-return]  # what it is, is told where it is asked for scores
        if y.ndim == 0 or len(y) != self.count:
            raise InvalidInput(
                f"The model returns outputs of shape {tuple(y.shape)} for {self.count} nodes; it must return one row "
                "per node."
            )
        return y[self.index]

    def own(self) -> Tensor:
        """Return (k, ...) the features of these nodes, without their neighbours'."""
        store = self.data if self.node_type is None else self.data[self.node_type]
        if not isinstance(getattr(store, "x", None), Tensor):
            raise InvalidInput("The nodes have no features x of their own.")
        return store.x[self.index]  # type: ignore[no-any-return]

    def same(self) -> Tensor:
        return self.index

    def whole(self) -> GraphNodes:
        return replace(self, index=torch.arange(self.count, device=self.index.device))

    def joined(self, other: Any) -> GraphNodes | None:
        """Return these nodes and then the other's, of one graph."""
        if not isinstance(other, GraphNodes) or other.data is not self.data or other.node_type != self.node_type:
            return None
        return replace(self, index=torch.cat([self.index, other.index]))

    def hops(self, others: Any, most: int) -> Tensor | None:
        """Return (len(others),) along how many edges other nodes are from the nearest of these, see `Inputs.hops`."""
        edges = getattr(self.data, "edge_index", None)
        same = isinstance(others, GraphNodes) and others.data is self.data and self.node_type is None
        return hops(edges, self.count, self.index, most)[others.index] if same and isinstance(edges, Tensor) else None

    def tensors(self) -> list[Tensor]:
        return [part for _, part in _tensors(self.data)]

    def copied(self) -> GraphNodes:
        return replace(self, data=self.data.clone())

    def __repr__(self) -> str:
        return f"{len(self)} of {self.count} nodes"


#: What graphs became elsewhere, or in another dtype, for as long as they live: all nodes of one share it.
_MOVED: dict[int, dict[Any, tuple[Any, Any]]] = {}


def _moved(graph: Any, like: Tensor) -> Any:
    """Return a graph on `like`'s device and in its dtype."""
    parts = [part for _, part in _tensors(graph)]
    if all(p.device == like.device and (p.dtype == like.dtype or not p.is_floating_point()) for p in parts):
        return graph
    if id(graph) not in _MOVED:
        _MOVED[id(graph)] = {}
        weakref.finalize(graph, _MOVED.pop, id(graph), None)
    known, key = _MOVED[id(graph)], (like.dtype, like.device)
    state = [(id(part), None if part.is_inference() else part._version) for part in parts]
    if key not in known or known[key][0] != state:
        known[key] = state, copy.copy(graph).apply(lambda part: tensor_like(part, like))
    return known[key][1]


def _stores(graph: Any) -> Iterator[Any]:
    yield from graph.stores


def _tensors(graph: Any) -> list[tuple[str, Tensor]]:
    return [(name, part) for store in _stores(graph) for name, part in store.items() if isinstance(part, Tensor)]


def _label(graph: Any, what: str) -> Tensor | None:
    """Return (1, ...) the label of a graph."""
    y = getattr(graph, "y", None)
    if y is None:
        return None
    refuse_names([y] if isinstance(y, str | bytes) else y, what)
    label = dense(y, f"{what}: y", "a number, or a tensor")
    return label.reshape(1) if label.ndim == 0 else label


def _unlabelled(graph: Any) -> Any:
    twin = copy.copy(graph)
    for store in _stores(twin):
        if "y" in store:
            del store["y"]
    return twin


def _refuse_no_numbers(graph: Any, what: str) -> None:
    for store in _stores(graph):
        for name in ("x", "edge_index"):
            if name in store and isinstance(store[name], list | tuple | np.ndarray):
                raise InvalidInput(f"{what} has {name!r} as {type(store[name]).__name__}: models take tensors.")
    for name, part in _tensors(graph):
        if part.is_meta:
            raise InvalidInput(f"{what} has {name!r} on the meta device, without numbers.")
        if part.layout != torch.strided:
            part = (part.coalesce() if part.is_sparse else part).values()
        if part.is_floating_point() and name != "y" and not bool(torch.isfinite(part).all()):
            raise InvalidInput(f"{what} has NaN or infinity in {name!r}.")


def _digest(graph: Any) -> bytes:
    parts = {f"{k}.{name}": part for k, (name, part) in enumerate(sorted(_tensors(graph), key=lambda item: item[0]))}
    return bytes.fromhex(digest_of_state(parts))
