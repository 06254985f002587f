"""Numbers in any form that callers give them, as dense tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnrepair.errors import InvalidInput, first_line


def dense(value: Any, what: str, expected: str, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor of plain numbers without a history, from a tensor, array, data frame or list.

    Args:
        value: what was given.
        what, expected: how the message calls it, and what it should have been.
        dtype: of the tensor; by default what was given decides.

    Raises:
        InvalidInput: it holds no such numbers, or is a tensor without them (meta), sparse, nested or of eight bits.
    """
    advice = " Stack the items of a data set: torch.stack([x for x, _ in items])." if _holds_items(value) else ""
    try:
        found = value if isinstance(value, Tensor) else _converted(value, dtype)
    except Exception as error:  # a caller's own object may raise anything
        given = f"{type(value).__name__}" + (f" of {value.dtype}" if isinstance(value, np.ndarray) else "")
        reason = f" ({first_line(error)})" if isinstance(value, list | tuple | np.ndarray) else ""
        if _is_ragged(value):
            advice = (
                " Rows are of different lengths: pad them to one, with a mask, as by tokenizer(texts, padding=True, "
                'return_tensors="pt").'
            )
        if hasattr(value, "dtypes") and hasattr(value, "columns"):
            advice = f" Its columns must be numbers: {_not_numbers(value)}."
        raise InvalidInput(f"{what} must be {expected}, got {given}{reason}.{advice}") from None
    if found.layout != torch.strided or found.is_nested:
        raise InvalidInput(f"{what} are {'nested' if found.is_nested else 'sparse'}; give a dense tensor (to_dense()).")
    if found.is_meta or found.is_quantized or (found.dtype.is_floating_point and found.element_size() < 2):
        kind = "on the meta device, without numbers" if found.is_meta else f"{found.dtype}"
        raise InvalidInput(f"{what} are {kind}; give a tensor of plain numbers.")
    found = found.detach() if found.requires_grad else found
    return found if dtype is None else found.to(dtype)


def _converted(value: Any, dtype: torch.dtype | None) -> Tensor:
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor | np.ndarray) for part in value):
        return torch.stack([dense(part, "parts", "tensors or arrays", dtype) for part in value])
    if not hasattr(value, "__array__"):
        return torch.as_tensor(value, dtype=dtype)
    if np.ma.is_masked(value):
        raise ValueError("some of its numbers are masked: leave their rows out, or fill them, array.filled(0)")
    array = np.asarray(value)
    kind = np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, kind, order="C"))  # a copy: torch takes no array that must not be written


def _is_ragged(value: Any) -> bool:
    sized = isinstance(value, list | tuple) and all(isinstance(row, list | tuple | np.ndarray) for row in value)
    return sized and len({len(row) for row in value}) > 1


def _not_numbers(frame: Any) -> str:
    """Name the columns of a data frame that hold no numbers."""
    wrong = [f"{name!r} ({kind})" for name, kind in frame.dtypes.items() if getattr(kind, "kind", "O") not in "biuf"]
    return f"{', '.join(wrong[:5])} {'holds' if len(wrong) == 1 else 'hold'} others"


def _holds_items(value: Any) -> bool:
    return isinstance(value, Dataset | DataLoader | Iterator)


def refuse_names(labels: Any, what: str) -> None:
    """Refuse names of classes, with a way to numbers."""
    if not isinstance(labels, list | tuple | Tensor) and hasattr(labels, "__array__"):
        array = np.asarray(labels)
        labels = array.flatten()[:1].tolist() if array.dtype.kind in "OSUT" else []
    if isinstance(labels, list | tuple) and labels and isinstance(labels[0], str | bytes):
        raise InvalidInput(
            f"{what}: labels are names, and a model numbers its classes: [names.index(label) for label in labels], "
            "with names in the order of its outputs (weights.meta['categories'] of torchvision; of transformers "
            "model.config.label2id[label])."
        )
