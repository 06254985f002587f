"""A network as users give it: a module, or an ONNX file."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from nnrepair.errors import InvalidInput


def private_copy(model: nn.Module | str | Path) -> nn.Module:
    """Return a copy of a module in eval mode, on its device, or what an ONNX file holds.

    Raises:
        InvalidInput: it is neither, or the file is damaged.
    """
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).eval()
    if not isinstance(model, str | Path):
        raise InvalidInput(f"model must be a torch.nn.Module or an ONNX file, got {type(model).__name__}.")
    from nnrepair import onnx

    return onnx.load(model).eval()
