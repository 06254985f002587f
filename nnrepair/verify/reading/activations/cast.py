"""Casts to a shorter type of floating point than the network's own."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Value


class Narrowed(Activation):
    """Numbers within half a unit in the last place of a shorter type: what z may be rounded to there, and z itself.

    Nothing is claimed of numbers that are too large for the type, which become infinite.

    Args:
        kind: the type.
        whole: whether all numbers are whole; small ones then stay as they are.
    """

    steepest = 1.0

    def __init__(self, kind: torch.dtype, whole: bool = False) -> None:
        about = torch.finfo(kind)
        self.kind, self.largest = kind, about.max
        #: Relative, and that of the smallest numbers.
        self.unit, self.least = about.eps / 2, 0.0 if whole else about.smallest_normal * about.eps / 2
        self.kept = 2 / about.eps if whole else 0.0

    @property
    def name(self) -> str:
        return f"casts to {str(self.kind).removeprefix('torch.')}"

    def apply(self, x: Tensor) -> Tensor:
        return x

    def offsets(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.stack([low, high])
        reach = at.abs().amax(0)
        off = torch.where(reach <= self.kept, 0.0, self.unit * at.abs() + self.least)
        off = torch.where(reach <= self.largest, off, torch.inf)
        rest = (1 - slope) * at
        off = off * (1 + 4 * EPS) + 4 * EPS * (at.abs() + (slope * at).abs()) + 1e-300
        return (rest - off).amin(0), (rest + off).amax(0)

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(low), torch.ones_like(low)

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.zeros_like(low, dtype=torch.bool)  # no split helps


def cast(b: Builder, x: Value, kind: torch.dtype, whole: bool = False) -> Value:
    """Return numbers as another type of floating point has them; types as long as the network's own change nothing."""
    if torch.finfo(kind).eps <= torch.finfo(b.precision).eps:
        return x
    return b.activation(x, Narrowed(kind, whole))
