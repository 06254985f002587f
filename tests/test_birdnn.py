"""Mistakes that imitate: the nearest right behaviour with which they hold, and the units that differ most."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Convolution, net, ring
from networks import clusters, mistakes, mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Argmin, Edits, InvalidInput, LocalitySet, Near, Threshold
from nnrepair.domains.graphs.nodes import NodeEdits, NodeLocality
from nnrepair.methods import BIRDNN
from nnrepair.methods.birdnn import _Imitating, imitated, responsible
from nnrepair.spec.problem import pose


@pytest.mark.parametrize(
    "criterion",
    [Argmax([0, 2, 1, 0]), Argmin([3, 2, 1, 0]), Threshold([[1, 0, -1, 1]] * 4)],
    ids=["max", "min", "signs"],
)
def test_the_nearest_behaviour_that_would_do_is_imitated(criterion: Any) -> None:
    y, right = randn(4, 4, dtype=torch.float64), randn(300, 4, seed=1, dtype=torch.float64)
    wanted, found = imitated(criterion, y, right, 0.01)
    assert found == 4
    for k in range(4):
        one = criterion[torch.tensor([k])]
        would = [z for z in right if bool(one.holds(z[None])) and float(one.margin(z[None])) >= 0.01]
        nearest = min(would, key=lambda z: float((z - y[k]).norm()))
        assert torch.equal(wanted[k], nearest)


def test_without_any_such_behaviour_the_nearest_outputs_do() -> None:
    y, right = torch.tensor([[1.0, 0.0, 0.0]]).double(), torch.tensor([[2.0, 1.0, 0.0]]).double()
    wanted, found = imitated(Argmax([1]), y, right, 0.01)
    assert found == 0 and int(wanted.argmax()) == 1 and float((wanted - y).norm()) < 1.5
    near = Near(torch.zeros(1, 3), 0.1)
    wanted, found = imitated(near, y, right, 0.0)
    assert found == 0 and bool(near.holds(wanted).all())


def test_what_is_lowered_is_the_difference_and_what_ends_it_is_what_was_asked() -> None:
    asked, wanted = Argmax([0, 1]), randn(2, 3, dtype=torch.float64)
    made = _Imitating(asked, wanted, 2.0)
    y = randn(2, 3, seed=4, dtype=torch.float64)
    assert torch.allclose(made.loss(y), 2 * (y - wanted).square().mean(1)) and not made.loss(wanted).any()
    assert torch.equal(made.holds(y), asked.holds(y)) and torch.equal(made.slack(y), asked.slack(y))
    assert torch.allclose(made[torch.tensor([1])].loss(y[1:]), made.loss(y)[1:])


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["dense", "convolution"])
@pytest.mark.parametrize("units", [1, 4])
def test_only_the_units_change_that_differ_most(kind: str, units: int) -> None:
    model, x, kept = mlp(5, 8, 3), randn(3, 5), clusters(80, 5, seed=2)
    if kind == "convolution":
        model, x, kept = seeded(Vision).eval(), randn(3, 2, 6, 6), randn(40, 2, 6, 6, seed=7)
    problem = pose(model, Edits(x, mistakes(model, x)), LocalitySet(kept))
    names = [name for name, _ in model.named_parameters()]
    masks = responsible(problem, names, units)
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight"):
            module.register_forward_hook(lambda m, i, y, name=name: seen.setdefault(name, []).append(y.detach()))
    with torch.no_grad():
        model(x), model(kept)
    apart = {
        (name, unit): abs(float(a.double().mean() - b.double().mean()))
        for name, (first, second) in seen.items()
        for unit, (a, b) in enumerate(zip(first.unbind(1), second.unbind(1), strict=True))
    }
    chosen = sorted(apart, key=lambda one: -apart[one])[:units]
    marked = {(n.rpartition(".")[0], k) for n, m in masks.items() for k in torch.nonzero(m).flatten().tolist()}
    assert marked == set(chosen)
    for module in model.modules():
        module._forward_hooks.clear()
    result = nnrepair.fix(model, problem.edits, kept, method=BIRDNN(units=units, lr=0.02, steps=30), throw=False)
    for name, old in model.named_parameters():
        moved = (
            (result.model.get_parameter(name) - old).flatten(1).any(1)
            if old.ndim > 1
            else result.model.get_parameter(name) != old
        )
        assert {(name.rpartition(".")[0], k) for k in torch.nonzero(moved).flatten().tolist()} <= set(chosen)


def test_graphs() -> None:
    graph, model = ring(), net(Convolution)
    y = model(graph.x, graph.edge_index)
    edits = NodeEdits(graph, [1, 6], y[[1, 6]].argsort(1)[:, 1])
    kept = NodeLocality(graph, torch.tensor([3, 9, 10]), labels=None)
    assert nnrepair.fix(model, edits, kept, method=BIRDNN(lr=0.02)).outcome.ok
    few = nnrepair.fix(model, edits, kept, method=BIRDNN(lr=0.02, units=2, steps=20), throw=False)
    assert few.stats["steps"] <= 20


def test_what_cannot_be() -> None:
    model, x = mlp(4, 5, 3), randn(2, 4)
    with pytest.raises(InvalidInput, match="give a locality set with some"):
        nnrepair.fix(model, (x, mistakes(model, x)), method="birdnn")
    for options, message in (
        ({"units": -1}, "units must be an integer >= 0"),
        ({"weight": 0}, "weight must be a number"),
    ):
        with pytest.raises(InvalidInput, match=message):
            BIRDNN(**options)
