"""Coordinates in which the Euclidean norm of a change of weights is how far outputs move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from nnrepair.solver.rows import Array, Block, Dense, Factored, Rows


@dataclass(frozen=True)
class Metric:
    """Coordinates in which the Euclidean norm measures side effects: per block a Cholesky factor or a diagonal.

    For a linear map, |Delta|^2 = trace(Delta C Delta^T) with C = L L^T the second moment of its inputs: the expected
    squared change of the map's output, in its units (what ROME and MEMIT minimise). For other parameters, the Fisher
    information's diagonal: twice the nats by which what is decided moves, or for plain numbers the expected squared
    change of the network's outputs, both to second order and one parameter at a time.

    With a factor M from the left, where F = M M^T is the second moment of gradients at the map's output, it measures
    trace(Delta^T F Delta C): the Fisher information of the map's weights, as a Kronecker product.

    Attributes:
        factors: per block L, (inp, inp) lower triangular, or the square root of the diagonal, (n,).
        left: per block M, (out, out) lower triangular; by default, and on diagonals, none.
    """

    factors: Sequence[Array]
    left: Sequence[Array | None] = field(default=())

    @property
    def sides(self) -> list[tuple[Array, Array | None]]:
        """The factors from the right and from the left, block by block."""
        return list(zip(self.factors, self.left or [None] * len(self.factors), strict=True))

    def whiten(self, rows: Rows) -> Rows:
        """Return the rows in coordinates where the metric is the Euclidean norm."""
        blocks: list[Block] = []
        for block, (factor, left) in zip(rows.blocks, self.sides, strict=True):
            if isinstance(block, Factored):
                delta = block.delta if left is None else _solved(left, block.delta)
                blocks.append(Factored(delta, block.point, _solved(factor, block.inputs)))
            else:
                blocks.append(Dense(block.rows / factor))
        return Rows(tuple(blocks))

    def unwhiten(self, d: Array, rows: Rows) -> Array:
        """Return the change of weights that has coordinates d."""
        parts = []
        for block, part, (factor, left) in zip(rows.blocks, rows.split(d), self.sides, strict=True):
            if isinstance(block, Factored):
                matrix = part.reshape(block.out, block.inp)
                if left is not None:
                    matrix = scipy.linalg.solve_triangular(left, matrix, lower=True, trans="T")
                parts.append(scipy.linalg.solve_triangular(factor, matrix.T, lower=True, trans="T").T.ravel())
            else:
                parts.append(part / factor)
        return np.concatenate(parts)

    def coordinates(self, change: Array, rows: Rows) -> Array:
        """Return the coordinates of a change of weights, the inverse of `unwhiten`."""
        parts = []
        for block, part, (factor, left) in zip(rows.blocks, rows.split(change), self.sides, strict=True):
            if isinstance(block, Factored):
                matrix = part.reshape(block.out, block.inp)
                parts.append(((matrix if left is None else left.T @ matrix) @ factor).ravel())
            else:
                parts.append(part * factor)
        return np.concatenate(parts)


def _solved(factor: Array, vectors: Array) -> Array:
    """Return what the inverse of a lower triangular factor (k, k) makes of vectors (..., k)."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    solved = scipy.linalg.solve_triangular(factor, flat.T, lower=True, check_finite=False).T
    return np.ascontiguousarray(solved).reshape(vectors.shape)
