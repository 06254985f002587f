"""Published data sets, as small archives that look like them: what is read, and what is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encoded, folder, npy, pixels, tar, zipped

from nnrepair.domains.images import cifar, imagenet, published
from nnrepair.domains.images.classes import wnids
from nnrepair.domains.images.data import Images
from nnrepair.errors import DataUnavailable, InvalidInput

DataDir = Callable[..., Path]
WNIDS = wnids()
#: Nothing answers there.
OFFLINE = "http://127.0.0.1:9"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and an empty cache beside it."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("NNREPAIR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", OFFLINE)
    return tmp_path / "data"


# CIFAR-100 -----------------------------------------------------------------------------------------------------------


def hundred(path: Path, **other: bytes) -> np.ndarray:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    records = b"".join(bytes(labels) + one.tobytes() for labels, one in zip([(19, 99), (0, 5)], pictures, strict=True))
    parts = {
        "train.bin": records * 2,
        "test.bin": records,
        "fine_label_names.txt": b"apple\nbear\n",
        "coarse_label_names.txt": b"fruit\n",
    } | other
    tar(path, {f"cifar-100-binary/{name}": content for name, content in parts.items()}, "w:gz")
    return pictures


def test_cifar_100(data: Path) -> None:
    pictures = hundred(data / "cifar100/cifar-100-binary.tar.gz")
    images = cifar.cifar100("test")
    assert images.labels.tolist() == [99, 5] and cifar.cifar100("test", coarse=True).labels.tolist() == [19, 0]
    np.testing.assert_array_equal(images.inputs.mul(255).round().byte().numpy(), pictures)
    assert len(cifar.cifar100("train")) == 4
    assert cifar.cifar100_classes() == ("apple", "bear") and cifar.cifar100_classes(coarse=True) == ("fruit",)


# Corruptions ---------------------------------------------------------------------------------------------------------


def in_order(count: int, *shape: int) -> np.ndarray:
    """Return images each of which is one grey level, that of its place."""
    return np.broadcast_to(
        (np.arange(count) % 251).astype(np.uint8).reshape(-1, *(1 for _ in shape)), (count, *shape)
    ).copy()


@pytest.mark.parametrize(
    ("read", "name", "path"),
    [
        (published.cifar10_c, "CIFAR-10-C", "cifar10/CIFAR-10-C.tar"),
        (published.cifar100_c, "CIFAR-100-C", "cifar100/CIFAR-100-C.tar"),
    ],
)
def test_corruptions_of_cifar(
    read: Callable[..., Images], name: str, path: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "_TESTS", 4)
    labels = (np.arange(20) % 10).astype(np.uint8)
    tar(data / path, {f"{name}/fog.npy": npy(in_order(20, 32, 32, 3)), f"{name}/labels.npy": npy(labels)})
    for severity in (1, 3, 5):
        images = read("fog", severity)
        expected = range(4 * severity - 4, 4 * severity)
        assert images.inputs.shape == (4, 3, 32, 32)
        assert images.inputs[:, 0, 0, 0].mul(255).round().tolist() == list(expected)
        assert images.labels.tolist() == [k % 10 for k in expected]
    with pytest.raises(InvalidInput, match=f"{name} has no corruption 'fogg'. Did you mean 'fog'"):
        read("fogg")
    with pytest.raises(InvalidInput, match="severities 1 to 5, given 6"):
        read("fog", 6)
    with pytest.raises(InvalidInput, match=r"not a whole copy of .*(frost.npy|not found)"):
        read("frost")


def test_corruptions_of_mnist(data: Path) -> None:
    parts = {
        f"mnist_c/fog/{split}_{what}.npy": npy(in_order(3, 28, 28, 1) if what == "images" else np.array([7, 2, 1]))
        for split in ("train", "test")
        for what in ("images", "labels")
    }
    zipped(data / "mnist/mnist_c.zip", parts)
    images = published.mnist_c("fog")
    assert images.inputs.shape == (3, 784) and images.labels.tolist() == [7, 2, 1]
    assert images.inputs[:, 5].mul(255).round().tolist() == [0, 1, 2]
    assert published.mnist_c("fog", "train", flat=False).inputs.shape == (3, 1, 28, 28)
    with pytest.raises(InvalidInput, match="no split 'val'"):
        published.mnist_c("fog", "val")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="Did you mean 'zigzag'"):
        published.mnist_c("zigzags")


ARRAYS: dict[str, tuple[Callable[[], bytes], str]] = {
    "objects": (lambda: npy(np.array([{}, {}], dtype=object)), "not rows of whole numbers"),
    "fractions": (lambda: npy(np.zeros((3, 28, 28))), "not rows of whole numbers"),
    "by column": (lambda: npy(np.asfortranarray(np.zeros((3, 784), np.uint8))), "not rows of whole numbers"),
    "a number": (lambda: npy(np.uint8(3)), "not rows of whole numbers"),
    "other sizes": (lambda: npy(np.zeros((3, 9, 9), np.uint8)), "not 28 x 28"),
    "cut": (lambda: npy(np.zeros((3, 784), np.uint8))[:-1], "bytes of numbers, which are not uint8"),
    "no array": (lambda: b"none", "not a whole copy of MNIST-C"),
    "another version": (lambda: b"\x93NUMPY\x03\x00" + bytes(100), "version .3, 0."),
    "nothing": (lambda: npy(np.zeros((0, 784), np.uint8)), "has 0 rows"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_no_images(kind: str, data: Path) -> None:
    make, message = ARRAYS[kind]
    labels = npy(np.zeros(3, np.int64))
    zipped(data / "mnist/mnist_c.zip", {"mnist_c/fog/test_images.npy": make(), "mnist_c/fog/test_labels.npy": labels})
    with pytest.raises(InvalidInput, match=message):
        published.mnist_c("fog")


# ImageNet ------------------------------------------------------------------------------------------------------------


def kit(path: Path, truth: list[int], classes: list[str]) -> Path:
    """Write a development kit whose numbers (from 1) are not the outputs' order."""
    from scipy.io import savemat

    kinds = np.dtype([("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    rows = [(np.uint16(k), name, np.uint8(0)) for k, name in enumerate(classes, 1)] + [(np.uint16(99), "n00001740", 2)]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, kinds)[:, None]})
    base = "ILSVRC2012_devkit_t12/data/"
    numbers = "".join(f"{number}\n" for number in truth).encode()
    return tar(
        path, {base + "meta.mat": buffer.getvalue(), base + "ILSVRC2012_validation_ground_truth.txt": numbers}, "w:gz"
    )


def test_imagenet_from_the_official_archives(data: Path) -> None:
    kit(data / "imagenet/ILSVRC2012_devkit_t12.tar.gz", [2, 1, 3], [WNIDS[7], WNIDS[500], WNIDS[0]])
    names = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in (2, 1, 3)]
    members = {name: encoded(pixels(k), "JPEG", quality=95) for k, name in enumerate(names)}
    tar(data / "imagenet/ILSVRC2012_img_val.tar", members)
    found: Any = imagenet.imagenet("val", transform=np.asarray)
    assert [found[k][1] for k in range(3)] == [7, 500, 0]
    assert np.abs(found[0][0].astype(int) - pixels(0)).mean() < 5


def test_imagenet_as_torchvision_lays_it_out(data: Path) -> None:
    pytest.importorskip("torchvision")
    folder(data / "imagenet/train", {WNIDS[3]: 1, WNIDS[999]: 2})
    found: Any = imagenet.imagenet("train")
    assert [label for _, label in found.samples] == [3, 999, 999]
    folder(data / "imagenet/val", {WNIDS[3]: 1, "somewhere": 1})
    with pytest.raises(InvalidInput, match="'somewhere' is none of the 1000 classes"):
        imagenet.imagenet("val")
    with pytest.raises(InvalidInput, match="no split 'test'"):
        imagenet.imagenet("test")  # type: ignore[arg-type]


def test_imagenet_says_where_it_comes_from(data: Path) -> None:
    with pytest.raises(DataUnavailable) as caught:
        imagenet.imagenet("val")
    said = str(caught.value)
    assert "export NNREPAIR_DATA=" in said and "python -c" in said and "https://image-net.org/download" in said


def natural(path: Path, **other: bytes) -> Path:
    members = {"imagenet-a/README.txt": b"200 classes"} | {
        f"imagenet-a/{WNIDS[k]}/0.{k}_thing_0.9.jpg": encoded(pixels(k), "JPEG", quality=95) for k in (9, 4, 900)
    }
    return tar(path, members | other)


def test_natural_adversarial_examples(data: Path) -> None:
    natural(data / "imagenet-a/imagenet-a.tar", **{f"imagenet-a/{WNIDS[1]}/._0.jpg": b"of a Macintosh"})
    found: Any = imagenet.imagenet_a(transform=lambda image: torch.from_numpy(np.array(image)))
    assert [found[k][1] for k in range(len(found))] == [9, 4, 900]  # outputs of 1,000, not 0 to 2
    assert (found[1][0].int() - torch.from_numpy(pixels(4)).int()).abs().float().mean() < 5
    pytest.importorskip("torchvision")
    folder(data / "imagenet-a/imagenet-a", {WNIDS[11]: 1})
    assert imagenet.imagenet_a().samples[0][1] == 11  # type: ignore[attr-defined]


def test_names_in_archives_lead_nowhere(data: Path, tmp_path: Path) -> None:
    picture = encoded(pixels(0), "JPEG")
    path = data / "imagenet-a/imagenet-a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in (f"../../{WNIDS[2]}/a.jpg", f"/{WNIDS[3]}/b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
        link = tarfile.TarInfo(f"imagenet-a/{WNIDS[5]}/c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    found: Any = imagenet.imagenet_a()
    assert [label for _, label in found.samples] == [2, 3] and len([found[k] for k in range(2)]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_image_in_an_archive_is_named(data: Path) -> None:
    natural(data / "imagenet-a/imagenet-a.tar", **{f"imagenet-a/{WNIDS[1]}/bad.jpg": b"none"})
    found: Any = imagenet.imagenet_a()
    with pytest.raises(InvalidInput, match=r"imagenet-a.tar, imagenet-a/n01443537/bad.jpg: .*no image"):
        found[3]


# Every archive -------------------------------------------------------------------------------------------------------


def of_cifar(path: Path) -> None:
    parts = {f"CIFAR-10-C/{name}.npy": npy(np.zeros(60_000, np.uint8)) for name in ("fog", "labels")}
    tar(path, parts)


READERS: dict[str, tuple[Callable[[], Any], str, Callable[[Path], Any]]] = {
    "cifar 10": (
        lambda: cifar.cifar10("test"),
        "cifar10/cifar-10-binary.tar.gz",
        lambda path: tar(path, {"cifar-10-batches-bin/test_batch.bin": bytes(3073)}, "w:gz"),
    ),
    "cifar 100": (lambda: cifar.cifar100("test"), "cifar100/cifar-100-binary.tar.gz", hundred),
    "cifar 10 c": (lambda: published.cifar10_c("fog"), "cifar10/CIFAR-10-C.tar", of_cifar),
    "cifar 100 c": (lambda: published.cifar100_c("fog"), "cifar100/CIFAR-100-C.tar", of_cifar),
    "mnist c": (
        lambda: published.mnist_c("fog"),
        "mnist/mnist_c.zip",
        lambda path: zipped(path, {"mnist_c/fog/test_images.npy": npy(np.zeros((2, 28, 28), np.uint8))}),
    ),
    "imagenet a": (lambda: imagenet.imagenet_a(), "imagenet-a/imagenet-a.tar", natural),
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_missing_offline_names_the_two_commands(name: str, data: Path, tmp_path: Path) -> None:
    read, path, _ = READERS[name]
    with pytest.raises(DataUnavailable) as caught:
        read()
    said = str(caught.value)
    assert f"$NNREPAIR_DATA/{path}" in said and f"curl -L -o '{tmp_path / 'cache/nnrepair' / path}' 'https://" in said
    assert not (tmp_path / "cache/nnrepair" / path).exists()


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_archives_that_are_cut_short_are_refused(name: str, share: float, data: Path) -> None:
    read, path, make = READERS[name]
    make(data / path)
    raw = (data / path).read_bytes()
    raw = raw.rstrip(bytes(1)) if path.endswith(".tar") else raw  # behind its last member lies nothing
    (data / path).write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(InvalidInput, match="is not a whole copy of .*Fetch it again"):
        read()


@pytest.mark.parametrize("name", READERS)
def test_another_file_in_the_cache_is_refused(name: str, data: Path, tmp_path: Path) -> None:
    read, path, make = READERS[name]
    make(tmp_path / "cache/nnrepair" / path)
    with pytest.raises(InvalidInput, match="is damaged or is another file: its sha256 is"):
        read()


def test_members_that_are_too_large_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnrepair.domains.images import packed

    path = tar(data / "a.tar", {"one": bytes(2000)})
    with pytest.raises(InvalidInput, match="one has 2000 bytes, more than 1000"):
        packed.read_members(path, ["one"], "it", most=1000)
    monkeypatch.setattr(packed, "MEMBER", 100)
    path = tar(data / "b.tar", {"one": npy(np.zeros((2000, 3), np.uint8))})
    with pytest.raises(InvalidInput, match="6000 bytes of one were asked for, more than 100"):
        packed.read_rows(path, "one", "it")
    assert packed.read_rows(path, "one", "it", 5, 9).shape == (4, 3)


@pytest.mark.data
@pytest.mark.parametrize(("depth", "expected"), [(32, 0.9460), (56, 0.9614)])
def test_deeper_residual_networks(depth: int, expected: float, data_dir: DataDir) -> None:
    name = {32: "resnet32-d509ac18.th", 56: "resnet56-4bfd9763.th"}[depth]
    data_dir("cifar10/cifar10_lossless.npz", f"cifar10/{name}")
    model, images = getattr(cifar, f"resnet{depth}")(), cifar.cifar10_lossless("test")
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in images.inputs.split(100)]) == images.labels
    assert not model.training and len(model.layer1) == (depth - 2) // 6
    assert right.double().mean().item() == pytest.approx(expected, abs=1e-3)
