"""Edits of several points: they hold where all of their points do, and are repaired, counted and named as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import clusters, mistakes, mlp, randn
from torch import nn

import nnrepair
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet, Segments
from nnrepair.methods import FineTune, MinimalNorm

LAST = MinimalNorm(layer="2")
#: Three edits of three, one and two points, which do not lie in order.
OF = [0, 1, 0, 2, 0, 2]


def task() -> tuple[nn.Module, torch.Tensor, torch.Tensor, LocalitySet]:
    model, x = mlp(4, 32, 3, seed=1), randn(6, 4, seed=2)
    return model, x, mistakes(model, x), LocalitySet(clusters(20, 4, seed=6))


def test_groups_are_edits() -> None:
    _, x, labels, _ = task()
    edits = Edits(x, labels, of=OF)
    assert len(edits) == 3 and len(edits.points()) == 6
    assert torch.equal(edits[[2]].inputs, x[[3, 5]]) and edits[[2]].of.tolist() == [0, 0]
    two = edits[torch.tensor([2, 0])]
    assert torch.equal(two.inputs, x[[3, 5, 0, 2, 4]]) and two.of.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(two.criterion.labels, labels[[3, 5, 0, 2, 4]])
    assert edits.together(torch.tensor([True, True, True, True, True, False])).tolist() == [True, True, False]
    assert edits.owners([4, 3, 5]) == [0, 2]


@pytest.mark.parametrize("method", [LAST, FineTune(lr=0.01), nnrepair.methods.EGNN(lr=0.02, kl=0.01)])
def test_reports_count_edits(method: Any) -> None:
    model, x, labels, locality = task()
    with torch.no_grad():
        labels[1] = model(x[1:2]).argmax(1)  # one edit holds before
        labels[2] = model(x[2:3]).argmax(1)  # and one point of another
    scope = EditScope(x + 0.01, labels, of=OF)
    result = nnrepair.fix(model, Edits(x, labels, of=OF), locality, method=method, edit_scope=scope)
    report = result.report
    assert (report.edits, report.held_before, report.held_after) == (3, [False, True, False], [True] * 3)
    assert report.scope_edits == 3 and report.generalization_rate is not None
    assert "all 3 edits hold" in str(result.outcome) and "3 of 3 edits hold" in str(report)
    assert "the 3 edits have 6" in " ".join(report.notes)


def test_an_edit_fails_where_one_of_its_points_does() -> None:
    model, x, labels, _ = task()
    result = nnrepair.fix(model, Edits(x, labels, of=OF), method=FineTune(steps=0), throw=False)
    assert result.outcome.failing == [0, 1, 2]
    with torch.no_grad():
        labels[:5] = model(x[:5]).argmax(1)
    result = nnrepair.fix(model, Edits(x, labels, of=OF), method=FineTune(steps=0), throw=False)
    assert result.report.held_after == [True, True, False] and result.outcome.failing == [2]
    assert result.report.success_rate == pytest.approx(2 / 3)


def test_what_contradicts_is_named_by_edit() -> None:
    model, x, labels, _ = task()
    with pytest.raises(InvalidInput, match="different labels: points 0 and 5"):
        nnrepair.fix(model, Edits(torch.cat([x[:5], x[:1]]), [0, 1, 1, 1, 1, 2], of=OF))
    near = torch.cat([x[:5], x[3:4] + 1e-7])
    other = labels.clone()
    other[5] = (labels[3] + 1) % 3
    result = nnrepair.fix(model, Edits(near, other, of=OF), method=MinimalNorm(layer="2", margin=0.1), throw=False)
    assert result.outcome.status == "infeasible" and result.outcome.conflict == [2]
    kept = nnrepair.fix(model, Edits(x, labels, of=OF), x[3:], method="ft").report.notes
    assert "edits 0, 2 are points of the locality set too" in " ".join(kept)


@pytest.mark.parametrize("mode", ["independent", "successive"])
def test_modes_go_edit_by_edit(mode: Any) -> None:
    model, x, labels, locality = task()
    history = nnrepair.fix(model, Edits(x, labels, of=OF), locality, method=LAST, mode=mode)
    assert [step.edits for step in history.steps] == [[0], [1], [2]]
    assert [step.rehearsed for step in history.steps] == ([0, 0, 0] if mode == "independent" else [0, 1, 2])
    assert len(history.held_after) == 3 and history.success_rate == 1.0
    if mode == "successive":
        with torch.no_grad():
            assert torch.equal(history.last(x).argmax(1), labels)
    else:  # the first step is the repair of its three points alone
        alone = nnrepair.fix(model, Edits(x[[0, 2, 4]], labels[[0, 2, 4]], of=[0, 0, 0]), locality, method=LAST)
        assert alone.report.edits == 1


def test_resuming_tells_groups_apart(tmp_path: Path) -> None:
    model, x, labels, locality = task()
    file = tmp_path / "run.safetensors"
    arguments: dict[str, Any] = {"method": LAST, "mode": "successive", "resume": file}
    nnrepair.fix(model, Edits(x, labels, of=OF), locality, **arguments)
    again = nnrepair.fix(model, Edits(x, labels, of=OF), locality, **arguments)
    assert len(again.steps) == 3
    with pytest.raises(InvalidInput, match="points: edits"):
        nnrepair.fix(model, Edits(x, labels, of=[0, 1, 1, 2, 0, 2]), locality, **arguments)


def test_verify_speaks_of_points() -> None:
    model, x, labels, _ = task()
    result = nnrepair.fix(model, Edits(x, labels, of=OF), method=LAST)
    assert "points of the edits: 6 of 6 confirmed" in result.verify().reason


def test_an_edit_may_be_several_regions() -> None:
    model = mlp(2, 12, 3, seed=1)
    start = randn(3, 2, seed=3)
    segments = Segments(start, start + 0.05)
    labels = mistakes(model, start)
    result = nnrepair.fix(model, Edits(segments, labels, of=[0, 1, 0]), method=LAST, throw=False)
    every = nnrepair.fix(model, Edits(segments, labels), method=LAST, throw=False)
    assert result.report.held_after == [
        every.report.held_after[0] and every.report.held_after[2],
        every.report.held_after[1],
    ]
    with pytest.raises(InvalidInput, match=r"must name edits 0\.\.1, got 0\.\.2"):
        nnrepair.fix(model, Edits(segments, labels, of=[0, 1, 0]), edit_scope=EditScope(start, labels, of=[0, 1, 2]))


@pytest.mark.parametrize(
    ("of", "message"),
    [([0, 1], "for each of the 6 points"), ([0.0] * 6, "float32"), ([0, 0, 0, 2, 2, 2], r"without gaps, got \[0, 2\]")],
)
def test_of_that_cannot_be_is_refused(of: Any, message: str) -> None:
    _, x, labels, _ = task()
    with pytest.raises(InvalidInput, match=message):
        Edits(x, labels, of=of)
