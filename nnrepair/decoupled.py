"""The decoupled network: a change of weights that moves values but never switches an activation.

Sotoudeh & Thakur (PLDI 2021) run two channels. The activation channel is the original network and decides which units
are active; the value channel carries the change through the same linear pieces. Its output is the original's output
plus the first-order effect of the change, f(x) + J(x) Delta: exactly linear in Delta, for every layer.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Decoupled(nn.Module):
    """f(x) + J(x) Delta as an ordinary module: it can be saved, moved, exported to ONNX, and repaired again.

    Args:
        model: the network f; kept as the submodule `base` (a copy, frozen in eval mode).
        change: Delta, by parameter name; kept as buffers in the base's dtype.

    Example:
        >>> base = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> Decoupled(base, {"0.bias": torch.ones(2)})(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """

    def __init__(self, model: nn.Module, change: dict[str, Tensor]) -> None:
        super().__init__()
        self.base = copy.deepcopy(model)
        self.names = list(change)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for index, (name, delta) in enumerate(change.items()):
            like = parameters[name]
            self.register_buffer(f"change_{index}", delta.to(like.device, like.dtype).detach().clone())

    @property
    def change(self) -> dict[str, Tensor]:
        """Delta, by parameter name."""
        return {name: getattr(self, f"change_{index}") for index, name in enumerate(self.names)}

    def forward(self, *inputs: Any) -> Tensor:
        parameters = dict(self.base.named_parameters(remove_duplicate=False))
        rest = {n: p for n, p in parameters.items() if n not in self.names} | dict(self.base.named_buffers())

        def run(chosen: dict[str, Tensor]) -> Tensor:
            y: Tensor = torch.func.functional_call(self.base, {**rest, **chosen}, inputs)
            return y

        start = {n: parameters[n] for n in self.names}
        moved: tuple[Tensor, Tensor] = torch.func.jvp(run, (start,), (self.change,))  # type: ignore[assignment]
        return moved[0] + moved[1]
