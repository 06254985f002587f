"""Which edits do not hold in a network: two lines of a test that a repair is still there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnrepair.errors import InvalidInput
from nnrepair.network import private_copy
from nnrepair.spec.edits import Edits
from nnrepair.spec.inputs import to_like
from nnrepair.spec.problem import fitted
from nnrepair.spec.running import outputs, undisturbed


def failing(
    model: nn.Module | str | Path, edits: Any, *, output: str | None = None, fixed: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the numbers of the edits that do not hold in a network, none where it is as it should be.

    Example:
        >>> failing(nn.Identity(), (torch.eye(3), [0, 1, 0]))
        [2]

    Args:
        model: a module, which stays as it is, or an ONNX file of any operators, which onnxruntime runs.
        edits: as for `fix`: `Edits`, or a pair (inputs, labels).
        output: of an ONNX file, the value to look at; by default its first output of floating-point numbers.
        fixed: of an ONNX file, inputs that are constants, by name, as for `nnrepair.onnx.in_place`.

    Raises:
        InvalidInput: edits or model cannot be used.
        UnsupportedModel: onnxruntime, or the model, fails on the points.
    """
    given = Edits.coerce(edits)
    with undisturbed(None):
        network = _network(model, output, fixed)
        tensors = (*network.parameters(), *network.buffers())
        like = next((tensor for tensor in tensors if tensor.dtype.is_floating_point), None)
        y = outputs(network, given.inputs if like is None else to_like(given.inputs, like))
    criterion = fitted(given.criterion, y)
    criterion.check(y)
    return torch.nonzero(~given.together(criterion.holds(y.double()))).flatten().tolist()


def _network(model: nn.Module | str | Path, output: str | None, fixed: Mapping[str, Any] | None) -> nn.Module:
    """Return a copy of a module, or an ONNX file as onnxruntime runs it."""
    if isinstance(model, nn.Module):
        if output is not None:
            raise InvalidInput("output= names a value of an ONNX file; a module returns what its forward returns.")
        if fixed:
            raise InvalidInput("fixed= makes constants of an ONNX file's inputs; give a module all that it takes.")
        return private_copy(model)
    if not isinstance(model, str | Path):
        raise InvalidInput(f"model must be a torch.nn.Module or an ONNX file, got {type(model).__name__}.")
    from nnrepair.onnx.inplace.deployed import deployed

    return deployed(model, output, fixed=fixed)
