"""When operators are drawn: for which types, and since which operator set."""

from __future__ import annotations

import numpy as np

from benchmarks.readers.draft import Draft, Value
from benchmarks.readers.operators import Maker, _to

REAL = (np.float32, np.float64, np.float16)


def real(make: Maker) -> Maker:
    """Draw only for floating point."""
    return lambda d, x: make(d, x) if x.dtype in REAL else None


def exact(make: Maker) -> Maker:
    """Draw what jumps for the input alone: elsewhere rounding decides on which side of a jump a number lies."""
    return lambda d, x: make(d, d.input) if d.input.dtype in REAL else None


def single(make: Maker) -> Maker:
    """Draw only for float32: onnxruntime has it for no other type, or computes in float32."""
    return lambda d, x: make(d, x) if x.dtype == np.float32 else None


def new(since: int, make: Maker) -> Maker:
    """Draw only where the operator set has it."""
    return lambda d, x: make(d, x) if d.opset >= since else None


def shifted(d: Draft, x: Value, by: float) -> Value:
    return _to(d, x, "Add", [d.store(np.array(by).astype(x.dtype))])
