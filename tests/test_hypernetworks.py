"""MEND and MALMEN: before training plain steps, after training better ones; MALMEN's merge is a ridge regression."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import Convolution, net, ring
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mistakes, mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, InvalidInput, LocalitySet
from nnrepair.domains.graphs.nodes import NodeEdits, NodeLocality
from nnrepair.methods import MALMEN, MEND, Editor, Episode, RandomLabels
from nnrepair.methods.hypernetworks.base import Learned
from nnrepair.methods.hypernetworks.factors import GradientFactors
from nnrepair.methods.hypernetworks.malmen import merged
from nnrepair.spec.problem import pose


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3, stride=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def cases() -> list[tuple[nn.Module, Tensor, str]]:
    return [
        (mlp(5, 8, 6, 3), randn(4, 5), "2"),
        (seeded(Vision).eval(), randn(3, 2, 7, 7), "conv"),
        (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)).eval(), randn(2, 3, 4), "0"),
    ]


@pytest.mark.parametrize("case", range(3))
def test_factors_are_the_gradient(case: int) -> None:
    model, x, layer = cases()[case]
    edits, name = Edits(x, mistakes(model, x)), f"{layer}.weight"
    weight = model.get_parameter(name)
    found = GradientFactors(model, [name]).at({name: weight}, edits, 0.0)[name]
    (gradient,) = torch.autograd.grad(edits.criterion.loss(model(x)).sum(), weight)
    assert torch.allclose((found.d.T @ found.u).reshape(weight.shape), gradient, atol=1e-6)
    assert bool(found.d.any(1).all())


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("trained", [False, True])
def test_mend_at_its_start_is_a_step_of_gradient_descent(case: int, trained: bool) -> None:
    model, x, layer = cases()[case]
    edits, name, method = Edits(x, mistakes(model, x)), f"{layer}.weight", MEND(layer, start=0.02, rounds=1)
    learned = method.begin(model, torch.Generator().manual_seed(0))
    assert isinstance(learned, Learned)
    if trained:  # seen, but nothing learned: spreads that differ change nothing
        found = GradientFactors(model, [name]).at(learned.weights(model), edits, 0.0)[name]
        learned.transforms[0].measure(found)
        assert not torch.equal(learned.transforms[0].spread, torch.ones_like(learned.transforms[0].spread))
    problem = pose(model, edits)
    after = method.edit(learned, problem).model.get_parameter(name)
    if method.edit(learned, problem).stats["rounds"] and not torch.equal(after, model.get_parameter(name)):
        (gradient,) = torch.autograd.grad(edits.criterion.loss(model(x)).sum(), model.get_parameter(name))
        assert torch.allclose(after, model.get_parameter(name) - 0.02 * gradient, atol=1e-5)
    moved = method.change(
        learned, 0, GradientFactors(model, [name]).at(learned.weights(model), edits, 0.0)[name]
    ).reshape(after.shape)
    (gradient,) = torch.autograd.grad(edits.criterion.loss(model(x)).sum(), model.get_parameter(name))
    assert torch.allclose(moved, -0.02 * gradient, atol=1e-6)
    assert float((moved.detach() * gradient).sum()) < 0  # down, not up


@given(seed=st.integers(0, 1000), rows=st.integers(1, 12), weight=st.floats(0.01, 10))
@settings(max_examples=25, deadline=None)
def test_malmen_merges_by_ridge_regression(seed: int, rows: int, weight: float) -> None:
    keys, wanted = randn(rows, 6, seed=seed).double(), randn(rows, 4, seed=seed + 1).double()
    found = merged(keys, wanted, torch.tensor(weight))
    size = float(torch.tensor(weight).double()) * float(keys.square().sum(1).mean())
    above = np.vstack([keys.numpy(), math.sqrt(size) * np.eye(6)])
    right = np.vstack([wanted.numpy(), np.zeros((6, 4))])
    slow = np.linalg.lstsq(above, right, rcond=None)[0].T
    assert np.abs(found.numpy() - slow).max() <= 1e-8 * max(1.0, np.abs(slow).max())


def test_edits_whose_keys_agree_do_not_add_up() -> None:
    key, wanted = randn(1, 6), randn(1, 4)
    one, ten = (merged(key.repeat(n, 1), wanted.repeat(n, 1), torch.tensor(1e-3)) for n in (1, 10))
    assert torch.allclose(one, ten, rtol=0.01)


@pytest.mark.parametrize(("kind", "start"), [(MEND, 0.1), (MALMEN, 0.5)])
def test_training_makes_a_step_do_more_of_what_is_wanted(kind: Any, start: float) -> None:
    model, x = mlp(6, 24, 4, seed=2), randn(120, 6, seed=3)
    labels = model(x).argmax(1)
    method = kind("0", start=start, lr=3e-3, rounds=1)
    episodes = RandomLabels(x, labels, edits=1, locality=40)
    losses = []
    for steps in (1, 150):
        editor = method.prepare(model, episodes, steps=steps)
        learned = editor.restored(model)
        total = 0.0
        for k, episode in enumerate(episodes(seed=99)):
            if k == 30:
                break
            problem = pose(model, episode.edits, episode.locality_set)
            total += float(method.loss(learned.train(), problem).detach())
        losses.append(total)
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", [MEND, MALMEN])
def test_saved_editors_edit_alike_and_convolutions_and_several_layers_are_edited(kind: Any, tmp_path: Path) -> None:
    model, x = seeded(Vision).eval(), randn(30, 2, 7, 7)
    method = kind(["conv", "head"], start=1.0)
    editor = method.prepare(model, RandomLabels(x, model(x).argmax(1), edits=1, locality=9), steps=3)
    again = Editor.load(editor.save(tmp_path / "editor.safetensors"))
    assert again == editor
    asked = (x[:1], mistakes(model, x[:1]))
    a, b = (nnrepair.fix(model, asked, method=each) for each in (editor, again))
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))
    moved = {n for n, p in a.model.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert moved == {"conv.weight", "head.weight"} and a.stats["rounds"] >= 1


def test_graphs() -> None:
    graph, model = ring(), net(Convolution)
    y = model(graph.x, graph.edge_index)
    wrong = torch.tensor([1, 6])
    edits = NodeEdits(graph, wrong, y[wrong].argsort(1)[:, 1])
    kept = NodeLocality(graph, torch.tensor([3, 9, 10]))
    editor = MEND("last", start=0.5).prepare(model, [Episode(edits, LocalitySet(kept.inputs))], steps=3)
    assert nnrepair.fix(model, edits, kept, method=editor).outcome.ok


def test_options_and_layers_that_cannot_be() -> None:
    for options, message in (({"rank": 0}, "rank must be an integer >= 1"), ({"start": 0}, "start must be a finite")):
        with pytest.raises(InvalidInput, match=message):
            MEND(**options)  # type: ignore[arg-type]
    model, x = mlp(4, 5, 3), randn(20, 4)
    episodes = RandomLabels(x, model(x).argmax(1), edits=1, locality=5)
    with pytest.raises(InvalidInput, match="has no weight matrix"):
        MEND("0.bias").prepare(model, episodes, steps=1)
    words = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).eval()
    ids = torch.randint(5, (20, 2), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInput, match="no linear layer or convolution"):
        MEND("0").prepare(words, RandomLabels(ids, words(ids).argmax(1), edits=1, locality=5), steps=1)
