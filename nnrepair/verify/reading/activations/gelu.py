"""GELU: z times the normal distribution function, concave, convex between -sqrt(2) and sqrt(2), and concave again.

What approximates it by tanh is another function, of the same shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.smooth import LIBM, TINY, Smooth
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Unreadable, Value

TURN = (1.414213562373095, 1.4142135623730951)
#: The same for the approximation; its constants are 2 sqrt(2 / pi) and 0.044715.
TANH_TURN = (1.4185040087908283, 1.4185040087908285)
FACTOR, CUBE = 1.5957691216057308, 0.044715
#: The density at 0, 1 / sqrt(2 pi).
DENSITY = 0.3989422804014327


class GELU(Smooth):
    """z Phi(z), Phi(z) = erfc(-z / sqrt(2)) / 2; its second derivative is phi(z) (2 - z^2)."""

    steepest = 1.13
    breaks = ((-TURN[1], -TURN[0]), TURN)
    convex = (False, True, False)
    least = -0.17
    reach = 12.0

    def apply(self, x: Tensor) -> Tensor:
        return x * self._share(x)

    def derivative(self, x: Tensor) -> Tensor:
        return self._share(x) + x * (DENSITY * torch.exp(-x * x / 2))

    def off(self, x: Tensor, y: Tensor) -> Tensor:
        # The argument of erfc is off by 2 EPS of itself: by |x| erfc'(x) times that, less than EPS. LIBM of its values.
        return 8 * LIBM * EPS * x.abs() + TINY

    def off_derivative(self, x: Tensor, y: Tensor) -> Tensor:
        # |x| phi(x) < 0.25; the rounding of x^2 / 2 moves exp by x^2 exp(-x^2 / 2) EPS, which is less than that.
        return 32 * LIBM * EPS + torch.zeros_like(y)

    @staticmethod
    def _share(x: Tensor) -> Tensor:
        share: Tensor = torch.special.erfc(x * -math.sqrt(0.5)) / 2
        return share


class TanhGELU(Smooth):
    """z sigmoid(2 sqrt(2 / pi) (z + 0.044715 z^3)), as tanh(u) is 2 sigmoid(2 u) - 1."""

    steepest = 1.13
    breaks = ((-TANH_TURN[1], -TANH_TURN[0]), TANH_TURN)
    convex = (False, True, False)
    least = -0.1701
    reach = 12.0

    def apply(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self._inner(x))

    def derivative(self, x: Tensor) -> Tensor:
        inner, steep = self._inner(x), FACTOR * (1 + 3 * CUBE * x * x)
        share, rest = torch.sigmoid(inner), torch.sigmoid(-inner)
        return share + (x * steep * rest).nan_to_num(0.0) * share

    def off(self, x: Tensor, y: Tensor) -> Tensor:
        # sigmoid(u) moves by |u| sigmoid'(u) < 0.23 times the relative error of u, which is 8 EPS at most.
        return 8 * LIBM * EPS * x.abs() + TINY

    def off_derivative(self, x: Tensor, y: Tensor) -> Tensor:
        return 64 * LIBM * EPS + torch.zeros_like(y)  # both terms are below 1.2, and so is what u's error does to them

    @staticmethod
    def _inner(x: Tensor) -> Tensor:
        return FACTOR * (x + CUBE * x * x * x)


def gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    """Return GELU as it is defined, or approximated."""
    if approximate not in ("none", "tanh"):
        raise Unreadable(f"approximate={approximate!r}, expected 'none' or 'tanh'")
    return b.activation(x, GELU() if approximate == "none" else TanhGELU())


LAYERS: Layers = {nn.GELU: lambda b, layer, x: gelu(b, x, layer.approximate)}
FUNCTIONS: Functions = {F.gelu: gelu}
