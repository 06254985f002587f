"""What a run of a network in floats may give at a point, whatever the order of its sums: where all digits cancel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.graph import Graph, Node
from nnrepair.verify.search.intervals import Interval, step_over

#: Operations of an affine map besides its products and their sum; units in the last place that a function may be off.
MORE, UNITS = 8, 64


def runs_over(graph: Graph, x: Tensor, dtype: torch.dtype, deadline: Deadline = NEVER) -> Interval:
    """Return bounds (n, outputs) of what the real-valued function, and runs of the graph in floats, give at points.

    A sum of n products is off by at most gamma = n u / (1 - n u) times the sum of their absolute values, u half the
    distance between 1 and the next float. Infinite where a run may overflow.

    Args:
        graph: the network, as it was read; what it does in fewer operations than a run is counted as it was read.
        x: (n, inputs), in float64; runs round it first.
        dtype: of the runs.
        deadline: when to give up, with OutOfTime.
    """
    rounded = x.to(dtype).double()
    values = [(torch.minimum(x, rounded), torch.maximum(x, rounded))]
    for node in graph.nodes[1:]:
        deadline.check()
        low, high = step_over(node, values, deadline)
        error = _rounding(node, values, (low, high), dtype)
        values.append((low - error, high + error))
    return values[-1]


def _rounding(node: Node, values: list[Interval], ends: Interval, dtype: torch.dtype) -> Tensor:
    """Return by how much a run may be off at one node, given bounds of what it reads and of what it should give."""
    kind = torch.finfo(dtype)
    unit, sizes = kind.eps / 2, [torch.maximum(low.abs(), high.abs()) for low, high in values]
    if node.affine is not None:
        terms, size = node.affine.terms + MORE, node.affine.magnitude(sizes[node.sources[0]]) + node.affine.bias.abs()
    elif node.activation is not None:
        terms, size = (
            (UNITS, node.activation.terms(*values[node.sources[0]])) if node.activation.rounds else (0, ends[0])
        )
    else:
        terms, size = len(node.sources), torch.stack([sizes[k] for k in node.sources]).sum(0)
    share = terms * unit
    gamma = share / (1 - share) if share < 1 else torch.inf
    return torch.where(size.abs() < kind.max, gamma * size.abs() + terms * kind.tiny, torch.inf)


def rounding_explains(
    graph: Graph, x: Tensor, y: Any, dtype: torch.dtype, runner: str, deadline: Deadline = NEVER
) -> str:
    """Return that a run may differ as it does by rounding alone, and what to do; nothing where that cannot be.

    Args:
        graph: the network, as it was read.
        x: (n, inputs), in float64.
        y: a tensor or an array with the entries of (n, outputs), what the run gave.
        dtype: in which.
        runner: what ran it, in words.
        deadline: when to give up, with OutOfTime.
    """
    low, high = runs_over(graph, x, dtype, deadline)
    values = graph(x, deadline)
    y = torch.as_tensor(y).double().reshape(len(values), -1)
    if y.shape != values.shape or not bool((((low <= y) & (y <= high)) | (low.isinf() & high.isinf())).all()):
        return ""
    at = int((y - values).abs().nan_to_num(torch.inf).argmax())
    run, value, least, most = (float(each.flatten()[at]) for each in (y, values, low, high))
    name, advice = str(dtype).removeprefix("torch."), "Scale weights so that less cancels"
    if dtype != torch.float64:
        advice += (
            ", or ask about the network in float64: model.double(), of a file nnrepair.onnx.load(PATH).double(), "
            "written by nnrepair.onnx.save. If that is refused too, it was read wrongly"
        )
    return (
        f"Rounding may decide what the network computes: at one point output {at % values.shape[1]} is {value:.6g} as "
        f"read, and {runner} gave {run:.6g}. Numbers much larger than the outputs cancel there, and a run in {name} "
        f"may give anything from {least:.3g} to {most:.3g}, so no answer would say what runs do. {advice}."
    )
