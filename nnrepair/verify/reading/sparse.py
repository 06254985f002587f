"""Affine maps that read few numbers for each output, or the same matrix row by row: sums, averages, interpolation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnrepair.verify.reading.affine import Affine, Convolution, Dense, Shape


class Sparse(Affine):
    """Weighted sums of chosen entries: y[i] = sum_k weight[i, k] x[index[i, k]].

    Args:
        index: (outputs, k), places of the input.
        weight: (outputs, k); None is all ones.
        inputs: how many there are.
        inexact: relative error of the weights.
    """

    def __init__(self, index: Tensor, weight: Tensor | None, inputs: int, inexact: float = 0.0) -> None:
        self.index, self.inputs, self.inexact = index, inputs, inexact
        self.weight = None if weight is None else weight.detach().double()
        self.bias = torch.zeros(len(index), dtype=torch.float64, device=index.device)
        self.terms = max(index.shape[1], int(torch.bincount(index.reshape(-1), minlength=1).max()))

    @property
    def work(self) -> int:
        return self.index.numel()

    def _summed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        taken = x[..., self.index]
        return taken.sum(-1) if weight is None else (taken * weight).sum(-1)

    def apply(self, x: Tensor) -> Tensor:
        return self._summed(x, self.weight)

    def magnitude(self, x: Tensor) -> Tensor:
        return self._summed(x, None if self.weight is None else self.weight.abs())

    def back(self, A: Tensor) -> Tensor:
        parts = A[:, :, None].expand(-1, -1, self.index.shape[1])
        parts = parts if self.weight is None else parts * self.weight
        return A.new_zeros(len(A), self.inputs).index_add(1, self.index.reshape(-1), parts.flatten(1))

    def to(self, device: torch.device) -> Sparse:
        weight = None if self.weight is None else self.weight.to(device)
        return Sparse(self.index.to(device), weight, self.inputs, self.inexact)


class Rowwise(Affine):
    """One matrix (outputs, inputs) for each of `count` parts of a vector, one after the other, and a bias for each."""

    def __init__(self, weight: Tensor, bias: Tensor | None, count: int) -> None:
        self.one, self.count = Dense(weight, bias), count
        self.bias, self.terms = self.one.bias.repeat(count), self.one.terms

    @property
    def work(self) -> int:
        return self.count * self.one.work

    def _parts(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.count, x.shape[-1] // self.count)

    def apply(self, x: Tensor) -> Tensor:
        return self.one.apply(self._parts(x)).flatten(-2)

    def magnitude(self, x: Tensor) -> Tensor:
        return self.one.magnitude(self._parts(x)).flatten(-2)

    def back(self, A: Tensor) -> Tensor:
        return self.one.back(self._parts(A)).flatten(-2)

    def to(self, device: torch.device) -> Rowwise:
        return Rowwise(self.one.weight.to(device), self.one.bias.to(device), self.count)


class Transposed(Affine):
    """A transposed convolution: what `Convolution` is backwards, and a bias for each channel."""

    inexact = 1e-15  # exact arithmetic does not follow it

    def __init__(self, forward: Convolution, bias: Tensor | None) -> None:
        self.forward, self.channels = forward, bias
        self.terms, self.out_shape = forward.terms, forward.shape
        size = math.prod(self.out_shape)
        each = torch.zeros(self.out_shape[0], dtype=torch.float64) if bias is None else bias.detach().double()
        self.bias = each.to(forward.weight.device).repeat_interleave(size // self.out_shape[0])

    @property
    def work(self) -> int:
        return self.forward.work

    def _rows(self, x: Tensor, weight: Tensor) -> Tensor:
        made = torch.nn.functional.conv_transpose2d(
            x.reshape(-1, *self.forward.out_shape),
            weight,
            output_padding=self.forward.left_over,
            **self.forward.settings,
        )
        return made.reshape(*x.shape[:-1], math.prod(self.out_shape))

    def apply(self, x: Tensor) -> Tensor:
        return self._rows(x, self.forward.weight)

    def magnitude(self, x: Tensor) -> Tensor:
        return self._rows(x, self.forward.absolute)

    def back(self, A: Tensor) -> Tensor:
        return self.forward.apply(A)

    def to(self, device: torch.device) -> Transposed:
        return Transposed(self.forward.to(device), None if self.channels is None else self.channels.to(device))


def identity(shape: Shape) -> Tensor:
    """Return the places of all entries of a value."""
    return torch.arange(math.prod(shape)).reshape(shape)
