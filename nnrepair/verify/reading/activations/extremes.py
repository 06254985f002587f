"""The larger and the smaller of two values, or of a value and a constant: max(x, y) = x + relu(y - x)."""

from __future__ import annotations

from functools import reduce
from typing import Any

from torch import Tensor

from nnrepair.onnx import modules as ops
from nnrepair.verify.reading.activations import Layers
from nnrepair.verify.reading.builder import Builder, Unreadable, Value

# From here on `x - end + end` would lose digits of x that matter.
FAR = 1e6


def above(b: Builder, x: Value, end: Tensor | float) -> Value:
    """Return max(x, end) for a constant."""
    return _beyond(b, x, end, 1.0)


def below(b: Builder, x: Value, end: Tensor | float) -> Value:
    """Return min(x, end) for a constant."""
    return _beyond(b, x, end, -1.0)


def _beyond(b: Builder, x: Value, end: Tensor | float, sign: float) -> Value:
    if float(b.constant(end).abs().max()) < FAR:
        return b.scaled(b.relu(b.scaled(x, sign, -sign * end)), sign, end)
    return b.total(x, b.scaled(b.relu(b.scaled(x, -sign, sign * end)), sign))


def extreme(b: Builder, sign: float, *parts: Any) -> Value:
    """Return the largest of some values and constants, or the smallest if `sign` is -1."""
    values = [part for part in parts if isinstance(part, Value)]
    if not values or any(part.shape != values[0].shape for part in values):
        raise Unreadable(f"it compares values of the shapes {', '.join(str(part.shape) for part in values) or 'none'}")
    if any(not isinstance(part, Value | Tensor) for part in parts):
        raise Unreadable("it reduces an axis, or compares with something that is neither value nor constant")
    ends = [b.item(part, values[0]) for part in parts if isinstance(part, Tensor)]
    return reduce(lambda x, end: _beyond(b, x, end, sign), ends, reduce(lambda x, y: b.larger(x, y, sign), values))


LAYERS: Layers = {
    ops.Max: lambda b, layer, *parts: extreme(b, 1.0, *parts),
    ops.Min: lambda b, layer, *parts: extreme(b, -1.0, *parts),
}
