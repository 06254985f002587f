"""Outputs of a network at one point without any rounding error: in rational arithmetic, or enclosed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.property import Box, Conjunction, Halfspace
from nnrepair.verify.reading.affine import (
    Affine,
    Convolution,
    Dense,
    Diagonal,
    Pick,
    Place,
)
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.numbers import Numbers, integers, lowest_exponent
from nnrepair.verify.reading.sparse import Rowwise, Sparse
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.intervals import outputs_over

#: Larger networks (in multiplications) are enclosed in float64 instead; so many of them between two looks at the clock.
EXACT_LIMIT, PIECE = 5_000_000, 20_000
#: So are outputs at points whose common denominator has more bits.
DENOMINATOR_BITS = 50_000

Enclosure = list[tuple[Fraction, Fraction]]


class TooLong(Exception):
    """Exact arithmetic would take numbers that are too long."""


def enclosure(graph: Graph, x: Sequence[Fraction], deadline: Deadline = NEVER) -> tuple[Enclosure, bool]:
    """Return the outputs at x (inputs,), each between two fractions, and whether these are equal (exact)."""
    if can_be_exact(graph):
        with suppress(TooLong):
            return [(v, v) for v in rational(graph, x, deadline)], True
    low, high = _around(graph, x)
    bounder = Bounder(graph, low, high, deadline=deadline)
    relaxation, least = bounder.relax(low[None], high[None]), list[Tensor]()
    both = torch.cat([sign * torch.eye(graph.outputs).to(low) for sign in (1, -1)])
    for rows in torch.split(both, bounder.chunk):
        box = torch.zeros(len(rows), dtype=torch.long, device=graph.device)
        least.append(bounder.backward(relaxation, len(graph.nodes) - 1, rows, box).minimum(low, high))
    lower, upper = torch.cat(least).chunk(2)
    return _fractions(lower, -upper), False


def enclosed(graph: Graph, x: Sequence[Fraction], deadline: Deadline = NEVER) -> Enclosure:
    """Return the same by intervals alone: quick, and wide in deep networks."""
    low, high = _around(graph, x)
    low, high = outputs_over(graph, low[None], high[None], deadline)
    return _fractions(low[0], high[0])


def _around(graph: Graph, x: Sequence[Fraction]) -> tuple[Tensor, Tensor]:
    """Return the nearest floats (inputs,) below and above a point."""
    low, high = (torch.from_numpy(end).to(graph.device) for end in Box(x, x).outer)
    return low, high


def _fractions(low: Tensor, high: Tensor) -> Enclosure:
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        infinite = Fraction(10) ** 400
        return [(-infinite, infinite)] * len(low)
    return [(Fraction(a), Fraction(b)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def inside(conjunction: Conjunction, outputs: Enclosure, deadline: Deadline = NEVER) -> bool:
    """Tell whether every output in the enclosure lies in every halfspace."""
    tops = ((row, largest(row, outputs)) for row in deadline.each(conjunction))
    return all(top < row.bound if row.strict else top <= row.bound for row, top in tops)


def outside(conjunction: Conjunction, outputs: Enclosure, deadline: Deadline = NEVER) -> bool:
    """Tell whether some halfspace contains no output in the enclosure."""
    ends = ((row, smallest(row, outputs)) for row in deadline.each(conjunction))
    return any(end >= row.bound if row.strict else end > row.bound for row, end in ends)


def largest(row: Halfspace, outputs: Enclosure) -> Fraction:
    """Return the largest `coefficients . y` over the outputs of an enclosure."""
    pairs = zip(row.coefficients, outputs, strict=True)
    return sum((c * (high if c > 0 else low) for c, (low, high) in pairs if c), Fraction(0))


def smallest(row: Halfspace, outputs: Enclosure) -> Fraction:
    """Return the least `coefficients . y` over the outputs of an enclosure."""
    pairs = zip(row.coefficients, outputs, strict=True)
    return sum((c * (low if c > 0 else high) for c, (low, high) in pairs if c), Fraction(0))


def nearest(value: Fraction) -> float:
    """Return the nearest float, or an infinity.

    >>> nearest(Fraction(1, 3)), nearest(Fraction(-(10**400)))
    (0.3333333333333333, -inf)
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


# Rational arithmetic: an input with an odd denominator d is multiplied by d, and with it every bias; see `Numbers`.


def can_be_exact(graph: Graph) -> bool:
    """Tell whether a network's weights are exact, and few enough to compute with them."""
    maps = [node.affine for node in graph.nodes if node.affine is not None]
    grouped = any(isinstance(map, Convolution) and map.layer.groups > 1 for map in maps)
    exact = not any(map.inexact for map in maps) and all(each.is_rational for each in graph.activations)
    return graph.work <= EXACT_LIMIT and not grouped and exact


def rational(graph: Graph, x: Sequence[Fraction], deadline: Deadline = NEVER) -> list[Fraction]:
    """Return the outputs at x (inputs,).

    Raises:
        OutOfTime: the deadline passed.
        TooLong: a common denominator has more than DENOMINATOR_BITS.
    """
    common = 1
    for v in deadline.each(x):
        common = math.lcm(common, v.denominator)
        if common.bit_length() > DENOMINATOR_BITS:
            raise TooLong
    values = [Numbers.of(list(x))]
    for node in graph.nodes[1:]:
        deadline.check()
        first = values[node.sources[0]]
        if node.affine is not None:
            values.append(_affine(node.affine, first, deadline))
        elif node.activation is not None:
            values.append(node.activation.exact(first))
            if values[-1].bits > max(DENOMINATOR_BITS, first.bits):
                raise TooLong
        else:
            total = first
            for source in node.sources[1:]:
                total = total + values[source]
            values.append(total)
    return values[-1].fractions()


def _affine(affine: Affine, x: Numbers, deadline: Deadline) -> Numbers:
    if isinstance(affine, Pick):
        return replace(x, whole=x.whole[affine.index.cpu().numpy()])
    if isinstance(affine, Place):
        placed = np.zeros(affine.outputs, object)
        placed[affine.index.cpu().numpy()] = x.whole
        return replace(x, whole=placed)
    if isinstance(affine, Sparse):
        return _sums(affine, x, deadline)
    if isinstance(affine, Diagonal):
        product = x * Numbers.stored(affine.factor)
    elif isinstance(affine, Dense):
        product = _product(affine.weight, replace(x, whole=x.whole[:, None]), deadline)
    elif isinstance(affine, Rowwise):
        columns = replace(x, whole=x.whole.reshape(affine.count, -1).T)
        product = _product(affine.one.weight, columns, deadline)
        product = replace(product, whole=product.whole.reshape(-1, affine.count).T.reshape(-1))
    else:
        assert isinstance(affine, Convolution)
        windows = np.append(x.whole, 0)[_windows(affine)]  # the last entry stands for the padding
        product = _product(affine.weight.flatten(1), replace(x, whole=windows), deadline)
    return product + Numbers.stored(affine.bias)


def _sums(affine: Sparse, x: Numbers, deadline: Deadline) -> Numbers:
    index = affine.index.cpu().numpy()
    if affine.weight is None:
        weights = Numbers(np.ones(index.shape, object), 0)
    else:
        weights = Numbers.stored(affine.weight)
    whole = np.zeros(len(index), object)
    for k in deadline.each(range(index.shape[1])):
        whole = whole + x.whole[index[:, k]] * weights.whole[:, k]
    return replace(x, whole=whole, exponent=x.exponent + weights.exponent)


def _product(weight: Tensor, x: Numbers, deadline: Deadline) -> Numbers:
    """Return weight (rows, inputs) times x (inputs, columns), flat."""
    mantissa, exponents = np.frexp(weight.detach().cpu().double().numpy())
    least, (count, inputs) = lowest_exponent(mantissa, exponents), mantissa.shape
    height = max(1, PIECE // inputs)
    width = max(1, PIECE // (inputs * min(height, count)))
    product = np.zeros((count, x.whole.shape[1]), object)
    for row in range(0, count, height):
        rows = slice(row, row + height)
        whole = integers(mantissa[rows], exponents[rows], least)
        for column in range(0, x.whole.shape[1], width):
            deadline.check()
            columns = slice(column, column + width)
            product[rows, columns] = whole.dot(x.whole[:, columns])
    return replace(x, whole=product.reshape(-1), exponent=x.exponent + least)


def _windows(map: Convolution) -> NDArray[np.int64]:
    """Return (kernel, windows): the indices of the inputs that each window reads."""
    layer, size = map.layer, math.prod(map.shape)
    images = torch.arange(size, dtype=torch.float64).reshape(1, *map.shape)
    pad = [int(p) for p in layer.padding[::-1] for _ in (0, 1)]
    padded = torch.nn.functional.pad(images, pad, value=size)
    windows = torch.nn.functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return windows[0].long().numpy()
