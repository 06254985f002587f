"""Sin and Cos: convex and concave by turns, a piece for every half turn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnrepair.verify.reading.activations import Functions
from nnrepair.verify.reading.activations.smooth import Smooth

#: So many half turns on either side of 0 are followed one by one; of intervals beyond them only the range is claimed.
TURNS = 4


def _around(value: float) -> tuple[float, float]:
    """Return floats on either side of what a float is near to."""
    return math.nextafter(math.nextafter(value, -math.inf), -math.inf), math.nextafter(
        math.nextafter(value, math.inf), math.inf
    )


class Sin(Smooth):
    """The sine; convex between odd and even multiples of pi, concave between even and odd ones."""

    steepest, least, most = 1.0, -1.0, 1.0
    breaks = tuple(_around(k * math.pi) for k in range(-TURNS, TURNS + 1))
    convex = tuple(k % 2 == 1 for k in range(-TURNS - 1, TURNS + 1))
    start = 0.0  # where a concave piece begins

    def apply(self, x: Tensor) -> Tensor:
        return torch.sin(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.cos(x)

    def touching(self, slope: Tensor, piece: int) -> Tensor:
        k = piece - TURNS - 1
        turned = slope.clamp(-1, 1) * (1 if k % 2 == 0 else -1)
        return self.start + k * math.pi + torch.arccos(turned)

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least, most = super().offsets(slope, low, high)
        far = (low < self.breaks[0][1]) | (high > self.breaks[-1][0])
        ends = torch.stack([slope * low, slope * high])
        slack = 1 + 1e-12 * (1 + ends.abs().amax(0))
        least = torch.where(far, -ends.amax(0) - slack, least)
        return least, torch.where(far, slack - ends.amin(0), most)


class Cos(Sin):
    """The cosine, likewise a quarter turn earlier."""

    breaks = tuple(_around((k - 0.5) * math.pi) for k in range(-TURNS, TURNS + 1))
    start = -math.pi / 2

    def apply(self, x: Tensor) -> Tensor:
        return torch.cos(x)

    def derivative(self, x: Tensor) -> Tensor:
        return -torch.sin(x)


FUNCTIONS: Functions = {
    **dict.fromkeys((torch.sin, ".sin"), lambda b, x: b.activation(x, Sin())),
    **dict.fromkeys((torch.cos, ".cos"), lambda b, x: b.activation(x, Cos())),
}
