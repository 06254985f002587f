"""Every activation that the checker knows, in one table: its value, intervals, lines, splits and exact value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import randn, seeded
from torch import Tensor, nn

from nnrepair.errors import UnsupportedModel
from nnrepair.regions.splitting import split
from nnrepair.spec.regions import Segments
from nnrepair.verify import Box, Options, Property, check
from nnrepair.verify.property import Case, Halfspace
from nnrepair.verify.reading import activations
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.activations.elu import ELU
from nnrepair.verify.reading.activations.relu import RELU, ReLU
from nnrepair.verify.reading.activations.step import Step
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.intervals import outputs_over
from nnrepair.verify.search.rational import can_be_exact, rational

EVERYWHERE = (-math.inf, math.inf)
Exact = Callable[[Fraction], Fraction]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@dataclass(frozen=True)
class Row:
    """One activation, as a function of one number.

    Attributes:
        layer: makes it.
        exact: the same in rational numbers, written by someone else.
        calls: functions of a tensor that mean the same.
        onnx: the operator, with attributes, and constants that follow its first input; None if there is none.
        bends: where to look closely, besides everywhere.
        is_exact: whether the checker evaluates it exactly. is_bent: whether it is piecewise linear.
        domain: where it has values that rational numbers can be compared with.
        jumps: whether it is no continuous function; floats beside a jump may be on the other side of it.
    """

    layer: Callable[[], nn.Module]
    exact: Exact
    calls: tuple[Callable[[Tensor], Tensor], ...] = ()
    onnx: tuple[str, dict[str, float], tuple[float, ...]] | None = None
    bends: tuple[float, ...] = (0.0,)
    is_exact: bool = True
    is_bent: bool = True
    domain: tuple[float, float] = EVERYWHERE
    jumps: bool = False


def smooth(
    layer: Callable[[], nn.Module],
    exact: Callable[[Any], Any],
    calls: tuple[Callable[[Tensor], Tensor], ...] = (),
    bends: tuple[float, ...] = (0.0,),
    domain: tuple[float, float] = EVERYWHERE,
    onnx: str | None = None,
) -> Row:
    """Return the row of a function that mpmath computes to 60 digits."""

    def rational(z: Fraction) -> Fraction:
        with mpmath.workdps(60):
            value = exact(mpmath.mpf(z.numerator) / z.denominator)
            sign, man, exponent, _ = value._mpf_
        return (-1) ** sign * int(man) * (Fraction(2) ** exponent if exponent > -5000 else Fraction(0))

    operator = None if onnx is None else (onnx, dict[str, float](), ())
    return Row(layer, rational, calls, operator, bends, is_exact=False, is_bent=False, domain=domain)


def elu_of(z: Any, alpha: Any) -> Any:
    return z if z > 0 else alpha * mpmath.expm1(z)


SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
TURN = 2.3993572805154675


def clip(z: Fraction, low: float = -math.inf, high: float = math.inf) -> Fraction:
    return z if low <= z <= high else Fraction(low if z < low else high)


def slopes(z: Fraction, below: float) -> Fraction:
    return z if z > 0 else Fraction(below) * z


def prelu() -> nn.Module:
    return nn.PReLU(init=-0.25)


QUARTER = torch.tensor(0.25)

ROWS = {
    "ReLU": Row(nn.ReLU, lambda z: max(z, Fraction(0)), (torch.relu, F.relu, lambda x: x.relu()), ("Relu", {}, ())),
    "LeakyReLU": Row(
        lambda: nn.LeakyReLU(0.125),
        lambda z: slopes(z, 0.125),
        (lambda x: F.leaky_relu(x, 0.125),),
        ("LeakyRelu", {"alpha": 0.125}, ()),
    ),
    "PReLU": Row(prelu, lambda z: slopes(z, -0.25), (), ("PRelu", {}, (-0.25,))),
    "Abs": Row(lambda: Call(torch.abs), lambda z: abs(z), (lambda x: x.abs(), lambda x: abs(x)), ("Abs", {}, ())),
    "Neg": Row(lambda: Call(torch.neg), lambda z: -z, (lambda x: -x, lambda x: x.neg()), ("Neg", {}, ()), ()),
    "Max of two": Row(
        lambda: Call(lambda x: torch.maximum(x, 0.5 - x)),
        lambda z: max(z, Fraction(1, 2) - z),
        (lambda x: torch.max(x, 0.5 - x), lambda x: x.maximum(0.5 - x), lambda x: x.max(0.5 - x)),
        None,
        (0.25,),
    ),
    "Min of two": Row(
        lambda: Call(lambda x: torch.minimum(x, 0.5 - x)),
        lambda z: min(z, Fraction(1, 2) - z),
        (lambda x: torch.min(x, 0.5 - x), lambda x: x.minimum(0.5 - x), lambda x: x.min(0.5 - x)),
        None,
        (0.25,),
    ),
    "Max with a constant": Row(
        lambda: nn.Hardtanh(0.25, math.inf), lambda z: clip(z, 0.25), (), ("Max", {}, (0.25, -1.0)), (0.25,)
    ),
    "Min with a constant": Row(
        lambda: nn.Hardtanh(-math.inf, 0.25), lambda z: clip(z, high=0.25), (), ("Min", {}, (0.25, 1.0)), (0.25,)
    ),
    "Hardtanh": Row(
        lambda: nn.Hardtanh(-0.5, 2.0),
        lambda z: clip(z, -0.5, 2.0),
        (lambda x: torch.clamp(x, -0.5, 2.0), lambda x: x.clip(min=-0.5, max=2.0), lambda x: F.hardtanh(x, -0.5, 2.0)),
        ("Clip", {}, (-0.5, 2.0)),
        (-0.5, 2.0),
    ),
    "ReLU6": Row(nn.ReLU6, lambda z: clip(z, 0, 6), (F.relu6, lambda x: x.clamp(0, 6)), None, (0.0, 6.0)),
    "Hardsigmoid": Row(
        nn.Hardsigmoid, lambda z: clip(z + 3, 0, 6) / 6, (F.hardsigmoid,), None, (-3.0, 3.0), is_exact=False
    ),
    "Hardswish": Row(
        nn.Hardswish,
        lambda z: z * clip(z + 3, 0, 6) / 6,
        (F.hardswish,),
        ("HardSwish", {}, ()),
        (-3.0, -1.5, 3.0),
        is_bent=False,
    ),
    "HardSigmoid of ONNX": Row(
        lambda: Call(lambda x: (0.25 * x + 0.5).clamp(0, 1)),
        lambda z: clip(z / 4 + Fraction(1, 2), 0, 1),
        (),
        ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}, ()),
        (-2.0, 2.0),
    ),
    "Sign": Row(
        lambda: Call(torch.sign),
        lambda z: Fraction((z > 0) - (z < 0)),
        (lambda x: x.sign(), lambda x: (x > 0).to(x) - (x < 0).to(x)),
        ("Sign", {}, ()),
        is_bent=False,
        jumps=True,
    ),
    "At least": Row(
        lambda: Call(lambda x: (x >= 0.25).to(x)),
        lambda z: Fraction(z >= 0.25),
        (),
        None,
        (0.25,),
        True,
        False,
        jumps=True,
    ),
    "Sigmoid": smooth(
        nn.Sigmoid, lambda z: 1 / (1 + mpmath.exp(-z)), (torch.sigmoid, lambda x: x.sigmoid()), onnx="Sigmoid"
    ),
    "Tanh": smooth(nn.Tanh, mpmath.tanh, (torch.tanh, lambda x: x.tanh()), onnx="Tanh"),
    "Softplus": smooth(nn.Softplus, lambda z: mpmath.log1p(mpmath.exp(z)) if z < 200 else z, (F.softplus,)),
    "ELU": smooth(nn.ELU, lambda z: elu_of(z, 1), (F.elu,), onnx="Elu"),
    "ELU of a half": smooth(lambda: nn.ELU(0.5), lambda z: elu_of(z, 0.5), (lambda x: F.elu(x, 0.5),)),
    "SELU": smooth(nn.SELU, lambda z: mpmath.mpf(SELU[1]) * elu_of(z, SELU[0]), (F.selu, torch.selu)),
    "CELU": smooth(lambda: nn.CELU(2.0), lambda z: 2 * elu_of(z / 2, 1) if z < 0 else z, (lambda x: F.celu(x, 2.0),)),
    "SiLU": smooth(nn.SiLU, lambda z: z / (1 + mpmath.exp(-z)), (F.silu,), (0.0, TURN, -TURN)),
    "GELU": smooth(
        nn.GELU, lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2, (F.gelu,), (0.0, math.sqrt(2), -math.sqrt(2))
    ),
    "GELU by tanh": smooth(
        lambda: nn.GELU("tanh"),
        lambda z: z / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3))),
        (lambda x: F.gelu(x, approximate="tanh"),),
        (0.0, 1.4185040087908283, -1.4185040087908283),
    ),
    "Erf": smooth(lambda: Call(torch.erf), mpmath.erf, (torch.special.erf, lambda x: x.erf()), onnx="Erf"),
    "Arctangent": smooth(lambda: Call(torch.atan), mpmath.atan, (torch.arctan, lambda x: x.atan()), onnx="Atan"),
    "Softsign": smooth(nn.Softsign, lambda z: z / (1 + abs(z)), (F.softsign,), onnx="Softsign"),
    "Round": Row(
        lambda: Call(torch.round),
        lambda z: Fraction(round(z)),
        (lambda x: x.round(),),
        ("Round", {}, ()),
        (0.5, 1.0, -1.5),
        True,
        False,
        jumps=True,
    ),
    "Exp": smooth(lambda: Call(torch.exp), mpmath.exp, (lambda x: x.exp(),), domain=(-math.inf, 300.0)),
    "Log": smooth(lambda: Call(torch.log), mpmath.log, (lambda x: x.log(),), (), (1e-9, math.inf)),
    "Sqrt": smooth(lambda: Call(torch.sqrt), mpmath.sqrt, (lambda x: x**0.5,), (0.0,), (0.0, math.inf)),
    "Reciprocal": smooth(lambda: Call(torch.reciprocal), lambda z: 1 / z, (lambda x: x**-1,), (), (1e-9, math.inf)),
    "Square": Row(
        lambda: Call(torch.square),
        lambda z: z * z,
        (lambda x: x.square(), lambda x: x.pow(2), lambda x: x**2, lambda x: torch.pow(x, 2.0)),
        is_bent=False,
    ),
    "Cube": Row(lambda: Call(lambda x: x**3), lambda z: z * z * z, (), None, is_bent=False, domain=(-1e9, 1e9)),
}

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def points(row: Row) -> Tensor:
    """Return (n, 1) points, at and beside the bends too."""
    ends = [b + d for b in row.bends for d in (-1e-3, 0.0, 1e-3)]
    some = torch.cat([torch.tensor(ends, dtype=torch.float64), 5 * randn(200, dtype=torch.float64)])[:, None]
    return some.clamp(*row.domain)


def network(row: Row, seed: int = 0) -> nn.Module:
    """Return a small network in which the activation is between two matrices, and behind another one."""
    model = seeded(
        lambda: nn.Sequential(nn.Linear(2, 5), row.layer(), nn.Linear(5, 4), row.layer(), nn.Linear(4, 2)), seed
    ).double()
    if row.domain != EVERYWHERE:  # small, or positive
        with torch.no_grad():
            for layer in model[:3:2]:
                layer.weight.abs_().mul_(0.2)
                layer.bias.fill_(3.0 if row.domain[0] >= 0 else -1.0)
    return model


def written(row: Row, path: Path) -> Path:
    """Write the operator as an ONNX file, in float32."""
    onnx = pytest.importorskip("onnx")
    assert row.onnx is not None
    op, attributes, constants = row.onnx
    names = [f"c{k}" for k in range(len(constants))]
    shape = [] if op == "Clip" else [1]
    stored = [onnx.helper.make_tensor(n, 1, shape, [v]) for n, v in zip(names, constants, strict=True)]
    node = onnx.helper.make_node(op, ["x", *names], ["y"], **attributes)
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["n", 1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "activation", ends[:1], ends[1:], stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


# Value ---------------------------------------------------------------------------------------------------------------


@every_row
def test_value(row: Row) -> None:
    x = points(row)
    for layer in (row.layer(), *map(Call, row.calls)):
        graph = lower(layer.double().eval(), (1,))
        with torch.no_grad():
            torch.testing.assert_close(graph(x), layer(x), rtol=1e-12, atol=1e-12)
    wanted = [float(row.exact(Fraction(v))) for v in x[:, 0].tolist()]
    torch.testing.assert_close(graph(x)[:, 0].tolist(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.onnx])
def test_value_in_onnxruntime(name: str, tmp_path: Path) -> None:
    ort, row = pytest.importorskip("onnxruntime"), ROWS[name]
    from nnrepair import onnx

    path, x = written(row, tmp_path / "one.onnx"), points(row).float()
    (y,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    model = onnx.load(path)
    with torch.no_grad():
        np.testing.assert_allclose(model(x).numpy(), y, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(lower(model, (1,))(x.double()).numpy(), y, rtol=1e-6, atol=1e-6)


@every_row
def test_exact_value(row: Row) -> None:
    graph = lower(row.layer().double(), (1,))
    assert can_be_exact(graph) == row.is_exact
    if row.is_exact:
        ends = [Fraction(b) + d for b in (*row.bends, 0.0) for d in (0, Fraction(1, 10**30), Fraction(-1, 10**30))]
        for z in (*ends, *(Fraction(k, 7) for k in range(-40, 40)), Fraction(-(10**20)), Fraction(10**20, 3)):
            assert rational(graph, [z]) == [row.exact(z)]
        deep, x = lower(network(row), (2,)), [Fraction(1, 3), Fraction(-5, 8)]
        y = [float(v) for v in rational(deep, x)]
        near = deep(torch.tensor([[float(v) for v in x]], dtype=torch.float64))[0].tolist()
        assert y == pytest.approx(near, rel=1e-9, abs=1e-9)


# Intervals and lines -------------------------------------------------------------------------------------------------

number = st.one_of(st.floats(-8, 8), st.sampled_from([-3.0, -1.5, 0.0, 0.25, 3.0, 6.0]), st.floats(-1e9, 1e9))


@every_row
@settings(max_examples=60, deadline=None)
@given(ends=st.lists(st.tuples(number, number), min_size=1, max_size=5), share=st.floats(0, 1))
def test_intervals_contain_exact_values(row: Row, ends: list[tuple[float, float]], share: float) -> None:
    low, high = (torch.tensor([[pick(pair)] for pair in ends], dtype=torch.float64) for pick in (min, max))
    low, high = low.clamp(*row.domain), high.clamp(*row.domain)
    least, most = outputs_over(lower(row.layer().double(), (1,)), low, high)
    for k, (a, b) in enumerate(zip(low[:, 0].tolist(), high[:, 0].tolist(), strict=True)):
        for z in {a, b, min(max(a + share * (b - a), a), b), *(e for e in row.bends if a <= e <= b)}:
            assert fraction(least[k]) <= row.exact(Fraction(z)) <= fraction(most[k])


def fraction(value: Tensor) -> Fraction:
    """Return a number exactly; infinities are very large."""
    x = float(value)
    assert x == x
    return Fraction(x) if math.isfinite(x) else Fraction(10) ** (10000 if x > 0 else 0) * (1 if x > 0 else -(10**10000))


def single(row: Row, kind: Activation) -> Exact:
    """Return what one activation of those that make up a row computes."""
    if isinstance(kind, Step):
        return lambda z: Fraction(z > 0)
    return ROWS["ELU"].exact if isinstance(kind, ELU) else row.exact


def own(row: Row) -> list[Activation]:
    """Return the activations that a row brings, ReLU among them only for itself."""
    found = lower(row.layer().double(), (1,)).activations
    return [each for each in found if not isinstance(each, ReLU)] or found[:1]


@every_row
@settings(max_examples=60, deadline=None)
@given(ends=st.lists(st.tuples(number, number), min_size=1, max_size=5), share=st.floats(0, 1), slope=st.floats(-2, 2))
def test_lines_enclose_exact_values(row: Row, ends: list[tuple[float, float]], share: float, slope: float) -> None:
    low, high = (torch.tensor([pick(pair) for pair in ends], dtype=torch.float64) for pick in (min, max))
    low, high = low.clamp(*row.domain), high.clamp(*row.domain)
    for kind in own(row):
        value = (lambda z: max(z, Fraction(0))) if isinstance(kind, ReLU) else single(row, kind)
        rest = 0 if kind.rounds else Fraction(1e-15)  # of ReLUs: what the errors of a node cover in any case
        lines, given = kind.relax(low, high), torch.full_like(low, slope)
        (least, most), lost = kind.offsets(given, low, high), kind.lost(lines, low, high, torch.ones_like(low))
        steepest = kind.steepness(low, high)
        assert bool((lines.slope.abs() <= steepest).all()) and bool((lines.floor.abs() <= steepest).all())
        within = kind.terms(low, high) * (1 + 1e-12) + 1e-20
        assert bool((lines.shift.abs() <= within).all()) and bool((lost >= 0).all())
        base = torch.zeros_like(low) if lines.base is None else lines.base
        assert bool((base.abs() <= within).all())
        size = torch.stack(kind.enclose(low, high)).abs().amax(0)
        for k, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            s, above, t, below = (fraction(v[k]) for v in (lines.slope, lines.shift, lines.floor, base))
            for z in map(Fraction, {a, b, min(max(a + share * (b - a), a), b), *(e for e in row.bends if a <= e <= b)}):
                f = value(z)
                assert t * z + below <= f <= s * z + above + rest * (abs(z) + Fraction(1e-285))
                assert fraction(least[k]) <= f - Fraction(slope) * z <= fraction(most[k])
                assert abs(f) <= fraction(size[k]) and (bool(kind.alive(high)[k]) or f == 0)


@every_row
@pytest.mark.parametrize("seed", range(2))
def test_bounds_contain_samples(row: Row, seed: int) -> None:
    model, rng = network(row, seed), np.random.default_rng(seed)
    graph, ones = lower(model, (2,)), torch.full((2,), 3.0, dtype=torch.float64)
    bounder, last = Bounder(graph, -ones, ones), len(graph.nodes) - 1
    centre, radius = (torch.from_numpy(rng.uniform(a, b, (8, 2))) for a, b in ((-2.5, 2.5), (0, 0.5)))
    low, high = centre - radius, centre + radius
    relaxation = bounder.relax(low, high)
    A, each = randn(8, 2, seed=seed, dtype=torch.float64), torch.arange(8)
    x = low + torch.from_numpy(rng.uniform(0, 1, (300, 8, 2))).round(decimals=1) * (high - low)
    y = (graph(x.reshape(-1, 2)).reshape(300, 8, 2) * A).sum(-1)
    keep: list[Tensor | None] = []
    bound = bounder.backward(relaxation, last, A, each, coefficients=keep)
    assert bool((bound.minimum(low, high) <= y).all()) and bool(((bound.A * x).sum(-1) + bound.c <= y).all())
    attained = bounder.attained(relaxation, last, bound.corner(low, high), keep)[-1]
    torch.testing.assert_close((attained * A).sum(-1), bound.minimum(low, high), rtol=1e-9, atol=1e-9)
    assert bool((bounder.attribution(relaxation, keep, high - low) >= 0).all())
    best, line = bounder.improve(relaxation, last, A, y.min(0).values + 1, low, high, 6)
    assert bool((best <= -1).all()) and bool(((line.A * x).sum(-1) + line.c <= y - y.min(0).values - 1).all())


# Splits and verdicts -------------------------------------------------------------------------------------------------


@every_row
def test_regions_are_split_where_it_bends(row: Row) -> None:
    model, along = network(row), Segments(torch.tensor([[-30.0, 20.0]]), torch.tensor([[30.0, -25.0]]))
    if not row.is_bent:
        with pytest.raises(UnsupportedModel, match="must be piecewise linear"):
            split(model, along)
        return
    pieces = split(model, along)
    with torch.no_grad():
        middle = model(pieces.centers)
    torch.testing.assert_close(pieces.means(pieces.outputs), middle, rtol=1e-9, atol=1e-9)
    assert len(pieces) > 1 or not row.bends


@every_row
@pytest.mark.parametrize("by", ["inputs", "relus"])
def test_verdicts(row: Row, by: Any) -> None:
    model, box = network(row, 1), Box([-1.0, -1.0], [1.0, 1.0])
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 201, dtype=torch.float64)] * 2)
    with torch.no_grad():
        y = model(grid)[:, 0]
    least, spread = float(y.min()), float(y.max() - y.min())
    for edge, verdict in ((least - 0.05 * spread, "holds"), (least + 0.05 * spread, "violated")):
        unsafe = (Halfspace((Fraction(1), Fraction(0)), Fraction(edge)),)
        result = check(model, Property([Case(box, (unsafe,))], 2), options=Options(split=by, most=500))
        # Splitting units is not complete: its multipliers may not have converged when nothing is left to split. Nor is
        # splitting inputs where values jump.
        assert result.verdict in ((verdict, "unknown") if by == "relus" or row.jumps else (verdict,)), str(result)
        if result.certificate is not None:
            assert set(lower(model, (2,)).activations) <= {RELU}
        elif result.holds and by == "inputs":
            assert result.reason.startswith("no certificate: the independent checker")
        if result.verdict == "violated":
            assert result.counterexample is not None and set(result.counterexample.replayed) & {"exact", "enclosure"}


def test_every_layer_has_a_row() -> None:
    layers, _ = activations.known()
    shown = {type(row.layer()) for row in ROWS.values()}
    assert {kind for kind in layers if kind.__module__.startswith("torch")} <= shown
