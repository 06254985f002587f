from __future__ import annotations

import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnxruntime

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import nnrepair.onnx as nonnx  # noqa: E402
from nnrepair.errors import InvalidInput, NNRepairError, UnsupportedModel  # noqa: E402

DataDir = Callable[..., Path]
RNG = np.random.default_rng(0)


def run(path: Path, x: Tensor) -> Tensor:
    """Run a file in onnxruntime, one input at a time where it fixes the batch to 1."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    parts = x.split(1) if given.shape[0] == 1 else [x]
    return torch.cat([torch.from_numpy(session.run(None, {given.name: part.numpy()})[0]) for part in parts])


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: Sequence[int | str],
    outputs: Sequence[int | str],
    opset: int = 17,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.BatchNorm2d(4)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.cat([self.pool(y), self.pool(x)], 1).flatten(1))


class ViewNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 6), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x.permute(0, 2, 3, 1).reshape(x.size(0), -1) - 0.5)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=1),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(4),  # not after a convolution: stays an operation of its own
        nn.Conv2d(4, 4, 2, groups=2),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
        nn.LeakyReLU(0.2),
        nn.Linear(8, 3),
        nn.Softmax(-1),
    )


def settle(model: nn.Module) -> nn.Module:
    """Give batch norms statistics that are not the trivial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with torch.no_grad():
            for _ in range(3):
                model.train()(torch.randn(16, 1, 8, 8) * 2 + 1)
    return model.eval()


MODELS = {"mlp": mlp, "cnn": cnn, "residual": Residual, "view": ViewNet}


@pytest.fixture(params=MODELS)
def trip(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = settle(MODELS[request.param]())
    nonnx.save(model, torch.zeros(1, 1, 8, 8), tmp_path / "model.onnx")
    return model, tmp_path / "model.onnx"


def test_round_trip(trip: tuple[nn.Module, Path]) -> None:
    model, path = trip
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    loaded = nonnx.load(path)
    with torch.no_grad():
        for n in (7, 1):
            torch.testing.assert_close(loaded(x[:n]), model(x[:n]), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(run(path, x), model(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded(x.flatten(1)), loaded(x), rtol=0, atol=0)
    assert not loaded.training
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]

    copied = copy.deepcopy(loaded)
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert not torch.equal(next(copied.parameters()), next(loaded.parameters()))
    copied.load_state_dict(loaded.state_dict())
    with torch.no_grad():
        assert torch.equal(copied(x), loaded(x))
        double = copied.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), model(x), rtol=1e-5, atol=1e-5)

    loss = loaded(x).square().sum()
    grads = torch.autograd.grad(loss, list(loaded.parameters()))
    assert all(g.isfinite().all() for g in grads)
    nonnx.save(loaded, x, path.parent / "again.onnx")
    with torch.no_grad():
        torch.testing.assert_close(nonnx.load(path.parent / "again.onnx")(x), model(x), rtol=1e-6, atol=1e-6)


def test_layers_keep_their_names(tmp_path: Path) -> None:
    model = Residual().eval()
    nonnx.save(model, torch.zeros(2, 1, 8, 8), tmp_path / "model.onnx")
    loaded = nonnx.load(tmp_path / "model.onnx")
    layers = {name: type(m) for name, m in loaded.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert layers == {"stem.0": nn.Conv2d, "conv1": nn.Conv2d, "conv2": nn.Conv2d, "fc": nn.Linear}
    assert torch.equal(loaded.get_parameter("fc.weight"), model.fc.weight)


def test_saving_is_quiet_and_leaves_the_model_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = cnn().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    example = torch.zeros(1, 1, 8, 8)
    nonnx.save(model, example, tmp_path / "model.onnx")
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_threads_may_save_at_the_same_time(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: nonnx.save(model, torch.zeros(1, 4), tmp_path / "model.onnx"), range(3)))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert torch.equal(next(nonnx.load(tmp_path / "model.onnx").parameters()), model.weight)


def test_double_precision_round_trip(tmp_path: Path) -> None:
    model = mlp().double().eval()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    nonnx.save(model, x, tmp_path / "model.onnx")
    torch.testing.assert_close(nonnx.load(tmp_path / "model.onnx")(x), model(x), rtol=1e-12, atol=1e-12)


def test_saving_refuses_what_cannot_be_written(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 5) * 2

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    with pytest.raises(UnsupportedModel, match="one batch size only: input and output"):
        nonnx.save(Fixed(), torch.zeros(2, 5), target)
    with pytest.raises(UnsupportedModel, match="could not be exported"):
        nonnx.save(Branching(), torch.zeros(2, 5), target)
    assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InvalidInput, match=r"given str: call save\(model, example_input, path\)"):
        nonnx.save(mlp(), str(target), torch.zeros(1, 1, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="n >= 1"):
        nonnx.save(mlp(), torch.zeros(0, 1, 8, 8), target)
    with pytest.raises(InvalidInput, match="no folder"):
        nonnx.save(mlp(), torch.zeros(1, 1, 8, 8), tmp_path / "nowhere" / "model.onnx")


@pytest.mark.data
@pytest.mark.parametrize("net", ["1_1", "2_9", "5_3"])
def test_acas(data_dir: DataDir, net: str) -> None:
    file = f"acasxu/onnx/ACASXU_run2a_{net}_batch_2000.onnx"
    path = data_dir(file) / file
    model = nonnx.load(path)
    x = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(y, run(path, x.reshape(50, 1, 1, 5)), rtol=1e-5, atol=1e-5)
        assert torch.equal(model(x.reshape(50, 1, 1, 5)), y)
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert linear == [f"Operation_{k}" for k in range(1, 7)] + ["linear_7"]
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Linear))
    assert sum(p.numel() for p in model.parameters()) == 13_305
    with pytest.raises(InvalidInput, match=r"\(n, 1, 1, 5\), given \(3, 4\)"):
        model(torch.zeros(3, 4))


def one(op: str, *inputs: str, **attributes: object) -> list[onnx.NodeProto]:
    return [helper.make_node(op, ["x", *inputs], ["y"], name="it", **attributes)]


IMAGE = ("n", 3, 7, 6)
SINGLE = [
    ("conv", one("Conv", "w", pads=[1, 0, 2, 1], strides=[2, 1]), {"w": normal(4, 3, 3, 2)}, IMAGE, 17),
    ("conv_bias", one("Conv", "w", "b", auto_pad="VALID"), {"w": normal(4, 3, 2, 3), "b": normal(4)}, IMAGE, 17),
    ("conv_dilated", one("Conv", "w", dilations=[2, 1], group=3), {"w": normal(3, 1, 3, 3)}, IMAGE, 17),
    ("conv1d", one("Conv", "w"), {"w": normal(2, 3, 3)}, ("n", 3, 9), 17),
    ("max_uneven", one("MaxPool", kernel_shape=[3, 2], pads=[0, 1, 2, 0], strides=[2, 2]), {}, IMAGE, 17),
    ("max_ceil", one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), {}, IMAGE, 17),
    ("avg_counted", one("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 1, 0], count_include_pad=1), {}, IMAGE, 17),
    ("avg", one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 1]), {}, IMAGE, 17),
    ("global", one("GlobalAveragePool"), {}, IMAGE, 17),
    ("mean", one("ReduceMean", axes=[2, -1], keepdims=0), {}, IMAGE, 17),
    ("mean18", one("ReduceMean", "a"), {"a": np.array([1])}, IMAGE, 18),
    (
        "batch_norm",
        one("BatchNormalization", "s", "b", "m", "v", epsilon=1e-3),
        {"s": normal(3), "b": normal(3), "m": normal(3), "v": np.abs(normal(3))},
        IMAGE,
        17,
    ),
    ("transpose", one("Transpose", perm=[0, 2, 3, 1]), {}, IMAGE, 17),
    ("reshape", one("Reshape", "s"), {"s": np.array([-1, 18, 7])}, IMAGE, 17),
    ("reshape_zero", one("Reshape", "s"), {"s": np.array([0, 0, -1])}, IMAGE, 17),
    ("reshape_one", one("Reshape", "s"), {"s": np.array([1, 21, 6])}, (1, 3, 7, 6), 17),
    ("flatten", one("Flatten"), {}, IMAGE, 17),
    ("reshape_fixed", one("Reshape", "s"), {"s": np.array([4, -1])}, (4, 3, 7, 6), 17),
    ("softmax11", one("Softmax"), {}, ("n", 6), 11),
    ("softmax13", one("Softmax", axis=1), {}, IMAGE, 13),
    ("log_softmax", one("LogSoftmax"), {}, IMAGE, 13),
    ("clip", one("Clip", "", "high"), {"high": np.float32(0.5)}, IMAGE, 17),
    ("clip10", one("Clip", min=0.0, max=0.25), {}, IMAGE, 10),
    ("prelu", one("PRelu", "s"), {"s": normal(3, 1, 1)}, IMAGE, 17),
    ("prelu_one", one("PRelu", "s"), {"s": normal(1)}, IMAGE, 9),
    ("abs", one("Abs"), {}, IMAGE, 13),
    ("neg", one("Neg"), {}, IMAGE, 13),
    ("max", one("Max", "c", "d"), {"c": normal(3, 1, 1), "d": normal(1)}, IMAGE, 13),
    ("min", [helper.make_node("Min", ["c", "x"], ["y"])], {"c": normal(6)}, IMAGE, 17),
    ("hard_swish", one("HardSwish"), {}, IMAGE, 14),
    ("hard_sigmoid", one("HardSigmoid"), {}, IMAGE, 17),
    ("elu", one("Elu", alpha=0.5), {}, IMAGE, 17),
    ("sub", one("Sub", "c"), {"c": normal(3, 1, 1)}, IMAGE, 17),
    ("div", one("Div", "c"), {"c": normal(1, 3, 1, 1) + 4}, IMAGE, 17),
    ("left", [helper.make_node("Sub", ["c", "x"], ["y"])], {"c": normal(6)}, IMAGE, 17),
    ("square", [helper.make_node("Mul", ["x", "x"], ["y"])], {}, IMAGE, 17),
    ("matmul", one("MatMul", "w"), {"w": normal(6, 4)}, IMAGE, 17),
    ("gemm", one("Gemm", "w", "c", alpha=0.5, beta=2.0), {"w": normal(4, 5), "c": normal(1, 5)}, ("n", 4), 17),
    ("gemm_scalar", one("Gemm", "w", "c", transB=1), {"w": normal(5, 4), "c": normal(1)}, ("n", 4), 17),
    ("zero", one("Add", "c"), {"c": np.zeros((1, 3, 1, 1), np.float32)}, IMAGE, 17),
]


@pytest.mark.parametrize(("nodes", "weights", "shape", "opset"), [c[1:] for c in SINGLE], ids=[c[0] for c in SINGLE])
def test_single_operators_agree_with_onnxruntime(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: Sequence[int | str], opset: int
) -> None:
    x = torch.randn(4, *shape[1:], generator=torch.Generator().manual_seed(0))
    bare = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, shape)], [helper.make_tensor_value_info("y", 1, None)]
    )
    bare.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    model = helper.make_model(bare, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
    model.graph.output[0].CopyFrom(inferred)
    path = tmp_path / "one.onnx"
    path.write_bytes(model.SerializeToString())
    with torch.no_grad():
        torch.testing.assert_close(nonnx.load(path)(x), run(path, x), rtol=1e-5, atol=1e-5)


def test_a_matmul_and_its_bias_become_one_linear(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"], name="/net/a/MatMul"),
        helper.make_node("Add", ["b1", "m1"], ["a1"], name="/net/a/Add"),
        helper.make_node("Relu", ["a1"], ["r"], name="/net/Relu"),
        helper.make_node("MatMul", ["r", "w2"], ["m2"], name="second"),
        helper.make_node("Add", ["m2", "m2"], ["twice"]),
        helper.make_node("Add", ["twice", "b1"], ["y"], name="shift"),
    ]
    weights = {"w1": normal(3, 4), "b1": normal(4), "w2": normal(4, 4)}
    path = write(tmp_path / "m.onnx", nodes, weights, ["n", 3], ["n", 4])
    model = nonnx.load(path)
    x = torch.randn(6, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), run(path, x), rtol=1e-5, atol=1e-5)
    assert isinstance(model.get_submodule("net.a"), nn.Linear) and model.get_submodule("net.a").bias is not None
    assert isinstance(model.second, nn.Linear) and model.second.bias is None
    assert torch.equal(model.b1.value, torch.from_numpy(weights["b1"]))


def test_a_product_that_is_read_twice_keeps_its_bias_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Identity", ["m"], ["same"]),
        helper.make_node("Add", ["same", "b"], ["a"]),
        helper.make_node("Relu", ["same"], ["r"]),
        helper.make_node("Add", ["a", "r"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"w": normal(3, 4), "b": normal(4)}, ["n", 3], ["n", 4])
    x = torch.randn(6, 3)
    with torch.no_grad():
        torch.testing.assert_close(nonnx.load(path)(x), run(path, x), rtol=1e-5, atol=1e-5)


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    gemm = {"transB": 1}
    nodes = [
        helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["a"], **gemm),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "fc.weight", "fc.bias"], ["y"], **gemm),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"fc.weight": normal(3, 3), "fc.bias": normal(3)}, ["n", 3], ["n", 3])
    model = nonnx.load(path)
    assert [name for name, _ in model.named_parameters()] == ["fc.weight", "fc.bias"]
    x = torch.randn(6, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), run(path, x), rtol=1e-5, atol=1e-5)


def test_names_that_a_module_owns_are_changed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "forward.weight"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["r"], name="training"),
        helper.make_node("Relu", ["r"], ["s"], name="steps"),
        helper.make_node("Gemm", ["s", "0/odd name.type.weight"], ["y"], transB=1),
    ]
    weights = {"forward.weight": normal(3, 3), "0/odd name.type.weight": normal(3, 3)}
    model = nonnx.load(write(tmp_path / "m.onnx", nodes, weights, ["n", 3], ["n", 3]))
    assert [name for name, _ in model.named_parameters()] == ["forward_.weight", "0_odd_name.type_.weight"]
    assert model(torch.zeros(2, 3)).shape == (2, 3)


def test_images_without_pixels_are_refused_where_the_file_leaves_their_size_open(tmp_path: Path) -> None:
    """Padding makes windows of nothing, which torch refuses in its own words."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 3], pads=[1, 2, 1, 2])]
    path = write(tmp_path / "m.onnx", nodes, {"w": normal(2, 3, 1, 3)}, ["n", 3, "height", 4], ["n", 2, None, None])
    model = nonnx.load(path)
    assert model(torch.zeros(2, 3, 1, 4)).shape == (2, 2, 3, 6)
    with pytest.raises(InvalidInput, match=r"\(n, 3, \?, 4\) \(\? is any size from 1 on\), given \(2, 3, 0, 4\)"):
        model(torch.zeros(2, 3, 0, 4))


def test_names_within_other_layers_are_changed(tmp_path: Path) -> None:
    """A layer cannot hold another one; no number behind its name would help."""
    names = ["net.weight", "net.fc.weight", "net.fc.deep.weight", "other.net.weight"]
    values = ["x", "a", "b", "c", "y"]
    nodes = [helper.make_node("MatMul", [values[k], name], [values[k + 1]]) for k, name in enumerate(names)]
    path = write(tmp_path / "m.onnx", nodes, {name: normal(3, 3) for name in names}, ["n", 3], ["n", 3])
    model = nonnx.load(path)
    assert [name for name, _ in model.named_parameters()] == [
        "net.weight", "net_fc.weight", "net_fc_deep.weight", "other.net.weight",
    ]  # fmt: skip
    x = torch.randn(6, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), run(path, x), rtol=1e-5, atol=1e-5)


def test_batch_size_arithmetic_is_followed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["flat", "wt"], ["y"]),
    ]
    weights = {"axes": np.array([0]), "rest": np.array([-1]), "w": normal(4, 6)}
    path = write(tmp_path / "m.onnx", nodes, weights, ["n", 2, 3], ["n", 4])
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(nonnx.load(path)(x), run(path, x), rtol=1e-5, atol=1e-5)


def test_everything_unsupported_is_listed_once_for_each_operator(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="wave"),
        helper.make_node("Unique", ["a"], ["b"], name="tall"),
        helper.make_node("NonZero", ["b"], ["c"], name="ripple"),
        helper.make_node("NonZero", ["c"], ["y"], name="swell"),
    ]
    path = write(tmp_path / "m.onnx", nodes, {}, [3, 3], [3, 3])
    with pytest.raises(UnsupportedModel) as caught:
        nonnx.load(path)
    assert "NonZero 'wave' (and 2 more of this operator)\n  Unique 'tall'\n" in str(caught.value)
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], name="first", kernel_shape=[1, 1], storage_order=1),
        helper.make_node("MaxPool", ["x"], ["b"], name="second", kernel_shape=[1, 1], storage_order=1),
        helper.make_node("Relu", ["b"], ["c"], name="after"),
        helper.make_node("LRN", ["x"], ["d"], name="even", size=2),
        helper.make_node("Sum", ["a", "c", "d"], ["y"]),
    ]
    with pytest.raises(UnsupportedModel) as caught:
        nonnx.load(write(tmp_path / "m.onnx", nodes, {}, ["n", 3, 4, 4], ["n", 3, 4, 4]))
    message = str(caught.value)
    assert "MaxPool 'first': storage_order=1 is not supported (and 1 more of this operator)" in message
    assert "LRN 'even': size=2 is even" in message
    assert "'after'" not in message  # what it reads is unknown already


def test_graphs_that_mix_a_batch_are_refused(tmp_path: Path) -> None:
    for op, options in (("Reshape", {}), ("Softmax", {"axis": 0}), ("ReduceMax", {"axes": [0]})):
        inputs, weights = (("s",), {"s": np.array([-1, 2])}) if op == "Reshape" else ((), {})
        path = write(tmp_path / "m.onnx", one(op, *inputs, **options), weights, ["n", 4], ["m", "k"])
        with pytest.raises(UnsupportedModel, match="one by one"):
            nonnx.load(path)


def test_points_that_only_saturate_do_not_hide_that_they_mix(tmp_path: Path) -> None:
    """The sum over the batch is subtracted where no number is ever large enough to show it."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1, name="sum"),
        helper.make_node("Sub", ["s", "far"], ["low"]),
        helper.make_node("Relu", ["low"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"far": np.float32(1e9)}, ["n", 4], ["n", 4])
    with pytest.raises(UnsupportedModel, match="NaN in one of them reaches the output of another"):
        nonnx.load(path)


@pytest.mark.parametrize(
    ("nodes", "opset", "reason"),
    [
        (one("Relu"), 6, "uses opset 6"),
        (one("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 3]), 17, "not smaller than its window"),
    ],
)
def test_forms_of_known_operators_are_refused(
    tmp_path: Path, nodes: list[onnx.NodeProto], opset: int, reason: str
) -> None:
    sizes = ["n", 1, 4, 4]
    with pytest.raises(UnsupportedModel, match=reason):
        nonnx.load(write(tmp_path / "m.onnx", nodes, {}, sizes, ["n", 1, "h", "w"], opset))


def test_graphs_of_another_form_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", one("Relu"), {}, ["n", 3], ["n", 3])
    model = onnx.load(str(path))
    model.graph.node[0].domain = "my.domain"
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    (tmp_path / "own.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModel, match="my.domain::Relu 'it'"):
        nonnx.load(tmp_path / "own.onnx")


def test_damaged_files_are_invalid_input(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    whole = write(tmp_path / "whole.onnx", nodes, {"w": normal(8, 8)}, ["n", 8], ["n", 8]).read_bytes()
    cut = tmp_path / "cut.onnx"
    for size in range(0, len(whole), 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(InvalidInput, match="cut short"):
            nonnx.load(cut)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    for content in (b"hello world", buffer.getvalue(), bytes(100)):
        cut.write_bytes(content)
        with pytest.raises(InvalidInput, match="ONNX"):
            nonnx.load(cut)
    with pytest.raises(InvalidInput, match="no file"):
        nonnx.load(tmp_path / "missing.onnx")


def test_altered_files_never_raise_anything_else(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2]),
    ]
    whole = write(tmp_path / "m.onnx", nodes, {"w": normal(2, 1, 3, 3)}, ["n", 1, 6, 6], ["n", 2, 3, 3]).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        altered = bytearray(whole)
        altered[rng.integers(len(whole))] = rng.integers(256)
        (tmp_path / "m.onnx").write_bytes(altered)
        try:
            nonnx.load(tmp_path / "m.onnx")
        except NNRepairError:
            refused += 1
    assert refused > 100


def external(path: Path, location: str, *more: tuple[str, str], **changes: Any) -> Path:
    kind = {"data_type": TensorProto.FLOAT, "dims": [3, 3], "data_location": TensorProto.EXTERNAL} | changes
    tensor = TensorProto(name="w", **kind)
    for key, value in (("location", location), *(more or (("offset", "0"), ("length", "36")))):
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        one("Gemm", "w"),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [tensor],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def test_weights_beside_the_model_are_read_and_elsewhere_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    weights = normal(3, 3)
    (folder / "w.bin").write_bytes(weights.tobytes())
    (tmp_path / "secret.bin").write_bytes(weights.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = nonnx.load(external(folder / "good.onnx", "w.bin"))
    torch.testing.assert_close(model(torch.eye(3)), torch.from_numpy(weights))
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin", ""):
        with pytest.raises(InvalidInput, match="'w' outside its own folder"):
            nonnx.load(external(folder / "bad.onnx", location))
    for missing in ("missing.bin", "."):
        with pytest.raises(InvalidInput, match="keeps the weights 'w' in .*, which is no file"):
            nonnx.load(external(folder / "bad.onnx", missing))
    (folder / "short.bin").write_bytes(weights.tobytes()[:20])
    with pytest.raises(InvalidInput, match=r"36 bytes from byte 0 of .*short\.bin, which has 20"):
        nonnx.load(external(folder / "bad.onnx", "short.bin"))


SHA1 = hashlib.sha1(np.arange(12, dtype=np.float32).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("message", "entries", "changes"),
    [
        ("", [("offset", "12")], {}),
        ("", [("length", "36"), ("checksum", SHA1.upper()), ("offset", "12"), ("prepacked_0", "x")], {}),
        ("'w' are 36 bytes from byte 13 of .*, which has 48", [("offset", "13")], {}),
        ("from byte 9999999999999999999 of", [("offset", "9999999999999999999")], {}),
        (r"offset and length \['-1', '36'\]; expected whole numbers", [("offset", "-1")], {}),
        ("expected whole numbers", [("length", "٣")], {}),
        ("expected whole numbers", [("length", "1" * 5000)], {}),
        ("has the length 32; its shape .* needs 36 bytes", [("length", "32")], {}),
        ("has the length 40; its shape .* needs 36 bytes", [("length", "40")], {}),
        ("names a key twice", [("length", "36"), ("length", "36")], {}),
        ("'w' outside its own folder", [("location", "other.bin")], {}),
        ("SHA-1 is another", [("checksum", SHA1[1:] + "0")], {}),
        (r"type 1 and shape \[3, -3\], which are not read from there", [("offset", "0")], {"dims": [3, -3]}),
        ("type 8 and shape", [("offset", "0")], {"data_type": TensorProto.STRING}),
        ("are 4000000000000 bytes from byte 0", [("offset", "0")], {"dims": [10**6, 10**6]}),
    ],
)
def test_what_a_model_says_of_weights_beside_it(
    tmp_path: Path, message: str, entries: list[tuple[str, str]], changes: dict[str, Any]
) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    path = external(tmp_path / "net.onnx", "w.bin", *entries, **changes)
    if not message:
        expected = torch.arange(3, 12, dtype=torch.float32).reshape(3, 3)
        torch.testing.assert_close(nonnx.load(path)(torch.eye(3)), expected)
        return
    with pytest.raises(InvalidInput, match=message):
        nonnx.load(path)


def test_many_weights_may_share_bytes_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path / "net.onnx", "w.bin")
    (tmp_path / "w.bin").write_bytes(np.ones(9, np.float32).tobytes())
    model = onnx.load(path, load_external_data=False)
    for k in range(1, 100):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[k].name = f"w{k}"
    path.write_bytes(model.SerializeToString())
    torch.testing.assert_close(nonnx.load(path)(torch.eye(3)), torch.ones(3, 3))
    monkeypatch.setattr("nnrepair.onnx.external.MAX_GROWTH", 98 * 36)
    with pytest.raises(InvalidInput, match="'w99' are 36 bytes .* at most 3564 bytes of weights are read"):
        nonnx.load(path)
    for location in ("a\0b", "x" * 5000, "circle"):
        (tmp_path / "circle").unlink(missing_ok=True)
        (tmp_path / "circle").symlink_to(tmp_path / "circle")
        with pytest.raises(InvalidInput, match=r"'w' (outside its own folder|in .*, which is no file)"):
            nonnx.load(external(tmp_path / "bad.onnx", location))


def test_a_file_larger_than_onnx_has_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(2**31)  # takes no room
    with pytest.raises(InvalidInput, match="has 2147483648 bytes; an ONNX file has at most 2147483647"):
        nonnx.load(tmp_path / "large.onnx")


def test_what_exporters_log_stays_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any) -> None:
    """Packages that are not installed are none of the user's business, and tracebacks come with errors of our own."""
    export = torch.onnx.export

    def loud(*arguments: Any, **options: Any) -> Any:
        logging.getLogger("torch.onnx.anything").warning("torchvision is not installed")
        return export(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", loud)
    nonnx.save(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "quiet.onnx")
    assert "torchvision" not in caplog.text
    logging.getLogger("torch.onnx.anything").warning("heard again")
    assert "heard again" in caplog.text
