"""Published corruptions of CIFAR-10, CIFAR-100 and MNIST: noise, blur, weather, at five severities or one."""

from __future__ import annotations

import numpy as np
import torch

from nnrepair.domains import files
from nnrepair.domains.files import Resource
from nnrepair.domains.images.data import Images, Split
from nnrepair.domains.images.packed import read_rows
from nnrepair.errors import InvalidInput, near_matches

# Zenodo publishes the md5 sums; the sha256 sums are those that TensorFlow Datasets pins for the same files.
_CIFAR10_C = Resource(
    "cifar10/CIFAR-10-C.tar",
    "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar",
    sha256="c72763e101c723b7c507b96205f7e938912a5d587376173b825850cf3cb876a7",
    md5="56bf5dcef84df0e2308c6dcbcbbd8499",
)
_CIFAR100_C = Resource(
    "cifar100/CIFAR-100-C.tar",
    "https://zenodo.org/records/3555552/files/CIFAR-100-C.tar",
    sha256="30ee6543a1bfd049fa33834b7c1ada301e7064b7fbe8fc38340eb8b62ced4b33",
    md5="11f0ed0f1191edbf9fa23466ae6021d3",
)
_MNIST_C = Resource(
    "mnist/mnist_c.zip",
    "https://zenodo.org/records/3239543/files/mnist_c.zip",
    sha256="af9ee8c6a815870c7fdde5af84c7bf8db0bcfa1f41056db83871037fba70e493",
    md5="4b34b33045869ee6d424616cd3a65da3",
)

#: The 15 corruptions of the benchmark, and four more that are published beside them.
CIFAR_CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
    "spatter",
    "speckle_noise",
)
MNIST_CORRUPTIONS = (
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "shear",
    "scale",
    "rotate",
    "brightness",
    "translate",
    "stripe",
    "fog",
    "spatter",
    "dotted_line",
    "zigzag",
    "canny_edges",
    "identity",
)
_TESTS = 10_000  # test images, in the order of the clean ones, for each severity


def cifar10_c(corruption: str, severity: int = 5) -> Images:
    """Load CIFAR-10-C: inputs (10000, 3, 32, 32) in [0, 1], the test images in order under one corruption.

    Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations" (ICLR
    2019). Reads `cifar10/CIFAR-10-C.tar` without unpacking it, and downloads it once (2.9 GB).

    Args:
        corruption: one of `CIFAR_CORRUPTIONS`.
        severity: 1 to 5.

    >>> cifar10_c("fog", 3).inputs.shape  # doctest: +SKIP
    torch.Size([10000, 3, 32, 32])
    """
    return _cifar(_CIFAR10_C, "CIFAR-10-C", corruption, severity)


def cifar100_c(corruption: str, severity: int = 5) -> Images:
    """Load CIFAR-100-C, like `cifar10_c`, from `cifar100/CIFAR-100-C.tar` (2.9 GB)."""
    return _cifar(_CIFAR100_C, "CIFAR-100-C", corruption, severity)


def mnist_c(corruption: str, split: Split = "test", *, flat: bool = True) -> Images:
    """Load MNIST-C: inputs (n, 784) in [0, 1], all of MNIST's images in order under one corruption.

    Mu & Gilmer, "MNIST-C: a robustness benchmark for computer vision" (2019). Reads `mnist/mnist_c.zip`, and downloads
    it once (247 MB).

    Args:
        corruption: one of `MNIST_CORRUPTIONS`.
        split: "train" or "test".
        flat: False returns (n, 1, 28, 28).
    """
    _known(corruption, MNIST_CORRUPTIONS, "MNIST-C")
    if split not in ("train", "test"):
        raise InvalidInput(f"MNIST-C has no split {split!r}. Splits: train, test.")
    path, folder = files.locate(_MNIST_C), f"mnist_c/{corruption}/{split}"
    pixels = read_rows(path, f"{folder}_images.npy", "MNIST-C")
    labels = read_rows(path, f"{folder}_labels.npy", "MNIST-C")
    images = _images(pixels.reshape(len(pixels), 1, 28, 28), labels) if pixels[0].size == 784 else None
    if images is None:
        raise InvalidInput(f"{path} holds images of shape {pixels.shape[1:]}, not 28 x 28.")
    return Images(images.inputs.flatten(1), images.labels) if flat else images


def _cifar(resource: Resource, name: str, corruption: str, severity: int) -> Images:
    _known(corruption, CIFAR_CORRUPTIONS, name)
    if severity not in range(1, 6):
        raise InvalidInput(f"{name} has severities 1 to 5, given {severity!r}.")
    path, start = files.locate(resource), (severity - 1) * _TESTS
    pixels = read_rows(path, f"{name}/{corruption}.npy", name, start, start + _TESTS)
    labels = read_rows(path, f"{name}/labels.npy", name, start, start + _TESTS)
    if pixels.shape[1:] != (32, 32, 3):
        raise InvalidInput(f"{path} holds images of shape {pixels.shape[1:]}, not (32, 32, 3).")
    return _images(pixels.transpose(0, 3, 1, 2), labels)


def _known(corruption: str, corruptions: tuple[str, ...], name: str) -> None:
    if corruption not in corruptions:
        raise InvalidInput(
            f"{name} has no corruption {corruption!r}.{near_matches(str(corruption), corruptions)} Corruptions: "
            f"{', '.join(corruptions)}."
        )


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    inputs = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).div_(255)
    return Images(inputs, torch.from_numpy(labels.astype(np.int64)))
