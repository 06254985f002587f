"""Tensors and texts as one file that runs no code when it is read."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from nnrepair.errors import PatchError, printable
from nnrepair.files import as_path, write_atomically
from nnrepair.fingerprint import digest_of_state


def write_tensors(
    path: str | Path, form: str, tensors: Mapping[str, Tensor], texts: Mapping[str, str], what: str
) -> Path:
    """Write tensors and texts as one safetensors file, atomically; the same content is the same bytes.

    Raises:
        PatchError: see `packed_tensors`.
        OSError: it cannot be written; a file that was there before is there still.
    """
    return write_atomically(path, packed_tensors(form, tensors, texts, what))


def packed_tensors(form: str, tensors: Mapping[str, Tensor], texts: Mapping[str, str], what: str) -> bytes:
    """Return tensors and texts as the bytes of a safetensors file.

    Args:
        form: the name of the format.
        tensors: by name.
        texts: by name; the last one may hold anything, the others no line breaks.
        what: what messages call it.

    Raises:
        PatchError: tensors that such a file cannot hold.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        metadata = {"format": form, **texts, "sha256": _checksum(form, stored, list(texts.values()))}
        return _ordered(safetensors.torch.save(stored, metadata))
    except PatchError:
        raise
    except Exception as error:  # safetensors raises many kinds for dtypes, layouts and names that it does not know
        raise PatchError(f"The {what} cannot be stored as safetensors: {type(error).__name__}: {error}") from error


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Name what goes wrong while a file is read: whatever a damaged or hostile one raises becomes a `PatchError`.

    Raises:
        FileNotFoundError: no such file.
    """
    path = as_path(path, what)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No {what} at {path}.") from error
    except OSError as error:
        raise PatchError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode):
        raise PatchError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a device or a pipe'}, not a {what} file.")
    try:
        yield
    except PatchError as error:
        raise PatchError(f"{path} is damaged or not a {what}: {error}") from error
    except Exception as error:  # safetensors, torch and json raise many kinds on a damaged file
        raise PatchError(f"{path} is truncated or not a {what} file: {printable(str(error))}") from error


def read_tensors(
    path: str | Path, what: str, forms: Mapping[str, Sequence[str]], unchecked: Collection[str] = ()
) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Return the format, the tensors and the texts of a file that `write_tensors` wrote; call it in `reading`.

    Args:
        path: the file.
        what: what messages call it.
        forms: the names of the formats that will do, each with the names of its texts, in order.
        unchecked: formats of which there are files without a checksum.
    """
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    form = metadata.get("format", "")
    if form not in forms:
        raise PatchError(f"it is a safetensors file, but not a {what} written by nnrepair.")
    texts = {name: metadata[name] for name in forms[form]}
    checksum = metadata.get("sha256")
    if (checksum is not None or form not in unchecked) and checksum != _checksum(form, tensors, list(texts.values())):
        raise PatchError("its content does not have the checksum that is stored in it.")
    return form, tensors, texts


def read_json(text: str) -> Any:
    """Return what a text holds as JSON; NaN and infinity are none."""
    return json.loads(text, parse_constant=_no_number)


def _ordered(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in alphabetical order; the library's order is another each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _checksum(form: str, tensors: Mapping[str, Tensor], texts: Sequence[str]) -> str:
    lines = [form, *texts[:-1], digest_of_state(tensors), *texts[-1:]]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")
