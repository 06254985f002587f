"""The best change of a layer in which outputs are affine: the caller's own program, with rows on demand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.methods.minimal_norm.own.program import Answer, Contradiction, Program
from nnrepair.solver.conditions import Conditions
from nnrepair.solver.conflict import smallest_conflict
from nnrepair.solver.minnorm import MAX_ROUNDS
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.solver.rows import Array

#: Programs that are solved, at most, to find the edits that contradict the constraints.
SOUGHT = 50


class Clash(Exception):
    """The caller's constraints and these edits contradict each other.

    Attributes:
        edits: which.
        with_locality: whether they do so only beside kept points.
        smallest: whether all of them are known to be needed for it.
    """

    def __init__(self, edits: list[int], with_locality: bool, smallest: bool) -> None:
        super().__init__(f"the constraints and edits {edits} contradict each other")
        self.edits, self.with_locality, self.smallest = edits, with_locality, smallest


@dataclass
class OwnExactRepair:
    """The repair of one layer.

    Attributes:
        exact: finds the conditions that a change misses; of the l2 norm.
        program: objective and side conditions.
        stats: figures of the repair, in the end.
    """

    exact: ExactRepair
    program: Program
    stats: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Array:
        """Return the change (n,).

        The smallest change in the l2 norm finds most of the rows that matter; it needs no cvxpy.

        Raises:
            Infeasible: the edits, or edits and locality set, contradict each other, whatever the constraints.
            Clash: they contradict the constraints.
            InvalidInput: the constraints contradict each other, or the objective has no minimum.
            NotSolvedError: a solver gave up.
        """
        demands = self.exact.demands
        conditions = self.exact.run().conditions
        self.stats["rounds"] = 0
        if any(demand.soft for demand in demands):  # as for the norms: as dear as the dearest edit
            hard = np.flatnonzero(np.isinf(conditions.cap))
            which = [k for k, demand in enumerate(demands) if not demand.soft]
            answer, alone = self._rounds(conditions.take(hard), which, np.inf)
            price = float(answer.multipliers[alone.tag[:, 0] == 0].max(initial=0.0))
        else:
            price = np.inf
        answer, conditions = self._rounds(conditions, list(range(len(demands))), price)
        d = self.program.cleaned(answer.d, conditions)
        self.stats |= {
            "rows": conditions.m,
            "solver": "HiGHS" if self.program.cornered else "Clarabel",
            "solved": answer.exact,
        }
        return d

    def _rounds(self, conditions: Conditions, which: list[int], price: float) -> tuple[Answer, Conditions]:
        separate, corner = self.exact.separation(which), False
        for _ in range(MAX_ROUNDS):
            conditions = replace(conditions, cap=np.where(np.isfinite(conditions.cap), price, np.inf))
            try:
                answer = self.program.solve(conditions, corner=corner)
            except Contradiction:
                raise self._clash(conditions) from None
            self.stats["rounds"] += 1
            more = separate(answer.d, conditions)
            if more is None and (corner or not self.program.cornered):
                return answer, conditions
            corner = corner or more is None
            conditions = conditions if more is None else conditions.joined(more)
            self.exact.deadline.check(f"{conditions.m} rows")
        raise NotSolvedError(f"{MAX_ROUNDS} rounds were not enough to find all rows that bind")

    def _clash(self, conditions: Conditions) -> Clash:
        """Return why there is no change, with the edits that are to blame, as few as can be found."""
        of_edits = conditions.tag[:, 0] == 0
        edits: list[int] = list(dict.fromkeys(conditions.tag[of_edits, 1].tolist()))
        with_locality = self.program.feasible(conditions.take(np.flatnonzero(of_edits)))
        others = np.flatnonzero(~of_edits & np.isinf(conditions.cap)) if with_locality else np.zeros(0, np.int64)

        programs = count()

        def contradict(some: list[int]) -> list[int] | None:
            mine = np.flatnonzero(of_edits & np.isin(conditions.tag[:, 1], some))
            feasible = self.program.feasible(conditions.take(np.concatenate([mine, others])))
            return None if feasible else some

        found, smallest = smallest_conflict(edits, contradict, lambda: next(programs) >= SOUGHT)
        return Clash(sorted(found), with_locality, smallest)
