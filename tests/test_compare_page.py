"""The page about what stayed the same: its figures against other ways to have them, and what any page promises."""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pages import Page
from PIL import Image
from test_compare import changed, network
from torch import nn

import nnrepair
from nnrepair import onnx
from nnrepair.cli import main
from nnrepair.errors import InvalidInput
from nnrepair.results import checkers
from nnrepair.rounding import percent_at_least, percent_at_most
from nnrepair.verify import Box, Comparison, compare
from nnrepair.verify.comparing.certificate import GRID
from nnrepair.verify.comparing.map import KINDS, seen

SQUARE = Box([-1, -1], [1, 1])
OUTSIDE = re.compile(r"https?:|<script|<link|@import|url\(")


@given(st.fractions(0, 1))
def test_shares_are_rounded_so_that_they_claim_no_more(share: Fraction) -> None:
    low, high = (Fraction(text(share).removesuffix("%")) / 100 for text in (percent_at_least, percent_at_most))
    assert low <= share <= high
    assert high - low <= Fraction(1, 10_000)
    assert Fraction(percent_at_most(1 - share).removesuffix("%")) == 100 * (1 - low)


def pair(sizes: tuple[int, ...] = (2, 8, 8, 3), size: float = 0.5) -> tuple[nn.Sequential, nn.Sequential]:
    before = network(sizes, 16)
    return before, changed(before, (4,), 100, size, False)


@pytest.fixture(scope="module")
def found() -> Comparison:
    """Return what is known of two networks on two boxes beside each other, one of them half as high."""
    return compare(*pair(), [SQUARE, Box([1, -0.5], [1.5, 0.5])], until=0.02, timeout=60)


def read(found: Comparison, path: Path, **said: object) -> tuple[Page, str]:
    html = found.save_page(path / "page.html", **said).read_text()  # type: ignore[arg-type]
    assert not OUTSIDE.search(html)
    page = Page(html)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    return page, html


def test_the_page_says_what_was_found(found: Comparison, tmp_path: Path) -> None:
    page, _ = read(found, tmp_path, title="A <b>title</b>", about="Of &amp; things")
    text = " ".join(page.text.split())
    assert "A <b>title</b>" in text and "Of &amp; things" in text
    shares = [percent_at_least(share) for share in (found.same, found.changed, found.identical)]
    assert f"is the same on at least {shares[0]} of the region's volume" in text
    assert f"another one on at least {shares[1]}" in text and f"identical on at least {shares[2]}" in text
    (bar,) = (attrs["aria-label"] or "" for _, attrs in page.tags if attrs.get("class") == "shares")
    assert all(share in bar for share in shares) and percent_at_most(found.unknown) in bar
    widths = [float((attrs["style"] or "").removeprefix("width:").removesuffix("%")) for attrs in segments(page)]
    same = float(found.same - found.identical)
    wanted = [float(found.identical), same, float(found.unknown), float(found.changed)]
    assert widths == pytest.approx([100 * share for share in wanted], abs=1e-3)
    assert found.subject is not None
    assert [name in text for name in found.subject.hashes] == [True, True]
    assert "volume of the region4.5, in units of the inputs" in text and "2 boxes that share no inside" in text
    for moment in (found.history[0], found.history[-1]):
        assert f"{moment.cpu_seconds:.2f}" in text and f"{moment.boxes:,}" in text


def segments(page: Page) -> list[dict[str, str | None]]:
    return [attrs for tag, attrs in page.tags if tag == "i" and "width:" in (attrs.get("style") or "")]


def test_fingerprints_are_those_of_the_networks(found: Comparison) -> None:
    assert found.subject is not None
    assert found.subject.hashes == tuple(nnrepair.fingerprint.fingerprint(model) for model in pair())


def test_witnesses_are_shown_as_the_networks_decide(found: Comparison, tmp_path: Path) -> None:
    text = read(found, tmp_path, outputs=["no", "<i>maybe</i>", "yes"])[0].text
    models, names = pair(), ["no", "<i>maybe</i>", "yes"]
    for witness in found.witnesses:
        x = torch.from_numpy(witness.input).float()[None]
        with torch.no_grad():
            y = [model(x)[0] for model in models]
        assert f"{names[int(y[0].argmax())]} → {names[int(y[1].argmax())]}" in text
        assert all(f"{float(v):.9g}" in text for v in (*x[0], *y[0], *y[1]))
    assert text.count("Replayed by torch and exact arithmetic.") == len(found.witnesses) > 0
    with pytest.raises(InvalidInput, match="outputs= are 2 names, but there are 3 outputs"):
        found.save_page(tmp_path / "no.html", outputs=["no", "yes"])


def test_only_a_verdict_is_called_proved(found: Comparison, tmp_path: Path) -> None:
    proof = found.certificate
    assert proof is not None
    text = " ".join(read(found, tmp_path)[0].text.split())
    claims = [percent_at_least(Fraction(claim, GRID)) for claim in (proof.identical, proof.same, proof.changed)]
    assert f"Claimed, not checked: identical outputs on at least {claims[0]}" in text
    assert f"the same argmax on at least {claims[1]}, another one on at least {claims[2]}" in text
    assert "Nothing yet. The certificate was not checked." in text
    assert "nnrepair certify CERTIFICATE.npz" in text
    text = read(found, tmp_path, verdict="Accepted: proved of 2 boxes")[0].text
    assert "Accepted: proved of 2 boxes" in text and "Nothing yet" not in text


def test_the_map_of_two_inputs_is_what_is_known_at_points(found: Comparison, tmp_path: Path) -> None:
    cells = 25
    drawn = seen(found.state.trees, (0, 1), cells, partly=False)
    at = [low + (np.arange(cells) + 0.5) * (high - low) / cells for low, high in (drawn.across, drawn.up)]
    points = np.stack([v.ravel() for v in np.meshgrid(*at)], 1)
    known = found.known(points).reshape(cells, cells)
    assert set(known.ravel()) == {*KINDS, "outside"}
    pure = (drawn.shares > 1 - 1e-9).any(0)
    assert pure.mean() > 0.5
    assert [KINDS[k] for k in drawn.shares[:, pure].argmax(0)] == known[pure].tolist()
    assert (np.isnan(drawn.shares).any(0) == (known == "outside")).mean() > 0.95  # the others have a border in them
    image = pixels(read(found, tmp_path)[1])
    assert image.shape == (200, 200, 4)
    points = np.array([[-0.995, 0.995], [1.4975, 0.9975], [0.8025, -0.8975]])  # middles of pixels
    column, row = ((points - [-1, -1]) / [2.5, 2] * 200).astype(int).T
    colours = {"unknown": (128, 128, 128, 90), "changed": (217, 95, 2, 255), "same": (116, 173, 235, 255)}
    colours |= {"identical": (44, 112, 201, 255), "outside": (0, 0, 0, 0)}
    kinds = found.known(points)
    assert [tuple(image[199 - r, c]) for r, c in zip(row, column, strict=True)] == [colours[kind] for kind in kinds]
    assert len(set(kinds)) == 3


def pixels(html: str) -> np.ndarray:
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("axes", [(0, 1), (3, 1)])
def test_a_map_adds_up_whatever_the_other_inputs_are(axes: tuple[int, int]) -> None:
    box = Box([-1, -1, 0, -1], [1, 1, 0.5, 2])
    found = compare(*pair((4, 10, 10, 3), 0.9), box, until=0.02, timeout=20)
    whole, strict = (seen(found.state.trees, axes, 4, partly=way) for way in (True, False))
    claims = [found.unknown, found.changed, found.same - found.identical, found.identical]
    assert whole.whole.tolist() == pytest.approx([float(share) for share in claims], abs=2e-3)
    for kinds in ([1], [2, 3], [3]):  # a part with the same decision all over may be identical to a share
        assert strict.whole[kinds].sum() <= whole.whole[kinds].sum() + 1e-12
    low, high = (np.array([float(v) for v in end]) for end in (box.lower, box.upper))
    points = low + (high - low) * np.random.default_rng(0).random((40_000, 4))
    known, cell = found.known(points), ((points - low) / (high - low) * 4).astype(int)
    for row in range(4):
        for column in range(4):
            here = known[(cell[:, axes[0]] == column) & (cell[:, axes[1]] == row)]
            counted = [float((here == kind).mean()) for kind in KINDS]
            assert strict.shares[:, row, column].tolist() == pytest.approx(counted, abs=4.5 / np.sqrt(4 * len(here)))


def test_a_map_is_of_the_inputs_that_were_named(tmp_path: Path) -> None:
    found = compare(*pair((4, 8, 8, 3)), Box([-1, 0.5, -1, -1], [1, 0.5, 1, 1]), until=0.2, timeout=20)
    page, _ = read(found, tmp_path, inputs=["a", "b<", "c", "d"], axes=(3, 0))
    (alt,) = (attrs["alt"] or "" for tag, attrs in page.tags if tag == "img")
    assert alt.startswith("Map of d from -1 to 1 and a from -1 to 1.")
    assert "whatever c are" in page.text and "b< = 0.5 is fixed" in page.text
    for axes in ((0, 1), (2, 2), (0, 4)):
        with pytest.raises(InvalidInput, match=r"two of the inputs that vary, which are \[0, 2, 3\]"):
            found.save_page(tmp_path / "no.html", axes=axes)
    with pytest.raises(InvalidInput, match="inputs= are 2 names, but there are 4 inputs"):
        found.save_page(tmp_path / "no.html", inputs=["a", "b"])


def test_lines_criteria_and_equal_networks_have_pages(tmp_path: Path) -> None:
    before = network((1, 6, 1), 2)
    after = changed(before, (2,), 5, 1.5, True)
    found = compare(before, after, Box([-1], [1]), decision=nnrepair.Threshold([1]), until=0.02, timeout=20)
    page, html = read(found, tmp_path)
    assert "<img" not in html and "Where" not in page.text
    assert found.witnesses
    assert re.search(r"holds → does not hold|does not hold → holds", page.text)
    assert "There is no certificate: the independent checker compares" in " ".join(page.text.split())
    model = network((3, 6, 4), 0)
    found = compare(model, copy.deepcopy(model), Box([0] * 3, [1] * 3))
    text = " ".join(read(found, tmp_path)[0].text.split())
    assert "the same on at least 100.00%" in text and "None was found" in text
    found = compare(*pair((4, 60, 60, 3), 2.0), Box([-9] * 4, [9] * 4), timeout=3)  # so far from any proof
    moments = [dataclasses.replace(moment, same=2.0**-53, identical=2.0**-53) for moment in found.history]
    text = read(dataclasses.replace(found, history=tuple(moments)), tmp_path)[0].text
    assert "e-" not in text.partition("How it grew")[2].partition("Inputs with")[0]


def test_the_curve_claims_no_more_than_was_known(found: Comparison, tmp_path: Path) -> None:
    history = (dataclasses.replace(found.history[-1], identical=0.0, same=2 / 3, changed=2 / 9),)
    text = read(dataclasses.replace(found, history=history), tmp_path)[0].text
    curve = text.partition("How it grew")[2].partition("Inputs with")[0]
    assert "66.66%" in curve and "22.22%" in curve and "66.67%" not in curve


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"verdict": "Rejected: what is claimed is more"}, "when it accepted the certificate, got 'Rejected"),
        ({"verdict": "Cannot be read: no file"}, "when it accepted"),
        ({"verdict": 5}, "got int"),
        ({"axes": (0, 1, 1)}, "expected two of the inputs"),
        ({"axes": 5}, "expected two of the inputs"),
        ({"axes": (0.0, 1.0)}, "expected two of the inputs"),
        ({"axes": ([0], 1)}, "expected two of the inputs"),
        ({"inputs": "ab"}, "inputs= must be a list of names, got 'ab'"),
        ({"inputs": ["a"]}, "inputs= are 1 name, but there are 2 inputs"),
        ({"outputs": 5}, "outputs= must be a list of names"),
        ({"commands": "nnrepair certify"}, "commands= must be a list of texts"),
    ],
)
def test_what_a_page_cannot_say_is_refused(
    said: dict[str, object], why: str, found: Comparison, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=why):
        read(found, tmp_path, **said)
    with pytest.raises(InvalidInput, match="named by a text or a pathlib.Path"):
        found.save_page(5)  # type: ignore[arg-type]


def test_volumes_that_no_float_holds_are_written(found: Comparison, tmp_path: Path) -> None:
    for size, text in ((Fraction(10) ** 321, "1.00000e+321"), (Fraction(1, 10**400), "1e-400")):
        assert text in read(dataclasses.replace(found, volume=size), tmp_path)[0].text


def test_what_never_began_has_no_page(tmp_path: Path) -> None:
    found = compare(*pair(), SQUARE, timeout=1e-9)
    with pytest.raises(InvalidInput, match="has no page"):
        found.save_page(tmp_path / "page.html")


def test_the_command_line_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("be<fore.onnx", "after.onnx")]
    for model, file in zip(pair(), files, strict=True):
        onnx.save(model, torch.zeros(1, 2), file)
    region = tmp_path / "region.vnnlib"
    region.write_text(
        "(declare-const X_0 Real)(declare-const X_1 Real)"
        + "".join(f"(declare-const Y_{k} Real)" for k in range(3))
        + "(assert (and (>= X_0 -1)(<= X_0 1)(>= X_1 -1)(<= X_1 1)))(assert (<= Y_0 Y_1))"
    )
    proof, path = tmp_path / "c.npz", tmp_path / "page.html"
    given = ["compare", *map(str, files), str(region), "--timeout", "3"]
    assert main([*given, "--page", str(tmp_path / "page.txt")]) == 3
    assert "page.txt: a page about a comparison is written as .html" in capsys.readouterr().err
    main([*given, "--certificate", str(proof), "--page", str(path)])
    assert f"wrote {path} (page)" in capsys.readouterr().out
    text = " ".join(Page(path.read_text()).text.split())
    assert "What stayed the same in after.onnx" in text and "be<fore.onnx" in text
    assert "Replayed by torch, onnxruntime and exact arithmetic." in text
    assert all(checkers_hash in text for checkers_hash in map(nnrepair.verify.certificate.sha256, files))
    command = re.findall(r"nnrepair (certify .*? --repaired \S+)", text)[0]
    assert main(command.replace("'", "").split()) == checkers.ACCEPTED
    main([*given, "--html", str(path), "--quiet"])
    assert "--certificate FILE writes one" in Page(path.read_text()).text
    assert main([*given, "--page", str(path), "--tolerance", "1"]) == 3


def test_every_repaired_network_has_pages(data_dir: Callable[..., Path], tmp_path: Path) -> None:
    data_dir("acasxu/acasxu_instances.csv", "acasxu/onnx", "acasxu/vnnlib")
    from benchmarks.compare import pages

    pages.main(["--networks", "2_9", "--seconds", "1", "--out", str(tmp_path)])
    index = Page((tmp_path / "index.html").read_text())
    assert index.links == ["N_2_9-plane.html", "N_2_9.html"]
    text = (tmp_path / "N_2_9.html").read_text()
    assert not OUTSIDE.search(text) and "Accepted: proved of 18 boxes" in Page(text).text
    assert "phi_8" in Page((tmp_path / "N_2_9-plane.html").read_text()).text
    before = (tmp_path / "N_2_9.html").stat().st_mtime_ns
    pages.main(["--networks", "2_9", "--seconds", "1", "--out", str(tmp_path)])
    assert (tmp_path / "N_2_9.html").stat().st_mtime_ns == before
    with pytest.raises(InvalidInput, match="no repaired network '1_1'"):
        pages.main(["--networks", "1_1", "--out", str(tmp_path)])
