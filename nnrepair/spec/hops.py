"""How many edges apart the nodes of a graph are."""

from __future__ import annotations

import torch
from torch import Tensor


def hops(edges: Tensor, nodes: int, start: Tensor, most: int) -> Tensor:
    """Return (nodes,) int64 how many edges each node is away from the nearest of some, `most + 1` where it is farther.

    >>> hops(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), 6, torch.tensor([1]), 2)
    tensor([1, 0, 1, 2, 3, 3])

    Args:
        edges: (2, edges) int64, which count in both directions; or an adjacency (nodes, nodes), sparse or dense.
        nodes: how many there are.
        start: (k,) int64, of these.
        most: how far to look.
    """
    if edges.is_floating_point() or edges.layout != torch.strided:
        whole = edges.to_sparse() if edges.layout != torch.sparse_coo else edges
        edges = whole.coalesce().indices()
    away = torch.full((nodes,), most + 1, device=edges.device)
    away[start.to(edges.device)] = 0
    for distance in range(1, most + 1):
        near = away < distance
        reached = torch.zeros_like(near)
        for here, there in (edges, edges.flip(0)):
            reached[there[near[here]]] = True
        away[reached & (away > distance)] = distance
    return away
