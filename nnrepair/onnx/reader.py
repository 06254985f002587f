"""From a file to a model: everything that can be wrong with the file is said here."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path

import torch

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.extras import needed
from nnrepair.onnx.external import MAX_BYTES, read_external
from nnrepair.onnx.importer import Importer
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.onnx.operators import Refused

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.checker
    import onnx.inliner


def load(path: str | os.PathLike[str]) -> OnnxGraph:
    """Read a feed-forward ONNX file as a trainable module in eval mode.

    The graph has one input and one output, both with the batch as their first axis. Batches of any size work, also
    where the file fixes the batch to 1.

    Raises:
        InvalidInput: The file is missing, damaged, not ONNX, or keeps weights outside its own folder.
        UnsupportedModel: The graph uses something that cannot be read; all such things are listed at once.

    >>> model = load("network.onnx")  # doctest: +SKIP
    >>> model(torch.zeros(7, 5)).shape  # doctest: +SKIP
    torch.Size([7, 5])
    """
    proto = _read(Path(path))
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        model = Importer(proto).build()
        _check_batches(model)
    except Refused as refusal:
        raise UnsupportedModel(f"{path} {refusal}") from refusal
    except Exception as error:  # attributes and types that the checker lets pass and no layer accepts
        raise InvalidInput(f"{path} is malformed: {type(error).__name__}: {error}") from error
    return model


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise InvalidInput(f"There is no file {str(path)!r}. Expected an ONNX file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InvalidInput(f"{path} has {size} bytes; an ONNX file has at most {MAX_BYTES}. Keep weights beside it.")
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's own error class is not part of onnx
        raise InvalidInput(f"{path} is not an ONNX file, or it was cut short ({error}).") from error
    read_external(proto, path)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # ValidationError, OSError, ValueError: all mean that the file cannot be used
        raise InvalidInput(f"{path} is not a valid ONNX model, or it was cut short: {error}") from error
    return proto


def _check_batches(model: OnnxGraph) -> None:
    """Refuse graphs that mix the inputs of a batch, by running two inputs together and alone."""
    sizes = [size for size in model.item_shape if size is not None]
    if len(sizes) < len(model.item_shape):
        return
    pair = torch.linspace(-1, 1, 2 * math.prod(sizes), dtype=torch.float64).reshape(2, *sizes)
    double = copy.deepcopy(model).double()  # then only mixing makes a difference, not rounding
    try:
        with torch.no_grad():
            together, alone = double(pair), [double(pair[:1]), double(pair[1:])]
    except (RuntimeError, IndexError) as error:
        raise Refused(f"cannot run on batches of its input shape {model.item_shape}: {error}") from error
    one_by_one = together.shape == torch.cat(alone).shape and all(len(y) == 1 for y in alone)
    if not one_by_one or not torch.allclose(together, torch.cat(alone), rtol=1e-6, atol=1e-9, equal_nan=True):
        raise Refused(
            f"does not treat the inputs of a batch one by one: two inputs give {tuple(together.shape)} together "
            f"and {', '.join(str(tuple(y.shape)) for y in alone)} alone. The first axis must be the batch throughout."
        )
