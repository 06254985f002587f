"""The decoupled network: a change of weights that moves values but never switches an activation.

Sotoudeh & Thakur (PLDI 2021) run two channels. The activation channel is the original network and decides which units
are active; the value channel carries the change through the same linear pieces. Its output is the original's output
plus the first-order effect of the change, f(x) + J(x) Delta: exactly linear in Delta, for every layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from nnrepair.errors import PatchError
from nnrepair.jacobian.tangents import canonical, moved_outputs
from nnrepair.spec.inputs import Arguments
from nnrepair.spec.network import copied
from nnrepair.wrappers.base import Wrapper


class Decoupled(Wrapper):
    """f(x) + J(x) Delta as an ordinary module: it can be saved, moved and exported to ONNX.

    Args:
        model: the network f; a copy is kept as the submodule `base`, always in eval mode.
        change: Delta, by parameter name; kept as buffers in the base's dtype.
        channels: compute in plain tensor operations where they are known (needed for export); False always uses
            forward-mode differentiation.

    Example:
        >>> import torch
        >>> base = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> Decoupled(base, {"0.bias": torch.ones(2)})(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """

    carries: ClassVar[str] = "the change that the decoupled network carries beside the original weights"
    keeps_regions: ClassVar[bool] = True

    def __init__(self, model: nn.Module, change: dict[str, Tensor], channels: bool = True) -> None:
        super().__init__(copied(model))
        self.channels = channels
        first = canonical(model)
        self.names = [first[name] for name in change]
        parameters = dict(model.named_parameters())
        for index, (name, delta) in enumerate(zip(self.names, change.values(), strict=True)):
            like = parameters[name]
            self.register_buffer(f"change_{index}", delta.to(like.device, like.dtype).detach().clone())

    @property
    def change(self) -> dict[str, Tensor]:
        """Delta, by parameter name."""
        return {name: getattr(self, f"change_{index}") for index, name in enumerate(self.names)}

    @property
    def settings(self) -> dict[str, Any]:
        return {"names": list(self.names), "channels": self.channels}

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Decoupled:
        parameters = dict(base.named_parameters())
        change = dict(zip(settings["names"], tensors.values(), strict=True))
        for name, delta in change.items():
            if (delta.shape, delta.dtype) != (parameters[name].shape, parameters[name].dtype):
                raise PatchError(f"the change of {name} is no change of this network.")
        return cls(base, change, bool(settings["channels"]))

    def forward(self, x: Any = None, second: Any = None, *rest: Any, **named: Any) -> Tensor:
        """Return f + J Delta at whatever the network takes: `second` are the edges where it runs on a graph."""
        # Not *inputs: exporters match the names of arguments.
        given = tuple(part for part in (x, second, *rest) if part is not None)
        inputs = x if len(given) == 1 and not named else Arguments(given, named)
        return moved_outputs(self.base, self.change, inputs, self.channels)
