"""What contradicts what, made small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def smallest_conflict(things: Sequence[T], contradict: Callable[[list[T]], bool]) -> list[T]:
    """Return some of the things that contradict each other, all of which are needed for it.

    A deletion filter that first tries halves, then ever smaller blocks.

    >>> smallest_conflict([1, 2, 3, 4], lambda some: {2, 4} <= set(some))
    [2, 4]

    Args:
        things: that contradict each other.
        contradict: whether some of them, never none, still do.
    """
    needed, block = list(things), max(1, len(things) // 2)
    while True:
        at = 0
        while at < len(needed):
            rest = needed[:at] + needed[at + block :]
            if rest and contradict(rest):
                needed = rest
            else:
                at += block
        if block == 1:
            return needed
        block //= 2
