"""CIFAR-10 and CIFAR-100 photographs (32 x 32 pixels), and residual networks trained on the former."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nnrepair.domains import files
from nnrepair.domains.files import Resource
from nnrepair.domains.images.data import Images, Split
from nnrepair.domains.images.decoding import read_image
from nnrepair.domains.images.packed import read_members, whole
from nnrepair.errors import InvalidInput, near_matches

#: What the labels 0 to 9 mean.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# The official page publishes these md5 sums; the sha256 sums are those that TensorFlow Datasets pins. The binary
# versions hold plain bytes: nothing is unpickled.
_PAGE = "https://www.cs.toronto.edu/~kriz/"
_CIFAR10 = Resource(
    "cifar10/cifar-10-binary.tar.gz",
    _PAGE + "cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
_CIFAR100 = Resource(
    "cifar100/cifar-100-binary.tar.gz",
    _PAGE + "cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    md5="03b5dce01913d631647c71ecec9e9cb8",
)
_PARTS = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
_JPEG = {split: Resource(f"cifar10/cifar10_jpeg_{split}.npz") for split in ("train", "test")}
_LOSSLESS = Resource("cifar10/cifar10_lossless.npz")
# The hexadecimal digits in the files' names are the first of their sha256.
_RESNETS = {
    depth: Resource(
        f"cifar10/{name}",
        "https://raw.githubusercontent.com/akamaster/pytorch_resnet_cifar10/d5489e8995e81e91ce6b1d69dcc98ad579b0b153/"
        f"pretrained_models/{name}",
        sha256=sha256,
    )
    for depth, name, sha256 in [
        (20, "resnet20-12fca82f.th", "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
        (32, "resnet32-d509ac18.th", "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
        (56, "resnet56-4bfd9763.th", "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    ]
}


def cifar10(split: Split = "test") -> Images:
    """Load CIFAR-10 as published: inputs (n, 3, 32, 32) in [0, 1], 50,000 for training or 10,000 for tests.

    Reads `cifar10/cifar-10-binary.tar.gz`, the official binary version, and downloads it once (170 MB).

    >>> cifar10("test").inputs.shape  # doctest: +SKIP
    torch.Size([10000, 3, 32, 32])
    """
    records = _records(_CIFAR10, [f"cifar-10-batches-bin/{part}" for part in _PARTS[_known(split)]], 1)
    return _images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def cifar100(split: Split = "test", *, coarse: bool = False) -> Images:
    """Load CIFAR-100 as published: inputs (n, 3, 32, 32) in [0, 1], 50,000 for training or 10,000 for tests.

    Reads `cifar100/cifar-100-binary.tar.gz`, the official binary version, and downloads it once (169 MB).

    Args:
        split: "train" or "test".
        coarse: labels are the 20 groups of classes in place of the 100 classes.

    >>> cifar100("test").labels.max()  # doctest: +SKIP
    tensor(99)
    """
    records = _records(_CIFAR100, [f"cifar-100-binary/{_known(split)}.bin"], 2)
    return _images(records[:, 2:].reshape(-1, 3, 32, 32), records[:, 0 if coarse else 1])


def cifar100_classes(*, coarse: bool = False) -> tuple[str, ...]:
    """Return what CIFAR-100's labels mean, as its archive says."""
    name = f"cifar-100-binary/{'coarse' if coarse else 'fine'}_label_names.txt"
    return tuple(read_members(files.locate(_CIFAR100), [name], "CIFAR-100's binary version")[name].decode().split())


def cifar10_jpeg(split: Split = "test") -> Images:
    """Load a copy of CIFAR-10 whose images were saved as JPEG: inputs (n, 3, 32, 32) in [0, 1].

    It holds all 50,000 and 10,000 images. The loss is visible to networks: `resnet20` gets 81 % of these test images
    right, and 92 % of the originals by its author's account. Decoding takes about a second for 10,000 images.

    >>> cifar10_jpeg("test").inputs.shape  # doctest: +SKIP
    torch.Size([10000, 3, 32, 32])
    """
    path = files.locate(_JPEG[_known(split)])
    arrays = _arrays(path, "data", "offsets", "label")
    try:
        pixels = np.stack(list(_decoded(arrays["data"], arrays["offsets"])))
    except (OSError, ValueError, IndexError) as error:
        raise InvalidInput(f"{path} holds what is no JPEG image of 32 x 32 pixels ({error}). Fetch it again.") from (
            error
        )
    return _images(pixels.transpose(0, 3, 1, 2), arrays["label"])


def cifar10_lossless(split: Split = "test") -> Images:
    """Load the few original images that lie beside the JPEG copy: 4,000 for training, 389 for tests.

    The test images are no random sample: they come from benchmarks of verifiers, which prefer images that their
    networks get right. `lossless_rows` says which rows of `cifar10_jpeg` show the same pictures.

    >>> cifar10_lossless("test").inputs.shape  # doctest: +SKIP
    torch.Size([389, 3, 32, 32])
    """
    arrays = _arrays(files.locate(_LOSSLESS), f"x_{_known(split)}", f"y_{split}")
    return _images(arrays[f"x_{split}"].transpose(0, 3, 1, 2), arrays[f"y_{split}"])


def lossless_rows(split: Split = "test") -> Tensor:
    """Return (n,) int64: for each image of `cifar10_lossless`, the row of `cifar10_jpeg` with the same picture."""
    name = f"{_known(split)}_jpeg_index"
    return torch.from_numpy(_arrays(files.locate(_LOSSLESS), name)[name].astype(np.int64))


class ResNet(nn.Module):
    """A residual network for 32 x 32 images: pixels in [0, 1], (n, 3, 32, 32), to logits (n, 10).

    After He et al., "Deep residual learning for image recognition" (CVPR 2016), section 4.2, with shortcuts that have
    no weights (option A: every second pixel, new channels zero). Colours are normalised inside, so that inputs, and
    changes of them, are in pixels.

    Args:
        depth: 6 k + 2 layers: 20, 32, 44, 56, ...

    >>> ResNet(20)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise InvalidInput(f"depth must be 6 k + 2 (20, 32, 44, 56, ...), given {depth}.")
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1))
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """Return what the last layer sees, (n, 64): the network is `linear(features(x))`."""
        x = torch.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 10)."""
        logits: Tensor = self.linear(self.features(x))
        return logits


def resnet20() -> ResNet:
    """Load a ResNet-20 trained on CIFAR-10, in eval mode; its layers are conv1, layer1.0.conv1, ..., linear.

    The weights are Yerlan Idelbayev's (github.com/akamaster/pytorch_resnet_cifar10, BSD 2-clause, 1.1 MB), who states
    a test error of 8.27 %. They are read with `torch.load(weights_only=True)`, which runs no code from the file.

    >>> resnet20().linear  # doctest: +SKIP
    Linear(in_features=64, out_features=10, bias=True)
    """
    return _trained(20)


def resnet32() -> ResNet:
    """Load a ResNet-32 trained on CIFAR-10, like `resnet20` (1.9 MB); its author states a test error of 7.37 %."""
    return _trained(32)


def resnet56() -> ResNet:
    """Load a ResNet-56 trained on CIFAR-10, like `resnet20` (3.5 MB); its author states a test error of 6.61 %."""
    return _trained(56)


def _trained(depth: int) -> ResNet:
    path = files.locate(_RESNETS[depth])
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    except (OSError, EOFError, RuntimeError, UnpicklingError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} cannot be read as the weights of a network ({error}). Fetch it again.") from error
    with torch.random.fork_rng(devices=[]):  # the first weights are random, and then replaced
        model = ResNet(depth)
    return _filled(model, weights, path)


class _Block(nn.Module):
    """Two convolutions beside a shortcut; the first block of a stage may halve the image and add channels."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.new = channels - before
        self.conv1 = nn.Conv2d(before, channels, 3, stride=2 if self.new else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.new:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return torch.relu(x + change)


def _stage(before: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(before, channels), *(_Block(channels, channels) for _ in range(blocks - 1)))


def _filled(model: ResNet, weights: Mapping[str, Any], path: Path) -> ResNet:
    """Return the model with these weights, in eval mode; the buffers of the normalisation are its own."""
    own = {name: value for name, value in model.state_dict().items() if name not in ("mean", "std")}
    lacking = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    other = [name for name in weights if name not in own]
    misfit = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    for what, names in (("lacks", lacking), ("has, unexpectedly,", other), ("has other shapes for", misfit)):
        if names:
            raise InvalidInput(f"{path} {what} {', '.join(names[:5])}: these are not the weights of this network.")
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _known(split: str) -> str:
    if split not in _JPEG:
        raise InvalidInput(f"CIFAR-10 has no split {split!r}.{near_matches(str(split), _JPEG)} Splits: train, test.")
    return split


def _records(resource: Resource, names: list[str], labels: int) -> npt.NDArray[np.uint8]:
    """Return records (n, bytes): labels, then red, green and blue, each row by row."""
    path, size = files.locate(resource), labels + 3 * 32 * 32
    what = "CIFAR-10's binary version" if resource is _CIFAR10 else "CIFAR-100's binary version"
    with whole(path, what):
        parts = read_members(path, names, what)
        for name, raw in parts.items():
            if not raw or len(raw) % size:
                raise ValueError(f"{name} has {len(raw)} bytes, no multiple of {size}")
        return np.concatenate([np.frombuffer(parts[name], np.uint8).reshape(-1, size) for name in names])


def _arrays(path: Path, *names: str) -> dict[str, npt.NDArray[Any]]:
    with files.open_npz(path) as file:
        missing = [name for name in names if name not in file.files]
        if missing:
            raise InvalidInput(f"{path} lacks {', '.join(missing)}; it has {', '.join(file.files) or 'nothing'}.")
        return {name: file[name] for name in names}


def _decoded(raw: npt.NDArray[np.uint8], offsets: npt.NDArray[np.integer]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the pixels (32, 32, 3) of every JPEG file raw[offsets[i]:offsets[i + 1]]."""
    content = raw.tobytes()
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        pixels = np.asarray(read_image(content[start:end], upright=False, formats=["JPEG"]))
        if pixels.shape != (32, 32, 3):
            raise ValueError(f"an image of shape {pixels.shape}")
        yield pixels


def _images(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer]) -> Images:
    inputs = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).div_(255)
    return Images(inputs, torch.from_numpy(labels.astype(np.int64)))
