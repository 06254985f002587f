"""Outputs that are affine in chosen parameters, such as a network's last layer: one matrix, one key per point.

y = y0 + (W - W0) k, with W the parameters side by side, one row per output, and k what they are applied to: the values
of the layer before, a one where a bias is repaired, the messages that a node of a graph receives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AffineHead:
    """Parameters side by side, as one matrix (out, inp).

    Attributes:
        shapes: of the parameters, by name and in their order; all have one row per output.
        transposed: the names of those that have one column per output instead, as GPT-2's weights (inp, out).
    """

    shapes: dict[str, torch.Size]
    transposed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], transposed: Iterable[str] = ()) -> AffineHead:
        """Return the head of these parameters."""
        return cls({name: p.shape for name, p in parameters.items()}, frozenset(transposed))

    @property
    def out(self) -> int:
        """The number of outputs."""
        name, shape = next(iter(self.shapes.items()))
        return int(shape[-1 if name in self.transposed else 0])

    @property
    def inp(self) -> int:
        """The number of weights of each output."""
        return self.size // self.out

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(shape.numel() for shape in self.shapes.values())

    def matrix(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return (out, inp) the parameters' values, or changes, side by side."""
        sides = [values[name].T if name in self.transposed else values[name] for name in self.shapes]
        return torch.cat([side.reshape(self.out, -1) for side in sides], 1)

    def apart(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return the parameters' values, or changes, of a matrix: the inverse of `matrix`."""
        parts = torch.split(matrix, [shape.numel() // self.out for shape in self.shapes.values()], 1)
        return {
            n: part.T.reshape(shape) if n in self.transposed else part.reshape(shape)
            for (n, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def beside(keys: Iterable[Tensor | None], like: Tensor) -> Tensor:
    """Return the keys (..., inp) of a head: those of each parameter side by side, a one for a bias (None).

    Args:
        keys: what each parameter is applied to.
        like: (..., any) a tensor of the keys' points, dtype and device.
    """
    ones = like.new_ones(())
    return torch.cat([ones.expand(*like.shape[:-1], 1) if key is None else key for key in keys], -1)


def rows_of(outputs: Tensor, keys: Tensor) -> Tensor:
    """Return rows (m, size) on a head's weights: what `outputs` (m, out) make of them at keys (m, inp)."""
    return (outputs[:, :, None] * keys[:, None, :]).flatten(1)
