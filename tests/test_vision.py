from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnrepair.domains import vision
from nnrepair.domains.files import Resource
from nnrepair.domains.images import data
from nnrepair.domains.vision import Images
from nnrepair.errors import DataUnavailable, InvalidInput

DataDir = Callable[..., Path]


def accuracy(model: nn.Module, images: Images) -> float:
    with torch.no_grad():
        return (model(images.inputs).argmax(1) == images.labels).double().mean().item()


def mistakes(model: nn.Module, images: Images) -> int:
    return round((1 - accuracy(model, images)) * len(images))


def test_images_can_be_sliced_indexed_and_masked() -> None:
    images = Images(torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 0, 1]))
    assert len(images) == 4
    assert images[1:3].labels.tolist() == [1, 0]
    assert images[torch.tensor([3, 0])].inputs[:, 0].tolist() == [9.0, 0.0]
    assert images[images.labels == 1].inputs[:, 0].tolist() == [3.0, 9.0]


@pytest.mark.parametrize(
    ("inputs", "labels", "complaint"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), r"\(3, 2\) and \(2,\)"),
        (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.int64), "float32"),
        (torch.zeros(3, 2), torch.zeros(3), "int64"),
    ],
)
def test_images_are_checked_at_the_door(inputs: torch.Tensor, labels: torch.Tensor, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        Images(inputs, labels)


def test_digits_split_is_fixed_stratified_and_complete() -> None:
    train, test = vision.digits()
    assert train.inputs.shape == (1347, 1, 8, 8) and test.inputs.shape == (450, 1, 8, 8)
    assert train.inputs.min() >= 0 and train.inputs.max() <= 1
    shares = torch.stack([torch.bincount(part.labels, minlength=10) / len(part) for part in (train, test)])
    assert (shares[0] - shares[1]).abs().max() < 0.005
    again = vision.digits()[1]
    assert torch.equal(test.inputs, again.inputs) and torch.equal(test.labels, again.labels)
    other = vision.digits(seed=1)[1]
    assert not torch.equal(test.labels, other.labels)
    with pytest.raises(InvalidInput, match="test_fraction"):
        vision.digits(test_fraction=1.5)


def test_digits_cnn_learns_and_leaves_some_mistakes() -> None:
    train, test = vision.digits()
    model = vision.train_classifier(vision.digits_cnn(), train)
    assert list(dict(model.named_children())) == ["conv1", "relu1", "conv2", "relu2", "flatten", "fc1", "relu3", "fc2"]
    assert sum(p.numel() for p in model.parameters()) == 11_034
    assert not model.training
    assert 0.95 <= accuracy(model, test) < 1
    assert mistakes(model, test) >= 5


def test_training_repeats_with_its_seed_and_touches_nothing_else() -> None:
    train = vision.digits()[0][:200]
    state = torch.get_rng_state()
    dropout = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)).eval()
    torch.set_rng_state(state)
    before = [p.clone() for p in dropout.parameters()]
    one, two, other = (vision.train_classifier(dropout, train, epochs=1, seed=seed) for seed in (0, 0, 1))
    cnn = [vision.digits_cnn(seed=seed).conv1.weight for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not dropout.training
    assert all(torch.equal(p, q) for p, q in zip(before, dropout.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[2].weight, other[2].weight)
    assert torch.equal(cnn[0], cnn[1]) and not torch.equal(cnn[0], cnn[2])
    assert all(p.grad is None for p in one.parameters())


def test_training_refuses_what_cannot_work() -> None:
    train = vision.digits()[0]
    with pytest.raises(InvalidInput, match="empty"):
        vision.train_classifier(vision.digits_cnn(), train[:0])
    with pytest.raises(InvalidInput, match="positive"):
        vision.train_classifier(vision.digits_cnn(), train, epochs=0)
    with pytest.raises(InvalidInput, match="no trainable parameters"):
        vision.train_classifier(vision.digits_cnn().requires_grad_(False), train)


def reference_plasma(rng: np.random.Generator, size: int = 256, decay: float = 1.4) -> np.ndarray:
    """Diamond-square as one loop per point: the slow, obvious twin."""
    grid, step, amplitude = np.zeros((size, size)), size, 100.0

    def displaced(rows: range, columns: range, neighbours: list[tuple[int, int]]) -> None:
        for i in rows:
            for j in columns:
                mean = sum(grid[(i + a) % size, (j + b) % size] for a, b in neighbours) / 4
                grid[i, j] = mean + amplitude * rng.uniform(-amplitude, amplitude)

    while step > 1:
        half = step // 2
        diamond = [(-half, 0), (half, 0), (0, -half), (0, half)]
        square = [(-half, -half), (-half, half), (half, -half), (half, half)]
        displaced(range(half, size, step), range(half, size, step), square)
        displaced(range(0, size, step), range(half, size, step), diamond)
        displaced(range(half, size, step), range(0, size, step), diamond)
        step, amplitude = half, amplitude / decay
    return (grid - grid.min()) / (grid.max() - grid.min())


def test_fog_is_what_its_recipe_says() -> None:
    image = np.random.default_rng(5).random((28, 28)) * 0.8
    plasma = reference_plasma(np.random.default_rng(7))[:28, :28]
    brightest = image.max()
    expected = np.clip((image + 3 * plasma) * brightest / (brightest + 3), 0, 1)
    np.testing.assert_allclose(vision.fog(image[None], 7)[0], expected, rtol=0, atol=1e-12)


def test_fog_does_not_depend_on_batches_and_takes_a_generator() -> None:
    images = np.random.default_rng(0).random((70, 28, 28))
    whole = vision.fog(images, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    parts = np.concatenate([vision.fog(images[:5], rng), vision.fog(images[5:], rng)])
    np.testing.assert_array_equal(whole, parts)
    assert not np.array_equal(whole, vision.fog(images, 4))
    with pytest.raises(InvalidInput, match="Divide by 255"):
        vision.fog(images * 255, 0)
    with pytest.raises(InvalidInput, match="at most 256"):
        vision.fog(np.zeros((1, 300, 28)), 0)


@pytest.mark.data
def test_mnist_and_its_fog(data_dir: DataDir) -> None:
    data_dir("mnist/mnist.npz", "mnist/mnist_fog_test.npz")
    clear, foggy = vision.mnist("test"), vision.mnist_fog()
    assert clear.inputs.shape == foggy.inputs.shape == (10_000, 784)
    assert vision.mnist("train", flat=False).inputs.shape == (60_000, 1, 28, 28)
    assert torch.equal(clear.labels, foggy.labels)
    assert clear.inputs.min() == 0 and clear.inputs.max() == 1
    assert 0.35 < foggy.inputs.mean() < 0.45
    with pytest.raises(InvalidInput, match="no split 'tests'. Did you mean 'test'"):
        vision.mnist("tests")  # type: ignore[arg-type]


@pytest.mark.data
def test_the_fog_file_is_what_the_generator_makes(data_dir: DataDir) -> None:
    folder = data_dir("mnist/mnist.npz", "mnist/mnist_fog_test.npz")
    with np.load(folder / "mnist/mnist.npz") as clear, np.load(folder / "mnist/mnist_fog_test.npz") as stored:
        made = np.round(vision.fog(clear["x_test"][:500] / 255, 20240601) * 255)
        np.testing.assert_array_equal(made, stored["x"][:500])


@pytest.mark.data
@pytest.mark.parametrize(("name", "depth", "clear", "foggy"), [("3x100", 3, 0.9654, 0.19), ("9x100", 9, 0.9508, 0.18)])
def test_mnist_networks(data_dir: DataDir, name: str, depth: int, clear: float, foggy: float) -> None:
    data_dir("mnist/mnist.npz", "mnist/mnist_fog_test.npz", f"mnist/mnist_relu_{name}.npz")
    model = vision.relu_mlp(name)
    assert [n for n, m in model.named_children() if isinstance(m, nn.Linear)] == [f"fc{k + 1}" for k in range(depth)]
    assert accuracy(model, vision.mnist("test")) == pytest.approx(clear, abs=1e-3)
    assert accuracy(model, vision.mnist_fog()) == pytest.approx(foggy, abs=1e-2)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_networks_from_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"W0": rng.normal(size=(4, 3)), "b0": rng.normal(size=4), "W1": rng.normal(size=(2, 4)), "b1": np.zeros(2)}
    np.savez(tmp_path / "net.npz", **arrays)
    model = vision.relu_mlp(tmp_path / "net.npz")
    x = rng.normal(size=(5, 3))
    expected = np.maximum(x @ arrays["W0"].T + arrays["b0"], 0) @ arrays["W1"].T + arrays["b1"]
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), expected)

    np.savez(tmp_path / "gap.npz", W0=arrays["W0"])
    with pytest.raises(InvalidInput, match="lacks b0"):
        vision.relu_mlp(tmp_path / "gap.npz")
    np.savez(tmp_path / "misfit.npz", W0=arrays["W0"], b0=np.zeros(7))
    with pytest.raises(InvalidInput, match="do not fit"):
        vision.relu_mlp(tmp_path / "misfit.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "net.npz").read_bytes()[:100])
    with pytest.raises(InvalidInput, match="it is damaged"):
        vision.relu_mlp(tmp_path / "cut.npz")
    with pytest.raises(InvalidInput, match="Did you mean '3x100'"):
        vision.relu_mlp("3x10")


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with three made-up images in the official file format."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(idx(pixels))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.array([7, 2, 1], dtype=np.uint8)))
    monkeypatch.setenv("NNREPAIR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_mnist_from_the_official_files(tiny_mnist: Path) -> None:
    images = vision.mnist("test", flat=False)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    assert images.labels.tolist() == [7, 2, 1]
    np.testing.assert_array_equal(images.inputs.mul(255).round().byte().squeeze(1).numpy(), pixels)


def test_fog_is_made_where_its_file_is_missing(tiny_mnist: Path) -> None:
    foggy, clear = vision.mnist_fog(flat=False), vision.mnist("test", flat=False)
    assert foggy.labels.tolist() == [7, 2, 1]
    made = vision.fog(clear.inputs.squeeze(1).double().numpy(), 20240601)
    np.testing.assert_allclose(foggy.inputs.squeeze(1).numpy(), made, atol=0.5 / 255 + 1e-6)


def test_a_damaged_official_file_is_named(tiny_mnist: Path) -> None:
    file = tiny_mnist / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for content in (whole[:-50], b"not gzip", gzip.compress(gzip.decompress(whole)[:-1]), gzip.compress(b"\0")):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match="t10k-images-idx3-ubyte.gz is not a whole"):
            vision.mnist("test")


def test_offline_mnist_says_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNREPAIR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    offline = {
        name: Resource(r.path, f"http://127.0.0.1:9/{name}", sha256=r.sha256) for name, r in data._MNIST_IDX.items()
    }
    monkeypatch.setattr(data, "_MNIST_IDX", offline)
    with pytest.raises(DataUnavailable, match=r"NNREPAIR_DATA[\s\S]*curl"):
        vision.mnist("test")
    with pytest.raises(DataUnavailable, match="has no download source"):
        vision.relu_mlp("3x100")
