"""What every command reads and checks of its options before a long computation."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnrepair.archives import open_npz
from nnrepair.cli.parser import ERROR
from nnrepair.errors import InvalidInput, NNRepairError, printable
from nnrepair.files import NotWritten, destination, require_writable, write_or_rescue
from nnrepair.results.patch import Patch
from nnrepair.verify.suite.stored import external_data


def require_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InvalidInput(
            f"--device {device} was asked for, but torch {torch.__version__} sees no such device here. "
            "Use --device cpu, or install a CUDA build of torch on a machine with an NVIDIA GPU."
        )


def require_places(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuse what could not be written, or would overwrite what is read."""
    outputs = list(outputs)
    for path in outputs:
        destination(path)
        if not path.parent.is_dir():
            raise InvalidInput(f"There is no folder {str(path.parent)!r} to write {path.name!r} to.")
        require_writable(path)
    inputs = list(inputs)
    beside = {path for each in inputs for path in _beside(each)}
    places = [os.path.realpath(path) for path in (*inputs, *beside, *outputs)]
    twice = next((path for path in places if places.count(path) > 1), None)
    if twice is not None:
        raise InvalidInput(
            f"{os.path.basename(twice)!r} is named twice; each input and each output needs a file of its own."
        )


def _beside(path: Path) -> list[Path]:
    """Return the files beside a network in which it keeps weights."""
    with suppress(Exception):  # it is read, and refused, in a moment
        return [path.parent / name for name in external_data(path)] if path.name.endswith((".onnx", ".onnx.gz")) else []
    return []


class Outputs:
    """The files that a command writes at its end. Where a disk is full they are saved elsewhere, and a line says where.

    Attributes:
        lines: what to tell on stdout, and `problems`: on stderr.
    """

    def __init__(self, *lines: str) -> None:
        self.lines, self.problems = list(lines), list[str]()

    def write(self, path: Path, what: str, write: Callable[[Path], object]) -> Path | None:
        """Call `write(path)` and tell about it; return where the file is, None where it is nowhere."""
        failed: NotWritten | None = None
        try:
            failed = write_or_rescue(path, write)
            self.problems += [] if failed is None else [str(failed)]
        except NNRepairError as error:  # for another reason than a full disk
            failed = NotWritten(str(error), None)
            self.problems.append(failed.why)
        if failed is not None:
            return failed.instead
        self.lines.append(f"wrote {path} ({what})")
        return path

    def rescue(self, patch: Patch, model: Path) -> None:
        """Save the change alone to a temporary folder, where the repaired model could not be written."""
        try:
            path = patch.save(Path(tempfile.mkdtemp(prefix="nnrepair-")) / "patch.safetensors")
        except (OSError, NNRepairError):
            return
        self.problems.append(f"The change alone was saved: nnrepair patch apply {path} {model} --out FILE")

    def tell(self, code: int, quiet: bool) -> int:
        """Print everything and return the exit code: `code`, or ERROR where something was not written."""
        if not quiet:
            print("\n".join(self.lines))
        for problem in self.problems:
            print(f"nnrepair: error: {printable(' '.join(problem.split())).rstrip('.')}.", file=sys.stderr)
        return ERROR if self.problems else code


def require_outputs(inputs: Sequence[Path], *paths: Path) -> None:
    """Refuse what could not be written or would overwrite what is read, before the long computation."""
    out = paths[0]
    if not out.name.endswith((".onnx", ".onnx.gz", ".pt2")):
        raise InvalidInput(
            f"--out {out.name}: a model is written as .onnx or .pt2: the name must end in that, or in .onnx.gz."
        )
    require_places(inputs, paths)


def read_points(path: Path, option: str, *, labelled: bool) -> Any:
    """Read inputs and labels from an .npz file; inputs alone where labels may be left out and are.

    Inputs are a tensor, or a dictionary of them where the file names the arguments of a model with several.
    """
    wanted = "an .npz file with the arrays inputs and labels: numpy.savez(FILE, inputs=..., labels=...)"
    if not path.is_file():
        raise InvalidInput(f"{option}: there is no file {str(path)!r}. Expected {wanted}.")
    try:
        with open_npz(path) as file:
            found = ", ".join(file.files) or "no arrays"
            arrays = {name: np.ascontiguousarray(file[name]) for name in _wanted(file.files)}
        if "labels" in arrays and arrays["labels"].dtype.kind == "u":  # torch has no arithmetic for most of these
            arrays["labels"] = arrays["labels"].astype(np.int64)
        points = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # numpy, zipfile and torch raise many kinds on what is no array of numbers
        damaged = f"{path} is no .npz file of plain numbers, or it is damaged."
        reason = error if isinstance(error, InvalidInput) else damaged
        raise InvalidInput(f"{option}: {reason} Expected {wanted}.") from error
    missing = [name for name in ("inputs", "labels")[: 1 + labelled] if name not in points]
    if points.keys() - {"labels"} and ("labels" in points or not labelled):  # a model's arguments by name
        missing = [name for name in missing if name != "inputs"]
    if missing:
        raise InvalidInput(f"{option}: {path} lacks {' and '.join(missing)}; it has {found}. Expected {wanted}.")
    inputs = points["inputs"] if "inputs" in points else {n: part for n, part in points.items() if n != "labels"}
    return (inputs, points["labels"]) if "labels" in points else inputs


def _wanted(names: Sequence[str]) -> list[str]:
    """Return the arrays to read: labels, and inputs or, without these, all others: a model's arguments by name."""
    return [name for name in names if name == "labels" or name == "inputs" or "inputs" not in names]


def constants(given: Sequence[str]) -> dict[str, list[float]]:
    """Return inputs that are constants, given as NAME=NUMBER or NAME=NUMBER,NUMBER."""
    found = dict[str, list[float]]()
    for text in given:
        name, _, numbers = text.partition("=")
        try:
            found[name] = [int(one) if one.strip().lstrip("-").isdigit() else float(one) for one in numbers.split(",")]
        except ValueError:
            raise InvalidInput(f"--fixed {text!r}: expected NAME=NUMBER, such as sr=16000.") from None
    return found
