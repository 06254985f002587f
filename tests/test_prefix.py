"""What comes before the chosen parameters runs once, and outputs are those of the whole network, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Residual, mlp, randn, seeded
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nnrepair.jacobian.prefix import Prefix
from nnrepair.spec.given import as_inputs
from nnrepair.spec.running import call_with


class Counted(nn.Module):
    """A layer that counts how often it runs."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.runs = inside, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.inside(x)


class InPlace(nn.Module):
    """What comes out of the first part is changed in place afterwards, by no module and by the chosen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(4, 5), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h += x.sum(1, keepdim=True)
        return self.head(self.block(h))


class Shared(nn.Module):
    """One activation, and one frozen layer, before and after the chosen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.act(self.second(self.act(self.first(x)))))


class Borrowed(nn.Module):
    """A module's parameters are used, and the module never runs; another hides the chosen layer in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 3)
        self.hidden = Hides(self.head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        return self.head(torch.tanh(F.linear(x, self.inner[0].weight)))


class Hides(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layers = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers[0].bias.sum()


def nested() -> nn.Module:
    return nn.Sequential(mlp(4, 6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "last layer": (lambda: mlp(4, 6, 6, 3), ["4.weight", "4.bias"]),
    "first layer": (lambda: mlp(4, 6, 3), ["0.weight"]),
    "nested": (nested, ["1.1.weight", "3.bias"]),
    "a branch": (Residual, ["mid.weight"]),
    "in place": (InPlace, ["block.1.weight"]),
    "shared": (Shared, ["second.weight"]),
    "shared and chosen": (Shared, ["first.weight"]),
    "borrowed": (Borrowed, ["inner.0.weight"]),
    "hidden": (Borrowed, ["head.bias"]),
    "recurrent": (lambda: nn.Sequential(nn.Linear(4, 4), nn.RNN(4, 3)), ["1.weight_hh_l0"]),
}


class First(nn.Module):
    """Of a recurrent layer's outputs the first."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        y = self.inside(x)
        return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize(("make", "names"), NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("streamed", [False, True])
def test_outputs_and_gradients_are_those_of_the_network(
    make: Callable[[], nn.Module], names: list[str], streamed: bool
) -> None:
    model, x = First(seeded(make)).eval(), randn(6, 4)
    names = [f"inside.{name}" for name in names]
    inputs = as_inputs(DataLoader([(row, 0) for row in x], batch_size=2), "points") if streamed else x
    known = dict(model.named_parameters())
    prefix = Prefix(model, {name: known[name] for name in names}, inputs)
    assert torch.equal(prefix.first, call_with(model, {}, inputs)) and not prefix.first.requires_grad
    for k in range(3):
        weights = {n: (known[n] + 0.1 * randn(*known[n].shape, seed=k)).detach().requires_grad_() for n in names}
        y, expected = prefix.outputs(weights), call_with(model, weights, inputs)
        assert torch.equal(y, expected)
        mine, theirs = (torch.autograd.grad(out.square().sum(), list(weights.values())) for out in (y, expected))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_comes_before_runs_once() -> None:
    early, late = Counted(mlp(4, 6, 6)), Counted(mlp(6, 3))
    model = nn.Sequential(early, nn.ReLU(), nn.Linear(6, 6), late)
    prefix = Prefix(model, {"2.bias": torch.zeros(6)}, randn(5, 4))
    for _ in range(3):
        prefix.outputs({"2.bias": torch.ones(6)})
    assert (early.runs, late.runs) == (1, 4)


def test_a_network_that_fails_is_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
    with pytest.raises(Exception, match="shapes"):
        Prefix(model, {"1.bias": torch.zeros(3)}, randn(5, 4))
    assert not any("forward" in vars(module) for module in model.modules())
