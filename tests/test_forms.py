"""Affine forms, followed forward: what they hold is true, and close where intervals are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import mlp

from benchmarks.verify import layers
from nnrepair.deadline import NEVER
from nnrepair.verify import Box, Case, Halfspace, Property, check
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search import bounds
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.forms import Form
from nnrepair.verify.search.intervals import outputs_over

KINDS = [
    "sigmoid",
    "gelu by tanh",
    "round",
    "sqrt",
    "square",
    "sign",
    "attention",
    "layer norm",
    "recurrent",
    "extremes",
]


@pytest.mark.parametrize("kind", [*KINDS, "transposed convolution"])
def test_bounds_hold_to_forty_digits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FORM_WORK", 0)
    monkeypatch.setattr(layers, "BOXES", 8)
    monkeypatch.setattr(layers.mp, "dps", layers.DIGITS)
    for seed in range(2):
        count, wrong = layers.one(kind, np.random.default_rng([5, seed]))
        assert not wrong and count["informative"]


def test_they_are_closer_than_intervals() -> None:
    model = mlp(3, 20, 20, 20, 2).double()
    graph, low, high = lower(model, (3,)), -0.1 * torch.ones(4, 3).double(), 0.1 * torch.ones(4, 3).double()
    form = Form.of_inputs(low, high)
    for node in graph.nodes[1:]:
        if node.affine is not None:
            form = form.through(node.affine, NEVER)
        elif node.activation is not None:
            form = form.bent(node.activation, *form.interval())
    plain, mine = outputs_over(graph, low, high), form.interval()
    assert bool(((mine[1] - mine[0]) < 0.7 * (plain[1] - plain[0])).all())
    x = low[:1] + torch.rand(500, 3, generator=torch.Generator().manual_seed(0)).double() * (high - low)[:1]
    y = graph(x)
    assert bool((mine[0][:1] <= y).all() and (y <= mine[1][:1]).all())


def test_numbers_that_are_too_large_claim_nothing() -> None:
    large = torch.full((1, 2), 1e308, dtype=torch.float64)
    form = Form(large, large[:, None], torch.zeros_like(large))
    low, high = Form.total([form, form, form]).interval()
    assert bool(torch.isinf(low).all() and torch.isinf(high).all())


def test_verdicts_with_forms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FORM_WORK", 0)
    model = mlp(2, 30, 30, 1, seed=4)
    assert Bounder(lower(model, (2,)), *(torch.full((2,), v).double() for v in (-1.0, 1.0))).has_forms
    with torch.no_grad():
        least = float(model(2 * torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)) - 1).min())
    for bound, verdict in ((least - 0.02, "holds"), (least + 0.01, "violated")):
        prop = Property([Case(Box([-1, -1], [1, 1]), ((Halfspace((1,), bound),),))], 1)
        assert check(model, prop, timeout=60).verdict == verdict
