"""The restricted master: a linear program over the binding rows and the free coordinates alone, both on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from nnrepair.solver import highs
from nnrepair.solver.conditions import ROW_TOLERANCE, Conditions, Separate
from nnrepair.solver.norms import Array, Polyhedral
from nnrepair.solver.quadratic import NotSolvedError, size_of
from nnrepair.solver.rows import CHUNK, Index
from nnrepair.solver.solution import Solution, finished

#: Tolerances of HiGHS are absolute; this is for needs of at most one.
FEASIBLE = 1e-10


@dataclass(frozen=True)
class _Answer:
    """The answer of a restricted linear program.

    Attributes:
        d: (n,) the change; x = d[where] moves freely, the coordinates at the cap together, up to `level`.
        y: (m,) multipliers; missed: (m,) by how much rows are missed.
    """

    d: Array
    where: Index
    x: Array
    level: float
    y: Array
    missed: Array


class Master:
    """The linear program over the rows in use and the coordinates that are free, adding both on demand.

    Args:
        conditions: rows in use.
        separate: finds further rows.
        norm: a polyhedral norm.
        y: (m,) a guess of the multipliers.
        gap: the relative distance from the minimum at which to stop.
        scale: by what prices of further rows are divided.

    Attributes:
        free: (n,) coordinates that move on their own.
        fixed: (n,) the signs of those that move together at the cap, and zero.
        bound, best_y: the best lower bound so far, and its multipliers.
        elastic: the price of missing a hard row, raised where it proves too low.
    """

    def __init__(
        self, conditions: Conditions, separate: Separate, norm: Polyhedral, y: Array, gap: float, scale: float
    ) -> None:
        self.conditions, self.separate, self.norm, self.gap, self.scale = conditions, separate, norm, gap, scale
        n = conditions.rows.n
        z = conditions.rows.rmatvec(y)
        prices = np.abs(z)
        price = norm.sum_weight
        self.fixed = np.where(prices > price, np.sign(z), 0.0) if norm.max_weight else np.zeros(n)
        distance = np.abs(prices - price) if norm.max_weight else -z
        self.free: NDArray[np.bool_] = np.zeros(n, bool)
        count = min(n, 3 * conditions.m + 50)
        self.free[np.argpartition(distance, count - 1)[:count]] = True
        self.elastic = 1e3 * max(float(y.max()), 1e-12)
        self.bound, self.best_y = 0.0, y / max(1e-300, norm.dual(z))

    def solve(self, stats: dict[str, Any], max_rounds: int, report: Callable[[str], None]) -> Solution:
        """Return the smallest change.

        Raises:
            NotSolvedError: rounds ran out, or the numbers gave out.
        """
        for _ in range(max_rounds):
            found = self._restricted()
            stats["linear_programs"] += 1
            z = self.conditions.rows.rmatvec(found.y)
            self._raise_bound(found.y, z)
            soft = np.isfinite(self.conditions.cap)
            size = self.norm.value(found.d) + float(self.conditions.cap[soft] @ found.missed[soft])
            stuck = found.missed[~soft].max(initial=0.0) > ROW_TOLERANCE * size_of(self.conditions.need)
            more = None if stuck else self.separate(found.d, self.conditions)
            if not stuck and more is None and size - self.bound <= self.gap * size:
                return finished(self.conditions, self.norm, found.d, self.best_y, stats)
            apart = (size - self.bound) / size if size else 0
            report(f"{self.conditions.m} rows, {len(found.where)} columns, gap {apart:.1e}")
            new = self._free_more(found, z)
            if more is not None:
                more = more.priced(self.scale)
                self.conditions = self.conditions.joined(more)
                self.best_y = np.concatenate([self.best_y, np.zeros(more.m)])
            elif new == 0:
                if not stuck:
                    return finished(self.conditions, self.norm, found.d, self.best_y, stats)
                if self.elastic > 1e12 * max(float(self.best_y.max()), 1e-12):
                    raise NotSolvedError("a linear program finds no change, although there is one")
                self.elastic *= 1e3
        raise NotSolvedError(f"{max_rounds} linear programs were not enough to close the gap")

    def _raise_bound(self, y: Array, z: Array) -> None:
        dual = self.norm.dual(z)
        bound = float(self.conditions.need @ y) / max(1.0, dual)
        if dual > 0 and bound > self.bound:
            self.bound, self.best_y = bound, y / max(1.0, dual)

    def _free_more(self, found: _Answer, z: Array) -> int:
        """Free the coordinates that are worth most, settle those that are worth least; return how many became free."""
        where, price = found.where, self.norm.sum_weight
        if self.norm.max_weight:
            at_cap = np.abs(found.x) >= found.level * (1 - 1e-9)
            settled = where[at_cap | (np.abs(found.x) <= 1e-12 * found.level)]
            self.fixed[where] = np.where(at_cap, np.sign(found.x), 0.0)
            worth = np.where(self.fixed != 0, price - self.fixed * z, np.abs(z) - price)
        else:
            settled = where[found.x == 0]
            worth = np.abs(z) - price
        self.free[settled[worth[settled] < -0.3 * max(price, float(np.median(np.abs(z))))]] = False
        new = np.flatnonzero((worth > 1e-10 * max(price, float(np.abs(z).max(initial=0.0)))) & ~self.free)
        new = new[np.argsort(-worth[new])[: max(300, self.conditions.m)]]
        self.free[new] = True
        return len(new)

    def _restricted(self) -> _Answer:
        """Solve the linear program over x = d[where] and d = together * level elsewhere."""
        conditions, has_level = self.conditions, self.norm.max_weight > 0
        where, together = np.flatnonzero(self.free), np.where(self.free, 0.0, self.fixed)
        unit, m, k = size_of(conditions.need), conditions.m, len(where)
        columns = self._columns(where)
        eye = scipy.sparse.eye_array(m, format="csc")
        blocks = [[columns, -columns, eye]]
        low, high = conditions.need / unit, np.full(m, np.inf)
        if has_level:  # |d_j| <= level for the free coordinates
            each = scipy.sparse.eye_array(k, format="csc")
            cap, none = scipy.sparse.csc_array(-np.ones((k, 1))), scipy.sparse.csc_array((k, m))
            moved = scipy.sparse.csc_array(conditions.rows.matvec(together)[:, None])
            blocks = [[columns, -columns, moved, eye], [each, each, cap, none]]
            low, high = np.concatenate([low, np.full(k, -np.inf)]), np.concatenate([high, np.zeros(k)])
        level_cost = self.norm.max_weight + self.norm.sum_weight * int(np.count_nonzero(together))
        missed_cost = np.where(np.isinf(conditions.cap), self.elastic, np.minimum(conditions.cap, self.elastic))
        cost = np.concatenate([np.full(2 * k, self.norm.sum_weight), [level_cost] if has_level else [], missed_cost])
        x, y = highs.minimum(
            cost, scipy.sparse.csc_array(scipy.sparse.block_array(blocks)), low, high, tolerance=FEASIBLE
        )
        x = x * unit
        level = float(x[2 * k]) if has_level else 0.0
        free = x[:k] - x[k : 2 * k]
        d = together * level
        d[where] = free
        return _Answer(d, where, free, level, np.maximum(y[:m], 0.0), x[2 * k + int(has_level) :])

    def _columns(self, where: Index) -> scipy.sparse.csc_array:
        """Return G[:, where], sparse: most weights of a wide last layer reach few of its outputs."""
        parts = np.array_split(where, max(1, self.conditions.m * len(where) // CHUNK))
        return scipy.sparse.hstack([scipy.sparse.csc_array(self.conditions.rows.columns(p)) for p in parts], "csc")
