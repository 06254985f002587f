"""Constants that a file computes from others: one short function each, with numpy, once while reading.

`FOLDERS`, at the end, says which function computes which operator. The size of the batch is among what they are given,
as BATCH: those that only move numbers about carry it along, the others refuse it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nnrepair.extras import needed
from nnrepair.onnx.node import Array, Node, Refused

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.numpy_helper


def folded_size(node: Node) -> int:
    """Return how many numbers a node will compute, or more; only broadcasting and Gather give more than they read."""
    arrays = [value for value in node.inputs if isinstance(value, np.ndarray)]
    if node.op in ("Add", "Sub", "Mul", "Div"):
        shape: tuple[int, ...] = np.broadcast_shapes(*(array.shape for array in arrays))
        return math.prod(shape)
    if node.op == "Gather":
        data, index = arrays
        rows: int = data.shape[_axis(node, 0, data.ndim)]
        return index.size * (data.size // max(rows, 1))
    return sum(array.size for array in arrays)


def _axis(node: Node, default: int, rank: int) -> int:
    axis = int(node.get("axis", default))
    if not -rank <= axis < rank:
        raise Refused(f"axis={axis} is none of the {rank} axes of its input")
    return int(axis % rank)


def _axes(node: Node, rank: int) -> list[int] | None:
    """Return the axes that a node names, in its input or its attribute; None where it names none."""
    given = node.constant(1).ravel().tolist() if node.has(1) else node.get("axes", None)
    if given is None:
        return None
    if any(not -rank <= axis < rank for axis in given) or len({axis % rank for axis in given}) < len(given):
        raise Refused(f"axes={list(given)} are not different axes out of {rank}")
    return [axis % rank for axis in given]


def _of_two(compute: Callable[[Array, Array], Array]) -> Callable[[Node], Array]:
    return lambda node: compute(node.constant(0), node.constant(1))


def _quotient(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not b.all():
        raise Refused("it divides an integer by zero")
    away = (np.remainder(a, b) != 0) & ((a < 0) != (b < 0))  # numpy rounds down, ONNX towards zero
    return np.asarray(np.floor_divide(a, b) + away.astype(a.dtype))


def _cast(node: Node) -> Array:
    array, to = node.sizes(0), onnx.helper.tensor_dtype_to_np_dtype(node.get("to", 0))
    if to == array.dtype:
        return array
    array = node.constant(0)
    if to.kind not in "fiub" or array.dtype.kind not in "fiub":
        raise Refused(f"a cast from {array.dtype} to {to} is not supported")
    if to.kind in "iu" and array.dtype.kind == "f":
        ends = np.iinfo(to)
        if not ((np.trunc(array) >= float(ends.min)) & (np.trunc(array) <= float(ends.max))).all():
            raise Refused(f"a number has no value of type {to}")
    return array.astype(to)


def _concat(node: Node) -> Array:
    parts = [node.sizes(index) for index in range(len(node.inputs))]
    return np.concatenate(parts, _axis(node, 0, parts[0].ndim))


def _constant(node: Node) -> Array:
    ((kind, value),) = node.attributes.items()
    if kind == "value":
        return np.asarray(onnx.numpy_helper.to_array(value))
    if kind in ("value_int", "value_ints"):
        return np.array(value, np.int64)
    if kind in ("value_float", "value_floats"):
        return np.array(value, np.float32)
    raise Refused(f"its {kind} is no dense tensor of numbers")


def _gather(node: Node) -> Array:
    data, index = node.sizes(0), node.constant(1)
    axis = _axis(node, 0, data.ndim)
    if index.size and not -data.shape[axis] <= index.min() <= index.max() < data.shape[axis]:
        raise Refused(f"its indices leave the {data.shape[axis]} entries of axis {axis}")
    return np.take(data, index, axis)


def _reshape(node: Node) -> Array:
    data, sizes = node.sizes(0), [int(size) for size in node.constant(1)]
    if not node.get("allowzero", 0):
        sizes = [data.shape[k] if size == 0 and k < data.ndim else size for k, size in enumerate(sizes)]
    return data.reshape(sizes)


def _shape(node: Node) -> Array:
    return np.array(node.sizes(0).shape[node.get("start", 0) : node.get("end", None)], np.int64)


def _slice(node: Node) -> Array:
    data = node.sizes(0)
    if "starts" in node.attributes:
        starts, ends = list(node.get("starts", [])), list(node.get("ends", []))
        named, steps = node.get("axes", None), None
    else:
        starts, ends = node.constant(1).tolist(), node.constant(2).tolist()
        named, steps = (node.constant(k).tolist() if node.has(k) else None for k in (3, 4))
    axes = [axis % max(data.ndim, 1) for axis in (range(len(starts)) if named is None else named)]
    steps = [1] * len(starts) if steps is None else steps
    if len(set(axes)) < len(axes) or max(axes, default=0) >= data.ndim or 0 in steps:
        raise Refused(f"axes={axes} and steps={steps} do not fit a constant with {data.ndim} axes")
    places = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places[axis] = slice(start, end, step)
    return data[tuple(places)]


def _squeeze(node: Node) -> Array:
    data = node.sizes(0)
    axes = _axes(node, data.ndim)
    return data.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(node: Node) -> Array:
    data = node.sizes(0)
    many = node.constant(1).size if node.has(1) else len(node.get("axes", ()))
    return np.expand_dims(data, tuple(_axes(node, data.ndim + many) or ()))


def _transpose(node: Node) -> Array:
    return node.sizes(0).transpose(node.get("perm", None))


FOLDERS: dict[str, Callable[[Node], Array]] = {
    "Add": _of_two(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "Div": _of_two(_quotient),
    "Gather": _gather,
    "Mul": _of_two(np.multiply),
    "Neg": lambda node: np.negative(node.constant(0)),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Sqrt": lambda node: np.sqrt(node.constant(0)),
    "Squeeze": _squeeze,
    "Sub": _of_two(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def folded(node: Node) -> Array:
    """Compute a constant."""
    with np.errstate(all="ignore"):  # infinities and NaN are what the file says
        return np.asarray(FOLDERS[node.op](node))
