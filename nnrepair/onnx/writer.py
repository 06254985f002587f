"""From a model to a file."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.extras import needed
from nnrepair.files import as_path, write_atomically
from nnrepair.spec.network import copied

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnxscript  # noqa: F401  (torch's exporter is built on it)

_EXPORTER = threading.Lock()  # torch.export and the warning filters have one state for the whole process


def save(model: nn.Module, example_input: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a model in eval mode as a single ONNX file whose batch size is free.

    The model given stays as it was. The file appears whole or not at all.

    Args:
        model: Maps inputs (n, ...) to outputs (n, ...).
        example_input: Inputs (n, ...) with n >= 1; only shape and dtype matter.
        path: Where to write.

    Raises:
        UnsupportedModel: The model cannot be exported with a free batch size.

    >>> save(nn.Linear(5, 3), torch.zeros(1, 5), "linear.onnx")  # doctest: +SKIP
    """
    if not isinstance(example_input, Tensor):
        given = type(example_input).__name__
        raise InvalidInput(f"example_input must be a tensor, given {given}: call save(model, example_input, path).")
    if example_input.ndim < 2 or len(example_input) == 0:
        raise InvalidInput(f"example_input needs shape (n, ...) with n >= 1, given {tuple(example_input.shape)}.")
    target = as_path(path, "onnx.save")
    if not target.parent.is_dir():
        raise InvalidInput(f"There is no folder {str(target.parent)!r} to write {target.name!r} to.")
    example = example_input.detach().cpu()
    if len(example) == 1:
        example = torch.cat([example, example])  # the exporter would take a batch of 1 for a fixed size
    proto = _exported(copied(model).cpu().eval(), example)
    ends = (*proto.graph.input, *proto.graph.output)
    fixed = [end.name for end in ends if not any(size.dim_param for size in end.type.tensor_type.shape.dim[:1])]
    if fixed:  # the exporter does not always say so itself
        raise UnsupportedModel(
            f"The model works for one batch size only: {' and '.join(fixed)} would be fixed to the example's "
            f"{len(example)}. Use x.shape[0] in place of a number."
        )
    write_atomically(target, proto.SerializeToString())


def _exported(model: nn.Module, example: Tensor) -> onnx.ModelProto:
    try:
        with _EXPORTER, warnings.catch_warnings(), _no_log():
            warnings.simplefilter("ignore")  # about the exporter's own insides
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        return program.model_proto
    except Exception as error:  # the exporter raises many kinds
        raise UnsupportedModel(
            f"The model could not be exported to ONNX with a free batch size: {_reason(error)}"
        ) from error


@contextmanager
def _no_log() -> Iterator[None]:
    """Keep what exporters log to themselves: packages that are not installed, and tracebacks of what is raised too."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """Return the start of the innermost error's message: exporters surround the reason with much advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return "\n".join(f"{type(error).__name__}: {error}".splitlines()[:8])
