"""The page about any repair: all that it promises is there, whatever the inputs and the edits are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pages import Page
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmin, Linear, Near, Threshold
from nnrepair.methods import GRACE, MinimalNorm


class Tokens(nn.Module):
    """Token ids and a mask, by name, to three scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weight = mask.float()[..., None].to(self.head.weight)
        y: Tensor = self.head((self.embedding(ids) * weight).sum(1) / weight.sum(1))
        return y


def network(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, outputs)).eval()


X = torch.linspace(-1, 1, 12).reshape(3, 4)
LAST = MinimalNorm(layer="2")
CASES = {
    "classes": (3, torch.tensor([0, 1, 2]), "0.2727"),
    "lowest": (3, Argmin([0, 1, 2]), "lowest: 1"),
    "answers": (2, Threshold([[0, 1], [1, 0], [-1, 1]]), "0 no, 1 yes"),
    "numbers": (1, Near(torch.tensor([[0.5], [1.0], [-2.0]]), tol=0.1), "near 0.5"),
    "conditions": (2, Linear([[1.0, -1.0]], [0.3], points=3), "Linear conditions"),
}


@pytest.mark.parametrize("kind", CASES)
def test_edits_of_every_kind_are_shown_before_and_after(kind: str, tmp_path: Path) -> None:
    outputs, wanted, shown = CASES[kind]
    result = nnrepair.fix(network(outputs), (X, wanted), method=LAST, throw=False)
    html = result.save_page(tmp_path / "fix.html", title="A <b>repair</b>", about="Of &amp; things").read_text()
    page = Page(html)
    assert shown in page.text
    assert "A <b>repair</b>" in page.text and "Of &amp; things" in page.text
    assert not page.links and not re.search(r"https?:|<script|<link|@import|url\(", html)
    cells = [attrs for tag, attrs in page.tags if tag == "td" and "class" in attrs]
    assert [cell["class"] for cell in cells] == ["ok" if held else "not" for held in result.report.held_after]
    for name in ("2.weight", "2.bias", "success rate", "Nothing yet", "nnrepair patch show"):
        assert name in page.text


def test_tokens_regions_and_wrappers_have_pages_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    ids = {"ids": torch.randint(0, 20, (2, 12)), "mask": torch.ones(2, 12, dtype=torch.int64)}
    labels = model(**ids).topk(2, 1).indices[:, 1]
    result = nnrepair.fix(model, (ids, labels), classes_of(ids), method=MinimalNorm(layer="head"))
    text = Page(result.save_page(tmp_path / "tokens.html", classes=["no", "maybe", "yes"]).read_text()).text
    assert "ids " in text and "(12)" in text and "maybe" in text
    wrapped = nnrepair.fix(network(), (X, [0, 1, 2]), method=GRACE(layer="2"), throw=False)
    assert "carried" in Page(wrapped.save_page(tmp_path / "grace.html").read_text()).text
    segments = nnrepair.Segments(X[:1], X[:1] + 0.01)
    region = nnrepair.fix(network(), (segments, [0]), method=LAST, throw=False)
    assert "The edits" not in Page(region.save_page(tmp_path / "region.html").read_text()).text


def classes_of(ids: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"ids": (ids["ids"] + 7) % 20, "mask": ids["mask"]}


@pytest.mark.parametrize("mode", ["successive", "independent"])
def test_a_sequence_has_a_page_with_every_step(mode: nnrepair.results.history.Mode, tmp_path: Path) -> None:
    history = nnrepair.fix(network(), (X, torch.tensor([0, 1, 2])), method=LAST, mode=mode, throw=False)
    html = history.save_page(
        tmp_path / "steps.html", about="Three <steps>", commands=["nnrepair patch show"]
    ).read_text()
    page = Page(html)
    cells = [attrs for tag, attrs in page.tags if tag == "td" and "class" in attrs]
    assert [cell["class"] for cell in cells] == ["ok" if all(step.held) else "not" for step in history.steps]
    for text in ("Three <steps>", "The steps", "hold so far", "success rate", "nnrepair patch show"):
        assert text in page.text
    assert ("2.weight" in page.text) == (history.patch is not None)
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)


def test_only_a_verdict_is_called_proved(tmp_path: Path) -> None:
    result = nnrepair.fix(network(), (X, [0, 1, 2]), method=LAST)
    text = Page(result.save_page(tmp_path / "a.html").read_text()).text
    assert "Claimed, not checked: Among all changes" in text
    text = Page(result.save_page(tmp_path / "b.html", verdict="ACCEPTED\nAll 3 edits hold.").read_text()).text
    assert "All 3 edits hold." in text and "Nothing yet" not in text


def test_failing_names_the_edits_that_do_not_hold(tmp_path: Path) -> None:
    result = nnrepair.fix(network(), edits := nnrepair.Edits(X, [0, 1, 2]), method=LAST)
    nnrepair.onnx.save(result.model, X, tmp_path / "fixed.onnx")
    nnrepair.onnx.save(network(), X, tmp_path / "broken.onnx")
    assert nnrepair.failing(result.model, edits) == [] == nnrepair.failing(tmp_path / "fixed.onnx", edits)
    lost = [k for k, held in enumerate(result.report.held_before) if not held]
    assert nnrepair.failing(network(), edits) == lost == nnrepair.failing(str(tmp_path / "broken.onnx"), (X, [0, 1, 2]))
    together = nnrepair.Edits(X, [0, 1, 2], of=[0, 0, 1])
    assert nnrepair.failing(network(), together) == sorted({[0, 0, 1][k] for k in lost})
    with pytest.raises(nnrepair.InvalidInput, match="or an ONNX file, got int"):
        nnrepair.failing(3, edits)  # type: ignore[arg-type]
