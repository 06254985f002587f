"""What bounding finds: lines around every ReLU, and linear bounds of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
@dataclass
class Relaxation:
    """What is known about the ReLUs of a batch of boxes; every list has one (boxes, neurons) tensor per ReLU node.

    Attributes:
        lower, upper: bounds of what goes into each ReLU.
        slope, shift: the line above it.    floor: the slope of the line below it, in [0, 1].
        unstable: whether the ReLU can be on and off in the box.
    """

    lower: list[Tensor]
    upper: list[Tensor]
    slope: list[Tensor]
    shift: list[Tensor]
    floor: list[Tensor]
    unstable: list[Tensor]

    def joined(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of all ReLUs side by side, (boxes, ReLUs); there may be none."""
        return torch.cat([boxes[:, :0], *self.lower], 1), torch.cat([boxes[:, :0], *self.upper], 1)

    def lost(self, relu: int, A: Tensor) -> Tensor:
        """Return (boxes, neurons): what the lines of a ReLU node lose at most, multiplied by coefficients A."""
        below = torch.minimum(self.upper[relu], -self.lower[relu]).clamp(min=0)
        lost = A.clamp(min=0) * below - A.clamp(max=0) * self.shift[relu]
        return torch.where(self.unstable[relu], lost, 0.0)

    def __getitem__(self, index: Tensor) -> Relaxation:
        return Relaxation(*([t[index] for t in part] for part in vars(self).values()))


@dataclass
@dataclass
class Linear:
    """`A . x + c` for each row: A (rows, inputs), c (rows,)."""

    A: Tensor
    c: Tensor

    def minimum(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the least value over each row's box (rows, inputs); its rounding error is part of c already."""
        middle, radius = (lower + upper) / 2, (upper - lower) / 2
        return self.c + (self.A * middle).sum(1) - (self.A.abs() * radius).sum(1)

    def corner(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the point of each row's box where it is least; the middle along inputs that it does not depend on."""
        middle, radius = (lower + upper) / 2, (upper - lower) / 2
        return torch.clamp(middle - self.A.sign() * radius, lower, upper)

    def __getitem__(self, index: Tensor) -> Linear:
        return Linear(self.A[index], self.c[index])
