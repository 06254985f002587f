"""Regions are checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import mlp, randn
from torch import Tensor

import nnrepair
from nnrepair import InvalidInput, Polygons, Segments
from nnrepair.spec.regions import Regions

SQUARE = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])


def star() -> Tensor:
    """Five corners that go around twice: every turn is to the left, and yet not convex."""
    angle = torch.arange(5) * 4 * math.pi / 5
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_segments_keep_their_ends():
    start, end = randn(3, 2, 2), randn(3, 2, 2, seed=1)
    segments = Segments(start, end)
    assert len(segments) == 3 and segments.shape == (2, 2)
    assert torch.equal(torch.stack(segments.corners), torch.stack([start, end], 1).double())
    assert torch.equal(segments[torch.tensor([2])].corners[0], segments.corners[2])


def test_polygons_may_have_different_numbers_of_corners():
    polygons = Polygons([SQUARE, SQUARE[:3]])
    assert [len(c) for c in polygons.corners] == [4, 3]
    assert len(polygons[torch.tensor([False, True])].corners[0]) == 3


def test_a_polygon_may_lie_anywhere_and_go_either_way():
    axes = torch.linalg.qr(randn(9, 2, dtype=torch.float64)).Q
    tilted = (SQUARE.double() @ axes.T + randn(9, dtype=torch.float64)).float()  # flat up to float32 rounding
    assert len(Polygons(tilted[None])) == len(Polygons(tilted.flip(0)[None])) == 1


def test_corners_on_a_side_are_fine():
    assert len(Polygons([torch.tensor([[0.0, 0], [0.5, 0], [1, 0], [1, 1]])])) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Segments(randn(2, 3), randn(2, 4)), r"one shape .*\(2, 3\) and \(2, 4\)"),
        (lambda: Segments(randn(3), randn(3)), "one shape"),
        (lambda: Segments(torch.zeros(0, 3), torch.zeros(0, 3)), "one shape"),
        (lambda: Segments(randn(2, 3), torch.cat([randn(2, 3)[:1], randn(1, 3)])), r"Segments \[0\] have no length"),
        (lambda: Segments(torch.full((1, 2), torch.nan), randn(1, 2)), r"start must be finite.*\[0\]"),
        (lambda: Segments([["a"]], [["b"]]), "must be a tensor of inputs"),
        (lambda: Segments(1.0, 2.0), "got a single number"),
        (lambda: Polygons([]), "needs a tensor"),
        (lambda: Polygons([SQUARE[:2]]), "Polygon 0 needs at least three corners"),
        (lambda: Polygons([SQUARE, SQUARE.where(SQUARE < 1, torch.inf)]), "polygon 1 must be finite"),
        (lambda: Polygons([torch.rand(3, 1)]), "use Segments"),
        (lambda: Polygons([torch.cat([SQUARE, SQUARE[3:]])]), "equal corners, 3 and 4"),
        (lambda: Polygons([torch.tensor([[0.0, 0], [1, 1], [2, 2]])]), "no area"),
        (lambda: Polygons([torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1]])]), "is not flat"),
        (lambda: Polygons([torch.tensor([[0.0, 0], [2, 0], [0.5, 0.5], [0, 2]])]), "not convex"),
        (lambda: Polygons([SQUARE[[0, 2, 1, 3]]]), "not convex"),
        (lambda: Polygons([star()]), "not convex"),
        (lambda: Polygons([SQUARE, SQUARE.repeat(1, 2)]), "one shape"),
    ],
)
def test_what_is_no_region_is_refused(make: Callable[[], Any], message: str):
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("regions", [Segments(randn(2, 4), randn(2, 4, seed=1)), Polygons([SQUARE.repeat(1, 2)] * 2)])
def test_regions_are_edits_or_kept_and_nothing_else(regions: Regions):
    model, edits = mlp(4, 5, 3), (randn(1, 4), [0])
    with pytest.raises(InvalidInput, match="only edits, and what is to be kept, can be about whole regions"):
        nnrepair.fix(model, edits, edit_scope=(regions, [0, 0]))
    with pytest.raises(InvalidInput, match=r"only what nnrepair\.fix keeps can be whole regions"):
        nnrepair.fix(model, edits, test_set=nnrepair.LocalitySet(regions, [0, 0]))
    with pytest.raises(InvalidInput, match="no single outputs"):
        regions.call(model)
