"""Pooling and interpolation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.readers.draft import Draft, Value
from benchmarks.readers.operators import _to


def resize(d: Draft, x: Value) -> Value | None:
    axes = len(x.shape) - 2
    if axes not in (1, 2) or 0 in x.shape or x.dtype != np.float32:
        return None
    factors = [d.pick([1.0, 2.0, 3.0, 0.5, 1.5, 2.5]) for _ in range(axes)]
    shape = tuple(math.floor(n * f) for n, f in zip(x.shape[2:], factors, strict=True))
    if min(shape) < 1:
        return None
    full = np.array([1.0, 1.0, *factors], np.float32)
    if d.opset < 10:
        mode = d.pick(["nearest", "linear"] if axes == 2 else ["nearest"])
        if d.opset == 9:
            return (
                _to(d, x, "Upsample", [d.store(full, 0)], (*x.shape[:2], *shape), mode=mode)
                if min(factors) >= 1
                else None
            )
        return (
            _to(d, x, "Upsample", (), (*x.shape[:2], *shape), mode=mode, scales=full.tolist())
            if min(factors) >= 1
            else None
        )
    mode = d.pick(["nearest", "linear", *(["cubic"] if axes == 2 and d.opset >= 11 else [])])
    if mode == "linear" and axes == 1:
        mode = "nearest"
    if d.opset == 10:
        return _to(d, x, "Resize", [d.store(full, 0)], (*x.shape[:2], *shape), mode=mode)
    where = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"] + ["half_pixel_symmetric"] * (
        d.opset >= 19
    )
    options = {"coordinate_transformation_mode": d.pick([None, *where]), "mode": mode}
    if mode == "nearest":
        options["nearest_mode"] = d.pick([None, "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
    if mode == "cubic":
        options |= {"cubic_coeff_a": d.pick([None, -0.5]), "exclude_outside": d.pick([None, 1])}
    if d.chance(0.5):
        inputs = ["" if d.opset >= 13 else d.store(np.zeros(0, np.float32), 0), d.store(full, 0)]
    else:
        empty = "" if d.opset >= 13 else d.store(np.zeros(0, np.float32), 0)
        batch = x.shape[0]
        inputs = [empty, empty, d.integers([batch, x.shape[1], *shape])]
    return _to(d, x, "Resize", inputs, (*x.shape[:2], *shape), **options)


def average(d: Draft, x: Value) -> Value | None:
    """AveragePool and MaxPool with uneven padding, dilation and ceil_mode."""
    axes = len(x.shape) - 2
    if axes not in (1, 2) or 0 in x.shape:
        return None
    op = d.pick(["AveragePool", "AveragePool", "MaxPool"])
    kernel, stride = [1 + d.below(3) for _ in range(axes)], [1 + d.below(3) for _ in range(axes)]
    dilation = (
        [1 + d.below(2) for _ in range(axes)] if d.chance(0.3) and (op == "MaxPool" or d.opset >= 19) else [1] * axes
    )
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": stride}
    if dilation != [1] * axes:
        options["dilations"] = dilation
    pads = [0] * 2 * axes
    if d.chance(0.5):
        pads = [d.below(k) for k in kernel + kernel]
        options["pads"] = pads
    elif d.chance(0.4) and dilation == [1] * axes:
        options["auto_pad"] = d.pick(["SAME_UPPER", "SAME_LOWER"])
    if op == "AveragePool":
        options["count_include_pad"] = d.pick([None, 1])
    if d.opset >= (19 if op == "AveragePool" else 10) and "auto_pad" not in options:
        options["ceil_mode"] = d.pick([None, 1]) if op == "MaxPool" or d.chance(0.4) else None
    if d.chance(0.2):
        options = {k: v for k, v in options.items() if k != "pads"} | {"pads": pads} if "pads" in options else options
    if any(n + pads[k] + pads[axes + k] < (kernel[k] - 1) * dilation[k] + 1 for k, n in enumerate(x.shape[2:])):
        return None
    if "auto_pad" in options:
        shape = tuple(-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True))
    else:
        shape = tuple(
            (n + pads[k] + pads[axes + k] - (kernel[k] - 1) * dilation[k] - 1) // stride[k] + 1
            for k, n in enumerate(x.shape[2:])
        )
    return _to(d, x, op, (), (*x.shape[:2], *shape), **options)


def global_max(d: Draft, x: Value) -> Value | None:
    if len(x.shape) not in (3, 4):
        return None
    return _to(d, x, "GlobalMaxPool", (), (*x.shape[:2], *[1] * (len(x.shape) - 2)))


def lp_pool(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4 or min(x.shape[2:]) < 2:
        return None
    if d.chance(0.4):
        return _to(d, x, "GlobalLpPool", (), (*x.shape[:2], 1, 1), p=d.pick([None, 1, 2]))
    shape = (*x.shape[:2], x.shape[2] - 1, x.shape[3] - 1)
    return _to(d, x, "LpPool", (), shape, kernel_shape=[2, 2], p=d.pick([None, 1, 3]))


def sampled(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4 or 0 in x.shape or d.batch != 1 or x.shape[0] != 1:
        return None
    grid = d.store((d.rng.random((1, 2, 3, 2)) * 2.4 - 1.2).astype(x.dtype), 0)
    mode = d.pick(["bilinear", "nearest"] if d.opset < 20 else ["linear", "nearest"])
    return _to(
        d,
        x,
        "GridSample",
        [grid],
        (*x.shape[:2], 2, 3),
        mode=mode,
        padding_mode=d.pick([None, "border"]),
        align_corners=d.pick([None, 1]),
    )
