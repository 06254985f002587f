"""ELU: z from 0 on, alpha (exp(z) - 1) before; SELU and CELU are made of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.smooth import Smooth
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Unreadable, Value

#: The constants of SELU, as torch has them.
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


class ELU(Smooth):
    """z from 0 on, exp(z) - 1 before: convex, with a derivative at 0 too."""

    convex = (True,)
    monotone, least, steepest = True, -1.0, 1.0

    def apply(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, torch.expm1(x.clamp(max=0)))

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(x.clamp(max=0))

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        return torch.where(slope >= 1, 1e300, torch.log(slope.clamp(min=1e-300)))


def elu(b: Builder, x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """Return ELU for any alpha: alpha ELU(z) + (1 - alpha) relu(z); alpha in the precision of the weights."""
    curve = b.activation(x, ELU())
    return curve if alpha == 1 else _bent(b, x, curve, b.constant(alpha), 0.0)


def selu(b: Builder, x: Value, inplace: bool = False) -> Value:
    """Return scale * ELU with SELU's alpha."""
    alpha, scale = (torch.tensor(value, dtype=torch.float64) for value in (SELU_ALPHA, SELU_SCALE))
    return b.scaled(_bent(b, x, b.activation(x, ELU()), alpha, 4 * EPS), scale, inexact=4 * EPS)


def celu(b: Builder, x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """Return max(0, z) + min(0, alpha (exp(z / alpha) - 1)), which is alpha ELU(z / alpha)."""
    if not alpha > 0:
        raise Unreadable(f"alpha={alpha}, expected alpha > 0")
    if alpha == 1:
        return b.activation(x, ELU())
    exact = b.constant(alpha)
    return b.scaled(b.activation(b.scaled(x, 1 / exact, inexact=4 * EPS, of=(exact,)), ELU()), alpha)


def _bent(b: Builder, x: Value, curve: Value, alpha: Tensor, inexact: float) -> Value:
    """Return alpha curve + (1 - alpha) relu(x)."""
    return b.total(b.scaled(curve, alpha, inexact=inexact), b.scaled(b.relu(x), 1 - alpha, inexact=inexact + 4 * EPS))


LAYERS: Layers = {
    nn.ELU: lambda b, layer, x: elu(b, x, layer.alpha),
    nn.SELU: lambda b, layer, x: selu(b, x),
    nn.CELU: lambda b, layer, x: celu(b, x, layer.alpha),
}
FUNCTIONS: Functions = {F.elu: elu, F.selu: selu, torch.selu: selu, F.celu: celu, torch.celu: celu}
