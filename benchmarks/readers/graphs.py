"""Random graphs: what is drawn for whom, and how a graph becomes a file and points to try it at."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from benchmarks.readers.draft import FLOATS, Array, Draft, Shape, Style, Value, kind_of
from benchmarks.readers.operators import OPERATORS
from benchmarks.readers.wide import WIDE

SEED = 20261
#: Points at which every graph is tried.
POINTS = 5
#: The newest operator set that is drawn.
NEWEST = onnx.defs.onnx_opset_version()
USUAL = (9, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22)

CHAIN = {
    "Gemm": 3.0,
    "MatMul": 3.0,
    "Add": 2.0,
    "Sub": 2.0,
    "Relu": 3.0,
    "Flatten": 1.0,
    "Reshape": 1.0,
    "Identity": 1.0,
}
IMAGES = {"Conv": 3.0, "MaxPool": 2.0, "AveragePool": 1.5, "GlobalAveragePool": 1.0, "BatchNormalization": 1.5}
IMAGES |= {"ReduceMean": 1.0, "Transpose": 1.0}
LINEAR = {"Mul": 1.0, "Div": 1.0, "Concat": 1.0, "LeakyRelu": 1.0, "Clip": 1.5, "Dropout": 0.7}
LINEAR |= {"PRelu": 0.5, "HardSigmoid": 0.5, "HardSwish": 0.5, "Abs": 0.5, "Max": 0.5, "Min": 0.5}
CURVED = {"Elu": 1.0, "Sigmoid": 0.7, "Tanh": 0.7, "Softplus": 0.7, "Softmax": 1.0, "LogSoftmax": 0.7}
RARE = {"Gather": 0.15, "Slice": 0.15, "Squeeze": 0.15, "Unsqueeze": 0.15, "Cast": 0.15, "Neg": 0.4, "Sqrt": 0.1}
RARE |= {"batch size": 0.15, "unknown": 0.1}

#: Names of WIDE, apart from those of OPERATORS.
ALONE = {f"{op} of load": 1.0 for op in WIDE}
MAKERS = OPERATORS | {f"{op} of load": maker for op, maker in WIDE.items()}

#: Mostly vectors.
SINGLE = (0.02, 0.8, 0.08, 0.08, 0.02)
#: For each reader, graphs of which it reads many.
STYLES = {
    "chain": Style(CHAIN | {"unknown": 0.05}, 0.1, 0.0, 0.2, (0.6, 0.3, 0.1, 0.0), 0.1, 0.7, SINGLE, 0.02),
    "images": Style(CHAIN | IMAGES | {"unknown": 0.05}, 0.15, 0.02, 0.03, (0.7, 0.25, 0.05, 0.0), 0.05, 0.9),
    "linear": Style(CHAIN | IMAGES | LINEAR | RARE, 0.25, 0.2, 0.2, (0.6, 0.3, 0.1, 0.0), 0.02, 0.2),
    "all": Style(CHAIN | IMAGES | LINEAR | CURVED | RARE, 0.35, 0.3, 0.2, (0.6, 0.25, 0.13, 0.02), 0.03, 0.1),
    "wide": Style(
        CHAIN | {"Conv": 1.0} | ALONE, 0.2, 0.1, 0.2, (0.7, 0.2, 0.1, 0.0), 0.0, 0.0, (0.02, 0.2, 0.4, 0.35, 0.03)
    ),
}


@dataclass(frozen=True)
class Case:
    """A graph and what it is tried at.

    Attributes:
        batch: the size of the first axis where the file fixes it, else None.
        points: (POINTS, *item).
    """

    style: str
    index: int
    model: onnx.ModelProto
    batch: int | None
    points: Array

    @functools.cached_property
    def data(self) -> bytes:
        """The file."""
        written: bytes = self.model.SerializeToString()
        return written

    @property
    def operators(self) -> tuple[str, ...]:
        return tuple(node.op_type for node in self.model.graph.node)

    @property
    def shape(self) -> Shape:
        """The shape of one point, without the batch."""
        return tuple(self.points.shape[1:])


def case(style: str, index: int, seed: int = SEED) -> Case:
    """Draw one graph."""
    rng = np.random.default_rng([seed, list(STYLES).index(style), index])
    s = STYLES[style]
    old = rng.random() < s.old
    opset = int(rng.integers(1, 7) if old else rng.integers(7, NEWEST + 1) if rng.random() < 0.5 else rng.choice(USUAL))
    dtype = FLOATS[int(rng.choice(len(FLOATS), p=s.dtypes))]
    d = Draft(rng, s, opset, dtype)
    rank = 1 + int(rng.choice(5, p=s.ranks))
    most = {1: 5, 2: 5, 3: 4, 4: 5, 5: 4}[rank]
    item = [1 + d.below(most) for _ in range(rank - 1)]
    if item and d.odd(0.03):
        item[d.below(len(item))] = 0
    fixed = d.chance(0.5)
    d.batch = d.pick([*[1] * 10, 2, POINTS]) if fixed else d.pick([1, 2, 3, POINTS])
    kind = dtype if not d.odd(0.03) else d.pick([np.int64, np.int32])
    d.input = Value(d.name("x"), (d.batch, *item), kind)
    d.values = [d.input]
    output = drawn(d)
    points = d.finite((POINTS, *item)).astype(kind)
    return Case(style, index, assembled(d, output, fixed), d.batch if fixed else None, points)


def drawn(d: Draft) -> Value:
    """Add operations, and return what the graph returns."""
    names, weights = list(d.style.operators), np.array([*d.style.operators.values()])
    weights = weights / weights.sum()
    wanted = d.pick([0, 1, 1, 2, 2, 3, 3, 4, 5, 6]) if d.odd() else d.pick([1, 2, 3, 4])
    for _ in range(4 * wanted):
        if wanted == 0:
            break
        x = d.values[-1] if not d.chance(d.style.branches) else d.pick(d.values)
        if not x.shape:
            break
        made = MAKERS[names[int(d.rng.choice(len(names), p=weights))]](d, x)
        if made is None:
            continue
        wanted -= 1
        if 0 <= math.prod(made.shape) <= 4096:
            d.values.append(made)
        if d.chance(0.02):
            d.values.insert(0, d.values.pop())  # a value that nothing may use
    output = d.values[-1]
    if len(output.shape) != 2 and d.chance(d.style.flat):
        output = Value(d.node("Flatten", [output.name]), (output.shape[0] if output.shape else 1, -1), output.dtype)
    if d.odd(0.02):
        shape = (d.pick([1, d.batch]), 3)
        return Value(d.store(d.numbers(shape, output.dtype)), shape, output.dtype)
    return output


def assembled(d: Draft, output: Value, fixed: bool) -> onnx.ModelProto:
    """Write the graph as a model."""
    sizes: list[int | str | None] = [*d.input.shape]
    # onnx's own shape inference ends the process at a Slice of a negative size (onnx 1.23), whoever asks it.
    open_size = None if any(node.op_type == "Slice" for node in d.nodes) else -1
    if not fixed:
        sizes[0] = d.pick(["n", "batch", None, "n", "batch", None, "n", open_size])
    if len(sizes) > 1 and d.odd(0.05):
        sizes[1 + d.below(len(sizes) - 1)] = d.pick(["size", None, open_size])
    ends = [helper.make_tensor_value_info(d.input.name, kind_of(d.input.dtype), sizes)]
    ends = [*d.inputs, *ends] if d.chance(0.5) else [*ends, *d.inputs]
    out = _declared(d, output, fixed)
    opsets = [helper.make_opsetid("", d.opset)]
    if d.chance(0.1):
        opsets = d.pick(
            [[*opsets, helper.make_opsetid("ai.onnx.ml", 3)], [helper.make_opsetid("ai.onnx.ml", 3), *opsets]]
        )
    if d.chance(0.01):
        opsets = [helper.make_opsetid("ai.onnx", d.opset)]
    ir = d.pick([4, 7, 8, 9, 10])
    if d.chance(0.05):
        ir, known = 3, {value.name for value in ends}
        ends += [
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in d.initializers if t.name not in known
        ]
    graph = helper.make_graph(d.nodes, "drawn", ends, [out], d.initializers, value_info=_claims(d))
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def _declared(d: Draft, output: Value, fixed: bool) -> onnx.ValueInfoProto:
    """Say of the output what is known, or less."""
    kind = d.rng.random()
    if kind < 0.03:
        return helper.make_tensor_value_info(output.name, kind_of(output.dtype), None)
    sizes: list[Any] = [*output.shape]
    if sizes and not fixed:
        sizes[0] = "n" if output.shape[0] == d.batch else None
    if kind < 0.2 or -1 in sizes:
        sizes = [None] * len(sizes)
    if kind > 0.985 and sizes:
        sizes[-1] = 7
    return helper.make_tensor_value_info(output.name, kind_of(output.dtype), sizes)


def _claims(d: Draft) -> list[onnx.ValueInfoProto]:
    """Say of a value in between what is true, or not."""
    inner = [value for value in d.values[1:-1] if value.name]
    if not inner or not d.odd(0.2):
        return []
    value = d.pick(inner)
    sizes = [n if d.chance(0.9) else d.pick(["some", 7]) for n in value.shape]
    return [helper.make_tensor_value_info(value.name, kind_of(value.dtype), sizes)]


def cases(style: str, first: int, count: int, seed: int = SEED) -> Sequence[Case]:
    return [case(style, index, seed) for index in range(first, first + count)]
