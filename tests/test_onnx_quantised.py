"""Files as onnxruntime quantises them, of every kind: repaired on their grids, edits and kept points both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime.quantization")
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import nnrepair
from nnrepair.errors import UnsupportedModel
from nnrepair.methods import MinimalNorm, OnGrid
from nnrepair.onnx import in_place
from nnrepair.onnx.inplace.deployed import deployed

RANDOM = np.random.default_rng(0)
POINTS = torch.from_numpy(RANDOM.standard_normal((33, 8)).astype(np.float32))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers and a softmax, of floats."""
    shapes = {"w": (8, 32), "c": (32,), "v": (32, 5), "b": (5,)}
    numbers = {name: RANDOM.standard_normal(shape).astype(np.float32) / 3 for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Add", ["h", "c"], ["hc"]),
        helper.make_node("Relu", ["hc"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["m"], name="head"),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"], axis=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", size)) for name, size in (("x", 8), ("y", 5))]
    stored = [numpy_helper.from_array(array, name) for name, array in numbers.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Points(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """One batch to find ranges with."""

    def __init__(self) -> None:
        self.left = [{"x": POINTS.numpy()}]

    def get_next(self) -> dict[str, object] | None:
        return self.left.pop() if self.left else None


def _static(form: QuantFormat, **settings: Any) -> Callable[[Path, Path], None]:
    return lambda source, target: quantize_static(str(source), str(target), Points(), quant_format=form, **settings)


def _dynamic(**settings: Any) -> Callable[[Path, Path], None]:
    return lambda source, target: quantize_dynamic(str(source), str(target), **settings)


def _fused(source: Path, target: Path) -> None:
    """Write what onnxruntime makes of a dynamically quantised file for its own use: operators of its own."""
    quantize_dynamic(str(source), str(target))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(target), 4
    onnxruntime.InferenceSession(target.read_bytes(), options)


KINDS: dict[str, tuple[Callable[[Path, Path], None], set[str]]] = {
    "dynamic": (_dynamic(), {"MatMulInteger"}),
    "dynamic, signed, a scale for each output": (
        _dynamic(weight_type=QuantType.QInt8, per_channel=True),
        {"MatMulInteger"},
    ),
    "dynamic, fused": (_fused, {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}),
    "operators of integers": (_static(QuantFormat.QOperator), {"QLinearMatMul", "QLinearAdd"}),
    "pairs": (_static(QuantFormat.QDQ), {"QuantizeLinear"}),
    "pairs, 16 bits": (_static(QuantFormat.QDQ, activation_type=QuantType.QUInt16), {"QuantizeLinear"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_edits_hold_and_points_are_kept_on_the_grid(kind: str, plain: Path, tmp_path: Path) -> None:
    make, operators = KINDS[kind]
    path = tmp_path / "quantised.onnx"
    make(plain, path)
    proto = onnx.load(path)
    assert operators & {node.op_type for node in proto.graph.node}
    whole = in_place(path)
    model = in_place(path, output=whole.scores)
    with torch.no_grad():
        scores = model(POINTS)
    edits, labels, kept = POINTS[:3], scores[:3].topk(2, 1).indices[:, 1], POINTS[3:]
    clear = scores[3:].topk(2, 1).values.diff(dim=1).squeeze().abs() > 2 * model.step  # no ties where outputs round
    result = nnrepair.fix(model, (edits, labels), kept[clear], method=OnGrid(MinimalNorm(layer=model.layer)))
    assert result.report.locality == 1
    out = result.model.save(tmp_path / "out.onnx")
    before, after = deployed(path, model.output), deployed(out, model.output)
    assert torch.equal(after(edits).argmax(1), labels)
    assert torch.equal(after(kept[clear]).argmax(1), before(kept[clear]).argmax(1))
    changed = {
        one.name: (numpy_helper.to_array(one), numpy_helper.to_array(two))
        for one, two in zip(proto.graph.initializer, onnx.load(out).graph.initializer, strict=True)
        if one.SerializeToString() != two.SerializeToString()
    }
    assert all(one.dtype == two.dtype and one.shape == two.shape for one, two in changed.values())
    assert any(one.dtype.kind in "iu" for one, _ in changed.values())
    assert len(out.read_bytes()) == len(path.read_bytes())


def test_points_of_a_dynamically_quantised_file_do_not_share_a_scale(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(str(plain), str(path))
    model = in_place(path, output="s")
    assert any("one by one" in note for note in model.notes)
    far = torch.cat([POINTS[:2], 100 * POINTS[2:3]])
    with torch.no_grad():
        assert torch.equal(model(far)[:2], model(POINTS[:2]))
        assert torch.allclose(deployed(path, "s")(far), model(far), atol=1e-4)


def test_convolutions_of_integers(tmp_path: Path) -> None:
    w = (RANDOM.standard_normal((3, 2, 3, 3)) * 40).round().clip(-127, 127).astype(np.int8)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("DynamicQuantizeLinear", ["r"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z", "wz"], ["i"], name="head", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["both"]),
        helper.make_node("Mul", ["f", "both"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    numbers = {"w": w, "wz": np.int8(0), "ws": np.float32(0.01), "b": RANDOM.standard_normal((1, 3, 1, 1))}
    numbers["b"] = np.asarray(numbers["b"], np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 2, 4, 4))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in numbers.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path = tmp_path / "conv.onnx"
    onnx.save(proto, path)
    model, points = in_place(path), torch.from_numpy(RANDOM.standard_normal((12, 2, 4, 4)).astype(np.float32))
    labels = (model(points[:1]).argmax(1) + 1) % 3
    result = nnrepair.fix(model, (points[:1], labels), points[4:], method=OnGrid())
    out = result.model.save(tmp_path / "out.onnx")
    assert torch.equal(deployed(out)(points[:1]).argmax(1), labels)
    assert result.report.locality == 1
    with pytest.raises(UnsupportedModel, match="weights are in ConvInteger"):  # its scale is no constant
        in_place(_with(proto, path, "ws", "r"), layer="head")


def _with(proto: onnx.ModelProto, path: Path, old: str, new: str) -> Path:
    """Write a file in which a node reads another value; here a scale that is no constant."""
    made = onnx.ModelProto.FromString(proto.SerializeToString())
    for node in made.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    onnx.save(made, path)
    return path
