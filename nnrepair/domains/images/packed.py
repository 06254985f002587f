"""Members of archives, read where they lie: nothing is unpacked to disk, so no name in an archive can lead anywhere."""

from __future__ import annotations

import io
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from nnrepair.domains.images.decoding import read_image
from nnrepair.errors import InvalidInput, first_line

#: Bytes of a member, at most, that is read whole.
MEMBER = 2**28


@contextmanager
def whole(path: Path, what: str) -> Iterator[None]:
    """Turn what reading a damaged archive raises inside into one error that names it.

    Args:
        path: the archive.
        what: what it should be, such as "CIFAR-10's binary version".
    """
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:  # readers of archives and arrays raise many kinds
        reason = first_line(error).strip("'\":")
        raise InvalidInput(f"{path} is not a whole copy of {what} ({reason}). Fetch it again.") from error


def read_members(path: Path, names: Sequence[str], what: str, most: int = MEMBER) -> dict[str, bytes]:
    """Return some members of a .tar or .tar.gz file.

    Raises:
        InvalidInput: it is damaged, lacks one of them, or one has more than `most` bytes.
    """
    found: dict[str, bytes] = {}
    with whole(path, what), tarfile.open(path) as archive:
        for member in archive:
            if member.name in names and member.isreg():
                if member.size > most:
                    raise ValueError(f"{member.name} has {member.size} bytes, more than {most}")
                stream = archive.extractfile(member)
                found[member.name] = b"" if stream is None else stream.read()
        while archive.fileobj is not None and archive.fileobj.read(2**20):  # to the end, where a checksum is
            pass
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    return found


def read_rows(path: Path, name: str, what: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Return rows of an array (n, ...) of whole numbers, a .npy member of a .tar or .zip file.

    Args:
        path: the archive.
        name: of the member.
        what: what the archive is.
        start, stop: which rows; of a .tar file no others are read.

    Raises:
        InvalidInput: the archive is damaged, has no such member, or this one holds fewer rows, or no such numbers.
    """
    with whole(path, what):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(name) as member:
                return _rows(member, archive.getinfo(name).file_size, name, start, stop)
        with tarfile.open(path) as tar:
            stream = tar.extractfile(name)
            if stream is None:
                raise ValueError(f"{name} is no file")
            return _rows(stream, tar.getmember(name).size, name, start, stop)


def _rows(stream: IO[bytes], size: int, name: str, start: int, stop: int | None) -> npt.NDArray[Any]:
    head = io.BytesIO(stream.read(2**16))
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is in version {version} of numpy's format, which plain numbers do not need")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read(head)
    if dtype.kind not in "iu" or by_column or not shape:
        raise ValueError(f"{name} holds {dtype}{shape}, not rows of whole numbers")
    row = math.prod(shape[1:]) * dtype.itemsize
    if size - head.tell() != shape[0] * row or min(shape) < 0:
        raise ValueError(f"{name} has {size - head.tell()} bytes of numbers, which are not {dtype}{shape}")
    stop = shape[0] if stop is None else stop
    if not 0 <= start < stop <= shape[0]:
        raise ValueError(f"{name} has {shape[0]} rows; {start} to {stop} are needed")
    if (stop - start) * row > MEMBER:
        raise ValueError(f"{(stop - start) * row} bytes of {name} were asked for, more than {MEMBER}")
    stream.seek(head.tell() + start * row)
    raw = stream.read((stop - start) * row)
    if len(raw) < (stop - start) * row:
        raise ValueError(f"{name} ends before its last row")
    return np.frombuffer(raw, dtype).reshape(stop - start, *shape[1:])


class TarImages(Dataset[Any]):
    """The images in a .tar file, read from it when they are needed: items (picture, label).

    Args:
        path: the archive, not compressed.
        label: makes a label of a member's name, or None where it is no image of the data set.
        transform: makes a tensor of a picture.
        what: what the archive is, for messages.
        upright: see `read_image`.

    Raises:
        InvalidInput: it is damaged, cut short, compressed, or holds no images.
    """

    def __init__(
        self,
        path: Path,
        label: Callable[[PurePosixPath], int | None],
        transform: Callable[[Any], Any] | None = None,
        what: str = "a data set",
        *,
        upright: bool = False,
    ) -> None:
        self.path, self.transform, self.upright = path, transform, upright
        found = list[tuple[str, int]]()
        places = list[tuple[int, int]]()
        with whole(path, what):
            end = path.stat().st_size
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isreg() and not member.issparse():
                        if member.offset_data + member.size > end:
                            raise ValueError(f"it ends within {member.name}")
                        number = label(PurePosixPath(member.name))
                        if number is not None:
                            found.append((member.name, number))
                            places.append((member.offset_data, member.size))
            with path.open("rb") as file:  # without its end, an archive may have been cut between two members
                file.seek(max(0, end - 512))
                if any(file.read()):
                    raise ValueError("it has no end")
            if not found:
                raise ValueError("it holds none of its images")
        self.samples, self._places = found, places

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        name, label = self.samples[item]
        start, size = self._places[item]
        with self.path.open("rb") as file:
            file.seek(start)
            raw = file.read(size)
        try:
            picture: Any = read_image(raw, upright=self.upright)
        except InvalidInput as error:
            raise InvalidInput(f"{self.path}, {name}: {error}") from error
        return (picture if self.transform is None else self.transform(picture)), label
