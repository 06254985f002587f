"""Activations, one number at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from nnrepair.onnx import modules as ops
from nnrepair.onnx.node import Node, Refused, Use
from nnrepair.onnx.operators.building import Handler, Made, filled, single

#: The largest number of each type of floating point.
_LARGEST = {kind: float(np.finfo(kind).max) for kind in ("float16", "float32", "float64")}


def _clip(node: Node) -> Made:
    if any(node.has(k) and not node.fixed(k) for k in (1, 2)):
        return Use(ops.Clamp(node.has(1), node.has(2)), node.given())
    low, high = node.number(1, "min", -math.inf), node.number(2, "max", math.inf)
    kind = str(node.dtype()).removeprefix("torch.")
    if kind not in _LARGEST or not low < high:
        return _clamp(node)
    most = _LARGEST[kind]
    low, high = -math.inf if low <= -most else low, math.inf if high >= most else high  # no number lies beyond these
    return nn.ReLU() if (low, high) == (0, math.inf) else nn.Hardtanh(low, high)


def _clamp(node: Node) -> Made:
    if node.opset < 11:
        raise Refused(
            f"min={node.get('min', None)} and max={node.get('max', None)} leave one value, expected min < max"
        )
    return Use(ops.Clamp(node.has(1), node.has(2)), node.given())


def _prelu(node: Node) -> Made:
    if not node.fixed(1):
        raise Refused("its slopes depend on the input")
    slopes, axes = node.weight(1), node.axes()
    shape = tuple(slopes.shape)[-axes:] if axes else ()
    shape = shape[1:] if len(shape) == axes and shape[:1] == (1,) else shape
    channels = shape[0] if shape and len(shape) == axes - 1 else 1
    if axes < 2 or slopes.numel() not in (1, channels) or (slopes.numel() > 1 and channels != node.shape()[1]):
        return ops.Slope(slopes)
    return filled(nn.PReLU(slopes.numel(), device="meta"), weight=slopes.reshape(-1))


def _gelu(node: Node) -> Made:
    """Read Gelu, whose approximation is defined with constants in float32."""
    how = node.text("approximate", "none")
    if how == "tanh" and node.dtype() == torch.float64:
        return ops.TanhGelu(math.sqrt(single(2 / math.pi)), single(0.044715))
    return nn.GELU(approximate=how)


def _fast_gelu(node: Node) -> Made:
    if node.has(1):
        raise Refused("it adds a bias")
    return nn.GELU(approximate="tanh")


def _shrink(node: Node) -> Made:
    return ops.Shrink(node.get("lambd", 0.5), node.get("bias", 0.0))


def _hard_swish(node: Node) -> Made:
    """Read HardSwish, which is defined with a sixth in float32."""
    return ops.HardSwish(single(1 / 6), 0.5) if node.dtype() == torch.float64 else nn.Hardswish()


def _floating(read: Handler) -> Handler:
    def checked(node: Node) -> Made:
        if not node.dtype().is_floating_point:
            raise Refused(f"its input has type {node.dtype()}, expected floating point")
        return read(node)

    return checked


#: Those that are defined for whole numbers too.
_ANY: dict[str, Handler] = {
    "Abs": lambda node: ops.Abs(),
    "Neg": lambda node: ops.Neg(),
    "Clip": _clip,
}
_REAL: dict[str, Handler] = {
    "Relu": lambda node: nn.ReLU(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.get("alpha", single(0.01))),
    "PRelu": _prelu,
    "HardSwish": _hard_swish,
    "HardSigmoid": lambda node: ops.HardSigmoid(node.get("alpha", single(0.2)), node.get("beta", 0.5)),
    "Elu": lambda node: nn.ELU(node.get("alpha", 1.0)),
    "Celu": lambda node: nn.CELU(node.get("alpha", 1.0)),
    "Selu": lambda node: ops.ScaledElu(
        node.get("alpha", single(1.67326319217681)), node.get("gamma", single(1.05070102214813))
    ),
    "Sigmoid": lambda node: nn.Sigmoid(),
    "Tanh": lambda node: nn.Tanh(),
    "Softplus": lambda node: nn.Softplus(threshold=40),  # from there on log(1 + exp(x)) is x in float64
    "Softsign": lambda node: nn.Softsign(),
    "Mish": lambda node: nn.Mish(),
    "Gelu": _gelu,
    "Swish": lambda node: ops.Swish(node.get("alpha", 1.0)),
    "ThresholdedRelu": lambda node: nn.Threshold(node.get("alpha", 1.0), 0.0),
    "Shrink": _shrink,
    "com.microsoft::Gelu": lambda node: nn.GELU(),
    "com.microsoft::QuickGelu": lambda node: ops.Swish(node.get("alpha", single(1.702))),
    "com.microsoft::FastGelu": _fast_gelu,
}
HANDLERS: dict[str, Handler] = _ANY | {op: _floating(read) for op, read in _REAL.items()}
