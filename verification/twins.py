"""Bounds of two networks of one shape at once, for compare.py: of each unit also how far it is from its twin.

f and g have equally many units everywhere. They are read as one chain of check.py: layer k gives z_k of f, then z'_k of
g, from block matrices; so its Bounder bounds both, with its account of rounding. What it does not know:

Twins. Let h = max(z, 0), h' = max(z', 0), d = z' - z in [l, u], D = h' - h. D is between min(d, 0) and max(d, 0), as
max(., 0) is monotone and moves by no more than its argument. With l_ = min(l, 0), u_ = max(u, 0) and w = u_ - l_, by
convexity  D <= (u_ / w) (d - l_)  and  D >= (-l_ / w) (d - u_). For coefficients a of h and b of h' of opposite signs,
c = min(|a|, |b|) with the sign of b,  a h + b h' = (a + c) h + (b - c) h' + c D,  where one of the first two vanishes.
Any c between 0 and that may be taken, so D is used where it promises more than bounds of h and h' by themselves.

d. l and u come from intervals, and from bounds of the rows z' - z and z - z' by substitution as of any others.

Rounding. Coefficients of z are at most |a + c| + |c| = |a| in size, of z' at most |b|, times 1 + 4 U: as check.py
assumes of each, G covers them. What D's lines add has size at most |c| (|l| + |u|) <= 2 |a| M + 2 |b| M', as
|c| <= |a|, |b| and |l|, |u| <= M + M': below 4 G M, which `terms` has. Slope and intercept of a line are computed to
within 4 U w of a line above (below) D, by which, and 1e-300, it is moved. A row z' - z has its own constant, rounded
once, which counts as its |c|.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import check as bounds
import numpy as np
from check import Rejected
from reading import Layer

Array = np.ndarray


class Twins(bounds.Bounder):
    """Bounds of rows of both networks' outputs, f's first, over boxes inside a root."""

    def __init__(self, f: list[Layer], g: list[Layer], lower: Any, upper: Any, unsafe: list[list[Any]]) -> None:
        rows = list(dict.fromkeys(row for way in unsafe for row in way))
        place = {row: k for k, row in enumerate(rows)}
        self.ways = [[place[row] for row in way] for way in unsafe]
        self.half = [len(layer.bias) for layer in f]
        stacked = []
        for k, (a, b) in enumerate(zip(f, g, strict=True)):
            weight = np.concatenate([a.weight, b.weight])
            if k:
                weight = np.zeros((2 * a.weight.shape[0], 2 * a.weight.shape[1]))
                weight[: len(a.bias), : a.weight.shape[1]] = a.weight
                weight[len(a.bias) :, a.weight.shape[1] :] = b.weight
            stacked.append(Layer(weight, np.concatenate([a.bias, b.bias]), a.relu))
        super().__init__(stacked, lower, upper, rows)
        self.batch = max(1, min(self.batch, 2**22 // (len(rows) * max(map(len, (v.bias for v in stacked))))))

    def relax(self, lower: Array, upper: Array, lows: Array, highs: Array) -> tuple[list[Any], Array]:
        """Tighten bounds of all z and z' over boxes; give what `backward` needs per layer, and units not always 0."""
        steps, low, high, on = list[Any](), lower, upper, np.arange(lower.shape[1])
        known = zip(np.split(lows, self.ends, 1), np.split(highs, self.ends, 1), strict=True)
        for k, (layer, ends) in enumerate(zip(self.layers, known, strict=True)):
            n, weight = self.half[k], layer.weight[:, on]
            low, high = self.tighten(k, weight, low, high, ends, steps, lower, upper)
            if not layer.relu:
                on, lines = np.arange(2 * n), None
            else:
                live = np.flatnonzero((high[:, :n] > 0).any(0) | (high[:, n:] > 0).any(0))
                apart = self.apart(k, weight, live, low, high, steps, lower, upper)
                on = np.concatenate([live, n + live])
                low, high = low[:, on], high[:, on]
                lines = *self.alone(low, high), *self.together(low, high, *apart)
                low, high = np.maximum(low, 0), np.maximum(high, 0)
            steps.append((lines, weight[on], layer.bias[on], self.terms[k][on]))
        return steps, on

    def apart(
        self, k: int, weight: Array, live: Array, low: Array, high: Array, steps: list[Any], lower: Array, upper: Array
    ) -> tuple[Array, Array]:
        """Bound d over boxes."""
        n, bias = self.half[k], self.layers[k].bias
        (low, low_), (high, high_) = ((v[:, live], v[:, n + live]) for v in (low, high))
        least, most = low_ - high, high_ - low
        least, most = least - 2 * bounds.U * np.abs(least), most + 2 * bounds.U * np.abs(most)
        boxes, units = np.nonzero(((low < 0) | (low_ < 0)) & ((high > 0) | (high_ > 0)))
        for i in range(0, len(boxes), self.chunk):
            box, at = boxes[i : i + self.chunk], units[i : i + self.chunk]
            unit = live[at]
            A, c = weight[n + unit] - weight[unit], bias[n + unit] - bias[unit]  # blocks: nothing is subtracted
            if not k:  # but for the input, which both read: two rows of the same entries
                off = self.gamma * (np.abs(weight[n + unit]) + np.abs(weight[unit])) @ self.size
            else:
                off = np.zeros(len(unit))
            off = off + self.gamma * (np.abs(bias[n + unit]) + np.abs(bias[unit]))
            least[box, at] = np.fmax(least[box, at], self.backward(A, c, box, steps, lower, upper)[1] - off)
            most[box, at] = np.fmin(most[box, at], off - self.backward(-A, -c, box, steps, lower, upper)[1])
        return least, most

    def alone(self, low: Array, high: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Give the slope below a ReLU, slope and intercept above, and what check.py's `between` needs."""
        L, H = np.minimum(low, 0), np.maximum(high, 0)
        s = H / (H - L + 1e-300)
        t, loose = np.maximum(-s * L, H - s * H) + 8 * bounds.U * H + 1e-300, low < 0
        return np.where(high <= -low, 0.0, 1.0), s, t, np.where(loose, H, 0), np.where(loose, 0.0, 1.0)

    def together(self, low: Array, high: Array, l: Array, u: Array) -> tuple[Array, Array, Array, Array, Array]:  # noqa: E741
        """Give slope and intercept below and above D, and where these promise more than each unit's own lines."""
        l, u, n = np.minimum(l, 0), np.maximum(u, 0), low.shape[1] // 2  # noqa: E741
        w = u - l
        p, q = -l / (w + 1e-300), u / (w + 1e-300)
        lift = 8 * bounds.U * w + 1e-300
        L, H = np.minimum(low, 0), np.maximum(high, 0)
        above, below = -L * H / (H - L + 1e-300), np.minimum(-L, H)  # what a unit's own lines lose at most
        own = np.minimum(above[:, :n] + below[:, n:], below[:, :n] + above[:, n:])
        return p, -p * u - lift, q, -q * l + lift, np.maximum(u, -l) < own

    def backward(self, A: Array, c: Array, box: Array, steps: list[Any], lower: Array, upper: Array, *seen: Any) -> Any:
        """Bound A h + c, each row over its box, h being what the last step gives: (coefficients of x, minimum)."""
        E = np.abs(c)
        for lines, weight, bias, terms in reversed(steps):
            G = np.abs(A)
            if lines is not None:
                a, s, t, p, r, q, v, near = (np.take(each, box, 0) for each in (*lines[:3], *lines[5:]))
                n = A.shape[1] // 2
                one, two = A[:, :n], A[:, n:]
                common = np.where(near & (one * two < 0), np.minimum(np.abs(one), np.abs(two)) * np.sign(two), 0)
                A = A + np.concatenate([common, -common], 1)
                negative, positive = np.minimum(A, 0), np.maximum(A, 0) * a
                move = common * np.where(common > 0, p, q)
                c = c + np.einsum("rn,rn->r", negative, t) + np.einsum("rn,rn->r", common, np.where(common > 0, r, v))
                A = positive + negative * s + np.concatenate([-move, move], 1)
            E = E + G @ terms
            c = c + A @ bias
            A = A @ weight
        c = c + np.einsum("rn,rn->r", np.maximum(A, 0), lower[box])
        c = c + np.einsum("rn,rn->r", np.minimum(A, 0), upper[box])
        E = E + np.abs(A) @ self.size
        return A, c - self.gamma * E - bounds.TINY * (E > 0)

    def shrink(self, lower: Array, upper: Array, lows: Array, highs: Array) -> Array:
        """Tell for which boxes no output is unsafe; tighten bounds of all z and z'."""
        steps, on = self.relax(lower, upper, lows, highs)
        n, m = len(lower), len(self.rows.bias)
        A, c = np.tile(self.rows.weight[:, on], (n, 1)), np.tile(self.rows.bias, n)
        value = self.backward(A, c, np.repeat(np.arange(n), m), steps, lower, upper)[1].reshape(n, m)
        holds = (value > 0) | (self.strict & (value >= 0))
        return np.all([holds[:, way].any(1) for way in self.ways], 0)


def far(outputs: int, tolerance: Fraction) -> list[list[Any]]:
    """Give the sets {a.y + b <= 0, or < 0} in which an output moves by more than a tolerance."""
    found = []
    for k in range(outputs):
        for sign in (1, -1):
            row = [Fraction(0)] * (2 * outputs)
            row[k], row[outputs + k] = Fraction(sign), Fraction(-sign)
            found.append([(tuple(row), tolerance, True)])
    return found


def others(outputs: int, sign: int, margin: Fraction) -> list[list[Any]]:
    """Give the sets in which k wins in f by a margin, and j in g: the first of the largest outputs, times sign.

    If so, k's lead over j shrank by more than the margin, or by as much and no ties are lost: a row that follows.
    """

    def row(entries: dict[int, int], b: Fraction, strict: bool) -> Any:
        return tuple(Fraction(sign * entries.get(i, 0)) for i in range(2 * outputs)), b, strict

    found = []
    for k in range(outputs):
        for j in range(outputs):
            if j == k:
                continue
            way = [row({i: 1, k: -1}, margin, not margin and i < k) for i in range(outputs) if i != k]
            way += [row({outputs + i: 1, outputs + j: -1}, Fraction(0), i < j) for i in range(outputs) if i != j]
            way.append(row({j: 1, k: -1, outputs + k: 1, outputs + j: -1}, margin, not margin or k < j))
            found.append(way)
    return found


def prove(f: list[Layer], g: list[Layer], boxes: Any, unsafe: list[list[Any]], starts: Any, nodes: Any) -> int:
    """Raise Rejected unless no point of the boxes has unsafe outputs; give how many parts had to be halved."""
    total, halved = len(nodes[0]) - 1, 0
    for i, (box, start) in enumerate(zip(boxes, starts, strict=True), 1):
        try:
            spare = bounds.SPARE + int(bounds.SHARE * total) - halved
            halved += bounds.replay(Twins(f, g, *box, unsafe), nodes, start, spare)
        except Rejected as error:
            raise Rejected(f"box {i} of {len(boxes)}: {error}") from None
    return halved
