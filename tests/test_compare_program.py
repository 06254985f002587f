"""Certificates of comparisons: accepted where they are right, refused where they claim more or are damaged."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnrepair import onnx
from nnrepair.cli import main
from nnrepair.errors import InvalidInput
from nnrepair.results import checkers
from nnrepair.verify import Box, Comparison, ComparisonCertificate, compare
from nnrepair.verify.comparing.certificate import GRID
from tests.test_compare import changed, network

pytest.importorskip("onnxruntime")
BOXES = [Box([-1, -1], [0, 1]), Box([0, Fraction(-1, 3)], [1, 1])]


def written(model: torch.nn.Module, path: Path) -> Path:
    onnx.save(model, torch.zeros(2, 2), path)
    return path


@cache
def checker() -> ModuleType:
    """Return the independent program as a module."""
    folder = str(Path(checkers.__file__).parents[2] / "verification")
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location("verification_compare", Path(folder) / "compare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Comparison]:
    """Return two files and what is proved about them; both kinds of splits, two boxes, all three claims above zero."""
    folder = tmp_path_factory.mktemp("compare")
    before = network((2, 8, 8, 3), 16)
    after = changed(before, (4,), 100, 0.5, False)
    files = [written(model, folder / name) for name, model in (("f.onnx", before), ("g.onnx", after))]
    found = compare(files[0], files[1], BOXES, until=0.02, timeout=30)
    assert found.certificate is not None
    assert min(found.identical, found.same, found.changed) > 0
    assert len(found.certificate.dim) > 50
    return files[0], files[1], found


def judged(certificate: ComparisonCertificate, case: tuple[Path, Path, Comparison], path: Path) -> tuple[int, str]:
    program = checker()
    try:
        return checkers.ACCEPTED, program.check(str(certificate.save(path)), *map(str, case[:2]))
    except program.Rejected as error:
        return checkers.REJECTED, f"Rejected: {error}"
    except ValueError as error:
        return checkers.UNREADABLE, str(error)


def test_it_is_accepted_and_says_what_it_proves(case: tuple[Path, Path, Comparison], tmp_path: Path) -> None:
    proof = case[2].certificate
    assert proof is not None
    code, said = judged(proof, case, tmp_path / "c.npz")
    assert code == 0, said
    assert f"the same argmax on at least {proof.same / GRID * 100:.2f}"[:-1] in said
    assert proof.same <= case[2].same * GRID
    assert proof.changed <= case[2].changed * GRID
    loaded = ComparisonCertificate.load(tmp_path / "c.npz")
    assert loaded == proof
    assert loaded.boxes == tuple(BOXES)


def test_nothing_claimed_of_a_box_that_is_no_floats_is_nothing_to_prove(tmp_path: Path) -> None:
    before = network((2, 6, 3), 3)
    after = changed(before, (2,), 100, 0.1, True)  # a bias moved: no outputs are identical
    files = [written(model, tmp_path / name) for name, model in (("f.onnx", before), ("g.onnx", after))]
    found = compare(files[0], files[1], Box([0, Fraction(-1, 3)], [Fraction(1, 7), 1]), until=0.2)
    proof = found.certificate
    assert proof is not None and proof.identical == 0
    code, said = judged(proof, (files[0], files[1], found), tmp_path / "c.npz")
    assert code == 0, said
    assert "0 halved further" in said


def test_the_command_line_takes_it(
    case: tuple[Path, Path, Comparison], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    region = tmp_path / "region.vnnlib"
    region.write_text(
        "(declare-const X_0 Real)(declare-const X_1 Real)"
        + "".join(f"(declare-const Y_{k} Real)" for k in range(3))
        + "(assert (and (>= X_0 -1)(<= X_0 1)(>= X_1 -1)(<= X_1 1)))(assert (<= Y_0 Y_1))"
    )
    hole = tmp_path / "hole.vnnlib"
    hole.write_text(region.read_text().replace("(<= X_0 1)", "(<= X_0 -0.5)"))
    proof, report = tmp_path / "c.npz", tmp_path / "r.json"
    given = ["compare", *map(str, case[:2]), str(region), "--outside", str(hole), "--timeout", "2"]
    assert main([*given, "--certificate", str(proof), "--report", str(report)]) == 1
    said = capsys.readouterr().out
    assert "same decision" in said
    assert f"nnrepair certify {proof}" in said
    found = json.loads(report.read_text())
    assert Fraction(found["volume"]) == 3
    assert main(["certify", str(proof), str(case[0]), "--repaired", str(case[1])]) == 0
    assert "Accepted" in capsys.readouterr().out
    assert main(["certify", str(proof), str(case[0])]) == checkers.UNREADABLE
    assert "about two networks" in capsys.readouterr().err


def test_what_it_computes_brackets_samples_part_by_part(case: tuple[Path, Path, Comparison]) -> None:
    program = checker()
    layers = tuple(program.read_network(path.read_bytes()) for path in case[:2])
    pair = program.Pair(layers, -1, (Fraction(-1),) * 2, (Fraction(1),) * 2)
    ticks = np.linspace(-1, 1, 9)[:-1]
    low = np.array([[x, y] for x in ticks for y in ticks])
    with np.errstate(all="ignore"):
        shares = pair.judge(low, low + 0.25).astype(float) / program.ONE
    x = low[:, None] + 0.25 * np.random.default_rng(0).random((len(low), 400, 2))
    outputs = [
        onnx.load(path)(torch.from_numpy(x).float().reshape(-1, 2)).reshape(len(low), 400, 3) for path in case[:2]
    ]
    other = (outputs[0].argmax(2) != outputs[1].argmax(2)).double().mean(1).numpy()
    differs = (outputs[0] != outputs[1]).any(2).double().mean(1).numpy()
    spread = 5 / np.sqrt(4 * 400)
    assert (shares[:, 0] >= other - spread * (shares[:, 0] > 0)).all()
    assert (shares[:, 1] <= other + spread).all()
    assert (shares[:, 2] >= differs - spread * (shares[:, 2] > 0)).all()
    assert 0 < shares[:, 1].mean() < other.mean() + 0.02 < shares[:, 0].mean() + 0.04


def test_parts_that_are_halved_keep_their_volumes(case: tuple[Path, Path, Comparison]) -> None:
    """Whatever leaves most open: each half is asked for what its whole was asked for, and no other."""
    program = checker()
    layers = tuple(program.read_network(path.read_bytes()) for path in case[:2])
    pair = program.Pair(layers, -1, (Fraction(-1),) * 2, (Fraction(1),) * 2)
    ticks = np.linspace(-1, 1, 5)[:-1]
    tasks = [
        (low, low + 0.5, int(bits)) for bits in (1, 2, 4) for low in np.array([[x, y] for x in ticks for y in ticks])
    ]
    with np.errstate(all="ignore"):
        sums = program.Sums(pair, tasks)
        before = sums.totals()
        assert sums.refine([0, 1, 2], 30) > 10
    for bits in (1, 2, 4):
        parts = sums.bits == bits
        assert sums.volume[parts].sum() == 4, "the parts of a volume do not cover the region once"
        assert len(np.unique(np.hstack([sums.low, sums.high])[parts], axis=0)) == parts.sum()
    after = sums.totals()
    assert after[0] <= before[0] and after[1] >= before[1] and after[2] <= before[2]


@pytest.mark.parametrize("tiny", [5e-324, 1e-200])
def test_a_change_whose_products_are_no_floats_is_one(tiny: float, tmp_path: Path) -> None:
    """Before, both outputs are 0, and the first is the largest; after, the second is above 0 almost everywhere."""
    nets = [nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double() for _ in range(2)]
    with torch.no_grad():
        for net, value in zip(nets, (0.0, tiny), strict=True):
            for parameter in net.parameters():
                parameter.zero_()
            net[0].weight.fill_(1.0 if tiny < 1e-300 else tiny)
            net[2].weight[1] = value
    files = [tmp_path / name for name in ("f.onnx", "g.onnx")]
    for net, file in zip(nets, files, strict=True):
        onnx.save(net, torch.zeros(1, 1, dtype=torch.float64), file)
    found = compare(files[0], files[1], Box([0], [Fraction(1, 4)]), until=0.1, timeout=2)
    assert found.same < 0.01
    proof = ComparisonCertificate(
        "argmax",
        (Box([0], [Fraction(1, 4)]),),
        0,
        GRID,
        0,
        np.array([-1], np.int16),
        np.zeros(0),
        np.array([7], np.uint8),
        None,
        None,
        {},
    ).for_networks(*files)
    code, said = judged(proof, (files[0], files[1], found), tmp_path / "c.npz")
    assert code == checkers.REJECTED, said


def more(name: str) -> Callable[[ComparisonCertificate], dict[str, Any]]:
    """Return what claims more of one share than is true."""
    return lambda c: {name: GRID - (GRID - getattr(c, name)) // 4}


def other(name: str, map: Callable[[Any], Any]) -> Callable[[ComparisonCertificate], dict[str, Any]]:
    """Return what changes an array."""

    def change(c: ComparisonCertificate) -> dict[str, Any]:
        array = getattr(c, name).copy()
        return {name: map(array)}

    return change


def put(array: Any, index: Any, value: Any) -> Any:
    array[index] = value
    return array


FORGED: dict[str, Callable[[ComparisonCertificate], dict[str, Any]]] = {
    "more identical": more("identical"),
    "more same": more("same"),
    "more changed": lambda c: {"changed": 2 * c.changed + GRID // 20},
    "all the same": lambda c: {"same": GRID, "identical": GRID},
    "more than all": lambda c: {"same": 2 * GRID},
    "negative": lambda c: {"changed": -1},
    "other network": lambda c: {"before_sha256": c.after_sha256},
    "other decision": lambda c: {"decision": "argmin"},
    "unknown decision": lambda c: {"decision": "max"},
    "overlapping boxes": lambda c: {"boxes": (c.boxes[0], Box([-1, -1], [1, 1]))},
    "a box twice": lambda c: {"boxes": (c.boxes[0], c.boxes[0])},
    "fewer boxes": lambda c: {"boxes": c.boxes[:1]},
    "another input": lambda c: {"boxes": tuple(Box([0, 0, 0], [1, 1, 1]) for _ in c.boxes)},
    "a part left out": lambda c: {"dim": c.dim[:-1], "taken": c.taken[:-1]},
    "a part too many": lambda c: {"dim": np.append(c.dim, c.dim[-1:]), "taken": np.append(c.taken, c.taken[-1:])},
    "nothing taken": other("taken", lambda v: v * 0),
    "a leaf open": other("taken", lambda v: put(v, -1, 0)),
    "an input that is not there": other("dim", lambda v: put(v, 0, 2)),
    "a cut outside": other("cut", lambda v: put(v, 0, 5.0)),
    "no number": other("cut", lambda v: put(v, 0, np.nan)),
    "cuts left out": lambda c: {"cut": c.cut[:-1]},
    "one leaf alone": lambda c: {
        "dim": np.full(2, -1, np.int16),
        "cut": np.zeros(0),
        "taken": np.full(2, 7, np.uint8),
        "same": GRID - 1,
        "changed": 0,
    },
    "wide integers": lambda c: {"dim": c.dim.astype(np.int64)},
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_ones_are_rejected(kind: str, case: tuple[Path, Path, Comparison], tmp_path: Path) -> None:
    proof = case[2].certificate
    assert proof is not None
    forged = dataclasses.replace(proof, **FORGED[kind](proof))
    code, said = judged(forged, case, tmp_path / "c.npz")
    assert code == checkers.REJECTED, said


def test_networks_that_differ_elsewhere_are_not_read(case: tuple[Path, Path, Comparison], tmp_path: Path) -> None:
    deep = changed(network((2, 8, 8, 3), 0), (0, 4), 100, 0.5, False)
    file = written(deep, tmp_path / "deep.onnx")
    proof = case[2].certificate
    assert proof is not None
    code, said = judged(proof.for_networks(case[0], file), (case[0], file, case[2]), tmp_path / "c.npz")
    assert (code, "other layers" in said) == (checkers.UNREADABLE, True)


def test_a_model_in_memory_needs_files_first(tmp_path: Path) -> None:
    before = network((2, 4, 3), 0)
    found = compare(before, changed(before, (2,), 1, 0.5, True), Box([0, 0], [1, 1]), until=0.5)
    assert found.certificate is not None
    with pytest.raises(InvalidInput, match="for_networks"):
        found.certificate.save(tmp_path / "c.npz")


def test_volumes_that_no_float_holds_are_written() -> None:
    program = checker()
    assert [program.sized(Fraction(v)) for v in ("4", "1/3")] == ["4", "0.333333333"]
    assert program.sized(Fraction(16) * 10**320) == "1.60000000e+321"
    assert program.sized(Fraction(1, 10**400)) == "1e-400"
