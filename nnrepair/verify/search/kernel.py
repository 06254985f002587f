"""Bounds of ReLUs in chains of matrices, a box at a time, compiled by numba; see `loose` for why they are sound."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnrepair.extras import needed

with needed("fast", "The compiled kernel needs numba"):
    from numba import njit

#: Half the distance between 1 and the next float64; what underflow may take from a value, see `magnitudes`.
EPS, UNDERFLOW = 2.0**-53, 1e-200
#: More than the relative rounding error of a sum of positive numbers.
UP = 1 + 1e-9

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Sums may be taken in any order, and with fused multiply-add, as in a BLAS; infinities and NaN keep their meaning.
_MATH = {"reassoc", "contract", "nsz"}
_compiled = njit(nogil=True, fastmath=_MATH)

# What is known while a box is worked on, in few arrays: passing one costs as much as a short sum.
# `before` and `after`: of each unit of known sign of a layer T, and in the last two columns e and S, see `loose`.
# `loose`: of each loose unit T, and in the last four columns slope and intercept above, slope below, error.
ERROR, SIZE = -2, -1
SLOPE, SHIFT, FLOOR, LOSS = -4, -3, -2, -1
# `sums`: the largest absolute values of (1, x, h); middle and half the width of the box; a row, and factors of rows.
REACH, MIDDLE, RADIUS, ROW, FACTOR = range(5)
# `places`: where in their layers units of known sign are, before and after, and loose ones, likewise; how many entries
# the T of a loose unit has, which is the same for all of one layer; rows to add.
BEFORE, AFTER, FRESH, FRESHER, WIDTH, WHICH = range(6)


@_compiled
def _begin(lower: Floats, upper: Floats, before: Floats, sums: Floats, places: Integers) -> None:
    """Set up the input: every entry is a unit of known sign, T = (0, 1 at its place)."""
    sums[REACH, 0] = 1.0
    for t in range(len(lower)):
        sums[MIDDLE, t], sums[RADIUS, t] = (lower[t] + upper[t]) / 2, (upper[t] - lower[t]) / 2
        sums[REACH, 1 + t] = max(abs(lower[t]), abs(upper[t]))
        before[t, : 1 + len(lower)] = 0.0
        before[t, 1 + t] = 1.0
        before[t, ERROR], before[t, SIZE], places[BEFORE, t] = 0.0, sums[REACH, 1 + t], t


@_compiled
def _layer(
    weights: Floats,
    biases: Floats,
    low: Floats,
    high: Floats,
    before: Floats,
    after: Floats,
    loose: Floats,
    sums: Floats,
    places: Integers,
    inputs: int,
    known: int,
    new: int,
    symbols: int,
    gamma: float,
) -> tuple[int, int]:
    """Pass a layer: bound its units, and keep those that may be other than zero.

    Args:
        weights, biases: of the matrix before it.
        low, high: (units,), tightened; empty where no ReLUs follow.
        before, after, loose, sums, places: see above.
        inputs: how many there are.
        known, new: how many units of known sign the last layer has, and how many loose ones.
        symbols: how many loose units there are so far.
        gamma: see `loose`.

    Returns:
        How many units of known sign, and loose ones, this layer has.
    """
    columns, n, stay, found = 1 + inputs + symbols, len(weights) // len(biases), 0, 0
    for i in range(len(biases)):
        if len(low) and high[i] <= 0:
            continue
        z = after[stay]
        _row(weights[i * n : i * n + n], biases[i], before, sums, places, known, new, columns, gamma, z)
        if len(low) and low[i] < 0:
            low[i], high[i] = _bounded(z, low[i], high[i], loose, sums, places, inputs, symbols, gamma)
            if high[i] <= 0:
                continue
            if low[i] < 0:
                s, span = symbols + found, high[i] - low[i]
                slope = high[i] / span
                loose[s, :columns] = z[:columns]
                loose[s, SLOPE], loose[s, SHIFT] = slope, -slope * low[i] + 2e-15 * span
                loose[s, FLOOR] = 1.0 if high[i] > -low[i] else 0.0
                loose[s, LOSS] = z[ERROR] + gamma * (z[SIZE] + 4 * max(high[i], -low[i]))
                sums[REACH, columns + found], places[WIDTH, s] = high[i], columns
                places[FRESHER, found] = i
                found += 1
                continue
        places[AFTER, stay] = i
        stay += 1
    return stay, found


@_compiled
def _row(
    w: Floats,
    bias: float,
    before: Floats,
    sums: Floats,
    places: Integers,
    known: int,
    new: int,
    columns: int,
    gamma: float,
    z: Floats,
) -> None:
    """Set z to T, e and S of a unit."""
    old, off = columns - new, abs(bias)
    z[:old] = 0.0
    for j in range(known):
        sums[FACTOR, j], places[WHICH, j] = w[places[BEFORE, j]], j
        off += abs(sums[FACTOR, j]) * before[j, SIZE]
    _add(before, sums, places, known, old, z)
    z[0] += bias
    for s in range(new):
        z[old + s] = w[places[FRESH, s]]
    size = 0.0
    for c in range(columns):
        size += abs(z[c]) * sums[REACH, c]
    off = gamma * (off + size)
    for j in range(known):
        off += abs(sums[FACTOR, j]) * before[j, ERROR]
    z[ERROR], z[SIZE] = off * UP + UNDERFLOW, size * UP


@_compiled
def _bounded(
    z: Floats,
    low: float,
    high: float,
    loose: Floats,
    sums: Floats,
    places: Integers,
    inputs: int,
    symbols: int,
    gamma: float,
) -> tuple[float, float]:
    """Return better bounds of a unit, given its T, e and S; NaN is none."""
    columns, off = 1 + inputs + symbols, z[ERROR] + gamma * z[SIZE]
    least, largest = _ends(z, sums, inputs, columns)
    low, high = _higher(low, least - off), _lower(high, largest + off)
    for sign in (1.0, -1.0):
        if symbols and low < 0 and high > 0:
            for c in range(columns):
                sums[ROW, c] = sign * z[c]
            least = _least(loose, sums, places, inputs, symbols, gamma) - z[ERROR]
            if sign > 0:
                low = _higher(low, least)
            else:
                high = _lower(high, -least)
    return low, high


@_compiled
def _higher(low: float, other: float) -> float:
    """Return the larger of two lower bounds; NaN is none."""
    return other if other > low else low


@_compiled
def _lower(high: float, other: float) -> float:
    """Return the smaller of two upper bounds; NaN is none."""
    return other if other < high else high


@_compiled
def _add(rows: Floats, sums: Floats, places: Integers, count: int, columns: int, z: Floats) -> None:
    """Add rows to z, each with its factor, four at a time."""
    j = 0
    while j + 4 <= count:
        f0, f1, f2, f3 = sums[FACTOR, j], sums[FACTOR, j + 1], sums[FACTOR, j + 2], sums[FACTOR, j + 3]
        r0, r1, r2, r3 = places[WHICH, j], places[WHICH, j + 1], places[WHICH, j + 2], places[WHICH, j + 3]
        for c in range(columns):
            z[c] += f0 * rows[r0, c] + f1 * rows[r1, c] + f2 * rows[r2, c] + f3 * rows[r3, c]
        j += 4
    while j < count:
        f0, r0 = sums[FACTOR, j], places[WHICH, j]
        for c in range(columns):
            z[c] += f0 * rows[r0, c]
        j += 1


@_compiled
def _ends(z: Floats, sums: Floats, inputs: int, columns: int) -> tuple[float, float]:
    """Return the least and the largest value of z over the box and over loose ReLUs' values, 0 to their reach."""
    middle, spread, below, above = z[0], 0.0, 0.0, 0.0
    for t in range(inputs):
        middle += z[1 + t] * sums[MIDDLE, t]
        spread += abs(z[1 + t]) * sums[RADIUS, t]
    for c in range(1 + inputs, columns):
        v = z[c] * sums[REACH, c]
        below += min(v, 0.0)
        above += max(v, 0.0)
    return middle - spread + below, middle + spread + above


@_compiled
def _least(loose: Floats, sums: Floats, places: Integers, inputs: int, symbols: int, gamma: float) -> float:
    """Return a lower bound of the row in `sums`, which is overwritten."""
    row, off, s = sums[ROW], 0.0, symbols - 1
    while s >= 0:
        columns, some = places[WIDTH, s], 0
        while s >= 0 and places[WIDTH, s] == columns:  # those of one layer do not depend on each other
            a = row[1 + inputs + s]
            off += abs(a) * loose[s, LOSS]
            if a < 0:
                row[0] += a * loose[s, SHIFT]
                a *= loose[s, SLOPE]
            else:
                a *= loose[s, FLOOR]
            if a != 0:
                sums[FACTOR, some], places[WHICH, some] = a, s
                some += 1
            s -= 1
        _add(loose, sums, places, some, columns, row)
    value: float = row[0]
    off += gamma * abs(value)
    for t in range(inputs):
        a = row[1 + t]
        value += a * sums[MIDDLE, t] - abs(a) * sums[RADIUS, t]
        off += 4 * gamma * abs(a) * sums[REACH, 1 + t]
    return value - off * UP - UNDERFLOW


@njit(
    "void(i8[::1], b1[::1], f8[::1], f8[::1], f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=_MATH,
)
def tighten(
    sizes: Integers,
    bent: NDArray[np.bool_],
    weights: Floats,
    biases: Floats,
    lower: Floats,
    upper: Floats,
    low: Floats,
    high: Floats,
) -> None:
    """Tighten bounds of what goes into ReLUs, as far as it decides whether these are loose.

    Args:
        sizes: of the input and of what comes out of each matrix.
        bent: for each matrix whether ReLUs follow.
        weights, biases: of all matrices, row by row, one after the other.
        lower, upper: (boxes, inputs).
        low, high: (boxes, units), bounds that hold already; changed in place.
    """
    inputs, units, widest = lower.shape[1], low.shape[1], sizes.max()
    most = 1 + inputs + units
    gamma = 2 * (most + widest + 64) * EPS
    before, after = np.empty((widest, most + 2)), np.empty((widest, most + 2))
    loose, sums = np.empty((units, most + 4)), np.empty((5, max(most, widest)))
    places = np.empty((6, max(most, widest)), np.int64)
    for b in range(len(lower)):
        _begin(lower[b], upper[b], before, sums, places)
        known, new, symbols, first, w_at, b_at = inputs, 0, 0, 0, 0, 0
        for k in range(len(bent)):
            n, m = sizes[k], sizes[k + 1]
            last = first + m if bent[k] else first
            known, new = _layer(
                weights[w_at : w_at + n * m],
                biases[b_at : b_at + m],
                low[b, first:last],
                high[b, first:last],
                before,
                after,
                loose,
                sums,
                places,
                inputs,
                known,
                new,
                symbols,
                gamma,
            )
            places[BEFORE, :known], places[FRESH, :new] = places[AFTER, :known], places[FRESHER, :new]
            w_at, b_at, symbols, first = w_at + n * m, b_at + m, symbols + new, last
            before, after = after, before
