"""LeakyReLU and PReLU: max(z, 0) + slope min(z, 0)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.verify.reading.activations import Functions, Layers
from nnrepair.verify.reading.builder import Builder, Unreadable, Value


def leaky(b: Builder, x: Value, slope: Tensor | float) -> Value:
    """Return max(x, 0) + slope min(x, 0); slopes broadcast to one item."""
    return b.total(b.relu(x), b.scaled(b.relu(b.scaled(x, -1.0)), -slope))


def parametric(b: Builder, x: Value, weight: Tensor) -> Value:
    """Do so with a slope for each channel, or one for all."""
    if weight.numel() not in (1, x.shape[0]):
        raise Unreadable(f"it has {weight.numel()} slopes, given values of shape {x.shape}")
    return leaky(b, x, weight.detach().double().reshape(-1, *[1] * (len(x.shape) - 1)))


LAYERS: Layers = {
    nn.LeakyReLU: lambda b, layer, x: leaky(b, x, layer.negative_slope),
    nn.PReLU: lambda b, layer, x: parametric(b, x, layer.weight),
}
FUNCTIONS: Functions = {
    F.leaky_relu: lambda b, x, negative_slope=0.01: leaky(b, x, negative_slope),
    F.prelu: lambda b, x, weight: parametric(b, x, weight),
}
