"""Affine maps of flat vectors with their transposes: what lies between the activations of a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.deadline import Deadline

Shape = tuple[int, ...]

#: Half the distance between 1 and the next float64: the relative error of one operation.
EPS = 2.0**-53
#: So many multiplications go on between two looks at the clock: well under a second.
PIECE_WORK = 1_000_000_000


class Affine(ABC):
    """An affine map of flat vectors, x -> W x + b.

    Attributes:
        bias: b, (outputs,).
        terms: the largest number of products in one entry of `W x` or of `A W`; rounding errors grow with it.
        inexact: relative error of the stored weights themselves, where they are no exact float64 numbers.
        off: (outputs,), how far b may be from what is stored; None is not at all.
    """

    bias: Tensor
    terms: int
    inexact: float = 0.0
    off: Tensor | None = None

    @property
    def work(self) -> int:
        """How many multiplications one application takes."""
        return len(self.bias)

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Return W x for x (..., inputs), without the bias."""

    @abstractmethod
    def magnitude(self, x: Tensor) -> Tensor:
        """Return |W| x for x (..., inputs)."""

    @abstractmethod
    def back(self, A: Tensor) -> Tensor:
        """Return A W for coefficients A (rows, outputs)."""

    def rows(self, index: Tensor) -> Tensor:
        """Return the chosen rows of W, (k, inputs)."""
        return self.back(F.one_hot(index, len(self.bias)).to(self.bias))

    @abstractmethod
    def to(self, device: torch.device) -> Affine:
        """Return the map on another device."""


def in_pieces(map: Callable[[Tensor], Tensor], x: Tensor, work: int, deadline: Deadline) -> Tensor:
    """Return map(x) for x (rows, ...), where each row takes so many multiplications, with looks at the clock."""
    deadline.check()
    size = max(1, PIECE_WORK // max(1, work))
    if len(x) <= size:
        return map(x)
    parts = list[Tensor]()
    for part in torch.split(x, size):
        deadline.check()
        parts.append(map(part))
    return torch.cat(parts)


class Dense(Affine):
    """A matrix W (outputs, inputs) and a bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, inexact: float = 0.0) -> None:
        self.weight = weight.detach().double().contiguous()
        self.bias = self.weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
        self.absolute, self.terms, self.inexact = self.weight.abs(), max((1, *weight.shape)), inexact

    @property
    def work(self) -> int:
        return self.weight.numel()

    def part(self, outputs: Tensor | None, inputs: Tensor | None) -> Dense:
        """Return the map between chosen outputs and inputs; None is all of them."""
        weight, bias = self.weight, self.bias
        if outputs is not None:
            weight, bias = weight[outputs], bias[outputs]
        return Dense(weight if inputs is None else weight[:, inputs], bias, self.inexact)

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def magnitude(self, x: Tensor) -> Tensor:
        return x @ self.absolute.T

    def back(self, A: Tensor) -> Tensor:
        return A @ self.weight

    def rows(self, index: Tensor) -> Tensor:
        return self.weight[index]

    def to(self, device: torch.device) -> Dense:
        return Dense(self.weight.to(device), self.bias.to(device), self.inexact)


class Convolution(Affine):
    """A two-dimensional convolution; `shape` is that of one input, (channels, height, width)."""

    def __init__(self, layer: nn.Conv2d, shape: Shape) -> None:
        self.layer, self.shape = layer, shape
        self.weight = layer.weight.detach().double()
        self.absolute = self.weight.abs()
        self.settings: dict[str, Any] = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
        }
        padding = [int(p) for p in layer.padding]
        grown = (size + 2 * p for size, p in zip(shape[1:], padding, strict=True))
        windows = (d * (kernel - 1) + 1 for d, kernel in zip(layer.dilation, layer.kernel_size, strict=True))
        out = ((size - w) // stride + 1 for size, w, stride in zip(grown, windows, layer.stride, strict=True))
        self.out_shape: Shape = (len(self.weight), *out)
        if min(self.out_shape) < 1:
            raise ValueError(f"its kernel is larger than the image of shape {shape}")
        self.left_over = self._left_over()
        kernel = self.weight[0, 0].numel()
        self.terms = kernel * max(self.weight.shape[:2])
        bias = self.weight.new_zeros(len(self.weight)) if layer.bias is None else layer.bias.detach().double()
        self.bias = bias[:, None, None].expand(self.out_shape).reshape(-1)

    @property
    def work(self) -> int:
        return len(self.bias) * self.weight[0].numel()

    def _left_over(self) -> tuple[int, ...]:
        """Rows and columns at the end that no window reaches, which the transposed convolution must be told."""
        layer, sizes = self.layer, zip(self.shape[1:], self.out_shape[1:], strict=True)
        full = [
            (out - 1) * layer.stride[i] - 2 * int(layer.padding[i]) + layer.dilation[i] * (layer.kernel_size[i] - 1) + 1
            for i, (_, out) in enumerate(sizes)
        ]
        return tuple(size - reached for size, reached in zip(self.shape[1:], full, strict=True))

    def _forward(self, x: Tensor, weight: Tensor) -> Tensor:
        y = F.conv2d(x.reshape(-1, *self.shape), weight, **self.settings)
        return y.reshape(*x.shape[:-1], len(self.bias))

    def apply(self, x: Tensor) -> Tensor:
        return self._forward(x, self.weight)

    def magnitude(self, x: Tensor) -> Tensor:
        return self._forward(x, self.absolute)

    def back(self, A: Tensor) -> Tensor:
        images = A.reshape(-1, *self.out_shape)
        back = F.conv_transpose2d(images, self.weight, output_padding=self.left_over, **self.settings)
        return back.reshape(len(A), math.prod(self.shape))

    def to(self, device: torch.device) -> Convolution:
        moved = Convolution(self.layer, self.shape)
        moved.weight, moved.absolute = self.weight.to(device), self.absolute.to(device)
        moved.bias = self.bias.to(device)
        return moved


class Diagonal(Affine):
    """Multiply every entry by its own factor and add a bias.

    Attributes:
        of: the exact numbers that inexact factors are made of: equal factors may be those of others, rounded.
    """

    def __init__(
        self, factor: Tensor, bias: Tensor | None = None, inexact: float = 0.0, of: tuple[Tensor, ...] = ()
    ) -> None:
        self.factor, self.terms, self.inexact, self.of = factor.detach().double(), 1, inexact, of
        self.bias = torch.zeros_like(self.factor) if bias is None else bias.detach().double()

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factor

    def magnitude(self, x: Tensor) -> Tensor:
        return x * self.factor.abs()

    def back(self, A: Tensor) -> Tensor:
        return A * self.factor

    def to(self, device: torch.device) -> Diagonal:
        return Diagonal(self.factor.to(device), self.bias.to(device), self.inexact, self.of)


class Pick(Affine):
    """Entries chosen by index: y[i] = x[index[i]]."""

    def __init__(self, index: Tensor, inputs: int) -> None:
        self.index, self.inputs = index.reshape(-1), inputs
        self.bias = torch.zeros(self.index.numel(), dtype=torch.float64, device=index.device)
        self.terms = int(torch.bincount(self.index, minlength=1).max())

    def apply(self, x: Tensor) -> Tensor:
        return x[..., self.index]

    magnitude = apply

    def back(self, A: Tensor) -> Tensor:
        return A.new_zeros(len(A), self.inputs).index_add(1, self.index, A)

    def to(self, device: torch.device) -> Pick:
        return Pick(self.index.to(device), self.inputs)


class Place(Affine):
    """The entries of x at the places `index` of a longer vector that is zero elsewhere."""

    def __init__(self, index: Tensor, outputs: int) -> None:
        self.index, self.outputs, self.terms = index.reshape(-1), outputs, 1
        self.bias = torch.zeros(outputs, dtype=torch.float64, device=index.device)

    def apply(self, x: Tensor) -> Tensor:
        y = x.new_zeros(*x.shape[:-1], self.outputs)
        y[..., self.index] = x
        return y

    magnitude = apply

    def back(self, A: Tensor) -> Tensor:
        return A[:, self.index]

    def to(self, device: torch.device) -> Place:
        return Place(self.index.to(device), self.outputs)
