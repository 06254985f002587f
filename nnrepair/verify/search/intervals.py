"""Bounds of all outputs by intervals alone: for points, and for boxes like points."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.affine import EPS, in_pieces
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.magnitudes import TINY


def outputs_over(graph: Graph, lower: Tensor, upper: Tensor, deadline: Deadline = NEVER) -> tuple[Tensor, Tensor]:
    """Return bounds of the outputs over boxes (n, inputs) by intervals alone: for points, and boxes like points.

    Each step is centre and radius, as above, with each box's own intervals as the m that bounds rounding errors.
    Infinities and NaN say that numbers became too large.
    """
    values = [(lower, upper)]
    for node in graph.nodes[1:]:
        deadline.check()
        low, high = values[node.sources[0]]
        if node.affine is not None:
            gamma = (node.affine.terms + 64) * EPS * 1.01
            size = torch.maximum(low.abs(), high.abs())
            spread = (high - low) / 2 + (2 * gamma + node.affine.inexact) * size
            center = in_pieces(node.affine.apply, (low + high) / 2, node.affine.work, deadline) + node.affine.bias
            radius = in_pieces(node.affine.magnitude, spread, node.affine.work, deadline)
            radius = (radius + 2 * gamma * node.affine.bias.abs()) * (1 + 1e-9) + TINY
            values.append((center - radius, center + radius))
        elif node.activation is not None:
            values.append(node.activation.enclose(low, high))
        else:
            each = [values[source] for source in node.sources]
            size = sum((torch.maximum(a.abs(), b.abs()) for a, b in each), torch.zeros_like(low))
            error = 4 * len(each) * EPS * size + TINY
            values.append((sum(a for a, _ in each) - error, sum(b for _, b in each) + error))
    return values[-1]
