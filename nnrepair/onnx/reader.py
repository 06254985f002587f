"""From a file to a model: everything that can be wrong with the file is said here."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.extras import needed
from nnrepair.onnx.external import MAX_BYTES, read_external
from nnrepair.onnx.importer import Importer
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.onnx.node import Refused
from nnrepair.spec.network import copied

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.checker
    import onnx.inliner

#: Sizes that are tried where a file leaves some open.
OPEN = (1, 2, 3, 4, 5, 6, 7, 8, 16, 28, 32, 64)


def load(path: str | os.PathLike[str], deadline: Deadline = NEVER) -> OnnxGraph:
    """Read a feed-forward ONNX file as a trainable module in eval mode.

    The graph has one input and one output, both with the batch as their first axis. Batches of any size work, also
    where the file fixes the batch to 1.

    Args:
        path: a file, with its weights in it or beside it.
        deadline: looked at between the steps of reading, and before each operation of the graph.

    Raises:
        OutOfTime: It is too late.
        InvalidInput: The file is missing, damaged, not ONNX, or keeps weights outside its own folder.
        UnsupportedModel: The graph uses something that cannot be read; all such things are listed at once.

    >>> model = load("network.onnx")  # doctest: +SKIP
    >>> model(torch.zeros(7, 5)).shape  # doctest: +SKIP
    torch.Size([7, 5])
    """
    proto = _read(Path(path), deadline)
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        importer = Importer(proto, deadline)
        model = importer.build()
        _check_batches(model, getattr(torch, importer.dtype.name), deadline)
    except OutOfTime:
        raise
    except Refused as refusal:
        raise UnsupportedModel(f"{path} {refusal}") from refusal
    except (MemoryError, RecursionError) as error:
        raise UnsupportedModel(f"{path} is too large or too deep to be read: {type(error).__name__}.") from error
    except Exception as error:  # attributes and types that the checker lets pass and no layer accepts
        raise InvalidInput(f"{path} is malformed: {type(error).__name__}: {error}") from error
    return model


def parsed(path: Path, deadline: Deadline = NEVER) -> onnx.ModelProto:
    """Return what a file says, with the weights that lie beside it.

    Raises:
        InvalidInput: it is missing, no ONNX file or cut short, or keeps weights outside its own folder.
        OutOfTime: it is too late.
    """
    if not path.is_file():
        raise InvalidInput(f"There is no file {str(path)!r}. Expected an ONNX file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InvalidInput(f"{path} has {size} bytes; an ONNX file has at most {MAX_BYTES}. Keep weights beside it.")
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's own error class is not part of onnx
        raise InvalidInput(f"{path} is not an ONNX file, or it was cut short ({error}).") from error
    deadline.check()
    read_external(proto, path)
    deadline.check()
    return proto


def _read(path: Path, deadline: Deadline) -> onnx.ModelProto:
    proto = parsed(path, deadline)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # ValidationError, OSError, ValueError: all mean that the file cannot be used
        raise InvalidInput(f"{path} is not a valid ONNX model, or it was cut short: {error}") from error
    return proto


def _check_batches(model: OnnxGraph, dtype: torch.dtype, deadline: Deadline) -> None:
    """Refuse graphs that mix the inputs of a batch, by running two inputs together and alone; also what cannot run."""
    double = copied(model, deadline).double()  # then only mixing makes a difference, not rounding
    sizes = OPEN if None in model.item_shape else (0,)
    shapes = [tuple(number if size is None else size for size in model.item_shape) for number in sizes]
    failures = []
    for shape in shapes:
        deadline.check()
        try:
            _run(model, torch.zeros(1, *shape, dtype=dtype))
            _check_pair(double, shape)
        except _Failed as failure:  # perhaps a size that the network is not made for
            failures.append(failure)
    if len(failures) == len(shapes) == 1:
        raise failures[0]
    if len(failures) == len(shapes):
        raise Refused(
            f"leaves sizes of its input open ({model.item_shape}), and runs with none of {', '.join(map(str, OPEN))}. "
            "Fix the sizes in the file."
        )


class _Failed(Refused):
    """The model does not run on inputs of this shape."""


def _run(model: OnnxGraph, x: torch.Tensor) -> torch.Tensor:
    try:
        with torch.no_grad():
            y: torch.Tensor = model(x)
    except (RuntimeError, IndexError) as error:
        raise _Failed(f"cannot run on an input of shape {tuple(x.shape)} and type {x.dtype}: {error}") from error
    return y


def _check_pair(model: OnnxGraph, shape: tuple[int, ...]) -> None:
    pair = torch.linspace(-1, 1, 2 * math.prod(shape), dtype=torch.float64).reshape(2, *shape)
    together, *alone = (_run(model, x) for x in (pair, pair[:1], pair[1:]))
    one_by_one = all(len(y) == 1 for y in alone) and together.shape == torch.cat(alone).shape
    if not one_by_one or not torch.allclose(together, torch.cat(alone), rtol=1e-6, atol=1e-9, equal_nan=True):
        raise Refused(
            f"does not treat the inputs of a batch one by one: two inputs give {tuple(together.shape)} together "
            f"and {', '.join(str(tuple(y.shape)) for y in alone)} alone. The first axis must be the batch throughout."
        )
