"""Arithmetic and comparisons, number by number with broadcasting."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from nnrepair.onnx import modules as ops
from nnrepair.onnx.node import DTYPES, Node, Refused
from nnrepair.onnx.operators.building import Handler, Made, joined

#: Operators that are a function of torch, see `modules.elementwise.FUNCTIONS`.
PLAIN = [
    "Acos",
    "Acosh",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
]
PLAIN += ["Ceil", "Cos", "Cosh", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual", "IsNaN", "Less"]
PLAIN += [
    "LessOrEqual",
    "Log",
    "Not",
    "Or",
    "Pow",
    "Reciprocal",
    "Round",
    "Sign",
    "Sin",
    "Sinh",
    "Sqrt",
    "Tan",
    "Where",
]
PLAIN += ["Xor"]


def _function(name: str) -> Handler:
    return lambda node: joined(node, ops.Function(name))


def _joining(make: Callable[[], nn.Module]) -> Handler:
    def read(node: Node) -> Made:
        kinds = {node.dtype(index) for index in node.given()}
        if len(kinds) > 1:
            raise Refused(f"its inputs have the types {', '.join(sorted(map(str, kinds)))}, expected one")
        return joined(node, make())

    return read


def _mod(node: Node) -> Made:
    if not node.get("fmod", 0) and node.dtype().is_floating_point:
        raise Refused("fmod=0 is for whole numbers")
    return joined(node, ops.Function("Fmod" if node.get("fmod", 0) else "Mod"))


def _cast(node: Node) -> Made:
    dtype = DTYPES.get(node.get("to", 0))
    if dtype is None:
        raise Refused(f"it casts to type {node.get('to', 0)}, which cannot be read")
    if dtype == node.dtype():
        return nn.Identity()
    return ops.Cast(dtype)


def _cast_like(node: Node) -> Made:
    return nn.Identity() if node.dtype(1) == node.dtype() else ops.Cast(node.dtype(1))


def _is_inf(node: Node) -> Made:
    return ops.IsInf(bool(node.get("detect_negative", 1)), bool(node.get("detect_positive", 1)))


HANDLERS: dict[str, Handler] = {
    **{name: _function(name) for name in PLAIN},
    "Add": _joining(ops.Add),
    "Sub": _joining(ops.Sub),
    "Mul": _joining(ops.Mul),
    "Div": _joining(ops.Div),
    "Max": _joining(ops.Max),
    "Min": _joining(ops.Min),
    "Sum": _joining(ops.Sum),
    "Mean": _joining(lambda: ops.Sum(average=True)),
    "Mod": _mod,
    "Cast": _cast,
    "CastLike": _cast_like,
    "IsInf": _is_inf,
}
