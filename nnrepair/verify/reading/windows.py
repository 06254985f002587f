"""What slides over images: convolutions, also transposed, windows with their largest or average, interpolation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.affine import Convolution
from nnrepair.verify.reading.builder import MATRIX_LIMIT, Builder, Unreadable, Value
from nnrepair.verify.reading.sparse import Sparse, Transposed
from nnrepair.verify.reading.symbols import Symbol

POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def _tuple(value: Any, axes: int) -> tuple[int, ...]:
    return (int(value),) * axes if isinstance(value, int) else tuple(int(v) for v in value)


def conv(
    b: Builder,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Return a convolution over one or two axes with constant weights."""
    layer, axes = _layer(weight, bias, x), weight.ndim - 2
    if isinstance(padding, str):
        x, padding = _same(b, x, weight.shape[2:], dilation) if padding == "same" else x, 0
    layer.stride, layer.dilation, layer.groups = _two(stride, axes, 1), _two(dilation, axes, 1), groups
    layer.padding = _two(padding, axes, 0)
    layer.kernel_size = tuple(layer.weight.shape[2:])
    if x.shape[0] != layer.weight.shape[1] * groups:
        raise Unreadable(f"it takes images of {layer.weight.shape[1] * groups} channels, given {x.shape}")
    map = Convolution(layer, x.shape if axes == 2 else (x.shape[0], 1, x.shape[1]))
    return b.affine(x, map, map.out_shape if axes == 2 else (map.out_shape[0], map.out_shape[2]))


def conv_transpose(
    b: Builder,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """Return a transposed convolution over one or two axes with constant weights."""
    layer, axes = _layer(weight, None, x), weight.ndim - 2
    layer.stride, layer.dilation, layer.groups = _two(stride, axes, 1), _two(dilation, axes, 1), groups
    layer.padding = _two(padding, axes, 0)
    layer.kernel_size = tuple(layer.weight.shape[2:])
    image = x.shape[1:] if axes == 2 else (1, *x.shape[1:])
    grown = tuple(
        (size - 1) * s - 2 * int(p) + d * (k - 1) + more + 1
        for size, s, p, d, k, more in zip(
            image,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.kernel_size,
            _two(output_padding, axes, 0),
            strict=True,
        )
    )
    forward = Convolution(layer, (layer.weight.shape[1] * groups, *grown))
    if forward.out_shape != (x.shape[0], *image):
        raise Unreadable(f"it takes images of {layer.weight.shape[0]} channels, given {x.shape}")
    map = Transposed(forward, bias)
    return b.affine(x, map, map.out_shape if axes == 2 else (map.out_shape[0], map.out_shape[2]))


def _same(b: Builder, x: Value, kernel: Sequence[int], dilation: Any) -> Value:
    """Return an image with the zeros around it that keep its size; what is uneven comes last."""
    spans = [d * (k - 1) for k, d in zip(kernel, _tuple(dilation, len(kernel)), strict=True)]
    symbol = Symbol.of(b, x)
    return symbol.moved(F.pad(symbol.places(), [n for t in reversed(spans) for n in (t // 2, t - t // 2)])).value


def _two(value: Any, axes: int, missing: int) -> tuple[int, ...]:
    """Return settings for two axes, of which the first may be missing."""
    return (missing,) * (2 - axes) + _tuple(value, axes)


def _layer(weight: Any, bias: Any, x: Value) -> nn.Conv2d:
    """Return a layer that holds a weight for one or two axes, the first of size 1 if there is one only."""
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise Unreadable("its weights depend on the input")
    if weight.ndim not in (3, 4) or len(x.shape) != weight.ndim - 1:
        raise Unreadable(f"a weight of shape {tuple(weight.shape)} slides over {x.shape}, expected one or two axes")
    layer = nn.Conv2d(1, 1, 1, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach() if weight.ndim == 4 else weight.detach()[:, :, None], False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), False)
    return layer


def over(axes: int, read: Callable[..., Value]) -> Callable[..., Value]:
    """Return a reader that refuses images of another number of axes."""

    def checked(b: Builder, x: Value, *how: Any, **more: Any) -> Value:
        if len(x.shape) != axes + 1:
            raise Unreadable(f"it needs images of {axes} axes behind that of the channels, given {x.shape}")
        return read(b, x, *how, **more)

    return checked


def max_pool(
    b: Builder,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    """Return the largest entry of each window, over all axes but that of the channels."""
    axes = len(x.shape) - 1
    if return_indices:
        raise Unreadable("return_indices are not supported")
    kernel, pads, steps = _tuple(kernel_size, axes), _tuple(padding, axes), _tuple(dilation, axes)
    stride = kernel if stride is None or stride == [] else _tuple(stride, axes)
    sizes = POOLS[axes - 1](torch.zeros(1, 1, *x.shape[1:]), kernel, stride, pads, steps, ceil_mode).shape[2:]
    numbers = x.shape[0] * math.prod(sizes) * math.prod(kernel)
    if numbers > MATRIX_LIMIT:
        raise Unreadable(f"its windows have {numbers} numbers, expected at most {MATRIX_LIMIT}")
    places = torch.arange(math.prod(x.shape)).reshape(x.shape)
    ends = [p + s * (n - 1) + d * (k - 1) + 1 for p, s, n, d, k in zip(pads, stride, sizes, steps, kernel, strict=True)]
    around = [n for p, end in zip(reversed(pads), reversed(ends), strict=True) for n in (p, end)]
    padded = F.pad(places, around, value=-1)
    parts = []
    for offset in itertools.product(*map(range, kernel)):
        at = [slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in zip(offset, steps, stride, sizes, strict=True)]
        parts.append(padded[(slice(None), *at)])
    windows = torch.stack(parts, -1).reshape(-1, len(parts))
    windows = torch.where(windows < 0, windows.amax(1, keepdim=True), windows)  # padding repeats an entry of the window
    if bool((windows < 0).any()):
        raise Unreadable("a window lies in the padding alone")
    return b.maximum(x, windows, (x.shape[0], *sizes))


def channelwise(b: Builder, x: Value, call: Callable[[Tensor], Tensor]) -> Value:
    """Return a linear function that treats all channels alike, from what it does to the unit vectors of one."""
    if len(x.shape) < 2:
        raise Unreadable(f"it needs values (channels, ...), given {x.shape}")
    channels, size = x.shape[0], math.prod(x.shape[1:])
    origin = call(torch.zeros(1, 1, *x.shape[1:], dtype=torch.float64))
    outputs, shape = origin.numel(), tuple(origin.shape[2:])
    if size * outputs > MATRIX_LIMIT:
        raise Unreadable(f"it would need a matrix of {outputs} x {size} numbers")
    matrix = torch.cat([call(unit.reshape(-1, 1, *x.shape[1:])).reshape(len(unit), -1) for unit in b.units(size)]).T
    entries = max(1, int((matrix != 0).sum(1).max()))
    _, index = matrix.abs().topk(entries, 1)
    weight = matrix.gather(1, index)
    index = (torch.arange(channels)[:, None, None] * size + index).reshape(-1, entries)
    exact = bool(((weight == 0) | (weight.frexp()[0].abs() == 0.5)).all())
    map = Sparse(index, weight.repeat(channels, 1), channels * size, 0.0 if exact else 1e-15)
    return b.affine(x, map, (channels, *shape))


def averages(function: Callable[..., Tensor]) -> Callable[..., Value]:
    """Return the reader of a function that averages, or interpolates, within each channel."""

    def read(b: Builder, x: Value, *how: Any, **more: Any) -> Value:
        return channelwise(b, x, lambda image: function(image, *how, **more))

    return read
