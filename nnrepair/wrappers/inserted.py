"""The inserted block: before one linear layer stands a small residual network, and all else is what it was."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.wrappers.base import Wrapper


class Inserted(Wrapper):
    """A network in which one layer sees h + block(h) in place of its input h.

    Args:
        base: the network as it was; kept as the submodule `base`, in eval mode.
        layer: the name of one of its linear layers.
        block: made for as many features as the layer takes. As `EditingBlock` begins, it adds exactly nothing.

    Raises:
        InvalidInput: there is no such layer, or it takes another number of features.

    Example:
        >>> base, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.ones(2, 4)
        >>> torch.equal(Inserted(base, "2", EditingBlock(8, 16))(x), base(x))
        True
    """

    carries: ClassVar[str] = "the block's weights, which the network carries beside the original ones"

    def __init__(self, base: nn.Module, layer: str, block: EditingBlock) -> None:
        super().__init__(base)
        linear = dict(base.named_modules()).get(layer)
        if not isinstance(linear, nn.Linear) or linear.in_features != block.features:
            given = f"a {type(linear).__name__}" if linear is not None else "no layer"
            raise InvalidInput(
                f"A block of {block.features} features goes before a linear layer with as many inputs; {layer!r} is "
                f"{f'one with {linear.in_features}' if isinstance(linear, nn.Linear) else given}."
            )
        self.layer, self.block = layer, block

    @property
    def settings(self) -> dict[str, Any]:
        return {"layer": self.layer}

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Inserted:
        weight = tensors["block.inner.weight"]
        with torch.device("meta"):  # weights of the sizes that are named may not fit in memory
            block = EditingBlock(weight.shape[1], weight.shape[0])
        made = cls(base, settings["layer"], block.to(weight.dtype))
        made.fill(tensors)
        return made

    def forward(self, x: Any = None, *more: Any, **named: Any) -> Any:
        # Not *inputs: exporters match the names of arguments.
        given = () if x is None else (x, *more)
        runs = 0

        def before(module: nn.Module, seen: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal runs
            runs += 1
            return self.block(seen[0]), *seen[1:]

        handle = self.base.get_submodule(self.layer).register_forward_pre_hook(before)
        try:
            y = self.base(*given, **named)
        finally:
            handle.remove()
        if not runs:
            raise UnsupportedModel(f"Layer {self.layer!r} does not run in a pass of the network. Choose another layer.")
        return y


class EditingBlock(nn.Module):
    """h + outer(relu(inner(h))) for features h (n, ..., features), with `outer` zero at first.

    Args:
        features: numbers per point.
        hidden: units.
        generator: of the weights of `inner`.
    """

    def __init__(self, features: int, hidden: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.features = features
        with torch.random.fork_rng(devices=[]):
            self.inner, self.outer = nn.Linear(features, hidden), nn.Linear(hidden, features)
        with torch.no_grad():
            self.inner.weight.normal_(0, (2 / features) ** 0.5, generator=generator)
            for parameter in (self.inner.bias, *self.outer.parameters()):
                parameter.zero_()

    def forward(self, h: Tensor) -> Tensor:
        added: Tensor = self.outer(torch.relu(self.inner(h)))
        return h + added
