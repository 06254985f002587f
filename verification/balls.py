"""Arithmetic with proved error bounds, and norms of matrices, for minimality.py.

Every number is a ball: a float64 midpoint and a radius. A sum of n products, in any order, is off by at most
n U / (1 - n U) <= 2 n U times the sum of the absolute values (U = 2**-53); `enclose` adds that to the radius and
enlarges the radius for its own rounding. No ball holds a nonzero midpoint or radius below TINY, so no product
underflows. Overflow becomes inf or NaN, and every acceptance is a comparison that these fail. Assumed: IEEE float64,
square roots and quotients rounded correctly, and a BLAS that computes products as sums of products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

U, TINY = 2.0**-53, 1e-140


class Rejected(Exception):
    """The certificate claims something that could not be confirmed."""


@dataclass(frozen=True)
class Ball:
    """All real arrays that differ from `mid` by at most `rad` in every entry.

    Entries with equal integers in `key`, if it is given, are equal real numbers; -1 marks zeros. This decides which of
    the many equal entries of a plain background wins a pooling window, which no rounding analysis could.
    """

    mid: np.ndarray
    rad: np.ndarray
    key: np.ndarray | None = None

    def map(self, move: Callable[[np.ndarray], np.ndarray]) -> Ball:
        """Apply a function that only moves, copies or drops entries."""
        return Ball(move(self.mid), move(self.rad), None if self.key is None else move(self.key))

    @property
    def lower(self) -> np.ndarray:
        return np.where(self.rad == 0, self.mid, np.nextafter(self.mid - self.rad, -np.inf))

    @property
    def upper(self) -> np.ndarray:
        return np.where(self.rad == 0, self.mid, np.nextafter(self.mid + self.rad, np.inf))

    @property
    def size(self) -> np.ndarray:
        return up(np.abs(self.mid) + self.rad)


def up(value: Any, n: int = 1) -> Any:
    """Enlarge a nonnegative number that came out of at most n roundings on each path to it, and a few more."""
    return value * (1 + 8 * (n + 8) * U)


def enclose(mid: Any, spread: Any, size: Any, n: int) -> Ball:
    """Enclose a sum of n products of magnitude `size`, computed as `mid`, inheriting the radius `spread`."""
    mid = np.asarray(mid, np.float64)
    rad = up(spread + 2 * (n + 2) * U * size, n)
    small = (np.abs(mid) < TINY) & (mid != 0)
    rad = np.where(small, rad + TINY, rad)
    return Ball(np.where(small, 0.0, mid), np.where(rad == 0, 0.0, np.maximum(rad, TINY)))


def exact(array: Any) -> Ball:
    return enclose(array, np.zeros(np.shape(array)), 0.0, 0)


def between(lower: np.ndarray, upper: np.ndarray) -> Ball:
    mid = lower / 2 + upper / 2
    return enclose(mid, np.maximum(upper - mid, mid - lower), np.abs(lower) + np.abs(upper), 2)


def add(a: Ball, b: Ball, sign: int = 1) -> Ball:
    """Give a + sign * b."""
    mid = a.mid + sign * b.mid
    return enclose(mid, a.rad + b.rad, np.where((a.mid == 0) | (b.mid == 0), 0.0, np.abs(mid)), 1)  # x + 0 is exact


def times(a: Ball, b: Ball) -> Ball:
    size_a, size_b = np.abs(a.mid), np.abs(b.mid)
    rounded = np.where(size_b == 1, 0.0, size_a * size_b)  # x * 1 is exact
    return enclose(a.mid * b.mid, size_a * b.rad + a.rad * (size_b + b.rad), rounded, 1)


def product(a: Ball, b: Ball) -> Ball:
    """Multiply (..., n) by (n, m)."""
    size_a, size_b = np.abs(a.mid), np.abs(b.mid)
    spread = size_a @ b.rad if b.rad.any() else 0.0
    if a.rad.any():
        spread = spread + a.rad @ (size_b + b.rad)
    return enclose(a.mid @ b.mid, spread, size_a @ size_b, a.mid.shape[-1])


def total(a: Ball, axes: tuple[int, ...]) -> Ball:
    n = math.prod(a.mid.shape[axis] for axis in axes)
    return enclose(a.mid.sum(axes), a.rad.sum(axes), np.abs(a.mid).sum(axes), n)


# Norms of matrices (outputs, inputs [+ 1 column of biases]), all rounded up -----------------------------------------


def frobenius(array: np.ndarray) -> float:
    return float(up(np.sqrt(up((array**2).sum(), array.size))))


def whitener(metric: np.ndarray) -> tuple[np.ndarray, float]:
    """Give Y and e < 1 with |Y C Y^T - I| <= e: so C is positive definite, and C^-1 <= Y^T Y / (1 - e)."""
    try:
        y = np.linalg.inv(np.linalg.cholesky(metric))
    except np.linalg.LinAlgError:
        raise Rejected("The metric is not positive definite.") from None
    ball = add(product(product(exact(y), exact(metric)), exact(y.T)), exact(np.eye(len(y))), -1)
    error = float(up(ball.size.sum(1), len(y)).max())  # a symmetric matrix: the spectral norm is at most a row's sum
    if not error < 1:
        raise Rejected("The metric could not be proved positive definite: it is too ill-conditioned.")
    return y, error


def spectral(matrix: np.ndarray) -> float:
    """|M| <= |M V| / sqrt(1 - |V^T V - I|) for a square V; with the singular vectors as V both are nearly exact."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    v = exact(np.linalg.svd(tall, full_matrices=False)[2].T)
    rotated = product(exact(tall), v)
    gram = up(product(rotated.map(np.transpose), rotated).size.sum(1), len(matrix)).max()
    defect = add(product(v.map(np.transpose), v), exact(np.eye(len(v.mid))), -1)
    return float(up(np.sqrt(gram / (1 - up(defect.size.sum(1), len(v.mid)).max()))))


def norm_of(norm: str, d: Ball, metric: np.ndarray | None) -> float:
    size, n = d.size, d.mid.size
    if norm == "drift":  # |mid + e| <= |mid| + |e|
        square = total(times(product(exact(d.mid), exact(metric)), exact(d.mid)), (0, 1)).upper
        rest = up((d.rad * (d.rad @ exact(metric).size)).sum(), 2 * n)
        return float(up(np.sqrt(square) + np.sqrt(rest)))
    if norm == "nuclear":
        u, s, vt = np.linalg.svd(d.mid, full_matrices=False)
        rest = add(d, product(product(exact(u), exact(np.diag(s))), exact(vt)), -1)
        lengths = np.sqrt(up((exact(u).size ** 2).sum(0) * (exact(vt).size ** 2).sum(1), 2 * n))
        return float(up((s * lengths).sum() + np.sqrt(len(s)) * frobenius(rest.size), 2 * n))
    if norm == "l2":
        return frobenius(size)
    parts = {"l1": size.sum(), "linf": size.max(), "mean+max": size.sum() / n + size.max()}
    return float(up(parts[norm], n))


def dual_of(norm: str, z: Ball, metric: np.ndarray | None) -> float:
    size, n = z.size, z.mid.size
    if norm == "drift":  # with w C = z - rest: z C^-1 z^T = w (z + rest)^T + rest C^-1 rest^T
        assert metric is not None
        y, error = whitener(metric)
        w = exact(np.linalg.solve(metric, z.mid.T).T)
        rest = add(exact(z.mid), product(w, exact(metric)), -1)
        square = total(times(w, add(exact(z.mid), rest)), (0, 1)).upper
        square += up(frobenius(product(rest, exact(y.T)).size) ** 2 / (1 - error), 8)
        return float(up(np.sqrt(up(square)) + frobenius(up(z.rad @ exact(y.T).size, n)) / np.sqrt(1 - error), 8))
    if norm == "nuclear":
        return float(up(spectral(z.mid) + frobenius(z.rad)))
    if norm == "l2":
        return frobenius(size)
    largest = np.sort(size, axis=None)[::-1].cumsum() / (1 + np.arange(1, n + 1) / n)
    return float(up({"l1": size.max(), "linf": size.sum(), "mean+max": largest.max()}[norm], 2 * n))
