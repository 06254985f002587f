"""MEND, MALMEN and KnowledgeEditor: before training plain steps, after training better ones.

MALMEN's merge is a ridge regression; what KnowledgeEditor adds has low rank, and its constraint a multiplier.
"""

from __future__ import annotations

import copy
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
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet
from nnrepair.domains.graphs.nodes import NodeEdits, NodeLocality
from nnrepair.methods import MALMEN, MEND, Editor, Episode, KnowledgeEditor, RandomLabels
from nnrepair.methods.hypernetworks.base import Learned
from nnrepair.methods.hypernetworks.factors import GradientFactors
from nnrepair.methods.hypernetworks.knowledge_editor import EXERCISES, FALLS, Conditioner, Constraint
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


@pytest.mark.parametrize("kind", [MEND, KnowledgeEditor])
@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("trained", [False, True])
def test_at_its_start_a_step_is_one_of_gradient_descent(kind: Any, case: int, trained: bool) -> None:
    model, x, layer = cases()[case]
    edits, name, method = Edits(x, mistakes(model, x)), f"{layer}.weight", kind(layer, start=0.02, rounds=1)
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


def said(inp: int, out: int) -> Conditioner:
    """Return what masks and shifts as if it were trained."""
    conditioner = Conditioner(inp, out, 16, torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditioner.last.weight.copy_(randn(2 * (inp + out) + 1, 16, seed=5))
        conditioner.spread.copy_(randn(inp + out, seed=6).abs() + 0.1)
    return conditioner


@pytest.mark.parametrize("case", range(3))
def test_the_knowledge_editor_is_the_paper_s_update(case: int) -> None:
    model, x, layer = cases()[case]
    edits, name = Edits(x[:1], mistakes(model, x)[:1]), f"{layer}.weight"
    weight = model.get_parameter(name)
    found = GradientFactors(model, [name]).at({name: weight}, edits, 0.0)[name]
    inp, out = found.u.shape[1], found.d.shape[1]
    conditioner = said(inp, out)
    with torch.no_grad():
        change, (gate, mask, shift) = conditioner(found), conditioner.said(found)
        rows = conditioner.standard(torch.cat([found.u, found.d], 1)).mean(0)
        c, r, q, s, e = conditioner.last(torch.tanh(conditioner.first(rows))).split([inp, out, inp, out, 1])
    G = torch.autograd.grad(edits.criterion.loss(model(x[:1])).sum(), weight)[0].flatten(1)
    a = torch.outer(torch.softmax(r, 0), 1 + c)
    b = torch.outer(torch.softmax(s, 0) * conditioner.spread[inp:], q * conditioner.spread[:inp])
    assert torch.allclose(change, 2 * out * torch.sigmoid(e) * (G * a + b), atol=1e-5)
    assert 0 < float(gate) < 2
    rank = [int(torch.linalg.matrix_rank(part.double(), rtol=1e-5)) for part in (mask, shift)]
    assert rank == [1, 1]
    if len(found.u) == 1:  # the gradient of one edit in a linear layer is of rank 1, and so is what is left of it
        assert int(torch.linalg.matrix_rank(change.double(), rtol=1e-5)) == 2


def test_what_has_no_gradient_is_not_changed() -> None:
    nothing = GradientFactors(mlp(5, 3), ["0.weight"]).at(
        {"0.weight": torch.eye(3, 5) * 100}, Edits(torch.eye(5)[:1], [0]), -1e9
    )["0.weight"]
    assert len(nothing.u) == 0 and not said(5, 3)(nothing).any()


def test_the_multiplier_climbs_while_the_constraint_is_violated_and_is_never_negative() -> None:
    constraint = Constraint(1.0, 0.01)
    optimizer = torch.optim.Adam([constraint.multiplier], lr=0.1)
    for moved, up, steps in ((5.0, True, 50), (0.0, False, 300)):
        before = float(constraint.multiplier.detach())
        for _ in range(steps):
            optimizer.zero_grad()
            divergence = torch.tensor(moved, requires_grad=True)
            loss = constraint(divergence, 0.0)
            loss.backward()
            assert divergence.grad == constraint.multiplier.detach()  # what the network is taught is the Lagrangian
            assert float(loss.detach()) == pytest.approx(float(constraint.multiplier.detach()) * (moved - 1.0))
            optimizer.step()
        assert (float(constraint.multiplier.detach()) > before) is up
    constraint.look(0.0)
    assert float(constraint.multiplier.detach()) == 0.0


def test_less_is_allowed_once_most_edits_hold() -> None:
    constraint = Constraint(1.0, 0.7)
    limits = []
    for held in (0.5, 1.0, 0.8, 1.0):
        for _ in range(EXERCISES):
            constraint.look(held)
        limits.append(float(constraint.limit))
    assert limits == pytest.approx([70.0, 70 * FALLS, 70 * FALLS, 70 * FALLS**2])
    for _ in range(30 * EXERCISES):
        constraint.look(1.0)
    assert float(constraint.limit) == pytest.approx(0.7)


@pytest.mark.parametrize("kind", [MEND, MALMEN, KnowledgeEditor])
@pytest.mark.parametrize("owners", [True, False])
def test_successive_training_asks_for_all_edits_so_far_in_the_network_that_the_last_one_left(
    kind: Any, owners: bool
) -> None:
    model, x, near = mlp(5, 8, 3), randn(3, 5, seed=1), randn(6, 5, seed=2)
    labels, of = mistakes(model, x), torch.tensor([2, 0, 1, 0, 2, 1])
    scope = EditScope(near, labels[of], of if owners else None)
    problem = pose(model, Edits(x, labels), LocalitySet(randn(9, 5, seed=3)), scope)
    method = kind("2", start=0.3, successive=True, locality_weight=0.5)
    learned = method.begin(model, torch.Generator().manual_seed(0))
    first = copy.deepcopy(learned)
    loss = method.loss(learned, problem)
    loss.backward()
    found = float(loss.detach())
    name, slow, network = "2.weight", [], copy.deepcopy(model)
    for k in range(3):
        factors = GradientFactors(network, [name]).at({name: network.get_parameter(name)}, problem.edits[[k]], 0.0)
        if k == 0:
            first.transforms[0].measure(factors[name])
        with torch.no_grad():
            network.get_parameter(name).add_(method.change(first, 0, factors[name]))
            so_far = torch.arange(k + 1)
            total = problem.edits.criterion[so_far].loss(network(x[: k + 1]).double()).mean()
            mine = of <= k if owners else torch.full((6,), k == 2)
            if bool(mine.any()):
                total += EditScope(near, labels[of]).criterion[mine].loss(network(near[mine]).double()).mean()
            y = network(problem.locality.inputs).double()
            total += 0.5 * problem.kind.divergence(problem.before.double(), y).mean()
            total -= 0.5 * 0.1 if kind is KnowledgeEditor else 0.0  # what is allowed
        slow.append(float(total))
    assert found == pytest.approx(sum(slow) / 3, rel=1e-5)


@pytest.mark.parametrize("kind", [MEND, MALMEN, KnowledgeEditor])
def test_successive_training_teaches_several_edits(kind: Any) -> None:
    model, x = mlp(5, 8, 3), randn(60, 5)
    method = kind("2", successive=True, start=0.3)
    editor = method.prepare(model, RandomLabels(x, model(x).argmax(1), edits=4, locality=9), steps=8)
    untrained = method.begin(model, torch.Generator().manual_seed(0)).state_dict()
    moved = {name for name, value in editor.learned.items() if not torch.equal(value, untrained[name])}
    assert not editor.stopped and "rates" in moved and any("transforms" in name for name in moved)


def test_one_edit_is_trained_alike_in_either_way() -> None:
    model, x = mlp(5, 8, 3), randn(30, 5)
    episodes = RandomLabels(x, model(x).argmax(1), edits=1, locality=9)
    a, b = (MEND("2", successive=way).prepare(model, episodes, steps=5) for way in (True, False))
    assert all(torch.equal(a.learned[name], b.learned[name]) for name in a.learned)


@pytest.mark.parametrize(("kind", "start"), [(MEND, 0.1), (MALMEN, 0.5), (KnowledgeEditor, 0.1)])
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


@pytest.mark.parametrize("kind", [MEND, MALMEN, KnowledgeEditor])
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
    for options, message in (
        ({"rank": 0}, "rank must be an integer >= 1"),
        ({"start": 0}, "start must be a finite"),
        ({"successive": 3}, "successive must be True or False, got 3"),
        ({"allowed": 0.0}, "allowed must be a number > 0 of nats, got 0.0"),
    ):
        with pytest.raises(InvalidInput, match=message):
            KnowledgeEditor(**options)  # type: ignore[arg-type]
    model, x = mlp(4, 5, 3), randn(20, 4)
    episodes = RandomLabels(x, model(x).argmax(1), edits=1, locality=5)
    with pytest.raises(InvalidInput, match="has no weight matrix"):
        MEND("0.bias").prepare(model, episodes, steps=1)
    words = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).eval()
    ids = torch.randint(5, (20, 2), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInput, match="no linear layer or convolution"):
        MEND("0").prepare(words, RandomLabels(ids, words(ids).argmax(1), edits=1, locality=5), steps=1)
