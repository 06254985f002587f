"""What every command checks of its options before a long computation."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

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
