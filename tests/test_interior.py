from __future__ import annotations

import numpy as np
import pytest

from nnrepair.solver import interior
from nnrepair.solver.conditions import Conditions
from nnrepair.solver.conflict import smallest_conflict
from nnrepair.solver.euclidean import euclidean
from nnrepair.solver.rows import Dense, Rows


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
