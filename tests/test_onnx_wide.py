"""Graphs of every form: without a batch, with several inputs and outputs, with sizes that only the input tells."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from test_onnx import normal  # noqa: E402
from test_onnx_refusals import graph, node  # noqa: E402

import nnrepair  # noqa: E402
import nnrepair.onnx as nonnx  # noqa: E402
from benchmarks.readers.truth import session  # noqa: E402
from nnrepair.errors import InvalidInput, UnsupportedModel  # noqa: E402
from nnrepair.onnx import constants, operators  # noqa: E402
from nnrepair.onnx import nodes as needed  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs" / "onnx.md"


def model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: dict[str, tuple[int, Sequence[Any]]],
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> Path:
    """Write a graph with any inputs and outputs."""
    ends = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    for result in results:
        result.type.tensor_type.elem_type = TensorProto.FLOAT
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "graph", ends, results, stored)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return path


def expected(path: Path, **given: np.ndarray) -> np.ndarray:
    return np.asarray(session(onnx.load(str(path))).run(None, given)[0])


def agrees(made: torch.Tensor, wanted: np.ndarray) -> None:
    torch.testing.assert_close(made.detach(), torch.from_numpy(wanted), rtol=1e-5, atol=1e-5)


#: Graphs that mean one point at a time, with the shape of the file's input and what one point has.
SINGLE = {
    "a vector": ([node("MatMul", "x w", "h"), node("Add", "h b")], {"w": normal(4, 3), "b": normal(3)}, (4,), (4,)),
    "a column": (
        [node("MatMul", "w x", "h"), node("Add", "h b")], {"w": normal(3, 4), "b": normal(3, 1)}, (4, 1), (4, 1)
    ),
    "a shape with one point": (
        [node("Reshape", "x s", "h"), node("Gemm", "h w")],
        {"s": np.array([1, 4]), "w": normal(4, 3)},
        ("n", 2, 2),
        (2, 2),
    ),
    "softmax over a vector": ([node("Softmax", "x", axis=0)], {}, (4,), (4,)),
    "sum of all": ([node("ReduceSum", "x", keepdims=0)], {}, (3, 2), (3, 2)),
    "a constant beside it": ([node("Concat", "x c", axis=1)], {"c": normal(1, 3)}, (1, 4), (4,)),
    "a constant for every row": ([node("Add", "x c")], {"c": normal(2, 4)}, (2, 4), (2, 4)),
    "a bias for each row": ([node("Gemm", "x w b")], {"w": normal(4, 3), "b": normal(2, 1)}, (2, 4), (2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_graphs_for_a_single_point(name: str, tmp_path: Path) -> None:
    nodes, weights, shape, item = SINGLE[name]
    path = graph(tmp_path / "m.onnx", nodes, weights, shape, 17)
    loaded = nonnx.load(path)
    assert loaded.item_shape == item
    points = torch.randn(3, *item, generator=torch.Generator().manual_seed(0))
    made = loaded(points)
    bare = not loaded.inputs[0].batched
    for x, y in zip(points, made, strict=True):
        wanted = expected(path, x=(x if bare else x[None]).numpy())
        agrees(y if bare else y[None], wanted)
        if bare:  # as the file has it
            agrees(loaded(x), wanted)
    assert loaded(points[:0]).shape == (0, *made.shape[1:])


def test_a_batch_of_two_that_is_written_into_a_table_is_one_point(tmp_path: Path) -> None:
    nodes = [node("Shape", "x", "s"), node("Slice", "s zero one", "n"), node("Slice", "c zero n", "rows")]
    weights = {"zero": np.array([0]), "one": np.array([1]), "c": np.zeros((3, 4), np.float32)}
    path = graph(tmp_path / "m.onnx", [*nodes, node("Add", "x rows")], weights, (2, 4), 17)
    loaded, x = nonnx.load(path), torch.randn(5, 2, 4)
    for k, y in enumerate(loaded(x)):
        agrees(y, expected(path, x=x[k].numpy()))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_batch_of_one_is_lost_where_all_axes_of_size_one_are(axis: int, tmp_path: Path) -> None:
    nodes = [node("Squeeze", "x", "s"), node("Softmax", "s", axis=axis)]
    path = graph(tmp_path / "m.onnx", nodes, {}, (1, 2, 1, 3), 17)
    loaded, x = nonnx.load(path), torch.randn(4, 2, 1, 3)
    for k, y in enumerate(loaded(x)):
        agrees(y, expected(path, x=x[k : k + 1].numpy()))


def test_numbers_that_hardly_vary_are_standardised(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [node("MeanVarianceNormalization", "x", axes=[2])], {}, ("n", 2, 3), 17)
    x = 1 + 1e-3 * torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nonnx.load(path)(x), torch.from_numpy(expected(path, x=x.numpy())), rtol=2e-3, atol=1e-3)


def test_a_batch_is_put_in_front_of_a_vector_where_that_means_the_same(tmp_path: Path) -> None:
    layers = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v")]
    weights = {"w": normal(4, 3), "v": normal(3, 2)}
    assert not nonnx.load(graph(tmp_path / "m.onnx", layers, weights, (4,), 17)).alone
    summed = [*layers[:2], node("Softmax", "r", "s", axis=0), node("MatMul", "s v")]
    assert nonnx.load(graph(tmp_path / "m.onnx", summed, weights, (4,), 17)).alone


def test_a_graph_for_one_point_is_repaired(tmp_path: Path) -> None:
    nodes, weights, *_ = SINGLE["a column"]
    loaded = nonnx.load(
        graph(tmp_path / "m.onnx", [*nodes[:1], node("Add", "h b", "a"), node("Flatten", "a")], weights, (4, 1), 17)
    )
    x = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(0))
    assert loaded(x).shape == (2, 3, 1)
    wide = nn.Sequential(loaded, nn.Flatten())
    labels = (wide(x).argmax(1) + 1) % 3
    result = nnrepair.fix(wide, nnrepair.Edits(x, labels))
    assert torch.equal(result.model(x).argmax(1), labels)


def test_batches_of_other_axes_come_first(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("MatMul", "t w")]
    path = graph(tmp_path / "m.onnx", nodes, {"w": normal(4, 2)}, ("n", 3, 4), 17)
    x = torch.randn(5, 3, 4)
    agrees(nonnx.load(path)(x), expected(path, x=x.numpy()).transpose(1, 0, 2))


def tokens(path: Path) -> Path:
    nodes = [
        node("Gather", "table ids", "e"),
        node("Unsqueeze", "mask two", "m"),
        node("Mul", "e m", "k"),
        node("ReduceSum", "k one", "s", keepdims=0),
        node("Gemm", "s w b"),
    ]
    weights = {"table": normal(10, 4), "two": np.array([2]), "one": np.array([1]), "w": normal(4, 3), "b": normal(3)}
    inputs = {"ids": (TensorProto.INT64, ("n", "t")), "mask": (TensorProto.FLOAT, ("n", "t"))}
    return model(path, nodes, weights, inputs)


def test_several_inputs_are_arguments(tmp_path: Path) -> None:
    path = tokens(tmp_path / "m.onnx")
    loaded = nonnx.load(path)
    assert [(each.name, each.shape) for each in loaded.inputs] == [("ids", (None,)), ("mask", (None,))]
    ids, mask = torch.randint(-10, 10, (6, 5)), torch.rand(6, 5)
    wanted = expected(path, ids=ids.numpy(), mask=mask.numpy())
    agrees(loaded(ids, mask), wanted)
    agrees(loaded(mask=mask, ids=ids), wanted)
    with pytest.raises(InvalidInput, match=r"takes 2 inputs \(ids, mask\).*; given 1 in order, and none by name"):
        loaded(ids)
    with pytest.raises(InvalidInput, match="one row for each point"):
        loaded(ids, mask[:2])
    labels = (loaded(ids, mask).argmax(1) + 1) % 3
    result = nnrepair.fix(loaded, nnrepair.Edits((ids, mask), labels))
    assert torch.equal(result.model(ids, mask).argmax(1), labels)


def test_states_without_a_batch_belong_to_each_point(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("GRU", "t", "all last", hidden_size=3)]
    nodes += [node("Squeeze", "last zero", "s"), node("Mul", "s rate")]
    weights = {"w": normal(1, 9, 2), "r": normal(1, 9, 3), "b": normal(1, 18), "zero": np.array([0])}
    inputs = {"x": (1, ("n", 4, 2)), "h": (1, (1, "n", 3)), "rate": (1, ())}
    nodes[1].input[:] = ["t", "w", "r", "b", "", "h"]
    path = model(tmp_path / "m.onnx", nodes, weights, inputs)
    loaded = nonnx.load(path)
    assert loaded.alone and [each.batched for each in loaded.inputs] == [True, True, False]
    x, h, rate = torch.randn(3, 4, 2), torch.randn(3, 1, 3), torch.rand(3)
    for k, y in enumerate(loaded(x, h, rate)):
        agrees(y[None], expected(path, x=x[k : k + 1].numpy(), h=h[k : k + 1].numpy(), rate=rate[k].numpy()))


def test_an_output_or_any_value_is_chosen_by_name(tmp_path: Path) -> None:
    nodes = [
        node("Gemm", "x w", "scores"),
        node("ArgMax", "scores", "best", axis=1),
        node("NonZero", "scores", "found"),
    ]
    path = model(tmp_path / "m.onnx", nodes, {"w": normal(4, 3)}, {"x": (1, ("n", 4))}, ["best", "found"])
    x = torch.randn(5, 4)
    loaded = nonnx.load(path)
    assert loaded.output_names == ("best", "found") and "output='best' of 'best', 'found'" in repr(loaded)
    assert torch.equal(loaded(x), nonnx.load(path, output="scores")(x).argmax(1, keepdim=True))
    with pytest.raises(UnsupportedModel, match="NonZero 'found'"):
        nonnx.load(path, output="found")
    with pytest.raises(InvalidInput, match="has no value 'nowhere'. Its outputs are 'best', 'found'"):
        nonnx.load(path, output="nowhere")


def test_inputs_may_be_fixed_and_decide_what_runs(tmp_path: Path) -> None:
    branches = [
        helper.make_graph([helper.make_node(op, ["x"], [op])], op, [], [helper.make_tensor_value_info(op, 1, ["n", 3])])
        for op in ("Relu", "Neg")
    ]
    nodes = [node("Equal", "rate usual", "c"), node("If", "c", then_branch=branches[0], else_branch=branches[1])]
    inputs = {"x": (1, ("n", 3)), "rate": (TensorProto.INT64, ())}
    path = model(tmp_path / "m.onnx", nodes, {"usual": np.array(16000)}, inputs)
    x = torch.randn(4, 3)
    assert torch.equal(nonnx.load(path, fixed={"rate": 16000})(x), x.relu())
    assert torch.equal(nonnx.load(path, fixed={"rate": 8000})(x), -x)
    with pytest.raises(UnsupportedModel, match="which branch of the If 'it' is taken depends on the input"):
        nonnx.load(path)
    with pytest.raises(InvalidInput, match="has no input 'speed'. Its inputs are 'x', 'rate'"):
        nonnx.load(path, fixed={"speed": 1})


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64])
def test_the_least_whole_number_is_divided_by_minus_one(kind: int, tmp_path: Path) -> None:
    # Files in which NaN is cast to whole numbers do that; torch would end the process.
    nodes = [node("Cast", "x", "i", to=kind), node("Cast", "c", "d", to=kind), node("Div", "i d")]
    loaded = nonnx.load(graph(tmp_path / "m.onnx", nodes, {"c": np.array([-1.0, 2], np.float32)}, ("n", 2), 17))
    least = torch.iinfo(loaded(torch.zeros(1, 2)).dtype).min
    assert loaded(torch.tensor([[7.0, -7.0]])).tolist() == [[-7, -3]]
    assert loaded(torch.full((1, 2), torch.nan)).tolist() == [[least, least // 2]]


def test_compressed_files_are_read(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [node("Relu", "x")], {}, ("n", 4), 17)
    packed = tmp_path / "m.onnx.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert nonnx.load(packed)(-torch.ones(1, 4)).tolist() == [[0.0] * 4]
    packed.write_bytes(packed.read_bytes()[:30])
    with pytest.raises(InvalidInput, match="not an ONNX file, or it was cut short"):
        nonnx.load(packed)


def test_sizes_follow_the_input(tmp_path: Path) -> None:
    """x.view(n, t // 2, 2 * c), a mask as long as t, and a sum over a range."""
    nodes = [
        node("Shape", "x", "s"),
        *(node("Gather", f"s {k}", size, axis=0) for k, size in (("zero", "n"), ("one", "t"), ("two", "c"))),
        node("Div", "t two", "half"),
        node("Mul", "c two", "wide"),
        *(node("Unsqueeze", f"{name} axis", f"{name}1") for name in ("n", "half", "wide")),
        node("Concat", "n1 half1 wide1", "target", axis=0),
        node("Reshape", "x target", "r"),
        node("Range", "zero half one", "places"),
        node("Cast", "places", "f", to=TensorProto.FLOAT),
        node("Unsqueeze", "f one1", "column"),
        node("Add", "r column"),
    ]
    weights = {
        "zero": np.array(0),
        "one": np.array(1),
        "two": np.array(2),
        "axis": np.array([0]),
        "one1": np.array([1]),
    }
    path = graph(tmp_path / "m.onnx", nodes, weights, ("n", "t", 3), 17)
    loaded = nonnx.load(path)
    for steps in (2, 8):
        x = torch.randn(3, steps, 3)
        agrees(loaded(x), expected(path, x=x.numpy()))
    again = tmp_path / "again.onnx"
    nonnx.save(loaded, torch.zeros(2, 8, 3), again)
    x = torch.randn(5, 8, 3)
    agrees(nonnx.load(again)(x), loaded(x).numpy())


def test_casts_follow_the_precision_of_the_model(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "h", to=TensorProto.FLOAT), node("MatMul", "h w")]
    loaded = nonnx.load(graph(tmp_path / "m.onnx", nodes, {"w": normal(4, 3)}, ("n", 4), 17, TensorProto.UINT8))
    x = torch.randint(0, 255, (5, 4), dtype=torch.uint8)
    assert loaded(x).dtype == torch.float32 and loaded.double()(x).dtype == torch.float64


def test_a_cell_that_is_written_out_step_by_step_keeps_one_weight(tmp_path: Path) -> None:
    nodes = [node("Gemm", f"h{k} w b", f"h{k + 1}", transB=1) for k in range(40)] + [node("Relu", "h40")]
    nodes[0].input[0] = "x"
    path = graph(tmp_path / "m.onnx", nodes, {"w": normal(6, 6) / 6, "b": normal(6)}, ("n", 6), 17)
    loaded = nonnx.load(path)
    assert len([*loaded.parameters()]) == 2
    x = torch.randn(4, 6)
    agrees(loaded(x), expected(path, x=x.numpy()))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_weights_are_torch_s(direction: str, tmp_path: Path) -> None:
    many = 2 if direction == "bidirectional" else 1
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2])]
    nodes += [node("LSTM", "t w r b", "all last cell", hidden_size=3, direction=direction)]
    nodes += [node("Transpose", "all", perm=[2, 0, 1, 3])]
    weights = {"w": normal(many, 12, 2), "r": normal(many, 12, 3), "b": normal(many, 24)}
    path = graph(tmp_path / "m.onnx", nodes, weights, ("n", 4, 2), 17)
    loaded = nonnx.load(path)
    assert sum(isinstance(part, nn.LSTM) for part in loaded.modules()) == 1
    x = torch.randn(5, 4, 2)
    agrees(loaded(x), expected(path, x=x.numpy()))
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loaded(x).square().sum(), [*loaded.parameters()]))


def test_quantised_weights_become_floating_point(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", "q s z", "w"), node("Gemm", "x w")]
    weights = {"q": np.arange(12, dtype=np.int8).reshape(4, 3), "s": np.float32(0.05), "z": np.int8(3)}
    loaded = nonnx.load(graph(tmp_path / "m.onnx", nodes, weights, ("n", 4), 17))
    (linear,) = [part for part in loaded.modules() if isinstance(part, nn.Linear)]
    assert torch.equal(linear.weight.T, (torch.arange(12.0).reshape(4, 3) - 3) * np.float32(0.05))


def test_the_documentation_lists_all_operators() -> None:
    text = DOCS.read_text()
    listed = set(re.findall(r"`([\w.:]+)`", text.split("<!-- operators -->")[1]))
    assert listed == operators.HANDLERS.keys() | operators.SAME | constants.FOLDERS.keys() | needed.OWN


def test_a_weight_under_several_names_is_one_layer(tmp_path: Path) -> None:
    nodes = [
        node("Identity", "w", "again"),
        node("MatMul", "x w", "h"),
        node("Relu", "h", "r"),
        node("MatMul", "r again"),
    ]
    path = model(tmp_path / "m.onnx", nodes, {"w": normal(5, 5)}, {"x": (TensorProto.FLOAT, ["n", 5])})
    made, x = nonnx.load(path), normal(4, 5)
    assert len(list(made.parameters())) == 1
    agrees(made(torch.from_numpy(x)), expected(path, x=x))


def test_sizes_that_operations_need_to_know_are_those_of_an_example_and_are_told(tmp_path: Path) -> None:
    # A Reshape to a fixed number of columns: the product of the open sizes must be even, whatever they are alone.
    nodes = [node("Reshape", "x shape", "h"), node("ReduceMean", "h", axes=[2], keepdims=0)]
    weights = {"shape": np.array([-1, 2, 18])}
    path = model(tmp_path / "m.onnx", nodes, weights, {"x": (TensorProto.FLOAT, ["n", "height", "width"])})
    x = normal(4, 4, 9)
    made = nonnx.load(path, example=torch.from_numpy(x))
    assert made.item_shape == (4, 9) and "x (n, 4, 9): those of the points" in made.notes[0]
    agrees(made(torch.from_numpy(x)), expected(path, x=x))
    with pytest.raises(InvalidInput, match="example must hold points"):
        nonnx.load(path, example={"y": torch.zeros(1, 4, 9)})


def test_open_sizes_that_do_not_fit_are_refused_by_the_model(tmp_path: Path) -> None:
    nodes = [node("MaxPool", "x", kernel_shape=[2], dilations=[2])]
    loaded = nonnx.load(graph(tmp_path / "m.onnx", nodes, {}, ("n", 1, "width"), 17))
    assert loaded(torch.randn(2, 1, 3)).shape == (2, 1, 1)
    with pytest.raises(InvalidInput, match=r"these sizes \(x \(2, 1, 2\)\), which its file leaves open: "):
        loaded(torch.randn(2, 1, 2))


def test_a_size_that_was_tried_is_told(tmp_path: Path) -> None:
    path = model(
        tmp_path / "m.onnx", [node("MatMul", "x w")], {"w": normal(28, 3)}, {"x": (TensorProto.FLOAT, ["n", "k"])}
    )
    assert nonnx.load(path).notes == ["sizes that the file leaves open are x (n, 28): the first that it runs with"]
