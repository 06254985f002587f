"""Arctangent and Softsign, convex up to 0 and concave from there on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.smooth import Smooth


class Arctangent(Smooth):
    """The inverse of the tangent."""

    steepest = 1.0
    breaks = ((0.0, 0.0),)
    convex = (True, False)
    monotone, least, most = True, -1.5707963267948968, 1.5707963267948968
    increases = True

    def apply(self, x: Tensor) -> Tensor:
        return torch.atan(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + x * x)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        place = (1 / slope.clamp(1e-300, 1) - 1).sqrt()
        return place if piece else -place


class Softsign(Smooth):
    """z / (1 + |z|)."""

    steepest = 1.0
    breaks = ((0.0, 0.0),)
    convex = (True, False)
    monotone, least, most = True, -1.0, 1.0
    increases = True

    def apply(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs())

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + x.abs()).square()

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        place = slope.clamp(1e-300, 1).rsqrt() - 1
        return place if piece else -place


LAYERS: Layers = {nn.Softsign: lambda b, layer, x: b.activation(x, Softsign())}
FUNCTIONS: Functions = {
    F.softsign: lambda b, x: b.activation(x, Softsign()),
    **dict.fromkeys((torch.atan, torch.arctan, ".atan", ".arctan"), lambda b, x: b.activation(x, Arctangent())),
}
