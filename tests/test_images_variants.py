"""Changed copies of images: each change is what it says, and the same seed makes the same copies."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encoded, pixels
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, InvalidInput, Near
from nnrepair.domains.base import Task
from nnrepair.domains.images.variants import (
    PHOTOGRAPHS,
    Blurred,
    Change,
    Compressed,
    Mirrored,
    Moved,
    Turned,
    Variants,
    varied,
)
from nnrepair.methods import MinimalNorm
from nnrepair.spec.streams import Stream

IMAGES = torch.stack([torch.from_numpy(pixels(k)).permute(2, 0, 1) / 255 for k in range(5)])
EVERY: tuple[Change, ...] = (*PHOTOGRAPHS, Compressed(80))


def random(n: int, first: float = 0.0, second: float = 0.0) -> Tensor:
    return torch.tensor([[first, second]]).repeat(n, 1)


@pytest.fixture(autouse=True)
def _pillow() -> None:
    pytest.importorskip("PIL.Image", reason="pillow comes with the extra [vision]")


def test_mirrored() -> None:
    assert torch.equal(Mirrored()(IMAGES, random(5)), IMAGES.flip(3))


def test_moved_by_every_number_of_pixels_but_none() -> None:
    x = torch.arange(49.0).reshape(1, 1, 7, 7)
    found = set()
    for k in range(24):
        (moved,) = Moved(2)(x, random(1, (k + 0.5) / 24))
        down, right = divmod(24 - int(moved[0, 3, 3]), 7)
        down, right = (down, right) if right <= 2 else (down + 1, right - 7)
        found.add((down, right))
        rows, columns = ((torch.arange(7) - shift).clamp(0, 6) for shift in (down, right))
        assert torch.equal(moved[0], x[0, 0][rows][:, columns])
    assert found == {(a, b) for a in range(-2, 3) for b in range(-2, 3)} - {(0, 0)}


def test_turned_by_a_quarter_is_exact() -> None:
    for second, turns in ((0.1, 1), (0.9, -1)):
        turned = Turned(90)(IMAGES, random(5, 1.0, second))
        torch.testing.assert_close(turned, IMAGES.rot90(turns, (2, 3)), atol=1e-4, rtol=0)


def test_turned_as_pillow_turns() -> None:
    from PIL import Image

    wide = torch.from_numpy(pixels(1, 64)[8:56]).permute(2, 0, 1)[None] / 255
    turned = Turned(10)(wide, random(1, 1.0, 0.1))[0, :, 12:-12, 12:-12]
    picture = Image.fromarray((wide[0].permute(1, 2, 0) * 255).round().byte().numpy())
    expected = torch.from_numpy(np.array(picture.rotate(10, Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255
    assert (turned - expected[:, 12:-12, 12:-12]).abs().max() < 0.03
    assert (turned - wide[0, :, 12:-12, 12:-12]).abs().max() > 0.1


def test_blurred_as_scipy_blurs() -> None:
    from scipy.ndimage import gaussian_filter1d

    blurred = Blurred(1.5)(IMAGES, random(5, 0.5))
    expected = IMAGES.double().numpy()
    for axis in (2, 3):
        expected = gaussian_filter1d(expected, 1.5 * 0.75, axis=axis, mode="nearest", radius=math.ceil(4.5))
    torch.testing.assert_close(blurred.double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_compressed_as_pillow_compresses(channels: int) -> None:
    from PIL import Image

    images = IMAGES[:, :channels]
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    shift, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
    found = Compressed(30, mean, std)((images - shift) / scale, random(5)) * scale + shift
    raw = (images[2] * 255).round().byte().permute(1, 2, 0).numpy()
    saved = encoded(raw if channels == 3 else raw[:, :, 0], "JPEG", quality=30)
    expected = np.array(Image.open(io.BytesIO(saved))).reshape(16, 16, channels)
    torch.testing.assert_close(found[2].permute(1, 2, 0) * 255, torch.from_numpy(expected).float(), atol=1e-2, rtol=0)
    assert (found - images).abs().max() > 0.01


def test_the_seed_decides_and_the_order_does_not() -> None:
    before = torch.get_rng_state()
    copies = Variants(IMAGES, EVERY, each=2, seed=3)
    whole = torch.stack(copies.__getitems__(list(range(len(copies)))))
    assert len(copies) == 50 and copies.of.tolist() == [k // 10 for k in range(50)]
    some = [41, 3, 3, 17]
    torch.testing.assert_close(torch.stack(copies.__getitems__(some)), whole[some], atol=1e-6, rtol=0)
    torch.testing.assert_close(copies[12], whole[12], atol=1e-6, rtol=0)
    again, other = (Variants(IMAGES, EVERY, each=2, seed=seed).__getitems__(list(range(50))) for seed in (3, 4))
    assert torch.equal(torch.stack(again), whole) and not torch.equal(torch.stack(other), whole)
    assert not torch.equal(copies[2], copies[3])  # two copies by one change
    assert torch.equal(torch.get_rng_state(), before)
    assert all(not torch.equal(copy, IMAGES[k]) for copy, k in zip(whole, copies.of.tolist(), strict=True))


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 4))
    return net.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_generalization_is_measured_on_copies(dtype: torch.dtype) -> None:
    model, x = network(dtype), IMAGES.to(dtype)
    with torch.no_grad():
        labels = model(x).argsort(1)[:, -2]
    edits = Edits(x, labels)
    scope = varied(edits, EVERY, each=3, seed=1)
    assert isinstance(scope.inputs, Stream) and len(scope) == 75
    assert scope.of is not None and torch.equal(scope.criterion.labels, labels[scope.of])
    result = nnrepair.fix(model, edits, edit_scope=scope, method=MinimalNorm(layer="4", margin=0.01))
    copies = torch.stack(Variants(x, EVERY, each=3, seed=1).__getitems__(list(range(75))))
    with torch.no_grad():
        right = result.model(copies.to(dtype)).argmax(1) == labels[scope.of]
    assert 0.2 < result.report.generalization_rate == float(right.double().mean()) <= 1


def test_copies_of_edits_with_several_points_and_other_criteria() -> None:
    model = network()
    with torch.no_grad():
        y = model(IMAGES)
    views = Edits(IMAGES, y.argsort(1)[:, -2], of=[0, 0, 1, 2, 1])
    assert varied(views, (Mirrored(), Moved())).of.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 1, 1]
    near = varied(Edits(IMAGES, Near(y, 0.5)), (Mirrored(),))
    report = nnrepair.fix(model, Edits(IMAGES, Near(y + 0.1, 0.05)), edit_scope=near, method="ft", throw=False).report
    assert report.generalization_rate is not None


def test_a_sequence_measures_each_edit_on_its_own_copies() -> None:
    model = network()
    with torch.no_grad():
        labels = model(IMAGES).argsort(1)[:, -2]
    edits = Edits(IMAGES, labels)
    history = nnrepair.fix(
        model, edits, edit_scope=varied(edits), method=MinimalNorm(layer="4", margin=0.01), mode="independent"
    )
    rates = [step.generalization_rate for step in history.steps]
    assert len(rates) == 5 and all(rate in (0, 0.25, 0.5, 0.75, 1) for rate in rates)


def test_tasks_and_episodes_take_them() -> None:
    from nnrepair import LocalitySet
    from nnrepair.methods import Episode

    model = network()
    more = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wrong, right = model(IMAGES).argsort(1)[:, -2], model(more).argmax(1)
    edits, train = Edits(IMAGES[:3], wrong[:3]), Edits(IMAGES[3:], wrong[3:])
    task = Task(
        model=model,
        edits=edits,
        locality_set=LocalitySet(more[:4], right[:4]),
        test_set={"other": (more[4:8], right[4:8])},
        edit_scope=varied(edits),
        training=lambda: Episode(train, LocalitySet(more[8:], right[8:]), varied(train)),
    )
    assert task.faults() == []
    assert len(task.episodes(0)[0].edit_scope) in (4, 8)


def brighter(images: Tensor, random: Tensor) -> Tensor:
    return images + 0.1 * random[:, :1, None, None]


def test_a_change_of_ones_own_is_a_function() -> None:
    copies = Variants(IMAGES, (brighter,), each=2)
    assert (copies[5] - IMAGES[2]).std() < 1e-6 and (copies[5] - IMAGES[2]).mean() > 0
    with pytest.raises(InvalidInput, match=r"makes images of shape \(3, 8, 16\)"):
        Variants(IMAGES, (lambda images, random: images[:, :, ::2],))[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Moved(0), "pixels must be at least 1, given 0"),
        (lambda: Turned(0), "degrees"),
        (lambda: Turned(float("nan")), "degrees"),
        (lambda: Blurred(-1), "sigma"),
        (lambda: Compressed(0), "quality"),
        (lambda: Compressed(std=(0.0,)), "std must be positive"),
        (lambda: Variants(IMAGES, ()), "at least one copy"),
        (lambda: Variants(IMAGES, each=0), "at least one copy"),
        (lambda: Variants(IMAGES[0]), r"\(n, channels, height, width\), given \(3, 16, 16\)"),
        (lambda: Variants(IMAGES.byte()), "floating tensor"),
        (lambda: varied(Edits((IMAGES, IMAGES), [0] * 5)), "given Arguments"),
        (lambda: Variants(IMAGES * 4, (Compressed(),))[0], r"pixels must be in .0, 1.*mean and std"),
        (lambda: Variants(IMAGES[:, :2], (Compressed(),))[0], "1 or 3 channels"),
        (lambda: Variants(IMAGES, (Compressed(mean=(0.5, 0.5)),))[0], "mean and std for each"),
    ],
)
def test_what_cannot_be_changed(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()
