"""Where the numbers of a layer are kept in an ONNX file, and how new ones get there: transposed, cast, on a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nnrepair.extras import needed
from nnrepair.onnx.inplace.graph import Graph, attribute, constant_tensor, is_float, reads
from nnrepair.onnx.node import operator

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    from onnx import NodeProto

Array = npt.NDArray[Any]
Change = Callable[[Array], Array]
#: Operators that give the numbers of their first input another shape.
_RESHAPES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")


@dataclass(frozen=True)
class Stored:
    """A tensor of the file, and what the graph makes of it before a layer uses it.

    Attributes:
        name: of the initializer, or of what a `Constant` returns.
        array: its numbers as they are stored.
        frozen: why it cannot be changed; empty where it can.
        grid: whether only some numbers can be stored: those of a grid, or of a smaller type.
    """

    name: str
    array: Array
    frozen: str = ""
    grid: bool = False
    _back: tuple[Change, ...] = field(default=(), repr=False)
    _forth: tuple[Change, ...] = field(default=(), repr=False)

    def of(self, used: Array) -> Array:
        """Return what has to be stored for a layer to use these numbers, or the nearest that can be."""
        for step in self._back:
            used = step(used)
        return used

    def used(self, stored: Array) -> Array:
        """Return what the layer uses where this is stored."""
        for step in reversed(self._forth):
            stored = step(stored)
        return stored

    def beside(self, used: Array) -> tuple[Array, Array]:
        """Return what is a step below and a step above what has to be stored for a layer to use these numbers."""
        now = self.of(used)
        if now.dtype.kind in "iu":
            ends = np.iinfo(now.dtype)
            return now - (now > ends.min).astype(now.dtype), now + (now < ends.max).astype(now.dtype)
        return np.nextafter(now, -np.inf, dtype=now.dtype), np.nextafter(now, np.inf, dtype=now.dtype)


def stored(graph: Graph, name: str) -> Stored:
    """Return where a constant of a graph is kept."""
    back, forth, frozen, grid = list[Change](), list[Change](), "", False
    while True:
        if graph.uses[name] > 1:
            users = [node.name or node.output[0] for node in graph.nodes if name in reads(node)]
            frozen = frozen or f"{name!r} is used {graph.uses[name]} times ({', '.join(users[:4])}): all would change"
        node = graph.producers.get(name)
        if node is None or operator(node) == "Constant":
            break
        found = None if frozen or node.input[0] not in graph.fixed else _way(graph, node, name)
        if found is None:
            return Stored(name, graph.value(name), frozen or f"{name!r} is computed by {operator(node)}")
        back.append(found[0])
        forth.append(found[1])
        grid |= found[2]
        name = node.input[0]
    array = graph.value(name)
    if name in graph.given:
        frozen = frozen or f"{name!r} is an input that was given a value"
    elif node is not None and constant_tensor(node) is None:
        frozen = frozen or f"{name!r} is a Constant without a tensor"
    elif node is None and name not in graph.stored:
        frozen = frozen or f"{name!r} is stored as a sparse tensor"
    elif not grid and not is_float(array):
        frozen = frozen or f"{name!r} has type {array.dtype}"
    return Stored(name, array, frozen, grid, tuple(back), tuple(forth))


def _way(graph: Graph, node: NodeProto, name: str) -> tuple[Change, Change, bool] | None:
    """Return how numbers get from behind an operation to before it, and how they come back; and whether some are lost.

    None for operations for which there is no such way.
    """
    op, before, after = operator(node), graph.value(node.input[0]), graph.value(name)
    if op in _RESHAPES:
        return _shaped(before.shape), _shaped(after.shape), False
    if op == "Transpose":
        order = [int(axis) for axis in attribute(node, "perm", None) or range(before.ndim)[::-1]]
        return _turned(np.argsort(order).tolist()), _turned(order), False
    if op == "Cast" and is_float(before) and is_float(after):
        return _cast(before.dtype), _cast(after.dtype), before.dtype.itemsize < after.dtype.itemsize
    if op == "DequantizeLinear" and not attribute(node, "block_size", 0) and before.dtype.kind in "iu":
        scale, zero = _steps(graph, list(node.input), before, attribute(node, "axis", 1))
        ends, small, large = np.iinfo(before.dtype), before.dtype, after.dtype

        def quantised(a: Array) -> Array:
            return np.asarray(np.clip(np.rint(a / scale + zero), ends.min, ends.max).astype(small))

        def dequantised(a: Array) -> Array:
            return np.asarray(((a.astype(np.float32) - zero) * scale).astype(large))

        return quantised, dequantised, True
    return None


def _shaped(shape: tuple[int, ...]) -> Change:
    return lambda a: a.reshape(shape)


def _turned(order: list[int]) -> Change:
    return lambda a: a.transpose(order)


def _cast(dtype: np.dtype[Any]) -> Change:
    return lambda a: a.astype(dtype)


def _steps(graph: Graph, names: list[str], array: Array, axis: int) -> tuple[Array, Array]:
    """Return scale and zero point of a quantised tensor, as they broadcast with it."""
    scale = graph.value(names[1]).astype(np.float32)
    zero = graph.value(names[2]).astype(np.float32) if len(names) > 2 and names[2] else np.zeros_like(scale)
    if scale.size == 1:
        return scale.reshape(()), zero.reshape(())
    shape = [1] * array.ndim
    shape[axis % array.ndim] = scale.size
    return scale.reshape(shape), zero.reshape(shape)
