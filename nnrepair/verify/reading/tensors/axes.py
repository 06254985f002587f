"""What is over axes: sums, averages, the largest entry and its place, softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnrepair.verify.reading.activations.exponential import CAPPED, CappedExp, Exp, Log
from nnrepair.verify.reading.activations.powers import Share
from nnrepair.verify.reading.activations.step import positive
from nnrepair.verify.reading.affine import Diagonal
from nnrepair.verify.reading.builder import Builder, Unreadable, Value
from nnrepair.verify.reading.partial import Shifted
from nnrepair.verify.reading.sparse import Sparse
from nnrepair.verify.reading.symbols import Symbol, Table
from nnrepair.verify.reading.tensors import arithmetic
from nnrepair.verify.reading.tensors.arithmetic import beyond, elementwise, negated


def grouped(x: Symbol, dim: Any, keepdim: bool) -> tuple[Tensor, torch.Size]:
    """Return the places (outputs, entries) that each output reads, and the shape of the result."""
    dims = range(x.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)
    dims = sorted({d % x.ndim for d in dims})
    rest = [d for d in range(x.ndim) if d not in dims]
    places = x.places().long() - 1
    groups = places.permute(*rest, *dims).reshape(math.prod(x.shape[d] for d in rest), -1)
    shape = [1 if d in dims else size for d, size in enumerate(x.shape) if keepdim or d not in dims]
    return groups, torch.Size(shape)


def sum_(b: Builder, x: Symbol, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
    """Return the sum over axes."""
    groups, shape = grouped(x, dim, keepdim)
    made = b.affine(x.flat, Sparse(groups, None, x.numel()), (len(groups),))
    return Symbol(b, made.node, shape, x.dtype if x.dtype.is_floating_point else torch.int64)


def mean(b: Builder, x: Symbol, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
    """Return the average over axes."""
    groups, shape = grouped(x, dim, keepdim)
    count = groups.shape[1]
    share = torch.full(groups.shape, 1 / count, dtype=torch.float64)
    made = b.affine(
        x.flat, Sparse(groups, share, x.numel(), 0.0 if count & (count - 1) == 0 else 1e-15), (len(groups),)
    )
    return Symbol(b, made.node, shape, b.precision)


def extreme(sign: float, places: bool = False) -> Callable[..., Any]:
    """Return the reader of the largest (1) or smallest (-1) entry over axes, also its place, or of two tensors."""
    pairs = elementwise(lambda b, x, y: beyond(b, x, y, sign))

    def read(b: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, Symbol | Tensor):
            return pairs(b, x, dim)
        if places and dim is not None:
            place = argmax(b, x if sign > 0 else x.shaped(b.scaled(x.flat, -1.0)), dim, keepdim)
            return extreme(sign)(b, x, dim, keepdim), place
        groups, shape = grouped(x, dim, keepdim)
        flat = x.flat if sign > 0 else b.scaled(x.flat, -1.0)
        made = b.maximum(flat, groups, (len(groups),))
        return Symbol(b, (made if sign > 0 else b.scaled(made, -1.0)).node, shape, x.dtype)

    return read


def _prod(b: Builder, x: Symbol, dim: Any = None, keepdim: bool = False) -> Symbol:
    groups, shape = grouped(x, dim, keepdim)
    parts = [x.moved(groups[:, k].double() + 1).flat for k in range(groups.shape[1])]
    while len(parts) > 1:
        pairs = [parts[k : k + 2] for k in range(0, len(parts), 2)]
        parts = [pair[0] if len(pair) == 1 else b.product(pair[0], pair[1]) for pair in pairs]
    return Symbol(b, parts[0].node, shape, x.dtype)


def _cumsum(b: Builder, x: Symbol, dim: int) -> Symbol:
    groups, _ = grouped(x, dim, False)
    index = groups[:, None, :].expand(-1, groups.shape[1], -1)
    weight = torch.tril(torch.ones(groups.shape[1], groups.shape[1])).double().expand(len(groups), -1, -1)
    made = b.affine(x.flat, Sparse(index.flatten(0, 1), weight.flatten(0, 1), x.numel()), (x.numel(),))
    place = torch.empty(x.numel(), dtype=torch.float64)
    place[groups.reshape(-1)] = torch.arange(1.0, x.numel() + 1, dtype=torch.float64)
    return x.shaped(made).moved(place.reshape(x.shape))


def argmax(b: Builder, x: Symbol, dim: Any = None, keepdim: bool = False) -> Symbol:
    """Return the first place of the largest entry: sum k where entry k is above all before, not below others."""
    groups, shape = grouped(x, dim, keepdim)
    parts, found = groups.shape[1], list[Value]()
    for k in range(1, parts):
        entry = x.moved(groups[:, k].double() + 1).flat
        before = b.maximum(x.flat, groups[:, :k], (len(groups),))
        first = positive(b, b.difference(entry, before))
        if k + 1 < parts:
            after = b.maximum(x.flat, groups[:, k + 1 :], (len(groups),))
            first = b.larger(first, negated(b, positive(b, b.difference(after, entry))), -1.0)
        found.append(b.scaled(first, float(k)) if k > 1 else first)
    made = b.total(*found) if len(found) > 1 else found[0]
    return Symbol(b, made.node, shape, torch.int64)


def _softmax(b: Builder, x: Symbol, dim: int, *rest: Any, log: bool = False, **settings: Any) -> Symbol:
    """Return 1 / sum_j exp(x_j - x_i), or the logarithm of that.

    Where one x_j - x_i is above CAP the first is less than exp(-CAP), and so it is with CAP in place of the difference.
    """
    groups, _ = grouped(x, dim, False)
    rows, count = groups.shape
    if rows * count * count > arithmetic.MOST:
        raise Unreadable(f"it would need {rows * count * count} differences, expected at most {arithmetic.MOST}")
    others = ~torch.eye(count, dtype=torch.bool)  # x_i - x_i is nothing at all
    ones = (others.reshape(-1, 1) * torch.tensor([1.0, -1.0], dtype=torch.float64)).repeat(rows, 1)
    pairs = torch.stack([groups[:, None, :].expand(-1, count, -1), groups[:, :, None].expand(-1, -1, count)], -1)
    difference = b.affine(x.flat, Sparse(pairs.reshape(-1, 2), ones, x.numel()), (len(ones),))
    total = b.affine(
        b.activation(difference, Exp() if log else CappedExp()),
        Sparse(torch.arange(len(ones)).reshape(-1, count), None, len(ones)),
        (rows * count,),
    )
    if log:
        made = b.scaled(b.activation(total, Log()), -1.0)
    else:
        share = b.activation(total, Share())
        one, off = torch.ones(x.numel(), dtype=torch.float64), torch.full((x.numel(),), CAPPED, dtype=torch.float64)
        made = b.affine(share, Shifted(Diagonal(one), torch.zeros_like(one), off), share.shape)
    place = torch.empty(x.numel(), dtype=torch.float64)
    place[groups.reshape(-1)] = torch.arange(1.0, x.numel() + 1, dtype=torch.float64)
    moved = x.shaped(made).moved(place.reshape(x.shape))
    if rows == 1:
        b.ordered[moved.node] = x.node
    return moved


AXES: Table = {
    "sum": sum_,
    "mean": mean,
    **dict.fromkeys(("amax", "maximum"), extreme(1.0)),
    **dict.fromkeys(("amin", "minimum"), extreme(-1.0)),
    "max": extreme(1.0, places=True),
    "min": extreme(-1.0, places=True),
    "prod": _prod,
    "cumsum": _cumsum,
    "argmax": argmax,
    "argmin": lambda b, x, *how, **more: argmax(b, x.shaped(b.scaled(x.flat, -1.0)), *how, **more),
    "softmax": _softmax,
    "log_softmax": lambda b, x, *how, **more: _softmax(b, x, *how, log=True, **more),
}
