"""ReLU: max(z, 0). Everything piecewise linear is made of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.base import Activation, Lines
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.numbers import Numbers


class ReLU(Activation):
    """max(z, 0)."""

    steepest = 1.0
    bends = (0.0,)
    is_rational = True
    has_certificates = True
    rounds = False

    def apply(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    def derivative(self, x: Tensor) -> Tensor:
        return (x > 0).to(x)

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        each = [self.apply(z) - slope * z for z in (low, torch.zeros_like(low).clamp(low, high), high)]
        size = 4 * EPS * (1 + slope.abs()) * torch.maximum(low.abs(), high.abs()) + 1e-300  # against underflow
        values = torch.stack(each)
        return values.amin(0) - size, values.amax(0) + size

    def exact(self, x: Numbers) -> Numbers:
        return x.clip(0)

    def enclose(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return low.clamp(min=0), high.clamp(min=0)

    def terms(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.maximum(low.abs(), high.abs())

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        return (low < 0) & (high > 0)

    def relax(self, low: Tensor, high: Tensor) -> Lines:
        loose = self.loose(low, high)
        on = (low >= 0).to(low)
        span = torch.where(loose, high - low, 1.0)
        slope = torch.where(loose, high / span, on)
        # 2e-15 of the span lifts the line above the ReLU at both ends whatever the rounding of slope and product.
        shift = torch.where(loose, -slope * low + 2e-15 * span, 0.0)
        floor = torch.where(loose, (high > -low).to(low), on)
        return Lines(slope, shift, floor, None, loose)

    def lost(self, lines: Lines, low: Tensor, high: Tensor, A: Tensor) -> Tensor:
        below = torch.minimum(high, -low).clamp(min=0)
        lost = A.clamp(min=0) * below - A.clamp(max=0) * lines.shift
        return torch.where(lines.loose, lost, 0.0)

    def split(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.zeros_like(low)

    def border(self, low: Tensor, high: Tensor, side: Tensor) -> Tensor | None:
        return None

    def alive(self, high: Tensor) -> Tensor:
        return high > 0


RELU = ReLU()


LAYERS: Layers = {nn.ReLU: lambda b, layer, x: b.relu(x)}
FUNCTIONS: Functions = {
    torch.relu: lambda b, x: b.relu(x),
    F.relu: lambda b, x, inplace=False: b.relu(x),
    ".relu": lambda b, x: b.relu(x),
}
