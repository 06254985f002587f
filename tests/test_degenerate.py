"""Programs that rounding spoils: nearly dependent rows, rows of all sizes, rows of zeros, contradictions.

The answers are certified by weak duality in exact fractions, or compared with another solver where it can still be
trusted: with the rows brought to one length, or without those that say nothing.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import min_norm_cvxpy

from nnrepair.solver import minnorm, norms
from nnrepair.solver.minnorm import Conditions, Infeasible
from nnrepair.solver.quadratic import NotSolvedError, nnqp
from nnrepair.solver.rows import Dense, Rows

quick = settings(deadline=None, derandomize=True, max_examples=25)
NORMS = ("l1", "linf", "l2", "mean+max")
TIGHT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
Array = Any


def conditions_of(G: Array, h: Array) -> Conditions:
    tag = np.stack([np.zeros(len(h), int), np.arange(len(h)), np.zeros(len(h), int)], 1)
    return Conditions(Rows((Dense(G),)), h, np.full(len(h), np.inf), tag)


def solved(G: Array, h: Array, name: str) -> minnorm.Solution:
    everything = conditions_of(G, h)
    lengths = np.where((lengths := everything.rows.lengths()) > 0, lengths, 1.0)

    def separate(d: Array, using: Conditions) -> Conditions | None:
        """Give back the rows that were dropped for want of use."""
        wanted = (h - G @ d) / lengths > 1e-9 * (h / lengths).max()
        wanted[using.tag[:, 1]] = False
        return everything.take(np.flatnonzero(wanted)) if wanted.any() else None

    return minnorm.solve(everything, separate, norms.make(name, everything.rows))


def exact_bound(G: Array, h: Array, solution: minnorm.Solution, name: str) -> float:
    """Return h.y / dual_norm(G^T y) in exact fractions: no change with G d >= h is smaller, whoever found y >= 0."""
    assert (solution.y >= 0).all()
    which, y = solution.conditions.tag[:, 1], solution.y
    G, h = G[which], h[which]
    y, h = [Fraction(float(v)) for v in y], [Fraction(float(v)) for v in h]
    z = [abs(sum(y[r] * Fraction(float(G[r, j])) for r in range(len(y)))) for j in range(G.shape[1])]
    worth = sum((a * b for a, b in zip(h, y, strict=True)), Fraction(0))
    if name == "l2":
        return float(worth) / float(sum((v * v for v in z), Fraction(0))) ** 0.5
    if name == "mean+max":  # the dual of a sum of norms: how much must be shared out
        low, high = Fraction(0), sum(z)
        for _ in range(80):
            t = (low + high) / 2
            over = sum((max(v - t / len(z), Fraction(0)) for v in z), Fraction(0))
            low, high = (t, high) if over > t else (low, t)
        return float(worth / high)
    return float(worth / (max(z) if name == "l1" else sum(z)))


def missed(G: Array, h: Array, d: Array) -> float:
    """Return the largest miss of a row, each brought to length one, as a share of the largest need of such a row."""
    lengths = np.where((lengths := np.linalg.norm(G, axis=1)) > 0, lengths, 1.0)
    return float(((h - G @ d) / lengths).max() / (h / lengths).max())


def certify(G: Array, h: Array, name: str, gap: float = 2e-6) -> minnorm.Solution:
    """Solve, and show that the answer is feasible and as small as can be, without trusting the solver."""
    solution = solved(G, h, name)
    bound = exact_bound(G, h, solution, name)
    assert missed(G, h, solution.d) <= 1e-7
    assert solution.lower_bound <= bound * (1 + 1e-9)
    assert solution.objective == pytest.approx(norms.make(name, Rows((Dense(G),))).value(solution.d), rel=1e-9)
    assert solution.objective <= bound * (1 + gap)
    return solution


def feasible(seed: int, m: int, n: int) -> tuple[Array, Array]:
    """Return rows and needs that a change of size one meets, some of them exactly."""
    rng = np.random.default_rng(seed)
    G, d = rng.normal(size=(m, n)), rng.normal(size=n)
    G *= np.sign(G @ d)[:, None]
    return G, G @ d - rng.choice([0.0, 0.2], size=m)


@pytest.mark.parametrize("name", NORMS)
@given(seed=st.integers(0, 9999), power=st.integers(4, 16), m=st.integers(1, 6))
@quick
def test_nearly_dependent_rows(name: str, seed: int, power: int, m: int) -> None:
    """Rows that differ in their last digits are one row, and ask for the largest of their needs."""
    G, h = feasible(seed, m, 9)
    rng = np.random.default_rng(seed)
    again = rng.integers(m, size=3)
    near = G[again] * (1 + 10.0**-power * rng.normal(size=(3, 9)))
    needs = h[again] - 10.0**-power * np.abs(near).sum(1)  # what a change of size one meets for certain
    certify(np.concatenate([G, near]), np.concatenate([h, needs]), name)


@pytest.mark.parametrize("name", NORMS)
@given(seed=st.integers(0, 9999), widest=st.integers(1, 12))
@quick
def test_rows_of_different_sizes(name: str, seed: int, widest: int) -> None:
    """A condition times a number is the same condition."""
    G, h = feasible(seed, 5, 8)
    optimum, _ = min_norm_cvxpy(G, h, name)
    by = 10.0 ** np.random.default_rng(seed).uniform(-widest, widest, size=5)
    solution = certify(G * by[:, None], h * by, name)
    assert solution.objective == pytest.approx(optimum, rel=1e-5)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("unit", [1e-150, 1e-40, 1e-20, 1e20, 1e40, 1e150])
def test_units_at_the_ends_of_the_range(name: str, unit: float) -> None:
    G, h = feasible(3, 5, 8)
    optimum, _ = min_norm_cvxpy(G, h, name)
    assert solved(G * unit, h, name).objective * unit == pytest.approx(optimum, rel=1e-5)
    assert solved(G, h * unit, name).objective / unit == pytest.approx(optimum, rel=1e-5)


@pytest.mark.parametrize("name", NORMS)
@given(seed=st.integers(0, 9999))
@settings(quick, max_examples=8)
def test_rows_of_zeros_say_nothing_or_cannot_be_met(name: str, seed: int) -> None:
    G, h = feasible(seed, 4, 7)
    optimum, _ = min_norm_cvxpy(G, h, name)
    wide = np.concatenate([G, np.zeros((2, 7))])
    assert solved(wide, np.append(h, [-1.0, 0.0]), name).objective == pytest.approx(optimum, rel=1e-5)
    for need in (1.0, 1e-9, 1e200):
        with pytest.raises(Infeasible) as caught:
            solved(wide, np.append(h, [-1.0, need]), name)
        assert caught.value.certain
        assert caught.value.conditions.tag[caught.value.ray > 0, 1].tolist() == [5]


@pytest.mark.parametrize("name", ["l1", "linf"])
@given(seed=st.integers(0, 9999), power=st.integers(1, 14))
@quick
def test_near_contradictions_are_solved_or_are_contradictions(name: str, seed: int, power: int) -> None:
    """A row and one that nearly says the opposite: what meets both is large, and for the last digits none is."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=6)
    G = np.stack([g, -g * (1 + 10.0**-power * rng.normal(size=6))])
    h = np.array([1.0, 0.5])
    try:
        solution = solved(G, h, name)
    except Infeasible as reason:
        size = least(G, h, name)
        alone = (h / np.linalg.norm(G, axis=1)).max()
        assert not reason.certain or size is None or size > 1e3 * alone
    except NotSolvedError:
        assert power > 5
    else:
        assert missed(G, h, solution.d) <= 1e-5
        assert solution.lower_bound <= exact_bound(G, h, solution, name) * (1 + 1e-9)
        size = least(G, h, name)
        assert size is None or power > 6 or solution.objective == pytest.approx(size, rel=1e-4)


def least(G: Array, h: Array, name: str) -> float | None:
    """Return the smallest change by HiGHS, of scipy; None where it finds none."""
    m, n = G.shape
    if name == "l1":
        found = scipy.optimize.linprog(np.ones(2 * n), np.hstack([-G, G]), -h, options=TIGHT)
    else:
        eye, ones = np.eye(n), np.ones((n, 1))
        A = np.block([[-G, np.zeros((m, 1))], [eye, -ones], [-eye, -ones]])
        bounds = [(None, None)] * n + [(0, None)]
        found = scipy.optimize.linprog(np.append(np.zeros(n), 1.0), A, np.append(-h, np.zeros(2 * n)), bounds=bounds)
    return float(found.fun) if found.status == 0 else None


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_numbers_that_are_none_are_not_solved(bad: float) -> None:
    G, h = feasible(0, 3, 4)
    G[1, 2] = bad
    with pytest.raises(NotSolvedError, match="too large for float64"):
        solved(G, h, "l2")
    with pytest.raises(NotSolvedError, match="out of range"):
        nnqp(np.full((2, 2), bad), np.ones(2))


def test_a_quadratic_program_that_is_not_convex_is_refused() -> None:
    with pytest.raises(NotSolvedError, match="positive semidefinite"):
        nnqp(np.array([[1.0, 5.0], [5.0, 1.0]]), np.array([1.0, 1.0]))


@given(seed=st.integers(0, 9999), m=st.integers(1, 10), capped=st.booleans(), sizes=st.integers(0, 6))
@settings(quick, max_examples=80)
def test_singular_quadratic_programs(seed: int, m: int, capped: bool, sizes: int) -> None:
    """Repeated rows, in any units: the answer satisfies the optimality conditions; they suffice in a convex program."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, 4))[rng.integers(m, size=m + 3)] * 10.0 ** rng.uniform(-sizes, sizes, size=(m + 3, 1))
    h = A @ rng.normal(size=4) - rng.choice([0.0, 0.1], size=m + 3) * np.linalg.norm(A, axis=1)
    cap = np.where(rng.random(m + 3) < 0.5, rng.uniform(0, 2, size=m + 3), np.inf) if capped else None
    y = nnqp(A @ A.T, h, cap)
    upper = np.full(m + 3, np.inf) if cap is None else cap
    assert (y >= 0).all()
    assert (y <= upper * (1 + 1e-12)).all()
    unit = np.linalg.norm(A, axis=1)
    slope, scale = (A @ (A.T @ y) - h) / unit, np.abs(h / unit).max()
    assert (slope[y == 0] >= -1e-6 * scale).all()
    assert (slope[y >= upper] <= 1e-6 * scale).all()
    assert (np.abs(slope[(y > 0) & (y < upper)]) <= 1e-6 * scale).all()
