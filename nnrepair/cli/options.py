"""What every command reads and checks of its options before a long computation."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnrepair.errors import InvalidInput


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


def require_outputs(model: Path, *paths: Path) -> None:
    """Refuse what could not be written, before the long computation."""
    out = paths[0]
    if out.suffix not in (".onnx", ".pt2"):
        raise InvalidInput(
            f"--out {out.name}: a model is written as .onnx or .pt2, so the name must end in one of them."
        )
    require_places([model], paths)


def read_points(path: Path, option: str, *, labelled: bool) -> Any:
    """Read inputs and labels from an .npz file; inputs alone where labels may be left out and are."""
    wanted = "an .npz file with the arrays inputs and labels: numpy.savez(FILE, inputs=..., labels=...)"
    if not path.is_file():
        raise InvalidInput(f"{option}: there is no file {str(path)!r}. Expected {wanted}.")
    try:
        file = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InvalidInput(f"{option}: {path} holds a single array. Expected {wanted}.")
        missing = [name for name in ("inputs", "labels")[: 1 + labelled] if name not in file.files]
        if missing:
            found = ", ".join(file.files) or "no arrays"
            raise InvalidInput(f"{option}: {path} lacks {' and '.join(missing)}; it has {found}. Expected {wanted}.")
        inputs = torch.from_numpy(np.ascontiguousarray(file["inputs"]))
        if "labels" not in file.files:
            return inputs
        labels = np.ascontiguousarray(file["labels"])
        # torch has no arithmetic for numpy's unsigned types
        return inputs, torch.from_numpy(labels.astype(np.int64) if labels.dtype.kind == "u" else labels)
    except InvalidInput:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on a damaged file
        raise InvalidInput(
            f"{option}: {path} is no .npz file of plain numbers, or it is damaged. Expected {wanted}."
        ) from error
