"""HardSigmoid: clip(z + 3, 0, 6) / 6 in torch, clip(alpha z + beta, 0, 1) in ONNX."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from nnrepair.onnx import modules as ops
from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.activations.clip import clipped
from nnrepair.verify.reading.builder import Builder, Value


def sixths(b: Builder, x: Value) -> Value:
    """Return clip(x + 3, 0, 6) / 6; a sixth is no float."""
    sixth = torch.tensor(1 / 6, dtype=torch.float64)
    return b.scaled(clipped(b, b.scaled(x, 1.0, 3.0), 0.0, 6.0), sixth, inexact=1e-15)


LAYERS: Layers = {
    nn.Hardsigmoid: lambda b, layer, x: sixths(b, x),
    ops.HardSigmoid: lambda b, layer, x: clipped(b, b.scaled(x, layer.alpha, layer.beta), 0.0, 1.0),
}
FUNCTIONS: Functions = {F.hardsigmoid: sixths}
