"""Clipping between two ends, either of which may be infinite: Clip, Hardtanh, ReLU6."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.extremes import above, below
from nnrepair.verify.reading.builder import Builder, Unreadable, Value


def clipped(b: Builder, x: Value, low: Any = None, high: Any = None) -> Value:
    """Return max(x, low), and the minimum of that and high; None is no end."""
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if any(not isinstance(end, int | float) for end in (low, high)):
        raise Unreadable("its ends are no plain numbers")
    x = x if low == -math.inf else above(b, x, low)
    return x if high == math.inf else below(b, x, high)


LAYERS: Layers = {
    nn.ReLU6: lambda b, layer, x: clipped(b, x, 0.0, 6.0),
    nn.Hardtanh: lambda b, layer, x: clipped(b, x, layer.min_val, layer.max_val),
}


def _clamp(b: Builder, x: Value, min: Any = None, max: Any = None) -> Value:
    return clipped(b, x, min, max)


FUNCTIONS: Functions = {
    F.relu6: lambda b, x: clipped(b, x, 0.0, 6.0),
    F.hardtanh: lambda b, x, min_val=-1.0, max_val=1.0: clipped(b, x, min_val, max_val),
    **dict.fromkeys((torch.clamp, torch.clip, ".clamp", ".clip"), _clamp),
}
