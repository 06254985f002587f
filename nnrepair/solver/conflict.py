"""What contradicts what, made small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def smallest_conflict(
    things: Sequence[T],
    contradict: Callable[[list[T]], Sequence[T] | None],
    enough: Callable[[], bool] = lambda: False,
) -> tuple[list[T], bool]:
    """Return some of the things that contradict each other, and whether all of them are known to be needed for it.

    A deletion filter that first tries halves, then ever smaller blocks.

    >>> smallest_conflict([1, 2, 3, 4], lambda some: some if {2, 4} <= set(some) else None)
    ([2, 4], True)

    Args:
        things: that contradict each other; the first ones are dropped first.
        contradict: those of some things, never none, that still do, or None where they no longer do.
        enough: whether to stop with what was found.
    """
    needed, block = list(things), max(1, len(things) // 2)
    while len(needed) > 1:
        at = 0
        while at < len(needed):
            if enough():
                return needed, False
            rest = needed[:at] + needed[at + block :]
            shown = contradict(rest) if rest else None
            if shown is None:
                at += block
            else:
                before = set(needed[:at])
                needed = list(shown)
                at = sum(thing in before for thing in needed)
        if block == 1:
            break
        block //= 2
    return needed, True
