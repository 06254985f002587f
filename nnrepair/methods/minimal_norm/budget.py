"""How many missed conditions become rows in one round of a repair that finds its rows on demand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nnrepair.solver.rows import Array, Index


@dataclass
class Budget:
    """A bound on new rows that grows while it leaves most missed conditions out.

    One condition of a point often settles its others (of a thousand classes, the worst one), so the first round takes
    few of each. Where it does not (of a thousand outputs that must each come near a target), later rounds take many.

    Attributes:
        each: new rows of one point, at most.
        total: new rows of all points, at most.
    """

    each: int = 3
    total: int = 1000
    _missed: int = field(default=0, init=False)
    _taken: int = field(default=0, init=False)

    def end_round(self) -> None:
        """Allow more in the next round if less than a quarter of what was missed was taken in this one."""
        if 4 * self._taken < self._missed:
            self.each, self.total = 8 * self.each, 2 * self.total
        self._missed = self._taken = 0

    def worst(self, missed: Array, tolerance: float) -> tuple[Index, Index]:
        """Return (point, condition) of the worst missed conditions, every point's worst before the second of any.

        Args:
            missed: (points, conditions) by how much each is missed.
            tolerance: what is missed by no more than this counts as satisfied.
        """
        if not (missed > tolerance).any():
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._missed += int(np.count_nonzero(missed > tolerance))
        point = np.flatnonzero(missed.max(1, initial=-np.inf) > tolerance)
        missed = missed[point]
        each = min(self.each, missed.shape[1])
        condition = np.argpartition(-missed, each - 1, axis=1)[:, :each] if each > 1 else missed.argmax(1)[:, None]
        size = np.take_along_axis(missed, condition, 1)
        order = np.argsort(-size, axis=1)
        condition, size = np.take_along_axis(condition, order, 1), np.take_along_axis(size, order, 1)
        row, rank = np.nonzero(size > tolerance)
        chosen = np.lexsort((-size[row, rank], rank))[: self.total]
        self._taken += len(chosen)
        found = point[row[chosen]], condition[row[chosen], rank[chosen]]
        order = np.lexsort((found[1], found[0]))
        return found[0][order], found[1][order]
