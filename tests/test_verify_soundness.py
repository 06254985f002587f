"""The property checker against exact answers: a sample of the campaign in benchmarks/verify, and cases made by hand."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reference.regions import Network, Regions, Residual, decide, stored, violates
from scipy.optimize import linprog
from torch import nn

pytest.importorskip("onnx")
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.verify import cases, soundness
from nnrepair import deadline
from nnrepair.verify.property import Box, Case, Halfspace, Property

THIRD, TENTH = Fraction(1, 3), Fraction(1, 10)


@pytest.fixture(autouse=True, scope="module")
def cpu_clock() -> Iterator[None]:
    """Let time limits count CPU seconds: other processes may hold up this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadline, "time", SimpleNamespace(monotonic=time.process_time))
        yield


def layer(weight: Any, bias: Any, dtype: torch.dtype = torch.float32) -> nn.Linear:
    w = torch.tensor(weight, dtype=dtype)
    made: nn.Linear = cases.filled(nn.Linear(w.shape[1], w.shape[0], dtype=dtype), w, bias)
    return made


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*[part for each in layers for part in (each, nn.ReLU())][:-1])


def below(a: Any, bound: Any, strict: bool = False) -> Halfspace:
    return Halfspace(tuple(map(Fraction, a)), Fraction(bound), strict)


def claim(box: Box, *unsafe: Any) -> Property:
    return Property([Case(box, unsafe)], len(unsafe[0][0].coefficients))


def answer(model: nn.Module, prop: Property, split: Any, timeout: float = 0.5) -> tuple[str, str]:
    """Return the checker's and the exact verdict; wrong answers fail here."""
    from nnrepair.verify import Options, check

    network = Network(model, prop.cases[0].box.shape)
    exact = decide(network, prop)
    result = check(model, prop, timeout=timeout, options=Options(split=split))
    trial = cases.Trial("by hand", model, prop, network, exact)
    assert not soundness.judged(trial, result)
    return result.verdict, exact.verdict


# The reference itself ------------------------------------------------------------------------------------------------


def by_patterns(model: nn.Sequential, low: float, high: float, row: np.ndarray) -> float:
    """Return the minimum of row . y over a box by one linear program for every pattern of active neurons."""
    first, *rest = [m for m in model if isinstance(m, nn.Linear)]
    layers = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in (first, *rest)]
    best, n = np.inf, layers[0][0].shape[1]
    for pattern in itertools.product((0, 1), repeat=sum(len(b) for _, b in layers[:-1])):
        A, c, used, limits = np.eye(n), np.zeros(n), [], []
        signs = iter(pattern)
        for W, b in layers[:-1]:
            A, c = W @ A, W @ c + b
            on = np.array([next(signs) for _ in b], dtype=float)
            used.append((1 - 2 * on)[:, None] * A)
            limits.append((2 * on - 1) * c)
            A, c = on[:, None] * A, on * c
        A, c = layers[-1][0] @ A, layers[-1][0] @ c + layers[-1][1]
        found = linprog(row @ A, np.concatenate(used), np.concatenate(limits), bounds=[(low, high)] * n)
        if found.status == 0:
            best = min(best, found.fun + row @ c)
    return float(best)


@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 3, 3, 2), (3, 5, 1), (2, 2, 2, 2, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_minima_equal_those_of_all_patterns(sizes: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = cases.mlp(sizes, cases.normal(rng), torch.float64)
    regions = Regions(Network(model, sizes[:1]), Box([-2] * sizes[0], [2] * sizes[0]))
    row = rng.integers(-2, 3, size=sizes[-1]) + 0.5
    exact = regions.least([Fraction(v) for v in row.tolist()])
    assert float(exact) == pytest.approx(by_patterns(model, -2, 2, row), abs=1e-7)


@pytest.mark.parametrize("kind", list(cases.KINDS))
def test_exact_outputs_are_those_of_torch(kind: str) -> None:
    trial = cases.trial(list(cases.KINDS).index(kind) + len(cases.KINDS))
    x = torch.rand(
        1, *trial.property.cases[0].box.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    y = trial.model.double()(x).detach()
    exact = torch.tensor([[float(v) for v in trial.network.at(stored(x))]], dtype=torch.float64)
    torch.testing.assert_close(y, exact, rtol=1e-6, atol=1e-9 * float(y.abs().max()) + 1e-30)


@pytest.mark.parametrize("index", range(0, 40))
def test_samples_never_contradict_a_property_that_holds(index: int) -> None:
    trial = cases.trial(index)
    if trial.answer.verdict == "violated":
        assert violates(trial.network, trial.property, trial.answer.witness)
        return
    rng = np.random.default_rng(index)
    for case in trial.property.cases:
        for t in rng.integers(0, 9, size=(40, len(case.box))).tolist():
            ends = zip(case.box.lower, case.box.upper, t, strict=True)
            assert not violates(trial.network, trial.property, [a + (b - a) * Fraction(s, 8) for a, b, s in ends])


def test_reference_tells_strict_from_closed() -> None:
    model = chain(layer([[1.0]], [0.0]), layer([[1.0]], [0.0]))  # relu(x) on [-1, 1] touches 0
    network, box = Network(model, (1,)), Box([-1], [1])
    closed, strict = (decide(network, claim(box, (below([1], 0, s),))) for s in (False, True))
    assert (closed.verdict, closed.nearness, strict.verdict, strict.nearness) == ("violated", "tie", "holds", "tie")


def test_reference_needs_one_point_for_all_strict_rows() -> None:
    model = layer([[1.0], [-1.0]], [0.0, 0.0])  # y = (x, -x): both < 0 nowhere, both <= 0 at 0
    network, box = Network(model, (1,)), Box([-1], [1])
    both = [claim(box, (below([1, 0], 0, s), below([0, 1], 0, s))) for s in (False, True)]
    assert [decide(network, prop).verdict for prop in both] == ["violated", "holds"]


# The checker on a sample of the campaign -----------------------------------------------------------------------------


@pytest.mark.parametrize("split", soundness.SPLITS)
@pytest.mark.parametrize("kind", list(cases.KINDS))
def test_checker_agrees_with_exact_answers(
    kind: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "LIMIT", 0.3)
    for index in range(list(cases.KINDS).index(kind), 2 * len(cases.KINDS), len(cases.KINDS)):
        row = soundness.run_case(index, cases.SEED, split, tmp_path)
        assert row["verdict"] != "error", row
        assert not row["problem"], row


# Cases by hand: the name says what is probed; then follow the true verdict and whether "unknown" is allowed -----------

ONE = chain(layer([[1.0]], [0.0]), layer([[1.0]], [0.0]))  # relu(x)
ABS = chain(layer([[1.0], [-1.0]], [0.0, 0.0]), layer([[1.0, 1.0]], [0.0]))  # |x|
TWINS = chain(layer([[1.0, 2.0], [1.0, 2.0]], [0.5, 0.5]), layer([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]))
HUGE = chain(layer([[1e12], [1e12]], [1.0, 0.0]), layer([[1.0, -1.0]], [0.0]))  # in float32 1e12 x + 1 - 1e12 x
LOST = chain(
    layer([[2.0**30], [2.0**30]], [1.0, 0.0], torch.float64), layer([[2.0**30, -(2.0**30)]], [0.0], torch.float64)
)
DEAD = chain(layer([[0.0, 0.0]], [-1.0]), layer([[5.0]], [0.25]))
SMALL = chain(layer([[1e-30]], [0.0]), layer([[1e-10]], [0.0]))  # 1e-40 relu(x), below the normal float32 numbers
BIG = [1.5e308, 1.5e308, 1.7e308, 1.7e308]
OVER = chain(layer([[1.0]] * 4, BIG, torch.float64), layer([[1.0, 1.0, -1.0, -1.0]], [0.0], torch.float64))
IDENTITY = chain(layer([[1.0]], [0.0]))
SUM = chain(layer([[1.0, 1.0]], [0.0]))
BOTH = chain(layer([[1.0], [-1.0]], [0.0, 0.0]))  # x, -x
THRICE = chain(layer([[1.0]] * 3, [0.0] * 3))
HALF = Residual(chain(layer([[1.0]], [0.0]), layer([[-1.0]], [0.0])))  # x - relu(x) = min(x, 0)
POOL = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), IDENTITY)


def square(low: float, high: float) -> Box:
    return Box(np.full((1, 2, 2), low), np.full((1, 2, 2), high))


HARD: dict[str, tuple[nn.Module, Property, str, bool]] = {
    "minimum touched from outside, closed": (ABS, claim(Box([-1], [1]), (below([1], 0),)), "violated", True),
    "minimum touched from outside, strict": (ABS, claim(Box([-1], [1]), (below([1], 0, True),)), "holds", True),
    "flat piece at the threshold, closed": (ONE, claim(Box([-1], [1]), (below([1], 0),)), "violated", False),
    "flat piece at the threshold, strict": (ONE, claim(Box([-1], [1]), (below([1], 0, True),)), "holds", True),
    "kink at the lower corner": (ONE, claim(Box([0], [1]), (below([1], -1e-9),)), "holds", False),
    "kink at the upper corner": (ONE, claim(Box([-1], [0]), (below([-1], -1e-9),)), "holds", False),
    "kink at a decimal corner": (
        chain(layer([[10.0]], [-1.0]), layer([[1.0]], [0.0])),
        claim(Box([TENTH], [1]), (below([1], 0),)), "violated", True,
    ),
    "equal outputs, y0 < y1": (TWINS, claim(Box([-1, -1], [1, 1]), (below([1, -1], 0, True),)), "holds", True),
    "equal outputs, y0 <= y1": (TWINS, claim(Box([-1, -1], [1, 1]), (below([1, -1], 0),)), "violated", False),
    "box is one point, safe": (ABS, claim(Box([0.5], [0.5]), (below([1], 0.49),)), "holds", False),
    "box is one point, unsafe": (ABS, claim(Box([0.5], [0.5]), (below([1], 0.5),)), "violated", False),
    "box is one point that is no float, safe": (ABS, claim(Box([THIRD], [THIRD]), (below([1], 0.25),)), "holds", False),
    "box is one point that is no float, unsafe": (
        ABS, claim(Box([THIRD], [THIRD]), (below([1], 0.5),)), "violated", True,
    ),
    "box without float32 numbers": (
        IDENTITY, claim(Box([TENTH], [TENTH + Fraction(1, 10**12)]), (below([1], 1),)), "violated", True,
    ),
    "bound 0.1 is not the float 0.1": (
        IDENTITY, claim(Box([Fraction(0.1)], [1]), (below([1], TENTH),)), "holds", True,
    ),
    "bound 1/3 just above the float": (
        IDENTITY, claim(Box([Fraction(float(np.float32(1 / 3)))], [1]), (below([1], THIRD),)), "holds", True,
    ),
    "coefficients 0.1 + 0.2 - 0.3 cancel": (
        THRICE, claim(Box([1], [2]), (below([TENTH, 2 * TENTH, -3 * TENTH], 0),)), "violated", True,
    ),
    "coefficients 0.3 - 0.1 - 0.2 cancel, far from zero": (
        THRICE,
        claim(Box([2**40], [2**40 + 1]), (below([3 * TENTH, -TENTH, -2 * TENTH], 0),)), "violated", True,
    ),
    "coefficients cancel, strict": (
        THRICE,
        claim(Box([1], [2]), (below([TENTH, 2 * TENTH, -3 * TENTH], 0, True),)), "holds", True,
    ),
    "difference of huge neurons is 1 or less": (HUGE, claim(Box([-1], [1]), (below([-1], -1.5),)), "holds", True),
    "difference of huge neurons is 1 somewhere": (HUGE, claim(Box([-1], [1]), (below([-1], -1),)), "violated", True),
    "cancellation at 2**60": (LOST, claim(Box([0], [1]), (below([-1], -(2**30) - 1),)), "holds", True),
    "dead neurons, constant output, closed": (DEAD, claim(Box([0, 0], [1, 1]), (below([1], 0.25),)), "violated", False),
    "dead neurons, constant output, below": (DEAD, claim(Box([0, 0], [1, 1]), (below([1], 0.24),)), "holds", False),
    "outputs below the normal numbers": (SMALL, claim(Box([0], [1]), (below([-1], -1e-39),)), "holds", True),
    "threshold below the normal numbers": (IDENTITY, claim(Box([1e-300], [1]), (below([1], 1e-310),)), "holds", True),
    "no neuron at all, holds": (SUM, claim(Box([0, 0], [1, 1]), (below([-1], -2.001),)), "holds", False),
    "no neuron at all, violated in a corner": (SUM, claim(Box([0, 0], [1, 1]), (below([-1], -2),)), "violated", False),
    "no neuron at all, decimal corner": (
        SUM, claim(Box([0, 0], [TENTH, THIRD]), (below([-1], -TENTH - THIRD),)), "violated", True,
    ),
    "rows that hold, but never together": (
        BOTH,
        claim(Box([-1], [1]), (below([1, 0], -0.01), below([0, 1], -0.01))), "holds", False,
    ),
    "rows that hold together at one point": (
        BOTH, claim(Box([-1], [1]), (below([1, 0], 0), below([0, 1], 0))), "violated", True,
    ),
    "either row": (
        BOTH,
        claim(Box([-1], [1]), (below([1, 0], -2),), (below([0, 1], -0.5),)), "violated", False,
    ),
    "neither row": (
        BOTH,
        claim(Box([-1], [1]), (below([1, 0], -1.01),), (below([0, 1], -1.01),)), "holds", False,
    ),
    "a row of zeros that always holds": (
        IDENTITY, claim(Box([0], [1]), (below([0], 0), below([1], 0.5))), "violated", False,
    ),
    "a row of zeros that never holds": (
        IDENTITY, claim(Box([0], [1]), (below([0], 0, True), below([1], 0.5))), "holds", True,
    ),
    "the same row twice": (ABS, claim(Box([-1], [1]), (below([1], -0.1), below([1], -0.1))), "holds", False),
    "sums that overflow float64": (OVER, claim(Box([0], [1]), (below([1], 0),)), "violated", True),
    "residual sum, min(x, 0) below 0": (HALF, claim(Box([-1], [1]), (below([-1], -0.001),)), "holds", False),
    "residual sum, min(x, 0) at 0": (HALF, claim(Box([-1], [1]), (below([-1], 0),)), "violated", False),
    "maximum over a window, all at the bottom": (POOL, claim(square(-1, 1), (below([1], -1),)), "violated", True),
    "maximum over a window, below the bottom": (POOL, claim(square(-1, 1), (below([1], -1.001),)), "holds", False),
    "maximum over a window, above the top": (POOL, claim(square(-1, 1), (below([-1], -1.5),)), "holds", False),
    "a bare layer": (layer([[1.0]], [0.0]), claim(Box([0], [1]), (below([1], -0.1),)), "holds", False),
    "second of two boxes": (
        ABS,
        Property([Case(Box([1], [2]), ((below([1], 0.5),),)), Case(Box([-1], [1]), ((below([1], 0.5),),))], 1),
        "violated", False,
    ),
    "the other box's condition does not count": (
        ABS,
        Property([Case(Box([1], [2]), ((below([1], 0.5),),)), Case(Box([-1], [1]), ((below([-1], -1.5),),))], 1),
        "holds", False,
    ),
    "touching boxes": (
        ABS,
        Property([Case(Box([0.5], [1]), ((below([1], 0.4),),)), Case(Box([-1], [-0.5]), ((below([1], 0.4),),))], 1),
        "holds", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("split", soundness.SPLITS)
@pytest.mark.parametrize("name", list(HARD))
def test_hard_case(name: str, split: str) -> None:
    model, prop, truth, may_be_unknown = HARD[name]
    # Splitting ReLUs proves one row of a conjunction; it cannot use that two never hold together.
    several = split == "relus" and any(len(rows) > 1 for case in prop.cases for rows in case.unsafe)
    may_be_unknown |= several
    given, exact = answer(model, prop, split, 0.5 if may_be_unknown else 60.0)
    assert exact == truth
    assert given == truth or (may_be_unknown and given == "unknown")
