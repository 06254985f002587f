"""`slopes.Ascent` for chains of matrices and ReLUs, a row at a time, compiled by numba.

The same lines are substituted and the same errors subtracted, in another order of sums. All that is added to a row's
constant may be one sum here, which is longer than those that `magnitudes` counts: `Stack` multiplies the errors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnrepair.extras import needed

with needed("fast", "The compiled kernel needs numba"):
    from numba import njit

#: As in `magnitudes` and `intervals`.
UNDERFLOW, TINY = 1e-200, 1e-280

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

# Sums may be taken in any order, and with fused multiply-add, as in a BLAS; infinities and NaN keep their meaning.
_MATH = {"reassoc", "contract", "nsz"}
_compiled = njit(nogil=True, fastmath=_MATH)

#: What is called from outside, and with what.
NAME = "ascend"
SIGNATURE = (
    "void(i8[::1], b1[::1], f8[::1], f8[::1], f8[:, ::1], f8[::1], f8[:, ::1], f8[::1], f8[:, ::1], f8[:, ::1], "
    "f8[:, :, ::1], b1[:, ::1], i8, f8, f8[::1], f8[:, ::1], f8[::1])"
)

# Around each unit: `lines` (rows, 3, units).
SLOPE, SHIFT, FLOOR = range(3)
# What rounding takes from rows: `rho` (2, numbers after matrices), at matrices and at ReLUs.
LINEAR, BENT = range(2)


@_compiled
def _bound(
    sizes: Integers,
    bent: Booleans,
    weights: Floats,
    biases: Floats,
    rho: Floats,
    first: Floats,
    ends: Floats,
    lines: Floats,
    floor: Floats,
    kept: Floats,
    a: Floats,
    b: Floats,
) -> tuple[float, float]:
    """Substitute a row backward; return c and the least value of `a . x + c` over the box, and leave `a` in b.

    Args:
        sizes, bent, weights, biases, rho, lines: see `ascend`.
        first: what rounding takes at the input.
        ends: (2, inputs), middle and half the width of the box.
        floor: (units,), slopes of the lines below.
        kept: (units,), coefficients on what comes out of units; written.
        a, b: room for numbers; the row is in the first.
    """
    c, w_at, b_at, u_at = 0.0, len(weights), len(biases), floor.size
    for k in range(len(bent) - 1, -1, -1):
        n, m = sizes[k], sizes[k + 1]
        w_at, b_at = w_at - n * m, b_at - m
        if bent[k]:
            u_at -= m
            for i in range(m):
                t, u = a[i], u_at + i
                kept[u] = t
                c -= abs(t) * rho[BENT, b_at + i]
                c += min(t, 0.0) * lines[SHIFT, u]
                a[i] = t * (lines[SLOPE, u] if t < 0 else floor[u])
        b[:n] = 0.0
        for i in range(m):
            t = a[i]
            if t != 0:
                c += t * biases[b_at + i] - abs(t) * rho[LINEAR, b_at + i]
                row = weights[w_at + i * n : w_at + (i + 1) * n]
                for j in range(n):
                    b[j] += t * row[j]
        for j in range(n):
            a[j] = b[j]
    value = 0.0
    for j in range(sizes[0]):
        c -= abs(a[j]) * first[j]
        value += a[j] * ends[0, j] - abs(a[j]) * ends[1, j]
    c -= UNDERFLOW
    return c, value + c


@_compiled
def _gradient(
    sizes: Integers,
    bent: Booleans,
    weights: Floats,
    biases: Floats,
    lines: Floats,
    loose: Booleans,
    floor: Floats,
    kept: Floats,
    x: Floats,
    a: Floats,
    b: Floats,
) -> float:
    """Write the derivatives of a row's bound by the slopes over `kept`; return the sum of their squares, and TINY.

    Args:
        sizes, bent, weights, biases, lines, loose: see `ascend`.
        floor, kept: as `_bound` was given and left them.
        x: (inputs,), the corner of the box where the bound is attained.
        a, b: room for numbers.
    """
    a[: len(x)] = x
    square, w_at, b_at, u_at = TINY, 0, 0, 0
    for k in range(len(bent)):
        n, m = sizes[k], sizes[k + 1]
        for i in range(m):
            row, value = weights[w_at + i * n : w_at + (i + 1) * n], biases[b_at + i]
            for j in range(n):
                value += row[j] * a[j]
            b[i] = value
        for i in range(m):
            value = b[i]
            if bent[k]:
                u = u_at + i
                t = kept[u]
                slope = t * value if loose[u] and t > 0 else 0.0
                if (floor[u] <= 0 and slope < 0) or (floor[u] >= 1 and slope > 0):
                    slope = 0.0
                kept[u] = slope
                square += slope * slope
                value = lines[SLOPE, u] * value + lines[SHIFT, u] if t < 0 else floor[u] * value
            a[i] = value
        w_at, b_at = w_at + n * m, b_at + m
        u_at += m if bent[k] else 0
    return square


@njit(cache=True, nogil=True, fastmath=_MATH)
def ascend(
    sizes: Integers,
    bent: Booleans,
    weights: Floats,
    biases: Floats,
    rho: Floats,
    first: Floats,
    A: Floats,
    offset: Floats,
    lower: Floats,
    upper: Floats,
    lines: Floats,
    loose: Booleans,
    steps: int,
    ahead: float,
    best: Floats,
    found: Floats,
    constant: Floats,
) -> None:
    """Bound rows from below, with slopes of the lines below units that supergradient ascent chooses.

    Args:
        sizes: of the input and of what comes out of each matrix.
        bent: for each matrix whether ReLUs follow.
        weights, biases: of all matrices, row by row, one after the other.
        rho, first: what rounding takes from rows, see above; at the input.
        A, offset: (rows, size) and (rows,), bounds are of `A . v - offset` of what comes out at the end.
        lower, upper: (rows, inputs), the box of each row.
        lines: (rows, 3, units), with the slopes to begin with; written over.
        loose: (rows, units), where other slopes from 0 to 1 are sound.
        steps, ahead: see `Ascent.run`.
        best, found, constant: (rows,), (rows, inputs), (rows,): values, and the bounds that have them; written.
    """
    widest, inputs = sizes.max(), sizes[0]
    a, b, x, ends = np.empty(widest), np.empty(widest), np.empty(inputs), np.empty((2, inputs))
    kept, row = np.empty(loose.shape[1]), np.empty(inputs)
    for r in range(len(A)):
        best[r], constant[r], found[r] = -np.inf, -np.inf, 0.0
        floor = lines[r, FLOOR]
        for j in range(inputs):
            ends[0, j], ends[1, j] = (lower[r, j] + upper[r, j]) / 2, (upper[r, j] - lower[r, j]) / 2
        for step in range(steps):
            a[: A.shape[1]] = A[r]
            c, value = _bound(sizes, bent, weights, biases, rho, first, ends, lines[r], floor, kept, a, b)
            row[:] = a[:inputs]
            value -= offset[r]
            if np.isfinite(value) and value > best[r]:
                best[r], constant[r] = value, c - offset[r]
                found[r] = row
            if step == steps - 1 or best[r] > 0:
                break
            for j in range(inputs):
                x[j] = min(max(ends[0, j] - np.sign(row[j]) * ends[1, j], lower[r, j]), upper[r, j])
            square = _gradient(sizes, bent, weights, biases, lines[r], loose[r], floor, kept, x, a, b)
            length = (ahead * abs(value) - value + 1e-9) / square
            for u in range(len(floor)):
                floor[u] = min(max(floor[u] + length * kept[u], 0.0), 1.0) if loose[r, u] else floor[u]
