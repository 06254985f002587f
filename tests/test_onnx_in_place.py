"""ONNX files of any operators, repaired in place: nothing but a layer's numbers changes, and onnxruntime judges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

import nnrepair
from nnrepair.errors import InvalidInput, PatchError, UnsupportedModel
from nnrepair.methods import MinimalNorm, OnGrid
from nnrepair.onnx import in_place
from nnrepair.onnx.inplace.module import InPlace
from nnrepair.onnx.inplace.splice import spliced

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)
W, V, B = (RANDOM.standard_normal(shape).astype(np.float32) for shape in ((5, 24), (24, 3), (3,)))
X, KEPT = (torch.from_numpy(RANDOM.standard_normal((n, 5)).astype(np.float32)) for n in (2, 20))
#: An unknown field of protobuf: number 1000, seven bytes.
UNKNOWN = b"\xc2\x3e\x07unknown"


def stored(array: Array, name: str, kind: str = "raw") -> TensorProto:
    """Return a tensor that keeps its numbers in one of the fields there are for them."""
    if kind == "raw":
        return numpy_helper.from_array(array, name)
    return helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel())


def network(
    head: list[onnx.NodeProto] | None = None,
    tensors: list[TensorProto] | None = None,
    shape: tuple[Any, ...] = ("n", 5),
    opset: int = 17,
    **made: Any,
) -> onnx.ModelProto:
    """Return x -> tanh(x W), an operator that the package does not read, and a head that ends in y."""
    head = [helper.make_node("Gemm", ["t", "v", "b"], ["y"], name="head")] if head is None else head
    tensors = [stored(V, "v"), stored(B, "b")] if tensors is None else tensors
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gelu", ["h"], ["t"], name="contributed", domain="com.microsoft"),
        *head,
    ]
    known = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    given = made.pop("inputs", [known])
    outputs = made.pop("outputs", [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    graph = helper.make_graph(nodes, "g", given, outputs, [stored(W, "w"), *tensors])
    sets = [
        helper.make_opsetid("", opset),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("ai.onnx.ml", 3),
    ]
    return helper.make_model(graph, opset_imports=sets, ir_version=made.pop("ir_version", 8), **made)


def written(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString() + UNKNOWN)
    return path


def run(path: Path, x: Tensor) -> Tensor:
    """Return the first output (n, ...), of points that run together."""
    session = onnxruntime.InferenceSession(path.read_bytes() if not path.with_suffix(".bin").is_file() else str(path))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def repaired(path: Path, x: Tensor = X, kept: Tensor = KEPT, **options: Any) -> tuple[Any, Tensor]:
    """Return the result of a repair in which the runner-up wins, and the labels."""
    model = in_place(path)
    labels = model(x).topk(2, 1).indices[:, 1]
    return nnrepair.fix(model, (x, labels), kept, **options), labels


def differing(before: Path, after: Path) -> list[str]:
    """Return the names of constants that differ; all else must be the same, byte by byte."""
    a, b = (onnx.load(path, load_external_data=False) for path in (before, after))
    names = []
    pairs = [*zip(a.graph.initializer, b.graph.initializer, strict=True)]
    constants = [[node for node in proto.graph.node if node.op_type == "Constant"] for proto in (a, b)]
    pairs += [(one.attribute[0].t, two.attribute[0].t) for one, two in zip(*constants, strict=True)]
    for one, two in pairs:
        if one.SerializeToString() != two.SerializeToString():
            names.append(one.name)
            assert [f.name for f, _ in one.ListFields()] == [f.name for f, _ in two.ListFields()] or one.external_data
            two.CopyFrom(one)
    assert a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)
    assert after.read_bytes().endswith(UNKNOWN)
    return names


def _halved() -> onnx.ModelProto:
    head = [
        helper.make_node("Cast", ["v"], ["v32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["t", "v32"], ["y"]),
    ]
    return network(head, [stored(V.astype(np.float16), "v")])


def _constants() -> onnx.ModelProto:
    made = [helper.make_node("Constant", [], [name], value=stored(a, f"c{name}")) for name, a in (("v", V), ("b", B))]
    return network([*made, helper.make_node("Gemm", ["t", "v", "b"], ["y"])], [])


def _turned() -> onnx.ModelProto:
    head = [
        helper.make_node("Transpose", ["v"], ["vt"]),
        helper.make_node("Identity", ["vt"], ["vi"]),
        helper.make_node("MatMul", ["t", "vi"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    return network(head, [stored(V.T.copy(), "v"), stored(B, "b")])


def _named() -> onnx.ModelProto:
    head = [helper.make_node("Gemm", ["t", "Gewichte/ü", "偏差:0"], ["y"], name="Kopf Ω", transB=1)]
    return network(head, [stored(V.T.copy(), "Gewichte/ü", "list"), stored(B, "偏差:0", "list")])


def _defaults() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 5))]
    inputs += [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("w", (5, 24)), ("v", (24, 3)), ("b", (3,)))
    ]
    return network(inputs=inputs, ir_version=3)


KINDS: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "raw": (network, ["v", "b"]),
    "typed fields, transposed, names in any script": (_named, ["Gewichte/ü", "偏差:0"]),
    "constants of nodes": (_constants, ["cv", "cb"]),
    "turned before it is used": (_turned, ["v", "b"]),
    "half precision, cast": (_halved, ["v"]),
    "inputs with defaults": (_defaults, ["v", "b"]),
    "opset 7": (lambda: network(opset=7), ["v", "b"]),
    "opset 22": (lambda: network(opset=22, ir_version=10), ["v", "b"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_numbers_of_the_layer_change_and_onnxruntime_finds_every_edit_repaired(
    kind: str, tmp_path: Path
) -> None:
    make, names = KINDS[kind]
    path, out = written(tmp_path, make()), tmp_path / "out.onnx"
    method = OnGrid(MinimalNorm()) if "half" in kind else "auto"
    result, labels = repaired(path, method=method)
    assert result.model.save(out) == out
    assert set(differing(path, out)) == set(names)
    assert torch.equal(run(out, X).argmax(1), labels)
    assert torch.equal(run(out, KEPT).argmax(1), run(path, KEPT).argmax(1))


def test_a_patch_goes_on_and_comes_off_again_bit_by_bit(tmp_path: Path) -> None:
    path, out, back = written(tmp_path, network()), tmp_path / "out.onnx", tmp_path / "back.onnx"
    result, _ = repaired(path)
    result.model.save(out)
    patch = nnrepair.Patch.load(result.save_patch(tmp_path / "fix.safetensors"))
    applied: Any = patch.apply(in_place(path))
    applied.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    reverted: Any = patch.revert(in_place(out))
    reverted.save(back)
    assert back.read_bytes() == path.read_bytes()
    with pytest.raises(PatchError):
        patch.apply(in_place(out))
    other = written(tmp_path, network([helper.make_node("Gemm", ["t", "v", "b"], ["y"], name="head", alpha=0.5)]))
    with pytest.raises(PatchError):  # the same numbers, in another graph
        patch.apply(in_place(other))


def test_weights_in_a_file_beside_it_stay_there_or_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="model.bin", size_threshold=0)
    path.write_bytes(path.read_bytes() + UNKNOWN)
    data = (tmp_path / "model.bin").read_bytes()
    result, labels = repaired(path)
    here, there = tmp_path / "out.onnx", tmp_path / "other" / "out.onnx"
    there.parent.mkdir()
    for out in (here, there):
        result.model.save(out)
        assert set(differing(path, out)) == {"v", "b"}
        assert (out.parent / "model.bin").read_bytes() == data
        assert torch.equal(torch.from_numpy(_session(out).run(None, {"x": X.numpy()})[0]).argmax(1), labels)
    (there.parent / "model.bin").write_bytes(b"other" * 9)
    with pytest.raises(InvalidInput, match="another file lies"):
        result.model.save(there)


def _session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (4, 5), (None, None)], ids=["none", "one", "four", "open"])
def test_points_run_as_the_file_allows(shape: tuple[int, ...], tmp_path: Path) -> None:
    head = [
        helper.make_node("MatMul", ["t", "v"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"], axis=len(shape) - 1),
    ]
    path = written(tmp_path, network(head, shape=shape))
    model = in_place(path)
    expected = torch.nn.functional.gelu(KEPT @ torch.from_numpy(W)) @ torch.from_numpy(V)
    assert torch.allclose(model(KEPT), expected.softmax(1), atol=1e-5)
    assert model(KEPT[:0]).shape == (0, 3)
    result, labels = repaired(path)
    out = result.model.save(tmp_path / "out.onnx")
    assert torch.equal(in_place(out)(X).argmax(1), labels)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("n", 5)) for n in ("x", "z")]
    outputs = [helper.make_tensor_value_info("k", TensorProto.INT64, None)]
    outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "s")]
    head = [
        helper.make_node("MatMul", ["z", "w"], ["hz"]),
        helper.make_node("Add", ["t", "hz"], ["both"]),
        helper.make_node("Gemm", ["both", "v", "b"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["k"], axis=1),
        helper.make_node("Gemm", ["both", "u"], ["s"], name="second"),
    ]
    tensors = [stored(V, "v"), stored(B, "b"), stored(V[:, :2].copy(), "u")]
    path = written(tmp_path, network(head, tensors, inputs=inputs, outputs=outputs))
    for name in ("y", "s"):
        model = in_place(path, output=name)
        labels = model(X, -X).topk(2, 1).indices[:, 1]
        result = nnrepair.fix(model, ({"x": X, "z": -X}, labels), {"x": KEPT, "z": KEPT})
        out = result.model.save(tmp_path / "out.onnx")
        found = _session(out).run([name], {"x": X.numpy(), "z": -X.numpy()})[0]
        assert found.argmax(1).tolist() == labels.tolist()
    with pytest.raises(UnsupportedModel, match="is used 2 times"):
        in_place(path, layer="first")
    with pytest.raises(InvalidInput, match="no layer 'secnd'. Did you mean 'second'"):
        in_place(path, output="s", layer="secnd")
    with pytest.raises(InvalidInput, match="computes no 'yy'"):
        in_place(path, output="yy")


@pytest.mark.parametrize("layer", ["first", "w", "h"])
def test_a_layer_before_the_last(layer: str, tmp_path: Path) -> None:
    head = [helper.make_node("Relu", ["h"], ["r"]), helper.make_node("Gemm", ["r", "v", "b"], ["y"])]
    path = written(tmp_path, network(head))
    model = in_place(path, layer=layer)
    labels = model(X).topk(2, 1).indices[:, 1]
    result = nnrepair.fix(model, (X, labels), KEPT, method=MinimalNorm(layer=model.layer))
    out = result.model.save(tmp_path / "out.onnx")
    assert differing(path, out) == ["w"]
    assert torch.equal(run(out, X).argmax(1), labels)


@pytest.mark.parametrize("cancels", [True, False])
def test_what_rounding_decides_behind_a_layer_is_refused_for_that(
    cancels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = InPlace._before

    def doubled(model: InPlace, inputs: Any) -> tuple[list[Tensor], Tensor]:  # which sum comes first differs by machine
        crossing, y = before(model, inputs)
        return crossing, 2 * y

    monkeypatch.setattr(InPlace, "_before", doubled)
    big = (1e9 * V).astype(np.float32)
    both = np.concatenate([big, np.nextafter(-big, np.float32(0)) if cancels else big])
    head = [helper.make_node("Concat", ["t", "t"], ["tt"], axis=1), helper.make_node("MatMul", ["tt", "v"], ["y"])]
    path = written(tmp_path, network(head, [stored(both, "v")]))
    with pytest.raises(UnsupportedModel, match="Rounding decides what follows" if cancels else "another function"):
        in_place(path)(X)


def test_a_layer_that_shares_its_weight_keeps_it(tmp_path: Path) -> None:
    head = [
        helper.make_node("MatMul", ["t", "q"], ["m"]),
        helper.make_node("Gelu", ["m"], ["g"], domain="com.microsoft"),
        helper.make_node("Gemm", ["g", "q", "p"], ["y"], name="again"),
    ]
    q, p = RANDOM.standard_normal((24, 24)).astype(np.float32), np.zeros(24, np.float32)
    path = written(tmp_path, network(head, [stored(q, "q"), stored(p, "p")]))
    model = in_place(path, layer="again")
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["suffix.again.bias"]
    assert "'q' is used 2 times" in model.notes[0]


def test_a_quantised_file_is_repaired_on_its_grid(tmp_path: Path) -> None:
    scale = np.abs(V).max(0) / 127
    head = [
        helper.make_node("QuantizeLinear", ["t", "st", "zt"], ["tq"]),
        helper.make_node("DequantizeLinear", ["tq", "st", "zt"], ["td"]),
        helper.make_node("DequantizeLinear", ["vq", "sv", "zv"], ["vd"], axis=1),
        helper.make_node("Gemm", ["td", "vd", "b"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "sy", "zt"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "sy", "zt"], ["y"]),
    ]
    numbers = {
        "st": np.float32(0.05),
        "zt": np.uint8(100),
        "sv": scale,
        "zv": np.zeros(3, np.int8),
        "sy": np.float32(0.1),
    }
    tensors = [stored(np.asarray(array), name) for name, array in numbers.items()]
    tensors += [stored(np.rint(V / scale).astype(np.int8), "vq"), stored(B, "b")]
    path = written(tmp_path, network(head, tensors))
    result, labels = repaired(path, kept=KEPT[:10], method=OnGrid())
    out = result.model.save(tmp_path / "out.onnx")
    assert set(differing(path, out)) == {"vq", "b"}
    assert torch.equal(run(out, X).argmax(1), labels)
    with pytest.raises(InvalidInput, match="lie on a grid"):
        repaired(path)[0].model.save(tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()


def test_what_cannot_be_repaired_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, network([helper.make_node("ArgMax", ["t"], ["y"], axis=1)], outputs=[_integers()]))
    with pytest.raises(UnsupportedModel, match="No output of the model"):
        in_place(path)
    path = written(tmp_path, network([helper.make_node("Gelu", ["h"], ["y"], domain="nobody.knows")]))
    with pytest.raises(UnsupportedModel, match="onnxruntime cannot run"):
        in_place(path)
    head = [
        helper.make_node("MatMul", ["t", "v"], ["m"]),
        helper.make_node("Binarizer", ["m"], ["y"], domain="ai.onnx.ml"),
    ]
    path = written(tmp_path, network(head))
    with pytest.raises(UnsupportedModel, match=r"(?s)ai.onnx.ml::Binarizer.*output before that: m"):
        in_place(path)
    model = in_place(path, output="m")
    path.write_bytes(path.read_bytes() + UNKNOWN)
    with pytest.raises(InvalidInput, match="no longer the file"):
        model.save(tmp_path / "out.onnx")
    with pytest.raises(InvalidInput, match=r"takes 'x' of shape \(n, 5\), given \(2, 4\)"):
        model(torch.zeros(2, 4))
    with pytest.raises(InvalidInput, match="There is no file"):
        in_place(tmp_path / "missing.onnx")
    for cut in (1, 40, 200):
        path.write_bytes(network().SerializeToString()[:-cut])
        with pytest.raises((InvalidInput, UnsupportedModel)):
            in_place(path)


def _integers() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("y", TensorProto.INT64, None)


def test_a_judge_can_refuse_the_file(tmp_path: Path) -> None:
    model = in_place(written(tmp_path, network()))

    def refuse(written: torch.nn.Module) -> None:
        assert torch.allclose(written(X), model(X), atol=1e-5)
        raise UnsupportedModel("no")

    with pytest.raises(UnsupportedModel, match="no"):
        model.save(tmp_path / "out.onnx", refuse)
    assert not (tmp_path / "out.onnx").exists()
    model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_splicing_leaves_all_other_bytes() -> None:
    content = UNKNOWN + network().SerializeToString() + UNKNOWN
    assert spliced(content, {"v": V}) == content
    made = spliced(content, {"v": 2 * V})
    assert len(made) == len(content)
    assert sum(a != b for a, b in zip(content, made, strict=True)) <= V.nbytes
    with pytest.raises(KeyError):
        spliced(content, {"none": V})


def test_a_size_that_is_left_open_is_not_taken_for_another_that_fits(tmp_path: Path) -> None:
    # Channels and length behind the unknown operator are both open: 8 x 8 could be read as well.
    first, last = RANDOM.standard_normal((8, 5, 1)), RANDOM.standard_normal((3, 8, 1))
    head = [
        helper.make_node("Conv", ["x", "first"], ["c"]),
        helper.make_node("Gelu", ["c"], ["g"], domain="com.microsoft"),
        helper.make_node("Conv", ["g", "last"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["y"], axes=[2], keepdims=0),
    ]
    tensors = [stored(w.astype(np.float32), name) for w, name in ((first, "first"), (last, "last"))]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 5, "length"))
    proto = network(head, tensors, inputs=[x])
    del proto.graph.node[:2], proto.graph.initializer[:1]
    path, sounds = written(tmp_path, proto), torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0))
    model = in_place(path, example=sounds)
    assert model(sounds).shape == (3, 3) and torch.allclose(model(sounds), run(path, sounds), atol=1e-5)
    result = nnrepair.fix(model, (sounds[:2], model(sounds[:2]).topk(2, 1).indices[:, 1]), sounds[2:])
    assert result.outcome.ok and differing(path, result.model.save(tmp_path / "fixed.onnx")) == ["last"]
