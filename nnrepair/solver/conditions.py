"""Rows with what they need: G d >= h, hard or at a price, and what it is called when they contradict each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nnrepair.solver.norms import Array
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.solver.rows import Index, Rows

#: Rows count as satisfied when they miss by less than this share of the largest need.
ROW_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Conditions:
    """Rows in use: G d >= h.

    Attributes:
        rows: G, (m, n).
        need: h, (m,).
        cap: (m,) the largest multiplier of each row: inf for a hard row, finite where missing the row by one unit
            costs that much.
        tag: (m, 3) what each row is: which demand, which point, which condition.
        by: (m,) what the rows were multiplied by, or None where they are as given.
    """

    rows: Rows
    need: Array
    cap: Array
    tag: Index
    by: Array | None = None

    @property
    def m(self) -> int:
        return len(self.need)

    def joined(self, other: Conditions) -> Conditions:
        return Conditions(
            self.rows.joined(other.rows),
            np.concatenate([self.need, other.need]),
            np.concatenate([self.cap, other.cap]),
            np.concatenate([self.tag, other.tag]),
            None if self.by is None or other.by is None else np.concatenate([self.by, other.by]),
        )

    def take(self, which: Index) -> Conditions:
        by = None if self.by is None else self.by[which]
        return Conditions(self.rows.take(which), self.need[which], self.cap[which], self.tag[which], by)

    def normalised(self) -> Conditions:
        """Return the same conditions with rows of length about one: those of other sizes would be lost in rounding.

        Lengths are powers of two, so that nothing is rounded on the way here and back.

        Raises:
            NotSolvedError: rows or needs that are not finite.
        """
        lengths = self.rows.lengths()
        if not (np.isfinite(lengths).all() and np.isfinite(self.need).all()):
            raise NotSolvedError("gradients or outputs of the model are too large for float64")
        by = np.exp2(-np.rint(np.log2(np.where(lengths > 0, lengths, 1.0))))
        return self._times(by, by)

    def as_given(self) -> Conditions:
        """Return the conditions that were `normalised`."""
        return self if self.by is None else self._times(1 / self.by, None)

    def _times(self, by: Array, now: Array | None) -> Conditions:
        return Conditions(self.rows.scaled(by), self.need * by, self.cap / by, self.tag, now)

    def priced(self, scale: float) -> Conditions:
        """Return the conditions with prices for a norm whose multipliers are smaller by `scale`."""
        return replace(self, cap=self.cap / scale)


#: Returns rows that a change violates and that are not in use yet, or None: (change, rows in use) -> rows.
Separate = Callable[[Array, Conditions], Conditions | None]


class Infeasible(Exception):
    """No change satisfies the rows. `ray` (m,) >= 0 shows it: G^T ray = 0 although h.ray > 0.

    The conditions are `normalised`, or as they were given to `euclidean`.
    """

    def __init__(self, conditions: Conditions, ray: Array) -> None:
        super().__init__(f"{np.count_nonzero(ray)} rows contradict each other")
        self.conditions = conditions
        self.ray = ray

    @property
    def certain(self) -> bool:
        """Whether the ray shows it: any change would have to be far larger than each row alone asks for."""
        rows, need = self.conditions.rows, self.conditions.need
        lengths = rows.lengths()
        alone = np.divide(need, lengths, out=np.zeros_like(need), where=lengths > 0)
        size = float(np.linalg.norm(rows.rmatvec(self.ray)))
        return float(need @ self.ray) > 1e6 * float(alone.max(initial=0.0)) * size
