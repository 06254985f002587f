"""What each layer and each function becomes in a graph: `HANDLERS` and `FUNCTIONS`, at the end, say which reads which.

A new one is a short function and a row there. It raises Unreadable where the checker cannot follow, or a
batch is mixed. Activations have files of their own in `activations`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading import activations
from nnrepair.verify.reading.affine import Dense, Pick
from nnrepair.verify.reading.builder import BATCH, Builder, Unreadable, Value
from nnrepair.verify.reading.sparse import Rowwise
from nnrepair.verify.reading.symbols import Symbol, apply, lifted, lowered, read_with
from nnrepair.verify.reading.tensors.arithmetic import ARITHMETIC
from nnrepair.verify.reading.tensors.axes import AXES
from nnrepair.verify.reading.tensors.composed import COMPOSED
from nnrepair.verify.reading.tensors.matrices import MATRICES
from nnrepair.verify.reading.tensors.moving import MOVING
from nnrepair.verify.reading.tensors.recurrent import RECURRENT
from nnrepair.verify.reading.windows import averages, conv, conv_transpose, max_pool, over


def _linear(b: Builder, layer: nn.Linear, x: Value) -> Value:
    if x.shape[-1] != layer.in_features:
        raise Unreadable(f"it takes {layer.in_features} inputs, given {x.shape}")
    if len(x.shape) == 1:
        return b.affine(x, Dense(layer.weight, layer.bias), (layer.out_features,))
    map = Rowwise(layer.weight, layer.bias, math.prod(x.shape[:-1]))
    return b.affine(x, map, (*x.shape[:-1], layer.out_features))


def _layer(weight: Any, bias: Any) -> nn.Linear:
    """Return the layer that F.linear computes."""
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise Unreadable("its weights depend on the input")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _conv(b: Builder, layer: nn.Conv1d | nn.Conv2d, x: Value) -> Any:
    if layer.padding_mode != "zeros":  # its own code pads first
        return lowered(layer(Symbol.of(b, x)))
    return conv(b, x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _conv_transpose(b: Builder, layer: nn.ConvTranspose2d, x: Value) -> Value:
    names = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    return conv_transpose(b, x, *(getattr(layer, name) for name in names))


def _batch_norm(b: Builder, layer: nn.BatchNorm2d, x: Value) -> Value:
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise Unreadable("in training mode the points of a batch influence each other: call model.eval()")
    mean, var = layer.running_mean.double(), layer.running_var.double()
    one, zero = torch.ones_like(mean), torch.zeros_like(mean)
    weight = one if layer.weight is None else layer.weight.detach().double()
    shift = zero if layer.bias is None else layer.bias.detach().double()
    little = b.constant(layer.eps)
    factor = weight / torch.sqrt(var + float(little))
    if not bool(torch.isfinite(factor).all()):
        raise Unreadable("its running variance is negative")
    along = (-1, *[1] * (len(x.shape) - 1))
    centred = b.scaled(x, 1.0, -mean.reshape(along))
    # The factor is irrational; its float64 value is off by a few units in the last place.
    return b.scaled(centred, factor.reshape(along), shift.reshape(along), 1e-15, (weight, var, little))


def _flatten(b: Builder, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    first, last = (d + len(x.shape) + 1 if d < 0 else d for d in (start_dim, end_dim))
    if first < 1:
        raise Unreadable("it must keep the batch apart: start_dim=1")
    return replace(x, shape=(*x.shape[: first - 1], math.prod(x.shape[first - 1 : last]), *x.shape[last:]))


def _size(b: Builder, x: Value, dim: int | None = None) -> Any:
    sizes = (BATCH, *x.shape)
    return sizes if dim is None else sizes[dim]


def _attribute(b: Builder, x: Value, name: str) -> Any:
    known = {"shape": _size(b, x), "dtype": b.precision, "device": torch.device("cpu"), "ndim": len(x.shape) + 1}
    if name == "mT":
        return lowered(apply("transpose", [Symbol.of(b, x), -1, -2], {}))
    if name not in known:
        raise Unreadable(f"the attribute {name} of a tensor is not supported")
    return known[name]


def _entry(b: Builder, x: Any, index: Any) -> Any:
    if not isinstance(x, Value):
        return x[index]  # of a shape
    whole = index[0] if isinstance(index, tuple) else index
    if whole not in (slice(None), Ellipsis):
        raise Unreadable("it takes a part of the batch")
    size = math.prod(x.shape)
    part = torch.arange(size).reshape(1, *x.shape)[index]
    if part.shape[:1] != (1,):
        raise Unreadable("it takes a part of the batch")
    taken = b.affine(x, Pick(part[0], size), tuple(part.shape[1:]))
    b.memory[taken.node] = b.owner(x)
    return replace(taken, dtype=x.dtype)


def reshape(b: Builder, x: Value, *sizes: Any) -> Value:
    """Give a value another shape; the first size is the batch, 0 keeps a size and -1 is what is left."""
    first, *item = sizes[0] if isinstance(sizes[0], tuple | list) else sizes
    item = [x.shape[i] if s == 0 else s for i, s in enumerate(item)]
    if first not in (BATCH, -1, 0, 1) or any(not isinstance(s, int) for s in item):
        raise Unreadable("it moves the batch")
    if -1 in item:
        item[item.index(-1)] = math.prod(x.shape) // max(-math.prod(item), 1)
    if math.prod(item) != math.prod(x.shape):
        raise Unreadable(f"it makes {tuple(item)} of {x.shape}, which does not keep the batch first")
    return replace(x, shape=tuple(item))


def _permute(b: Builder, x: Value, *dims: Any) -> Value:
    order = tuple(dims[0] if isinstance(dims[0], tuple | list) else dims)
    if order[0] % (len(x.shape) + 1) != 0:
        raise Unreadable("it moves the batch")
    size = math.prod(x.shape)
    index = torch.arange(size).reshape(1, *x.shape).permute(order)[0]
    moved = b.affine(x, Pick(index, size), tuple(index.shape))
    b.memory[moved.node] = b.owner(x)
    return replace(moved, dtype=x.dtype)


def _symbolic(name: str) -> Callable[..., Any]:
    """Return the reader of a function that symbols know."""
    return lambda b, *inputs, **settings: lowered(apply(name, lifted(b, inputs), lifted(b, settings)))


def _dropout(b: Builder, x: Value, p: float = 0.5, training: bool = True) -> Value:
    if training:
        raise Unreadable("it is random in training mode: call model.eval(), and pass training=self.training")
    return x


def _name(key: Any) -> str:
    """Return the name of a function, or of a method ".name"."""
    return key[1:] if isinstance(key, str) else str(key.__name__)


_layers, _functions = activations.known()

POOL = ("kernel_size", "stride", "padding")


def _calls(read: Callable[..., Value], *names: str) -> Callable[..., Value]:
    """Return the reader of a layer that calls a function with some of its attributes, in this order."""
    return lambda b, layer, x: read(b, x, *(getattr(layer, name) for name in names))


def _average(axes: int, function: Callable[..., Tensor], *names: str) -> Callable[..., Value]:
    return _calls(over(axes, averages(function)), *names)


_POOLED: dict[int, tuple[Callable[..., Any], ...]] = {
    1: (F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d),
    2: (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    3: (F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d),
}
_POOLS: dict[Any, Callable[..., Value]] = {
    **{most: over(axes, max_pool) for axes, (most, *_) in _POOLED.items()},
    **{average: over(axes, averages(average)) for axes, (_, *some) in _POOLED.items() for average in some},
}
_MAX_POOLS: dict[type[nn.Module], Callable[..., Value]] = {
    layer: _calls(over(axes, max_pool), *POOL, "dilation", "ceil_mode", "return_indices")
    for axes, layer in enumerate((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), 1)
}

HANDLERS: dict[type[nn.Module], Callable[..., Any]] = _layers | {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.Conv1d: _conv,
    nn.ConvTranspose1d: _conv_transpose,
    nn.ConvTranspose2d: _conv_transpose,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    **_MAX_POOLS,
    nn.AvgPool1d: _average(1, F.avg_pool1d, *POOL, "ceil_mode", "count_include_pad"),
    nn.AvgPool2d: _average(2, F.avg_pool2d, *POOL, "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AvgPool3d: _average(3, F.avg_pool3d, *POOL, "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool1d: _average(1, F.adaptive_avg_pool1d, "output_size"),
    nn.AdaptiveAvgPool2d: _average(2, F.adaptive_avg_pool2d, "output_size"),
    nn.AdaptiveAvgPool3d: _average(3, F.adaptive_avg_pool3d, "output_size"),
    nn.Flatten: lambda b, layer, x: _flatten(b, x, layer.start_dim, layer.end_dim),
    nn.Identity: lambda b, layer, x: x,
    nn.Dropout: lambda b, layer, x: _dropout(b, x, layer.p, layer.training),
}

FUNCTIONS: dict[Any, Callable[..., Any]] = _functions | {
    F.linear: lambda b, x, weight, bias=None: _linear(b, _layer(weight, bias), x),
    F.conv1d: conv,
    F.conv2d: conv,
    F.conv_transpose1d: conv_transpose,
    F.conv_transpose2d: conv_transpose,
    **_POOLS,
    F.interpolate: averages(F.interpolate),
    F.upsample: averages(F.upsample),
    F.dropout: _dropout,
    torch.flatten: _flatten,
    ".flatten": _flatten,
    ".view": reshape,
    ".reshape": reshape,
    torch.reshape: reshape,
    ".permute": _permute,
    torch.permute: _permute,
    ".size": _size,
    getattr: _attribute,
    operator.getitem: _entry,
    operator.iadd: _symbolic("add"),
    operator.isub: _symbolic("sub"),
    operator.imul: _symbolic("mul"),
    operator.itruediv: _symbolic("div"),
}

#: Functions that act on every entry alike, whatever the shape.
_ENTRYWISE = {_name(key): read for key, read in _functions.items() if key is not F.prelu}


def _on_entries(read: Callable[..., Value]) -> Callable[..., Symbol]:
    return lambda b, x, *how, **more: x.shaped(read(b, x.flat, *how, **more))


def _on_value(read: Callable[..., Value]) -> Callable[..., Symbol]:
    return lambda b, x, *how, **more: Symbol.of(b, read(b, x.value, *how, **more))


# Symbols know all of these, and what is in `tensors`.
read_with({_name(key): _on_value(read) for key, read in FUNCTIONS.items()})
read_with({name: _on_entries(read) for name, read in _ENTRYWISE.items()})
read_with(MOVING | ARITHMETIC | AXES | MATRICES | COMPOSED | RECURRENT)

#: What the layers of torch that are activations are called.
ACTIVATIONS = sorted({kind.__name__ for kind in _layers})

#: Functions that overwrite what they read.
CHANGING = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
