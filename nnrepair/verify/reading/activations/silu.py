"""SiLU (swish): z sigmoid(z), concave, convex between the places of `z tanh(z / 2) = 2`, and concave again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.smooth import LIBM, Smooth
from nnrepair.verify.reading.affine import EPS

TURN = (2.3993572805154675, 2.399357280515468)


class SiLU(Smooth):
    """z / (1 + exp(-z)); its second derivative is s (1 - s) (2 - z tanh(z / 2)), s = sigmoid(z)."""

    steepest = 1.1
    breaks = ((-TURN[1], -TURN[0]), TURN)
    convex = (False, True, False)
    least = -0.2785

    def apply(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def derivative(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(x)
        return share + x * share * torch.sigmoid(-x)

    def off_derivative(self, x: Tensor, y: Tensor) -> Tensor:
        return 64 * LIBM * EPS + torch.zeros_like(y)  # |s| <= 1, |z s (1 - s)| < 0.3


LAYERS: Layers = {nn.SiLU: lambda b, layer, x: b.activation(x, SiLU())}
FUNCTIONS: Functions = {F.silu: lambda b, x, inplace=False: b.activation(x, SiLU())}
