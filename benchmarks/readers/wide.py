"""Operators that `nnrepair.onnx.load` alone reads: one function each, as in operators.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from benchmarks.readers.draft import Draft, Value, kind_of
from benchmarks.readers.operators import Maker, _axis, _broadcast, _spread, _to, arithmetic

REAL = (np.float32, np.float64, np.float16)


def _real(make: Maker) -> Maker:
    """Draw only for floating point."""
    return lambda d, x: make(d, x) if x.dtype in REAL else None


def _exact(make: Maker) -> Maker:
    """Draw what jumps for the input alone: elsewhere rounding decides on which side of a jump a number lies."""
    return lambda d, x: make(d, d.input) if d.input.dtype in REAL else None


def _single(make: Maker) -> Maker:
    """Draw only for float32: onnxruntime has it for no other type, or computes in float32."""
    return lambda d, x: make(d, x) if x.dtype == np.float32 else None


def _new(since: int, make: Maker) -> Maker:
    """Draw only where the operator set has it."""
    return lambda d, x: make(d, x) if d.opset >= since else None


# Elementwise ---------------------------------------------------------------------------------------------------------


def function(op: str, **options: list[Any]) -> Maker:
    def make(d: Draft, x: Value) -> Value:
        return _to(d, x, op, **{name: d.pick(values) for name, values in options.items()})

    return _real(make)


def positive(op: str) -> Maker:
    """What is defined, or smooth, above zero only."""

    def make(d: Draft, x: Value) -> Value:
        y = _to(d, x, "Abs")
        return _to(d, y, "Sqrt" if op == "Sqrt" else op) if d.odd() else _to(d, _shifted(d, y, 0.5), op)

    return _real(make)


def _shifted(d: Draft, x: Value, by: float) -> Value:
    return _to(d, x, "Add", [d.store(np.array(by).astype(x.dtype))])


def within(op: str) -> Maker:
    """What is defined, or smooth, between -1 and 1 only."""

    def make(d: Draft, x: Value) -> Value:
        inside = _to(d, _to(d, x, "Tanh"), "Mul", [d.store(np.array(0.75).astype(x.dtype))])
        return _to(d, inside, op)

    return _real(make)


def power(d: Draft, x: Value) -> Value:
    if d.chance(0.6):
        return _to(d, x, "Pow", [d.store(np.array(d.pick([2, 3, 2, 1, 0])).astype(x.dtype))])
    return _to(
        d, _shifted(d, _to(d, x, "Abs"), 0.5), "Pow", [d.store(np.array(d.pick([0.5, -1, -0.5, 1.5])).astype(x.dtype))]
    )


def compared(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value | None:
        made = arithmetic(op)(d, x)
        if made is None:
            return None
        kind = d.below(3)
        if kind == 0:
            return Value(d.node("Cast", [made.name], to=kind_of(x.dtype)), made.shape, x.dtype)
        condition = d.node("Not", [made.name]) if d.chance(0.3) else made.name
        if d.chance(0.2):
            other = arithmetic(op)(d, Value(x.name, x.shape, x.dtype))
            if other is not None and other.shape == made.shape:
                condition = d.node(d.pick(["And", "Or", "Xor"]), [condition, other.name])
        parts = [x.name, d.store(d.numbers(d.pick([(), (1,), x.shape[-1:]]), x.dtype))]
        shape = _broadcast(made.shape, x.shape)
        if shape is None:
            return None
        return Value(d.node("Where", [condition, *(parts if kind == 1 else parts[::-1])]), shape, x.dtype)

    return _real(make)


def several(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value:
        alike = [v for v in d.values if v.shape == x.shape and v.dtype == x.dtype]
        parts = [x.name, *(d.pick(alike).name for _ in range(d.below(3)))]
        return Value(d.node(op, parts), x.shape, x.dtype)

    return _real(make)


def modulo(d: Draft, x: Value) -> Value:
    return _to(d, x, "Mod", [d.store(np.array(d.pick([1.5, 2, -0.75])).astype(x.dtype))], fmod=1)


def cast_and_back(d: Draft, x: Value) -> Value:
    other = d.pick([np.float32, np.float64])
    if d.chance(0.2):
        whole = d.node("Cast", [x.name], to=TensorProto.INT32)
        return Value(d.node("Cast", [whole], to=kind_of(x.dtype)), x.shape, x.dtype)
    return Value(d.node("Cast", [d.node("Cast", [x.name], to=kind_of(other))], to=kind_of(x.dtype)), x.shape, x.dtype)


# Reductions ----------------------------------------------------------------------------------------------------------


def reduced(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value | None:
        rank, keep = len(x.shape), d.pick([None, 0, 1])
        axes = [k for k in range(1, rank) if d.chance(0.6)] or ([rank - 1] if rank > 1 else [])
        if d.odd(0.1):
            axes = d.pick([[], [0], [*range(rank)]])
        source = x if op != "ReduceLogSum" else _shifted(d, _to(d, x, "Abs"), 0.5)
        shape = tuple(1 if k in axes else n for k, n in enumerate(x.shape) if keep != 0 or k not in axes)
        given = [_axis(d, k, rank) for k in axes]
        if d.opset >= (13 if op == "ReduceSum" else 18):
            inputs = [d.integers(given)] if given or d.chance(0.5) else []
            return _to(d, source, op, inputs, shape if axes else (), keepdims=keep)
        return _to(d, source, op, (), shape if axes else (), axes=given or None, keepdims=keep)

    return _real(make)


def arg(d: Draft, x: Value) -> Value | None:
    axis, keep = _spread(d, len(x.shape)), d.pick([None, 0, 1])
    last = d.pick([None, 0, 1]) if d.opset >= 12 else None
    options = {"axis": _axis(d, axis, len(x.shape)), "keepdims": keep, "select_last_index": last}
    made = d.node(d.pick(["ArgMax", "ArgMin"]), [x.name], **{k: v for k, v in options.items() if v is not None})
    shape = tuple(1 if k == axis else n for k, n in enumerate(x.shape) if keep != 0 or k != axis)
    if d.chance(0.3):
        return Value(made, shape, np.dtype(np.int64).type)
    return Value(d.node("Cast", [made], to=kind_of(x.dtype)), shape, x.dtype)


def top(d: Draft, x: Value) -> Value | None:
    axis = _spread(d, len(x.shape))
    size = x.shape[axis] if x.shape else 0
    if size == 0 or x.dtype == np.float16:
        return None
    k = 1 + d.below(size)
    options: dict[str, Any] = {"axis": _axis(d, axis, len(x.shape))}
    if d.opset >= 11:
        options["largest"] = d.below(2)
    inputs = [x.name, d.store(np.array([k], np.int64))] if d.opset >= 10 else [x.name]
    if d.opset < 10:
        options["k"] = k
    names = [d.name("v"), d.name("i")]
    d.nodes.append(helper.make_node("TopK", inputs, names, **options))
    shape = tuple(k if n == axis else s for n, s in enumerate(x.shape))
    if d.chance(0.3):
        return Value(d.node("Cast", [names[1]], to=kind_of(x.dtype)), shape, x.dtype)
    return Value(names[0], shape, x.dtype)


def cumulated(d: Draft, x: Value) -> Value | None:
    if x.dtype == np.float16 or len(x.shape) < 2:
        return None
    axis = d.store(np.array(_axis(d, _spread(d, len(x.shape)), len(x.shape))))
    return _to(d, x, "CumSum", [axis], exclusive=d.pick([None, 0, 1]), reverse=d.pick([None, 0, 1]))


# Normalisation -------------------------------------------------------------------------------------------------------


def layer_norm(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value | None:
        rank = len(x.shape)
        if rank < 2:
            return None
        axis = 1 + d.below(rank - 1)
        shape = x.shape[axis:] if not d.odd(0.3) else x.shape[-1:]
        parts = [d.store(d.numbers(shape, x.dtype))]
        if op == "LayerNormalization" and d.chance(0.7):
            parts.append(d.store(d.numbers(shape, x.dtype)))
        return _to(d, x, op, parts, axis=axis - rank if d.chance(0.5) else axis, epsilon=d.pick([None, 1e-3]))

    return _real(make)


def instance_norm(d: Draft, x: Value) -> Value | None:
    if len(x.shape) not in (3, 4, 5) or math.prod(x.shape[2:]) < 2:
        return None
    parts = [d.store(d.numbers(x.shape[1:2], x.dtype)) for _ in range(2)]
    return _to(d, x, "InstanceNormalization", parts, epsilon=d.pick([None, 1e-3]))


def group_norm(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 3 or math.prod(x.shape[1:]) < 2 or x.shape[1] == 0:
        return None
    groups = d.pick([k for k in range(1, x.shape[1] + 1) if x.shape[1] % k == 0])
    size = groups if d.opset < 21 else x.shape[1]
    parts = [d.store(d.numbers((size,), x.dtype)) for _ in range(2)]
    return _to(d, x, "GroupNormalization", parts, num_groups=groups, epsilon=d.pick([None, 1e-3]))


def lp(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 2:
        return None
    return _to(d, x, "LpNormalization", axis=_axis(d, _spread(d, len(x.shape)), len(x.shape)), p=d.pick([None, 1, 2]))


def lrn(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4:
        return None
    return _to(
        d,
        x,
        "LRN",
        size=d.pick([1, 3, 5]),
        alpha=d.pick([None, 0.1]),
        beta=d.pick([None, 0.5]),
        bias=d.pick([None, 2.0]),
    )


# Shapes --------------------------------------------------------------------------------------------------------------


def split(d: Draft, x: Value) -> Value | None:
    rank = len(x.shape)
    if rank < 2:
        return None
    axis = _spread(d, rank)
    size = x.shape[axis]
    if size < 2:
        return None
    first = 1 + d.below(size - 1)
    sizes, names = [first, size - first], [d.name("v"), d.name("v")]
    options: dict[str, Any] = {"axis": _axis(d, axis, rank)}
    inputs = [x.name]
    if size % 2 == 0 and d.chance(0.3):
        sizes = [size // 2] * 2
        if d.opset >= 18:
            options["num_outputs"] = 2
    elif d.opset < 13:
        options["split"] = sizes
    else:
        inputs.append(d.store(np.array(sizes, np.int64)))
    d.nodes.append(helper.make_node("Split", inputs, names, **options))
    which = d.below(2)
    d.values.append(Value(names[1 - which], (*x.shape[:axis], sizes[1 - which], *x.shape[axis + 1 :]), x.dtype))
    return Value(names[which], (*x.shape[:axis], sizes[which], *x.shape[axis + 1 :]), x.dtype)


def sliced(d: Draft, x: Value) -> Value | None:
    """Slice along several axes, in steps, with ends far outside."""
    rank = len(x.shape)
    axes = [k for k in range(1, rank) if d.chance(0.6)]
    if not axes or 0 in x.shape:
        return None
    starts, ends, steps, shape = [], [], [], [*x.shape]
    for axis in axes:
        size = x.shape[axis]
        step = d.pick([1, 1, 2, -1]) if d.opset >= 10 else 1
        start = d.below(size)
        if step > 0:
            end = d.pick([size, 2**31 - 1, 2**63 - 1, start + 1 + d.below(size - start)])
        else:
            end = d.pick([-size - 1, -(2**31), start - 1 - size])
        count = len(range(size)[slice(start, None if step < 0 and end < -size else end, step)])
        shape[axis] = count
        if count == 0:
            return None
        starts.append(start - size if d.chance(0.2) else start)
        ends.append(end)
        steps.append(step)
    given = [_axis(d, k, rank) for k in axes]
    if d.opset < 10:
        return _to(d, x, "Slice", (), tuple(shape), starts=starts, ends=ends, axes=axes)
    inputs = [d.store(np.array(n, np.int64), 0) for n in (starts, ends, given, steps)]
    return _to(d, x, "Slice", inputs, tuple(shape))


def expand(d: Draft, x: Value) -> Value | None:
    if d.opset < 8:
        return None
    shape = [n if n != 1 or k == 0 else d.pick([1, 3]) for k, n in enumerate(x.shape)]
    sizes = [1 if d.chance(0.5) or k == 0 else n for k, n in enumerate(shape)]
    sizes = [n if n == old or old == 1 else 1 for n, old in zip(sizes, x.shape, strict=True)]
    made = tuple(max(a, b) for a, b in zip(sizes, x.shape, strict=True)) if 0 not in x.shape else x.shape
    if d.chance(0.3):
        sizes = sizes[1:]
    return _to(d, x, "Expand", [d.integers(sizes)], made) if sizes else None


def tile(d: Draft, x: Value) -> Value:
    repeats = [1 if k == 0 else d.pick([1, 1, 2, 3]) for k in range(len(x.shape))]
    return _to(
        d,
        x,
        "Tile",
        [d.store(np.array(repeats, np.int64))],
        tuple(a * b for a, b in zip(repeats, x.shape, strict=True)),
    )


def pad(d: Draft, x: Value) -> Value | None:
    rank, mode = len(x.shape), d.pick(["constant", "reflect", "edge", None])
    if rank < 2 or 0 in x.shape:
        return None
    most = [min(2, n - 1) if mode == "reflect" else 2 for n in x.shape]
    before, after = ([0 if k == 0 or most[k] < 1 else d.below(most[k] + 1) for k in range(rank)] for _ in range(2))
    if mode in ("constant", None) and d.odd(0.2) and x.shape[-1] > 1:
        before[-1] = -1
    shape = tuple(a + n + b for a, n, b in zip(before, x.shape, after, strict=True))
    value = d.pick([None, 0.5, -2.0]) if mode in ("constant", None) else None
    if d.opset < 11:
        return _to(d, x, "Pad", (), shape, mode=mode, pads=[*before, *after], value=value)
    inputs = [d.store(np.array([*before, *after], np.int64), 0)]
    if value is not None:
        inputs.append(d.store(np.array(value).astype(x.dtype)))
    return _to(d, x, "Pad", inputs, shape, mode=mode)


def depth(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4:
        return None
    n, c, h, w = x.shape
    if c % 4 == 0 and c:
        return _to(
            d,
            x,
            "DepthToSpace",
            (),
            (n, c // 4, 2 * h, 2 * w),
            blocksize=2,
            mode=d.pick([None, "DCR", "CRD"]) if d.opset >= 11 else None,
        )
    if h % 2 == w % 2 == 0 and h and w and d.opset >= 13:
        return _to(d, x, "SpaceToDepth", (), (n, 4 * c, h // 2, w // 2), blocksize=2)
    return None


def flat(d: Draft, x: Value) -> Value | None:
    """Flatten behind another axis than the first, and put together again."""
    if len(x.shape) < 3 or x.shape[0] != d.batch:
        return None
    axis = 2 if d.chance(0.7) else -1
    made = d.node("Flatten", [x.name], axis=axis if axis > 0 or d.opset >= 11 else 2)
    return Value(d.node("Reshape", [made, d.integers([-1, *x.shape[1:]])]), x.shape, x.dtype)


def turned(d: Draft, x: Value) -> Value | None:
    """Move the batch away, do something there, and move it back."""
    rank = len(x.shape)
    if rank < 2:
        return None
    perm = [1, 0, *range(2, rank)]
    moved = d.node("Transpose", [x.name], perm=perm)
    inner = d.node(d.pick(["Relu", "Tanh", "Identity"]), [moved])
    return Value(d.node("Transpose", [inner], perm=perm), x.shape, x.dtype)


def gathered(d: Draft, x: Value) -> Value | None:
    """GatherElements and GatherND along the last axis, and Gather by a computed index."""
    rank = len(x.shape)
    if rank < 2 or 0 in x.shape:
        return None
    kind = d.below(3)
    if kind == 0 and d.opset >= 11:
        index = d.rng.integers(-x.shape[-1], x.shape[-1], x.shape)
        return _to(d, x, "GatherElements", [d.store(index)], axis=rank - 1) if d.batch == x.shape[0] == 1 else None
    if kind == 1:
        many = 1 + d.below(3)
        index = d.rng.integers(0, x.shape[-1], (many,))
        return _to(d, x, "Gather", [d.store(index)], (*x.shape[:-1], many), axis=rank - 1)
    place = d.node("ArgMax", [x.name], axis=rank - 1, keepdims=0)
    table = d.store(d.numbers((x.shape[-1], 3), x.dtype))
    return Value(d.node("Gather", [table, place]), (*x.shape[:-1], 3), x.dtype)


def shape_sized(d: Draft, x: Value) -> Value | None:
    """Constants as large as a value: ConstantOfShape, Range, and Expand by a shape."""
    if len(x.shape) < 2 or d.opset < 11:
        return None
    shape, kind = d.node("Shape", [x.name]), d.below(3)
    if kind == 0:
        value = helper.make_tensor("", kind_of(x.dtype), [1], [0.5])
        return _to(d, x, d.pick(["Add", "Mul"]), [d.node("ConstantOfShape", [shape], value=value)])
    if kind == 1:
        bias = d.store(d.numbers(x.shape[-1:], x.dtype))
        return _to(d, x, "Sub", [d.node("Expand", [bias, shape])])
    size = d.node("Gather", [shape, d.store(np.array(len(x.shape) - 1), 0)])
    steps = d.node("Range", [d.store(np.array(0), 0), size, d.store(np.array(1), 0)])
    return _to(d, x, "Add", [d.node("Cast", [steps], to=kind_of(x.dtype))])


def triangle(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 3:
        return None
    return _to(
        d, x, "Trilu", [d.store(np.array(d.pick([-1, 0, 1])))] if d.chance(0.5) else [], upper=d.pick([None, 0, 1])
    )


# Layers --------------------------------------------------------------------------------------------------------------


def conv_transpose(d: Draft, x: Value) -> Value | None:
    axes = len(x.shape) - 2
    if axes not in (1, 2) or 0 in x.shape:
        return None
    kernel, stride = [1 + d.below(3) for _ in range(axes)], [1 + d.below(2) for _ in range(axes)]
    dilation = [1 + d.below(2) if d.odd() else 1 for _ in range(axes)]
    groups = d.pick([1, 1, x.shape[1]])
    outputs = 1 + d.below(2)
    weight = d.store(d.numbers((x.shape[1], outputs, *kernel), x.dtype))
    parts = [weight] + ([d.store(d.numbers((outputs * groups,), x.dtype))] if d.chance(0.5) else [])
    options: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": groups}
    extra = [0] * axes
    if d.odd():
        extra = [d.below(max(s, 1)) for s in stride]
        options["output_padding"] = extra
    spans = [(k - 1) * g + 1 for k, g in zip(kernel, dilation, strict=True)]
    pads = [0] * 2 * axes
    if d.chance(0.4):
        pads = [d.below(span) for span in spans] * 2
        if d.odd():
            pads = [d.below(span) for span in spans + spans]
        options["pads"] = pads
    elif d.odd(0.3):
        options["auto_pad"] = d.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
    shape = [
        s * (n - 1) + span + e - pads[k] - pads[axes + k]
        for k, (n, s, span, e) in enumerate(zip(x.shape[2:], stride, spans, extra, strict=True))
    ]
    if min(shape) < 1:
        return None
    if d.odd(0.1) and "auto_pad" not in options and not any(pads):
        options["output_shape"] = shape
    return _to(d, x, "ConvTranspose", parts, (x.shape[0], outputs * groups, *shape), **options)


def left(d: Draft, x: Value) -> Value | None:
    """A constant times the input."""
    if len(x.shape) < 3:
        return None
    weight = d.store(d.numbers((d.pick([1, 2, 4]), x.shape[-2]), x.dtype))
    return Value(d.node("MatMul", [weight, x.name]), (*x.shape[:-2], 1, x.shape[-1]), x.dtype)


def attention(d: Draft, x: Value) -> Value | None:
    """A product of values, as attention has it."""
    if len(x.shape) != 3 or 0 in x.shape:
        return None
    keys = d.node("Transpose", [x.name], perm=[0, 2, 1])
    scores = d.node("MatMul", [x.name, keys])
    weights = d.node("Softmax", [scores], axis=2)
    if d.chance(0.3) and d.opset >= 12:
        return Value(d.node("Einsum", [weights, x.name], equation="bij,bjk->bik"), x.shape, x.dtype)
    return Value(d.node("MatMul", [weights, x.name]), x.shape, x.dtype)


def recurrent(op: str) -> Maker:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]

    def make(d: Draft, x: Value) -> Value | None:
        if len(x.shape) != 3 or 0 in x.shape or x.dtype != np.float32:
            return None
        direction = d.pick(["forward", "reverse", "bidirectional"])
        hidden, many = 1 + d.below(3), 2 if direction == "bidirectional" else 1
        steps = d.node("Transpose", [x.name], perm=[1, 0, 2])

        def numbers(*shape: int) -> str:
            return d.store(d.rng.normal(size=shape).astype(x.dtype))

        inputs = [steps, numbers(many, gates * hidden, x.shape[2]), numbers(many, gates * hidden, hidden)]
        if d.chance(0.7):
            inputs.append(numbers(many, 2 * gates * hidden))
        options: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
        if op == "GRU" and d.chance(0.6):
            options["linear_before_reset"] = 1
        if op == "RNN" and d.chance(0.3):
            options["activations"] = ["Relu"] * many
        if d.chance(0.3) and d.batch == x.shape[0] == 1:
            inputs += [""] * (5 - len(inputs)) + [numbers(many, 1, hidden)]
            if op == "LSTM":
                inputs.append(numbers(many, 1, hidden))
        names = [d.name("y"), d.name("h"), *([d.name("c")] if op == "LSTM" else [])]
        d.nodes.append(helper.make_node(op, inputs, names, **options))
        if d.chance(0.5):
            last = d.pick(names[1:])
            return Value(d.node("Transpose", [last], perm=[1, 0, 2]), (x.shape[0], many, hidden), x.dtype)
        first = d.node("Transpose", [names[0]], perm=[2, 0, 1, 3])
        return Value(
            d.node("Reshape", [first, d.store(np.array([0, 0, -1], np.int64), 0)]),
            (x.shape[0], x.shape[1], many * hidden),
            x.dtype,
        )

    return make


def embedding(d: Draft, x: Value) -> Value | None:
    """Rows of a table by whole numbers: signs of the input."""
    if len(x.shape) < 2 or d.opset < 9:
        return None
    signs = d.node("Cast", [d.node("Sign", [x.name])], to=TensorProto.INT64)
    rows = d.node("Add", [signs, d.store(np.array(1))])
    table = d.store(d.numbers((3, 2), x.dtype))
    return Value(d.node("Gather", [table, rows]), (*x.shape, 2), x.dtype)


def quantised(d: Draft, x: Value) -> Value | None:
    """Quantise and back: all of it, or the weights of a product."""
    if x.dtype != np.float32 or d.opset < 13:
        return None
    kind = d.pick([np.int8, np.uint8])
    if d.chance(0.5):
        scale, zero = d.store(np.float32(d.pick([0.25, 0.1]))), d.store(np.array(d.pick([0, 3]), kind), 0)
        return Value(
            d.node("DequantizeLinear", [d.node("QuantizeLinear", [x.name, scale, zero]), scale, zero]), x.shape, x.dtype
        )
    weight = d.store(d.rng.integers(0, 9, (x.shape[-1], 3)).astype(kind), 0)
    along = d.chance(0.5)
    scale = d.store(np.float32([0.5, 0.25, 1]) if along else np.float32(0.25))
    zero = d.store(np.array([1, 2, 3] if along else 1, kind), 0)
    made = d.node("DequantizeLinear", [weight, scale, zero], axis=1)
    return Value(d.node("MatMul", [x.name, made]), (*x.shape[:-1], 3), x.dtype)


# Interpolation -------------------------------------------------------------------------------------------------------


def resize(d: Draft, x: Value) -> Value | None:
    axes = len(x.shape) - 2
    if axes not in (1, 2) or 0 in x.shape or x.dtype != np.float32:
        return None
    factors = [d.pick([1.0, 2.0, 3.0, 0.5, 1.5, 2.5]) for _ in range(axes)]
    shape = tuple(math.floor(n * f) for n, f in zip(x.shape[2:], factors, strict=True))
    if min(shape) < 1:
        return None
    full = np.array([1.0, 1.0, *factors], np.float32)
    if d.opset < 10:
        mode = d.pick(["nearest", "linear"] if axes == 2 else ["nearest"])
        if d.opset == 9:
            return (
                _to(d, x, "Upsample", [d.store(full, 0)], (*x.shape[:2], *shape), mode=mode)
                if min(factors) >= 1
                else None
            )
        return (
            _to(d, x, "Upsample", (), (*x.shape[:2], *shape), mode=mode, scales=full.tolist())
            if min(factors) >= 1
            else None
        )
    mode = d.pick(["nearest", "linear", *(["cubic"] if axes == 2 and d.opset >= 11 else [])])
    if mode == "linear" and axes == 1:
        mode = "nearest"
    if d.opset == 10:
        return _to(d, x, "Resize", [d.store(full, 0)], (*x.shape[:2], *shape), mode=mode)
    where = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"] + ["half_pixel_symmetric"] * (
        d.opset >= 19
    )
    options = {"coordinate_transformation_mode": d.pick([None, *where]), "mode": mode}
    if mode == "nearest":
        options["nearest_mode"] = d.pick([None, "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
    if mode == "cubic":
        options |= {"cubic_coeff_a": d.pick([None, -0.5]), "exclude_outside": d.pick([None, 1])}
    if d.chance(0.5):
        inputs = ["" if d.opset >= 13 else d.store(np.zeros(0, np.float32), 0), d.store(full, 0)]
    else:
        empty = "" if d.opset >= 13 else d.store(np.zeros(0, np.float32), 0)
        batch = x.shape[0]
        inputs = [empty, empty, d.integers([batch, x.shape[1], *shape])]
    return _to(d, x, "Resize", inputs, (*x.shape[:2], *shape), **options)


def average(d: Draft, x: Value) -> Value | None:
    """AveragePool and MaxPool with uneven padding, dilation and ceil_mode."""
    axes = len(x.shape) - 2
    if axes not in (1, 2) or 0 in x.shape:
        return None
    op = d.pick(["AveragePool", "AveragePool", "MaxPool"])
    kernel, stride = [1 + d.below(3) for _ in range(axes)], [1 + d.below(3) for _ in range(axes)]
    dilation = (
        [1 + d.below(2) for _ in range(axes)] if d.chance(0.3) and (op == "MaxPool" or d.opset >= 19) else [1] * axes
    )
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": stride}
    if dilation != [1] * axes:
        options["dilations"] = dilation
    pads = [0] * 2 * axes
    if d.chance(0.5):
        pads = [d.below(k) for k in kernel + kernel]
        options["pads"] = pads
    elif d.chance(0.4) and dilation == [1] * axes:
        options["auto_pad"] = d.pick(["SAME_UPPER", "SAME_LOWER"])
    if op == "AveragePool":
        options["count_include_pad"] = d.pick([None, 1])
    if d.opset >= (19 if op == "AveragePool" else 10) and "auto_pad" not in options:
        options["ceil_mode"] = d.pick([None, 1]) if op == "MaxPool" or d.chance(0.4) else None
    if d.chance(0.2):
        options = {k: v for k, v in options.items() if k != "pads"} | {"pads": pads} if "pads" in options else options
    if any(n + pads[k] + pads[axes + k] < (kernel[k] - 1) * dilation[k] + 1 for k, n in enumerate(x.shape[2:])):
        return None
    if "auto_pad" in options:
        shape = tuple(-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True))
    else:
        shape = tuple(
            (n + pads[k] + pads[axes + k] - (kernel[k] - 1) * dilation[k] - 1) // stride[k] + 1
            for k, n in enumerate(x.shape[2:])
        )
    return _to(d, x, op, (), (*x.shape[:2], *shape), **options)


def global_max(d: Draft, x: Value) -> Value | None:
    if len(x.shape) not in (3, 4):
        return None
    return _to(d, x, "GlobalMaxPool", (), (*x.shape[:2], *[1] * (len(x.shape) - 2)))


def branch(d: Draft, x: Value) -> Value | None:
    """An If whose condition is constant."""
    if d.opset < 11:
        return None
    graphs = []
    for op in ("Relu", "Neg"):
        name = d.name("inner")
        node = helper.make_node(op, [x.name], [name])
        out = helper.make_tensor_value_info(name, kind_of(x.dtype), [None] * len(x.shape))
        graphs.append(helper.make_graph([node], op, [], [out]))
    condition = d.store(np.array(d.chance(0.5)), 0)
    return Value(d.node("If", [condition], then_branch=graphs[0], else_branch=graphs[1]), x.shape, x.dtype)


def one_hot(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 2 or d.opset < 11:
        return None
    place = d.node("ArgMax", [x.name], axis=1, keepdims=0)
    depth = x.shape[1]
    values = d.store(np.array([0, 1]).astype(x.dtype), 0)
    return Value(d.node("OneHot", [place, d.store(np.array(depth), 0), values], axis=-1), x.shape, x.dtype)


def told(op: str) -> Maker:
    """IsNaN and IsInf, of numbers some of which are none."""

    def make(d: Draft, x: Value) -> Value:
        zero = d.store(np.zeros((), x.dtype), 0)
        odd = d.node("Div", [d.node("Sub", [x.name, x.name]), zero]) if op == "IsNaN" else d.node("Div", [x.name, zero])
        return Value(d.node("Cast", [d.node(op, [d.pick([odd, x.name])])], to=kind_of(x.dtype)), x.shape, x.dtype)

    return make


def bits(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value:
        whole = d.node("Cast", [x.name], to=TensorProto.INT32)
        parts = [whole] if op == "BitwiseNot" else [whole, d.store(np.array(d.pick([3, 5, 6]), np.int32), 0)]
        return Value(d.node("Cast", [d.node(op, parts)], to=kind_of(x.dtype)), x.shape, x.dtype)

    return make


def like(d: Draft, x: Value) -> Value:
    return _to(d, x, "CastLike", [d.store(np.zeros(1, x.dtype), 0)])


def nd(d: Draft, x: Value) -> Value | None:
    """GatherND and ScatterND within a point, ScatterElements along the last axis."""
    if len(x.shape) != 3 or 0 in x.shape:
        return None
    kind = d.below(2)
    if kind == 0 and x.shape[0] == d.batch == 1:
        index = np.stack([d.rng.integers(0, n, (1, 2)) for n in x.shape[1:]], -1)
        return _to(d, x, "GatherND", [d.store(index)], (1, 2), batch_dims=1)
    turned = d.node("Transpose", [x.name], perm=[1, 2, 0])
    if kind == 0:
        made = d.node(
            "ScatterND",
            [
                turned,
                d.store(np.array([[d.below(x.shape[1])]])),
                d.node("Slice", [turned, *(d.store(np.array([k]), 0) for k in (0, 1, 0))]),
            ],
        )
    elif x.shape[0] == d.batch == 1:
        index = d.rng.integers(0, x.shape[1], (1, x.shape[2], 1))
        updates = d.store(d.numbers((1, x.shape[2], 1), x.dtype))
        made = d.node("ScatterElements", [turned, d.store(index), updates], axis=0)
    else:
        return None
    return Value(d.node("Transpose", [made], perm=[2, 0, 1]), x.shape, x.dtype)


def dynamic(d: Draft, x: Value) -> Value | None:
    """Products of integers, with a scale that the input gives; for one point at a time."""
    if len(x.shape) != 2 or d.batch != 1 or x.shape[0] != 1 or 0 in x.shape:
        return None
    names = [d.name("q"), d.name("s"), d.name("z")]
    d.nodes.append(helper.make_node("DynamicQuantizeLinear", [x.name], names))
    weight = d.store(d.rng.integers(-9, 9, (x.shape[1], 3)).astype(np.int8), 0)
    whole = d.node("MatMulInteger", [names[0], weight, names[2], d.store(np.array(1, np.int8), 0)])
    return Value(d.node("Mul", [d.node("Cast", [whole], to=TensorProto.FLOAT), names[1]]), (1, 3), x.dtype)


def standardized(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4 or math.prod(x.shape[2:]) < 2:
        return None
    return _to(d, _to(d, x, "Tanh"), "MeanVarianceNormalization", axes=[2, 3])


def lp_pool(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4 or min(x.shape[2:]) < 2:
        return None
    if d.chance(0.4):
        return _to(d, x, "GlobalLpPool", (), (*x.shape[:2], 1, 1), p=d.pick([None, 1, 2]))
    shape = (*x.shape[:2], x.shape[2] - 1, x.shape[3] - 1)
    return _to(d, x, "LpPool", (), shape, kernel_shape=[2, 2], p=d.pick([None, 1, 3]))


def sampled(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4 or 0 in x.shape or d.batch != 1 or x.shape[0] != 1:
        return None
    grid = d.store((d.rng.random((1, 2, 3, 2)) * 2.4 - 1.2).astype(x.dtype), 0)
    mode = d.pick(["bilinear", "nearest"] if d.opset < 20 else ["linear", "nearest"])
    return _to(
        d,
        x,
        "GridSample",
        [grid],
        (*x.shape[:2], 2, 3),
        mode=mode,
        padding_mode=d.pick([None, "border"]),
        align_corners=d.pick([None, 1]),
    )


def counted(d: Draft, x: Value) -> Value | None:
    """Divide by how many numbers one row has."""
    if len(x.shape) < 2 or 0 in x.shape or d.opset < 10:
        return None
    row = d.node("Slice", [x.name, *(d.store(np.array([k]), 0) for k in (0, 1, 0))])
    return _to(d, x, "Div", [d.node("Cast", [d.node("Size", [row])], to=kind_of(x.dtype))])


WIDE: dict[str, Maker] = {
    **{op: _new(20, told(op)) for op in ("IsNaN", "IsInf")},
    **{op: _new(18, _exact(_single(bits(op)))) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")},
    "CastLike": _new(15, _real(like)),
    "GatherND": _new(13, _real(nd)),
    "DynamicQuantizeLinear": _new(11, _exact(_single(dynamic))),
    "MeanVarianceNormalization": _new(9, _single(standardized)),
    "LpPool": _single(lp_pool),
    "GridSample": _new(16, _single(sampled)),
    "Size": _real(counted),
    "Acosh": _new(9, _real(lambda d, x: _to(d, _shifted(d, _to(d, x, "Abs"), 1.5), "Acosh"))),
    **{op: function(op) for op in ("Exp", "Erf", "Sin", "Cos", "Atan", "Softsign", "Sinh", "Cosh")},
    **{op: function(op) for op in ("Asinh",)},
    "Round": _new(11, _exact(function("Round"))),
    **{op: _exact(function(op)) for op in ("Floor", "Ceil", "Sign")},
    "Mish": _new(18, function("Mish")),
    "Gelu": _new(20, function("Gelu", approximate=[None, "tanh", "none"])),
    "Selu": function("Selu", alpha=[None, 0.5], gamma=[None, 2.0]),
    "Celu": _new(12, _single(function("Celu", alpha=[None, 0.5]))),
    "ThresholdedRelu": _new(10, _exact(function("ThresholdedRelu", alpha=[None, 0.25, 0.0]))),
    "Shrink": _new(9, _exact(_single(function("Shrink", lambd=[None, 0.25], bias=[None, 0.5])))),
    "Swish": _new(24, function("Swish", alpha=[None, 0.5])),
    **{op: positive(op) for op in ("Log", "Reciprocal", "Sqrt")},
    **{op: within(op) for op in ("Asin", "Acos", "Atanh", "Tan")},
    "Pow": _real(power),
    **{op: _exact(compared(op)) for op in ("Equal", "Greater", "Less")},
    **{op: _new(12, _exact(compared(op))) for op in ("GreaterOrEqual", "LessOrEqual")},
    **{op: several(op) for op in ("Sum", "Mean")},
    "Mod": _new(10, _exact(modulo)),
    "Cast": _exact(cast_and_back),
    **{
        f"Reduce{kind}": reduced(f"Reduce{kind}")
        for kind in ("Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
    },
    "ArgMax": _exact(arg),
    "TopK": _exact(top),
    "CumSum": _new(11, _real(cumulated)),
    "LayerNormalization": _new(17, layer_norm("LayerNormalization")),
    "RMSNormalization": _new(23, layer_norm("RMSNormalization")),
    "InstanceNormalization": _real(instance_norm),
    "GroupNormalization": _new(18, _single(group_norm)),
    "LpNormalization": _real(lp),
    "LRN": _single(lrn),
    "Split": split,
    "Slice": sliced,
    "Expand": expand,
    "Tile": _real(tile),
    "Pad": _real(pad),
    "DepthToSpace": _real(depth),
    "Flatten": flat,
    "Transpose": _real(turned),
    "Gather": _exact(gathered),
    "ConstantOfShape": _real(shape_sized),
    "Trilu": _new(14, _real(triangle)),
    "ConvTranspose": _new(11, _real(conv_transpose)),
    "MatMul": _real(left),
    "Attention": _real(attention),
    **{op: recurrent(op) for op in ("LSTM", "GRU", "RNN")},
    "Embedding": _exact(embedding),
    "QuantizeLinear": _exact(quantised),
    "Resize": resize,
    "AveragePool": _real(average),
    "GlobalMaxPool": _real(global_max),
    "If": _real(branch),
    "OneHot": _exact(one_hot),
}
