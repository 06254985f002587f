"""The package as installed, beside its core dependencies alone. run.py makes that place, and copies this file there."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nnrepair
from nnrepair import cli
from nnrepair.results import checkers
from nnrepair.verify import Box, Property, check, vnnlib

OF_EXTRAS = ("onnx", "onnxruntime", "onnxscript", "torchvision", "PIL", "torch_geometric", "matplotlib", "sklearn")
OF_EXTRAS += ("distributed", "cvxpy", "hypothesis", "vnnlib", "ruff", "mypy", "nicegui", "playwright")
COMMANDS = (
    "demo",
    "classroom",
    "fix",
    "prepare",
    "repair",
    "check",
    "certify",
    "patch",
    "patch show",
    "patch apply",
    "patch revert",
)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def points() -> tuple[torch.Tensor, torch.Tensor]:
    """Return points, and what the model says of each, best first."""
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model()(x).argsort(1, descending=True)


def test_this_is_the_wheel_and_no_extra_is_here() -> None:
    assert Path(nnrepair.__file__).is_relative_to(sysconfig.get_path("purelib"))
    assert [name for name in OF_EXTRAS if find_spec(name) is not None] == []
    assert all((checkers.FOLDERS[0] / program).is_file() for program in checkers.PROGRAMS.values())


def test_every_module_can_be_imported_or_names_its_extra() -> None:
    missing: dict[str, str] = {}
    for module in pkgutil.walk_packages(nnrepair.__path__, "nnrepair."):
        try:
            importlib.import_module(module.name)
        except nnrepair.MissingExtra as error:
            missing[module.name] = str(error)
    reading = [name for name in missing if name.startswith("nnrepair.onnx.")]
    assert reading and not any(name.startswith("nnrepair.onnx.modules") for name in reading)  # a loaded model works
    extras = {"nnrepair.domains.images.folder": "vision"} | dict.fromkeys(reading, "onnx")
    extras |= {f"nnrepair.verify.search.{name}": "fast" for name in ("kernel", "slope_kernel")}
    extras |= {f"nnrepair.classroom.{name}": "classroom" for name in ("layout", "page", "server")}
    assert set(missing) == set(extras)
    assert all(f"pip install 'nnrepair[{extras[name]}]'" in said for name, said in missing.items())


def test_the_first_example_of_the_readme_names_the_extra_that_it_needs() -> None:
    readme = metadata("nnrepair").get_payload()
    example = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert example is not None
    with pytest.raises(nnrepair.NNRepairError, match=r"pip install 'nnrepair\[demo\]'"):
        exec(example[1], {})


def test_a_repair_and_its_patch_need_no_extra(tmp_path: Path) -> None:
    x, order = points()
    edits, kept = nnrepair.Edits(x[:3], order[:3, 1]), nnrepair.LocalitySet(x[3:], order[3:, 0])
    result = nnrepair.fix(model(), edits, kept)
    result.save_patch(tmp_path / "fix.safetensors")
    assert result.outcome.ok and (tmp_path / "fix.safetensors").is_file()


def test_properties_of_modules_need_no_onnx() -> None:
    x, order = points()
    near = Property.on(Box(x[0] - 1e-4, x[0] + 1e-4), nnrepair.Argmax(order[:1, 0]), outputs=3)
    far = Property.on(Box(x[0] - 1e-4, x[0] + 1e-4), nnrepair.Argmax(order[:1, 1]), outputs=3)
    assert check(model(), near).verdict == "holds"
    assert nnrepair.repair_property(model(), far).outcome.ok


@pytest.mark.parametrize("line", ["--version", "--help", "methods", *(f"{command} --help" for command in COMMANDS)])
def test_the_command_says_its_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(line.split())
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    assert code == 0 and len(said.out) > 10 and said.err == ""


def test_the_command_repairs_a_model_file(tmp_path: Path) -> None:
    x, order = points()
    program = torch.export.export(model(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "base.pt2")
    np.savez(tmp_path / "edits.npz", inputs=x[:2].numpy(), labels=order[:2, 1].numpy())
    script = Path(sysconfig.get_path("scripts")) / "nnrepair"
    line = "fix base.pt2 --edits edits.npz --layer 2 --norm l1 --out out.pt2 --patch fix.safetensors --quiet"
    done = subprocess.run([script, *line.split()], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out.pt2").is_file() and (tmp_path / "fix.safetensors").is_file()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder, and go there, with files of which none is read before what reads it is found missing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.onnx").touch()
    x, order = points()
    asked = Property.on(Box(x[0], x[0] + 1e-4), nnrepair.Argmax(order[:1, 0]), outputs=3)
    (tmp_path / "property.vnnlib").write_text(vnnlib.dumps(asked))
    nnrepair.results.certificate.Certificate("w", None, "l1", "same", 0.0, 0.0, 0.0, False, {}).save("proof.npz")
    return tmp_path


def _graph() -> object:
    from nnrepair.domains.graphs.graph import Graph, network

    return network("GCN", Graph(torch.eye(3), torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 1, 1])))


def _photographs() -> object:
    from nnrepair.domains.images import cifar

    return list(cifar._decoded(torch.zeros(4, dtype=torch.uint8).numpy(), torch.tensor([0, 4]).numpy()))


def _page() -> object:
    x = torch.rand(3, 1, 4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    edits = nnrepair.Edits(x, (net(x).argmax(1) + 1) % 3)
    from nnrepair.plot.page import html_report

    return html_report(net, nnrepair.fix(net, edits, throw=False), edits)


def _picture() -> object:
    x, order = points()
    history = nnrepair.fix(model(), (x[:2], order[:2, 1]), mode="successive")
    return nnrepair.plot.sequence({"here": history})


@pytest.mark.parametrize(
    ("extra", "door"),
    [
        ("onnx", lambda: nnrepair.onnx.load("network.onnx")),
        ("onnx", lambda: nnrepair.onnx.save(model(), torch.zeros(1, 4), "network.onnx")),
        ("onnx", lambda: check("network.onnx", "property.vnnlib")),
        ("onnx", lambda: nnrepair.repair_property("network.onnx", "property.vnnlib")),
        ("onnx", lambda: checkers.run("minimality", "proof.npz", "network.onnx")),
        ("plot", _page),
        ("plot", _picture),
        ("vision", _photographs),
        ("graph", _graph),
        ("demo", lambda: importlib.import_module("nnrepair.domains.vision").digits()),
    ],
)
@pytest.mark.usefixtures("files")
def test_a_door_names_the_extra_that_it_needs(extra: str, door: Callable[[], object]) -> None:
    with pytest.raises(nnrepair.NNRepairError, match=re.escape(f"pip install 'nnrepair[{extra}]'")):
        door()


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("onnx", "check network.onnx property.vnnlib"),
        ("onnx", "repair network.onnx property.vnnlib --out out.onnx"),
        ("onnx", "fix network.onnx --edits edits.npz --out out.onnx"),
        ("onnx", "certify proof.npz network.onnx"),
        ("demo", "demo"),
        ("classroom", "classroom"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    extra: str, line: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(files.iterdir())
    assert cli.main(line.split()) == 3
    said = capsys.readouterr()
    assert said.out == "" and f"pip install 'nnrepair[{extra}]'" in said.err and said.err.count("\n") == 1
    assert sorted(files.iterdir()) == before


def test_the_package_is_run_by_its_name() -> None:
    done = subprocess.run([sys.executable, "-m", "nnrepair"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and "certify" in done.stderr
