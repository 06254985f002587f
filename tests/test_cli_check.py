"""The command `nnrepair check` on tiny networks: what it says and writes, and with which exit code."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from disks import ODD, elsewhere, fills_up, odd
from torch import nn

pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper
from suites import one_by_one

from nnrepair import cli
from nnrepair.verify import CheckResult
from nnrepair.verify.certificate import PropertyCertificate, sha256
from nnrepair.verify.suite import suite

#: y = (|a|, a + b)
W1 = np.array([[1, 0], [-1, 0], [1, 1], [-1, -1]], np.float32)
W2 = np.array([[1, 1, 0, 0], [0, 0, 1, -1]], np.float32)


def function(x: np.ndarray) -> np.ndarray:
    return W2 @ np.maximum(W1 @ x, 0)


def unsafe(condition: str, inputs: int = 2) -> str:
    """Return a VNN-LIB property that no output on the unit box satisfies `condition`."""
    names = [f"X_{i}" for i in range(inputs)]
    lines = [f"(declare-const {name} Real)" for name in [*names, "Y_0", "Y_1"]]
    lines += [f"(assert (>= {name} -1.0))\n(assert (<= {name} 1.0))" for name in names]
    return "\n".join([*lines, f"(assert {condition})"]) + "\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with net.onnx and a property of each kind."""
    folder = tmp_path_factory.mktemp("check")
    nodes = [helper.make_node("MatMul", ["x", "W1"], ["a"]), helper.make_node("Relu", ["a"], ["r"])]
    nodes.append(helper.make_node("MatMul", ["r", "W2"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    weights = [numpy_helper.from_array(np.ascontiguousarray(W.T), name) for name, W in (("W1", W1), ("W2", W2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    (folder / "holds.vnnlib").write_text(unsafe("(<= Y_0 -0.5)"))
    (folder / "violated.vnnlib").write_text(unsafe("(>= Y_1 1.5)"))
    (folder / "wide.vnnlib").write_text(unsafe("(<= Y_0 -0.5)", inputs=3))
    with gzip.open(folder / "zipped.vnnlib.gz", "wt") as file:
        file.write(unsafe("(<= Y_0 -0.5)"))
    return folder


def run(*arguments: object) -> int:
    return cli.main(["check", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line on stderr of a command that must fail with 3."""
    assert run(*arguments) == 3
    said = capsys.readouterr()
    assert said.err.startswith("nnrepair: error: ") and said.err.count("\n") == 1 and said.out == ""
    return said.err


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Give the `.result` that `check` will return, to be changed; the options it was given land in `.asked`."""
    given = SimpleNamespace(
        result=CheckResult("unknown", None, 9, 1.0, 2.0, None, 0.5, -0.25, "the time limit was reached")
    )

    def check(model: Any, property: Any, **options: Any) -> CheckResult:
        given.asked = options
        return given.result

    monkeypatch.setattr("nnrepair.cli.check.check", check)
    return given


def test_a_property_that_holds(base: Path, tmp_path: Path, capsys) -> None:
    proof, out = tmp_path / "proof.npz", tmp_path / "out.txt"
    options = ["--certificate", proof, "--vnncomp", out, "--timeout", 60]
    assert run(base / "net.onnx", base / "holds.vnnlib", *options) == 0
    said = capsys.readouterr()
    assert said.out.startswith("holds") and "1 box" in said.out and "CPU s" in said.out and said.err == ""
    command = f"nnrepair certify {proof} {base / 'net.onnx'} {base / 'holds.vnnlib'}"
    assert f"check it: {command}\n" in said.out
    assert cli.main(command.split()[1:]) == 0
    assert capsys.readouterr().out.startswith("Accepted: ")
    assert PropertyCertificate.load(proof).network_sha256 == sha256(base / "net.onnx")
    assert out.read_text() == "unsat\n"


def test_networks_as_competitions_ship_them(base: Path, tmp_path: Path, capsys) -> None:
    packed, proof = tmp_path / "net.onnx.gz", tmp_path / "proof.npz"
    packed.write_bytes(gzip.compress((base / "net.onnx").read_bytes()))
    assert run(packed, base / "holds.vnnlib", "--certificate", proof) == 0
    assert cli.main(["certify", str(proof), str(packed), str(base / "holds.vnnlib")]) == 0
    assert "Accepted: " in capsys.readouterr().out
    (tmp_path / "list.csv").write_text(f"net.onnx,{base / 'violated.vnnlib'},20\n")
    assert run("--suite", tmp_path / "list.csv", "--out", tmp_path / "out", "--jobs", 1) == 1
    (row,) = (tmp_path / "out" / "instances").iterdir()
    assert '"onnxruntime"' in row.read_text()


def test_a_property_that_is_violated(base: Path, tmp_path: Path, capsys) -> None:
    proof, out = tmp_path / "proof.npz", tmp_path / "out.txt"
    options = ["--certificate", proof, "--vnncomp", out]
    assert run(base / "net.onnx", base / "violated.vnnlib", *options) == 1
    said = capsys.readouterr().out
    assert said.startswith("violated") and f"not written: {proof}" in said and not proof.exists()

    word, _, text = out.read_text().partition("\n")
    assert word == "sat" and re.fullmatch(r"\(\(\S+ \S+\)(\n \(\S+ \S+\))*\)\n", text)
    values = {name: float(value) for name, value in re.findall(r"\((\w+) (\S+?)\)", text)}
    assert list(values) == ["X_0", "X_1", "Y_0", "Y_1"]
    x, y = np.array([values["X_0"], values["X_1"]]), np.array([values["Y_0"], values["Y_1"]])
    assert (abs(x) <= 1).all() and y[1] >= 1.5
    assert function(x) == pytest.approx(y, abs=1e-6)
    assert "input  [" in said and "output [" in said and "inside the unsafe set" in said


def test_a_property_that_stays_unknown(base: Path, tmp_path: Path, answer: SimpleNamespace, capsys) -> None:
    proof, out = tmp_path / "proof.npz", tmp_path / "out.txt"
    arguments = [base / "net.onnx", base / "holds.vnnlib", "--certificate", proof, "--vnncomp", out]
    assert run(*arguments, "--timeout", "1.5", "--seed", 4) == 2
    said = capsys.readouterr().out
    assert (
        "the time limit was reached" in said and "50.0%" in said and "-0.25" in said and f"not written: {proof}" in said
    )
    assert out.read_text() == "timeout\n"
    asked = answer.asked
    assert (asked["timeout"], asked["seed"], asked["certificate"], asked["progress"]) == (1.5, 4, True, False)
    assert run(*arguments, "--timeout", "5", "--quiet") == 2
    assert out.read_text() == "unknown\n"
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("not written")


def test_a_proof_without_certificate_is_said_so(base: Path, tmp_path: Path, answer: SimpleNamespace, capsys) -> None:
    answer.result = CheckResult("holds")
    assert run(base / "net.onnx", base / "holds.vnnlib", "--certificate", tmp_path / "c.npz") == 0
    assert "cannot be written as a certificate" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["proof.npz", "out.txt", ""])
def test_a_disk_that_fills_up_costs_no_verdict(
    base: Path, tmp_path: Path, answer: SimpleNamespace, capsys, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    temporary, folder = elsewhere(monkeypatch, tmp_path / "elsewhere"), tmp_path / "folder"
    folder.mkdir()
    proof = PropertyCertificate(1, np.array([-1], np.int16), np.zeros(0), "0" * 64, "0" * 64, {})
    answer.result = CheckResult("holds", None, 9, 1.0, 2.0, proof)
    fills_up(monkeypatch, folder, file=missing)
    command = [base / "net.onnx", base / "holds.vnnlib", "--certificate", folder / "proof.npz"]
    assert run(*command, "--vnncomp", folder / "out.txt") == 3
    said = capsys.readouterr()
    places = {path.name: path for path in temporary.glob("*/*")}
    assert said.out.startswith("holds") and set(places) == ({missing} if missing else {"proof.npz", "out.txt"})
    assert all(f"it was saved as {path} instead" in said.err for path in places.values())
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    found = {name: places.get(name, folder / name) for name in ("proof.npz", "out.txt")}
    assert PropertyCertificate.load(found["proof.npz"]).network_sha256 == "0" * 64
    assert f"nnrepair certify {found['proof.npz']}" in said.out
    assert found["out.txt"].read_text() == "unsat\n"


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "a zero byte"])
def test_odd_places_are_told_before_the_work(
    base: Path, tmp_path: Path, answer: SimpleNamespace, capsys, kind: str
) -> None:
    path = odd(tmp_path, kind)
    for option in ("--certificate", "--vnncomp"):
        refused(capsys, base / "net.onnx", base / "holds.vnnlib", option, path)
    assert not hasattr(answer, "asked")


def test_zipped_properties(base: Path, capsys) -> None:
    assert run(base / "net.onnx", base / "zipped.vnnlib.gz", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_pt2_models(base: Path, tmp_path: Path, capsys) -> None:
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).eval()
    model.load_state_dict({"0.weight": torch.from_numpy(W1), "2.weight": torch.from_numpy(W2)})
    program = torch.export.export(model, (torch.zeros(2, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    assert run(tmp_path / "net.pt2", base / "violated.vnnlib") == 1
    said = capsys.readouterr()
    assert "exported to ONNX" in said.out and said.err == ""
    proof = ["--certificate", tmp_path / "c.npz"]
    assert "nnrepair.onnx.save" in refused(capsys, tmp_path / "net.pt2", base / "holds.vnnlib", *proof)


def test_a_suite(base: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.onnx").write_bytes((base / "net.onnx").read_bytes()[:-30])
    path, truth = tmp_path / "list.csv", tmp_path / "truth.csv"
    rows = [("net.onnx", "holds.vnnlib"), ("net.onnx", "violated.vnnlib"), ("net.onnx", "wide.vnnlib")]
    lines = [f"{base / network},{base / property_},60\n" for network, property_ in rows]
    path.write_text("".join(lines[:2]))
    truth.write_text("network,property,verdict\nnet.onnx,holds.vnnlib,unsat\nnet.onnx,violated.vnnlib,sat\n")
    monkeypatch.chdir(tmp_path)
    options = ["--certificates", tmp_path / "proofs", "--expect", truth, "--timeout", 30]
    assert run("--suite", path, *options, "--jobs", 1) == 1
    said = capsys.readouterr()
    assert "2 instances: 1 hold, 1 violated, 0 unknown, 0 errors" in said.out and "of which 0 are wrong" in said.out
    assert said.err == "" and (tmp_path / "list-results" / "results.csv").read_text().count("\n") == 2
    assert [p.name for p in (tmp_path / "proofs").iterdir()] == ["net__holds.npz"]

    assert "--resume" in refused(capsys, "--suite", path, *options)
    assert run("--suite", path, *options, "--resume", "--quiet") == 1
    assert capsys.readouterr() == ("", "")
    truth.write_text("network,property,verdict\nnet.onnx,holds.vnnlib,sat\n")
    assert run("--suite", path, *options, "--resume", "--quiet") == 3
    assert "WRONG" in capsys.readouterr().err

    monkeypatch.setattr(suite, "in_processes", one_by_one)
    path.write_text("".join([lines[2], f"broken.onnx,{base / 'holds.vnnlib'},60\n"]))
    assert run("--suite", path, "--out", "new", "--jobs", 1) == 3
    said = capsys.readouterr().out
    assert "0 unknown, 2 errors" in said and "broken.onnx with" in said and "cut short" in said


@pytest.mark.data
def test_published_instances_of_acas_xu(data_dir, tmp_path: Path, capsys) -> None:
    files = ("acasxu_instances.csv", "ground_truth.csv", "onnx", "vnnlib")
    folder = data_dir(*(f"acasxu/{file}" for file in files)) / "acasxu"
    path = tmp_path / "few.csv"
    few = [("onnx/ACASXU_run2a_1_1_batch_2000.onnx", "1"), ("onnx/ACASXU_run2a_2_1_batch_2000.onnx", "2")]
    path.write_text("".join(f"{folder / net},{folder / 'vnnlib'}/prop_{k}.vnnlib,60\n" for net, k in few))
    options = [
        "--expect",
        folder / "ground_truth.csv",
        "--out",
        tmp_path / "out",
        "--certificates",
        tmp_path / "proofs",
    ]
    assert run("--suite", path, *options) == 1
    assert "compared with the expected verdicts: 2, of which 0 are wrong" in capsys.readouterr().out
    words = [line.split(",")[4] for line in (tmp_path / "out" / "results.csv").read_text().splitlines()]
    assert words == ["unsat", "sat"]
    assert [p.name for p in (tmp_path / "proofs").iterdir()] == ["ACASXU_run2a_1_1_batch_2000__prop_1.npz"]


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _files(self, base: Path, tmp_path: Path, capsys) -> None:
        self.net, self.holds, self.base, self.folder = base / "net.onnx", base / "holds.vnnlib", base, tmp_path
        self.capsys = capsys

    def refused(self, *arguments: object) -> str:
        return refused(self.capsys, *arguments)

    def test_files_that_cannot_be_used(self) -> None:
        assert "none.onnx" in self.refused(self.folder / "none.onnx", self.holds)
        assert "none.vnnlib" in self.refused(self.net, self.folder / "none.vnnlib")
        bad = self.folder / "bad.onnx"
        bad.write_bytes(self.net.read_bytes()[:-30])
        assert "cut short" in self.refused(bad, self.holds)
        bad = self.folder / "bad.vnnlib"
        bad.write_text(self.holds.read_text()[:-5])
        assert "bad.vnnlib" in self.refused(self.net, bad)
        assert "torch.export" in self.refused(self.folder / "model.pt", self.holds)

    def test_a_property_for_another_number_of_inputs(self) -> None:
        error = self.refused(self.net, self.base / "wide.vnnlib")
        assert "2" in error and "3" in error

    def test_options_that_do_not_go_together(self) -> None:
        assert "MODEL.onnx PROPERTY.vnnlib" in self.refused()
        assert "MODEL.onnx PROPERTY.vnnlib" in self.refused(self.net)
        assert "--jobs and --resume belong to --suite" in self.refused(self.net, self.holds, "--resume", "--jobs", 2)
        assert "leave out" in self.refused(self.net, self.holds, "--suite", "list.csv")
        assert "leave out --jobs" in self.refused("--suite", "list.csv", "--dask", "tcp://here:1", "--jobs", 2)
        assert "--certificates DIR" in self.refused("--suite", "list.csv", "--certificate", "c.npz")
        assert "--timeout is 0" in self.refused(self.net, self.holds, "--timeout", 0)
        assert "list.csv cannot be read" in self.refused("--suite", self.folder / "list.csv")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there, so asking for it is no error")
    def test_cuda_that_is_absent(self) -> None:
        assert "no such device" in self.refused(self.net, self.holds, "--device", "cuda")

    def test_outputs_that_cannot_be_written(self) -> None:
        assert "no folder" in self.refused(self.net, self.holds, "--vnncomp", self.folder / "none" / "out.txt")
        before = self.net.read_bytes()
        assert "named twice" in self.refused(self.net, self.holds, "--certificate", self.net)
        assert self.net.read_bytes() == before

    def test_a_wrong_command_line_is_no_unknown(self) -> None:
        for arguments in (["--jobs", "two"], ["a", "b", "c"], ["--none"]):
            with pytest.raises(SystemExit) as stopped:
                run(*arguments)
            assert stopped.value.code == 3

    def test_help_tells_the_exit_codes(self) -> None:
        with pytest.raises(SystemExit) as stopped:
            run("--help")
        assert stopped.value.code == 0 and "2  unknown" in self.capsys.readouterr().out
