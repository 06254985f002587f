"""Read the files that the checkers are given, within stated limits, whatever they hold or announce."""

from __future__ import annotations

import gzip
import io
import json
import math
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

ARCHIVE = 2**27  # bytes of an .npz file, and of all that it unpacks to
MEMBERS = 32  # arrays in it
META = 2**20  # bytes of a certificate's meta data
LONGEST = 5000  # letters of a message
NUMBERS = {np.dtype(kind) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}


class Unreadable(ValueError):
    """A file is damaged, too large, or holds more than the checkers understand."""


def content(path: Path, most: int) -> bytes:
    """Give the bytes of a file that has at most so many."""
    try:
        if not path.is_file():
            raise Unreadable(f"{path.name} is not there, or is no ordinary file")
        size = path.stat().st_size
        with path.open("rb") as stream:
            data = stream.read(min(size, most) + 1)
    except OSError as error:
        raise Unreadable(f"{path.name}: {error}") from error
    if len(data) > most:
        raise Unreadable(f"{path.name} has {max(size, len(data))} bytes; at most {most} are read")
    return data


def unpacked(data: bytes, most: int) -> bytes:
    """Give the bytes of a file, which may be gzipped, of at most so many."""
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                data = stream.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise Unreadable(f"it is gzipped, but damaged: {error}") from error
    if len(data) > most:
        raise Unreadable(f"it unpacks to more than {most} bytes, which are read at most")
    return data


def text(data: bytes, most: int) -> str:
    """Give the text of a file, which may be gzipped, of at most so many bytes."""
    return unpacked(data, most).decode("utf-8-sig")


def meta(array: np.ndarray) -> dict[str, Any]:
    """Give the meta data of a certificate: one JSON object, no key of which is there twice."""
    if array.nbytes > META:
        raise Unreadable(f"the meta data have {array.nbytes} bytes; at most {META} are read")
    given = json.loads(array.tobytes(), object_pairs_hook=_once)
    if not isinstance(given, dict):
        raise Unreadable("the meta data are no JSON object")
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise Unreadable("a key of the meta data is there twice")
    return dict(pairs)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Give the arrays of an .npz file: numbers only, nothing unpickled, no more than its directory announces."""
    data = content(path, ARCHIVE)
    try:
        if data.count(b"PK\x01\x02") > MEMBERS:  # the mark of an entry: too many would fill the memory by themselves
            raise Unreadable(f"more than {MEMBERS} arrays")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            sizes = [member.file_size for member in archive.infolist()]
            if len(members) != len(sizes):
                raise Unreadable("two arrays of one name")
            if sum(sizes) > ARCHIVE:
                raise Unreadable(f"it unpacks to {sum(sizes)} bytes; at most {ARCHIVE} are read")
            return {name: _array(name, _unpacked(archive, member)) for name, member in members.items()}
    except Exception as error:  # damaged archives raise many kinds
        reason = error if isinstance(error, Unreadable) else f"{type(error).__name__}: {error}"
        raise Unreadable(f"{path.name} cannot be read: {reason}") from error


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unreadable(f"{member.filename!a} is packed by method {member.compress_type}; stored or deflated is read")
    with archive.open(member) as stream:
        raw = stream.read(member.file_size + 1)
    if len(raw) != member.file_size:
        raise Unreadable(f"{member.filename!a} has {len(raw)} bytes, announced were {member.file_size}")
    return raw


def _array(name: str, raw: bytes) -> np.ndarray:
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise Unreadable(f"{name!a} is of .npy version {version}; 1.0 and 2.0 are read")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype not in NUMBERS or not dtype.isnative:
        raise Unreadable(f"{name!a} has type {str(dtype)[:80]!a}; float16 to float64 and integers are read, no pickle")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw) - stream.tell():
        raise Unreadable(f"{name!a} has {len(raw) - stream.tell()} bytes, which is not shape {shape} of {dtype}")
    return np.ndarray(shape, dtype, raw, stream.tell(), order="F" if fortran else "C")


def say(text: str) -> None:
    """Print, whatever a file has put into the text, whatever the terminal can show, and whether anybody listens."""
    if sys.stdout is None:
        return
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    coding = sys.stdout.encoding or "ascii"
    try:
        print(text.encode(coding, "backslashreplace").decode(coding), flush=True)
    except OSError:  # the exit code still says it
        sys.stdout = None  # type: ignore[assignment]
