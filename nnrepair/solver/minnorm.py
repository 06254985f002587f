"""The heart: min norm(d) subject to G d >= h, with rows and columns on demand and a duality-gap certificate.

Two stages, the first a start of the second:

1. *Euclidean norm.* The dual is a non-negative quadratic program on the Gram matrix G G^T of the rows in use. The
   network is run on every edit and the whole locality set, the most violated rows join, until none is left; first in
   the coordinates of a metric, where there is one. This is already the answer for the norms "l2" and "drift".
2. *Polyhedral norms*: an interior point over all weights, which further rows join (`polyhedral`). *Nuclear norm*: the
   same over positive semidefinite matrices (`spectral`).

Whatever the stage, y >= 0 gives the lower bound `h.y / dual_norm(G^T y)`, so the gap that is reported is a proof.
Measured against the alternatives: see docs/how-minimal.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnrepair.solver.conditions import ROW_TOLERANCE as ROW_TOLERANCE
from nnrepair.solver.conditions import Conditions as Conditions
from nnrepair.solver.conditions import Infeasible as Infeasible
from nnrepair.solver.conditions import Separate as Separate
from nnrepair.solver.euclidean import euclidean as euclidean
from nnrepair.solver.metric import Metric
from nnrepair.solver.norms import Array, Euclidean, Nuclear, Polyhedral
from nnrepair.solver.polyhedral import polyhedral
from nnrepair.solver.quadratic import NotSolvedError, size_of
from nnrepair.solver.quadratic import nnqp as nnqp
from nnrepair.solver.rounds import Rounds, worst
from nnrepair.solver.simplex import pivoted, suits
from nnrepair.solver.solution import Solution as Solution
from nnrepair.solver.solution import judged, price
from nnrepair.solver.spectral import nuclear

#: Bound on the rounds of each stage.
MAX_ROUNDS = 200
#: New rows of a round that are not too many, and that are, but for half as many as are in use.
FEW, MANY = 300, 3000


def solve(
    first: Conditions,
    separate: Separate,
    norm: Euclidean | Polyhedral | Nuclear,
    *,
    gap: float = 1e-6,
    report: Callable[[str], None] = lambda text: None,
    metric: Metric | None = None,
) -> Solution:
    """Return the smallest change that satisfies all rows, those in `first` and those that `separate` finds.

    Args:
        first: rows to start from, at least one.
        separate: finds violated rows among all others.
        norm: what "small" means.
        gap: the relative distance from the minimum at which to stop.
        report: called with a line of progress before each factorisation; what it raises ends the work.
        metric: coordinates in which to look for the first rows; the weights' own where it is not given. It does not
            change the answer.

    Returns:
        The change, with a gap that is larger than asked for where the numbers gave out on the way.

    Raises:
        Infeasible: rows in use contradict each other.
        NotSolvedError: the numbers gave out before any change was found.
    """

    def more(d: Array, using: Conditions) -> Conditions | None:
        found = separate(d, using)
        return None if found is None else found.normalised()

    found = _Solver(more, norm, gap, report, metric).solve(first.normalised())
    by = found.conditions.by
    return replace(found, y=found.y if by is None else found.y * by, conditions=found.conditions.as_given())


@dataclass
class _Solver:
    """The stages, for rows of length one."""

    separate: Separate
    norm: Euclidean | Polyhedral | Nuclear
    gap: float
    report: Callable[[str], None]
    metric: Metric | None = None
    stats: dict[str, Any] = field(default_factory=lambda: {"rounds": 0, "newton_steps": 0})

    def solve(self, first: Conditions) -> Solution:
        conditions, d, y = self._euclidean(first)
        norm = self.norm
        if isinstance(norm, Euclidean) and self.metric is not None:
            self.metric = None
            conditions, d, y = self._euclidean(_keep_busy(conditions, y, d)[0])
        if isinstance(norm, Euclidean) or not d.any():
            return _euclidean_solution(conditions, d, y, self.stats)
        scale = norm.dual(d)
        conditions, y = conditions.priced(scale), y / scale
        least = judged(conditions, norm, d, y, self.stats)  # in case that nothing better comes of it
        try:
            busy, prices = _keep_busy(conditions, y, d)
            rounds = Rounds(self.separate, self.gap, scale, self.stats, self.report)
            if isinstance(norm, Polyhedral):
                found = self._polyhedral(norm, busy, d, prices, rounds)
            else:
                found = nuclear(busy, norm, d, prices, rounds)
        except NotSolvedError:
            return least
        feasible = found.missed <= max(10 * ROW_TOLERANCE, least.missed)
        return found if feasible and (found.gap <= self.gap or found.objective <= least.objective) else least

    def _euclidean(self, conditions: Conditions) -> tuple[Conditions, Array, Array]:
        """Return the rows that matter, the smallest Euclidean change and its multipliers."""
        free = np.ones(conditions.m, bool)
        # Where edits ask for much less than there are weights, no more rows than weights are soon enough.
        small = 2 * conditions.m < conditions.rows.n and bool(np.isinf(conditions.cap).all())
        for _ in range(MAX_ROUNDS):
            y, d = self._shortest(conditions, free, rough=True)
            self.stats["rounds"] += 1
            more = self.separate(d, conditions)
            if more is None:
                y, d = self._shortest(conditions, free, rough=False)
                more = self.separate(d, conditions)
            if more is None:
                return conditions, d, y
            # The minimum can only grow, so a row that is dropped now and needed again later makes no cycle.
            few = more.m < conditions.m // 4  # while many are missing, what is slack now is soon needed again
            if small or few or not conditions.rows.n < conditions.m < 10 * conditions.rows.n:
                conditions, y = _keep_busy(conditions, y, d)
            if small:
                most = max(conditions.rows.n - conditions.m, conditions.rows.n // 4, FEW)
                more = worst(more, d, min(most, max(MANY, conditions.m // 2)))
            conditions, free = conditions.joined(more), np.concatenate([y > 0, np.ones(more.m, bool)])
        raise NotSolvedError(f"{MAX_ROUNDS} rounds were not enough to find all rows that bind")

    def _shortest(self, conditions: Conditions, free: NDArray[np.bool_], rough: bool) -> tuple[Array, Array]:
        """Return (y, d): the change that is smallest in the metric's coordinates, and its multipliers."""

        def tick() -> None:
            self.report(f"{conditions.m} rows")

        if self.metric is None:
            y = euclidean(conditions, free, rough=rough, tick=tick)
            return y, conditions.rows.rmatvec(y)
        rows = self.metric.whiten(conditions.rows)
        white = replace(conditions, rows=rows).normalised()
        assert white.by is not None
        try:
            y = euclidean(white, free, rough=rough, tick=tick) * white.by
        except Infeasible as reason:
            ray = reason.ray * white.by
            raise Infeasible(conditions, ray / float(ray.max())) from None
        return y, self.metric.unwhiten(rows.rmatvec(y), conditions.rows)

    def _polyhedral(self, norm: Polyhedral, conditions: Conditions, d: Array, y: Array, rounds: Rounds) -> Solution:
        """Return the answer of an interior point, or of pivots where rounding spoils that."""
        found: Solution | None = None
        try:
            found = polyhedral(conditions, norm, d, y, rounds)
        except NotSolvedError:
            if not suits(conditions):
                raise
        if found is not None and (self._reached(found) or not suits(conditions)):
            return found
        try:
            other = pivoted(conditions, norm, rounds)
        except NotSolvedError:
            if found is None:
                raise
            return found
        return other if found is None or self._reached(other) else found

    def _reached(self, solution: Solution) -> bool:
        """Whether the gap that was asked for was reached, and all rows are met."""
        return solution.gap <= self.gap and solution.missed <= 10 * ROW_TOLERANCE


def _euclidean_solution(conditions: Conditions, d: Array, y: Array, stats: dict[str, Any]) -> Solution:
    """Judge (d, y) by norm(d); with soft rows, by the penalised |d|^2 / 2 + cap.missed that was minimised."""
    size = float(np.linalg.norm(d))
    worth = float(conditions.need @ y)
    soft = np.isfinite(conditions.cap)
    if soft.any():
        objective, bound = size**2 / 2 + price(conditions, d), worth - size**2 / 2
        return Solution(d, y, objective, min(bound, objective), conditions, stats)
    return Solution(
        d, y / size if size > 0 else y, size, min(worth / size, size) if size > 0 else 0.0, conditions, stats
    )


def _keep_busy(conditions: Conditions, y: Array, d: Array) -> tuple[Conditions, Array]:
    """Drop the rows that neither bind nor come close: whichever matters later is found again."""
    slack = conditions.rows.matvec(d) - conditions.need
    busy = np.flatnonzero((y > 0) | (slack < 0.02 * size_of(conditions.need)))
    return conditions.take(busy), y[busy]
