"""Sums, means and extremes over axes, and what is computed along one axis."""

from __future__ import annotations

from torch import nn

from nnrepair.onnx import modules as ops
from nnrepair.onnx.modules.reductions import KINDS
from nnrepair.onnx.node import Node, Refused, Use, depends
from nnrepair.onnx.operators.building import Handler, Made
from nnrepair.onnx.sizes import Size


def _reduce(node: Node) -> Made:
    kind = node.op.removeprefix("Reduce")
    axes = node.integers(1, "axes") or []
    if not axes and node.get("noop_with_empty_axes", 0):
        if kind in ("L1", "L2", "LogSum", "SumSquare"):
            raise Refused("noop_with_empty_axes=1 is not supported for it")
        return nn.Identity()
    keep, dims = bool(node.get("keepdims", 1)), [node.axis(axis) for axis in axes]
    if len({*dims}) < len(dims):
        raise Refused(f"axes={axes} name an axis twice")
    if not node.dtype().is_floating_point and kind in ("L2", "LogSum", "LogSumExp"):
        raise Refused("it reduces whole numbers to roots or logarithms")
    if kind == "Mean" and dims and 0 not in dims and node.dtype().is_floating_point:
        return ops.Mean(dims, keep)
    return ops.Reduce(kind, dims or None, keep)


def _softmax(node: Node) -> Made:
    log = node.op == "LogSoftmax"
    axis = node.axis(node.get("axis", -1 if node.opset >= 13 else 1))
    if node.opset < 13 and axis != node.axes() - 1:
        return ops.FlatSoftmax(axis, log)
    return nn.LogSoftmax(axis) if log else nn.Softmax(axis)


def _arg(node: Node) -> Made:
    axis, keep = node.axis(node.get("axis", 0)), bool(node.get("keepdims", 1))
    return ops.Arg(node.op == "ArgMax", axis, keep, bool(node.get("select_last_index", 0)))


def _top(node: Node) -> Made:
    counts = [*node.sizes(1).ravel()] if node.has(1) else [node.get("k", -1)]
    if len(counts) != 1:
        raise Refused("it does not say how many numbers it takes")
    axis, largest = node.axis(node.get("axis", -1)), bool(node.get("largest", 1))
    (count,), read = depends([counts[0] if isinstance(counts[0], Size) else int(counts[0])])
    return [Use(ops.TopK(count, axis, largest, places), [0, *read]) for places in (False, True)]


def _cumulate(node: Node) -> Made:
    axis = node.axis(int(node.constant(1).item()))
    return ops.Cumulate(axis, bool(node.get("exclusive", 0)), bool(node.get("reverse", 0)))


HANDLERS: dict[str, Handler] = {
    **{f"Reduce{kind}": _reduce for kind in KINDS},
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "TopK": _top,
    "CumSum": _cumulate,
}
