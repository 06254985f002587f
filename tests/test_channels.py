"""Outputs in play alone are the network's own outputs; networks that are not made of channels are left whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, LocalitySet
from nnrepair.jacobian.channels import Channels
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.suffix import Suffix
from nnrepair.methods import MinimalNorm
from nnrepair.methods.minimal_norm import trial as trials
from nnrepair.methods.minimal_norm.coordinates import Coordinates
from nnrepair.methods.minimal_norm.demands import demands_of
from nnrepair.methods.minimal_norm.lagrangian import Lagrangian
from nnrepair.methods.minimal_norm.trial import Trial
from nnrepair.spec.problem import pose
from nnrepair.spec.running import call, call_with

CLASSES = 80


def convolutions(*tail: nn.Module, kernel: int = 1, classes: int = CLASSES) -> nn.Module:
    """Return two convolutions over 6 x 6 images, and what follows; by default what ends SqueezeNet."""
    torch.manual_seed(0)
    last = nn.Conv2d(8, classes, kernel, stride=1 if kernel == 1 else 2, padding=kernel // 2)
    end = tail or (nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Dropout(), last, *end).eval()


class Functions(nn.Module):
    """The same, written with functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3), nn.Conv2d(8, CLASSES, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.first(x).relu())).mean((2, 3))


class Twice(Functions):
    """What the last convolution computes is used twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.first(x).relu())
        return (y + y.mean(1, keepdim=True)).mean((2, 3))


def images(n: int, seed: int = 1) -> Tensor:
    return randn(n, 2, 6, 6, seed=seed)


@pytest.mark.parametrize(
    ("make", "made"),
    [
        (convolutions, True),
        (lambda: convolutions(kernel=3), True),
        (Functions, True),
        (lambda: convolutions(classes=10), False),  # too few to leave some out
        (lambda: convolutions(nn.BatchNorm2d(CLASSES), nn.AdaptiveAvgPool2d(1), nn.Flatten()), False),
        (lambda: convolutions(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)), False),
        (lambda: convolutions(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CLASSES, CLASSES)), False),
        (lambda: convolutions(nn.ReLU(), nn.Flatten()), False),  # an output for each position
        (Twice, False),
    ],
)
def test_chosen_outputs_and_their_gradients_are_the_networks(make: Callable[[], nn.Module], made: bool) -> None:
    model, x = make(), images(7)
    names = [n for n, _ in model.named_parameters()]
    found = Channels.of(model, names, x)
    assert (found is not None) == made
    if found is None:
        return
    assert found.count == CLASSES
    values = {n: (p + 0.1).detach().requires_grad_(True) for n, p in model.named_parameters()}
    chosen = torch.stack([torch.randperm(CLASSES, generator=torch.Generator().manual_seed(k))[:9] for k in range(7)])
    want = call_with(model, dict(values), x).gather(1, chosen)
    mine = found.outputs(values, x, chosen)
    assert torch.allclose(mine, want, atol=1e-5)
    seed = randn(7, 9, seed=3)
    pairs = zip(*(torch.autograd.grad(y, list(values.values()), seed) for y in (mine, want)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_a_hook_is_not_passed_over() -> None:
    model, x = convolutions(), images(4)
    model[3].register_forward_hook(lambda module, inputs, y: 2 * y)
    assert Channels.of(model, ["3.weight"], x) is None


@pytest.mark.parametrize("names", [["3.weight", "3.bias"], ["0.weight", "0.bias"]])
def test_what_is_in_play_costs_what_it_costs_in_the_whole_network(names: list[str]) -> None:
    """Where all that is missed is in play, the Lagrangian and its gradient are those of all conditions."""
    model, x = convolutions(), images(6)
    with torch.no_grad():
        ranked = model(x).argsort(1, descending=True)
    edits = Edits(x, ranked[:, 3])  # three classes lie above each label
    problem = pose(model, edits, LocalitySet(images(20, seed=2)))
    demands = demands_of(problem, 0.0, "hard")
    cut = Suffix.of(problem.model, names, x)
    demands = [type(d)(cut.values(d.inputs), d.criterion, d.need, d.soft, d.name, d.index) for d in demands]
    line = Linearization(cut.module, names, demands[0].inputs, [])
    found = []
    for some in (True, False):
        trial = Trial(line, cut, demands)
        coordinates = Coordinates.of(line.groups, None, trial.like)
        if some:
            trial.look({n: torch.zeros_like(p) for n, p in line.parameters.items()})
        state = Lagrangian.of_edits(trial, demands, coordinates, np.zeros(coordinates.size), lambda: None)
        assert state is not None
        missed = state.missed()[0]
        assert bool(torch.isinf(missed[:, 1:]).any()) == some or not some
        assert int((missed > 0).sum()) == 6 * 3
        found.append((state.penalty, *state._at(state.x)))
    assert np.allclose(found[0][0], found[1][0], rtol=1e-4)
    assert np.allclose(found[0][1], found[1][1], rtol=1e-4)
    assert np.allclose(found[0][2], found[1][2], rtol=1e-3, atol=1e-5 * np.abs(found[1][2]).max())


def test_conditions_that_cost_something_stay_in_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "WATCHED", 2)
    model, x = convolutions(), images(5)
    problem = pose(model, Edits(x, torch.arange(5)))
    demands = demands_of(problem, 0.1, "hard")
    line = Linearization(problem.model, ["3.weight"], x, [])
    trial = Trial(line, Suffix(problem.model, None), demands)
    none = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in line.parameters.items()}
    (look,) = trial.look(none)
    some, held = torch.tensor([4, 1]), torch.zeros(2, CLASSES, dtype=torch.bool)
    held[1, 77] = True
    trial.play(0, some, held)
    missed = demands[0].need[some] - trial.slack(none, 0, some)
    with torch.no_grad():
        true = demands[0].missed(call(problem.model, x))[some]
    worst = torch.zeros_like(held).scatter(1, true.topk(2).indices, True)
    assert torch.equal(missed > -torch.inf, worst | held)
    assert torch.allclose(missed[worst | held], true[worst | held], atol=1e-5)
    assert torch.allclose(look.worst[some], true.amax(1), atol=1e-5)


@pytest.mark.parametrize("layer", ["3", "0"])
def test_a_network_of_channels_is_repaired(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    outputs = Channels.outputs
    monkeypatch.setattr(Channels, "outputs", lambda *a: (runs.append(1), outputs(*a))[1])
    model, x, kept = convolutions(), images(3), images(6, seed=5)
    with torch.no_grad():
        labels = model(x).argsort(1, descending=True)[:, 1]
    result = nnrepair.fix(model, Edits(x, labels), LocalitySet(kept), method=MinimalNorm(layer))
    assert len(runs) > 10
    assert result.report.success_rate == 1.0
    assert result.report.locality == 1.0


def test_other_networks_are_not_taken_apart() -> None:
    assert Channels.of(mlp(3, 100), ["0.weight"], randn(5, 3, seed=1)) is None
