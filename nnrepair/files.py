"""Files: a kill in the middle of writing leaves the old file or the new one, and nothing untrusted is unpickled."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnrepair.archives import open_npz
from nnrepair.errors import InvalidInput

T = TypeVar("T")


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write `content` to `path` through a temporary file beside it; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


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
