"""Layers, recurrent ones, attention, tables, integers, branches."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from benchmarks.readers.draft import Draft, Value, kind_of
from benchmarks.readers.operators import Maker, _to


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


def dynamic(d: Draft, x: Value) -> Value | None:
    """Products of integers, with a scale that the input gives; for one point at a time."""
    if len(x.shape) != 2 or d.batch != 1 or x.shape[0] != 1 or 0 in x.shape:
        return None
    names = [d.name("q"), d.name("s"), d.name("z")]
    d.nodes.append(helper.make_node("DynamicQuantizeLinear", [x.name], names))
    weight = d.store(d.rng.integers(-9, 9, (x.shape[1], 3)).astype(np.int8), 0)
    whole = d.node("MatMulInteger", [names[0], weight, names[2], d.store(np.array(1, np.int8), 0)])
    return Value(d.node("Mul", [d.node("Cast", [whole], to=TensorProto.FLOAT), names[1]]), (1, 3), x.dtype)


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
