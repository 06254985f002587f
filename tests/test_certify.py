"""`nnrepair certify`: the independent checkers, run as programs that see nothing of the package."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import archives
import numpy as np
import pytest
import torch
from torch import nn

import nnrepair
from nnrepair import Argmax, InvalidInput, cli
from nnrepair.methods import MinimalNorm
from nnrepair.results import checkers
from nnrepair.verify import Box, Property, check, vnnlib

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a repair and a property that holds, each with its certificate."""
    folder = tmp_path_factory.mktemp("certificates")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
        x = torch.randn(4, 2)
    with torch.no_grad():
        order = model(x).argsort(1, descending=True)
    result = nnrepair.fix(model, (x[:1], order[:1, 1]), method=MinimalNorm("2", norm="l1"))
    nnrepair.onnx.save(model, x, folder / "base.onnx")
    nnrepair.onnx.save(result.model, x, folder / "repaired.onnx")
    assert result.certificate is not None
    result.certificate.save(folder / "repair.npz")
    near = Property.on(Box((x[1] - 1e-4).tolist(), (x[1] + 1e-4).tolist()), Argmax(order[1:2, 0]), outputs=3)
    (folder / "near.vnnlib").write_text(vnnlib.dumps(near))
    (folder / "near.vnnlib.gz").write_bytes(gzip.compress(vnnlib.dumps(near).encode()))
    for name, end in (("property.npz", ""), ("gzipped.npz", ".gz")):
        proof = check(folder / "base.onnx", folder / f"near.vnnlib{end}").certificate
        assert proof is not None
        proof.save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def _there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


def certify(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["certify", *line.split()])
    return (code, *capfd.readouterr())


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("repair.npz base.onnx --repaired repaired.onnx", 0, "ACCEPTED\nThe edit holds"),
        ("repair.npz base.onnx", 0, "ACCEPTED\nWhether the edits hold was not checked"),
        ("repair.npz base.onnx --repaired base.onnx", 1, "REJECTED\n"),
        ("property.npz base.onnx near.vnnlib", 0, "Accepted: proved"),
        ("gzipped.npz base.onnx near.vnnlib.gz", 0, "Accepted: proved"),
        ("gzipped.npz base.onnx near.vnnlib", 1, "Rejected: property_sha256"),
        ("property.npz repaired.onnx near.vnnlib", 1, "Rejected: network_sha256"),
        ("property.npz near.vnnlib near.vnnlib", 2, "Cannot be read: "),
    ],
)
def test_the_program_that_knows_the_kind_says_its_verdict(
    line: str, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    got, out, err = certify(line, capfd)
    assert got == code and out.startswith(said) and err == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("repair.npz base.onnx near.vnnlib", "is about a repair. Expected: nnrepair certify repair.npz BASE"),
        ("property.npz base.onnx", "is about a property. Expected: nnrepair certify property.npz NETWORK PROPERTY"),
        ("property.npz base.onnx near.vnnlib --repaired repaired.onnx", "is about a property"),
        ("repair.npz none.onnx", "There is no file 'none.onnx'"),
        ("repair.npz base.onnx --repaired none.onnx", "There is no file 'none.onnx'"),
        ("none.npz base.onnx", "none.npz cannot be read: No such file"),
        ("base.onnx base.onnx", "base.onnx is not a certificate of nnrepair"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(line: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = certify(line, capfd)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


def test_other_files_are_no_certificates(made: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    np.savez(tmp_path / "pickle.npz", meta=np.array([Trap()], dtype=object))
    np.savez(tmp_path / "other.npz", meta=np.frombuffer(b'{"format": "nnrepair-history-1"}', np.uint8))
    np.savez(tmp_path / "list.npz", meta=np.frombuffer(b"[1]", np.uint8))
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "short.npz").write_bytes((made / "repair.npz").read_bytes()[:200])
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    format = b'{"format": "nnrepair-property-1"'
    np.savez(tmp_path / "long.npz", meta=np.frombuffer(format + b" " * checkers.MAX_META + b"}", np.uint8))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InvalidInput, match=f"{path.name} is not a certificate of nnrepair"):
            checkers.kind_of(path)
    assert not (tmp_path / "unpickled").exists()
    arrays = {"meta": np.frombuffer(format + b"}", np.uint8), "x": np.zeros(3)}
    np.savez(tmp_path / "good.npz", **arrays)
    assert checkers.kind_of(tmp_path / "good.npz") == "property"
    for what, make in archives.hostile(arrays, "meta"):
        (tmp_path / "hostile.npz").write_bytes(make())
        with pytest.raises(InvalidInput, match="not a certificate of nnrepair, or it is damaged"):
            print(what, checkers.kind_of(tmp_path / "hostile.npz"))
    with pytest.raises(InvalidInput, match="cannot be read"):
        checkers.kind_of(tmp_path)


def test_a_later_version_is_left_to_the_checker(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with np.load(made / "repair.npz") as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes()) | {"format": "nnrepair-minimality-99"}
    np.savez(tmp_path / "later.npz", meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
    code, out, _ = certify(f"{tmp_path / 'later.npz'} base.onnx", capfd)
    assert code == 2 and out.startswith("UNUSABLE")


_SPY = """
import sys
import numpy, onnx, beside
try:
    import nnrepair
except ImportError:
    nnrepair = None
print(beside.NAME, nnrepair, *sys.argv[1:])
print(*sorted(name for name in sys.modules if name.startswith(("torch", "nnrepair.", "sitecustomize"))))
"""


def test_a_checker_imports_nothing_of_ours_or_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    programs, folder = tmp_path / "programs", tmp_path / "folder"
    programs.mkdir()
    folder.mkdir()
    (programs / "minimality.py").write_text(_SPY)
    (programs / "beside.py").write_text("NAME = 'its own neighbour'")
    for name in ("numpy", "beside", "json", "runpy", "sitecustomize", "nnrepair"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported from the folder')")
    monkeypatch.setattr(checkers, "FOLDERS", (programs,))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    done = checkers.run("minimality", "a name", "--repaired", "ä")
    assert done.stdout == "its own neighbour None a name --repaired ä\n\n", done.stderr


@pytest.mark.parametrize("fault", ["raise MemoryError('too large')", "import os; os.abort()", "raise SystemExit(1)"])
def test_a_checker_that_fails_has_rejected_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "minimality.py").write_text(fault)
    monkeypatch.setattr(checkers, "FOLDERS", (tmp_path,))
    code, out, err = certify("repair.npz base.onnx", capfd)
    assert code == 3 and out == "" and "minimality.py did not come to a verdict" in err and err.count("\n") == 1


def test_without_checkers_or_onnx_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(checkers, "FOLDERS", (tmp_path,))
        code, out, err = certify("repair.npz base.onnx", capfd)
        assert code == 3 and out == "" and "Install nnrepair again" in err
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, out, err = certify("repair.npz base.onnx", capfd)
    assert code == 3 and out == "" and "pip install 'nnrepair[onnx]'" in err


def test_an_installed_package_has_the_programs_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout,) = (folder for folder in checkers.FOLDERS if folder.is_dir())
    shutil.copytree(checkout, tmp_path / "_checkers", ignore=shutil.ignore_patterns("acas"))
    monkeypatch.setattr(checkers, "FOLDERS", (tmp_path / "_checkers", tmp_path / "verification"))
    assert checkers.run("property", "property.npz", "base.onnx", "near.vnnlib").returncode == checkers.ACCEPTED
