"""Tanh, convex up to 0 and concave from there on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.smooth import Smooth


class Tanh(Smooth):
    """The hyperbolic tangent."""

    steepest = 1.0
    breaks = ((0.0, 0.0),)
    convex = (True, False)
    monotone, least, most = True, -1.0, 1.0
    increases = True

    def apply(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)  # 1 - tanh^2 would lose its digits

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        root = (1 - slope.clamp(1e-300, 1)).sqrt()
        place = torch.log1p(root) - torch.log(slope.clamp(1e-300, 1)) / 2  # atanh(root)
        return place if piece else -place


LAYERS: Layers = {nn.Tanh: lambda b, layer, x: b.activation(x, Tanh())}
FUNCTIONS: Functions = dict.fromkeys((torch.tanh, F.tanh, ".tanh"), lambda b, x: b.activation(x, Tanh()))
