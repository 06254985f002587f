"""Repaired networks leave as ordinary ones (safetensors, torch.export, ONNX, Hugging Face), and come back repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

import nnrepair
from nnrepair.methods import MinimalNorm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 4)).eval()


@pytest.fixture(scope="module")
def repair() -> tuple[nnrepair.RepairResult, nnrepair.Edits]:
    torch.manual_seed(1)
    x, kept = torch.randn(3, 6), torch.randn(40, 6)
    edits = nnrepair.Edits(x, network()(x).topk(2, 1).indices[:, 1])
    return nnrepair.fix(network(), edits, kept, method=MinimalNorm(layer="3")), edits


def test_safetensors(repair: tuple[nnrepair.RepairResult, nnrepair.Edits], tmp_path: Path) -> None:
    result, edits = repair
    save_model(result.model, str(tmp_path / "model.safetensors"))
    again = network()
    load_model(again, tmp_path / "model.safetensors")
    assert nnrepair.failing(again, edits) == []
    assert result.patch is not None
    assert torch.equal(result.patch.revert(again)(edits.inputs), network()(edits.inputs))


def test_torch_export(repair: tuple[nnrepair.RepairResult, nnrepair.Edits], tmp_path: Path) -> None:
    result, edits = repair
    assert isinstance(edits.inputs, Tensor)
    program = torch.export.export(result.model, (edits.inputs,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(again(edits.inputs).argmax(1), edits.criterion.labels)  # type: ignore[attr-defined]


def test_onnx_there_and_back_and_repaired_again_in_place(
    repair: tuple[nnrepair.RepairResult, nnrepair.Edits], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    result, edits = repair
    path = tmp_path / "model.onnx"
    assert isinstance(edits.inputs, Tensor)
    nnrepair.onnx.save(result.model, edits.inputs, path)
    assert nnrepair.failing(path, edits) == []
    file = nnrepair.onnx.in_place(path)
    more = torch.randn(2, 6, generator=torch.Generator().manual_seed(5))
    labels = file(more).topk(2, 1).indices[:, 1]
    again = nnrepair.fix(file, (more, labels), (edits.inputs, file(edits.inputs).argmax(1)))
    out = again.model.save(tmp_path / "again.onnx")
    assert nnrepair.failing(out, edits) == nnrepair.failing(out, (more, labels)) == []


class Scores(nn.Module):
    """What a model of transformers returns, as a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        scores: Tensor = self.model(**inputs).logits
        return scores


def test_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=32, max_position_embeddings=12, num_labels=3)
    model = transformers.BertForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.randint(0, 40, (20, 8)), "attention_mask": torch.ones(20, 8, dtype=torch.int64)}
    mistakes, kept = ({name: x[part] for name, x in inputs.items()} for part in (slice(2), slice(2, None)))
    labels = Scores(model)(**mistakes).topk(2, 1).indices[:, 1]
    result = nnrepair.fix(Scores(model), (mistakes, labels), kept, method=MinimalNorm(layer="model.classifier"))
    result.model.model.save_pretrained(tmp_path / "repaired")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "repaired").eval()
    assert nnrepair.failing(Scores(again), (mistakes, labels)) == []
    assert result.patch is not None
    patched: Any = result.patch.apply(model)  # the model itself: its wrapper only adds a prefix
    assert nnrepair.failing(Scores(patched), (mistakes, labels)) == []
    patched.save_pretrained(tmp_path / "patched")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("repaired", "patched")]
    assert files[0] == files[1]
