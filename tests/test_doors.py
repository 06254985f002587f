"""The campaign of random calls: a small run, and that it would notice what is false."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import clusters, mistakes, mlp, randn

import nnrepair
from nnrepair import Argmax, Edits, LocalitySet, Segments
from nnrepair.methods import MinimalNorm
from nnrepair.results.outcome import Outcome

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks.doors import campaign, draw, truth


def test_random_calls_end_as_promised() -> None:
    found = campaign.block(0, 12, seed=7)
    assert found["wrong"] == []
    assert sum(found["outcomes"].values()) == 12
    assert "repaired" in found["outcomes"]


def repaired(norm: str = "linf") -> tuple[draw.Call, Any]:
    model, x = mlp(4, 8, 3).eval(), randn(3, 4, seed=1)
    call = draw.Call(
        model, Edits(x, mistakes(model, x)), LocalitySet(clusters(20, 4)), MinimalNorm(layer="2", norm=norm)
    )
    return call, nnrepair.fix(model, call.edits, call.locality, method=call.method)


def faults(call: draw.Call, result: Any, **changed: Any) -> str:
    return " ".join(truth.false(call, dataclasses.replace(result, **changed), truth.bits(call.model)))


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "mean+max"])
def test_nothing_is_false_about_a_true_result(norm: str) -> None:
    call, result = repaired(norm)
    assert faults(call, result) == ""


def test_edits_that_do_not_hold_are_noticed() -> None:
    call, result = repaired()
    assert "edits [0, 1, 2]" in faults(call, result, model=call.model)
    report = dataclasses.replace(result.report, held_after=[True, False, True])
    assert "edits [1]: [False] was said" in faults(call, result, report=report)


def test_lost_points_are_noticed() -> None:
    call, result = repaired()
    with torch.no_grad():
        result.model[2].weight.neg_()
    assert "to keep are lost" in faults(call, result)
    assert "the patch makes another network" in faults(call, result)


def test_another_network_of_the_users_is_noticed() -> None:
    call, _ = repaired()
    before = truth.bits(call.model)
    with torch.no_grad():
        call.model[0].bias[0] += 1
    assert "the user's network has changed" in " ".join(truth.untouched(call, before))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stats: {"lower_bound": stats["lower_bound"] * 1.01}, "no change was to be smaller"),
        (lambda stats: {"objective": stats["objective"] * 0.99}, "is needed"),
    ],
)
def test_a_size_that_is_not_the_least_is_noticed(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    call, result = repaired()
    assert words in faults(call, result, stats=result.stats | change(result.stats))


def test_a_contradiction_that_is_none_is_noticed() -> None:
    call, result = repaired()
    report = dataclasses.replace(result.report, held_after=[False] * 3)
    said = faults(call, result, model=call.model, report=report, outcome=Outcome("infeasible", ""))
    assert "infeasible, but a change of" in said


def test_a_region_that_does_not_hold_is_noticed() -> None:
    model, x = mlp(4, 8, 3).eval(), randn(2, 4, seed=1)
    call = draw.Call(model, Edits(Segments(x[:1], x[1:]), Argmax([1])), None, MinimalNorm(layer="2"))
    result = nnrepair.fix(model, call.edits, method=call.method)
    assert faults(call, result) == ""
    assert "region 0 was said to hold" in faults(call, result, model=model)
