"""Graphs with 100 million edges on an ordinary machine: edges grouped by target, four bytes each.

A list of edges in PyTorch Geometric's form takes sixteen bytes per edge, and its message passing four more per edge and
hidden unit: half a terabyte for Reddit and 1000 units. Grouped by target (compressed sparse rows), the messages of a
block of nodes are summed where they lie, so that nothing of the size edges x hidden ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnrepair.domains.graphs.checks import (
    LabelledNodes,
    as_index,
    check_nodes,
    refuse_not_finite,
    refuse_outside,
    refuse_weights,
)
from nnrepair.domains.graphs.graph import Graph
from nnrepair.errors import InvalidInput
from nnrepair.rounding import counted

#: Edges that are looked at together, where each of them needs more than its four bytes.
CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Csr:
    """The edges of a graph, grouped by the node that they point to; parallel edges and self loops count as they are.

    >>> edges = Csr.of(torch.tensor([[2, 0, 1], [0, 1, 0]]), nodes=3)  # 2 -> 0, 0 -> 1, 1 -> 0
    >>> edges.pointer, edges.source
    (tensor([0, 2, 3, 3]), tensor([1, 2, 0], dtype=torch.int32))

    Args:
        pointer: (n + 1,) int64; the edges to node v are pointer[v], ..., pointer[v + 1] - 1.
        source: (edges,) int32, where each comes from; ascending within a group when made by `of`.

    Raises:
        InvalidInput: arrays that do not fit each other, or edges from outside the graph.
    """

    pointer: Tensor
    source: Tensor

    def __post_init__(self) -> None:
        for name, value, dtype in (("pointer", self.pointer, torch.int64), ("source", self.source, torch.int32)):
            if not isinstance(value, Tensor) or value.ndim != 1 or value.dtype != dtype or value.device.type != "cpu":
                given = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise InvalidInput(f"Csr: {name} must be a vector of {dtype} on the CPU, got {given}.")
        steps = self.pointer.diff()
        if (
            len(self.pointer) < 2
            or self.pointer[0] != 0
            or self.pointer[-1] != len(self.source)
            or bool((steps < 0).any())
        ):
            raise InvalidInput(
                f"Csr: pointer must ascend from 0 to the number of edges, {len(self.source)}, and have one entry more "
                "than there are nodes. Csr.of(edge_index, nodes) makes both arrays from a list of edges."
            )
        refuse_outside(self.source, self.nodes)

    @classmethod
    def of(cls, edge_index: Tensor, nodes: int) -> Csr:
        """Group a list of edges (2, edges), from the first row's nodes to the second's, by target.

        Needs 12 bytes per edge beside the list.
        """
        if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
            raise InvalidInput("edge_index must be a plain tensor (2, edges) of integers; an adjacency cannot be used.")
        integers = (torch.int64, torch.int32)
        if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.dtype not in integers:
            raise InvalidInput(
                f"edge_index must be (2, edges) of int64, got {edge_index.dtype} {tuple(edge_index.shape)}."
            )
        if not 0 < nodes < 2**31:
            raise InvalidInput(f"A graph has 1 to {2**31 - 1} nodes, got {nodes}.")
        refuse_outside(edge_index, nodes)
        source, target = edge_index.detach().cpu().numpy()
        keys = np.empty(len(source), np.int64)
        for part in chunks(len(keys), CHUNK):
            np.multiply(target[part], nodes, out=keys[part], dtype=np.int64)
            keys[part] += source[part]
        return cls.of_keys(keys, nodes)

    @classmethod
    def of_keys(cls, keys: np.ndarray[Any, np.dtype[np.int64]], nodes: int) -> Csr:
        """Group edges given as target * nodes + source, (edges,) int64, which are sorted in place."""
        keys.sort()
        pointer = np.searchsorted(keys, np.arange(nodes + 1, dtype=np.int64) * nodes)
        source = np.empty(len(keys), np.int32)
        for part in chunks(len(keys), CHUNK):
            np.remainder(keys[part], nodes, out=source[part], casting="unsafe")
        return cls(torch.from_numpy(pointer.astype(np.int64)), torch.from_numpy(source))

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.pointer) - 1

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"Csr({counted(len(self), 'edge')}, {counted(self.nodes, 'node')})"

    @cached_property
    def degrees(self) -> Tensor:
        """(n,) int64, the edges that point to each node."""
        return self.pointer.diff()

    @cached_property
    def loops(self) -> Tensor:
        """(n,) int64, how many of these come from the node itself."""
        loops = torch.zeros(self.nodes, dtype=torch.int64)
        for source, target in self.parts():
            found = target[source == target]
            loops.index_add_(0, found, torch.ones_like(found))
        return loops

    def groups(self, most: int = CHUNK) -> Iterator[tuple[slice, slice]]:
        """Yield consecutive nodes and the edges that point to them, at most so many (or one node's)."""
        start = 0
        while start < self.nodes:
            first = int(self.pointer[start])
            stop = int(torch.searchsorted(self.pointer, first + most, right=True)) - 1
            stop = min(max(stop, start + 1), start + max(most // 64, 1), self.nodes)
            yield slice(start, stop), slice(first, int(self.pointer[stop]))
            start = stop

    def gather(self, h: Tensor, targets: slice, mean: bool = False) -> Tensor:
        """Return (targets, d) the sum, or mean, of h (n, d) over the edges to each of some consecutive nodes.

        A node without edges gets zeros. Memory: the result, and four bytes per target.
        """
        offsets = self.pointer[targets.start : targets.stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        if first == last:
            return h.new_zeros(targets.stop - targets.start, h.shape[1])
        offsets = (offsets - first).to(torch.int32)
        mode = "mean" if mean else "sum"
        return F.embedding_bag(self.source[first:last], h, offsets, mode=mode, include_last_offset=True)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield where edges start and where they end, some at a time."""
        for part, edges in self.groups():
            target = torch.repeat_interleave(torch.arange(part.start, part.stop), self.degrees[part])
            yield self.source[edges], target

    def edge_index(self) -> Tensor:
        """Return the list of edges (2, edges) int64: sixteen bytes per edge."""
        target = torch.repeat_interleave(torch.arange(self.nodes), self.degrees)
        return torch.stack([self.source.long(), target])

    def into(self, nodes: Tensor) -> Tensor:
        """Return (2, edges) int64 the edges to some nodes, from wherever they come."""
        count = self.degrees[nodes]
        ends = count.cumsum(0)
        edge = torch.arange(int(ends[-1]) if len(ends) else 0)
        edge += torch.repeat_interleave(self.pointer[nodes] - ends + count, count)
        return torch.stack([self.source[edge].long(), torch.repeat_interleave(nodes, count)])

    def induced(self, nodes: Tensor) -> Tensor:
        """Return (2, edges) int64 the edges among some nodes, in the numbers 0, ..., len(nodes) - 1."""
        number = torch.full((self.nodes,), -1, dtype=torch.int64)
        number[nodes] = torch.arange(len(nodes))
        if len(nodes) != int((number >= 0).sum()):
            raise InvalidInput("The nodes of a subgraph must be different from each other.")
        found = [torch.zeros(2, 0, dtype=torch.int64)]
        for some in _split(nodes, self.degrees[nodes]):
            edges = number[self.into(some)]
            found.append(edges[:, edges[0] >= 0])
        return torch.cat(found, 1)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Yield 0..count-1 in consecutive slices of a size."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _split(nodes: Tensor, degrees: Tensor) -> list[Tensor]:
    """Return the nodes in parts that have about CHUNK edges each, and no more than one node's beyond."""
    which = (degrees.cumsum(0) - degrees) // CHUNK
    return list(torch.split(nodes, torch.unique_consecutive(which, return_counts=True)[1].tolist()))


@dataclass(frozen=True, eq=False)
class LargeGraph(LabelledNodes):
    """A graph with labelled nodes, like `Graph`, whose edges are grouped by target.

    Functions that take a `Graph` take it too (its `edge_index` is then made, which takes sixteen bytes per edge).

    >>> LargeGraph.of(Graph(torch.eye(3), torch.tensor([[0], [1]]), torch.tensor([0, 1, 1])))
    LargeGraph(3 nodes, 1 edge, 3 features)

    Args:
        x: (n, features) floating, on the CPU.
        edges: an undirected edge is listed in both directions.
        y: (n,) int64 classes.
        train_mask, val_mask, test_mask: (n,) bool, or None.
    """

    x: Tensor
    edges: Csr
    y: Tensor
    train_mask: Tensor | None = None
    val_mask: Tensor | None = None
    test_mask: Tensor | None = None

    def __post_init__(self) -> None:
        x = self.x
        plain = isinstance(x, Tensor) and x.layout == torch.strided and x.device.type == "cpu"
        if not plain or x.ndim != 2 or not x.dtype.is_floating_point:
            given = f"{x.dtype} {tuple(x.shape)}, {x.layout}, {x.device}" if isinstance(x, Tensor) else type(x).__name__
            raise InvalidInput(f"Node features must be floating, (n, features) and on the CPU, got {given}.")
        if not isinstance(self.edges, Csr):
            raise InvalidInput(f"edges must be a Csr, got {type(self.edges).__name__}: LargeGraph.of(data) makes it.")
        if len(x) != self.edges.nodes:
            raise InvalidInput(f"{len(x)} rows of features for a graph of {self.edges.nodes} nodes.")
        y = self.y
        if not isinstance(y, Tensor) or tuple(y.shape) != (len(x),) or y.dtype != torch.int64:
            given = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise InvalidInput(f"Labels y must be int64, one per node ({len(x)},), got {given}.")
        check_nodes(len(x), None, **self.masks)
        refuse_not_finite(x)

    @classmethod
    def of(cls, data: Any) -> LargeGraph:
        """Return a `Graph` or a `torch_geometric.data.Data` in this form; a `LargeGraph` is returned as it is."""
        if isinstance(data, cls):
            return data
        missing = [name for name in ("x", "edge_index", "y") if getattr(data, name, None) is None]
        if missing:
            raise InvalidInput(f"A graph has x, edge_index and y; {type(data).__name__} lacks {', '.join(missing)}.")
        refuse_weights(data)
        y = data.y[:, 0] if data.y.ndim == 2 and data.y.shape[1] == 1 else data.y  # Open Graph Benchmark
        masks = {name: getattr(data, name, None) for name in ("train_mask", "val_mask", "test_mask")}
        return cls(data.x, Csr.of(data.edge_index, len(data.x)), y, **masks)

    @property
    def edge_index(self) -> Tensor:
        """The list of edges (2, edges) int64, made anew each time: sixteen bytes per edge."""
        return self.edges.edge_index()

    def induced(self, nodes: Any) -> Graph:
        """Return some nodes, (k,) numbers or a mask (n,), with the edges among them, as a plain `Graph`."""
        nodes = as_index(nodes, len(self.x))
        masks = [None if mask is None else mask[nodes] for mask in self.masks.values()]
        return Graph(self.x[nodes], self.edges.induced(nodes), self.y[nodes], *masks)

    def neighbourhood(self, nodes: Any, hops: int, most: int = 50_000_000) -> Neighbourhood:
        """Return all that some nodes' outputs depend on in a network of so many layers: nothing is sampled.

        A node's messages are complete up to `hops` steps away from the nodes given. A GCN also weighs each message by
        the degree of the node that sends it, so take one hop more than it has layers.

        All layers can then be tuned on the edits and some nodes to keep:

            part = graph.neighbourhood(torch.cat([edits, kept]), hops=2)
            edits, kept = (Nodes(part.x, part.edge_index, i) for i in part.index.split([len(edits), len(kept)]))
            result = nnrepair.fix(model, (edits, labels), kept, method="ft+kl")

        Args:
            nodes: (k,) node numbers, or a mask (n,).
            hops: how many, at least 0.
            most: edges that the subgraph may have.

        Raises:
            InvalidInput: hops that are no number of steps, or more edges than that. Within two hops of a node of Reddit
                lies most of the graph: `cached` makes edits of the last layer independent of it.
        """
        if not isinstance(hops, int) or isinstance(hops, bool) or hops < 0:
            raise InvalidInput(f"hops must be a whole number >= 0, got {hops!r}.")
        chosen = as_index(nodes, len(self.x))
        number = torch.full((len(self.x),), -1, dtype=torch.int64)
        number[chosen] = torch.arange(len(chosen))
        if len(chosen) != int((number >= 0).sum()):
            raise InvalidInput("The nodes whose neighbourhood is wanted must be different from each other.")
        known, ring, found, total = [chosen], chosen, [torch.zeros(2, 0, dtype=torch.int64)], 0
        for hop in range(hops):
            total += int(self.edges.degrees[ring].sum())
            if total > most:
                raise InvalidInput(
                    f"The neighbourhood of {len(chosen)} nodes within {hop + 1} hops has {total} edges, more than "
                    f"most={most}. Give fewer nodes or hops, raise `most` (each edge takes 16 bytes, and 4 more per "
                    "hidden unit while a network runs), or edit the last layer alone, with cached(model, data)."
                )
            found += [self.edges.into(some) for some in _split(ring, self.edges.degrees[ring])]
            new = torch.zeros(len(self.x), dtype=torch.bool)
            for part in found[1:]:
                new[part[0]] = True
            ring = torch.nonzero(new & (number < 0)).flatten()
            number[ring] = torch.arange(len(ring)) + sum(len(k) for k in known)
            known.append(ring)
        every = torch.cat(known)
        return Neighbourhood(self.x[every], number[torch.cat(found, 1)], every, torch.arange(len(chosen)))

    def __repr__(self) -> str:
        size = f"{counted(self.num_nodes, 'node')}, {counted(len(self.edges), 'edge')}"
        return f"{type(self).__name__}({size}, {counted(self.num_features, 'feature')})"


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """A subgraph around some nodes, for `Nodes(part.x, part.edge_index, part.index)`.

    Attributes:
        x: (m, features) of the subgraph's nodes.
        edge_index: (2, edges) in the subgraph's numbers.
        nodes: (m,) which nodes of the graph these are; those that were asked for come first.
        index: (k,) where these are in the subgraph: 0, ..., k - 1.
    """

    x: Tensor
    edge_index: Tensor
    nodes: Tensor
    index: Tensor

    def __repr__(self) -> str:
        size = f"{counted(len(self.nodes), 'node')}, {counted(self.edge_index.shape[1], 'edge')}"
        return f"{type(self).__name__}({size}, around {len(self.index)})"
