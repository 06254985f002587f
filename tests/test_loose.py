"""The kernel's bounds against exact arithmetic, as compiled and as plain Python, and with every rule broken once."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from kernels import as_python, compiled, plain
from networks import mlp, randn, seeded
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair import Linear
from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.verify import Box, Options, Property, check
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search import loose
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.loose import Chain

Kernel = Any


def kernel(*changes: tuple[str, str]) -> ModuleType:
    """Return the kernel as plain Python, with changes of its text."""
    return plain("kernel", *changes)


def cases(seed: int) -> tuple[Graph, Tensor, Tensor]:
    """Return a network, and boxes around zero and elsewhere: wide, thin, and points.

    Every second network has weights of all 53 bits, in pairs of which little is left: rounding is all there is.
    """
    rng = np.random.default_rng(seed)
    sizes = (int(rng.integers(1, 4)), *(2 * rng.integers(2, 4, int(rng.integers(2, 5)))).tolist(), 2)
    model = mlp(*sizes, seed=seed).double()
    with torch.no_grad():
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]
        for k, layer in enumerate(layers if seed % 2 else []):
            layer.weight.copy_(randn(*layer.weight.shape, seed=seed + k, dtype=torch.float64))
            if k % 2:
                layer.weight[:, 1::2] = -layer.weight[:, ::2] * (1 + 1e-9)
            else:
                layer.weight[1::2], layer.bias[1::2] = layer.weight[::2].clone(), layer.bias[::2].clone()
                layer.weight *= 1000
    centers = torch.from_numpy(rng.normal(0, 1, (6, sizes[0])))
    if seed % 4 == 3:  # all ReLUs bend where the first box is
        value = centers[0]
        for layer in layers[:-1]:
            layer.bias.data = -layer.weight.data @ value
            value = torch.zeros(len(layer.bias), dtype=torch.float64)
    graph = lower(model, (sizes[0],))
    widths = torch.from_numpy(rng.choice([0.0, 0.0, 1e-12, 1e-3, 0.3, 2.0], (6, 1)))
    return graph, centers - widths, centers + widths


def whole(graph: Graph, low: Tensor, high: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return bounds that say nothing, as far as the kernel allows."""
    bounder = Bounder(graph, low.amin(0), high.amax(0), refine=False)
    return tuple(np.repeat(end.numpy(), len(low), 0) for end in bounder.root)  # type: ignore[return-value]


def exact(graph: Graph, x: list[Fraction]) -> list[Fraction]:
    """Return what goes into every ReLU."""
    value, before = x, list[Fraction]()
    for node in graph.nodes[1:]:
        if node.affine is None:
            before += value
            value = [max(v, Fraction(0)) for v in value]
        else:
            rows = node.affine.rows(torch.arange(node.size)).tolist()
            value = [
                sum((Fraction(w) * v for w, v in zip(row, value, strict=True)), Fraction(b))
                for row, b in zip(rows, node.affine.bias.tolist(), strict=True)
            ]
    return before


def tightened(kernel: Kernel, graph: Graph, low: Tensor, high: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    chain, (least, most) = Chain(graph, as_python()), whole(graph, low, high)
    kernel.tighten(chain.sizes, chain.bent, chain.weights, chain.biases, low.numpy(), high.numpy(), least, most)
    return least, most


def is_wrong(kernel: Kernel, seed: int, points: int = 4) -> bool:
    """Tell whether some bound fails at some point of its box, in exact arithmetic."""
    (graph, low, high), rng = cases(seed), np.random.default_rng(seed)
    least, most = (end.tolist() for end in tightened(kernel, graph, low, high))
    for b in range(len(low)):
        a, c = ([Fraction(v) for v in end[b].tolist()] for end in (low, high))
        for _ in range(points if a != c else 1):
            share = [
                Fraction(v) for v in np.where(rng.random(len(a)) < 0.6, rng.random(len(a)) < 0.5, rng.random(len(a)))
            ]
            z = exact(graph, [p + t * (q - p) for p, q, t in zip(a, c, share, strict=True)])
            if any(not Fraction(p) <= v <= Fraction(q) for p, v, q in zip(least[b], z, most[b], strict=True)):
                return True
    return False


def test_plain_kernel_is_right_in_exact_arithmetic() -> None:
    assert not any(is_wrong(kernel(), seed) for seed in range(16))


def test_compiled_kernel_is_right_in_exact_arithmetic() -> None:
    found = compiled()
    assert not any(is_wrong(found, seed) for seed in range(60))


#: Each of them makes some bound wrong: what it takes away was needed. (LOSS is not among them: bounds of a
#: loose unit leave room for its error, so that lines around it are wrong only where rounding does its very worst.)
BREAKS = {
    "all rounding": ("gamma = 2 * (most + widest + 64) * EPS", "gamma = 0.0"),
    "the error of a unit": ("(gamma * (off + size) + error) * UP + UNDERFLOW", "0.0"),
    "errors of the units before": ("error += abs(part[u, j]) * errors[ERROR, j]", "error += 0.0"),
    "sizes of the units before": ("off += abs(part[u, j]) * errors[SIZE, j]", "off -= size"),
    "the line above": ("= slope, -slope * low[i]", "= slope, -slope * low[i] * 0.9"),
    "the slope above": ("slope = high[i] / span", "slope = 0.9 * high[i] / span"),
    "the line below": ("1.0 if high[i] > -low[i] else 0.0", "1.2"),
    "which line": ("if a < 0 else", "if a > 0 else"),
    "which intercept": ("shift += min(a, 0.0)", "shift += max(a, 0.0)"),
    "intercepts": ("rows[r, 0] += shift", "rows[r, 0] += 0.0"),
    "values of loose units": ("ends[REACH, columns + j] = hi[fresh[j]]", "ends[REACH, columns + j] = hi[fresh[j]] / 2"),
    "the sign of a row": ("= Z[open_[r], c], -Z[open_[r], c]", "= Z[open_[r], c], Z[open_[r], c]"),
    "the bias": ("Z[u, 0] += bias[i]", "Z[u, 0] += 0.99 * bias[i]"),
    "weights of loose units": ("Z[u, old + s] = weight[i, fresh[s]]", "Z[u, old + s] = 0.0"),
    "which loose units": ("a, s = rows[r, columns + j], first + j", "a, s = rows[r, columns + j], j"),
    "the width of the box": ("value += a * ends[MIDDLE, t] - abs(a) * ends[RADIUS, t]", "value += a * ends[MIDDLE, t]"),
    "the width in intervals": ("spread += abs(z[1 + t]) * ends[RADIUS, t]", "spread += 0.0"),
    "units that are off": (
        "if is_bent and high[i] <= 0:\n            continue",
        "if is_bent and high[i] <= 0.1:\n            continue",
    ),
    "units that are on": ("if is_bent and low[i] < 0:", "if is_bent and low[i] < -0.1:"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_every_broken_rule_is_found(name: str) -> None:
    broken = kernel(BREAKS[name])
    assert any(is_wrong(broken, seed) for seed in range(60))


@pytest.mark.parametrize("seed", range(4))
def test_bounds_are_no_looser_than_those_of_whole_matrices(seed: int) -> None:
    graph = lower(mlp(3, 8, 8, 8, 6, 2, seed=seed), (3,))
    center = randn(20, 3, seed=seed, dtype=torch.float64) / 2
    low, high = center - 0.1, center + 0.1
    bounder = Bounder(graph, low.amin(0), high.amax(0))
    known = tuple(end.expand(20, -1) for end in bounder.root)
    wanted = bounder.relax(low, high, (known[0], known[1]))
    least, most = known[0].clone().numpy(), known[1].clone().numpy()
    chain = Chain(graph, as_python())
    kernel().tighten(chain.sizes, chain.bent, chain.weights, chain.biases, low.numpy(), high.numpy(), least, most)
    is_loose = torch.cat([lines.loose for lines in wanted.lines], 1)
    found = torch.from_numpy((least < 0) & (most > 0))
    assert not bool((found & ~is_loose).any()) and bool(found.any())


def test_chains_that_overflow_prove_nothing() -> None:
    model = mlp(2, 3, 3, 1).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.full_like(p, 1e200 if p.ndim == 2 else 1.0))
    graph, zero = lower(model, (2,)), torch.zeros(1, 2, dtype=torch.float64)
    chain = Chain(graph, as_python())
    least, most = np.full((1, 6), -1.0), np.full((1, 6), 1.0)
    with np.errstate(all="ignore"):
        kernel().tighten(chain.sizes, chain.bent, chain.weights, chain.biases, zero.numpy(), zero.numpy(), least, most)
    assert (least[0, 3:] == -1).all() and (most[0, 3:] == 1).all()


def test_only_chains_of_matrices_and_relus_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loose, "kernels", lambda deadline: as_python())
    chain = lower(mlp(3, 4, 2), (3,))
    assert Chain.of(chain, NEVER) is not None
    image = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)))
    for model, shape in ((image, (1, 3, 3)), (mlp(3, 4, 2, activation=nn.Hardswish), (3,)), (nn.Linear(3, 2), (3,))):
        assert Chain.of(lower(model, shape), NEVER) is None
    assert Chain.of(lower(mlp(3, 1001, 2), (3,)), NEVER) is None
    monkeypatch.setattr(loose, "kernels", lambda deadline: None)
    assert Chain.of(chain, NEVER) is None


def test_deadline_is_looked_at() -> None:
    graph, low, high = cases(1)
    known = [torch.from_numpy(end) for end in whole(graph, low, high)]
    with pytest.raises(OutOfTime):
        Chain(graph, as_python()).tightened(low, high, known[0], known[1], Deadline(-1.0))
    before = [end.clone() for end in known]
    found = Chain(graph, as_python()).tightened(low, high, known[0], known[1], NEVER)
    assert all(torch.equal(a, b) for a, b in zip(known, before, strict=True))
    assert bool((found[0] >= known[0]).all()) and bool((found[1] <= known[1]).all())


@pytest.mark.parametrize("seed", range(3))
def test_check_says_the_same_with_and_without(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(3, 10, 10, 2, seed=seed)
    most = float(model(randn(500, 3, seed=seed))[:, 0].max().detach()) + (0.1 if seed else -0.05)
    claim = Property.on(Box([-1.0] * 3, [1.0] * 3), Linear([[-1.0, 0.0]], [-most], points=1), outputs=2)
    verdicts = []
    for there in (True, False):
        monkeypatch.setattr(loose, "kernels", lambda deadline, there=there: as_python() if there else None)
        verdicts.append(check(model, claim, options=Options(most=400)).verdict)
    assert verdicts[0] == verdicts[1] != "unknown"
