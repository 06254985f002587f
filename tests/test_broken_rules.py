"""Every rule of lines, intervals and maps, broken once: arithmetic of 40 digits must tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.verify import layers
from nnrepair.deadline import NEVER
from nnrepair.verify.reading.activations.arctangent import Arctangent
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.activations.erf import Erf
from nnrepair.verify.reading.activations.exponential import CappedExp, Exp, Log
from nnrepair.verify.reading.activations.gelu import GELU, TanhGELU
from nnrepair.verify.reading.activations.powers import Deviation, Reciprocal, Share, Sqrt
from nnrepair.verify.reading.activations.sigmoid import Sigmoid
from nnrepair.verify.reading.activations.silu import SiLU
from nnrepair.verify.reading.activations.sine import Sin
from nnrepair.verify.reading.activations.smooth import Smooth
from nnrepair.verify.reading.activations.square import Square
from nnrepair.verify.reading.activations.step import Floor, Round, Step
from nnrepair.verify.reading.activations.tanh import Tanh
from nnrepair.verify.reading.graph import Graph, Node
from nnrepair.verify.reading.partial import Filled
from nnrepair.verify.reading.sparse import Sparse, Transposed
from nnrepair.verify.search import bounds, intervals, magnitudes
from nnrepair.verify.search.forms import Form

#: Networks that are tried before a break counts as not found.
TRIES = 12
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def bounds_alone(monkeypatch: Patch) -> Iterator[None]:
    """Leave verdicts out, which take most of the time."""
    monkeypatch.setattr(layers, "decided", lambda *given: [])
    with mpmath.workdps(layers.DIGITS):
        yield


def found(kind: str, tries: int = TRIES) -> list[str]:
    """Return what is wrong with the first of some networks that are wrong."""
    for k in range(tries):
        _, wrong = layers.one(kind, np.random.default_rng([1, k]))
        if wrong:
            return wrong
    return []


#: Activations that can be tried alone: what they are, exactly, and where.
ALONE: dict[str, tuple[Callable[[], Activation], Callable[[Any], Any], tuple[float, float]]] = {
    "sigmoid": (Sigmoid, layers.ENTRIES["sigmoid"][1], (-9, 9)),
    "tanh": (Tanh, mpmath.tanh, (-9, 9)),
    "exp": (Exp, mpmath.exp, (-9, 9)),
    "log": (Log, mpmath.log, (0.1, 9)),
    "silu": (SiLU, layers.ENTRIES["silu"][1], (-9, 9)),
    "gelu": (GELU, layers.ENTRIES["gelu"][1], (-9, 9)),
    "sign": (Step, lambda z: mpmath.mpf(int(z > 0)), (-2, 2)),
    "floor": (Floor, mpmath.floor, (-4, 4)),
    "round": (Round, mpmath.nint, (-4, 4)),
    "erf": (Erf, mpmath.erf, (-4, 4)),
    "arctangent": (Arctangent, mpmath.atan, (-9, 9)),
    "gelu by tanh": (TanhGELU, layers.ENTRIES["gelu by tanh"][1], (-9, 9)),
    "layer norm": (lambda: Deviation(0.125), lambda z: mpmath.sqrt(max(z, 0) + mpmath.mpf(0.125)), (-1, 4)),
    "softmax": (Share, lambda z: 1 / max(z, mpmath.mpf(1)), (-1, 9)),
}


def found_alone(kind: str, intervals: int = 300) -> list[str]:
    """Return what is wrong with the intervals, lines and offsets of an activation."""
    make, exact, (first, last) = ALONE[kind]
    activation, rng, wrong = make(), np.random.default_rng(2), list[str]()
    ends = np.sort(rng.uniform(first, last, (intervals, 2)), 1)
    ends[::5] = np.sort(np.clip(np.round(ends[::5]), first, last), 1)
    low, high = (torch.from_numpy(ends[:, k].copy()) for k in (0, 1))
    lines, (least, most) = activation.relax(low, high), activation.enclose(low, high)
    base = torch.zeros_like(low) if lines.base is None else lines.base
    shares = torch.tensor([0, 1e-9, 0.2, 0.4, 0.6, 0.8, 1 - 1e-9, 1], dtype=torch.float64)
    for share in shares.tolist():
        z = torch.clamp(low + share * (high - low), low, high)
        for k, at in enumerate(z.tolist()):
            f, numbers = exact(mpmath.mpf(at)), (lines.slope, lines.shift, lines.floor, base, least, most)
            slope, shift, floor, below, down, up = (mpmath.mpf(float(v[k])) for v in numbers)
            if not (floor * at + below <= f <= slope * at + shift and down <= f <= up):
                wrong.append(f"{kind} at {at!r} in [{float(low[k])!r}, {float(high[k])!r}]")
    return wrong


def instead(kind: Any, name: str, value: Any) -> Callable[[Patch], None]:
    """Return what sets an attribute of a class, or of a module."""
    return lambda patch: patch.setattr(kind, name, value)


def roughly(kind: Any, name: str, value: Any) -> Callable[[Patch], None]:
    """Return what does so, and moves the places where lines touch, so that they are far from extremes."""

    def patch(monkeypatch: Patch) -> None:
        monkeypatch.setattr(Smooth, "touching", lambda self, slope, piece: torch.full_like(slope, 0.7))
        monkeypatch.setattr(kind, name, value)

    return patch


def _without_fall(self: Smooth, piece: int, slope: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Take the value at the touching place as extreme, though it is only near it."""
    ends = torch.stack([self.apply(z) - slope * z for z in (a, b, torch.clamp(self.touching(slope, piece), a, b))])
    return ends.amin(0), ends.amax(0)


def _ends_alone(self: Any, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Take the ends for extremes, as if nothing were between them."""
    ends = torch.stack([self.apply(z) - slope * z for z in (low, high)])
    return ends.amin(0), ends.amax(0)


def _nearest(self: Any, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Take 0 for the value at a jump, from whichever side."""
    ends = torch.stack([self.apply(z) - slope * z for z in (low, high, torch.zeros_like(low).clamp(low, high))])
    return ends.amin(0), ends.amax(0)


def _no_error(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(y)


def _signed(self: Any, x: Tensor) -> Tensor:
    return self.apply(x)


def _upper(self: Step, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return (high > 0).to(high), (high > 0).to(high)


def _lower(self: Floor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low.floor(), low.floor()


def _narrow(scale: float) -> Callable[[Patch], None]:
    """Return what makes the intervals of root boxes narrower, to which all others are cut."""

    def patch(monkeypatch: Patch) -> None:
        right = magnitudes.values_over

        def wrong(*given: Any, **more: Any) -> Any:
            return [
                ((low + high) / 2 - scale * (high - low) / 2, (low + high) / 2 + scale * (high - low) / 2)
                for low, high in right(*given, **more)
            ]

        monkeypatch.setattr(magnitudes, "values_over", wrong)

    return patch


def _forms(name: str, share: float) -> Callable[[Patch], None]:
    """Return what lets affine forms bound everything, and leaves out a step's errors."""

    def patch(monkeypatch: Patch) -> None:
        right = getattr(Form, name)

        def wrong(self: Form, *given: Any) -> Form:
            made: Form = right(self, *given)
            return Form(made.middle, made.slope, share * made.error)

        monkeypatch.setattr(bounds, "FORM_WORK", 0)
        monkeypatch.setattr(Form, name, wrong)

    return patch


#: What is broken: the kind of network that shows it, and how.
BREAKS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "no error of torch's sigmoid": ("sigmoid", instead(Smooth, "off", _no_error)),
    "no error of torch's exp": ("exp", instead(Exp, "off", _no_error)),
    "no error of torch's erfc": ("gelu", instead(GELU, "off", _no_error)),
    "places taken for extremes": ("silu", roughly(Smooth, "_over", _without_fall)),
    "a piece of Tanh bent the other way": ("tanh", instead(Tanh, "convex", (True, True))),
    "Sigmoid turned around": ("sigmoid", instead(Sigmoid, "convex", (False, True))),
    "SiLU turns elsewhere": ("silu", instead(SiLU, "breaks", ((-1.5, -1.5), (1.5, 1.5)))),
    "GELU turns elsewhere": ("gelu", instead(GELU, "breaks", ((-2.0, -2.0), (2.0, 2.0)))),
    "Sin turned around": ("sin", instead(Sin, "convex", tuple(not c for c in Sin.convex))),
    "Exp concave": ("exp", instead(Exp, "convex", (False,))),
    "Log convex": ("log", instead(Log, "convex", (True,))),
    "Sqrt convex": ("sqrt", instead(Sqrt, "convex", (True,))),
    "Square by its ends": ("square", instead(Square, "offsets", _ends_alone)),
    "Reciprocal by its ends": ("reciprocal", instead(Reciprocal, "offsets", _ends_alone)),
    "a derivative half as steep": ("silu", roughly(SiLU, "derivative", lambda self, x: torch.sigmoid(x) / 2)),
    "no jump above": ("sign", instead(Step, "offsets", _nearest)),
    "steps at their upper ends": ("compared", instead(Step, "enclose", _upper)),
    "Floor is where it was": ("floor", instead(Floor, "enclose", _lower)),
    "Floor as a line": ("floor", instead(Floor, "offsets", _ends_alone)),
    "SiLU never below zero": ("silu", instead(SiLU, "least", 0.0)),
    "Tanh below one half": ("tanh", instead(Tanh, "most", 0.5)),
    "weights of sums with their signs": ("bilinear", instead(Sparse, "magnitude", lambda self, x: self.apply(x) / 2)),
    "differences with their signs": ("softmax", instead(Sparse, "magnitude", _signed)),
    "transposed convolutions with signs": ("transposed convolution", instead(Transposed, "magnitude", _signed)),
    "back is forward of one weight": (
        "sums", instead(Sparse, "back", lambda self, A: A.new_zeros(len(A), self.inputs).index_add(
            1, self.index[:, 0], A)),
    ),
    "Erf turned around": ("erf", instead(Erf, "convex", (False, True))),
    "arctangents turned around": ("arctangent", instead(Arctangent, "convex", (False, True))),
    "GELU by tanh turns elsewhere": ("gelu by tanh", instead(TanhGELU, "breaks", ((-2.0, -2.0), (2.0, 2.0)))),
    "Round by its ends": ("round", instead(Round, "offsets", _ends_alone)),
    "a deviation convex": ("layer norm", instead(Deviation, "convex", (True, True))),
    "a share that is concave": ("softmax", instead(Share, "convex", (True, False))),
    "exponentials capped at 1": ("softmax", instead(CappedExp, "apply", lambda self, x: torch.exp(x.clamp(max=1)))),
    "forms without errors, behind bends": ("mish", _forms("bent", 0.0)),
    "forms without errors, behind maps": ("square", _forms("through", 0.0)),
    "root intervals too narrow": ("sigmoid", _narrow(0.5)),
    "root intervals without rounding": ("hardswish", _narrow(1 - 1e-3)),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_rule_is_found(name: str, monkeypatch: Patch) -> None:
    kind, break_ = BREAKS[name]
    break_(monkeypatch)
    assert (kind in ALONE and found_alone(kind)) or found(kind), f"nothing tells that {name!r}"


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in BREAKS.values()}))
def test_nothing_is_found_where_nothing_is_broken(kind: str) -> None:
    assert not found(kind, 2) and not (kind in ALONE and found_alone(kind))


def test_a_place_that_touches_nowhere_is_only_loose(monkeypatch: Patch) -> None:
    """Touching places come from floats without any bound; lines must be sound wherever they are."""
    monkeypatch.setattr(Smooth, "touching", lambda self, slope, piece: torch.full_like(slope, 0.7))
    for kind in (Tanh, Sigmoid):
        monkeypatch.setattr(kind, "touching", lambda self, slope, piece: torch.full_like(slope, -3.0))
    for name in ("silu", "gelu", "tanh", "sigmoid"):
        assert not found(name, 1) and not found_alone(name)


def test_intervals_count_what_is_unsure_of_a_bias() -> None:
    """A bias that is off by `off` makes intervals and linear bounds wider by that, at least."""
    off = torch.tensor([0.0, 0.25], dtype=torch.float64)
    filled = Filled(torch.tensor([0]), torch.tensor([0.0, 1.0], dtype=torch.float64), off)
    graph, one = Graph([Node((), 1), Node((0,), 2, filled)]), torch.ones(1, dtype=torch.float64)
    low, high = intervals.outputs_over(graph, -one[None], one[None])
    assert float(low[0, 1]) <= 0.75 and float(high[0, 1]) >= 1.25
    assert bool((magnitudes.Rounding(graph, -one, one, NEVER).rho[1] >= off).all())
