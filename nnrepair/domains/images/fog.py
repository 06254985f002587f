"""Fog on images, as in MNIST-C."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nnrepair.errors import InvalidInput

_MAP = 256  # side of the plasma map; images take its corner


def fog(images: npt.ArrayLike, generator: np.random.Generator | int) -> npt.NDArray[np.float64]:
    """Put each image of (n, height, width) with pixels in [0, 1] into its own fog, and return the same shape.

    The recipe is MNIST-C's fog of severity 5 (Mu & Gilmer, 2019): with p a plasma fractal scaled to [0, 1] and m the
    brightest pixel, an image x becomes `clip((x + 3 p) m / (m + 3), 0, 1)`. Images of up to 256 x 256 pixels fit.

    Args:
        images: Pixels in [0, 1].
        generator: Source of randomness, or a seed for a new one.

    >>> fog(np.zeros((2, 28, 28)), 0).shape
    (2, 28, 28)
    """
    strength, batch = 3.0, 64
    x = pixels(images, "fog")
    if max(x.shape[1:]) > _MAP:
        raise InvalidInput(f"fog needs images of at most {_MAP} x {_MAP} pixels, given {x.shape}.")
    rng = np.random.default_rng(generator)
    foggy = np.empty_like(x)
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        plasma = _plasma(len(part), rng)[:, : x.shape[1], : x.shape[2]]
        brightest = part.max(axis=(1, 2), keepdims=True)
        foggy[start : start + batch] = np.clip((part + strength * plasma) * brightest / (brightest + strength), 0, 1)
    return foggy


def pixels(images: npt.ArrayLike, what: str) -> npt.NDArray[np.float64]:
    """Return images (n, height, width) as float64.

    Args:
        images: Pixels in [0, 1].
        what: The name of what needs them, for errors.

    Raises:
        InvalidInput: Another shape, or pixels outside of [0, 1].
    """
    x = np.asarray(images, dtype=np.float64)
    if x.ndim != 3:
        raise InvalidInput(f"{what} needs images (n, height, width), given shape {x.shape}.")
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise InvalidInput(f"{what} needs pixels in [0, 1], given [{x.min():g}, {x.max():g}]. Divide by 255 first?")
    return x


def _plasma(count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw diamond-square fractals (count, 256, 256) on a torus, each scaled to [0, 1].

    The noise on a square of side s is uniform in [-a^2, a^2], where a starts at 100 and falls by 1.4 whenever s halves.
    One image's numbers lie side by side in the random stream, so the result does not depend on how images are batched.
    """
    decay = 1.4
    uniform = rng.random((count, _MAP * _MAP - 1))
    used = 0

    def noise(side: int) -> npt.NDArray[np.float64]:
        nonlocal used
        block = uniform[:, used : used + side * side].reshape(count, side, side)
        used += side * side
        return amplitude * (-amplitude + (amplitude - -amplitude) * block)

    grid = np.zeros((count, _MAP, _MAP))
    step, amplitude = _MAP, 100.0
    while step > 1:
        half, side = step // 2, _MAP // step
        corners = grid[:, ::step, ::step]
        along = corners + np.roll(corners, -1, axis=1)
        grid[:, half::step, half::step] = (along + np.roll(along, -1, axis=2)) / 4 + noise(side)
        centres = grid[:, half::step, half::step]
        across = corners + np.roll(corners, -1, axis=2)
        grid[:, ::step, half::step] = (across + centres + np.roll(centres, 1, axis=1)) / 4 + noise(side)
        grid[:, half::step, ::step] = (along + centres + np.roll(centres, 1, axis=2)) / 4 + noise(side)
        step, amplitude = half, amplitude / decay
    grid -= grid.min(axis=(1, 2), keepdims=True)
    grid /= grid.max(axis=(1, 2), keepdims=True)
    return grid
