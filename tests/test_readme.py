"""README.md as a newcomer reads it: commands run as they are written, in order; what Python imports is there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import randn
from torch import nn

from nnrepair import cli

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [block for language, block in BLOCKS if language == "python"]
#: What writes a page of its own, and has its own tests.
ELSEWHERE = {"demo"}


def commands(block: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["nnrepair"] and line[1] not in ELSEWHERE]


SHELL = [found for _, block in BLOCKS if (found := commands(block))]


def network() -> nn.Sequential:
    """Return a network whose first output is the sum of the first two inputs' absolute values, and the second 1."""
    net = nn.Sequential()
    for k in (1, 2, 3):
        net.add_module(f"fc{k}", nn.Linear(4, 4 if k < 3 else 2))
        if k < 3:
            net.add_module(f"relu{k}", nn.ReLU())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.fc1.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0]]))
        net.fc2.weight.copy_(torch.eye(4))
        net.fc3.weight[0], net.fc3.bias[1] = 1.0, 1.0
    return net.eval()


def unsafe(first: float) -> str:
    """Return a property: on a box around 0, the first output stays below `first`."""
    names = "".join(f"(declare-const X_{k} Real)\n" for k in range(4)) + "(declare-const Y_0 Real)\n"
    box = "".join(f"(assert (<= X_{k} 0.5))\n(assert (>= X_{k} -0.5))\n" for k in range(4))
    return f"{names}(declare-const Y_1 Real)\n{box}(assert (>= Y_0 {first}))\n"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block[0][0])
def test_commands_run_as_written(block: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from nnrepair import onnx

    monkeypatch.chdir(tmp_path)
    model, x = network(), randn(40, 4)
    for name in ("model.onnx", "network.onnx"):
        onnx.save(model, x, name)
    violated = any(command[0] == "repair" for command in block)
    Path("property.vnnlib").write_text(unsafe(0.9 if violated else 1.1))
    Path("other.vnnlib").write_text(unsafe(5.0))
    Path("instances.csv").write_text("network.onnx,property.vnnlib,60\n")
    decisions = model(x).argmax(1)
    np.savez("mistakes.npz", inputs=x[:2], labels=1 - decisions[:2])
    np.savez("kept.npz", inputs=x[2:], labels=decisions[2:])
    np.savez("states.npz", inputs=x)
    for command in block:
        assert cli.main(command) == 0, f"nnrepair {shlex.join(command)}"


def test_there_are_commands() -> None:
    assert {"check", "certify", "repair", "fix", "patch", "methods"} <= {c[0] for block in SHELL for c in block}


@pytest.mark.parametrize("block", PYTHON)
def test_what_python_imports_is_there(block: str) -> None:
    imports = [part for part in ast.parse(block).body if isinstance(part, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "README.md", "exec"), {})
