"""Image files as pixels in red, green and blue, or a reason why not."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnrepair.errors import InvalidInput, first_line
from nnrepair.extras import needed

if TYPE_CHECKING:
    from PIL.Image import Image

#: What is decoded; other formats of pillow run programs (EPS) or are no pictures.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
#: Pixels of an image, at most: a file of some kilobytes can hold pictures that fill the memory.
PIXELS = 2**26


def read_image(
    source: str | Path | bytes, *, upright: bool = True, pixels: int = PIXELS, formats: Sequence[str] = FORMATS
) -> Image:
    """Return an image file's picture as pillow's RGB image of eight bits, as most classifiers were trained on.

    It is a loader for torchvision: `ImageFolder(root, transform, loader=read_image)`.

    Grey and palette images become coloured ones; CMYK is converted; transparency is left out, as torchvision does.
    Sixteen bits of grey are reduced to the upper eight: pillow alone would cut all but the darkest to white.

    Args:
        source: a path, or the file's bytes.
        upright: turn the picture as its camera says (EXIF); published accuracies on ImageNet were measured without.
        pixels: at most so many, width times height.
        formats: of pillow, that are accepted.

    Raises:
        InvalidInput: no whole image of a known format, one with several frames (an animation), with numbers that have
            no fixed range (32 bits), or with too many pixels; the message names the file.
        MissingExtra: pillow is not installed.
    """
    with needed("vision", "Images are decoded by pillow"):
        from PIL import Image

    name = f"an image of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        raw = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not raw:
            raise InvalidInput("the file is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of palettes with transparency
            with Image.open(io.BytesIO(raw), formats=tuple(formats)) as image:
                _refuse(image, pixels)
                picture = _rgb(image)
                return _turned(picture, image) if upright else picture
    except Exception as error:  # pillow's readers raise many kinds
        reason = first_line(error)
        if type(error).__name__ == "UnidentifiedImageError":
            reason = f"it is no image of a known format ({', '.join(formats)})"
        raise InvalidInput(f"{name} cannot be read: {reason.rstrip('.')}.") from error


def _refuse(image: Any, pixels: int) -> None:
    """Refuse a file by what its header says, before anything is unpacked."""
    width, height = image.size
    if width * height > pixels:
        raise InvalidInput(f"it has {width} x {height} pixels, more than {pixels}: make it smaller, or allow more")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: cameras add previews behind the picture
        raise InvalidInput(f"it has {image.n_frames} frames; save the one that is meant as a file of its own")


def _rgb(image: Any) -> Image:
    from PIL.Image import fromarray

    if image.mode.startswith("I;16"):
        return fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # both have 16 bits at most
        return fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InvalidInput(f"its {image.format} pixels are numbers of 32 bits without a fixed range; save it with 8")
    converted: Image = image.convert("RGB")
    return converted


def _turned(picture: Image, file: Any) -> Image:
    """Return the picture as its camera was held; pillow has turned TIFF files already."""
    from PIL.Image import Transpose

    ways = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
    try:
        orientation = file.getexif().get(0x0112, 1)
    except Exception:  # damaged notes beside a picture that is whole
        return picture
    return picture.transpose(Transpose[ways[orientation - 2]]) if orientation in range(2, 9) else picture
