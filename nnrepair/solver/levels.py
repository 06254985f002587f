"""An interior point that rows join on the way: at a large gap first, where further rows cost few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from nnrepair.solver.conditions import ROW_TOLERANCE, Conditions
from nnrepair.solver.norms import Array
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.solver.rounds import Rounds, worst
from nnrepair.solver.solution import Solution

#: Gaps at which further rows are looked for, before the last one.
LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)
#: New rows of one round, where fewer are in use.
FEW = 700
#: Rounds of new rows after the gap was closed.
MAX_ROUNDS = 200


class Program(Protocol):
    """An interior point for one set of rows, whose needs are of the size of one."""

    conditions: Conditions
    gap: float

    @property
    def d(self) -> Array:
        """The change, (n,)."""

    def run(self, gap: float, missed: float, tick: Callable[[], None]) -> int:
        """Step until the relative gap and the size of missed rows are small; return the steps taken."""

    def join(self, more: Conditions) -> None:
        """Go on with further rows."""

    def tidied(self, stats: dict[str, Any]) -> Solution:
        """Return the point, or the one of simple structure that it is near."""


def by_levels(
    program: Program,
    unit: float,
    rounds: Rounds,
    instead: Callable[[Conditions, Conditions], Solution | None] = lambda using, more: None,
) -> Solution:
    """Return the smallest change.

    Args:
        program: rows in use, which some change satisfies, with needs divided by `unit`.
        unit: the size of the needs.
        rounds: of new rows.
        instead: another way's answer, asked with the rows in use and further ones.

    Raises:
        NotSolvedError: rounds ran out, or the numbers gave out.
    """
    stats, last = rounds.stats, rounds.gap / 100

    def tick() -> None:
        rounds.report(f"{program.conditions.m} rows, gap {program.gap:.0e}")

    for level in [*(level for level in LEVELS if level > 10 * last), *[last] * MAX_ROUNDS]:
        try:
            steps = program.run(level, max(1e-2 * level, ROW_TOLERANCE), tick)
        except NotSolvedError:
            if not program.gap <= 1e2 * rounds.gap:
                raise
            level, steps = last, 0
        stats["newton_steps"] += steps
        stats["rounds"] += 1
        solution = program.tidied(stats) if level == last else None
        d = program.d if solution is None else solution.d
        more = rounds.further(d * unit, program.conditions)
        if more is not None:
            other = instead(replace(program.conditions, need=program.conditions.need * unit), more)
            if other is not None:
                return other
            more = replace(more, need=more.need / unit)
            program.join(worst(more, d, max(FEW, program.conditions.m)))
        elif solution is not None:
            given = replace(solution.conditions, need=solution.conditions.need * unit)
            return Solution(d * unit, solution.y, solution.objective * unit, solution.lower_bound * unit, given, stats)
    raise NotSolvedError(f"{MAX_ROUNDS} rounds were not enough to find all rows that bind")


def better(tidy: Solution, plain: Solution) -> Solution:
    """Return the tidy one where it is no worse."""
    worse = tidy.objective > plain.objective + 1e-8 * abs(plain.objective)
    return plain if worse or tidy.missed > max(plain.missed, ROW_TOLERANCE) else tidy
