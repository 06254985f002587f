"""What searches share: columns of equal length, the best row, and who is asked about counterexamples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from test_search import jobs
from torch import Tensor

from nnrepair.verify import Box, Case, Halfspace, Property
from nnrepair.verify.search import jobs as module
from nnrepair.verify.search.jobs import REPLAYED, Columns, Jobs, any_confirmed


@dataclass
class Pair(Columns):
    a: Tensor
    b: Tensor


@dataclass
class Nested(Columns):
    pair: Pair
    each: list[Tensor | None]
    common: Any


def test_columns() -> None:
    pair = Pair(torch.arange(4), torch.arange(8).reshape(4, 2))
    nested = Nested(pair, [torch.arange(4), None], common=7)[torch.tensor([3, 1])]
    assert len(pair) == 4 and len(pair[1:]) == 3 and len(nested) == 2 and nested.common == 7
    assert nested.pair.a.tolist() == [3, 1] and nested.pair.b.tolist() == [[6, 7], [2, 3]]
    first, second = nested.each
    assert first is not None and first.tolist() == [3, 1] and second is None
    joined = Pair.joined([pair[:1], pair[2:]])
    assert joined.a.tolist() == [0, 2, 3] and joined.b.tolist() == [[0, 1], [4, 5], [6, 7]]


def test_properties_are_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Halfspace((Fraction(k), Fraction(1)), Fraction(k)) for k in range(4)]
    ways = tuple(tuple(rows[:k]) for k in (1, 3, 2, 4))
    prop = Property([Case(Box([0], [1]), ways), Case(Box([2], [3]), ways[:2])], 2)
    whole = Jobs.of(prop)
    assert whole.real.sum(1).tolist() == [1, 3, 2, 4, 1, 3]
    for t, way in enumerate([*ways, *ways[:2]]):
        scale = whole.rows[t, : len(way), 1]  # each row times a power of two
        assert torch.equal(whole.rows[t, : len(way), 0], scale * torch.arange(len(way)))
        assert torch.equal(whole.offset[t, : len(way)], scale * torch.arange(len(way)))
        assert not whole.rows[t, len(way) :].any() and not whole.offset[t, len(way) :].any()
    for piece in (1, 16, 24):
        monkeypatch.setattr(module, "PIECE_NUMBERS", piece)
        parts = Jobs.of(prop)
        for name in ("lower", "upper", "rows", "offset", "real"):
            assert torch.equal(getattr(parts, name), getattr(whole, name))


def test_the_best_row_is_real_and_finite() -> None:
    two = jobs(([0.0], [1.0], [([1.0], 0.0), ([-1.0], 0.0)]), ([0.0], [1.0], [([1.0], 0.0)]))
    value = torch.tensor([[1.0, 2.0], [1.0, 2.0], [math.nan, 0.5], [math.inf, math.nan]], dtype=torch.float64)
    best, row = two.best(value, torch.tensor([0, 1, 0, 0]))
    assert best.tolist() == [2.0, 1.0, 0.5, -math.inf] and row[:3].tolist() == [1, 0, 1]


def test_the_deepest_points_are_replayed() -> None:
    asked: list[Tensor] = []

    def confirm(x: Tensor, job: Tensor) -> bool:
        asked.append(x[:, 0])
        assert torch.equal(x[:, 0].long(), job)
        return False

    x, depth = torch.arange(40.0)[:, None], torch.arange(40.0) - 10
    assert not any_confirmed(confirm, x, torch.arange(40), depth)
    assert asked[0].tolist() == list(range(39, 39 - REPLAYED, -1))
    assert not any_confirmed(confirm, x, torch.arange(40), depth - 100) and len(asked) == 1
    assert any_confirmed(lambda x, job: True, x, torch.arange(40), depth)
