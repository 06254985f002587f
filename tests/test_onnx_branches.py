"""Layers inside of branches, layers that nobody trained, and compressed files, repaired in place."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import nnrepair
from nnrepair.cli import main
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.failing import failing
from nnrepair.onnx import in_place

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)
X, KEPT = (RANDOM.standard_normal((n, 5)).astype(np.float32) for n in (2, 20))


def number(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def saved(path: Path, nodes: list[onnx.NodeProto], tensors: dict[str, Array], inputs: list[Any]) -> Path:
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def value(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(name: str, inner: bool = False) -> onnx.GraphProto:
    """Return a branch with a head whose values have the same names in every branch."""
    nodes = [
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(number(3), "b")),
        helper.make_node("MatMul", ["h", "v"], ["m"], name=f"{name}_head"),
        helper.make_node("Add", ["m", "b"], ["made"]),
    ]
    graph = helper.make_graph(nodes, name, [], [value("made", "n", 3)], [numpy_helper.from_array(number(24, 3), "v")])
    if inner:  # an If in an If
        made = helper.make_node("If", ["yes"], ["deep"], name="inner", then_branch=graph, else_branch=branch("other"))
        yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.bool_(True)))
        graph = helper.make_graph([yes, made], name, [], [value("deep", "n", 3)])
    return graph


@pytest.fixture(params=[False, True], ids=["one If", "an If in an If"])
def branching(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["g"]),
        helper.make_node("Tanh", ["g"], ["h"]),
        helper.make_node("Equal", ["rate", "sixteen"], ["fast"]),
        helper.make_node(
            "If", ["fast"], ["y"], name="speed", then_branch=branch("fast", request.param), else_branch=branch("slow")
        ),
    ]
    tensors = {"w": number(5, 24), "sixteen": np.int64(16)}
    return saved(tmp_path / "m.onnx", nodes, tensors, [value("x", "n", 5), value("rate", kind=TensorProto.INT64)])


def run(path: Path, x: Array, rate: int) -> Array:
    session = onnxruntime.InferenceSession(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else str(path))
    return np.asarray(session.run(None, {"x": x, "rate": np.array(rate)})[0])


def test_a_head_in_a_branch_is_repaired_and_the_other_branch_stays(branching: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"branches of If 'speed': fixed={'rate': VALUE}"):
        in_place(branching)
    model = in_place(branching, fixed={"rate": 16})
    labels = run(branching, X, 16).argsort(1)[:, 1]
    result = nnrepair.fix(model, (torch.from_numpy(X), labels.tolist()), torch.from_numpy(KEPT))
    out = result.model.save(tmp_path / "out.onnx")
    assert run(out, X, 16).argmax(1).tolist() == labels.tolist()
    assert (run(out, KEPT, 16).argmax(1) == run(branching, KEPT, 16).argmax(1)).all()
    assert (run(out, KEPT, 3) == run(branching, KEPT, 3)).all()
    before, after = branching.read_bytes(), out.read_bytes()
    assert len(before) == len(after) and 0 < sum(a != b for a, b in zip(before, after, strict=True)) <= 4 * (24 * 3 + 3)
    patch = nnrepair.Patch.load(result.save_patch(tmp_path / "fix.safetensors"))
    reverted: Any = patch.revert(in_place(out, fixed={"rate": 16}))
    assert reverted.save(tmp_path / "back.onnx").read_bytes() == before
    with pytest.raises(InvalidInput, match="no input 'rat'"):
        in_place(branching, fixed={"rat": 16})
    with pytest.raises(InvalidInput, match="'rate' takes numbers of type int64, got 'fast'"):
        in_place(branching, fixed={"rate": "fast"})


def test_the_command_line_fixes_inputs_and_reads_compressed_files(branching: Path, tmp_path: Path) -> None:
    path, rate = tmp_path / "m.onnx.gz", np.full(len(X), 16)
    path.write_bytes(gzip.compress(branching.read_bytes()))
    np.savez(tmp_path / "edits.npz", x=X, rate=rate, labels=run(branching, X, 16).argsort(1)[:, 1])

    def call(*words: str) -> int:
        return main([str(tmp_path / word) if "." in word else word for word in words])

    told = "--edits edits.npz --out out.onnx.gz --patch fix.safetensors --fixed rate=16"
    assert call("fix", "m.onnx.gz", *told.split()) == 0
    assert call("check-edits", "out.onnx.gz", "edits.npz") == 0
    assert call("check-edits", "m.onnx.gz", "edits.npz") == 1
    np.savez(tmp_path / "alone.npz", inputs=X, labels=run(branching, X, 16).argsort(1)[:, 1])
    assert call("check-edits", "out.onnx.gz", "alone.npz", "--fixed", "rate=16") == 0
    assert call("check-edits", "m.onnx.gz", "alone.npz", "--fixed", "rate=16") == 1
    for wrong in ("rate=fast", "rat=16"):
        assert call("check-edits", "out.onnx.gz", "alone.npz", "--fixed", wrong) == 3
    edits = (X, run(branching, X, 16).argsort(1)[:, 1])
    assert failing(tmp_path / "out.onnx.gz", edits, fixed={"rate": 16}) == []
    with pytest.raises(InvalidInput, match="fixed= makes constants of an ONNX file's inputs"):
        failing(torch.nn.Linear(2, 2), edits, fixed={"rate": 16})
    assert call("patch", "apply", "fix.safetensors", "m.onnx.gz", "--out", "again.onnx") == 0
    assert (tmp_path / "again.onnx").read_bytes() == gzip.decompress((tmp_path / "out.onnx.gz").read_bytes())
    assert call("fix", "m.onnx.gz", *told.replace("=16", "=fast").split()) == 3


def test_layers_that_nobody_trained_are_passed_over(tmp_path: Path) -> None:
    blur = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32).reshape(1, 1, 3, 3) / 16
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["c"], name="learned", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "blur"], ["d"], name="blur", pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["d"], ["f"]),
        helper.make_node("MatMul", ["f", "bins"], ["y"], name="sum"),
    ]
    bins = np.kron(np.eye(2), np.ones((8, 1))).astype(np.float32)
    tensors = {"v": number(1, 1, 3, 3), "blur": blur, "bins": bins}
    path = saved(tmp_path / "m.onnx", nodes, tensors, [value("x", "n", 1, 4, 4)])
    model = in_place(path)
    assert model.layer == "suffix.learned"
    assert any("layer sum behind it has whole numbers alone" in note for note in model.notes)
    assert any("layer blur behind it has kernels that are mirror images" in note for note in model.notes)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["suffix.learned.weight"]
    assert in_place(path, layer="blur").layer == "suffix.blur"  # who asks for it gets it


def test_weights_in_loops_and_other_operators_are_named(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["g"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [value("k", kind=TensorProto.INT64), value("c", kind=TensorProto.BOOL), value("h", "n", 5)],
        [value("d", kind=TensorProto.BOOL), value("g", "n", 5)],
        [numpy_helper.from_array(number(5, 5), "w")],
    )
    nodes = [helper.make_node("Loop", ["three", "", "x"], ["y"], name="steps", body=body)]
    path = saved(tmp_path / "m.onnx", nodes, {"three": np.int64(3)}, [value("x", "n", 5)])
    with pytest.raises(UnsupportedModel, match="in the body of Loop 'steps', which runs several times"):
        in_place(path)
    nodes[0].output[0] = "z"
    nodes.append(helper.make_node("MatMul", ["z", "v"], ["y"], name="head"))
    path = saved(tmp_path / "m.onnx", nodes, {"three": np.int64(3), "v": number(5, 2)}, [value("x", "n", 5)])
    assert in_place(path).layer == "suffix.head"
    with pytest.raises(InvalidInput, match="its 1 layers: head. Here layers lie in the body of Loop 'steps'"):
        in_place(path, layer="g")
