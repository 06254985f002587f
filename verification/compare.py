"""Check a proof of how little two networks differ; trusts neither the search nor the library.

    python verification/compare.py CERT.npz BEFORE.onnx AFTER.onnx

Exit 0: accepted. 1: rejected, with the reason. 2: a file cannot be read, holds more than reading.py and this program
know (fully connected ReLU networks, equal but for their last layer), or the command line is wrong.

f and g are the real-valued functions of the networks with their constants as stored (a float32 run may round
differently), of one list of numbers, in the order in which each network stores its input. CERT has the boxes of a
region, a split tree for each, and three claims, which are printed. Acceptance proves of the region's volume: at least
so much has f(x) = g(x); at least so much has one decision, the first smallest (argmin) or largest output (argmax), in
both; at least so much has another decision in g.

Cover. The root is the box, rounded outward. An inner node hands x_d <= cut to one child and x_d >= cut to the other;
cuts outside of a node are refused. Bits of a node say which of the three volumes are taken from its own bounds; every
way from the root to a leaf has each bit once. So each volume is a sum over parts that cover the root and share no
inside. The root's surplus over the box, of volume e, is taken off what is changed, and counts as what may change.
Volumes of parts are exact fractions. If claims are not met, the parts that leave most open are halved, a few times.

Parts. Bounder (check.py) gives lower bounds A (x - corner) + least >= of a row, A_d (x_d - corner_d) >= 0, over a part:
of y_j - y_k for all pairs of outputs of f and of g, and of units that the change of the last layer multiplies.
    identical  f = g where every such unit is zero; no bias may differ.
    same       Where the decision goes from k to j, y_j - y_k >= 0 in f and <= 0 in g, k beats all in f, j all in g, and
               the change of y_j - y_k is < 0, or 0 and both differences are: then the first of two equal outputs is
               k in f and j in g, which contradict each other. So pairs of outputs that did not change, or whose change
               is >= 0 on the part, cannot flip.
    changed    y_j - y_k > 0 for all j in f, and y_k - y_j > 0 for all k in g, is a change from k to j; different pairs
               exclude each other.
Two bounds p, q with p + q >= s on the part are both <= 0 only where s <= p <= 0, and both > 0 at least where 0 < p < s:
slabs, or half-spaces, of the part.

Equivalence. Another kind of CERT claims of all points of its boxes that f and g agree: that no output differs by more
than a tolerance, or that the decision is the same where it is made by a margin. It is proved box by box and tree by
tree as a property is by check.py, with the bounds of twins.py, for networks with equally many units in every layer.

Shares. In u = (x - corner) / width a bound is least + r . u with r >= 0. The volume of {r . u <= t} in the unit cube is
the sum over subsets V of (-1)^|V| max(t - r(V), 0)^n / (n! prod r), here for integers, to which r and t are rounded so
that the share can only grow, or only shrink; 1e-12 of their size covers how they were computed in float64.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

try:
    import bounded
    import check as bounds
    import numpy as np
    import onnx_graph
    import twins
    from check import Rejected
    from reading import Layer, limit
    from written import read_network
except ImportError as problem:
    if __name__ != "__main__":
        raise
    print(f"Cannot be read: {problem}. This program needs numpy, onnx, and the files beside it.")
    sys.exit(2)

Array = np.ndarray
FORMAT, EQUIVALENCE = "nnrepair-comparison-1", "nnrepair-comparison-equivalence-1"
ONE, GRID, ROUNDED = 2**40, 2**28, 1e-12  # shares are multiples of 1 / ONE; grid of r; see above
MAYBE, SURE, DIFFERS = range(3)
NODES, BOXES, DIGITS, INPUTS, OUTPUTS = 2**22, 1000, 1000, 6, 64
SPARE, SHARE = 2000, 0.25  # so many parts may be halved, and so many more for each node of the certificate


def share(r: Array, t: Array, up: bool) -> Array:
    """Give the share of the unit cube where r . u <= t, as multiples of 1 / ONE, too large if up, else too small."""
    total, answer = r.sum(1), np.full(len(r), ONE if up else 0, object)
    finite = np.isfinite(total) & np.isfinite(t)
    answer[finite & (t >= total * (1 + ROUNDED))], answer[finite & (t < 0)] = ONE, 0
    i = np.flatnonzero(finite & (t >= 0) & (t < total * (1 + ROUNDED)))
    if not len(i):
        return answer
    r, t = np.sort(r[i], 1), t[i]
    if not up:  # of many inputs only the largest are counted
        t = t - r[:, :-INPUTS].sum(1) * (1 + ROUNDED)
    r, n = r[:, -INPUTS:], min(INPUTS, r.shape[1])
    scale = GRID / np.maximum(r.sum(1), 1e-300)
    if up:
        whole = np.floor(r * scale[:, None] * (1 - ROUNDED))
        level = np.ceil(t * scale * (1 + ROUNDED)) + (whole < 1).sum(1) + 1
        whole = np.maximum(whole, 1)
    else:
        whole = np.ceil(r * scale[:, None] * (1 + ROUNDED)) + 1
        level = np.floor(t * scale * (1 - ROUNDED)) - 1
    sums: list[tuple[int, Any]] = [(1, np.array([int(v) for v in level], object))]
    product: Any = math.factorial(n)
    for column in whole.T:
        w = np.array([int(v) for v in column], object)
        sums += [(-sign, rest - w) for sign, rest in sums]
        product = product * w
    volume = sum(sign * np.maximum(rest, 0) ** n for sign, rest in sums)
    answer[i] = np.clip(-((-volume * ONE) // product) if up else volume * ONE // product, 0, ONE)
    return answer


class Lines:
    """Lower bounds of rows over parts: least (parts, rows), slope (parts, rows, inputs) times the widths."""

    def __init__(self, least: Array, slope: Array) -> None:
        self.least, self.slope, self.rise = least, slope, np.abs(slope)

    def falls(self, i: Array, row: int) -> Array:
        return share(self.rise[i, row], -self.least[i, row], True)

    def together(self, i: Array, p: int, q: int) -> Array:
        """Give the least sum of two bounds over parts, rounded down."""
        sizes = self.rise[i, p].sum(1) + self.rise[i, q].sum(1)
        least = self.least[i, p] + self.least[i, q]
        slack = ROUNDED * (sizes + np.abs(self.least[i, p]) + np.abs(self.least[i, q]))
        return least + (sizes - np.abs(self.slope[i, p] + self.slope[i, q]).sum(1)) / 2 - slack

    def both_fall(self, i: Array, p: int, q: int) -> Array:
        s, best = self.together(i, p, q), np.full(len(i), ONE, object)
        for row in (p, q):
            t = -self.least[i, row]
            below = share(self.rise[i, row], t + s - ROUNDED * np.abs(t), False)
            best = np.minimum(best, share(self.rise[i, row], t, True) - below)
        return np.where(s > 0, 0, np.clip(best, 0, ONE))

    def both_rise(self, i: Array, p: int, q: int) -> Array:
        s, best = np.maximum(self.together(i, p, q), 0), np.zeros(len(i), object)
        for row in (p, q):
            t = -self.least[i, row]
            below = share(self.rise[i, row], t + s - ROUNDED * np.abs(t), False)
            best = np.maximum(best, below - share(self.rise[i, row], t, True))
        return np.where(s > 0, best, 0)


class Pair:
    """Two networks over one root, and the rows that decide."""

    def __init__(self, layers: tuple[list[Layer], list[Layer]], sign: int, lower: Any, upper: Any) -> None:
        (*hidden, f), (*_, g) = layers
        m = len(f.bias)
        both = Layer(np.concatenate([f.weight, g.weight]), np.concatenate([f.bias, g.bias]))
        self.pairs = [(k, j) for k in range(m) for j in range(m) if j != k]
        rows = [
            (tuple(Fraction(sign * ((i == j + at) - (i == k + at))) for i in range(2 * m)), Fraction(0), False)
            for at in (0, m)
            for k, j in self.pairs
        ]
        self.bounder = bounds.Bounder([*hidden, both], lower, upper, rows)
        self.place = {pair: i for i, pair in enumerate(self.pairs)}
        self.hidden, self.m, self.sign = hidden, m, sign
        self.moved = np.flatnonzero((f.weight != g.weight).any(0))
        self.change, self.shift = (g.weight - f.weight)[:, self.moved], g.bias - f.bias
        self.touched = (f.weight != g.weight).any(1) | (f.bias != g.bias)
        self.still = not (f.bias != g.bias).any() and bool(hidden) and hidden[-1].relu

    def judge(self, lower: Array, upper: Array) -> Array:
        """Give (parts, 3), in units of 1 / ONE: what may be decided otherwise, what surely is, what may differ."""
        n, bounder = len(lower), self.bounder
        lows, highs = (np.repeat(end, n, 0) for end in bounder.root[2:])
        steps, on = bounder.relax(lower, upper, lows, highs)
        count = len(bounder.rows.bias)
        box = np.repeat(np.arange(n), count)
        A, c = np.tile(bounder.rows.weight[:, on], (n, 1)), np.tile(bounder.rows.bias, n)
        A, least = bounder.backward(A, c, box, steps, lower, upper)
        lines = Lines(least.reshape(n, count), (A * (upper - lower)[box]).reshape(n, count, -1))
        units = self.units(steps, lower, upper, lows, highs)
        differs = np.minimum(units.sum(1), ONE) if self.still else np.full(n, ONE, object)
        maybe = np.minimum(self.maybe(lines, units, *self.moving(lows, highs)), differs)
        return np.stack([maybe, np.minimum(self.sure(lines), maybe), differs], 1)

    def moving(self, lows: Array, highs: Array) -> tuple[Array, Array]:
        """Give bounds (parts, moved) of the values that the change multiplies; without ReLUs before it, none."""
        if not self.still and not (self.hidden and self.hidden[-1].relu):
            return np.full((len(lows), len(self.moved)), -np.inf), np.full((len(lows), len(self.moved)), np.inf)
        units = self.bounder.ends[-1] - len(self.hidden[-1].bias) + self.moved
        return np.maximum(lows[:, units], 0), np.maximum(highs[:, units], 0)

    def units(self, steps: list[Any], lower: Array, upper: Array, lows: Array, highs: Array) -> Array:
        """Give (parts, moved) the shares where units that the change multiplies may be other than zero."""
        answer = np.full((len(lower), len(self.moved)), ONE, object)
        if not self.still:
            return answer
        ends, last = [0, *self.bounder.ends], self.hidden[-1]
        place = ends[-2] + self.moved
        answer[highs[:, place] <= 0] = 0
        on = np.arange(lower.shape[1])
        if len(self.hidden) > 1:
            before = self.hidden[-2]
            on = np.flatnonzero((highs[:, ends[-3] : ends[-2]] > 0).any(0) | (not before.relu))
        box, unit = np.nonzero((highs[:, place] > 0) & (lows[:, place] <= 0))
        if len(box):
            rows = self.moved[unit]
            A, least = self.bounder.backward(
                -last.weight[rows][:, on], -last.bias[rows], box, steps[: len(self.hidden) - 1], lower, upper
            )
            answer[box, unit] = share(np.abs(A * (upper - lower)[box]), -least, True)
        return answer

    def maybe(self, lines: Lines, units: Array, low: Array, high: Array) -> Array:
        n, at, positive = len(lines.least), len(self.pairs), lines.least > 0
        first = [~positive[:, [self.place[j, k] for j in range(self.m) if j != k]].any(1) for k in range(self.m)]
        last = [~positive[:, [at + self.place[j, k] for j in range(self.m) if j != k]].any(1) for k in range(self.m)]
        out, into = ([np.zeros(n, object) for _ in range(self.m)] for _ in range(2))
        for (k, j), place in self.place.items():
            if not (self.touched[j] or self.touched[k]):
                continue
            pull, shift = (self.sign * (v[j] - v[k]) for v in (self.change, self.shift))
            pull = pull - 4 * bounds.U * (np.abs(self.change[j]) + np.abs(self.change[k])) * (
                (self.change[j] != 0) & (self.change[k] != 0)
            )
            shift = shift - 4 * bounds.U * (abs(self.shift[j]) + abs(self.shift[k])) * bool(
                self.shift[j] and self.shift[k]
            )
            with np.errstate(invalid="ignore"):
                falls = np.where(pull < 0, pull * high, 0).sum(1)
                grows = np.where(pull > 0, pull * low, 0).sum(1) + shift
            may_fall = ((pull < 0) & (high > 0)).any(1)  # by signs: products may be too small for a float
            steady = (shift >= 0) & ~may_fall
            steady |= grows + falls > ROUNDED * (np.abs(grows) - falls + abs(shift)) + bounds.TINY
            p, q = self.place[j, k], at + place
            i = np.flatnonzero(~positive[:, p] & ~positive[:, q] & first[k] & last[j] & ~steady)
            if len(i):
                flips = np.minimum(lines.both_fall(i, p, q), ONE)
                if self.still:
                    flips = np.minimum(flips, units[i][:, pull < 0].sum(1))
                out[k][i] += flips
                into[j][i] += flips
        for parts, base in ((out, 0), (into, at)):
            for k, part in enumerate(parts):
                i = np.flatnonzero(part > 0)
                for j in range(self.m) if len(i) else ():
                    if j != k:
                        part[i] = np.minimum(part[i], lines.falls(i, base + self.place[j, k]))
        return np.minimum(np.minimum(sum(out), sum(into)), ONE)

    def sure(self, lines: Lines) -> Array:
        n, at = len(lines.least), len(self.pairs)
        top, total = lines.least + lines.rise.sum(2), np.zeros(n, object)
        for (k, j), place in self.place.items():
            if not (self.touched[j] or self.touched[k]):
                continue
            p, q = place, at + self.place[j, k]
            others = {self.place[k, i] for i in range(self.m) if i != k} - {p}
            others |= {at + self.place[j, i] for i in range(self.m) if i != j} - {q}
            i = np.flatnonzero((top[:, [p, q, *others]] > 0).all(1))
            if len(i):
                part = lines.both_rise(i, p, q)
                for other in others if part.any() else ():
                    part = part - lines.falls(i, other)
                total[i] += np.maximum(part, 0)
        return np.minimum(total, ONE)


# Files ---------------------------------------------------------------------------------------------------------------


def exact(text: Any) -> Fraction:
    if not isinstance(text, str) or len(text) > DIGITS or not re.fullmatch(r"-?[0-9]+(/[0-9]*[1-9][0-9]*)?", text):
        raise Rejected(f"{str(text)[:40]!r} is no fraction")
    return Fraction(text)


def read_boxes(given: Any, inputs: int, flat: bool = False) -> list[tuple[tuple[Fraction, ...], tuple[Fraction, ...]]]:
    """Give the boxes of the region, which must have a volume and share no inside; unless they may be `flat`."""
    if not isinstance(given, list) or not all(isinstance(box, list) and len(box) == 2 for box in given) or not given:
        raise Rejected("the boxes are no list of lower and upper ends")
    limit("boxes", len(given), BOXES)
    boxes = [tuple(tuple(exact(v) for v in end) if isinstance(end, list) else () for end in box) for box in given]
    for low, high in boxes:
        wrong = len(low) != inputs or len(high) != inputs
        if wrong or not all(a < b or (flat and a == b) for a, b in zip(low, high, strict=True)):
            raise Rejected(f"a box has no volume, or other than {inputs} inputs")
    for i, one in enumerate(boxes if not flat else ()):
        for other in boxes[:i]:
            if all(max(a, c) < min(b, d) for a, b, c, d in zip(*one, *other, strict=True)):
                raise Rejected("two boxes of the region overlap")
    return boxes


def volume(low: Any, high: Any) -> Fraction:
    return math.prod((Fraction(b) - Fraction(a) for a, b in zip(low, high, strict=True)), start=Fraction(1))


def read_tasks(arrays: Any, roots: list[tuple[Array, Array]], inputs: int) -> list[list[tuple[Array, Array, int]]]:
    """Give for each tree the parts whose bounds are asked for: lower, upper, and which volumes are taken there."""
    dim, cut, taken = (arrays[name] for name in ("dim", "cut", "taken"))
    kinds = [(v.dtype, v.ndim) for v in (dim, cut, taken)]
    if kinds != [(np.int16, 1), (np.float64, 1), (np.uint8, 1)] or len(taken) != len(dim):
        raise Rejected("dim, cut and taken are not arrays of the right types and sizes")
    limit("nodes", dim.size, NODES)
    if not ((dim >= -1) & (dim < inputs)).all() or (dim >= 0).sum() != len(cut) or not np.isfinite(cut).all():
        raise Rejected("an input or a cut does not exist")
    node, cuts, found = 0, iter(cut.tolist()), []
    dims, bits = dim.tolist(), taken.tolist()
    for low, high in roots:
        stack, tasks = [(low, high, 7)], list[Any]()
        while stack:
            if node == len(dims):
                raise Rejected("the nodes are fewer than the trees need")
            low, high, open_ = stack.pop()
            here, rest, d = open_ & bits[node], open_ & ~bits[node], dims[node]
            node += 1
            if here:
                tasks.append((low, high, here))
            if d < 0:
                if rest:
                    raise Rejected("a leaf leaves a volume open")
                continue
            at = next(cuts)
            if not low[d] < at < high[d]:
                raise Rejected(f"a cut at {at} does not lie inside of its node")
            below, above = high.copy(), low.copy()
            below[d] = above[d] = at
            stack += [(above, high, rest), (low, below, rest)]
        found.append(tasks)
    if node < len(dims):
        raise Rejected("there are more nodes than the trees need")
    return found


class Sums:
    """The three volumes of one root, part by part."""

    def __init__(self, pair: Pair, tasks: list[tuple[Array, Array, int]]) -> None:
        self.pair = pair
        self.low, self.high = (np.array([task[end] for task in tasks]) for end in (0, 1))
        self.bits = np.array([task[2] for task in tasks])
        self.value = self.bounded(self.low, self.high)
        self.volume = self.volumes(self.low, self.high)

    def bounded(self, low: Array, high: Array) -> Array:
        batch = self.pair.bounder.batch
        pieces = [
            self.pair.judge(low[i : i + batch].copy(), high[i : i + batch].copy()) for i in range(0, len(low), batch)
        ]
        return np.concatenate(pieces)

    def volumes(self, low: Array, high: Array) -> Array:
        return np.array([volume(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)], object)

    def totals(self) -> list[Fraction]:
        parts = [self.bits >> q & 1 > 0 for q in range(3)]
        return [sum(self.volume[i] * self.value[i, q], Fraction(0)) / ONE for q, i in enumerate(parts)]

    def refine(self, wanted: list[int], most: int) -> int:
        """Halve the parts that leave most open of some volumes; give how many."""
        here = self.bits & sum(2**q for q in wanted) > 0
        open_ = np.zeros(len(self.bits))
        for q in wanted:
            left = self.value[:, q] if q != SURE else self.value[:, MAYBE] - self.value[:, SURE]
            open_ += np.where(self.bits >> q & 1, left.astype(float), 0)
        open_ *= np.where(here, self.volume.astype(float), 0)
        worst = np.argsort(-open_)[: min(most, 1024, int((open_ > 0).sum()))]
        if not len(worst):
            return 0
        low, high = self.low[worst], self.high[worst]
        width, each = self.high.max(0) - self.low.min(0), np.arange(len(worst))
        d = ((high - low) / width).argmax(1)
        middle = (low[each, d] + high[each, d]) / 2
        splits = (middle > low[each, d]) & (middle < high[each, d])
        worst, low, high, d, middle = (v[splits] for v in (worst, low, high, d, middle))
        if not len(worst):
            return 0
        each, below, above = np.arange(len(worst)), high.copy(), low.copy()
        below[each, d], above[each, d] = middle, middle
        halves, bits = [(low, below), (above, high)], self.bits[worst]
        new = [(a, b, bits, self.bounded(a, b), self.volumes(a, b)) for a, b in halves]
        stay = np.ones(len(self.bits), bool)
        stay[worst] = False
        for name, parts in zip(("low", "high", "bits", "value", "volume"), zip(*new, strict=True), strict=True):
            setattr(self, name, np.concatenate([getattr(self, name)[stay], *parts]))
        return len(worst)


def read_claims(meta: dict[str, Any], hashes: dict[str, str], inputs: int) -> tuple[dict[str, Fraction], Any]:
    expected = hashes | {"format": FORMAT}
    for key, value in expected.items():
        if meta.get(key) != value:
            raise Rejected(f"{key} is {meta.get(key)!r:.200} in the certificate, but should be {value!r}")
    if meta.get("decision") not in ("argmin", "argmax"):
        raise Rejected(f"the decision {meta.get('decision')!r:.80} is neither argmin nor argmax")
    numbers = [meta.get(key) for key in ("grid", "identical", "same", "changed")]
    if not all(type(v) is int and 0 <= v <= 10**12 for v in numbers) or not numbers[0]:
        raise Rejected("a claim is no whole number of parts of a grid")
    claims = {
        key: Fraction(v, numbers[0]) for key, v in zip(("identical", "same", "changed"), numbers[1:], strict=True)
    }
    return claims, read_boxes(meta.get("boxes"), inputs)


def prove(claims: dict[str, Fraction], boxes: Any, sums: list[Sums], roots: Any, nodes: int) -> int:
    """Raise Rejected unless the claims follow; give how many parts had to be halved."""
    whole, halved = sum(volume(*box) for box in boxes), 0
    beyond = [volume(*root) - volume(*box) for root, box in zip(roots, boxes, strict=True)]
    while True:
        totals = [each.totals() for each in sums]
        sure = sum(max(total[SURE] - e, Fraction(0)) for total, e in zip(totals, beyond, strict=True))
        maybe, differs = (sum(total[q] for total in totals) for q in (MAYBE, DIFFERS))
        met = {
            MAYBE: not claims["same"] or maybe <= (1 - claims["same"]) * whole,
            SURE: sure >= claims["changed"] * whole,
            DIFFERS: not claims["identical"] or differs <= (1 - claims["identical"]) * whole,
        }
        if all(met.values()):
            return halved
        wanted, left = [q for q, ok in met.items() if not ok], SPARE + int(SHARE * nodes) - halved
        more = sum(each.refine(wanted, max(left // len(sums), 1)) for each in sums) if left > 0 else 0
        if not more:
            found = (1 - differs / whole, 1 - maybe / whole, sure / whole)
            said = ", ".join(f"{key} {float(v):.9f}" for key, v in zip(claims, found, strict=True))
            raise Rejected(
                f"what is claimed is more than the bounds of its parts prove ({said}; {halved} halved further)"
            )
        halved += more


def check(certificate: str, before: str, after: str) -> str:
    """Say what was proved, or raise Rejected, or another exception where a file cannot be read."""
    data = [bounded.content(Path(path), onnx_graph.FILE) for path in (before, after)]
    f, g = (read_network(each) for each in data)
    hashes = {f"{k}_sha256": hashlib.sha256(v).hexdigest() for k, v in zip(("before", "after"), data, strict=True)}
    arrays = bounded.arrays(Path(certificate))
    if "meta" not in arrays:
        raise bounded.Unreadable(f"the certificate has the arrays {sorted(arrays)}, without meta")
    meta = bounded.meta(arrays["meta"])
    if meta.get("format") == EQUIVALENCE:
        return equivalence(certificate, meta, hashes, f, g)
    if len(f) != len(g) or not all(
        a.bent == b.bent and np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias)
        for a, b in zip(f[:-1], g[:-1], strict=True)
    ):
        raise bounded.Unreadable("the networks differ in other layers than the last one")
    if any(layer.relu and layer.carried for layer in (*f, *g)):
        raise bounded.Unreadable("values are carried along to later sums; only chains are compared")
    if f[-1].relu or g[-1].relu or f[-1].weight.shape != g[-1].weight.shape:
        raise bounded.Unreadable("the last layers end with ReLUs, or have different sizes")
    inputs, outputs = f[0].weight.shape[1], len(f[-1].bias)
    limit("outputs", outputs, OUTPUTS)
    if outputs < 2:
        raise bounded.Unreadable("one output decides nothing")
    if not arrays.keys() >= {"dim", "cut", "taken"}:
        raise bounded.Unreadable(f"the certificate has the arrays {sorted(arrays)}, not meta, dim, cut and taken")
    claims, boxes = read_claims(meta, hashes, inputs)
    roots = [(bounds.outward(low, -1)[0], bounds.outward(high, +1)[0]) for low, high in boxes]
    tasks, sign = read_tasks(arrays, roots, inputs), 1 if meta["decision"] == "argmin" else -1
    with np.errstate(all="ignore"):
        sums = [Sums(Pair((f, g), sign, *box), each) for box, each in zip(boxes, tasks, strict=True)]
        halved = prove(claims, boxes, sums, roots, len(arrays["dim"]))
    shares = "; ".join(
        f"{what} on at least {shown(claims[key])} %"
        for key, what in (
            ("identical", "identical outputs"),
            ("same", f"the same {meta['decision']}"),
            ("changed", f"another {meta['decision']}"),
        )
    )
    region = ", ".join(
        f"[{float(min(low)):.9g}, {float(max(high)):.9g}]" for low, high in zip(*ends(boxes), strict=True)
    )
    size = sized(sum((volume(*box) for box in boxes), Fraction(0)))
    return (
        f"Accepted: proved of {len(boxes)} box{'es' * (len(boxes) > 1)} with the volume {size} within {region}: "
        f"{shares} of it, for the real-valued functions of the stored constants ({len(arrays['dim'])} nodes, "
        f"{halved} halved further)."
    )


def sized(volume: Fraction) -> str:
    """Write a volume with nine digits, also one that is too large or too small for a float."""
    if 1e-300 < volume < 1e300:
        return f"{float(volume):.9g}"
    return f"{Decimal(volume.numerator) / Decimal(volume.denominator):.9g}"


def equivalence(certificate: str, meta: dict[str, Any], hashes: Any, f: list[Layer], g: list[Layer]) -> str:
    """Say what was proved of two networks that agree, or raise Rejected."""
    shapes = [[(layer.weight.shape, layer.bent, layer.carried) for layer in layers] for layers in (f, g)]
    if shapes[0] != shapes[1] or any(layer.carried for layer in f) or f[-1].relu:
        raise bounded.Unreadable("the networks are no two chains of layers of the same sizes that end without ReLUs")
    inputs, outputs = f[0].weight.shape[1], len(f[-1].bias)
    limit("outputs", outputs, OUTPUTS)
    boxes = read_boxes(meta.get("boxes"), inputs, flat=True)
    tolerance, decision, margin = meta.get("tolerance"), meta.get("decision"), exact(meta.get("margin"))
    if margin < 0 or (tolerance is None) == (decision is None):
        raise Rejected("the claim is neither a tolerance nor a decision, or its margin is below 0")
    if decision is None:
        at_most = exact(tolerance)
        if at_most < 0 or margin:
            raise Rejected("the tolerance is below 0, or has a margin")
        unsafe, what = twins.far(outputs, at_most), f"no output differs by more than {above(at_most)}"
    elif decision in ("argmin", "argmax") and outputs > 1:
        unsafe, what = twins.others(outputs, -1 if decision == "argmin" else 1, margin), f"the {decision} is the same"
        what += f" wherever it wins before by at least {above(margin)}" if margin else ""
    else:
        raise Rejected(f"the decision {decision!r:.80} is neither argmin nor argmax, or there is one output")
    starts, nodes = bounds.read_certificate(certificate, hashes | {"format": EQUIVALENCE, "trees": len(boxes)}, inputs)
    with np.errstate(all="ignore"):
        halved = twins.prove(f, g, boxes, unsafe, starts, nodes)
    region = ", ".join(
        f"[{float(min(low)):.9g}, {float(max(high)):.9g}]" for low, high in list(zip(*ends(boxes), strict=True))[:8]
    )
    region += ", ..." if inputs > 8 else ""
    return (
        f"Accepted: proved of all points of {len(boxes)} box{'es' * (len(boxes) > 1)} within {region}: {what}, "
        f"for the real-valued functions of the stored constants ({len(nodes[0]) - 1} nodes, {halved} halved further)."
    )


def above(value: Fraction) -> str:
    """Give a number, rounded up where it is long."""
    text = f"{float(value):.9g}"
    return text if Fraction(text) == value else f"{math.nextafter(float(value), math.inf)!r}"


def ends(boxes: Any) -> tuple[list[Any], list[Any]]:
    """Give all lower and all upper ends of each input."""
    return list(zip(*(low for low, _ in boxes), strict=True)), list(zip(*(high for _, high in boxes), strict=True))


def shown(claim: Fraction) -> str:
    """Give a share in percent, rounded down."""
    digits = int(claim * 10**8)
    return f"{digits // 10**6}.{digits % 10**6:06d}"


def main() -> int:
    paragraphs = (__doc__ or "\n\n\n\n").split("\n\n")
    options = argparse.ArgumentParser(description=paragraphs[0], epilog=paragraphs[2])
    for name in ("certificate", "before", "after"):
        options.add_argument(name)
    given = options.parse_args()
    try:
        code, said = 0, check(given.certificate, given.before, given.after)
    except Rejected as problem:
        code, said = 1, f"Rejected: {problem}"
    except Exception as problem:  # whatever damaged files lead to, and too little memory
        code, said = 2, f"Cannot be read: {type(problem).__name__}: {problem}"
    bounded.say(" ".join(said.split()))
    return code


if __name__ == "__main__":
    sys.exit(main())
