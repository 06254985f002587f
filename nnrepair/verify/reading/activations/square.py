"""Square: z^2. Products are made of it."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.verify.reading.activations.smooth import Smooth
from nnrepair.verify.reading.numbers import Numbers


class Square(Smooth):
    """z^2."""

    convex = (True,)
    least = 0.0
    is_rational = True

    def apply(self, x: Tensor) -> Tensor:
        return x * x

    def derivative(self, x: Tensor) -> Tensor:
        return 2 * x

    def exact(self, x: Numbers) -> Numbers:
        return x * x

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        return 2 * torch.maximum(low.abs(), high.abs())

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        return slope / 2


SQUARE = Square()
