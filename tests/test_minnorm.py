from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import min_norm_cvxpy, norm_cvxpy
from reference.min_norm import minimum

from nnrepair.errors import InvalidInput
from nnrepair.solver import minnorm, norms, polyhedral
from nnrepair.solver.metric import Metric
from nnrepair.solver.minnorm import Conditions, Infeasible
from nnrepair.solver.norms import METRICS, NAMES
from nnrepair.solver.rows import Dense, Factored, Rows

quick = settings(deadline=None, derandomize=True, max_examples=10)
PLAIN = [name for name in NAMES if name not in METRICS]  # those are "l2" in other coordinates


def conditions_of(rows: Rows, h: np.ndarray, cap: np.ndarray | None = None) -> Conditions:
    tag = np.stack([np.zeros(len(h), int), np.arange(len(h)), np.zeros(len(h), int)], 1)
    return Conditions(rows, h, np.full(len(h), np.inf) if cap is None else cap, tag)


def dense(rows: Rows) -> np.ndarray:
    return rows.columns(np.arange(rows.n))


def separate_from(everything: Conditions, at_a_time: int = 10**6) -> minnorm.Separate:
    """Hand out the most violated rows that are not in use."""

    def separate(d: np.ndarray, using: Conditions) -> Conditions | None:
        missed = everything.need - everything.rows.matvec(d)
        missed[using.tag[:, 1]] = -np.inf
        worst = np.argsort(-missed)[:at_a_time]
        worst = np.sort(worst[missed[worst] > 1e-9 * np.abs(everything.need).max()])
        return everything.take(worst) if len(worst) else None

    return separate


@st.composite
def systems(draw: Any, soft: bool = False) -> Conditions:
    """Feasible rows of one linear map with at least one that zero does not satisfy; ties and repetitions included."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    kind = draw(st.sampled_from(["normal", "integer", "repeated", "one point"]))
    m, out, inp = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    positions, points = draw(st.integers(1, 2)), 1 if kind == "one point" else draw(st.integers(1, 4))
    sizes = (m, positions, out), (points, positions, inp)
    if kind == "integer":
        delta, inputs = (rng.integers(-2, 3, size=s).astype(float) for s in sizes)
    else:
        delta, inputs = (rng.normal(size=s) for s in sizes)
    point = rng.integers(points, size=m)
    if kind == "repeated":
        delta[-1], point[-1] = delta[0], point[0]
    rows = Rows((Factored(delta, point, inputs),))
    reached = rows.matvec(rng.normal(size=rows.n))
    h = reached - rng.choice([0.0, 0.5], size=m)
    assume(h.max() > 0.1)
    cap = np.where(rng.random(m) < 0.5, rng.uniform(0.05, 2.0, size=m), np.inf) if soft else None
    return conditions_of(rows, h, cap)


def check(solution: minnorm.Solution, everything: Conditions, norm: norms.Norm, optimum: float) -> None:
    missed = everything.need - everything.rows.matvec(solution.d)
    assert missed.max() <= 1e-8 * np.abs(everything.need).max()
    assert solution.objective == pytest.approx(norm.value(solution.d), rel=1e-9)
    assert solution.objective == pytest.approx(optimum, rel=1e-5)
    assert solution.lower_bound <= optimum * (1 + 1e-7)
    assert solution.gap <= 1e-6
    # The multipliers prove the bound, without trusting the solver.
    assert (solution.y >= 0).all()
    z = solution.conditions.rows.rmatvec(solution.y)
    assert norm.dual(z) <= 1 + 1e-9
    assert solution.conditions.need @ solution.y == pytest.approx(solution.lower_bound, rel=1e-6)


@pytest.mark.parametrize("name", PLAIN)
@given(everything=systems())
@quick
def test_objective_is_the_optimum(name: str, everything: Conditions) -> None:
    rows = everything.rows
    norm = norms.make(name, rows)
    optimum, _ = min_norm_cvxpy(dense(rows), everything.need, name, rows.matrix_shape)
    check(minnorm.solve(everything, separate_from(everything), norm), everything, norm, optimum)


@pytest.mark.parametrize("name", PLAIN)
@given(everything=systems(), at_a_time=st.integers(1, 3))
@quick
def test_rows_on_demand_reach_the_same_optimum(name: str, everything: Conditions, at_a_time: int) -> None:
    first = everything.take(np.array([int(np.argmax(everything.need))]))
    norm = norms.make(name, everything.rows)
    optimum, _ = min_norm_cvxpy(dense(everything.rows), everything.need, name, everything.rows.matrix_shape)
    check(minnorm.solve(first, separate_from(everything, at_a_time), norm), everything, norm, optimum)


@pytest.mark.parametrize("both", [False, True], ids=["inputs", "inputs and outputs"])
@given(everything=systems(), seed=st.integers(0, 99))
@quick
def test_metrics_are_the_euclidean_norm_of_whitened_rows(both: bool, everything: Conditions, seed: int) -> None:
    rows = everything.rows
    block = rows.blocks[0]
    assert isinstance(block, Factored)
    rng = np.random.default_rng(seed)
    L, M = (np.tril(rng.normal(size=(k, k))) + 2 * np.eye(k) for k in (block.inp, block.out))
    metric = Metric([L], [M]) if both else Metric([L])
    white = conditions_of(metric.whiten(rows), everything.need)
    norm = norms.make("drift", rows)
    optimum, _ = min_norm_cvxpy(
        dense(rows), everything.need, "drift", metric=np.kron(M.T if both else np.eye(block.out), L.T)
    )
    solution = minnorm.solve(white, separate_from(white), norm)
    check(solution, white, norm, optimum)
    change = metric.unwhiten(solution.d, rows)
    assert np.allclose(metric.coordinates(change, rows), solution.d)
    assert (everything.need - rows.matvec(change)).max() <= 1e-8 * np.abs(everything.need).max()


@pytest.mark.parametrize("name", ["l1", "linf", "l2", "mean+max"])
@given(seed=st.integers(0, 9999))
@quick
def test_several_blocks(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = Factored(rng.normal(size=(6, 1, 3)), rng.integers(3, size=6), rng.normal(size=(3, 1, 4)))
    everything = conditions_of(Rows((a, Dense(rng.normal(size=(6, 5))))), rng.uniform(0.1, 1, size=6))
    norm = norms.make(name, everything.rows)
    optimum, _ = min_norm_cvxpy(dense(everything.rows), everything.need, name)
    check(minnorm.solve(everything, separate_from(everything), norm), everything, norm, optimum)


@pytest.mark.parametrize("name", ["l1", "linf", "mean+max", "nuclear"])
@pytest.mark.parametrize("shape", [(3, 16, 12), (30, 8, 5), (40, 4, 6)])  # wide, nearly square, many rows
def test_larger_systems(name: str, shape: tuple[int, int, int]) -> None:
    m, out, inp = shape
    rng = np.random.default_rng(5)
    delta, inputs, some = rng.normal(size=(m, 1, out)), rng.normal(size=(m, 1, inp)), rng.normal(size=out * inp)
    delta *= np.sign(Factored(delta, np.arange(m), inputs).matvec(some))[:, None, None]
    rows = Rows((Factored(delta, np.arange(m), inputs),))
    everything = conditions_of(rows, rows.matvec(some) - 0.3)
    norm = norms.make(name, rows)
    optimum, _ = min_norm_cvxpy(dense(rows), everything.need, name, (out, inp))
    first = everything.take(np.array([int(np.argmax(everything.need))]))
    check(minnorm.solve(first, separate_from(everything, 10), norm), everything, norm, optimum)


@given(everything=systems(soft=True))
@quick
def test_l1_with_weights_on_demand_is_l1(everything: Conditions) -> None:
    norm = norms.make("l1", everything.rows)
    plain = minnorm.solve(everything, separate_from(everything), norm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polyhedral, "MANY", 0)
        patch.setattr(polyhedral, "LEAST", 1)
        patch.setattr(polyhedral, "PER_ROW", 1)
        some = minnorm.solve(everything, separate_from(everything), norm)
    assert some.objective == pytest.approx(plain.objective, rel=1e-5, abs=1e-9)
    assert some.gap <= max(plain.gap, 1e-6)
    assert some.missed <= max(plain.missed, 1e-8)


def test_a_small_nuclear_norm_is_a_low_rank() -> None:
    rng = np.random.default_rng(3)
    m, out, inp = 12, 20, 30
    rows = Rows((Factored(rng.normal(size=(m, 1, out)), np.arange(m), rng.normal(size=(m, 1, inp))),))
    everything = conditions_of(rows, rng.uniform(0.1, 1, size=m))
    solution = minnorm.solve(everything, separate_from(everything), norms.make("nuclear", rows))
    size = np.linalg.svd(solution.d.reshape(out, inp), compute_uv=False)
    assert 1 <= (size > 1e-12 * size[0]).sum() <= 4  # r (r + 1) / 2 <= m for the smallest such rank
    assert solution.gap <= 1e-6
    assert solution.missed <= 1e-9


@pytest.mark.parametrize("seed", [396, 448])
def test_more_rows_than_weights_that_meet_in_a_corner(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, out, inp = rng.integers(2, 10), rng.integers(1, 6), rng.integers(1, 6)
    positions, points = rng.integers(1, 3), rng.integers(1, 5)
    delta, point = rng.normal(size=(m, positions, out)), rng.integers(points, size=m)
    rows = Rows((Factored(delta, point, rng.normal(size=(points, positions, inp))),))
    everything = conditions_of(rows, rows.matvec(rng.normal(size=rows.n)) - rng.choice([0.0, 0.5], size=m))
    norm = norms.make("nuclear", rows)
    optimum, _ = min_norm_cvxpy(dense(rows), everything.need, "nuclear", (int(out), int(inp)))
    check(minnorm.solve(everything, separate_from(everything), norm), everything, norm, optimum)


@pytest.mark.parametrize("name", PLAIN)
def test_units_do_not_matter(name: str) -> None:
    rng = np.random.default_rng(2)
    block = Factored(rng.normal(size=(6, 1, 3)), np.arange(6), rng.normal(size=(6, 1, 4)))
    h = rng.uniform(0.2, 1, size=6)
    plain = conditions_of(Rows((block,)), h)
    norm = norms.make(name, plain.rows)
    once = minnorm.solve(plain, separate_from(plain), norm)
    for unit in (1e-6, 1e6):
        scaled = conditions_of(Rows((Factored(block.delta * unit, block.point, block.inputs),)), h)
        solution = minnorm.solve(scaled, separate_from(scaled), norm)
        assert solution.objective * unit == pytest.approx(once.objective, rel=1e-5)
        small = conditions_of(Rows((block,)), h * unit)
        solution = minnorm.solve(small, separate_from(small), norm)
        assert solution.objective / unit == pytest.approx(once.objective, rel=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_rows_that_hold_already_need_no_change(name: str) -> None:
    rng = np.random.default_rng(2)
    block = Factored(rng.normal(size=(3, 1, 3)), np.arange(3), rng.normal(size=(3, 1, 4)))
    everything = conditions_of(Rows((block,)), np.array([-1.0, 0.0, -0.2]))
    solution = minnorm.solve(everything, separate_from(everything), norms.make(name, everything.rows))
    assert solution.objective == 0.0
    assert solution.gap == 0.0
    np.testing.assert_array_equal(solution.d, 0.0)


@pytest.mark.parametrize("name", PLAIN)
@given(seed=st.integers(0, 9999))
@settings(quick, max_examples=8)
def test_contradictions_are_infeasible_and_the_ray_shows_it(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n = 4, 12
    G = rng.normal(size=(m, n))
    G = np.concatenate([G, -(rng.uniform(0.2, 1, size=m) @ G)[None]])  # a positive combination of all is zero
    block = Factored(G.reshape(m + 1, 1, n), np.zeros(m + 1, int), np.ones((1, 1, 1)))
    everything = conditions_of(Rows((block,)), rng.uniform(0.5, 1, size=m + 1))
    with pytest.raises(Infeasible) as caught:
        minnorm.solve(everything, separate_from(everything), norms.make(name, everything.rows))
    using, ray = caught.value.conditions, caught.value.ray
    assert (ray >= 0).all()
    assert ray.max() == pytest.approx(1)
    # Any change that satisfied these rows would be larger than this; a feasible one has a size near 1.
    assert using.need @ ray > 1e4 * np.linalg.norm(using.rows.rmatvec(ray))


def test_a_row_that_nothing_moves_is_infeasible() -> None:
    rows = Rows((Dense(np.zeros((1, 4))),))
    with pytest.raises(Infeasible):
        minnorm.euclidean(conditions_of(rows, np.ones(1)))


@given(everything=systems(soft=True))
@settings(quick, max_examples=30)
def test_soft_rows_are_priced_against_the_squared_euclidean_norm(everything: Conditions) -> None:
    solution = minnorm.solve(everything, separate_from(everything), norms.make("l2", everything.rows))
    G, h, cap = dense(everything.rows), everything.need, everything.cap
    soft = np.isfinite(cap)

    d = cp.Variable(G.shape[1])
    price = cap[soft] @ cp.pos(h[soft] - G[soft] @ d) if soft.any() else 0.0
    optimum = minimum(cp.sum_squares(d) / 2 + price, [G[~soft] @ d >= h[~soft]] if (~soft).any() else [])
    missed = np.maximum(h - G @ solution.d, 0)
    got = solution.d @ solution.d / 2 + cap[soft] @ missed[soft]
    assert got == pytest.approx(optimum, rel=1e-5, abs=1e-9)
    assert missed[~soft].max(initial=0) <= 1e-8 * np.abs(h).max()


@pytest.mark.parametrize("name", ["l1", "linf", "mean+max", "nuclear"])
@given(everything=systems(soft=True))
@quick
def test_soft_rows_solve_the_penalised_problem(name: str, everything: Conditions) -> None:
    solution = minnorm.solve(everything, separate_from(everything), norms.make(name, everything.rows))
    using = solution.conditions  # its caps are in the norm's own unit
    hard, soft = np.isinf(everything.cap), np.isfinite(using.cap)
    scale = everything.cap[using.tag[soft, 1]] / using.cap[soft]
    scale = float(scale.mean()) if soft.any() else 1.0
    shape = everything.rows.matrix_shape
    optimum, _ = min_norm_cvxpy(dense(everything.rows), everything.need, name, shape, cap=everything.cap / scale)
    missed = everything.need - everything.rows.matvec(solution.d)
    assert missed[hard].max(initial=0) <= 1e-8 * np.abs(everything.need).max()
    assert solution.objective == pytest.approx(optimum, rel=1e-5)
    assert solution.lower_bound <= optimum * (1 + 1e-7)


@given(seed=st.integers(0, 9999), m=st.integers(1, 12), rank=st.integers(1, 12), capped=st.booleans())
@settings(quick, max_examples=60)
def test_nnqp_is_bounded_least_squares(seed: int, m: int, rank: int, capped: bool) -> None:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, rank))
    K = A @ A.T + 1e-3 * np.eye(m)
    h = rng.normal(size=m)
    cap = np.where(rng.random(m) < 0.7, rng.uniform(0, 0.5, size=m), np.inf) if capped else np.full(m, np.inf)
    y = minnorm.nnqp(K, h, cap if capped else None)
    L = np.linalg.cholesky(K)
    target = np.linalg.solve(L, h)
    if capped:
        cap = np.maximum(cap, 1e-9)  # the reference needs room between its bounds
        expected = scipy.optimize.lsq_linear(L.T, target, (np.zeros(m), cap), method="bvls", tol=1e-14).x
    else:
        expected, _ = scipy.optimize.nnls(L.T, target)

    def value(y: np.ndarray) -> float:
        return float(y @ K @ y / 2 - h @ y)

    assert (y >= 0).all()
    assert (y <= cap + 1e-9).all()
    assert value(y) == pytest.approx(value(expected), rel=1e-7, abs=1e-9)


def test_nnqp_with_nothing_wanted_is_zero() -> None:
    np.testing.assert_array_equal(minnorm.nnqp(np.eye(3), np.array([-1.0, -2.0, 0.0])), 0.0)


SHAPE = (3, 4)
VECTORS = st.builds(lambda s, i: vector(s, i), st.integers(0, 9999), st.booleans())


def vector(seed: int, ties: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, size=12).astype(float) if ties else rng.normal(size=12)


def norm_of(name: str) -> norms.Norm:
    rng = np.random.default_rng(0)
    rows = Rows((Factored(rng.normal(size=(2, 1, SHAPE[0])), np.zeros(2, int), rng.normal(size=(1, 1, SHAPE[1]))),))
    return norms.make(name, rows)


@pytest.mark.parametrize("name", PLAIN)
@given(z=VECTORS)
@settings(quick, max_examples=8)
def test_dual_norm_is_the_largest_product_over_the_unit_ball(name: str, z: np.ndarray) -> None:
    d = cp.Variable(12)
    largest = -minimum(-(z @ d), [norm_cvxpy(d, name, SHAPE) <= 1])
    assert norm_of(name).dual(z) == pytest.approx(largest, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", PLAIN)
@given(z=VECTORS)
@settings(quick, max_examples=8)
def test_value_is_the_norm(name: str, z: np.ndarray) -> None:
    d = cp.Constant(z)
    assert norm_of(name).value(z) == pytest.approx(float(norm_cvxpy(d, name, SHAPE).value), rel=1e-9, abs=1e-12)


def test_unknown_norms_are_refused() -> None:
    rows = Rows((Dense(np.ones((1, 2))),))
    with pytest.raises(InvalidInput, match=r"Unknown norm 'l3'.*l1, linf, l2"):
        norms.make("l3", rows)
    with pytest.raises(InvalidInput, match="one linear or convolution layer"):
        norms.make("nuclear", rows)
