"""Polyhedral norms of few weights under many rows: the dual simplex method, which rows join on the way.

    min  w sum(p + q) + M t + cap.r   such that   G (p - q) + r >= h,  p + q <= t,  p, q, t, r >= 0 (r of soft rows)

A last layer has a thousand weights, and for each point to keep as many conditions as other classes. Rows that join
leave the last basis dual feasible, so that every further program takes a few hundred pivots; an interior point begins
nearly anew, with systems as large as the weights. HiGHS pivots (Huangfu & Hall 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import highspy
import numpy as np

from nnrepair.solver import highs
from nnrepair.solver.conditions import Conditions
from nnrepair.solver.norms import Array, Polyhedral
from nnrepair.solver.quadratic import NotSolvedError, size_of
from nnrepair.solver.rounds import Rounds, worst
from nnrepair.solver.rows import Index
from nnrepair.solver.solution import Solution, finished

#: Up to so many weights, and numbers that are not zero among the first rows, pivots are quicker than factorisations.
WEIGHTS, NUMBERS = 3000, 300_000
#: New rows of one round.
JOINING = 300
#: Rounds of new rows.
MAX_ROUNDS = 300
#: Of HiGHS, for rows of length one and needs of the size of one.
TOLERANCE = 1e-9
#: Pivots between two looks at the clock.
PIVOTS = 2000


def suits(conditions: Conditions) -> bool:
    """Whether pivots are quicker than an interior point: few weights, of which each row has few."""
    rows = conditions.rows
    if rows.n > WEIGHTS:
        return False
    return int(np.count_nonzero(rows.columns(np.arange(rows.n)))) <= NUMBERS


def pivoted(conditions: Conditions, norm: Polyhedral, rounds: Rounds) -> Solution:
    """Return the smallest change.

    Args:
        conditions: rows in use, which some change satisfies.
        norm: what is minimised.
        rounds: of new rows.

    Raises:
        NotSolvedError: rounds ran out, or the numbers gave out.
    """
    program, stats = _Program(conditions, norm), rounds.stats
    for _ in range(MAX_ROUNDS):
        d = program.solve(lambda: rounds.report(f"{program.conditions.m} rows, {stats['newton_steps']} pivots"), stats)
        stats["rounds"] += 1
        more = rounds.further(d, program.conditions)
        if more is None:
            return finished(program.conditions, norm, program.cornered(d), program.multipliers(), stats)
        program.join(worst(more, d, JOINING))
    raise NotSolvedError(f"{MAX_ROUNDS} rounds were not enough to find all rows that bind")


class _Program:
    """The linear program, in HiGHS: columns p, q and t, then those of soft rows; rows p + q <= t, then conditions."""

    def __init__(self, conditions: Conditions, norm: Polyhedral) -> None:
        self.n, self.unit, self.norm = conditions.rows.n, size_of(conditions.need), norm
        self.conditions = conditions.take(np.zeros(0, np.int64))
        self._highs = highs.solver(
            presolve="off",
            solver="simplex",
            simplex_strategy=1,
            primal_feasibility_tolerance=TOLERANCE,
            dual_feasibility_tolerance=TOLERANCE,
        )
        self._columns(np.append(np.full(2 * self.n, norm.sum_weight), norm.max_weight))
        self.first = self.n if norm.max_weight > 0 else 0
        if self.first:
            each = np.arange(self.n)
            index = np.stack([each, each + self.n, np.full(self.n, 2 * self.n)], 1).ravel()
            self._rows(np.zeros(self.n), 3 * each, index, np.tile([-1.0, -1.0, 1.0], self.n))
        self.join(conditions)

    def join(self, more: Conditions) -> None:
        """Add conditions."""
        signed = more.rows.columns(np.arange(self.n))
        row, column = np.nonzero(signed)
        value = signed[row, column]
        row, column, value = np.tile(row, 2), np.concatenate([column, column + self.n]), np.append(value, -value)
        soft = np.flatnonzero(np.isfinite(more.cap))
        if len(soft):
            there = self._highs.getNumCol() + np.arange(len(soft))
            self._columns(more.cap[soft])
            row, column, value = np.append(row, soft), np.append(column, there), np.append(value, np.ones(len(soft)))
        order = np.argsort(row, kind="stable")
        start = np.searchsorted(row[order], np.arange(more.m))
        self._rows(more.need / self.unit, start, column[order], value[order])
        self.conditions = self.conditions.joined(more)

    def solve(self, tick: Callable[[], None], stats: dict[str, Any]) -> Array:
        """Return the smallest change (n,); `tick` is called now and then, and what it raises ends the work."""
        self._highs.setOptionValue("simplex_iteration_limit", PIVOTS)
        again = True
        while True:
            tick()
            self._highs.run()
            stats["newton_steps"] += max(0, int(self._highs.getInfo().simplex_iteration_count))
            status = self._highs.getModelStatus()
            if status == highspy.HighsModelStatus.kOptimal:
                break
            if status != highspy.HighsModelStatus.kIterationLimit:
                if not again:
                    raise NotSolvedError(f"HiGHS could not solve a program: {status}")
                self._highs.clearSolver()  # rounding errors have piled up: once more from the start
                again = False
        self._at: Array = np.asarray(self._highs.getSolution().col_value)
        d: Array = np.asarray(self._at[: self.n] - self._at[self.n : 2 * self.n]) * self.unit
        return d

    def multipliers(self) -> Array:
        """Return (m,) the conditions' multipliers."""
        found: Array = np.maximum(np.asarray(self._highs.getSolution().row_dual)[self.first :], 0.0)
        return found

    def cornered(self, d: Array) -> Array:
        """Return the vertex d, in which what is zero or as large as any is exactly so."""
        both, t = self._at[: self.n] + self._at[self.n : 2 * self.n], self._at[2 * self.n] * self.unit
        capped = (np.abs(d) >= (1 - TOLERANCE) * t) & (self.first > 0)
        return np.asarray(np.where(capped, np.sign(d) * t, np.where(both > 0, d, 0.0)))

    def _columns(self, cost: Array) -> None:
        empty = (np.zeros(len(cost), np.int32), np.zeros(0, np.int32), np.zeros(0))
        self._highs.addCols(len(cost), cost, np.zeros(len(cost)), np.full(len(cost), np.inf), 0, *empty)

    def _rows(self, need: Array, start: Index, index: Index, value: Array) -> None:
        free = np.full(len(need), np.inf)
        narrow = start.astype(np.int32), index.astype(np.int32)
        self._highs.addRows(len(need), need, free, len(value), *narrow, value)
