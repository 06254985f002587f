"""The absolute value: relu(z) + relu(-z)."""

from __future__ import annotations

import operator

import torch

from nnrepair.onnx import modules as ops
from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.builder import Builder, Value


def absolute(b: Builder, x: Value) -> Value:
    """Return |x|."""
    return b.total(b.relu(x), b.relu(b.scaled(x, -1.0)))


LAYERS: Layers = {ops.Abs: lambda b, layer, x: absolute(b, x)}
FUNCTIONS: Functions = {torch.abs: absolute, ".abs": absolute, operator.abs: absolute}
