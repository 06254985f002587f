"""What a loaded model is made of besides torch's own layers; plain torch, without the onnx packages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput


class _Operation(nn.Module):
    """Show the settings, which are the public attributes, when printed."""

    def extra_repr(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name[0] != "_" and name != "training"}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class Constant(nn.Module):
    """Return a fixed tensor, kept as the buffer `value`."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value


class Add(nn.Module):
    """Add two tensors with broadcasting."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Sub(nn.Module):
    """Subtract two tensors with broadcasting."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


class Mul(nn.Module):
    """Multiply two tensors elementwise with broadcasting."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class Div(nn.Module):
    """Divide two tensors elementwise with broadcasting."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b


class Neg(nn.Module):
    """Change the sign."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


class Abs(nn.Module):
    """The absolute value."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Max(nn.Module):
    """The largest of some tensors, elementwise with broadcasting."""

    def forward(self, *parts: Tensor) -> Tensor:
        return reduce(torch.maximum, parts)


class Min(nn.Module):
    """The smallest of some tensors, elementwise with broadcasting."""

    def forward(self, *parts: Tensor) -> Tensor:
        return reduce(torch.minimum, parts)


class HardSigmoid(_Operation):
    """alpha x + beta, clipped to between 0 and 1."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return (self.alpha * x + self.beta).clamp(0, 1)


class Concat(_Operation):
    """Join tensors along an axis other than the batch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.dim)


class Reshape(_Operation):
    """Change the shape; a size of 0 copies the input's size at that place (the batch, always), -1 is inferred."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(self.sizes)]
        if self.sizes[0] == 0 and -1 in self.sizes:  # torch cannot infer a size for a batch of no points
            known = math.prod(size for size in sizes[1:] if size != -1)
            sizes[self.sizes.index(-1)] = math.prod(x.shape[1:]) // max(known, 1)
        return x.reshape(sizes)


class Permute(_Operation):
    """Reorder the axes; the batch stays first."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class Mean(_Operation):
    """Average over axes other than the batch."""

    def __init__(self, dims: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims, self.keepdim)


@dataclass(frozen=True)
class Step:
    """One operation of the graph: which submodule maps which values to which value."""

    module: str
    inputs: tuple[str, ...]
    output: str


class OnnxGraph(nn.Module):
    """Run the operations of an ONNX graph in order; an ordinary module that can be trained, copied and saved.

    Maps inputs (n, *item_shape), or (n, features) with the same number of values, to the graph's output (n, ...).

    Attributes:
        steps: The operations in the order in which they run.
        input_name: The value that the input is.
        output_name: The value that is returned.
        item_shape: Shape of one input without the batch; None where the file leaves a size open.
    """

    def __init__(
        self, steps: Sequence[Step], input_name: str, output_name: str, item_shape: Sequence[int | None]
    ) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.input_name, self.output_name = input_name, output_name
        self.item_shape = tuple(item_shape)
        last = {name: k for k, step in enumerate(self.steps) for name in step.inputs}
        self._done = [[name for name in {*step.inputs} if last[name] == k] for k, step in enumerate(self.steps)]

    def forward(self, x: Tensor) -> Tensor:
        values = {self.input_name: self._shaped(x)}
        for step, done in zip(self.steps, self._done, strict=True):
            made = self.get_submodule(step.module)(*(values[name] for name in step.inputs))
            for name in done:  # nothing reads it again
                if name != self.output_name:
                    del values[name]
            values[step.output] = made
        return values[self.output_name]

    def _shaped(self, x: Tensor) -> Tensor:
        item = self.item_shape
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

    def extra_repr(self) -> str:
        """Show the shape of one input."""
        return f"item_shape={self.item_shape}"
