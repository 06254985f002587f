"""What makes one number of many: over axes, or along one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.onnx.modules.base import Operation
from nnrepair.onnx.sizes import known


class Mean(Operation):
    """Average over axes other than the batch."""

    def __init__(self, dims: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims, self.keepdim)


def _product(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim)
    return x


def _mean(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dims, keepdim)
    count = math.prod(x.shape[dim] for dim in dims)
    return torch.div(x.sum(dims, keepdim), max(count, 1), rounding_mode="trunc").to(x.dtype)


#: What ONNX calls Reduce..., by the rest of its name.
KINDS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "L1": lambda x, dims, keep: x.abs().sum(dims, keep),
    "L2": lambda x, dims, keep: x.square().sum(dims, keep).sqrt(),
    "LogSum": lambda x, dims, keep: x.sum(dims, keep).log(),
    "LogSumExp": lambda x, dims, keep: torch.logsumexp(x, dims, keep),
    "Max": lambda x, dims, keep: x.amax(dims, keep),
    "Mean": _mean,
    "Min": lambda x, dims, keep: x.amin(dims, keep),
    "Prod": _product,
    "Sum": lambda x, dims, keep: x.sum(dims, keep),
    "SumSquare": lambda x, dims, keep: x.square().sum(dims, keep),
}


class Reduce(Operation):
    """Reduce axes, or all of them where none are named, in one of the ways of `KINDS`."""

    def __init__(self, kind: str, dims: Sequence[int] | None, keepdim: bool) -> None:
        super().__init__()
        self.kind, self.dims, self.keepdim = kind, None if dims is None else tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        dims = [*range(x.ndim)] if self.dims is None else [dim % x.ndim for dim in self.dims]
        if not dims:  # of a single number
            return KINDS[self.kind](x[None], [0], False)
        return KINDS[self.kind](x, dims, self.keepdim).to(x.dtype)


class FlatSoftmax(Operation):
    """Softmax over all numbers from an axis on, as before opset 13."""

    def __init__(self, axis: int, log: bool) -> None:
        super().__init__()
        self.axis, self.log = axis, log

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(math.prod(x.shape[: self.axis]), math.prod(x.shape[self.axis :]))
        return (rows.log_softmax(1) if self.log else rows.softmax(1)).reshape(x.shape)


class Arg(Operation):
    """The place of the largest or smallest number along an axis; of equal ones the first or last."""

    def __init__(self, largest: bool, dim: int, keepdim: bool, last: bool) -> None:
        super().__init__()
        self.largest, self.dim, self.keepdim, self.last = largest, dim, keepdim, last

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(self.dim) if self.last else x
        best = x.amax(self.dim, True) if self.largest else x.amin(self.dim, True)
        place = (x == best).int().argmax(self.dim, self.keepdim)  # torch gives the first of equal ones
        return x.shape[self.dim] - 1 - place if self.last else place


class TopK(Operation):
    """The largest or smallest numbers along an axis, or their places; of equal ones the first come first."""

    def __init__(self, count: Any, dim: int, largest: bool, places: bool) -> None:
        super().__init__()
        self.count, self.dim, self.largest, self.places = count, dim, largest, places

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        (count,) = known([self.count], (x, *others))
        values, places = torch.sort(x, dim=self.dim, descending=self.largest, stable=True)
        return (places if self.places else values).narrow(self.dim, 0, count)


class Cumulate(Operation):
    """Sums of all numbers up to each, along an axis."""

    def __init__(self, dim: int, exclusive: bool, reverse: bool) -> None:
        super().__init__()
        self.dim, self.exclusive, self.reverse = dim, exclusive, reverse

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(self.dim) if self.reverse else x
        total = x.cumsum(self.dim).to(x.dtype)
        if self.exclusive:
            total = total.roll(1, self.dim)
            first = torch.arange(x.shape[self.dim], device=x.device) == 0
            along = [1] * x.ndim
            along[self.dim] = -1
            total = torch.where(first.reshape(along), torch.zeros_like(total), total)
        return total.flip(self.dim) if self.reverse else total


class LpNormalize(Operation):
    """Divide by a norm along an axis; zeros stay zeros."""

    def __init__(self, p: int, dim: int) -> None:
        super().__init__()
        self.p, self.dim = p, dim

    def forward(self, x: Tensor) -> Tensor:
        norm = x.abs().sum(self.dim, True) if self.p == 1 else x.square().sum(self.dim, True).sqrt()
        return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


class Standardize(Operation):
    """Subtract the mean over some axes and divide by the standard deviation."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(self.dims, True)
        # As onnxruntime does; ONNX subtracts mean(x)^2 from mean(x^2), of which little is left where x hardly varies.
        return centred / (centred.square().mean(self.dims, True).sqrt() + 1e-9)


class Einsum(Operation):
    """A sum of products, as torch.einsum."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.einsum(self.equation, *parts)


class LeftMatMul(nn.Module):
    """A constant matrix, or several, times the input: `weight` @ x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x


class RightMatMul(nn.Module):
    """The input times a constant that is no matrix: x @ `weight`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight
