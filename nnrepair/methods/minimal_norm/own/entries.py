"""Side conditions on single entries of a change, which weights can meet exactly in their own dtype.

A solver meets all conditions up to its tolerance. Bounds of one entry (pruned zeros, a range) and entries that change
alike are read from the constraints, and taken literally in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import torch
from torch import Tensor

from nnrepair.methods.minimal_norm.own.functions import cvxpy
from nnrepair.solver.rows import Array, Index


@dataclass(frozen=True)
class Entries:
    """What single entries of the flat change (n,) must be.

    Attributes:
        low, high: (n,) bounds, infinite where there are none.
        alike: (n,) entries with the same number change alike.
    """

    low: Array
    high: Array
    alike: Index

    @classmethod
    def of(cls, constraints: Sequence[Any], positions: Mapping[Any, Index], size: int) -> Entries:
        """Read the bounds from constraints.

        Args:
            constraints: of cvxpy.
            positions: where the entries of each variable, the first axis fastest, lie in the flat change.
            size: n.
        """
        found = _Reader(positions, np.full(size, -np.inf), np.full(size, np.inf), [])
        for constraint in constraints:
            found.read(constraint)
        pairs = np.concatenate([np.zeros((0, 2), np.int64), *found.pairs])
        graph = scipy.sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
        count, alike = scipy.sparse.csgraph.connected_components(graph, directed=False)
        low, high = np.full(count, -np.inf), np.full(count, np.inf)
        np.maximum.at(low, alike, found.low)
        np.minimum.at(high, alike, found.high)
        return cls(low[alike], high[alike], np.asarray(alike, np.int64))

    def met(self, d: Array) -> Array:
        """Return the change nearby that meets them, in float64."""
        mean = np.bincount(self.alike, d) / np.bincount(self.alike)
        return np.clip(mean[self.alike], self.low, self.high)

    def rounded(self, d: Array, start: Tensor, where: Index) -> Array:
        """Return some entries of a change near d, with which weights of their own dtype meet the bounds.

        Args:
            d: (n,) the change.
            start: (k,) weights to which they are added, in the dtype in which the sum is kept.
            where: (k,) which entries these are.
        """
        begin, part = start.double().numpy(), d[where]
        new = torch.from_numpy(begin + part).to(start.dtype)
        for bound, wrong, way in ((self.high, np.greater, -np.inf), (self.low, np.less, np.inf)):
            beyond = wrong(new.double().numpy(), begin + bound[where])
            new = torch.where(torch.from_numpy(beyond), torch.nextafter(new, torch.full_like(new, way)), new)
        return np.asarray(np.where(part == 0, 0.0, new.double().numpy() - begin))


@dataclass
class _Reader:
    positions: Mapping[Any, Index]
    low: Array
    high: Array
    pairs: list[Index]

    def read(self, constraint: Any) -> None:
        """Take what a constraint says about single entries; other constraints say nothing here."""
        kinds = cvxpy().constraints
        if not all(variable in self.positions for variable in constraint.variables()):
            return
        if isinstance(constraint, (kinds.Equality, kinds.Zero)):
            self._at_most(constraint.expr, 0.0)
            self._at_most(-constraint.expr, 0.0)
            self._alike(constraint.expr)
        elif isinstance(constraint, kinds.Inequality):
            left, right = constraint.args
            if right.is_constant():
                self._at_most(left, right.value)
            else:
                self._at_most(left - right, 0.0)
        elif isinstance(constraint, (kinds.NonNeg, kinds.NonPos)):
            self._at_most(-constraint.args[0] if isinstance(constraint, kinds.NonNeg) else constraint.args[0], 0.0)

    def _at_most(self, expression: Any, most: Any) -> None:
        cp = cvxpy()
        if isinstance(expression, cp.max) and expression.axis is None:
            self._at_most(expression.args[0], most)
        elif isinstance(expression, cp.abs):
            self._at_most(expression.args[0], most)
            self._at_most(-expression.args[0], most)
        elif expression.is_affine():
            rows, offset = self._rows(expression)
            single = np.diff(rows.indptr) == 1
            if not single.any():
                return
            need = np.broadcast_to(np.asarray(most, np.float64), expression.shape).ravel(order="F") - offset
            where = rows.indices[rows.indptr[:-1][single]]
            factor = rows.data[rows.indptr[:-1][single]]
            bound = need[single] / factor
            np.minimum.at(self.high, where[factor > 0], bound[factor > 0])
            np.maximum.at(self.low, where[factor < 0], bound[factor < 0])

    def _alike(self, expression: Any) -> None:
        if not expression.is_affine():
            return
        rows, offset = self._rows(expression)
        at = rows.indptr[:-1][(np.diff(rows.indptr) == 2) & (offset == 0)]
        at = at[rows.data[at] == -rows.data[at + 1]]
        self.pairs.append(np.stack([rows.indices[at], rows.indices[at + 1]], 1))

    def _rows(self, expression: Any) -> tuple[Any, Array]:
        """Return an affine expression as a matrix on the flat change (csr), and what it is at no change."""
        for variable in expression.variables():
            variable.value = np.zeros(variable.shape)
        size = len(self.low)
        total = scipy.sparse.csr_array((expression.size, size))
        for variable, slope in expression.grad.items():
            part = scipy.sparse.coo_array(slope)
            columns = self.positions[variable][part.row]
            total = total + scipy.sparse.csr_array((part.data, (part.col, columns)), shape=(expression.size, size))
        total.eliminate_zeros()
        return total, np.asarray(expression.value, np.float64).ravel(order="F")
