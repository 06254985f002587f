"""Image files of every kind: what is read, and what is refused by name."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, pixels

from nnrepair import InvalidInput
from nnrepair.domains.images.decoding import read_image

Image = pytest.importorskip("PIL.Image", reason="pillow comes with the extra [vision]")
PICTURE = pixels(3, 12)[:, :8]  # taller than wide: (12, 8, 3)


def array(source: Any, **options: Any) -> np.ndarray:
    found = read_image(source, **options)
    assert found.mode == "RGB"
    return np.asarray(found)


def picture(mode: str = "RGB") -> Any:
    return Image.fromarray(PICTURE).convert(mode)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"])
def test_formats(form: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(form, {})
    raw = encoded(picture(), form, **options)
    (tmp_path / "one").write_bytes(raw)
    near = {"JPEG": 40, "GIF": 40}.get(form, 0)
    for source in (raw, tmp_path / "one", str(tmp_path / "one")):
        assert np.abs(array(source).astype(int) - PICTURE).max() <= near


def test_every_mode_becomes_red_green_and_blue() -> None:
    grey = np.asarray(picture("L"))
    assert (array(encoded(picture("L"))) == grey[:, :, None]).all()
    two = array(encoded(picture("1")))
    assert set(np.unique(two)) == {0, 255}
    palette = picture().quantize(16)
    assert (array(encoded(palette)) == np.asarray(palette.convert("RGB"))).all()
    cmyk = array(encoded(picture("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - PICTURE).max() < 60 and np.abs(cmyk.astype(int) - PICTURE).mean() < 12


def test_transparency_is_left_out_without_a_warning() -> None:
    clear = np.concatenate([PICTURE, np.zeros_like(PICTURE[:, :, :1])], 2)  # all of it transparent
    assert (array(encoded(clear)) == PICTURE).all()
    palette = picture().quantize(8)
    raw = encoded(palette, transparency=bytes(range(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (array(raw) == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_brightness(form: str) -> None:
    deep = (np.arange(96, dtype=np.uint16).reshape(12, 8) * 682).astype(np.uint16)
    found = array(encoded(Image.fromarray(deep), form))
    assert (found == (deep >> 8)[:, :, None]).all()
    assert found.max() == 253 and len(np.unique(found)) > 90  # pillow alone: nearly all of it is white


WAYS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", WAYS)
def test_cameras_that_were_held_otherwise(orientation: int) -> None:
    notes = Image.Exif()
    notes[0x0112] = orientation
    raw = encoded(picture(), "PNG", exif=notes)
    assert (array(raw) == WAYS[orientation](PICTURE)).all()
    assert (array(raw, upright=False) == PICTURE).all()


def test_damaged_notes_cost_no_picture() -> None:
    raw = encoded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff", quality=95)
    assert array(raw).shape == PICTURE.shape


def animation(form: str) -> bytes:
    frames = [Image.fromarray(pixels(k)) for k in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def bomb(side: int) -> bytes:
    """Return a PNG file of some bytes whose header says that it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def postscript() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"is empty \(0 bytes\)"),
    "text": (lambda: b"no image at all", "no image of a known format .JPEG, "),
    "cut JPEG": (lambda: encoded(pixels(0, 64), "JPEG")[:-400], "truncated"),
    "cut PNG": (lambda: encoded(pixels(0, 64))[:-400], "cannot be read"),
    "cut header": (lambda: encoded(pixels(0))[:20], "cannot be read"),
    "animated GIF": (lambda: animation("GIF"), "has 3 frames; save the one"),
    "animated PNG": (lambda: animation("PNG"), "has 3 frames"),
    "animated WEBP": (lambda: animation("WEBP"), "has 3 frames"),
    "pages": (lambda: animation("TIFF"), "has 3 frames"),
    "large": (lambda: bomb(9000), "9000 x 9000 pixels, more than 67108864"),
    "bomb": (lambda: bomb(40_000), "cannot be read: .*(pixels|bomb)"),
    "numbers": (lambda: encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32 bits"),
    "whole numbers": (lambda: encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "32 bits"),
    "a program": (postscript, "no image of a known format"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_picture_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    path = tmp_path / "photo.jpg"
    path.write_bytes(make())
    with pytest.raises(InvalidInput, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_limits_are_the_callers() -> None:
    with pytest.raises(InvalidInput, match="12 pixels, more than 90"):
        read_image(encoded(PICTURE), pixels=90)
    with pytest.raises(InvalidInput, match="nowhere.png cannot be read"):
        read_image("nowhere.png")


def test_pictures_behind_a_photograph_are_previews() -> None:
    first, second = Image.fromarray(pixels(0, 32)), Image.fromarray(pixels(1, 16))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    found = array(buffer.getvalue())
    assert found.shape == (32, 32, 3) and np.abs(found.astype(int) - pixels(0, 32)).mean() < 6
