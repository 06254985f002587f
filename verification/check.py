"""Check a proof that a property holds for every input of its boxes; trusts neither the search nor the library.

    python verification/check.py CERT.npz NET.onnx[.gz] PROP.vnnlib[.gz]

Exit 0: accepted. 1: rejected, with the reason. 2: a file cannot be read, holds more than reading.py and written.py
know (ReLUs; matrices, convolutions, windows, sums), or than the limits there allow, or the command line is wrong.

f is the real-valued function of NET with its constants as stored (a float32 run may round differently). PROP, written
out, lists boxes and unsafe sets {y: a.y + b <= 0, or < 0 if strict, for all rows}; CERT has a tree for each pair.
Acceptance proves that no x of a box has f(x) in an unsafe set of that box.

Cover. The root is the box, rounded outward. An inner node hands x_d <= cut to one child and x_d >= cut to the other,
whatever the cut is; an open leaf is halved. Only points where a row is proved > 0 are dropped, and boxes where it is
>= 0 and strict. From a bound A (x - corner) + least where all A_d (x_d - corner_d) >= 0, unsafe points have A_d (x_d -
corner_d) <= -least; the quotient is enlarged by 4 U, the sum by a float, which covers their rounding.

Bounds. f is a chain z_k = W_k h_{k-1} + b_k, each unit h = z or max(z, 0), h_0 = x. For l <= z <= u, L = min(l, 0),
H = max(u, 0) and ANY a, s in [0, 1]: a z <= max(z, 0) <= s z + t if t >= -s L and t >= H - s H (convexity). So a lower
bound A h_k + c gives one in z_k (sign by sign of A), in h_{k-1}, ..., in x. l and u come from intervals, from boxes
around this one and, where l < 0 < u, from such bounds of z and -z: with a = s = 0, t = H at each such h (`between`;
both bounds have the same coefficients), then with H / (H - L) for s. As a is free, gradient ascent chooses it.

Rounding. Let M_k >= 1 bound |z_k|, |l|, |u| over the root, so |h_k| too, and M_0 bound |x|. The COMPUTED coefficients
define the bound; each step is charged with what it may be off by. U = 2**-53; g = n U / (1 - n U) holds for a sum of n
products in any order; n is the largest width; A' are the coefficients of z; G = |A| where A < 0, else A'; |A'| <= G:
    slopes: A' = fl(s A) or fl(a A) is off by at most 2 U G, for any a, s in [0, 1], and costs 2 U G M_k.
    lines:  -s L and H - s H are computed to within 3 U H, which t is raised by (and by 1e-300 for underflow).
    layer:  fl(A' W) costs g G |W| M_{k-1}, and the sums A' b and A t, with t <= 2 M, cost g G (|b| + 2 M).
    sums:   the last, over the box, costs 2 g |A_0| M_0; c is added to 4 times a layer, at U times its size.
    rows:   rounding their a and b is as if every A' and the first c were off by another 2 U.
With E = |c| + sum_k G (|W_k| M_{k-1} + |b_k| + 4 M_k) + |A_0| M_0 all this is at most (2 n + 8 layers + 16) U E, and
`gamma` is twice more, for the roundings of E, M and `gamma`. An interval step is two sums of n + 4 terms of total size
at most 4 (|W| M + |b|), charged 2 `gamma` (|W| M + |b|). E = 0 only if all terms are exact zeros. Underflow adds at
most 2**-1074 M per operation, M <= LIMIT: far below TINY, which is charged once. Nothing overflows, as M grows as fast
as coefficients. Assumed: IEEE float64, to nearest, and a BLAS that computes products as sums of products.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

try:
    import bounded
    import numpy as np
    import onnx_graph
    from reading import MAX_BYTES, Layer, limit, read_property
    from written import read_network
except ImportError as problem:
    if __name__ != "__main__":
        raise
    print(f"Cannot be read: {problem}. This program needs numpy, onnx, and the files beside it.")
    sys.exit(2)

Array = np.ndarray
U, TINY, LIMIT = 2.0**-53, 1e-150, 1e100
BATCH, STEPS, AHEAD = 256, 4, 0.5  # boxes at once; steps of ascent, and how far above 0 they aim
SPARE, SHARE = 5000, 0.2  # so many halvings are allowed, and so many more for each node of the certificate
NODES, WAITING = 2**22, 2**28  # of a certificate; bytes of boxes that wait


class Rejected(Exception):
    """The certificate does not prove the property."""


def outward(values: tuple[Fraction, ...], direction: int) -> Array:
    near = [float(v) for v in values]
    inside = [(Fraction(f) - v) * direction < 0 for f, v in zip(near, values, strict=True)]
    return np.where(inside, np.nextafter(near, direction * np.inf), near)[None]


class Bounder:
    """Linear lower bounds of the rows of one task over boxes inside its root."""

    def __init__(self, layers: list[Layer], lower: Any, upper: Any, rows: Any) -> None:
        if not all(1 / LIMIT < abs(v) < LIMIT for a, b, _ in rows for v in (*a, b) if v):
            raise Rejected("numbers of the property are too large or too small")
        rows, offsets, self.strict = (np.array(v) for v in zip(*rows, strict=True))
        self.layers, self.rows = layers, Layer(rows.astype(float), offsets.astype(float))
        lower, upper = outward(lower, -1), outward(upper, +1)
        sizes = [np.maximum(np.maximum(-lower, upper), 1)[0]]  # M
        for layer in [*layers, self.rows]:
            sizes.append(1.001 * (1 + np.abs(layer.weight) @ sizes[-1] + np.abs(layer.bias)))
        if not all(size.max() < LIMIT for size in sizes):  # nor if it is not a number
            raise Rejected("numbers of the network are too large")
        widest = max(n for layer in layers for n in layer.weight.shape)
        self.batch = max(1, min(BATCH, 2**22 // max(widest**2, sum(map(len, sizes)))))  # for the cache
        self.chunk = 2**14 // widest + 1
        self.gamma = 2 * (2 * widest + 8 * len(layers) + 32) * U
        self.ends = np.cumsum([len(layer.bias) for layer in layers[:-1]])
        high = np.concatenate(sizes[1:-1])[None]
        self.root = lower, upper, -high, high
        for _ in range(2):  # the second time with the smaller M that follow from the bounds of the first
            sums = [np.abs(v.weight) @ size + np.abs(v.bias) for v, size in zip(layers, sizes, strict=False)]
            self.size, self.terms = sizes[0], [v + 4 * size for v, size in zip(sums, sizes[1:], strict=False)]
            self.slack = [2 * self.gamma * v + TINY for v in sums]
            self.relax(*self.root)
            largest = np.maximum(np.maximum(-self.root[2], self.root[3]), 1)[0]
            sizes = [sizes[0], *np.split(largest, self.ends)]

    def relax(self, lower: Array, upper: Array, lows: Array, highs: Array) -> tuple[list[Any], Array]:
        """Tighten bounds of all z over boxes; give what `backward` needs per layer, and units that are not always 0."""
        steps, low, high, on = list[Any](), lower, upper, np.arange(lower.shape[1])
        known = zip(np.split(lows, self.ends, 1), np.split(highs, self.ends, 1), strict=True)
        for k, (layer, ends) in enumerate(zip(self.layers, known, strict=True)):
            weight, bends = layer.weight[:, on], np.arange(len(layer.bias)) < layer.bent
            low, high = self.tighten(k, weight, low, high, ends, steps, lower, upper)
            on = np.flatnonzero((high > 0).any(0) | ~bends)
            low, high, bends, lines = low[:, on], high[:, on], bends[on], None
            if layer.relu:
                L, H, loose = np.minimum(low, 0), np.maximum(high, 0), (low < 0) & bends
                s = np.where(bends, H / (H - L + 1e-300), 1)
                t = np.where(bends, np.maximum(-s * L, H - s * H) + 8 * U * H + 1e-300, 0)
                a = np.where(bends & (high <= -low), 0.0, 1.0)
                lines = a, s, t, np.where(loose, H, 0), np.where(loose, 0.0, 1.0)
                low, high = np.where(loose, 0, low), np.where(bends, H, high)
            steps.append((lines, weight[on], layer.bias[on], self.terms[k][on]))
        return steps, on

    def tighten(
        self, k: int, weight: Array, low: Array, high: Array, known: Any, steps: list[Any], lower: Array, upper: Array
    ) -> tuple[Array, Array]:
        """Bound a layer's z over boxes, from bounds of what goes into it and what is known; make that known."""
        layer, (below, above) = self.layers[k], known
        middle = (low + high) / 2 @ weight.T + layer.bias
        spread = (high - low) / 2 @ np.abs(weight).T + self.slack[k]
        low, high = np.fmax(middle - spread, below), np.fmin(middle + spread, above)
        bends = np.arange(len(layer.bias)) < layer.bent
        boxes, units = np.nonzero((low < 0) & (high > 0) & (bends & (k > 0)))
        for i in range(0, len(boxes), self.chunk):
            box, unit = boxes[i : i + self.chunk], units[i : i + self.chunk]
            A, c = weight[unit], layer.bias[unit]
            least, most = self.between(A, c, box, steps, lower, upper)
            low[box, unit], high[box, unit] = np.fmax(low[box, unit], least), np.fmin(high[box, unit], most)
            some = np.flatnonzero((low[box, unit] < 0) & (high[box, unit] > 0))
            box, unit, A, c = box[some], unit[some], A[some], c[some]
            low[box, unit] = np.fmax(low[box, unit], self.backward(A, c, box, steps, lower, upper)[1])
            high[box, unit] = np.fmin(high[box, unit], -self.backward(-A, -c, box, steps, lower, upper)[1])
        below[:], above[:] = low, high
        return low, high

    def between(self, A: Array, c: Array, box: Array, steps: list[Any], lower: Array, upper: Array) -> Any:
        """Bound A h + c from both sides, each row over its box; a ReLU of unknown sign is any 0 <= h <= H."""
        E, least, most = np.abs(c), c, c
        for lines, weight, bias, terms in reversed(steps):
            E = E + np.abs(A) @ terms
            if lines is not None:
                H, on = (np.take(v, box, 0) for v in lines[3:5])
                free = A * H
                least, most, A = least + np.minimum(free, 0).sum(1), most + np.maximum(free, 0).sum(1), A * on
            move = A @ bias
            least, most, A = least + move, most + move, A @ weight
        E = self.gamma * (E + np.abs(A) @ self.size) + TINY
        ends = A * lower[box], A * upper[box]
        return least + np.minimum(*ends).sum(1) - E, most + np.maximum(*ends).sum(1) + E

    def backward(self, A: Array, c: Array, box: Array, steps: list[Any], lower: Array, upper: Array, *seen: Any) -> Any:
        """Bound A h + c, each row over its box, h being what the last step gives: (coefficients of x, minimum)."""
        E = np.abs(c)
        for lines, weight, bias, terms in reversed(steps):
            for earlier in seen:
                earlier.insert(0, A)
            G = np.abs(A)
            if lines is not None:
                a, s, t = (np.take(v, box, 0) for v in lines[:3])
                negative, positive = np.minimum(A, 0), np.maximum(A, 0) * a
                c = c + np.einsum("rn,rn->r", negative, t)
                G, A = positive - negative, positive + negative * s
            E = E + G @ terms
            c = c + A @ bias
            A = A @ weight
        c = c + np.einsum("rn,rn->r", np.maximum(A, 0), lower[box])
        c = c + np.einsum("rn,rn->r", np.minimum(A, 0), upper[box])
        E = E + np.abs(A) @ self.size
        return A, c - self.gamma * E - TINY * (E > 0)

    def shrink(self, lower: Array, upper: Array, lows: Array, highs: Array) -> Array:
        """Tighten bounds of all z, shrink boxes to what may be unsafe, and tell for which boxes that is nothing."""
        steps, on = self.relax(lower, upper, lows, highs)
        safe, box = np.zeros(len(lower), bool), np.arange(len(lower))
        row = np.tile(np.arange(len(self.strict)), (len(lower), 1))  # (boxes, rows): all, later only the best of each
        for step in range(STEPS + 1):
            (first, last), (n, m), seen = (lower[box, None], upper[box, None]), row.shape, list[Array]()
            A, c = self.rows.weight[row.ravel()][:, on], self.rows.bias[row.ravel()]
            A, least = self.backward(A, c, np.repeat(box, m), steps, lower, upper, seen)
            value, B = least.reshape(n, m), A.reshape(n, m, -1)
            move = -value[..., None] / np.where(B != 0, B, 1) * (1 + 4 * U)
            lower[box] = np.where(B < 0, np.fmax(first, np.nextafter(last + move, -np.inf)), first).max(1)
            upper[box] = np.where(B > 0, np.fmin(last, np.nextafter(first + move, np.inf)), last).min(1)
            empty = (lower > upper)[box].any(1)
            safe[box] = empty | ((value > 0) | (self.strict[row] & (value >= 0))).any(1)
            stay = np.flatnonzero(~safe[box])
            if step == STEPS or not len(stay):
                return safe
            pick = stay * m + value[stay].argmax(1)
            x = np.where(A[pick] > 0, first[stay, 0], last[stay, 0])
            box, row = box[stay], row.reshape(-1, 1)[pick]
            self.ascend(steps, [v[pick] for v in seen], x, least[pick], box)

    def ascend(self, steps: list[Any], seen: list[Array], x: Array, value: Array, box: Array) -> None:
        """Improve the slopes a for a row in each box, given its coefficients and its value at x, where it is least."""
        moves, square = [], np.full(len(box), 1e-300)
        for (lines, weight, bias, _), A in zip(steps, seen, strict=True):
            x = x @ weight.T + bias
            if lines is not None:
                a, s, t = (v[box] for v in lines[:3])
                slope = np.maximum(A, 0) * x
                slope[np.where(slope > 0, a >= 1, a <= 0) | (s <= 0) | (s >= 1)] = 0
                square += np.einsum("rn,rn->r", slope, slope)
                moves.append((lines[0], a, slope))
                x = np.where(A < 0, s * x + t, a * x)
        length = (AHEAD * np.abs(value) - value + 1e-9) / square  # Polyak's
        for slopes, a, slope in moves:
            slopes[box] = np.fmin(np.fmax(a + length[:, None] * slope, 0), 1)


def read_certificate(path: str, expected: dict[str, Any], inputs: int) -> tuple[list[int], Any]:
    """Give where trees start, and the nodes: dim, cut, lower and upper child; a leaf's children are one more leaf."""
    arrays = bounded.arrays(Path(path))
    if not arrays.keys() >= {"meta", "dim", "cut"}:
        raise bounded.Unreadable(f"the certificate has the arrays {sorted(arrays)}, not all of meta, dim and cut")
    meta, dim, cut = (arrays[name] for name in ("meta", "dim", "cut"))
    limit("nodes", dim.size, NODES)
    size, inner = dim.size, np.flatnonzero(dim >= 0)
    given = bounded.meta(meta) | {"arrays": [f"{v.dtype}{v.shape}" for v in (dim, cut)]}
    expected |= {"nodes": size, "arrays": [f"int16({size},)", f"float64({len(inner)},)"]}
    for key, value in expected.items():
        if given.get(key) != value:
            raise Rejected(f"{key} is {given.get(key)!r:.200} in the certificate, but should be {value!r}")
    if size - 2 * len(inner) != expected["trees"]:
        raise Rejected(f"{len(inner)} splits and {size - len(inner)} leaves are not {expected['trees']} trees")
    children, roots = np.full((2, size + 1), size), list[int]()
    for i in range(size - 1, -1, -1):
        if dim[i] >= 0:
            children[:, i] = (roots.pop(), roots.pop()) if len(roots) > 1 else (-1, -1)
        roots.append(i)
    exist = np.isfinite(cut).all() and (dim >= -1).all() and (dim < inputs).all()
    if len(roots) != expected["trees"] or (children < 0).any() or not exist:
        raise Rejected(f"the nodes are not {expected['trees']} trees, or an input or a cut does not exist")
    cuts = np.zeros(size + 1)
    cuts[inner] = cut
    return roots[::-1], (np.append(dim, -1), cuts, *children)


def replay(bounder: Bounder, nodes: Any, start: int, spare: int) -> int:
    """Prove one tree, depth first; give the number of halvings that the tree does not have."""
    dim, cut, below, above = nodes
    stack, halved = [np.array([start]), *bounder.root], 0
    width = np.maximum(stack[2] - stack[1], TINY)
    while len(stack[0]):
        rest = max(len(stack[0]) - bounder.batch, 0)
        now, stack = [v[rest:].copy() for v in stack], [v[:rest] for v in stack]
        safe = bounder.shrink(*now[1:])
        here, low, high, *known = (v[~safe] for v in now)
        leaf, each = dim[here] < 0, np.arange(len(here))
        halved += int(leaf.sum())
        if halved > spare:
            raise Rejected(f"not proved for inputs from {low[leaf][0].tolist()} to {high[leaf][0].tolist()}")
        axis = np.where(leaf, ((high - low) / width).argmax(1), dim[here])
        to = np.where(leaf, (low[each, axis] + high[each, axis]) / 2, cut[here])
        middle_high, middle_low = high.copy(), low.copy()
        middle_high[each, axis] = np.minimum(high[each, axis], to)
        middle_low[each, axis] = np.maximum(low[each, axis], to)
        for part in ([above[here], middle_low, high, *known], [below[here], low, middle_high, *known]):
            some = ~(part[1] > part[2]).any(1)
            stack = [np.concatenate([v, w[some]]) for v, w in zip(stack, part, strict=True)]
        if sum(v.nbytes for v in stack) > WAITING:
            raise Rejected(f"the tree is so deep that {len(stack[0])} of its boxes wait, more than {WAITING} bytes")
    return halved


def check(certificate: str, network: str, property_: str) -> str:
    """Say what was proved, or raise Rejected, or another exception where a file cannot be read."""
    data, asked = bounded.content(Path(network), onnx_graph.FILE), bounded.content(Path(property_), MAX_BYTES)
    layers = read_network(bounded.unpacked(data, onnx_graph.FILE))
    inputs, outputs = layers[0].weight.shape[1], len(layers[-1].bias)
    tasks = read_property(bounded.text(asked, MAX_BYTES), inputs, outputs)
    expected = {f"{k}_sha256": hashlib.sha256(v).hexdigest() for k, v in (("network", data), ("property", asked))}
    expected |= {"format": "nnrepair-property-1", "trees": len(tasks)}
    starts, nodes = read_certificate(certificate, expected, inputs)
    total, halved = len(nodes[0]) - 1, 0
    for i, (task, start) in enumerate(zip(tasks, starts, strict=True), 1):
        try:
            with np.errstate(all="ignore"):
                halved += replay(Bounder(layers, *task), nodes, start, SPARE + int(SHARE * total) - halved)
        except Rejected as error:
            raise Rejected(f"tree {i} of {len(tasks)}: {error}") from None
    pairs = "the pair" if len(tasks) == 1 else f"all {len(tasks)} pairs"
    what = f"{pairs} of box and unsafe set, for the real-valued function of the stored constants"
    return f"Accepted: proved for {what} ({total} node{'s' * (total != 1)}, {halved} halved further)."


def main() -> int:
    paragraphs = (__doc__ or "\n\n\n\n").split("\n\n")
    options = argparse.ArgumentParser(description=paragraphs[0], epilog=paragraphs[2])
    for name in ("certificate", "network", "property"):
        options.add_argument(name)
    given = options.parse_args()
    try:
        code, said = 0, check(given.certificate, given.network, given.property)
    except Rejected as problem:
        code, said = 1, f"Rejected: {problem}"
    except Exception as problem:  # whatever damaged files lead to, and too little memory
        code, said = 2, f"Cannot be read: {type(problem).__name__}: {problem}"
    bounded.say(" ".join(said.split()))
    return code


if __name__ == "__main__":
    sys.exit(main())
