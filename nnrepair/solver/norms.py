"""Norms of a weight change, each with its value and dual norm. Changes are flat float64 vectors d of shape (n,)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nnrepair.errors import InvalidInput
from nnrepair.solver.rows import Rows

Array = NDArray[np.float64]

#: Those that are the l2 norm in the coordinates of a metric over the locality set.
METRICS = ("drift", "fisher")
NAMES = ("l1", "linf", "l2", "mean+max", "nuclear", *METRICS)


class Norm(Protocol):
    """A norm on weight changes, with its dual."""

    def value(self, d: Array) -> float:
        """Return the norm of d."""

    def dual(self, z: Array) -> float:
        """Return the dual norm of z, the largest z.d over norm(d) <= 1."""


@dataclass(frozen=True)
class Polyhedral:
    """`sum_weight * sum|d| + max_weight * max|d|`: the norms l1, linf, and PRDNN's mean|d| + max|d|."""

    sum_weight: float
    max_weight: float

    def value(self, d: Array) -> float:
        size = np.abs(d)
        return float(self.sum_weight * size.sum() + self.max_weight * size.max(initial=0.0))

    def dual(self, z: Array) -> float:
        """Return the smallest t with sum_j max(|z_j| - t * sum_weight, 0) <= t * max_weight."""
        if self.max_weight == 0:
            return float(np.abs(z).max(initial=0.0)) / self.sum_weight
        largest = np.sort(np.abs(z))[::-1]
        count = np.arange(1, len(z) + 1)
        return float((np.cumsum(largest) / (self.max_weight + count * self.sum_weight)).max(initial=0.0))


@dataclass(frozen=True)
class Euclidean:
    """The l2 norm; "drift" and "fisher" are this norm in whitened coordinates."""

    def value(self, d: Array) -> float:
        return float(np.linalg.norm(d))

    def dual(self, z: Array) -> float:
        return float(np.linalg.norm(z))


@dataclass(frozen=True)
class Nuclear:
    """The sum of the singular values of the change as an (out, inp) matrix: small means a low-rank patch."""

    out: int
    inp: int

    def value(self, d: Array) -> float:
        return float(np.linalg.svd(d.reshape(self.out, self.inp), compute_uv=False).sum())

    def dual(self, z: Array) -> float:
        return float(np.linalg.norm(z.reshape(self.out, self.inp), 2))


def make(name: str, rows: Rows) -> Euclidean | Polyhedral | Nuclear:
    """Return the norm called `name` for changes of the size of `rows`.

    Raises:
        InvalidInput: an unknown name, or the nuclear norm of something that is not one weight matrix.
    """
    if name == "l1":
        return Polyhedral(1.0, 0.0)
    if name == "linf":
        return Polyhedral(0.0, 1.0)
    if name == "mean+max":
        return Polyhedral(1.0 / rows.n, 1.0)
    if name in ("l2", *METRICS):
        return Euclidean()
    if name == "nuclear":
        shape = rows.matrix_shape
        if shape is None:
            raise InvalidInput("norm='nuclear' needs exactly one linear or convolution layer; choose one layer.")
        return Nuclear(*shape)
    raise InvalidInput(f"Unknown norm {name!r}. Norms: {', '.join(NAMES)}.")
