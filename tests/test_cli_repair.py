"""The command `nnrepair repair`: files in, files out, exit codes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import elsewhere, fills_up
from networks import mlp, randn
from torch import nn

from nnrepair import Argmax, Patch, Threshold, onnx
from nnrepair.cli import main
from nnrepair.fingerprint import fingerprint
from nnrepair.verify import Box, Property, check, vnnlib


@pytest.fixture
def files(written: Path, tmp_path: Path) -> Path:
    """Copy a model, a property that it violates, one that it satisfies, and points to keep."""
    return Path(shutil.copytree(written, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("repair")
    model = mlp(2, 12, 12, 3, seed=3)
    x = randn(1, 2, seed=1)[0] / 2
    with torch.no_grad():
        first, second = (int(k) for k in model(x[None])[0].argsort(descending=True)[:2])
    onnx.save(model, torch.zeros(1, 2), tmp_path / "model.onnx")
    near = Box((x - 0.1).tolist(), (x + 0.1).tolist())
    wrong = Property.on(near, Argmax([second]), outputs=3)
    (tmp_path / "wrong.vnnlib").write_text(vnnlib.dumps(wrong))
    far = Box((x + 0.5).tolist(), (x + 0.51).tolist())
    with torch.no_grad():
        label = int(model(x[None] + 0.505)[0].argmax())
    (tmp_path / "fine.vnnlib").write_text(vnnlib.dumps(Property.on(far, Argmax([label]), outputs=3)))
    np.savez(tmp_path / "states.npz", inputs=randn(300, 2, seed=9).numpy())
    assert first != second
    return tmp_path


def test_repaired_model_patch_and_certificates_are_written_and_accepted(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, proofs = files / "repaired.onnx", files / "proofs"
    given = ["repair", str(files / "model.onnx"), str(files / "wrong.vnnlib"), "--keep", str(files / "fine.vnnlib")]
    given += ["--locality", str(files / "states.npz"), "--out", str(out), "--patch", str(files / "change.safetensors")]
    code = main([*given, "--certificates", str(proofs), "--layer", "last"])
    said = capsys.readouterr().out
    assert code == 0 and "wrong (repair): holds" in said and "fine (keep): holds" in said
    assert check(files / "model.onnx", files / "wrong.vnnlib").verdict == "violated"
    for name in ("wrong", "fine"):
        assert check(out, files / f"{name}.vnnlib").holds
        command = f"nnrepair certify {proofs / f'{name}.npz'} {out} {files / f'{name}.vnnlib'}"
        assert f"check it: {command}\n" in said and main(command.split()[1:]) == 0
    assert main(["patch", "show", str(files / "change.safetensors")]) == 0


def test_files_of_one_name_and_a_file_in_the_way(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "b").mkdir()
    (files / "b" / "wrong.vnnlib").write_bytes((files / "fine.vnnlib").read_bytes())
    given = [str(files / "model.onnx"), str(files / "wrong.vnnlib"), "--keep", str(files / "b" / "wrong.vnnlib")]
    out = str(files / "out.onnx")
    assert main(["repair", *given, "--out", out, "--certificates", str(files / "model.onnx")]) == 3
    assert "is a file" in capsys.readouterr().err and not (files / "out.onnx").exists()
    assert main(["repair", *given, "--out", out, "--certificates", str(files / "proofs")]) == 0
    checks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("check it")]
    assert len(checks) == 2 and str(files / "b" / "wrong.vnnlib") in checks[1]
    assert {path.name for path in (files / "proofs").iterdir()} == {"wrong.npz", "wrong (2).npz"}
    assert not list(files.glob(".nnrepair-*"))


def test_model_that_needs_nothing_is_copied(files: Path) -> None:
    out = files / "same.onnx"
    assert main(["repair", str(files / "model.onnx"), str(files / "fine.vnnlib"), "--out", str(out), "--quiet"]) == 0
    assert out.read_bytes() == (files / "model.onnx").read_bytes()


def test_nothing_is_written_when_it_cannot_be_repaired(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.zero_()
    onnx.save(model, torch.zeros(1, 1), files / "blind.onnx")
    for name, low, high, label in (("a", 0.0, 0.4, 0), ("b", 0.6, 1.0, 1)):
        text = vnnlib.dumps(Property.on(Box([low], [high]), Argmax([label]), outputs=2))
        (files / f"{name}.vnnlib").write_text(text)
    given = [str(files / name) for name in ("blind.onnx", "a.vnnlib", "b.vnnlib")]
    assert main(["repair", *given, "--out", str(files / "out.onnx")]) == 1
    assert not (files / "out.onnx").exists()
    assert "infeasible" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["out.onnx", "wrong.npz", "change.safetensors"])
def test_a_disk_that_fills_up_costs_no_repair(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    temporary, folder = elsewhere(monkeypatch, files / "elsewhere"), files / "folder"
    folder.mkdir()
    given = ["repair", str(files / "model.onnx"), str(files / "wrong.vnnlib"), "--layer", "last", "--quiet"]
    given += ["--certificates", str(folder / "proofs"), "--patch", str(folder / "change.safetensors")]
    fills_up(monkeypatch, folder, file=missing)
    assert main([*given, "--out", str(folder / "out.onnx")]) == 3
    told = capsys.readouterr().err
    (saved,) = temporary.glob("*/*")
    assert saved.name == missing and f"it was saved as {saved} instead" in told and told.count("\n") == 1
    places = [folder / "out.onnx", folder / "proofs" / "wrong.npz", folder / "change.safetensors"]
    out, proof, change = (saved if path.name == missing else path for path in places)
    assert main(["certify", str(proof), str(out), str(files / "wrong.vnnlib")]) == 0
    made = Patch.load(change).apply(onnx.load(files / "model.onnx"))
    assert fingerprint(made) == fingerprint(onnx.load(out))
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_where_no_model_has_room_the_change_alone_is_saved(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = elsewhere(monkeypatch, files / "elsewhere")
    fills_up(monkeypatch, files, file="out.onnx")
    given = ["repair", str(files / "model.onnx"), str(files / "wrong.vnnlib"), "--layer", "last", "--quiet"]
    assert main([*given, "--out", str(files / "out.onnx"), "--certificates", str(files / "proofs")]) == 3
    (patch,) = temporary.glob("*/*")
    assert f"nnrepair patch apply {patch}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["patch", "apply", str(patch), str(files / "model.onnx"), "--out", str(files / "out.onnx")]) == 0
    assert check(files / "out.onnx", files / "wrong.vnnlib").holds


def test_points_are_not_overwritten_by_certificates(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "states.npz").rename(files / "wrong.npz")
    given = ["repair", str(files / "model.onnx"), str(files / "wrong.vnnlib"), "--out", str(files / "out.onnx")]
    assert main([*given, "--locality", str(files / "wrong.npz"), "--certificates", str(files)]) == 3
    assert "lies in --certificates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model.onnx", "missing.vnnlib", "--out", "out.onnx"], "missing.vnnlib"),
        (["model.onnx", "wrong.vnnlib", "--out", "model.onnx"], "named twice"),
        (["model.onnx", "wrong.vnnlib", "--out", "out.pt2"], "must end in .onnx"),
        (["model.onnx", "wrong.vnnlib", "--out", "out.onnx", "--layer", "first"], "Unknown layer"),
        (["model.onnx", "fine.vnnlib", "--keep", "wrong.vnnlib", "--out", "out.onnx"], "violated already"),
        (["model.onnx", "wrong.vnnlib", "--locality", "wrong.vnnlib", "--out", "out.onnx"], "named twice"),
        (["model.onnx", "wrong.vnnlib", "--locality", "none.npz", "--out", "out.onnx"], "there is no file"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    files: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [str(files / word) if "." in word else word for word in given]
    assert main(["repair", *places]) == 3
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (files / "out.onnx").exists()


def test_points_of_another_size_are_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(files / "wide.npz", inputs=np.zeros((5, 7), np.float32))
    given = [str(files / name) for name in ("model.onnx", "wrong.vnnlib")]
    assert main(["repair", *given, "--locality", str(files / "wide.npz"), "--out", str(files / "out.onnx")]) == 3
    assert "do not fit" in capsys.readouterr().err


def test_a_single_output_needs_labels(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x = mlp(2, 12, 1, seed=3), randn(60, 2, seed=9)
    onnx.save(model, x[:1], files / "one.onnx")
    with torch.no_grad():
        sign = bool(model(torch.full((1, 2), 0.1)) > 0)
        answers = model(x)[:, 0] > 0
    wrong = Property.on(Box([0.0, 0.0], [0.2, 0.2]), Threshold([not sign]))
    (files / "one.vnnlib").write_text(vnnlib.dumps(wrong))
    given = ["repair", str(files / "one.onnx"), str(files / "one.vnnlib"), "--layer", "last"]
    given += ["--out", str(files / "out.onnx"), "--locality", str(files / "one.npz")]
    np.savez(files / "one.npz", inputs=x.numpy())
    assert main(given) == 3 and "single output" in capsys.readouterr().err
    np.savez(files / "one.npz", inputs=x.numpy(), labels=answers.numpy())
    assert main([*given, "--lowest"]) == 3 and "leave out --lowest" in capsys.readouterr().err
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "the property holds" in said and "decisions unchanged" in said
    assert check(files / "out.onnx", files / "one.vnnlib").holds
