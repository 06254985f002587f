"""The independent program that re-checks proofs of properties: accepts what is proved, and nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

PROGRAM = Path(__file__).parents[1] / "verification" / "check.py"
Array = Any


def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("property_checker", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look here
    sys.path.insert(0, str(PROGRAM.parent))  # as python does when it runs the file
    spec.loader.exec_module(module)
    return module


checker = _program()
ANYTHING = (ValueError, TypeError, LookupError, ArithmeticError, onnx.shape_inference.InferenceError)


# Small networks, properties and certificates, written here by plain means --------------------------------------------


def graph(path: Path, nodes: list[Any], constants: dict[str, Array], shape: list[Any]) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    sink = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["batch", "outputs"])
    built = helper.make_graph(nodes, "net", [source], [sink], tensors)
    onnx.save(helper.make_model(built, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


def mlp(path: Path, weights: list[Array], biases: list[Array], last_relu: bool = False) -> Path:
    """Write x -> W x + b -> ReLU -> ...; layers of every other kind, Gemm or MatMul and Add."""
    nodes, constants, name = [], {}, "x"
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        constants |= {f"w{k}": np.float32(w if k % 2 else np.transpose(w)), f"b{k}": np.float32(b)}
        if k % 2:
            nodes.append(helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [f"z{k}"], transB=1))
        else:
            nodes.append(helper.make_node("MatMul", [name, f"w{k}"], [f"m{k}"]))
            nodes.append(helper.make_node("Add", [f"m{k}", f"b{k}"], [f"z{k}"]))
        name = f"z{k}"
        if k < len(weights) - 1 or last_relu:
            nodes.append(helper.make_node("Relu", [name], [f"h{k}"]))
            name = f"h{k}"
    return graph(path, nodes, constants, ["N", np.shape(weights[0])[1]])


def random_mlp(path: Path, rng: np.random.Generator, sizes: tuple[int, ...] = (2, 8, 8, 2)) -> Path:
    pairs = list(itertools.pairwise(sizes))
    return mlp(path, [rng.normal(size=(n, m)) / m**0.5 for m, n in pairs], [rng.normal(size=n) / 4 for _, n in pairs])


def text(lower: Array, upper: Array, unsafe: str, outputs: int) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines.append(f"(assert (and (>= X_{i} {low!r}) (<= X_{i} {high!r})))")
    return "\n".join([*lines, f"(assert {unsafe})"])


def exact(layers: list[Any], x: list[Fraction]) -> list[Fraction]:
    for layer in layers:
        z = [
            sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(b))
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
        x = [max(v, Fraction(0)) for v in z] if layer.relu else z
    return x


def grow(layers: list[Any], task: Any, depth: int = 14) -> tuple[list[int], list[float]]:
    """Branch and bound, halving the longest edge relative to the root: a tree in preorder."""
    bounder = checker.Bounder(layers, *task)
    (lower,), (upper,), *_ = bounder.root
    width = np.maximum(upper - lower, 1e-300)
    dim, cut, todo = [], [], [(lower, upper, 0)]
    while todo:
        low, high, level = todo.pop()
        if level == depth or bounder.shrink(low[None].copy(), high[None].copy(), *known(bounder, 1)).all():
            dim.append(-1)
            continue
        axis = int(np.argmax((high - low) / width))
        dim.append(axis)
        cut.append((low[axis] + high[axis]) / 2)
        low_half, high_half = high.copy(), low.copy()
        low_half[axis] = high_half[axis] = cut[-1]
        todo += [(high_half, high, level + 1), (low, low_half, level + 1)]
    return dim, cut


def known(bounder: Any, boxes: int) -> list[Array]:
    """What holds for all z in the root, for each of so many boxes."""
    return [np.repeat(v, boxes, 0) for v in bounder.root[2:]]


def write(path: Path, net: Path, prop: Path, dim: Array, cut: Array, /, **changes: Any) -> Path:
    hashes = [hashlib.sha256(f.read_bytes()).hexdigest() for f in (net, prop)]
    meta = {"format": "nnrepair-property-1", "network_sha256": hashes[0], "property_sha256": hashes[1]}
    meta |= {"trees": changes.pop("trees", 1), "nodes": len(dim), **changes.pop("meta", {})}
    arrays = {"dim": np.array(dim, np.int16), "cut": np.array(cut, float)}
    raw = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(path, **{"meta": raw, **arrays, **changes})
    return path


def certify(folder: Path, net: Path, prop: Path, **options: Any) -> tuple[Path, list[int], list[float]]:
    layers = checker.read_network(net.read_bytes())
    tasks = checker.read_property(prop.read_text(), layers[0].weight.shape[1], len(layers[-1].bias))
    grown = [grow(layers, task, **options) for task in tasks]
    dim, cut = ([*itertools.chain(*parts)] for parts in zip(*grown, strict=True))
    return write(folder / "cert.npz", net, prop, dim, cut, trees=len(tasks)), dim, cut


def accepted(cert: Path, net: Path, prop: Path) -> bool:
    try:
        checker.check(str(cert), str(net), str(prop))
    except (checker.Rejected, checker.bounded.Unreadable):
        return False
    return True


@pytest.fixture
def instance(tmp_path: Path) -> tuple[Path, Path, float]:
    """A random network, a property that holds by a small margin, and the least value of y_0 that was seen."""
    rng = np.random.default_rng(3)
    net = random_mlp(tmp_path / "net.onnx", rng)
    layers = checker.read_network(net.read_bytes())
    h = rng.uniform(-1, 1, (100_000, 2))
    for layer in layers:
        h = h @ layer.weight.T + layer.bias
        h = np.maximum(h, 0) if layer.relu else h
    least = float(h[:, 0].min())
    prop = tmp_path / "prop.vnnlib"
    prop.write_text(text([-1.0, -1.0], [1.0, 1.0], f"(<= Y_0 {least - 0.02!r})", 2))
    return net, prop, least


# Bounds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slopes", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_contain_exact_outputs(tmp_path: Path, seed: int, slopes: bool) -> None:
    rng = np.random.default_rng(seed)
    scale = [1.0, 1e-30, 1e12, 1e-3][seed % 4]
    sizes = (3, 7, 6, 5, 2)
    pairs = list(itertools.pairwise(sizes))
    weights = [rng.normal(size=(n, m)) * scale for m, n in pairs]
    net = mlp(tmp_path / "net.onnx", weights, [rng.normal(size=n) for _, n in pairs], last_relu=seed % 2 == 1)
    layers = checker.read_network(net.read_bytes())
    prop = text([-1.0] * 3, [0.7] * 3, "(and (<= (+ (* 0.1 Y_0) (* -3 Y_1)) 0.3) (< Y_0 1e-2))", 2)
    (task,) = checker.read_property(prop, 3, 2)
    bounder = checker.Bounder(layers, *task)
    for size in (1.0, 0.1, 1e-6, 1e-15, 0.0):
        low = rng.uniform(-1, 0.7 - 1.7 * size, (20, 3))
        high = np.minimum(low + 1.7 * size, bounder.root[1])
        low = np.maximum(low, bounder.root[0])
        ranges = known(bounder, 20)
        steps, on = bounder.relax(low, high, *ranges)
        for lines, *_ in steps:  # any slopes are sound
            if lines is not None and slopes:
                lines[0][:] = rng.uniform(0, 1, lines[0].shape)
        ranges = list(zip(*(np.split(v, bounder.ends, 1) for v in ranges), strict=True))
        A, c = np.tile(bounder.rows.weight[:, on], (20, 1)), np.tile(bounder.rows.bias, 20)
        least = bounder.backward(A, c, np.repeat(np.arange(20), 2), steps, low, high)[1].reshape(20, 2)
        for k in range(20):
            for x in (low[k], high[k], np.clip(rng.uniform(low[k], high[k]), low[k], high[k])):
                point = [Fraction(v) for v in x.tolist()]
                y = exact(layers, point)
                for j, (a, b, _) in enumerate(task[2]):
                    assert sum((p * q for p, q in zip(a, y, strict=True)), b) >= Fraction(least[k, j])
                hidden = point
                for layer, (lower, upper) in zip(layers, ranges, strict=True):
                    z = exact([checker.Layer(layer.weight, layer.bias)], hidden)
                    assert all(Fraction(v) <= w for v, w in zip(lower[k].tolist(), z, strict=True))
                    assert all(Fraction(v) >= w for v, w in zip(upper[k].tolist(), z, strict=True))
                    hidden = [max(w, Fraction(0)) for w in z] if layer.relu else z


def test_rounding_is_charged(tmp_path: Path) -> None:
    """At x = 1, y = big x - (big x + 1) + 1/2 < 0, but float64 loses the 1."""
    big = 2.0**60
    net = mlp(tmp_path / "n.onnx", [[[big], [big]], [[1, -1]]], [[0, 1], [0.5]])
    (tmp_path / "p.vnnlib").write_text(text([1.0], [1.0], "(<= Y_0 0)", 1))
    cert = write(tmp_path / "c.npz", net, tmp_path / "p.vnnlib", [-1], [])
    assert not accepted(cert, net, tmp_path / "p.vnnlib")


def test_coefficients_that_are_not_floats(tmp_path: Path) -> None:
    net = mlp(tmp_path / "n.onnx", [[[1.0]]], [[0.0]])
    layers = checker.read_network(net.read_bytes())
    for a in ("(/ 1 3)", "(/ 2 3)", "-0.1", "0.1", "0.3"):
        (task,) = checker.read_property(text([-8.0], [8.0], f"(<= (* {a} Y_0) 0)", 1), 1, 1)
        bounder = checker.Bounder(layers, *task)
        for x in (-8.0, -1e-9, 0.0, 3.0, 8.0):
            at = np.array([[x]])
            ranges = known(bounder, 1)
            steps, _ = bounder.relax(at, at, *ranges)
            least = bounder.backward(bounder.rows.weight, bounder.rows.bias, np.array([0]), steps, at, at)[1]
            assert Fraction(float(least[0])) <= task[2][0][0][0] * Fraction(x) + task[2][0][1]


@pytest.mark.parametrize("number", ["1e-150", "1e150", "(/ 1 1e150)", "1e-999"])
def test_numbers_out_of_range(tmp_path: Path, number: str) -> None:
    """What would become 0 or infinite in float64 is never taken for proved."""
    net = mlp(tmp_path / "n.onnx", [[[1.0]]], [[0.0]])
    prop = tmp_path / "p.vnnlib"
    prop.write_text(text([-1.0], [1.0], f"(< (* {number} Y_0) 0)", 1))
    assert not accepted(write(tmp_path / "c.npz", net, prop, [-1], []), net, prop)
    prop.write_text(text([0.0], [1.0], f"(<= Y_0 {number})", 1))
    assert not accepted(write(tmp_path / "c.npz", net, prop, [-1], []), net, prop)


def test_clip_keeps_unsafe_points(instance: tuple[Path, Path, float], tmp_path: Path) -> None:
    """Whatever the tree is, a property with a violation at one exact point is rejected."""
    net, prop, _ = instance
    layers = checker.read_network(net.read_bytes())
    rng = np.random.default_rng(0)
    for k in range(10):
        point = rng.uniform(-1, 1, 2).tolist()
        y = float(exact(layers, [Fraction(v) for v in point])[0])
        prop.write_text(text([-1.0, -1.0], [1.0, 1.0], f"(<= Y_0 {float(np.nextafter(y, np.inf))!r})", 2))
        cert, dim, cut = certify(tmp_path, net, prop, depth=3 + k % 9)
        assert not accepted(cert, net, prop)
        cut = rng.uniform(-1.1, 1.1, len(cut)).tolist()
        assert not accepted(write(tmp_path / "moved.npz", net, prop, dim, cut), net, prop)


# Accepting and rejecting ---------------------------------------------------------------------------------------------


def test_accepts_and_reports(instance: tuple[Path, Path, float], tmp_path: Path) -> None:
    net, prop, _ = instance
    cert, dim, _ = certify(tmp_path, net, prop)
    assert len(dim) > 5
    assert "Accepted" in checker.check(str(cert), str(net), str(prop))


@pytest.mark.parametrize(
    ("unsafe", "trees"),
    [
        ("(or (<= Y_0 {low}) (and (>= Y_0 99) (< Y_1 (+ Y_0 3))))", 2),
        ("(and (or (<= Y_0 {low}) (<= Y_0 (- 1 (+ 98 1)))) (or (>= 7 Y_0) (<= 0 Y_1)))", 4),
        ("(<= (+ (* 2 Y_0) (* (/ 1 3) Y_1) (- (* (/ 1 3) Y_1))) (* {low} 2))", 1),
    ],
)
def test_forms(instance: tuple[Path, Path, float], tmp_path: Path, unsafe: str, trees: int) -> None:
    net, prop, least = instance
    prop.write_text(text([-1.0, -1.0], [1.0, 1.0], unsafe.format(low=least - 0.02), 2))
    cert, _, _ = certify(tmp_path, net, prop)
    assert json.loads(np.load(cert)["meta"].tobytes())["trees"] == trees
    assert accepted(cert, net, prop)


def test_boxes_come_in_file_order() -> None:
    boxes = "(or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 2) (<= X_0 3)))"
    unsafe = "(assert (or (<= Y_0 5) (<= Y_0 6)))"
    declared = "(declare-const X_0 Real)(declare-const Y_0 Real)"
    for order in (f"(assert {boxes}){unsafe}", f"{unsafe}(assert {boxes})"):
        tasks = checker.read_property(declared + order, 1, 1)
        assert [(low[0], -rows[0][1]) for low, _, rows in tasks] == [(0, 5), (0, 6), (2, 5), (2, 6)]


DECLARED = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
LEFT, RIGHT = (f"(>= X_0 {low}) (<= X_0 {high}) (>= X_1 0) (<= X_1 1)" for low, high in ((-0.5, "-0.1"), (0.1, 0.50)))
AGAIN = "(<= X_1 1.0) (>= X_0 -0.50) (<= X_0 -0.1) (>= X_1 0)"  # LEFT, written otherwise


@pytest.mark.parametrize(
    "asserted",
    [
        [f"(or (and {LEFT}) (and {RIGHT}))", "(or (<= Y_0 1) (<= Y_0 Y_1))"],
        ["(or (<= Y_0 1) (<= Y_0 Y_1))", f"(or (and {LEFT}) (and {RIGHT}))"],
        [f"(or (and {LEFT} (<= Y_0 1)) (and {RIGHT} (<= Y_0 2)) (and {AGAIN} (<= Y_0 3)))"],
        [f"(or (and {LEFT} (<= Y_0 1)) (and {RIGHT} (<= Y_0 1)) (and (<= Y_0 1.0) {AGAIN}))"],
        [f"(or (and {LEFT}) (and {AGAIN}) (and {RIGHT}))", "(or (<= Y_0 1) (>= Y_0 2) (<= (* 1 Y_0) 1))"],
        ["(<= X_0 1)", "(or (and (or (<= Y_0 1) (> Y_0 2)) (< Y_1 0)) (and (< Y_1 0) (<= Y_0 1)))", f"(and {LEFT})"],
        [f"(and (or (and {LEFT}) (and (or (<= Y_1 1) (<= Y_1 2)) {RIGHT})) (or (<= Y_0 1) (<= Y_1 3)))"],
        [f"(or (and {LEFT}) (and {RIGHT}))", "(<= Y_0 (+ (* (/ 1 3) Y_1) (- 0.25)))"],
    ],
)
def test_order_is_the_librarys(asserted: list[str]) -> None:
    from nnrepair.verify import vnnlib

    content = DECLARED + "".join(f"(assert {each})" for each in asserted)
    for written in (content, vnnlib.dumps(vnnlib.loads(content))):
        tasks = [
            (case.box.lower, case.box.upper, tuple((row.coefficients, -row.bound, row.strict) for row in rows))
            for case in vnnlib.loads(written).cases
            for rows in case.unsafe
        ]
        assert checker.read_property(written, 2, 2) == tasks


def test_mutations_of_the_tree(instance: tuple[Path, Path, float], tmp_path: Path) -> None:
    net, prop, _ = instance
    _, dim, cut = certify(tmp_path, net, prop)

    def changed(dim: Any = dim, cut: Any = cut, /, **changes: Any) -> bool:
        return accepted(write(tmp_path / "changed.npz", net, prop, dim, cut, **changes), net, prop)

    assert changed()
    for at in np.flatnonzero(np.array(dim) == -1):
        assert not changed(dim[:at] + dim[at + 1 :])
    assert not changed([*dim, -1])
    assert not changed([-1, *dim])
    assert not changed([*dim, 0], [*cut, 0.0])  # begins a tree and does not end it
    assert not changed(dim, cut[1:])
    assert not changed(dim, [*cut, 0.0])
    assert not changed(dim, [np.nan, *cut[1:]])
    assert not changed([2, *dim[1:]]) and not changed([-2, *dim[1:]])
    assert not changed([], [])
    assert not changed(trees=2) and not changed(trees=0)
    assert not changed([*dim, *dim], [*cut, *cut], trees=2)
    assert not changed(meta={"format": "nnrepair-property-2"}) and not changed(meta={"nodes": 1})
    assert not changed(dim=np.array(dim, np.int64)) and not changed(dim=np.array([dim], np.int16))
    assert not changed(cut=np.array(cut, np.float32)) and not changed(cut=np.array([cut]))
    # A cut elsewhere is another cover. It is accepted exactly if the checker can prove its boxes, or their halves.
    assert changed(dim, [cut[0] + 1e-9, *cut[1:]])
    assert changed(more=np.array(dim))


def test_open_leaves_have_limits(instance: tuple[Path, Path, float], tmp_path: Path) -> None:
    net, prop, least = instance
    assert accepted(write(tmp_path / "leaf.npz", net, prop, [-1], []), net, prop)  # proved by its own halvings
    prop.write_text(text([-1.0, -1.0], [1.0, 1.0], f"(<= Y_0 {least + 0.01!r})", 2))
    with pytest.raises(checker.Rejected, match=r"tree 1 of 1: not proved for inputs from \["):
        checker.check(str(write(tmp_path / "leaf.npz", net, prop, [-1], [])), str(net), str(prop))


def test_slopes_are_needed(instance: tuple[Path, Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, prop, _ = instance
    cert, _, _ = certify(tmp_path, net, prop)
    monkeypatch.setattr(checker, "SPARE", 0)  # no halvings
    monkeypatch.setattr(checker, "SHARE", 0)
    assert accepted(cert, net, prop)
    monkeypatch.setattr(checker, "STEPS", 0)
    assert not accepted(cert, net, prop)


def test_other_files(instance: tuple[Path, Path, float], tmp_path: Path) -> None:
    net, prop, least = instance
    cert, dim, cut = certify(tmp_path, net, prop)
    other = tmp_path / "other.vnnlib"
    other.write_text(prop.read_text() + " ")
    assert not accepted(cert, net, other)
    other.write_text(text([-1.0, -1.0], [1.0, 1.0], f"(<= Y_0 {least + 0.01!r})", 2))
    assert not accepted(write(cert, net, other, dim, cut), net, other)
    model = onnx.load(net)
    bias = next(t for t in model.graph.initializer if t.name == "b2")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - np.float32(0.05), "b2"))
    changed = tmp_path / "changed.onnx"
    onnx.save(model, changed)
    assert not accepted(write(cert, net, prop, dim, cut), changed, prop)
    assert not accepted(write(cert, changed, prop, dim, cut), changed, prop)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6, 1e-40])
def test_strange_weights(tmp_path: Path, value: float) -> None:
    net = mlp(tmp_path / "net.onnx", [[[1, value]], [[1]], [[value]]], [[0], [1], [0]])
    prop = tmp_path / "p.vnnlib"
    prop.write_text(text([0.0, 0.0], [1.0, 1.0], "(<= Y_0 -1)", 1))
    assert accepted(write(tmp_path / "c.npz", net, prop, [-1], []), net, prop) == bool(np.isfinite(value))


def test_numbers_too_large(tmp_path: Path) -> None:
    net = mlp(tmp_path / "net.onnx", [[[3e38]]] * 4, [[0.0]] * 4)
    prop = tmp_path / "p.vnnlib"
    prop.write_text(text([0.0], [1.0], "(<= Y_0 -1)", 1))
    assert not accepted(write(tmp_path / "c.npz", net, prop, [-1], []), net, prop)


@pytest.mark.parametrize(("row", "holds"), [("(<= Y_0 0)", False), ("(< Y_0 0)", True), ("(> Y_0 -1)", False)])
@pytest.mark.parametrize("box", [([0.25], [0.25]), ([-1.0], [1.0])])
def test_ties(tmp_path: Path, row: str, holds: bool, box: tuple[list[float], list[float]]) -> None:
    """max(0, x - 1/4) is exactly 0 somewhere."""
    net = mlp(tmp_path / "net.onnx", [[[1]]], [[-0.25]], last_relu=True)
    prop = tmp_path / "p.vnnlib"
    prop.write_text(text(*box, row, 1))
    assert accepted(write(tmp_path / "c.npz", net, prop, [-1], []), net, prop) == holds


# Networks ------------------------------------------------------------------------------------------------------------


def test_networks_as_others_write_them(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(1)
    shape = numpy_helper.from_array(np.array([0, -1]))
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Sub", ["x", "mean"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["z"], transB=1, alpha=1.0),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Add", ["b", "h"], ["a"]),
        helper.make_node("Relu", ["a"], ["i"]),
        helper.make_node("Identity", ["i"], ["j"]),
        helper.make_node("Reshape", ["j", "shape"], ["g"]),
        helper.make_node("Gemm", ["g", "v"], ["u"]),
        helper.make_node("Sub", ["u", "one"], ["y"]),
    ]
    constants = {"mean": rng.normal(size=(2, 1)), "w": rng.normal(size=(5, 6)), "b": rng.normal(size=5)}
    constants |= {"v": rng.normal(size=(5, 3)), "one": np.ones(())}
    net = graph(tmp_path / "net.onnx", nodes, {k: np.float32(v) for k, v in constants.items()}, ["N", 2, 3])
    x = rng.normal(size=(1, 2, 3)).astype(np.float32)
    h = x.ravel().astype(float)
    for layer in checker.read_network(net.read_bytes()):
        h = layer.weight @ h + layer.bias
        h = np.maximum(h, 0) if layer.relu else h
    (expected,) = ReferenceEvaluator(onnx.load(net)).run(None, {"x": x})
    np.testing.assert_allclose(h, expected.ravel(), atol=1e-5)


def test_networks_that_grow_when_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums need identities, each of which is larger than what the file stores."""
    nodes = [
        helper.make_node(kind, [f"v{2 * k + i}", *more], [f"v{2 * k + i + 1}"])
        for k in range(40)
        for i, (kind, more) in enumerate([("Add", ["b"]), ("Relu", [])])
    ]
    nodes[0].input[0] = "x"
    net = graph(tmp_path / "n.onnx", nodes, {"b": np.ones(9, np.float32)}, [1, 9])
    assert len(checker.read_network(net.read_bytes())) == 40
    monkeypatch.setitem(checker.read_network.__globals__, "MAX_WEIGHTS", 2000)
    with pytest.raises(checker.bounded.Unreadable, match="there are 2025 weights, or more; at most 2000 are read"):
        checker.read_network(net.read_bytes())


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Sigmoid", ["x"], ["y"])],
        [helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0)],
        [helper.make_node("MatMul", ["w", "x"], ["y"])],
        [helper.make_node("Sub", ["w", "x"], ["y"])],
        [helper.make_node("Add", ["x", "column"], ["y"])],
        [helper.make_node("MatMul", ["x", "wrong"], ["y"])],
        [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)],
        [helper.make_node("Reshape", ["x", "two"], ["y"])],
        [helper.make_node("Flatten", ["x"], ["a"], axis=2), helper.make_node("MatMul", ["a", "w"], ["y"])],
    ],
)
def test_other_networks_cannot_be_read(tmp_path: Path, nodes: list[Any]) -> None:
    constants = {"w": np.eye(2), "column": np.ones((2, 1)), "wrong": np.eye(3), "two": np.array([2, 2])}
    net = graph(
        tmp_path / "n.onnx", nodes, {k: v if k == "two" else np.float32(v) for k, v in constants.items()}, [1, 2]
    )
    with pytest.raises(ANYTHING):
        checker.read_network(net.read_bytes())


@pytest.mark.parametrize(
    "unsafe",
    [
        "(<= Y_2 0)",
        "(<= (* Y_0 Y_1) 0)",
        "(sin Y_0)",
        "(<= (sin Y_0) 0)",
        "(= Y_0 0)",
        "(<= Y_0 X_0)",
        "(<= X_0 -2)",
        "(<= Y_0 (/ 1 0))",
        "(<= Y_0 1e9999)",
        "(<= Y_0 nan)",
        "(not (<= Y_0 0))",
        "(<= X_1 0)",
        "(or)",
        "(<= Y_0 0))",
        "(<= Y_0 0",
    ],
)
def test_other_properties_cannot_be_read(instance: tuple[Path, Path, float], unsafe: str) -> None:
    _, prop, _ = instance
    prop.write_text(text([-1.0, -1.0], [1.0, 1.0], unsafe, 2))
    with pytest.raises(ANYTHING):
        checker.read_property(prop.read_text(), 2, 2)


def test_program(instance: tuple[Path, Path, float], tmp_path: Path) -> None:
    net, prop, _ = instance
    cert, dim, cut = certify(tmp_path, net, prop)

    def run(cert: Path) -> tuple[int, str]:
        done = subprocess.run([sys.executable, str(PROGRAM), cert, net, prop], capture_output=True, text=True)
        return done.returncode, done.stdout

    code, said = run(cert)
    assert code == 0 and said.startswith("Accepted")
    code, said = run(write(tmp_path / "more.npz", net, prop, [*dim, -1], cut))
    assert code == 1 and said.startswith("Rejected")
    short = tmp_path / "short.npz"
    short.write_bytes(cert.read_bytes()[:-50])
    pickled = write(tmp_path / "pickled.npz", net, prop, dim, cut, cut=np.array([None] * len(cut)))
    for path in (short, pickled, tmp_path / "missing.npz", net):
        code, said = run(path)
        assert code == 2 and said.startswith("Cannot be read")


# ACAS Xu -------------------------------------------------------------------------------------------------------------


def acas(folder: Path, network: str, number: int) -> tuple[Path, Path]:
    files = folder / "acasxu"
    return files / f"onnx/ACASXU_run2a_{network}_batch_2000.onnx", files / f"vnnlib/prop_{number}.vnnlib"


@pytest.mark.data
def test_acas_holds(data_dir: Callable[..., Path], tmp_path: Path) -> None:
    net, prop = acas(data_dir("acasxu/onnx", "acasxu/vnnlib"), "3_3", 4)
    cert, dim, cut = certify(tmp_path, net, prop, depth=16)
    assert accepted(cert, net, prop)
    if len(dim) > 1:
        assert not accepted(write(tmp_path / "c.npz", net, prop, dim[:-1], cut), net, prop)


@pytest.mark.data
@pytest.mark.parametrize(("network", "number"), [("2_1", 2), ("1_7", 3), ("1_9", 7), ("2_9", 8)])
def test_acas_violated(data_dir: Callable[..., Path], tmp_path: Path, network: str, number: int) -> None:
    net, prop = acas(data_dir("acasxu/onnx", "acasxu/vnnlib"), network, number)
    tasks = checker.read_property(prop.read_text(), 5, 5)
    rng = np.random.default_rng(0)
    root = checker.Bounder(checker.read_network(net.read_bytes()), *tasks[0]).root
    for depth in (0, 3, 6, 9):
        dim, cut = [], []
        for _ in tasks:
            tree = complete(depth, root, rng)
            dim, cut = dim + tree[0], cut + tree[1]
        assert not accepted(write(tmp_path / "c.npz", net, prop, dim, cut, trees=len(tasks)), net, prop)


def complete(depth: int, root: Any, rng: np.random.Generator) -> tuple[list[int], list[float]]:
    """A tree with 2**depth leaves, in preorder, cut at random."""
    if not depth:
        return [-1], []
    axis = int(rng.integers(5))
    halves = [complete(depth - 1, root, rng) for _ in range(2)]
    at = rng.uniform(root[0][0, axis], root[1][0, axis])
    return [axis, *halves[0][0], *halves[1][0]], [at, *halves[0][1], *halves[1][1]]
