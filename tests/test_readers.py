"""The readers of ONNX files against onnxruntime: a sample of the campaign in benchmarks/readers, which sees faults."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.readers import campaign, graphs, readers
from benchmarks.readers.readers import Reader, Reading
from benchmarks.readers.truth import Mixed, Truth

#: What becomes of graphs that onnxruntime or onnx refuses.
NO_TRUTH = {"reference agrees", "overflow", "invalid", "unconfirmed"}


@pytest.mark.parametrize("style", list(graphs.STYLES))
def test_readers_compute_what_onnxruntime_computes_or_refuse(style: str) -> None:
    made = campaign.block(style, 0, 120, graphs.SEED)
    for reader in readers.READERS:
        counts = made["outcomes"][reader]
        assert counts.keys() <= {"agrees", "refused", *NO_TRUTH}, made["faults"]
        strict = reader in ("minimality", "reading")  # read few graphs that were not drawn for them
        least = 0 if style == "wide" and reader != "load" else 2 if strict else 16
        assert counts.get("agrees", 0) >= least and (made["operators"][reader] or not least)


def judged(reader: str, style: str, count: int, tmp_path: Path) -> list[str]:
    path, outcomes = tmp_path / "graph.onnx", []
    for index in range(count):
        case = graphs.case(style, index)
        path.write_bytes(case.data)
        outcomes.append(campaign.judged(case, reader, Truth(case), path).split(":")[0])
    return outcomes


def shifted(by: float) -> Reader:
    """A reader that is wrong by a little, wherever the outputs are not zero."""

    def read(path: Path, case: graphs.Case) -> Reading:
        right = readers.by_load(path, case)

        def run(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            y = right.run(points)[0]
            return y * y.dtype.type(1 + by), y * y.dtype.type(1 + by)

        return dataclasses.replace(right, run=run)

    return Reader(read, readers.READERS["load"].refusals)


def test_small_differences_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = judged("load", "chain", 40, tmp_path)
    monkeypatch.setitem(readers.READERS, "load", shifted(1e-3))
    wrong = judged("load", "chain", 40, tmp_path)
    assert right.count("agrees") > 20 and "difference" not in right
    assert wrong.count("difference") > right.count("agrees") / 2


def test_crashes_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, case: graphs.Case) -> Reading:
        raise KeyError("x")

    monkeypatch.setitem(readers.READERS, "load", Reader(read, (ValueError,)))
    assert judged("load", "chain", 3, tmp_path) == ["crash"] * 3
    monkeypatch.setitem(readers.READERS, "load", Reader(read, (KeyError,)))
    assert judged("load", "chain", 3, tmp_path) == ["refused"] * 3


def test_enclosures_must_hold_the_value_and_be_narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def around(below: float, above: float) -> Reader:
        def read(path: Path, case: graphs.Case) -> Reading:
            right = readers.by_load(path, case)

            def run(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                y = right.run(points)[0].astype(np.float64)
                return y - below, y + above

            return dataclasses.replace(right, run=run, exact=False)

        return Reader(read, readers.READERS["load"].refusals)

    words = {}
    for name, ends in {"right": (1e-9, 1e-9), "wide": (10, 10), "wrong": (10, -5)}.items():
        monkeypatch.setitem(readers.READERS, "load", around(*ends))
        words[name] = judged("load", "chain", 30, tmp_path)
    assert words["right"].count("agrees") > 15 and not {"difference", "wide"} & {*words["right"]}
    assert words["wide"].count("wide") > 10 and words["wrong"].count("difference") > 10


def test_what_mixes_points_is_seen() -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["n", 2]) for name in "xy")
    mean = onnx.helper.make_node("ReduceMean", ["x"], ["m"], axes=[0])
    graph = onnx.helper.make_graph([mean, onnx.helper.make_node("Add", ["x", "m"], ["y"])], "mixes", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    points = np.arange(10, dtype=np.float32).reshape(graphs.POINTS, 2)
    assert isinstance(Truth(graphs.Case("by hand", 0, model, None, points)).items, Mixed)


#: Operators of onnxruntime's own domain, which onnx does not know.
NOT_DRAWN = {f"com.microsoft::{op}" for op in ("FastGelu", "FusedMatMul", "Gelu", "QuickGelu")}


def test_every_operator_of_the_readers_is_drawn() -> None:
    from nnrepair.onnx import constants, nodes, operators

    drawn = {op for style in graphs.STYLES for case in graphs.cases(style, 0, 200) for op in case.operators}
    drawn |= {op for case in graphs.cases("wide", 200, 1500) for op in case.operators}
    known = operators.HANDLERS.keys() | operators.SAME | constants.FOLDERS.keys() | readers.minimality.OPERATORS.keys()
    assert known | nodes.OWN <= drawn | NOT_DRAWN
    assert not NOT_DRAWN & drawn and operators.HANDLERS.keys() | nodes.OWN >= NOT_DRAWN
    assert all(math.prod(case.shape) < 10_000 for case in graphs.cases("all", 0, 50))
