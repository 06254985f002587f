"""Quasi-Newton descent whose steps end where the value fell enough and the slope along them rose, however steep it is.

L-BFGS with the line search of Lewis & Overton, "Nonsmooth optimization via quasi-Newton methods" (Mathematical
Programming 141, 2013), which halves and doubles: it also ends at kinks, where a slope jumps from below zero to above
and is nowhere small. All vectors stay in the dtype and on the device in which they are computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf, isfinite

from torch import Tensor

#: Steps that are remembered.
MEMORY = 10
#: Which share of what the first slope promises a value must fall by, and below which share of it the slope must come.
FALL, RISE = 1e-4, 0.9
#: Values that are computed for a step, at most.
TRIES = 25
#: Descent ends where so many steps together lower the value by less than this share of it for each.
WINDOW, DECREASE = 10, 1e-3


def descend(slope_at: Callable[[Tensor], tuple[float, Tensor]], x: Tensor, most: int) -> Tensor:
    """Return where a function is nearly least, from a start.

    >>> import torch
    >>> nearest = descend(lambda x: (float((x - 1).square().sum()), 2 * (x - 1)), torch.zeros(3), 50)
    >>> bool((nearest - 1).abs().max() < 1e-3)
    True

    Args:
        slope_at: returns value and gradient at a point (n,).
        x: (n,) the start.
        most: steps.
    """
    value, slope = slope_at(x)
    steps: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=MEMORY)
    values = deque([value], maxlen=WINDOW + 1)
    for _ in range(most):
        along = _direction(slope, steps)
        rate = float(slope @ along)
        if not (isfinite(value) and rate < 0):
            break
        length = 1.0 if steps else min(1.0, abs(value) / -rate)
        found = _line(slope_at, x, along, value, rate, length)
        if found is None:
            break
        further, value, slope_there = found
        moved, turned = further - x, slope_there - slope
        bend = float(moved @ turned)
        if bend > 1e-12 * float(moved @ moved):
            steps.append((moved, turned, 1 / bend))
        x, slope = further, slope_there
        values.append(value)
        if len(values) > WINDOW and values[0] - value <= DECREASE * WINDOW * abs(value):
            break
    return x


def _direction(slope: Tensor, steps: deque[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Return the quasi-Newton direction (n,), by the two loops of Nocedal (1980)."""
    along, shares = -slope, list[float]()
    for moved, turned, scale in reversed(steps):
        shares.append(scale * float(moved @ along))
        along = along - shares[-1] * turned
    if steps:
        _, turned, scale = steps[-1]
        along = along / (scale * float(turned @ turned))
    for (moved, turned, scale), share in zip(steps, reversed(shares), strict=True):
        along = along + (share - scale * float(turned @ along)) * moved
    return along


def _line(
    slope_at: Callable[[Tensor], tuple[float, Tensor]], x: Tensor, along: Tensor, value: float, rate: float, t: float
) -> tuple[Tensor, float, Tensor] | None:
    """Return a point along a direction, its value and its gradient; None where no value fell."""
    low, high, found = 0.0, inf, None
    for _ in range(TRIES):
        there = x + t * along
        new, slope = slope_at(there)
        if not new <= value + FALL * t * rate:
            high = t
        else:
            found = there, new, slope
            if float(slope @ along) >= RISE * rate:
                break
            low = t
        t = (low + high) / 2 if high < inf else 2 * low
    return found
