"""Networks written out as chains of matrices: the same function as ONNX's own evaluator computes, exactly."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_check_certificate import checker, exact, text, write

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

Array = Any


class Built:
    """A network, node by node; `sizes` is the shape of the last value for one point."""

    def __init__(self, sizes: tuple[int, ...], rng: np.random.Generator) -> None:
        self.nodes, self.constants, self.name, self.count = list[Any](), list[Any](), "x", 0
        self.input, self.rng = sizes, rng

    def constant(self, value: Array) -> str:
        self.count += 1
        kind = np.int64 if np.asarray(value).dtype.kind == "i" else np.float32
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), f"c{self.count}"))
        return f"c{self.count}"

    def add(self, op: str, *more: Any, value: str | None = None, **options: Any) -> str:
        self.count += 1
        names = [each if isinstance(each, str) else self.constant(each) for each in more]
        self.nodes.append(helper.make_node(op, [value or self.name, *names], [f"v{self.count}"], **options))
        self.name = f"v{self.count}"
        return self.name

    def halves(self, *shape: int) -> Array:
        """Numbers of few bits, so that float32 computes exactly."""
        return self.rng.integers(-4, 5, shape) / 4.0

    def model(self) -> Any:
        ends = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, *self.input]),
            helper.make_tensor_value_info(self.name, TensorProto.FLOAT, [None, None]),
        ]
        graph = helper.make_graph(self.nodes, "net", ends[:1], ends[1:], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def convolution(b: Built) -> None:
    b.add("Conv", b.halves(3, 2, 2, 3), b.halves(3), pads=[1, 0, 0, 2], strides=[2, 1])
    b.add("Relu")
    b.add("Conv", b.halves(2, 3, 2, 2), dilations=[1, 2])
    b.add("Flatten")


def averages(b: Built) -> None:
    b.add("AveragePool", kernel_shape=[2, 2], strides=[1, 2], pads=[0, 1, 0, 1], count_include_pad=1)
    b.add("Relu")
    b.add("AveragePool", kernel_shape=[2, 1], pads=[1, 0, 0, 0])
    b.add("Transpose", perm=[0, 3, 1, 2])
    b.add("Flatten")


def largest(b: Built) -> None:
    b.add("MaxPool", kernel_shape=[2, 3], strides=[1, 2], pads=[1, 1, 0, 1])
    b.add("Conv", b.halves(1, 2, 1, 1), b.halves(1))
    b.add("MaxPool", kernel_shape=[2, 2])
    b.add("Reshape", np.array([0, -1]))
    b.add("Relu")


def residual(b: Built) -> None:
    first = b.add("Conv", b.halves(2, 2, 3, 3), b.halves(2), pads=[1, 1, 1, 1])
    kept = b.add("Relu")
    b.add("Conv", b.halves(2, 2, 1, 1))
    b.add("Add", kept)
    more = b.add("Relu")
    b.add("Sub", first, value=more)
    b.add("Add", b.halves(2, 1, 1))
    b.add("Relu")
    b.add("Add", "x")
    b.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    b.add("GlobalAveragePool")
    b.add("Flatten")
    b.add("Add", b.halves(2))
    b.add("Gemm", b.halves(4, 2), b.halves(4), transB=1)


def twice(b: Built) -> None:
    b.add("Identity")
    b.add("Add", "x")
    before = b.add("Relu")
    b.add("Relu")
    b.add("Sub", before)
    b.add("MatMul", b.halves(4, 3))
    b.add("ReduceMean", axes=[1], keepdims=0)
    b.add("Flatten")


KINDS = {"convolution": convolution, "averages": averages, "largest": largest, "residual": residual, "twice": twice}


def built(kind: str, seed: int) -> Any:
    b = Built((2, 3, 4) if kind != "residual" else (2, 2, 4), np.random.default_rng(seed))
    KINDS[kind](b)
    return b.model()


def run(layers: list[Any], x: Array) -> Array:
    for layer in layers:
        x = x @ layer.weight.T + layer.bias
        x[:, : layer.bent] = np.maximum(x[:, : layer.bent], 0)
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_chain_is_the_network(kind: str, seed: int) -> None:
    model = built(kind, seed)
    layers = checker.read_network(model.SerializeToString())
    x = np.random.default_rng(seed).integers(-8, 9, (20, *model_shape(model))) / 4
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
    np.testing.assert_array_equal(run(layers, x.reshape(20, -1)), expected.reshape(20, -1))


def model_shape(model: Any) -> list[int]:
    return [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]


@pytest.mark.parametrize("kind", KINDS)
def test_what_holds_is_accepted_and_what_does_not_is_refused(kind: str, tmp_path: Path) -> None:
    model = built(kind, 5)
    net, prop, rng = tmp_path / "n.onnx", tmp_path / "p.vnnlib", np.random.default_rng(0)
    onnx.save(model, net)
    layers, size = checker.read_network(net.read_bytes()), int(np.prod(model_shape(model)))
    middle = rng.integers(-8, 9, size) / 8
    low, high = middle - 1 / 64, middle + 1 / 64
    y = run(layers, rng.uniform(low, high, (2000, size)))[:, 0]
    for below, code in ((float(y.min() - 4 * np.ptp(y) - 0.1), True), (float(y.min()), False)):
        prop.write_text(text(low.tolist(), high.tolist(), f"(<= Y_0 {below!r})", len(layers[-1].bias)))
        cert = write(tmp_path / "c.npz", net, prop, [-1], [])
        try:
            assert checker.check(str(cert), str(net), str(prop)).startswith("Accepted") and code
        except checker.Rejected:
            assert not code


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_units_with_and_without_relus(kind: str) -> None:
    """In exact arithmetic, whatever slopes are chosen."""
    model = built(kind, 7)
    layers, rng = checker.read_network(model.SerializeToString()), np.random.default_rng(1)
    size = int(np.prod(model_shape(model)))
    rows = [(rng.integers(-3, 4, len(layers[-1].bias)).astype(float).tolist(), 0.3, False)]
    rows = [([Fraction(v) for v in a], Fraction(b), strict) for a, b, strict in rows]
    bounder = checker.Bounder(layers, (Fraction(-1),) * size, (Fraction(1),) * size, rows)
    for width in (1.0, 0.1, 1e-9, 0.0):
        middle = rng.uniform(-1, 1, (3, size)) * (1 - width)
        low, high = middle - width, middle + width
        ranges = [np.repeat(v, 3, 0) for v in bounder.root[2:]]
        steps, on = bounder.relax(low, high, *ranges)
        for lines, *_ in steps:
            if lines is not None:  # of units that may bend
                loose = lines[4] == 0
                lines[0][loose] = rng.uniform(0, 1, loose.sum())
        A, c = np.repeat(bounder.rows.weight[:, on], 3, 0), np.repeat(bounder.rows.bias, 3)
        least = bounder.backward(A, c, np.arange(3), steps, low, high)[1]
        for b in range(3):
            for x in (low[b], high[b], np.clip(rng.uniform(low[b], high[b]), low[b], high[b])):
                value = [Fraction(v) for v in x.tolist()]
                for layer in layers:
                    z = exact([checker.Layer(layer.weight, layer.bias)], value)
                    value = [max(v, Fraction(0)) if i < layer.bent else v for i, v in enumerate(z)]
                row = sum((p * q for p, q in zip(rows[0][0], value, strict=True)), rows[0][1])
                assert row >= Fraction(float(least[b]))


@pytest.mark.parametrize(
    ("op", "more", "options", "said"),
    [
        ("AveragePool", [], {"kernel_shape": [1, 3]}, "averages over 3 entries"),
        ("ReduceMean", [], {"axes": [2], "keepdims": 0}, "averages over 3 entries"),
        ("BatchNormalization", [np.ones(2)] * 4, {}, "would have to be rounded"),
        ("Sigmoid", [], {}, "operators 'Sigmoid' are not supported"),
    ],
)
def test_what_would_be_rounded_is_refused(op: str, more: list[Any], options: dict[str, Any], said: str) -> None:
    b = Built((2, 3, 4), np.random.default_rng(0))
    b.add(op, *more, **options)
    b.add("Flatten")
    with pytest.raises(checker.bounded.Unreadable, match=said):
        checker.read_network(b.model().SerializeToString())


def test_the_package_keeps_certificates_of_images(tmp_path: Path) -> None:
    """What its search splits, the independent program proves too."""
    torch = pytest.importorskip("torch")
    import nnrepair.onnx
    from nnrepair.verify import Options, check

    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()
    model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    net, prop = tmp_path / "n.onnx", tmp_path / "p.vnnlib"
    nnrepair.onnx.save(model.eval(), torch.zeros(1, 1, 4, 4), net)
    low, high = [-1.0] * 5 + [0.0] * 11, [1.0] * 5 + [0.0] * 11  # five inputs are free
    drawn = torch.zeros(3000, 16)
    drawn[:, :5] = 2 * torch.rand(3000, 5) - 1
    with torch.no_grad():
        y = model(drawn.reshape(-1, 1, 4, 4))[:, 0]
    edge = float(y.min() - 0.05 * (y.max() - y.min()))
    prop.write_text(text(low, high, f"(<= Y_0 {edge!r})", 2))
    result = check(net, prop, options=Options(split="inputs", most=20_000))
    assert result.holds and result.certificate is not None and result.certificate.leaves > 1, result.reason
    file = result.certificate.save(tmp_path / "c.npz")
    assert checker.check(str(file), str(net), str(prop)).startswith("Accepted")
