"""Tiny graphs, and networks for them written by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from networks import randn, seeded
from torch import Tensor, nn

from nnrepair.domains.graphs.graph import Graph


def ring(nodes: int = 12, features: int = 5, classes: int = 3, seed: int = 0) -> Graph:
    """Return a ring with a few chords; node 0 has a neighbour more than the others, and the last one none."""
    here = torch.arange(nodes - 1)
    there = (here + 1) % (nodes - 1)
    chords = torch.tensor([[0, 2], [4, 7]])
    one_way = torch.cat([torch.stack([here, there]), chords], 1)
    x = randn(nodes, features, seed=seed)
    return Graph(x, torch.cat([one_way, one_way.flip(0)], 1), torch.arange(nodes) % classes)


def adjacency(graph: Graph, layout: torch.layout = torch.strided) -> Tensor:
    """Return (n, n) the mean over a node and its neighbours."""
    A = torch.eye(graph.num_nodes)
    A[graph.edge_index[1], graph.edge_index[0]] = 1.0
    A = A / A.sum(1, keepdim=True)
    return A if layout == torch.strided else A.to_sparse(layout=layout)


def mixed(x: Tensor, edges: Tensor) -> Tensor:
    """Return the mean over a node and its neighbours, for a list of edges or an adjacency."""
    if edges.is_floating_point():
        return edges @ x
    total = x.index_add(0, edges[1], x[edges[0]])
    count = x.new_ones(len(x)).index_add(0, edges[1], x.new_ones(edges.shape[1]))
    return total / count[:, None]


class Convolution(nn.Module):
    """Like GCN: a map, then messages, then a bias."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.lin, self.bias = nn.Linear(inp, out, bias=False), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return mixed(self.lin(x), edges) + self.bias


class Sage(nn.Module):
    """Like GraphSAGE: one map for the neighbours, one for the node itself."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.neighbours, self.own = nn.Linear(inp, out), nn.Linear(inp, out, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.neighbours(mixed(x, edges)) + self.own(x)


class Attention(nn.Module):
    """Like GAT: the map also decides how much each neighbour counts."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.lin, self.look = nn.Linear(inp, out, bias=False), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.lin(x)
        weight = torch.exp(torch.tanh(h @ self.look))
        total = (weight[:, None] * h).index_add(0, edges[1], (weight[:, None] * h)[edges[0]])
        return total / weight.index_add(0, edges[1], weight[edges[0]])[:, None]


class Net(nn.Module):
    """Two layers of a kind; `end` is applied to the outputs."""

    def __init__(self, kind: type[nn.Module], end: str = "none", hidden: int = 6) -> None:
        super().__init__()
        self.first, self.last, self.end = kind(5, hidden), kind(hidden, 3), end

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y = self.last(F.relu(self.first(x, edges)), edges)
        return {"none": y, "softmax": y.softmax(1), "relu": F.relu(y)}[self.end]


def net(kind: type[nn.Module] = Convolution, end: str = "none", hidden: int = 6, seed: int = 0) -> Net:
    return seeded(lambda: Net(kind, end, hidden), seed).eval()
