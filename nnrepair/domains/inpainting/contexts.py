"""Which pixels of images are given: at random or from above to below, in any number, batched."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.rounding import first

Kind = Literal["random", "ordered"]


def context(kind: Kind, images: Tensor, count: int | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return (n, 1, height, width) bool: which pixels of images (n, channels, height, width) are given.

    >>> context("ordered", torch.zeros(1, 3, 2, 3), 4)[0, 0]
    tensor([[ True,  True,  True],
            [ True, False, False]])

    Args:
        kind: "random", drawn without replacement, or "ordered", from the upper left corner row by row.
        images: their shape and device count only.
        count: how many pixels, one number or (n,) one for each image.
        generator: draws random contexts, on the CPU; needed for these.

    Raises:
        InvalidInput: less than one pixel, more than there are, or no generator.
    """
    n, _, height, width = _images(images)
    counts = torch.as_tensor(count)
    if counts.dtype.is_floating_point or counts.shape not in ((), (n,)):
        raise InvalidInput(f"count must be a whole number, or one for each of {n} images, given {count}.")
    if n and (int(counts.min()) < 1 or int(counts.max()) > height * width):
        raise InvalidInput(
            f"A context of {height} x {width} pixels has 1 to {height * width} of them, given {counts.tolist()}."
        )
    if kind == "ordered":
        rank = torch.arange(height * width).expand(n, -1)
    elif kind == "random":
        if generator is None:
            raise InvalidInput("Random contexts are drawn by a generator: pass torch.Generator().manual_seed(...).")
        rank = torch.rand(n, height * width, generator=generator).argsort(1)
    else:
        raise InvalidInput(f"A context is 'random' or 'ordered', given {kind!r}.")
    return (rank < counts.expand(n)[:, None]).reshape(n, 1, height, width).to(images.device)


def counts(n: int, least: int, most: int, generator: torch.Generator) -> Tensor:
    """Return (n,) numbers of pixels, spread evenly by their logarithms over least..most.

    >>> counts(3, 5, 5, torch.Generator().manual_seed(0))
    tensor([5, 5, 5])
    """
    if not 1 <= least <= most:
        raise InvalidInput(f"A context has at least 1 pixel and at most as many as there are, given {least}..{most}.")
    shares = torch.rand(n, generator=generator, dtype=torch.float64)
    return (math.log(least) + shares * math.log((most + 1) / least)).exp().long().clamp(least, most)


def masked(images: Tensor, given: Tensor) -> Tensor:
    """Return (n, channels + 1, height, width): images where they are given, zero elsewhere, and the mask.

    Args:
        images: (n, channels, height, width) in [0, 1].
        given: (n, 1, height, width) bool, see `context`.

    Raises:
        InvalidInput: a mask of another shape, an image of which nothing is given, pixels outside [0, 1].
    """
    n, _, height, width = _images(images)
    if given.dtype != torch.bool or given.shape != (n, 1, height, width):
        raise InvalidInput(
            f"The mask must be bool {(n, 1, height, width)} for these images, got {given.dtype} {tuple(given.shape)}."
        )
    empty = torch.nonzero(~given.flatten(1).any(1)).flatten().tolist()
    if empty:
        raise InvalidInput(f"The context is empty: nothing is given of images {first(empty)}. Give at least one pixel.")
    in_range(images, "Pixels")
    mask = given.to(images)
    return torch.cat([images * mask, mask], 1)


def in_range(values: Tensor, what: str) -> None:
    """Refuse values that are no grey levels in [0, 1]."""
    if not values.dtype.is_floating_point or not bool(((values >= 0) & (values <= 1)).all()):
        low, high = (
            (float(values.double().nan_to_num(torch.inf).min()), float(values.double().max()))
            if values.numel()
            else (0, 0)
        )
        raise InvalidInput(
            f"{what} must be floating-point numbers in [0, 1], got {values.dtype} in [{low:g}, {high:g}]. "
            "Divide grey levels of 0 to 255 by 255."
        )


def _images(images: Tensor) -> tuple[int, int, int, int]:
    if images.ndim != 4:
        raise InvalidInput(f"Images are (n, channels, height, width), given {tuple(images.shape)}.")
    n, channels, height, width = images.shape
    return n, channels, height, width
