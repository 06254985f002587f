"""README.md as a newcomer reads it: it is short, its code runs as printed, and makes what is shown."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tutorial import ROOT, up_to_digits

from nnrepair import cli
from nnrepair.verify import Box, Property, vnnlib

README = ROOT / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


PYTHON = blocks(README)


def test_it_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150
    assert all(len(line) <= 100 for _, block in BLOCKS for line in block.splitlines())
    first, own = (block.splitlines() for block in PYTHON)
    assert len(first) <= 15 and len([line for line in own if line]) <= 10


def test_what_it_shows_is_what_its_code_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn", "matplotlib", "PIL"):
        pytest.importorskip(package)
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    printed = runpy.run_path(str(ROOT / "docs" / "printed.py"))
    names: dict[str, Any] = {}
    text = README.read_text()
    assert up_to_digits(printed["filled"](text, names)) == up_to_digits(text)
    assert names["result"].outcome.status == "repaired"
    printed["picture"](names).savefig("drawn.png", dpi=110)
    drawn, shown = (
        np.asarray(Image.open(path).convert("L"), dtype=float) for path in ("drawn.png", printed["PICTURE"])
    )
    assert drawn.shape == shown.shape
    assert abs(drawn - shown).mean() < 0.1 * 255  # on another processor other digits may be misread, and in it


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], nn.Module]:
    """Lay out two folders of pictures, and make a small stand-in for the network that would be downloaded."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision comes with the extra [vision]")
    from PIL import Image

    draw = np.random.default_rng(0)
    for folder, name, count in (("old", "n01440764", 4), ("new", "n01443537", 2)):
        (tmp_path / folder / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
                tmp_path / folder / name / f"{k}.png"
            )
    monkeypatch.chdir(tmp_path)

    def untrained(weights: object = None) -> nn.Module:
        assert weights == "DEFAULT"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(192, 1000))
        with torch.no_grad():
            model[2].bias[0] = 9.0  # it takes everything for class 0
        return model.eval()

    monkeypatch.setattr(torchvision.models, "resnet18", untrained)
    return untrained


def test_the_code_for_photographs_runs(photographs: Callable[[], nn.Module]) -> None:
    """As printed, but for the network: trained weights would be downloaded."""
    names: dict[str, Any] = {}
    exec(compile(PYTHON[1], "README.md", "exec"), names)
    result = names["result"]
    assert result.report.edits == 2 and result.report.success_rate == 1.0 and result.report.locality == 1.0
    assert result.save_patch("fix.safetensors").exists()


def test_commands_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from nnrepair import Linear, onnx

    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        lowest = float(model(torch.zeros(1, 4))[0, 0])
    onnx.save(model, torch.zeros(1, 4), "network.onnx")
    box, codes = Box([-0.1] * 4, [0.1] * 4), []
    for most, names in ((lowest + 20.0, ("check",)), (lowest - 0.1, ("repair",))):  # holds; is violated
        Path("property.vnnlib").write_text(vnnlib.dumps(Property.on(box, Linear([[-1, 0]], [-most], points=1))))
        for language, block in BLOCKS:
            for line in block.splitlines() if language == "bash" else ():
                words = shlex.split(line, comments=True)
                if words[:1] == ["nnrepair"] and words[1] in names:
                    codes.append(cli.main(words[1:]))
    assert codes == [0, 0]


def test_code_that_follows_it_is_typed(tmp_path: Path) -> None:
    """As a user's own file that is checked strictly: what `fix` returns can be used without casts."""
    pytest.importorskip("mypy")
    programs = {name: "\n".join(blocks(ROOT / "docs" / f"{name}.md")) for name in ("quickstart", "how-to-choose")}
    programs["readme"] = "\n".join([*PYTHON, 'print(result.save_patch("fix.safetensors").name.upper())'])
    for name, program in programs.items():
        (tmp_path / f"{name.replace('-', '_')}.py").write_text(f"{program}\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *map(str, tmp_path.glob("*.py"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "3 source files" in done.stdout, done.stdout + done.stderr
