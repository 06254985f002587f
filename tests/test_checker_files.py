"""The checker of repairs on files that others read in another way, that lie, or that would fill the memory."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FOLDER = Path(__file__).parents[1] / "verification"
sys.path.insert(0, str(FOLDER))  # as python does when it runs a program there
bounded: Any = importlib.import_module("bounded")
minimality: Any = importlib.import_module("minimality")

Arrays = dict[str, np.ndarray]
HALF = np.float32([[0, 0], [1, 0], [0, 0.5], [0, 0]])


def network(
    path: Path, nodes: list[Any], constants: Arrays, shape: list[Any], opset: int = 13, outputs: int = 2
) -> Path:
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    ends.append(helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [None, outputs]))
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def certificate(path: Path, points: Any, labels: list[int], weight: str = "w", /, **changes: Any) -> Path:
    """Write a certificate that lists edits and no conditions; with `changes` of its arrays and meta data."""
    count = len(labels)
    meta = {"format": "nnrepair-minimality-1", "weight": weight, "bias": None, "norm": "l1", "architecture": "same"}
    meta |= {"lower_bound": 0.0, "objective": 0.0, "margin": 0.0, "lowest": False}
    meta |= {name: changes.pop(name) for name in [*changes] if name in meta}
    arrays = {"points": np.asarray(points, np.float32), "edit_point": np.arange(count), "edit_label": np.array(labels)}
    arrays |= {"row_point": np.zeros(0, int), "row_A": np.zeros((0, 2)), "row_b": np.zeros(0)}
    arrays |= {"row_multiplier": np.zeros(0), **changes}
    np.savez(path, **{"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays})
    return path


def run(capsys: pytest.CaptureFixture[str], cert: Path, base: Path, repaired: Path | None = None) -> tuple[int, str]:
    code = minimality.main([str(cert), str(base), "--repaired", str(repaired or base)])
    return code, capsys.readouterr().out


# Networks that could be read in another way ---------------------------------------------------------------------------


def turned(path: Path, **attributes: Any) -> Path:
    nodes = [helper.make_node("Transpose", ["x"], ["t"], **attributes), helper.make_node("Flatten", ["t"], ["f"])]
    return network(path, [*nodes, helper.make_node("MatMul", ["f", "w"], ["y"])], {"w": HALF}, [1, 2, 2, 1])


def test_axes_that_are_reversed_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """onnxruntime says [0, 0.5] at this point; were the axes left in place, it would be [1, 0]."""
    points = np.reshape([0, 1, 0, 0], (1, 2, 2, 1))
    code, text = run(capsys, certificate(tmp_path / "c.npz", points, [0]), turned(tmp_path / "n.onnx"))
    assert code == 2 and "node 0, Transpose" in text and "(3, 2, 1, 0)" in text
    net = turned(tmp_path / "n.onnx", perm=[0, 2, 1, 3])
    values, _ = minimality.Network.at(net).run(points.astype(float))
    np.testing.assert_array_equal(values["y"].mid, [[0, 0.5]])
    assert run(capsys, certificate(tmp_path / "c.npz", points, [0]), net)[0] == 1
    assert run(capsys, certificate(tmp_path / "c.npz", points, [1]), net)[0] == 0
    net = turned(tmp_path / "n.onnx", perm=[0, 1, 2, 3])
    assert run(capsys, certificate(tmp_path / "c.npz", points, [0]), net)[0] == 0


def averaged(path: Path, **attributes: Any) -> Path:
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], **attributes), helper.make_node("Flatten", ["m"], ["f"])]
    return network(
        path,
        [*nodes, helper.make_node("MatMul", ["f", "w"], ["y"])],
        {"w": np.eye(2, dtype=np.float32)},
        [None, 2, 1, 2],
    )


def test_averages_over_everything_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert = certificate(tmp_path / "c.npz", [[[[0, 4]], [[1, 2]]]], [0])  # averages 2 and 1.5
    assert run(capsys, cert, averaged(tmp_path / "n.onnx", axes=[2, 3]))[0] == 0
    code, text = run(capsys, cert, averaged(tmp_path / "n.onnx"))
    assert code == 2 and "ReduceMean" in text and "without the batch" in text


def shifted(path: Path, opset: int, **attributes: Any) -> Path:
    """Add (10, 0) to (2, 2) values: along the last axis, or, before opset 7, along the one that is named."""
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], **attributes), helper.make_node("Flatten", ["a"], ["f"])]
    nodes.append(helper.make_node("MatMul", ["f", "w"], ["y"]))
    w = np.float32([[0, 0], [1, 0], [0, 1], [0, 0]])
    return network(path, nodes, {"b": np.float32([10, 0]), "w": w}, [None, 2, 2], opset)


def test_sums_as_they_were_before_opset_7(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert = certificate(tmp_path / "c.npz", [np.zeros((2, 2))], [1])
    assert run(capsys, cert, shifted(tmp_path / "n.onnx", 7))[0] == 0
    for opset in (6, 7):
        code, text = run(capsys, cert, shifted(tmp_path / "n.onnx", opset, broadcast=1, axis=1))
        assert code == 2 and "opset" in text


def test_a_network_of_its_own_for_each_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two equal points cannot have different labels."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    constants = {"w": np.eye(2, dtype=np.float32), "b": np.float32([[1, 0], [0, 1]])}
    net = network(tmp_path / "n.onnx", nodes, constants, ["n", 2])
    code, text = run(capsys, certificate(tmp_path / "c.npz", np.zeros((2, 2)), [0, 1]), net)
    assert code == 2 and "has entries for the batch" in text


def test_a_weight_that_is_its_own_bias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A change of it changes the output twice."""
    nodes = [helper.make_node("Gemm", ["x", "w", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    constants = {"w": np.float32([[1]]), "v": np.float32([[1, 0]])}
    net = network(tmp_path / "n.onnx", nodes, constants, ["n", 1])
    code, text = run(capsys, certificate(tmp_path / "c.npz", [[1]], [0]), net)
    assert code == 2 and "is not the weight of exactly one" in text


PLAIN = [helper.make_node("MatMul", ["x", "w"], ["y"])]


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((1, 2, 2), np.float32), "the network takes ('n', 4)"),
        (np.zeros((1, 4, 1), np.float32), "the network takes ('n', 4)"),
        (np.full((1, 4), 0.1), "numbers that are no float32"),
        (np.zeros((1, 4), np.int64), "type int64"),
    ],
)
def test_points_that_the_network_does_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], points: np.ndarray, words: str
) -> None:
    net = network(tmp_path / "n.onnx", PLAIN, {"w": HALF}, ["n", 4])
    code, text = run(capsys, certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], [0], points=points), net)
    assert code == 2 and words in text


def test_the_same_operations_in_other_words_are_the_same_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(path: Path, weight: np.ndarray, **attributes: Any) -> Path:
        nodes = [helper.make_node("Flatten", ["x"], ["f"], name=str(attributes), **attributes)]
        return network(path, [*nodes, helper.make_node("MatMul", ["f", "w"], ["y"])], {"w": weight}, ["n", 4])

    base, other = written(tmp_path / "b.onnx", HALF * 0), written(tmp_path / "r.onnx", HALF, axis=1)
    cert = certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], [0], objective=1.5)
    assert run(capsys, cert, base, other)[0] == 0


# Limits ---------------------------------------------------------------------------------------------------------------


def plain(folder: Path) -> tuple[Path, Path]:
    net = network(folder / "n.onnx", PLAIN, {"w": HALF}, ["n", 4])
    return certificate(folder / "c.npz", [[0, 1, 0, 0]], [0]), net


def packed(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text + b"\n").to_bytes(2, "little") + text + b"\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header("(1099511627776, 4)"), "which is not shape (1099511627776, 4)"),
        (header("(-1, -4)") + bytes(16), "which is not shape (-1, -4)"),
        (header("(1, 4)") + bytes(15), "which is not shape (1, 4)"),
        (header("(1, 4)") + bytes(17), "which is not shape (1, 4)"),
        (header("(1, 4)", "|O"), "no pickle"),
        (header("(1, 4)", ">f4") + bytes(16), "float16 to float64"),
        (header("(1, 4)", "<c8") + bytes(32), "float16 to float64"),
        (header("(" * 4000), "cannot be read"),
        (b"\x93NUMPY\x09\x00" + bytes(20), ".npy version (9, 0)"),
        (b"nothing", "cannot be read"),
    ],
)
def test_arrays_that_are_not_what_they_announce(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    cert, net = plain(tmp_path)
    packed(cert, lambda parts: parts.update({"points.npy": content}))
    code, text = run(capsys, cert, net)
    assert code == 2 and "c.npz cannot be read" in text and words in text


def test_archives_that_unpack_to_too_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, net = plain(tmp_path)
    packed(cert, lambda parts: parts.update({"points.npy": header("(1, 4)") + bytes(bounded.ARCHIVE)}))
    assert cert.stat().st_size < 2**20
    code, text = run(capsys, cert, net)
    assert code == 2 and f"at most {bounded.ARCHIVE} are read" in text


def test_archives_whose_directory_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A member of a million bytes that announces ten: no more than ten are unpacked."""
    cert, net = plain(tmp_path)
    packed(cert, lambda parts: parts.update({"points.npy": bytes(10**6)}))
    data = cert.read_bytes()
    size = (10**6).to_bytes(4, "little")
    assert data.count(size) == 2
    cert.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    code, text = run(capsys, cert, net)
    assert code == 2 and "c.npz cannot be read" in text


def test_archives_of_too_many_or_equal_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, net = plain(tmp_path)
    packed(cert, lambda parts: parts.update({f"more{i}.npy": b"" for i in range(bounded.MEMBERS)}))
    code, text = run(capsys, cert, net)
    assert code == 2 and f"more than {bounded.MEMBERS} arrays" in text
    cert, net = plain(tmp_path)
    packed(cert, lambda parts: parts.update({"points": b""}))
    code, text = run(capsys, cert, net)
    assert code == 2 and "two arrays of one name" in text


def test_other_kinds_of_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, net = plain(tmp_path)
    with zipfile.ZipFile(cert) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(cert, "w", zipfile.ZIP_BZIP2) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    code, text = run(capsys, cert, net)
    assert code == 2 and "stored or deflated" in text


@pytest.mark.parametrize(
    "meta",
    [
        b"[" * 100_000,
        b"[]",
        b"null",
        b"\xff",
        b'{"format": "nnrepair-minimality-1"}',
        b'{"margin": 1' + b"0" * 5000 + b"}",
        b"{}" + b" " * bounded.META,
        b"[" + b"[]," * 10**7 + b"[]]",
    ],
    ids=lambda meta: meta[:12],
)
def test_meta_data_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], meta: bytes) -> None:
    cert, net = plain(tmp_path)
    certificate(cert, [[0, 1, 0, 0]], [0], meta=np.frombuffer(meta, np.uint8))
    code, text = run(capsys, cert, net)
    assert code == 2 and "c.npz cannot be read" in text


def test_meta_data_that_say_two_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, net = plain(tmp_path)
    assert run(capsys, cert, net)[0] == 0
    with np.load(cert) as file:
        meta = file["meta"].tobytes()
    for more in (b'"margin": 0.0', b'"remark": {"a": 1, "a": 2}'):
        certificate(cert, [[0, 1, 0, 0]], [0], meta=np.frombuffer(meta[:-1] + b", " + more + b"}", np.uint8))
        code, text = run(capsys, cert, net)
        assert code == 2 and "a key of the meta data is there twice" in text


@pytest.mark.parametrize("change", [{"objective": 10**400}, {"margin": "0"}, {"lowest": 1}, {"weight": None}])
def test_meta_data_of_another_type(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]) -> None:
    _, net = plain(tmp_path)
    code, text = run(capsys, certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], [0], **change), net)
    assert code == 2 and "c.npz cannot be read" in text


def test_lists_without_entries_may_have_lost_their_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, net = plain(tmp_path)
    code, text = run(capsys, certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], [0], row_A=np.zeros(0)), net)
    assert code == 0 and "No conditions are listed" in text


@pytest.mark.parametrize("name", ["edit_point", "edit_label", "row_point", "row_b", "row_multiplier", "row_A"])
def test_lists_of_entries_without_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """No numbers, but as many entries as the others: nothing would be compared with anything."""
    _, net = plain(tmp_path)
    whole = {"row_point": np.zeros(1, int), "row_A": np.zeros((1, 2)), "row_b": np.zeros(1)}
    whole |= {"row_multiplier": np.zeros(1), "edit_point": np.zeros(1, int), "edit_label": np.zeros(1, int)}
    assert run(capsys, certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], [0], **whole), net)[0] == 0
    none = whole[name][..., None][..., :0]
    code, text = run(capsys, certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], [0], **whole | {name: none}), net)
    assert code == 2 and f"{name} has type {none.dtype} and shape {none.shape}" in text


def in_double(path: Path, weight: np.ndarray) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", k]) for name, k in (("x", 4), ("y", 2))]
    graph = helper.make_graph(PLAIN, "graph", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_change_in_float64_is_the_one_claimed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There the file's own rounding is as small as that of the comparison."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, change = rng.normal(size=(2, 4, 2))
        nets = in_double(tmp_path / "b.onnx", before), in_double(tmp_path / "r.onnx", before + change)
        label = [int((np.array([0, 1, 0, 0]) @ (before + change)).argmax())]
        for claimed, code in ((change, 0), (change * (1 + 1e-13), 1)):
            size = float(np.abs(change).sum())
            cert = certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], label, delta_weight=claimed.T, objective=size)
            assert run(capsys, cert, *nets)[0] == code


def test_a_change_too_large_for_float64_has_no_claimed_norm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What rounding may have made of it is infinite too: that allows no claim."""
    paths = []
    for name, first in (("base", -1.7e308), ("repaired", 1.7e308)):
        weight = HALF.astype(float)
        weight[0, 0] = first
        paths.append(in_double(tmp_path / f"{name}.onnx", weight))
    cert = certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], [0])
    assert run(capsys, cert, paths[0])[0] == 0
    code, text = run(capsys, cert, *paths)
    assert code == 1 and "more than the objective 0.0 claimed" in text


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, net = plain(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # would be waited for
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe", Path("/dev/zero")):
        for files in ((path, net), (cert, path)):
            code, text = run(capsys, *files)
            assert code == 2 and "no ordinary file" in text


def test_files_that_are_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, net = plain(tmp_path)
    with net.open("r+b") as file:
        file.truncate(2**40)  # a hole: it takes no room
    code, text = run(capsys, cert, net)
    assert code == 2 and f"n.onnx has {2**40} bytes" in text


def test_points_that_need_too_much_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["m"], kernel_shape=[40, 40]),
        helper.make_node("Flatten", ["m"], ["f"]),
    ]
    nodes.append(helper.make_node("MatMul", ["f", "w"], ["y"]))
    size = 121 - 39
    w = np.zeros((size * size, 2), np.float32)
    net = network(tmp_path / "n.onnx", nodes, {"w": w}, ["n", 1, 121, 121])
    cert = certificate(tmp_path / "c.npz", np.zeros((1, 1, 121, 121)), [0])
    code, text = run(capsys, cert, net)
    assert code == 2 and "numbers in memory" in text and str(minimality.ROOM) in text


@pytest.mark.parametrize("kind", [MemoryError, RecursionError, ZeroDivisionError])
def test_what_goes_wrong_in_the_checker_is_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise kind("no room")

    cert, net = plain(tmp_path)
    monkeypatch.setattr(minimality, "check_edits", fail)
    code, text = run(capsys, cert, net)
    assert code == 2 and text.startswith(f"UNUSABLE\n{kind.__name__}: no room")


def test_names_cannot_forge_the_answer(tmp_path: Path) -> None:
    """A name with line breaks and letters that the terminal has not."""
    _, net = plain(tmp_path)
    cert = certificate(tmp_path / "c.npz", [[0, 1, 0, 0]], [0], "\nACCEPTED\n\u2713\ud800")
    command = [sys.executable, str(FOLDER / "minimality.py"), str(cert), str(net)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2 and done.stderr == ""
    assert done.stdout.splitlines()[0] == "UNUSABLE" and "ACCEPTED" not in done.stdout.splitlines()


# What is printed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "down", "up"),
    [
        (5.787298195, "5.78729", "5.7873"),
        (5.787298140, "5.78729", "5.7873"),
        (0.25, "0.25", "0.25"),
        (0.1, "0.1", "0.100001"),  # the nearest float64 lies above
        (0.3, "0.299999", "0.3"),
        (0.0, "0", "0"),
        (-1.2345678e-9, "-1.23457e-9", "-1.23456e-9"),
        (1234567.0, "1.23456e+6", "1.23457e+6"),
        (5e-324, "4.94065e-324", "4.94066e-324"),
        (-0.0, "0", "0"),
    ],
)
def test_numbers_are_rounded_outward(number: float, down: str, up: str) -> None:
    assert (minimality.digits(number, "down"), minimality.digits(number, "up")) == (down, up)
    assert Fraction(down) <= Fraction(number) <= Fraction(up)


def test_a_change_below_the_bound_is_explained() -> None:
    """Rounded to float32, a change may be a little smaller than all that meet the conditions, and so misses some."""
    text = minimality.compared(5.787298195, 5.787298140, 3e-8)
    assert "norm <= 5.7873, before rounding less than the bound, as it does not meet" in text
    assert "misses none of them by more than 3e-8" in text
    text = minimality.compared(5.787298140, 5.787298195, 0.0)
    assert "the bound is smaller than that by at most 9.51e-9 of it. It meets them." in text
    assert "was not checked" in minimality.compared(1.0, 2.0, None)
    assert "bound" not in minimality.compared(0.0, 2.0, 0.0)
