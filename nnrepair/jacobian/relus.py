"""What ReLUs are applied to while a network runs, whether they are modules or functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: The functions that are a ReLU.
RELUS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, torch.ops.aten.relu.default}


class Noted(TorchFunctionMode):
    """Note what every ReLU is applied to: `seen`, tensors in the order of their use."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELUS:
            x = args[0] if args else (kwargs or {})["input"]
            self.seen.append(x.detach().clone())  # it may work in place
        return func(*args, **(kwargs or {}))
