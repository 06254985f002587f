"""Options of methods, checked when a method is made: each message says what was given and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nnrepair.errors import InvalidInput, near_matches


def whole(method: object, *names: str, least: int = 1, where: str = "") -> None:
    """Require options to be integers that are at least so large.

    Args:
        method: has the options as attributes.
        names: of the options.
        least: the smallest.
        where: what comes before the name in the message.
    """
    for name in names:
        count = getattr(method, name)
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InvalidInput(f"{where}{name} must be an integer >= {least}, got {count!r}.")


def number(method: object, *names: str, zero: bool = False, below: float = math.inf, where: str = "") -> None:
    """Require options to be finite numbers above 0.

    Args:
        method: has the options as attributes.
        names: of the options.
        zero: whether 0 will do, too.
        below: they must be smaller than this.
        where: what comes before the name in the message.
    """
    for name in names:
        value = getattr(method, name)
        if not is_number(value) or not (value >= 0 if zero else value > 0) or value >= below:
            kind, most = ("a finite number", "") if below == math.inf else ("a number", f" and < {below:g}")
            raise InvalidInput(f"{where}{name} must be {kind} {'>=' if zero else '>'} 0{most}, got {value!r}.")


def one_of(method: object, **known: Sequence[str]) -> None:
    """Require options to be one of their known values."""
    for name, values in known.items():
        value = getattr(method, name)
        if value not in values:
            hint = near_matches(str(value), values)
            raise InvalidInput(f"Unknown {name} {value!r}.{hint} Choose one of {', '.join(values)}.")


def flag(method: object, name: str) -> None:
    """Require an option to be True or False."""
    if not isinstance(getattr(method, name), bool):
        raise InvalidInput(f"{name} must be True or False, got {getattr(method, name)!r}.")


def one_layer(method: Any) -> None:
    """Require the option `layer` to be a name."""
    if not isinstance(method.layer, str):
        raise InvalidInput(f"layer must be the name of a module, got {method.layer!r}.")


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
