"""What `fix` certifies, the independent checker accepts; what is tampered with, it does not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from graphs import ring
from networks import randn, seeded
from torch import nn

import nnrepair
import nnrepair.onnx
from nnrepair import InvalidInput
from nnrepair.domains.graphs.cached import cached
from nnrepair.domains.graphs.graph import network
from nnrepair.methods import MinimalNorm
from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.results.certificate import Certificate, at_least, at_most
from nnrepair.spec.criteria import Argmax

CHECKER = Path(__file__).resolve().parents[1] / "verification" / "minimality.py"


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimality", CHECKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(CHECKER.parent))  # as python does when it runs the file
    spec.loader.exec_module(module)
    return module


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(27, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.fc2(torch.relu(self.fc1(h.flatten(1))))


def task() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    model = seeded(Network).eval()
    x, kept = randn(5, 1, 6, 6, seed=1), randn(8, 1, 6, 6, seed=2)
    with torch.no_grad():
        labels = (model(x).argmax(1) + 1) % 4
    return model, x, labels, kept


@pytest.mark.parametrize("norm", ["l1", "linf", "l2", "mean+max", "nuclear", "drift"])
@pytest.mark.parametrize(("layer", "architecture"), [("fc2", "same"), ("fc1", "decoupled"), ("conv", "decoupled")])
def test_the_checker_accepts_what_fix_certifies(
    checker: ModuleType, tmp_path: Path, capsys: Any, norm: Any, layer: str, architecture: Any
) -> None:
    model, x, labels, kept = task()
    method = MinimalNorm(layer=layer, norm=norm, margin=0.05, architecture=architecture)
    result = nnrepair.fix(model, (x, labels), kept, method=method)
    assert result.certificate is not None and result.certificate.gap <= 1e-5
    files = [str(result.certificate.save(tmp_path / "c.npz")), str(tmp_path / "base.onnx")]
    nnrepair.onnx.save(model, x[:2], files[1])
    if architecture == "same":
        nnrepair.onnx.save(result.model, x[:2], tmp_path / "repaired.onnx")
        files += ["--repaired", str(tmp_path / "repaired.onnx")]
    assert checker.main(files) == 0, capsys.readouterr().out
    tampered = Certificate.load(files[0])
    tampered.arrays["row_multiplier"] *= 1.01
    object.__setattr__(tampered, "lower_bound", tampered.lower_bound * 1.01)
    files[0] = str(tampered.save(tmp_path / "tampered.npz"))
    assert checker.main(files) == 1


def test_a_certificate_looks_at_the_points_of_its_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All points, once for each row, took gigabytes where many are kept."""
    seen: list[int] = []
    slack, certificate = Argmax.slack, ExactRepair.certificate

    def certified(self: ExactRepair, *given: Any) -> Certificate | None:
        with monkeypatch.context() as patched:
            patched.setattr(Argmax, "slack", lambda own, y: (seen.append(len(y)), slack(own, y))[1])
            return certificate(self, *given)

    monkeypatch.setattr(ExactRepair, "certificate", certified)
    model, x, labels, kept = task()
    result = nnrepair.fix(model, (x, labels), kept, method=MinimalNorm(layer="fc2", norm="l2"))
    assert result.certificate is not None and set(seen) == {1}
    assert len(seen) == len(result.certificate.arrays["row_multiplier"])


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize(("layer", "architecture"), [("fc2", "same"), ("fc1", "decoupled")])
def test_answers_are_certified(
    checker: ModuleType, tmp_path: Path, capsys: Any, outputs: int, layer: str, architecture: Any
) -> None:
    model, x, _, kept = task()
    model.fc2 = seeded(lambda: nn.Linear(12, outputs), 5)
    with torch.no_grad():
        labels = (model(x) <= 0.1).long()
    labels[1, -1] = -1 if outputs > 1 else labels[1, -1]
    method = MinimalNorm(layer=layer, norm="l2", margin=0.05, architecture=architecture, locality="none")
    edits = nnrepair.Edits(x[:2], nnrepair.Threshold(labels[:2], threshold=0.1))
    result = nnrepair.fix(model, edits, kept, method=method)
    assert result.certificate is not None and result.certificate.arrays["edit_A"].shape == (2, outputs, outputs)
    files = [str(result.certificate.save(tmp_path / "c.npz")), str(tmp_path / "base.onnx")]
    nnrepair.onnx.save(model, x[:2], files[1])
    if architecture == "same":
        nnrepair.onnx.save(result.model, x[:2], tmp_path / "repaired.onnx")
        files += ["--repaired", str(tmp_path / "repaired.onnx")]
    assert checker.main(files) == 0, capsys.readouterr().out
    assert "All 2 edits hold" in capsys.readouterr().out
    wrong = Certificate.load(files[0])
    wrong.arrays["edit_A"] *= -1
    files[0] = str(wrong.save(tmp_path / "wrong.npz"))
    assert checker.main(files) == 1


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    model, x, labels, kept = task()
    certificate = nnrepair.fix(model, (x, labels), kept, method=MinimalNorm(layer="fc2", norm="l1")).certificate
    assert certificate is not None
    again = Certificate.load(certificate.save(tmp_path / "c.npz"))
    assert again == certificate
    for name, array in certificate.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes((tmp_path / "c.npz").read_bytes()[:200])
    with pytest.raises(InvalidInput, match="damaged"):
        Certificate.load(damaged)


@pytest.mark.parametrize(
    ("number", "least", "most"),
    [
        (5.787298195, "5.78729", "5.7873"),
        (0.25, "0.25", "0.25"),
        (0.1, "0.1", "0.100001"),
        (2e-9, "2e-9", "2.00001e-9"),
    ],
)
def test_bounds_are_rounded_outward(number: float, least: str, most: str) -> None:
    assert (at_least(number), at_most(number)) == (least, most)


def test_the_claim_is_never_more_than_what_is_known() -> None:
    certificate = Certificate("fc.weight", None, "l1", "same", 5.787298195, 5.787298140, 0.0, False, {})
    assert "none has l1 norm below 5.78729; this one has at most 5.7873 (before rounding, a gap of at most 0)" in (
        certificate.claim
    )


def test_no_certificate_where_nothing_is_proved() -> None:
    model, x, labels, kept = task()
    assert nnrepair.fix(model, (x, labels), method=MinimalNorm(layer="fc1")).certificate is None
    soft = nnrepair.fix(
        model, (x, labels), kept, method=MinimalNorm(layer="fc2", norm="l1", locality="soft"), throw=False
    )
    assert soft.certificate is None or "soft" not in soft.certificate.claim


@pytest.mark.parametrize("kind", ["GCN", "GraphSAGE"])
def test_the_last_layer_of_a_graph_network_is_certified(
    checker: ModuleType, tmp_path: Path, capsys: Any, kind: Any
) -> None:
    pytest.importorskip("torch_geometric", reason="PyTorch Geometric's networks need the extra [graph]")
    graph = ring(nodes=40)
    model = network(kind, graph, hidden=8, seed=1)
    model.load_state_dict({name: randn(*value.shape, seed=3) for name, value in model.state_dict().items()})
    view = cached(model, graph)
    layer, keys = view.linear()
    torch.testing.assert_close(layer(keys), view.logits)
    kept = view.logits[4:].argmax(1)
    label = view.logits[:1].topk(2).indices[:, 1]
    method = MinimalNorm(layer="last", norm="drift")
    result = nnrepair.fix(layer, (keys[:1], label), (keys[4:], kept), method=method)
    assert result.certificate is not None
    files = [str(result.certificate.save(tmp_path / "c.npz")), str(tmp_path / "base.onnx")]
    nnrepair.onnx.save(layer, keys[:2], files[1])
    nnrepair.onnx.save(result.model, keys[:2], tmp_path / "repaired.onnx")
    assert checker.main([*files, "--repaired", str(tmp_path / "repaired.onnx")]) == 0, capsys.readouterr().out
    with torch.no_grad():
        y = view.restore(result.model)(graph.x, graph.edge_index).argmax(1)
    assert y[0] == label[0] and torch.equal(y[4:], kept)
    with pytest.raises(InvalidInput, match="cached from another model or graph"):
        cached(model, graph).restore(result.model)
