"""Exact outputs against another exact evaluation, and enclosures around it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp, randn, seeded
from reference.regions import Network
from reference.regions import Residual as Added
from torch import Tensor, nn

from nnrepair.verify.property import Halfspace
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search import rational as exact
from nnrepair.verify.search.rational import enclosure, inside, outside


def fractions(x: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in x.tolist()]


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "chain": (lambda: mlp(3, 6, 5, 2), (3,)),
    "no relu": (lambda: nn.Linear(3, 2), (3,)),
    "residual": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Added(nn.Linear(4, 4)), nn.ReLU()), (3,)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 3, (2, 3)), nn.ReLU(), nn.Flatten()), (2, 4, 5)),
    "convolution, stride": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2, stride=(2, 3)), nn.Flatten()), (1, 5, 6)),
    "convolution, padding": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=(2, 1), bias=False), nn.ReLU(), nn.Flatten()),
        (1, 3, 4),
    ),
    "convolution, dilation": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2, dilation=(2, 1), stride=2, padding=1), nn.Flatten()),
        (1, 5, 5),
    ),
    "max pool": (
        lambda: nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), nn.Conv2d(1, 1, 2), nn.Flatten()),
        (1, 5, 4),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_are_exact(name: str, dtype: torch.dtype) -> None:
    make, shape = MODELS[name]
    model = seeded(make).to(dtype)
    reference, graph = Network(model, shape), lower(model, shape)
    for seed, scale in enumerate((1.0, 1e-20, 1e15, 0.0)):
        x = randn(graph.inputs, seed=seed, dtype=dtype) * scale
        outputs, is_exact = enclosure(graph, fractions(x))
        wanted = reference.at([Fraction(v) for v in x.tolist()])
        assert is_exact and outputs == [(v, v) for v in wanted]


@pytest.mark.parametrize("name", MODELS)
def test_enclosures_contain_the_exact_outputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "EXACT_LIMIT", -1)
    make, shape = MODELS[name]
    model = seeded(make)
    reference, graph = Network(model, shape), lower(model, shape)
    for seed, scale in enumerate((1.0, 1e-20, 1e15)):
        x = randn(graph.inputs, seed=seed) * scale
        outputs, is_exact = enclosure(graph, fractions(x))
        assert not is_exact
        for (low, high), value in zip(outputs, reference.at([Fraction(v) for v in x.tolist()]), strict=True):
            assert low <= value <= high
            assert high - low < 1e-9 * max(scale, 1)


def test_numbers_of_all_sizes() -> None:
    """Subnormal weights, the largest floats, and long cancellations."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    numbers = [5e-324, -2.2e-308, 1.7e308, -1e308, 0.1, 1e-17, -0.0, 3.0, 2.0**-1074]
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(numbers, dtype=torch.float64).reshape(3, 3))
        model[0].bias.copy_(torch.tensor([1e300, 1e-300, -5e-324], dtype=torch.float64))
    x = torch.tensor([1.7e308, -5e-324, 1.0], dtype=torch.float64)
    outputs, is_exact = enclosure(lower(model, (3,)), fractions(x))
    wanted = Network(model, (3,)).at([Fraction(v) for v in x.tolist()])
    assert is_exact and outputs == [(v, v) for v in wanted]


def test_what_is_not_exact_says_so() -> None:
    """Groups and factors that are no floats are enclosed instead."""
    x = randn(16)
    grouped = seeded(lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten()))
    (pairs, is_exact), reference = enclosure(lower(grouped, (4, 2, 2)), fractions(x)), Network(grouped, (4, 2, 2))
    values = reference.at([Fraction(v) for v in x.tolist()])
    assert not is_exact and all(low <= v <= high for (low, high), v in zip(pairs, values, strict=True))
    thirds = nn.AvgPool2d(3, stride=1)
    pairs, is_exact = enclosure(lower(thirds, (1, 4, 4)), fractions(x))
    values = Network(thirds, (1, 4, 4)).at([Fraction(v) for v in x.tolist()])
    assert not is_exact and all(low <= v <= high for (low, high), v in zip(pairs, values, strict=True))


def test_enclosures_that_overflow_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "EXACT_LIMIT", -1)
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.fill_(1e300)
    ((low, high),), is_exact = enclosure(lower(model, (1,)), [Fraction(1e300)])
    assert not is_exact and low < -(10**399) and high > 10**399
    assert not inside((Halfspace((Fraction(1),), Fraction(10**300)),), [(low, high)])
    assert not inside((Halfspace((Fraction(-1),), Fraction(10**300)),), [(low, high)])


def test_points_with_long_denominators_are_enclosed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "DENOMINATOR_BITS", 100)
    model = seeded(lambda: mlp(3, 6, 5, 2))
    graph, reference = lower(model, (3,)), Network(model, (3,))
    assert enclosure(graph, [Fraction(1, 3), Fraction(1, 2**40), Fraction(2)])[1]
    x = [Fraction(1, 3**40 + k) for k in range(3)]
    pairs, is_exact = enclosure(graph, x)
    assert not is_exact and all(low <= v <= high for (low, high), v in zip(pairs, reference.at(x), strict=True))


def row(coefficients: list[Any], bound: Any, strict: bool = False) -> Halfspace:
    return Halfspace(tuple(map(Fraction, coefficients)), Fraction(bound), strict)


def test_inside() -> None:
    one, third = Fraction(1), Fraction(1, 3)
    point = [(one, one), (third, third)]
    assert inside((row([1, 0], 1),), point) and not inside((row([1, 0], 1, True),), point)
    assert inside((row([1, -3], 0),), point) and not inside((row([1, -3], 0, True),), point)
    assert inside((row([1, 0], 1), row([0, -1], -third)), point)
    assert not inside((row([1, 0], 1), row([0, -1], -third - Fraction(1, 10**40))), point)
    assert inside((), point)
    assert inside((row([0, 0], 0),), point) and not inside((row([0, 0], 0, True),), point)
    spread = [(Fraction(0), one), (Fraction(-1), third)]  # every output between must be inside
    assert inside((row([1, 1], one + third),), spread) and not inside((row([1, 1], one),), spread)
    assert inside((row([-1, -1], 1),), spread) and not inside((row([-1, -1], 0),), spread)
    assert not inside((row([1, 1], one + third, True),), spread)


def test_inside_agrees_with_halfspaces_at_points() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        y = [Fraction(int(v), 4) for v in rng.integers(-4, 5, 3)]
        rows = tuple(
            row(rng.integers(-2, 3, 3).tolist(), Fraction(int(rng.integers(-4, 5)), 4), bool(rng.random() < 0.5))
            for _ in range(2)
        )
        assert inside(rows, [(v, v) for v in y]) == all(r.contains(y) for r in rows)
        assert outside(rows, [(v, v) for v in y]) != inside(rows, [(v, v) for v in y])


def test_outside() -> None:
    spread = [(Fraction(0), Fraction(1)), (Fraction(-1), Fraction(1, 3))]
    assert outside((row([1, 1], -2),), spread) and not outside((row([1, 1], -1),), spread)
    assert outside((row([1, 1], -1, True),), spread) and outside((row([1, -1], Fraction(-2, 5)),), spread)
    assert not outside((row([1, -1], Fraction(-1, 3)), row([0, 1], 0)), spread) and not outside((), spread)
