"""Arithmetic and comparisons, entry by entry, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnrepair.verify.reading.activations.cast import cast
from nnrepair.verify.reading.activations.powers import Reciprocal, Sqrt
from nnrepair.verify.reading.activations.square import SQUARE
from nnrepair.verify.reading.activations.step import positive, truncated
from nnrepair.verify.reading.builder import Builder, Unreadable, Value
from nnrepair.verify.reading.symbols import Symbol, Table

#: Nodes have so many entries at most.
MOST = 5_000_000
#: Whole numbers of these types leave their range soon, and become others.
SHORT = (torch.uint8, torch.int8, torch.int16)


def aligned(b: Builder, *parts: Any) -> tuple[torch.Size, list[Any]]:
    """Return the common shape of symbols and constants, and each as a flat value or tensor of that shape."""
    given = [part if isinstance(part, Symbol) else b.constant(part) for part in parts]
    shape = torch.broadcast_shapes(*(part.shape for part in given))  # type: ignore[no-untyped-call]
    if math.prod(shape) > MOST:
        raise Unreadable(f"it would have {math.prod(shape)} entries, expected at most {MOST}")
    return shape, [
        part.moved(part.places().expand(shape)).flat if isinstance(part, Symbol) else part.expand(shape).reshape(-1)
        for part in given
    ]


def elementwise(compute: Callable[..., Value]) -> Callable[..., Symbol]:
    """Return the reader of a function of several tensors, entry by entry, given one of flat values and constants."""

    def read(b: Builder, *parts: Any, out: Any = None, **settings: Any) -> Symbol:
        if all(_is_truth(part) for part in parts):
            raise Unreadable("it computes with truth values, which torch does in its own way; cast them first")
        short = next((part.dtype for part in parts if isinstance(part, Symbol) and part.dtype in SHORT), None)
        if short is not None and all(_is_whole(part) for part in parts):
            raise Unreadable(f"it computes with numbers of {short}, of which large ones become others")
        shape, flat = aligned(b, *parts)
        whole = all(_is_whole(part) for part in parts)
        made = compute(b, *flat, **settings)
        return Symbol(b, made.node, shape, torch.int64 if whole else b.precision)

    return read


def _is_whole(part: Any) -> bool:
    return isinstance(part, bool | int) or (isinstance(part, Symbol | Tensor) and not part.dtype.is_floating_point)


def _is_truth(part: Any) -> bool:
    return isinstance(part, bool) or (isinstance(part, Symbol | Tensor) and part.dtype == torch.bool)


def add(b: Builder, x: Any, y: Any, alpha: float = 1, sign: float = 1.0) -> Value:
    """Return x + alpha y."""
    if alpha != 1:
        y = multiply(b, y, b.constant(alpha)) if isinstance(y, Value) else y * alpha
    if isinstance(x, Value) and isinstance(y, Value):
        return b.total(x, y) if sign > 0 else b.difference(x, y)
    return b.scaled(x, 1.0, sign * y) if isinstance(x, Value) else b.scaled(y, sign, x)


def subtract(b: Builder, x: Any, y: Any, alpha: float = 1) -> Value:
    """Return x - alpha y."""
    return add(b, x, y, alpha, -1.0)


def multiply(b: Builder, x: Any, y: Any) -> Value:
    """Return x y."""
    if isinstance(x, Value) and isinstance(y, Value):
        return b.activation(x, SQUARE) if x == y else b.product(x, y)
    return b.scaled(x, y) if isinstance(x, Value) else b.scaled(y, x)


def divide(b: Builder, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    """Return x / y."""
    if rounding_mode is not None:
        raise Unreadable("it rounds a quotient")
    if isinstance(y, Value):
        return multiply(b, x, b.activation(y, Reciprocal()))
    inverse = 1 / y
    tiny = torch.finfo(torch.float64).tiny
    if not bool(((inverse.abs() >= tiny) & torch.isfinite(inverse)).all()):
        raise Unreadable("it divides by zero, or by a number whose inverse has too few digits")
    exact = bool((inverse.frexp()[0].abs() == 0.5).all())
    return b.scaled(x, inverse, inexact=0.0 if exact else 1e-15, of=(torch.as_tensor(y, dtype=torch.float64),))


def compared(over: str) -> Callable[..., Any]:
    """Return the reader of a comparison; of whole numbers halves decide, which no rounding reaches."""

    def read(b: Builder, x: Any, y: Any) -> Symbol:
        shape, (left, right) = aligned(b, x, y)
        whole = 0.5 if _is_whole(x) and _is_whole(y) else 0.0

        def above(low: Any, high: Any, equal: bool) -> Value:
            """Return whether high > low, or equal."""
            if whole:
                return positive(b, b.scaled(subtract(b, high, low), 1.0, whole if equal else -whole))
            if equal:
                return negated(b, positive(b, subtract(b, low, high)))
            return positive(b, subtract(b, high, low))

        if over in ("gt", "ge"):
            made = above(right, left, over == "ge")
        elif over in ("lt", "le"):
            made = above(left, right, over == "le")
        else:  # neither is above the other
            other = b.total(above(left, right, False), above(right, left, False))
            made = other if over == "ne" else negated(b, other)
        return Symbol(b, made.node, shape, torch.bool)

    return read


def negated(b: Builder, x: Value) -> Value:
    """Return 1 - x."""
    return b.scaled(x, -1.0, 1.0)


def _where(b: Builder, condition: Any, x: Any, y: Any) -> Symbol:
    shape, (chosen, left, right) = aligned(b, condition, x, y)
    if not isinstance(chosen, Value):
        mask = chosen != 0
        parts = [p if isinstance(p, Value) else torch.where(m, p, 0.0) for p, m in ((left, mask), (right, ~mask))]
        parts = [
            b.scaled(p, m.double()) if isinstance(p, Value) else p for p, m in zip(parts, (mask, ~mask), strict=True)
        ]
        return Symbol(b, add(b, parts[0], parts[1]).node, shape, b.precision)
    more = subtract(b, left, right) if isinstance(left, Value) or isinstance(right, Value) else left - right
    return Symbol(b, add(b, multiply(b, chosen, more), right).node, shape, b.precision)


def _cast(b: Builder, x: Any, to: Any = None, dtype: Any = None, **settings: Any) -> Any:
    to = dtype or to
    kind = to.dtype if isinstance(to, Symbol | Tensor) else to
    if not isinstance(kind, torch.dtype):
        return x
    if isinstance(x, Tensor):
        return x.to(kind)
    if kind == torch.bool and x.dtype != torch.bool:
        return compared("ne")(b, x, 0)
    if kind in SHORT:
        raise Unreadable(f"it casts to {kind}, where large numbers become others")
    if not kind.is_floating_point and x.dtype.is_floating_point:
        stored = b.fixed(x.flat)
        if stored is not None:
            return stored.reshape(x.shape).to(kind)
        return x.shaped(truncated(b, x.flat), kind)
    if kind.is_floating_point:
        made = x.flat if x.dtype == torch.bool else cast(b, x.flat, kind, whole=not x.dtype.is_floating_point)
        return x.shaped(made)
    return Symbol(b, x.node, x.shape, kind)


def beyond(b: Builder, x: Any, y: Any, sign: float = 1.0) -> Value:
    """Return max(x, y), or min(x, y) if `sign` is -1."""
    if isinstance(x, Value) and isinstance(y, Value):
        return b.larger(x, y, sign)
    value, end = (x, y) if isinstance(x, Value) else (y, x)
    more = b.relu(b.scaled(value, -sign, sign * end))
    return b.total(value, b.scaled(more, sign))


def _truth(b: Builder, x: Any) -> Any:
    """Return whether each entry is other than zero."""
    return x if _is_truth(x) else compared("ne")(b, x, 0) if isinstance(x, Symbol) else b.constant(x) != 0


def _not(b: Builder, x: Symbol) -> Symbol:
    return x.shaped(negated(b, _truth(b, x).flat), torch.bool)


def _logical(sign: float) -> Callable[..., Symbol]:
    def read(b: Builder, x: Any, y: Any) -> Symbol:
        shape, (left, right) = aligned(b, *(_truth(b, each) for each in (x, y)))
        return Symbol(b, beyond(b, left, right, sign).node, shape, torch.bool)

    return read


def _either(b: Builder, x: Any, y: Any) -> Symbol:
    made: Symbol = compared("ne")(b, *(_truth(b, each) for each in (x, y)))
    return made


def bitwise(read: Callable[..., Symbol]) -> Callable[..., Symbol]:
    """Return the reader of a function that is the logical one of truth values, and another one of whole numbers."""

    def checked(b: Builder, *parts: Any) -> Symbol:
        if not all(_is_truth(part) for part in parts):
            raise Unreadable("it computes with the bits of whole numbers")
        return read(b, *parts)

    return checked


def turned(read: Callable[..., Symbol]) -> Callable[..., Symbol]:
    """Return the reader of a function whose two arguments come in the other order."""
    return lambda b, x, y: read(b, y, x)


add_, subtract_, multiply_, divide_ = (elementwise(each) for each in (add, subtract, multiply, divide))

ARITHMETIC: Table = {
    **dict.fromkeys(("add", "radd"), add_),
    **dict.fromkeys(("sub", "subtract"), subtract_),
    "rsub": turned(subtract_),
    **dict.fromkeys(("mul", "multiply", "rmul"), multiply_),
    **dict.fromkeys(("div", "truediv", "divide", "true_divide"), divide_),
    "rtruediv": turned(divide_),
    **dict.fromkeys(("neg", "negative"), lambda b, x: x.shaped(b.scaled(x.flat, -1.0), x.dtype)),
    "rsqrt": lambda b, x: x.shaped(b.activation(b.activation(x.flat, Sqrt()), Reciprocal())),
    **{name: compared(name) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    "greater": compared("gt"),
    "less": compared("lt"),
    "logical_not": _not,
    "logical_and": _logical(-1.0),
    "logical_or": _logical(1.0),
    "logical_xor": _either,
    **dict.fromkeys(("invert", "bitwise_not"), bitwise(_not)),
    **dict.fromkeys(("and", "bitwise_and"), bitwise(_logical(-1.0))),
    **dict.fromkeys(("or", "bitwise_or"), bitwise(_logical(1.0))),
    **dict.fromkeys(("xor", "bitwise_xor"), bitwise(_either)),
    "where": _where,
    "masked_fill": lambda b, x, mask, value: _where(b, mask, value, x),
    **dict.fromkeys(("to", "type", "type_as"), _cast),
    "float": lambda b, x: _cast(b, x, torch.float32),
    "double": lambda b, x: _cast(b, x, torch.float64),
    "int": lambda b, x: _cast(b, x, torch.int32),
    "long": lambda b, x: _cast(b, x, torch.int64),
    "bool": lambda b, x: _cast(b, x, torch.bool),
}
