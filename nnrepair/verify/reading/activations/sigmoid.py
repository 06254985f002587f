"""Sigmoid: 1 / (1 + exp(-z)), convex up to 0 and concave from there on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.smooth import Smooth


class Sigmoid(Smooth):
    """1 / (1 + exp(-z))."""

    steepest = 0.25
    breaks = ((0.0, 0.0),)
    convex = (True, False)
    monotone, least, most = True, 0.0, 1.0
    increases = True

    def apply(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        share = 0.5 + (0.25 - slope.clamp(1e-300, 0.25)).sqrt()  # s (1 - s) = slope; near 1 it lies far out
        place = torch.log(share) - torch.log(slope.clamp(min=1e-300) / share)
        return place if piece else -place


LAYERS: Layers = {nn.Sigmoid: lambda b, layer, x: b.activation(x, Sigmoid())}
FUNCTIONS: Functions = dict.fromkeys(
    (torch.sigmoid, torch.special.expit, F.sigmoid, ".sigmoid"), lambda b, x: b.activation(x, Sigmoid())
)
