"""Exp, Log, and Softplus: log(1 + exp(z))."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.smooth import Smooth, steepest_left
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Unreadable, Value

#: See `CappedExp`; exp(-CAP) is below CAPPED.
CAP, CAPPED = 200.0, 1e-86


class Exp(Smooth):
    """The exponential function."""

    convex = (True,)
    monotone, least = True, 0.0
    increases = True

    def apply(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.exp(high) * (1 + 1e-12)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        return torch.log(slope.clamp(min=1e-300))


class CappedExp(Smooth):
    """exp(min(z, CAP)), in softmax: exp of what lies beyond would be too large for any bound to be finite."""

    breaks = ((CAP, CAP),)
    convex = (True, True)
    monotone, least = True, 0.0

    def apply(self, x: Tensor) -> Tensor:
        return torch.exp(x.clamp(max=CAP))

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x < CAP, self.apply(x), 0.0)

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        return self.apply(high) * (1 + 1e-12)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        return torch.full_like(slope, CAP) if piece else torch.log(slope.clamp(min=1e-300)).clamp(max=CAP)


class Log(Smooth):
    """The natural logarithm of positive numbers; nothing is claimed of others."""

    convex = (False,)
    monotone = True

    def apply(self, x: Tensor) -> Tensor:
        return torch.log(x)

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        return steepest_left(1 / low)

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / x

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        return 1 / slope.clamp(min=1e-300)


class Softplus(Smooth):
    """log(1 + exp(z))."""

    convex = (True,)
    monotone, least, steepest = True, 0.0, 1.0

    def apply(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        slope = slope.clamp(1e-300, 1 - EPS)
        return torch.log(slope) - torch.log1p(-slope)


def softplus(b: Builder, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """Return log(1 + exp(beta x)) / beta everywhere; torch has x beyond the threshold, which is less than 3e-9 off."""
    if not (beta > 0 and threshold >= 20):
        raise Unreadable(f"beta={beta} and threshold={threshold}, expected beta > 0 and threshold >= 20")
    if beta == 1:
        return b.activation(x, Softplus())
    return b.scaled(b.activation(b.scaled(x, beta), Softplus()), 1 / b.constant(beta), inexact=4 * EPS)


LAYERS: Layers = {nn.Softplus: lambda b, layer, x: softplus(b, x, layer.beta, layer.threshold)}
FUNCTIONS: Functions = {
    F.softplus: softplus,
    **dict.fromkeys((torch.exp, ".exp"), lambda b, x: b.activation(x, Exp())),
    **dict.fromkeys((torch.log, ".log"), lambda b, x: b.activation(x, Log())),
}
