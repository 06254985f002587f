"""Bounds and verdicts on small networks of every layer and activation, against arithmetic of 40 digits.

`python -m benchmarks.verify.layers` runs the blocks that results/layers.json lacks; `--block 17` runs one. Each kind of
layer is written twice: in torch, and here for arrays of mpmath numbers, by loops where torch has a function. A case is
a random network and a random box: bounds by intervals and by lines must hold the exact values at corners and at random
points. Of every network one case is also a property near the least of these values, for `check`: a verdict "holds" must
not be contradicted by a point, and a counterexample must be one in exact arithmetic.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import measure
from nnrepair.verify import Box, Options, Property, check
from nnrepair.verify.property import Case, Halfspace
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.intervals import outputs_over

RESULTS = Path(__file__).parent / "results"
SEED, BLOCKS, NETWORKS, BOXES, POINTS = 20261130, 12, 46, 40, 2
#: Digits of the exact values, and what is below their last ones.
DIGITS, NOTHING = 40, 1e-30
Array = Any  # of mpmath numbers
Exact = Callable[[Array], Array]

_each = functools.partial(np.vectorize, otypes=[object])
mp = mpmath.mp


class Code(nn.Module):
    """A function as a module."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _elu(z: Any, alpha: Any = 1) -> Any:
    return z if z > 0 else alpha * mpmath.expm1(z)


ALPHA, SCALE = mpmath.mpf(1.6732632423543772848170429916717), mpmath.mpf(1.0507009873554804934193349852946)

#: Activations: in torch, and of one number.
ENTRIES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "sigmoid": (nn.Sigmoid, lambda z: 1 / (1 + mpmath.exp(-z))),
    "tanh": (nn.Tanh, mpmath.tanh),
    "softplus": (lambda: nn.Softplus(2.0, 40), lambda z: mpmath.log1p(mpmath.exp(2 * z)) / 2),
    "elu": (lambda: nn.ELU(0.5), lambda z: _elu(z, mpmath.mpf(0.5))),
    "selu": (nn.SELU, lambda z: SCALE * _elu(z, ALPHA)),
    "celu": (lambda: nn.CELU(2.0), lambda z: z if z > 0 else 2 * mpmath.expm1(z / 2)),
    "silu": (nn.SiLU, lambda z: z / (1 + mpmath.exp(-z))),
    "gelu": (nn.GELU, lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2),
    "hardswish": (nn.Hardswish, lambda z: z * min(max(z + 3, 0), 6) / 6),
    "exp": (lambda: Code(torch.exp), mpmath.exp),
    "log": (lambda: Code(lambda x: torch.log(x * x + 1)), lambda z: mpmath.log(z * z + 1)),
    "sqrt": (lambda: Code(lambda x: (x.abs() + 0.25).sqrt()), lambda z: mpmath.sqrt(abs(z) + mpmath.mpf(0.25))),
    "reciprocal": (lambda: Code(lambda x: 1 / (x * x + 0.5)), lambda z: 1 / (z * z + mpmath.mpf(0.5))),
    "square": (lambda: Code(torch.square), lambda z: z * z),
    "cube": (lambda: Code(lambda x: x**3), lambda z: z * z * z),
    "sin": (lambda: Code(torch.sin), mpmath.sin),
    "cos": (lambda: Code(torch.cos), mpmath.cos),
    "sign": (lambda: Code(torch.sign), lambda z: mpmath.sign(z)),
    "compared": (lambda: Code(lambda x: (x >= 0.25).to(x)), lambda z: mpmath.mpf(int(z >= 0.25))),
    "floor": (lambda: Code(torch.floor), mpmath.floor),
    "round": (lambda: Code(torch.round), mpmath.nint),
    "erf": (lambda: Code(torch.erf), mpmath.erf),
    "arctangent": (lambda: Code(torch.atan), mpmath.atan),
    "softsign": (nn.Softsign, lambda z: z / (1 + abs(z))),
    "gelu by tanh": (
        lambda: nn.GELU("tanh"),
        lambda z: z / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3))),
    ),
    "mish": (nn.Mish, lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z)))),
    "fourth power": (lambda: Code(lambda x: x**4), lambda z: z**4),
}


def _rows(z: Array) -> Array:
    return z.reshape(2, 3)


def _softmax(z: Array) -> Array:
    """Along the last axis."""
    e = _each(mpmath.exp)(z)
    return e / e.sum(-1, keepdims=True)


def _normalised(z: Array, eps: Any) -> Array:
    z = z - z.sum(-1, keepdims=True) / z.shape[-1]
    variance = (z * z).sum(-1, keepdims=True) / z.shape[-1]
    return z / _each(mpmath.sqrt)(variance + eps)


def _transposed(weight: Array, bias: Array, stride: int, padding: int) -> Exact:
    """Transposed convolution of (1, 2, 3) images by adding up every product."""

    def compute(z: Array) -> Array:
        x, k = z.reshape(1, 2, 3), weight.shape[2]
        high, wide = (2 - 1) * stride + k, (3 - 1) * stride + k
        full = np.full((weight.shape[1], high, wide), mpmath.mpf(0), object)
        for i in range(2):
            for j in range(3):
                full[:, i * stride : i * stride + k, j * stride : j * stride + k] += x[0, i, j] * weight[0]
        return (full[:, padding : high - padding, padding : wide - padding] + bias[:, None, None]).reshape(-1)

    return compute


def _bilinear(z: Array) -> Array:
    """(2, 3) to (3, 5) with corners aligned."""
    x, out = _rows(z), np.empty((3, 5), object)
    for i in range(3):
        for j in range(5):
            a, b = mpmath.mpf(i) / 2, mpmath.mpf(j) / 2
            p, q = min(int(a), 0), min(int(b), 1)
            s, t = a - p, b - q
            out[i, j] = (1 - s) * ((1 - t) * x[p, q] + t * x[p, q + 1]) + s * (
                (1 - t) * x[p + 1, q] + t * x[p + 1, q + 1]
            )
    return out.reshape(-1)


def _windows(z: Array, combine: Callable[[list[Any]], Any]) -> Array:
    """Windows of 2 x 2 of the (2, 3) image, one step apart, with an edge around that holds nothing."""
    x, made = _rows(z), []
    for i in range(-1, 2):
        for j in range(-1, 3):
            made.append(combine([x[a, b] for a in (i, i + 1) for b in (j, j + 1) if 0 <= a < 2 and 0 <= b < 3]))
    return np.array(made, object)


def _attention(z: Array) -> Array:
    x = _rows(z)
    return _softmax(x.dot(x.T)).dot(x)


def _recurrent(z: Array) -> Array:
    """An LSTM over two steps of three numbers."""
    weights = [_numbers(p) for p in LSTM.parameters()]
    sigmoid, tanh = _each(lambda v: 1 / (1 + mpmath.exp(-v))), _each(mpmath.tanh)
    h = c = np.full(2, mpmath.mpf(0), object)
    for x in _rows(z):
        gates = weights[0].dot(x) + weights[2] + weights[1].dot(h) + weights[3]
        enter, forget, new, out = gates.reshape(4, 2)
        c = sigmoid(forget) * c + sigmoid(enter) * tanh(new)
        h = sigmoid(out) * tanh(c)
    return h


def _first_largest(z: Array) -> Array:
    return np.array([mpmath.mpf(max(range(3), key=lambda k: (row[k], -k))) for row in _rows(z)], object)


torch.manual_seed(SEED)
LSTM = nn.LSTM(3, 2, batch_first=True).double()

#: Layers of six numbers: in torch on (n, 6), and of an array (6,).
LAYERS: dict[str, tuple[Callable[[Tensor], Tensor], Exact]] = {
    "product": (lambda x: x[:, :3] * x[:, 3:], lambda z: z[:3] * z[3:]),
    "quotient": (lambda x: x[:, :3] / (1 + x[:, 3:].abs()), lambda z: z[:3] / (1 + abs(z[3:]))),
    "product of all": (lambda x: x.reshape(-1, 2, 3).prod(2), lambda z: _rows(z).prod(1)),
    "softmax": (lambda x: x.reshape(-1, 2, 3).softmax(2), lambda z: _softmax(_rows(z))),
    "softmax of distant numbers": (
        lambda x: (100 * x).reshape(-1, 2, 3).softmax(2), lambda z: _softmax(_rows(100 * z)),
    ),
    "recurrent": (lambda x: LSTM(x.reshape(-1, 2, 3))[0][:, -1], _recurrent),
    "log softmax": (lambda x: x.reshape(-1, 2, 3).log_softmax(2), lambda z: _each(mpmath.log)(_softmax(_rows(z)))),
    "attention": (lambda x: (y := x.reshape(-1, 2, 3), (y @ y.mT).softmax(2) @ y)[1], _attention),
    "layer norm": (lambda x: F.layer_norm(x, (6,), eps=0.125), lambda z: _normalised(z, mpmath.mpf(0.125))),
    "layer norm, small eps": (
        lambda x: F.layer_norm(100 * x, (6,), eps=2**-20), lambda z: _normalised(100 * z, mpmath.mpf(2**-20)),
    ),
    "group norm": (
        lambda x: F.group_norm(x.reshape(-1, 2, 3), 2, eps=0.125), lambda z: _normalised(_rows(z), mpmath.mpf(0.125)),
    ),
    "bilinear": (
        lambda x: F.interpolate(x.reshape(-1, 1, 2, 3), (3, 5), mode="bilinear", align_corners=True), _bilinear,
    ),
    "largest of windows": (
        lambda x: F.max_pool2d(x.reshape(-1, 1, 2, 3), 2, 1, 1), lambda z: _windows(z, max),
    ),
    "average of windows": (
        lambda x: F.avg_pool2d(x.reshape(-1, 1, 2, 3), 2, 1, 1, count_include_pad=False),
        lambda z: _windows(z, lambda part: sum(part) / len(part)),
    ),
    "extremes": (
        lambda x: torch.cat([x.reshape(-1, 2, 3).amax(2), x.reshape(-1, 2, 3).amin(1)], 1),
        lambda z: np.concatenate([_rows(z).max(1), _rows(z).min(0)]),
    ),
    "sums": (
        lambda x: torch.cat([x.reshape(-1, 2, 3).mean(2), x.cumsum(1)], 1),
        lambda z: np.concatenate([_rows(z).sum(1) / 3, np.cumsum(z)]),
    ),
    "places": (lambda x: x.reshape(-1, 2, 3).argmax(2).to(x), _first_largest),
    "chosen": (
        lambda x: torch.where(x[:, :3] > 0, x[:, 3:], 2 * x[:, :3]),
        lambda z: np.array([b if a > 0 else 2 * a for a, b in zip(z[:3], z[3:], strict=True)], object),
    ),
}  # fmt: skip
KINDS = [*ENTRIES, *LAYERS, "transposed convolution"]


def _numbers(tensor: Tensor) -> Array:
    return _each(mpmath.mpf)(tensor.detach().double().numpy().astype(object))


def _linear(layer: nn.Linear) -> Exact:
    weight, bias = _numbers(layer.weight), _numbers(layer.bias)
    return lambda z: weight.dot(z) + bias


def network(kind: str, rng: Generator) -> tuple[nn.Module, Exact]:
    """Return a random network with a layer of a kind behind a matrix, once or twice, and the same for exact numbers."""
    torch.manual_seed(int(rng.integers(2**31)))
    size = float(np.exp(rng.uniform(-1.5, 1.0)))
    steps: list[tuple[nn.Module, Exact]] = []

    def linear(inputs: int, outputs: int) -> None:
        layer = nn.Linear(inputs, outputs).double()
        with torch.no_grad():
            for part in (layer.weight, layer.bias):
                part.mul_(size)
                if rng.random() < 0.3:
                    part.copy_((part * 8).round() / 8)  # exact ties, zeros
        steps.append((layer, _linear(layer)))

    linear(3, 6)
    for _ in range(2 if kind in ENTRIES and rng.random() < 0.5 else 1):
        if kind in ENTRIES:
            make, exact = ENTRIES[kind]
            steps.append((make(), _each(exact)))
            outputs = 6
        elif kind in LAYERS:
            call, whole = LAYERS[kind]
            steps.append((Code(lambda x, call=call: call(x).flatten(1)), lambda z, whole=whole: whole(z).reshape(-1)))
            outputs = call(torch.zeros(1, 6).double()).numel()
        else:
            layer = nn.ConvTranspose2d(1, 2, 2, int(rng.integers(1, 3)), int(rng.integers(0, 2))).double()
            bias = layer.bias
            assert bias is not None
            turned = _transposed(_numbers(layer.weight), _numbers(bias), layer.stride[0], int(layer.padding[0]))
            steps.append((nn.Sequential(nn.Unflatten(1, (1, 2, 3)), layer, nn.Flatten()), turned))
            outputs = layer(torch.zeros(1, 1, 2, 3).double()).numel()
        linear(outputs, 6)
    if rng.random() < 0.3:
        steps.append((nn.ReLU(), _each(lambda z: max(z, mpmath.mpf(0)))))
    linear(6, 2)
    model = nn.Sequential(*(module for module, _ in steps)).double().eval()
    return model, lambda x: functools.reduce(lambda z, step: step[1](z), steps, x)


def boxes(rng: Generator) -> tuple[Tensor, Tensor]:
    """Return boxes (BOXES, 3) of all sizes, some flat, some points."""
    width = np.exp(rng.uniform(-12, 1.5, (BOXES, 1))) * (rng.random((BOXES, 3)) < 0.8)
    low = rng.uniform(-2, 2, (BOXES, 3))
    low = np.where(rng.random((BOXES, 1)) < 0.3, np.round(low), low)
    return torch.from_numpy(low), torch.from_numpy(low + width)


def one(kind: str, rng: Generator) -> tuple[Counter[str], list[str]]:
    """Try a network on boxes; return what was counted, and what is wrong."""
    model, exact = network(kind, rng)
    low, high = boxes(rng)
    graph = lower(model, (3,), region=(low.amin(0), high.amax(0)))
    bounder, last = Bounder(graph, low.amin(0), high.amax(0)), len(graph.nodes) - 1
    relaxation, row = bounder.relax(low, high), torch.randn(BOXES, 2).double()
    bound = bounder.backward(relaxation, last, row, torch.arange(BOXES)).minimum(low, high)
    (least, most), count, wrong = outputs_over(graph, low, high), Counter[str](), list[str]()
    for b in range(BOXES):
        count[kind] += 1
        count["informative"] += int(bool(torch.isfinite(bound[b])))
        smallest: Any = None
        for p in range(POINTS):
            share = rng.integers(0, 2, 3) if p < 2 else rng.random(3)
            x = torch.where(
                torch.from_numpy(share == 1), high[b], low[b] + torch.from_numpy(share) * (high[b] - low[b])
            )
            x = torch.clamp(x, low[b], high[b])
            y = exact(_numbers(x))
            value = sum((mpmath.mpf(float(c)) * v for c, v in zip(row[b], y, strict=True)), mpmath.mpf(0))
            size = NOTHING * (1 + abs(value))
            if bool(torch.isfinite(bound[b])) and value < mpmath.mpf(float(bound[b])) - size:
                wrong.append(f"{kind}: bound {float(bound[b])!r} above {mpmath.nstr(value, 20)} at {x.tolist()}")
            for k in range(2):
                a, z = float(least[b, k]), float(most[b, k])
                if np.isfinite([a, z]).all() and not mpmath.mpf(a) - size <= y[k] <= mpmath.mpf(z) + size:
                    wrong.append(f"{kind}: [{a!r}, {z!r}] without {mpmath.nstr(y[k], 20)} at {x.tolist()}")
            smallest = y[0] if smallest is None else min(smallest, y[0])
        if b == 0:
            wrong += decided(kind, model, exact, low[b], high[b], smallest, rng, count)
    return count, wrong


def decided(
    kind: str,
    model: nn.Module,
    exact: Exact,
    low: Tensor,
    high: Tensor,
    least: Any,
    rng: Generator,
    count: Counter[str],
) -> list[str]:
    """Ask for a verdict about outputs near the least that was seen."""
    place = float(least) + float(rng.choice([-0.1, -1e-3, 0.0, 1e-3])) * (1 + abs(float(least)))
    box = Box(low.tolist(), high.tolist())
    prop = Property([Case(box, ((Halfspace((Fraction(1), Fraction(0)), Fraction(place)),),))], 2)
    result = check(model, prop, timeout=20, options=Options(most=40, split=str(rng.choice(["inputs", "relus"]))))  # type: ignore[arg-type]
    count[f"verdict {result.verdict}"] += 1
    if result.verdict == "holds" and least < mpmath.mpf(place) - NOTHING:
        return [f"{kind}: holds, but {mpmath.nstr(least, 20)} is below {place!r}"]
    if result.counterexample is not None:
        x = [mpmath.mpf(v.numerator) / v.denominator for v in result.counterexample.exact_input]
        y = exact(np.array(x, object))[0]
        if y > mpmath.mpf(place) + NOTHING * (1 + abs(y)):
            return [f"{kind}: the counterexample has {mpmath.nstr(y, 20)}, not below {place!r}"]
    return []


def block(index: int, seed: int) -> dict[str, Any]:
    """Run one block of networks, kinds in turn."""
    mp.dps = DIGITS
    count, wrong = Counter[str](), list[str]()
    for k in range(NETWORKS):
        rng = np.random.default_rng([seed, index, k])
        try:
            found, bad = one(KINDS[k % len(KINDS)], rng)
        except Exception as error:  # a crash must not end the campaign
            found, bad = Counter[str](), [f"{KINDS[k % len(KINDS)]} ({index}, {k}): {type(error).__name__}: {error}"]
        count.update(found)
        wrong += bad
    cases = sum(n for name, n in count.items() if name in KINDS)
    sizes = {"networks": NETWORKS, "boxes": BOXES, "points": POINTS}
    return {
        "block": index,
        "seed": seed,
        **sizes,
        "cases": cases,
        "counts": dict(sorted(count.items())),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify.layers", description=__doc__)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--block", type=int, help="run this one, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.block is not None:
        print(block(arguments.block, SEED))
        return
    path = RESULTS / "layers.json"
    rows = measure.load(path)
    for index in range(arguments.blocks):
        if any(row["block"] == index and row["seed"] == SEED for row in rows):
            continue
        rows.append(measure.measured(functools.partial(block, index, SEED)))
        measure.save(path, rows, "small networks of every layer and activation: bounds and verdicts against 40 digits")
        print(index, rows[-1]["cases"], len(rows[-1]["wrong"]), flush=True)


if __name__ == "__main__":
    main()
