"""A random ONNX graph while it is drawn: its names, its nodes, and its constants in every form a file can give them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
Shape = tuple[int, ...]

FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
#: Names that exporters never write, and names that modules have for themselves.
NAMES = [
    "",
    "a.b.c",
    "/net/fc/MatMul",
    "weight",
    "bias",
    "training",
    "forward",
    "T",
    "0",
    "x y",
    "π",
    "fc",
    "fc.weight",
]
NAMES += [
    "fc.bias",
    "steps",
    "value",
    "_",
    "__class__",
    "input",
    "output",
    "net.0.weight",
    "a/b/../c",
    "Relu_1",
    "double",
]


@dataclass(frozen=True)
class Style:
    """What kind of graphs are drawn.

    Attributes:
        operators: how often each one is tried.
        odd: how often an attribute is anything but usual.
        folding: how often a constant is computed by other nodes.
        constants: how often a constant is a node rather than an initializer.
        dtypes: weights of FLOATS.
        old: how often an opset before 7 is drawn, where much was different.
        flat: how often the output gets two axes.
        ranks: weights of inputs with 1 to 5 axes.
        branches: how often an operator reads anything but the last value, or two values.
    """

    operators: dict[str, float]
    odd: float
    folding: float
    constants: float
    dtypes: tuple[float, ...]
    old: float
    flat: float
    ranks: tuple[float, ...] = (0.02, 0.4, 0.13, 0.4, 0.05)
    branches: float = 0.25


@dataclass(frozen=True)
class Value:
    """A value of the graph; `shape` takes the batch to be as large as it was drawn."""

    name: str
    shape: Shape
    dtype: Any


class Draft:
    """A graph while it is drawn."""

    def __init__(self, rng: np.random.Generator, style: Style, opset: int, dtype: Any) -> None:
        self.rng, self.style, self.opset, self.dtype = rng, style, opset, dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.taken = {""}
        self.stored: list[tuple[Array, str]] = []
        self.batch, self.input = 1, Value("", (), dtype)
        self.values: list[Value] = []

    # Chance ----------------------------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def odd(self, share: float = 1.0) -> bool:
        return self.chance(self.style.odd * share)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    # Names and nodes -------------------------------------------------------------------------------------------------

    def name(self, hint: str) -> str:
        """Return a name that no value has, but for very few."""
        if self.chance(0.0005) and self.stored:
            return self.stored[0][1]
        wanted = self.pick(NAMES) if self.chance(0.2) else hint
        while wanted in self.taken:
            wanted = f"{hint}{len(self.taken)}" if self.chance(0.8) else f"{wanted}.{len(self.taken)}"
        self.taken.add(wanted)
        return wanted

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output."""
        names = [self.name("v") for _ in range(outputs)]
        if outputs > 1 and self.chance(0.1):
            names[self.below(outputs)] = ""
        called = self.pick([*NAMES, op.lower(), f"/net/{op}"]) if self.chance(0.5) else ""
        if any(node.name == called for node in self.nodes) and not self.chance(0.005):
            called = f"{called}_{len(self.nodes)}" if called else ""
        made = helper.make_node(op, inputs, names, name=called, **attributes)
        if self.chance(0.002):
            made.domain = "ai.onnx"
        self.nodes.append(made)
        return names[1] if outputs > 1 and self.chance(0.05) else names[0]

    # Numbers ---------------------------------------------------------------------------------------------------------

    def numbers(self, shape: Shape, dtype: Any) -> Array:
        """Return numbers among which zeros of both signs, ties and large ones are common; very few are not finite."""
        if self.chance(0.001):
            dtype = self.pick([*FLOATS, np.int64])  # which no operator takes beside others
        made = self.finite(shape)
        if made.size and np.dtype(dtype).kind != "i" and self.chance(0.002):
            made.reshape(-1)[self.below(made.size)] = self.pick([np.inf, -np.inf, np.nan])
        return made.astype(dtype)

    def finite(self, shape: Shape) -> Array:
        kind = self.rng.random()
        if kind < 0.65:  # sums and products of these are exact
            made = self.rng.integers(-8, 9, shape) / 4
        elif kind < 0.85:
            made = self.rng.normal(size=shape)
        elif kind < 0.95:
            made = self.rng.integers(-2, 3, shape) * self.pick([0.0, 1.0, -0.0, 2.0])
        else:
            made = self.rng.normal(size=shape) * 2.0 ** self.rng.integers(-12, 13, shape)
        return np.asarray(made, np.float64)

    # Constants -------------------------------------------------------------------------------------------------------

    def store(self, array: Any, depth: int = 2) -> str:
        """Make a constant, and return its name."""
        array = np.asarray(array)
        if depth and self.chance(self.style.folding):
            for form in self.rng.permutation(len(FORMS))[:4]:
                name = FORMS[form](self, array, depth - 1)
                if name:
                    return str(name)
        return self._plain(array)

    def integers(self, numbers: Any) -> str:
        """Make a constant of sizes or axes; some of them may come from the shape of the input."""
        wanted = np.asarray(numbers, np.int64)
        if wanted.ndim == 1 and wanted.size and self.opset >= 5 and self.chance(self.style.folding):
            parts = [self._from_shape(int(n)) or self.store([n], 0) for n in wanted]
            return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)
        return self.store(wanted)

    def _from_shape(self, number: int) -> str:
        places = [k for k, size in enumerate(self.input.shape) if size == number]
        if not places or self.chance(0.3):
            return ""
        place, shape = self.pick(places), self.node("Shape", [self.input.name])
        if self.opset >= 10 and self.chance(0.3):
            ends = (
                self.store(np.array([place + 1])) if place + 1 < len(self.input.shape) else self.store(np.array([99]))
            )
            return self.node("Slice", [shape, self.store(np.array([place])), ends])
        if self.chance(0.5):
            return self.node("Gather", [shape, self.store(np.array([place]))], axis=0)
        single = self.node("Gather", [shape, self.store(np.array(place))])
        if self.chance(0.5):
            return self.node("Reshape", [single, self.store(np.array([-1]), 0)])
        return self.unsqueeze(single, [0])

    def unsqueeze(self, name: str, axes: Sequence[int], op: str = "Unsqueeze") -> str:
        """Add Unsqueeze or Squeeze in the form of this opset."""
        if (self.opset >= 13) ^ self.chance(0.01):
            return self.node(op, [name, self.store(np.array(axes, np.int64), 0)])
        return self.node(op, [name], axes=[*axes])

    def _plain(self, array: Array) -> str:
        for known, name in self.stored:
            if self.chance(0.4) and known.dtype == array.dtype and known.shape == array.shape:
                same: bool = np.array_equal(known, array)
                if same:
                    return name
        if self.chance(self.style.constants):
            return self._constant_node(array)
        name = self.name(self.pick(["w", "c", "fc.weight", "block.conv.weight", "b"]))
        self.initializers.append(self.tensor(array, name))
        if self.chance(0.05):
            self.inputs.append(helper.make_tensor_value_info(name, kind_of(array.dtype), array.shape))
        self.stored.append((array, name))
        return name

    def _constant_node(self, array: Array) -> str:
        forms = [{"value": self.tensor(array, "")}]
        if self.opset >= 12 and array.dtype in (np.float32, np.int64) and array.ndim < 2:
            kind, number = ("float", float) if array.dtype == np.float32 else ("int", int)
            many = f"value_{kind}" + "s" * array.ndim
            if array.size:
                forms.append({many: [number(v) for v in array] if array.ndim else number(array)})
        if self.chance(0.003):
            forms = [{"value_string": "one"}]
        name = self.node("Constant", [], **self.pick(forms))
        self.stored.append((array, name))
        return name

    def tensor(self, array: Array, name: str) -> onnx.TensorProto:
        kind = kind_of(array.dtype)
        if kind in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64) and self.chance(0.15):
            return helper.make_tensor(name, kind, array.shape, array.ravel().tolist())
        return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def kind_of(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


# Constants that other nodes compute ----------------------------------------------------------------------------------
# Each gives the name of a value that is `array`, or nothing where its operator cannot make it.


def _same(d: Draft, array: Array, depth: int) -> str:
    if d.chance(0.3) and d.opset >= 7 and array.dtype in FLOATS:
        return d.node("Dropout", [d.store(array, depth)])
    return d.node("Identity", [d.store(array, depth)])


def _cast(d: Draft, array: Array, depth: int) -> str:
    source = d.pick([np.float32, np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_])
    if d.opset < 6 or source == array.dtype:
        return ""
    with np.errstate(all="ignore"):
        other = array.astype(source)
        if array.dtype.kind == "i" and np.dtype(source).kind == "f" and d.chance(0.5):
            other = other + np.sign(other) * source(0.75)  # a cast cuts off
        if not np.array_equal(other.astype(array.dtype), array):
            return ""
    return d.node("Cast", [d.store(other, depth)], to=kind_of(array.dtype))


def _transpose(d: Draft, array: Array, depth: int) -> str:
    perm = [int(k) for k in d.rng.permutation(array.ndim)]
    if not perm:
        return ""
    name = d.store(array.transpose(np.argsort(perm)), depth)
    whole = perm == [*range(array.ndim)][::-1] and d.chance(0.7)
    return d.node("Transpose", [name]) if whole else d.node("Transpose", [name], perm=perm)


def _reshape(d: Draft, array: Array, depth: int) -> str:
    if d.opset < 5:
        return ""
    source = array.reshape(d.pick([(array.size,), (1, array.size), (array.size, 1), array.shape, (*array.shape, 1)]))
    sizes, options = [*array.shape], {}
    for k in range(array.ndim):
        if k < source.ndim and source.shape[k] == sizes[k] and d.chance(0.3):
            sizes[k] = 0
    if sizes and array.size and d.chance(0.4):
        sizes[d.below(len(sizes))] = -1
    if d.opset >= 14 and 0 not in sizes and d.chance(0.2):
        options["allowzero"] = 1
    return d.node("Reshape", [d.store(source, depth), d.store(np.array(sizes, np.int64), 0)], **options)


def _unsqueeze(d: Draft, array: Array, depth: int) -> str:
    axes = [k for k, size in enumerate(array.shape) if size == 1 and d.chance(0.7)]
    if not axes:
        return ""
    given = [k - array.ndim if d.opset >= 11 and d.chance(0.3) else k for k in axes]
    if d.chance(0.3):
        given = given[::-1]
    return d.unsqueeze(d.store(array.squeeze(tuple(axes)), depth), given)


def _squeeze(d: Draft, array: Array, depth: int) -> str:
    ndim = array.ndim + 1 + d.below(2)
    axes = sorted(int(k) for k in d.rng.choice(ndim, ndim - array.ndim, replace=False))
    name = d.store(np.expand_dims(array, tuple(axes)), depth)
    if 1 not in array.shape and d.chance(0.4):
        return d.node("Squeeze", [name])
    return d.unsqueeze(name, [k - ndim if d.opset >= 11 and d.chance(0.3) else k for k in axes], "Squeeze")


def _slice(d: Draft, array: Array, depth: int) -> str:
    if array.ndim == 0 or array.size == 0:
        return ""
    axes = [int(k) for k in d.rng.permutation(array.ndim)[: 1 + d.below(array.ndim)]]
    source, starts, ends, steps = array, [], [], []
    for axis in axes:
        size = array.shape[axis]
        step = d.pick([1, 1, 2, -1, -2]) if d.opset >= 10 else 1
        before, after = d.below(3), d.below(3)
        length = before + (size - 1) * abs(step) + 1 + after
        first, last = (before, before + (size - 1) * step) if step > 0 else (length - 1 - before, 0)
        last = first + (size - 1) * step
        shape = [*source.shape]
        shape[axis] = length
        wide = (
            d.numbers(tuple(shape), np.float64).astype(array.dtype)
            if array.dtype.kind != "b"
            else np.zeros(shape, bool)
        )
        places = [slice(None)] * source.ndim
        index = first + np.arange(size) * step
        wide[(*places[:axis], index)] = source
        source = wide
        end = last + (1 if step > 0 else -1)
        if step < 0 and end < 0:
            end = d.pick([-length - 1, -99, -(2**31)])
        elif step > 0 and end == length and d.chance(0.5):
            end = d.pick([length + 3, 2**31 - 1, 2**63 - 1])
        elif 0 < end < length and d.chance(0.4):
            end -= length
        starts.append(first - length if d.chance(0.3) else first)
        ends.append(end)
        steps.append(step)
    name = d.store(source, depth)
    natural = axes == [*range(len(axes))]
    if d.opset < 10:
        return d.node(
            "Slice", [name], starts=starts, ends=ends, **({} if natural and d.chance(0.7) else {"axes": axes})
        )
    given = [k - array.ndim if d.chance(0.3) else k for k in axes]
    rest = [np.array(starts), np.array(ends), None if natural and d.chance(0.5) else np.array(given)]
    inputs = ["" if r is None else d.store(r, 0) for r in rest]
    if any(s != 1 for s in steps) or d.chance(0.2):
        inputs.append(d.store(np.array(steps), 0))
    elif not inputs[-1]:
        inputs.pop()
    return d.node("Slice", [name, *inputs])


def _gather(d: Draft, array: Array, depth: int) -> str:
    axis = d.below(max(array.ndim, 1))
    rows = array.shape[axis] if array.ndim else 1
    many = rows + d.below(3)
    if many == 0:
        return ""
    index = d.rng.permutation(many)[:rows]
    moved = np.moveaxis(array, axis, 0) if array.ndim else array.reshape(1)
    source = np.zeros((many, *moved.shape[1:]), array.dtype)
    source[index] = moved
    if d.opset >= 11:
        index = np.where(d.rng.random(rows) < 0.3, index - many, index)
    kind = d.pick([np.int64, np.int32])
    places = d.store(index.astype(kind) if array.ndim else index.astype(kind)[0], 0)
    name = d.store(np.moveaxis(source, 0, axis), depth)
    if axis == 0 and d.chance(0.5):
        return d.node("Gather", [name, places])
    return d.node(
        "Gather", [name, places], axis=axis - array.ndim if array.ndim and d.odd() and d.opset >= 11 else axis
    )


def _concat(d: Draft, array: Array, depth: int) -> str:
    if array.ndim == 0 or d.opset < 4:
        return ""
    axis = d.below(array.ndim)
    cuts = sorted(d.below(array.shape[axis] + 1) for _ in range(1 + d.below(2)))
    parts = [d.store(part, depth) for part in np.split(array, cuts, axis)]
    return d.node("Concat", parts, axis=axis - array.ndim if d.opset >= 11 and d.chance(0.3) else axis)


def _negative(d: Draft, array: Array, depth: int) -> str:
    if array.dtype.kind not in "fi" or d.opset < 6:
        return ""
    return d.node("Neg", [d.store(-array, depth)])


def _root(d: Draft, array: Array, depth: int) -> str:
    if array.dtype.kind != "f" or d.opset < 6:
        return ""
    with np.errstate(all="ignore"):
        square = array * array
        fits = np.array_equal(np.sqrt(square), array)
    return d.node("Sqrt", [d.store(square, depth)]) if fits else ""


def _arithmetic(d: Draft, array: Array, depth: int) -> str:
    """array = p op q, where p or q may be repeated by broadcasting."""
    if d.opset < 7 or array.dtype not in (np.float32, np.float64, np.int64, np.int32):
        return ""
    op, whole = d.pick(["Add", "Sub", "Mul", "Div"]), array.dtype.kind == "i"
    small = tuple(1 if d.chance(0.4) else size for size in array.shape)
    small = small[d.below(len(small) + 1) :] if d.chance(0.3) else small
    with np.errstate(all="ignore"):
        if op in ("Add", "Sub"):
            q = d.rng.integers(-8, 9, small).astype(array.dtype)
            p = array - q if op == "Add" else array + q
            made = p + q if op == "Add" else p - q
        elif op == "Mul":
            q = (d.rng.integers(0, 2, small) * 2 - 1).astype(array.dtype)
            q = q if whole else q * array.dtype.type(d.pick([0.5, 1, 2]))
            p = (array * q if whole else array / q).astype(array.dtype)
            made = p * q
        else:
            q = (
                (d.pick([1, 2, 3]) * (d.rng.integers(0, 2, small) * 2 - 1))
                if whole
                else 2.0 ** d.rng.integers(-1, 3, small)
            )
            q = np.asarray(q).astype(array.dtype)
            p = array * q
            if whole:  # division of integers cuts off
                p = p + np.sign(p) * d.rng.integers(0, np.abs(q) + np.zeros_like(p)).astype(array.dtype)
            made = np.trunc(p / q).astype(array.dtype) if whole else p / q
    if not np.array_equal(made, array) or made.shape != array.shape:
        return ""
    pair = [d.store(p, depth), d.store(q, depth)]
    return d.node(op, pair[::-1] if op in ("Add", "Mul") and d.chance(0.5) else pair)


def _shape(d: Draft, array: Array, depth: int) -> str:
    if array.dtype != np.int64 or array.ndim != 1 or (array < 0).any() or not 0 < math.prod(array.tolist()) < 4096:
        return ""
    if d.opset >= 15 and d.chance(0.5):
        more = np.zeros((2, *array, 3), np.float32)
        return d.node("Shape", [d.store(more, 0)], start=d.pick([1, 1 - more.ndim]), end=d.pick([-1, more.ndim - 1]))
    return d.node("Shape", [d.store(np.zeros(array, np.float32), 0)])


def _filled(d: Draft, array: Array, depth: int) -> str:
    if d.opset < 9 or array.size == 0 or len(np.unique(array)) > 1 or d.chance(0.7):
        return ""
    value = helper.make_tensor("", kind_of(array.dtype), [1], [array.ravel()[0].item()])
    return d.node("ConstantOfShape", [d.store(np.array(array.shape, np.int64), 0)], value=value)


def _activated(d: Draft, array: Array, depth: int) -> str:
    """A constant that an operator makes that is usually none of constants."""
    if array.dtype not in (np.float32, np.float64) or d.opset < 6 or d.chance(0.6):
        return ""
    if (array >= 0).all() and d.chance(0.8):
        return d.node("Relu", [d.store(np.where(array > 0, array, -1).astype(array.dtype), depth)])
    return d.node("Flatten", [d.store(array, depth)]) if array.ndim == 2 and d.opset >= 9 else ""


Form = Callable[[Draft, Array, int], str]
FORMS: list[Form] = [_same, _cast, _transpose, _reshape, _unsqueeze, _squeeze, _slice, _gather, _concat, _negative]
FORMS += [_root, _arithmetic, _shape, _filled, _activated]
