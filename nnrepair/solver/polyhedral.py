"""The smallest change in a norm that is polyhedral: one interior point that rows join on the way, then a vertex."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg

from nnrepair.solver.conditions import ROW_TOLERANCE, Conditions
from nnrepair.solver.interior import Interior
from nnrepair.solver.levels import better, by_levels
from nnrepair.solver.norms import Array, Polyhedral
from nnrepair.solver.quadratic import NotSolvedError, size_of
from nnrepair.solver.rounds import Rounds
from nnrepair.solver.rows import Dense, Index, Rows
from nnrepair.solver.simplex import pivoted, suits
from nnrepair.solver.solution import Solution, finished, judged

#: Where l1 has so many times more weights than rows (or than `LEAST`), it begins with some of them, so many for each
#: row, and gives up after so many turns.
MANY, LEAST, PER_ROW, MAX_TURNS = 300, 50, 10, 30


def polyhedral(conditions: Conditions, norm: Polyhedral, d: Array, y: Array, rounds: Rounds) -> Solution:
    """Return the smallest change.

    Where l1 has far more weights than rows, all but a few of them end as zeros: it starts with those of the largest
    dual slopes, and further ones join where a slope is too large.

    Args:
        conditions: rows in use, which some change satisfies.
        norm: what is minimised.
        d, y: a guess of the change and the multipliers.
        rounds: of new rows.

    Raises:
        NotSolvedError: rounds ran out, or the numbers gave out.
    """
    if norm.max_weight == 0 and conditions.rows.n > MANY * max(conditions.m, LEAST):
        try:
            return _on_some(conditions, norm, d, y, rounds)
        except NotSolvedError:  # some weights could not do it, all may
            pass
    return _on_all(conditions, norm, d, y, rounds)


def _on_some(conditions: Conditions, norm: Polyhedral, d: Array, y: Array, rounds: Rounds) -> Solution:
    """Return the smallest change, by weights that join where they are needed."""
    n, seen = conditions.rows.n, conditions
    count = min(n, PER_ROW * max(conditions.m, LEAST))
    chosen = np.sort(np.argsort(-np.abs(conditions.rows.rmatvec(y)))[:count])
    for _ in range(MAX_TURNS):

        def narrow(some: Conditions, chosen: Index = chosen) -> Conditions:
            return replace(some, rows=Rows((Dense(some.rows.columns(chosen)),)))

        def whole(some: Array, chosen: Index = chosen) -> Array:
            full = np.zeros(n)
            full[chosen] = some
            return full

        def further(some: Array, using: Conditions) -> Conditions | None:
            nonlocal seen
            more = rounds.separate(whole(some), using)
            if more is None:
                return None
            seen = seen.joined(more)
            return narrow(more)

        found = _on_all(narrow(conditions), norm, d[chosen], y, replace(rounds, separate=further))
        place = {tag: k for k, tag in enumerate(map(tuple, seen.tag.tolist()))}
        using = seen.take(np.array([place[tag] for tag in map(tuple, found.conditions.tag.tolist())]))
        conditions, d, y = replace(using, cap=found.conditions.cap), whole(found.d), found.y
        solution = judged(conditions, norm, d, y, rounds.stats)
        if solution.gap <= rounds.gap:
            return solution
        slope = np.abs(conditions.rows.rmatvec(y))
        slope[chosen] = 0.0
        steep = np.flatnonzero(slope > norm.sum_weight)
        steep = steep[np.argsort(-slope[steep])][: len(chosen)]
        if len(steep) == 0:
            return solution
        chosen = np.sort(np.append(chosen, steep))
    raise NotSolvedError(f"{MAX_TURNS} turns were not enough to find all weights that change")


def _on_all(conditions: Conditions, norm: Polyhedral, d: Array, y: Array, rounds: Rounds) -> Solution:
    """Return the smallest change, by all weights at once."""
    unit = size_of(conditions.need)  # numbers of the size of one
    given = replace(conditions, need=conditions.need / unit)
    program = Vertices(given, norm, d / unit, y / max(1e-300, norm.dual(conditions.rows.rmatvec(y))))
    pivots = suits(conditions)

    def instead(using: Conditions, more: Conditions) -> Solution | None:
        """Pivot, once, where rows come to outnumber weights; return None where rounding spoils it."""
        nonlocal pivots
        if not pivots or using.m + more.m <= using.rows.n:
            return None
        pivots = False
        try:
            found = pivoted(using, norm, rounds)
        except NotSolvedError:
            return None
        return found if found.gap <= rounds.gap and found.missed <= ROW_TOLERANCE else None

    return by_levels(program, unit, rounds, instead)


class Vertices(Interior):
    """The interior point, and the vertex that it is near, which has exact zeros and caps."""

    def tidied(self, stats: dict[str, Any]) -> Solution:
        """Return the point, or where it is no worse the vertex."""
        at, conditions, norm = self.at, self.conditions, self.norm
        plain = finished(conditions, norm, at.d, at.y, stats)
        vertex = _vertex(self)
        return plain if vertex is None else better(finished(conditions, norm, vertex, at.y, stats), plain)


def _vertex(program: Interior) -> Array | None:
    """Return the change that has zeros and caps where the point nearly has, and meets the rows that nearly bind."""
    at, conditions = program.at, program.conditions
    d, size = at.d, float(np.abs(at.d).max())
    p, q, s = (x / z for x, z in zip(at.x[:3], at.z[:3], strict=True))
    middle = size / (float(np.abs(np.concatenate(at.z[:2])).mean()) + 1e-300)
    if program.both:
        capped, zero = at.x[3] / at.z[3] < middle, (p < middle) & (q < middle)
    else:
        capped = (p < middle) | (q < middle) if program.capped else np.zeros(len(d), bool)
        zero = np.zeros(len(d), bool) if program.capped else (p < middle) & (q < middle)
    sign = np.where(capped & ~zero, np.sign(d), 0.0)
    free = np.flatnonzero(~capped & ~zero)
    binds = s < program.unit / (float(at.y.mean()) + 1e-300)
    binds[program.soft] &= at.x[-1] < at.x[2][program.soft] + 1e-6 * program.unit
    binding = np.flatnonzero(binds)
    if len(free) > 2 * len(binding) + 10 or len(binding) == 0:
        return None  # far from a vertex
    start = sign * at.t
    start[free] = d[free]
    rows = conditions.rows.take(binding)
    columns = rows.columns(free)
    if program.capped:
        columns = np.concatenate([columns, rows.matvec(sign)[:, None]], 1)
    if columns.shape[1] == 0:
        return None
    found = scipy.linalg.lstsq(
        columns, conditions.need[binding] - rows.matvec(start), lapack_driver="gelsy", check_finite=False
    )[0]
    if program.capped:
        start = start + sign * found[-1]
    start[free] += found[: len(free)]
    return np.asarray(start)
