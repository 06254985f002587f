"""The benchmark on photographs: networks that are cut, halves, pictures, and what is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.vision import blocks, cut, imagenet, streams, table
from benchmarks.vision.cifar import saved
from benchmarks.vision.cut import cut_resnet, cut_squeezenet, seen, stored
from benchmarks.vision.gallery import best
from benchmarks.vision.imagenet import MOVED, neighbours
from benchmarks.vision.task import SAMPLES, halves, partners, task
from nnrepair import Exemplars
from nnrepair.domains.images.cifar import ResNet
from nnrepair.errors import InvalidInput
from nnrepair.methods import Editor


@pytest.mark.parametrize("first", ["layer3", "layer3.1", "layer3.2"])
def test_a_resnet_that_is_cut_is_the_same_network(first: str) -> None:
    torch.manual_seed(0)
    network = ResNet(20).eval()
    before, rest = cut_resnet(network, first)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(rest(seen(before, x)), network(x))
    whole = dict(network.named_parameters())
    assert all(whole[name] is parameter for name, parameter in rest.named_parameters())
    assert f"{first}.".removesuffix(".") in "".join(dict(rest.named_modules()))


@pytest.mark.parametrize("first", ["layer2", "layer3.3", "layer3.x", "linear"])
def test_a_resnet_is_cut_in_its_last_stage(first: str) -> None:
    with pytest.raises(InvalidInput, match="before layer3 or one of its blocks"):
        cut_resnet(ResNet(20), first)


@pytest.mark.parametrize(
    ("first", "layers"),
    [
        ("classifier", ["classifier.1"]),
        ("features.12", [*(f"features.12.{name}" for name in ("squeeze", "expand1x1", "expand3x3")), "classifier.1"]),
    ],
)
def test_squeezenet_that_is_cut_is_the_same_network(first: str, layers: list[str]) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network = models.squeezenet1_1(weights=None).eval()
    before, rest = cut_squeezenet(network, first)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(rest(seen(before, x)), network(x))
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert [name for name, _ in rest.named_parameters()] == names
    with pytest.raises(InvalidInput, match="before classifier or features.12, given 'features.9'"):
        cut_squeezenet(network, "features.9")


def test_features_are_computed_once_for_each_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "BUILD", tmp_path / "build")
    calls: list[int] = []
    code = tmp_path / "code.py"
    code.write_text("first")

    def compute() -> dict[str, Tensor]:
        calls.append(1)
        return {"x": torch.arange(3.0) + len(calls), "wrong": torch.tensor([True, False])}

    for _ in range(2):
        found = stored("some", ["nothing/there"], code, compute)
        assert found["x"].tolist() == [1, 2, 3] and found["wrong"].tolist() == [True, False] and len(calls) == 1
    code.write_text("second")
    assert stored("some", ["nothing/there"], code, compute)["x"].tolist() == [2, 3, 4]
    (tmp_path / "build" / "some.safetensors").write_bytes(b"damaged")
    assert stored("some", ["nothing/there"], code, compute)["x"].tolist() == [3, 4, 5]


def test_halves_of_each_class() -> None:
    labels = torch.tensor([4, 4, 4, 4, 4, 7, 7, 7, 9])
    chosen = torch.tensor([True] * 5 + [True, True, False, True])
    first, second = halves(labels, chosen, torch.Generator().manual_seed(0))
    assert labels[first].tolist() == [4, 4, 4, 7, 9] and labels[second].tolist() == [4, 4, 7]
    assert sorted([*first.tolist(), *second.tolist()]) == [0, 1, 2, 3, 4, 5, 6, 8]
    other, _ = halves(labels, chosen, torch.Generator().manual_seed(1))
    assert first.tolist() != other.tolist()
    assert partners(labels[first], labels[second]).tolist() == [0, 1, 3]
    assert partners(torch.tensor([4]), torch.tensor([4, 7, 4])).tolist() == [0, -1, 0]


def test_neighbours_are_mirrored_and_moved() -> None:
    wide = torch.rand(2, 3, 6 + 2 * MOVED, 6 + 2 * MOVED)
    middle = wide[:, :, MOVED : 6 + MOVED, MOVED : 6 + MOVED]
    near = neighbours(wide)
    assert near.shape == (2, 3, 3, 6, 6)
    assert torch.equal(near[:, 0], middle.flip(3))
    assert torch.equal(near[:, 1], wide[:, :, MOVED : 6 + MOVED, 2 * MOVED :])
    assert torch.equal(near[:, 2], wide[:, :, 2 * MOVED :, MOVED : 6 + MOVED])


def test_images_saved_as_jpeg_are_near_and_further_the_lower_the_quality() -> None:
    pytest.importorskip("PIL.Image", reason="pillow comes with the extra [vision]")
    ramp = torch.linspace(0, 1, 32).expand(3, 32, 32)
    noisy = (ramp + 0.2 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    images = torch.stack([ramp, noisy])
    off = [float((saved(images, quality) - images).abs().mean()) for quality in (95, 45, 20)]
    assert off == sorted(off) and 0 < off[0] < 0.05 and off[2] < 0.15
    assert torch.equal(saved(images, 30), saved(images, 30)) and saved(images, 30).shape == images.shape
    values = saved(images, 30).mul(255)
    assert torch.allclose(values, values.round(), atol=1e-3)


def test_images_on_disk_are_those_that_were_written(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, *streams.SHAPE), dtype=np.uint8)
    path = tmp_path / "images"
    path.write_bytes(pixels.tobytes())
    images = streams.OnDisk(path, torch.arange(4))
    x, label = images[2]
    assert int(label) == 2 and torch.equal(x.mul(255).round().byte(), torch.from_numpy(pixels[2]))
    assert len(images) == 4 and images.read == 1


def test_the_best_three_classes_come_with_their_shares() -> None:
    model = nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    (found,) = best(model, torch.tensor([[1.0, 0.0]]), ["a", "b", "c", "d"])
    assert [name for name, _ in found] == ["b", "c", "a"]
    assert found[0][1] == pytest.approx(0.6439, abs=1e-4)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'squeezenet'"):
        task("squeeznet", 0, 5)


@pytest.mark.data
def test_edits_kept_and_tested_samples_are_different_ones(data_dir: Callable[..., Path]) -> None:
    data_dir(*imagenet.FILES)
    if not SAMPLES.exists():
        pytest.skip("what SqueezeNet's last layer sees is not in build/ yet; `python -m benchmarks run` computes it")
    assert task("squeezenet", 0, 5).faults() == []


@pytest.mark.data
def test_exemplars_are_misread_under_snow_and_read_right_without(data_dir: Callable[..., Path]) -> None:
    data_dir(*imagenet.FILES)
    if not SAMPLES.exists() or not (cut.BUILD / "squeezenet-exemplars.safetensors").exists():
        pytest.skip("what SqueezeNet's last layer sees is not in build/ yet; `python -m benchmarks run` computes it")
    posed = task("squeezenet-exemplars", 0, 5)
    pairs = posed.edits.inputs
    assert posed.faults() == [] and isinstance(pairs, Exemplars)
    assert not posed.edits.criterion.holds(posed.model(pairs.changed)).any()
    assert posed.edits.criterion.holds(posed.model(pairs.originals)).all()
    apart = (pairs.changed - pairs.originals).abs().mean(1)
    assert float(apart[pairs.places].mean()) > 2 * float(apart[~pairs.places].mean())


def test_a_training_goes_on_and_its_last_editor_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two marks: the second goes on where the first ended, to the same editor as in one go."""
    torch.manual_seed(0)
    rest = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(60, 4)
    labels = rest(x).argmax(1)
    labels[30:40] = (labels[30:40] + 1) % 3
    at: dict[str, Any] = {"train": x[:30], "train labels": labels[:30], "test": x[30:], "test labels": labels[30:]}
    at |= {"lossless": x[:5], "lossless labels": labels[:5], "test mistakes": torch.arange(10)}
    monkeypatch.setattr(blocks, "points", lambda first: (rest, at))
    monkeypatch.setattr(blocks, "LOCALITY", 8)
    made = {}
    for folder, marks in (("once", (100.0,)), ("twice", (1e-9, 100.0))):
        monkeypatch.setattr(blocks, "BUILD", tmp_path / folder)
        monkeypatch.setattr(blocks, "EDITORS", tmp_path / folder / "editors")
        monkeypatch.setattr(blocks, "TRAININGS", {"0": blocks.Trained("0", 5, marks)})
        spent = 0.0
        for mark in marks:
            found = blocks.trained("0", mark, spent)
            spent = found["training"]["cpu_seconds"]
        made[folder] = found["training"]
        assert (tmp_path / folder / "editors" / "0.safetensors").stat().st_size == found["training"]["bytes"]
        assert found["random labels"]["edits"] == 30 and 0 <= found["random labels"]["success_rate"] <= 1
    assert made["once"]["steps"] == made["twice"]["steps"] == 5
    assert made["once"]["fingerprint"] == made["twice"]["fingerprint"]


def test_the_editors_of_convolutions_are_those_of_their_records() -> None:
    rows = [row for row in measure.load(blocks.RESULTS) if "bytes" in row.get("training", {})]
    assert {row["name"] for row in rows} == set(blocks.TRAININGS)
    for row in rows:
        path, told = blocks.EDITORS / f"{row['name']}.safetensors", row["training"]
        editor = Editor.load(path)
        assert editor.fingerprint == told["fingerprint"] and editor.steps == told["steps"] == told["of"]
        assert path.stat().st_size == told["bytes"] <= 5e6


def test_the_page_is_made_of_the_results() -> None:
    assert (table.DOCS / "results-vision.md").read_text() == table.page()
