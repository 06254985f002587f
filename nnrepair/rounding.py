"""Figures as text: a share is never rounded to 0 % or 100 % unless it is exactly that, and one thing is no plural."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

#: No more digits than this are shown; what they would show is the rounding of an average.
MOST_DIGITS = 8


def first(items: Sequence[object], most: int = 10) -> str:
    """Return a list as text, with dots for what is left out.

    >>> first([3, 5]), first(range(12), 3)
    ('[3, 5]', '[0, 1, 2, ...]')
    """
    return f"{str(list(items[:most]))[:-1]}{', ...' * (len(items) > most)}]"


def percent(share: float, digits: int = 2) -> str:
    """Return a share in percent, with more digits where fewer would make it 0 % or 100 %, and it is not.

    >>> percent(0.5), percent(1.0), percent(0.99996), percent(0.00001, 0)
    ('50.00%', '100.00%', '99.996%', '0.001%')
    """
    return f"{_shown(100 * share, digits, 100.0)}%"


def percent_at_least(share: Fraction | float, digits: int = 2) -> str:
    """Return a share from 0 to 1 that is claimed as a lower bound: rounded down, with more digits before it says 0 %.

    >>> percent_at_least(Fraction(2, 3)), percent_at_least(Fraction(1)), percent_at_least(Fraction(1, 80000))
    ('66.66%', '100.00%', '0.001%')
    """
    return _whole(Fraction(share), digits, math.floor)


def percent_at_most(share: Fraction | float, digits: int = 2) -> str:
    """Return a share from 0 to 1 that is claimed as an upper bound: rounded up, with more digits before it says 100 %.

    >>> percent_at_most(Fraction(2, 3)), percent_at_most(Fraction(0)), percent_at_most(1 - Fraction(1, 80000))
    ('66.67%', '0.00%', '99.999%')
    """
    return _whole(Fraction(share), digits, math.ceil)


def _whole(share: Fraction, digits: int, whole: Callable[[Fraction], int]) -> str:
    found = Decimal(0)
    for more in range(digits, MOST_DIGITS + 1):
        found = Decimal(whole(100 * share * 10**more)).scaleb(-more)
        if share in (0, 1) or found not in (0, 100):
            break
    return f"{found:f}%"


def percentage_points(value: float, digits: int = 2) -> str:
    """Return percentage points, with more digits where fewer would make them 0, and they are not.

    >>> percentage_points(3.14159), percentage_points(-0.0), percentage_points(-0.0004)
    ('3.14', '0.00', '-0.0004')
    """
    return _shown(value, digits, 100.0)


def counted(count: int, one: str, many: str = "") -> str:
    """Return a count and what is counted.

    >>> counted(1, "edit"), counted(0, "edit"), counted(2, "box", "boxes")
    ('1 edit', '0 edits', '2 boxes')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def that_hold(hold: int, count: int, one: str, many: str = "") -> str:
    """Return how many of some things hold.

    >>> that_hold(2, 2, "edit"), that_hold(1, 1, "edit"), that_hold(0, 1, "property")
    ('2 of 2 edits hold', 'the edit holds', 'the property does not hold')
    """
    if count == 1:
        return f"the {one} {'holds' if hold else 'does not hold'}"
    return f"{hold} of {counted(count, one, many)} hold"


def _shown(value: float, digits: int, end: float) -> str:
    ends = (0.0, end, -end)
    text = f"{value:.{digits}f}"
    for more in range(digits, MOST_DIGITS + 1):
        text = f"{value:.{more}f}"
        if value in ends or float(text) not in ends:
            break
    else:  # so near to an end that these digits cannot tell it from that
        near = float(text)
        text = f"{near - math.copysign(10.0**-MOST_DIGITS, near):.{MOST_DIGITS}f}" if near else f"{0:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text
