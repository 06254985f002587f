from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nnrepair.domains.images import cifar
from nnrepair.domains.vision import Images
from nnrepair.errors import DataUnavailable, InvalidInput

DataDir = Callable[..., Path]
RESNET = "cifar10/resnet20-12fca82f.th"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder for CIFAR-10, and an empty cache."""
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    monkeypatch.setenv("NNREPAIR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data" / "cifar10"


def accuracy(model: cifar.ResNet, images: Images) -> float:
    with torch.no_grad():
        right = [
            model(part).argmax(1) == y
            for part, y in zip(images.inputs.split(250), images.labels.split(250), strict=True)
        ]
    return torch.cat(right).double().mean().item()


def test_the_network_is_its_last_layer_on_its_features() -> None:
    model = cifar.ResNet(20).eval()
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.features(x).shape == (3, 64)
    assert torch.equal(model.linear(model.features(x)), model(x))
    assert sum(p.numel() for p in model.parameters()) == 269_722  # 0.27 million, as in the paper's Table 6
    with pytest.raises(InvalidInput, match="6 k"):
        cifar.ResNet(21)


def test_a_shortcut_takes_every_second_pixel_and_adds_empty_channels() -> None:
    block = cifar._Block(2, 4).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 2, 4, 4)
    expected = torch.zeros(1, 4, 2, 2)
    expected[:, 1:3] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


def archive(path: Path, parts: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, content in parts.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def test_cifar_from_the_official_file(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    raw = b"".join(bytes([label]) + image.tobytes() for label, image in zip((7, 2), pixels, strict=True))
    path = folder / "cifar-10-binary.tar.gz"
    archive(path, {"test_batch.bin": raw} | {f"data_batch_{k}.bin": raw for k in range(1, 6)})
    images = cifar.cifar10("test")
    assert images.labels.tolist() == [7, 2]
    np.testing.assert_array_equal(images.inputs.mul(255).round().byte().numpy(), pixels)
    assert len(cifar.cifar10("train")) == 10

    archive(path, {"test_batch.bin": raw[:-1]})
    with pytest.raises(InvalidInput, match="no multiple of 3073"):
        cifar.cifar10("test")
    with pytest.raises(InvalidInput, match="not a whole copy"):
        cifar.cifar10("train")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InvalidInput, match="not a whole copy"):
        cifar.cifar10("test")


def test_jpeg_images_are_decoded(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow comes with the extra [vision]")
    grey = [np.full((32, 32, 3), level, np.uint8) for level in (0, 128, 255)]
    files = []
    for pixels in grey:
        buffer = io.BytesIO()
        image.fromarray(pixels).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    packed = np.frombuffer(b"".join(files), np.uint8)
    path = folder / "cifar10_jpeg_test.npz"
    np.savez(path, data=packed, offsets=offsets, label=np.array([3, 1, 2], np.uint8))
    images = cifar.cifar10_jpeg("test")
    assert images.inputs.shape == (3, 3, 32, 32) and images.labels.tolist() == [3, 1, 2]
    torch.testing.assert_close(images.inputs.mean((1, 2, 3)), torch.tensor([0.0, 128 / 255, 1.0]), atol=0.01, rtol=0)

    np.savez(path, data=packed, offsets=offsets + 5, label=np.zeros(3, np.uint8))
    with pytest.raises(InvalidInput, match="no JPEG image"):
        cifar.cifar10_jpeg("test")
    np.savez(path, data=packed)
    with pytest.raises(InvalidInput, match="lacks offsets, label"):
        cifar.cifar10_jpeg("test")


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    path = folder / "resnet20-12fca82f.th"
    weights = {f"module.{k}": v for k, v in cifar.ResNet(20).state_dict().items() if k not in ("mean", "std")}
    torch.save({"state_dict": weights}, path)
    state = torch.get_rng_state()
    assert torch.equal(cifar.resnet20().linear.weight, weights["module.linear.weight"])
    assert torch.equal(torch.get_rng_state(), state)
    cases = {
        "lacks linear.bias": {k: v for k, v in weights.items() if k != "module.linear.bias"},
        "unexpectedly, extra": weights | {"extra": torch.zeros(1)},
        "other shapes for linear.bias": weights | {"module.linear.bias": torch.zeros(3)},
    }
    for complaint, changed in cases.items():
        torch.save({"state_dict": changed}, path)
        with pytest.raises(InvalidInput, match=complaint):
            cifar.resnet20()
    torch.save({"state_dict": [1, 2]}, path)
    with pytest.raises(InvalidInput, match="cannot be read as the weights"):
        cifar.resnet20()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidInput, match="cannot be read as the weights"):
        cifar.resnet20()


def test_what_is_missing_is_named(folder: Path) -> None:
    for load in (cifar.cifar10_jpeg, cifar.cifar10_lossless, cifar.lossless_rows):
        with pytest.raises(DataUnavailable, match=r"cifar10/cifar10_\w+.npz' was not found"):
            load("test")
    with pytest.raises(InvalidInput, match="no split 'tests'. Did you mean 'test'"):
        cifar.cifar10("tests")  # type: ignore[arg-type]


@pytest.mark.data
def test_lossless_images_and_their_jpeg_copies(data_dir: DataDir) -> None:
    pytest.importorskip("PIL.Image", reason="pillow comes with the extra [vision]")
    data_dir("cifar10/cifar10_jpeg_test.npz", "cifar10/cifar10_lossless.npz", RESNET)
    jpeg, lossless, rows = cifar.cifar10_jpeg("test"), cifar.cifar10_lossless("test"), cifar.lossless_rows("test")
    assert jpeg.inputs.shape == (10_000, 3, 32, 32) and len(lossless) == len(rows) == 389
    assert torch.equal(jpeg[rows].labels, lossless.labels)
    assert (jpeg[rows].inputs - lossless.inputs).square().mean().sqrt() < 12 / 255
    model = cifar.resnet20()
    assert not model.training
    assert accuracy(model, lossless) == pytest.approx(0.9486, abs=1e-3)
    assert accuracy(model, jpeg[rows]) < 0.9


@pytest.mark.data
@pytest.mark.slow
def test_accuracy_on_all_jpeg_test_images(data_dir: DataDir) -> None:
    pytest.importorskip("PIL.Image", reason="pillow comes with the extra [vision]")
    data_dir("cifar10/cifar10_jpeg_test.npz", RESNET)
    assert accuracy(cifar.resnet20(), cifar.cifar10_jpeg("test")) == pytest.approx(0.8103, abs=1e-3)
