"""Sizes that are known only when a model runs: arithmetic on shapes, written down while a file is read."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "/": operator.truediv,
    "%": operator.mod,
    "min": min,
    "max": max,
}
_UNARY: dict[str, Callable[[Any], Any]] = {"floor": math.floor, "ceil": math.ceil, "int": int, "float": float}


class Size:
    """A number that depends on shapes: the size of an axis, or what is computed from such sizes.

    >>> half = Size.of("x", 0) * 2 // 4
    >>> half, half.value({"x": (6, 3)})
    (((x.shape[0] * 2) // 4), 3)
    """

    def __init__(self, what: str, *parts: Any) -> None:
        self.what, self.parts = what, parts

    @classmethod
    def of(cls, value: str | int, axis: int) -> Size:
        """Return the size of an axis of a value, which has a name, or a place among the inputs of a module."""
        return cls("size", value, axis)

    def value(self, shapes: Mapping[Any, Sequence[int]]) -> Any:
        """Return the number, from the shapes of the values that it depends on."""
        if self.what == "size":
            return shapes[self.parts[0]][self.parts[1]]
        parts = [part.value(shapes) if isinstance(part, Size) else part for part in self.parts]
        return _UNARY[self.what](*parts) if len(parts) == 1 else _BINARY[self.what](*parts)

    def values(self) -> list[str]:
        """Return the values that it depends on."""
        if self.what == "size":
            return [self.parts[0]]
        inner = [name for part in self.parts if isinstance(part, Size) for name in part.values()]
        return list(dict.fromkeys(inner))

    def placed(self, places: Mapping[Any, int]) -> Size:
        """Return the same size, with the values that it depends on called by their places."""
        if self.what == "size":
            return Size.of(places[self.parts[0]], self.parts[1])
        return Size(self.what, *(part.placed(places) if isinstance(part, Size) else part for part in self.parts))

    def __add__(self, other: Any) -> Size:
        return Size("+", self, other)

    def __radd__(self, other: Any) -> Size:
        return Size("+", other, self)

    def __sub__(self, other: Any) -> Size:
        return Size("-", self, other)

    def __rsub__(self, other: Any) -> Size:
        return Size("-", other, self)

    def __mul__(self, other: Any) -> Any:
        return Size("*", self, other) if other != 1 else self

    def __rmul__(self, other: Any) -> Any:
        return Size("*", other, self) if other != 1 else self

    def __floordiv__(self, other: Any) -> Any:
        return Size("//", self, other) if other != 1 else self

    def __rfloordiv__(self, other: Any) -> Size:
        return Size("//", other, self)

    def __truediv__(self, other: Any) -> Size:
        return Size("/", self, other)

    def __rtruediv__(self, other: Any) -> Size:
        return Size("/", other, self)

    def __mod__(self, other: Any) -> Size:
        return Size("%", self, other)

    def __neg__(self) -> Size:
        return Size("-", 0, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and (self.what, self.parts) == (other.what, other.parts)

    def __hash__(self) -> int:
        return hash((self.what, self.parts))

    def __repr__(self) -> str:
        if self.what == "size":
            return f"{self.parts[0]}.shape[{self.parts[1]}]"
        if len(self.parts) == 1 or self.what.isalpha():
            return f"{self.what}({', '.join(map(str, self.parts))})"
        return f"({self.parts[0]} {self.what} {self.parts[1]})"


def known(sizes: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Return sizes as numbers, where `values` are the tensors at the places that they depend on."""
    shapes = {place: value.shape for place, value in enumerate(values)}
    return [size.value(shapes) if isinstance(size, Size) else size for size in sizes]
