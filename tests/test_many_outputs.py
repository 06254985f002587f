"""Repairs of points with many outputs, each a condition of its own: few rounds and passes, the same optimum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp, randn
from reference import min_norm_cvxpy
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Decoupled, Edits, Near
from nnrepair.jacobian import factors
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods import MinimalNorm
from nnrepair.methods.minimal_norm.budget import Budget
from nnrepair.solver import minnorm
from nnrepair.solver.minnorm import Conditions
from nnrepair.solver.rows import Factored, Rows

quick = settings(deadline=None, derandomize=True, max_examples=40)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of points in every backward pass."""
    found: list[int] = []
    real = factors.gradients

    def counted(y: Tensor, *args: Any, **options: Any) -> Any:
        found.append(len(y) if y.ndim > 1 else 1)
        return real(y, *args, **options)

    monkeypatch.setattr(factors, "gradients", counted)
    yield found


def moved(model: nn.Module, name: str, scale: float) -> nn.Module:
    """Return the decoupled model with random noise on one weight."""
    weight = dict(model.named_parameters())[name]
    return Decoupled(model, {name: scale * randn(*weight.shape, seed=9, dtype=torch.float64)}, True)


def near(model: nn.Module, x: Tensor, layer: str, scale: float = 0.1) -> Edits:
    """Ask for outputs that a change of one layer's weight has, to first order."""
    with torch.no_grad():
        return Edits(x, Near(moved(model, f"{layer}.weight", scale)(x).float(), tol=0.05))


@pytest.mark.parametrize("outputs", [100, 400, 3072])
@pytest.mark.parametrize("architecture", ["same", "decoupled"])
def test_every_output_of_a_point_has_its_rows_within_ten_rounds(
    outputs: int, architecture: Any, passes: list[int]
) -> None:
    model, layer = mlp(6, 24, 24, outputs), "4" if architecture == "same" else "2"
    points = 1 if outputs > 1000 else 3
    edits = near(model, randn(points, 6, seed=1), layer, scale=0.3)
    result = nnrepair.fix(model, edits, method=MinimalNorm(layer, architecture=architecture))
    assert result.outcome.status == "repaired"
    assert result.stats["rounds"] <= 10
    assert result.stats["gap"] <= 1e-6
    # A few to test the factors, for the last layer on a few points first and none after; else one per 256 rows.
    rows = result.stats["rounds"] * -(-points * outputs // 256)
    most = 2 * (2 + points) if architecture == "same" else 2 + 2 * points + rows
    assert len(passes) <= most
    assert max(passes) <= factors.POINTS


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize(("layer", "architecture"), [("2", "same"), ("0", "decoupled")])
def test_the_optimum_is_that_of_all_rows_at_once(norm: Any, layer: str, architecture: Any) -> None:
    model = mlp(3, 8, 12)
    edits = near(model, randn(2, 3, seed=1), layer, scale=0.4)
    result = nnrepair.fix(model, edits, method=MinimalNorm(layer, norm, margin=0.01, architecture=architecture))
    line = Linearization(model, [f"{layer}.weight", f"{layer}.bias"], edits.inputs)
    point, condition = (t.flatten() for t in torch.meshgrid(torch.arange(2), torch.arange(24), indexing="ij"))
    rows = line.rows(edits.inputs, edits.criterion, point, condition)
    slack = edits.criterion.slack(line.outputs(edits.inputs))[point, condition].numpy()
    G = np.stack([rows.take(np.array([r])).rmatvec(np.ones(1)) for r in range(rows.m)])
    optimum, _ = min_norm_cvxpy(G, 0.01 - slack, norm, (1, G.shape[1]), None)
    assert result.outcome.ok
    assert result.stats["objective"] == pytest.approx(optimum, rel=1e-5)


def test_a_hidden_layer_of_the_same_architecture(passes: list[int]) -> None:
    model = mlp(6, 64, 160, 100)
    edits = near(model, randn(2, 6, seed=1), "2", scale=0.02)
    assert not edits.criterion.holds(model(edits.inputs)).any()
    result = nnrepair.fix(model, edits, method=MinimalNorm("2"))
    assert result.outcome.ok
    assert len(result.stats["steps"]) <= 10
    assert len(passes) <= 6 + 2 * len(result.stats["steps"])  # 400 rows each: two passes of copies


def test_a_convolution_at_the_end(passes: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    x = torch.rand(1, 1, 16, 16)
    for layer in ("2", "0"):
        edits = near(model, x, layer)
        result = nnrepair.fix(model, edits, method=MinimalNorm(layer, architecture="decoupled"))
        assert result.outcome.ok
        assert result.stats["rounds"] <= 10
    assert len(passes) <= 40


def test_a_thousand_classes_need_few_of_their_rows() -> None:
    model = mlp(6, 24, 1000)
    x = randn(20, 6, seed=1)
    result = nnrepair.fix(model, Edits(x, Argmax(torch.arange(20))), method=MinimalNorm("2"))
    assert result.outcome.ok
    assert result.stats["rounds"] <= 15
    assert result.stats["rows"] < 20 * 100


def test_outputs_that_no_change_reaches_are_called_a_conflict() -> None:
    model = mlp(6, 24, 400)
    x = randn(1, 6, seed=1).repeat(2, 1)
    x[1, 0] += 1  # which the network does not see
    with torch.no_grad():
        next(model.parameters())[:, 0] = 0
        y = model(x)
    edits = Edits(x, Near(torch.stack([y[0] + 1, y[1] - 1]), tol=0.05))
    result = nnrepair.fix(model, edits, method=MinimalNorm("2"), throw=False)
    assert result.outcome.status == "infeasible"
    assert result.outcome.conflict == [0, 1]


def test_one_edit_that_contradicts_itself_is_said_to() -> None:
    model = mlp(6, 24, 8, 100)  # 100 outputs of 8 units
    x = randn(1, 6, seed=1)
    with torch.no_grad():
        edits = Edits(x, Near(model(x) + randn(1, 100, seed=2), tol=0.05))
    result = nnrepair.fix(model, edits, method=MinimalNorm("2", architecture="decoupled"), throw=False)
    assert result.outcome.status == "infeasible"
    assert result.outcome.conflict == [0]
    assert "conditions of edit 0 contradict each other" in result.outcome.message
    assert result.outcome.layers == ["4"]


def test_a_limit_is_called_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(6, 24, 40)
    edits = near(model, randn(3, 6, seed=1), "2", scale=0.5)
    monkeypatch.setattr(Budget, "end_round", lambda self: None)
    monkeypatch.setattr(minnorm, "MAX_ROUNDS", 3)
    result = nnrepair.fix(model, edits, method=MinimalNorm("2"), throw=False)
    assert result.outcome.status == "partly repaired"
    said = result.outcome.message + " ".join(result.report.notes)
    assert "3 rounds were not enough" in said
    assert "a limit of the solver" in said
    assert "ill-conditioned" not in said
    assert "contradict" not in said


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 12), st.integers(1, 20), st.integers(1, 60))
@quick
def test_the_budget_takes_the_worst_of_each_point_first(
    seed: int, points: int, conditions: int, each: int, total: int
) -> None:
    rng = np.random.default_rng(seed)
    missed = rng.normal(size=(points, conditions))
    missed[rng.random(missed.shape) < 0.2] = -np.inf
    point, condition = Budget(each, total).worst(missed, 0.1)
    ranked = [
        (rank, -missed[p, c], p, c)
        for p in range(points)
        for rank, c in enumerate(np.argsort(-missed[p])[:each])
        if missed[p, c] > 0.1
    ]
    expected = sorted((p, c) for _, _, p, c in sorted(ranked)[:total])
    assert list(zip(point.tolist(), condition.tolist(), strict=True)) == expected


@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 8), st.integers(1, 3))
@quick
def test_independent_rows_share_no_weight_and_solve_to_the_same_change(
    seed: int, m: int, out: int, positions: int
) -> None:
    rng = np.random.default_rng(seed)
    delta = rng.normal(size=(m, positions, out)) * (rng.random((m, 1, out)) < 0.3)
    delta[:, 0, rng.integers(out)] += 1e-3 * rng.normal(size=m) if seed % 2 else 0.0
    delta[np.arange(m), 0, rng.integers(out, size=m)] = 1.0
    rows = Rows((Factored(delta, rng.integers(2, size=m), rng.normal(size=(2, positions, 30))),))
    sets = rows.independent()
    assert sorted(np.concatenate(sets).tolist()) == list(range(m))
    label = np.empty(m, int)
    for k, which in enumerate(sets):
        label[which] = k
    K = rows.gram()
    assert not K[label[:, None] != label].any()
    conditions = Conditions(rows, rng.normal(size=m), np.full(m, np.inf), np.zeros((m, 3), np.int64))
    apart = minnorm.euclidean(conditions)
    together = minnorm.nnqp(K, conditions.need)
    np.testing.assert_allclose(rows.rmatvec(apart), rows.rmatvec(together), atol=1e-6)


@given(st.integers(0, 99), st.integers(1, 5), st.integers(2, 6), st.integers(1, 4), st.integers(1, 4))
@quick
def test_folded_rows_are_the_same_rows(seed: int, m: int, positions: int, out: int, inp: int) -> None:
    rng = np.random.default_rng(seed)
    block = Factored(
        rng.normal(size=(m, positions, out)), rng.integers(3, size=m), rng.normal(size=(3, positions, inp))
    )
    folded = block.folded()
    assert folded.delta.size + folded.inputs.size <= block.delta.size + block.inputs.size
    np.testing.assert_allclose(folded.dense(slice(None)), block.dense(slice(None)), atol=1e-12)
    d, y = rng.normal(size=block.n), rng.normal(size=m)
    np.testing.assert_allclose(folded.matvec(d), block.matvec(d), atol=1e-12)
    np.testing.assert_allclose(folded.rmatvec(y), block.rmatvec(y), atol=1e-12)
    both = folded.joined(folded.take(np.arange(m)[::-1]))
    np.testing.assert_allclose(both.gram(), (lambda G: G @ G.T)(both.dense(slice(None)).reshape(2 * m, -1)), atol=1e-10)
