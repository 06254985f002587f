"""Disks that are full or may only be read: every command that writes says so in one line, and nothing is half written.

The disks are real ones, of 64 KiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import elsewhere, fill, mounted
from torch import nn

from nnrepair import Patch, cli, onnx
from nnrepair.files import require_writable, write_atomically

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows mounts no such disks")
OLD = b"an earlier file"
WHY = {
    "full": "No space left on device",
    "read-only": "Read-only file system",
    "forbidden": "Permission denied",
}
FIX = ["fix", "net.onnx", "--edits", "points.npz", "--layer", "fc2", "--norm", "l1", "--out", "out.onnx"]
PREPARE = ["prepare", "net.onnx", "--data", "points.npz", "--method", "learned-steps", "--steps", "1"]
REPAIR = ["repair", "net.onnx", "wrong.vnnlib", "--out", "out.onnx"]
APPLY = ["patch", "apply", "patch.safetensors", "net.onnx", "--out", "DISK/old.onnx"]
#: Every command that writes, with what it writes on the disk last.
COMMANDS: list[list[str]] = [
    ["fix", "net.onnx", "--edits", "points.npz", "--out", "DISK/old.onnx"],
    [*FIX, "--patch", "DISK/old.safetensors"],
    [*FIX, "--certificate", "DISK/old.npz"],
    [*FIX, "--report", "DISK/old.json"],
    [*FIX, "--mode", "successive", "--resume", "DISK/old.safetensors"],
    [*PREPARE, "--out", "DISK/old.safetensors"],
    [*PREPARE, "--out", "editor.safetensors", "--resume", "DISK/old.safetensors"],
    ["repair", "net.onnx", "wrong.vnnlib", "--out", "DISK/old.onnx"],
    [*REPAIR, "--patch", "DISK/old.safetensors"],
    [*REPAIR, "--certificates", "DISK/proofs"],
    ["check", "net.onnx", "wrong.vnnlib", "--certificate", "DISK/old.npz"],
    ["check", "net.onnx", "wrong.vnnlib", "--vnncomp", "DISK/old.txt"],
    ["check", "--suite", "instances.csv", "--out", "DISK/results"],
    ["check", "--suite", "instances.csv", "--out", "results", "--certificates", "DISK/proofs"],
    APPLY,
    ["patch", "revert", "patch.safetensors", "net.onnx", "--out", "DISK/old.onnx"],
    ["demo", "--out", "DISK/old.html"],
    ["classroom", "--static", "DISK/old.html"],
]


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(fc1=nn.Linear(4, 400), relu=nn.ReLU(), fc2=nn.Linear(400, 3))).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model and all that the commands read."""
    folder, model = tmp_path_factory.mktemp("made"), network()
    points = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    onnx.save(model, points[:1], folder / "net.onnx")
    with torch.no_grad():
        np.savez(folder / "points.npz", inputs=points, labels=model(points).argsort(1)[:, 1])
    text = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "X_2", "X_3", "Y_0", "Y_1", "Y_2"))
    text += "".join(f"(assert (>= X_{k} 0.1))\n(assert (<= X_{k} 0.1001))\n" for k in range(4))
    (folder / "wrong.vnnlib").write_text(text + "(assert (>= Y_0 -9))\n")
    (folder / "instances.csv").write_text("net.onnx,wrong.vnnlib,9\n")
    loaded = onnx.load(folder / "net.onnx")
    changed = onnx.load(folder / "net.onnx")
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    Patch.between(loaded, changed).save(folder / "patch.safetensors")
    return folder


@pytest.fixture(params=list(WHY))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Give a folder in which nothing can be written, with earlier files in it, and why."""
    kind, folder = request.param, tmp_path / "disk"
    if kind == "forbidden":
        folder.mkdir()
        earlier(folder)
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            pytest.skip("root may write to every folder")
        yield folder, WHY[kind]
        folder.chmod(0o755)
        return
    with mounted(folder):
        earlier(folder)
        if kind == "full":
            fill(folder)
        else:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield folder, WHY[kind]


def earlier(folder: Path) -> None:
    for ending in ("onnx", "safetensors", "npz", "json", "txt", "html"):
        (folder / f"old.{ending}").write_bytes(OLD)


def run(command: list[str], disk: Path) -> int:
    return cli.main([word.replace("DISK", str(disk)) for word in command])


def test_every_command_says_what_cannot_be_written_and_why(
    place: tuple[Path, str], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    (folder, why), before = place, sorted(os.listdir(made))
    monkeypatch.chdir(made)
    files = sorted(os.listdir(folder))
    for command in COMMANDS:
        named = next(word for word in command if "DISK" in word).replace("DISK", str(folder))
        assert run(command, folder) == 3, command
        told = capsys.readouterr()
        assert told.err.startswith("nnrepair: error: ") and told.err.count("\n") == 1, command
        assert named in told.err and why in told.err and told.out == "", command
        assert sorted(os.listdir(folder)) == files and sorted(os.listdir(made)) == before, command
    assert {path.read_bytes() for path in folder.glob("old.*")} == {OLD}


@pytest.mark.parametrize("name", ["fix", "apply"])
def test_what_does_not_fit_leaves_the_earlier_file(
    name: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """There is room for what is tried before the work, and not for its result."""
    monkeypatch.chdir(made)
    temporary = elsewhere(monkeypatch, tmp_path / "elsewhere")
    command = {"fix": COMMANDS[0], "apply": APPLY}
    with mounted(tmp_path / "disk") as folder:
        earlier(folder)
        fill(folder, left=4096)
        require_writable(folder / "old.onnx")
        assert run(command[name], folder) == 3
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and str(folder / "old.onnx") in told and "No space left on device" in told
        assert {path.read_bytes() for path in folder.glob("old.*")} == {OLD}
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        with pytest.raises(OSError, match=rf"No space left.*{folder / 'old.npz'}"):
            write_atomically(folder / "old.npz", bytes(5000))
    saved = list(temporary.glob("*/*.onnx"))
    assert len(saved) == (name == "fix")  # a patch is soon applied again
    assert all(f"it was saved as {path} instead" in told and onnx.load(path) for path in saved)


def test_a_recorded_lesson_is_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    pytest.importorskip("nicegui")
    temporary = elsewhere(monkeypatch, tmp_path / "elsewhere")
    monkeypatch.setattr("nnrepair.cli.classroom.material", lambda data, seed: None)
    monkeypatch.setattr("nnrepair.classroom.record.lesson_page", lambda given: "page" * 5000)
    with mounted(tmp_path / "disk") as folder:
        earlier(folder)
        fill(folder, left=4096)
        assert run(["classroom", "--static", "DISK/old.html"], folder) == 3
        assert (folder / "old.html").read_bytes() == OLD and len(os.listdir(folder)) == 7
        told = capsys.readouterr().err
    (saved,) = temporary.glob("*/old.html")
    assert f"it was saved as {saved} instead" in told and saved.stat().st_size == 20_000


@pytest.mark.parametrize("command", [["methods"], ["patch", "show", "patch.safetensors"]])
def test_output_that_nobody_can_take_is_an_error(command: list[str], made: Path) -> None:
    program = [sys.executable, "-W", "ignore", "-m", "nnrepair", *command]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(cli.__file__).parents[2]), *filter(None, sys.path)])}
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, cwd=made, env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "nnrepair: error: standard output: No space left on device.\n")
