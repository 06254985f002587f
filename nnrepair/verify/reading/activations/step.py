"""Step: 1 for positive numbers, else 0. Sign and comparisons with constants are made of it."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnrepair.verify.reading.activations import Functions
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Unreadable, Value
from nnrepair.verify.reading.numbers import Numbers


class Step(Activation):
    """1 where z > 0, else 0. Where gradients are asked for, those of (z + 1) / 2 clipped to [0, 1] stand in."""

    steepest = 64.0
    is_rational = True

    def apply(self, x: Tensor) -> Tensor:
        value = (x > 0).to(x)
        if not x.requires_grad:
            return value
        ramp = x.clamp(-1, 1) / 2
        return value + ramp - ramp.detach()

    def exact(self, x: Numbers) -> Numbers:
        return Numbers(np.array([int(v > 0) for v in x.whole], object), 0)

    def enclose(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return (low > 0).to(low), 1 - (high <= 0).to(high)  # NaN is no bound

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        at, tops = torch.stack([low, high]), (high > 0).to(high)
        values, products = (at > 0).to(at), slope * at
        off = 4 * EPS * (values + products.abs()) + 1e-300
        least, most = (values - products - off).amin(0), (values - products + off).amax(0)
        crosses = (low <= 0) & (high > 0)  # 0 at 0, and as near to 1 as one likes beside it
        least = torch.where(crosses, least.clamp(max=0), least)
        return least, torch.where(crosses, torch.maximum(most, tops), most)

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        crosses, left = (low <= 0) & (high > 0), high <= -low
        above = torch.where(crosses & left, -1 / low, 0.0)
        below = torch.where(crosses & ~left, 1 / high, 0.0)
        return above, below

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        return (low < 0) & (high > 0)  # from 0 on no split helps

    def split(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.zeros_like(low)

    def border(self, low: Tensor, high: Tensor, side: Tensor) -> Tensor | None:
        return None

    def alive(self, high: Tensor) -> Tensor:
        return high > 0


def positive(b: Builder, x: Value) -> Value:
    """Return 1 where x > 0, else 0."""
    return b.activation(x, Step())


def sign(b: Builder, x: Value) -> Value:
    """Return 1, 0 or -1."""
    return b.difference(positive(b, x), positive(b, b.scaled(x, -1.0)))


def _shifted(b: Builder, x: Any, y: Any) -> Value:
    """Return x - y."""
    if isinstance(x, Value) and isinstance(y, Value):
        return b.difference(x, y)
    return b.scaled(x, 1.0, -b.item(y, x)) if isinstance(x, Value) else b.scaled(y, -1.0, b.item(x, y))


def _not(b: Builder, x: Value) -> Value:
    return b.scaled(x, -1.0, 1.0)


def _cast(b: Builder, x: Value, to: Any) -> Value:
    """Return what was compared, as numbers; between floating-point types nothing changes but rounding."""
    if not isinstance(to, Value) and not (isinstance(to, torch.dtype) and to.is_floating_point):
        raise Unreadable(f"it makes {to} of its input, expected a floating-point type")
    return x


FUNCTIONS: Functions = {
    ".to": _cast,
    **dict.fromkeys((".float", ".double"), lambda b, x: x),
    **dict.fromkeys((torch.sign, torch.sgn, ".sign", ".sgn"), sign),
    **dict.fromkeys((torch.gt, ".gt", operator.gt), lambda b, x, y: positive(b, _shifted(b, x, y))),
    **dict.fromkeys((torch.lt, ".lt", operator.lt), lambda b, x, y: positive(b, _shifted(b, y, x))),
    **dict.fromkeys((torch.ge, ".ge", operator.ge), lambda b, x, y: _not(b, positive(b, _shifted(b, y, x)))),
    **dict.fromkeys((torch.le, ".le", operator.le), lambda b, x, y: _not(b, positive(b, _shifted(b, x, y)))),
}
