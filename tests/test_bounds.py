"""Every bound lies below (or above) what exact values say, with no tolerance at all."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp, randn, seeded
from reference.regions import Network, Regions
from reference.regions import Residual as Added
from torch import Tensor, nn

from nnrepair.verify.property import Box
from nnrepair.verify.reading.activations.relu import RELU
from nnrepair.verify.reading.affine import Dense
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.intervals import outputs_over
from nnrepair.verify.search.relaxation import Linear, Relaxation
from nnrepair.verify.search.substitution import Force

Shape = tuple[int, ...]


def chain() -> nn.Module:
    return mlp(3, 8, 8, 6, 2)


def residual() -> nn.Module:
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), Added(inner), nn.ReLU(), Added(nn.Identity()), nn.Linear(6, 2))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2, padding=1), nn.MaxPool2d(2, padding=1, stride=1), nn.BatchNorm2d(2),
        nn.LeakyReLU(0.1), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(2, 2),
    ).eval()  # fmt: skip


NETWORKS: dict[str, tuple[Any, Shape]] = {
    "chain": (chain, (3,)),
    "residual": (residual, (3,)),
    "convolution": (convolution, (1, 3, 3)),
    "pooled": (pooled, (1, 3, 3)),
}


def network(name: str, seed: int = 0) -> Graph:
    make, shape = NETWORKS[name]
    return lower(seeded(make, seed), shape)


def boxes(inputs: int, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return sub-boxes of [-1, 1]: the whole, wide ones, thin ones, and a single point."""
    a, b = np.sort(rng.uniform(-1, 1, (2, n, inputs)), axis=0)
    thin = rng.random((n, inputs)) < 0.3
    b = np.where(thin, np.minimum(a + rng.choice([0, 1e-9, 1e-3], (n, inputs)), 1), b)
    a[0], b[0] = -1, 1
    b[1] = a[1]
    return torch.from_numpy(a), torch.from_numpy(b)


def inside(lower: Tensor, upper: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Return (n, boxes, inputs): points of each box, many on faces and in corners."""
    t = torch.from_numpy(rng.uniform(0, 1, (n, *lower.shape)))
    snap = torch.from_numpy(rng.uniform(0, 1, (n, *lower.shape)))
    t = torch.where(snap < 0.3, 0.0, torch.where(snap > 0.7, 1.0, t))
    return torch.minimum(torch.maximum(lower + t * (upper - lower), lower), upper)


def before_relus(graph: Graph, x: Tensor) -> list[Tensor]:
    """Return what goes into each ReLU node for points (..., inputs)."""
    values = graph.values(x.reshape(-1, graph.inputs))
    return [values[graph.nodes[k].sources[0]].reshape(*x.shape[:-1], -1) for k in graph.bent]


# Sampled float64 values are themselves off by a few ulps of the magnitudes, which the bounds cover with room to spare.


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("refine", "steps", "limit"), [(False, 0, 1 << 30), (True, 0, 3), (True, 3, 1 << 30)])
def test_relaxation_contains_samples(name: str, seed: int, refine: bool, steps: int, limit: int) -> None:
    rng, graph = np.random.default_rng(seed), network(name, seed)
    bounder = Bounder(graph, *(torch.full((graph.inputs,), v, dtype=torch.float64) for v in (-1.0, 1.0)), limit)
    low, high = boxes(graph.inputs, 6, rng)
    relaxation = bounder.relax(low, high, refine=refine, steps=steps)
    x = inside(low, high, 200, rng)
    for i, z in enumerate(before_relus(graph, x)):
        assert bool((z >= relaxation.lower[i]).all()) and bool((z <= relaxation.upper[i]).all())
        h = z.clamp(min=0)
        assert bool((relaxation.lines[i].slope * z + relaxation.lines[i].shift >= h).all())
        assert bool((relaxation.lines[i].floor * z <= h + 1e-15 * z.abs()).all())
        unstable = (relaxation.lower[i] < 0) & (relaxation.upper[i] > 0)
        assert torch.equal(relaxation.lines[i].loose, unstable)
    y = graph(x.reshape(-1, graph.inputs)).reshape(200, 6, -1)
    least, most = outputs_over(graph, low, high)
    assert bool((y >= least).all()) and bool((y <= most).all())


def test_backward_bounds_are_tighter_than_intervals() -> None:
    graph = network("chain")
    bounder = Bounder(graph, torch.full((3,), -1.0).double(), torch.full((3,), 1.0).double())
    low, high = boxes(3, 6, np.random.default_rng(0))
    width = [
        sum(float((h - lo).sum()) for lo, h in zip(r.lower, r.upper, strict=True))
        for r in (bounder.relax(low, high, refine=False), bounder.relax(low, high), bounder.relax(low, high, steps=6))
    ]
    assert width[2] < width[1] < width[0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_backward_and_improved_bounds_stay_below_samples(name: str, seed: int) -> None:
    rng, graph = np.random.default_rng(seed), network(name, seed)
    ones = torch.ones(graph.inputs, dtype=torch.float64)
    bounder, last = Bounder(graph, -ones, ones), len(graph.nodes) - 1
    low, high = boxes(graph.inputs, 6, rng)
    relaxation = bounder.relax(low, high)
    A, each = randn(6, graph.outputs, seed=seed, dtype=torch.float64), torch.arange(6)
    bound = bounder.backward(relaxation, last, A, each)
    x = inside(low, high, 200, rng)
    y = (graph(x.reshape(-1, graph.inputs)).reshape(200, 6, -1) * A).sum(-1)
    assert bool((bound.minimum(low, high) <= y).all())
    assert bool(((bound.A * x).sum(-1) + bound.c <= y).all())
    offset = y.min(0).values + 0.05  # not provable, so that all steps are taken
    best, better = bounder.improve(relaxation, last, A, offset, low, high, 8)
    assert bool((best <= y - offset).all())
    assert bool(((better.A * x).sum(-1) + better.c <= y - offset).all())
    assert bool((best >= bound.minimum(low, high) - offset - 1e-12).all())  # its first step is the plain bound
    torch.testing.assert_close(better.minimum(low, high), best)
    loose, floors = ([getattr(lines, name) for lines in relaxation.lines] for name in ("loose", "floor"))
    slopes = [torch.from_numpy(rng.uniform(0, 1, f.shape)) for f in floors]  # any slopes are sound
    stable = [torch.where(u, s, f) for u, s, f in zip(loose, slopes, floors, strict=True)]
    assert bool((bounder.backward(relaxation, last, A, each, floor=stable).minimum(low, high) <= y).all())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_under_phase_conditions(name: str, seed: int) -> None:
    """With conditions z >= 0 or z <= 0 bounds hold at points that satisfy them, whatever the multipliers."""
    rng, graph = np.random.default_rng(seed), network(name, seed)
    ones = torch.ones(graph.inputs, dtype=torch.float64)
    bounder, last = Bounder(graph, -ones, ones), len(graph.nodes) - 1
    relaxation = bounder.relax(-ones[None], ones[None])
    x = inside(-ones[None], ones[None], 4000, rng)[:, 0]
    z = before_relus(graph, x)
    phase, keeps = [], torch.ones(len(x), dtype=torch.bool)
    for value, unstable in zip(z, [lines.loose for lines in relaxation.lines], strict=True):
        chosen = torch.where(unstable[0] & torch.from_numpy(rng.random(len(unstable[0])) < 0.2), value[0].sign(), 0.0)
        phase.append(chosen[None])
        keeps &= (value * chosen >= 0).all(1)
    known = [(lo.clone(), hi.clone()) for lo, hi in zip(relaxation.lower, relaxation.upper, strict=True)]
    for (lo, hi), sign in zip(known, phase, strict=True):
        lo[sign > 0], hi[sign < 0] = 0.0, 0.0
    both = tuple(torch.cat([pair[i] for pair in known], 1) for i in (0, 1))
    conditioned = bounder.relax(-ones[None], ones[None], (both[0], both[1]))
    kept = x[keeps]
    assert len(kept)
    for i, value in enumerate(before_relus(graph, kept)):
        assert bool((value >= conditioned.lower[i]).all()) and bool((value <= conditioned.upper[i]).all())
    A = randn(1, graph.outputs, seed=seed, dtype=torch.float64)
    y = graph(kept) @ A[0]
    offset = y.min()[None] + 1.0
    best, bound = bounder.improve(conditioned, last, A, offset, -ones[None], ones[None], 12, phase=phase)
    assert bool((best <= y - offset).all()) and bool((kept @ bound.A[0] + bound.c <= y - offset).all())
    force = [Force(torch.from_numpy(rng.exponential(1, p.shape)) * p, None) for p in phase]
    forced = bounder.backward(conditioned, last, A, torch.zeros(1, dtype=torch.long), force=force)
    assert bool((kept @ forced.A[0] + forced.c <= y).all())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("refine", [False, True])
def test_no_interval_exceeds_what_rounding_is_counted_for(name: str, refine: bool) -> None:
    graph = network(name)
    ones = torch.ones(graph.inputs, dtype=torch.float64)
    bounder = Bounder(graph, -ones, ones)  # with magnitudes from backward bounds, which intervals alone exceed
    relaxation, values = bounder._intervals(-ones[None], ones[None], None, refine)
    for size, ends in zip(bounder.rounding.magnitude, values, strict=True):
        assert all(bool((end.abs() <= size).all()) for end in ends)
    for k, shift in zip(graph.bent, [lines.shift for lines in relaxation.lines], strict=True):
        terms = graph.activations[graph.bent.index(k)].terms(*bounder.rounding.interval[graph.nodes[k].sources[0]])
        assert bool((shift <= terms * (1 + 1e-14)).all())


def test_known_bounds_are_kept() -> None:
    graph, ones = network("chain"), torch.ones(3, dtype=torch.float64)
    bounder = Bounder(graph, -ones, ones)
    plain = bounder.relax(-ones[None], ones[None])
    far = torch.full((1, graph.hidden), math.inf, dtype=torch.float64)
    same = bounder.relax(-ones[None], ones[None], (-far, far))
    known = (torch.cat(plain.lower, 1) / 2, torch.cat(plain.upper, 1) / 2)
    tight = bounder.relax(-ones[None], ones[None], known)
    for i in range(len(plain.lower)):
        assert torch.equal(same.lower[i], plain.lower[i]) and torch.equal(same.upper[i], plain.upper[i])
        assert bool((tight.lower[i] >= plain.lower[i] / 2).all()) and bool((tight.upper[i] <= plain.upper[i] / 2).all())


def test_coefficients_of_relus_are_kept() -> None:
    graph, ones = network("residual"), torch.ones(3, dtype=torch.float64)
    bounder = Bounder(graph, -ones, ones)
    relaxation = bounder.relax(-ones.repeat(2, 1), ones.repeat(2, 1))
    keep: list[Tensor | None] = []
    A = randn(2, graph.outputs, dtype=torch.float64)
    bounder.backward(relaxation, len(graph.nodes) - 1, A, torch.arange(2), coefficients=keep)
    assert [None if k is None else k.shape for k in keep] == [(2, graph.nodes[k].size) for k in graph.bent]
    improved: list[Tensor | None] = []
    offset = torch.tensor([1e3, -1e3], dtype=torch.float64)  # the second row is proved at once
    args = (-ones.repeat(2, 1), ones.repeat(2, 1))
    bounder.improve(relaxation, len(graph.nodes) - 1, A, offset, *args, 5, coefficients=improved)
    assert all(k is not None and len(k) == 2 for k in improved)


def test_a_row_about_an_inner_node() -> None:
    graph, ones = network("chain"), torch.ones(3, dtype=torch.float64)
    bounder, node = Bounder(graph, -ones, ones), 3
    relaxation = bounder.relax(-ones[None], ones[None])
    size = graph.nodes[node].size
    bound = bounder.backward(relaxation, node, torch.eye(size).double(), torch.zeros(size, dtype=torch.long))
    x = inside(-ones[None], ones[None], 500, np.random.default_rng(0))[:, 0]
    assert bool((x @ bound.A.T + bound.c <= graph.values(x)[node]).all())


def test_neurons_that_are_off_may_be_left_out() -> None:
    graph, rng = network("chain"), np.random.default_rng(0)
    ones = torch.ones(3, dtype=torch.float64)
    bounder, last = Bounder(graph, -ones, ones), len(graph.nodes) - 1
    low = torch.tensor([[0.4, -0.3, 0.2]], dtype=torch.float64)
    full = bounder.relax(low, low + 0.05)
    live = (torch.cat(full.upper, 1) > 0).any(0)
    thin, places = bounder.restricted(live)
    assert places is not None and 0 < len(places) < graph.hidden and torch.equal(places, live.nonzero()[:, 0])
    assert [len(part) for part in thin.rounding.magnitude] == [node.size for node in thin.graph.nodes]
    less = thin.relax(low, low + 0.05)
    A = randn(2, graph.outputs, dtype=torch.float64)
    zero, which = torch.zeros(2, dtype=torch.long), 2
    bound = thin.backward(less, last, A, zero).minimum(low.repeat(which, 1), (low + 0.05).repeat(which, 1))
    wanted = bounder.backward(full, last, A, zero).minimum(low.repeat(which, 1), (low + 0.05).repeat(which, 1))
    torch.testing.assert_close(bound, wanted, rtol=1e-9, atol=1e-12)
    y = graph(inside(low, low + 0.05, 300, rng)[:, 0]) @ A.T
    assert bool((bound <= y).all())


# Against exact minima ------------------------------------------------------------------------------------------------


def exact_minimum(model: nn.Module, low: list[Any], high: list[Any], row: list[float]) -> Fraction:
    return Regions(Network(model, (len(low),)), Box(low, high)).least([Fraction(c) for c in row])


def bounds_of(model: nn.Module, low: list[float], high: list[float], row: list[float]) -> list[float]:
    """Return all lower bounds of row . y that there are: by intervals, plain, with steps, over thin halves too."""
    ends = torch.tensor([low, high], dtype=torch.float64)
    graph = lower(model, (len(low),))
    bounder, last = Bounder(graph, ends[0], ends[1]), len(graph.nodes) - 1
    A, offset = torch.tensor([row], dtype=torch.float64), torch.tensor([1e300], dtype=torch.float64)
    found = []
    for refine, steps in ((False, 0), (True, 0), (True, 4)):
        relaxation = bounder.relax(ends[:1], ends[1:], refine=refine, steps=steps)
        bound = bounder.backward(relaxation, last, A, torch.zeros(1, dtype=torch.long))
        found.append(float(bound.minimum(ends[:1], ends[1:])))
        best, _ = bounder.improve(relaxation, last, A, offset * 0, ends[:1], ends[1:], 6)
        found.append(float(best))
    if len(row) == 1:
        least, most = outputs_over(graph, ends[:1], ends[1:])
        found.append(float(least) if row[0] > 0 else -float(most))
    return found


def dense(*layers: tuple[list[list[float]], list[float]]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for weight, bias in layers:
        layer = nn.Linear(len(weight[0]), len(weight), dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def never_above(values: list[float], exact: Fraction) -> bool:
    """Tell whether no bound exceeds the exact minimum; NaN and -inf claim nothing."""
    return all(math.isnan(v) or v == -math.inf or (v < math.inf and Fraction(v) <= exact) for v in values)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8, 2.0**52, 1e16, 1e30])
@pytest.mark.parametrize("seed", range(4))
def test_cancellation(scale: float, seed: int) -> None:
    """Large biases cancel in the next layer: what is left in float64 is rounding, and bounds must know."""
    rng = np.random.default_rng(seed)
    bias = (rng.uniform(0.5, 1.5, 6) * scale).tolist()
    first = rng.normal(size=(6, 2)).tolist()
    last = rng.normal(size=6)
    model = dense((first, bias), ([last.tolist()], [-float(np.dot(last, bias))]))
    for low, high in (([-1.0, -1.0], [1.0, 1.0]), ([0.1, 0.2], [0.1, 0.2]), ([0.1, -0.3], [0.1 + 1e-12, -0.3 + 1e-12])):
        for sign in (1.0, -1.0):
            exact = exact_minimum(model, low, high, [sign])
            found = bounds_of(model, low, high, [sign])
            assert never_above(found, exact)
            if scale <= 1e8:
                assert max(found) >= exact - Fraction(scale) / 10**9 - 20 * max(map(Fraction, high)) - 20


def test_plain_arithmetic_would_be_wrong_here() -> None:
    """The cases above are not idle: float64 without error terms exceeds the exact value in many of them."""
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        bias, last = rng.uniform(0.5, 1.5, 6) * 1e8, rng.normal(size=6)
        first, x = rng.normal(size=(6, 2)), np.array([0.1, 0.2])
        shift = -float(np.dot(last, bias))
        plain = float(last @ np.maximum(first @ x + bias, 0) + shift)
        model = dense((first.tolist(), bias.tolist()), ([last.tolist()], [shift]))
        exact = exact_minimum(model, x.tolist(), x.tolist(), [1.0])
        wrong += Fraction(plain) > exact
        assert never_above(bounds_of(model, x.tolist(), x.tolist(), [1.0]), exact)
    assert wrong >= 10


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 2**20),
    scales=st.lists(st.sampled_from([1e-300, 1e-20, 1e-3, 1.0, 1e3, 1e9, 1e20]), min_size=4, max_size=4),
    width=st.sampled_from([0.0, 1e-16, 1e-9, 0.1, 2.0, 1e6]),
)
def test_bounds_of_odd_networks(sizes: list[int], seed: int, scales: list[float], width: float) -> None:
    """Weights and biases of any size, boxes of any width, down to a point: one input, so that minima are exact."""
    rng = np.random.default_rng(seed)
    widths = [1, *sizes, 1]
    layers = [
        ((rng.normal(size=(b, a)) * scales[k]).tolist(), (rng.normal(size=b) * scales[(k + seed) % 4]).tolist())
        for k, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    model, start = dense(*layers), float(rng.normal())
    for row in (1.0, -1.0):
        exact = exact_minimum(model, [start], [start + width], [row])
        assert never_above(bounds_of(model, [start], [start + width], [row]), exact)


EXACT: dict[str, tuple[Any, Shape]] = {
    "residual": (lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), Added(nn.Linear(6, 6)), nn.ReLU(), fc()), (3,)),
    "convolution": (convolution, (1, 3, 3)),
    "pooled": (
        lambda: nn.Sequential(nn.MaxPool2d(2, stride=1), nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten()),
        (1, 3, 3),
    ),
}


def fc() -> nn.Module:
    return nn.Linear(6, 2)


@pytest.mark.parametrize("name", EXACT)
def test_single_points_are_enclosed(name: str) -> None:
    """At a point the exact output must lie between the bounds, however the network is built."""
    make, shape = EXACT[name]
    model = seeded(make).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 1e-3 * randn(*p.shape, dtype=torch.float64))  # so that the weights need all 53 bits
    reference, graph = Network(model, shape), lower(model, shape)
    for seed in range(5):
        x = randn(graph.inputs, seed=seed, dtype=torch.float64)
        y = reference.at([Fraction(v) for v in x.tolist()])
        least, most = outputs_over(graph, x[None], x[None])
        for value, a, b in zip(y, least[0].tolist(), most[0].tolist(), strict=True):
            assert Fraction(a) <= value <= Fraction(b)
            assert b - a < 1e-9


def test_rounding_of_inexact_maps_is_covered() -> None:
    """A factor 1/3 is off by part of an ulp; with a large input the true value is far from the computed one."""
    graph = lower(nn.AvgPool1d(3).double(), (1, 3))
    x = torch.tensor([1e15, 1.0, 1.0], dtype=torch.float64)
    least, most = outputs_over(graph, x[None], x[None])
    exact = Fraction(10**15 + 2, 3)
    assert Fraction(float(least)) <= exact <= Fraction(float(most))


def test_large_multipliers_of_conditions() -> None:
    """At the kink the condition's term is 0 times a huge multiplier: its rounding must be charged."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        w, b = rng.uniform(0.5, 1.5, 2)
        model = dense(([[w]], [-b]), ([[1.0]], [0.0]))
        graph, ends = lower(model, (1,)), torch.tensor([[0.0], [4.0]], dtype=torch.float64)
        bounder = Bounder(graph, ends[0], ends[1])
        relaxation = bounder.relax(ends[:1], ends[1:])
        x = b / w
        while Fraction(w) * Fraction(x) < Fraction(b):
            x = math.nextafter(x, math.inf)
        exact = Fraction(w) * Fraction(x) - Fraction(b)
        for size in (1.0, 1e6, 1e12):
            force = [Force(torch.tensor([[size]], dtype=torch.float64), None)]
            A = torch.ones(1, 1, dtype=torch.float64)
            bound = bounder.backward(relaxation, 3, A, torch.zeros(1, dtype=torch.long), force=force)
            assert Fraction(float(bound.A)) * Fraction(x) + Fraction(float(bound.c)) <= exact


# Numbers without end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e100, 1e150, 1e200, 1e300])
@pytest.mark.parametrize("seed", range(3))
def test_overflow_proves_nothing(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [
        ((rng.normal(size=(b, a)) * scale).tolist(), (rng.normal(size=b) * scale).tolist())
        for a, b in ((1, 3), (3, 3), (3, 1))
    ]
    model = dense(*layers)
    for row in (1.0, -1.0):
        exact = exact_minimum(model, [-1.0], [1.0], [row])
        assert never_above(bounds_of(model, [-1.0], [1.0], [row]), exact)


def test_overflow_of_boxes() -> None:
    model = dense(([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [0.0]))
    for end in (1e154, 1e300, 1.7e308):
        exact = exact_minimum(model, [-end, -end], [end, end], [1.0])
        assert never_above(bounds_of(model, [-end, -end], [end, end], [1.0]), exact)


def test_relaxation_of_infinite_bounds() -> None:
    part = Relaxation()
    low = torch.tensor([[-math.inf, math.nan, -1.0, 1.0, -1.7e308]], dtype=torch.float64)
    high = torch.tensor([[math.inf, 1.0, math.inf, math.nan, 1.7e308]], dtype=torch.float64)
    part.add(RELU, low, high)
    assert not part.lower[0].isnan().any() and not part.upper[0].isnan().any()
    for z in (-2.0, 0.0, 3.0):
        line = part.lines[0].slope * z + part.lines[0].shift
        assert bool((line.isnan() | (line >= max(z, 0.0)) | (z < part.lower[0]) | (z > part.upper[0])).all())


def test_the_upper_line_is_above_the_relu_at_both_ends() -> None:
    rng = np.random.default_rng(0)
    low = torch.from_numpy(-(10.0 ** rng.uniform(-300, 300, (1, 20_000))))
    high = torch.from_numpy(10.0 ** rng.uniform(-300, 300, (1, 20_000)))
    near = torch.from_numpy(rng.uniform(0.1, 10, (1, 20_000)))
    part = Relaxation()
    part.add(RELU, torch.cat([low, -near]), torch.cat([high, near.flip(1)]))
    (lines,) = part.lines
    for slope, shift, a, b in zip(
        *(v.flatten()[::37].tolist() for v in (lines.slope, lines.shift, part.lower[0], part.upper[0])), strict=True
    ):
        assert Fraction(slope) * Fraction(a) + Fraction(shift) >= 0
        assert Fraction(slope) * Fraction(b) + Fraction(shift) >= Fraction(b)


def test_linear_minimum() -> None:
    line = Linear(torch.tensor([[1.0, -2.0], [0.0, 3.0]]).double(), torch.tensor([0.5, -1.0]).double())
    low, high = torch.tensor([[-1.0, 0.0]]).double().repeat(2, 1), torch.tensor([[1.0, 2.0]]).double().repeat(2, 1)
    assert line.minimum(low, high).tolist() == [0.5 - 1 - 4, -1.0]
    assert line[torch.tensor([1])].minimum(low[:1], high[:1]).tolist() == [-1.0]


def test_networks_without_relus() -> None:
    graph = lower(nn.Linear(2, 2), (2,))
    assert isinstance(graph.nodes[1].affine, Dense) and graph.hidden == 0
    ones = torch.ones(2, dtype=torch.float64)
    bounder = Bounder(graph, -ones, ones)
    assert bounder.relax(-ones[None], ones[None]).lower == []
    A, row = torch.eye(2).double(), torch.zeros(2, dtype=torch.long)
    bound = bounder.backward(bounder.relax(-ones[None], ones[None]), 1, A, row)
    least = graph(torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2))).double()).min(0).values
    value = bound.minimum(-ones.repeat(2, 1), ones.repeat(2, 1))
    assert bool((value <= least).all())
    torch.testing.assert_close(value, least.detach())
