"""An ONNX file is read as onnxruntime computes it, or refused with a reason; small files cannot ask for much memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from test_onnx import IMAGE, normal, run  # noqa: E402

import nnrepair.onnx as nonnx  # noqa: E402
from nnrepair.errors import NNRepairError, UnsupportedModel  # noqa: E402
from nnrepair.onnx import importer  # noqa: E402


def node(op: str, inputs: str, output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name="it" if output == "y" else "", **attributes)


def size(output: str = "n") -> list[onnx.NodeProto]:
    """Ask for the number of points."""
    return [node("Shape", "x", "shape"), node("Gather", "shape zero", output)]


ZERO = {"zero": np.array(0)}
STATISTICS = {name: np.full(3, value, np.float32) for name, value in (("s", 1), ("b", 0), ("m", 0), ("v", 1))}
#: What reads like something else, and what no batch of any other size would survive.
MISREAD = {
    "valid padding with pads": (
        [node("Conv", "x w", auto_pad="VALID", pads=[1] * 4)],
        {"w": normal(2, 3, 2, 2)},
        IMAGE,
        17,
        "auto_pad=VALID",
    ),
    "pads beyond the window": (
        [node("MaxPool", "x", kernel_shape=[1, 2], pads=[0, 1, 1, 1])],
        {},
        IMAGE,
        17,
        "smaller",
    ),
    "ceil mode, uneven": (
        [node("MaxPool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1)],
        {},
        IMAGE,
        17,
        "ceil_mode=1",
    ),
    "statistics of every number": (
        [node("BatchNormalization", "x s b m v", spatial=0)],
        {name: np.ones((3, 7, 6), np.float32) for name in "sbmv"},
        IMAGE,
        7,
        "spatial=0",
    ),
    "statistics in training": (
        [node("BatchNormalization", "x s b m v", "y a c d e")],
        STATISTICS,
        IMAGE,
        9,
        "in training mode",
    ),
    "dropout in training": (
        [node("Dropout", "x r t")],
        {"r": np.float32(0.5), "t": np.array(True)},
        IMAGE,
        17,
        "in training mode",
    ),
    "mean of everything": ([node("ReduceMean", "x")], {}, IMAGE, 17, "one by one"),
    "mean over an empty list": ([node("ReduceMean", "x a")], {"a": np.zeros(0, np.int64)}, IMAGE, 18, "one by one"),
    "zeros that are no copies": (
        [node("Reshape", "x s", allowzero=1)],
        {"s": np.array([0, 4])},
        ("n", 4),
        17,
        "allowzero=1",
    ),
    "points beside features": (
        [node("ReduceMean", "x", "m", axes=[2], keepdims=0), node("Add", "x m")],
        {},
        ("n", 3, 3),
        13,
        "runs on 3 of them",
    ),
    "times the number of points": (
        [*size(), node("Cast", "n", "f", to=TensorProto.FLOAT), node("Mul", "x f")],
        ZERO,
        IMAGE,
        17,
        "one by one",
    ),
    "twice the number of points": (
        [
            *size(),
            node("Add", "n n", "two"),
            node("Reshape", "two one", "first"),
            node("Concat", "first one", "s", axis=0),
            node("Reshape", "x s"),
        ],
        ZERO | {"one": np.array([-1])},
        IMAGE,
        17,
        "one by one",
    ),
    "half the number of points": (
        [
            *size(),
            node("Div", "n two", "half"),
            node("Reshape", "half one", "first"),
            node("Concat", "first left", "s", axis=0),
            node("Reshape", "x s"),
        ],
        ZERO | {"two": np.array(2), "one": np.array([1]), "left": np.array([-1])},
        ("n", 1),
        17,
        "one by one",
    ),
    "a table of three rows": (
        [*size(), node("Reshape", "n one", "end"), node("Slice", "c start end", "rows"), node("Add", "x rows")],
        ZERO | {"one": np.array([1]), "start": np.array([0]), "c": np.zeros((3, 4), np.float32)},
        ("n", 4),
        17,
        "one by one",
    ),
    "an axis that a batch of one loses": ([node("Squeeze", "x")], {}, ("n", 3, 1), 17, "one by one"),
    "a row for every point": (
        [*size(), node("Reshape", "n one", "end"), node("Slice", "c start end", "rows"), node("Add", "x rows")],
        ZERO | {"one": np.array([1]), "start": np.array([0]), "c": normal(9, 4)},
        ("n", 4),
        17,
        "one by one",
    ),
    "the places of the maxima": (
        [
            node("MaxPool", "x", "p i", kernel_shape=[1, 1]),
            node("Cast", "i", "f", to=TensorProto.FLOAT),
            node("Add", "x f"),
        ],
        {},
        IMAGE,
        17,
        "reads 'i'",
    ),
    "no numbers": ([node("Relu", "x")], {}, ("n", 0), 17, "holds no numbers"),
    "nothing left": (
        [node("MatMul", "x e", "z"), node("MatMul", "z w")],
        {"e": normal(4, 0), "w": normal(0, 2)},
        ("n", 4),
        17,
        "is empty",
    ),
    "no channels": ([node("Conv", "x w")], {"w": normal(2, 0, 1)}, ("n", "c", 4), 17, "empty"),
}


def graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: Sequence[object],
    opset: int,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Write a graph whose output is y, of whatever shape."""
    ends = [helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "graph", ends[:1], ends[1:], stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    follow = len(nodes) < 20  # onnx itself follows constants that double each time to the end
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=follow).graph.output[0]
    inferred.type.tensor_type.shape.SetInParent()
    model.graph.output[0].CopyFrom(inferred)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", MISREAD)
def test_what_would_be_read_as_something_else_is_refused(name: str, tmp_path: Path) -> None:
    *what, words = MISREAD[name]
    with pytest.raises(UnsupportedModel, match=words):
        nonnx.load(graph(tmp_path / "m.onnx", *what))


DOUBLES = {
    "default slope": ([node("LeakyRelu", "x")], {}, ("n", 6), 17),
    "default epsilon": (
        [node("BatchNormalization", "x s b m v")],
        {name: np.full(6, 1e-4) for name in "sbmv"},
        ("n", 6),
        17,
    ),
    "the largest number": (
        [node("Clip", "x l h")],
        {"l": np.array(-1.7976931348623157e308), "h": np.array(0.1)},
        IMAGE,
        17,
    ),
    "division of integers": (
        [node("Div", "p q", "s"), node("Reshape", "x s")],
        {"p": np.array([-1, -7, 9]), "q": np.array([2, -2, 2])},
        ("n", 12),
        17,
    ),
    "axes in any order": (
        [node("Unsqueeze", "c", "u", axes=[2, 0]), node("Add", "x u")],
        {"c": np.arange(3.0)},
        ("n", 3, 4),
        11,
    ),
    "axes from the end": (
        [node("Squeeze", "c", "u", axes=[-1, 0]), node("Add", "x u")],
        {"c": np.arange(3.0).reshape(1, 3, 1)},
        ("n", 3),
        11,
    ),
    "no axes at all": (
        [node("ReduceMean", "x a", noop_with_empty_axes=1)],
        {"a": np.zeros(0, np.int64)},
        IMAGE,
        18,
    ),
    "backwards": (
        [node("Slice", "c s e a b", "r"), node("Add", "x r")],
        {"c": np.arange(6.0), "s": np.array([99]), "e": np.array([-99]), "a": np.array([-1]), "b": np.array([-1])},
        ("n", 6),
        17,
    ),
}


@pytest.mark.parametrize("name", DOUBLES)
def test_double_precision_agrees_with_onnxruntime(name: str, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", *DOUBLES[name], kind=TensorProto.DOUBLE)
    shape = [size for size in DOUBLES[name][2][1:] if isinstance(size, int)]
    x = 2 * torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(nonnx.load(path)(x), run(path, x), rtol=1e-14, atol=1e-14)


def test_softplus_is_exact_in_double_precision(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [node("Softplus", "x")], {}, ("n", 9), 17, TensorProto.DOUBLE)
    x = torch.linspace(-40, 60, 9, dtype=torch.float64)
    torch.testing.assert_close(nonnx.load(path)(x[None])[0], torch.logaddexp(x, torch.zeros(())), rtol=1e-14, atol=0)


def test_a_batch_may_have_no_points(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x s", "r"), node("MatMul", "r w")]
    path = graph(tmp_path / "m.onnx", nodes, {"s": np.array([0, -1]), "w": normal(6, 2)}, ("n", 2, 3), 17)
    assert nonnx.load(path)(torch.zeros(0, 2, 3)).shape == (0, 2)


def test_negative_pads_are_refused(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", pads=[-1, 0, 0, 0])]
    with pytest.raises(NNRepairError, match="negative"):
        nonnx.load(graph(tmp_path / "m.onnx", nodes, {"w": normal(2, 3, 2, 2)}, IMAGE, 17))


def test_other_types_of_numbers_are_refused(tmp_path: Path) -> None:
    for kind in (TensorProto.STRING, TensorProto.BFLOAT16):
        path = graph(tmp_path / "m.onnx", [node("Identity", "x")], {}, ("n", 4), 17, kind)
        with pytest.raises(UnsupportedModel, match=f"type {TensorProto.DataType.Name(kind)}, expected float16"):
            nonnx.load(path)


def test_what_torch_cannot_run_in_the_precision_of_the_file_is_refused(tmp_path: Path) -> None:
    nodes = [node("AveragePool", "x", kernel_shape=[2, 2, 2])]
    for kind in (TensorProto.FLOAT16, TensorProto.FLOAT):
        path = graph(tmp_path / "m.onnx", nodes, {}, ("n", 1, 3, 3, 3), 17, kind)
        half = kind == TensorProto.FLOAT16
        x = torch.zeros(1, 1, 3, 3, 3, dtype=torch.float16 if half else torch.float32)
        try:
            nn.AvgPool3d(2)(x)
        except RuntimeError:
            with pytest.raises(UnsupportedModel, match="cannot run on an input"):
                nonnx.load(path)
        else:
            assert nonnx.load(path)(x).shape == (1, 1, 2, 2, 2)


def test_newer_definitions_of_operators_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graph(tmp_path / "m.onnx", [node("Relu", "x")], {}, ("n", 4), 17)
    assert nonnx.load(path)(torch.full((1, 4), -1.0)).tolist() == [[0.0] * 4]
    monkeypatch.setattr(importer, "NEWEST", 13)
    with pytest.raises(UnsupportedModel, match="changed in opset 14; definitions up to opset 13 are known"):
        nonnx.load(path)


def test_what_a_file_says_of_inner_shapes_is_not_believed(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "r"), node("Shape", "r", "s"), node("Reshape", "x s")]
    path = graph(tmp_path / "m.onnx", nodes, {}, ("n", "m"), 17)
    model = onnx.load(str(path))
    model.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 3]))
    path.write_bytes(model.SerializeToString())
    model = nonnx.load(path)
    assert model.item_shape == (None,) and model(torch.zeros(2, 5)).shape == (2, 5)


def test_open_sizes_are_tried(tmp_path: Path) -> None:
    pooled = [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "g"), node("Flatten", "g")]
    model = nonnx.load(graph(tmp_path / "m.onnx", pooled, {"w": normal(2, 3, 3, 3)}, ("n", 3, "h", "w"), 17))
    assert model.item_shape == (3, None, None) and model(torch.zeros(2, 3, 5, 9)).shape == (2, 2)
    with pytest.raises(UnsupportedModel, match="leaves sizes of its input open"):
        nonnx.load(graph(tmp_path / "m.onnx", [node("MatMul", "x w")], {"w": normal(1000, 2)}, ("n", "m"), 17))


GROWING = {
    "outer sum": (
        [node("Add", "a b", "c"), node("Add", "x c")],
        {"a": normal(45000, 1), "b": normal(1, 45000)},
        ("n", 1, 45000),
    ),
    "gather": (
        [node("Gather", "g i", "c"), node("Add", "x c")],
        {"g": normal(1, 45000), "i": np.zeros(45000, np.int64)},
        ("n", 1, 45000),
    ),
    "concat": (
        [node("Concat", f"g{k} g{k}", f"g{k + 1}", axis=0) for k in range(40)] + [node("Add", "x g40")],
        {"g0": normal(2)},
        ("n", 4),
    ),
    "input": ([node("Relu", "x")], {}, ("n", 100_000, 100_000)),
    "broadcast": ([node("Add", "x c")], {"c": normal(40_000, 1)}, ("n", 1, 40_000)),
    "padding": (
        [node("Conv", "x w", pads=[0, 0, 50_000, 50_000], strides=[50_000, 50_000])],
        {"w": normal(1, 1, 2, 2)},
        ("n", 1, 4, 4),
    ),
    "copies": (
        [node("MatMul", f"{'x' if k == 0 else f'h{k}'} w", f"h{k + 1}") for k in range(2)]
        + [node("Transpose", "w", f"w{k}") for k in range(80)]
        + [node("MatMul", f"h{k + 2} w{k}", f"h{k + 3}") for k in range(80)]
        + [node("Relu", "h82")],
        {"w": np.zeros((1024, 1024), np.float32)},
        ("n", 1024),
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_small_files_cannot_ask_for_much_memory(name: str, tmp_path: Path) -> None:
    nodes, weights, shape = GROWING[name]
    path = graph(tmp_path / "m.onnx", nodes, weights, shape, 13)
    with pytest.raises(NNRepairError, match="67108864|are left for constants|Incompatible dimensions"):
        nonnx.load(path)


@pytest.mark.parametrize("read", ["x", "k"])
@pytest.mark.parametrize("sizes", [("n", 1, -1), ("n", 1, 4), ("n", 1, -7)])
def test_slices_of_negative_sizes_do_not_end_the_process(sizes: tuple[object, ...], read: str, tmp_path: Path) -> None:
    """As they do in onnx's shape inference, which a file can reach with a size or with a window beyond its input."""
    weights = {"s": np.array([0]), "e": np.array([5]), "a": np.array([2]), "w": normal(1, 1, 7), "k": normal(1, 1, 4)}
    nodes = [node("Conv", f"{read} w", "c"), node("Slice", "c s e a", "d"), node("Add", "d x")]
    ends = [helper.make_tensor_value_info("x", 1, sizes), helper.make_tensor_value_info("y", 1, ["n", 1, "k"])]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "graph", ends[:1], ends[1:], stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    if read == "x" and sizes[2] != 4:  # open: larger ones are tried
        assert nonnx.load(tmp_path / "m.onnx").item_shape in ((1, None), (1, 7))
        return
    with pytest.raises(UnsupportedModel, match="cannot be run: 'c' fails on shapes"):
        nonnx.load(tmp_path / "m.onnx")


def test_long_and_deep_graphs_are_read(tmp_path: Path) -> None:
    nodes = [node("Relu", f"{'x' if k == 0 else f'h{k}'}", f"h{k + 1}") for k in range(300)]
    deep = "a." * 2000 + "weight"
    path = graph(
        tmp_path / "m.onnx", [*nodes, node("MatMul", f"h300 {deep}")], {deep: np.eye(3, dtype=np.float32)}, ("n", 3), 17
    )
    x = torch.randn(4, 3)
    assert torch.equal(nonnx.load(path)(x), x.relu())
