"""A network cut behind chosen parameters is the network, whatever its shape; what cannot be cut stays whole."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair.jacobian.suffix import Behind, Suffix, Values
from nnrepair.methods import MinimalNorm
from nnrepair.spec.inputs import AnyInputs, Arguments, batches
from nnrepair.spec.running import call, call_with


class Residual(nn.Module):
    """A block whose input is added to its output, written as people write it: sizes, views and in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(3 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(x))
        z = self.second(y)
        z += y
        return self.head(self.relu(z).view(x.size(0), -1))


class Branching(nn.Module):
    """A forward that decides by numbers, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y if y.detach().sum() > 0 else y.relu())


class Heads(Branching):
    """Two layers in the last module."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"deep": mlp(2, 4, 4, 2, activation=nn.Tanh)})

    def forward(self, x: Tensor) -> Tensor:
        return self.heads["deep"](super().forward(x).tanh())


class TiedHead(Branching):
    """The last layer's weight is used before it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.embed = nn.Linear(2, 2), nn.Linear(2, 2)
        self.embed.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(super().forward(x)))


class Twice(Branching):
    """The last layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x))


class InPlace(nn.Module):
    """What lies behind the second layer writes into what lies before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).exp()
        return y.add_(self.last(y))


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


class Shared(nn.Module):
    """One activation, and one layer, before and after another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.act(self.second(self.act(self.first(x)))))


class Hides(nn.Module):
    """A layer in a list, which is no part of the module."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layers = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers[0].bias.sum()


class Borrowed(nn.Module):
    """A module's weight is used, and the module never runs; another hides a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 2)
        self.hidden = Hides(self.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(nn.functional.linear(self.hidden(x), self.inner[0].weight)))


class Recurrent(nn.Module):
    """A recurrent layer over a point's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cell = nn.Linear(3, 3), nn.RNN(1, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(self.first(x).unsqueeze(2))[0][:, -1]


class Two(nn.Module):
    """Two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.last(self.left(a).relu() + self.right(b).relu())


def image(n: int) -> Tensor:
    return randn(n, 2, 4, 4, seed=1)


def vector(n: int) -> Tensor:
    return randn(n, 3, seed=1)


def two(n: int) -> Arguments:
    return Arguments((randn(n, 3, seed=1),), {"b": randn(n, 2, seed=2)})


@pytest.mark.parametrize(
    ("make", "names", "inputs", "is_cut"),
    [
        (lambda: mlp(3, 8, 8, 2), ["2.weight", "2.bias"], vector, True),
        (lambda: mlp(3, 8, 8, 2), ["0.weight"], vector, False),  # nothing comes before
        (lambda: mlp(3, 8, 8, 2), ["2.bias", "0.bias"], vector, False),
        (Residual, ["second.weight", "second.bias"], image, True),
        (Residual, ["head.weight"], image, True),
        (Residual, ["first.weight"], image, False),
        (Branching, ["last.weight"], vector, True),  # it is the last module
        (Branching, ["first.weight"], vector, False),
        (Heads, ["heads.deep.2.weight"], vector, True),
        (TiedHead, ["head.weight"], vector, False),
        (Twice, ["last.weight"], vector, False),
        (InPlace, ["last.weight"], vector, False),
        (Tied, ["first.weight"], vector, False),
        (Tied, ["last.bias"], vector, True),
        (Shared, ["second.weight"], vector, True),
        (Shared, ["first.weight"], vector, False),
        (Borrowed, ["inner.0.weight"], vector, True),
        (Borrowed, ["head.bias"], vector, False),
        (Borrowed, ["head.weight"], vector, True),
        (Recurrent, ["cell.weight_hh_l0"], vector, True),
        (Two, ["right.weight"], two, True),
        (Two, ["last.weight"], two, True),
    ],
)
def test_a_cut_is_the_network(
    make: Callable[[], nn.Module], names: list[str], inputs: Callable[[int], AnyInputs], is_cut: bool
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    x = inputs(7)
    suffix = Suffix.of(model, names, x)
    assert (suffix.prefix is not None) == is_cut
    values = suffix.values(x)
    assert torch.allclose(call(suffix.module, values), call(model, x), atol=1e-6)
    parameters = dict(model.named_parameters())
    other = {n: parameters[n].detach() + 0.5 for n in names}
    some = torch.tensor([4, 1])
    assert torch.allclose(call_with(suffix.module, other, values[some]), call_with(model, other, x[some]), atol=1e-6)
    assert not torch.allclose(call_with(suffix.module, other, values), call(model, x), atol=1e-3)


def test_gradients_reach_the_chosen_parameters_alone() -> None:
    model = mlp(3, 8, 8, 2)
    x = vector(5)
    suffix = Suffix.of(model, ["2.weight"], x)
    weight = model[2].weight.detach().clone().requires_grad_(True)
    call_with(suffix.module, {"2.weight": weight}, suffix.values(x)).sum().backward()
    want = torch.autograd.grad(model(x).sum(), model[2].weight)[0]
    assert weight.grad is not None
    assert torch.allclose(weight.grad, want, atol=1e-6)
    assert model[2].weight.grad is None


def test_values_that_would_not_fit_are_computed_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(3, 8, 8, 2)
    x = vector(11)
    suffix = Suffix.of(model, ["2.weight"], x)
    stored = suffix.values(x)
    monkeypatch.setattr("nnrepair.jacobian.suffix.STORED", 8 * 10)
    assert isinstance(suffix.values(x[:10]), Arguments)
    later = suffix.values(x)
    assert isinstance(later, Values)
    assert later.size == 8
    some = torch.tensor([7, 2])
    assert torch.allclose(call(suffix.module, later[some]), call(suffix.module, stored[some]))
    double = copy.deepcopy(suffix.module).double()
    like = torch.zeros((), dtype=torch.float64)
    assert torch.allclose(call(double, later.to(like)), call(double, stored.to(like)))  # type: ignore[union-attr]


def test_what_comes_before_runs_once() -> None:
    model = mlp(4, 6, 6, 6, 3)
    behind = Behind(model, ["4.bias"], randn(5, 4, seed=1))
    runs: list[int] = []
    for k in (0, 2, 4, 6):
        model[k].register_forward_hook(lambda module, x, y, k=k: runs.append(k))
    for _ in range(3):
        behind.outputs({"4.bias": torch.ones(6)})
    assert runs == 3 * [4, 6]


def test_photographs_run_few_at_a_time_and_in_the_networks_dtype() -> None:
    assert [len(step) for step in batches(torch.zeros(1, 1).expand(60, 150_528))] == [26, 26, 8]
    assert len(batches(Arguments((torch.zeros(9, 2_000_000), torch.zeros(9, 3))))) == 9
    assert [len(step) for step in batches(torch.zeros(5000, 784))] == [4096, 904]
    model, x, seen = mlp(3, 8, 8, 2).double(), vector(11), list[int]()
    suffix = Suffix.of(model, ["2.weight"], x.double())
    values = suffix.values(x, lambda: seen.append(1))
    assert isinstance(values, Arguments)
    assert values.positional[0].dtype == torch.float64
    assert seen == [1]
    assert torch.allclose(call(suffix.module, values), call(model, x.double()))


class Body(nn.Module):
    """A network that cannot be traced: it looks at what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net[0](x).relu()
        self.seen(y)
        return self.net[2](y)


def test_networks_that_run_in_one_dtype_alone_are_repaired_in_it() -> None:
    class Insists(Body):
        """As kernels do that are written for float32 alone."""

        def seen(self, y: Tensor) -> None:
            if y.dtype != torch.float32:
                raise RuntimeError("expected float32")

    model, x, kept = Insists().eval(), randn(2, 3, seed=1), randn(20, 3, seed=2)
    labels = model(x).argsort(1)[:, 0]
    for layer in ("net.2", "net.0"):
        result = nnrepair.fix(model, (x, labels), kept, method=MinimalNorm(layer=layer, locality="soft"), throw=False)
        assert torch.equal(result.model(x).argmax(1), labels)
        assert any("computed in the model's own dtype" in note for note in result.report.notes)
        assert result.certificate is None


def test_of_a_head_that_is_cut_off_the_body_runs_once_in_each_dtype() -> None:
    class Counts(Body):
        points: dict[torch.dtype, int] = {}  # noqa: RUF012 (copies count, too)

        def seen(self, y: Tensor) -> None:
            if y.sum() < torch.inf:
                self.points[y.dtype] = self.points.get(y.dtype, 0) + len(y)

    model, x, kept = Counts().eval(), randn(3, 3, seed=1), randn(300, 3, seed=2)
    labels = model(x).argsort(1)[:, 0]
    Counts.points.clear()
    result = nnrepair.fix(model, (x, labels), kept, method=MinimalNorm(layer="net.2"), throw=False)
    few = 60  # what is tried, on some points at a time
    assert result.certificate is not None or not result.outcome.ok
    assert Counts.points[torch.float32] <= 2 * 303 + few  # before and after
    assert Counts.points[torch.float64] <= 303 + few
