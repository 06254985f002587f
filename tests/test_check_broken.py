"""The independent checker of properties with every rule of it broken once: exact arithmetic must tell."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_check_certificate import PROGRAM, checker, exact, known

Array = Any
SEEDS = 40


def program(*changes: tuple[str, str]) -> ModuleType:
    """Return the program with changes of its text."""
    text = PROGRAM.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    made = ModuleType("broken_checker")
    exec(compile(text, str(PROGRAM), "exec", dont_inherit=True), vars(made))
    return made


def network(seed: int) -> list[Any]:
    """Return layers; every second network has weights of all 53 bits in pairs of which little is left."""
    rng = np.random.default_rng(seed)
    sizes = [int(rng.integers(1, 4)), *(2 * rng.integers(2, 4, int(rng.integers(1, 4)))).tolist(), 2]
    layers = []
    for k in range(len(sizes) - 1):
        weight = rng.normal(size=(sizes[k + 1], sizes[k])) / sizes[k] ** 0.5
        bias, inner = rng.normal(size=sizes[k + 1]) / 4, k > 0
        if seed % 2 and inner:
            weight[:, 1::2] = -weight[:, ::2] * (1 + 1e-9)
        elif seed % 2:
            weight[1::2], bias[1::2] = weight[::2], bias[::2]
            weight, bias = weight * 1000, bias * 1000
        layers.append(checker.Layer(weight, bias, k < len(sizes) - 2))
    return layers


def corner(rng: np.random.Generator, low: Array, high: Array) -> list[Fraction]:
    x = np.where(rng.random(len(low)) < 0.5, np.where(rng.random(len(low)) < 0.5, low, high), rng.uniform(low, high))
    return [Fraction(v) for v in x.tolist()]


def misses(checker: Any, seed: int) -> bool:
    """Tell whether some bound of a unit or of a row fails at some point of its box."""
    layers, rng = network(seed), np.random.default_rng(seed)
    n = layers[0].weight.shape[1]
    rows = [([Fraction(1), Fraction(-3)], Fraction(1, 3), False), ([Fraction(-1, 10), Fraction(1)], Fraction(0), True)]
    bounder = checker.Bounder(layers, (Fraction(-1),) * n, (Fraction(1),) * n, rows)
    width = np.repeat([0.0, 0.0, 1e-12, 1e-3, 0.3, 1.0], 2)[:, None]
    middle = rng.uniform(-1, 1, (len(width), n)) * (1 - width)
    low, high = np.maximum(middle - width, -1), np.minimum(middle + width, 1)
    ranges = known(bounder, len(low))
    steps, on = bounder.relax(low, high, *ranges)
    A, c = np.tile(bounder.rows.weight[:, on], (len(low), 1)), np.tile(bounder.rows.bias, len(low))
    box = np.repeat(np.arange(len(low)), 2)
    least = bounder.backward(A, c, box, steps, low, high)[1].reshape(-1, 2)
    between = [end.reshape(-1, 2).tolist() for end in bounder.between(A, c, box, steps, low, high)]
    ends = [np.split(v, bounder.ends, 1) for v in ranges]
    for b in range(len(low)):
        for _ in range(4):
            value = corner(rng, low[b], high[b])
            for k, layer in enumerate(layers[:-1]):
                value = exact([checker.Layer(layer.weight, layer.bias)], value)
                for z, p, q in zip(value, ends[0][k][b].tolist(), ends[1][k][b].tolist(), strict=True):
                    if not Fraction(p) <= z <= Fraction(q):
                        return True
                value = [max(z, Fraction(0)) for z in value] if layer.relu else value
            y = exact([layers[-1]], value)
            for j, (a, b_, _) in enumerate(rows):
                row = sum((p * q for p, q in zip(a, y, strict=True)), b_)
                if not row >= Fraction(float(least[b, j])):
                    return True
                if not Fraction(between[0][b][j]) <= row <= Fraction(between[1][b][j]):
                    return True
    return False


def accepts(checker: Any, seed: int, splits: int = 12) -> bool:
    """Tell whether a property is taken for proved that a point of its box violates, or touches."""
    layers, rng = network(2 * seed), np.random.default_rng(seed)
    n = layers[0].weight.shape[1]
    low, high = np.full(n, -0.7), np.full(n, 0.9)
    points = [corner(rng, low, high) for _ in range(40)]
    y = min(exact(layers, x)[0] for x in points)
    rows = [([Fraction(1), Fraction(0)], -y, False)]
    ends = tuple(Fraction(-7, 10) for _ in range(n)), tuple(Fraction(9, 10) for _ in range(n))
    dim, cut = np.full(2 * splits + 2, -1), np.zeros(2 * splits + 2)
    dim[:splits], cut[:splits] = rng.integers(0, n, splits), rng.uniform(-0.9, 1.1, splits)  # one side is split on
    below, above = np.full((2, 2 * splits + 2), 2 * splits + 1)
    below[:splits], above[:splits] = np.arange(1, splits + 1), np.arange(splits + 1, 2 * splits + 1)
    try:
        checker.replay(checker.Bounder(layers, *ends, rows), (dim, cut, below, above), 0, 300)
    except checker.Rejected:
        return False
    return True


def test_the_program_as_it_is() -> None:
    assert not any(misses(program(), seed) for seed in range(SEEDS))
    assert not any(accepts(program(), seed) for seed in range(SEEDS))


BOUNDS = {
    "all rounding": ("self.gamma = 2 * (", "self.gamma = 0 * ("),
    "rounding of intervals": ("2 * self.gamma * v + TINY", "0 * v"),
    "the width of the box in intervals": ("spread = (high - low) / 2", "spread = 0.9 * (high - low) / 2"),
    "the line above": ("np.maximum(-s * L, H - s * H)", "0.9 * np.maximum(-s * L, H - s * H)"),
    "the slope below": ("(high <= -low), 0.0, 1.0)", "(high <= -low), 0.0, 1.2)"),
    "units that are off": ("np.flatnonzero((high > 0).any(0)", "np.flatnonzero((high > 0).all(0)"),
    "which line": ("np.minimum(A, 0), np.maximum(A, 0) * a", "np.maximum(A, 0), np.minimum(A, 0) * a"),
    "intercepts": ('c = c + np.einsum("rn,rn->r", negative, t)', "c = c + 0"),
    "biases": ("c = c + A @ bias", "c = c + 0"),
    "which end of the box": ("np.maximum(A, 0), lower[box])", "np.maximum(A, 0), upper[box])"),
    "rounding of rows": ("c - self.gamma * E - TINY * (E > 0)", "c"),
    "the sign of upper bounds": ("-self.backward(-A, -c, box", "-self.backward(-A, c, box"),
    "how large units may be": ("np.where(loose, H, 0)", "np.where(loose, H / 2, 0)"),
    "units that may be anything": ("np.where(loose, 0.0, 1.0)", "np.ones_like(low)"),
    "those with negative factors": ("least + np.minimum(free, 0).sum(1)", "least"),
    "those with positive factors": ("most + np.maximum(free, 0).sum(1)", "most"),
    "biases on both sides": ("move = A @ bias", "move = 0 * (A @ bias)"),
    "which ends": ("least + np.minimum(*ends).sum(1) - E", "least + np.maximum(*ends).sum(1) - E"),
    "which other ends": ("most + np.maximum(*ends).sum(1) + E", "most + np.minimum(*ends).sum(1) + E"),
    "rounding of both sides": ("E = self.gamma * (E + np.abs(A) @ self.size) + TINY", "E = 0 * E"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_every_broken_bound_is_found(name: str) -> None:
    broken = program(BOUNDS[name])
    assert any(misses(broken, seed) for seed in range(SEEDS))


COVER = {
    "what is enough": ("(value > 0) | (self.strict[row] & (value >= 0))", "value > -0.05"),
    "the side of a cut": ("np.fmax(first, np.nextafter(last + move, -np.inf))", "np.fmax(first, last + 0.5 * move)"),
    "the other side": ("np.fmin(last, np.nextafter(first + move, np.inf))", "np.fmin(last, first + 0.5 * move)"),
    "the upper child": ("middle_low[each, axis] = np.maximum(low[each, axis], to)", "middle_low = high + 1"),
    "the lower child": ("middle_high[each, axis] = np.minimum(high[each, axis], to)", "middle_high = low - 1"),
    "open leaves": ("if halved > spare:", "if halved > spare:\n            return halved\n        if False:"),
}


@pytest.mark.parametrize("name", COVER)
def test_every_hole_in_the_cover_is_found(name: str) -> None:
    broken = program(COVER[name])
    assert any(accepts(broken, seed) for seed in range(SEEDS))
