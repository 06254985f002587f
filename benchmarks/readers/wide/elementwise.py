"""Functions of single numbers, comparisons, logic and types."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from benchmarks.readers.draft import Draft, Value, kind_of
from benchmarks.readers.operators import Maker, _broadcast, _to, arithmetic
from benchmarks.readers.wide.guards import real, shifted


def function(op: str, **options: list[Any]) -> Maker:
    def make(d: Draft, x: Value) -> Value:
        return _to(d, x, op, **{name: d.pick(values) for name, values in options.items()})

    return real(make)


def positive(op: str) -> Maker:
    """What is defined, or smooth, above zero only."""

    def make(d: Draft, x: Value) -> Value:
        y = _to(d, x, "Abs")
        return _to(d, y, "Sqrt" if op == "Sqrt" else op) if d.odd() else _to(d, shifted(d, y, 0.5), op)

    return real(make)


def within(op: str) -> Maker:
    """What is defined, or smooth, between -1 and 1 only."""

    def make(d: Draft, x: Value) -> Value:
        inside = _to(d, _to(d, x, "Tanh"), "Mul", [d.store(np.array(0.75).astype(x.dtype))])
        return _to(d, inside, op)

    return real(make)


def power(d: Draft, x: Value) -> Value:
    if d.chance(0.6):
        return _to(d, x, "Pow", [d.store(np.array(d.pick([2, 3, 2, 1, 0])).astype(x.dtype))])
    return _to(
        d, shifted(d, _to(d, x, "Abs"), 0.5), "Pow", [d.store(np.array(d.pick([0.5, -1, -0.5, 1.5])).astype(x.dtype))]
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

    return real(make)


def several(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value:
        alike = [v for v in d.values if v.shape == x.shape and v.dtype == x.dtype]
        parts = [x.name, *(d.pick(alike).name for _ in range(d.below(3)))]
        return Value(d.node(op, parts), x.shape, x.dtype)

    return real(make)


def modulo(d: Draft, x: Value) -> Value:
    return _to(d, x, "Mod", [d.store(np.array(d.pick([1.5, 2, -0.75])).astype(x.dtype))], fmod=1)


def cast_and_back(d: Draft, x: Value) -> Value:
    other = d.pick([np.float32, np.float64])
    if d.chance(0.2):
        whole = d.node("Cast", [x.name], to=TensorProto.INT32)
        return Value(d.node("Cast", [whole], to=kind_of(x.dtype)), x.shape, x.dtype)
    return Value(d.node("Cast", [d.node("Cast", [x.name], to=kind_of(other))], to=kind_of(x.dtype)), x.shape, x.dtype)


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
