"""Check a proof that a property holds for every input of its boxes; trusts neither the search nor the library.

    python verification/check.py CERT.npz NET.onnx PROP.vnnlib

Exit 0: accepted. 1: rejected, with the reason. 2: a file cannot be read.

f is the real-valued function of NET with its constants as stored (a float32 run may round differently). PROP, written
out as alternatives, lists boxes and unsafe sets {y: a.y + b <= 0, or < 0, for all rows}; CERT has a tree for each.
Acceptance proves that no x of a box has f(x) in an unsafe set of that box.

Cover. Trees need not be trusted. A root is the box, rounded outward. An inner node hands x_d <= cut to one child and
x_d >= cut to the other, so whatever the cut is, nothing is lost; a leaf that stays open is halved further, within
limits. A box is dropped only if a row is proved > 0 on it (>= 0 if the row is strict), and shrinks only by points where
a row is proved > 0.

Bounds. The network is a chain z_k = W_k h_{k-1} + b_k, h_k = z_k or max(z_k, 0), h_0 = x. For l <= z <= u,
L = min(l, 0), H = max(u, 0) and any s in [0, 1],
    a z <= max(z, 0) <= s z + t    with a = 1 if u > -l else 0, t >= -s L, t >= H - s H,
the right side because max(z, 0) is convex and not above the line at L and H. So a lower bound A h_k + c of a row gives
one in z_k (sign by sign of A), in h_{k-1}, ..., in x, whose least value on the box is known. l and u come from
intervals and, where these leave l < 0 < u, from such bounds of z and -z; those of the root hold in all its boxes. Units
that are 0 on all boxes at hand are left out.

Rounding. Let M_k >= 1 bound |z_k|, |l|, |u| over the root, so also |h_k|, and M_0 bound |x|. The COMPUTED coefficients
define the bound, and each step is charged with what it may be off by. U = 2**-53; g = n U / (1 - n U) holds for a sum
of n products in any order; n is the largest width; G = |A| where A < 0, else a |A|; A' are the coefficients of z:
    slopes: s = fl(H / fl(H - L)) is in [0, 1], as rounding is monotone. A' = fl(s A) is off by U |A|, costs U G M_k.
    lines:  -s L and H - s H are computed to within 3 U H, which t is raised by (and by 1e-300 for underflow).
    layer:  |A'| <= G, so fl(A' W) costs g G |W| M_{k-1}; the sums A' b and A t, with t <= 2 M, cost g G (|b| + 2 M).
    sums:   the last, over the box, costs 2 g |A_0| M_0; c is added to 4 times a layer, at U times its size.
With E = |c| + sum_k G (|W_k| M_{k-1} + |b_k| + 4 M_k) + |A_0| M_0 all this is at most (2 n + 8 layers + 8) U E.
`gamma` is twice more, for the roundings of E, M and `gamma` themselves. An interval step is two sums of n + 4 terms of
total size at most 4 (|W| M + |b|), charged 2 `gamma` (|W| M + |b|). E = 0 only if all terms are exact zeros.
Underflow adds at most 2**-1074 to an error, times M <= LIMIT and the number of operations: far below TINY, which is
charged once. Nothing overflows, as M grows at least as fast as the coefficients. Assumed: IEEE float64, rounding to
nearest, and a BLAS that computes products as sums of products.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper

U, TINY, LIMIT = 2.0**-53, 1e-150, 1e100
DEPTH, SHARE, SPARE = 12, 0.2, 1000  # halvings: below a leaf; in all, per node of the certificate; and in any case


class Rejected(Exception):
    """The certificate does not prove the property."""


class Unreadable(Exception):
    """A file is damaged or outside what this checker understands."""


# The network ---------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    weight: np.ndarray  # (units, units before)
    bias: np.ndarray
    relu: bool = False


def read_network(data: bytes) -> list[Layer]:
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    if model.functions:
        raise Unreadable("functions inside the ONNX file are not supported")
    constants = {t.name: t for t in model.graph.initializer}
    (source,), (sink,) = (v for v in model.graph.input if v.name not in constants), model.graph.output
    name, shape = source.name, [d.dim_value for d in source.type.tensor_type.shape.dim]
    shape[:1] = [n or 1 for n in shape[:1]]  # a free batch size
    layers = [Layer(np.eye(math.prod(shape)), np.zeros(math.prod(shape)))]
    for node in model.graph.node:
        op, options = node.op_type, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if op == "Constant" and options.keys() == {"value"}:
            constants[node.output[0]] = options["value"]
            continue
        args = [None if k == name else constant(constants.get(k), op) for k in node.input if k]
        if node.domain or len(node.output) != 1 or sum(a is None for a in args) != 1:
            raise Unreadable(f"{op}: only chains of standard operators on one value are supported")
        weight, bias, shape = affine(op, args, options, shape)
        if options:
            raise Unreadable(f"{op} with {options} is not supported")
        last = layers[-1]
        if weight is not None and weight.shape[1] != len(last.bias):
            raise Unreadable(f"{op} does not fit the {len(last.bias)} numbers before it")
        if weight is not None:
            layers.append(Layer(weight, np.zeros(len(weight))))
        elif bias.any() and (last.relu or last.bias.any()):
            layers.append(Layer(np.eye(len(last.bias)), np.zeros(len(last.bias))))
        layers[-1].bias = layers[-1].bias + bias  # exact: one of them is 0
        layers[-1].relu |= op == "Relu"
        name = node.output[0]
    if name != sink.name:
        raise Unreadable("the output is not the last value")
    return layers if layers[0].bias.any() or layers[0].relu or len(layers) == 1 else layers[1:]


def constant(tensor: Any, op: str) -> np.ndarray:
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise Unreadable("branches and constants outside the ONNX file are not supported")
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.kind != ("i" if op == "Reshape" else "f"):
        raise Unreadable(f"{op} with constants of type {array.dtype} is not supported")
    if not np.isfinite(array).all():
        raise Rejected("the network has constants that are not finite")
    return array


def affine(op: str, args: list[Any], options: dict[str, Any], shape: Any) -> tuple[Any, Any, Any]:
    """Give weight (None: identity), bias and the shape of the result; remove the options that are understood."""
    old, value, bias, weight = shape, args[-1], np.zeros(()), None
    if op == "Flatten":
        axis = options.pop("axis", 1)
        shape = [math.prod(old[:axis]), math.prod(old[axis:])]
    elif op == "Reshape" and args[0] is None and not options.pop("allowzero", 0):
        shape = np.empty(old, bool).reshape([n or old[i] for i, n in enumerate(value.tolist())]).shape
    elif op == "Add" or (op == "Sub" and args[0] is None):
        (value,) = (v for v in args if v is not None)
        bias, shape = value if op == "Add" else -value, np.broadcast_shapes(old, value.shape)
    elif op in ("MatMul", "Gemm") and args[0] is None and args[1].ndim == 2 and (op == "MatMul" or len(old) == 2):
        if (options.pop("alpha", 1), options.pop("beta", 1), options.pop("transA", 0)) != (1, 1, 0):
            raise Unreadable("Gemm with alpha, beta or transA is not supported")
        matrix = args[1].astype(float) if options.pop("transB", 0) else args[1].astype(float).T
        weight = np.kron(np.eye(math.prod(old[:-1])), matrix)
        shape, bias = [*old[:-1], len(matrix)], args[2] if len(args) > 2 else bias
    elif op == "Conv" and args[0] is None and old[0] == 1 and options.pop("auto_pad", b"NOTSET") == b"NOTSET":
        weight, shape = convolution(args[1], options, old)
        bias = args[2].reshape(-1, *[1] * (len(old) - 2)) if len(args) > 2 else bias
    elif op not in ("Identity", "Relu"):
        raise Unreadable(f"{op} is not supported; this checker knows Gemm, MatMul, Conv, Add, Sub, Relu, Reshape, ...")
    if math.prod(shape) != (math.prod(old) if weight is None else len(weight)):
        raise Unreadable(f"{op} repeats its input")
    return weight, np.broadcast_to(bias, shape).ravel().astype(float), shape


def convolution(kernel: np.ndarray, options: dict[str, Any], shape: Any) -> tuple[np.ndarray, Any]:
    """Write a convolution as a matrix: weights are copied, nothing is computed."""
    d, (channels, depth, *window) = len(shape) - 2, kernel.shape
    steps, gaps, pads = (options.pop(k, [v] * d * 2) for k, v in (("strides", 1), ("dilations", 1), ("pads", 0)))
    groups = options.pop("group", 1)
    if depth * groups != shape[1] or channels % groups or options.pop("kernel_shape", window) != window:
        raise Unreadable("Conv with a kernel that does not fit")
    x = np.arange(math.prod(shape)).reshape(shape[1:])
    x = np.pad(x, [(0, 0), *zip(pads[:d], pads[d:], strict=True)], constant_values=-1)
    sizes = [(n - g * (w - 1) - 1) // s + 1 for n, g, w, s in zip(x.shape[1:], gaps, window, steps, strict=False)]
    weight = np.zeros((channels, math.prod(sizes), math.prod(shape)))
    for at in np.ndindex(*window):
        part = [slice(o * g, o * g + s * (n - 1) + 1, s) for o, g, s, n in zip(at, gaps, steps, sizes, strict=False)]
        seen = x[:, *part].reshape(len(x), -1)
        for out, k in itertools.product(range(channels), range(depth)):
            row = seen[out // (channels // groups) * depth + k]
            weight[out, row >= 0, row[row >= 0]] = kernel[out, k, *at]
    return weight.reshape(-1, math.prod(shape)), [1, channels, *sizes]


# The property --------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
Linear = dict[str, Fraction]  # coefficients of variables, and a constant under ""


def linear(term: Any, names: set[str]) -> Linear:
    if isinstance(term, str):
        if term not in names and not NUMBER.fullmatch(term):
            raise Unreadable(f"{term!r} is neither a number nor declared")
        return {term: Fraction(1)} if term in names else {"": Fraction(term)}
    op, first, *rest = term[0], *(linear(t, names) for t in term[1:])
    if op not in ("+", "-", "*", "/"):
        raise Unreadable(f"({op} ...) is not linear")
    if op == "-" and not rest:
        first, rest = {}, [first]
    for other in rest:
        if op in ("+", "-"):
            sign = 1 if op == "+" else -1
            first = {k: first.get(k, Fraction(0)) + sign * other.get(k, Fraction(0)) for k in {**first, **other}}
        else:
            first, other = (other, first) if op == "*" and first.keys() == {""} else (first, other)
            if other.keys() != {""}:
                raise Unreadable(f"({op} ...) of variables is not linear")
            first = {k: v * other[""] if op == "*" else v / other[""] for k, v in first.items()}
    return first


def alternatives(formula: Any, names: set[str]) -> list[list[tuple[Linear, bool]]]:
    """Write a formula as an or of ands of (linear form, strict), each meaning form <= 0, or < 0."""
    op, *parts = formula
    if op in ("and", "or"):
        each = [alternatives(p, names) for p in parts]
        if op == "and" and math.prod(map(len, each)) > 1_000_000:
            raise Unreadable("the property has too many alternatives")
        if op == "or":
            return [*itertools.chain(*each)]
        return [[*itertools.chain(*ways)] for ways in itertools.product(*each)]
    if op not in ("<=", "<", ">=", ">") or len(parts) != 2:
        raise Unreadable(f"({op} ...) with {len(parts)} parts is not supported")
    return [[(linear(["-", *(parts if op[0] == "<" else parts[::-1])], names), len(op) == 1)]]


@dataclass
class Task:
    """What one tree proves: at no x with lower <= x <= upper all rows (a, b, strict) say a.f(x) + b <= 0, or < 0."""

    lower: list[Fraction]
    upper: list[Fraction]
    rows: list[tuple[list[Fraction], Fraction, bool]]


def read_property(text: str, inputs: int, outputs: int) -> list[Task]:
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text)):
        if token == "(":
            stack.append([])
        else:
            stack[-1 if token != ")" else -2].append(token if token != ")" else stack.pop())
    (commands,) = stack
    names = {c[1] for c in commands if c[0] == "declare-const" and c[2:] == ["Real"]}
    if names != {f"X_{i}" for i in range(inputs)} | {f"Y_{i}" for i in range(outputs)}:
        raise Unreadable(f"the network has {inputs} inputs and {outputs} outputs, the property {sorted(names)}")
    if any(c[0] not in ("declare-const", "assert") or len(c) != 3 - (c[0] == "assert") for c in commands):
        raise Unreadable("only (declare-const ...) and (assert ...) are supported")
    cases: dict[Any, list[Task]] = {}  # by the conditions on inputs, as they stand in the file
    for way in alternatives(["and", *(c[1] for c in commands if c[0] == "assert")], names):
        limits: list[Any] = [([], []) for _ in range(inputs)]
        task, written = Task([], [], []), []
        for form, strict in way:
            free, b = [k for k, v in form.items() if k and v], form.get("", Fraction(0))
            if all(k[0] == "Y" for k in free):
                task.rows.append(([form.get(f"Y_{j}", Fraction(0)) for j in range(outputs)], b, strict))
            elif len(free) == 1:  # a strict bound is read as one that is not
                limits[int(free[0][2:])][form[free[0]] > 0].append(-b / form[free[0]])
                written.append(id(form))
            else:
                raise Unreadable(f"a condition on {', '.join(free)} is neither a bound of an input nor about outputs")
        if not task.rows or not all(low and high and max(low) <= min(high) for low, high in limits):
            raise Unreadable("every input needs a lower and an upper bound, lower <= upper, and outputs a condition")
        task.lower, task.upper = [max(low) for low, _ in limits], [min(high) for _, high in limits]
        cases.setdefault(tuple(written), []).append(task)
    if not cases:
        raise Unreadable("the property forbids nothing")
    return [*itertools.chain(*cases.values())]


def rounded(value: Fraction, direction: int) -> float:
    near = float(value)
    return math.nextafter(near, direction * math.inf) if (Fraction(near) - value) * direction < 0 else near


# Bounds --------------------------------------------------------------------------------------------------------------


class Bounder:
    """Linear lower bounds of the rows of one task over boxes inside its root."""

    def __init__(self, layers: list[Layer], task: Task) -> None:
        self.layers = layers
        self.lower = np.array([rounded(v, -1) for v in task.lower])
        self.upper = np.array([rounded(v, +1) for v in task.upper])
        widest = max(n for layer in layers for n in layer.weight.shape)
        self.batch, self.chunk = max(1, min(128, 2**22 // widest**2)), 2**15 // widest + 1  # for the cache
        self.gamma = 2 * (2 * widest + 8 * len(layers) + 32) * U
        size = [np.maximum(np.maximum(-self.lower, self.upper), 1)]  # M
        for layer in self.layers:
            size.append(1.001 * (1 + np.abs(layer.weight) @ size[-1] + np.abs(layer.bias)))
        self.rows = np.array([[float(v) for v in a] for a, _, _ in task.rows])
        most = max(1, *(float(sum(map(abs, a), abs(b))) for a, b, _ in task.rows))
        if not max(s.max() for s in size) * most < LIMIT:
            raise Rejected("the numbers are too large")
        self.limits = [(-s, s) for s in size[1:]]
        self.charge(size)
        self.limits = [(low[0], high[0]) for low, high in self.hidden(self.lower[None], self.upper[None])[0]]
        self.charge([size[0], *(np.maximum(np.maximum(-low, high), 1) for low, high in self.limits)])
        most = [Fraction(v) for v in np.maximum(-self.limits[-1][0], self.limits[-1][1]).tolist()]
        lost = [sum(abs(v - Fraction(float(v))) * m for v, m in zip(a, most, strict=True)) for a, _, _ in task.rows]
        self.offsets = np.array([rounded(b - lose, -1) for (_, b, _), lose in zip(task.rows, lost, strict=True)])

    def charge(self, size: list[np.ndarray]) -> None:
        """Set the sizes that rounding errors are relative to, from bounds of |x| and of every |z_k| over the root."""
        self.size, self.terms, self.slack = size[0], [], []
        for layer, before, here in zip(self.layers, size, size[1:], strict=False):
            sums = np.abs(layer.weight) @ before + np.abs(layer.bias)
            self.terms.append(sums + 4 * here)
            self.slack.append(2 * self.gamma * sums + TINY)

    def hidden(self, lower: np.ndarray, upper: np.ndarray) -> tuple[list[Any], list[Any]]:
        """Bound every z_k over boxes (boxes, inputs), and prepare `backward`: for each layer what it needs there."""
        ranges, steps, low, high, on = list[Any](), list[Any](), lower, upper, np.arange(lower.shape[1])
        for k, layer in enumerate(self.layers):
            weight = layer.weight[:, on]  # units that are 0 in all boxes are left out
            middle = (low + high) / 2 @ weight.T + layer.bias
            spread = (high - low) / 2 @ np.abs(weight).T + self.slack[k]
            low = np.maximum(middle - spread, self.limits[k][0])
            high = np.minimum(middle + spread, self.limits[k][1])
            sign = np.where(middle > 0, 1.0, -1.0)  # the side that is more likely to decide goes first
            for side in (sign, -sign) if k and layer.relu else ():
                box, unit = np.nonzero((low < 0) & (high > 0))
                way = side[box, unit]
                least = self.backward(weight[unit] * way[:, None], layer.bias[unit] * way, box, steps, lower, upper)[1]
                low[box, unit] = np.maximum(low[box, unit], np.where(way > 0, least, -np.inf))
                high[box, unit] = np.minimum(high[box, unit], np.where(way < 0, -least, np.inf))
            ranges.append((low, high))
            on = np.flatnonzero((high > 0).any(0) | (not layer.relu))
            low, high, lines = low[:, on], high[:, on], None
            if layer.relu:
                L, H = np.minimum(low, 0), np.maximum(high, 0)
                s = H / (H - L + 1e-300)
                t = np.maximum(-s * L, H - s * H) + 8 * U * H + 1e-300
                lines = s, t, np.where(high > -low, 1.0, 0.0)
                low, high = np.maximum(low, 0), H
            steps.append((lines, weight[on], layer.bias[on], self.terms[k][on]))
        return ranges, [*steps, on]

    def backward(self, A: np.ndarray, c: np.ndarray, box: np.ndarray, steps: list[Any], lower: Any, upper: Any) -> Any:
        """Bound A h + c, each row over its box, h being what the last step gives: (coefficients of x, minimum)."""
        if len(A) > self.chunk:
            parts = [slice(i, i + self.chunk) for i in range(0, len(A), self.chunk)]
            done = [self.backward(A[p], c[p], box[p], steps, lower, upper) for p in parts]
            return [np.concatenate(each) for each in zip(*done, strict=True)]
        E = np.abs(c)
        for lines, weight, bias, terms in reversed(steps):
            if lines is None:
                G = np.abs(A)
            else:
                s, t, a = (np.take(v, box, 0, mode="clip") for v in lines)
                negative, positive = np.minimum(A, 0), np.maximum(A, 0)
                positive *= a
                G = positive - negative
                c = c + np.einsum("rn,rn->r", negative, t)
                negative *= s
                A = positive + negative
            E = E + G @ terms
            c = c + A @ bias
            A = A @ weight
        c = c + np.einsum("rn,rn->r", np.maximum(A, 0), lower[box])
        c = c + np.einsum("rn,rn->r", np.minimum(A, 0), upper[box])
        E = E + np.abs(A) @ self.size
        return A, c - self.gamma * E - TINY * (E > 0)

    def __call__(self, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bound all rows over boxes: coefficients (boxes, rows, inputs) and minima (boxes, rows)."""
        (*steps, on), n, m = self.hidden(lower, upper)[1], len(lower), len(self.rows)
        box = np.repeat(np.arange(n), m)
        A, least = self.backward(np.tile(self.rows[:, on], (n, 1)), np.tile(self.offsets, n), box, steps, lower, upper)
        return A.reshape(n, m, -1), least.reshape(n, m)


# The proof -----------------------------------------------------------------------------------------------------------


def read_certificate(path: str, hashes: dict[str, str]) -> tuple[Any, list[int]]:
    """Give the nodes (dim, cut, look, where the upper half is; the lower is the next node) and where trees start."""
    with np.load(path, allow_pickle=False) as file:
        meta, dim, cut, look = (file[k] for k in ("meta", "dim", "cut", "look"))
    about = json.loads(meta.tobytes())
    for key, value in {"format": "nnrepair-property-1", **hashes}.items():
        if about.get(key) != value:
            raise Rejected(f"{key} is {about.get(key)!r} in the certificate, but should be {value!r}")
    inner = dim >= 0
    if [v.dtype for v in (dim, cut, look)] != [np.int16, np.float64, np.bool_] or not dim.shape == look.shape == (
        look.size,
    ):
        raise Rejected("dim, cut and look need to be lists of int16, float64 and bool")
    if cut.shape != (inner.sum(),) or not np.isfinite(cut).all() or about.get("nodes") != len(dim) or (dim < -1).any():
        raise Rejected("numbers of nodes or cuts disagree, or a cut is not finite")
    second, starts, waiting = [0] * len(dim), [0], list[int]()
    for i, is_inner in enumerate(inner.tolist(), 1):
        if is_inner:
            waiting.append(i - 1)
        elif waiting:
            second[waiting.pop()] = i
        else:
            starts.append(i)
    if starts.pop() != len(dim) or about.get("trees") != len(starts):
        raise Rejected(f"the nodes are not {about.get('trees')} complete trees, but {len(starts)} and a rest")
    cuts = np.zeros(len(dim))
    cuts[inner] = cut
    return (dim, cuts, look | ~inner, np.array(second, int)), starts


def replay(bounder: Bounder, strict: np.ndarray, nodes: Any, start: int, spare: int) -> tuple[int, int]:
    """Prove one tree, depth first; give the numbers of boxes bounded and of halvings that the tree does not have."""
    dim, cut, look, second = nodes  # and -d for what is d halvings below a leaf
    node, lower, upper = np.array([start]), np.array([bounder.lower]), np.array([bounder.upper])
    width, bounded, halved = np.maximum(bounder.upper - bounder.lower, TINY), 0, 0
    while len(node):
        rest = max(len(node) - bounder.batch, 0)
        (node, here), (lower, lo), (upper, hi) = ((v[:rest], v[rest:]) for v in (node, lower, upper))
        keep, on = np.ones(len(here), bool), look[np.maximum(here, 0)] | (here < 0)
        if on.any():
            bounded += int(on.sum())
            A, least = bounder(lo[on], hi[on])
            keep[on] = ~((least > 0) | (strict & (least >= 0))).any(1)
            move = -least[..., None] / np.where(A != 0, A, 1) * (1 + 4 * U)  # A (x - best corner) + least <= 0
            first, last = lo[on][:, None], hi[on][:, None]
            hi[on] = np.where(A > 0, np.minimum(last, np.nextafter(first + move, np.inf)), last).min(1)
            lo[on] = np.where(A < 0, np.maximum(first, np.nextafter(last + move, -np.inf)), first).max(1)
        keep &= (lo <= hi).all(1)
        here, lo, hi = here[keep], lo[keep], hi[keep]
        at = np.maximum(here, 0)
        leaf = (here < 0) | (dim[at] < 0)
        halved += int(leaf.sum())
        if (here <= -DEPTH).any() or halved > spare:
            k = np.argmin(here) if (here <= -DEPTH).any() else np.argmax(leaf)
            raise Rejected(f"not proved for inputs from {lo[k].tolist()} to {hi[k].tolist()}")
        axis = np.where(leaf, ((hi - lo) / width).argmax(1), dim[at])
        each = np.arange(len(here))
        to = np.where(leaf, (lo[each, axis] + hi[each, axis]) / 2, cut[at])
        low_hi, high_lo = hi.copy(), lo.copy()
        low_hi[each, axis], high_lo[each, axis] = np.minimum(hi[each, axis], to), np.maximum(lo[each, axis], to)
        deeper = np.minimum(here, 0) - 1
        node = np.concatenate([node, np.where(leaf, deeper, second[at]), np.where(leaf, deeper, at + 1)])
        lower, upper = np.concatenate([lower, high_lo, lo]), np.concatenate([upper, hi, low_hi])
        some = (lower <= upper).all(1)
        node, lower, upper = node[some], lower[some], upper[some]
    return bounded, halved


def check(certificate: str, network: str, property_: str) -> str:
    """Say what was proved, or raise Rejected or Unreadable."""
    try:
        data, text = Path(network).read_bytes(), Path(property_).read_bytes()
        layers = read_network(data)
        inputs, outputs = layers[0].weight.shape[1], len(layers[-1].bias)
        tasks = read_property(text.decode(), inputs, outputs)
        hashes = {"network_sha256": hashlib.sha256(data), "property_sha256": hashlib.sha256(text)}
        nodes, starts = read_certificate(certificate, {k: v.hexdigest() for k, v in hashes.items()})
    except (Rejected, Unreadable):
        raise
    except Exception as error:  # whatever damaged files lead to
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    if len(starts) != len(tasks) or (nodes[0] >= inputs).any():
        raise Rejected(f"there are {len(starts)} trees for {len(tasks)} unsafe sets, or an input does not exist")
    total, bounded, halved = len(nodes[0]), 0, 0
    for i, (task, start) in enumerate(zip(tasks, starts, strict=True)):
        strict = np.array([row[2] for row in task.rows])
        try:
            with np.errstate(all="ignore"):
                more = replay(Bounder(layers, task), strict, nodes, start, int(SHARE * total) + SPARE - halved)
        except (Rejected, OverflowError) as error:
            raise Rejected(f"tree {i + 1} of {len(tasks)}: {error}") from None
        bounded, halved = bounded + more[0], halved + more[1]
    return (
        f"Accepted: proved for all {len(tasks)} pairs of box and unsafe set, for the real-valued function of the "
        f"stored constants ({total} nodes, {bounded} boxes bounded, {halved} halved further)."
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python check.py CERT.npz NET.onnx PROP.vnnlib")
    try:
        print(check(*sys.argv[1:]))
    except (Rejected, Unreadable) as problem:
        print(f"{'Rejected' if isinstance(problem, Rejected) else 'Cannot be read'}: {problem}")
        sys.exit(1 if isinstance(problem, Rejected) else 2)
