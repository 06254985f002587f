"""Polyhedral norms by dual simplex, with rows that join: against HiGHS on all rows at once, and by hand."""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np
import pytest

from nnrepair.solver import highs, polyhedral, simplex
from nnrepair.solver.conditions import Conditions
from nnrepair.solver.minnorm import solve
from nnrepair.solver.norms import Polyhedral
from nnrepair.solver.rounds import Rounds
from nnrepair.solver.rows import Dense, Rows

NORMS = {"l1": (1.0, 0.0), "linf": (0.0, 1.0), "both": (0.05, 1.0)}


def conditions(G: np.ndarray, h: np.ndarray, cap: float = np.inf) -> Conditions:
    tag = np.stack([np.zeros(len(h)), np.arange(len(h)), np.zeros(len(h))], 1).astype(np.int64)
    return Conditions(Rows((Dense(G),)), h, np.full(len(h), cap), tag)


def on_demand(G: np.ndarray, h: np.ndarray, few: int) -> Any:
    def separate(d: np.ndarray, using: Conditions) -> Conditions | None:
        missed = h - G @ d
        missed[using.tag[:, 1]] = -np.inf
        worst = np.argsort(-missed)[:few]
        worst = np.sort(worst[missed[worst] > 1e-9 * h.max()])
        return conditions(G, h).take(worst) if len(worst) else None

    return separate


def smallest(G: np.ndarray, h: np.ndarray, norm: Polyhedral) -> float:
    """The optimum by one linear program with all rows."""
    m, n = G.shape
    eye = np.eye(n)
    A = np.block([[G, -G, np.zeros((m, 1))], [-eye, -eye, np.ones((n, 1))]])
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = 2 * n + 1, m + n
    model.col_cost_ = np.append(np.full(2 * n, norm.sum_weight), norm.max_weight)
    model.col_lower_, model.col_upper_ = np.zeros(2 * n + 1), np.full(2 * n + 1, np.inf)
    model.row_lower_, model.row_upper_ = np.append(h, np.zeros(n)), np.full(m + n, np.inf)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.arange(m + n + 1) * (2 * n + 1)
    model.a_matrix_.index_, model.a_matrix_.value_ = np.tile(np.arange(2 * n + 1), m + n), A.ravel()
    solver = highs.solver()
    solver.passModel(model)
    solver.run()
    return float(solver.getInfo().objective_function_value)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_join_give_the_optimum_of_all_rows(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inside = rng.normal(size=20)
    G = rng.normal(size=(400, 20))
    h = G @ inside - rng.uniform(0.0, 2.0, 400)
    norm = Polyhedral(*NORMS[name])
    first = conditions(G, h).take(np.arange(5))
    stats: dict[str, Any] = {"rounds": 0, "newton_steps": 0}
    found = simplex.pivoted(first, norm, Rounds(on_demand(G, h, 10), 1e-6, 1.0, stats, lambda text: None))
    assert found.objective == pytest.approx(smallest(G, h, norm), rel=1e-8)
    assert (G @ found.d - h).min() >= -1e-8 * h.max() and found.gap <= 1e-8
    assert stats["rounds"] > 1 and stats["newton_steps"] > 0
    if name == "l1":  # a vertex: no more weights change than rows bind
        assert np.count_nonzero(found.d) <= np.count_nonzero(np.abs(G @ found.d - h) < 1e-7)


def test_by_hand() -> None:
    """d_0 + 2 d_1 >= 2: the second weight alone in l1, both as far in linf, none where missing it is cheap."""
    G, h = np.array([[1.0, 2.0]]), np.array([2.0])
    stats: dict[str, Any] = {"rounds": 0, "newton_steps": 0}

    def found(name: str, cap: float = np.inf) -> Any:
        norm, none = Polyhedral(*NORMS[name]), lambda d, using: None
        return simplex.pivoted(conditions(G, h, cap), norm, Rounds(none, 1e-6, 1.0, stats, lambda text: None))

    np.testing.assert_allclose(found("l1").d, [0, 1])
    np.testing.assert_allclose(found("linf").d, [2 / 3, 2 / 3])
    cheap = found("l1", 0.25)
    np.testing.assert_allclose(cheap.d, [0, 0])
    assert cheap.objective == pytest.approx(0.5) and found("l1", 0.75).objective == pytest.approx(1.0)


@pytest.mark.parametrize("name", NORMS)
def test_the_solver_goes_over_to_pivots_where_rows_outnumber_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    G = rng.normal(size=(600, 8))
    h = G @ rng.normal(size=8) - rng.uniform(0.0, 2.0, 600)
    used: list[int] = []
    pivoted = simplex.pivoted

    def counted(*given: Any) -> Any:
        used.append(given[0].m)
        return pivoted(*given)

    monkeypatch.setattr(polyhedral, "pivoted", counted)
    norm = Polyhedral(*NORMS[name])
    found = solve(conditions(G, h).take(np.arange(3)), on_demand(G, h, 4), norm)
    assert found.objective == pytest.approx(smallest(G, h, norm), rel=1e-7) and found.gap <= 1e-6
    monkeypatch.setattr(polyhedral, "suits", lambda conditions: False)
    other = solve(conditions(G, h).take(np.arange(3)), on_demand(G, h, 4), norm)
    assert other.objective == pytest.approx(found.objective, rel=1e-6)


def test_what_ends_the_work_is_raised() -> None:
    class Stop(Exception):
        pass

    def stop(text: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        simplex.pivoted(
            conditions(np.ones((1, 2)), np.ones(1)),
            Polyhedral(1.0, 0.0),
            Rounds(lambda d, using: None, 1e-6, 1.0, {"rounds": 0, "newton_steps": 0}, stop),
        )


def test_pivots_meet_what_an_interior_point_misses() -> None:
    """A row and one that nearly says the opposite: an interior point misses a little of what both need."""
    rng = np.random.default_rng(2)
    g = rng.normal(size=6)
    G, h = np.stack([g, -g * (1 + 1e-5 * rng.normal(size=6))]), np.array([1.0, 0.5])
    found = solve(conditions(G, h), lambda d, using: None, Polyhedral(0.0, 1.0))
    assert found.objective == pytest.approx(smallest(G, h, Polyhedral(0.0, 1.0)), rel=1e-6)
    assert found.gap <= 1e-6 and (h - G @ found.d).max() <= 1e-8
