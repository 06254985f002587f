"""Unsafe sets without interior: how they are recognised, and the exact points at which outputs meet them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp
from reference.regions import Network, violates
from scipy.optimize import linprog
from torch import nn

from nnrepair import Argmax, Argmin, Linear, Near
from nnrepair.deadline import NEVER
from nnrepair.verify import (
    Box,
    Case,
    Halfspace,
    Options,
    Property,
    check,
)
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search import jobs
from nnrepair.verify.search import rational as exact
from nnrepair.verify.search.ties import Flat, between, equation, flat

quick = settings(deadline=None, derandomize=True, max_examples=150)


def row(coefficients: list[Any], bound: Any, strict: bool = False) -> Halfspace:
    return Halfspace(tuple(map(Fraction, coefficients)), Fraction(bound), strict)


def winner(label: int, outputs: int) -> Linear:
    """The same as Argmax, but ties are allowed."""
    rows = [
        [float(k == label) - float(k == other) for k in range(outputs)] for other in range(outputs) if other != label
    ]
    return Linear(rows, [0.0] * (outputs - 1), points=1)


# Recognised ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([([1, -1], 0), ([-1, 1], 0)], Flat((0, 1), False)),  # y0 = y1
        ([([1, -1], 0), ([-2, 2], 0), ([0, 1], 5)], Flat((0, 1), False)),
        ([([1, -1], 0), ([-1, 1], "1e-30")], None),  # a thin strip
        ([([1, -1], 0), ([-1, 1], "-1e-30")], Flat((0, 1), True)),
        ([([1, -1], 0, True), ([-1, 1], 0)], Flat((0, 1), True)),
        ([([1, -1, 0], 0), ([0, 1, -1], 0), ([-1, 0, 1], 0)], Flat((0, 1, 2), False)),  # y0 = y1 = y2
        ([(["0.1", "-0.3"], "0.7"), (["-0.2", "0.6"], "-1.4")], Flat((0, 1), False)),  # decimals that floats round
        ([(["0.1", "-0.3"], "0.7"), (["-0.2", "0.6"], "-1.3")], None),
        ([([0, 0], 0), ([1, 0], 1)], Flat((0,), False)),  # 0 <= 0 holds with equality
        ([([0, 0], -1), ([1, 0], 1)], Flat((0,), True)),
        ([([0, 0], 1), ([1, 0], 1)], None),
        ([([1, 0], 0)], None),
        ([], None),
    ],
)
def test_flat_and_empty_sets(rows: list[Any], expected: Flat | None) -> None:
    assert flat(tuple(row(*each) for each in rows)) == expected


def test_sizes_of_all_kinds() -> None:
    small, large = Fraction("1e-300"), Fraction("1e300")
    assert flat((row([small, -small], 0), row([-large, large], 0))) == Flat((0, 1), False)
    assert flat((row([small], large), row([-small], -large))) in (None, Flat((0, 1), False))


@given(st.integers(0, 10**6))
@quick
def test_what_is_called_flat_has_no_interior(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, count = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    A, b = rng.integers(-2, 3, (count, outputs)), rng.integers(-1, 2, count)
    found = flat(tuple(row(a.tolist(), int(bound)) for a, bound in zip(A, b, strict=True)))
    # the largest t <= 1 with A y + t <= b
    widest = linprog(
        [0] * outputs + [-1], np.hstack([A, np.ones((count, 1))]), b, bounds=[(-100, 100)] * outputs + [(-9, 1)]
    )
    assert (found is not None) == (-widest.fun < 1e-9)
    if found is not None:
        inside = linprog([0] * outputs, A, b, bounds=[(None, None)] * outputs)
        assert not found.empty or inside.status == 2
        for k in found.equal if inside.status == 0 else ():  # no output inside leaves these rows
            least = linprog(A[k], A, b, bounds=[(-100, 100)] * outputs)
            assert least.status != 0 or least.fun == pytest.approx(b[k])


def test_equations_in_words() -> None:
    assert equation(row([0, -1, 1], 0)) == "Y_1 = Y_2"
    assert equation(row([1, 0, 0], "0.5")) == "Y_0 = 0.5"
    assert equation(row([1, 2, -3], 0)) == "Y_0 + 2 Y_1 - 3 Y_2 = 0"
    assert equation(row([0, 0], 1)) == "0 = 1"


# Met -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_tie_between_two_points_is_exact(seed: int) -> None:
    model = mlp(3, 12, 12, 2, seed=seed)
    x = 2 * torch.rand(200, 3, generator=torch.Generator().manual_seed(seed)) - 1
    with torch.no_grad():
        gap = (model(x) @ torch.tensor([1.0, -1.0])).double()
    gap = gap - gap.median()
    with torch.no_grad():
        model[-1].bias[0] -= float((model(x) @ torch.tensor([1.0, -1.0])).median())
        gap = model(x) @ torch.tensor([1.0, -1.0])
    p, q = (tuple(map(Fraction, x[i].tolist())) for i in (int(gap.argmin()), int(gap.argmax())))
    found = between(lower(model, (3,)), p, q, row([1, -1], 0), NEVER)
    assert found is not None
    y = Network(model, (3,)).at(found)
    assert y[0] == y[1]
    t = (found[0] - p[0]) / (q[0] - p[0])
    assert 0 < t < 1 and all(v == a + t * (b - a) for v, a, b in zip(found, p, q, strict=True))
    assert between(lower(model, (3,)), p, p, row([1, -1], 0), NEVER) is None


def network(seed: int = 0, low: float = 10.0) -> nn.Sequential:
    """Outputs 1 and 2 win, each somewhere; output 0 never does."""
    model = mlp(2, 16, 16, 3, seed=seed)
    with torch.no_grad():
        model[-1].bias[0] -= low
    return model


SQUARE = Box([-3, -3], [3, 3])


@pytest.mark.parametrize("split", ["inputs", "relus"])
def test_alternatives_that_may_not_tie_are_violated_by_a_tie(split: Any) -> None:
    """Without a time limit: the only unsafe outputs are ties, as every tie-free point has a winner that is allowed."""
    model, prop = network(), Property.on(SQUARE, Argmax([1]) | Argmax([2]), outputs=3)
    result = check(model, prop, options=Options(split=split))
    found = result.counterexample
    assert result.verdict == "violated" and found is not None and found.margin == 0
    assert prop.cases[0].box.contains(found.exact_input) and violates(Network(model, (2,)), prop, found.exact_input)
    y = [low for low, high in found.exact_output if low == high]
    assert len(y) == 3 and y[1] == y[2] > y[0]
    assert "unsafe set without interior: Y_1 = Y_2." in result.reason and "Linear" in result.reason


def test_alternatives_that_may_tie_hold() -> None:
    """What the error says to write instead."""
    model = network()
    result = check(model, Property.on(SQUARE, winner(1, 3) | winner(2, 3), outputs=3))
    assert result.verdict == "holds"
    assert result.certificate is None and "1 unsafe set is empty" in result.reason
    lowest = nn.Sequential(*model[:-1], nn.Linear(16, 3))
    with torch.no_grad():
        lowest[-1].weight.copy_(-model[-1].weight)
        lowest[-1].bias.copy_(-model[-1].bias)
    assert check(lowest, Property.on(SQUARE, Argmin([1]) | Argmin([2]), outputs=3)).verdict == "violated"


def test_alternatives_without_a_tie_in_the_region_hold_with_a_certificate() -> None:
    model = network()
    with torch.no_grad():
        model[-1].bias[1] += 10
    result = check(model, Property.on(SQUARE, Argmax([1]) | Argmax([2]), outputs=3))
    assert result.verdict == "holds" and result.certificate is not None and result.certificate.trees == 4


def test_a_violation_with_room_comes_before_a_tie() -> None:
    model = network(low=0.0)
    result = check(model, Property.on(SQUARE, Argmax([1]) | Argmax([2]), outputs=3))
    assert result.verdict == "violated" and result.counterexample is not None
    assert result.counterexample.margin > 0 and result.counterexample.replayed[0] == "network" and result.reason == ""


def test_equalities_of_a_file() -> None:
    """Y_1 = c is met exactly, for a decimal c that is no float."""
    model = network()
    with torch.no_grad():
        middle = round(float(model(torch.zeros(1, 2))[0, 1]), 4)
    bound = Fraction(str(middle))
    prop = Property([Case(SQUARE, ((row([0, 1, 0], bound), row([0, -1, 0], -bound)),))], 3)
    result = check(model, prop)
    found = result.counterexample
    assert found is not None and found.exact_output[1] == (bound, bound)
    assert violates(Network(model, (2,)), prop, found.exact_input)
    far = bound + 1000
    assert check(model, Property([Case(SQUARE, ((row([0, 1, 0], far), row([0, -1, 0], -far)),))], 3)).verdict == "holds"


def test_touching_intervals() -> None:
    """[0, 1] or [1, 2]: what is in neither is empty; [0, 1] or [1.5, 2] leaves a gap."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.zero_()

    def claim(low: float, high: float) -> Property:
        one, two = (torch.tensor([[value]]) for value in (0.5, (low + high) / 2))
        return Property.on(Box([0.1], [1.9]), Near(one, 0.5) | Near(two, (high - low) / 2))

    assert check(model, claim(1.0, 2.0)).verdict == "holds"
    assert check(model, claim(1.5, 2.0)).verdict == "violated"


def test_what_no_segment_meets_ends_without_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equalities at once are met at single points, which neither splitting nor a segment finds."""
    monkeypatch.setattr(jobs, "AFTER_STUCK", 500)
    model = network()
    with torch.no_grad():
        y = model(torch.tensor([[0.3, 0.7]]))[0].tolist()
    rows = [
        row([0, sign * (k == 1), sign * (k == 2)], sign * Fraction(f"{y[k]:.6f}")) for k in (1, 2) for sign in (1, -1)
    ]
    result = check(model, Property([Case(SQUARE, (tuple(rows),))], 3))
    assert result.verdict == "unknown" and result.counterexample is None
    assert "nothing can be proved" in result.reason and "cannot be split further" in result.reason
    assert "1 unsafe set has no interior, as Y_" in result.reason


def test_sets_without_interior_end_after_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FLAT_BOXES", 100)
    monkeypatch.setattr(exact, "EXACT_LIMIT", 0)
    prop = Property.on(SQUARE, Argmax([1]) | Argmax([2]), outputs=3)
    result = check(network(), prop)
    assert result.verdict == "unknown" and "only unsafe sets without interior are left" in result.reason
    assert result.boxes < 2000 and "Linear" in result.reason
