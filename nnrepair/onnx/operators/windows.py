"""Windows that slide over images: padding, pooling, and interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from nnrepair.onnx import modules as ops
from nnrepair.onnx.node import LIMIT, Node, Refused, Use, depends
from nnrepair.onnx.operators.building import Handler, Made, single, spatial
from nnrepair.onnx.sizes import Size

Sizes = list[tuple[int, ...]]


def window(node: Node, fill: float, default: Sequence[int] = ()) -> tuple[Sizes, list[nn.Module]]:
    """Return kernel, stride, padding and dilation, and what pads before them where the two sides differ."""
    kernel = tuple(node.get("kernel_shape", default))
    axes, ones = len(kernel), (1,) * len(kernel)
    stride, dilation = tuple(node.get("strides", ones)), tuple(node.get("dilations", ones))
    pads, auto = tuple(node.get("pads", (0, 0) * axes)), node.text("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER") or (auto != "NOTSET" and any(pads)):
        raise Refused(f"auto_pad={auto} with pads={list(pads)} is not supported; use explicit pads")
    if {len(stride), len(dilation), node.axes() - 2} != {axes} or len(pads) != 2 * axes:
        raise Refused(f"its attributes do not fit a window of {axes} axes, {list(kernel)}")
    if min((*kernel, *stride, *dilation), default=1) < 1:
        raise Refused("its kernel, strides and dilations must be positive")
    if min(pads, default=0) < 0:
        raise Refused(f"pads={list(pads)} cut its input, expected no negative ones")
    if auto.startswith("SAME"):
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        sizes = node.shape()[2:]
        if any(size is None for size in sizes):
            return [kernel, stride, (0,) * axes, dilation], [ops.SamePad(spans, stride, auto == "SAME_LOWER", fill)]
        totals = [
            max((-(-(size or 0) // step) - 1) * step + span - (size or 0), 0)
            for size, step, span in zip(sizes, stride, spans, strict=True)
        ]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = (*large, *small) if auto == "SAME_LOWER" else (*small, *large)
    before, after = pads[:axes], pads[axes:]
    padded = math.prod((size or 1) + a + b for size, a, b in zip(node.shape()[2:], before, after, strict=True))
    if padded > LIMIT:
        raise Refused(f"pads={list(pads)} make {padded} numbers of a channel, more than {LIMIT}")
    if before == after:
        return [kernel, stride, before, dilation], []
    uneven = [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    return [kernel, stride, (0,) * axes, dilation], [spatial("ConstantPad", axes)(tuple(uneven), fill)]


def _pool_window(node: Node, fill: float) -> tuple[Sizes, list[nn.Module]]:
    sizes, pad = window(node, fill)
    kernel, pads = sizes[0], node.get("pads", (0, 0) * len(sizes[0]))
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        raise Refused(f"pads={list(pads)} are not smaller than its window {list(kernel)}")
    (_, stride, _, dilation), auto = sizes, node.text("auto_pad", "NOTSET")
    if auto.startswith("SAME") and any(d * (k - 1) < s - 1 for k, s, d in zip(kernel, stride, dilation, strict=True)):
        raise Refused(f"auto_pad={auto} with strides={list(stride)} beyond its window {list(kernel)} has no meaning")
    return sizes, pad


def _max_pool(node: Node) -> Made:
    if node.get("storage_order", 0):
        raise Refused("storage_order=1 is not supported")
    sizes, pad = _pool_window(node, -math.inf)
    kernel, stride, padding, dilation = sizes
    ceil = bool(node.get("ceil_mode", 0))
    if pad and ceil and node.text("auto_pad", "NOTSET") == "NOTSET":
        raise Refused("ceil_mode=1 with uneven padding is not supported")
    if not node.dtype().is_floating_point:
        raise Refused("it pools whole numbers")
    kind = spatial("MaxPool", len(kernel))
    if not pad and any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        if ceil:
            raise Refused("ceil_mode=1 with padding of more than half its window is not supported")
        around = [n for p in reversed(padding) for n in (p, p)]
        pad, padding = [spatial("ConstantPad", len(kernel))(tuple(around), -math.inf)], (0,) * len(kernel)
    pool = kind(kernel, stride, padding, dilation, ceil_mode=ceil)
    return nn.Sequential(*pad, pool) if pad else pool


def _average_pool(node: Node) -> Made:
    (kernel, stride, padding, dilation), pad = _pool_window(node, 0.0)
    ceil, counted = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    axes = len(kernel)
    if not pad and set(dilation) == {1} and all(2 * p <= k for p, k in zip(padding, kernel, strict=True)) and axes <= 3:
        return spatial("AvgPool", axes)(kernel, stride, padding, ceil, counted)
    same = next((each for each in pad if isinstance(each, ops.SamePad)), None)
    if same is not None:
        return ops.AveragePool(kernel, stride, [], dilation, ceil, counted, same)
    pads: list[tuple[int, int]] = [(p, p) for p in padding]
    if pad:
        flat = [int(n) for n in pad[0].padding]  # type: ignore[union-attr]
        pads = [(flat[2 * k], flat[2 * k + 1]) for k in range(axes)][::-1]
    return ops.AveragePool(kernel, stride, pads, dilation, ceil, counted)


def _lp_pool(node: Node) -> Made:
    (kernel, stride, padding, dilation), pad = window(node, 0.0)
    if pad and isinstance(pad[0], ops.SamePad):
        raise Refused("auto_pad with sizes that are not known before the model runs is not supported")
    pads: list[tuple[int, int]] = [(p, p) for p in padding]
    if pad:
        flat = [int(n) for n in pad[0].padding]  # type: ignore[union-attr]
        pads = [(flat[2 * k], flat[2 * k + 1]) for k in range(len(kernel))][::-1]
    if node.get("ceil_mode", 0):
        raise Refused("ceil_mode=1 is not supported")
    pool = ops.AveragePool(kernel, stride, pads, dilation, False, True)
    return ops.LpPool(node.get("p", 2), pool, math.prod(kernel))


def _global(make: Handler) -> Handler:
    def checked(node: Node) -> Made:
        if node.axes() < 3:
            raise Refused(f"its input has {node.axes()} axes, expected three or more")
        return make(node)

    return checked


def _global_average(node: Node) -> Made:
    axes = node.axes() - 2
    if axes in (1, 2, 3):
        return spatial("AdaptiveAvgPool", axes)(1)
    return ops.Reduce("Mean", [*range(2, axes + 2)], True)


def _resize(node: Node) -> Made:
    """Read Resize and Upsample, whose operands have moved about between operator sets."""
    rank = node.axes()
    where = node.text(
        "coordinate_transformation_mode", "half_pixel" if node.op == "Resize" and node.opset > 10 else "asymmetric"
    )
    scales_at = 1 if node.op == "Upsample" or node.opset < 11 else 2
    axes = [axis % rank for axis in node.get("axes", [*range(rank)])]
    factors = node.get("scales", None)
    if node.has(scales_at) and node.sizes(scales_at).size:
        factors = [float(n) for n in node.constant(scales_at).ravel()]
    sizes = [*node.sizes(3).ravel()] if node.has(3) and node.opset > 10 else None
    if (factors is None) == (sizes is None) or len(factors or sizes or []) != len(axes):
        raise Refused("it has no sizes and no scales for its axes")
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    how = node.text("mode", "nearest")
    rounding = node.text("nearest_mode", "round_prefer_floor" if node.opset > 10 else "floor")
    if node.get("antialias", 0) or policy != "stretch" or how not in ("nearest", "linear", "cubic"):
        raise Refused(f"mode={how}, antialias={node.get('antialias', 0)}, {policy} is not supported")
    roi = None
    if where == "tf_crop_and_resize":
        ends = [float(n) for n in node.constant(1).ravel()]
        roi = [*zip(ends[: len(axes)], ends[len(axes) :], strict=True)]
    shape, kept = node.shape(), []
    for k, axis in enumerate(axes):
        same = factors[k] == 1 if factors is not None else sizes is not None and sizes[k] == shape[axis]
        if sizes is not None and axis == 0 and shape[0] is None:
            same = node.counts_rows(sizes[k]) if isinstance(sizes[k], Size) else sizes[k] == node.batch
        if not same or (roi is not None and roi[k] != (0, 1)):
            kept.append(k)
    numbers, read = depends([sizes[k] for k in kept]) if sizes is not None else (None, [])
    module = ops.Resize(
        [axes[k] for k in kept],
        None if numbers is None else [int(n) if isinstance(n, np.integer) else n for n in numbers],
        None if factors is None else [float(factors[k]) for k in kept],
        how if node.op == "Resize" or how == "nearest" else "linear",
        where,
        rounding,
        node.get("cubic_coeff_a", -0.75),
        bool(node.get("exclude_outside", 0)),
        node.get("extrapolation_value", 0.0),
        None if roi is None else [roi[k] for k in kept],
    )
    if factors is not None and any(f <= 0 for f in factors):
        raise Refused(f"scales={factors} must be positive")
    return Use(module, [0, *read])


def _grid_sample(node: Node) -> Made:
    mode = {
        "bilinear": "bilinear",
        "linear": "bilinear",
        "nearest": "nearest",
        "bicubic": "bicubic",
        "cubic": "bicubic",
    }
    how, padding = node.text("mode", "linear"), node.text("padding_mode", "zeros")
    if how not in mode or padding not in ("zeros", "border", "reflection"):
        raise Refused(f"mode={how} with padding_mode={padding} is not supported")
    return Use(ops.GridSample(mode[how], padding, bool(node.get("align_corners", 0))), [0, 1])


def _lrn(node: Node) -> Made:
    size = node.get("size", 1)
    if size % 2 == 0:
        raise Refused(f"size={size} is even")
    return nn.LocalResponseNorm(size, node.get("alpha", single(1e-4)), node.get("beta", 0.75), node.get("bias", 1.0))


HANDLERS: dict[str, Handler] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global(_global_average),
    "GlobalMaxPool": _global(lambda node: ops.GlobalMaxPool()),
    "GlobalLpPool": _global(lambda node: ops.LpPool(node.get("p", 2), None, 1)),
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "LRN": _lrn,
}
