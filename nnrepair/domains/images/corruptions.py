"""Corruptions of grey images, of the kinds that MNIST-C has, and each drawn for all images at once.

Recipes after Mu & Gilmer, "MNIST-C: a robustness benchmark for computer vision" (2019) and Hendrycks & Dietterich,
"Benchmarking neural network robustness to common corruptions and perturbations" (ICLR 2019), with other random numbers
and other severities; these are not the published images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nnrepair.domains.images.fog import fog, pixels
from nnrepair.errors import InvalidInput

Array = npt.NDArray[np.float64]


def rotation(images: npt.ArrayLike, generator: np.random.Generator | int, degrees: float = 45.0) -> Array:
    """Turn each image of (n, height, width) about its centre, to one side or the other, and return the same shape.

    Pixels between four others are weighted by how near they are (bilinear), and black outside.

    Args:
        images: Pixels in [0, 1].
        generator: Source of randomness, or a seed for a new one.
        degrees: By how much.

    >>> rotation(np.ones((2, 28, 28)), 0).shape
    (2, 28, 28)
    """
    x = pixels(images, "rotation")
    count, height, width = x.shape
    side = np.random.default_rng(generator).choice([-1.0, 1.0], size=count)
    angle = np.deg2rad(degrees) * side[:, None, None]
    down, right = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    row = np.cos(angle) * down - np.sin(angle) * right + (height - 1) / 2
    column = np.sin(angle) * down + np.cos(angle) * right + (width - 1) / 2
    framed = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    row, column = np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)  # the frame is black
    top, left = np.minimum(row.astype(np.int64), height), np.minimum(column.astype(np.int64), width)
    lower, later = row - top, column - left
    image = np.arange(count)[:, None, None]
    above = (1 - later) * framed[image, top, left] + later * framed[image, top, left + 1]
    below = (1 - later) * framed[image, top + 1, left] + later * framed[image, top + 1, left + 1]
    turned: Array = (1 - lower) * above + lower * below
    return turned


def impulse_noise(images: npt.ArrayLike, generator: np.random.Generator | int, share: float = 0.27) -> Array:
    """Make a share of the pixels of images (n, height, width) black or white, at random, and return the same shape.

    Args:
        images: Pixels in [0, 1].
        generator: Source of randomness, or a seed for a new one.
        share: Of the pixels, in expectation.

    >>> sorted(set(impulse_noise(np.full((1, 28, 28), 0.5), 0).flatten().tolist()))
    [0.0, 0.5, 1.0]
    """
    if not 0 <= share <= 1:
        raise InvalidInput(f"share must lie between 0 and 1, given {share}.")
    x = pixels(images, "impulse_noise")
    drawn = np.random.default_rng(generator).random(x.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, x))


def low_contrast(images: npt.ArrayLike, generator: np.random.Generator | int, left: float = 0.15) -> Array:
    """Leave a share of the contrast of images (n, height, width), about each one's mean, and return the same shape.

    Args:
        images: Pixels in [0, 1].
        generator: As other corruptions take it; nothing is drawn.
        left: Share of every pixel's distance from the mean.

    >>> low_contrast(np.array([[[0.0, 1.0]]]), 0, left=0.5).tolist()
    [[[0.25, 0.75]]]
    """
    if not 0 <= left <= 1:
        raise InvalidInput(f"left must lie between 0 and 1, given {left}.")
    x = pixels(images, "low_contrast")
    mean = x.mean(axis=(1, 2), keepdims=True)
    less: Array = mean + left * (x - mean)
    return less


def blur(images: npt.ArrayLike, generator: np.random.Generator | int, radius: float = 2.0) -> Array:
    """Blur images (n, height, width) by a Gaussian, black outside, and return the same shape.

    Args:
        images: Pixels in [0, 1].
        generator: As other corruptions take it; nothing is drawn.
        radius: Standard deviation in pixels.

    >>> blur(np.ones((1, 9, 9)), 0, radius=1.0)[0, 4, 3:6].round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    if not 0 < radius < float("inf"):
        raise InvalidInput(f"radius must be a number of pixels > 0, given {radius}.")
    x = pixels(images, "blur")
    for size in x.shape[1:]:
        apart = np.arange(size)[:, None] - np.arange(size)
        reach = np.arange(-np.ceil(4 * radius), np.ceil(4 * radius) + 1)
        weight = np.exp(-((apart / radius) ** 2) / 2) / np.exp(-((reach / radius) ** 2) / 2).sum()
        x = np.moveaxis(x, 1, 2) @ weight  # each axis in turn comes last
    blurred: Array = x.clip(0, 1)
    return blurred


#: name -> corruption: (n, height, width) with pixels in [0, 1], and a generator or seed, to the same shape.
CORRUPTIONS: dict[str, Callable[[npt.ArrayLike, np.random.Generator | int], Array]] = {
    "fog": fog,
    "rotation": rotation,
    "impulse noise": impulse_noise,
    "low contrast": low_contrast,
    "blur": blur,
}
