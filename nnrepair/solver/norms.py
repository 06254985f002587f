"""Norms of a weight change, each with what the solver needs: value and dual norm, and where it is not polyhedral more.

Changes are flat float64 vectors d of shape (n,). The nuclear norm has a proximal step and its `curvature(G)`, `G P G^T`
for rows G, with P the (generalised) derivative of the last proximal step, a diagonal in the singular basis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nnrepair.errors import InvalidInput
from nnrepair.solver.rows import Rows

Array = NDArray[np.float64]

NAMES = ("l1", "linf", "l2", "mean+max", "nuclear", "drift")


class Proximal(Protocol):
    """The result of a proximal step: the point, and the curvature there."""

    @property
    def point(self) -> Array:
        """The point, (n,)."""

    def curvature(self, rows: Rows) -> Array:
        """Return G P G^T, (m, m)."""


class Norm(Protocol):
    """A norm on weight changes, with its dual."""

    def value(self, d: Array) -> float:
        """Return the norm of d."""

    def dual(self, z: Array) -> float:
        """Return the dual norm of z, the largest z.d over norm(d) <= 1."""


class ProximalNorm(Norm, Protocol):
    """A norm with a proximal step; the others need none: a quadratic program and an interior point do without."""

    def prox(self, u: Array, step: float) -> Proximal:
        """Return argmin_d step * norm(d) + |d - u|^2 / 2."""


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
    """The l2 norm; "drift" is this norm in whitened coordinates."""

    def value(self, d: Array) -> float:
        return float(np.linalg.norm(d))

    def dual(self, z: Array) -> float:
        return float(np.linalg.norm(z))


@dataclass(frozen=True)
class _LowRank:
    point: Array
    left: Array  # (out, out)
    right: Array  # (inp, inp)
    symmetric: Array  # (r, r) derivative on the symmetric part, r = min(out, inp)
    skew: Array
    rest: Array  # (r,) derivative on what the singular vectors of the shorter side do not span

    def curvature(self, rows: Rows) -> Array:
        r = len(self.rest)
        total = np.zeros((rows.m, rows.m))
        wide = self.right.shape[0] >= self.left.shape[0]
        turned = rows.rotated(self.left, self.right)  # (m, out, inp)
        square = turned[:, :r, :r]
        extra = turned[:, :, r:] if wide else turned[:, r:, :]
        for part, weight in (
            (square + square.transpose(0, 2, 1), self.symmetric / 4),
            (square - square.transpose(0, 2, 1), self.skew / 4),
        ):
            flat = part.reshape(rows.m, -1)
            total += (flat * weight.ravel()) @ flat.T
        weight = np.broadcast_to(self.rest[:, None] if wide else self.rest[None, :], extra.shape[1:])
        flat = extra.reshape(rows.m, -1)
        return total + (flat * weight.ravel()) @ flat.T


@dataclass(frozen=True)
class Nuclear:
    """The sum of the singular values of the change as an (out, inp) matrix: small means a low-rank patch."""

    out: int
    inp: int

    def value(self, d: Array) -> float:
        return float(np.linalg.svd(d.reshape(self.out, self.inp), compute_uv=False).sum())

    def dual(self, z: Array) -> float:
        return float(np.linalg.norm(z.reshape(self.out, self.inp), 2))

    def prox(self, u: Array, step: float) -> _LowRank:
        left, size, right_t = np.linalg.svd(u.reshape(self.out, self.inp), full_matrices=True)
        r = len(size)
        kept = np.maximum(size - step, 0.0)
        point = (left[:, :r] * kept) @ right_t[:r]
        total = size[:, None] + size[None, :]
        apart = size[:, None] - size[None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (kept[:, None] - kept[None, :]) / apart
            inside = np.where((size[:, None] > step) & (size[None, :] > step), 1.0, 0.0)
            symmetric = np.where(np.abs(apart) > 1e-12 * max(size[0], 1e-300), slope, inside)
            skew = np.where(total > 0, (kept[:, None] + kept[None, :]) / total, 0.0)
            rest = np.where(size > 0, kept / size, 0.0)
        return _LowRank(point.ravel(), left, right_t.T, symmetric, skew, rest)


def make(name: str, rows: Rows) -> Euclidean | Polyhedral | ProximalNorm:
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
    if name in ("l2", "drift"):
        return Euclidean()
    if name == "nuclear":
        shape = rows.matrix_shape
        if shape is None:
            raise InvalidInput("norm='nuclear' needs exactly one linear or convolution layer; choose one layer.")
        return Nuclear(*shape)
    raise InvalidInput(f"Unknown norm {name!r}. Norms: {', '.join(NAMES)}.")
