"""Linear lower bounds of rows over boxes, and the shares of a box that they leave open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.verify.comparing.volumes import UNIT, Shares, at_most
from nnrepair.verify.search.relaxation import Linear

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Sums of a few terms are off by less than this share of the terms' sizes.
ROUNDED = 1e-14


@dataclass
class Lines:
    """Lower bounds `least + |rise| . u` of rows, where u in the unit cube is the way from the corner that is best.

    Attributes:
        least: (boxes, rows).
        rise: (boxes, rows, inputs), coefficients times widths, with their signs.
        free: (inputs,), which inputs vary in the region, see `at_most`.
    """

    least: Array
    rise: Array
    free: NDArray[np.bool_]

    @classmethod
    def of(cls, bound: Linear, lower: Tensor, upper: Tensor, boxes: int, free: NDArray[np.bool_]) -> Lines:
        """Return bounds of equally many rows for each box, box by box; lower and upper are those of each row."""
        least = bound.minimum(lower, upper).reshape(boxes, -1)
        rise = (bound.A * (upper - lower)).reshape(boxes, least.shape[1], lower.shape[1])
        return cls(least.numpy(), rise.numpy(), free)

    @property
    def most(self) -> Array:
        """The largest value of each bound over its box, (boxes, rows)."""
        highest: Array = self.least + np.abs(self.rise).sum(2)
        return highest

    def falls(self, box: Index, row: int) -> Shares:
        """Return at least the shares of boxes where the bound of a row is at most zero."""
        return at_most(np.abs(self.rise[box, row]), -self.least[box, row], True, self.free)

    def both_fall(self, box: Index, one: int, two: int) -> Shares:
        """Return at least the shares where the bounds of two rows are at most zero.

        If their sum is at least -gap on all of the box, each of them is between -gap and 0 there: a slab between
        parallel planes, which is thin where the rows are nearly opposite and their bounds close.
        """
        gap = -self._sum(box, one, two)
        shares = np.full(len(box), UNIT, np.int64)
        for row in (one, two):
            rise, least = np.abs(self.rise[box, row]), self.least[box, row]
            below = at_most(rise, -least - gap - ROUNDED * np.abs(least), False, self.free)
            shares = np.minimum(shares, at_most(rise, -least, True, self.free) - below)
        return np.where(gap < 0, 0, np.clip(shares, 0, UNIT))

    def both_rise(self, box: Index, one: int, two: int) -> Shares:
        """Return at most the shares where the bounds of two rows are positive.

        If their sum is at least `room` on all of the box, that is so wherever one of them is between 0 and room.
        """
        room = np.maximum(self._sum(box, one, two), 0.0)
        shares = np.zeros(len(box), np.int64)
        for row in (one, two):
            rise, least = np.abs(self.rise[box, row]), self.least[box, row]
            below = at_most(rise, -least + room - ROUNDED * np.abs(least), False, self.free)
            shares = np.maximum(shares, below - at_most(rise, -least, True, self.free))
        return np.where(room > 0, shares, 0)

    def _sum(self, box: Index, one: int, two: int) -> Array:
        """Return the least sum of two rows' bounds over boxes, rounded down."""
        a, b = self.rise[box, one], self.rise[box, two]
        sizes = (np.abs(a) + np.abs(b)).sum(1)
        middle = self.least[box, one] + self.least[box, two] + sizes / 2
        size = np.abs(self.least[box, one]) + np.abs(self.least[box, two]) + sizes
        least: Array = middle - np.abs(a + b).sum(1) / 2 - ROUNDED * size
        return least
