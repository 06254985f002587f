"""A loaded model: the operations of an ONNX graph, run in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, first_line
from nnrepair.rounding import counted


@dataclass(frozen=True)
class Step:
    """One operation of the graph: which submodule maps which values to which value."""

    module: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Input:
    """What the graph takes as one of its inputs.

    Attributes:
        name: what the file calls it.
        shape: of one point, without the batch; None where the file leaves a size open.
        batched: whether the file's own tensor has the batch as its first axis.
        dtype: of its numbers in the file.
    """

    name: str
    shape: tuple[int | None, ...]
    batched: bool = True
    dtype: torch.dtype = torch.float32


class OnnxGraph(nn.Module):
    """Run the operations of an ONNX graph in order; an ordinary module that can be trained, copied and saved.

    Maps inputs (n, *item_shape), or (n, features) with the same number of values, to the graph's output (n, ...). A
    graph with several inputs takes as many arguments, or keywords by their names, each (n, ...).

    Attributes:
        steps: The operations in the order in which they run.
        input_name: The value that the first input is.
        output_name: The value that is returned.
        output_names: All values that the file returns; `nnrepair.onnx.load(path, output=NAME)` chooses.
        item_shape: Shape of one point of the first input, without the batch; None where the file leaves a size open.
        inputs: All inputs, in order.
        alone: Whether points run one at a time, since the file says what it computes for a single one only.
        bare: Whether the file's output has no batch: then the result for one point is the whole of it.
        notes: What was decided while reading that the file does not say.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        input_name: str,
        output_name: str,
        item_shape: Sequence[int | None],
        *,
        inputs: Sequence[Input] = (),
        output_names: Sequence[str] = (),
        alone: bool = False,
        bare: bool = False,
    ) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.input_name, self.output_name = input_name, output_name
        self.item_shape = tuple(item_shape)
        self.inputs = tuple(inputs) or (Input(input_name, self.item_shape),)
        self.output_names = tuple(output_names) or (output_name,)
        self.alone, self.bare, self.notes = alone, bare, list[str]()
        last = {name: k for k, step in enumerate(self.steps) for name in step.inputs}
        self._done = [[name for name in {*step.inputs} if last[name] == k] for k, step in enumerate(self.steps)]

    def forward(self, x: Tensor | None = None, *others: Tensor, **named: Tensor) -> Tensor:
        whole, tensors = self._taken((*([] if x is None else [x]), *others), named)
        try:
            y = self._points(tensors)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:  # what layers of torch raise
            if all(None not in each.shape for each in self.inputs):
                raise
            shapes = ", ".join(f"{each.name} {tuple(x.shape)}" for each, x in zip(self.inputs, tensors, strict=True))
            raise InvalidInput(
                f"The model does not run on inputs of these sizes ({shapes}), which its file leaves open: "
                f"{first_line(error)}"
            ) from error
        return y.squeeze(0) if whole and self.bare else y

    def _points(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the outputs for points, together or one by one."""
        if tensors[0].shape[0] == 0:  # what one point would give, and none of it
            return self.run(*(x.new_zeros(1, *x.shape[1:]) for x in tensors))[:0]
        if self.alone:
            return torch.cat([self.run(*(x[k : k + 1] for x in tensors)) for k in range(len(tensors[0]))])
        return self.run(*tensors)

    def run(self, *given: Tensor) -> Tensor:
        """Run the operations on inputs that are as the file wants them, with the batch first."""
        values = {each.name: x for each, x in zip(self.inputs, given, strict=True)}
        for step, done in zip(self.steps, self._done, strict=True):
            made = self.get_submodule(step.module)(*(values[name] for name in step.inputs))
            for name in done:  # nothing reads it again
                if name != self.output_name:
                    del values[name]
            values[step.output] = made
        return values[self.output_name]

    def _taken(self, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> tuple[bool, list[Tensor]]:
        """Return whether inputs without a batch are as in the file, and all inputs with the points first."""
        rest = self.inputs[len(given) :]
        if len(given) > len(self.inputs) or named.keys() != {each.name for each in rest}:
            wanted = ", ".join(each.name for each in self.inputs)
            raise InvalidInput(
                f"The model takes {counted(len(self.inputs), 'input')} ({wanted}), each (n, ...); "
                f"given {len(given)} in order, and {', '.join(named) or 'none'} by name."
            )
        tensors = [*given, *(named[each.name] for each in rest)]
        bare = [not each.batched and x.ndim == len(each.shape) for each, x in zip(self.inputs, tensors, strict=True)]
        # Where the one axis of a graph without batches is open, (n, size) are points and (size,) is one.
        whole = any(bare) and all(b or each.batched for b, each in zip(bare, self.inputs, strict=True))
        tensors = [x.unsqueeze(0) if whole and b else x for x, b in zip(tensors, bare, strict=True)]
        tensors = [shaped(each, x) for each, x in zip(self.inputs, tensors, strict=True)]
        if any(x.shape[0] != tensors[0].shape[0] for x in tensors[1:]):
            raise InvalidInput(
                f"All inputs need one row for each point, given {', '.join(str(tuple(x.shape)) for x in tensors)}."
            )
        return whole, tensors

    def extra_repr(self) -> str:
        """Show the shape of one input, and what is not usual."""
        said = [f"item_shape={self.item_shape}"]
        if len(self.inputs) > 1:
            said = [", ".join(f"{each.name}: {each.shape}" for each in self.inputs)]
        if len(self.output_names) > 1:
            said.append(f"output={self.output_name!r} of {', '.join(map(repr, self.output_names))}")
        return ", ".join(said + ["one point at a time"] * self.alone)


def shaped(wanted: Input, x: Tensor) -> Tensor:
    """Return points in the shape that the graph takes.

    Raises:
        InvalidInput: they have another one.
    """
    item = wanted.shape
    if x.ndim == len(item) + 1 and all(
        size > 0 if want is None else size == want for want, size in zip(item, x.shape[1:], strict=True)
    ):
        return x
    sizes = [size for size in item if size is not None]
    if x.ndim == 2 and len(sizes) == len(item) and x.shape[1] == math.prod(sizes):
        return x.reshape(-1, *sizes)
    shape = ", ".join("?" if size is None else str(size) for size in item)
    open_ = " (? is any size from 1 on)" if None in item else ""
    raise InvalidInput(f"The model takes inputs of shape (n, {shape}){open_}, given {tuple(x.shape)}.")
