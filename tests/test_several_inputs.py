"""ONNX files of several inputs, or outputs, in the checker: numbers are counted one input after the other."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnrepair.errors import InvalidInput
from nnrepair.verify import Box, Case, Halfspace, Property, check

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def file(path: Path, nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> Path:
    ends = [[helper.make_tensor_value_info(n, FLOAT, s) for n, s in each.items()] for each in (inputs, outputs)]
    weight = onnx.numpy_helper.from_array(np.array([[1, -1], [2, 0], [0, 3]], np.float32), "W")
    graph = helper.make_graph(nodes, "g", *ends, [weight])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


def prop(inputs: int, bound: float, outputs: int = 2) -> Property:
    """Say that output 0 is never at or below a bound, for inputs within 0..1."""
    row = Halfspace((Fraction(1), *[Fraction(0)] * (outputs - 1)), Fraction(bound))
    return Property([Case(Box([0] * inputs, [1] * inputs), ((row,),))], outputs)


@pytest.mark.parametrize("batch", [1, "n"])
def test_inputs_side_by_side(tmp_path: Path, batch: Any) -> None:
    # y0 = relu(a - 1) + 2 (b0 + a) over a, then b: (b1 is not read by it)
    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Concat", ["a", "s"], ["c"], axis=1),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MatMul", ["r", "W"], ["y"]),
    ]
    path = file(tmp_path / "two.onnx", nodes, {"a": [batch, 1], "b": [batch, 2]}, {"y": [batch, 2]})
    assert check(path, prop(3, -0.25), timeout=20).verdict == "holds"
    found = check(path, prop(3, 0.25), timeout=20)
    assert found.verdict == "violated" and found.counterexample is not None
    a, b0, _ = found.counterexample.input
    assert found.counterexample.output[0] == pytest.approx(a + 2 * (a + b0))
    assert {"network", "onnxruntime", "exact"} == set(found.counterexample.replayed)


def test_the_first_output_is_meant(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    path = file(tmp_path / "more.onnx", nodes, {"x": [1, 3]}, {"y": [1, 2], "z": [1, 2]})
    assert check(path, prop(3, -0.5), timeout=20).verdict == "holds"
    found = check(path, prop(3, 0.5), timeout=20)
    assert found.counterexample is not None and "onnxruntime" in found.counterexample.replayed


def test_sizes_that_are_left_open_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])]
    path = file(tmp_path / "open.onnx", nodes, {"a": [1, "k"], "b": [1, "k"]}, {"z": [1, "k"]})
    with pytest.raises(InvalidInput, match="leaves the size of its input 'a' open"):
        check(path, prop(4, 0), timeout=20)


def test_names_that_readers_change(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["a/b:0", "W"], ["y.1/z:0"])]
    path = file(tmp_path / "names.onnx", nodes, {"a/b:0": [1, 3]}, {"y.1/z:0": [1, 2]})
    found = check(path, prop(3, 0.5), timeout=20)
    assert found.counterexample is not None and "onnxruntime" in found.counterexample.replayed
