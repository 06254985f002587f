"""What every command reads and checks of its options before a long computation."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnrepair.archives import open_npz
from nnrepair.errors import InvalidInput


def own_version() -> str:
    """Return the version of this package."""
    try:
        return version("nnrepair")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "(not installed)"


def require_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InvalidInput(
            f"--device {device} was asked for, but torch {torch.__version__} sees no such device here. "
            "Use --device cpu, or install a CUDA build of torch on a machine with an NVIDIA GPU."
        )


def require_places(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuse what could not be written, or would overwrite what is read."""
    inputs, outputs = list(inputs), list(outputs)
    for path in outputs:
        if not path.parent.is_dir():
            raise InvalidInput(f"There is no folder {str(path.parent)!r} to write {path.name!r} to.")
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder; give the name of a file.")
    places = [path.resolve() for path in (*inputs, *outputs)]
    if len(set(places)) < len(places):
        twice = next(path for path in places if places.count(path) > 1)
        raise InvalidInput(f"{twice.name!r} is named twice; each input and each output needs a file of its own.")


def read_points(path: Path, option: str, *, labelled: bool) -> Any:
    """Read inputs and labels from an .npz file; inputs alone where labels may be left out and are."""
    wanted = "an .npz file with the arrays inputs and labels: numpy.savez(FILE, inputs=..., labels=...)"
    if not path.is_file():
        raise InvalidInput(f"{option}: there is no file {str(path)!r}. Expected {wanted}.")
    try:
        with open_npz(path) as file:
            found = ", ".join(file.files) or "no arrays"
            arrays = {name: np.ascontiguousarray(file[name]) for name in ("inputs", "labels") if name in file.files}
        if "labels" in arrays and arrays["labels"].dtype.kind == "u":  # torch has no arithmetic for most of these
            arrays["labels"] = arrays["labels"].astype(np.int64)
        points = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # numpy, zipfile and torch raise many kinds on what is no array of numbers
        damaged = f"{path} is no .npz file of plain numbers, or it is damaged."
        reason = error if isinstance(error, InvalidInput) else damaged
        raise InvalidInput(f"{option}: {reason} Expected {wanted}.") from error
    missing = [name for name in ("inputs", "labels")[: 1 + labelled] if name not in points]
    if missing:
        raise InvalidInput(f"{option}: {path} lacks {' and '.join(missing)}; it has {found}. Expected {wanted}.")
    return (points["inputs"], points["labels"]) if "labels" in points else points["inputs"]


def as_columns(table: list[list[str]]) -> list[str]:
    """Return the lines of a table of words, header first, with a rule under it."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [table[0], ["-" * width for width in widths], *table[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
