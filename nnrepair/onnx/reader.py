"""From a file to a model: everything that can be wrong with the file is said here."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.extras import needed
from nnrepair.files import as_path
from nnrepair.onnx.attempts import read_graph
from nnrepair.onnx.external import MAX_BYTES, read_external
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.onnx.node import Refused

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.checker
    import onnx.inliner
    import onnx.numpy_helper


def load(
    path: str | os.PathLike[str],
    deadline: Deadline = NEVER,
    *,
    output: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    example: Any = None,
) -> OnnxGraph:
    """Read an ONNX file as a trainable module in eval mode.

    The module takes points (n, ...), also where the file fixes the batch to 1 or has no batch at all: where the file's
    operations mean one point alone, points run one at a time (`OnnxGraph.alone`). A file with several inputs becomes a
    module of several arguments, each (n, ...). See docs/onnx.md.

    Args:
        path: a file, with its weights in it or beside it; its name may end in .gz, for one that is compressed.
        deadline: looked at between the steps of reading, and before each operation of the graph.
        output: the value to return: an output of the file, or any value in it. The first output where none is named.
        fixed: numbers or arrays that take the place of inputs, by name, such as a sampling rate that decides what runs.
        example: some inputs (n, ...): a tensor, a tuple of tensors, or a dictionary by the names of the inputs. They
            tell sizes that the file leaves open and that its operations need to know; `notes` of the module has them.

    Raises:
        OutOfTime: It is too late.
        InvalidInput: The file is missing, damaged, not ONNX, or keeps weights outside its own folder; or there is no
            such output.
        UnsupportedModel: The graph uses something that cannot be read; all such things are listed at once.

    >>> model = load("network.onnx")  # doctest: +SKIP
    >>> model(torch.zeros(7, 5)).shape  # doctest: +SKIP
    torch.Size([7, 5])
    """
    proto = _read(as_path(path, "onnx.load"), deadline)
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        chosen = _chosen(proto.graph, output, path)
        _fix(proto.graph, fixed or {}, path)
        return read_graph(proto, chosen, deadline, seen=_shapes(proto.graph, example, path))
    except (OutOfTime, InvalidInput):
        raise
    except Refused as refusal:
        raise UnsupportedModel(f"{path} {refusal}") from refusal
    except (MemoryError, RecursionError) as error:
        raise UnsupportedModel(f"{path} is too large or too deep to be read: {type(error).__name__}.") from error
    except Exception as error:  # attributes and types that the checker lets pass and no layer accepts
        raise InvalidInput(f"{path} is malformed: {type(error).__name__}: {error}") from error


def _chosen(graph: onnx.GraphProto, output: str | None, path: str | os.PathLike[str]) -> str:
    names = [value.name for value in graph.output]
    if output is None:
        if not names:
            raise Refused("has no output.")
        return str(names[0])
    known = {*names, *(name for node in graph.node for name in node.output if name)}
    if output not in known:
        raise InvalidInput(
            f"{path} has no value {output!r}. Its outputs are {', '.join(map(repr, names))}; "
            f"any other of its {len(known)} values can be named too."
        )
    return output


def _shapes(graph: onnx.GraphProto, example: Any, path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of single points, by input."""
    if example is None:
        return {}
    stored = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in stored]
    if not isinstance(example, Mapping):
        example = dict(zip(names, example if isinstance(example, tuple | list) else (example,), strict=False))
    shapes = {name: tuple(getattr(x, "shape", ())) for name, x in example.items() if name in names}
    if shapes.keys() != set(names) or not all(shapes.values()):
        raise InvalidInput(f"{path}: example must hold points (n, ...) for each of the inputs {', '.join(names)}.")
    return {name: shape[1:] for name, shape in shapes.items()}


def _fix(graph: onnx.GraphProto, fixed: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Make constants of some inputs."""
    inputs = {value.name: value for value in graph.input}
    for name, given in fixed.items():
        if name not in inputs:
            raise InvalidInput(f"{path} has no input {name!r}. Its inputs are {', '.join(map(repr, inputs))}.")
        kind = onnx.helper.tensor_dtype_to_np_dtype(inputs[name].type.tensor_type.elem_type)
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(given, kind), name))


def content(path: Path) -> bytes:
    """Return the bytes of a file, which may be compressed with gzip.

    Raises:
        OSError: it cannot be read, or is longer than an ONNX file can be.
    """
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(f"its compression is damaged: {error}") from error
    if len(data) > MAX_BYTES:
        raise OSError(f"it unpacks to more than {MAX_BYTES} bytes")
    return data


def parsed(path: Path, deadline: Deadline = NEVER) -> onnx.ModelProto:
    """Return what a file says, with the weights that lie beside it.

    Raises:
        InvalidInput: it is missing, no ONNX file or cut short, or keeps weights outside its own folder.
        OutOfTime: it is too late.
    """
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"There is no file {str(path)!r}"
        raise InvalidInput(f"{what}. Expected an ONNX file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InvalidInput(f"{path} has {size} bytes; an ONNX file has at most {MAX_BYTES}. Keep weights beside it.")
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(content(path))
    except Exception as error:  # protobuf's own error class is not part of onnx
        raise InvalidInput(f"{path} is not an ONNX file, or it was cut short ({error}).") from error
    deadline.check()
    read_external(proto, path)
    deadline.check()
    return proto


def _read(path: Path, deadline: Deadline) -> onnx.ModelProto:
    proto = parsed(path, deadline)
    for value in proto.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()  # the checker wants it, and nobody else
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # ValidationError, OSError, ValueError: all mean that the file cannot be used
        raise InvalidInput(f"{path} is not a valid ONNX model, or it was cut short: {error}") from error
    return proto
