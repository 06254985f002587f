"""Layers with weights, and normalisation, that torch has in another form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.onnx.modules.base import Operation


class Embedding(nn.Embedding):
    """Rows of a table; negative numbers count from its end."""

    def forward(self, input: Tensor) -> Tensor:
        index = torch.where(input < 0, input + self.num_embeddings, input)
        return F.embedding(index, self.weight)


class Transposed(Operation):
    """Swap the last two axes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)


class Product(Operation):
    """Gemm of values: alpha A B + beta C, with A or B transposed."""

    def __init__(self, alpha: float, beta: float, turn_a: bool, turn_b: bool) -> None:
        super().__init__()
        self.alpha, self.beta, self.turn_a, self.turn_b = alpha, beta, turn_a, turn_b

    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = (a.T if self.turn_a else a) @ (b.T if self.turn_b else b)
        y = y if self.alpha == 1 else self.alpha * y
        return y if c is None else y + (c if self.beta == 1 else self.beta * c).expand_as(y)


class Normalized(nn.Module):
    """Layer or root-mean-square normalisation over the axes from `axis` on, with weights of any shape that broadcasts.

    Attributes:
        centred: whether the mean is subtracted first.
    """

    def __init__(self, axis: int, eps: float, centred: bool, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.axis, self.eps, self.centred = axis, eps, centred
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        dims = [*range(self.axis, x.ndim)]
        x = x - x.mean(dims, True) if self.centred else x
        x = x / (x.square().mean(dims, True) + self.eps).sqrt() * self.weight
        return x if self.bias is None else x + self.bias

    def extra_repr(self) -> str:
        return f"axis={self.axis}, eps={self.eps}, centred={self.centred}"


class GroupScale(nn.Module):
    """A factor and a shift for each group of channels (GroupNormalization of opset 18)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        each = x.shape[1] // len(self.weight)
        along = (-1, *[1] * (x.ndim - 2))
        return x * self.weight.repeat_interleave(each).reshape(along) + self.bias.repeat_interleave(each).reshape(along)


class RuntimeNorm(Operation):
    """Batch normalisation whose statistics or weights another part of the model computes."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        along = (-1, *[1] * (x.ndim - 2))
        factor = scale / (var + self.eps).sqrt()
        return x * factor.reshape(along) + (shift - mean * factor).reshape(along)
