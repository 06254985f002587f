"""Slightly changed copies of images, to which a repair should generalise: mirrored, moved, turned, blurred, compressed.

All of these leave a photograph's class as it is; of digits and letters leave `Mirrored` out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nnrepair.errors import InvalidInput
from nnrepair.extras import needed
from nnrepair.spec.edits import Edits, EditScope

#: Changes images (n, channels, height, width), given two random numbers (n, 2) in [0, 1) for each of them.
Change = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Mirrored:
    """Left and right exchanged."""

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        return images.flip(3)


@dataclass(frozen=True)
class Moved:
    """Moved by whole pixels; what becomes free repeats the edge.

    Attributes:
        pixels: at most so many, in each direction; no image stays where it was.
    """

    pixels: int = 2

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise InvalidInput(f"Moved: pixels must be at least 1, given {self.pixels}.")

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        side = 2 * self.pixels + 1
        place = (random[:, 0].double() * (side**2 - 1)).long()
        place += (place >= side**2 // 2).long()  # the middle is where it was
        down, right = place // side - self.pixels, place % side - self.pixels
        rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
        every = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
        return images[*every, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Turned:
    """Turned about the middle, to the left or right; corners that become free repeat the edge.

    Attributes:
        degrees: at most; at least half of it.
    """

    degrees: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.degrees <= 180:
            raise InvalidInput(f"Turned: degrees must be in (0, 180], given {self.degrees}.")

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        height, width = images.shape[2:]
        size = math.radians(self.degrees) * (1 + random[:, 0]) / 2
        angle = torch.where(random[:, 1] < 0.5, size, -size)
        sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
        rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
        grid = nn.functional.affine_grid(
            torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False
        )
        return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Blurred:
    """Out of focus: averaged with a bell curve around each pixel.

    Attributes:
        sigma: its width in pixels, at most; at least half of it.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 32:
            raise InvalidInput(f"Blurred: sigma must be in (0, 32] pixels, given {self.sigma}.")

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        reach = math.ceil(3 * self.sigma)
        sigma = self.sigma * (1 + random[:, :1]) / 2
        weights = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
        weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]
        rows = (torch.arange(-reach, height + reach)).clamp(0, height - 1)
        columns = (torch.arange(-reach, width + reach)).clamp(0, width - 1)
        wide = images[:, :, rows][:, :, :, columns].reshape(1, n * channels, len(rows), len(columns))
        across = nn.functional.conv2d(wide, weights, groups=n * channels)
        return nn.functional.conv2d(across, weights.mT, groups=n * channels).reshape(images.shape)


@dataclass(frozen=True)
class Compressed:
    """Saved as JPEG and read again; the same version of pillow gives the same images.

    Attributes:
        quality: 1 to 95.
        mean, std: what the model's transform subtracts from pixels in [0, 1] and divides them by, for each channel,
            where images are given as it leaves them.
    """

    quality: int = 75
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise InvalidInput(f"Compressed: quality must be 1 to 95, given {self.quality}.")
        if not all(s > 0 for s in self.std):
            raise InvalidInput(f"Compressed: std must be positive, given {self.std}.")

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        with needed("vision", "JPEG images are made by pillow"):
            from PIL import Image
        channels = images.shape[1]
        if channels not in (1, 3) or any(len(values) not in (1, channels) for values in (self.mean, self.std)):
            raise InvalidInput(
                f"Compressed: JPEG takes 1 or 3 channels, with a mean and std for each of them (or one for all), given "
                f"{channels} channels, mean {self.mean} and std {self.std}."
            )
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        pixels = images * std + mean
        if len(images) and not (pixels.min() > -0.01 and pixels.max() < 1.01):
            raise InvalidInput(
                f"Compressed: pixels must be in [0, 1], found [{pixels.min():.3g}, {pixels.max():.3g}]. Give the mean "
                "and std of the model's transform."
            )
        saved = list[Tensor]()
        for one in pixels.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(one.squeeze(2) if channels == 1 else one).save(file, "JPEG", quality=self.quality)
            read = np.array(Image.open(file, formats=["JPEG"]))
            saved.append(torch.from_numpy(read).reshape(*one.shape))
        return (torch.stack(saved).permute(0, 3, 1, 2) / 255 - mean) / std


#: What leaves photographs as they are to people.
PHOTOGRAPHS: tuple[Change, ...] = (Mirrored(), Moved(), Turned(), Blurred())


class Variants(Dataset[Tensor]):
    """Changed copies of images, made when they are read; the same ones each time, in whatever order they are read.

    >>> x = torch.rand(2, 3, 8, 8)
    >>> few = Variants(x, (Mirrored(), Moved(1)), each=3, seed=0)
    >>> len(few), few.of.tolist()[:7], bool((few[0] == x[0].flip(2)).all())
    (12, [0, 0, 0, 0, 0, 0, 1], True)

    Args:
        images: (n, channels, height, width), as the model takes them.
        changes: how to change them; any function of images and two random numbers for each is one.
        each: copies of an image by one change.
        seed: of the random numbers; the global random state is not used.

    Attributes:
        of: (copies,) the image that each is a copy of.

    Raises:
        InvalidInput: other images, or no changes.
    """

    def __init__(self, images: Tensor, changes: Sequence[Change] = PHOTOGRAPHS, each: int = 1, seed: int = 0) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.dtype.is_floating_point:
            given = f"{tuple(images.shape)}, {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise InvalidInput(f"Images must be a floating tensor (n, channels, height, width), given {given}.")
        if not changes or each < 1:
            raise InvalidInput(f"There must be a change and at least one copy by each, given {changes} and {each}.")
        self.images, self.changes, self.each = images.detach(), tuple(changes), each
        self.of = torch.arange(len(images)).repeat_interleave(len(self.changes) * each)
        self.random = torch.rand(len(self.of), 2, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, item: int) -> Tensor:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: list[int]) -> list[Tensor]:
        """Return copies, those by the same change made together; torch's loaders call this."""
        numbers = torch.tensor(items).remainder(len(self))
        by = numbers % (len(self.changes) * self.each) // self.each
        made = torch.empty(len(items), *self.images.shape[1:], dtype=self.images.dtype)
        for k in sorted(set(by.tolist())):
            mine = (by == k).nonzero()[:, 0]
            images = self.images[self.of[numbers[mine]].to(self.images.device)].cpu().float()
            changed: Any = self.changes[k](images, self.random[numbers[mine]])
            if changed.shape != images.shape:
                raise InvalidInput(f"{self.changes[k]} makes images of shape {tuple(changed.shape)[1:]} of others.")
            made[mine] = changed.to(made.dtype)
        return list(made)


def varied(edits: Edits, changes: Sequence[Change] = PHOTOGRAPHS, each: int = 1, seed: int = 0) -> EditScope:
    """Return changed copies of the edits' images, to measure how a repair generalises: `fix(..., edit_scope=...)`.

    They are made a batch at a time, whenever they are measured.

    Args:
        edits: images (n, channels, height, width) and what is asked of them, which is asked of the copies too.
        changes, each, seed: see `Variants`.
    """
    copies = Variants(edits.inputs, changes, each, seed)  # type: ignore[arg-type]  # checked there
    of = copies.of if edits.of is None else edits.of[copies.of]
    return EditScope(copies, edits.criterion[copies.of], of=of)
