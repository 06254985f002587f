"""What each layer and each function becomes in a graph: `HANDLERS` and `FUNCTIONS`, at the end, say which reads which.

A new one is a short function and a row there. It raises Unreadable where the checker cannot follow, or a
batch is mixed. Activations have files of their own in `activations`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.onnx import modules as ops
from nnrepair.spec.network import copied
from nnrepair.verify.reading import activations
from nnrepair.verify.reading.affine import Convolution, Dense, Pick, Place
from nnrepair.verify.reading.builder import MATRIX_LIMIT, Builder, Unreadable, Value

# Stands for the size of the batch where a model asks for it.
BATCH = "batch"


def _linear(b: Builder, layer: nn.Linear, x: Value) -> Value:
    if x.shape[-1] != layer.in_features:
        raise Unreadable(f"it takes {layer.in_features} inputs, given {x.shape}")
    if len(x.shape) == 1:
        return b.affine(x, Dense(layer.weight, layer.bias), (layer.out_features,))
    lead = math.prod(x.shape[:-1])
    if lead**2 * layer.weight.numel() > MATRIX_LIMIT:
        raise Unreadable(f"it would need a matrix for {lead} rows of {layer.in_features} numbers at once")
    # kron refuses some strides, such as those of the transpose of a single row
    single = layer.weight.detach().double().clone(memory_format=torch.contiguous_format)
    weight = torch.kron(torch.eye(lead, dtype=torch.float64), single)
    bias = None if layer.bias is None else layer.bias.detach().repeat(lead)
    return b.affine(x, Dense(weight, bias), (*x.shape[:-1], layer.out_features))


def _layer(weight: Any, bias: Any) -> nn.Linear:
    """Return the layer that F.linear computes."""
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise Unreadable("its weights depend on the input")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _conv(b: Builder, layer: nn.Conv2d, x: Value) -> Value:
    if len(x.shape) != 3 or x.shape[0] != layer.in_channels or layer.padding_mode != "zeros":
        raise Unreadable(f"it takes images of {layer.in_channels} channels padded with zeros, given {x.shape}")
    if isinstance(layer.padding, str):
        return _as_matrix(b, layer, x)
    map = Convolution(layer, x.shape)
    return b.affine(x, map, map.out_shape)


def _as_matrix(b: Builder, layer: nn.Module, x: Value) -> Value:
    linear, bias = copied(layer).double(), getattr(layer, "bias", None)
    if bias is not None:
        setattr(linear, "bias", None)  # noqa: B010 - mypy
    exact = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConstantPad2d)
    return b.matrix(x, linear, 0.0 if exact else 1e-15, bias)


def _batch_norm(b: Builder, layer: nn.BatchNorm2d, x: Value) -> Value:
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise Unreadable("in training mode the points of a batch influence each other: call model.eval()")
    mean, var = layer.running_mean.double(), layer.running_var.double()
    one, zero = torch.ones_like(mean), torch.zeros_like(mean)
    weight = one if layer.weight is None else layer.weight.detach().double()
    shift = zero if layer.bias is None else layer.bias.detach().double()
    factor = weight / torch.sqrt(var + float(b.constant(layer.eps)))
    if not bool(torch.isfinite(factor).all()):
        raise Unreadable("its running variance is negative")
    along = (-1, *[1] * (len(x.shape) - 1))
    centred = b.scaled(x, 1.0, -mean.reshape(along))
    # The factor is irrational; its float64 value is off by a few units in the last place.
    return b.scaled(centred, factor.reshape(along), shift.reshape(along), 1e-15)


def _flatten(b: Builder, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    first, last = (d + len(x.shape) + 1 if d < 0 else d for d in (start_dim, end_dim))
    if first < 1:
        raise Unreadable("it must keep the batch apart: start_dim=1")
    return Value(x.node, (*x.shape[: first - 1], math.prod(x.shape[first - 1 : last]), *x.shape[last:]))


def _size(b: Builder, x: Value, dim: int | None = None) -> Any:
    sizes = (BATCH, *x.shape)
    return sizes if dim is None else sizes[dim]


def _attribute(b: Builder, x: Value, name: str) -> Any:
    if name != "shape":
        raise Unreadable(f"the attribute {name} of a tensor is not supported")
    return _size(b, x)


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
    return taken


def _pad(b: Builder, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    if mode != "constant" or value not in (None, 0, 0.0) or len(pad) > 2 * len(x.shape):
        raise Unreadable("only padding with zeros is supported, and not along the batch")
    size = math.prod(x.shape)
    index = F.pad(torch.arange(size).reshape(1, *x.shape), tuple(pad), value=size)[0]
    kept = index.reshape(-1) < size
    if min(pad, default=0) < 0:
        x = b.affine(x, Pick(index.reshape(-1)[kept], size), (int(kept.sum()),))
        return b.affine(x, Place(kept.nonzero()[:, 0], index.numel()), tuple(index.shape))
    return b.affine(x, Place(kept.nonzero()[:, 0], index.numel()), tuple(index.shape))


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
    return Value(x.node, tuple(item))


def _permute(b: Builder, x: Value, *dims: Any) -> Value:
    order = tuple(dims[0] if isinstance(dims[0], tuple | list) else dims)
    if order[0] % (len(x.shape) + 1) != 0:
        raise Unreadable("it moves the batch")
    size = math.prod(x.shape)
    index = torch.arange(size).reshape(1, *x.shape).permute(order)[0]
    moved = b.affine(x, Pick(index, size), tuple(index.shape))
    b.memory[moved.node] = b.owner(x)
    return moved


def _max_pool(b: Builder, layer: nn.MaxPool2d, x: Value) -> Value:
    if len(x.shape) != 3:
        raise Unreadable(f"it needs images (channels, height, width), given {x.shape}")
    places = torch.arange(math.prod(x.shape)).reshape(1, *x.shape)
    kernel, padding, dilation, stride = (
        (v, v) if isinstance(v, int) else tuple(v)
        for v in (layer.kernel_size, layer.padding, layer.dilation, layer.stride)
    )
    if layer.ceil_mode or layer.return_indices:
        raise Unreadable("ceil_mode and return_indices are not supported")
    padded = F.pad(places.double(), (padding[1], padding[1], padding[0], padding[0]), value=-1.0)
    sizes = [(padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    numbers = x.shape[0] * math.prod(sizes) * math.prod(kernel)
    if numbers > MATRIX_LIMIT:
        raise Unreadable(f"its windows have {numbers} numbers, expected at most {MATRIX_LIMIT}")
    windows = F.unfold(padded.transpose(0, 1), kernel, dilation, 0, stride)  # (channels, kernel, windows)
    windows = windows.permute(0, 2, 1).reshape(-1, math.prod(kernel)).long()
    windows = torch.where(windows < 0, windows.amax(1, keepdim=True), windows)  # padding repeats an entry of the window
    if bool((windows < 0).any()):
        raise Unreadable("a window lies in the padding alone")
    return b.maximum(x, windows, (x.shape[0], *sizes))


def _concat(b: Builder, parts: Sequence[Value], dim: int) -> Value:
    if dim == 0 or any(not isinstance(part, Value) for part in parts):
        raise Unreadable("it joins along the batch, or with constants")
    dim = dim if dim < 0 else dim - 1
    sizes = [math.prod(part.shape) for part in parts]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    each = [torch.arange(n).reshape(p.shape) + s for n, p, s in zip(sizes, parts, starts, strict=True)]
    order = torch.cat(each, dim)
    place = torch.empty(order.numel(), dtype=torch.long)
    place[order.reshape(-1)] = torch.arange(order.numel())
    total = order.numel()
    pieces = [
        b.affine(part, Place(place[s : s + n], total), tuple(order.shape))
        for part, s, n in zip(parts, starts, sizes, strict=True)
    ]
    return b.total(*pieces)


def _add(b: Builder, x: Any, y: Any) -> Any:
    return _plus(b, x, y, 1.0)


def _plus(b: Builder, x: Any, y: Any, sign: float) -> Any:
    if isinstance(x, Value) and isinstance(y, Value):
        return b.total(x, y) if sign > 0 else b.difference(x, y)
    if isinstance(x, Value):
        return b.scaled(x, 1.0, sign * b.item(y, x))
    if isinstance(y, Value):
        return b.scaled(y, sign, b.item(x, y))
    raise Unreadable("neither side depends on the input")


def _subtract(b: Builder, x: Any, y: Any) -> Any:
    return _plus(b, x, y, -1.0)


def _multiply(b: Builder, x: Any, y: Any) -> Any:
    if isinstance(x, Value) and isinstance(y, Value):
        raise Unreadable("the product of two values is not piecewise linear")
    value, constant = (x, y) if isinstance(x, Value) else (y, x)
    if not isinstance(value, Value):
        raise Unreadable("neither side depends on the input")
    return b.scaled(value, b.item(constant, value))


def _divide(b: Builder, x: Any, y: Any) -> Any:
    if not isinstance(x, Value) or isinstance(y, Value):
        raise Unreadable("division by something that is not constant")
    inverse = 1 / b.item(y, x)
    if not bool(torch.isfinite(inverse).all()):
        raise Unreadable("division by zero")
    if bool((inverse.abs() < torch.finfo(torch.float64).tiny).any()):
        raise Unreadable("division by a number whose inverse has too few digits")
    return b.scaled(x, inverse, inexact=1e-15)


def _dropout(b: Builder, x: Value, p: float = 0.5, training: bool = True) -> Value:
    if training:
        raise Unreadable("it is random in training mode: call model.eval(), and pass training=self.training")
    return x


def _mean(b: Builder, layer: ops.Mean, x: Value) -> Value:
    return b.matrix(x, layer, 1e-15)


_layers, _functions = activations.known()

HANDLERS: dict[type[nn.Module], Callable[..., Any]] = _layers | {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.Conv1d: _as_matrix,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _as_matrix,
    nn.AvgPool2d: _as_matrix,
    nn.AdaptiveAvgPool1d: _as_matrix,
    nn.AdaptiveAvgPool2d: _as_matrix,
    nn.ConstantPad2d: _as_matrix,
    nn.Flatten: lambda b, layer, x: _flatten(b, x, layer.start_dim, layer.end_dim),
    nn.Identity: lambda b, layer, x: x,
    nn.Dropout: lambda b, layer, x: _dropout(b, x, layer.p, layer.training),
    ops.Add: lambda b, layer, x, y: _add(b, x, y),
    ops.Sub: lambda b, layer, x, y: _subtract(b, x, y),
    ops.Neg: lambda b, layer, x: b.scaled(x, -1.0),
    ops.Mul: lambda b, layer, x, y: _multiply(b, x, y),
    ops.Div: lambda b, layer, x, y: _divide(b, x, y),
    ops.Concat: lambda b, layer, *parts: _concat(b, parts, layer.dim),
    ops.Reshape: lambda b, layer, x: reshape(b, x, layer.sizes),
    ops.Permute: lambda b, layer, x: _permute(b, x, layer.dims),
    ops.Mean: _mean,
}

FUNCTIONS: dict[Any, Callable[..., Any]] = _functions | {
    F.linear: lambda b, x, weight, bias=None: _linear(b, _layer(weight, bias), x),
    F.max_pool2d: lambda b, x, *how, **more: _max_pool(b, nn.MaxPool2d(*how, **more), x),
    F.avg_pool2d: lambda b, x, *how, **more: _as_matrix(b, nn.AvgPool2d(*how, **more), x),
    F.adaptive_avg_pool2d: lambda b, x, output_size: _as_matrix(b, nn.AdaptiveAvgPool2d(output_size), x),
    F.dropout: _dropout,
    F.pad: _pad,
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
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    ".add": _add,
    operator.sub: _subtract,
    operator.isub: _subtract,
    torch.sub: _subtract,
    ".sub": _subtract,
    operator.neg: lambda b, x: b.scaled(x, -1.0),
    torch.neg: lambda b, x: b.scaled(x, -1.0),
    ".neg": lambda b, x: b.scaled(x, -1.0),
    operator.mul: _multiply,
    operator.imul: _multiply,
    torch.mul: _multiply,
    ".mul": _multiply,
    operator.truediv: _divide,
    operator.itruediv: _divide,
    torch.div: _divide,
    ".div": _divide,
    torch.cat: lambda b, parts, dim=0: _concat(b, parts, dim),
}

#: What the layers of torch that are activations are called.
ACTIVATIONS = sorted({kind.__name__ for kind in _layers})

#: Functions that overwrite what they read.
CHANGING = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
