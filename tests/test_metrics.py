from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnrepair import Argmax
from nnrepair.results import metrics
from nnrepair.rounding import percent, percentage_points


def test_success_rate_is_the_share_that_holds() -> None:
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    assert metrics.success_rate(Argmax([0, 0, 0, 0]), y) == 0.5


def test_drawdown_is_relative_and_drawdown_points_are_not() -> None:
    assert metrics.drawdown(0.8, 0.6) == pytest.approx(0.25)
    assert metrics.drawdown_points(0.8, 0.6) == pytest.approx(20)
    assert metrics.drawdown(0.5, 0.75) == pytest.approx(-0.5)
    assert metrics.drawdown(0.0, 0.0) is metrics.drawdown(0.0, 0.5) is None  # there was none to lose


def test_locality_counts_unchanged_decisions() -> None:
    assert metrics.locality(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])) == 0.75
    before, after = torch.tensor([[1, 0], [0, 0], [1, 1]]), torch.tensor([[1, 0], [0, 1], [1, 1]])
    assert metrics.locality(before, after) == pytest.approx(2 / 3)  # all decisions of a point count together


def test_edit_score_is_the_average_and_needs_no_scope() -> None:
    assert metrics.edit_score(1.0, 0.5) == 0.75
    assert metrics.edit_score(0.5, None) == 0.5


def test_retainability_and_scalability_are_shares_of_what_was_reached() -> None:
    assert metrics.retainability(0.8, 0.4) == 0.5
    assert metrics.scalability(0.5, 0.25) == 0.5
    assert metrics.retainability(0.0, 0.0) == metrics.scalability(0.0, 0.0) == 0.0


@given(st.integers(1, 10**9), st.data(), st.integers(0, 4))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_a_share_prints_as_all_or_nothing_only_where_it_is(count: int, data: st.DataObject, digits: int) -> None:
    missing = data.draw(st.one_of(st.integers(0, count), st.integers(0, min(3, count))))
    for held in (count - missing, missing):
        shown = float(percent(held / count, digits).removesuffix("%"))
        assert (shown == 100) == (held == count)
        assert (shown == 0) == (held == 0)
        assert shown == pytest.approx(100 * held / count, abs=0.51 * 10.0**-digits)


@given(st.floats(-100, 100))
@example(-0.0)
@example(-0.004)
@example(1e-12)  # what the mean of sums that cancel leaves
@settings(deadline=None, derandomize=True, max_examples=200)
def test_points_are_zero_only_where_they_are(value: float) -> None:
    shown = percentage_points(value)
    assert shown != "-0.00" and float(shown) == pytest.approx(value, abs=0.0051)
    assert (float(shown) == 0) == (abs(value) < 5e-9)


def test_shares_as_people_write_them() -> None:
    assert [percent(x) for x in (0.0, 0.5, 1.0, -0.25)] == ["0.00%", "50.00%", "100.00%", "-25.00%"]
    assert percent(59999 / 60000) == "99.998%" and percent(1 / 60000) == "0.002%"
    assert percentage_points(100 * (0.9 - 0.9)) == "0.00" and percentage_points(0.001) == "0.001"
