"""Functions that are made of others, written as torch code for symbols: bounds are those of their parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.builder import Builder, Unreadable
from nnrepair.verify.reading.symbols import Table


def _times(b: Builder, x: Any, factor: float) -> Any:
    """Return x times a number that is no float."""
    return x.shaped(b.scaled(x.flat, b.constant(torch.tensor(factor, dtype=torch.float64)), inexact=4 * EPS))


def _threshold(b: Builder, x: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    return torch.where(x > threshold, x, value)


def _hardshrink(b: Builder, x: Any, lambd: float = 0.5) -> Any:
    return torch.where(x.abs() > lambd, x, 0.0)


def _softshrink(b: Builder, x: Any, lambd: float = 0.5) -> Any:
    return torch.relu(x - lambd) - torch.relu(-x - lambd)


def _leaky(b: Builder, x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *rest: Any) -> Any:
    if training:
        raise Unreadable("it is random in training mode: call model.eval()")
    return F.leaky_relu(x, (lower + upper) / 2)


def _glu(b: Builder, x: Any, dim: int = -1) -> Any:
    left, right = x.chunk(2, dim)
    return left * torch.sigmoid(right)


def _variance(b: Builder, x: Any, dim: Any = None, *rest: Any, **settings: Any) -> Any:
    """Return the variance over axes, with Bessel's correction unless told otherwise."""
    if isinstance(dim, bool) or rest:
        raise Unreadable("its arguments are not given by name")
    keepdim, correction = settings.get("keepdim", False), settings.get("correction", 1)
    correction = correction if settings.get("unbiased", True) else 0
    centred = x - x.mean(dim, True)
    total = (centred * centred).sum(dim, keepdim)
    count = x.numel() // max(1, total.numel())
    if correction is None or count <= correction:
        raise Unreadable(f"the variance of {count} numbers with correction={correction}")
    return total / (count - correction)


def _norm(b: Builder, x: Any, *how: Any, **settings: Any) -> Any:
    """Return norms over axes: of order 1, 2 or infinity."""
    names = ("p", "dim", "keepdim", "dtype")
    given = dict(zip(names, how, strict=False)) | {{"ord": "p"}.get(k, k): v for k, v in settings.items()}
    order, dim, keepdim = given.get("p", 2), given.get("dim"), given.get("keepdim", False)
    order = 2 if order in (None, "fro") else order
    if order == 1:
        return x.abs().sum(dim, keepdim)
    if order == 2:
        return torch.sqrt(torch.relu((x * x).sum(dim, keepdim)))  # its bounds are not below 0 then
    if order == math.inf:
        return x.abs().amax(() if dim is None else dim, keepdim)
    raise Unreadable(f"a norm of order {order}, expected 1, 2 or infinity")


def _normalize(b: Builder, x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Any:
    return x / _norm(b, x, p, dim, True).clamp(min=eps)


def _fmod(b: Builder, x: Any, y: Any) -> Any:
    return x - y * torch.trunc(x / y)


def _remainder(b: Builder, x: Any, y: Any) -> Any:
    return x - y * torch.floor(x / y)


def _exponential(sign: float) -> Callable[..., Any]:
    """Return the reader of (exp(x) + sign exp(-x)) / 2."""
    return lambda b, x: (torch.exp(x) + sign * torch.exp(-x)) / 2


COMPOSED: Table = {
    "mish": lambda b, x, inplace=False: x * torch.tanh(F.softplus(x)),
    **dict.fromkeys(("log_sigmoid", "logsigmoid"), lambda b, x: -F.softplus(-x)),
    "tanhshrink": lambda b, x: x - torch.tanh(x),
    "hardshrink": _hardshrink,
    "softshrink": _softshrink,
    "threshold": _threshold,
    "rrelu": _leaky,
    "glu": _glu,
    "sinh": _exponential(-1.0),
    "cosh": _exponential(1.0),
    "exp2": lambda b, x: torch.exp(_times(b, x, math.log(2))),
    "log2": lambda b, x: _times(b, torch.log(x), 1 / math.log(2)),
    "log10": lambda b, x: _times(b, torch.log(x), 1 / math.log(10)),
    "log1p": lambda b, x: torch.log(1 + x),
    "expm1": lambda b, x: torch.exp(x) - 1,
    "frac": lambda b, x: x - torch.trunc(x),
    "fmod": _fmod,
    "remainder": _remainder,
    "mod": _remainder,
    "var": _variance,
    "std": lambda b, x, *how, **more: torch.sqrt(torch.relu(_variance(b, x, *how, **more))),
    **dict.fromkeys(("norm", "linalg_norm", "linalg_vector_norm", "vector_norm"), _norm),
    "normalize": _normalize,
}
