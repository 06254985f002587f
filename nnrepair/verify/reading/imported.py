"""Layers of imported ONNX files that would be read less well by running their own code; files of several inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nnrepair.onnx import modules as ops
from nnrepair.verify.reading.activations.elu import elu
from nnrepair.verify.reading.activations.silu import SiLU
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Unreadable
from nnrepair.verify.reading.symbols import Symbol
from nnrepair.verify.reading.tensors.arithmetic import add_, multiply_
from nnrepair.verify.reading.tensors.axes import argmax


class Joined(nn.Module):
    """A file of several inputs as a network of one: all their numbers, one input after the other, as VNN-LIB has them.

    Args:
        model: whose inputs have no open sizes.
    """

    def __init__(self, model: ops.OnnxGraph) -> None:
        super().__init__()
        self.model = model
        self.shapes = [tuple(size for size in each.shape if size is not None) for each in model.inputs]
        self.sizes = [math.prod(shape) for shape in self.shapes]

    def forward(self, x: Tensor) -> Any:
        starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        parts = [x.narrow(1, start, size) for start, size in zip(starts, self.sizes, strict=True)]
        return self.model(*(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)))


def _place(b: Builder, layer: Any, x: Symbol) -> Symbol:
    """Return the first place of an extreme: its code compares floats with the largest of them for equality."""
    if layer.last:
        raise Unreadable("of equal numbers it takes the last")
    signed = x if layer.largest else x.shaped(b.scaled(x.flat, -1.0))
    return argmax(b, signed, layer.dim, layer.keepdim)


def _slope(b: Builder, layer: Any, x: Symbol) -> Symbol:
    """Return relu(x) - weight relu(-x), for weights of any shape that broadcasts."""
    below = x.shaped(b.relu(b.scaled(x.flat, -1.0)))
    return add_(b, x.shaped(b.relu(x.flat)), multiply_(b, below, -layer.weight.detach()))


def _scaled_elu(b: Builder, layer: Any, x: Symbol) -> Symbol:
    return x.shaped(b.scaled(elu(b, x.flat, layer.alpha), b.constant(layer.gamma)))


def _swish(b: Builder, layer: Any, x: Symbol) -> Symbol:
    """Return x sigmoid(alpha x), which is SiLU(alpha x) / alpha."""
    if not layer.alpha > 0:
        raise Unreadable(f"alpha={layer.alpha}, expected alpha > 0")
    alpha = b.constant(layer.alpha)
    return x.shaped(b.scaled(b.activation(b.scaled(x.flat, alpha), SiLU()), 1 / alpha, inexact=4 * EPS))


_READERS: dict[str, Callable[..., Symbol]] = {"Arg": _place, "Slope": _slope, "ScaledElu": _scaled_elu, "Swish": _swish}
#: By class, of those that the importer has: functions of (builder, layer, symbol).
IMPORTED: dict[type[nn.Module], Callable[..., Symbol]] = {
    getattr(ops, name): read for name, read in _READERS.items() if hasattr(ops, name)
}
