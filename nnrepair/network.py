"""A network as users give it: a module or an ONNX file, as a private copy."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from nnrepair.deadline import NEVER, Deadline
from nnrepair.errors import InvalidInput
from nnrepair.spec.network import copied, refuse_kinds, unwrapped


def private_copy(model: nn.Module | str | Path, deadline: Deadline = NEVER) -> nn.Module:
    """Return a copy of a module in eval mode, on its device, or what an ONNX file holds.

    Raises:
        InvalidInput: it is neither, it has no weights or cannot be copied, or the file is damaged.
        UnsupportedModel: it is of a kind that cannot be changed or read, see `refuse_kinds`.
        OutOfTime: it is too late.
    """
    if isinstance(model, nn.Module):
        model = unwrapped(model)
        refuse_kinds(model)
        return copied(model, deadline).eval()
    if not isinstance(model, str | Path):
        raise InvalidInput(f"model must be a torch.nn.Module or an ONNX file, got {type(model).__name__}.")
    from nnrepair import onnx

    return onnx.load(model, deadline).eval()
