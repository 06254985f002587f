"""The command line on ONNX files that can be read in no other way than in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nnrepair.cli import main

RANDOM = np.random.default_rng(1)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Two inputs, an operator that the package does not read, and a head with zeros in it."""
    numbers = {
        "w": RANDOM.standard_normal((4, 20)),
        "v": RANDOM.standard_normal((20, 3)),
        "b": RANDOM.standard_normal(3),
    }
    numbers["v"][RANDOM.random((20, 3)) < 0.3] = 0
    nodes = [
        helper.make_node("Add", ["a", "c"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Normalizer", ["h"], ["t"], domain="ai.onnx.ml", norm="L2"),
        helper.make_node("Gemm", ["t", "v", "b"], ["y"], name="head"),
        helper.make_node("Softmax", ["y"], ["p"], axis=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", 4)) for name in "ac"]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in numbers.items()]
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)]
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends, outputs, tensors), opset_imports=sets), path)
    a, c = RANDOM.standard_normal((2, 25, 4)).astype(np.float32)
    (p,) = onnxruntime.InferenceSession(str(path)).run(None, {"a": a[:1], "c": c[:1]})
    np.savez(tmp_path / "edits.npz", a=a[:1], c=c[:1], labels=p.argsort(1)[:, 1])  # the second best is to win
    np.savez(tmp_path / "kept.npz", a=a[1:], c=c[1:])
    return path


@pytest.fixture
def call(network: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def called(*words: str) -> tuple[int, str]:
        folder = network.parent
        code = main([str(folder / word) if "." in word and "-" not in word else word for word in words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return called


def test_repair_apply_and_revert(network: Path, call: Callable[..., tuple[int, str]]) -> None:
    told = "--edits edits.npz --locality kept.npz --out out.onnx --patch fix.safetensors --report report.json"
    code, said = call("fix", "model.onnx", *told.split(), "--output", "y", "--keep-zeros")
    assert code == 0, said
    assert "onnxruntime runs what comes before layer suffix.head (--layer v names it), torch up to y" in said
    again = call("fix", "model.onnx", *["--edits", "edits.npz", "--out", "named.onnx", "--output", "y", "--layer", "v"])
    assert again[0] == 0, again[1]
    assert "the edit holds, 24 of 24 points to keep hold" in said
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(network.parent / name).graph.initializer}
        for name in ("model.onnx", "out.onnx")
    )
    assert ((before["v"] == 0) == (after["v"] == 0)).all()
    assert (before["w"] == after["w"]).all()
    assert (before["v"] != after["v"]).any()
    assert call("patch", "apply", "fix.safetensors", "model.onnx", "--out", "again.onnx")[0] == 0
    assert call("patch", "revert", "fix.safetensors", "out.onnx", "--out", "back.onnx")[0] == 0
    folder = network.parent
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()
    assert (folder / "back.onnx").read_bytes() == network.read_bytes()
    code, said = call("patch", "apply", "fix.safetensors", "out.onnx", "--out", "no.onnx")
    assert code == 3
    assert "This patch was made for" in said


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--layer", "haed"), "no layer 'haed'. Did you mean 'head'?"),
        (("--output", "z"), "computes no 'z'"),
        (("--method", "grace", "--layer", "head"), "read in place, so that only other numbers"),
    ],
)
def test_what_is_wrong_is_said(words: tuple[str, ...], wrong: str, call: Callable[..., tuple[int, str]]) -> None:
    told = "--edits edits.npz --out out.onnx"
    code, said = call("fix", "model.onnx", *told.split(), *words)
    assert code == 3
    assert wrong in said


def test_arguments_that_the_file_does_not_have(network: Path, call: Callable[..., tuple[int, str]]) -> None:
    np.savez(network.parent / "edits.npz", a=np.zeros((1, 4), np.float32), labels=[0])
    code, said = call("fix", "model.onnx", "--edits", "edits.npz", "--out", "out.onnx")
    assert code == 3
    assert "The model takes 'a', 'c', got 'a'" in said


def test_edits_are_checked_in_a_file_of_any_operators(network: Path, call: Callable[..., tuple[int, str]]) -> None:
    assert call("fix", "model.onnx", "--edits", "edits.npz", "--out", "out.onnx", "--page", "fix.html", "--quiet") == (
        0,
        "",
    )
    code, said = call("check-edits", "out.onnx", "edits.npz")
    assert (code, "edits.npz: 1 of 1 hold" in said) == (0, True)
    page = (network.parent / "fix.html").read_text()
    assert "nnrepair check-edits" in page
    assert "suffix.head.weight" in page
    kept = np.load(network.parent / "kept.npz")
    np.savez(network.parent / "wrong.npz", **kept, labels=np.zeros(24, int))
    code, said = call("check-edits", "out.onnx", "edits.npz", "wrong.npz")
    assert (code, "FAILED" in said, "of 24 hold; not" in said) == (1, True, True)
    assert call("check-edits", "out.onnx", "wrong.npz", "--at-least", "0", "--quiet") == (0, "")
    assert call("check-edits", "out.onnx", "wrong.npz", "--at-least", "2")[0] == 3
    assert call("check-edits", "none.onnx", "wrong.npz")[0] == 3


def test_kept_points_of_which_none_is_right_today(network: Path, call: Callable[..., tuple[int, str]]) -> None:
    """They bind nothing, and there is nothing of them to count."""
    kept = dict(np.load(network.parent / "kept.npz"))
    (p,) = onnxruntime.InferenceSession(str(network)).run(["p"], kept)
    np.savez(network.parent / "wrong.npz", **kept, labels=p.argmin(1))
    code, said = call("fix", "model.onnx", *["--edits", "edits.npz", "--locality", "wrong.npz", "--out", "out.onnx"])
    assert code == 0, said
    assert "the edit holds" in said and "points to keep" not in said.split("onnxruntime, ")[1]
