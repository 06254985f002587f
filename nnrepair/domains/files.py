"""Find a data set on this machine, or download it once from its official source with a pinned hash.

The places are asked in this order: the folder named by the environment variable `NNREPAIR_DATA`, the user's cache
(`$XDG_CACHE_HOME/nnrepair`, usually `~/.cache/nnrepair`), and the resource's URL. Files in `NNREPAIR_DATA` are the
user's own and are used as they are; files in the cache must have the pinned hash.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath

import numpy as np

from nnrepair import archives
from nnrepair.errors import DataUnavailable, InvalidInput

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without any answer


@dataclass(frozen=True)
class Resource:
    """Name one file of a data set: where it lies in a data folder, and where it comes from.

    Args:
        path: Place inside a data folder, with forward slashes.
        url: Official source; None when the file cannot be downloaded.
        sha256: Hash of the file in hexadecimal digits. Pin this one wherever the source publishes it.
        md5: Hash for sources that publish nothing else: it finds damage, but does not stop a forger.

    >>> Resource("mnist/mnist.npz").path
    'mnist/mnist.npz'
    """

    path: str
    url: str | None = None
    sha256: str | None = None
    md5: str | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path)
        if not self.path or parts.is_absolute() or ".." in parts.parts:
            raise InvalidInput(f"Resource path {self.path!r} must stay inside the data folder: use a relative path.")
        if self.url is not None and not self.url.startswith(("https://", "http://")):
            raise InvalidInput(f"Resource URL {self.url!r} must start with https:// or http://.")
        if self.url is not None and self.sha256 is None and self.md5 is None:
            raise InvalidInput(f"Resource {self.path!r} has a URL but no hash: pin its sha256 (or md5).")


def cache_folder() -> Path:
    """Return the user's cache folder of this library; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nnrepair"


def find(path: str) -> Path | None:
    """Return where the file `path` lies on this machine (NNREPAIR_DATA first, then the cache), or None."""
    Resource(path)  # refuses paths that leave the folder
    return next((folder / path for folder in _local_folders() if (folder / path).is_file()), None)


def find_folder(path: str) -> Path | None:
    """Return where the folder `path` lies on this machine (NNREPAIR_DATA first, then the cache), or None."""
    Resource(path)
    return next((folder / path for folder in _local_folders() if (folder / path).is_dir()), None)


def locate(resource: Resource) -> Path:
    """Return the local path of a resource and download it into the cache when it is not here yet.

    Raises:
        DataUnavailable: The file is not on this machine and could not be fetched; the message says what would help.
        InvalidInput: A file of that name lies in the cache but does not have the pinned hash.
    """
    cached = cache_folder() / resource.path
    found = find(resource.path)
    if found is None:
        return _download(resource, cached)
    if found == cached:
        state = found.stat()
        wrong = _mismatch_once(resource, found, (state.st_size, state.st_mtime_ns, state.st_ino))
        if wrong is not None:
            raise InvalidInput(f"{found} is damaged or is another file: {wrong} Delete it and run again.")
    return found


def open_npz(path: Path) -> np.lib.npyio.NpzFile:
    """Open an npz file without unpickling anything, within the limits of `archives`.

    Raises:
        InvalidInput: it cannot be read, is damaged, or no npz file.
    """
    try:
        return archives.open_npz(path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error


def _local_folders() -> Iterator[Path]:
    folder = os.environ.get("NNREPAIR_DATA")
    if folder:
        if not Path(folder).is_dir():
            raise InvalidInput(f"NNREPAIR_DATA is {folder!r}, which is not a folder. Correct it or unset it.")
        yield Path(folder)
    yield cache_folder()


def _download(resource: Resource, target: Path) -> Path:
    if resource.url is None:
        raise DataUnavailable(
            f"{resource.path!r} was not found and has no download source. If you have it, name the folder that "
            f"holds it:\n  export NNREPAIR_DATA=/path/to/data   # then the file is $NNREPAIR_DATA/{resource.path}"
        )
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            part = Path(file.name)
            with urllib.request.urlopen(resource.url, timeout=_TIMEOUT) as response:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
        wrong = _mismatch(resource, part)
        if wrong is not None:
            raise DataUnavailable(f"The download of {resource.url} was cut short or was altered: {wrong} Try again.")
        os.replace(part, target)
    except (OSError, HTTPException) as error:
        if isinstance(error, DataUnavailable):
            raise
        raise DataUnavailable(_advice(resource, target, error)) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return target


@cache
def _mismatch_once(resource: Resource, path: Path, state: tuple[int, ...]) -> str | None:
    """Return what is wrong with a file, read once as long as it stays as it is: data sets have gigabytes."""
    return _mismatch(resource, path)


def _mismatch(resource: Resource, path: Path) -> str | None:
    for name in ("sha256", "md5"):
        expected: str | None = getattr(resource, name)
        if expected is not None:
            with path.open("rb") as file:
                given = hashlib.file_digest(file, partial(hashlib.new, name, usedforsecurity=False)).hexdigest()
            if given != expected.lower():
                return f"its {name} is {given}, expected {expected} ({path.stat().st_size} bytes)."
    return None


def _advice(resource: Resource, target: Path, error: Exception) -> str:
    return (
        f"{resource.path!r} was not found on this machine, and {resource.url} could not be fetched ({error}).\n"
        f"Either name a folder that holds it:\n"
        f"  export NNREPAIR_DATA=/path/to/data   # then the file is $NNREPAIR_DATA/{resource.path}\n"
        f"or download it where the network works, into the cache:\n"
        f"  mkdir -p '{target.parent}' && curl -L -o '{target}' '{resource.url}'"
    )
