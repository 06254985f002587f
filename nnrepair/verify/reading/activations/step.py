"""Step: 1 for positive numbers, else 0, of which Sign and comparisons are made; Floor and Round: whole numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nnrepair.verify.reading.activations import Functions
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Unreadable, Value
from nnrepair.verify.reading.numbers import Numbers


class Step(Activation):
    """1 where z > 0, else 0.

    Where gradients are asked for, those of z / (s + |z|) / 2 stand in, s the average of |z| over all entries: with a
    fixed s they vanish for all but a few of large numbers.
    """

    steepest = 64.0
    is_rational = True
    jumps = True

    def apply(self, x: Tensor) -> Tensor:
        value = (x > 0).to(x)
        if not x.requires_grad:
            return value
        ramp = x / (x.detach().abs().mean(-1, keepdim=True) + x.abs() + 1e-300) / 2
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


class Floor(Activation):
    """The largest whole number that is not above z: z - 1 < f(z) <= z."""

    steepest = 1.0
    is_rational = True
    jumps = True

    def apply(self, x: Tensor) -> Tensor:
        value = x.floor()
        return value + x - x.detach() if x.requires_grad else value

    def exact(self, x: Numbers) -> Numbers:
        return Numbers(np.array([math.floor(v) for v in x.fractions()], object), 0)

    def enclose(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return low.floor(), high.floor()

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        ends, rest = torch.stack([slope * low, slope * high]), torch.stack([(1 - slope) * low, (1 - slope) * high])
        least = torch.maximum(low.floor() - ends.amax(0), rest.amin(0) - 1)
        most = torch.minimum(high.floor() - ends.amin(0), rest.amax(0))
        size = torch.maximum(low.floor().abs(), high.floor().abs())
        off = 8 * EPS * (size + (1 + slope.abs()) * torch.maximum(low.abs(), high.abs())) + 1e-300
        return least - off, most + off

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        slope = (high.floor() - low.floor() > 1).to(low)  # one step is closest to the line through its middle: none
        return slope, slope


class Round(Activation):
    """The nearest whole number, of two the even one: z - 1/2 <= f(z) <= z + 1/2."""

    steepest = 1.0
    is_rational = True
    jumps = True

    def apply(self, x: Tensor) -> Tensor:
        value = x.round()
        return value + x - x.detach() if x.requires_grad else value

    def exact(self, x: Numbers) -> Numbers:
        return Numbers(np.array([round(v) for v in x.fractions()], object), 0)

    def enclose(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return low.round(), high.round()

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        ends, rest = torch.stack([slope * low, slope * high]), torch.stack([(1 - slope) * low, (1 - slope) * high])
        least = torch.maximum(low.round() - ends.amax(0), rest.amin(0) - 0.5)
        most = torch.minimum(high.round() - ends.amin(0), rest.amax(0) + 0.5)
        size = torch.maximum(low.round().abs(), high.round().abs())
        off = 8 * EPS * (size + (1 + slope.abs()) * torch.maximum(low.abs(), high.abs())) + 1e-300
        return least - off, most + off

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        slope = (high.round() - low.round() > 1).to(low)
        return slope, slope


def positive(b: Builder, x: Value) -> Value:
    """Return 1 where x > 0, else 0."""
    return b.activation(x, Step())


def sign(b: Builder, x: Value) -> Value:
    """Return 1, 0 or -1."""
    return b.difference(positive(b, x), positive(b, b.scaled(x, -1.0)))


def floor(b: Builder, x: Value) -> Value:
    """Return the whole number that is not above."""
    return b.activation(x, Floor())


def ceil(b: Builder, x: Value) -> Value:
    """Return the whole number that is not below."""
    return b.scaled(floor(b, b.scaled(x, -1.0)), -1.0)


def truncated(b: Builder, x: Value) -> Value:
    """Return the whole number towards zero."""
    return b.difference(floor(b, b.relu(x)), floor(b, b.relu(b.scaled(x, -1.0))))


def rounded(b: Builder, x: Value, decimals: int = 0) -> Value:
    """Return the nearest whole number."""
    if decimals:
        raise Unreadable(f"decimals={decimals}, expected 0")
    return b.activation(x, Round())


FUNCTIONS: Functions = {
    **dict.fromkeys((torch.round, ".round"), rounded),
    **dict.fromkeys((torch.floor, ".floor"), floor),
    **dict.fromkeys((torch.ceil, ".ceil"), ceil),
    **dict.fromkeys((torch.trunc, ".trunc"), truncated),
    **dict.fromkeys((torch.sign, torch.sgn, ".sign", ".sgn"), sign),
}
