"""The command line on tiny models: what it writes, what it says, and with which exit code."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import ODD, elsewhere, fills_up, odd
from torch import nn

import nnrepair
from nnrepair import cli, onnx
from nnrepair.cli.method_options import options_of
from nnrepair.cli.model_file import ModelFile
from nnrepair.cli.parser import command_line
from nnrepair.fingerprint import fingerprint
from nnrepair.methods import EditableTraining, Editor, FineTune, LearnedSteps
from nnrepair.methods.base import capabilities_of, distinct
from nnrepair.results.certificate import Certificate
from nnrepair.results.patch import Patch


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(OrderedDict(fc1=nn.Linear(4, 6), relu=nn.ReLU(), fc2=nn.Linear(6, 3))).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with base.onnx, base.pt2, and edits and points to keep as .npz."""
    folder = tmp_path_factory.mktemp("models")
    model, points = network(), torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    onnx.save(model, points[:1], folder / "base.onnx")
    program = torch.export.export(model, (points[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "base.pt2")
    with torch.no_grad():
        order = model(points).argsort(1, descending=True)
    np.savez(folder / "edits.npz", inputs=points[:2].numpy(), labels=order[:2, 1].numpy())
    np.savez(folder / "keep.npz", inputs=points[20:].numpy())
    np.savez(folder / "scope.npz", inputs=points[:2].numpy() + 1e-3, labels=order[:2, 1].numpy())
    np.savez(folder / "right.npz", inputs=points[:2].numpy(), labels=order[:2, 0].numpy())
    return folder


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line on stderr of a command that must fail with 3."""
    assert run(*arguments) == 3
    error = capsys.readouterr().err
    assert error.startswith("nnrepair: error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


def labels_of(path: Path, inputs: np.ndarray) -> np.ndarray:
    model = ModelFile.load(path).model
    with torch.no_grad():
        return model(torch.from_numpy(inputs)).argmax(1).numpy()


def test_fix_works_towards_neighbours(base: Path, tmp_path: Path, capsys) -> None:
    options = ["--layer", "fc2", "--edits", base / "edits.npz", "--locality", base / "keep.npz"]
    options += ["--neighbours", base / "scope.npz", "--report", tmp_path / "report.json"]
    assert run("fix", base / "base.onnx", *options, "--out", tmp_path / "out.onnx") == 0
    assert "neighbours: 2 of 2 hold, 0 did before" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["files"]["neighbours"] == str(base / "scope.npz")


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_fix_then_patch_apply_then_revert(base: Path, kind: str, tmp_path: Path, capsys) -> None:
    model, out = base / f"base.{kind}", tmp_path / f"repaired.{kind}"
    again, back, patch = tmp_path / f"again.{kind}", tmp_path / f"back.{kind}", tmp_path / "fix.safetensors"
    code = run("fix", model, "--edits", base / "edits.npz", "--locality", base / "keep.npz", "--out", out)
    assert code == 0
    options = ["--layer", "fc2", "--norm", "l1", "--patch", patch, "--out", out, "--report", tmp_path / "report.json"]
    options += ["--locality", base / "keep.npz", "--scope", base / "scope.npz"]
    assert run("fix", model, "--edits", base / "edits.npz", *options) == 0
    said = capsys.readouterr().out
    assert "repaired: all 2 edits hold" in said and f"wrote {patch}" in said

    edits, keep = np.load(base / "edits.npz"), np.load(base / "keep.npz")
    assert (labels_of(out, edits["inputs"]) == edits["labels"]).all()
    assert (labels_of(out, keep["inputs"]) == labels_of(model, keep["inputs"])).all()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["outcome"]["status"] == "repaired" and report["report"]["held_after"] == [True, True]
    assert report["report"]["generalization_rate"] == 1.0 and report["stats"]["norm"] == "l1"

    assert run("patch", "show", patch) == 0
    assert "fc2.weight" in capsys.readouterr().out
    assert run("patch", "apply", patch, model, "--out", again) == 0
    assert run("patch", "revert", patch, again, "--out", back) == 0
    prints = [fingerprint(ModelFile.load(path).model) for path in (model, out, again, back)]
    assert prints[0] == prints[3] == fingerprint(network()) and prints[1] == prints[2] != prints[0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_edits_beside_the_weights(base: Path, tmp_path: Path, capsys) -> None:
    """A stitched network is written like any other; of a codebook there is the patch."""
    model, out, again, patch = base / "base.onnx", tmp_path / "out.onnx", tmp_path / "again.onnx", tmp_path / "fix"
    asked = [
        "fix",
        model,
        "--edits",
        base / "edits.npz",
        "--locality",
        base / "keep.npz",
        "--out",
        out,
        "--patch",
        patch,
    ]
    assert run(*asked, "--method", "egnn", "--lr", "0.01") == 0
    edits = np.load(base / "edits.npz")
    assert run("patch", "show", patch) == 0 and "puts on Stitched: " in capsys.readouterr().out
    assert run("patch", "apply", patch, model, "--out", again) == 0
    for path in (out, again):
        assert (labels_of(path, edits["inputs"]) == edits["labels"]).all()
    out.unlink()
    capsys.readouterr()
    assert run(*asked, "--method", "grace") == 3
    assert "A Codebook cannot be written as .onnx or .pt2" in capsys.readouterr().err and not out.exists()
    applied = Patch.load(patch).apply(ModelFile.load(model).model)
    with torch.no_grad():
        assert (applied(torch.from_numpy(edits["inputs"])).argmax(1).numpy() == edits["labels"]).all()


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8])
def test_labels_of_answers(outputs: int, dtype: type, tmp_path: Path, capsys) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs)).eval()
    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    onnx.save(model, points[:1], tmp_path / "base.onnx")
    with torch.no_grad():
        right = (model(points) > 0).numpy()
    wrong = right[:2].copy()
    wrong[:, 0] = ~wrong[:, 0]
    labels = (lambda x: x.astype(dtype)) if outputs > 1 else (lambda x: x[:, 0].astype(dtype))
    np.savez(tmp_path / "edits.npz", inputs=points[:2].numpy(), labels=labels(wrong))
    np.savez(tmp_path / "keep.npz", inputs=points[2:20].numpy())
    np.savez(tmp_path / "test.npz", inputs=points[20:].numpy(), labels=labels(right[20:]))
    files = ["--edits", tmp_path / "edits.npz", "--locality", tmp_path / "keep.npz", "--test", tmp_path / "test.npz"]
    files += ["--out", tmp_path / "out.onnx", "--report", tmp_path / "report.json"]
    assert run("fix", tmp_path / "base.onnx", *files, "--method", "ft") == 0
    repaired = ModelFile.load(tmp_path / "out.onnx").model
    with torch.no_grad():
        after = (repaired(points) > 0).numpy()
    assert (after[:2] == wrong).all()
    report = json.loads((tmp_path / "report.json").read_text())["report"]
    assert report["locality"] == pytest.approx((after[2:20] == right[2:20]).all(1).mean())
    test = report["tests"]["test set"]
    assert test["accuracy_before"] == 1.0
    assert test["accuracy_after"] == pytest.approx((after[20:] == right[20:]).all(1).mean())
    assert test["decisions"] == outputs and "decisions unchanged" in capsys.readouterr().out


def test_a_repaired_onnx_file_is_the_same_file_with_other_weights(base: Path, tmp_path: Path) -> None:
    import onnx as onnx_package

    out = tmp_path / "out.onnx"
    assert run("fix", base / "base.onnx", "--edits", base / "edits.npz", "--layer", "fc2", "--out", out, "--quiet") == 0
    before, after = (onnx_package.load(path) for path in (base / "base.onnx", out))
    assert before.graph.node == after.graph.node
    differ = [a.name for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True) if a != b]
    assert differ and set(differ) <= {"fc2.weight", "fc2.bias"}


def test_the_certificate_of_a_file_with_other_names_is_accepted(tmp_path: Path, capsys) -> None:
    """Files call their tensors as they like, and may keep weights transposed."""
    import onnx as onnx_package
    from onnx import TensorProto, helper, numpy_helper

    model = network()
    arrays = {
        "W1": model.fc1.weight.detach().numpy().T,
        "c1": model.fc1.bias.detach().numpy(),
        "W2": model.fc2.weight.detach().numpy().T,
        "c2": model.fc2.bias.detach().numpy(),
    }
    nodes = [helper.make_node("Gemm", ["x", "W1", "c1"], ["a"]), helper.make_node("Relu", ["a"], ["r"])]
    nodes += [helper.make_node("Gemm", ["r", "W2", "c2"], ["y"], name="last")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 4), ("y", 3))]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx_package.save(proto, tmp_path / "named.onnx")
    points = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        order = model(points).argsort(1, descending=True)
    np.savez(tmp_path / "edits.npz", inputs=points[:1].numpy(), labels=order[:1, 1].numpy())
    files = ["--out", tmp_path / "out.onnx", "--certificate", tmp_path / "c.npz"]
    options = ["--layer", "last", "--norm", "l1"]
    assert run("fix", tmp_path / "named.onnx", "--edits", tmp_path / "edits.npz", *options, *files) == 0
    assert Certificate.load(tmp_path / "c.npz").weight == "W2"
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("check it: nnrepair "))
    assert run(*shlex.split(told)[3:]) == 0
    assert capsys.readouterr().out.startswith("ACCEPTED\nThe edit holds")


@pytest.mark.parametrize(("kind", "other"), [("pt2", "onnx"), ("onnx", "pt2")])
def test_the_other_format_can_be_written(base: Path, kind: str, other: str, tmp_path: Path) -> None:
    out = tmp_path / f"out.{other}"
    assert run("fix", base / f"base.{kind}", "--edits", base / "edits.npz", "--out", out, "--quiet") == 0
    edits = np.load(base / "edits.npz")
    assert (labels_of(out, edits["inputs"]) == edits["labels"]).all()


def test_edits_that_hold_already_exit_0_and_change_nothing(base: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.onnx"
    assert run("fix", base / "base.onnx", "--edits", base / "right.npz", "--out", out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert fingerprint(onnx.load(out)) == fingerprint(onnx.load(base / "base.onnx"))


def test_an_infeasible_repair_exits_1_with_a_report_and_no_model(base: Path, tmp_path: Path, capsys) -> None:
    point = np.ones((1, 4), np.float32)
    np.savez(tmp_path / "edits.npz", inputs=np.concatenate([point, 2 * point, 3 * point]), labels=np.array([0, 1, 0]))
    files = {name: tmp_path / name for name in ("out.onnx", "p.safetensors", "c.npz", "report.json")}
    options = ["--layer", "fc2.bias", "--out", files["out.onnx"], "--patch", files["p.safetensors"]]
    options += ["--certificate", files["c.npz"], "--report", files["report.json"]]
    assert run("fix", base / "base.onnx", "--edits", tmp_path / "edits.npz", *options) == 1
    assert "not written, because not every edit holds" in capsys.readouterr().out
    assert [name for name, path in files.items() if path.exists()] == ["report.json"]
    report = json.loads(files["report.json"].read_text())
    assert report["outcome"]["status"] in ("infeasible", "partly repaired") and report["outcome"]["failing"]


def test_quiet_prints_nothing(base: Path, tmp_path: Path, capsys) -> None:
    options = ["--edits", base / "edits.npz", "--out", tmp_path / "o.onnx", "--quiet"]
    assert run("fix", base / "base.onnx", *options) == 0
    assert capsys.readouterr() == ("", "")


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _fix(self, base: Path, tmp_path: Path, capsys) -> None:
        self.base, self.folder, self.out, self.capsys = base, tmp_path, tmp_path / "out.onnx", capsys

    def fix(self, *options: object, model: str = "base.onnx", edits: object = None) -> str:
        chosen = self.base / "edits.npz" if edits is None else edits
        error = refused(self.capsys, "fix", self.base / model, "--edits", chosen, "--out", self.out, *options)
        assert not self.out.exists()
        return error

    def test_truncated_npz(self) -> None:
        bad = self.folder / "bad.npz"
        bad.write_bytes((self.base / "edits.npz").read_bytes()[:-40])
        assert "no .npz file of plain numbers" in self.fix(edits=bad)

    def test_not_an_npz(self) -> None:
        bad = self.folder / "bad.npz"
        bad.write_text("inputs,labels\n")
        assert "numpy.savez" in self.fix(edits=bad)
        np.save(self.folder / "one.npy", np.zeros(3))
        assert "single array" in self.fix(edits=self.folder / "one.npy")

    def test_missing_file_and_arrays(self) -> None:
        assert "there is no file" in self.fix(edits=self.folder / "none.npz")
        np.savez(self.folder / "x.npz", x=np.zeros((2, 4)))
        error = self.fix(edits=self.folder / "x.npz")
        assert "lacks inputs and labels; it has x" in error
        assert "--scope" in self.fix("--scope", self.base / "keep.npz")
        assert "--neighbours" in self.fix("--neighbours", self.base / "keep.npz")

    def test_pickled_arrays_are_not_opened(self) -> None:
        np.savez(self.folder / "o.npz", inputs=np.array([{}], dtype=object), labels=np.array([0]))
        assert "no .npz file of plain numbers" in self.fix(edits=self.folder / "o.npz")

    def test_inputs_of_another_shape(self) -> None:
        np.savez(self.folder / "wide.npz", inputs=np.zeros((2, 9), np.float32), labels=np.array([0, 1]))
        assert "(2, 9)" in self.fix(edits=self.folder / "wide.npz")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there, so asking for it is no error")
    def test_cuda_that_is_absent_is_said_so(self) -> None:
        assert "no such device" in self.fix("--device", "cuda")

    def test_unknown_layer_names_a_near_match(self) -> None:
        assert "Did you mean 'fc2'" in self.fix("--layer", "fc22")

    def test_unknown_method_and_norm(self) -> None:
        assert "'minimal-norm'" in self.fix("--method", "minimal-nrom")
        assert "l1, linf" in self.fix("--norm", "l3")

    def test_pickled_models_say_how_to_export(self) -> None:
        torch.save(network(), self.folder / "m.pt")
        for name in ("m.pt", "m.pth"):
            error = refused(self.capsys, "fix", self.folder / name, "--edits", "e.npz", "--out", self.out)
            assert "torch.export.save" in error

    def test_a_model_for_one_batch_size_says_how_to_export(self) -> None:
        torch.export.save(torch.export.export(network(), (torch.zeros(1, 4),)), self.folder / "one.pt2")
        command = ["fix", self.folder / "one.pt2", "--edits", self.base / "edits.npz", "--out", self.out]
        assert "batches of 1 only" in refused(self.capsys, *command)

    def test_damaged_models(self) -> None:
        for name in ("base.onnx", "base.pt2"):
            bad = self.folder / name
            bad.write_bytes((self.base / name).read_bytes()[:200])
            command = ["fix", bad, "--edits", self.base / "edits.npz", "--out", self.out]
            assert name in refused(self.capsys, *command)

    def test_example_inputs_are_not_unpickled(self) -> None:
        import pickle
        import zipfile

        class Payload:
            def __reduce__(self) -> tuple[object, tuple[object, ...]]:
                return Path.touch, (Path(marker),)

        marker = str(self.folder / "ran")
        with zipfile.ZipFile(self.base / "base.pt2") as source, zipfile.ZipFile(self.folder / "m.pt2", "w") as bad:
            for info in source.infolist():
                content = source.read(info)
                bad.writestr(info, pickle.dumps(Payload()) if "sample_inputs" in info.filename else content)
        refused(self.capsys, "fix", self.folder / "m.pt2", "--edits", self.base / "edits.npz", "--out", self.out)
        assert not Path(marker).exists()

    def test_outputs_that_cannot_be_written(self) -> None:
        model, edits = self.base / "base.onnx", self.base / "edits.npz"
        for out, what in (("out.pt", ".onnx or .pt2"), ("none/out.onnx", "no folder")):
            assert what in refused(self.capsys, "fix", model, "--edits", edits, "--out", self.folder / out)
        before = model.read_bytes()
        assert "named twice" in refused(self.capsys, "fix", model, "--edits", edits, "--out", model)
        assert model.read_bytes() == before
        assert "leave out --architecture" in self.fix("--architecture", "decoupled")

    def test_nothing_that_is_read_is_written(self) -> None:
        import onnx as onnx_package

        files = [path.name for path in self.base.iterdir()]
        for name in files:
            (self.folder / name).write_bytes((self.base / name).read_bytes())
        proto = onnx_package.load(self.folder / "base.onnx")
        onnx_package.save(
            proto, self.folder / "base.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        before = {path: path.read_bytes() for path in self.folder.iterdir()}
        command = ["fix", self.folder / "base.onnx", "--edits", self.folder / "edits.npz", "--out", self.out]
        np.savez(self.folder / "near.npz", inputs=np.zeros((1, 4), np.float32), labels=[0])
        before[self.folder / "near.npz"] = (self.folder / "near.npz").read_bytes()
        points = (("--locality", "keep.npz"), ("--scope", "scope.npz"), ("--test", "right.npz"))
        for option, name in (*points, ("--neighbours", "near.npz")):
            command += [option, self.folder / name]
        for name in ("edits.npz", "keep.npz", "scope.npz", "right.npz", "near.npz", "base.onnx", "weights.bin"):
            (self.folder / "link").unlink(missing_ok=True)
            (self.folder / "link").symlink_to(self.folder / name)
            for place in (self.folder / name, self.folder / "link", self.folder / ".." / self.folder.name / name):
                for option in ("--report", "--patch", "--certificate"):
                    assert "named twice" in refused(self.capsys, *command, option, place)
        assert all(path.read_bytes() == content for path, content in before.items())

    def test_a_patch_for_another_model(self) -> None:
        other, patch = self.folder / "other.onnx", self.folder / "p.safetensors"
        options = ["--edits", self.base / "edits.npz", "--out", self.folder / "o.onnx", "--patch", patch, "--quiet"]
        assert run("fix", self.base / "base.onnx", *options) == 0
        onnx.save(network(seed=7), torch.zeros(1, 4), other)
        assert "fingerprint" in refused(self.capsys, "patch", "apply", patch, other, "--out", self.out)
        assert "fingerprint" in refused(self.capsys, "patch", "revert", patch, other, "--out", self.out)
        assert not self.out.exists()
        patch.write_bytes(patch.read_bytes()[:-8])
        assert "truncated" in refused(self.capsys, "patch", "show", patch)
        assert run("patch", "show", self.folder / "none") == 3
        told = self.capsys.readouterr()
        assert told.out == "" and told.err == f"nnrepair: error: No patch at {self.folder / 'none'}.\n"

    def test_a_wrong_command_line(self) -> None:
        for arguments in ([], ["fix"], ["patch"], ["fxi"]):
            with pytest.raises(SystemExit) as stopped:
                cli.main(arguments)
            assert stopped.value.code == 2


def test_edits_one_after_another(base: Path, tmp_path: Path, capsys) -> None:
    out, report, progress = tmp_path / "out.onnx", tmp_path / "report.json", tmp_path / "progress.safetensors"
    options = ["--edits", base / "edits.npz", "--locality", base / "keep.npz", "--test", base / "scope.npz"]
    options += ["--layer", "fc2", "--mode", "successive", "--resume", progress, "--report", report, "--out", out]
    assert run("fix", base / "base.onnx", *options) == 0
    assert "success retain rate   100.00%" in capsys.readouterr().out
    with np.load(base / "edits.npz") as edits:
        assert (labels_of(out, edits["inputs"]) == edits["labels"]).all()
    written = json.loads(report.read_text())
    assert written["history"]["success_retain_rate"] == 1.0
    assert len(written["history"]["steps"]) == 2
    assert written["history"]["side_effects"]["test set"]["points"] == 2
    assert progress.exists()
    options += ["--patch", tmp_path / "fix.safetensors", "--no-rehearsal"]
    assert "belongs to another sequence" in refused(capsys, "fix", base / "base.onnx", *options)


def test_options_of_sequences_alone_are_refused(base: Path, tmp_path: Path, capsys) -> None:
    told = refused(
        capsys, "fix", base / "base.onnx", "--edits", base / "edits.npz", "--out", tmp_path / "x.onnx", "--no-rehearsal"
    )
    assert "--mode successive" in told


def test_every_argument_says_what_it_is() -> None:
    parsers = [command_line()]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            else:
                assert action.help, f"{parser.prog}: {action.metavar or action.option_strings}"
    assert len(parsers) > 10


def test_methods_come_from_their_own_declarations(capsys) -> None:
    assert run("methods") == 0
    said = capsys.readouterr().out
    told = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    sentences = [told[names] for names in distinct()]
    assert len(set(sentences)) == len(sentences) and all(line.endswith(".") for line in sentences)
    for name, make in nnrepair.methods.REGISTRY.items():
        row = next(line for line in said.splitlines() if name in line.split("  ")[0].split(", "))
        assert capabilities_of(make).family in row
        for option in options_of(make):
            assert f"\n  --{option.flag} (" in said and option.about
    assert "keeps architecture" in said.splitlines()[0]


@dataclasses.dataclass(frozen=True)
class Pushes(FineTune):
    """Fine-tuning, with options of its own.

    Args:
        push: how hard. Not very.
        device, far: a name that the command has too; and yes or no.
    """

    push: int = 2
    device: str = "none"
    far: bool = False

    def repair(self, problem: object) -> object:
        PUSHED.append((self.push, self.device, self.far, self.layers, self.lr))
        return super().repair(problem)


PUSHED: list[object] = []


def test_a_new_method_brings_its_options(base: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nnrepair.methods.REGISTRY, "pushes", Pushes)
    monkeypatch.setattr(f"{__name__}.PUSHED", [])
    assert run("methods") == 0
    assert "  --push (2): how hard\n" in capsys.readouterr().out
    command = ["fix", "--method", "pushes", base / "base.onnx", "--edits", base / "edits.npz", "--quiet"]
    command += ["--out", tmp_path / "out.onnx"]
    assert run(*command) == 0
    own = ["--push", "3", "--method-device", "x", "--far", "yes", "--lr", "0.1", "--layer", "fc1", "fc2"]
    assert run(*command, *own) == 0
    assert PUSHED == [(2, "none", False, "all", 1e-3), (3, "x", True, ("fc1", "fc2"), 0.1)]
    told = refused(capsys, *command, "--norm", "l1", "--push", "3")
    assert "Method 'pushes' has no option --norm. Its options: --layer, --steps" in told and "--push" in told
    for wrong in (["--push", "3.5"], ["--far", "maybe"], ["--pull", "3"], ["--method"]):
        with pytest.raises(SystemExit) as stopped:
            run(*command, *wrong)
        assert stopped.value.code == 2 and wrong[0] in capsys.readouterr().err


# Editors -------------------------------------------------------------------------------------------------------------


def test_prepare_then_fix(base: Path, tmp_path: Path, capsys) -> None:
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        np.savez(tmp_path / "data.npz", inputs=points.numpy(), labels=network()(points).argmax(1).numpy())
    command = ["prepare", base / "base.onnx", "--data", tmp_path / "data.npz", "--method", "learned-steps"]
    command += ["--steps", "5", "--start", "0.1", "--lr", "0.2", "--method-steps", "200"]
    files = [tmp_path / name for name in ("one.safetensors", "two.safetensors")]
    assert run(*command, "--out", files[0]) == 0
    said = capsys.readouterr().out
    assert "learned-steps, 5 steps" in said and f"nnrepair fix --method {files[0]}" in said
    assert run(*command, "--out", files[1], "--resume", tmp_path / "progress.safetensors", "--quiet") == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Editor.load(files[0]).method == LearnedSteps(start=0.1, lr=0.2, steps=200)

    out = tmp_path / "out.onnx"
    fixed = ["fix", base / "base.onnx", "--edits", base / "edits.npz", "--method", files[0], "--out", out]
    assert run(*fixed, "--locality", base / "keep.npz") == 0
    edits = np.load(base / "edits.npz")
    assert (labels_of(out, edits["inputs"]) == edits["labels"]).all()
    capsys.readouterr()
    assert "an editor repairs as it was trained" in refused(capsys, *fixed, "--lr", "1")
    assert "belongs to another network" in refused(capsys, "fix", out, *fixed[2:-1], tmp_path / "again.onnx")
    assert "LearnedSteps is trained first" in refused(capsys, *fixed[:5], "learned-steps", *fixed[6:])
    assert "needs no training" in refused(capsys, *command[:4], "--method", "ft", "--out", files[1])
    assert "is written as .safetensors" in refused(capsys, *command, "--out", tmp_path / "x.onnx")
    assert "steps must be" in refused(capsys, *command, "--steps", "0", "--out", files[1])
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    assert "not a trained editor" in refused(capsys, *fixed[:5], tmp_path / "bad.safetensors", *fixed[6:])


def test_a_block_is_inserted_trained_and_written(base: Path, tmp_path: Path, capsys) -> None:
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        np.savez(tmp_path / "data.npz", inputs=points.numpy(), labels=network()(points).argmax(1).numpy())
    editor, edits, out = tmp_path / "editor.safetensors", np.load(base / "edits.npz"), tmp_path / "out.onnx"
    command = ["prepare", base / "base.onnx", "--data", tmp_path / "data.npz", "--method", "editable-training"]
    command += ["--layer", "fc2", "--residual", "8", "--update", "momentum", "--start", "0.05", "--steps", "5"]
    assert run(*command, "--second-order", "no", "--out", editor) == 0
    assert Editor.load(editor).method == EditableTraining("fc2", 8, "momentum", start=0.05, second_order=False)
    assert run("fix", base / "base.onnx", "--edits", base / "edits.npz", "--method", editor, "--out", out) == 0
    assert (labels_of(out, edits["inputs"]) == edits["labels"]).all()
    capsys.readouterr()
    assert "goes before one linear layer: name it" in refused(capsys, *command, "--layer", "fc1", "--out", editor)
    other = ["prepare", base / "base.pt2", *command[2:]]  # whose layers are no modules
    assert "Linear layers: none." in refused(capsys, *other, "--out", editor)


def test_training_that_breaks_off_is_told(base: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LearnedSteps.loss
    monkeypatch.setattr(LearnedSteps, "loss", lambda self, learned, problem: loss(self, learned, problem) * torch.nan)
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    np.savez(tmp_path / "data.npz", inputs=points.numpy(), labels=np.arange(60) % 3)
    command = ["prepare", base / "base.onnx", "--data", tmp_path / "data.npz", "--method", "learned-steps"]
    assert run(*command, "--out", tmp_path / "e.safetensors") == 1
    assert "training stopped at step 0: the loss became nan" in capsys.readouterr().err
    assert "loss became nan" in Editor.load(tmp_path / "e.safetensors").stopped


def test_version_and_help(capsys) -> None:
    for option, text in (("--version", "nnrepair "), ("--help", "exit codes")):
        with pytest.raises(SystemExit) as stopped:
            cli.main([option])
        assert stopped.value.code == 0 and text in capsys.readouterr().out
    module = subprocess.run([sys.executable, "-m", "nnrepair", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout.startswith("nnrepair ")


def test_a_bug_of_ours_is_not_taken_for_a_failed_repair(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(Patch, "load", lambda path: 1 / 0)
    assert run("patch", "show", "x") == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_without_arguments_the_help_is_printed_where_errors_go(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and "certify" in said.err and "exit codes:" in said.err


# Outputs that cannot be written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "a zero byte"])
def test_odd_places_are_told_before_the_work(base: Path, tmp_path: Path, capsys, monkeypatch, kind: str) -> None:
    monkeypatch.setattr("nnrepair.cli.fix.fix", lambda *a, **k: pytest.fail("the work began"))
    path = odd(tmp_path, kind)
    fix = ["fix", base / "base.onnx", "--edits", base / "edits.npz"]
    for option in ("--patch", "--certificate", "--report"):
        refused(capsys, *fix, "--out", tmp_path / "out.onnx", option, path)
    refused(capsys, *fix, "--out", tmp_path / "out.onnx", "--mode", "successive", "--resume", path)
    if kind in ("a folder", "a pipe", "a circle", "a link to a device"):
        path.rename(tmp_path / "odd.onnx")
        if kind == "a circle":
            (tmp_path / "odd.onnx").unlink()
            (tmp_path / "odd.onnx").symlink_to(tmp_path / "odd.onnx")
        refused(capsys, *fix, "--out", tmp_path / "odd.onnx")
        refused(capsys, "patch", "apply", base / "none", base / "base.onnx", "--out", tmp_path / "odd.onnx")
    assert not (tmp_path / "out.onnx").exists()


def saved(told: str) -> list[Path]:
    """Return where a command says that files are."""
    return [Path(place) for place in re.findall(r"it was saved as (\S+) instead\.", told)]


@pytest.mark.parametrize("missing", ["out.onnx", "p.safetensors", "c.npz", "report.json", ""])
def test_a_disk_that_fills_up_costs_no_repair(base: Path, tmp_path: Path, capsys, monkeypatch, missing: str) -> None:
    """One file has no room, or none has; the command says where they are, and writes all others."""
    temporary, folder = elsewhere(monkeypatch, tmp_path / "elsewhere"), tmp_path / "folder"
    folder.mkdir()
    (folder / "out.onnx").write_bytes(b"an earlier file")
    files = {name: folder / name for name in ("out.onnx", "p.safetensors", "c.npz", "report.json")}
    fills_up(monkeypatch, folder, file=missing)
    command = ["fix", base / "base.onnx", "--edits", base / "edits.npz", "--layer", "fc2", "--norm", "l1"]
    command += ["--out", files["out.onnx"], "--patch", files["p.safetensors"]]
    assert run(*command, "--certificate", files["c.npz"], "--report", files["report.json"], "--quiet") == 3
    told = capsys.readouterr()
    places = {path.name: path for path in saved(told.err)}
    assert told.out == "" and set(places) == ({missing} if missing else set(files))
    assert all(line.startswith("nnrepair: error: ") for line in told.err.splitlines())
    assert all("No space left on device" in line for line in told.err.splitlines())
    for name in places:
        assert not files[name].exists() or files[name].read_bytes() == b"an earlier file"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    found = files | places
    edits = np.load(base / "edits.npz")
    assert (labels_of(found["out.onnx"], edits["inputs"]) == edits["labels"]).all()
    patch = nnrepair.Patch.load(found["p.safetensors"])
    assert fingerprint(patch.apply(network())) == fingerprint(ModelFile.load(found["out.onnx"]).model)
    assert Certificate.load(found["c.npz"]).norm == "l1"
    assert json.loads(found["report.json"].read_text())["outcome"]["status"] == "repaired"
    assert {path.parent.parent for path in places.values()} == {temporary}


def test_where_no_model_has_room_the_change_alone_is_saved(base: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    temporary = elsewhere(monkeypatch, tmp_path / "elsewhere")
    fills_up(monkeypatch, tmp_path, file=".onnx")
    command = ["fix", base / "base.onnx", "--edits", base / "edits.npz", "--layer", "fc2"]
    assert run(*command, "--out", tmp_path / "out.onnx", "--report", tmp_path / "report.json") == 3
    said = capsys.readouterr()
    assert "repaired: all 2 edits hold" in said.out and f"wrote {tmp_path / 'report.json'}" in said.out
    (patch,) = temporary.glob("*/*.safetensors")
    assert f"nnrepair patch apply {patch} {base / 'base.onnx'}" in said.err
    monkeypatch.undo()
    assert run("patch", "apply", patch, base / "base.onnx", "--out", tmp_path / "out.onnx") == 0
    edits = np.load(base / "edits.npz")
    assert (labels_of(tmp_path / "out.onnx", edits["inputs"]) == edits["labels"]).all()


def test_a_model_that_cannot_be_a_file_costs_no_repair(base: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def lost(*arguments: object) -> None:
        raise nnrepair.UnsupportedModel("edits [0] hold in the repaired model, but not in the file made of it.")

    temporary = elsewhere(monkeypatch, tmp_path / "elsewhere")
    monkeypatch.setattr("nnrepair.cli.model_file._check_written", lost)
    command = ["fix", base / "base.onnx", "--edits", base / "edits.npz", "--layer", "fc2"]
    assert run(*command, "--out", tmp_path / "out.onnx", "--report", tmp_path / "report.json", "--quiet") == 3
    told = capsys.readouterr().err
    assert "not in the file made of it" in told and "patch apply" in told and "Traceback" not in told
    assert len(list(temporary.glob("*/*.safetensors"))) == 1
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "report.json"]


LIMITED = """
import resource, sys
from nnrepair import cli

resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_files_that_may_not_be_large(tmp_path: Path) -> None:
    """With a limit that the system sets, not the test: a model is too large for it, its patch is not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict(fc1=nn.Linear(4, 400), relu=nn.ReLU(), fc2=nn.Linear(400, 3))).eval()
    points = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    onnx.save(model, points[:1], tmp_path / "base.onnx")
    with torch.no_grad():
        np.savez(tmp_path / "edits.npz", inputs=points[:1], labels=model(points[:1]).argsort(1)[:, 1])
    (tmp_path / "elsewhere").mkdir()
    command = ["fix", "base.onnx", "--edits", "edits.npz", "--out", "out.onnx", "--layer", "fc2.bias"]
    paths = [str(Path(nnrepair.__file__).parents[1]), *sys.path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TMPDIR": str(tmp_path / "elsewhere")}
    program = [sys.executable, "-W", "ignore", "-c", LIMITED, *command]
    done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "File too large" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out.onnx").exists() and not list(tmp_path.glob(".*"))
    (patch,) = (tmp_path / "elsewhere").glob("*/*")
    assert f"nnrepair patch apply {patch} base.onnx" in done.stderr
    assert set(nnrepair.Patch.load(patch).new) == {"fc2.bias"}


def test_progress_without_room_is_told_and_costs_no_repair(base: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("nnrepair.sequence.SAVE_EVERY", 0.0)
    fills_up(monkeypatch, tmp_path / "progress")
    command = ["fix", base / "base.onnx", "--edits", base / "edits.npz", "--layer", "fc2", "--mode", "successive"]
    command += ["--resume", tmp_path / "progress" / "run.safetensors"]
    (tmp_path / "progress").mkdir()
    assert run(*command, "--out", tmp_path / "out.onnx") == 0
    said = capsys.readouterr().out
    assert "note: progress could not be stored" in said and "No space left on device" in said
    assert (tmp_path / "out.onnx").exists() and os.listdir(tmp_path / "progress") == []


def test_patches_of_strangers(base: Path, tmp_path: Path, capsys) -> None:
    patch, out = tmp_path / "p.safetensors", tmp_path / "out.onnx"
    print_ = fingerprint(onnx.load(base / "base.onnx"))
    value = {"fc2\x1b[2J": torch.ones(2)}
    nnrepair.Patch(value, copy.deepcopy(value), print_, "0" * 64, {"\x1b]0;evil\x07": "\x1b[2J"}).save(patch)
    assert run("patch", "show", patch) == 0
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.splitlines()) and "\\x1b[2J" in said
    error = refused(capsys, "patch", "apply", patch, base / "base.onnx", "--out", out)
    assert error.rstrip("\n").isprintable() and "no parameter or buffer" in error
    value = {"fc2.bias": torch.ones(3)}
    nnrepair.Patch(value, copy.deepcopy(value), print_, "0" * 64).save(patch)
    assert "do not have the fingerprint" in refused(capsys, "patch", "apply", patch, base / "base.onnx", "--out", out)
    value = {"fc2.bias": torch.ones(1)}
    nnrepair.Patch(value, copy.deepcopy(value), "0" * 64, print_).save(patch)
    assert "shape (1,)" in refused(capsys, "patch", "revert", patch, base / "base.onnx", "--out", out)
    os.mkfifo(tmp_path / "pipe")
    assert "device or a pipe" in refused(capsys, "patch", "show", tmp_path / "pipe")
    assert not out.exists()


def test_usage_names_one_value_for_an_option_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("fix")
    assert "[--max-steps MAX-STEPS]" in capsys.readouterr().err


def test_an_interruption_while_the_command_line_is_read_takes_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(given: object) -> argparse.Namespace:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_read", interrupted)
    assert run("fix") == 3
    assert capsys.readouterr().err == "nnrepair: interrupted.\n"
