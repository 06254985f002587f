"""Which share of a box lies where a linear form is small: exact, rounded outward once.

A linear form that is least at a corner of a box is `least + sum_d a_d u_d`, with a_d >= 0 and u_d between 0 and 1, the
way from that corner along input d. So it is at most zero on the share `P(sum_d a_d u_d <= -least)` of the box, u being
uniform. For integers w_d > 0 and t the volume of {w . u <= t} is

    sum over subsets V of the inputs of (-1)^|V| max(t - sum_{d in V} w_d, 0)^n  /  (n! prod_d w_d)

(Polya 1913; Barrow and Smith 1979), which Python's integers compute without any error. Before, a and t are rounded to
integers on a grid so that the share can only grow (or only shrink); what comes out is rounded likewise to `UNIT`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shares = NDArray[np.int64]

#: Shares are whole multiples of 1 / UNIT, so that sums of them are exact.
UNIT = 2**48
#: The a_d are rounded to integers whose sum is about GRID.
GRID = 2**30
#: Of more inputs only so many count exactly, those with the largest a_d; the subsets of many are too many.
INPUTS = 6


def at_most(a: Array, t: Array, up: bool, free: NDArray[np.bool_] | None = None) -> Shares:
    """Return P(a . u <= t) for u uniform over the unit cube, never too small if `up`, else never too large.

    Args:
        a: (n, inputs), not negative; rounded by at most a few units in the last place, which the grid covers.
        t: (n,), likewise. Where either is not finite the share is UNIT if `up`, else 0.
        free: (inputs,), which of u vary; the others are anywhere between 0 and 1. None: all do.

    Returns:
        (n,), in units of 1 / UNIT.
    """
    if free is not None and not free.all():
        a, t = a[:, free], t if up else t - a[:, ~free].sum(1) * (1 + 1e-12)
    total = a.sum(1)
    known = np.isfinite(total) & np.isfinite(t)
    share = np.full(len(a), UNIT if up else 0, np.int64)
    some, none = known & (t >= total * (1 + 1e-12)), known & (t < 0)
    share[some], share[none] = UNIT, 0
    open_ = known & ~some & ~none & (total > 0)
    if open_.any():
        share[open_] = _inside(a[open_], t[open_], up)
    return share


def _inside(a: Array, t: Array, up: bool) -> Shares:
    """Return the same where some, but not all of the cube may lie in the set."""
    if a.shape[1] > INPUTS:
        a = np.sort(a, 1)
        if not up:
            t = t - a[:, :-INPUTS].sum(1) * (1 + 1e-12)
        a = a[:, -INPUTS:]
    n = a.shape[1]
    scale = GRID / np.maximum(a.sum(1), 1e-300)
    fine = a * scale[:, None]
    if up:  # smaller weights and a larger t: more of the cube; a weight of 1 in place of 0 makes up for itself in t
        weights = np.floor(fine * (1 - 1e-12))
        level = np.ceil(t * scale * (1 + 1e-12)) + 1 + (weights < 1).sum(1)
        weights = np.maximum(weights, 1)
    else:
        weights = np.ceil(fine * (1 + 1e-12)) + 1
        level = np.floor(t * scale * (1 - 1e-12)) - 1
    w = [column.astype(np.int64).astype(object) for column in weights.T]
    corners = [level.astype(np.int64).astype(object)]
    signs = [1]
    for column in w:
        corners += [corner - column for corner in corners]
        signs += [-sign for sign in signs]
    volume = np.zeros(len(t), object)
    for corner, sign in zip(corners, signs, strict=True):
        volume += sign * np.maximum(corner, 0) ** n
    whole = math.factorial(n) * np.multiply.reduce(w)
    share = -(-volume * UNIT // whole) if up else volume * UNIT // whole
    whole_units: Shares = np.clip(share, 0, UNIT).astype(np.int64)
    return whole_units
