"""The codebook: near some keys one layer gives stored values, and everywhere else the network is what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.wrappers.base import Wrapper

#: By how much squared distances in float64 may be wrong where they are taken from products, relative to their terms.
ROUNDING = 1e-9
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Codebook(Wrapper):
    """A network in which a layer's output is replaced by a stored value wherever its key lies in a ball around a key.

    A point's key is what the layer sees of it (of convolutions and of tokens the mean over positions), for layers that
    are neither linear nor convolutions, such as those of graph networks, what the layer returns. Among the balls that
    hold a point the one with the nearest key decides. Outside of all balls the output is the base's, bit for bit, in
    whatever batch: both are computed, and each point takes its own. For that the base runs twice, but only where a ball
    holds some point and something follows the layer.

    Args:
        base: the network as it was; kept as the submodule `base`, in eval mode.
        layer: the name of one of its modules.
        keys: (k, features); values: (k, ...), each the layer's output for one point; radii: (k,).
        each: whether every position of what the layer sees is a point with a key of its own, as the tokens of a text
            are for a decoder: inputs (n, positions, features). What comes after a stored value may follow from it.

    Example:
        >>> base, keys, x = nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), torch.eye(2)
        >>> book = Codebook(base, "0", keys, torch.ones(1, 2), torch.tensor([0.5]))
        >>> torch.equal(book(x), base(x)), book(torch.zeros(1, 2))[0].tolist()
        (True, [1.0, 1.0])
    """

    keys: Tensor
    radii: Tensor
    carries: ClassVar[str] = "the codebook (keys, values, radii) that the network carries beside the original weights"
    exports: ClassVar[bool] = False

    def __init__(
        self, base: nn.Module, layer: str, keys: Tensor, values: Tensor, radii: Tensor, each: bool = False
    ) -> None:
        super().__init__(base)
        if keys.ndim != 2 or not len(keys) == len(values) == len(radii) or radii.ndim != 1:
            shapes = tuple(keys.shape), tuple(values.shape), tuple(radii.shape)
            raise InvalidInput(f"A codebook has keys (k, features), values (k, ...) and radii (k,), got {shapes}.")
        base.get_submodule(layer)
        self.layer, self.each = layer, bool(each)
        self.register_buffer("keys", keys.detach().clone())
        self.values = nn.Parameter(values.detach().clone())
        self.register_buffer("radii", radii.detach().clone())

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def settings(self) -> dict[str, Any]:
        return {"layer": self.layer} | ({"each": True} if self.each else {})

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Codebook:
        each = settings.get("each", False)
        return cls(base, settings["layer"], tensors["keys"], tensors["values"], tensors["radii"], each)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        seen = observed(self.base, self.layer, args, kwargs, each=self.each)
        y, key = seen.y, seen.key
        if not isinstance(y, Tensor) or len(y) != len(key):
            raise UnsupportedModel(
                f"Layer {self.layer!r} sees {len(key)} rows where the network returns "
                f"{len(y) if isinstance(y, Tensor) else type(y).__name__}; a codebook needs one for each point. Choose "
                "another layer."
            )
        rows = key.shape[:-1]
        entry, inside = (part.reshape(rows) for part in self.nearest(key.flatten(0, -2)))
        if not bool(inside.any()):
            return y

        def stored(out: Tensor) -> Tensor:
            if out.shape[len(rows) :] != self.values.shape[1:]:
                raise InvalidInput(
                    f"The codebook's values are {tuple(self.values.shape[1:])}, and layer {self.layer!r} returns "
                    f"{tuple(out.shape[len(rows) :])} for each point."
                )
            return torch.where(_beside(inside, out), self.values[entry].to(out.dtype), out)

        edited = stored(seen.out) if seen.last else observed(self.base, self.layer, args, kwargs, stored).y
        after = inside.cummax(1).values if self.each else inside
        return torch.where(_beside(after, y), edited, y)

    @torch.no_grad()
    def nearest(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n,) the entry with the nearest key among those whose balls hold a point, and (n,) whether any does.

        Args:
            key: (n, features).
        """
        if not len(self):
            return torch.zeros(len(key), dtype=torch.long, device=key.device), torch.zeros_like(key[:, 0]).bool()
        a, b, radii = key.double(), self.keys.double(), self.radii.double()
        squares = a.norm(dim=1, keepdim=True).square() + b.square().sum(1)
        close = squares - 2 * a @ b.T <= radii.square() + ROUNDING * squares  # the rest is surely outside
        point, ball = torch.nonzero(close, as_tuple=True)
        exact = (a[point] - b[ball]).norm(dim=1)
        apart = torch.full_like(squares, torch.inf)
        apart[point, ball] = torch.where(exact <= radii[ball], exact, torch.inf)
        least, entry = apart.min(1)
        return entry, torch.isfinite(least)


class Seen(nn.Module):
    """What a layer sees or returns, as a network: (n, ...), one row for each point.

    Args:
        base: the network.
        layer: the name of one of its modules.
        output: whether its outputs are wanted, in place of the points' keys.
        each: whether every position has a key, see `Codebook`.
    """

    def __init__(self, base: nn.Module, layer: str, output: bool = False, each: bool = False) -> None:
        super().__init__()
        self.base, self.layer, self.output, self.each = base, layer, output, each

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        # What follows gets a copy: an activation that works in place would overwrite what the layer returned.
        seen = observed(self.base, self.layer, args, kwargs, torch.clone if self.output else None, each=self.each)
        return seen.out if self.output else seen.key


@dataclass(frozen=True)
class Pass:
    """What was seen of a network in one pass.

    Attributes:
        y: its outputs.
        key: (n, features), its points' keys at a layer; (n, positions, features), where each position has one.
        out: what that layer returned.
        last: whether this very tensor, unchanged, is what the network returned: nothing follows the layer.
    """

    y: Any
    key: Tensor
    out: Tensor
    last: bool


def observed(
    base: nn.Module,
    layer: str,
    args: Any,
    kwargs: Any,
    replace: Callable[[Tensor], Tensor] | None = None,
    each: bool = False,
) -> Pass:
    """Run a network and return its outputs, and what a layer saw and returned.

    Args:
        base: the network.
        layer: the name of one of its modules.
        args, kwargs: what the network is called with.
        replace: makes what the network is to see of the layer's outputs.
        each: whether every position has a key, see `Codebook`.

    Raises:
        UnsupportedModel: the layer does not run exactly once, or has no plain outputs.
    """
    seen: list[tuple[Tensor, Tensor, int | None]] = []

    def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        if not isinstance(out, Tensor) or out.ndim < 2:
            raise UnsupportedModel(f"Layer {layer!r} returns no rows of numbers. Choose another layer.")
        seen.append((_key(module, given, out, each), out, _version(out)))
        return None if replace is None else replace(out)

    handle = base.get_submodule(layer).register_forward_hook(hook)
    try:
        y = base(*args, **kwargs)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise UnsupportedModel(f"Layer {layer!r} runs {len(seen)} times in one pass, not once. Choose another layer.")
    key, out, version = seen[0]
    return Pass(y, key, out, y is out and version is not None and version == _version(out))


def _version(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to, None where nobody counts."""
    return None if tensor.is_inference() else tensor._version


def _key(module: nn.Module, given: tuple[Any, ...], out: Tensor, each: bool) -> Tensor:
    """Return (n, features): what tells points apart at a layer, see `Codebook`."""
    linear = bool(given) and is_linear(module, given[0], out)
    if each:
        seen = given[0].detach() if linear else out.detach()
        return seen.flatten(2) if seen.ndim > 2 else seen[:, None]
    if not (linear or isinstance(module, _CONVOLUTIONS)) or not given:
        return out.detach().flatten(1)
    x: Tensor = given[0].detach()
    if linear:
        return x if x.ndim == 2 else x.flatten(1, -2).mean(1)
    return x.flatten(2).mean(2)


def is_linear(module: nn.Module, x: Tensor, out: Tensor) -> bool:
    """Whether a layer maps the last axis of x, which for GPT-2's it does with a weight (inputs, outputs)."""
    weight = getattr(module, "weight", None)
    turned = isinstance(weight, Tensor) and weight.shape == (x.shape[-1], out.shape[-1])
    return isinstance(module, nn.Linear) or (turned and x.shape[:-1] == out.shape[:-1])


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return (n, m) Euclidean distances in float64, from differences: products of matrices would cancel."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _beside(inside: Tensor, y: Tensor) -> Tensor:
    """Return (n,) or (n, positions) with as many dimensions as y (n, ...)."""
    return inside.reshape(*inside.shape, *[1] * (y.ndim - inside.ndim))
