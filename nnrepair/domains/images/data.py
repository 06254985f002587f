"""Labelled images: MNIST, foggy MNIST and scikit-learn's bundled digits."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnrepair.domains import files
from nnrepair.domains.files import Resource
from nnrepair.domains.images.fog import fog
from nnrepair.errors import DataUnavailable, InvalidInput, near_matches

Split = Literal["train", "test"]

_MNIST = Resource("mnist/mnist.npz")
_MNIST_FOG = Resource("mnist/mnist_fog_test.npz")
_FOG_SEED = 20240601

# torchvision's mirror of the four official files. It publishes md5 sums; the stronger sha256 sums below are those of
# the same files as several independent downloaders pin them.
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST_IDX = {
    name: Resource(f"mnist/{name}", _MIRROR + name, sha256=sha256, md5=md5)
    for name, sha256, md5 in [
        (
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "d53e105ee54ea40749a09fcb1ecd2432",
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ]
}


@dataclass(frozen=True, eq=False)
class Images:
    """Hold labelled images: `inputs` float32 (n, ...) and `labels` int64 (n,).

    >>> images = Images(torch.zeros(5, 1, 8, 8), torch.arange(5))
    >>> len(images[2:4])
    2
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.inputs.dtype != torch.float32 or self.labels.dtype != torch.int64:
            raise InvalidInput(
                f"Images need float32 inputs and int64 labels, given {self.inputs.dtype} and {self.labels.dtype}. "
                "Convert them with .float() and .long()."
            )
        if self.labels.ndim != 1 or self.inputs.ndim < 2 or len(self.inputs) != len(self.labels):
            raise InvalidInput(
                f"Images need inputs (n, ...) and labels (n,), given {tuple(self.inputs.shape)} and "
                f"{tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Images:
        """Return the chosen images: a slice, an index tensor or a boolean mask (n,)."""
        return Images(self.inputs[index], self.labels[index])


def mnist(split: Split = "test", *, flat: bool = True) -> Images:
    """Load MNIST with pixels in [0, 1]: inputs (n, 784), or (n, 1, 28, 28) with `flat=False`.

    Reads `mnist/mnist.npz` where it exists, otherwise the official idx files, which it downloads once (11 MB).

    >>> mnist("test").inputs.shape  # doctest: +SKIP
    torch.Size([10000, 784])
    """
    pixels, labels = _mnist_pixels(split)
    return _as_images(pixels, labels, flat)


def mnist_is_here() -> bool:
    """Return whether MNIST lies on this machine, so that `mnist` downloads nothing."""
    return files.find(_MNIST.path) is not None or all(files.find(each.path) is not None for each in _MNIST_IDX.values())


def mnist_fog(*, flat: bool = True) -> Images:
    """Load the 10,000 MNIST test images in fog: inputs (n, 784) in [0, 1], or (n, 1, 28, 28) with `flat=False`.

    Reads `mnist/mnist_fog_test.npz` where it exists, otherwise makes the same images with `fog` (about 20 seconds).
    These are not the published MNIST-C images: the fog follows their recipe with other random numbers.

    >>> mnist_fog()[:100].inputs.shape  # doctest: +SKIP
    torch.Size([100, 784])
    """
    if files.find(_MNIST_FOG.path) is not None:
        with _npz(_MNIST_FOG) as file:
            return _as_images(file["x"], file["y"], flat)
    pixels, labels = _mnist_pixels("test")
    return _as_images(np.round(fog(pixels / 255, _FOG_SEED) * 255), labels, flat)


def digits(*, test_fraction: float = 0.25, seed: int = 0) -> tuple[Images, Images]:
    """Split scikit-learn's 1,797 bundled handwritten digits into train and test: inputs (n, 1, 8, 8) in [0, 1].

    The split keeps the share of each class and is the same for the same seed. Nothing is downloaded.

    >>> train, test = digits()
    >>> train.inputs.shape, len(test)
    (torch.Size([1347, 1, 8, 8]), 450)
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise DataUnavailable(
            "The digits come with scikit-learn, which is not installed: pip install 'nnrepair[demo]'."
        ) from error
    if not 0 < test_fraction < 1:
        raise InvalidInput(f"test_fraction must lie between 0 and 1, given {test_fraction}.")
    bunch = load_digits()
    inputs = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    parts = train_test_split(np.arange(len(labels)), test_size=test_fraction, random_state=seed, stratify=bunch.target)
    train, test = (torch.from_numpy(np.sort(part)) for part in parts)
    return Images(inputs[train], labels[train]), Images(inputs[test], labels[test])


def _mnist_pixels(split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise InvalidInput(f"MNIST has no split {split!r}.{near_matches(str(split), prefixes)} Splits: train, test.")
    if files.find(_MNIST.path) is not None:
        with _npz(_MNIST) as file:
            return file[f"x_{split}"], file[f"y_{split}"]
    prefix = prefixes[split]
    images = files.locate(_MNIST_IDX[f"{prefix}-images-idx3-ubyte.gz"])
    labels = files.locate(_MNIST_IDX[f"{prefix}-labels-idx1-ubyte.gz"])
    return _read_idx(images), _read_idx(labels)


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped idx file of bytes: two zeros, type 8, the rank, big-endian sizes, then the values."""
    try:
        raw = gzip.decompress(path.read_bytes())
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
        values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank)
        if (zeros, kind) != (0, 8) or values.size != math.prod(shape):
            raise ValueError(f"{values.size} values of type {kind} for shape {shape}")
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise InvalidInput(f"{path} is not a whole gzipped idx file of bytes ({error}). Fetch it again.") from error
    return values.reshape(shape)


def _npz(resource: Resource) -> np.lib.npyio.NpzFile:
    return files.open_npz(files.locate(resource))


def _as_images(pixels: npt.NDArray[np.number], labels: npt.NDArray[np.integer], flat: bool) -> Images:
    inputs = torch.from_numpy(pixels.astype(np.float32)).div(255)
    inputs = inputs.flatten(1) if flat else inputs.unsqueeze(1)
    return Images(inputs, torch.from_numpy(labels.astype(np.int64)))
