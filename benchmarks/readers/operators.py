"""One function for each operator: it adds a node, or a few, that read a value; or returns None where it makes no sense.

What it says of the new shape only guides what is drawn next; onnxruntime says what the graph means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import AttributeProto, helper

from benchmarks.readers.draft import FLOATS, Draft, Shape, Value, kind_of

Maker = Callable[[Draft, Value], Value | None]


def _to(d: Draft, x: Value, op: str, inputs: Sequence[str] = (), out: Shape | None = None, **options: Any) -> Value:
    given = {name: value for name, value in options.items() if value is not None}
    return Value(d.node(op, [x.name, *inputs], **given), x.shape if out is None else out, x.dtype)


def _axis(d: Draft, axis: int, rank: int) -> int:
    return axis - rank if d.opset >= 11 and d.chance(0.3) else axis


def _spread(d: Draft, rank: int) -> int:
    """Choose an axis, seldom the batch."""
    return 0 if rank < 2 or d.odd(0.1) else 1 + d.below(rank - 1)


# Activations ---------------------------------------------------------------------------------------------------------


def plain(op: str) -> Maker:
    return lambda d, x: _to(d, x, op)


def leaky(d: Draft, x: Value) -> Value:
    return _to(d, x, "LeakyRelu", alpha=d.pick([None, 0.1, 0.25, 0.01, 0.0, 1.5, -0.5, 1.0]))


def prelu(d: Draft, x: Value) -> Value:
    channels, rest = x.shape[1:2] or (1,), (1,) * (len(x.shape) - 2)
    shape = d.pick([(1,), channels + rest, (1, *channels, *rest), *([x.shape[1:]] if d.odd(0.1) else [])])
    return _to(d, x, "PRelu", [d.store(d.numbers(shape, x.dtype))])


def hard_sigmoid(d: Draft, x: Value) -> Value:
    return _to(d, x, "HardSigmoid", alpha=d.pick([None, 0.25, 1.0, -0.5]), beta=d.pick([None, 0.0, 0.25]))


def elu(d: Draft, x: Value) -> Value:
    return _to(d, x, "Elu", alpha=d.pick([None, 1.0, 0.5, 0.0, 2.5]))


def clip(d: Draft, x: Value) -> Value:
    low, high = d.pick([None, 0.0, -0.0, -1.0, 0.1, -1e30]), d.pick([None, 0.0, 0.5, 1.0, 6.0, 1.1, 1e30])
    if low is not None and d.chance(0.05):
        low = float(np.finfo(np.float32).min)
    if low is not None and high is not None and low > high and not d.odd(0.5):
        low, high = high, low
    if (d.opset < 11) ^ d.odd(0.03):
        return _to(d, x, "Clip", min=low, max=high)
    with np.errstate(over="ignore"):
        ends = [
            ""
            if end is None
            else d.store(np.array(end).astype(x.dtype).reshape(d.pick([(), (), (1,)]) if d.odd(0.1) else ()))
            for end in (low, high)
        ]
    while ends and not ends[-1] and not d.odd(0.3):
        ends.pop()
    return _to(d, x, "Clip", ends)


def softmax(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value:
        axis = None if d.chance(0.4) else _axis(d, _spread(d, len(x.shape)), len(x.shape))
        return _to(d, x, op, axis=axis)

    return make


def dropout(d: Draft, x: Value) -> Value:
    outputs = 2 if d.odd(0.5) else 1
    if d.opset < 12:
        options = {} if d.chance(0.3) else {"ratio": d.pick([0.5, 0.0, 0.9])}
        name = d.node(
            "Dropout", [x.name], outputs, **options, **({"is_test": 1} if d.opset < 7 and not d.odd(0.3) else {})
        )
        return replace(x, name=name)
    inputs = [x.name]
    if d.odd():
        inputs.append(d.pick(["", d.store(np.float32(d.pick([0.0, 0.5, 0.9])))]))
        if d.odd():
            inputs.append(d.pick(["", d.store(np.array(d.chance(0.4)))]))
    options = {"seed": 7} if d.odd(0.3) else {}
    return replace(x, name=d.node("Dropout", inputs, outputs, **options))


# Layers --------------------------------------------------------------------------------------------------------------


def gemm(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 2 and not d.odd(0.05):
        return None
    turned, outputs = d.odd(0.05), d.pick([1, 2, 3, 4, x.shape[0]])
    rows, inputs = (x.shape[-1], x.shape[0]) if turned else (x.shape[0], x.shape[-1])
    transposed = d.chance(0.5)
    weight = d.store(d.numbers((outputs, inputs) if transposed else (inputs, outputs), x.dtype))
    alpha, beta = (d.pick([0.5, 2.0, -1.0, 0.3, 0.0]) if d.odd(0.4) else d.pick([None, 1.0]) for _ in range(2))
    shapes: list[Shape] = (
        [(outputs,)] if not d.odd() else [(), (1,), (1, outputs), (rows, outputs), (rows, 1), (outputs, 1)]
    )
    parts = [weight]
    if d.opset < 11 or d.chance(0.8):
        parts.append(d.store(d.numbers(d.pick(shapes), x.dtype)))
    elif d.odd(0.3):
        parts.append("")
    options = {"alpha": alpha, "beta": beta, "transA": 1 if turned else d.pick([None, None, 0])}
    options |= {"transB": 1 if transposed else d.pick([None, 0]), "broadcast": 1 if d.opset < 7 else None}
    return _to(d, x, "Gemm", parts, (rows, outputs), **options)


def matmul(d: Draft, x: Value) -> Value | None:
    outputs, item = d.pick([1, 2, 3, 4, x.shape[0]]), x.shape[-1]
    if d.odd(0.1):
        left = d.store(d.numbers((outputs, x.shape[0] if len(x.shape) < 2 else x.shape[-2]), x.dtype))
        return Value(d.node("MatMul", [left, x.name]), (*x.shape[:-2], outputs, item), x.dtype)
    if d.odd(0.05):
        return Value(d.node("MatMul", [x.name, x.name]), x.shape, x.dtype)
    if d.odd(0.05):
        return _to(d, x, "MatMul", [d.store(d.numbers((item,), x.dtype))], x.shape[:-1])
    lead = (d.pick([1, x.shape[0], 2]),) if d.odd(0.1) else ()
    weight = d.numbers((*lead, item, outputs), x.dtype)
    made = _to(d, x, "MatMul", [d.store(weight)], (*x.shape[:-1], outputs))
    if d.chance(0.5):
        bias = d.store(d.numbers((1, outputs) if d.odd(0.5) else (outputs,), x.dtype))
        pair = [bias, made.name] if d.chance(0.3) else [made.name, bias]
        return replace(made, name=d.node("Add", pair, **({"broadcast": 1} if d.opset < 7 else {})))
    return made


def _pads(d: Draft, kernel: Sequence[int]) -> list[int] | None:
    axes = len(kernel)
    if not d.chance(0.4):
        return d.pick([None, [0] * 2 * axes])
    before = [d.below(max(k, 2)) for k in kernel]
    after = [d.below(max(k, 2)) for k in kernel] if d.odd() else before
    pads = [*before, *after]
    if d.odd(0.05):
        pads[d.below(len(pads))] = d.pick([-1, 3])
    return pads


def _window(d: Draft, x: Value, kernel: Sequence[int], dilated: bool) -> tuple[dict[str, Any], Shape]:
    """Return the attributes of a window, and about how many places it has."""
    axes = len(kernel)
    pads, strides = _pads(d, kernel), [1 + d.below(3) for _ in kernel] if d.chance(0.5) else None
    dilations = None
    if dilated and d.odd():
        dilations = [1 + d.below(2) for _ in kernel]
    elif dilated:
        dilations = d.pick([None, [1] * axes])
    auto = None
    if d.odd(0.4):
        auto = d.pick(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
        pads = pads if auto == "NOTSET" or d.odd(0.2) else None
    options = {"pads": pads, "strides": strides, "dilations": dilations, "auto_pad": auto}
    grid = []
    for k in range(axes):
        size, step = x.shape[2 + k], (strides or [1] * axes)[k]
        reach = (kernel[k] - 1) * (dilations or [1] * axes)[k] + 1
        padded = size + (pads[k] + pads[axes + k] if pads else 0)
        grid.append(-(-size // step) if auto and "SAME" in auto else (padded - reach) // step + 1)
    return options, tuple(grid)


def conv(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 3:
        return None
    channels, sizes = x.shape[1], x.shape[2:]
    kernel = [1 + d.below(max(min(size, 3), 1)) for size in sizes]
    group = d.pick([g for g in range(1, channels + 1) if channels % g == 0]) if channels and d.odd() else 1
    outputs = group * (1 + d.below(2))
    options, grid = _window(d, x, kernel, True)
    if min(grid) < 1:
        return None
    weight = d.store(d.numbers((outputs, channels // group, *kernel), x.dtype))
    bias = [d.store(d.numbers((outputs,), x.dtype))] if d.chance(0.6) else ([""] if d.odd(0.1) else [])
    options |= {
        "kernel_shape": kernel if d.chance(0.7) else None,
        "group": group if group > 1 or d.chance(0.3) else None,
    }
    return _to(d, x, "Conv", [weight, *bias], (x.shape[0], outputs, *grid), **options)


def batch_norm(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 2:
        return None
    each = d.opset < 9 and d.odd(0.2)  # statistics of every number of an item
    shape = x.shape[1:] if each else x.shape[1:2]
    parts = [d.numbers(shape, x.dtype) for _ in range(3)]
    variance = np.abs(d.numbers(shape, np.float64)).astype(x.dtype) + x.dtype(0.0 if d.odd(0.1) else 0.25)
    options = {"epsilon": d.pick([None, 1e-3, 0.1, 1e-5]), "momentum": d.pick([None, 0.5, 0.0])}
    if d.opset < 9:
        options["spatial"] = 0 if each else d.pick([None, 1])
    if d.opset < 7:
        options["is_test"] = None if d.odd(0.3) else 1
    if d.opset >= 14:
        options["training_mode"] = d.pick([None, 0]) if not d.odd(0.1) else 1
    outputs = 1
    if d.odd(0.1):
        outputs = 3 if d.opset >= 14 else 5
    given = {name: value for name, value in options.items() if value is not None}
    name = d.node("BatchNormalization", [x.name, *(d.store(p) for p in (*parts, variance))], outputs, **given)
    return replace(x, name=name)


def _pooled(d: Draft, x: Value) -> tuple[dict[str, Any], Shape] | None:
    if len(x.shape) < 3:
        return None
    kernel = [1 + d.below(max(min(size, 3), 1)) for size in x.shape[2:]]
    options, grid = _window(d, x, kernel, False)
    if min(grid) < 1:
        return None
    options["kernel_shape"] = kernel
    if d.opset >= 10:
        options["ceil_mode"] = 1 if d.odd(0.5) else d.pick([None, 0])
    return options, (*x.shape[:2], *grid)


def max_pool(d: Draft, x: Value) -> Value | None:
    drawn = _pooled(d, x)
    if drawn is None:
        return None
    options, shape = drawn
    if d.opset >= 10 and d.odd(0.5):
        options["dilations"] = [1 + d.below(2) for _ in shape[2:]]
    if d.opset >= 8:
        options["storage_order"] = 1 if d.odd(0.2) else d.pick([None, 0])
    given = {name: value for name, value in options.items() if value is not None}
    name = d.node("MaxPool", [x.name], 2 if d.opset >= 8 and d.odd(0.3) else 1, **given)
    return Value(name, shape, x.dtype)


def average_pool(d: Draft, x: Value) -> Value | None:
    drawn = _pooled(d, x)
    if drawn is None:
        return None
    options, shape = drawn
    if d.opset >= 7:
        options["count_include_pad"] = d.pick([None, 0, 1])
    if d.opset >= 19 and d.odd(0.3):
        options["dilations"] = [1 + d.below(2) for _ in shape[2:]]
    return _to(d, x, "AveragePool", (), shape, **options)


def global_pool(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 3 and not d.odd(0.1):
        return None
    return _to(d, x, "GlobalAveragePool", (), (*x.shape[:2], *[1] * (len(x.shape) - 2)))


def reduce_mean(d: Draft, x: Value) -> Value | None:
    rank, keep = len(x.shape), d.pick([None, 0, 1])
    axes: list[int] | None = [k for k in range(rank) if k > 0 and d.chance(0.6)]
    if rank == 4 and d.chance(0.5):
        axes = [2, 3]
    if d.odd(0.15):
        axes = d.pick([None, [], [0], [*range(rank)]])
    if not axes and axes is not None and not d.odd():
        return None
    all_of_them = not axes
    shape = tuple(
        1 if all_of_them or k in (axes or ()) else n
        for k, n in enumerate(x.shape)
        if keep != 0 or not (all_of_them or k in (axes or ()))
    )
    given = None if axes is None else [_axis(d, k, rank) for k in axes]
    if d.odd(0.2) and given:
        given = given[::-1]
    if (d.opset < 18) ^ d.odd(0.02):
        none = helper.make_attribute("axes", [], attr_type=AttributeProto.INTS)
        made = _to(d, x, "ReduceMean", (), shape, axes=given or None, keepdims=keep)
        d.nodes[-1].attribute.extend([none] if given == [] else [])
        return made
    noop = d.pick([0, 1]) if not given or d.odd(0.3) else None
    shape = x.shape if noop and not given else shape
    inputs = [] if given is None else [d.integers(given)]
    return _to(d, x, "ReduceMean", inputs, shape, keepdims=keep, noop_with_empty_axes=noop)


# Shapes --------------------------------------------------------------------------------------------------------------


def flatten(d: Draft, x: Value) -> Value:
    rank = len(x.shape)
    axis = d.below(rank + 1) if d.odd(0.2) else d.pick([None, 1])
    place = 1 if axis is None else axis
    shape = math.prod(x.shape[:place]), math.prod(x.shape[place:])
    return _to(d, x, "Flatten", (), shape, axis=None if axis is None else _axis(d, axis, rank) if axis < rank else axis)


def _parted(d: Draft, number: int) -> list[int]:
    """Write a number as a product."""
    parts: list[int] = []
    while number > 1 and d.chance(0.6):
        part = d.pick([k for k in range(1, number + 1) if number % k == 0])
        parts.append(part)
        number //= part
    return [*parts, number]


def reshape(d: Draft, x: Value) -> Value:
    batch, item = x.shape[0] if x.shape else 1, math.prod(x.shape[1:])
    target = d.pick([[item], _parted(d, item), [*x.shape[1:]], [1, item], [item, 1]])
    shape = (batch, *target)
    sizes = [d.pick([0, -1, batch, 0, -1]), *target]
    if sizes[0] != -1 and target and d.chance(0.4):
        sizes[1 + d.below(len(target))] = -1
    for k, size in enumerate(target, 1):
        if k < len(x.shape) and x.shape[k] == size and sizes[k] != -1 and d.chance(0.2):
            sizes[k] = 0
    if d.odd(0.1):
        sizes[0] = d.pick([1, batch, 2, -1])
    if d.odd(0.1):
        parted = _parted(d, math.prod(x.shape))  # wherever the batch goes
        shape, sizes = tuple(parted), parted
    zero = 1 if d.opset >= 14 and d.odd(0.2) else None
    if d.opset < 5:
        return _to(d, x, "Reshape", (), shape, shape=sizes)
    return _to(d, x, "Reshape", [d.integers(sizes)], shape, allowzero=zero)


def transpose(d: Draft, x: Value) -> Value:
    rank = len(x.shape)
    perm: list[int] | None = [0, *(1 + int(k) for k in d.rng.permutation(max(rank - 1, 0)))][:rank]
    if d.odd(0.1):
        perm = None if d.chance(0.5) else [int(k) for k in d.rng.permutation(rank)]
    order = [*range(rank)][::-1] if perm is None else perm
    return _to(d, x, "Transpose", (), tuple(x.shape[k] for k in order), perm=perm)


def concat(d: Draft, x: Value) -> Value:
    rank = len(x.shape)
    axis = _spread(d, rank)
    sides = [n for k, n in enumerate(x.shape) if k != axis]
    alike = [v for v in d.values if v.dtype == x.dtype and len(v.shape) == rank]
    others = [v for v in alike if [n for k, n in enumerate(v.shape) if k != axis] == sides] or [x]
    parts = [x, *(d.pick(others) for _ in range(d.below(3)))]
    if d.odd(0.3):
        size = 1 + d.below(2)
        shape = tuple(size if k == axis else d.pick([n, n, 1]) if k == 0 else n for k, n in enumerate(x.shape))
        parts.append(Value(d.store(d.numbers(shape, x.dtype)), shape, x.dtype))
    parts = [parts[int(k)] for k in d.rng.permutation(len(parts))]
    shape = tuple(sum(p.shape[k] for p in parts) if k == axis else n for k, n in enumerate(x.shape))
    given = _axis(d, axis, rank) if d.opset >= 4 or axis != 1 or d.chance(0.5) else None
    options = {} if given is None else {"axis": given}
    return Value(d.node("Concat", [p.name for p in parts], **options), shape, x.dtype)


# Arithmetic ----------------------------------------------------------------------------------------------------------


def _partner(d: Draft, x: Value) -> Shape:
    """Choose the shape of a constant; some move the batch, some only look as if they did."""
    item = x.shape[1:]
    if not d.odd():
        return d.pick([(), (1,), x.shape[-1:], item, (1, *item), tuple(1 if d.chance(0.5) else n for n in item)])
    odd: list[Shape] = [
        x.shape,
        (x.shape[0],),
        (x.shape[0], *[1] * len(item)),
        (1, *x.shape),
        (3, *x.shape),
        (2, *item),
    ]
    odd += [(1, 1, *item), (4,), (*item, 1), (d.below(5),), tuple(d.pick([1, n, 2]) for n in x.shape)]
    return d.pick(odd)


def arithmetic(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value | None:
        alike = [v for v in d.values if v.dtype == x.dtype and _broadcast(v.shape, x.shape) is not None]
        if alike and d.chance(d.style.branches):
            other = d.pick(alike)
        else:
            shape = _partner(d, x)
            numbers = d.numbers(shape, x.dtype)
            if op == "Div" and not d.odd(0.1):
                numbers = np.where(numbers == 0, 1, numbers).astype(x.dtype)
            if op in ("Add", "Sub") and d.chance(0.1):
                numbers = np.zeros_like(numbers)
            other = Value(d.store(numbers), shape, x.dtype)
        pair = [other, x] if d.chance(0.25) else [x, other]
        shape_of = _broadcast(x.shape, other.shape)
        if shape_of is None:
            if not d.odd(0.1):
                return None
            shape_of = x.shape
        options: dict[str, Any] = {}
        if d.opset < 7 and len(other.shape) < len(x.shape):
            options = {"broadcast": 1}
            if d.chance(0.5) and len(other.shape) == 1:
                options["axis"] = d.below(len(x.shape))
        return Value(d.node(op, [v.name for v in pair], **options), shape_of, x.dtype)

    return make


def _broadcast(a: Shape, b: Shape) -> Shape | None:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


# What is mostly meant for constants ----------------------------------------------------------------------------------


def gather(d: Draft, x: Value) -> Value | None:
    axis = _spread(d, len(x.shape))
    size = x.shape[axis] if x.shape else 0
    if size == 0:
        return None
    many: Shape = d.pick([(), (1,), (2,), (2, 1)])
    index = d.rng.integers(-size if d.opset >= 11 else 0, size, many)
    shape = (*x.shape[:axis], *many, *x.shape[axis + 1 :])
    return _to(
        d, x, "Gather", [d.store(index)], shape, axis=_axis(d, axis, len(x.shape)) if axis or d.chance(0.5) else None
    )


def cut(d: Draft, x: Value) -> Value | None:
    """Slice."""
    axis = _spread(d, len(x.shape))
    size = x.shape[axis] if x.shape else 0
    if size == 0:
        return None
    start = d.below(size)
    end = start + 1 + d.below(size - start)
    shape = (*x.shape[:axis], end - start, *x.shape[axis + 1 :])
    if d.opset < 10:
        return _to(d, x, "Slice", (), shape, starts=[start], ends=[end], axes=[axis])
    back = d.odd(0.3)
    ends = [end - 1, start - 1 if start else -size - 1, axis, -1] if back else [start, end, axis]
    return _to(d, x, "Slice", [d.store(np.array([n])) for n in ends], shape)


def squeeze(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value | None:
        rank = len(x.shape)
        if op == "Unsqueeze":
            axis = 1 + d.below(rank) if not d.odd(0.1) else 0
            shape = (*x.shape[:axis], 1, *x.shape[axis:])
            given = axis - rank - 1 if d.opset >= 11 and d.chance(0.3) else axis
            return Value(d.unsqueeze(x.name, [given]), shape, x.dtype)
        ones = [k for k, n in enumerate(x.shape) if n == 1 and (k or d.odd(0.1))]
        if not ones:
            return None
        if d.odd(0.2):
            return Value(d.node("Squeeze", [x.name]), tuple(n for n in x.shape if n != 1), x.dtype)
        axis = d.pick(ones)
        return Value(d.unsqueeze(x.name, [_axis(d, axis, rank)], op), (*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype)

    return make


def cast(d: Draft, x: Value) -> Value:
    to = d.pick([*FLOATS[:3], np.int64])
    options = {"to": kind_of(to)} if d.opset >= 6 else {"to": np.dtype(to).name.upper().replace("FLOAT32", "FLOAT")}
    return Value(d.node("Cast", [x.name], **options), x.shape, to)


def batch_size(d: Draft, x: Value) -> Value | None:
    """Numbers that depend on how many points there are."""
    shape = d.node("Shape", [x.name])
    first = d.node("Gather", [shape, d.store(np.array(0), 0)])
    kind = d.below(3)
    if kind == 0:
        number = d.node("Cast", [first], to=kind_of(x.dtype))
        return _to(d, x, d.pick(["Mul", "Add", "Sub", "Div"]), [number])
    if kind == 1 and len(x.shape) == 2 and d.opset >= 10:  # as many rows of a table as there are points
        start, end = d.store(np.array([0]), 0), d.unsqueeze(first, [0])
        rows = d.node("Slice", [d.store(d.numbers((x.shape[0] + d.below(3), x.shape[1]), x.dtype)), start, end])
        return _to(d, x, "Add", [rows])
    size = d.node(d.pick(["Mul", "Add", "Sub", "Div"]), [first, d.store(np.array(d.pick([1, 2])), 0)])
    rest = d.store(np.array([-1]), 0)
    sizes = d.node("Concat", [d.unsqueeze(size, [0]), rest], axis=0)
    return _to(d, x, "Reshape", [sizes], (x.shape[0], math.prod(x.shape[1:])))


def unknown(d: Draft, x: Value) -> Value:
    """What no reader knows."""
    op = d.pick(["Sin", "Exp", "Floor", "Sign", "Reciprocal", "Size", "LRN", "GlobalMaxPool"])
    return _to(d, x, op, size=3 if op == "LRN" else None)


OPERATORS: dict[str, Maker] = {
    **{op: plain(op) for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Identity", "Abs", "Neg", "Sqrt", "HardSwish")},
    **{op: softmax(op) for op in ("Softmax", "LogSoftmax")},
    **{op: arithmetic(op) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    **{op: squeeze(op) for op in ("Squeeze", "Unsqueeze")},
    "LeakyRelu": leaky,
    "PRelu": prelu,
    "HardSigmoid": hard_sigmoid,
    "Elu": elu,
    "Clip": clip,
    "Dropout": dropout,
    "Gemm": gemm,
    "MatMul": matmul,
    "Conv": conv,
    "BatchNormalization": batch_norm,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_pool,
    "ReduceMean": reduce_mean,
    "Flatten": flatten,
    "Reshape": reshape,
    "Transpose": transpose,
    "Concat": concat,
    "Gather": gather,
    "Slice": cut,
    "Cast": cast,
    "batch size": batch_size,
    "unknown": unknown,
}
