"""Figures as text: a share is never rounded to 0 % or 100 % unless it is exactly that."""

from __future__ import annotations

import math

#: No more digits than this are shown; what they would show is the rounding of an average.
MOST_DIGITS = 8


def percent(share: float, digits: int = 2) -> str:
    """Return a share in percent, with more digits where fewer would make it 0 % or 100 %, and it is not.

    >>> percent(0.5), percent(1.0), percent(0.99996), percent(0.00001, 0)
    ('50.00%', '100.00%', '99.996%', '0.001%')
    """
    return f"{_shown(100 * share, digits, 100.0)}%"


def percentage_points(value: float, digits: int = 2) -> str:
    """Return percentage points, with more digits where fewer would make them 0, and they are not.

    >>> percentage_points(3.14159), percentage_points(-0.0), percentage_points(-0.0004)
    ('3.14', '0.00', '-0.0004')
    """
    return _shown(value, digits, 100.0)


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
