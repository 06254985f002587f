"""What contradicts what, made small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def smallest_conflict(things: Sequence[T], contradict: Callable[[list[T]], bool]) -> list[T]:
    """Return some of the things that contradict each other, all of which are needed for it (a deletion filter).

    >>> smallest_conflict([1, 2, 3, 4], lambda some: {2, 4} <= set(some))
    [2, 4]

    Args:
        things: that contradict each other.
        contradict: whether some of them, never none, still do.
    """
    needed = list(things)
    for thing in things:
        rest = [other for other in needed if other != thing]
        if rest and contradict(rest):
            needed = rest
    return needed
