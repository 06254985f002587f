"""Read the ONNX networks that the checkers understand, and refuse all others: one list of what is accepted.

A network is a chain or graph of the operators below on one floating-point input (batch, ...), with one output. What it
computes for a point must not depend on the other points of a batch, so the batch is kept apart: it is the first axis of
every value, no operator may move or mix it, and no constant may have an entry for each point. `read` gives the nodes in
order with all their attributes (those left out have ONNX's defaults) and the shape of what they compute for one point.

A field, attribute, type, shape, operator or opset that is not on the lists here is refused: nothing is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
from bounded import Unreadable
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

FILE = 2**27  # bytes of a file
FIELDS = 2**19  # fields in it
NODES = 2**13
CONSTANTS = 2**24  # entries of all constants
VALUES = 2**24  # entries of all that is computed for one point
AXES, AXIS = 8, 2**16  # of a value; of a padded image
FIRST, LAST = 7, 28  # opsets; before 7 Add and Gemm broadcast in another way
IR_FIRST, IR_LAST = 3, 14  # versions of the format
DOMAINS = ("", "ai.onnx")  # two names of one
FLOATS = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)

Shape = tuple[int, ...]
Operand = Shape | np.ndarray  # the shape of a value for one point, or a constant


@dataclass(frozen=True)
class Node:
    """One operation on values and constants."""

    op: str
    inputs: tuple[str, ...]
    output: str
    options: dict[str, Any]
    shape: Shape  # of the output for one point


@dataclass(frozen=True)
class Graph:
    """A network; `shapes` are those of all values for one point, without the batch."""

    input: str
    output: str
    dtype: np.dtype[Any]
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    shapes: dict[str, Shape]


# What a file may consist of ------------------------------------------------------------------------------------------

PARTS = {
    "ModelProto": "ir_version producer_name producer_version domain model_version graph opset_import",
    "OperatorSetIdProto": "domain version",
    "GraphProto": "name node initializer input output value_info",
    "NodeProto": "name op_type domain input output attribute",
    "AttributeProto": "name type f i s t ints",
    "TensorProto": "name dims data_type raw_data float_data int32_data int64_data double_data",
    "ValueInfoProto": "name type",
    "TypeProto": "tensor_type denotation",
    "Tensor": "elem_type shape",
    "TensorShapeProto": "dim",
    "Dimension": "dim_value dim_param denotation",
}
REMARKS = ("doc_string", "metadata_props")  # without effect on what is computed
PARTS_OF = {kind: {*names.split(), *REMARKS} for kind, names in PARTS.items()}


def _number(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise Unreadable("a number of more than ten bytes")


def _inspect(data: memoryview, descriptor: Any, left: int) -> int:
    """Refuse fields that are not listed, in the bytes: a parser would drop some of them, and multiply others."""
    at, known = 0, descriptor.fields_by_number
    while at < len(data):
        left -= 1
        if left < 0:
            raise Unreadable(f"it has more than {FIELDS} fields")
        key, at = _number(data, at)
        field, kind = known.get(key >> 3), key & 7
        if field is None or field.name not in PARTS_OF[descriptor.name]:
            what = f"field {key >> 3}" if field is None else f"'{field.name}'"
            raise Unreadable(f"{what} of {descriptor.name} is not supported")
        if kind == 2:
            size, at = _number(data, at)
            part, at = data[at : at + size], at + size
            if field.message_type is not None and field.name not in REMARKS:
                left = _inspect(part, field.message_type, left)
        elif kind == 0:
            _, at = _number(data, at)
        else:
            at += {1: 8, 5: 4}[kind]
    if at > len(data):
        raise IndexError("it ends within a field")
    return left


def _parsed(data: bytes) -> onnx.ModelProto:
    if len(data) > FILE:
        raise Unreadable(f"it has {len(data)} bytes; at most {FILE} are read")
    try:
        _inspect(memoryview(data), onnx.ModelProto.DESCRIPTOR, FIELDS)
        model = onnx.ModelProto.FromString(data)
    except (IndexError, KeyError, DecodeError) as error:
        raise Unreadable(f"it is damaged, or no ONNX file: {error}") from error
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size:
        raise Unreadable("it has fields in a form that is not supported")
    return model


# Operators -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """An attribute: its default (None: not given), the values that are supported, and the opsets that know it."""

    type: int
    default: Any
    values: tuple[Any, ...] = ()
    first: int = FIRST
    last: int = LAST


def _flag(default: int, first: int = FIRST) -> Option:
    return Option(AttributeProto.INT, default, (0, 1), first)


def _only(value: int, first: int = FIRST, last: int = LAST) -> Option:
    return Option(AttributeProto.INT, value, (value,), first, last)


def _ints(first: int = FIRST, last: int = LAST) -> Option:
    return Option(AttributeProto.INTS, None, (), first, last)


ONE = Option(AttributeProto.FLOAT, 1.0, (1.0,))
WINDOW = {"auto_pad": Option(AttributeProto.STRING, b"NOTSET", (b"NOTSET",))}
WINDOW |= {"kernel_shape": _ints(), "pads": _ints(), "strides": _ints()}
NORM = {"epsilon": Option(AttributeProto.FLOAT, float(np.float32(1e-5)))}
NORM |= {"momentum": Option(AttributeProto.FLOAT, float(np.float32(0.9)))}  # for training only
OPTIONS: dict[str, dict[str, Option]] = {
    **{op: {} for op in ("Add", "Sub", "MatMul", "Relu", "Identity", "GlobalAveragePool")},
    "Gemm": {"alpha": ONE, "beta": ONE, "transA": _only(0), "transB": _flag(0)},
    "Conv": WINDOW | {"dilations": _ints(), "group": _only(1)},
    "MaxPool": WINDOW | {"dilations": _ints(10), "ceil_mode": _only(0, 10), "storage_order": _only(0, 8)},
    "AveragePool": WINDOW | {"dilations": _ints(19), "ceil_mode": _only(0, 10), "count_include_pad": _flag(0)},
    "BatchNormalization": NORM | {"spatial": _only(1, 7, 8), "training_mode": _only(0, 14)},
    "Flatten": {"axis": Option(AttributeProto.INT, 1)},
    "Reshape": {"allowzero": _flag(0, 14)},
    "Transpose": {"perm": _ints()},
    "ReduceMean": {"axes": _ints(7, 17), "keepdims": _flag(1), "noop_with_empty_axes": _flag(0, 18)},
    "Constant": {"value": Option(AttributeProto.TENSOR, None)},
}
INPUTS = dict.fromkeys(OPTIONS, (1, 1)) | {"Constant": (0, 0), "BatchNormalization": (5, 5), "ReduceMean": (1, 2)}
INPUTS |= dict.fromkeys(("Add", "Sub", "MatMul", "Reshape"), (2, 2)) | dict.fromkeys(("Gemm", "Conv"), (2, 3))


def _said(shape: Shape) -> str:
    return f"({', '.join(map(str, ('batch', *shape)))})"


def _value(x: Operand, *axes: int) -> Shape:
    """Give the shape of a value for one point; the axes allowed count the batch."""
    if isinstance(x, np.ndarray):
        raise Unreadable("a constant is given in place of a value that depends on the input")
    if axes and len(x) + 1 not in axes:
        raise Unreadable(f"its input has {len(x) + 1} axes, expected {' or '.join(map(str, axes))}")
    return x


def _constant(x: Operand, kind: str, *axes: int) -> np.ndarray:
    if not isinstance(x, np.ndarray):
        raise Unreadable("a weight, shape or list of axes is not constant")
    if x.dtype.kind != kind or (axes and x.ndim not in axes):
        raise Unreadable(f"a constant has type {x.dtype} and shape {x.shape}, which does not fit")
    return x


def _integers(x: Operand) -> list[int]:
    """Give a list of sizes or axes."""
    array = _constant(x, "i", 1)
    if array.size > AXES:
        raise Unreadable(f"a list of {array.size} sizes or axes; at most {AXES} are supported")
    return [int(number) for number in array]


def _spread(x: np.ndarray, shape: Shape) -> None:
    """Refuse a constant that cannot be added to a value of this shape, or that differs between points."""
    own = x.shape[1:] if x.ndim == len(shape) + 1 else x.shape
    if x.ndim > len(shape) + 1 or (x.ndim == len(shape) + 1 and x.shape[0] != 1):
        raise Unreadable(f"a constant of shape {x.shape} has entries for the batch, or more axes than {_said(shape)}")
    if any(n not in (1, size) for n, size in zip(own[::-1], shape[::-1], strict=False)):
        raise Unreadable(f"a constant of shape {x.shape} does not fit {_said(shape)}")


def _windows(shape: Shape, kernel: Any, o: dict[str, Any], pool: bool) -> Shape:
    """Give the grid of windows of an image, and write all that describes them into the options."""
    o["kernel_shape"] = tuple(kernel)
    for name, default in (("pads", (0,) * 4), ("strides", (1, 1)), ("dilations", (1, 1))):
        o[name] = default if o.get(name) is None else o[name]
    sizes = (*o["kernel_shape"], *o["strides"], *o["dilations"])
    if len(sizes) != 6 or len(o["pads"]) != 4 or min(sizes) < 1 or min(o["pads"]) < 0:
        raise Unreadable(f"a window over (height, width) that is not supported: {o}")
    grid, padded = [], shape[0]
    for axis, size in enumerate(shape[1:]):
        k, stride, dilation = (o[name][axis] for name in ("kernel_shape", "strides", "dilations"))
        before, after = o["pads"][axis::2]
        room = size + before + after - (k - 1) * dilation - 1
        if room < 0 or max(size + before + after, stride) > AXIS:
            raise Unreadable(
                f"a window of {k} entries, {dilation} apart, every {stride}, on {size} with padding {before} and "
                f"{after}: it does not fit, or is larger than {AXIS}"
            )
        start = np.arange(0, room + 1, stride) - before
        inside = np.maximum(0, -(start // dilation))  # the first entry of a window that does not lie before the image
        if pool and not ((inside < k) & (start + inside * dilation < size)).all():
            raise Unreadable("a window holds nothing but padding")
        if pool and max(before, after) >= k:
            raise Unreadable(f"a pool has padding of {max(before, after)} beside windows of {k}: onnxruntime runs none")
        grid.append(len(start))
        padded *= size + before + after
    if padded > VALUES:
        raise Unreadable(f"the padded image has {padded} entries; at most {VALUES} are read")
    return tuple(grid)


def _gemm(x: list[Operand], o: dict[str, Any]) -> Shape:
    (size,), weight = _value(x[0], 2), _constant(x[1], "f", 2)
    inputs, outputs = weight.shape[::-1] if o["transB"] else weight.shape
    if inputs != size:
        raise Unreadable(f"a weight of shape {weight.shape} does not fit {size} numbers")
    if len(x) > 2:
        _spread(_constant(x[2], "f", 0, 1, 2), (outputs,))
    return (outputs,)


def _matmul(x: list[Operand], o: dict[str, Any]) -> Shape:
    shape, weight = _value(x[0]), _constant(x[1], "f", 2)
    if not shape or shape[-1] != weight.shape[0]:
        raise Unreadable(f"a weight of shape {weight.shape} does not fit {_said(shape)}")
    return (*shape[:-1], weight.shape[1])


def _add(x: list[Operand], o: dict[str, Any]) -> Shape:
    values = [part for part in x if not isinstance(part, np.ndarray)]
    if not values or values[0] != values[-1]:
        raise Unreadable(f"values of shapes {values} (batch left out); expected one, or two of the same shape")
    for part in x:
        if isinstance(part, np.ndarray):
            _spread(_constant(part, "f"), values[0])
    return values[0]


def _conv(x: list[Operand], o: dict[str, Any]) -> Shape:
    shape, weight = _value(x[0], 4), _constant(x[1], "f", 4)
    if weight.shape[1] != shape[0] or o["kernel_shape"] not in (None, weight.shape[2:]):
        raise Unreadable(f"a weight of shape {weight.shape} fits neither {_said(shape)} nor {o['kernel_shape']}")
    if len(x) > 2 and _constant(x[2], "f", 1).shape != weight.shape[:1]:
        raise Unreadable("its bias does not fit its weight")
    return (weight.shape[0], *_windows(shape, weight.shape[2:], o, False))


def _pool(x: list[Operand], o: dict[str, Any]) -> Shape:
    shape = _value(x[0], 4)
    return (shape[0], *_windows(shape, o["kernel_shape"] or (), o, True))


def _global_average(x: list[Operand], o: dict[str, Any]) -> Shape:
    o["axes"] = (1, 2)
    return (_value(x[0], 4)[0], 1, 1)


def _mean(x: list[Operand], o: dict[str, Any]) -> Shape:
    """Write the axes that are averaged into the options, counted without the batch."""
    shape = _value(x[0])
    if len(x) > 1 and "axes" in o:
        raise Unreadable("axes are an attribute before opset 18, and an input from then on")
    given = _integers(x[1]) if len(x) > 1 else o.get("axes")
    axes = [axis + (len(shape) + 1) * (axis < 0) - 1 for axis in given or ()]
    if not axes or len({*axes}) < len(axes) or not 0 <= min(axes) <= max(axes) < len(shape):
        raise Unreadable(f"it averages over the axes {given}; expected some that exist, without the batch")
    o["axes"] = tuple(sorted(axes))
    kept = [1 if i in axes else size for i, size in enumerate(shape) if o["keepdims"] or i not in axes]
    return tuple(kept)


def _norm(x: list[Operand], o: dict[str, Any]) -> Shape:
    shape = _value(x[0])
    parts = [_constant(part, "f", 1) for part in x[1:]]
    if any(part.shape != shape[:1] for part in parts):
        raise Unreadable(f"parameters of shapes {[part.shape for part in parts]} do not fit {_said(shape)}")
    if not (parts[3] >= 0).all() or not (parts[3].astype(float) + o["epsilon"] > 0).all() or o["epsilon"] < 0:
        raise Unreadable("a variance, or the epsilon, is negative, or both are zero")
    return shape


def _flatten(x: list[Operand], o: dict[str, Any]) -> Shape:
    shape = _value(x[0])
    if o["axis"] != 1:
        raise Unreadable(f"axis {o['axis']} is given; 1 is supported")
    return (math.prod(shape),)


def _reshape(x: list[Operand], o: dict[str, Any]) -> Shape:
    shape, wanted = _value(x[0]), _integers(x[1])
    first, *sizes = wanted or [1]
    if not o.get("allowzero"):
        sizes = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(sizes)]
    if first != -1 and sizes.count(-1) == 1:
        rest = -math.prod(sizes)
        sizes = [math.prod(shape) // rest if size == -1 and rest > 0 else size for size in sizes]
    keeps = first == -1 or (first == 0 and not o.get("allowzero"))
    if not keeps or min(sizes, default=1) < 1 or math.prod(sizes) != math.prod(shape):
        raise Unreadable(f"shape {wanted} for {_said(shape)} is not supported; expected [-1, sizes] or [0, sizes]")
    return tuple(sizes)


def _transpose(x: list[Operand], o: dict[str, Any]) -> Shape:
    shape = _value(x[0])
    axes = range(len(shape) + 1)
    o["perm"] = tuple(axes[::-1]) if o["perm"] is None else o["perm"]
    if sorted(o["perm"]) != [*axes] or o["perm"][0] != 0:
        raise Unreadable(f"it orders the axes as {o['perm']}; expected all {len(axes)}, the batch first")
    return tuple(shape[axis - 1] for axis in o["perm"][1:])


def _same(x: list[Operand], o: dict[str, Any]) -> Shape:
    return _value(x[0])


SHAPES: dict[str, Callable[[list[Operand], dict[str, Any]], Shape]] = {
    **{"Gemm": _gemm, "MatMul": _matmul, "Add": _add, "Sub": _add, "Conv": _conv, "MaxPool": _pool},
    **{"AveragePool": _pool, "GlobalAveragePool": _global_average, "ReduceMean": _mean, "BatchNormalization": _norm},
    **{"Flatten": _flatten, "Reshape": _reshape, "Transpose": _transpose, "Relu": _same, "Identity": _same},
}


# The graph -----------------------------------------------------------------------------------------------------------


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    """Give the numbers of a constant."""
    fields = {TensorProto.FLOAT: "float_data", TensorProto.DOUBLE: "double_data", TensorProto.INT64: "int64_data"}
    fields |= {TensorProto.FLOAT16: "int32_data"}
    if tensor.data_type not in fields or len(tensor.dims) > AXES or min(tensor.dims, default=1) < 1:
        raise Unreadable(f"constant {tensor.name!a} has type {tensor.data_type} and shape {list(tensor.dims)[:AXES]}")
    dtype, count = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), math.prod(tensor.dims)
    stored = {name: len(getattr(tensor, name)) for name in ("raw_data", *{*fields.values()})}
    here = {name: size for name, size in stored.items() if size}
    if here not in ({"raw_data": count * dtype.itemsize}, {fields[tensor.data_type]: count}) or count > CONSTANTS:
        raise Unreadable(
            f"constant {tensor.name!a} of shape {list(tensor.dims)} stores {here or 'nothing'}; expected its "
            f"{count} numbers, and at most {CONSTANTS}"
        )
    array = onnx.numpy_helper.to_array(tensor)
    if not np.isfinite(array).all():
        raise Unreadable(f"constant {tensor.name!a} has entries that are not finite")
    return array


def _options(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """Give all attributes that the operator has in this opset."""
    known = {name: o for name, o in OPTIONS[node.op_type].items() if o.first <= opset <= o.last}
    given: dict[str, Any] = {}
    for a in node.attribute:
        option, field = known.get(a.name), {1: "f", 2: "i", 3: "s", 4: "t", 7: "ints"}.get(a.type)
        filled = {f.name for f, _ in a.ListFields()} - {"name", "type", *REMARKS}
        if option is None or a.name in given or option.type != a.type or not filled <= {field}:
            raise Unreadable(f"attribute {a.name!a} is not supported in opset {opset}, or not of this type")
        value = tuple(a.ints) if field == "ints" else getattr(a, str(field))
        if (option.values and value not in option.values) or (field == "f" and not math.isfinite(value)):
            raise Unreadable(f"{a.name} = {value} is given; {option.values or 'a finite number'} is supported")
        given[a.name] = value
    return {name: option.default for name, option in known.items()} | given


def _declared(value: onnx.ValueInfoProto) -> tuple[int, list[int | None]]:
    """Give the type and sizes that a file declares for a value; None for a size that is left open."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise Unreadable(f"{value.name!a} is declared without a shape, or is no tensor")
    tensor = value.type.tensor_type
    return tensor.elem_type, [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def _opset(model: onnx.ModelProto) -> int:
    versions = [o.version for o in model.opset_import if o.domain in DOMAINS]
    if len(versions) != 1 or not FIRST <= versions[0] <= LAST or not IR_FIRST <= model.ir_version <= IR_LAST:
        raise Unreadable(
            f"it has opsets {versions} and IR version {model.ir_version}; expected one opset from {FIRST} to {LAST}, "
            f"and IR version {IR_FIRST} to {IR_LAST}"
        )
    return int(versions[0])


class _Reader:
    """What is known of a graph while it is read, node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opset, graph = _opset(model), model.graph
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {}
        self.nodes: list[Node] = []
        self.room = {"constants": CONSTANTS, "uses of constants": CONSTANTS, "values": VALUES}
        others = sorted({f"{node.domain}{node.op_type}"[:80] for node in graph.node if not _known(node)})
        if others:
            raise Unreadable(f"operators {', '.join(others)!a} are not supported; these are: {', '.join(OPTIONS)}")
        if len(graph.node) > NODES:
            raise Unreadable(f"it has {len(graph.node)} nodes; at most {NODES} are read")
        stored = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in stored]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise Unreadable(f"it has {len(inputs)} inputs and {len(graph.output)} outputs; expected one of each")
        self.input = inputs[0].name
        self.kind, (self.batch, *sizes) = self.start(inputs[0])
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(self.kind)
        self.define(self.input, tuple(sizes))
        for tensor in graph.initializer:
            self.define(tensor.name, _array(tensor))
        for value in graph.input:
            if value.name in stored:
                self.overridable(value, model.ir_version)
        for k, node in enumerate(graph.node):
            try:
                self.add(node)
            except Unreadable as error:
                raise Unreadable(f"node {k}, {node.op_type} {node.name[:80]!a}: {error}") from None
        for value in (*graph.value_info, *graph.output):
            self.compare(value)
        self.output = graph.output[0].name
        if self.output not in {node.output for node in self.nodes}:
            raise Unreadable(f"the output {self.output[:80]!a} is not computed by a node")

    def start(self, value: onnx.ValueInfoProto) -> tuple[int, list[Any]]:
        """Give the type and sizes of the input."""
        kind, sizes = _declared(value)
        if kind not in FLOATS or not 1 <= len(sizes) <= AXES or sizes[0] not in (None, 1):
            raise Unreadable(
                f"the input has type {kind} and shape {sizes[:AXES]}; expected float16, float or double, and the batch "
                "as the first axis, free or 1"
            )
        if any(size is None or size < 1 for size in sizes[1:]):
            raise Unreadable(f"the input has shape {sizes}; expected positive sizes after the batch")
        return kind, sizes

    def define(self, name: str, value: Operand) -> None:
        """Add a constant, or a value by its shape."""
        if not name or name in self.constants or name in self.shapes:
            raise Unreadable(f"the name {name[:80]!a} is given twice, or empty")
        if isinstance(value, np.ndarray):
            if value.dtype not in (self.dtype, np.int64):
                raise Unreadable(f"constant {name[:80]!a} has type {value.dtype}, the input {self.dtype}")
            self.constants[name] = value
            self.take("constants", value.size)
        else:
            if len(value) >= AXES:
                raise Unreadable(f"{name[:80]!a} has {len(value) + 1} axes; at most {AXES} are read")
            self.shapes[name] = value
            self.take("values", math.prod(value))

    def take(self, what: str, entries: int) -> None:
        """Refuse networks that are too large, also by using one constant many times."""
        self.room[what] -= entries
        if self.room[what] < 0:
            raise Unreadable(
                f"too large: {CONSTANTS} entries of constants, each use counted, and {VALUES} of values for one point "
                "are read"
            )

    def overridable(self, value: onnx.ValueInfoProto, ir_version: int) -> None:
        """Refuse a constant that whoever runs the network may replace; before IR version 4 all had to be inputs too."""
        kind, sizes = _declared(value)
        array = self.constants[value.name]
        if ir_version >= 4 or sizes != [*array.shape] or kind != onnx.helper.np_dtype_to_tensor_dtype(array.dtype):
            raise Unreadable(f"constant {value.name[:80]!a} is an input too, or declared with another type or shape")

    def add(self, node: onnx.NodeProto) -> None:
        """Read one node."""
        names = [[*side] for side in (node.input, node.output)]
        for side in names:
            while side and not side[-1]:  # optional ones that are left out
                side.pop()
        (inputs, outputs), options = names, _options(node, self.opset)
        fewest, most = INPUTS[node.op_type]
        if len(outputs) != 1 or not fewest <= len(inputs) <= most:
            raise Unreadable(f"it has {len(inputs)} inputs and {len(outputs)} outputs")
        if node.op_type == "Constant":
            if options["value"] is None:
                raise Unreadable("it has no value")
            return self.define(outputs[0], _array(options["value"]))
        unknown = [name for name in inputs if name not in self.constants and name not in self.shapes]
        if unknown:
            raise Unreadable(f"its input {unknown[0][:80]!a} is not there, or not yet: nodes must be in order")
        for name in inputs:
            self.take("uses of constants", self.constants[name].size if name in self.constants else 0)
        operands: list[Operand] = [self.constants.get(name, self.shapes.get(name, ())) for name in inputs]
        shape = SHAPES[node.op_type](operands, options)
        self.define(outputs[0], shape)
        self.nodes.append(Node(node.op_type, tuple(inputs), outputs[0], options, shape))

    def compare(self, value: onnx.ValueInfoProto) -> None:
        """Refuse a declared type or shape that is not the one computed."""
        if value.name in self.shapes:
            kind, sizes = _declared(value)
            shape = (self.batch, *self.shapes[value.name])
            fits = len(sizes) == len(shape) and all(a in (None, b) for a, b in zip(sizes, shape, strict=True))
            if kind != self.kind or not fits:
                raise Unreadable(f"{value.name[:80]!a} is declared with type {kind} and shape {sizes}, but has {shape}")


def _known(node: onnx.NodeProto) -> bool:
    return node.domain in DOMAINS and node.op_type in OPTIONS


def read(data: bytes) -> Graph:
    """Read a network from the bytes of an ONNX file.

    Raises:
        Unreadable: it is damaged, too large, or has what is not on this module's lists; the message says what.
    """
    model = _parsed(data)
    found = _Reader(model)
    try:
        onnx.checker.check_model(model, full_check=True)  # a second opinion, with ONNX's own inference of shapes
    except Exception as error:  # it raises several kinds
        raise Unreadable(f"ONNX's own checker refuses it: {error}") from error
    return Graph(found.input, found.output, found.dtype, tuple(found.nodes), found.constants, found.shapes)
