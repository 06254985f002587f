from __future__ import annotations

import pytest
import torch

from nnrepair import Argmax, metrics


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
