"""Which numbers of a network a repair changed, as a heat map of each layer. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnrepair.pages.pictures import png
from nnrepair.plot.pixels import Array, heat
from nnrepair.results.result import RepairResult

#: What a part of a page shows, by the names that its template gives it.
Part = dict[str, Any]


def maps(result: RepairResult, most: int) -> Part:
    """Return heat maps of changed layers, at most so many, and the names of the layers that are not shown."""
    changes = _changes(result)
    shown = [_map(name, matrix, bias) for name, matrix, bias in changes[:most]]
    return {"shown": shown, "more": [name for name, _, _ in changes[most:]]}


def _map(name: str, matrix: Array, bias: bool) -> Part:
    rows, columns = matrix.shape
    across, along = ("", "entry") if rows == 1 and not bias else ("output", "input")
    shape = f"aspect-ratio:{columns}/{rows}" if rows * 8 > columns else "height:8rem"
    return {
        "name": name,
        "changed": int((matrix != 0).sum()),
        "size": matrix.size,
        "largest": float(np.abs(matrix).max()) or 1.0,
        "across": across,
        "along": along,
        "marks": range(rows) if rows <= 16 else (0, rows - 1),
        "last": columns - 1 - bias,
        "bias": bias,
        "shape": f"{shape};min-height:{0.9 * min(rows, 16):.1f}rem",  # room for the marks beside it
        "image": png(heat(matrix)),
    }


def _changes(result: RepairResult) -> list[tuple[str, Array, bool]]:
    """Return (name, change as a matrix with the bias as its last column, whether it has one) of each changed layer."""
    patch, model = result.patch, result.model
    if patch is not None:
        named = {name: (new.double() - patch.old[name].double()).cpu().numpy() for name, new in patch.new.items()}
    elif isinstance(getattr(model, "change", None), dict):
        change: Any = model.change
        named = {name: delta.double().cpu().numpy() for name, delta in change.items()}
    else:
        return []
    found = []
    for name, delta in named.items():
        layer, _, part = name.rpartition(".")
        if part == "bias" and f"{layer}.weight" in named:
            continue
        matrix = delta.reshape(len(delta), -1) if delta.ndim > 1 else delta.reshape(1, -1)
        bias = named.get(f"{layer}.bias") if part == "weight" else None
        if bias is not None and len(bias) == len(matrix):
            matrix = np.column_stack([matrix, bias])
        found.append((layer if bias is not None else name, matrix, bias is not None))
    return found
