"""Networks that work on every position alone: only those that are in play are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, Near
from nnrepair.domains.inpainting.networks import CNP, AttentiveCNP, Completion
from nnrepair.domains.inpainting.task import patched, shown
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.positions import Positions
from nnrepair.jacobian.suffix import Suffix
from nnrepair.methods import MinimalNorm
from nnrepair.methods.minimal_norm.coordinates import Coordinates
from nnrepair.methods.minimal_norm.demands import demands_of
from nnrepair.methods.minimal_norm.lagrangian import Lagrangian
from nnrepair.methods.minimal_norm.trial import Trial
from nnrepair.spec.criteria import flat
from nnrepair.spec.problem import pose
from nnrepair.spec.running import call_with

SIDE = 8


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=drawn(seed))


def seeded(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for k, (_, p) in enumerate(module.named_parameters()):
            p.copy_(randn(*p.shape, seed=k) / max(1, p[0].numel()) ** 0.5)
    return module.eval()


class Pixels(nn.Module):
    """Numbers of every pixel from some of its own and some of the whole image; then something in which it may end."""

    def __init__(self, end: Callable[[Tensor], Tensor], first: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        self.own, self.whole, self.out = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(16, 3)
        self.end, self.first = end, first

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.own(x) + self.whole(x.mean(1, keepdim=True)))
        return self.end(self.out(self.first(hidden)))


def image(y: Tensor) -> Tensor:
    return y.transpose(1, 2).unflatten(2, (SIDE, SIDE))


LAST = ["own.weight", "out.weight", "out.bias"]


@pytest.mark.parametrize(
    ("network", "made"),
    [
        (lambda: Pixels(image), True),
        (lambda: Pixels(lambda y: y), True),
        (lambda: Pixels(lambda y: torch.permute(y, (0, 2, 1)).reshape(-1, 3 * SIDE * SIDE)), True),
        (lambda: nn.Sequential(Pixels(lambda y: y), nn.Flatten(), nn.Unflatten(1, (SIDE, SIDE, 3))), True),
        (lambda: Pixels(lambda y: y.sigmoid().flatten(1)), True),
        (lambda: Pixels(lambda y: y.softmax(1)), False),  # positions share what is there
        (lambda: Pixels(lambda y: y - y.mean(1, keepdim=True)), False),
        (lambda: Pixels(lambda y: y, lambda h: h.cumsum(1)), False),
        (lambda: Pixels(lambda y: y.mean(1)), False),
        (lambda: Pixels(lambda y: y[:, :5]), False),  # too few to leave some out
        (lambda: Pixels(lambda y: y.reshape(1, -1, 3)), False),  # points that lie together
    ],
)
def test_chosen_outputs_and_their_gradients_are_the_networks(network: Callable[[], nn.Module], made: bool) -> None:
    model, x = seeded(network()), randn(5, SIDE * SIDE, 4)
    names = [name for name, _ in model.named_parameters() if not name.endswith(("whole.weight", "whole.bias"))]
    cut = Suffix.of(model, names, x)
    values = cut.values(x)
    found = Positions.of(cut.module, names, values)
    assert (found is not None) == made
    if found is None:
        return
    assert found.count == 3 * SIDE * SIDE
    moved = {n: (p + 0.1).detach().requires_grad_(True) for n, p in model.named_parameters() if n in names}
    chosen = torch.stack(
        [torch.randperm(found.count, generator=torch.Generator().manual_seed(k))[:9] for k in range(5)]
    )
    want = flat(call_with(cut.module, dict(moved), values)).gather(1, chosen)
    mine = found.outputs(moved, values, chosen)
    assert torch.allclose(mine, want, atol=1e-5)
    seed = randn(5, 9, seed=3)
    pairs = zip(*(torch.autograd.grad(y, list(moved.values()), seed) for y in (mine, want)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("network", [CNP, AttentiveCNP])
def test_only_pixels_that_are_asked_for_are_decoded(network: type[CNP]) -> None:
    """What is missed costs what it costs in the whole image, gradients too, and few places run."""
    model = Completion(network(channels=1, width=16, last=16, seed=1), SIDE, SIDE).eval()
    x = shown(
        torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    )
    asked = patched(torch.zeros(3, 1, SIDE, SIDE), torch.tensor([[0, 0], [4, 5], [1, 3]]), 3)
    problem = pose(model, Edits(x, asked))
    names = ["model.summary.weight", "model.decoder.3.weight", "model.head.weight"]
    cut = Suffix.of(problem.model, names, x)
    places: list[int] = []
    cut.module.get_submodule("model.decoder.3").register_forward_hook(
        lambda module, given, y: places.append(y.shape[1])
    )
    demands = demands_of(problem, 0.01, "none")
    demands = [type(d)(cut.values(d.inputs), d.criterion, d.need, d.soft, d.name, d.index) for d in demands]
    line = Linearization(cut.module, names, demands[0].inputs, [])
    found = []
    for some in (True, False):
        trial = Trial(line, cut, demands)
        assert isinstance(trial._some, Positions)
        coordinates = Coordinates.of(line.groups, None, trial.like)
        if some:
            trial.look({n: torch.zeros_like(p, dtype=torch.float32) for n, p in line.parameters.items()})
        start = 1e-3 * np.ones(coordinates.size)
        state = Lagrangian.of_edits(trial, demands, coordinates, start, lambda: None)
        assert state is not None
        places.clear()
        found.append((state.penalty, *state._at(state.x)))
        assert set(places) == ({9} if some else {SIDE * SIDE})
    assert np.allclose(found[0][0], found[1][0], rtol=1e-4)
    assert np.allclose(found[0][1], found[1][1], rtol=1e-4)
    assert np.allclose(found[0][2], found[1][2], rtol=1e-3, atol=1e-5 * np.abs(found[1][2]).max())


@pytest.mark.parametrize("layers", [["out"], ["own", "out"], ["whole", "own"]])
def test_images_are_repaired_in_some_pixels(layers: Sequence[str]) -> None:
    model, x = seeded(Pixels(image)), randn(4, SIDE * SIDE, 4)
    with torch.no_grad():
        y = model(x)
    tol = torch.full_like(y, torch.inf)
    for k, (row, column) in enumerate(((0, 0), (2, 5), (7, 1), (4, 4))):
        tol[k, :, row, column] = 0.05
    result = nnrepair.fix(model, Edits(x, Near(y + 0.3, tol)), method=MinimalNorm(layer=list(layers)))
    assert result.report.success_rate == 1
    assert bool(((result.model(x) - y - 0.3).abs() <= tol).all())
