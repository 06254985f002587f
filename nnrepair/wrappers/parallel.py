"""Units beside a layer: each adds its value to what the layer returns, as far as a point's query activates its key."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.running import outputs
from nnrepair.wrappers.base import Wrapper


class Parallel(Wrapper):
    """A network in which relu(query . key + bias) value is added, for each of some units, to what a layer returns.

    A query is what the layer takes: of linear layers at each position, of convolutions the mean over positions, and
    the value is then added at all of them; of layers of graph networks each node's own. Where no unit is active the
    outputs are the base's.

    Args:
        base: the network as it was; kept as the submodule `base`, in eval mode.
        layer: the name of one of its modules.
        keys: (units, features); biases: (units,); values: (units, width of what the layer returns).

    Example:
        >>> base, x = nn.Sequential(nn.Linear(2, 2)), torch.eye(2)
        >>> made = Parallel(base, "0", torch.tensor([[1.0, 0.0]]), torch.tensor([-0.5]), torch.ones(1, 2))
        >>> (made(x) - base(x)).detach().round(decimals=4).tolist()
        [[0.5, 0.5], [0.0, 0.0]]
    """

    carries: ClassVar[str] = "the units (keys, biases, values) that the network carries beside the original weights"

    def __init__(self, base: nn.Module, layer: str, keys: Tensor, biases: Tensor, values: Tensor) -> None:
        super().__init__(base)
        if keys.ndim != 2 or values.ndim != 2 or biases.ndim != 1 or not len(keys) == len(biases) == len(values):
            shapes = tuple(keys.shape), tuple(biases.shape), tuple(values.shape)
            raise InvalidInput(f"Units have keys (k, features), biases (k,) and values (k, width), got {shapes}.")
        base.get_submodule(layer)
        self.layer = layer
        self.keys, self.biases = nn.Parameter(keys.detach().clone()), nn.Parameter(biases.detach().clone())
        self.values = nn.Parameter(values.detach().clone())

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def settings(self) -> dict[str, Any]:
        return {"layer": self.layer}

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Parallel:
        return cls(base, settings["layer"], tensors["keys"], tensors["biases"], tensors["values"])

    def forward(self, x: Any = None, *more: Any, **named: Any) -> Any:
        # Not *inputs: exporters match the names of arguments.
        given = () if x is None else (x, *more)

        def added(module: nn.Module, taken: tuple[Any, ...], out: Any) -> Any:
            query = query_of(module, taken, out, self.layer)
            if query.shape[-1] != self.keys.shape[1] or width_of(module, out) != self.values.shape[1]:
                raise InvalidInput(
                    f"The units are for {self.keys.shape[1]} features and {self.values.shape[1]} outputs; layer "
                    f"{self.layer!r} has {query.shape[-1]} and {width_of(module, out)}."
                )
            return out + beside(module, self.activity(query.to(self.keys.dtype)) @ self.values, out)

        handle = self.base.get_submodule(self.layer).register_forward_hook(added)
        try:
            return self.base(*given, **named)
        finally:
            handle.remove()

    def activity(self, query: Tensor) -> Tensor:
        """Return (..., units) of queries (..., features)."""
        return torch.relu(query @ self.keys.T + self.biases)


def without_units(base: nn.Module, layer: str, few: AnyInputs) -> Parallel:
    """Return the network with no units beside a layer yet.

    Args:
        base, layer: the network, which becomes the base; and the name of one of its modules.
        few: points on which it runs.

    Raises:
        UnsupportedModel: the layer takes or returns no rows of numbers, or does not run exactly once.
    """
    queries = Queries(base, layer)
    features = outputs(queries, few).shape[-1]
    like = next(p for p in base.parameters() if p.dtype.is_floating_point)
    sizes = (0, features), (0,), (0, queries.width)
    return Parallel(base, layer, *(like.new_zeros(size) for size in sizes))


class Queries(nn.Module):
    """What a layer takes, as a network: (n, ..., features), of points or of each position; see `Parallel`.

    Args:
        base: the network.
        layer: the name of one of its modules.
    """

    def __init__(self, base: nn.Module, layer: str) -> None:
        super().__init__()
        self.base, self.layer = base, layer
        #: How many numbers the layer returns at each position, once it has run.
        self.width = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        seen: list[Tensor] = []

        def noted(module: nn.Module, taken: tuple[Any, ...], out: Any) -> None:
            seen.append(query_of(module, taken, out, self.layer))
            self.width = width_of(module, out)

        handle = self.base.get_submodule(self.layer).register_forward_hook(noted)
        try:
            self.base(*args, **kwargs)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise UnsupportedModel(
                f"Layer {self.layer!r} runs {len(seen)} times in one pass, not once. Choose another layer."
            )
        return seen[0]


def query_of(module: nn.Module, taken: tuple[Any, ...], out: Any, layer: str) -> Tensor:
    """Return (n, ..., features), what units read of a layer at work.

    Raises:
        UnsupportedModel: the layer takes no numbers, or other rows than it returns.
    """
    x = taken[0] if taken else None
    if isinstance(x, Tensor) and isinstance(out, Tensor) and x.dtype.is_floating_point and min(x.ndim, out.ndim) > 1:
        if _is_image(module) and len(x) == len(out):
            return x.flatten(2).mean(2)
        if x.shape[:-1] == out.shape[:-1]:
            return x
    raise UnsupportedModel(f"Layer {layer!r} does not take and return one row of numbers each. Choose another layer.")


def width_of(module: nn.Module, out: Tensor) -> int:
    """Return how many numbers a layer returns at each position."""
    return out.shape[1] if _is_image(module) else out.shape[-1]


def beside(module: nn.Module, more: Tensor, out: Tensor) -> Tensor:
    """Return what units say, in the shape of what the layer returns."""
    more = more.to(out.dtype)
    return more.reshape(*more.shape, *[1] * (out.ndim - 2)) if _is_image(module) else more


def _is_image(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
