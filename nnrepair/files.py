"""Files: a kill in the middle of writing leaves the old file or the new one, and nothing untrusted is unpickled."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnrepair.archives import open_npz
from nnrepair.errors import InvalidInput

T = TypeVar("T")


def as_path(given: Any, what: str) -> Path:
    """Return where a file is.

    Args:
        given: a path.
        what: what messages call it.

    Raises:
        InvalidInput: it is something else.
    """
    if not isinstance(given, str | os.PathLike):
        raise InvalidInput(f"{what}: expected a path, a str or pathlib.Path, got {type(given).__name__}.")
    return Path(os.fsdecode(given))


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write `content` to `path` through a temporary file beside it; return the path.

    Raises:
        InvalidInput: `path` is a folder, a device, a pipe or a circle of links.
        OSError: it cannot be written; what was there before is there still, and nothing else.
    """
    with replacing(path) as part:
        part.write_bytes(content)
    return Path(path)


@contextmanager
def replacing(path: str | Path, ending: str = ".part") -> Iterator[Path]:
    """Yield a temporary file beside `path`, whose name has this ending, that takes the name of `path` at the end.

    When anything fails, the file that was there before is there still, and the temporary one is gone. Raises what
    `write_atomically` does.
    """
    target, part = destination(path), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A long name made longer would be refused, so the temporary one is short.
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:32]}.", suffix=ending)
        part = Path(name)
        os.close(handle)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        os.replace(part, target)
    except BaseException as error:
        if part is not None:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and _is_about(error, target):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _is_about(error: OSError, target: Path) -> bool:
    """Whether an error is about the temporary file of `target`, which nobody who reads a message knows, or no file."""
    return error.filename is None or str(error.filename).startswith(str(target.parent / f".{target.name[:32]}."))


def destination(path: str | Path) -> Path:
    """Return the file that is written when `path` is: where its links lead.

    Raises:
        InvalidInput: that is something else than a file; replacing a device would break the machine.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidInput(f"A file is named by a text or a pathlib.Path, got {type(path).__name__}.")
    path = Path(path)
    try:
        target = path.resolve()
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    except (OSError, RuntimeError, ValueError) as error:  # a RuntimeError is what Python < 3.13 says of circles
        raise InvalidInput(f"{str(path)!r} cannot be written: {_reason(error)}. Give another name.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise InvalidInput(f"{path} is {kind}; give the name of a file.")
    return target


def require_writable(path: str | Path) -> None:
    """Refuse, before a long computation, what could not be written at its end. Nothing is made or changed.

    Raises:
        InvalidInput: the message says why, and what to do.
    """
    folder = destination(path).parent
    while not os.path.lexists(folder):  # it is made when the file is written
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        why, full = f"{folder}: {_reason(error)}", error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free space there, or give another place." if full else "Give another place."
        raise InvalidInput(f"{path} cannot be written ({why}). {advice}") from error


@dataclass(frozen=True)
class NotWritten:
    """Why something was not written where it should be, and where it is `instead`; None: nowhere."""

    why: str
    instead: Path | None

    def __str__(self) -> str:
        if self.instead is None:
            return f"{self.why}. Free space, and run again"
        return f"{self.why}; it was saved as {self.instead} instead"


def write_or_rescue(path: str | Path, write: Callable[[Path], object]) -> NotWritten | None:
    """Call `write(path)`; where the file or folder cannot be written there, write it to a temporary folder.

    For the end of a long computation, whose result must not be lost. Returns None when it was written.
    """
    path = Path(path)
    try:
        write(path)
        return None
    except (OSError, InvalidInput) as error:
        why = f"{path} could not be written ({_reason(error)})"
    try:
        folder = Path(tempfile.mkdtemp(prefix="nnrepair-"))
        other = folder / f"{path.stem[:64]}{path.suffix}"
        try:
            write(other)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        return NotWritten(f"{why}, and neither could a copy in {tempfile.gettempdir()} ({_reason(error)})", None)
    return NotWritten(why, other)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".")


def plain(value: Any) -> Any:
    """Return what JSON can hold; an infinity and what is no number become null, other objects their text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def write_arrays(path: str | Path, format: str, meta: dict[str, Any], arrays: dict[str, Any]) -> Path:
    """Write arrays, and `meta` as JSON beside them, to one .npz file, atomically; return the path."""
    buffer = io.BytesIO()
    packed = np.frombuffer(json.dumps({"format": format} | meta).encode(), np.uint8)
    np.savez_compressed(buffer, meta=packed, **arrays)
    return write_atomically(path, buffer.getvalue())


def read_arrays(path: str | Path, format: str, what: str, make: Callable[[dict[str, Any], dict[str, Any]], T]) -> T:
    """Return `make(meta, arrays)` for what `write_arrays` wrote in the same format.

    Raises:
        InvalidInput: the file is no `what`, damaged, or larger than the limits of `archives`.
    """
    try:
        with open_npz(path) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta.pop("format") != format:
            raise ValueError("another format")
        return make(meta, arrays)
    except FileNotFoundError:
        raise
    except Exception as error:  # np.load raises many kinds on a damaged file
        raise InvalidInput(f"{path} is not a {what}, or it is damaged: {error}") from error
