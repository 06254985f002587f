"""Check that a repair holds and how far from the smallest one it is; trusts neither the solver nor the library.

    python verification/minimality.py CERT.npz BASE.onnx [--repaired REPAIRED.onnx]

Exit 0: accepted, and the proved sentences are printed. 1: rejected. 2: the input cannot be used.

f is the real-valued function of BASE with its stored weights. A change D adds to one weight (and bias) of BASE. The
decoupled network f(x) + J(x) D (Sotoudeh & Thakur, PLDI 2021) keeps BASE's activation pattern at x: a ReLU at exactly 0
is off, and the first of equally large entries wins a pooling window. If all that follows the layer is affine, it is
the changed network itself. Acceptance proves, for real numbers (a float32 run may round differently):

1. Edits. Each listed edit holds (labels strictly, conditions A y >= b as they stand): in REPAIRED, whose operations are
   BASE's and whose constants equal BASE's in every byte but for the named weight and bias; or, for the architecture
   "decoupled", in f(x) + J(x) D. Without --repaired, "same" edits are not checked, and the output says so.
2. Minimality. Every real D for which f(x_r) + J(x_r) D meets the listed conditions A_r y >= b_r has norm at least
   L = sum_r u_r (b_r - A_r f(x_r)) / dualnorm(sum_r u_r G_r), where G_r is the gradient of A_r y and u_r >= 0 are any
   multipliers. The printed bound is not above L, the printed norm not below that of D. Where D acts linearly, D misses
   no listed condition by more than the certificate's margin and SLACK, and the most it may miss one by is printed.

It does not prove that the listed conditions are the ones a reader has in mind: they are in the certificate.

What a file may hold and what its operators mean is onnx_graph.py's to say; balls.py computes, with proved error bounds.
"""

from __future__ import annotations

import argparse
import decimal
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bounded
import numpy as np
import onnx_graph
from balls import TINY, Ball, Rejected, U, add, between, dual_of, enclose, exact, norm_of, product, times, total
from bounded import Unreadable
from numpy.lib.stride_tricks import sliding_window_view
from onnx_graph import Node, Shape

SLACK = 1e-6  # relative: what solvers leave open in a claimed bound, a claimed norm and a condition met by D
DIGITS = 6  # of what is printed
CHUNK, ROOM = 32, 2**26  # points that are in memory together, if they need at most so many numbers
LARGEST = 2**22  # numbers in the changed weight, and in the metric
NORMS = ("l1", "linf", "l2", "mean+max", "drift", "nuclear")
AFFINE = {"Gemm", "MatMul", "Add", "Sub", "Conv", "Flatten", "Reshape", "Identity", "Transpose", "BatchNormalization"}
AFFINE |= {"AveragePool", "GlobalAveragePool", "ReduceMean"}
GRAPH = ("input", "output", "dtype", "nodes", "shapes")  # what a repaired network has in common with the base


# The network: every operator gives its value and the function that pulls a gradient back through it -----------------

Pullback = Callable[[Ball], list[Ball]]


def windows(node: Node, shape: Shape) -> np.ndarray:
    """Index the entries of (c, h, w) by (window, entry), c h w standing for padding; a window of Conv has all c."""
    o = node.options
    (top, left, bottom, right), (down, along), (i, j) = o["pads"], o["strides"], o["dilations"]
    places = np.arange(math.prod(shape)).reshape(shape)
    places = np.pad(places, ((0, 0), (top, bottom), (left, right)), constant_values=places.size)
    reach = [(k - 1) * step + 1 for k, step in zip(o["kernel_shape"], (i, j), strict=True)]
    views = sliding_window_view(places, reach, (1, 2))[:, ::down, ::along, ::i, ::j]
    views = views.transpose(1, 2, 0, 3, 4) if node.op == "Conv" else views
    return views.reshape(-1, math.prod(o["kernel_shape"]) * (shape[0] if node.op == "Conv" else 1))


def flat(a: np.ndarray) -> np.ndarray:
    return a.reshape(len(a), -1)


def cut(a: Ball, index: np.ndarray, fill: float = 0.0) -> Ball:
    """Give (n, window, entry)."""
    parts = [(a.mid, fill), (a.rad, 0.0)] + ([] if a.key is None else [(a.key, -1)])
    return Ball(*(np.pad(flat(part), ((0, 0), (0, 1)), constant_values=value)[:, index] for part, value in parts))


def numbered(rows: np.ndarray | None) -> np.ndarray | None:
    """Give equal rows (last axis) equal numbers."""
    if rows is None:
        return None
    return np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)[1].reshape(rows.shape[:-1])


def paste(windows: Ball, index: np.ndarray, shape: tuple[int, ...]) -> Ball:
    """Add the entries of windows up where they came from: the adjoint of `cut`."""

    def back(part: np.ndarray) -> np.ndarray:
        image = np.zeros((len(part), math.prod(shape[1:]) + 1))
        for entry, places in enumerate(index.T):  # the places differ, but for the one of the padding
            image[:, places] += part[:, :, entry]
        return image[:, :-1].reshape(shape)

    return enclose(back(windows.mid), back(windows.rad), back(np.abs(windows.mid)), index.shape[1])


def matrix(node: Node, weight: Ball) -> Ball:
    """Give a layer's weight as (outputs, inputs)."""
    return weight.map(flat if node.op == "Conv" or node.options.get("transB") else np.transpose)


def positions(node: Node, x: Ball) -> Ball:
    """Give what the weight of a layer is multiplied with, (n, position, inputs)."""
    if node.op != "Conv":
        return x.map(lambda a: a.reshape(len(a), -1, a.shape[-1]))
    return cut(x, windows(node, x.mid.shape[1:]))


def at_positions(node: Node, g: Ball) -> Ball:
    """Give a gradient for a layer's output as (n, position, outputs)."""
    if node.op == "Conv":
        return g.map(lambda a: a.reshape(*a.shape[:2], -1).transpose(0, 2, 1))
    return g.map(lambda a: a.reshape(len(a), -1, a.shape[-1]))


def layer(node: Node, x: list[Ball]) -> tuple[Ball, Pullback]:
    """Gemm, MatMul, Conv."""
    weight, shape = matrix(node, x[1]), x[0].mid.shape
    inputs = positions(node, x[0])
    y = product(inputs, weight.map(np.transpose))
    y = add(y, x[2]) if len(x) > 2 else y
    if inputs.key is not None:
        outputs = y.mid.shape[-1]
        y = Ball(y.mid, y.rad, numbered(inputs.key)[..., None] * outputs + np.arange(outputs))
    if node.op != "Conv":
        y = y.map(lambda a: a.reshape(len(a), *node.shape))
        return y, lambda g: [product(at_positions(node, g), weight).map(lambda a: a.reshape(shape))]
    y = y.map(lambda a: a.transpose(0, 2, 1).reshape(len(a), *node.shape))
    return y, lambda g: [paste(product(at_positions(node, g), weight), windows(node, shape[1:]), shape)]


def plus(node: Node, x: list[Ball]) -> tuple[Ball, Pullback]:
    """Add, Sub."""
    sign = 1 if node.op == "Add" else -1
    return add(x[0], x[1], sign), lambda g: [g, Ball(sign * g.mid, g.rad)]


def relu(node: Node, x: list[Ball]) -> tuple[Ball, Pullback]:
    on, off = x[0].lower > 0, x[0].upper <= 0
    slope = Ball(np.where(on | off, on, 0.5), np.where(on | off, 0.0, 0.5))  # [0, 1] if the sign is unknown
    y, key = times(x[0], slope), x[0].key
    return Ball(y.mid, y.rad, None if key is None else np.where(off, -1, key)), lambda g: [times(g, slope)]


def max_pool(node: Node, x: list[Ball]) -> tuple[Ball, Pullback]:
    shape = x[0].mid.shape
    index = windows(node, shape[1:])
    entries = cut(x[0], index, -np.inf)
    low, high = entries.lower, entries.upper
    winners = ~(high < low.max(2, keepdims=True))  # all that may be the largest
    tied = (~winners | (low == high)).all(2, keepdims=True)
    if entries.key is not None:
        leader = np.take_along_axis(entries.key, winners.argmax(2)[..., None], 2)
        tied |= (~winners | (entries.key == leader)).all(2, keepdims=True)  # equal: the first one wins
    winners &= ~tied | (winners.cumsum(2) == 1)
    sure = winners.sum(2, keepdims=True) == 1
    slope = Ball(winners * np.where(sure, 1.0, 0.5), winners * np.where(sure, 0.0, 0.5))
    value = between(low.max(2), high.max(2))
    if entries.key is not None:
        fresh = entries.key.max() + 1 + np.arange(sure.size).reshape(sure.shape)
        value = Ball(value.mid, value.rad, np.where(sure, leader, fresh)[..., 0])
    value = value.map(lambda a: a.reshape(len(a), *node.shape))
    return value, lambda g: [paste(times(g.map(lambda a: a.reshape(len(a), -1, 1)), slope), index, shape)]


def average(node: Node, x: list[Ball]) -> tuple[Ball, Pullback]:
    """AveragePool, GlobalAveragePool, ReduceMean."""
    shape = x[0].mid.shape
    if node.op == "AveragePool":
        index = windows(node, shape[1:])
    else:  # the averaged axes last
        axes = node.options["axes"]
        order = [axis for axis in range(len(shape) - 1) if axis not in axes] + [*axes]
        index = np.arange(math.prod(shape[1:])).reshape(shape[1:]).transpose(order).reshape(math.prod(node.shape), -1)
    inside = (index < math.prod(shape[1:])) | bool(node.options.get("count_include_pad"))
    share = enclose(1 / inside.sum(1), 0.0, 1 / inside.sum(1), 1)
    value = times(total(cut(x[0], index), (2,)), share).map(lambda a: a.reshape(len(a), *node.shape))

    def pull(g: Ball) -> list[Ball]:
        part = times(g.map(flat), share).map(lambda a: np.broadcast_to(a[..., None], (len(a), *index.shape)))
        return [paste(part, index, shape)]

    return value, pull


def batch_norm(node: Node, x: list[Ball]) -> tuple[Ball, Pullback]:
    scale, shift, mean, variance = (part.mid.reshape(-1, *(1,) * (x[0].mid.ndim - 2)) for part in x[1:])
    factor = scale / np.sqrt(variance + node.options["epsilon"])
    slope = enclose(factor, 0.0, np.abs(factor), 4)
    return add(times(add(x[0], exact(mean), -1), slope), exact(shift)), lambda g: [times(g, slope)]


def move(node: Node, x: list[Ball]) -> tuple[Ball, Pullback]:
    """Identity, Flatten, Reshape."""
    shape = x[0].mid.shape
    return x[0].map(lambda a: a.reshape(len(a), *node.shape)), lambda g: [g.map(lambda a: a.reshape(shape))]


def transpose(node: Node, x: list[Ball]) -> tuple[Ball, Pullback]:
    order, back = node.options["perm"], np.argsort(node.options["perm"])
    return x[0].map(lambda a: a.transpose(order)), lambda g: [g.map(lambda a: a.transpose(back))]


OPERATORS: dict[str, Callable[[Node, list[Ball]], tuple[Ball, Pullback]]] = {
    **dict.fromkeys(("Gemm", "MatMul", "Conv"), layer),
    **dict.fromkeys(("Add", "Sub"), plus),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), average),
    **dict.fromkeys(("Identity", "Flatten", "Reshape"), move),
    **{"Relu": relu, "MaxPool": max_pool, "BatchNormalization": batch_norm, "Transpose": transpose},
}


class Network:
    """A network as `onnx_graph` reads it, whose values and gradients can be enclosed."""

    def __init__(self, data: bytes) -> None:
        self.graph = onnx_graph.read(data)
        self.nodes, self.constants, self.output = self.graph.nodes, self.graph.constants, self.graph.output
        if len(self.graph.shapes[self.output]) != 1:
            raise Unreadable(f"an output of shape {self.graph.shapes[self.output]}; expected one axis of scores")
        if any(((a != 0) & (np.abs(a) <= TINY)).any() for a in self.constants.values() if a.dtype == np.float64):
            raise Unreadable(f"constants that are not 0, but smaller than {TINY}")
        self.chunk = min(CHUNK, ROOM // self.numbers())
        if self.chunk == 0:
            raise Unreadable(f"one point needs {self.numbers()} numbers in memory; at most {ROOM} are allowed")

    @classmethod
    def at(cls, path: Path) -> Network:
        """Read a file."""
        try:
            return cls(bounded.content(path, onnx_graph.FILE))
        except Unreadable as error:
            raise Unreadable(f"{path.name} cannot be read: {error}") from error

    def numbers(self) -> int:
        """Bound how many numbers are in memory for one point: all values, what pools keep, the largest windows."""
        most, kept = 0, 3 * sum(map(math.prod, self.graph.shapes.values()))
        for node in self.nodes:
            if "kernel_shape" in node.options:
                entries = math.prod(node.shape) * math.prod(node.options["kernel_shape"])
                if node.op == "Conv":
                    entries = entries // node.shape[0] * self.graph.shapes[node.inputs[0]][0]
                most, kept = max(most, 12 * entries), kept + 2 * entries * (node.op == "MaxPool")
        return kept + max(most, 12 * max(map(math.prod, self.graph.shapes.values())))

    def ball(self, name: str) -> Ball:
        """Give a constant; none is so small that it could underflow."""
        array = self.constants[name].astype(np.float64)
        return Ball(array, np.broadcast_to(0.0, array.shape))

    def run(self, points: np.ndarray) -> tuple[dict[str, Ball], dict[str, Pullback]]:
        """Enclose all values at the points, and give every node's pullback there."""
        values, pullbacks = {self.graph.input: exact(points)}, dict[str, Pullback]()
        if any(node.op == "MaxPool" for node in self.nodes):
            key = np.where(points == 0, -1, numbered(points[..., None]))
            values[self.graph.input] = Ball(values[self.graph.input].mid, values[self.graph.input].rad, key)
        for node in self.nodes:
            x = [self.ball(name) if name in self.constants else values[name] for name in node.inputs]
            values[node.output], pullbacks[node.output] = OPERATORS[node.op](node, x)
        return values, pullbacks


class Layer:
    """The layer that the change adds to, as a matrix (outputs, inputs [+ 1 column for the bias])."""

    def __init__(self, network: Network, weight: str, bias: str | None) -> None:
        uses = [(node, k) for node in network.nodes for k, name in enumerate(node.inputs) if name == weight]
        if [k for _, k in uses] != [1] or uses[0][0].op not in ("Gemm", "MatMul", "Conv"):
            raise Unreadable(f"{weight!a} is not the weight of exactly one Gemm, MatMul or Conv.")
        self.network, self.node, self.bias, nodes = network, uses[0][0], bias, network.nodes
        self.names = [weight] if bias is None else [weight, bias]
        if bias is not None and bias not in self.node.inputs[2:]:  # MatMul, then Add
            after = [node for node in nodes if self.node.output in node.inputs]
            added = [node.op for node in after] == ["Add"] and bias in after[0].inputs
            if self.node.op != "MatMul" or not added or self.node.output == network.output:
                raise Unreadable(f"{bias!a} is not the bias of the layer of {weight!a}.")
        shape = matrix(self.node, network.ball(weight)).mid.shape
        times_used = sum(node.inputs.count(bias) for node in nodes)
        stored = network.constants.get(bias) if bias is not None else None
        if bias is not None and (times_used != 1 or stored is None or stored.shape != shape[:1]):
            raise Unreadable(f"{bias!a} is shared, not constant, or not of shape {shape[:1]}.")
        if math.prod(shape) > LARGEST:
            raise Unreadable(f"{weight!a} has {math.prod(shape)} entries; at most {LARGEST} are supported.")
        self.shape = shape[0], shape[1] + (bias is not None)
        self.live = {self.node.output}  # the values that depend on the layer
        for node in nodes:
            self.live |= {node.output} if self.live & set(node.inputs) else set()
        self.affine = all(node.op in AFFINE for node in nodes if node.output in self.live)
        if network.output not in self.live:
            raise Unreadable(f"The output does not depend on {weight!a}.")

    @property
    def torch_shapes(self) -> list[tuple[int, ...]]:
        stored = self.network.constants[self.names[0]].shape
        inputs = self.shape[1] - (self.bias is not None)
        return [stored if self.node.op == "Conv" else (self.shape[0], inputs), self.shape[:1]][: len(self.names)]

    def matrix_in(self, network: Network) -> np.ndarray:
        parts = [matrix(self.node, network.ball(self.names[0])), *map(network.ball, self.names[1:])]
        return np.column_stack([part.mid for part in parts])

    def slopes(self, values: dict[str, Ball], pullbacks: dict[str, Pullback], rows: np.ndarray) -> tuple[Ball, Ball]:
        """Give P (n, position, outputs) and X (n, position, inputs): the gradient of row . y is sum_position P^T X."""
        network, grads = self.network, {self.network.output: exact(rows)}
        for node in reversed(network.nodes):
            if node is self.node:
                break
            if node.output in self.live and node.output in grads:
                for name, g in zip(node.inputs, pullbacks[node.output](grads[node.output]), strict=False):
                    if name in self.live:
                        grads[name] = add(grads[name], g) if name in grads else g
        x = positions(self.node, values[self.node.inputs[0]])
        if self.bias is not None:
            x = Ball(*(np.pad(a, ((0, 0), (0, 0), (0, 1)), constant_values=one) for a, one in ((x.mid, 1), (x.rad, 0))))
        return at_positions(self.node, grads[self.node.output]), x


# The certificate -----------------------------------------------------------------------------------------------------


META = {"format": str, "weight": str, "bias": str | None, "norm": str, "architecture": str, "lowest": bool}
CHOICES = {"format": ("nnrepair-minimality-1",), "norm": NORMS, "architecture": ("same", "decoupled")}
SIZES = ("lower_bound", "objective", "margin")
REQUIRED = {"points", "row_point", "row_A", "row_b", "row_multiplier", "edit_point"}
KINDS = {"points": ("f", 0), "row_point": ("iu", 1), "row_A": ("f", 2), "row_b": ("f", 1), "row_multiplier": ("f", 1)}
KINDS |= {"edit_point": ("iu", 1), "edit_label": ("iu", 1), "edit_A": ("f", 3), "edit_b": ("f", 2), "metric": ("f", 2)}
KINDS |= {"delta_weight": ("f", 0), "delta_bias": ("f", 1)}  # types, and axes where they are known


def digits(number: float, direction: str, count: int | None = None) -> str:
    """Write a number in few digits, rounded up or down."""
    rounding = {"up": decimal.ROUND_CEILING, "down": decimal.ROUND_FLOOR}[direction]
    short = decimal.Context(count or DIGITS, rounding).create_decimal_from_float(number + 0.0).normalize()
    return f"{short:f}" if -5 < short.adjusted() < 6 else f"{short:e}"


def read_meta(array: np.ndarray) -> dict[str, Any]:
    meta = {"bias": None, "lowest": False} | bounded.meta(array)
    wrong = [f"{name} {meta[name]!a}" for name, kind in META.items() if not isinstance(meta[name], kind)]
    wrong += [f"{name} {meta[name]!a}" for name in SIZES if type(meta[name]) not in (int, float)]
    if wrong:
        raise Unreadable(f"{', '.join(wrong)}: not of the type expected")
    wrong = [f"{name} {meta[name]!a} is none of {some}" for name, some in CHOICES.items() if meta[name] not in some]
    if wrong:
        raise Unreadable("; ".join(wrong))
    return meta | {name: float(meta[name]) for name in SIZES}


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Give the meta data and the arrays, whose types and first axes are checked."""
    arrays = bounded.arrays(path)
    try:
        meta = read_meta(arrays.pop("meta"))
        missing = REQUIRED - arrays.keys() | arrays.keys() - KINDS.keys()
        if missing:
            raise Unreadable(f"arrays that are missing or unknown: {', '.join(map(ascii, sorted(missing)))}")
        lengths = {kind: len(arrays[f"{kind}_point"]) for kind in ("row", "edit")}
        for name, array in arrays.items():
            kind, axes = KINDS[name]
            if array.dtype.kind not in kind or array.ndim == 0 or (axes not in (0, array.ndim) and len(array)):
                raise Unreadable(f"{name} has type {array.dtype} and shape {array.shape}")
            if len(array) != lengths.get(name.split("_")[0], len(array)):
                raise Unreadable(f"{name} has {len(array)} entries, {lengths}")
            if not np.isfinite(array).all():
                raise Rejected(f"{name} has entries that are not finite.")
            if name.endswith("_point") and not ((array >= 0) & (array < len(arrays["points"]))).all():
                raise Unreadable(f"{name} names points that are not there")
        if lengths["edit"] and ("edit_label" in arrays) == ({"edit_A", "edit_b"} <= arrays.keys()):
            raise Unreadable("edits need either edit_label or edit_A and edit_b")
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        reason = error if isinstance(error, Unreadable) else f"{type(error).__name__}: {error}"
        raise Unreadable(f"{path.name} cannot be read: {reason}") from error
    if not all(0 <= meta[name] < math.inf for name in SIZES):
        given = {name: meta[name] for name in SIZES}
        raise Rejected(f"lower_bound, objective and margin must be finite and not negative, given {given}.")
    if not (arrays["row_multiplier"] >= 0).all():
        raise Rejected(f"Multipliers must not be negative: the smallest is {arrays['row_multiplier'].min()}.")
    return meta, arrays


def check_points(points: np.ndarray, network: Network) -> None:
    """Refuse points that the network does not take."""
    shape, dtype = network.graph.shapes[network.graph.input], network.graph.dtype
    if points.shape[1:] != shape:
        raise Unreadable(f"points has shape {points.shape}; the network takes {('n', *shape)}.")
    if not (points.astype(dtype) == points).all():
        raise Unreadable(f"points has type {points.dtype} and numbers that are no {dtype}, which the network takes.")


def change_of(layer: Layer, arrays: dict[str, np.ndarray], repaired: Network | None) -> tuple[Ball | None, np.ndarray]:
    """Give the change as the layer's matrix, and how much of it rounding to the file's number type may have made."""
    base, names = layer.network, layer.names
    given = [arrays[name] for name in ("delta_weight", "delta_bias")[: len(names)] if name in arrays]
    if given and [a.shape for a in given] != layer.torch_shapes:
        raise Unreadable(f"The change has shapes {[a.shape for a in given]}, expected {layer.torch_shapes}.")
    claimed = exact(np.column_stack([flat(a) for a in given])) if given else None
    if repaired is None:
        return claimed, np.zeros(layer.shape)
    differ = sorted(base.constants.keys() ^ repaired.constants.keys())
    for name in base.constants.keys() & repaired.constants.keys():
        one, other = base.constants[name], repaired.constants[name]
        same = one.dtype == other.dtype and one.shape == other.shape
        differ += [name] * (not same or (name not in names and one.tobytes() != other.tobytes()))
    if differ or any(getattr(base.graph, part) != getattr(repaired.graph, part) for part in GRAPH):
        found = ", ".join(ascii(name[:80])[1:-1] for name in differ) or "graph"
        raise Rejected(f"The repaired file is not the base with other {names}: {found} differs.")
    before, after = layer.matrix_in(base), layer.matrix_in(repaired)
    change = add(exact(after), exact(before), -1)
    eps = max(np.finfo(base.graph.dtype).eps, 8 * U)  # the latter for the two differences here
    rounding = eps * (np.abs(before) + np.abs(after)) + TINY
    if claimed is not None and not (add(change, claimed, -1).size <= rounding).all():
        raise Rejected("The repaired weights are not the base's plus the certificate's change, up to rounding.")
    return change, np.where(change.mid != 0, rounding, 0.0)


def dot(rows: np.ndarray, y: Ball) -> Ball:
    """Multiply (n, outputs) by (n, outputs)."""
    return total(times(exact(rows), y), (1,))


def effect(slopes: tuple[Ball, Ball], change: Ball) -> Ball:
    return total(times(slopes[0], product(slopes[1], change.map(np.transpose))), (1, 2))


def conditions(
    arrays: dict[str, np.ndarray], at: slice, outputs: int, lowest: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give the rows (n, outputs) and bounds (n,) that make the edits hold, one of each edit's after another."""
    if "edit_label" not in arrays:
        rows, bounds = arrays["edit_A"][at], arrays["edit_b"][at]
        if rows.shape != (*bounds.shape, outputs) or rows.size == 0:
            raise Unreadable(f"edit_A and edit_b have shapes {rows.shape} and {bounds.shape}; {outputs} outputs.")
        for i in range(rows.shape[1]):
            yield rows[:, i], bounds[:, i]
        return
    labels = arrays["edit_label"][at].astype(np.int64)
    if not ((labels >= 0) & (labels < outputs)).all() or outputs < 2:
        raise Unreadable(f"edit_label has labels outside 0 to {outputs - 1}, or there is nothing to choose from.")
    for i in range(outputs - 1):
        rows = np.zeros((len(labels), outputs))
        rows[np.arange(len(labels)), labels] += 1
        rows[np.arange(len(labels)), i + (labels <= i)] -= 1
        yield (-rows if lowest else rows), np.zeros(len(labels))


def check_edits(layer: Layer, meta: dict[str, Any], arrays: dict[str, np.ndarray], net: Network, d: Ball | None) -> str:
    """Prove every edit for the network `net`, or for its decoupled network with the change d."""
    points, chosen, least = arrays["points"], arrays["edit_point"], math.inf
    if len(chosen) == 0:
        return "No edits are listed."
    for start in range(0, len(chosen), net.chunk):
        at = slice(start, start + net.chunk)
        values, pullbacks = net.run(points[chosen[at]].astype(np.float64))
        y = values[net.output]
        for rows, bounds in conditions(arrays, at, y.mid.shape[1], meta["lowest"]):
            margins = add(dot(rows, y), exact(bounds), -1)
            if d is not None:
                margins = add(margins, effect(layer.slopes(values, pullbacks, rows), d))
            low = margins.lower
            holds = low > 0 if "edit_label" in arrays else low >= 0
            if not holds.all():
                i = int(np.argmin(holds))
                raise Rejected(
                    f"Edit {start + i} (point {chosen[start + i]}) could not be proved: a margin lies between "
                    f"{digits(low[i], 'down')} and {digits(margins.upper[i], 'up')}."
                )
            least = min(least, low.min())
    where = "the repaired network" if d is None else "the decoupled network with the certificate's change"
    edits = "The edit holds" if len(chosen) == 1 else f"All {len(chosen)} edits hold"
    return f"{edits} in {where}, for real numbers; the smallest margin is >= {digits(least, 'down')}."


def check_rows(layer: Layer, arrays: dict[str, np.ndarray], d: Ball | None) -> tuple[float, Ball, np.ndarray]:
    """Give sum u (b - A f) rounded down, sum u G, and by how much d misses each condition, rounded up."""
    gaps, missed, z, net = [], [], exact(np.zeros(layer.shape)), layer.network
    for start in range(0, len(arrays["row_point"]), net.chunk):
        at = slice(start, start + net.chunk)
        rows, bounds, u = (arrays[f"row_{name}"][at].astype(np.float64) for name in ("A", "b", "multiplier"))
        values, pullbacks = net.run(arrays["points"][arrays["row_point"][at]].astype(np.float64))
        if rows.shape[1:] != values[net.output].mid.shape[1:]:
            raise Unreadable(f"row_A has shape {arrays['row_A'].shape}, the output {values[net.output].mid.shape}.")
        gap = add(exact(bounds), dot(rows, values[net.output]), -1)
        p, x = layer.slopes(values, pullbacks, rows)
        weighted = times(p, exact(u[:, None, None])).map(lambda a: a.reshape(-1, a.shape[2]).T)
        z = add(z, product(weighted, x.map(lambda a: a.reshape(-1, a.shape[2]))))
        gaps.append(times(exact(u), gap))
        missed.append(gap.upper if d is None else add(gap, effect((p, x), d), -1).upper)
    gaps = Ball(np.concatenate([g.mid for g in gaps]), np.concatenate([g.rad for g in gaps]))
    return float(total(gaps, (0,)).lower), z, np.concatenate(missed)


def lower_bound(norm: str, metric: np.ndarray | None, gap: float, z: Ball, claimed: float) -> float:
    dual = dual_of(norm, z, metric)
    if gap > 0 and dual == 0:
        raise Rejected("The listed conditions contradict each other: no change meets them.")
    lower = float(np.nextafter(gap / dual * (1 - 4 * U), 0)) if gap > 0 else 0.0
    if not (math.isfinite(lower) and claimed <= lower * (1 + SLACK)):
        raise Rejected(f"The bound claimed is {claimed!r}; the conditions and multipliers prove {lower!r}.")
    return lower


def check_bound(
    layer: Layer, meta: dict[str, Any], arrays: dict[str, np.ndarray], d: Ball | None, rounding: np.ndarray
) -> str:
    norm, metric, k = meta["norm"], arrays.get("metric"), len(arrays["row_point"])
    metric = None if metric is None else metric.astype(np.float64)
    if (norm == "drift") != (metric is not None):
        raise Unreadable("The norm 'drift', and no other, needs the array metric.")
    if metric is not None and metric.size > LARGEST:
        raise Unreadable(f"metric has shape {metric.shape}; at most {LARGEST} entries are supported.")
    if metric is not None and (metric.shape != (layer.shape[1],) * 2 or not (metric == metric.T).all()):
        raise Unreadable(f"metric has shape {metric.shape}, expected a symmetric {(layer.shape[1],) * 2}.")
    size = None if d is None else norm_of(norm, d, metric)
    allowed = meta["objective"] * (1 + SLACK) + norm_of(norm, Ball(0 * rounding, rounding), metric)
    if size is not None and not size <= allowed < math.inf:
        raise Rejected(f"The change has {norm} norm {size!r}, more than the objective {meta['objective']!r} claimed.")
    if k == 0:
        return "No conditions are listed, so minimality was not checked."
    gap, z, missed = check_rows(layer, arrays, d)
    lower = lower_bound(norm, metric, gap, z, meta["lower_bound"])
    names = " and ".join(map(ascii, layer.names))
    network = "the network" if layer.affine else "its decoupled network (activation pattern kept)"
    text = (
        f"Every change of {names} with which {network} meets the {k} listed condition{'s' * (k != 1)} has {norm} "
        f"norm >= {digits(lower, 'down')}. "
    )
    if layer.affine:
        text += "All that follows the layer is affine, so this is about the network itself. "
    else:
        text += "This does not bound changes with which the network itself meets them. "
    if size is None:
        return text + "The change itself was not given, so its norm was not compared."
    linear = layer.affine or meta["architecture"] == "decoupled"
    if linear:
        open_by = meta["margin"] + SLACK * np.maximum(1, np.abs(arrays["row_b"]))
        if not (missed <= open_by).all():
            worst = int(np.argmax(~(missed <= open_by)))
            by = digits(missed[worst], "up")
            raise Rejected(f"The change misses condition {worst} by up to {by}, more than the margin allows.")
    return text + compared(lower, size, float(missed.max()) if linear else None)


def compared(lower: float, size: float, missed: float | None) -> str:
    """Say how the change compares with the bound, and by how much it misses conditions (None if that is not known)."""
    text = f"The change made has norm <= {digits(size, 'up')}"
    if 0 < lower <= size:
        share = (size - lower) / size * (1 + 8 * U)
        text += f"; before rounding, the bound is smaller than that by at most {digits(share, 'up', 3)} of it"
    elif size < lower:
        text += ", before rounding less than the bound, as it does not meet all of the conditions exactly"
    if missed is None:
        return text + ". By how much it misses the listed (linearised) conditions was not checked."
    return text + (
        f". It misses none of them by more than {digits(missed, 'up')}." if missed > 0 else ". It meets them."
    )


def check(certificate: Path, base_path: Path, repaired_path: Path | None) -> list[str]:
    """Return the sentences that were proved."""
    meta, arrays = read(certificate)
    base, same = Network.at(base_path), meta["architecture"] == "same"
    check_points(arrays["points"], base)
    layer = Layer(base, meta["weight"], meta["bias"])
    repaired = Network.at(repaired_path) if same and repaired_path else None
    d, rounding = change_of(layer, arrays, repaired)
    if not same and d is None:
        raise Unreadable("The architecture 'decoupled' needs delta_weight (and delta_bias).")
    if same and repaired is None:
        edits = "Whether the edits hold was not checked: no repaired network was given."
    else:
        edits = check_edits(layer, meta, arrays, repaired or base, None if same else d)
    return [edits, check_bound(layer, meta, arrays, d, rounding)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("certificate", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--repaired", type=Path)
    given = parser.parse_args(argv)
    try:
        with np.errstate(all="ignore"):  # what overflows is NaN or inf, and is rejected
            code, said = 0, ["ACCEPTED", *check(given.certificate, given.base, given.repaired)]
    except (Rejected, np.linalg.LinAlgError) as error:
        code, said = 1, ["REJECTED", str(error)]
    except Unreadable as error:
        code, said = 2, ["UNUSABLE", str(error)]
    except Exception as error:  # such as too little memory: never taken for a verdict
        code, said = 2, ["UNUSABLE", f"{type(error).__name__}: {error}"]
    bounded.say("\n".join(said))
    return code


if __name__ == "__main__":
    sys.exit(main())
