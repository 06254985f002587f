from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Residual, Tied, mlp, randn, seeded
from reference import dense_rows
from reference.fisher import moved
from torch import Tensor, nn

from nnrepair import Argmax, Criterion, Inputs, InvalidInput, Linear, Near
from nnrepair.jacobian import factors, fisher, moments
from nnrepair.jacobian.linearize import Linearization
from nnrepair.solver.rows import Dense, Factored, Rows
from nnrepair.spec.kinds import Binary, Classes, Regression


class Functional(nn.Module):
    """Weights used without any layer: x @ W.T."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(5, 4)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(x @ self.w.T))


class Twice(nn.Module):
    """One layer used two times."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(torch.tanh(self.fc(x)))))


class Sidetrack(nn.Module):
    """A layer whose second use goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.fc(2 * x)
        return torch.tanh(y)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.out = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.embedding(x)).mean(1))


class SequenceFirst(nn.Module):
    """A layer that sees (positions, points, features), with 4 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(x.transpose(0, 1))).mean(0))


class Folded(nn.Module):
    """A layer that sees points and positions in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(3, 5), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(x.reshape(-1, 3))).reshape(len(x), -1))


def cnn(**options: object) -> nn.Sequential:
    conv = nn.Conv2d(2, 3, 3, **options)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))


def normed() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    model[1].running_mean = torch.linspace(-1, 1, 5)
    model[1].running_var = torch.linspace(0.5, 2, 5)
    return model


def exported() -> nn.Module:
    options = ({0: torch.export.Dim("points")},)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    return torch.export.export(model, (torch.randn(2, 2, 6, 6),), dynamic_shapes=options).module()


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))


@dataclass
class Case:
    make: Callable[[], nn.Module]
    names: list[str]
    size: tuple[int, ...] = (4,)
    factored: bool = True
    integers: bool = False

    def build(self) -> tuple[nn.Module, Tensor]:
        model = seeded(self.make)
        if not isinstance(model, torch.fx.GraphModule):  # an exported module has no modes
            model.eval()
        if self.integers:
            return model, torch.randint(6, (7, *self.size), generator=torch.Generator().manual_seed(0))
        return model, randn(7, *self.size, seed=3)


IMAGE = (2, 6, 6)
CASES = {
    "mlp, first": Case(lambda: mlp(4, 6, 5, 3), ["0.weight", "0.bias"]),
    "mlp, last": Case(lambda: mlp(4, 6, 5, 3), ["4.weight", "4.bias"]),
    "mlp, weight alone": Case(lambda: mlp(4, 6, 3), ["0.weight"]),
    "mlp, bias alone": Case(lambda: mlp(4, 6, 3), ["0.bias"]),
    "mlp, several": Case(lambda: mlp(4, 6, 5, 3), ["0.weight", "0.bias", "2.weight", "2.bias"]),
    "mlp, several in another order": Case(lambda: mlp(4, 6, 5, 3), ["4.bias", "4.weight", "0.weight", "2.weight"]),
    "in-place relu": Case(lambda: mlp(4, 6, 3, activation=lambda: nn.ReLU(inplace=True)), ["0.weight", "0.bias"]),
    "no bias": Case(lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)), ["0.weight"]),
    "batch norm after": Case(normed, ["0.weight", "0.bias"]),
    "batch norm itself": Case(normed, ["1.weight", "1.bias"], factored=False),
    "residual": Case(Residual, ["mid.weight", "mid.bias"]),
    "residual, early": Case(Residual, ["inp.weight"]),
    "used twice": Case(Twice, ["fc.weight", "fc.bias"]),
    "shared by two layers": Case(Tied, ["a.weight", "a.bias"], factored=False),
    "shared, second name": Case(Tied, ["b.weight", "b.bias"], factored=False),
    "a use that goes nowhere": Case(Sidetrack, ["fc.weight", "fc.bias"]),
    "functional": Case(Functional, ["w"], factored=False),
    "functional beside a layer": Case(Functional, ["w", "out.weight", "out.bias"], factored=False),
    "words, embedding": Case(Words, ["embedding.weight"], (5,), factored=False, integers=True),
    "words, layer norm": Case(Words, ["norm.weight", "norm.bias"], (5,), factored=False, integers=True),
    "words, head": Case(Words, ["out.weight", "out.bias"], (5,), integers=True),
    "by position": Case(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)),
        ["0.weight", "0.bias"],
        (4, 3),
    ),
    "positions first": Case(SequenceFirst, ["fc.weight", "fc.bias"], (4, 3), factored=False),
    "positions folded": Case(Folded, ["fc.weight", "fc.bias"], (4, 3), factored=False),
    "conv": Case(cnn, ["0.weight", "0.bias"], IMAGE),
    "conv, stride": Case(lambda: cnn(stride=2, padding=1), ["0.weight", "0.bias"], IMAGE),
    "conv, uneven": Case(lambda: cnn(stride=(2, 1), padding=(0, 2), dilation=(1, 2)), ["0.weight", "0.bias"], IMAGE),
    "conv, dilation": Case(lambda: cnn(dilation=2), ["0.weight"], IMAGE),
    "conv, no bias": Case(lambda: cnn(bias=False), ["0.weight"], IMAGE),
    "conv, same": Case(lambda: cnn(padding="same"), ["0.weight", "0.bias"], IMAGE, factored=False),
    "conv, reflecting": Case(lambda: cnn(padding=1, padding_mode="reflect"), ["0.weight", "0.bias"], IMAGE),
    "conv, groups": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
        ["0.weight", "0.bias"],
        IMAGE,
        factored=False,
    ),
    "conv, one dimension": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
        ["0.weight", "0.bias"],
        (2, 6),
        factored=False,
    ),
    "exported, conv": Case(exported, ["0.weight", "0.bias"], IMAGE),
    "exported, head": Case(exported, ["3.weight", "3.bias"], IMAGE),
    "transformer, attention": Case(attention, ["0.self_attn.in_proj_weight"], (3, 4), factored=False),
    "transformer, feed forward": Case(attention, ["0.linear1.weight", "0.linear1.bias"], (3, 4)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def dense(rows: Rows) -> np.ndarray:
    return rows.columns(np.arange(rows.n))


def expected_rows(
    model: nn.Module, line: Linearization, x: Tensor, criterion: Criterion, point: Tensor, condition: Tensor
) -> np.ndarray:
    twins = dense_rows(model, line.names, x, criterion, point, condition)
    return np.stack([line.flatten(row) for row in twins])


@every_case
def test_rows_are_plain_gradients(case: Case) -> None:
    model, x = case.build()
    line = Linearization(model, case.names, x)
    criterion = Argmax([0, 1, 2, 0, 1, 2, 0])
    point = torch.tensor([6, 0, 0, 3, 1, 2, 5, 4])  # in no order, one point twice
    condition = torch.tensor([1, 1, 2, 2, 2, 0, 1, 0])
    rows = line.rows(x, criterion, point, condition)
    expected = expected_rows(model, line, x, criterion, point, condition)
    assert (rows.m, rows.n) == expected.shape
    np.testing.assert_allclose(dense(rows), expected, atol=1e-10)


@every_case
def test_linear_maps_are_factored(case: Case) -> None:
    model, x = case.build()
    line = Linearization(model, case.names, x)
    rows = line.rows(x, Argmax([0] * 7), torch.tensor([0]), torch.tensor([1]))
    if case.factored:
        assert all(isinstance(b, Factored) for b in rows.blocks) or "4.bias" in case.names
    else:
        assert any(isinstance(b, Dense) for b in rows.blocks)


@every_case
def test_first_order_outputs_are_finite_differences(case: Case) -> None:
    model, x = case.build()
    line = Linearization(model, case.names, x)
    size = len(line.flatten({n: line.parameters[n] for n in line.names}))
    d = np.random.default_rng(0).normal(size=size)
    predicted = line.outputs(x, d) - line.outputs(x)
    eps = 1e-6
    line.move(eps * d)
    up = line.outputs(x)
    line.move(-eps * d)
    down = line.outputs(x)
    torch.testing.assert_close(predicted, (up - down) / (2 * eps), atol=1e-6, rtol=1e-5)
    line.move(np.zeros(size))
    torch.testing.assert_close(line.outputs(x), model.double()(x.double() if x.is_floating_point() else x))


@every_case
def test_flatten_and_unflatten_are_inverse(case: Case) -> None:
    model, x = case.build()
    line = Linearization(model, case.names, x)
    change = {n: randn(*p.shape, seed=k, dtype=torch.float64) for k, (n, p) in enumerate(line.parameters.items())}
    flat = line.flatten(change)
    back = line.unflatten(flat)
    assert list(back) == case.names
    for name in case.names:
        assert torch.equal(back[name], change[name])
    np.testing.assert_array_equal(line.flatten(back), flat)


def test_the_flat_layout_is_one_row_per_output_with_the_bias_last() -> None:
    line = Linearization(mlp(2, 3), ["0.bias", "0.weight"], randn(4, 2))
    weight, bias = torch.arange(6.0).reshape(3, 2), torch.tensor([10.0, 11.0, 12.0])
    assert line.flatten({"0.weight": weight, "0.bias": bias}).tolist() == [0, 1, 10, 2, 3, 11, 4, 5, 12]


def test_many_points_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(4, 6, 3), randn(7, 4)
    line = Linearization(model, ["0.weight", "0.bias"], x)
    criterion = Argmax([0] * 7)
    point, condition = torch.tensor([6, 2, 2, 0, 4, 5]), torch.tensor([1, 1, 2, 2, 1, 2])
    at_once = dense(line.rows(x, criterion, point, condition))
    monkeypatch.setattr(factors, "POINTS", 2)
    np.testing.assert_allclose(dense(line.rows(x, criterion, point, condition)), at_once, atol=1e-12)


@pytest.mark.parametrize("criterion", [Near(torch.zeros(5, 3, 4, 4), 1.0), Linear(torch.eye(48), torch.zeros(48), 5)])
def test_rows_of_image_outputs(criterion: Criterion) -> None:
    model, x = seeded(lambda: nn.Conv2d(2, 3, 3)), randn(5, 2, 6, 6)
    line = Linearization(model, ["weight", "bias"], x)
    point, condition = torch.tensor([0, 4, 4, 2]), torch.tensor([0, 47, 13, 20])
    expected = expected_rows(model, line, x, criterion, point, condition)
    np.testing.assert_allclose(dense(line.rows(x, criterion, point, condition)), expected, atol=1e-12)


def test_the_model_given_is_left_alone() -> None:
    model = mlp(4, 5, 3)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    line = Linearization(model, ["0.weight"], randn(4, 4))
    line.move(np.ones(20))
    assert all(torch.equal(p, before[n]) and p.dtype == torch.float32 for n, p in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Skipping(nn.Module):
    """The last layer's output is added to something else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


class Clamped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y.clamp_(min=0)


@pytest.mark.parametrize(
    ("make", "names", "ends"),
    [
        (lambda: mlp(4, 5, 3), ["2.weight", "2.bias"], True),
        (lambda: mlp(4, 5, 3), ["2.weight"], True),
        (lambda: mlp(4, 5, 3), ["0.weight", "0.bias"], False),
        (lambda: mlp(4, 5, 3), ["0.weight", "2.weight"], False),
        (lambda: nn.Sequential(mlp(4, 5, 3), nn.Softmax(1)), ["0.2.weight", "0.2.bias"], False),
        (lambda: nn.Sequential(mlp(4, 5, 3), nn.ReLU()), ["0.2.weight", "0.2.bias"], False),
        (lambda: nn.Sequential(mlp(4, 5, 3), nn.ReLU(inplace=True)), ["0.2.weight", "0.2.bias"], False),
        (Clamped, ["fc.weight", "fc.bias"], False),
        (lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2), ["0.weight", "0.bias"], False),
        (lambda: nn.Sequential(mlp(4, 5, 3), nn.Dropout(), nn.Identity()), ["0.2.weight", "0.2.bias"], True),
        (lambda: nn.Sequential(mlp(4, 5, 3), Skipping()), ["0.2.weight"], False),
    ],
)
def test_ends_affine(make: Callable[[], nn.Module], names: list[str], ends: bool) -> None:
    model, x = seeded(make).eval(), randn(6, 4)
    line = Linearization(model, names, x)
    assert line.ends_affine is ends
    if line.ends_affine:
        d = np.random.default_rng(0).normal(size=len(line.flatten(line.parameters)))
        predicted = line.outputs(x) + line.features(x) @ line.matrix(d).T
        line.move(d)
        torch.testing.assert_close(line.outputs(x), predicted)


class Idle(nn.Module):
    """One layer is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@pytest.mark.parametrize("names", [["unused.weight"], ["unused.weight", "unused.bias"]])
def test_layers_without_effect_are_refused(names: list[str]) -> None:
    model = seeded(Idle)
    with pytest.raises(InvalidInput, match=r"does not depend on \['unused.weight'.*Choose another layer"):
        Linearization(model, names, randn(4, 4))


def test_units_that_are_dead_on_the_first_points_still_count() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
        model[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.tensor([[-1.0], [-2.0], [-3.0], [-4.0], [1.0], [2.0]])
    line = Linearization(model, ["0.weight", "0.bias"], x)
    rows = line.rows(x, Argmax([0] * 6), torch.tensor([4, 5]), torch.tensor([1, 1]))
    np.testing.assert_allclose(dense(rows), [[2.0, 2.0], [4.0, 2.0]])


def test_drift_is_the_mean_squared_change_of_the_layers_output() -> None:
    model, x = mlp(4, 5, 3), randn(50, 4)
    line = Linearization(model, ["0.weight", "0.bias"], x)
    metric = line.metric(x)
    rows = line.rows(x, Argmax([0] * 50), torch.tensor([0]), torch.tensor([1]))
    delta = randn(5, 5, dtype=torch.float64)
    moved = torch.cat([x.double(), torch.ones(50, 1)], 1) @ delta.T
    drift = float((moved**2).sum(1).mean())
    size = float(np.linalg.norm(metric.coordinates(delta.numpy().ravel(), rows)) ** 2)
    assert drift < size <= drift + 2 * moments.RIDGE * float((delta**2).sum()) * 2


class Scaled(nn.Module):
    """A scale and a shift of its own, which are no linear map."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.fc, self.scale, self.out = nn.Linear(4, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(x)) * self.scale)


class Path(Inputs):
    """Points that run together."""

    independent = False

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Path:
        return Path(self.x[index])

    def to(self, like: Tensor) -> Path:
        return Path(self.x.to(like))

    def call(self, model: nn.Module) -> Tensor:
        return model(self.x)


DRIFTS = {"classes": Classes(), "lowest": Classes(True), "answers": Binary(), "numbers": Regression()}


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", DRIFTS.values(), ids=DRIFTS.keys())
def test_drift_of_other_parameters_is_the_divergence_that_is_measured(
    kind: Any, together: bool, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(kind, Classes) and outputs == 1:
        pytest.skip("one output tells no classes apart")
    monkeypatch.setattr(fisher, "SKETCHES", 3000)
    model, x = seeded(lambda: Scaled(outputs)).double(), randn(20, 4, dtype=torch.float64)
    inputs = Path(x) if together else x
    line = Linearization(model, ["scale"], inputs)
    (factor,) = line.metric(inputs, kind).factors
    drift = factor**2 - moments.RIDGE * float((factor**2).mean()) / (1 + moments.RIDGE)  # without the ridge
    old, size = model(x).detach(), 1e-4
    for k in range(8):  # one parameter at a time: no products with others
        (other,) = moved(model, "scale", np.eye(8)[k : k + 1], size)
        measured = float(kind.divergence(old, other(x).detach()).mean())
        assert drift[k] * size**2 / 2 == pytest.approx(measured, rel=0.15 if together else 1e-2)


def test_drift_of_many_points_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = seeded(Scaled).double(), randn(400, 4, dtype=torch.float64)
    line = Linearization(model, ["scale"], x)
    (exact,) = line.metric(x, Classes()).factors
    monkeypatch.setattr(fisher, "GRADIENTS", 400)  # fewer than 400 points times 3 classes
    (drawn,) = line.metric(x, Classes()).factors
    assert not np.array_equal(exact, drawn)
    np.testing.assert_allclose(drawn, exact, rtol=0.2)


def test_batched_outputs_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(4, 5, 3), randn(11, 4)
    line = Linearization(model, ["0.weight"], x)
    d = np.random.default_rng(0).normal(size=20)
    at_once = line.outputs(x, d)
    monkeypatch.setattr("nnrepair.spec.inputs.BATCH", 4)
    torch.testing.assert_close(line.outputs_in_batches(x, d), at_once)
    torch.testing.assert_close(line.outputs_in_batches(F.pad(x, (0, 0))), line.outputs(x))
