"""Open untrusted .npz files: numbers only, nothing unpickled, within stated limits."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from nnrepair.errors import InvalidInput

#: Bytes that the arrays of a file may take beyond the size of the file, and how many arrays it may have.
MAX_GROWTH, MAX_ARRAYS = 2**30, 1000
_MARK = b"PK\x01\x02"  # of an entry in the directory


def open_npz(path: str | Path) -> np.lib.npyio.NpzFile:
    """Open an .npz file after comparing what its directory and the headers of its arrays say.

    What is wrong behind the headers (a damaged array) is found when that array is read.

    Raises:
        InvalidInput: it is damaged, no such file, or unpacks to more than the limits of this module.
        OSError: it cannot be opened.
    """
    stream = Path(path).open("rb")  # noqa: SIM115 (the answer closes it)
    try:
        _require_plain(stream)
        return np.lib.npyio.NpzFile(stream, own_fid=True, allow_pickle=False)
    except BaseException as error:  # zipfile and numpy raise many kinds
        stream.close()
        if not isinstance(error, Exception):
            raise
        reason = str(error).rstrip(".")
        raise InvalidInput(f"{path} is no .npz file of plain numbers, or it is damaged: {reason}.") from error


def _require_plain(stream: IO[bytes]) -> None:
    if stream.read(6) == b"\x93NUMPY":
        raise ValueError("it holds a single array")
    size = stream.seek(0, io.SEEK_END)
    if _marks(stream) > MAX_ARRAYS:
        raise ValueError(f"it holds more than {MAX_ARRAYS} arrays, which are read at most")
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        names = {entry.filename.removesuffix(".npy") for entry in entries}
        if len(names) < len(entries):
            raise ValueError("it holds two arrays of one name")
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > size + MAX_GROWTH:
            raise ValueError(
                f"it unpacks to {unpacked} bytes; at most {MAX_GROWTH} more than its own {size} are read. Split it, or "
                "write it with numpy.savez, which does not pack"
            )
        for entry in entries:
            _require_numbers(archive, entry)


def _marks(stream: IO[bytes]) -> int:
    """Count what may be entries of the directory: too many would fill the memory by themselves."""
    stream.seek(0)
    count, before = 0, b""
    while chunk := stream.read(2**20):
        count += (before + chunk).count(_MARK)
        before = chunk[-3:]
    return count


def _require_numbers(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename!r} is packed in a way that numpy does not use")
    with archive.open(entry) as packed:
        stream = io.BytesIO(packed.read(2**16 + 16))  # longer than any header
    try:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # what numpy says then is advice to unpickle
        raise ValueError(f"{entry.filename!r} has no header of an array, or a damaged one") from error
    if version != (1, 0):
        raise ValueError(f"{entry.filename!r} is in another version of numpy's format, which plain numbers do not need")
    there = entry.file_size - stream.tell()
    if min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise ValueError(f"{entry.filename!r} holds {dtype}{shape}, which is no array of numbers")
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != there:  # numpy refuses objects when they are read
        raise ValueError(f"{entry.filename!r} has {there} bytes, which are not {dtype}{shape}")
