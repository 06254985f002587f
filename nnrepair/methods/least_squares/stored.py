"""Second moments of layers' keys in a file, with the fingerprint of the network that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from nnrepair.fingerprint import fingerprint
from nnrepair.spec.state import read_tensors, reading, write_tensors

FORM, WHAT = "nnrepair-moments-1", "file of second moments"


def read(path: Path, model: nn.Module) -> dict[str, Tensor] | None:
    """Return the moments (inp, inp) that a file has, by the names of the layers; None if they are of another network.

    Raises:
        PatchError: the file is truncated, damaged, or something else.
    """
    if not path.exists():
        return {}
    with reading(path, WHAT):
        _, moments, texts = read_tensors(path, WHAT, {FORM: ["model"]})
    return moments if texts["model"] == fingerprint(model) else None


def write(path: Path, model: nn.Module, moments: Mapping[str, Tensor]) -> None:
    """Write moments by the names of the layers, atomically.

    Raises:
        OSError: the file cannot be written; what was there before is there still.
    """
    write_tensors(path, FORM, moments, {"model": fingerprint(model)}, WHAT)
