"""Maps whose weights are (inputs, outputs), as GPT-2's: rows, metrics and repairs are those of the transposed map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_methods import METHODS
from torch import Tensor, nn

import nnrepair
from nnrepair.domains.language.networks import Conv1D
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods import MinimalNorm, RandomLabels, Trainable
from nnrepair.spec.criteria import Argmax


class Net(nn.Module):
    """Tokens (n, positions, 7) through a hidden map and a last one, and their mean."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.first = Conv1D(6, 7) if transposed else nn.Linear(7, 6)
        self.last = Conv1D(3, 6) if transposed else nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.first(x))).mean(1)
        return y


def pair() -> tuple[Net, Net, Tensor]:
    """Return the same network in both forms, and inputs."""
    torch.manual_seed(0)
    plain, turned = Net(False), Net(True)
    weights = {name: value.T if value.ndim == 2 else value for name, value in plain.state_dict().items()}
    turned.load_state_dict(weights)
    return plain.eval(), turned.eval(), torch.randn(30, 5, 7)


def test_rows_moments_and_keys_are_those_of_the_plain_map() -> None:
    plain, turned, x = pair()
    names, criterion = ["first.weight", "first.bias"], Argmax(torch.arange(30) % 3)
    point, condition = torch.arange(6), (torch.arange(6) + 1) % 3
    lines = [Linearization(model, names, x[:6]) for model in (plain, turned)]
    for line in lines:
        (group,) = line.groups
        assert group.plain is None and group.head.out == 6 and group.head.inp == 8
    assert lines[1].groups[0].head.transposed == {"first.weight"}
    one, other = (line.rows(x, criterion, point, condition).columns(np.arange(48)) for line in lines)
    assert np.abs(one - other).max() < 1e-12 < np.abs(one).max()
    first, second = (line.metric(x).factors[0] for line in lines)
    assert np.abs(first - second).max() < 1e-12
    assert all(torch.allclose(a, b) for a, b in zip(lines[0].keys(x[:1]), lines[1].keys(x[:1]), strict=True))
    d = np.arange(48.0)
    changes = [line.unflatten(d) for line in lines]
    assert torch.equal(changes[0]["first.weight"], changes[1]["first.weight"].T)
    assert np.array_equal(lines[1].flatten(changes[1]), d)


@pytest.mark.parametrize(
    ("layer", "norm"),
    [  # by l1 the descent of a curved layer ends within some thousandths of the least, by the order of its columns
        *(("first", norm) for norm in ("l2", "drift", "nuclear")),
        *(("last", norm) for norm in ("l2", "drift", "nuclear", "l1", "linf")),
    ],
)
def test_repairs_are_those_of_the_plain_map(layer: str, norm: str) -> None:
    plain, turned, x = pair()
    plain, turned, x = plain.double(), turned.double(), x.double()
    wrong = plain(x[:2]).argmin(1)
    method = MinimalNorm(layer=layer, norm=norm)
    sizes = []
    for model in (plain, turned):
        result = nnrepair.fix(model, (x[:2], wrong), x[10:], method=method)
        assert torch.equal(result.model(x[:2]).argmax(1), wrong)
        sizes.append(getattr(result.report.weight_change, norm if norm in ("l1", "linf") else "l2"))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)


#: One method of every kind that has to know which side of a weight is which.
SIDED = ["rome", "memit", "rewriting", "mend", "malmen", "knowledge-editor", "grace", "serac", "t-patcher", "birdnn"]


@pytest.mark.parametrize("name", SIDED)
def test_methods_make_of_them_what_they_make_of_the_plain_map(name: str) -> None:
    plain, turned, x = pair()
    plain, turned, x = plain.double(), turned.double(), x.double()
    said = []
    for model in (plain, turned):
        method = METHODS[name]()
        if isinstance(method, Trainable):
            labels = RandomLabels(x, plain(x).argmax(1), edits=2, locality=8)
            method = method.prepare(model, labels, steps=20)
        result = nnrepair.fix(model, (x[:2], plain(x[:2]).argmin(1)), x[10:], method=method, throw=False)
        said.append(result.model(x).detach())
        assert (said[-1] != model(x)).any()
    assert torch.allclose(*said, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", [1, 5])
def test_a_network_that_ends_with_one_is_affine_in_it(positions: int) -> None:
    torch.manual_seed(0)
    for layer in (nn.Linear(7, 3), Conv1D(3, 7)):
        line = Linearization(layer.eval(), ["weight", "bias"], torch.randn(4, positions, 7))
        assert line.ends_affine
        keys, y = line.by_position(torch.ones(2, positions, 7))
        assert keys.shape == (2, positions, 8) and y.shape == (2, positions, 3)
    moved = nn.Sequential(Conv1D(3, 7), nn.Flatten(0, 1), nn.Unflatten(0, (positions, -1))).eval()  # points mixed
    if positions > 1:
        assert not Linearization(moved, ["0.weight", "0.bias"], torch.randn(4, positions, 7)).ends_affine


def test_rows_in_another_order_are_not_taken_for_points() -> None:
    class Mixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(torch.tanh(self.first(x.transpose(0, 1)))).mean(0)
            return y

    _, turned, x = pair()
    model = Mixed(True)
    model.load_state_dict(turned.state_dict())
    line = Linearization(model.eval(), ["first.weight", "first.bias"], x[:5])
    assert [group.plain for group in line.groups] == ["first.weight", "first.bias"]
    result = nnrepair.fix(model, (x[:2], turned(x[:2]).argmin(1)), x[10:], method=MinimalNorm(layer="first"))
    assert result.report.success_rate == 1.0
