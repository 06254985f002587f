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

#: What is called from outside, and with what.
NAME = "tighten"
SIGNATURE = "void(i8[::1], b1[::1], f8[::1], f8[::1], f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[:, ::1])"

# Of a box: `ends`: the largest absolute values of (1, x, h); middle and half the width of the box.
REACH, MIDDLE, RADIUS = range(3)
# Of units of known sign: `T` (units, columns), and in `errors` e and S, see `loose`.
ERROR, SIZE = range(2)
# Of loose units: `lines`: slope and intercept above, slope below, error. All T of one layer are a matrix in `table`.
SLOPE, SHIFT, FLOOR, LOSS = range(4)
# Of these matrices: `blocks`: which loose unit is the first, how many there are, columns, and where in the table.
FIRST, COUNT, COLUMNS, START = range(4)


@_compiled
def _matrix(numbers: Floats, start: int, rows: int, columns: int) -> Floats:
    return numbers[start : start + rows * columns].reshape(rows, columns)


@_compiled
def _product(left: Floats, right: Floats, out: Floats) -> None:
    if left.shape[1] == 0:
        out[:] = 0.0
    elif out.size > 0:
        np.dot(left, right, out)


@_compiled
def _begin(lower: Floats, upper: Floats, T: Floats, errors: Floats, ends: Floats) -> None:
    """Set up the input: every entry is a unit of known sign, T = (0, 1 at its place)."""
    n = len(lower)
    ends[REACH, 0] = 1.0
    for t in range(n):
        ends[MIDDLE, t], ends[RADIUS, t] = (lower[t] + upper[t]) / 2, (upper[t] - lower[t]) / 2
        ends[REACH, 1 + t] = max(abs(lower[t]), abs(upper[t]))
        T[t, :] = 0.0
        T[t, 1 + t] = 1.0
        errors[ERROR, t], errors[SIZE, t] = 0.0, ends[REACH, 1 + t]


@_compiled
def _rows(
    weight: Floats,
    bias: Floats,
    known: Integers,
    T: Floats,
    errors: Floats,
    fresh: Integers,
    ends: Floats,
    gamma: float,
    part: Floats,
    product: Floats,
    Z: Floats,
    found: Floats,
    units: Integers,
) -> None:
    """Compute T, e and S of units.

    Args:
        weight, bias: of the matrix before them.
        known, T, errors: places in the layer before, T, e and S of its units of known sign.
        fresh: places of its loose units, whose columns T lacks.
        ends, gamma: see above, and `loose`.
        part, product: room for numbers.
        Z, found: T, and e and S; written.
        units: which.
    """
    old, columns = T.shape[1], Z.shape[1]
    for u in range(len(units)):
        for j in range(len(known)):
            part[u, j] = weight[units[u], known[j]]
    _product(part, T, product)
    for u in range(len(units)):
        i = units[u]
        Z[u, :old] = product[u]
        Z[u, 0] += bias[i]
        for s in range(len(fresh)):
            Z[u, old + s] = weight[i, fresh[s]]
        size, off, error = 0.0, abs(bias[i]), 0.0
        for c in range(columns):
            size += abs(Z[u, c]) * ends[REACH, c]
        for j in range(len(known)):
            off += abs(part[u, j]) * errors[SIZE, j]
            error += abs(part[u, j]) * errors[ERROR, j]
        found[ERROR, u] = (gamma * (off + size) + error) * UP + UNDERFLOW
        found[SIZE, u] = size * UP


@_compiled
def _between(z: Floats, off: float, ends: Floats, inputs: int) -> tuple[float, float]:
    """Return the least and the largest value of z over the box and over loose ReLUs' values, 0 to their reach."""
    middle, spread, below, above = z[0], off, 0.0, 0.0
    for t in range(inputs):
        middle += z[1 + t] * ends[MIDDLE, t]
        spread += abs(z[1 + t]) * ends[RADIUS, t]
    for c in range(1 + inputs, len(z)):
        v = z[c] * ends[REACH, c]
        below += min(v, 0.0)
        above += max(v, 0.0)
    return middle - spread + below, middle + spread + above


@_compiled
def _narrow(low: Floats, high: Floats, unit: int, ends: tuple[float, float]) -> None:
    """Take the better bounds of a unit; NaN is none."""
    low[unit] = ends[0] if ends[0] > low[unit] else low[unit]
    high[unit] = ends[1] if ends[1] < high[unit] else high[unit]


@_compiled
def _substituted(
    rows: Floats,
    least: Floats,
    inputs: int,
    layers: int,
    ends: Floats,
    lines: Floats,
    table: Floats,
    blocks: Integers,
    gamma: float,
    room: Floats,
    other: Floats,
) -> None:
    """Bound rows over (1, x, h), which are overwritten, from below; loose units of so many layers are in them."""
    least[: len(rows)] = 0.0
    for k in range(layers - 1, -1, -1):
        first, count, columns = blocks[k, FIRST], blocks[k, COUNT], blocks[k, COLUMNS]
        factors = _matrix(room, 0, len(rows), count)
        for r in range(len(rows)):
            shift, off = 0.0, 0.0
            for j in range(count):  # those of one layer do not depend on each other
                a, s = rows[r, columns + j], first + j
                off += abs(a) * lines[LOSS, s]
                shift += min(a, 0.0) * lines[SHIFT, s]
                factors[r, j] = a * (lines[SLOPE, s] if a < 0 else lines[FLOOR, s])
            rows[r, 0] += shift
            least[r] += off
        product = _matrix(other, 0, len(rows), columns)
        _product(factors, _matrix(table, blocks[k, START], count, columns), product)
        for r in range(len(rows)):
            for c in range(columns):
                rows[r, c] += product[r, c]
    for r in range(len(rows)):
        value = rows[r, 0]
        off = least[r] + gamma * abs(value)
        for t in range(inputs):
            a = rows[r, 1 + t]
            value += a * ends[MIDDLE, t] - abs(a) * ends[RADIUS, t]
            off += 4 * gamma * abs(a) * ends[REACH, 1 + t]
        least[r] = value - off * UP - UNDERFLOW


@_compiled
def _bounded(
    units: Integers,
    low: Floats,
    high: Floats,
    Z: Floats,
    found: Floats,
    ends: Floats,
    inputs: int,
    earlier: tuple[Floats, Floats, Integers],
    gamma: float,
    room: tuple[Floats, Floats, Floats],
    least: Floats,
    open_: Integers,
) -> None:
    """Tighten bounds of units that are loose so far.

    Args:
        units, Z, found: places in the layer, T, and e and S.
        low, high: changed in place.
        ends, inputs, gamma: of the box; how many there are; see `loose`.
        earlier: lines, table and blocks of loose units before.
        room, least, open_: room for numbers.
    """
    lines, table, blocks = earlier
    loose = 0
    for u in range(len(units)):
        i = units[u]
        if low[i] < 0:
            off = found[ERROR, u] + gamma * found[SIZE, u]
            _narrow(low, high, i, _between(Z[u], off, ends, inputs))
            if low[i] < 0 and high[i] > 0:
                open_[loose] = u
                loose += 1
    if len(blocks) > 0 and loose > 0:
        rows = _matrix(room[0], 0, 2 * loose, Z.shape[1])
        for r in range(loose):
            for c in range(Z.shape[1]):
                rows[2 * r, c], rows[2 * r + 1, c] = Z[open_[r], c], -Z[open_[r], c]
        _substituted(rows, least, inputs, len(blocks), ends, lines, table, blocks, gamma, room[1], room[2])
        for r in range(loose):
            off = found[ERROR, open_[r]]
            _narrow(low, high, units[open_[r]], (least[2 * r] - off, off - least[2 * r + 1]))


@_compiled
def _kept(
    is_bent: bool,
    low: Floats,
    high: Floats,
    units: Integers,
    Z: Floats,
    found: Floats,
    errors: Floats,
    places: Integers,
    fresh: Integers,
    first: int,
    lines: Floats,
    table: Floats,
    gamma: float,
) -> tuple[int, int]:
    """Sort units into those of known sign, which stay in Z, and loose ones, which go into the table; give their counts.

    Args:
        is_bent, low, high: whether ReLUs follow, and bounds of what goes into them.
        units, Z, found: places in the layer, T, and e and S.
        errors, places: of units of known sign; written.
        fresh, first, lines, table: places of loose units, their numbers, lines and T; written.
        gamma: see `loose`.
    """
    known, new, columns = 0, 0, Z.shape[1]
    for u in range(len(units)):
        i = units[u]
        if is_bent and high[i] <= 0:
            continue
        if is_bent and low[i] < 0:
            s, span = first + new, high[i] - low[i]
            slope = high[i] / span
            lines[SLOPE, s], lines[SHIFT, s] = slope, -slope * low[i] + 2e-15 * span
            lines[FLOOR, s] = 1.0 if high[i] > -low[i] else 0.0
            lines[LOSS, s] = found[ERROR, u] + gamma * (found[SIZE, u] + 4 * max(high[i], -low[i]))
            table[new * columns : (new + 1) * columns] = Z[u]
            fresh[new] = i
            new += 1
        else:
            Z[known], places[known] = Z[u], i
            errors[ERROR, known], errors[SIZE, known] = found[ERROR, u], found[SIZE, u]
            known += 1
    return known, new


@njit(cache=True, nogil=True, fastmath=_MATH)
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
        bent: for each matrix whether ReLUs follow; they do after the last.
        weights, biases: of all matrices, row by row, one after the other.
        lower, upper: (boxes, inputs).
        low, high: (boxes, units), bounds that hold already; changed in place.
    """
    inputs, total, widest = lower.shape[1], low.shape[1], sizes.max()
    most = 1 + inputs + total
    gamma = 2 * (most + widest + 64) * EPS
    ends, lines, blocks = np.empty((3, max(most, widest))), np.empty((4, total)), np.empty((len(bent), 4), np.int64)
    before, after, product = np.empty(widest * most), np.empty(widest * most), np.empty(2 * widest * most)
    twice, part, table = np.empty(2 * widest * most), np.empty(2 * widest * max(widest, total)), np.empty(total * most)
    errors, found, least = np.empty((2, widest)), np.empty((2, widest)), np.empty(2 * widest)
    places, fresh = np.arange(widest), np.empty(widest, np.int64)
    units, open_ = np.empty(widest, np.int64), np.empty(widest, np.int64)
    for b in range(len(lower)):
        _begin(lower[b], upper[b], _matrix(before, 0, inputs, 1 + inputs), errors, ends)
        places[:inputs] = np.arange(inputs)
        known, new, columns, layers, first, w_at, b_at, start = inputs, 0, 1 + inputs, 0, 0, 0, 0, 0
        for k in range(len(bent)):
            n, m, is_bent = sizes[k], sizes[k + 1], bent[k]
            weight, bias = _matrix(weights, w_at, m, n), biases[b_at : b_at + m]
            lo, hi = low[b, first : first + m], high[b, first : first + m]
            count = 0
            for i in range(m):
                if not is_bent or (hi[i] > 0 and (lo[i] < 0 or k < len(bent) - 1)):  # who reads the last?
                    units[count] = i
                    count += 1
            Z = _matrix(after, 0, count, columns)
            T, room = _matrix(before, 0, known, columns - new), _matrix(part, 0, count, known)
            other, these = _matrix(product, 0, count, columns - new), units[:count]
            here = places[:known]
            _rows(weight, bias, here, T, errors, fresh[:new], ends, gamma, room, other, Z, found, these)
            if is_bent:
                known_lines = lines, table, blocks[:layers]
                _bounded(
                    these, lo, hi, Z, found, ends, inputs, known_lines, gamma, (twice, part, product), least, open_
                )
            s = columns - 1 - inputs
            blocks[layers, FIRST], blocks[layers, COLUMNS], blocks[layers, START] = s, columns, start
            known, new = _kept(
                is_bent, lo, hi, units[:count], Z, found, errors, places, fresh, s, lines, table[start:], gamma
            )
            for j in range(new):
                ends[REACH, columns + j] = hi[fresh[j]]
            start, blocks[layers, COUNT] = start + new * columns, new
            layers += new > 0
            columns += new
            first += m if is_bent else 0
            w_at, b_at = w_at + n * m, b_at + m
            before, after = after, before
