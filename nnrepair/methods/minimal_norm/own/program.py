"""The convex program: an objective and side conditions of the caller's own, under rows about edits and kept points."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods.minimal_norm.own.entries import Entries
from nnrepair.methods.minimal_norm.own.functions import Change, Own, constraints_of, cvxpy, objective_of
from nnrepair.solver.conditions import Conditions
from nnrepair.solver.quadratic import NotSolvedError, size_of
from nnrepair.solver.rows import Array, Block, Factored

#: Numbers that are not zero in the rows of one program, at most: cvxpy and its solver keep several copies of them.
LARGEST = 20_000_000
#: Linear programs with more of them are not solved to a corner: that takes much longer than to solve them.
CORNER = 2_000_000
#: Entries below these shares of the largest are set to zero, if nothing suffers.
NEGLIGIBLE = (1e-5, 1e-6, 1e-7)
#: What may be lost by that: a share of the objective, of what the rows need, and of the side conditions' unit.
HARMLESS = 1e-7


class Contradiction(Exception):
    """Some changes satisfy the side conditions, but none the rows too."""


@dataclass(frozen=True)
class Answer:
    """A solved program.

    Attributes:
        d: (n,) the change.
        value: of the objective.
        multipliers: (m,) of the rows.
        exact: whether the solver reached its tolerance.
    """

    d: Array
    value: float
    multipliers: Array
    exact: bool


class Program:
    """What a caller wants of the change of some parameters.

    Args:
        line: the parameters.
        objective, constraints: see `MinimalNorm`; called once.

    Attributes:
        entries: what single entries of the change must be.
        free: parameters of which neither objective nor constraints say anything.
        alone: whether there are no other variables than the change's.
        cornered: whether the last program was a linear one, and small enough to be solved to a corner.

    Raises:
        InvalidInput: what they return is not convex, or names other parameters.
    """

    def __init__(self, line: Linearization, objective: Own, constraints: Own | None) -> None:
        self._cp = cp = cvxpy()
        shapes = {name: tuple(p.shape) for name, p in line.parameters.items()}
        self.change = Change({name: cp.Variable(shape, name=name) for name, shape in shapes.items()})
        self.n = sum(variable.size for variable in self.change.values())
        where = line.unflatten(np.arange(self.n, dtype=np.float64))
        self._at = {n: where[n].cpu().numpy().astype(np.int64).ravel(order="F") for n in self.change}
        self._objective = objective_of(objective, self.change)
        self._constraints = constraints_of(constraints, self.change)
        said = {v for one in (self._objective, *self._constraints) for v in one.variables()}
        self.alone = not said - set(self.change.values())
        self.free = [name for name, variable in self.change.items() if variable not in said]
        positions = {variable: self._at[name] for name, variable in self.change.items()}
        self.entries = Entries.of(self._constraints, positions, self.n)
        self.cornered = False

    def solve(
        self, conditions: Conditions | None, near: tuple[Array, float] | None = None, corner: bool = False
    ) -> Answer:
        """Return the best change under rows; those with a finite cap may be missed at that price.

        Args:
            conditions: rows.
            near: a change, and how far from it no entry may be.
            corner: whether a linear program's answer is to lie in a corner, where most bounds hold exactly.

        Raises:
            Contradiction: there is none.
            InvalidInput: the constraints contradict each other, the objective has no minimum, or there are too many
                numbers.
            NotSolvedError: the solver gave up.
        """
        cp, constraints = self._cp, list(self._constraints)
        met, price, by = self._met(conditions)
        if near is not None:
            center, radius = near
            constraints += [cp.abs(v - self._shaped(center, n)) <= radius for n, v in self.change.items()]
        problem = cp.Problem(cp.Minimize(self._objective + price), met + constraints)
        numbers = 0 if conditions is None else _numbers(conditions.rows.blocks)
        self.cornered = numbers <= CORNER and bool(problem.is_lp())
        self._run(problem, bool(met), cp.SCIPY if corner and self.cornered else cp.CLARABEL)
        multipliers = np.asarray(met[0].dual_value, np.float64).ravel() * by if met else by
        return Answer(self._flat(), float(problem.value), multipliers, problem.status == cp.OPTIMAL)

    def feasible(self, conditions: Conditions) -> bool:
        """Return whether some change satisfies the side conditions and the hard rows."""
        met, _, _ = self._met(conditions)
        try:
            self._run(self._cp.Problem(self._cp.Minimize(0), met + self._constraints), bool(met))
        except Contradiction:
            return False
        return True

    def _met(self, conditions: Conditions | None) -> tuple[list[Any], Any, Array]:
        """Return rows as constraints (none or one), what missing the soft ones costs, and what they are scaled by."""
        if conditions is None or conditions.m == 0:
            return [], 0.0, np.zeros(0)
        scaled = conditions.normalised()
        assert scaled.by is not None
        matrix = _sparse(scaled.rows.blocks)
        moved = sum(matrix[:, self._at[n]] @ self._cp.vec(v, order="F") for n, v in self.change.items())
        soft = np.flatnonzero(np.isfinite(scaled.cap))
        if len(soft) == 0:
            return [moved >= scaled.need], 0.0, scaled.by
        missed = self._cp.Variable(len(soft), nonneg=True)
        spread = scipy.sparse.csr_array((np.ones(len(soft)), (soft, np.arange(len(soft)))), (scaled.m, len(soft)))
        return [moved + spread @ missed >= scaled.need], scaled.cap[soft] @ missed, scaled.by

    def _run(self, problem: Any, with_rows: bool, solver: str = "CLARABEL") -> None:
        cp = self._cp
        how = {"scipy_options": {"method": "highs-ipm"}} if solver == cp.SCIPY else {}  # HiGHS, without its greeting
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an answer may be inaccurate: `exact` says so
                problem.solve(solver=solver, canon_backend=cp.SCIPY_CANON_BACKEND, **how)
        except cp.SolverError as error:
            raise NotSolvedError(f"{solver} gave up: {error}") from error
        if problem.status == cp.INFEASIBLE:
            if with_rows:
                self._run(cp.Problem(cp.Minimize(0), self._constraints), False)
                raise Contradiction
            raise InvalidInput("The constraints contradict each other: no change satisfies them, edits or not.")
        if problem.status == cp.UNBOUNDED:
            raise InvalidInput(
                "The objective has no minimum under the constraints and the edits: it falls without end. Minimise "
                "something that cannot (a norm, a sum of squares), or add bounds to constraints."
            )
        if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            raise NotSolvedError(f"{solver} ended with {problem.status}")

    def nearest(self, d: Array) -> Array:
        """Return the change that satisfies the side conditions and is nearest to one."""
        if not self._constraints:
            return d
        cp = self._cp
        away = sum(cp.sum_squares(v - self._shaped(d, n)) for n, v in self.change.items())
        self._run(cp.Problem(cp.Minimize(away), self._constraints), False)
        return self.entries.met(self._flat())

    def value(self, d: Array) -> float:
        """Return the objective at a change."""
        self._set(d)
        return float(self._objective.value)

    def missed(self, d: Array) -> float:
        """Return by how much a change misses the side conditions at most."""
        self._set(d)
        return max((float(np.max(one.violation(), initial=0.0)) for one in self._constraints), default=0.0)

    def cleaned(self, d: Array, conditions: Conditions) -> Array:
        """Return a change with bounds met exactly, and zeros for what the solver left of zeros, if nothing suffers."""
        d = self.entries.met(d)
        value, missed = self.value(d), self.missed(d)
        slack, unit = conditions.rows.matvec(d) - conditions.need, HARMLESS * size_of(conditions.need)
        for share in NEGLIGIBLE:
            tried = self.entries.met(np.where(np.abs(d) < share * np.abs(d).max(initial=0.0), 0.0, d))
            worse = self.value(tried) - value > HARMLESS * abs(value) or self.missed(tried) > missed + HARMLESS
            lost = conditions.rows.matvec(tried) - conditions.need < np.minimum(slack, 0.0) - unit
            if not worse and not lost.any():
                return tried
        return d

    def rounded(self, d: Array, start: Mapping[str, Tensor]) -> Array:
        """Return the change near d that weights of their own dtype make, and with which they meet all bounds.

        Args:
            d: (n,) the change.
            start: what it is added to, by parameter name, in the dtype in which the sum is kept.
        """
        found = np.zeros_like(d)
        for name, where in self._at.items():
            own = start[name].detach().cpu()
            flat = own.permute(*reversed(range(own.ndim))).flatten()  # the first axis fastest
            found[where] = self.entries.rounded(d, flat, where)
        return found

    def _shaped(self, d: Array, name: str) -> Array:
        return d[self._at[name]].reshape(self.change[name].shape, order="F")

    def _set(self, d: Array) -> None:
        for name, variable in self.change.items():
            variable.value = self._shaped(d, name)

    def _flat(self) -> Array:
        d = np.zeros(self.n)
        for name, variable in self.change.items():
            if variable.value is not None:  # a parameter that is nowhere in the program stays
                d[self._at[name]] = variable.value.ravel(order="F")
        return d


def _sparse(blocks: Sequence[Block]) -> Any:
    """Return rows as one sparse matrix (csc), which has as many numbers as the rows reach weights.

    Raises:
        InvalidInput: it has too many.
    """
    numbers = _numbers(blocks)
    if numbers > LARGEST:
        raise InvalidInput(
            f"An objective of your own takes a program of at most {LARGEST:,} numbers, and the conditions found so far "
            f"have {numbers:,}: choose a smaller layer or fewer edits, or a built-in norm without constraints."
        )
    return scipy.sparse.hstack([_matrix(block) for block in blocks], format="csc")


def _numbers(blocks: Sequence[Block]) -> int:
    """Return how many numbers the rows have, those that are zero in a map's inputs too."""
    found = 0
    for block in blocks:
        once = isinstance(block, Factored) and block.delta.shape[1] == 1
        found += int(np.count_nonzero(block.delta)) * block.inp if once else block.m * block.n  # type: ignore[union-attr]
    return found


def _matrix(block: Block) -> Any:
    if not isinstance(block, Factored):
        return scipy.sparse.csr_array(block.rows)
    if block.delta.shape[1] > 1:
        return scipy.sparse.csr_array(block.dense(slice(None)).reshape(block.m, block.n))
    row, output = np.nonzero(block.delta[:, 0])
    data = block.delta[row, 0, output][:, None] * block.inputs[block.point[row], 0]
    column = output[:, None] * block.inp + np.arange(block.inp)
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=block.m))]) * block.inp
    found = scipy.sparse.csr_array((data.ravel(), column.ravel(), starts), shape=(block.m, block.n))
    found.eliminate_zeros()
    return found
