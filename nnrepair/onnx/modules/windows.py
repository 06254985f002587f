"""What slides over images beside torch's own layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.onnx.modules.base import Operation
from nnrepair.onnx.modules.shapes import Pad
from nnrepair.onnx.sizes import known

MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


class SamePad(Operation):
    """Pad so that a window with a stride has ceil(size / stride) places; what is uneven comes last, or first.

    Attributes:
        spans: how far each window reaches.
    """

    def __init__(self, spans: Sequence[int], stride: Sequence[int], lower: bool, value: float) -> None:
        super().__init__()
        self.spans, self.stride, self.lower, self.value = tuple(spans), tuple(stride), lower, value

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, span, stride in zip(x.shape[2:], self.spans, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            small, large = total // 2, total - total // 2
            pads = [*((large, small) if self.lower else (small, large)), *pads]
        return F.pad(x, pads, value=self.value)


class AveragePool(Operation):
    """Average over windows whose padding is uneven, or that are dilated; sizes are per spatial axis.

    Attributes:
        pads: pairs (before, after); none where `same` says how to pad.
        ceil: whether a last window may reach beyond the padding.
        counted: whether padding counts among the numbers of a window.
    """

    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        pads: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        ceil: bool,
        counted: bool,
        same: SamePad | None = None,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.pads, self.dilation = tuple(kernel), tuple(stride), tuple(pads), tuple(dilation)
        self.ceil, self.counted = ceil, counted
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones_like(x[:1, :1])
        if self.same is not None:
            padded, weights = self.same(x), self.same(ones)
            weights = torch.ones_like(weights) if self.counted else weights
        else:
            flat = [n for pair in reversed(self.pads) for n in pair]
            padded, weights = F.pad(x, flat), F.pad(ones, flat, value=float(self.counted))
        beyond: list[int] = []
        for size, kernel, stride, dilation, (_, after) in zip(
            padded.shape[2:],
            self.kernel,
            self.stride,
            self.dilation,
            self.pads or [(0, 0)] * len(self.kernel),
            strict=True,
        ):
            span = (kernel - 1) * dilation + 1
            places = -(-(size - span) // stride) + 1 if self.ceil else (size - span) // stride + 1
            if self.ceil and (places - 1) * stride >= size - after:  # no window begins in the padding behind
                places -= 1
            beyond = [0, (places - 1) * stride + span - size, *beyond]
        padded, weights = F.pad(padded, beyond), F.pad(weights, beyond)
        return self._sums(padded) / self._sums(weights)

    def _sums(self, x: Tensor) -> Tensor:
        for axis, (kernel, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), 2):
            places = (x.shape[axis] - (kernel - 1) * dilation - 1) // stride + 1
            parts = [
                x[(*[slice(None)] * axis, slice(k * dilation, k * dilation + (places - 1) * stride + 1, stride))]
                for k in range(kernel)
            ]
            x = torch.stack(parts).sum(0)
        return x


class GlobalMaxPool(Operation):
    """The largest number of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax([*range(2, x.ndim)], True)


class LpPool(Operation):
    """(sum |x|^p)^(1/p) over windows without padding, or over whole channels."""

    def __init__(self, p: float, pool: AveragePool | None, count: int) -> None:
        super().__init__()
        self.p, self.count = p, count
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        powers = x.abs().pow(self.p)
        total = powers.sum([*range(2, x.ndim)], True) if self.pool is None else self.pool(powers) * self.count
        return total.pow(1 / self.p)


class Crop(Operation):
    """Cut or extend the spatial axes of what a transposed convolution gives; pairs (before, after) for each."""

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.pairs = tuple(pairs)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, [-n for pair in reversed(self.pairs) for n in pair])


class RuntimeConv(Operation):
    """A convolution whose weight another part of the model computes."""

    def __init__(self, stride: Sequence[int], dilation: Sequence[int], groups: int, pad: nn.Module | None) -> None:
        super().__init__()
        self.stride, self.dilation, self.groups = tuple(stride), tuple(dilation), groups
        self.pad = pad

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x if self.pad is None else self.pad(x)
        conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
        return conv(x, weight, bias, self.stride, 0, self.dilation, self.groups)


class Resize(Operation):
    """Change the sizes of axes by interpolation, as ONNX describes it: `where` an output lies in the input, and `how`.

    Attributes:
        dims: the axes that change.
        sizes: of the result along these; `Size`s where they depend on shapes, or None: as the factors say.
        factors: result / input along these, or None: as the sizes say.
        how: "nearest", "linear" or "cubic".
        where: the name that ONNX has for the transformation of coordinates.
        rounding: which neighbour is the nearest.
        cubic: the coefficient a of cubic interpolation.
        exclude: whether weights outside the input are left out.
        outside: what lies outside, for `tf_crop_and_resize`.
        roi: pairs (start, end) for each axis, likewise.
    """

    def __init__(
        self,
        dims: Sequence[int],
        sizes: Sequence[Any] | None,
        factors: Sequence[float] | None,
        how: str,
        where: str,
        rounding: str,
        cubic: float = -0.75,
        exclude: bool = False,
        outside: float = 0.0,
        roi: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.dims, self.how, self.where, self.rounding = tuple(dims), how, where, rounding
        self.sizes = None if sizes is None else tuple(sizes)
        self.factors = None if factors is None else tuple(factors)
        self.cubic, self.exclude, self.outside, self.roi = cubic, exclude, outside, roi

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        old = [x.shape[dim] for dim in self.dims]
        if self.sizes is not None:
            new = known(self.sizes, (x, *others))
        else:
            assert self.factors is not None
            new = [math.floor(size * factor) for size, factor in zip(old, self.factors, strict=True)]
        for k, (dim, before, after) in enumerate(zip(self.dims, old, new, strict=True)):
            factor = self.factors[k] if self.factors is not None else after / before
            if factor == 1 and before == after and self.where != "tf_crop_and_resize":
                continue
            x = self._along(x, dim, before, after, factor, k)
        return x

    def _along(self, x: Tensor, dim: int, before: int, after: int, factor: float, k: int) -> Tensor:
        kind = x.dtype if x.dtype == torch.float64 else torch.float32  # as onnxruntime computes coordinates
        place = self._places(torch.arange(after, device=x.device, dtype=kind), before, after, factor, k)
        outside = (place < 0) | (place > before - 1)
        if self.how == "nearest":
            made = x.index_select(dim, self._nearest(place).clamp(0, before - 1).long())
        else:
            made = self._weighed(x, dim, place, before)
        if self.where == "tf_crop_and_resize":
            outside = outside.reshape(-1, *[1] * (x.ndim - 1 - dim))
            made = torch.where(outside, torch.full_like(made, self.outside), made)
        return made

    def _places(self, at: Tensor, before: int, after: int, factor: float, k: int) -> Tensor:
        if self.where == "asymmetric":
            return at / factor
        if self.where == "align_corners":
            return at * (before - 1) / (after - 1) if after > 1 else torch.zeros_like(at)
        if self.where == "pytorch_half_pixel" and after == 1:
            return torch.zeros_like(at)
        if self.where == "half_pixel_symmetric":
            adjustment = after / (factor * before)
            offset = before / 2 * (1 - adjustment)
            return offset + (at + 0.5) / factor - 0.5
        if self.where == "tf_half_pixel_for_nn":
            return (at + 0.5) / factor
        if self.where == "tf_crop_and_resize":
            assert self.roi is not None
            start, end = self.roi[k]
            if after == 1:
                return torch.full_like(at, 0.5 * (start + end) * (before - 1))
            return start * (before - 1) + at * (end - start) * (before - 1) / (after - 1)
        return (at + 0.5) / factor - 0.5

    def _nearest(self, place: Tensor) -> Tensor:
        if self.rounding == "floor":
            return place.floor()
        if self.rounding == "ceil":
            return place.ceil()
        if self.rounding == "round_prefer_ceil":
            return (place + 0.5).floor()
        return (place - 0.5).ceil()

    def _weighed(self, x: Tensor, dim: int, place: Tensor, before: int) -> Tensor:
        """Add neighbours along an axis, with weights."""
        base = place.floor()
        ratio = place - base
        if self.how == "linear":
            terms = [(0, 1 - ratio), (1, ratio)]
        else:
            a = self.cubic
            terms = [(-1, _far(ratio + 1, a)), (0, _near(ratio, a)), (1, _near(1 - ratio, a)), (2, _far(2 - ratio, a))]
        if self.exclude:
            inside = [((base + k >= 0) & (base + k < before)).to(place.dtype) for k, _ in terms]
            total = torch.stack([w * i for (_, w), i in zip(terms, inside, strict=True)]).sum(0)
            terms = [(k, w * i / total) for (k, w), i in zip(terms, inside, strict=True)]
        made: Tensor | None = None
        for k, weight in terms:
            part = x.index_select(dim, (base + k).clamp(0, before - 1).long())
            part = part * weight.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - dim))
            made = part if made is None else made + part
        assert made is not None
        return made


def _near(d: Tensor, a: float) -> Tensor:
    """Return the weight of cubic interpolation for neighbours within a distance of 1."""
    return ((a + 2) * d - (a + 3)) * d * d + 1


def _far(d: Tensor, a: float) -> Tensor:
    """Return the weight for neighbours at a distance from 1 to 2."""
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


class GridSample(Operation):
    """F.grid_sample."""

    def __init__(self, mode: str, padding: str, align_corners: bool) -> None:
        super().__init__()
        self.mode, self.padding, self.align_corners = mode, padding, align_corners

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, self.mode, self.padding, self.align_corners)


__all__ = ["AveragePool", "Crop", "GlobalMaxPool", "GridSample", "LpPool", "Pad", "Resize", "RuntimeConv", "SamePad"]
