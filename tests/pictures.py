"""Small image files, folders and archives, as data sets have them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def pixels(seed: int, side: int = 16) -> NDArray[np.uint8]:
    """Return a smooth picture (side, side, 3), which JPEG changes little."""
    rough = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(rough, size=(side, side), mode="bilinear")
    return smooth[0].permute(1, 2, 0).mul(255).byte().numpy()


def encoded(picture: Any, form: str = "PNG", **options: Any) -> bytes:
    """Return a pillow image, or an array, as a file."""
    from PIL import Image

    buffer = io.BytesIO()
    (picture if hasattr(picture, "save") else Image.fromarray(picture)).save(buffer, form, **options)
    return buffer.getvalue()


def folder(root: Path, classes: dict[str, int], side: int = 16) -> Path:
    """Write so many pictures of each class, as torchvision's ImageFolder reads them."""
    seed = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            (root / name / f"{k}.png").write_bytes(encoded(pixels(seed, side)))
            seed += 1
    return root


def tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
