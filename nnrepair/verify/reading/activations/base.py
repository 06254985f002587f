"""What the checker asks of an activation, wherever it meets one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnrepair.verify.reading.numbers import Numbers

#: Intervals that are narrower are not worth a split: lines around them differ by less than the rounding of a network.
NARROW = 1e-7


@dataclass
class Lines:
    """Lines around a function f for z in an interval: `floor z + base <= f(z) <= slope z + shift`.

    Attributes:
        slope, shift: the line above.
        floor, base: the line below. Without a base any slope in [0, 1] will do where the lines are loose, and the base
            is zero; a search then looks for the best one.
        loose: whether the function is no line there.
    """

    slope: Tensor
    shift: Tensor
    floor: Tensor
    base: Tensor | None
    loose: Tensor

    def put(self, row: Tensor, unit: Tensor, lines: Lines) -> None:
        """Replace the lines of one unit in each of some rows, in place."""
        for name, value in vars(lines).items():
            if value is not None:
                getattr(self, name)[row, unit] = value

    @classmethod
    def made(cls, map: Callable[[list[Tensor]], Tensor], parts: Sequence[Lines]) -> Lines:
        """Return what a map makes of every tensor of some parts."""
        bases = [part.base for part in parts if part.base is not None]
        slope, shift, floor, loose = (
            map(column)
            for column in (
                [part.slope for part in parts],
                [part.shift for part in parts],
                [part.floor for part in parts],
                [part.loose for part in parts],
            )
        )
        return cls(slope, shift, floor, map(bases) if bases else None, loose)


class Activation(ABC):
    """A function of one number that a network applies to every entry of a value.

    `apply` and `offsets` suffice for a sound checker; the other methods may do better. None claims more than is true of
    real numbers: what they compute is rounded outward. Infinities and NaN in place of bounds claim nothing.

    Attributes:
        steepest: no line around it has a slope of a larger absolute value; see `steepness` where that depends on where.
        bends: where the pieces of a piecewise linear function meet; None if it is not one.
        is_rational: whether rational numbers have rational values, which `exact` then returns.
        has_certificates: whether `verification/check.py` reads it, and can follow proofs about it.
        rounds: whether `enclose` rounds.
        increases: whether larger numbers always have larger values.
        jumps: whether it is no continuous function, so that rounding before it may change its value by much.
    """

    steepest: float
    bends: tuple[float, ...] | None = None
    is_rational: bool = False
    has_certificates: bool = False
    rounds: bool = True
    increases: bool = False
    jumps: bool = False

    @property
    def name(self) -> str:
        """What users call it."""
        return type(self).__name__

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Return f(x) as floats compute it; automatic differentiation may follow."""

    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x), either side's where f bends."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.apply(x).sum(), x)
        return slope

    @abstractmethod
    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest `f(z) - slope z` over low <= z <= high, rounded outward."""

    def exact(self, x: Numbers) -> Numbers:
        """Return f(x), exactly."""
        raise NotImplementedError(f"{self.name} has values that are not rational")

    def enclose(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest f(z) over low <= z <= high, rounded outward."""
        return self.offsets(torch.zeros_like(low), low, high)

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        """Return a bound on the slopes of all lines for intervals within low <= z <= high."""
        return torch.full_like(low, self.steepest)

    def terms(self, low: Tensor, high: Tensor) -> Tensor:
        """Return a bound on what a line adds up for low <= z <= high: `slope z`, `shift` and f(z)."""
        least, most = self.enclose(low, high)
        reach = torch.maximum(low.abs(), high.abs())
        return torch.maximum(least.abs(), most.abs()) + 2 * self.steepness(low, high) * reach

    # Lines -----------------------------------------------------------------------------------------------------------

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        """Tell where the function may be no line, so that closer bounds of z, or a split, help."""
        return high - low > NARROW

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slopes of the lines above and below; any are sound, those of the chord are what is usual."""
        span = high - low
        chord = (self.apply(high) - self.apply(low)) / torch.where(span > 0, span, 1.0)
        return chord, chord

    def relax(self, low: Tensor, high: Tensor) -> Lines:
        """Return lines around the function over low <= z <= high."""
        most = self.steepness(low, high)
        slope, floor = (torch.clamp(each, -most, most) for each in self.slopes(low, high))
        _, shift = self.offsets(slope, low, high)
        base, _ = self.offsets(floor, low, high)
        return Lines(slope, shift, floor, base, self.loose(low, high))

    def lost(self, lines: Lines, low: Tensor, high: Tensor, A: Tensor) -> Tensor:
        """Return by how much lines are off at most, multiplied by coefficients A on f(z): what a split may win back."""
        least, _ = self.offsets(lines.slope, low, high)
        _, most = self.offsets(lines.floor, low, high)
        below = 0.0 if lines.base is None else lines.base
        lost = A.clamp(min=0) * (most - below) - A.clamp(max=0) * (lines.shift - least)
        return torch.where(lines.loose, lost, 0.0)

    # Splits ----------------------------------------------------------------------------------------------------------

    def split(self, low: Tensor, high: Tensor) -> Tensor:
        """Return where to split an interval so that lines come closer on both sides."""
        return (low + high) / 2

    def border(self, low: Tensor, high: Tensor, side: Tensor) -> Tensor | None:
        """Return p of the condition `z >= p` (side 1) or `z <= p` (side -1) that a split has left; None is zero.

        Bounds of a part hold wherever its conditions do, so they may stand for them.
        """
        return torch.where(side > 0, low, torch.where(side < 0, high, 0.0))

    def alive(self, high: Tensor) -> Tensor:
        """Tell where f(z) may differ from zero for z <= high."""
        return torch.ones_like(high, dtype=torch.bool)
