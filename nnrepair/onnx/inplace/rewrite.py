"""An ONNX file written again with other numbers in it, and the files beside it that hold its weights."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from nnrepair.errors import InvalidInput
from nnrepair.extras import needed
from nnrepair.files import replacing
from nnrepair.onnx.external import tensors
from nnrepair.onnx.inplace.splice import spliced
from nnrepair.onnx.reader import content

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    from onnx import ModelProto


def rewrite(
    source: Path,
    part: Path,
    target: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    ways: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Write an ONNX file with other numbers in some of its tensors; every other byte stays.

    Where the target's name ends in .gz, it is compressed, and the bytes within stay. Weights that lie in files beside
    it stay there where the new file goes to the same folder, and are copied with it otherwise; those that change come
    into the file itself.

    Args:
        source: the file as it is.
        part: where to write, in the folder of `target`.
        target: the name that the file will get.
        arrays, ways: see `spliced`.

    Raises:
        InvalidInput: another file lies where its data would go.
        OSError: it cannot be written.
    """
    before = content(source)
    if source.parent.resolve() != target.parent.resolve():
        for name in dict.fromkeys(_external(ModelProto.FromString(before))):
            _copy(source.parent / name, target.parent / name, source.name)
    after = spliced(before, arrays, ways)
    if target.suffix == ".gz" and after == before and source.read_bytes() != before:
        part.write_bytes(source.read_bytes())  # nothing changed, however it was compressed
    else:
        part.write_bytes(gzip.compress(after, mtime=0) if target.suffix == ".gz" else after)


def _external(proto: ModelProto) -> list[str]:
    """Return the files beside a model that hold weights of it."""
    return [entry.value for tensor in tensors(proto) for entry in tensor.external_data if entry.key == "location"]


def _copy(source: Path, target: Path, model: str) -> None:
    """Copy a file of weights, where it is not there already."""
    if not target.exists():
        with replacing(target) as part:
            shutil.copyfile(source, part)
    elif source.stat().st_size != target.stat().st_size or _digest(source) != _digest(target):
        raise InvalidInput(f"Weights of {model} belong into {target}, where another file lies. Choose another folder.")


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
