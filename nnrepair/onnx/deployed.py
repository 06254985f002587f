"""A whole ONNX file in onnxruntime, as a module that judges what was written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.extras import needed
from nnrepair.onnx.cut import output_of
from nnrepair.onnx.graph import Graph
from nnrepair.onnx.reader import parsed
from nnrepair.onnx.runtime import Port, Runtime

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx


class Deployed(nn.Module):
    """A whole ONNX file in onnxruntime, as a judge: inputs (n, ...) to an output (n, ...), without gradients."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self._runtime = runtime

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        given = inputs if not named else ordered(self._runtime.ports, named)
        return torch.from_numpy(self._runtime.values(given)[0])


def ordered(ports: Sequence[Port], named: Mapping[str, Tensor]) -> list[Tensor]:
    """Return inputs that are given by name in the order of the file."""
    names = [port.name for port in ports]
    if named.keys() != set(names):
        raise InvalidInput(f"The model takes {', '.join(map(repr, names))}, got {', '.join(map(repr, named))}.")
    return [named[name] for name in names]


def deployed(
    path: str | os.PathLike[str], output: str | None = None, *, ports: Sequence[Port] | None = None
) -> Deployed:
    """Return a file as onnxruntime runs it.

    Args:
        path: of the file.
        output: the value to return; by default the first output of floating-point numbers.
        ports: its inputs, where they are known.
    """
    proto = parsed(Path(path))
    graph = Graph(proto)
    name = output_of(graph, output)
    part = graph.part(graph.before([name]), graph.inputs, [name])
    return Deployed(Runtime(part, ports_of(graph, name) if ports is None else ports))


def ports_of(graph: Graph, output: str) -> list[Port]:
    """Return the inputs of a graph, and where in them the points are."""
    found: list[tuple[str, Any, tuple[int | None, ...] | None]] = []
    for one in graph.inputs:
        if not one.type.HasField("tensor_type"):
            raise UnsupportedModel(f"The model's input {one.name!r} is no tensor.")
        kind = one.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype.kind not in "fiub":
            raise UnsupportedModel(f"The model's input {one.name!r} has type {dtype}; expected numbers.")
        shape = None
        if kind.HasField("shape"):
            shape = tuple(d.dim_value if d.dim_value > 0 and d.HasField("dim_value") else None for d in kind.shape.dim)
        found.append((one.name, dtype, shape))
    last = graph.types.get(output)
    first = last.shape.dim[0].dim_value if last is not None and last.HasField("shape") and last.shape.dim else 0
    return [
        Port(
            name, dtype, shape, shape is None or (bool(shape) and shape[0] in (None, 1, first if len(shape) > 1 else 1))
        )
        for name, dtype, shape in found
    ]
