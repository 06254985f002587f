"""Constants that a file computes from others, and from shapes: one short function each, with numpy, while reading.

`FOLDERS`, at the end, says which function computes which operator. Where a shape is known only when the model runs,
`Size`s stand among the numbers, in arrays of objects: what can be done with these is here. Other operators are
computed by the modules that they become.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nnrepair.extras import needed
from nnrepair.onnx.node import LIMIT, Array, Node, Refused
from nnrepair.onnx.sizes import Size

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.numpy_helper


def folded_size(node: Node) -> int:
    """Return how many numbers a node will compute, or more; few operators give more than they read."""
    arrays = [value for value in node.inputs if isinstance(value, np.ndarray)]
    if node.op in BROADCAST:
        shape: tuple[int, ...] = np.broadcast_shapes(*(array.shape for array in arrays))
        return math.prod(shape)
    if node.op == "Gather":
        data, index = arrays
        rows: int = data.shape[_axis(node, 0, data.ndim)]
        return index.size * (data.size // max(rows, 1))
    if node.op == "ConstantOfShape":
        return math.prod(int(size) for size in node.constant(0))
    if node.op == "Expand":
        sizes = tuple(int(size) for size in node.constant(1))
        return (
            math.prod(np.broadcast_shapes(node.sizes(0).shape, sizes)) if max(sizes, default=0) <= LIMIT else 2 * LIMIT
        )
    if node.op == "Range":
        start, end, step = (float(node.constant(k).item()) for k in range(3))
        return max(math.ceil((end - start) / step), 0) if step else 0
    return sum(array.size for array in arrays)


def settled(array: Array) -> Array:
    """Return an array of objects as numbers, if there is no `Size` in it."""
    if array.dtype != object or any(isinstance(number, Size) for number in array.flat):
        return array
    whole = all(isinstance(number, int | np.integer) for number in array.flat)
    return array.astype(np.int64 if whole else np.float32)


def _axis(node: Node, default: int, rank: int) -> int:
    axis = int(node.get("axis", default))
    if not -rank <= axis < rank:
        raise Refused(f"axis={axis} is none of the {rank} axes of its input")
    return int(axis % rank)


def _axes(node: Node, rank: int) -> list[int] | None:
    """Return the axes that a node names, in its input or its attribute; None where it names none."""
    given = node.integers(1, "axes")
    if given is None:
        return None
    if any(not -rank <= axis < rank for axis in given) or len({axis % rank for axis in given}) < len(given):
        raise Refused(f"axes={list(given)} are not different axes out of {rank}")
    return [axis % rank for axis in given]


def _of_two(compute: Callable[[Array, Array], Array]) -> Callable[[Node], Array]:
    return lambda node: compute(node.sizes(0), node.sizes(1))


def _each(compute: Callable[..., Any], *arrays: Array) -> Array:
    """Compute number by number, with broadcasting, where there are `Size`s."""
    made = np.frompyfunc(compute, len(arrays), 1)(*arrays)
    return np.asarray(made, dtype=object)


def _quotient(a: Array, b: Array) -> Array:
    if object in (a.dtype, b.dtype):
        floating = {a.dtype.kind, b.dtype.kind} & {"f"}
        return np.asarray(a / b if floating else a // b, dtype=object)  # sizes are not negative
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not b.all():
        raise Refused("it divides an integer by zero")
    away = (np.remainder(a, b) != 0) & ((a < 0) != (b < 0))  # numpy rounds down, ONNX towards zero
    return np.asarray(np.floor_divide(a, b) + away.astype(a.dtype))


def _cast(node: Node) -> Array:
    array, to = node.sizes(0), onnx.helper.tensor_dtype_to_np_dtype(node.get("to", 0))
    if array.dtype == object:
        if to.kind not in "iuf":
            raise Refused(f"sizes cannot be cast to {to}")
        if to.kind == "f":
            return array
        return _each(lambda size: Size("int", size) if isinstance(size, Size) and _broken(size) else size, array)
    if to == array.dtype:
        return array
    if to.kind not in "fiub" or array.dtype.kind not in "fiub":
        raise Refused(f"a cast from {array.dtype} to {to} is not supported")
    if to.kind in "iu" and array.dtype.kind == "f":
        ends = np.iinfo(to)
        if not ((np.trunc(array) >= float(ends.min)) & (np.trunc(array) <= float(ends.max))).all():
            raise Refused(f"a number has no value of type {to}")
    return array.astype(to)


def _broken(size: Size) -> bool:
    """Tell whether a size may be no whole number."""
    if size.what in ("/", "float"):
        return True
    if size.what in ("floor", "ceil", "int", "size"):
        return False
    return any(_broken(part) if isinstance(part, Size) else isinstance(part, float) for part in size.parts)


def _rounded(name: str, compute: Callable[[Array], Array]) -> Callable[[Node], Array]:
    def fold(node: Node) -> Array:
        array = node.sizes(0)
        if array.dtype != object:
            return compute(array)
        return _each(lambda size: Size(name, size) if isinstance(size, Size) and _broken(size) else size, array)

    return fold


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


def _filled(node: Node) -> Array:
    value = (
        onnx.numpy_helper.to_array(node.get("value", None)) if "value" in node.attributes else np.zeros(1, np.float32)
    )
    return np.full([int(size) for size in node.constant(0)], value.ravel()[0], value.dtype)


def _gather(node: Node) -> Array:
    data, index = node.sizes(0), node.constant(1)
    axis = _axis(node, 0, data.ndim)
    if index.size and not -data.shape[axis] <= index.min() <= index.max() < data.shape[axis]:
        raise Refused(f"its indices leave the {data.shape[axis]} entries of axis {axis}")
    return np.asarray(np.take(data, index, axis))


def _reshape(node: Node) -> Array:
    data, sizes = node.sizes(0), [int(size) for size in node.constant(1)]
    if not node.get("allowzero", 0):
        sizes = [data.shape[k] if size == 0 and k < data.ndim else size for k, size in enumerate(sizes)]
    return data.reshape(sizes)


def _slice(node: Node) -> Array:
    data = node.sizes(0)
    starts, ends = node.integers(1, "starts") or [], node.integers(2, "ends") or []
    named, steps = node.integers(3, "axes"), node.integers(4, "steps")
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
    many = len(node.integers(1, "axes") or ())
    return np.expand_dims(data, tuple(_axes(node, data.ndim + many) or ()))


def _transpose(node: Node) -> Array:
    return node.sizes(0).transpose(node.get("perm", None))


def _extreme(what: str, compute: Callable[[Array, Array], Array]) -> Callable[[Node], Array]:
    def fold(node: Node) -> Array:
        made = node.sizes(0)
        for index in range(1, len(node.inputs)):
            other = node.sizes(index)
            if object in (made.dtype, other.dtype):
                made = _each(lambda a, b: Size(what, a, b), made, other)
            else:
                made = compute(made, other)
        return np.asarray(made)

    return fold


def _same(a: Any, b: Any) -> bool:
    """Compare two sizes; those that depend on shapes are positive."""
    if isinstance(a, Size) or isinstance(b, Size):
        if a == b:
            return True
        if (not isinstance(a, Size) and a < 1) or (not isinstance(b, Size) and b < 1):
            return False
        raise Refused("it compares sizes that are not known before the model runs")
    return bool(a == b)


def _equal(node: Node) -> Array:
    a, b = node.sizes(0), node.sizes(1)
    if object not in (a.dtype, b.dtype):
        return np.asarray(np.equal(a, b))
    return np.asarray(np.frompyfunc(_same, 2, 1)(a, b)).astype(bool)


def _where(node: Node) -> Array:
    return np.where(node.constant(0), node.sizes(1), node.sizes(2))


def _product(node: Node) -> Array:
    """ReduceProd, of sizes along all axes."""
    data, keep = node.sizes(0), bool(node.get("keepdims", 1))
    axes = node.integers(1, "axes")
    if axes not in (None, [], [0]) or data.ndim != 1:
        raise Refused("products of constants are taken over one axis only")
    made: Any = 1
    for number in data:
        made = number * made
    return np.asarray([made] if keep else made, dtype=data.dtype)


def _expand(node: Node) -> Array:
    data, sizes = node.sizes(0), [int(size) for size in node.constant(1)]
    return np.array(np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(sizes))))


def _remainder(node: Node) -> Array:
    a, b = node.constant(0), node.constant(1)
    if b.dtype.kind in "iu" and not b.all():
        raise Refused("it divides an integer by zero")
    return np.asarray(np.fmod(a, b) if node.get("fmod", 0) else np.mod(a, b))


def _range(node: Node) -> Array:
    start, end, step = (node.constant(k) for k in range(3))
    if not step.all():
        raise Refused("its step is zero")
    return np.arange(start.item(), end.item(), step.item()).astype(start.dtype)


def _negative(node: Node) -> Array:
    data = node.sizes(0)
    return np.asarray(-data)


def _root(node: Node) -> Array:
    data = node.sizes(0)
    if data.dtype == object:
        raise Refused("the root of a size that is not known before the model runs")
    return np.asarray(np.sqrt(data))


def _split(node: Node) -> list[Array]:
    data, count = node.sizes(0), len(node.outputs)
    axis = _axis(node, 0, data.ndim)
    sizes = node.integers(1, "split")
    if sizes is None:
        each = -(-data.shape[axis] // count)
        sizes = [max(min(each, data.shape[axis] - k * each), 0) for k in range(count)]
    if len(sizes) != count or sum(sizes) != data.shape[axis] or min(sizes) < 0:
        raise Refused(f"its parts {sizes} do not make up an axis of size {data.shape[axis]}")
    return np.split(data, np.cumsum(sizes)[:-1].tolist(), axis)


def shape_of(node: Node) -> Array:
    """Return what Shape or Size gives."""
    value = node.inputs[0]
    shape: list[int | Size]
    if isinstance(value, str):
        shape = [size if size is not None else Size.of(value, axis) for axis, size in enumerate(node.shape())]
    else:
        shape = [*node.sizes(0).shape]
    if node.op == "Size":
        total: int | Size = 1
        for size in shape:
            total = size * total
        shape = [total]
    else:
        shape = shape[node.get("start", 0) : node.get("end", None)]
    made = np.empty(len(shape), object if any(isinstance(size, Size) for size in shape) else np.int64)
    made[:] = shape
    return made.reshape(()) if node.op == "Size" else made


FOLDERS: dict[str, Callable[[Node], Any]] = {
    "Add": _of_two(np.add),
    "Cast": _cast,
    "Ceil": _rounded("ceil", np.ceil),
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Div": _of_two(_quotient),
    "Equal": _equal,
    "Expand": _expand,
    "Floor": _rounded("floor", np.floor),
    "Gather": _gather,
    "Max": _extreme("max", np.maximum),
    "Min": _extreme("min", np.minimum),
    "Mod": _remainder,
    "Mul": _of_two(np.multiply),
    "Neg": _negative,
    "Range": _range,
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _root,
    "Squeeze": _squeeze,
    "Sub": _of_two(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
#: Those whose results may be larger than all that they read, by broadcasting.
BROADCAST = {"Add", "Div", "Equal", "Max", "Min", "Mod", "Mul", "Sub", "Where"}


def folded(node: Node) -> list[Array]:
    """Compute the constants that a node gives."""
    with np.errstate(all="ignore"):  # infinities and NaN are what the file says
        made = FOLDERS[node.op](node)
        return [settled(np.asarray(part)) for part in (made if isinstance(made, list) else [made])]
