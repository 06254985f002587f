"""What acts on each number by itself, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.onnx.modules.base import Operation


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
    """Divide two tensors elementwise with broadcasting; whole numbers towards zero."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.is_floating_point():
            return a / b
        # The least whole number, which NaN is cast to, divided by -1 is none; torch ends the process (signal 8) there.
        turned = (b < 0) & (b == -1)  # 255 is -1 in uint8
        quotient = torch.div(a, torch.where(turned, torch.ones_like(b), b), rounding_mode="trunc")
        return torch.where(turned, -quotient, quotient)


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


class Sum(nn.Module):
    """The sum of some tensors, or their average, with broadcasting."""

    def __init__(self, average: bool = False) -> None:
        super().__init__()
        self.average = average

    def forward(self, *parts: Tensor) -> Tensor:
        total = reduce(torch.add, parts)
        return total / len(parts) if self.average else total


class HardSigmoid(Operation):
    """alpha x + beta, clipped to between 0 and 1."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return (self.alpha * x + self.beta).clamp(0, 1)


class HardSwish(Operation):
    """x times HardSigmoid(x)."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.alpha * x + self.beta).clamp(0, 1)


class TanhGelu(Operation):
    """x / 2 (1 + tanh(scale (x + cube x^3)))."""

    def __init__(self, scale: float, cube: float) -> None:
        super().__init__()
        self.scale, self.cube = scale, cube

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(self.scale * (x + self.cube * x**3)))


class ScaledElu(Operation):
    """gamma x above zero, gamma alpha (exp(x) - 1) below."""

    def __init__(self, alpha: float, gamma: float) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * torch.where(x > 0, x, self.alpha * torch.expm1(x))


class Swish(Operation):
    """x sigmoid(alpha x)."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.alpha * x)


class Shrink(Operation):
    """Move numbers by `bias` towards zero; those within `lambd` of it become zero."""

    def __init__(self, lambd: float, bias: float) -> None:
        super().__init__()
        self.lambd, self.bias = lambd, bias

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -self.lambd, x + self.bias, torch.where(x > self.lambd, x - self.bias, zero))


class Slope(nn.Module):
    """PRelu with slopes of any shape that broadcasts; nn.PReLU has one for each channel."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, self.weight * x, x)


class Clamp(nn.Module):
    """Keep numbers between two others, the second first; each may be missing."""

    def __init__(self, low: bool, high: bool) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        x = torch.maximum(x, ends[0]) if self.low else x
        return torch.minimum(x, ends[-1]) if self.high else x


class Cast(Operation):
    """Change the type of numbers; to floating point, in the precision that the model has (after `model.double()`)."""

    like: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.to_dtype = dtype
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.to_dtype == torch.bool:
            return x != 0
        return x.to(self.like.dtype)


def _modulo(a: Tensor, b: Tensor) -> Tensor:
    return torch.remainder(a, b)


def _power(a: Tensor, b: Tensor) -> Tensor:
    """Return a^b in the type of a: ONNX allows another type of exponent."""
    if a.is_floating_point() and not b.is_floating_point():
        b = b.to(a.dtype)
    return torch.pow(a, b).to(a.dtype)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


#: Functions of torch by the name of the ONNX operator that they are.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mod": _modulo,
    "Fmod": torch.fmod,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": _power,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Where": _where,
    "Xor": torch.logical_xor,
}


class Function(Operation):
    """A function of torch, called as its ONNX operator is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *parts: Tensor) -> Tensor:
        made: Tensor = FUNCTIONS[self.name](*parts)
        return made


class IsInf(Operation):
    """Tell where numbers are infinite, of one sign or both."""

    def __init__(self, negative: bool, positive: bool) -> None:
        super().__init__()
        self.negative, self.positive = negative, positive

    def forward(self, x: Tensor) -> Tensor:
        found = torch.isinf(x)
        if not self.negative:
            found = found & (x > 0)
        return found if self.positive else found & (x < 0)
