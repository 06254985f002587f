"""Which edits cannot hold together, where no change of the chosen parameters satisfies them all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.solver.conflict import smallest_conflict
from nnrepair.solver.euclidean import euclidean
from nnrepair.solver.minnorm import Conditions, Infeasible
from nnrepair.solver.rows import Array, Index

#: Multipliers, as a share of the largest, from which on a row is part of a contradiction.
SHOWS = 1e-6
#: Up to so much work a conflict is made smaller, in multiplications of one factorisation per question.
EFFORT = 5e8


@dataclass(frozen=True)
class Conflict:
    """Edits that cannot hold together.

    Attributes:
        edits: which, ascending.
        with_locality: whether they could, were it not for the locality set, as far as there was time to see.
        smallest: whether dropping any of them is known to help.
    """

    edits: list[int]
    with_locality: bool
    smallest: bool


def conflict(reason: Infeasible, deadline: Deadline = NEVER) -> Conflict:
    """Return a small set of edits that cannot hold together.

    Only points whose multipliers show the contradiction are looked at. They are made fewer as long as that is cheap:
    a contradiction that takes as many rows as there are weights may need hundreds of edits.

    Args:
        reason: the contradiction.
        deadline: when to end, with what was found by then.
    """
    shown = np.flatnonzero(reason.ray > SHOWS * float(reason.ray.max()))
    search = _Search(reason.conditions.take(shown), deadline)
    edits = search.edits(search.rows, reason.ray[shown])
    others = np.flatnonzero(search.rows.tag[:, 0] != 0)
    alone = search.shown(edits, others[:0]) if len(others) else edits
    others = others if alone is None else others[:0]
    limit = search.spent + EFFORT
    found, smallest = smallest_conflict(
        alone or edits, lambda some: search.shown(some, others), lambda: search.spent > limit or deadline.passed
    )
    return Conflict(sorted(found), len(others) > 0, smallest)


@dataclass
class _Search:
    """Asks whether edits contradict each other, and adds up what that costs."""

    rows: Conditions
    deadline: Deadline
    spent: float = 0.0

    def shown(self, edits: list[int], others: Index) -> list[int] | None:
        """Return those of the edits that show a contradiction, with the other rows given; None without one, or time."""
        mine = np.flatnonzero((self.rows.tag[:, 0] == 0) & np.isin(self.rows.tag[:, 1], edits))
        some = self.rows.take(np.concatenate([mine, others]))
        self.spent += some.m * float(min(some.m, some.rows.n)) ** 2
        try:
            euclidean(
                some, rough=True, tick=lambda: self.deadline.check(f"{len(edits)} edits that contradict each other?")
            )
        except Infeasible as reason:
            return self.edits(some, reason.ray)
        except OutOfTime:
            pass
        return None

    def edits(self, rows: Conditions, ray: Array) -> list[int]:
        """Return the edits whose rows have multipliers, those with the smallest first."""
        share = np.bincount(rows.tag[:, 1], np.where(rows.tag[:, 0] == 0, ray, 0.0))
        return [int(k) for k in np.argsort(share, kind="stable") if share[k] > SHOWS * float(ray.max())]
