"""Smooth activations: convex and concave by turns, with values and derivatives that floats compute nearly.

What is claimed rests on convexity, on the bounds of `off`, and on nothing else. On a piece where f - slope z is convex
its largest value is at an end, and for any place p

    f(z) - slope z  >=  f(p) - slope p + (f'(p) - slope) (z - p)

so that a place that is only near the lowest point gives a bound that is only a little low. Concave pieces likewise.
The functions of torch are off by at most LIBM units in the last place: SLEEF, which torch uses on CPUs, states 1 unit
for exp, expm1, log, log1p, tanh, atan, erf, sin and cos, and 1.5 for erfc; CUDA at most 2 for them (5 for erfc, which
counts less than the argument's rounding, see `gelu`). `tests/test_activations.py` compares them with arithmetic of 60
digits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cache

import torch
from torch import Tensor

from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.affine import EPS

#: Units in the last place that one function of torch may be off by, and against underflow.
LIBM, TINY = 4, 1e-300
#: Lines around functions that are infinitely steep somewhere have slopes up to this.
STEEP = 1e4
#: Steps of bisection to the slope of an envelope; places at which derivatives are tabulated.
STEPS, PLACES = 24, 2049


class Smooth(Activation):
    """A function that has a derivative, and turns from convex to concave or back at known places.

    Attributes:
        breaks: where it turns, each between two floats.
        convex: of the pieces between, from the left: whether it is convex there.
        monotone: whether it never falls.
        least, most: of all of its values.
        reach: beyond this it is nearly a line; places of a slope are sought within.
    """

    breaks: tuple[tuple[float, float], ...] = ()
    convex: tuple[bool, ...]
    monotone: bool = False
    least: float = -math.inf
    most: float = math.inf
    reach: float = 40.0

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x) as floats compute it."""

    def off(self, x: Tensor, y: Tensor) -> Tensor:
        """Return how far f(x) is from the y that `apply` computes, at most."""
        return 8 * LIBM * EPS * y.abs() + TINY

    def off_derivative(self, x: Tensor, y: Tensor) -> Tensor:
        """Return how far f'(x) is from the y that `derivative` computes, at most."""
        return 16 * LIBM * EPS * y.abs() + TINY

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        """Return about where in a piece the function has a slope; any place is sound."""
        start, end = self._piece(piece)
        table = _table(type(self), max(start, -self.reach), min(end, self.reach))
        places, slopes = (part.to(slope.device) for part in table)
        order = 1.0 if self.convex[piece] else -1.0
        place = torch.searchsorted(order * slopes, order * slope.contiguous()).clamp(1, len(places) - 1)
        left, right = places[place - 1], places[place]
        a, b = slopes[place - 1], slopes[place]
        steep = torch.where(b == a, 1.0, b - a) / (right - left)
        z = torch.clamp(left + (slope - a) / steep, left, right)
        return torch.clamp(z - (self.derivative(z) - slope) / steep, left, right)  # one step more, as the cell is small

    # What the checker asks -------------------------------------------------------------------------------------------

    def enclose(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if not self.monotone:
            down, up = self.offsets(torch.zeros_like(low), low, high)
        else:
            down, up = self.apply(low), self.apply(high)
            down, up = down - self.off(low, down), up + self.off(high, up)
        return down.clamp(self.least, self.most), up.clamp(self.least, self.most)

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        (left, off_left), (right, off_right) = self._near(slope, low), self._near(slope, high)
        least = torch.minimum(left - off_left, right - off_right)
        most = torch.maximum(left + off_left, right + off_right)
        for piece in range(len(self.convex)):
            start, end = self._piece(piece)
            a, b = low.clamp(min=start), high.clamp(max=end)
            below, above = self._over(piece, slope, a, b)
            there = ~(a > b)  # NaN stays and claims nothing
            least = torch.where(there, torch.minimum(least, below), least)
            most = torch.where(there, torch.maximum(most, above), most)
        for start, end in self.breaks:
            if end > start:  # between its floats a break is on neither piece, but no further than this from both
                slack = 1.01 * (end - start) * (self.steepness(low, high) + slope.abs())
                slack = torch.where((low <= end) & (high >= start), slack, 0.0)
                least, most = least - slack, most + slack
        return least, most

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        chord, _ = super().slopes(low, high)
        above, below, mixed = chord, chord, torch.ones_like(low, dtype=torch.bool)
        tangent = self.derivative((low + high) / 2)
        for piece, convex in enumerate(self.convex):
            start, end = self._piece(piece)
            within = (low >= start) & (high <= end)
            above = above if convex else torch.where(within, tangent, above)
            below = torch.where(within, tangent, below) if convex else below
            mixed &= ~within
        mixed &= torch.isfinite(low) & torch.isfinite(high)
        if bool(mixed.any()):
            ends = low[mixed], high[mixed]
            above, below = above.clone(), below.clone()
            above[mixed], below[mixed] = self._envelope(*ends, 1.0), self._envelope(*ends, -1.0)
        return above, below

    def split(self, low: Tensor, high: Tensor) -> Tensor:
        point, tenth = super().split(low, high), (high - low) / 10
        for start, _ in self.breaks:
            point = torch.where((start > low + tenth) & (start < high - tenth), start, point)
        return point

    # How it is done --------------------------------------------------------------------------------------------------

    def _piece(self, piece: int) -> tuple[float, float]:
        """Return the floats between which the function surely is as `convex` says."""
        start = self.breaks[piece - 1][1] if piece else -math.inf
        return start, self.breaks[piece][0] if piece < len(self.breaks) else math.inf

    def _near(self, slope: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(z) - slope z, and how far it is off at most."""
        y, product = self.apply(z), slope * z
        return y - product, 1.01 * self.off(z, y) + 4 * EPS * (y.abs() + product.abs()) + TINY

    def _over(self, piece: int, slope: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of f - slope z from a to b, within a piece."""
        sign = 1.0 if self.convex[piece] else -1.0  # sign * f is convex
        (left, off_left), (right, off_right) = self._near(slope, a), self._near(slope, b)
        top = torch.maximum(sign * left + off_left, sign * right + off_right)
        place = torch.clamp(self.touching(slope, piece), a, b)
        value, off = self._near(slope, place)
        steep = self.derivative(place)
        unsure = 1.01 * self.off_derivative(place, steep) + 4 * EPS * (steep.abs() + slope.abs())
        rest = sign * (steep - slope)
        left, right = torch.where(place > a, place - a, 0.0), torch.where(place < b, b - place, 0.0)
        fall = torch.minimum(-(rest + unsure) * left, (rest - unsure) * right)
        fall = torch.where((left > 0) | (right > 0), fall.clamp(max=0), 0.0)
        bottom = sign * value - off + fall * (1 + 8 * EPS) - 4 * EPS * value.abs()
        return (bottom, top) if sign > 0 else (-top, -bottom)

    def _envelope(self, low: Tensor, high: Tensor, sign: float) -> Tensor:
        """Return the slope in the middle of the lowest concave function above sign * f, times sign.

        It is the s with the smallest s m + max(sign * f(z) - s z): bisection, by where that maximum is.
        """
        middle, most = (low + high) / 2, self.steepness(low, high)
        least, most = -most, most
        bent = [piece for piece, convex in enumerate(self.convex) if convex == (sign < 0)]
        for _ in range(STEPS):
            s = (least + most) / 2
            places = [low, high]
            for piece in bent:
                start, end = self._piece(piece)
                places.append(torch.clamp(self.touching(sign * s, piece).clamp(start, end), low, high))
            at = torch.stack(places)
            best = (sign * self.apply(at) - s * at).argmax(0, keepdim=True)
            right = at.gather(0, best)[0] > middle
            least, most = torch.where(right, s, least), torch.where(right, most, s)
        return sign * (least + most) / 2


def steepest_left(slope: Tensor) -> Tensor:
    """Return bounds on slopes, given those at lower ends, where a concave function is steepest."""
    return torch.where(slope > 0, slope * (1 + 1e-12), STEEP).clamp(max=STEEP)


@cache
def _table(kind: type[Smooth], start: float, end: float) -> tuple[Tensor, Tensor]:
    """Return places from start to end, and the derivatives there."""
    places = torch.linspace(start, end, PLACES, dtype=torch.float64)
    return places, kind().derivative(places)
