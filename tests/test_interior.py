from __future__ import annotations

import numpy as np
import pytest

from nnrepair.solver import interior, norms
from nnrepair.solver.conditions import Conditions, Infeasible
from nnrepair.solver.conflict import smallest_conflict
from nnrepair.solver.euclidean import euclidean
from nnrepair.solver.minnorm import solve
from nnrepair.solver.rows import Dense, Factored, Rows


@pytest.mark.parametrize("tight", [0.0, 1e9])
def test_a_system_over_weights_is_that_over_rows(tight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = Rows((Dense(rng.normal(size=(40, 6))),))
    weight, slack, b = rng.uniform(0.5, 2, size=6), 10.0 ** rng.uniform(-3, 3, size=40), rng.normal(size=40)
    monkeypatch.setattr(interior, "FEW", 0)
    monkeypatch.setattr(interior, "TIGHT", tight)  # no row, or as many as there are weights, are eliminated last
    system = interior.System(rows, weight, slack)
    assert system.over_weights
    x = system.solve(b)
    np.testing.assert_allclose(rows.weighed(weight) @ x + slack * x, b, atol=1e-9)


def test_more_rows_than_weights_have_the_same_smallest_change() -> None:
    rng = np.random.default_rng(1)
    rows = Rows((Dense(rng.normal(size=(300, 8))),))
    need = rows.matvec(rng.normal(size=8)) - rng.uniform(0, 1, size=300)
    conditions = Conditions(rows, need, np.full(300, np.inf), np.zeros((300, 3), np.int64)).normalised()
    y = euclidean(conditions)
    d = conditions.rows.rmatvec(y)
    missed = conditions.need - conditions.rows.matvec(d)
    assert (y >= 0).all() and missed.max() <= 1e-8
    assert conditions.need @ y == pytest.approx(d @ d, rel=1e-8)  # what binds, binds exactly: d is optimal


@pytest.mark.parametrize("guilty", [{0}, {3, 9}, {1, 2, 3, 15}, set(range(16))])
def test_a_conflict_is_made_small_by_blocks(guilty: set[int]) -> None:
    asked = 0

    def contradict(some: list[int]) -> list[int] | None:
        nonlocal asked
        asked += 1
        return some if guilty <= set(some) else None

    assert set(smallest_conflict(range(16), contradict)[0]) == guilty
    assert asked <= 40


def test_a_conflict_that_was_to_take_too_long_says_that_it_may_not_be_smallest() -> None:
    asked: list[list[int]] = []

    def contradict(some: list[int]) -> list[int] | None:
        asked.append(some)
        return some if 3 in some else None

    assert smallest_conflict(range(16), contradict, lambda: len(asked) == 2) == (list(range(8)), False)


def test_what_contradicts_within_one_output_shows_in_all_rows() -> None:
    """Rows of outputs that share no weight are solved one output after another."""
    delta = np.eye(3)[[0, 1, 2, 1]][:, None] * np.array([1, 1, 1, -1.0])[:, None, None]
    rows = Rows((Factored(delta, np.zeros(4, np.int64), np.array([[[1.0, 2.0, 0.0]]])),))
    conditions = Conditions(rows, np.ones(4), np.full(4, np.inf), np.zeros((4, 3), np.int64))
    with pytest.raises(Infeasible) as found:
        euclidean(conditions)
    assert np.flatnonzero(found.value.ray).tolist() == [1, 3]
    assert found.value.conditions is conditions


@pytest.mark.parametrize("name", ["l2", "l1", "linf", "nuclear"])
def test_every_stage_can_be_interrupted(name: str) -> None:
    rng = np.random.default_rng(0)
    rows = Rows((Factored(rng.normal(size=(40, 1, 4)), np.arange(40), rng.normal(size=(40, 1, 30))),))
    conditions = Conditions(rows, np.ones(40), np.full(40, np.inf), np.zeros((40, 3), np.int64))

    def run(most: int) -> int:
        calls = 0

        def report(text: str) -> None:
            nonlocal calls
            calls += 1
            if calls > most:
                raise TimeoutError

        solve(conditions, lambda d, using: None, norms.make(name, rows), report=report)
        return calls

    calls = run(1000)
    assert calls >= (3 if name == "l2" else 8)
    for most in (0, calls - 1):
        with pytest.raises(TimeoutError):
            run(most)
