"""The stitched network: a frozen network plus a small MLP that sees one point's own features and nothing else."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.wrappers.base import Wrapper


class Stitched(Wrapper):
    """base(x, ...) + mlp(x): whatever the base takes from other points, a change of the MLP does not pass on.

    Args:
        base: the network as it was; kept as the submodule `base`, frozen and always in eval mode.
        mlp: (n, features) to (n, outputs). As `OwnMLP` makes it, it adds exactly nothing at first.

    Example:
        >>> base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> stitched, x = Stitched(base, OwnMLP(4, 3)), torch.ones(2, 4)
        >>> torch.equal(stitched(x), base(x))
        True
    """

    carries: ClassVar[str] = "the stitched MLP's weights less those it began with, beside the original weights"

    def __init__(self, base: nn.Module, mlp: OwnMLP) -> None:
        super().__init__(base.requires_grad_(False))
        self.mlp = mlp

    @property
    def change(self) -> dict[str, Tensor]:
        """The MLP's weights less those it began with, by name; nothing else has changed."""
        return {f"mlp.{name}": value for name, value in self.mlp.change.items()}

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Stitched:
        weights = [tensors[f"mlp.layers.{k}.weight"] for k in range(sum("layers" in name for name in tensors) // 2)]
        with torch.device("meta"):  # weights of the sizes that are named may not fit in memory
            mlp = OwnMLP(weights[0].shape[1], len(weights[-1]), hidden=len(weights[0]), depth=len(weights))
        made = cls(base, mlp.to(tensors["mlp.scale"].dtype))
        made.fill(tensors)
        return made

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.mlp.added(x, self.base(x, *args, **kwargs))


class OwnMLP(nn.Module):
    """An MLP on each point's own features, whose last layer is zero at first.

    Args:
        features: numbers per point.
        outputs: numbers per point.
        hidden: units per hidden layer.
        depth: linear layers, the last one included; 1 makes it an affine map.
        scale: features are multiplied by it first, so that one step size suits points of any size.
        seed: for the weights before the last layer.
    """

    scale: Tensor

    def __init__(
        self, features: int, outputs: int, *, hidden: int = 32, depth: int = 2, scale: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("scale", torch.tensor(scale))
        sizes = [features, *[hidden] * (depth - 1), outputs]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.zero_()
        for index, layer in enumerate(self.layers):  # no part of the state: what is saved is the network
            for name, value in layer.named_parameters():
                self.register_buffer(f"_start_{index}_{name}", value.detach().clone(), persistent=False)

    @property
    def change(self) -> dict[str, Tensor]:
        """The weights less those it began with, by name."""
        start = {name.removeprefix("_start_"): value for name, value in self.named_buffers()}
        return {
            f"layers.{index}.{name}": value.detach() - start[f"{index}_{name}"]
            for index, layer in enumerate(self.layers)
            for name, value in layer.named_parameters()
        }

    def forward(self, own: Tensor) -> Tensor:
        h = own * self.scale
        for layer in self.layers[:-1]:
            h = torch.relu(layer(h))
        y: Tensor = self.layers[-1](h)
        return y

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y (n, ...) plus the MLP's outputs at the points x (n, ...).

        Raises:
            InvalidInput: the points do not have as many features as the MLP was made for.
        """
        own = x.reshape(x.shape[0], -1)  # len() of a tensor would fix the batch size of an exported network
        if own.shape[1] != self.features or own.shape[0] != y.shape[0]:
            raise InvalidInput(
                f"The stitched MLP sees {self.features} features of each point and one point per output, got a first "
                f"argument of shape {tuple(x.shape)} and outputs of shape {tuple(y.shape)}."
            )
        more: Tensor = self(own.to(self.scale.dtype))
        return y + more.reshape(y.shape)
