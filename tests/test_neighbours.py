"""Neighbours of edits: wanted, not demanded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import clusters, mistakes, mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Edits, EditScope, InvalidInput, LocalitySet, Segments
from nnrepair.methods import EGNN, GRACE, FineTune, MinimalNorm

LAST, HIDDEN = "4", "2"


def task() -> tuple[nn.Module, Tensor, Tensor, LocalitySet, EditScope]:
    """Return a network, three edits, points to keep, and four neighbours of each edit."""
    model, x = mlp(4, 12, 10, 3, seed=3), randn(3, 4, seed=5)
    labels, each = mistakes(model, x), 4
    near = x.repeat_interleave(each, 0) + 0.3 * randn(3 * each, 4, seed=7)
    of = torch.arange(3).repeat_interleave(each)
    return model, x, labels, LocalitySet(clusters(15, 4, seed=6)), EditScope(near, labels[of], of)


def reached(network: nn.Module, scope: EditScope) -> int:
    with torch.no_grad():
        return int(scope.criterion.holds(network(scope.inputs)).sum())


def test_neighbours_go_with_their_edits() -> None:
    _, x, labels, _, near = task()
    edits = Edits(x, labels, neighbours=near)
    some = edits[torch.tensor([2, 0])]
    assert torch.equal(some.inputs, x[[2, 0]]) and some.neighbours is not None
    assert some.neighbours.of is not None and some.neighbours.of.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(some.neighbours.inputs, near.inputs[[8, 9, 10, 11, 0, 1, 2, 3]])
    of_all = Edits(x, labels, neighbours=(near.inputs, near.criterion))
    assert of_all[[1]].neighbours is not None and len(of_all[[1]].neighbours) == 12
    of_one = Edits(x, labels, neighbours=near[torch.arange(4)])
    assert of_one[[1]].neighbours is None and of_one[[0]].neighbours is not None
    points = Edits(x, labels, of=[1, 0, 1], neighbours=EditScope(x[:2], labels[:2], of=[1, 0])).points()
    assert points.of is None and points.neighbours is not None and points.neighbours.of is not None
    assert points.neighbours.of.tolist() == [0, 1]


@pytest.mark.parametrize("layer", [LAST, HIDDEN, "auto", (HIDDEN, LAST)])
def test_a_repair_reaches_more_of_them_and_keeps_what_must_stay(layer: Any) -> None:
    model, x, labels, locality, near = task()
    method = MinimalNorm(layer)
    alone = nnrepair.fix(model, Edits(x, labels), locality, method=method)
    with_them = nnrepair.fix(model, Edits(x, labels, neighbours=near), locality, method=method)
    assert with_them.report.success_rate == 1.0 and with_them.report.locality == 1.0
    assert with_them.report.edits == 3
    assert reached(with_them.model, near) > reached(alone.model, near)


def test_the_search_for_a_layer_prefers_one_that_reaches_them() -> None:
    model, x, labels, locality, near = task()
    edits = Edits(x, labels, neighbours=near)
    found = nnrepair.fix(model, edits, locality, method=MinimalNorm("auto"))
    layers = ("0", HIDDEN, LAST)
    of_each = {layer: nnrepair.fix(model, edits, locality, method=MinimalNorm(layer)) for layer in layers}
    assert reached(found.model, near) == max(reached(each.model, near) for each in of_each.values()) == 12
    assert reached(of_each[HIDDEN].model, near) < 12 and of_each[HIDDEN].report.locality == 1.0


def test_where_they_cost_no_more_than_edits_it_is_the_repair_that_demands_them() -> None:
    model, x, labels, locality, _ = task()
    method, near = MinimalNorm(LAST, "drift", margin=0.2), x + 0.2 * randn(3, 4, seed=9)
    alone = nnrepair.fix(model, Edits(x, labels), locality, method=method)
    wanted = nnrepair.fix(model, Edits(x, labels, neighbours=(near, labels)), locality, method=method)
    demanded = nnrepair.fix(model, Edits(torch.cat([x, near]), torch.cat([labels, labels])), locality, method=method)
    with torch.no_grad():
        least = [float(Argmax(labels).margin(each.model(near)).min()) for each in (alone, wanted, demanded)]
    assert least[0] < 0.11 and least[1] == pytest.approx(0.2, rel=1e-4) and least[2] == pytest.approx(0.2, rel=1e-4)
    for p, q in zip(demanded.model.parameters(), wanted.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [LAST, HIDDEN])
def test_what_cannot_be_reached_costs_no_edit(layer: str) -> None:
    model, x, labels, locality, near = task()
    against = EditScope(torch.cat([x, near.inputs]), torch.cat([(labels + 1) % 3, near.criterion.labels]))
    result = nnrepair.fix(model, Edits(x, labels, neighbours=against), locality, method=MinimalNorm(layer))
    assert result.report.success_rate == 1.0 and result.report.locality == 1.0
    assert result.certificate is None


def test_the_report_says_how_many_hold_and_which_are_measured_twice() -> None:
    model, x, labels, locality, near = task()
    edits = Edits(x, labels, neighbours=near)
    result = nnrepair.fix(model, edits, locality, method=MinimalNorm(HIDDEN), edit_scope=near[torch.arange(5)])
    notes = " ".join(result.report.notes)
    assert f"{reached(result.model, near)} of 12 hold, {reached(model, near)} did before" in notes
    assert "5 points of the edit scope are neighbours" in notes
    other = nnrepair.fix(
        model, edits, locality, method=MinimalNorm(HIDDEN), edit_scope=(near.inputs + 0.1, labels[near.of])
    )
    assert "of the edit scope are neighbours" not in " ".join(other.report.notes)


def test_neighbours_that_hold_anyway_change_nothing() -> None:
    model, x, labels, locality, _ = task()
    method = MinimalNorm(LAST)
    alone = nnrepair.fix(model, Edits(x, labels), locality, method=method)
    result = nnrepair.fix(model, Edits(x, labels, neighbours=(x, labels)), locality, method=method)
    for p, q in zip(alone.model.parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_a_sequence_works_towards_the_neighbours_of_its_edits() -> None:
    model, x, labels, locality, near = task()
    asked = {"mode": "successive", "edit_scope": near, "method": MinimalNorm(HIDDEN)}
    alone = nnrepair.fix(model, Edits(x, labels), locality, **asked)
    history = nnrepair.fix(model, Edits(x, labels, neighbours=near), locality, **asked)
    assert history.success_retain_rate == 1.0
    assert history.generalization_retain_rate > alone.generalization_retain_rate


def test_what_cannot_use_neighbours_says_so() -> None:
    model, x, labels, locality, near = task()
    edits = Edits(x, labels, neighbours=near)
    for method in (FineTune(), GRACE(), EGNN()):
        with pytest.raises(InvalidInput, match=f"{type(method).__name__} works towards no neighbours.*of="):
            nnrepair.fix(model, edits, locality, method=method)
    lines = Edits(Segments(x, x + 0.1), labels, neighbours=near)
    with pytest.raises(InvalidInput, match="edits about regions have no neighbours"):
        nnrepair.fix(model, lines, locality, method=MinimalNorm(LAST))
    for wrong, complaint in (
        (EditScope(near.inputs, near.criterion, near.of + 1), r"must name edits 0\.\.2, got 1\.\.3"),
        ((near.inputs[:, :3], near.criterion), "neighbours"),
        ((near.inputs[:0], near.criterion.labels[:0]), "neighbours is empty"),
    ):
        with pytest.raises(InvalidInput, match=complaint):
            nnrepair.fix(model, Edits(x, labels, neighbours=wrong), locality, method=MinimalNorm(LAST))
