"""Photographs with ImageNet's labels, and SqueezeNet: what is read, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

import nnrepair
from nnrepair import Edits
from nnrepair.domains.images import samples
from nnrepair.domains.images.samples import MEAN, STD, Photographs, imagenet_samples, vehicles_on_snow
from nnrepair.domains.images.squeezenet import squeezenet
from nnrepair.errors import DataUnavailable, InvalidInput
from nnrepair.methods import MinimalNorm

image = pytest.importorskip("PIL.Image", reason="pillow comes with the extra [vision]")
SAMPLES = "imagenet/imagenet_sample_1000.npz"
WEIGHTS = "imagenet/squeezenet1_1_caffe_torchvision.npz"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and an empty cache."""
    (tmp_path / "data" / "imagenet").mkdir(parents=True)
    monkeypatch.setenv("NNREPAIR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def jpeg(pixels: Any, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def packed(parts: list[bytes], **others: Any) -> dict[str, Any]:
    names = np.array([f"n{k}" for k in range(len(parts))])
    arrays = {"data": np.frombuffer(b"".join(parts), np.uint8), "offsets": np.cumsum([0, *map(len, parts)])}
    return arrays | {"label": np.arange(len(parts), dtype=np.int16), "wnid": names} | others


def levels(*values: int, height: int = 20, width: int = 24) -> list[Any]:
    return [np.full((height, width, 3), value, np.uint8) for value in values]


def test_the_middle_of_a_photograph_with_normalised_colours(folder: Path) -> None:
    pixels = np.zeros((20, 24, 3), np.uint8)
    pixels[6:14, 8:16] = 255  # the middle 8 x 8 pixels, a block of the JPEG grid away from the border
    np.savez(folder / SAMPLES, **packed([jpeg(pixels), jpeg(levels(128)[0])]))
    photographs = imagenet_samples(4)
    x, label = photographs[0]
    assert x.shape == (3, 4, 4) and x.dtype == torch.float32 and int(label) == 0
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(x, white[:, None, None].expand(3, 4, 4), atol=0.15, rtol=0)
    assert torch.equal(photographs.images().inputs[0], x) and photographs.images().labels.tolist() == [0, 1]
    assert torch.equal(photographs.images([1]).inputs[0], photographs[1][0])
    wide = imagenet_samples(20)[0][0]
    assert float(wide.min()) < -1.5 and torch.allclose(wide[:, 9, 9], white, atol=0.15)


def test_grey_and_cmyk_photographs_become_colours(folder: Path) -> None:
    np.savez(folder / SAMPLES, **packed([jpeg(levels(200)[0], "L"), jpeg(levels(200)[0], "CMYK")]))
    for x in imagenet_samples(8).images().inputs:
        grey = (200 / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        torch.testing.assert_close(x.mean((1, 2)), grey, atol=0.05, rtol=0)


def test_they_are_streamed_as_edits_and_as_points_to_keep(folder: Path) -> None:
    np.savez(folder / SAMPLES, **packed([jpeg(each) for each in levels(0, 60, 120, 180, 240)]))
    photographs = imagenet_samples(8)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    x = photographs.images()
    with torch.no_grad():
        wanted = model(x.inputs).argsort(1)[:1, 1]
    kept = DataLoader(Subset(photographs, [2, 3, 4]), batch_size=2)
    result = nnrepair.fix(model, Edits(x.inputs[:1], wanted), kept, method=MinimalNorm(locality="none", norm="l2"))
    assert result.outcome.ok and result.report.locality_points == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offsets": np.array([0, 5])}, "do not fit"),
        ({"offsets": np.array([0, 9_000_000, 9_000_001])}, "do not fit"),
        ({"offsets": np.array([0, 5, 5])}, "no bytes"),
        ({"label": np.zeros(3, np.int16)}, "do not fit"),
        ({"data": None}, "lacks data"),
    ],
)
def test_files_that_are_none_are_refused(folder: Path, changed: dict[str, Any], message: str) -> None:
    arrays = packed([jpeg(each) for each in levels(0, 60)]) | changed
    np.savez(folder / SAMPLES, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(InvalidInput, match=message):
        imagenet_samples()


def test_photographs_that_cannot_be_read_are_named(folder: Path) -> None:
    whole = jpeg(levels(60)[0])
    np.savez(folder / SAMPLES, **packed([whole, whole[:100], b"GIF89a", jpeg(levels(60, height=6)[0])]))
    photographs = imagenet_samples(8)
    assert photographs[0][0].shape == (3, 8, 8)
    for k, why in ((1, "n1 cannot be read"), (2, "n2 cannot be read"), (3, "24 x 6 pixels; expected at least 8")):
        with pytest.raises(InvalidInput, match=why):
            photographs[k]


def test_photographs_of_too_many_pixels_are_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(folder / SAMPLES, **packed([jpeg(levels(60)[0])]))
    monkeypatch.setattr(samples, "MOST", 100)
    with pytest.raises(InvalidInput, match="24 x 20 pixels, more than 100"):
        imagenet_samples(8)[0]


def test_what_is_missing_is_said(folder: Path) -> None:
    for load in (imagenet_samples, vehicles_on_snow, squeezenet):
        with pytest.raises(DataUnavailable, match="export NNREPAIR_DATA"):
            load()
    for size in (0, 257, 2.5, True):
        with pytest.raises(InvalidInput, match="size must be a whole number"):
            imagenet_samples(size)  # type: ignore[arg-type]


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    np.savez(folder / WEIGHTS, **{"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)})
    with pytest.raises(InvalidInput, match="are in one of them alone"):
        squeezenet()


@pytest.mark.data
def test_squeezenet_reads_its_samples(data_dir: Callable[..., Path]) -> None:
    """Every sixteenth sample: a share near that over all of them, .612."""
    data_dir(SAMPLES, "imagenet/vehicles_on_snow.npz", WEIGHTS)
    state = torch.get_rng_state()
    model, photographs = squeezenet(), imagenet_samples()
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert len(photographs) == 1000 and photographs.labels.tolist() == list(range(1000))
    some = photographs.images(range(0, 1000, 16))
    with torch.no_grad():
        y = model(some.inputs)
    assert y.shape == (63, 1000) and float(y.min()) >= 0
    assert 0.5 < float((y.argmax(1) == some.labels).float().mean()) < 0.75
    snow = vehicles_on_snow()
    assert len(snow) == 127 and isinstance(snow, Photographs)
    assert snow.labels.bincount(minlength=1000)[[479, 555, 670, 751, 779, 847, 920]].sum() == 127
