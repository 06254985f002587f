"""Outputs of a network at one point without any rounding error: in rational arithmetic, or enclosed."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.verify.affine import Affine, Convolution, Dense, Diagonal, Pick, Place
from nnrepair.verify.bounds import Bounder
from nnrepair.verify.graph import Graph
from nnrepair.verify.property import Conjunction

#: Larger networks (in multiplications) are enclosed in float64 instead.
EXACT_LIMIT = 5_000_000

Enclosure = list[tuple[Fraction, Fraction]]


def enclosure(graph: Graph, x: Tensor) -> tuple[Enclosure, bool]:
    """Return the outputs at x (inputs,), each between two fractions, and whether these are equal (exact)."""
    values = _rational(graph, x)
    if values is not None:
        return [(v, v) for v in values], True
    point = x.double().to(graph.device)
    low, high = Bounder(graph, point, point).output(point[None], point[None])
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        infinite = Fraction(10) ** 400
        return [(-infinite, infinite)] * graph.outputs, False
    pairs = zip(low[0].tolist(), high[0].tolist(), strict=True)
    return [(Fraction(a), Fraction(b)) for a, b in pairs], False


def inside(conjunction: Conjunction, outputs: Enclosure) -> bool:
    """Tell whether every output in the enclosure lies in every halfspace."""

    def largest(coefficients: tuple[Fraction, ...]) -> Fraction:
        pairs = zip(coefficients, outputs, strict=True)
        return sum((c * (high if c > 0 else low) for c, (low, high) in pairs if c), Fraction(0))

    return all(
        largest(row.coefficients) < row.bound if row.strict else largest(row.coefficients) <= row.bound
        for row in conjunction
    )


# Rational arithmetic: every float is an integer times a power of two; integers and one exponent per vector suffice. --


def _rational(graph: Graph, x: Tensor) -> list[Fraction] | None:
    work = sum(_work(node.affine) for node in graph.nodes if node.affine is not None)
    if work > EXACT_LIMIT or any(node.affine is not None and node.affine.inexact for node in graph.nodes):
        return None
    values = [_integers(x)]
    for node in graph.nodes[1:]:
        numbers, exponent = values[node.sources[0]]
        if node.affine is not None:
            values.append(_affine(node.affine, numbers, exponent))
        elif node.relu is not None:
            values.append((np.maximum(numbers, 0), exponent))
        else:
            total = values[node.sources[0]]
            for source in node.sources[1:]:
                total = _added(total, values[source])
            values.append(total)
    numbers, exponent = values[-1]
    return [Fraction(int(v)) * Fraction(2) ** exponent for v in numbers]


Numbers = tuple[NDArray[Any], int]


def _work(affine: Affine) -> float:
    if isinstance(affine, Dense):
        return affine.weight.numel()
    if isinstance(affine, Convolution):
        groups = affine.layer.groups
        return math.inf if groups > 1 else len(affine.bias) * affine.weight[0].numel()
    return len(affine.bias)


def _integers(values: Tensor) -> Numbers:
    """Return integers (object array) and e with values = integers * 2 ** e."""
    mantissa, exponents = np.frexp(values.detach().cpu().double().numpy())
    used = exponents[mantissa != 0]
    least = int(used.min()) - 53 if used.size else 0
    whole = (mantissa * 2.0**53).astype(np.int64).astype(object)
    shifts = np.where(mantissa != 0, exponents - 53 - least, 0).astype(object)
    return np.left_shift(whole, shifts), least


def _added(a: Numbers, b: Numbers) -> Numbers:
    least = min(a[1], b[1])
    return a[0] * 2 ** (a[1] - least) + b[0] * 2 ** (b[1] - least), least


def _affine(affine: Affine, x: NDArray[Any], exponent: int) -> Numbers:
    if isinstance(affine, Pick):
        return x[affine.index.cpu().numpy()], exponent
    if isinstance(affine, Place):
        placed = np.zeros(affine.outputs, object)
        placed[affine.index.cpu().numpy()] = x
        return placed, exponent
    if isinstance(affine, Diagonal):
        factor, shift = _integers(affine.factor)
        product: Numbers = (factor * x, exponent + shift)
    elif isinstance(affine, Dense):
        weight, shift = _integers(affine.weight)
        product = (weight.dot(x), exponent + shift)
    else:
        assert isinstance(affine, Convolution)
        weight, shift = _integers(affine.weight)
        windows = np.append(x, 0)[_windows(affine)]  # the last entry stands for the padding
        product = (weight.reshape(len(weight), -1).dot(windows).reshape(-1), exponent + shift)
    return _added(product, _integers(affine.bias))


def _windows(map: Convolution) -> NDArray[np.int64]:
    """Return (kernel, windows): the indices of the inputs that each window reads."""
    layer, size = map.layer, math.prod(map.shape)
    images = torch.arange(size, dtype=torch.float64).reshape(1, *map.shape)
    pad = [int(p) for p in layer.padding[::-1] for _ in (0, 1)]
    padded = torch.nn.functional.pad(images, pad, value=size)
    windows = torch.nn.functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return windows[0].long().numpy()
