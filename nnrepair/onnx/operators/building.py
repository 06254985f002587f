"""What the functions that read operators share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from nnrepair.onnx.node import Node, Refused, Use

#: What an operator becomes: a module that reads the first input, or more; one for each output.
Made = nn.Module | Use | list[Use]
Handler = Callable[[Node], Made]


def single(number: float) -> float:
    """Round to float32: the precision of attributes, and of what stands for those that are left out."""
    return float(np.float32(number))


def filled(layer: nn.Module, **weights: Tensor | None) -> nn.Module:
    """Give a layer, made on the meta device so that nothing is drawn at random, its weights."""
    layer.load_state_dict({name: w.contiguous() for name, w in weights.items() if w is not None}, assign=True)
    return layer


def spatial(kind: str, axes: int) -> type[nn.Module]:
    """Return torch's class for so many spatial axes: ("Conv", 2) -> nn.Conv2d."""
    if axes not in (1, 2, 3):
        raise Refused(f"it has {axes} spatial axes, expected 1 to 3")
    layer: type[nn.Module] = getattr(nn, f"{kind}{axes}d")
    return layer


def joined(node: Node, module: nn.Module) -> Use:
    """Let a module read all inputs that are given."""
    return Use(module, node.given())
