"""What the modules of a loaded model have in common."""

from __future__ import annotations

from torch import Tensor, nn


class Operation(nn.Module):
    """Show the settings, which are the public attributes, when printed."""

    def extra_repr(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name[0] != "_" and name != "training"}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class Constant(nn.Module):
    """Return a fixed tensor, kept as the buffer `value`."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value


class Item(Operation):
    """Take one of several results."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[self.index]
