"""The compiled ascent against exact arithmetic and against torch's, and with every rule broken once."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch
from kernels import compiled, plain
from networks import mlp, randn
from test_loose import cases, exact
from torch import Tensor

from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.relaxation import Linear
from nnrepair.verify.search.slopes import Ascent, Stack


def rows(graph: Graph, boxes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows on what comes out, and offsets, some of which can be reached."""
    A = randn(boxes, graph.outputs, seed=seed, dtype=torch.float64)
    return A, randn(boxes, seed=seed + 1, dtype=torch.float64)


def found(kernel: ModuleType, seed: int, steps: int = 3) -> tuple[Graph, Tensor, Tensor, Tensor, Tensor, Linear]:
    """Return a network, boxes, and the values and bounds of a row on each."""
    graph, low, high = cases(seed)
    bounder = Bounder(graph, low.amin(0), high.amax(0), refine=False)
    A, offset = rows(graph, len(low), seed)
    last = len(graph.nodes) - 1
    stack = Stack(bounder, last)
    best, bound = stack.ascended(kernel.ascend, bounder.relax(low, high), A, offset, low, high, steps, 0.5)
    return graph, low, high, A, best, Linear(bound.A, bound.c + offset)


def is_wrong(kernel: ModuleType, seed: int, points: int = 4) -> bool:
    """Tell whether some bound fails at some point of its box, in exact arithmetic."""
    graph, low, high, A, best, bound = found(kernel, seed)
    offset, rng = rows(graph, len(low), seed)[1], np.random.default_rng(seed)
    last = graph.nodes[-1].affine
    assert last is not None
    weight, bias = last.rows(torch.arange(graph.outputs)).tolist(), last.bias.tolist()
    for b in range(len(low)):
        a, c = ([Fraction(v) for v in end[b].tolist()] for end in (low, high))
        for _ in range(points if a != c else 1):
            share = [Fraction(v) for v in np.where(rng.random(len(a)) < 0.6, rng.random(len(a)) < 0.5, 0.3)]
            x = [p + t * (q - p) for p, q, t in zip(a, c, share, strict=True)]
            h = [max(z, Fraction(0)) for z in exact(graph, x)[-len(weight[0]) :]]
            y = [
                sum((Fraction(w) * v for w, v in zip(r, h, strict=True)), Fraction(s))
                for r, s in zip(weight, bias, strict=True)
            ]
            value = sum((Fraction(w) * v for w, v in zip(A[b].tolist(), y, strict=True)), Fraction(0))
            if np.isfinite(float(best[b])):
                line = sum(
                    (Fraction(w) * v for w, v in zip(bound.A[b].tolist(), x, strict=True)), Fraction(float(bound.c[b]))
                )
                if value < line or value < Fraction(float(best[b])) + Fraction(float(offset[b])):
                    return True
    return False


def test_plain_kernel_is_right_in_exact_arithmetic() -> None:
    assert not any(is_wrong(plain("slope_kernel"), seed) for seed in range(16))


def test_compiled_kernel_is_right_in_exact_arithmetic() -> None:
    found = compiled()
    assert not any(is_wrong(found, seed) for seed in range(60))


#: Each of them makes some bound wrong: what it takes away was needed.
BREAKS: dict[str, list[tuple[str, str]]] = {
    "all rounding": [
        ("c -= abs(t) * rho[BENT, b_at + i]", "c -= 0.0"),
        (" - abs(t) * rho[LINEAR, b_at + i]", ""),
        ("c -= abs(a[j]) * first[j]", "c -= 0.0"),
    ],
    "which intercept": [("c += min(t, 0.0) * lines[SHIFT, u]", "c += max(t, 0.0) * lines[SHIFT, u]")],
    "intercepts": [("c += min(t, 0.0) * lines[SHIFT, u]", "c += 0.0")],
    "which line": [("lines[SLOPE, u] if t < 0 else floor[u])", "lines[SLOPE, u] if t > 0 else floor[u])")],
    "the bias": [("c += t * biases[b_at + i]", "c += 0.99 * t * biases[b_at + i]")],
    "the width of the box": [("value += a[j] * ends[0, j] - abs(a[j]) * ends[1, j]", "value += a[j] * ends[0, j]")],
    "slopes of at most one": [("length * kept[u], 0.0), 1.0)", "length * kept[u], 0.0), 3.0)")],
    "slopes of at least zero": [("length * kept[u], 0.0), 1.0)", "length * kept[u], -2.0), 1.0)")],
    "the offset": [("value -= offset[r]", "value += 0.0")],
}


@pytest.mark.parametrize("name", BREAKS)
def test_every_broken_rule_is_found(name: str) -> None:
    broken = plain("slope_kernel", *BREAKS[name])
    assert any(is_wrong(broken, seed) for seed in range(60))


@pytest.mark.parametrize("seed", range(4))
def test_slopes_are_those_of_torch(seed: int) -> None:
    graph = lower(mlp(3, 8, 8, 8, 6, 2, seed=seed), (3,))
    center = randn(20, 3, seed=seed, dtype=torch.float64) / 2
    low, high = center - 0.1, center + 0.1
    bounder, last = Bounder(graph, low.amin(0), high.amax(0)), len(graph.nodes) - 1
    relaxation, (A, offset) = bounder.relax(low, high), rows(graph, 20, seed)
    for steps, node, row in ((1, last, A), (4, last, A), (3, last - 1, randn(20, 6, seed=seed, dtype=torch.float64))):
        wanted, line = Ascent(bounder, relaxation, node, row, offset, low, high).run(steps, 0.5)
        ascend = plain("slope_kernel").ascend
        best, bound = Stack(bounder, node).ascended(ascend, relaxation, row, offset, low, high, steps, 0.5)
        torch.testing.assert_close(best, wanted, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(bound.A, line.A, rtol=1e-6, atol=1e-8)
    unimproved = Stack(bounder, last).ascended(ascend, relaxation, A, offset, low, high, 1, 0.5)[0]
    improved = Stack(bounder, last).ascended(ascend, relaxation, A, offset, low, high, 4, 0.5)[0]
    assert bool((improved >= unimproved).all()) and bool((improved > unimproved).any())


def test_rows_that_overflow_prove_nothing() -> None:
    graph, low, high = cases(2)
    bounder = Bounder(graph, low.amin(0), high.amax(0), refine=False)
    A = torch.full((len(low), graph.outputs), 1e308, dtype=torch.float64)
    with np.errstate(all="ignore"):
        best, _ = Stack(bounder, len(graph.nodes) - 1).ascended(
            plain("slope_kernel").ascend, bounder.relax(low, high), A * 10, A[:, 0], low, high, 3, 0.5
        )
    assert not bool(torch.isfinite(best).any())
