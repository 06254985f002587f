"""Images to complete: faces of CelebA and handwritten digits, as whole grey levels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnrepair.domains import files, vision
from nnrepair.domains.files import Resource
from nnrepair.domains.images.decoding import read_image
from nnrepair.errors import DataUnavailable, InvalidInput, near_matches
from nnrepair.extras import needed

#: The first 10 000 faces of CelebA at half size, as JPEG files.
_FACES = Resource("celeba/celeba_10k_89x109.npz")
#: Of the 10 000 faces, those from here on are for tests. The full set has splits of its own.
TRAINED = 9000
SPLITS = ("train", "test")


def faces(split: str = "test", size: int = 32, *, whole: bool = False) -> Tensor:
    """Load faces of CelebA (Liu et al., ICCV 2015), uint8 (n, 3, size, size): the middle square, resized.

    CelebA is for non-commercial research only; do not publish its pictures.

    Args:
        split: "train" (9000 of the 10 000 faces) or "test" (the other 1000).
        size: in pixels.
        whole: take the full set (162 770 faces for training, 19 962 for tests) from torchvision, which must lie in
            the folder `celeba` where data are (`NNREPAIR_DATA` or the cache), as `torchvision.datasets.CelebA` has it.

    Raises:
        InvalidInput: another split, a size below one pixel, or a damaged file.
        DataUnavailable: the faces are not on this machine.

    >>> faces("test").shape  # doctest: +SKIP
    torch.Size([1000, 3, 32, 32])
    """
    if split not in SPLITS:
        raise InvalidInput(f"The faces have no split {split!r}.{near_matches(str(split), SPLITS)} Splits: train, test.")
    if size < 1:
        raise InvalidInput(f"size must be at least 1 pixel, given {size}.")
    if whole:
        return _stacked(_full_set(split), size)
    path = files.locate(_FACES)
    try:
        with files.open_npz(path) as file:
            raw, offsets = file["data"], file["offsets"]
        chosen = slice(0, TRAINED) if split == "train" else slice(TRAINED, None)
        return _stacked(_opened(raw, offsets[:-1][chosen], offsets[1:][chosen]), size)
    except (OSError, KeyError, ValueError, IndexError) as error:
        if isinstance(error, InvalidInput | DataUnavailable):
            raise
        raise InvalidInput(f"{path} is damaged or holds no faces as JPEG files ({error}). Fetch it again.") from error


def digits(split: str = "test", size: int = 28) -> Tensor:
    """Load handwritten digits, uint8 (n, 1, size, size).

    Args:
        split: "train" or "test".
        size: 28 for MNIST (60 000 and 10 000), 8 for those that scikit-learn brings (1347 and 450; no download).

    >>> digits("test", 8).shape
    torch.Size([450, 1, 8, 8])
    """
    if split not in SPLITS:
        raise InvalidInput(
            f"The digits have no split {split!r}.{near_matches(str(split), SPLITS)} Splits: train, test."
        )
    if size == 28:
        inputs = vision.mnist("train" if split == "train" else "test", flat=False).inputs
    elif size == 8:
        inputs = vision.digits()[SPLITS.index(split)].inputs
    else:
        raise InvalidInput(f"Digits have 28 pixels a side (MNIST) or 8 (scikit-learn's), given {size}.")
    return (inputs * 255).round().to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Return grey levels 0 to 255 (uint8) as numbers in [0, 1], float32."""
    return images.float() / 255


def _opened(
    raw: npt.NDArray[np.uint8], starts: npt.NDArray[np.integer], ends: npt.NDArray[np.integer]
) -> Iterator[object]:
    content = raw.tobytes()
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        try:
            yield read_image(content[start:end], upright=False, formats=["JPEG"])
        except InvalidInput as error:
            raise ValueError(str(error)) from error


def _full_set(split: str) -> Iterator[object]:
    with needed("vision", "The full set is read by torchvision"):
        from torchvision.datasets import CelebA
    folder = files.find("celeba/list_eval_partition.txt")
    if folder is None:
        raise DataUnavailable(
            "The full set of CelebA was not found: it lies where torchvision.datasets.CelebA(root) puts it, in the "
            "folder 'celeba' of NNREPAIR_DATA or the cache. Leave whole=True out for the 10 000 faces."
        )
    try:
        found = CelebA(str(folder.parent.parent), split=split, download=False)
    except RuntimeError as error:
        raise DataUnavailable(f"{folder.parent} is no whole copy of CelebA ({error})") from error
    return (found[k][0] for k in range(len(found)))


def _stacked(images: Iterator[object], size: int) -> Tensor:
    with needed("vision", "Images are resized by pillow"):
        from PIL import Image
    pixels = []
    for image in images:
        assert isinstance(image, Image.Image)
        width, height = image.size
        side = min(width, height)
        left, above = (width - side) // 2, (height - side) // 2
        square = image.convert("RGB").crop((left, above, left + side, above + side))
        pixels.append(np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)))
    if not pixels:
        raise ValueError("no images")
    return torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy())
