"""The smallest change of a few hundred weights under rows that are added one after another, by warm starts."""

from __future__ import annotations

import highspy
import numpy as np
from numpy.typing import NDArray

from nnrepair.solver import highs
from nnrepair.solver.conflict import smallest_conflict
from nnrepair.solver.quadratic import NotSolvedError

Array = NDArray[np.float64]


class Contradiction(Exception):
    """No change satisfies the rows; `tags` is a smallest set of tags whose rows contradict each other."""

    def __init__(self, tags: list[str]) -> None:
        super().__init__(f"the rows of {', '.join(tags)} contradict each other")
        self.tags = tags


class Program:
    """min cost . |d| + price . missed, rows . d >= need; `missed` (with the penalty `price`) for soft rows alone.

    Rows are added between solves and never leave; the dual simplex method goes on from the last answer.

    Args:
        size: of d.
        unit: rows are divided by it, so that the solver's tolerances mean the same whatever the network's scale.
        cost: (size,), of each entry of d; 1 if left out, which makes the change with the smallest l1 norm.
    """

    def __init__(self, size: int, unit: float, cost: Array | None = None) -> None:
        self.size, self.unit, self.soft = size, unit, 0
        self.cost = np.ones(size) if cost is None else cost
        self._hard: list[tuple[str, Array, Array]] = []
        self._solver = highs.solver(presolve="off")
        self._columns(np.concatenate([self.cost, self.cost]))

    def add(self, tag: str, rows: Array, need: Array, price: float | None = None) -> None:
        """Add rows (m, size) with what they need (m,); they may be missed at `price` per unit, or not at all."""
        columns, values = [np.arange(2 * self.size)] * len(need), list(np.hstack([rows, -rows]) / self.unit)
        if price is None:
            self._hard.append((tag, rows, need))
        else:
            first = 2 * self.size + self.soft
            self._columns(np.full(len(need), price * self.unit))
            self.soft += len(need)
            columns = [np.append(c, first + i) for i, c in enumerate(columns)]
            values = [np.append(v, 1.0) for v in values]
        filled = [(c[v != 0], v[v != 0]) for c, v in zip(columns, values, strict=True)]
        start = np.cumsum([0, *(len(c) for c, _ in filled)])
        index, value = (np.concatenate([pair[k] for pair in filled]) for k in (0, 1))
        status = self._solver.addRows(
            len(need),
            need / self.unit,
            np.full(len(need), np.inf),
            len(index),
            start[:-1].astype(np.int32),
            index.astype(np.int32),
            value,
        )
        if status != highspy.HighsStatus.kOk or np.abs(need / self.unit).max(initial=0.0) >= 1e15:
            raise NotSolvedError("rows of this program are out of the solver's range")

    def solve(self) -> Array:
        """Return the smallest change (size,).

        Raises:
            Contradiction: there is none. NotSolvedError: the program is too badly conditioned for float64.
        """
        d = self._solved()
        if d is None:
            raise Contradiction(self._smallest_conflict())
        return d

    def _solved(self) -> Array | None:
        """Return the smallest change, or None where the solver says that there is none."""
        for _ in range(2):
            self._solver.run()
            status = self._solver.getModelStatus()
            if status == highspy.HighsModelStatus.kInfeasible:
                return None
            if status == highspy.HighsModelStatus.kOptimal:
                break
            self._solver.clearSolver()  # rounding errors have piled up: once more from the start
        else:
            raise NotSolvedError(f"HiGHS could not solve a program: {status}")
        x: Array = np.asarray(self._solver.getSolution().col_value)
        d: Array = x[: self.size] - x[self.size : 2 * self.size]
        return d

    def without(self, ending: str) -> Program:
        """Return a new program with the hard rows whose tag does not end so."""
        rest = Program(self.size, self.unit, self.cost)
        for tag, rows, need in self._hard:
            if not tag.endswith(ending):
                rest.add(tag, rows, need)
        return rest

    def _columns(self, cost: Array) -> None:
        none = np.zeros(0)
        empty = (np.zeros(len(cost), np.int32), np.zeros(0, np.int32), none)
        self._solver.addCols(len(cost), cost, np.zeros(len(cost)), np.full(len(cost), np.inf), 0, *empty)

    def _smallest_conflict(self) -> list[str]:
        """Return a smallest set of tags that cannot hold together: dropping any of them would help."""

        def contradict(tags: list[str]) -> list[str] | None:
            trial = Program(self.size, self.unit)
            for tag, rows, need in self._hard:
                if tag in tags:
                    trial.add(tag, rows, need)
            return tags if trial._solved() is None else None

        return smallest_conflict(list(dict.fromkeys(tag for tag, _, _ in self._hard)), contradict)[0]
