"""Affine forms: every value as a function of the inputs, within an error, followed forward through a network.

Over a box with centre c and radii r a value is `middle + sum_j slope_j e_j` within `error`, for x = c + r e and all e
in [-1, 1]^d. An affine map takes all three through; around an activation f any slope s will do, as `f(z) - s z` lies
between bounds that are known (zonotopes with one error for each value; Singh et al. 2018, DeepZ, keep them apart). For
few inputs that costs as much as a few points, and is far closer than intervals where much depends on the same inputs.

Rounding. |middle| + sum |slope| + error bounds the value, and is what sums of products are off by at most, times their
gamma: for middle and slopes together that is gamma |W| times it. Infinities and NaN claim nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.affine import EPS, Affine, in_pieces
from nnrepair.verify.search.intervals import TINY, Interval

#: More than rounding takes from a few sums and products of positive numbers.
UP = 1 + 64 * EPS


@dataclass
class Form:
    """Values (boxes, size) as functions of the inputs.

    Attributes:
        middle, error: (boxes, size).
        slope: (boxes, inputs, size).
    """

    middle: Tensor
    slope: Tensor
    error: Tensor

    @classmethod
    def of_inputs(cls, lower: Tensor, upper: Tensor) -> Form:
        """Return the inputs themselves over boxes (boxes, inputs)."""
        middle = (lower + upper) / 2
        radius = torch.maximum(upper - middle, middle - lower) * UP
        return cls(middle, torch.diag_embed(radius), torch.full_like(middle, TINY))

    def reach(self) -> Tensor:
        """Return bounds on the distance of the values from their middle."""
        return (self.slope.abs().sum(1) * (1 + self.slope.shape[1] * EPS) + self.error) * UP + TINY

    def size(self) -> Tensor:
        """Return bounds on the absolute values."""
        return (self.middle.abs() + self.reach()) * UP

    def interval(self) -> Interval:
        """Return bounds of the values; none where they are not finite."""
        reach = self.reach() + 4 * EPS * self.size()
        low, high = self.middle - reach, self.middle + reach
        return low.nan_to_num(-torch.inf, torch.inf, -torch.inf), high.nan_to_num(torch.inf, torch.inf, -torch.inf)

    def through(self, map: Affine, deadline: Deadline) -> Form:
        """Return an affine map of the values."""
        gamma = (map.terms + 64) * EPS * 1.01
        spread = (self.error + (2 * gamma + map.inexact) * self.size()) * UP
        middle = in_pieces(map.apply, self.middle, map.work, deadline) + map.bias
        slope = in_pieces(map.apply, self.slope.flatten(0, 1), map.work, deadline)
        error = in_pieces(map.magnitude, spread, map.work, deadline)
        error = (error + 2 * gamma * map.bias.abs()) * (1 + 1e-9) + TINY
        error = error if map.off is None else error + map.off * (1 + 1e-9)
        return Form(middle, slope.reshape(*self.slope.shape[:2], -1), error)

    def bent(self, activation: Activation, low: Tensor, high: Tensor) -> Form:
        """Return an activation of the values, which are known to be within low and high."""
        slope = activation.relax(low, high).slope
        least, most = activation.offsets(slope, low, high)
        half = (most - least) / 2
        error = (slope.abs() * self.error + half) * UP
        error = error + 8 * EPS * (slope.abs() * self.size() + least.abs() + most.abs()) + TINY
        return Form(slope * self.middle + (least + most) / 2, slope[:, None] * self.slope, error)

    @staticmethod
    def total(parts: Sequence[Form]) -> Form:
        """Return the sum of several."""
        first = parts[0]
        rounding = 4 * len(parts) * EPS * sum((part.size() for part in parts[1:]), first.size())
        return Form(
            sum((part.middle for part in parts[1:]), first.middle),
            sum((part.slope for part in parts[1:]), first.slope),
            (sum((part.error for part in parts[1:]), first.error) + rounding) * (1 + 4 * len(parts) * EPS) + TINY,
        )
