"""What moves numbers about: sizes may be known only when the model runs, see `nnrepair.onnx.sizes`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nnrepair.onnx.modules.base import Operation
from nnrepair.onnx.sizes import known


class Sizes(Operation):
    """Sizes of other values as a tensor of whole numbers."""

    like: Tensor

    def __init__(self, sizes: Sequence[Any], shape: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes, self.shape = tuple(sizes), tuple(shape)
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, *values: Tensor) -> Tensor:
        numbers = known(self.sizes, values)
        return torch.tensor(numbers, dtype=self.like.dtype, device=self.like.device).reshape(self.shape)


class Concat(Operation):
    """Join tensors along an axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.dim)


class Reshape(Operation):
    """Change the shape; a size of 0 copies the input's size at that place (mostly the batch), -1 is inferred.

    Sizes that depend on other values are `Size`s of the inputs, which follow the first.
    """

    def __init__(self, sizes: Sequence[Any]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        wanted = known(self.sizes, (x, *others))
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
        if self.sizes[:1] == (0,) and -1 in self.sizes:  # torch cannot infer a size for a batch of no points
            rest = math.prod(size for size in sizes[1:] if size != -1)
            sizes[self.sizes.index(-1)] = math.prod(x.shape[1:]) // max(rest, 1)
        return x.reshape(sizes)


class FlattenAt(Operation):
    """Make a matrix: the axes before `axis`, and the others."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = math.prod(x.shape[: self.axis]), math.prod(x.shape[self.axis :])
        return x.reshape(rows, columns)


class Permute(Operation):
    """Reorder the axes."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class Squeeze(Operation):
    """Leave out axes of size 1."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        left = [size for dim, size in enumerate(x.shape) if dim not in self.dims]
        return x.reshape(left)


class Unsqueeze(Operation):
    """Put in axes of size 1; `dims` are their places in the result."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(sorted(dims))

    def forward(self, x: Tensor) -> Tensor:
        for dim in self.dims:
            x = x.unsqueeze(dim)
        return x


class Slice(Operation):
    """Take from `starts` to before `ends` in `steps` along some axes, as in Python, but that ends are cut to fit."""

    def __init__(self, dims: Sequence[int], starts: Sequence[Any], ends: Sequence[Any], steps: Sequence[int]) -> None:
        super().__init__()
        self.dims, self.starts, self.ends, self.steps = tuple(dims), tuple(starts), tuple(ends), tuple(steps)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        starts, ends = known(self.starts, (x, *others)), known(self.ends, (x, *others))
        for dim, start, end, step in zip(self.dims, starts, ends, self.steps, strict=True):
            if step == 1:
                x = x[(*[slice(None)] * dim, slice(start, end))]
            else:
                places = torch.arange(*slice(start, end, step).indices(x.shape[dim]), device=x.device)
                x = x.index_select(dim, places)
        return x


class Expand(Operation):
    """Repeat along axes of size 1, until the shape is broadcast with `sizes`."""

    def __init__(self, sizes: Sequence[Any]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        sizes = known(self.sizes, (x, *others))
        lead = len(sizes) - x.ndim
        own = [1] * max(lead, 0) + [*x.shape]
        sizes = [1] * max(-lead, 0) + sizes
        return x.expand([mine if size == 1 else size for mine, size in zip(own, sizes, strict=True)])


class Tile(Operation):
    """Repeat along each axis."""

    def __init__(self, repeats: Sequence[Any]) -> None:
        super().__init__()
        self.repeats = tuple(repeats)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x.repeat(known(self.repeats, (x, *others)))


class Filled(Operation):
    """A tensor of one number, whose shape depends on other values."""

    value: Tensor

    def __init__(self, sizes: Sequence[Any], value: Tensor) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.register_buffer("value", value.reshape(()), persistent=False)

    def forward(self, *others: Tensor) -> Tensor:
        return self.value.expand(known(self.sizes, others))


class Range(Operation):
    """Numbers from a start to before an end, which depend on the shapes of other values."""

    like: Tensor

    def __init__(self, ends: Sequence[Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.ends = tuple(ends)
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, *others: Tensor) -> Tensor:
        start, end, step = known(self.ends, others)
        return torch.arange(start, end, step, dtype=self.like.dtype, device=self.like.device)


class Pad(Operation):
    """Add numbers around; `pads` are pairs from the last axis back, as in F.pad, and negative ones cut."""

    def __init__(self, pads: Sequence[Any], mode: str, value: float = 0.0) -> None:
        super().__init__()
        self.pads, self.mode, self.value = tuple(pads), mode, value

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        pads = known(self.pads, (x, *others))
        if self.mode == "constant" and x.dtype != torch.bool:
            return F.pad(x, pads, value=self.value)
        for k in range(len(pads) // 2):  # torch's own ways need certain numbers of axes
            if any(pads[2 * k : 2 * k + 2]):
                x = self._along(x, x.ndim - 1 - k, *pads[2 * k : 2 * k + 2])
        return x

    def _along(self, x: Tensor, dim: int, before: int, after: int) -> Tensor:
        """Pad an axis with copies of what is there."""
        size = x.shape[dim]
        places = torch.arange(-before, size + after, device=x.device)
        if self.mode == "reflect":
            period = max(2 * (size - 1), 1)
            places = places.remainder(period)
            places = torch.where(places >= size, period - places, places)
        elif self.mode == "wrap":
            places = places.remainder(size)
        made = x.index_select(dim, places.clamp(0, size - 1))
        if self.mode == "constant":
            inside = (places >= 0) & (places < size)
            made = made & inside.reshape(-1, *[1] * (x.ndim - 1 - dim))
        return made


class DepthToSpace(Operation):
    """Move channels to places of an image; `crd` says which part of the channels names the place."""

    def __init__(self, block: int, crd: bool) -> None:
        super().__init__()
        self.block, self.crd = block, crd

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        k = self.block
        parts = x.reshape(n, c // k**2, k, k, h, w) if self.crd else x.reshape(n, k, k, c // k**2, h, w)
        order = (0, 1, 4, 2, 5, 3) if self.crd else (0, 3, 4, 1, 5, 2)
        return parts.permute(order).reshape(n, c // k**2, h * k, w * k)


class SpaceToDepth(Operation):
    """Move places of an image to channels."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        k = self.block
        parts = x.reshape(n, c, h // k, k, w // k, k)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, c * k**2, h // k, w // k)


class Triangle(Operation):
    """Keep the upper or lower triangle of matrices."""

    def __init__(self, upper: bool, diagonal: int) -> None:
        super().__init__()
        self.upper, self.diagonal = upper, diagonal

    def forward(self, x: Tensor) -> Tensor:
        return x.triu(self.diagonal) if self.upper else x.tril(self.diagonal)
