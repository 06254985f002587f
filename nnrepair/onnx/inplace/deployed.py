"""A whole ONNX file in onnxruntime, as a module that judges what was written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.extras import needed
from nnrepair.onnx.inplace.branches import unfolded, with_fixed
from nnrepair.onnx.inplace.choosing import output_of
from nnrepair.onnx.inplace.graph import Graph
from nnrepair.onnx.inplace.integers import with_floats
from nnrepair.onnx.inplace.runtime import Port, Runtime
from nnrepair.onnx.reader import parsed

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx


class Deployed(nn.Module):
    """A whole ONNX file in onnxruntime, as a judge: inputs (n, ...) to an output (n, ...), without gradients."""

    def __init__(self, runtime: Runtime, fixed: Iterable[str] = ()) -> None:
        super().__init__()
        self._runtime, self._fixed = runtime, frozenset(fixed)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        rest = {name: x for name, x in named.items() if name not in self._fixed}
        given = inputs if not named else ordered(self._runtime.ports, rest)
        return torch.from_numpy(self._runtime.values(given)[0])


def ordered(ports: Sequence[Port], named: Mapping[str, Tensor]) -> list[Tensor]:
    """Return inputs that are given by name in the order of the file."""
    names = [port.name for port in ports]
    if named.keys() != set(names):
        raise InvalidInput(f"The model takes {', '.join(map(repr, names))}, got {', '.join(map(repr, named))}.")
    return [named[name] for name in names]


def deployed(
    path: str | os.PathLike[str],
    output: str | None = None,
    *,
    ports: Sequence[Port] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Deployed:
    """Return a file as onnxruntime runs it.

    Args:
        path: of the file.
        output: the value to return; by default the first output of floating-point numbers.
        ports: its inputs, where they are known.
        fixed: inputs that are constants, by name.
    """
    graph = Graph(with_fixed(parsed(Path(path)), fixed or {}), fixed or ())
    if output is not None and output not in graph.producers:  # a value inside of a branch
        graph, _ = unfolded(graph.proto, graph.given)
    name = _output(graph, output)
    part = graph.part(graph.before([name]), graph.inputs, [name])
    return Deployed(Runtime(part, ports_of(graph, name) if ports is None else ports), graph.given)


def _output(graph: Graph, output: str | None) -> str:
    """Return the value to look at; layers inside of branches, and those of integers, decide an output, too."""
    if output is None:
        output = output_of(with_floats(unfolded(graph.proto, graph.given)[0]), None)
    return output if output in graph.producers else output_of(graph, output)


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
