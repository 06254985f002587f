"""Bounds of all values of a network by intervals alone: for points, for boxes like points, and to begin with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.affine import EPS, Affine, in_pieces
from nnrepair.verify.reading.graph import Graph, Node

#: Added to every error bound against underflow.
TINY = 1e-280

Interval = tuple[Tensor, Tensor]


def outputs_over(graph: Graph, lower: Tensor, upper: Tensor, deadline: Deadline = NEVER) -> Interval:
    """Return bounds of the outputs over boxes (n, inputs); see `values_over`."""
    return values_over(graph, lower, upper, deadline)[-1]


def values_over(
    graph: Graph,
    lower: Tensor,
    upper: Tensor,
    deadline: Deadline = NEVER,
    known: Sequence[Interval] | None = None,
) -> list[Interval]:
    """Return bounds of every node's values over boxes (n, inputs) by intervals alone.

    Each step is centre and radius, with each box's own intervals as the m that bounds rounding errors.
    Infinities and NaN say that numbers became too large.

    Args:
        graph: the network.
        lower, upper: the boxes.
        deadline: when to give up, with OutOfTime.
        known: bounds (n, size) of each node that hold already; the result is within these.
    """
    values = [(lower, upper)]
    for k, node in enumerate(graph.nodes[1:], 1):
        deadline.check()
        ends = step_over(node, values, deadline)
        if known is not None:
            ends = (torch.fmax(ends[0], known[k][0]), torch.fmin(ends[1], known[k][1]))
        values.append(ends)
    return values


def step_over(node: Node, values: Sequence[Interval], deadline: Deadline = NEVER) -> Interval:
    """Return bounds of a node's values, given those of all nodes before it."""
    low, high = values[node.sources[0]]
    if node.affine is not None:
        return affine_over(node.affine, low, high, deadline)
    if node.activation is not None:
        return node.activation.enclose(low, high)
    each = [values[source] for source in node.sources]
    size = sum((torch.maximum(a.abs(), b.abs()) for a, b in each), torch.zeros_like(low))
    error = 4 * len(each) * EPS * size + TINY
    return sum((a for a, _ in each[1:]), low) - error, sum((b for _, b in each[1:]), high) + error


def affine_over(map: Affine, low: Tensor, high: Tensor, deadline: Deadline = NEVER) -> Interval:
    """Return bounds of an affine map's values over boxes (n, inputs) of what goes into it."""
    gamma = (map.terms + 64) * EPS * 1.01
    size = torch.maximum(low.abs(), high.abs())
    spread = (high - low) / 2 + (2 * gamma + map.inexact) * size
    center = in_pieces(map.apply, (low + high) / 2, map.work, deadline) + map.bias
    radius = in_pieces(map.magnitude, spread, map.work, deadline)
    radius = (radius + 2 * gamma * map.bias.abs()) * (1 + 1e-9) + TINY
    radius = radius if map.off is None else radius + map.off * (1 + 1e-9)
    return center - radius, center + radius
