"""HardSwish: z clip(z + 3, 0, 6) / 6, which bends downwards once, at 3, and is a parabola between -3 and 3."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.numbers import Numbers


class HardSwish(Activation):
    """0 up to -3, z from 3 on, and z (z + 3) / 6 between."""

    steepest = 1.5
    is_rational = True

    def apply(self, x: Tensor) -> Tensor:
        middle = x.clamp(-3, 3)  # so that an infinite x gives no NaN
        return torch.where(x >= 3, x, middle * (middle + 3) / 6)

    def exact(self, x: Numbers) -> Numbers:
        return x * (x + 3).clip(0, 6) * Fraction(1, 6)

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        # f(z) - slope z is extreme at an end, where pieces meet, or where the parabola is as steep as the slope.
        three = torch.full_like(low, 3.0)
        candidates = torch.stack([low, high, *(z.clamp(low, high) for z in (-three, three, self._touching(slope)))])
        values, products = self.apply(candidates), slope * candidates
        # Three roundings of f, two more; and the place where the parabola is as steep as the slope is rounded as well.
        off = 8 * EPS * (values.abs() + products.abs()) + 1e-28
        return (values - products - off).amin(0), (values - products + off).amax(0)

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        chord, _ = super().slopes(low, high)
        least, most = torch.where(low < -3, 0.0, -0.5), torch.where(high > 3, 1.0, 1.5)
        return chord, ((low + high + 3) / 6).clamp(least, most)  # as steep as in the middle

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        return super().loose(low, high) & (low < 3) & (high > -3)

    def split(self, low: Tensor, high: Tensor) -> Tensor:
        point = torch.where((low < -3) & (high > -3), -3.0, super().split(low, high))
        return torch.where((low < 3) & (high > 3), 3.0, point)

    def alive(self, high: Tensor) -> Tensor:
        return high > -3

    @staticmethod
    def _touching(slope: Tensor) -> Tensor:
        """Return where the parabola has a slope."""
        return (3 * slope - 1.5).clamp(-3, 3)


LAYERS: Layers = {nn.Hardswish: lambda b, layer, x: b.activation(x, HardSwish())}
FUNCTIONS: Functions = {F.hardswish: lambda b, x: b.activation(x, HardSwish())}
