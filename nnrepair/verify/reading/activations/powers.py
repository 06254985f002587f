"""Powers: Cube, Sqrt, Reciprocal; and torch.pow, where it is one of these."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnrepair.verify.reading.activations import Functions
from nnrepair.verify.reading.activations.smooth import Smooth, steepest_left
from nnrepair.verify.reading.activations.square import SQUARE, Square
from nnrepair.verify.reading.builder import Builder, Unreadable, Value
from nnrepair.verify.reading.numbers import Numbers


class Cube(Smooth):
    """z^3."""

    breaks = ((0.0, 0.0),)
    convex = (False, True)
    monotone = True
    is_rational = True

    def apply(self, x: Tensor) -> Tensor:
        return x * x * x

    def derivative(self, x: Tensor) -> Tensor:
        return 3 * x * x

    def exact(self, x: Numbers) -> Numbers:
        return x * x * x

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        reach = torch.maximum(low.abs(), high.abs())
        return 3 * reach * reach * (1 + 1e-12)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        place = (slope.clamp(min=0) / 3).sqrt()
        return place if piece else -place


class Sqrt(Smooth):
    """The square root of numbers that are not negative; nothing is claimed of others."""

    convex = (False,)
    monotone, least = True, 0.0

    def apply(self, x: Tensor) -> Tensor:
        return x.sqrt()

    def derivative(self, x: Tensor) -> Tensor:
        return 0.5 / x.sqrt()

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        return steepest_left(0.5 / low.sqrt())

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        return 0.25 / slope.clamp(min=1e-150).square()


class Deviation(Smooth):
    """sqrt(max(z, 0) + eps) of a variance z, of which bounds may be below 0."""

    breaks = ((0.0, 0.0),)
    convex = (True, False)
    monotone = True

    def __init__(self, eps: float) -> None:
        self.eps, self.least = eps, math.sqrt(eps) * (1 - 1e-15)

    def apply(self, x: Tensor) -> Tensor:
        return (x.clamp(min=0) + self.eps).sqrt()

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 0.5 / self.apply(x), 0.0)

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        return steepest_left(0.5 / self.apply(low))

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        return (0.25 / slope.clamp(min=1e-150).square() - self.eps).clamp(min=0) if piece else torch.zeros_like(slope)


class Reciprocal(Smooth):
    """1 / z on either side of 0; nothing is claimed of intervals that hold 0."""

    breaks = ((0.0, 0.0),)
    convex = (False, True)

    def apply(self, x: Tensor) -> Tensor:
        return 1 / x

    def derivative(self, x: Tensor) -> Tensor:
        return -1 / (x * x)

    def enclose(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        down, up = 1 / high, 1 / low
        down, up = down - self.off(high, down), up + self.off(low, up)
        defined = (low > 0) | (high < 0)
        return torch.where(defined, down, -math.inf), torch.where(defined, up, math.inf)

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least, most = super().offsets(slope, low, high)
        defined = (low > 0) | (high < 0)
        return torch.where(defined, least, -math.inf), torch.where(defined, most, math.inf)

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        near = torch.where(low > 0, low, torch.where(high < 0, -high, 0.0))
        return (1 + 1e-12) / near.square()

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        place = (-slope).clamp(min=1e-300).rsqrt()
        return place if piece else -place


class Share(Smooth):
    """1 / max(z, 1) of a sum z that is at least 1, of which bounds may be below."""

    breaks = ((1.0, 1.0),)
    convex = (True, True)
    least, most, steepest = 0.0, 1.0, 1.0

    def apply(self, x: Tensor) -> Tensor:
        return 1 / x.clamp(min=1)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 1, -self.apply(x).square(), 0.0)

    def enclose(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        down, up = self.apply(high), self.apply(low)
        return (down - self.off(high, down)).clamp(0, 1), (up + self.off(low, up)).clamp(0, 1)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        return (-slope).clamp(1e-300, 1).rsqrt() if piece else torch.ones_like(slope)


#: What torch.pow with a constant exponent is.
POWERS: dict[float, Callable[[], Smooth]] = {2.0: Square, 3.0: Cube, 0.5: Sqrt, -1.0: Reciprocal}


#: The largest exponent.
MOST = 64


def power(b: Builder, x: Value, exponent: Any) -> Value:
    """Return x ** exponent for an exponent that is one number, a whole one or half of one."""
    exponents = [] if isinstance(exponent, Value) else [*{float(e) for e in torch.as_tensor(exponent).flatten()}]
    if len(exponents) != 1 or not 0 < abs(exponents[0]) <= MOST or not (2 * exponents[0]).is_integer():
        raise Unreadable(
            f"its exponent is {exponents or 'no constant'}, expected a whole number other than 0, or half of one, of "
            f"at most {MOST}"
        )
    (one,) = exponents
    if one in POWERS:
        return b.activation(x, POWERS[one]())
    if one < 0:
        return b.activation(power(b, x, -one), Reciprocal())
    if not one.is_integer():
        return b.product(power(b, x, one - 0.5), b.activation(x, Sqrt()))
    return _whole(b, x, int(one))


def _whole(b: Builder, x: Value, exponent: int) -> Value:
    """Return x ** exponent: squares and cubes of powers, which lose least, or products with x."""
    if exponent == 1:
        return x
    if exponent % 2 == 0:
        return b.activation(_whole(b, x, exponent // 2), SQUARE)
    if exponent % 3 == 0:
        return b.activation(_whole(b, x, exponent // 3), Cube())
    return b.product(_whole(b, x, exponent - 1), x)


FUNCTIONS: Functions = {
    **dict.fromkeys((torch.pow, ".pow", operator.pow), power),
    **dict.fromkeys((torch.square, ".square"), lambda b, x: b.activation(x, SQUARE)),
    **dict.fromkeys((torch.sqrt, ".sqrt"), lambda b, x: b.activation(x, Sqrt())),
    **dict.fromkeys((torch.reciprocal, ".reciprocal"), lambda b, x: b.activation(x, Reciprocal())),
    **dict.fromkeys((torch.rsqrt, ".rsqrt"), lambda b, x: b.activation(b.activation(x, Sqrt()), Reciprocal())),
}
