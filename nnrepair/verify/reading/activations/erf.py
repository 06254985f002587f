"""Erf, the error function, convex up to 0 and concave from there on; erfc is 1 less it."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.verify.reading.activations import Functions
from nnrepair.verify.reading.activations.smooth import LIBM, TINY, Smooth
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Value

#: The slope at 0, 2 / sqrt(pi), and its inverse.
STEEPEST, INVERSE = 1.1283791670955126, 0.886226925452758


class Erf(Smooth):
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to z."""

    steepest = 1.1284
    breaks = ((0.0, 0.0),)
    convex = (True, False)
    monotone, least, most = True, -1.0, 1.0
    increases = True
    reach = 6.0

    def apply(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def derivative(self, x: Tensor) -> Tensor:
        return STEEPEST * torch.exp(-x * x)

    def off_derivative(self, x: Tensor, y: Tensor) -> Tensor:
        # The rounding of x^2 moves exp by x^2 exp(-x^2) EPS at most, which is less than half of EPS.
        return 16 * LIBM * EPS + TINY + torch.zeros_like(y)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        place = (-torch.log(slope.clamp(1e-300, STEEPEST) * INVERSE)).clamp(min=0).sqrt()
        return place if piece else -place


def _erfc(b: Builder, x: Value) -> Value:
    return b.scaled(b.activation(x, Erf()), -1.0, 1.0)


FUNCTIONS: Functions = {
    **dict.fromkeys((torch.erf, torch.special.erf, ".erf"), lambda b, x: b.activation(x, Erf())),
    **dict.fromkeys((torch.erfc, torch.special.erfc, ".erfc"), _erfc),
}
