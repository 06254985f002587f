"""What takes numbers from places, or puts them there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnrepair.onnx.modules.base import Operation


class Select(Operation):
    """Take one entry along an axis, which goes."""

    def __init__(self, dim: int, index: int) -> None:
        super().__init__()
        self.dim, self.index = dim, index

    def forward(self, x: Tensor) -> Tensor:
        return x.select(self.dim, self.index)


class Gather(Operation):
    """Take the entries along an axis that other values name."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        index = torch.where(index < 0, index + x.shape[self.dim], index).long()
        taken = x.index_select(self.dim, index.reshape(-1))
        return taken.reshape(*x.shape[: self.dim], *index.shape, *x.shape[self.dim + 1 :])


class GatherElements(Operation):
    """For each entry of an index the number at that place along an axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return x.gather(self.dim, torch.where(index < 0, index + x.shape[self.dim], index).long())


class GatherND(Operation):
    """The entries of `x` at the places that the last axis of an index names, point by point of some leading axes."""

    def __init__(self, leading: int) -> None:
        super().__init__()
        self.leading = leading

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        lead, depth = self.leading, index.shape[-1]
        shape = [*index.shape[:-1], *x.shape[lead + depth :]]
        rows = math.prod(x.shape[:lead])
        x, index = x.reshape(rows, *x.shape[lead:]), index.reshape(rows, -1, depth).long()
        row = torch.arange(rows, device=x.device)[:, None].expand(index.shape[:2])
        return x[(row, *index.unbind(-1))].reshape(shape)


class Scatter(Operation):
    """Put numbers at the places that an index names along an axis."""

    def __init__(self, dim: int, reduction: str) -> None:
        super().__init__()
        self.dim, self.reduction = dim, reduction

    def forward(self, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        index = torch.where(index < 0, index + x.shape[self.dim], index).long()
        if self.reduction == "none":
            return x.scatter(self.dim, index, updates)
        names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
        return x.scatter_reduce(self.dim, index, updates, names[self.reduction])


class ScatterND(Operation):
    """Put parts at the places that the last axis of an index names."""

    def __init__(self, add: bool) -> None:
        super().__init__()
        self.add = add

    def forward(self, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        return x.index_put(tuple(index.long().unbind(-1)), updates, accumulate=self.add)


class OneHot(Operation):
    """Vectors along a new axis, with one value at the place that a number names and another everywhere else."""

    def __init__(self, depth: int, dim: int) -> None:
        super().__init__()
        self.depth, self.dim = depth, dim

    def forward(self, index: Tensor, values: Tensor) -> Tensor:
        index = torch.where(index < 0, index + self.depth, index).unsqueeze(self.dim)
        along = [1] * index.ndim
        along[self.dim] = -1
        found = index == torch.arange(self.depth, device=index.device).reshape(along)
        return torch.where(found, values[1], values[0])
