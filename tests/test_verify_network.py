"""Networks that are read once, however many properties are asked about them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import mlp
from torch import nn

from nnrepair import Argmax
from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.verify import Box, Property, check
from nnrepair.verify import network as networks
from nnrepair.verify.network import Network, _Remembered
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower

onnx = pytest.importorskip("nnrepair.onnx", reason="ONNX files need the extra [onnx]")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    onnx.save(mlp(3, 4, 2, seed=1), torch.zeros(1, 3), path)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files that were read."""
    found, read = list[Path](), Network.read

    def noted(path: Path, deadline: Deadline) -> Network:
        found.append(path)
        return read(path, deadline)

    monkeypatch.setattr(Network, "read", staticmethod(noted))
    monkeypatch.setattr(networks, "_REMEMBERED", _Remembered())
    return found


def test_a_file_is_read_once_until_it_changes(file: Path, reads: list[Path], tmp_path: Path) -> None:
    claim = Property.on(Box([-1.0] * 3, [1.0] * 3), Argmax([0]), outputs=2)
    first, again = (check(file, claim) for _ in range(2))
    assert (first.verdict, first.boxes) == (again.verdict, again.boxes) and reads == [file]
    other = mlp(3, 4, 2, seed=2)
    onnx.save(other, torch.zeros(1, 3), file)
    changed, wanted = check(file, claim), check(other, claim)
    assert reads == [file, file] and changed.verdict == wanted.verdict
    copy = shutil.copy(file, tmp_path / "copy.onnx")
    file.unlink()
    assert check(copy, claim).verdict == changed.verdict and reads[2:] == [Path(copy)]  # a session belongs to a file


def test_what_is_read_in_part_or_kept_elsewhere_is_not_remembered(
    file: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutOfTime):
        Network.of(file, None, Deadline(-1.0))
    assert Network.of(file, None, NEVER) is Network.of(file, None, NEVER)
    monkeypatch.setattr(networks, "BYTES", 4 * len(file.read_bytes()) - 4)
    monkeypatch.setattr(networks, "_REMEMBERED", _Remembered())
    assert Network.of(file, None, NEVER) is not Network.of(file, None, NEVER)


def test_little_is_remembered(file: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(networks, "FILES", 2)
    paths = [Path(shutil.copy(file, tmp_path / f"{k}.onnx")) for k in range(3)]
    for path in (*paths, paths[2], paths[1], paths[0]):
        Network.of(path, None, NEVER)
    assert reads == [*paths, paths[0]]


def kinds() -> list[tuple[Any, tuple[int, ...]]]:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Sequential(nn.Linear(4, 4), nn.Hardswish(), nn.Linear(4, 4)), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.out(x + self.inner(x))
            return made

    image = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    return [(mlp(3, 5, 4, 2), (3,)), (Added(), (4,)), (image, (1, 3, 3)), (nn.Linear(3, 2), (3,))]


@pytest.mark.parametrize("which", range(4))
def test_gradients_are_those_of_automatic_differentiation(which: int) -> None:
    model, shape = kinds()[which]
    graph: Graph = lower(model.eval(), shape)
    generator = torch.Generator().manual_seed(which)
    x = torch.randn(7, graph.inputs, generator=generator, dtype=torch.float64)
    weights = torch.randn(7, graph.outputs, generator=generator, dtype=torch.float64)
    with torch.enable_grad():
        free = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad((graph(free) * weights).sum(), free)
    torch.testing.assert_close(graph.gradient(graph.values(x), weights), wanted)
