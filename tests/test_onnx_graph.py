"""The checkers' reader of ONNX files: reads what it accepts as ONNX means it, and refuses the rest with a reason."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnxruntime

from onnx import AttributeProto, TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "verification"))  # as python does when it runs a program there
onnx_graph: Any = importlib.import_module("onnx_graph")
minimality: Any = importlib.import_module("minimality")

Constants = dict[str, np.ndarray]
NEW = min(onnx.defs.onnx_opset_version(), 24)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def model(
    nodes: list[Any],
    constants: Constants,
    shape: list[Any],
    outputs: int = 2,
    opset: int = 20,
    ir: int = 9,
    kind: int = TensorProto.FLOAT,
) -> Any:
    source = helper.make_tensor_value_info("x", kind, shape)
    sink = helper.make_tensor_value_info(nodes[-1].output[0], kind, [None, outputs])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [source], [sink], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def with_empty(proto: Any, name: str) -> Any:
    """Give a node an empty list as an attribute."""
    proto.attribute.add(name=name, type=AttributeProto.INTS)
    return proto


def read(proto: Any) -> Any:
    return onnx_graph.read(proto.SerializeToString())


def refused(proto: Any, *words: str) -> None:
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    with pytest.raises(onnx_graph.Unreadable) as error:
        onnx_graph.read(data)
    assert all(word in str(error.value) for word in words), error.value


# What is accepted means what ONNX says -------------------------------------------------------------------------------


@pytest.mark.parametrize("op", onnx_graph.OPTIONS)
def test_the_table_of_attributes_is_that_of_onnx(op: str) -> None:
    last = min(onnx_graph.LAST, onnx.defs.onnx_opset_version())
    for opset in range(onnx_graph.FIRST, last + 1):
        schema = onnx.defs.get_schema(op, opset)
        table = {name: o for name, o in onnx_graph.OPTIONS[op].items() if o.first <= opset <= o.last}
        assert table.keys() <= schema.attributes.keys(), (op, opset)
        for name, option in table.items():
            there = schema.attributes[name]
            assert int(option.type) == int(getattr(AttributeProto, there.type.name))
            default = helper.get_attribute_value(there.default_value) if there.default_value.name else None
            assert option.default == default and (not option.values or default in option.values)
        fewest, most = onnx_graph.INPUTS[op]
        known = {"Gemm": opset >= 11, "ReduceMean": opset >= 18}.get(op, True)  # ONNX's checker says so before that
        assert not known or (schema.min_input, schema.max_input) == (fewest, most)
        assert op == "Constant" or schema.attributes.keys() == table.keys()


W = {"w": normal(3, 2), "b": normal(2), "row": normal(1, 2), "one": np.float32(0.25)}
IMAGE: list[Any] = ["n", 2, 5, 6]
TAIL = [node("GlobalAveragePool", "h", "g"), node("Flatten", "g", "y")]
AXES = {"axes": np.array([2, -1])}
NORM = {"scale": normal(2), "shift": normal(2, seed=1), "mean": normal(2, seed=2), "var": np.abs(normal(2, seed=3))}

# Nodes, constants, shape of the input, opset.
ACCEPTED: dict[str, tuple[list[Any], Constants, list[Any], int]] = {
    "Gemm": ([node("Gemm", "x w b", "y")], W, ["n", 3], 7),
    "Gemm without bias": ([node("Gemm", "x w", "y")], W, ["n", 3], 11),
    "Gemm, transposed": ([node("Gemm", "x v row", "y", transB=1)], {"v": normal(2, 3), **W}, ["n", 3], NEW),
    "Gemm, one bias for all": ([node("Gemm", "x w one", "y", alpha=1.0)], W, [1, 3], 13),
    "MatMul": ([node("MatMul", "x w", "m"), node("Add", "b m", "y")], W, ["n", 3], 8),
    "MatMul of rows": (
        [node("MatMul", "x w", "m"), node("Sub", "one m", "s"), node("Reshape", "s to", "r"), node("Gemm", "r v", "y")],
        {"to": np.array([0, -1]), "v": normal(8, 2), **W},
        ["n", 4, 3],
        20,
    ),
    "Transpose": (
        [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Flatten", "t", "f"), node("Gemm", "f v", "y")],
        {"v": normal(24, 2)},
        ["n", 2, 3, 4],
        14,
    ),
    "Reshape": (
        [
            node("Reshape", "x to", "r"),
            node("MatMul", "r w", "m"),
            node("Reshape", "m flat", "f"),
            node("Gemm", "f v", "y"),
        ],
        {"to": np.array([-1, 4, 3]), "flat": np.array([-1, 8]), "v": normal(8, 2), **W},
        ["n", 2, 6],
        11,
    ),
    "sums": (
        [
            node("Add", "x x", "a"),
            node("Sub", "a plane", "s"),
            node("Relu", "s", "t"),
            node("Add", "t all", "u"),
            node("Sub", "u x", "h"),
            *TAIL,
        ],
        {"plane": normal(5, 1), "all": normal(1, 2, 5, 6)},
        IMAGE,
        7,
    ),
    "Conv": (
        [node("Conv", "x k c", "h", strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 3], kernel_shape=[3, 2]), *TAIL],
        {"k": normal(2, 2, 3, 2), "c": normal(2)},
        IMAGE,
        11,
    ),
    "MaxPool": (
        [node("MaxPool", "x", "h", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 2, 1]), *TAIL],
        {},
        IMAGE,
        8,
    ),
    "MaxPool, dilated": ([node("MaxPool", "x", "h", kernel_shape=[2, 2], dilations=[2, 3]), *TAIL], {}, IMAGE, 12),
    "AveragePool": ([node("AveragePool", "x", "h", kernel_shape=[3, 2], pads=[1, 0, 2, 1]), *TAIL], {}, IMAGE, 7),
    "AveragePool with padding": (
        [node("AveragePool", "x", "h", kernel_shape=[3, 2], pads=[1, 0, 2, 1], count_include_pad=1), *TAIL],
        {},
        IMAGE,
        10,
    ),
    "AveragePool, dilated": (
        [node("AveragePool", "x", "h", kernel_shape=[2, 2], dilations=[2, 3], strides=[1, 2]), *TAIL],
        {},
        IMAGE,
        20,
    ),
    "BatchNormalization": ([node("BatchNormalization", "x scale shift mean var", "h"), *TAIL], NORM, IMAGE, 9),
    "BatchNormalization of features": (
        [node("BatchNormalization", "x scale shift mean var", "y", epsilon=0.1, momentum=0.5)],
        NORM,
        ["n", 2],
        15,
    ),
    "ReduceMean by attribute": ([node("ReduceMean", "x", "y", axes=[-2, 3], keepdims=0)], {}, IMAGE, 13),
    "ReduceMean by input": ([node("ReduceMean", "x axes", "g"), node("Flatten", "g", "y")], AXES, IMAGE, 18),
    "ReduceMean over channels": (
        [node("ReduceMean", "x axes", "m", keepdims=0), node("Flatten", "m", "f"), node("Gemm", "f v", "y")],
        {"axes": np.array([1]), "v": normal(30, 2)},
        IMAGE,
        NEW,
    ),
    "ReduceMean over all but the batch": (
        [node("ReduceMean", "x axes", "m", keepdims=0), node("Flatten", "m", "f"), node("Gemm", "f v", "y")],
        {"axes": np.array([1, 2, 3]), "v": normal(1, 2)},
        IMAGE,
        18,
    ),
    "Identity and Constant": (
        [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W["w"])),
            node("Identity", "x", "i"),
            node("MatMul", "i w", "y"),
        ],
        {},
        ["n", 3],
        13,
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_read_is_what_onnx_computes(tmp_path: Path, case: str) -> None:
    """Values at several points together, against ONNX's own evaluator in float64 and onnxruntime in float32."""
    nodes, constants, shape, opset = ACCEPTED[case]
    proto = model(nodes, constants, shape, opset=opset)
    (tmp_path / "n.onnx").write_bytes(proto.SerializeToString())
    network = minimality.Network.at(tmp_path / "n.onnx")
    points = normal(1 if shape[0] == 1 else 3, *shape[1:], seed=5)
    values, _ = network.run(points.astype(np.float64))
    for name, size in network.graph.shapes.items():
        assert values[name].mid.shape == (len(points), *size)
    found = values[network.output]
    assert found.rad.max() < 1e-12
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": points})
    assert np.abs(found.mid - expected).max() < 1e-5 and found.mid.shape == expected.shape == (len(points), 2)
    if case != "BatchNormalization" and all(part.op_type != "Constant" for part in nodes):
        # ONNX's evaluator trains the former before opset 14, which is wrong; the numbers of the latter are float32.
        wide = {name: value.astype(float) if value.dtype == np.float32 else value for name, value in constants.items()}
        evaluator = ReferenceEvaluator(model(nodes, wide, shape, opset=opset, kind=TensorProto.DOUBLE))
        (expected,) = evaluator.run(None, {"x": points.astype(float)})
        assert np.abs(found.mid - expected).max() < 1e-12


@pytest.mark.parametrize(("opset", "read"), [(10, False), (11, True)])
def test_onnx_itself_has_the_last_word(opset: int, read: bool) -> None:
    proto = model([node("Gemm", "x w", "y")], W, ["n", 3], opset=opset)
    if read:
        assert onnx_graph.read(proto.SerializeToString()).shapes["y"] == (2,)
    else:
        refused(proto, "ONNX's own checker refuses it")


def test_the_opsets_at_both_ends_are_read() -> None:
    for opset in (onnx_graph.FIRST, min(onnx_graph.LAST, onnx.defs.onnx_opset_version())):
        assert read(model([node("Gemm", "x w b", "y")], W, ["n", 3], opset=opset)).shapes["y"] == (2,)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floating_point_types(kind: Any) -> None:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    constants = {name: value.astype(kind) for name, value in W.items()}
    graph = read(model([node("Gemm", "x w b", "y")], constants, ["n", 3], kind=number))
    assert graph.dtype == kind and all(value.dtype == kind for value in graph.constants.values())


def test_old_files_name_their_constants_among_the_inputs() -> None:
    proto = model([node("Gemm", "x w b", "y")], W, [1, 3], opset=8, ir=3)
    refused(proto)
    for name, value in W.items():
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    assert read(proto).input == "x"
    proto.ir_version = 4  # from here on, these are values that may be replaced
    refused(proto, "'w' is an input too")
    proto.ir_version = 3
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.DOUBLE
    refused(proto, "'w' is an input too, or declared")


# What is refused ------------------------------------------------------------------------------------------------------

GEMM = node("Gemm", "x w b", "y")

# Nodes, constants, shape of the input, opset, words of the reason.
REFUSED: dict[str, tuple[list[Any], Constants, list[Any], int, str]] = {
    "Transpose reverses the axes": (
        [node("Transpose", "x", "t"), node("Flatten", "t", "f"), node("MatMul", "f v", "y")],
        {"v": normal(4, 2)},
        [1, 2, 2, 1],
        13,
        "node 0, Transpose",
    ),
    "Transpose moves the batch": ([node("Transpose", "x", "y", perm=[1, 0])], {}, ["n", 2], 13, "the batch first"),
    "Transpose of too few axes": ([node("Transpose", "x", "y", perm=[0])], {}, ["n", 2], 13, "expected all 2"),
    "Transpose, an axis twice": ([node("Transpose", "x", "y", perm=[0, 1, 1])], {}, ["n", 2, 2], 13, "all 3"),
    "ReduceMean over everything": ([node("ReduceMean", "x", "m", keepdims=0)], {}, IMAGE, 13, "axes None"),
    "ReduceMean, an axis left empty": (
        [helper.make_node("ReduceMean", ["x", ""], ["m"], keepdims=0)],
        {},
        IMAGE,
        18,
        "axes None",
    ),
    "ReduceMean without effect": (
        [node("ReduceMean", "x none", "y", noop_with_empty_axes=1)],
        {"none": np.zeros(0, np.int64)},
        ["n", 2],
        18,
        "shape [0]",
    ),
    "ReduceMean over the batch": ([node("ReduceMean", "x", "m", axes=[0, 2])], {}, IMAGE, 13, "without the batch"),
    "ReduceMean over the batch, from the end": (
        [node("ReduceMean", "x", "m", axes=[-4])],
        {},
        IMAGE,
        13,
        "without the batch",
    ),
    "ReduceMean, an axis twice": ([node("ReduceMean", "x", "m", axes=[2, -2])], {}, IMAGE, 13, "axes"),
    "ReduceMean, an axis too many": ([node("ReduceMean", "x", "m", axes=[4])], {}, IMAGE, 13, "axes"),
    "ReduceMean, axes where another opset has them": (
        [node("ReduceMean", "x", "m", axes=[2, 3])],
        {},
        IMAGE,
        18,
        "'axes' is not supported in opset 18",
    ),
    "ReduceMean, axes twice": ([node("ReduceMean", "x axes", "m")], AXES, IMAGE, 13, "an input from then on"),
    "Add as it was before opset 7": ([node("Add", "x b", "y")], W, ["n", 2], 6, "opsets [6]"),
    "Add with what opset 6 had": ([node("Add", "x b", "y", axis=1, broadcast=1)], W, ["n", 2], 7, "'axis'"),
    "an opset to come": ([GEMM], W, ["n", 3], 99, "opsets [99]"),
    "a constant for each point": ([node("Add", "x two", "y")], {"two": normal(2, 2)}, ["n", 2], 13, "for the batch"),
    "a constant for each point in Gemm": ([GEMM], {**W, "b": normal(2, 2)}, ["n", 3], 13, "for the batch"),
    "a constant with more axes": ([node("Add", "x c", "y")], {"c": normal(1, 1, 2)}, ["n", 2], 13, "more axes"),
    "a constant that repeats a value": ([node("Add", "x c", "y")], {"c": normal(2)}, ["n", 1], 13, "does not fit"),
    "a value that repeats": (
        [node("ReduceMean", "x", "m", axes=[2]), node("Add", "x m", "y")],
        {},
        ["n", 2, 3],
        13,
        "of the same shape",
    ),
    "values of different rank": (
        [node("ReduceMean", "x", "m", axes=[1], keepdims=0), node("Sub", "x m", "y")],
        {},
        ["n", 2],
        13,
        "of the same shape",
    ),
    "only constants": ([node("Add", "b b", "c"), node("Add", "x c", "y")], W, ["n", 2], 13, "expected one, or two"),
    "Flatten at another axis": ([node("Flatten", "x", "y", axis=0)], {}, ["n", 2], 13, "axis 0"),
    "Flatten that mixes the batch": ([node("Flatten", "x", "y", axis=2)], {}, ["n", 3, 2], 13, "axis 2"),
    "Flatten from the end": ([node("Flatten", "x", "y", axis=-1)], {}, ["n", 2], 13, "axis -1"),
    "Gemm, scaled": ([node("Gemm", "x w", "y", alpha=2.0)], W, ["n", 3], 13, "alpha = 2.0"),
    "Gemm, scaled bias": ([node("Gemm", "x w b", "y", beta=0.5)], W, ["n", 3], 13, "beta = 0.5"),
    "Gemm of the batch": ([node("Gemm", "x w", "y", transA=1)], {"w": normal(3, 2)}, [1, 3], 13, "transA = 1"),
    "Gemm, weight first": ([node("Gemm", "v x", "y")], {"v": normal(3, 1)}, [1, 2], 13, "a constant is given"),
    "Gemm of an image": ([GEMM], W, ["n", 1, 3], 13, "3 axes, expected 2"),
    "Gemm, transposed otherwise": ([node("Gemm", "x w", "y", transB=1)], W, ["n", 3], 13, "does not fit 3 numbers"),
    "Gemm, a bias of the wrong size": ([GEMM], {**W, "b": normal(3)}, ["n", 3], 13, "does not fit"),
    "Gemm, a weight that is computed": (
        [node("Identity", "x", "v"), node("Gemm", "x v", "y")],
        {},
        [1, 1],
        13,
        "not constant",
    ),
    "MatMul by a vector": ([node("MatMul", "x v", "y")], {"v": normal(3)}, ["n", 3], 13, "which does not fit"),
    "MatMul by a batch of weights": (
        [node("MatMul", "x v", "y")],
        {"v": normal(2, 3, 2)},
        ["n", 4, 3],
        13,
        "which does not fit",
    ),
    "MatMul, weight first": ([node("MatMul", "v x", "y")], {"v": normal(2, 2)}, [1, 2], 13, "a constant is given"),
    "Conv in groups": (
        [node("Conv", "x k", "h", group=2), *TAIL],
        {"k": normal(2, 1, 3, 3)},
        IMAGE,
        13,
        "group = 2",
    ),
    "Conv, padded by name": (
        [node("Conv", "x k", "h", auto_pad="SAME_UPPER"), *TAIL],
        {"k": normal(2, 2, 3, 3)},
        IMAGE,
        13,
        "auto_pad",
    ),
    "Conv, cropped": (
        [node("Conv", "x k", "h", pads=[-1, 0, 0, 0]), *TAIL],
        {"k": normal(2, 2, 2, 2)},
        IMAGE,
        13,
        "not supported",
    ),
    "Conv with another kernel": (
        [node("Conv", "x k", "h", kernel_shape=[2, 2]), *TAIL],
        {"k": normal(2, 2, 3, 3)},
        IMAGE,
        13,
        "fits neither",
    ),
    "Conv that stands still": (
        [node("Conv", "x k", "h", strides=[0, 1]), *TAIL],
        {"k": normal(2, 2, 3, 3)},
        IMAGE,
        13,
        "not supported",
    ),
    "Conv that does not fit": (
        [node("Conv", "x k", "h", dilations=[3, 1]), *TAIL],
        {"k": normal(2, 2, 3, 3)},
        IMAGE,
        13,
        "does not fit",
    ),
    "Conv of other channels": ([node("Conv", "x k", "h"), *TAIL], {"k": normal(2, 3, 3, 3)}, IMAGE, 13, "neither"),
    "Conv along one axis": ([node("Conv", "x k", "y")], {"k": normal(2, 2, 3)}, ["n", 2, 5], 13, "3 axes, expected 4"),
    "Conv, its bias given elsewhere": (
        [helper.make_node("Conv", ["x", "", "b"], ["h"]), *TAIL],
        W,
        IMAGE,
        13,
        "'' is not there",
    ),
    "Conv, strides left empty": (
        [with_empty(node("Conv", "x k", "h"), "strides"), *TAIL],
        {"k": normal(2, 2, 3, 3)},
        IMAGE,
        13,
        "not supported: ",
    ),
    "MaxPool, rounded up": (
        [node("MaxPool", "x", "h", kernel_shape=[2, 2], ceil_mode=1), *TAIL],
        {},
        IMAGE,
        13,
        "ceil",
    ),
    "MaxPool of padding only": (
        [node("MaxPool", "x", "h", kernel_shape=[2, 2], pads=[2, 0, 0, 0]), *TAIL],
        {},
        IMAGE,
        13,
        "nothing but padding",
    ),
    "MaxPool that steps over the image": (
        [node("MaxPool", "x", "h", kernel_shape=[2, 1], dilations=[3, 1], pads=[2, 0, 2, 0]), *TAIL],
        {},
        ["n", 2, 1, 6],
        13,
        "nothing but padding",
    ),
    "AveragePool of padding only": (
        [node("AveragePool", "x", "h", kernel_shape=[2, 2], pads=[0, 0, 0, 2]), *TAIL],
        {},
        IMAGE,
        13,
        "nothing but padding",
    ),
    "AveragePool with padding as wide as its windows": (  # of which none holds that alone
        [node("AveragePool", "x", "h", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 0, 0, 2]), *TAIL],
        {},
        ["n", 2, 3, 3],
        19,
        "padding of 2 beside windows of 2",
    ),
    "MaxPool without a window": ([node("MaxPool", "x", "h"), *TAIL], {}, IMAGE, 13, "a window"),
    "MaxPool, dilated too early": (
        [node("MaxPool", "x", "h", kernel_shape=[2, 2], dilations=[2, 2]), *TAIL],
        {},
        IMAGE,
        8,
        "'dilations' is not supported in opset 8",
    ),
    "MaxPool, counted by columns": (
        [node("MaxPool", "x", "h", kernel_shape=[2, 2], storage_order=1), *TAIL],
        {},
        IMAGE,
        13,
        "storage_order = 1",
    ),
    "MaxPool and where": (
        [helper.make_node("MaxPool", ["x"], ["h", "where"], kernel_shape=[2, 2]), *TAIL],
        {},
        IMAGE,
        13,
        "2 outputs",
    ),
    "BatchNormalization in training": (
        [node("BatchNormalization", "x scale shift mean var", "h", training_mode=1), *TAIL],
        NORM,
        IMAGE,
        14,
        "training_mode = 1",
    ),
    "BatchNormalization of places": (
        [node("BatchNormalization", "x scale shift mean var", "h", spatial=0), *TAIL],
        NORM,
        IMAGE,
        7,
        "spatial = 0",
    ),
    "BatchNormalization, a negative variance": (
        [node("BatchNormalization", "x scale shift mean var", "h", epsilon=1.0), *TAIL],
        {**NORM, "var": np.float32([1, -0.5])},
        IMAGE,
        14,
        "negative",
    ),
    "BatchNormalization, divided by nothing": (
        [node("BatchNormalization", "x scale shift mean var", "h", epsilon=0.0), *TAIL],
        {**NORM, "var": np.float32([1, 0])},
        IMAGE,
        14,
        "both are zero",
    ),
    "BatchNormalization of other channels": (
        [node("BatchNormalization", "x scale shift mean var", "h"), *TAIL],
        {**NORM, "mean": normal(1)},
        IMAGE,
        14,
        "do not fit",
    ),
    "Reshape into the batch": (
        [node("Reshape", "x to", "y")],
        {"to": np.array([-1, 2])},
        ["n", 4],
        13,
        "shape [-1, 2] for (batch, 4)",
    ),
    "Reshape to one point": ([node("Reshape", "x to", "y")], {"to": np.array([1, 2])}, ["n", 2], 13, "[1, 2]"),
    "Reshape to nothing": (
        [node("Reshape", "x to", "y", allowzero=1)],
        {"to": np.array([0, 2])},
        ["n", 2],
        14,
        "[0, 2]",
    ),
    "Reshape by floating-point numbers": (
        [node("Reshape", "x to", "y")],
        {"to": np.float32([-1, 2])},
        ["n", 2],
        13,
        "does not fit",
    ),
    "Reshape to many axes": (
        [node("Reshape", "x to", "r"), node("Flatten", "r", "y")],
        {"to": np.array([-1, 2, *[1] * 8])},
        ["n", 2],
        13,
        "at most 8",
    ),
    "an attribute nobody knows": ([node("Relu", "x", "y", slope=0.1)], {}, ["n", 2], 13, "'slope'"),
    "an attribute of another type": ([node("Gemm", "x w", "y", transB=1.0)], W, ["n", 3], 13, "'transB'"),
    "another operator": ([node("Sigmoid", "x", "s"), node("Tanh", "s", "y")], {}, ["n", 2], 13, "Sigmoid, Tanh"),
    "another domain": ([node("Relu", "x", "y", domain="mine")], {}, ["n", 2], 13, "mineRelu"),
    "nodes out of order": ([node("Relu", "h", "y"), node("Relu", "x", "h")], {}, ["n", 2], 13, "not yet"),
    "a name for two values": ([node("Relu", "x", "y"), node("Identity", "x", "y")], {}, ["n", 2], 13, "given twice"),
    "a value that hides a constant": ([node("Relu", "x", "b"), node("Add", "b b", "y")], W, ["n", 2], 13, "twice"),
    "a value that hides the input": ([node("Relu", "x", "x"), node("Relu", "x", "y")], {}, ["n", 2], 13, "twice"),
    "an input that is left out": ([helper.make_node("Gemm", ["x", "", "b"], ["y"])], W, ["n", 3], 13, "not there"),
    "too many inputs": ([node("Relu", "x x", "y")], {}, ["n", 2], 13, "2 inputs"),
    "a size that is not known": ([node("Relu", "x", "y")], {}, ["n", "m"], 13, "positive sizes"),
    "a batch of two": ([GEMM], W, [2, 3], 13, "the batch as the first axis"),
    "an empty input": ([node("Relu", "x", "y")], {}, ["n", 0], 13, "positive sizes"),
    "an empty batch": ([GEMM], W, [0, 3], 13, "the batch as the first axis"),
    "an input that is huge": ([node("Relu", "x", "y")], {}, ["n", 2**40], 13, "are read"),
    "a shape that overflows": ([node("Relu", "x", "y")], {}, ["n", 2**32, 2**32, 2**32], 13, "are read"),
    "padding that is huge": (
        [node("MaxPool", "x", "h", kernel_shape=[2**40, 1], pads=[2**40 - 1, 0, 0, 0]), *TAIL],
        {},
        IMAGE,
        13,
        "larger than",
    ),
    "a padded image that is huge": (
        [node("Conv", "x k", "h", pads=[9000] * 4, strides=[18000, 18000]), *TAIL],
        {"k": normal(2, 2, 1, 1)},
        IMAGE,
        13,
        "the padded image",
    ),
    "a constant that is no number": ([GEMM], {**W, "b": np.float32([0, np.nan])}, ["n", 3], 13, "not finite"),
    "a constant of another type": ([GEMM], {**W, "b": np.zeros(2)}, ["n", 3], 13, "type float64, the input float32"),
    "a constant without entries": ([GEMM], {**W, "e": np.zeros((0, 2), np.float32)}, ["n", 3], 13, "shape [0, 2]"),
    "whole numbers": ([node("Add", "x i", "y")], {"i": np.array([1, 2])}, ["n", 2], 13, "does not fit"),
    "an output that is a constant": (
        [node("Constant", "", "y", value=numpy_helper.from_array(W["row"]))],
        {},
        ["n", 2],
        13,
        "not computed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_on_the_list_is_refused(case: str) -> None:
    nodes, constants, shape, opset, words = REFUSED[case]
    refused(model(nodes, constants, shape, opset=opset), words)


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.BFLOAT16, TensorProto.BOOL, TensorProto.UNDEFINED])
def test_the_input_is_floating_point(kind: int) -> None:
    refused(model([node("Relu", "x", "y")], {}, ["n", 2], kind=kind), "expected float16, float or double")


def changed(change: Callable[[Any], Any]) -> Any:
    proto = model([node("Gemm", "x w b", "h"), node("Relu", "h", "y")], W, ["n", 3])
    change(proto)
    return proto


def _copied(part: Any) -> Any:
    """A part of a message may not be given to itself."""
    copy = type(part)()
    copy.CopyFrom(part)
    return copy


def _external(p: Any) -> None:
    p.graph.initializer[0].data_location = TensorProto.EXTERNAL
    p.graph.initializer[0].external_data.add(key="location", value="elsewhere")


def _function(p: Any) -> None:
    p.functions.append(helper.make_function("", "Relu", ["a"], ["b"], [node("Identity", "a", "b")], p.opset_import))


def _sparse(p: Any) -> None:
    values, places = numpy_helper.from_array(np.float32([1]), "s"), numpy_helper.from_array(np.array([0]))
    p.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2]))


def _sequence(p: Any) -> None:
    p.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(_copied(p.graph.input[0].type)))


OTHER: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a second opset": (lambda p: p.opset_import.add(domain="ai.onnx", version=13), "opsets [20, 13]"),
    "no opset": (lambda p: p.ClearField("opset_import"), "opsets []"),
    "an IR version to come": (lambda p: setattr(p, "ir_version", 99), "IR version 99"),
    "functions": (_function, "'functions' of ModelProto"),
    "training": (lambda p: p.training_info.add(), "'training_info'"),
    "sparse constants": (_sparse, "'sparse_initializer'"),
    "constants elsewhere": (_external, "of TensorProto is not supported"),
    "quantization": (lambda p: p.graph.quantization_annotation.add(tensor_name="h"), "'quantization_annotation'"),
    "a subgraph": (
        lambda p: p.graph.node[1].attribute.add(name="g", type=5).g.CopyFrom(_copied(p.graph)),
        "'g' of Attribute",
    ),
    "a reference": (lambda p: p.graph.node[1].attribute.add(name="a", type=2, ref_attr_name="b"), "'ref_attr_name'"),
    "another function of that name": (lambda p: setattr(p.graph.node[1], "overload", "v2"), "'overload' of NodeProto"),
    "a sequence": (_sequence, "'sequence_type' of TypeProto"),
    "no shape": (lambda p: p.graph.input[0].type.tensor_type.ClearField("shape"), "without a shape"),
    "two outputs": (
        lambda p: p.graph.output.add().CopyFrom(helper.make_tensor_value_info("h", 1, [None, 2])),
        "2 outputs",
    ),
    "two inputs": (
        lambda p: p.graph.input.add().CopyFrom(helper.make_tensor_value_info("z", 1, [None, 2])),
        "2 inputs",
    ),
    "the input again": (lambda p: p.graph.input.append(_copied(p.graph.input[0])), "2 inputs"),
    "an output of another size": (
        lambda p: p.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [None, 4])),
        "shape [None, 4], but has (None, 2)",
    ),
    "an output of another type": (
        lambda p: p.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 11, [None, 2])),
        "type 11",
    ),
    "an output for one point": (
        lambda p: p.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [1, 2])),
        "shape [1, 2]",
    ),
    "a value declared otherwise": (
        lambda p: p.graph.value_info.append(helper.make_tensor_value_info("h", 1, [None, 3])),
        "'h' is declared",
    ),
    "an output that is not there": (
        lambda p: p.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", 1, [None, 2])),
        "not computed by a node",
    ),
    "a constant twice": (lambda p: p.graph.initializer.append(_copied(p.graph.initializer[0])), "'w' is given twice"),
    "a constant without a name": (lambda p: setattr(p.graph.initializer[2], "name", ""), "or empty"),
    "too few numbers": (lambda p: setattr(p.graph.initializer[0], "raw_data", b"1234"), "stores {'raw_data': 4}"),
    "numbers twice": (lambda p: p.graph.initializer[0].float_data.extend([1.0] * 6), "'float_data': 6"),
    "a huge constant": (lambda p: p.graph.initializer[0].dims.extend([2**62]), "of shape [3, 2, 4611686018427387904]"),
    "an attribute twice": (
        lambda p: p.graph.node[0].attribute.extend([helper.make_attribute("transB", 0)] * 2),
        "'transB' is not supported",
    ),
    "an attribute with two values": (
        lambda p: p.graph.node[0].attribute.add(name="transB", type=2, i=0, f=1.0),
        "'transB' is not supported",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_files_that_hold_more_are_refused(case: str) -> None:
    change, words = OTHER[case]
    refused(changed(change), words)


def test_remarks_change_nothing() -> None:
    def remark(p: Any) -> None:
        p.producer_name = p.doc_string = p.graph.node[0].doc_string = "remark"
        p.graph.metadata_props.add(key="a", value="b")
        p.opset_import.add(domain="unused", version=3)

    assert read(changed(remark)).nodes == read(changed(lambda p: None)).nodes


def test_fields_that_a_parser_would_drop_are_refused() -> None:
    data = changed(lambda p: None).SerializeToString()
    refused(data + b"\xfa\x7f\x00", "field 2047 of ModelProto")
    refused(data + b"\x3a\x05\x0a\x03\xf8\x7f\x00", "field 2047 of NodeProto")
    refused(data + b"\x3d\x00\x00\x00\x00", "in a form that is not supported")  # the graph as a number


@pytest.mark.parametrize("data", [b"", b"\x08", b"no network", b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x7f", b"\x0b" * 9])
def test_what_is_no_network_is_refused(data: bytes) -> None:
    refused(data)


def test_files_with_too_many_fields_are_refused_before_they_are_parsed() -> None:
    """A parser would make an object of each of these empty nodes, a hundred times as large as its two bytes."""
    size = 2 * (onnx_graph.FIELDS + 10)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
    refused(b"\x3a" + length + b"\x0a\x00" * (size // 2), f"more than {onnx_graph.FIELDS} fields")


def test_too_many_nodes_and_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "NODES", 1)
    refused(changed(lambda p: None), "has 2 nodes; at most 1")
    monkeypatch.undo()
    monkeypatch.setattr(onnx_graph, "CONSTANTS", 8)
    refused(changed(lambda p: None), "8 entries of constants")
    monkeypatch.undo()
    twice = [node("Add", "x b", "h"), node("Add", "h b", "y")]
    monkeypatch.setattr(onnx_graph, "CONSTANTS", 3)
    refused(model(twice, {"b": W["b"]}, ["n", 2]), "each use counted")
    monkeypatch.undo()
    monkeypatch.setattr(onnx_graph, "VALUES", 5)
    refused(model(twice, {"b": W["b"]}, ["n", 2]), "5 of values for one point")
    monkeypatch.undo()
    monkeypatch.setattr(onnx_graph, "FILE", 50)
    refused(changed(lambda p: None), "at most 50 are read")


def test_no_warning_is_given() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(changed(lambda p: None))
