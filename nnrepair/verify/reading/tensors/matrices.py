"""Products of matrices, normalisation, and what else is made of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nnrepair.verify.reading.activations.powers import Deviation, Reciprocal
from nnrepair.verify.reading.activations.square import SQUARE
from nnrepair.verify.reading.builder import Builder, Unreadable
from nnrepair.verify.reading.sparse import Rowwise
from nnrepair.verify.reading.symbols import Symbol, Table
from nnrepair.verify.reading.tensors.arithmetic import add_, multiply_, subtract_, turned
from nnrepair.verify.reading.tensors.axes import mean, sum_


def _matmul(b: Builder, x: Any, y: Any) -> Symbol:
    if isinstance(y, Tensor) and y.ndim == 2 and isinstance(x, Symbol):
        return rows_times(b, x, y.T, None)
    if isinstance(x, Tensor) and x.ndim == 2 and isinstance(y, Symbol) and y.ndim > 1:
        turned = y.moved(y.places().transpose(-1, -2))
        made = rows_times(b, turned, x, None)
        return made.moved(made.places().transpose(-1, -2))
    if x.ndim == 1 or y.ndim == 1:
        left = x.unsqueeze(0) if x.ndim == 1 else x
        right = y.unsqueeze(1) if y.ndim == 1 else y
        made = _matmul(b, left, right)
        places: Tensor = made.places().squeeze(-1 if y.ndim == 1 else -2)
        return made.moved(places)
    product: Symbol = multiply_(b, x.unsqueeze(-1), y.unsqueeze(-3))
    return sum_(b, product, -2)


def rows_times(b: Builder, x: Symbol, weight: Tensor, bias: Tensor | None) -> Symbol:
    """Return x W^T + bias along the last axis."""
    outputs, inputs = weight.shape
    if x.shape[-1] != inputs:
        raise Unreadable(f"it takes {inputs} numbers, given {tuple(x.shape)}")
    rows = math.prod(x.shape[:-1])
    made = b.affine(x.flat, Rowwise(weight, bias, rows), (rows * outputs,))
    return Symbol(b, made.node, torch.Size((*x.shape[:-1], outputs)), b.precision)


def normalised(b: Builder, x: Symbol, dims: Any, eps: float, centred: bool = True) -> Symbol:
    """Return (x - mean) / sqrt(variance + eps) over some axes."""
    x = subtract_(b, x, mean(b, x, dims, True)) if centred else x
    variance = mean(b, x.shaped(b.activation(x.flat, SQUARE)), dims, True)
    deviation = b.activation(variance.flat, Deviation(float(b.constant(eps))))
    return multiply_(b, x, variance.shaped(b.activation(deviation, Reciprocal())))


def _scaled(b: Builder, x: Symbol, weight: Tensor | None, bias: Tensor | None) -> Symbol:
    x = x if weight is None else multiply_(b, x, weight)
    return x if bias is None else add_(b, x, bias)


def _layer_norm(
    b: Builder, x: Symbol, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any
) -> Symbol:
    return _scaled(b, normalised(b, x, [*range(-len(shape), 0)], eps), weight, bias)


def _rms_norm(b: Builder, x: Symbol, shape: Any, weight: Any = None, eps: float | None = None) -> Symbol:
    eps = torch.finfo(b.precision).eps if eps is None else eps
    return _scaled(b, normalised(b, x, [*range(-len(shape), 0)], eps, False), weight, None)


def _group_norm(
    b: Builder, x: Symbol, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any
) -> Symbol:
    made = normalised(b, x.reshape(x.shape[0], groups, -1), -1, eps).reshape(x.shape)
    along = (-1, *[1] * (x.ndim - 2))
    return _scaled(b, made, *(None if v is None else v.reshape(along) for v in (weight, bias)))


def _instance_norm(
    b: Builder,
    x: Symbol,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *rest: Any,
) -> Symbol:
    if not use_input_stats:
        raise Unreadable("it uses stored statistics")
    return _group_norm(b, x, x.shape[1], weight, bias, eps)


MATRICES: Table = {
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "rmatmul": turned(_matmul),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
}
