from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnrepair.solver.metric import Metric
from nnrepair.solver.rows import Dense, Factored, Rows

quick = settings(deadline=None, derandomize=True, max_examples=30)


def factored(seed: int, m: int = 5, points: int = 3, positions: int = 2, out: int = 3, inp: int = 4) -> Factored:
    rng = np.random.default_rng(seed)
    return Factored(
        rng.normal(size=(m, positions, out)),
        rng.integers(points, size=m),
        rng.normal(size=(points, positions, inp)),
    )


def dense(block: Factored) -> np.ndarray:
    """The definition: row r is sum_p delta[r, p] outer inputs[point[r], p]."""
    return np.stack(
        [
            sum(np.outer(d, a) for d, a in zip(delta, block.inputs[point], strict=True)).ravel()
            for delta, point in zip(block.delta, block.point, strict=True)
        ]
    )


blocks = st.builds(
    factored,
    seed=st.integers(0, 99),
    m=st.integers(1, 7),
    points=st.integers(1, 4),
    positions=st.integers(1, 3),
    out=st.integers(1, 4),
    inp=st.integers(1, 4),
)


@given(blocks, st.integers(0, 99))
@quick
def test_factored_is_its_dense_form(block: Factored, seed: int) -> None:
    rng = np.random.default_rng(seed)
    G = dense(block)
    d, y = rng.normal(size=block.n), rng.normal(size=block.m)
    where = np.sort(rng.choice(block.n, size=rng.integers(1, block.n + 1), replace=False))
    which = rng.integers(block.m, size=3)
    assert (block.m, block.n) == G.shape
    np.testing.assert_allclose(block.matvec(d), G @ d, atol=1e-12)
    np.testing.assert_allclose(block.rmatvec(y), G.T @ y, atol=1e-12)
    np.testing.assert_allclose(block.columns(where), G[:, where], atol=1e-12)
    np.testing.assert_allclose(block.gram(), G @ G.T, atol=1e-11)
    np.testing.assert_allclose(block.dense(slice(None)).reshape(block.m, -1), G, atol=1e-12)
    np.testing.assert_allclose(dense(block.take(which)), G[which], atol=1e-12)


def test_work_in_chunks_is_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    block = factored(0, m=6, out=5)
    G = dense(block)
    monkeypatch.setattr("nnrepair.solver.rows.CHUNK", 10)
    np.testing.assert_allclose(block.gram(), G @ G.T, atol=1e-12)
    np.testing.assert_allclose(block.dense(slice(1, 3)), G.reshape(6, 5, 4)[:, 1:3], atol=1e-12)


@given(blocks, st.integers(0, 99))
@quick
def test_weighed_products_are_those_of_the_dense_form(block: Factored, seed: int) -> None:
    rng = np.random.default_rng(seed)
    delta = block.delta * (rng.random(block.delta.shape) < 0.6)  # units that are off
    rows = Rows((Factored(delta, block.point, block.inputs),))
    G = rows.columns(np.arange(rows.n))
    columns, each = rng.uniform(0, 2, size=rows.n), rng.uniform(0, 2, size=rows.m)
    np.testing.assert_allclose(rows.weighed(columns), (G * columns) @ G.T, atol=1e-10)
    np.testing.assert_allclose(rows.normal(each), (G.T * each) @ G, atol=1e-10)


@given(blocks, st.integers(0, 99))
@quick
def test_joined_rows_follow_each_other(block: Factored, seed: int) -> None:
    rng = np.random.default_rng(seed)
    other = Factored(
        rng.normal(size=(3, *block.delta.shape[1:])),
        rng.integers(2, size=3),
        rng.normal(size=(2, *block.inputs.shape[1:])),
    )
    np.testing.assert_allclose(dense(block.joined(other)), np.concatenate([dense(block), dense(other)]), atol=1e-12)


def test_blocks_stand_side_by_side() -> None:
    rng = np.random.default_rng(1)
    a, b, c = factored(1), Dense(rng.normal(size=(5, 3))), factored(2, positions=1)
    rows = Rows((a, b, c))
    G = np.concatenate([dense(a), b.rows, dense(c)], axis=1)
    d, y = rng.normal(size=rows.n), rng.normal(size=rows.m)
    assert (rows.m, rows.n) == G.shape
    assert rows.matrix_shape is None
    np.testing.assert_allclose(rows.matvec(d), G @ d, atol=1e-12)
    np.testing.assert_allclose(rows.rmatvec(y), G.T @ y, atol=1e-12)
    np.testing.assert_allclose(rows.gram(), G @ G.T, atol=1e-12)
    for where in ([0, 11, 12, 14, 15, rows.n - 1], [13], [], range(rows.n)):
        index = np.asarray(list(where), int)
        np.testing.assert_allclose(rows.columns(index), G[:, index], atol=1e-12)
    np.testing.assert_allclose(rows.take(np.array([4, 0])).matvec(d), G[[4, 0]] @ d, atol=1e-12)
    np.testing.assert_allclose(rows.joined(rows).rmatvec(np.r_[y, y]), 2 * G.T @ y, atol=1e-12)


@pytest.mark.parametrize("positions", [1, 3])
def test_between_is_how_rows_meet_as_matrices(positions: int) -> None:
    block = factored(0, positions=positions)
    rng = np.random.default_rng(0)
    left, across, right = rng.normal(size=(3, 3)), rng.normal(size=(3, 4)), rng.normal(size=(4, 4))
    left, right = left + left.T, right + right.T
    A = dense(block).reshape(5, 3, 4)
    moved = left @ A @ right + across @ A.transpose(0, 2, 1) @ across
    np.testing.assert_allclose(block.between(left, across, right), np.einsum("iab,jab->ij", A, moved) / 2, atol=1e-12)


def test_rows_that_nothing_reaches_are_zero() -> None:
    block = Factored(np.ones((2, 3, 2)), np.zeros(2, int), np.zeros((1, 3, 4)))
    np.testing.assert_array_equal(Rows((block,)).narrowed().gram(), np.zeros((2, 2)))


def test_points_that_joined_twice_are_one() -> None:
    block = factored(1, positions=1)
    twice = block.joined(block).distinct()
    assert len(twice.inputs) == len(block.distinct().inputs)
    np.testing.assert_array_equal(dense(twice), dense(block.joined(block)))
    weight = np.random.default_rng(2).random(block.n)
    G = dense(twice)
    np.testing.assert_allclose(block.joined(block).weighed(weight), (G * weight) @ G.T, atol=1e-12)


def metric_of(rows: Rows, seed: int = 0) -> Metric:
    rng = np.random.default_rng(seed)
    factors = []
    for block in rows.blocks:
        if isinstance(block, Factored):
            factors.append(np.tril(rng.normal(size=(block.inp, block.inp))) + 3 * np.eye(block.inp))
        else:
            factors.append(rng.uniform(0.5, 2, size=block.n))
    return Metric(factors)


@given(st.integers(0, 99))
@quick
def test_whitened_rows_see_whitened_changes_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = Rows((factored(seed), Dense(rng.normal(size=(5, 3)))))
    metric = metric_of(rows, seed)
    d = rng.normal(size=rows.n)
    change = metric.unwhiten(d, rows)
    np.testing.assert_allclose(metric.whiten(rows).matvec(d), rows.matvec(change), atol=1e-10)
    np.testing.assert_allclose(metric.coordinates(change, rows), d, atol=1e-10)


def test_coordinates_measure_drift() -> None:
    block = factored(4)
    rows = Rows((block,))
    metric = metric_of(rows)
    C = metric.factors[0] @ metric.factors[0].T
    delta = np.random.default_rng(0).normal(size=(3, 4))
    drift = np.trace(delta @ C @ delta.T)
    assert np.linalg.norm(metric.coordinates(delta.ravel(), rows)) ** 2 == pytest.approx(drift)
