"""From a file to a model: everything that can be wrong with the file is said here."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path

import torch

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.extras import needed
from nnrepair.onnx.importer import Importer
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.onnx.operators import Refused

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.checker
    import onnx.external_data_helper
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
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's own error class is not part of onnx
        raise InvalidInput(f"{path} is not an ONNX file, or it was cut short ({error}).") from error
    # The tensors that can become weights; in other places (subgraphs, sparse tensors) nothing external is ever read.
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    tensors = [*proto.graph.initializer, *(attribute.t for node in nodes for attribute in node.attribute)]
    external = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    outside = [tensor.name for tensor in external if not _inside(tensor, path.parent)]
    if outside:
        raise InvalidInput(
            f"{path} keeps the weights {', '.join(map(repr, outside))} outside its own folder. Put the data file next "
            "to the model, or save the model as a single file."
        )
    try:
        for tensor in external:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
        onnx.checker.check_model(proto)
    except Exception as error:  # ValidationError, OSError, ValueError: all mean that the file cannot be used
        raise InvalidInput(f"{path} is not a valid ONNX model, or it was cut short: {error}") from error
    return proto


def _inside(tensor: onnx.TensorProto, folder: Path) -> bool:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return location != "" and (folder / location).resolve().is_relative_to(folder.resolve())


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
