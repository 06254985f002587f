"""The page and the demo: what they promise is there, and nothing is fetched, hidden or called proved that is not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import elsewhere, fills_up
from pages import Page
from torch import nn

import nnrepair
from nnrepair import cli, onnx
from nnrepair.cli import demonstration as demo
from nnrepair.errors import InvalidInput
from nnrepair.methods import MinimalNorm
from nnrepair.plot.page import _ticks, html_report
from nnrepair.plot.pixels import pooled
from nnrepair.results import checkers


def setting(shape: tuple[int, ...] = (1, 4, 4)) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    images = torch.rand(20, *shape, generator=generator)
    with torch.no_grad():
        order = model(images).argsort(1, descending=True)
    edits = nnrepair.Edits(images[:3], order[:3, 1])
    locality = nnrepair.LocalitySet(images[5:12], order[5:12, 0])
    held_out = nnrepair.LocalitySet(images[12:], order[12:, 0])
    result = nnrepair.fix(model, edits, locality, method=MinimalNorm(layer="3", norm="l1"), throw=False)
    return {"before": model, "result": result, "edits": edits, "held_out": held_out}


def test_the_promised_parts_are_there() -> None:
    given = setting()
    page = Page(html_report(**given, verdict="ACCEPTED\nAll edits hold.", reproduce="nnrepair demo"))
    for part in ("Proved", "Only measured", "The mistakes", "Margins of the edits", "What changed", "What stayed"):
        assert part in page.text
    for part in (
        "How far from the smallest change",
        "All numbers",
        "Do it again",
        "nnrepair demo",
        "held-out drawdown",
    ):
        assert part in page.text
    assert "All edits hold." in page.text and "ACCEPTED" not in page.text
    report = given["result"].report
    assert f"{sum(report.held_after)} of 3mistakes corrected" in page.text
    cards = [attrs for tag, attrs in page.tags if tag == "figure" and attrs.get("class") == "card"]
    assert len(cards) == 3
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert sum("read as" in alt for alt in alts) == 3 and any(alt.startswith("heat map") for alt in alts)


def test_the_page_is_self_contained_and_suits_dark_and_narrow_screens() -> None:
    html = html_report(**setting())
    page = Page(html)
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html and "max-width: 32rem" in html and 'name="viewport"' in html
    assert ("html", {"lang": "en"}) in page.tags


HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onload=alert(1) x='",
    "</style></title></pre><b>",
    "{{ title }}{% for x in y %}",
    "&lt;b&gt; &amp;",
)


@pytest.mark.parametrize("evil", HOSTILE)
def test_names_and_texts_are_text_whatever_they_hold(evil: str) -> None:
    """The page has the same tags and attributes whatever its texts are, and its reader sees them letter by letter."""
    given = setting()

    def page(text: str) -> Page:
        network = nn.Sequential(nn.Flatten(), nn.ReLU())
        network.add_module(text.replace(".", ""), given["before"][1])
        network.add_module("last", nn.Sequential(nn.ReLU(), given["before"][3]))
        method = MinimalNorm(layer=text.replace(".", "") + ".weight", norm="l2")
        result = nnrepair.fix(network, given["edits"], given["held_out"], method=method, throw=False)
        return Page(
            html_report(
                network,
                result,
                given["edits"],
                title=text,
                about=text,
                verdict=f"{text}\n{text}" if "title" in text else None,
                unchecked=text,
                compared=[(text, given["result"])],
                classes=[text, "b", text],
                reproduce=f"nnrepair fix '{text}.onnx'",
            )
        )

    harmless, hostile = page("abc title" if "title" in evil else "abc"), page(evil)
    assert [(tag, list(attrs)) for tag, attrs in hostile.tags] == [(tag, list(attrs)) for tag, attrs in harmless.tags]
    assert hostile.text.count(evil) >= 6
    assert any(f"of class {evil}" in (attrs.get("alt") or "") for _, attrs in hostile.tags)
    assert f"nnrepair fix '{evil}.onnx'" in hostile.text


def test_only_a_verdict_is_called_proved() -> None:
    given = setting()
    proved = Page(html_report(**given, verdict="All 3 edits hold."))
    claimed = Page(html_report(**given, unchecked="The checker is not here."))
    assert "accepted the certificate" in proved.text and "Nothing yet" not in proved.text
    assert "Nothing yet. The checker is not here." in claimed.text and "Claimed, not checked" in claimed.text
    assert "accepted" not in claimed.text and "Proved:" not in claimed.text


def test_numbers_agree_with_the_networks() -> None:
    given = setting()
    page = Page(html_report(**given))
    with torch.no_grad():
        y = given["result"].model(given["held_out"].inputs)
    right = int(given["held_out"].criterion.holds(y).sum())
    assert f"{right} of 8 held-out images are right, 8 were before" in page.text
    margins = given["edits"].criterion.margin(given["result"].model(given["edits"].inputs)).tolist()
    for margin in margins:
        assert f"→ {margin:+.2f}".replace("-", "−") in page.text


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (16,)])
def test_images_of_other_shapes(shape: tuple[int, ...]) -> None:
    given = setting(shape)
    page = html_report(**given)
    assert page.count("data:image/png") >= len(given["edits"])


def test_a_failed_repair_says_so() -> None:
    given = setting()
    model = given["before"]
    images = given["edits"].inputs[:1].repeat(2, 1, 1, 1) * torch.tensor([1.0, 1.001]).reshape(2, 1, 1, 1)
    edits = nnrepair.Edits(images, [0, 1])  # a bias cannot tell them apart
    result = nnrepair.fix(model, edits, method=MinimalNorm(layer="3.bias", margin=1.0), throw=False)
    assert not result.outcome.ok
    page = Page(html_report(model, result, edits))
    assert result.outcome.status.capitalize() in page.text and "✗" in page.text


def test_what_is_no_image_is_refused() -> None:
    given = setting()
    model = nn.Linear(5, 3)
    edits = nnrepair.Edits(torch.eye(5)[:2], [1, 2])
    result = nnrepair.fix(model, edits, throw=False)
    with pytest.raises(InvalidInput, match="images"):
        html_report(model, result, edits)
    near = nnrepair.Edits(given["edits"].inputs, nnrepair.Near(torch.zeros(3, 3), 1.0))
    with pytest.raises(InvalidInput, match="labels"):
        html_report(given["before"], given["result"], near)


def test_large_heat_maps_keep_their_largest_entries() -> None:
    matrix = np.zeros((3, 2000))
    matrix[1, 777] = -5.0
    matrix[1, 776] = 3.0
    small = pooled(matrix)
    assert small.shape[1] <= 512 and small.min() == -5.0 and (small != 0).sum() == 1


@pytest.mark.parametrize(("low", "high"), [(-6.7, 2.1), (-0.02, 0.011), (0.0, 900.0)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)


@pytest.mark.slow
def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "repaired: all" in said and "Measured" in said and "page.html" in said
    page = Page((tmp_path / "page.html").read_text())
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "base.onnx",
        "certificate.npz",
        "patch.safetensors",
        "repaired.onnx",
    ]
    assert "accepted the certificate" in said and "accepted the certificate" in page.text
    assert not (tmp_path / "nnrepair-demo").exists()


def test_the_demo_says_when_nothing_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = setting()
    result = given["result"]
    monkeypatch.setattr(checkers, "FOLDERS", (tmp_path,))
    monkeypatch.setattr(onnx, "save", lambda model, example, path: path.touch())  # slow, and not what is tested
    check = demo._check(tmp_path, given["before"], result, result.certificate, given["edits"].inputs[:1])
    assert check.verdict is None and "Install nnrepair again" in check.reason
    (tmp_path / "minimality.py").write_text("print('REJECTED'); raise SystemExit(1)")
    check = demo._check(tmp_path, given["before"], result, result.certificate, given["edits"].inputs[:1])
    assert check.verdict is None and "did not accept the certificate: REJECTED" in check.reason
    lines = demo._summary(result, result, given["before"], given["held_out"], check)
    assert "Proved         nothing." in "\n".join(lines)


def test_the_demo_refuses_another_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--out", str(tmp_path / "page.txt")]) == 3
    assert ".html" in capsys.readouterr().err


def test_the_demo_keeps_its_files_when_the_disk_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = setting()
    result = given["result"]
    monkeypatch.setattr(checkers, "FOLDERS", (tmp_path,))
    temporary, folder = elsewhere(monkeypatch, tmp_path / "elsewhere"), tmp_path / "page"
    fills_up(monkeypatch, folder, 1)
    check = demo._check(folder, given["before"], result, result.certificate, given["edits"].inputs[:1])
    (saved,) = temporary.glob("*/*")
    assert str(saved) in str(check.unwritten) and str(saved / "repaired.onnx") in check.command
    assert sorted(path.name for path in saved.iterdir())[:3] == ["base.onnx", "certificate.npz", "patch.safetensors"]
    fills_up(monkeypatch, tmp_path)
    check = demo._check(folder, given["before"], result, result.certificate, given["edits"].inputs[:1])
    assert check.verdict is None and "neither could a copy" in check.reason
    monkeypatch.undo()
    monkeypatch.setattr(demo.vision, "digits", lambda seed: pytest.fail("the work began"))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written"):
        demo.run(tmp_path / "file" / "page.html")
