"""Numbers as small integers times a scale, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.onnx.modules.base import Operation


def _along(values: Tensor, like: Tensor, axis: int, block: int) -> Tensor:
    """Give scales, one for all, one for each place of an axis, or one for each block, the shape of what they scale."""
    if values.ndim == 0 or (values.numel() == 1 and not block):
        return values.reshape(())
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])
    shape = [1] * like.ndim
    shape[axis] = -1
    return values.reshape(shape)


class Quantize(Operation):
    """round(x / scale) + zero point, within the range of a type of integers."""

    def __init__(self, axis: int, block: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.axis, self.block, self.dtype = axis, block, dtype

    def forward(self, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        ends = torch.iinfo(self.dtype)
        steps = torch.round(x / _along(scale, x, self.axis, self.block))
        if zero is not None:
            steps = steps + _along(zero, x, self.axis, self.block).to(steps.dtype)
        return steps.clamp(ends.min, ends.max).to(self.dtype)


class Dequantize(Operation):
    """(x - zero point) scale."""

    def __init__(self, axis: int, block: int) -> None:
        super().__init__()
        self.axis, self.block = axis, block

    def forward(self, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        steps = x.to(torch.int32)
        if zero is not None:
            steps = steps - _along(zero, x, self.axis, self.block).to(torch.int32)
        return steps.to(scale.dtype) * _along(scale, x, self.axis, self.block)


class DynamicQuantize(Operation):
    """Quantise to 8 bits with a scale that all numbers of the tensor give; returns numbers, scale and zero point."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round((0 - low) / scale).clamp(0, 255)
        steps = (torch.round(x / scale) + zero).clamp(0, 255)
        return steps.to(torch.uint8), scale, zero.to(torch.uint8)


class IntegerProduct(Operation):
    """A product of matrices of small integers less their zero points."""

    def forward(self, a: Tensor, b: Tensor, zero_a: Tensor | None = None, zero_b: Tensor | None = None) -> Tensor:
        a, b = a.to(torch.float64), b.to(torch.float64)  # exact, and quick; integers have no fast product
        if zero_a is not None:
            a = a - (zero_a[:, None] if zero_a.numel() > 1 else zero_a.reshape(()))
        if zero_b is not None:
            b = b - zero_b
        return (a @ b).to(torch.int32)
