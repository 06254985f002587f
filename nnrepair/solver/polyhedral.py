"""The smallest change in a norm that is polyhedral: one interior point that rows join on the way, then a vertex."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg

from nnrepair.solver.conditions import ROW_TOLERANCE, Conditions, Separate
from nnrepair.solver.interior import Interior
from nnrepair.solver.norms import Array, Polyhedral
from nnrepair.solver.quadratic import NotSolvedError, size_of
from nnrepair.solver.simplex import pivoted, suits
from nnrepair.solver.solution import Solution, finished

#: Gaps at which further rows are looked for, before the last one.
LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)
#: New rows of one round, where fewer are in use.
FEW = 700
#: Rounds of new rows after the gap was closed.
MAX_ROUNDS = 200


def polyhedral(
    conditions: Conditions,
    separate: Separate,
    norm: Polyhedral,
    d: Array,
    y: Array,
    gap: float,
    scale: float,
    stats: dict[str, Any],
    report: Callable[[str], None],
) -> Solution:
    """Return the smallest change.

    Args:
        conditions: rows in use, which some change satisfies.
        separate: finds further rows.
        norm: what is minimised.
        d, y: a guess of the change and the multipliers.
        gap: the relative distance from the minimum at which to stop.
        scale: by what prices of further rows are divided.
        stats, report: counts, and who is told.

    Raises:
        NotSolvedError: rounds ran out, or the numbers gave out.
    """
    unit = size_of(conditions.need)  # numbers of the size of one
    conditions = replace(conditions, need=conditions.need / unit)
    program = Interior(conditions, norm, d / unit, y / max(1e-300, norm.dual(conditions.rows.rmatvec(y))))
    last = gap / 100

    def tick() -> None:
        report(f"{program.conditions.m} rows, gap {program.gap:.0e}")

    pivots = suits(conditions)  # where rows come to outnumber weights
    levels = [*(level for level in LEVELS if level > 10 * last), *[last] * MAX_ROUNDS]
    for level in levels:
        try:
            steps = program.run(level, max(1e-2 * level, ROW_TOLERANCE), tick)
        except NotSolvedError:
            if not program.gap <= 1e2 * gap:
                raise
            level, steps = last, 0
        stats["newton_steps"] += steps
        stats["rounds"] += 1
        solution = _tidied(program, stats) if level == last else None
        more = separate((program.at.d if solution is None else solution.d) * unit, program.conditions)
        if more is not None:
            if pivots and program.conditions.m + more.m > conditions.rows.n:
                pivots = False
                using = replace(program.conditions, need=program.conditions.need * unit)
                found = _pivoted(using, separate, norm, gap, scale, stats, report)
                if found is not None:
                    return found
            more = replace(more.priced(scale), need=more.need / unit)
            program.join(worst(more, program.at.d if solution is None else solution.d, max(FEW, program.conditions.m)))
        elif solution is not None:
            given = replace(solution.conditions, need=solution.conditions.need * unit)
            sizes = solution.d * unit, solution.y, solution.objective * unit, solution.lower_bound * unit
            return Solution(*sizes, given, stats)
    raise NotSolvedError(f"{MAX_ROUNDS} rounds were not enough to find all rows that bind")


def _pivoted(
    using: Conditions,
    separate: Separate,
    norm: Polyhedral,
    gap: float,
    scale: float,
    stats: dict[str, Any],
    report: Callable[[str], None],
) -> Solution | None:
    """Return the smallest change by pivots, or None where rounding spoils them: an interior point comes nearer."""
    try:
        found = pivoted(using, separate, norm, scale, stats, report)
    except NotSolvedError:
        return None
    return found if found.gap <= gap and found.missed <= ROW_TOLERANCE else None


def worst(more: Conditions, d: Array, most: int) -> Conditions:
    """Return the rows that d misses by most: what the others ask for is often settled with them."""
    if more.m <= most:
        return more
    return more.take(np.sort(np.argsort(more.rows.matvec(d) - more.need)[:most]))


def _tidied(program: Interior, stats: dict[str, Any]) -> Solution:
    """Return the point, or where it is no worse the vertex that it is near, which has exact zeros and caps."""
    at, conditions, norm = program.at, program.conditions, program.norm
    plain = finished(conditions, norm, at.d, at.y, stats)
    vertex = _vertex(program)
    if vertex is None:
        return plain
    tidy = finished(conditions, norm, vertex, at.y, stats)
    worse = tidy.objective > plain.objective + 1e-8 * abs(plain.objective)
    return plain if worse or tidy.missed > max(plain.missed, ROW_TOLERANCE) else tidy


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
