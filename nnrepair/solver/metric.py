"""Coordinates in which the Euclidean norm of a change of weights is how far outputs drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from nnrepair.solver.rows import Array, Block, Dense, Factored, Rows


@dataclass(frozen=True)
class Metric:
    """Coordinates in which the Euclidean norm measures drift: per block a Cholesky factor or a diagonal.

    For a linear map, |Delta|^2 = trace(Delta C Delta^T) with C = L L^T the second moment of its inputs: the expected
    squared change of the map's output, in its units (what ROME and MEMIT minimise). For other parameters, the Fisher
    information's diagonal: twice the nats by which what is decided moves, or for plain numbers the expected squared
    change of the network's outputs, both to second order and one parameter at a time.
    """

    factors: Sequence[Array]

    def whiten(self, rows: Rows) -> Rows:
        """Return the rows in coordinates where drift is the Euclidean norm."""
        blocks: list[Block] = []
        for block, factor in zip(rows.blocks, self.factors, strict=True):
            if isinstance(block, Factored):
                flat = block.inputs.reshape(-1, block.inp)
                solved = scipy.linalg.solve_triangular(factor, flat.T, lower=True, check_finite=False).T
                blocks.append(
                    Factored(block.delta, block.point, np.ascontiguousarray(solved).reshape(block.inputs.shape))
                )
            else:
                blocks.append(Dense(block.rows / factor))
        return Rows(tuple(blocks))

    def unwhiten(self, d: Array, rows: Rows) -> Array:
        """Return the change of weights that has coordinates d."""
        parts = []
        for block, part, factor in zip(rows.blocks, rows.split(d), self.factors, strict=True):
            if isinstance(block, Factored):
                matrix = part.reshape(block.out, block.inp)
                parts.append(scipy.linalg.solve_triangular(factor, matrix.T, lower=True, trans="T").T.ravel())
            else:
                parts.append(part / factor)
        return np.concatenate(parts)

    def coordinates(self, change: Array, rows: Rows) -> Array:
        """Return the coordinates of a change of weights, the inverse of `unwhiten`."""
        parts = []
        for block, part, factor in zip(rows.blocks, rows.split(change), self.factors, strict=True):
            if isinstance(block, Factored):
                parts.append((part.reshape(block.out, block.inp) @ factor).ravel())
            else:
                parts.append(part * factor)
        return np.concatenate(parts)
