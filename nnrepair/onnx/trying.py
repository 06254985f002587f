"""Running parts of a graph while it is read: on the meta device, for shapes alone, or on constants."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from nnrepair.deadline import OutOfTime
from nnrepair.errors import first_line
from nnrepair.onnx.modules import Input
from nnrepair.onnx.node import Node, Refused

M = TypeVar("M", bound=nn.Module)


class CannotRun(Refused):
    """A step does not run on values of the shapes that are tried."""


class Mixed(Refused):
    """The points of a batch influence each other."""


@dataclass(frozen=True)
class Entry:
    """One input of the graph, and two shapes that it is tried with while reading: what differs depends on the input.

    Attributes:
        input: what the model says of it.
        shapes: with the points first.
    """

    input: Input
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self.input.dtype


def run(module: nn.Module, inputs: Sequence[Tensor], what: Node | str) -> list[Tensor]:
    """Run a module; return its results."""
    try:
        made = module(*inputs)
    except (OutOfTime, Refused, MemoryError, RecursionError):
        raise
    except Exception as error:  # torch raises many kinds
        name = what if isinstance(what, str) else what.name
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else "several" for x in inputs)
        raise CannotRun(f"cannot be run: {name!r} fails on shapes {shapes}: {first_line(error)}") from error
    return [*made] if isinstance(made, tuple) else [made]


def weightless(module: M) -> M:
    """Return a copy on the meta device, which computes shapes alone."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    memo: dict[int, Tensor] = {}
    for value in tensors:
        empty = value.detach().to("meta")
        memo[id(value)] = nn.Parameter(empty) if isinstance(value, nn.Parameter) else empty
    return copy.deepcopy(module, memo)
