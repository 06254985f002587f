"""The conditioned network: what edits ask for is added to some layers' outputs, at the points that resemble them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.wrappers.base import Wrapper

#: Points on which all edits together have less weight than this are left alone.
FLOOR = 1e-3
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Conditioned(Wrapper):
    """A network that adds a condition to the outputs of some layers; without edits it is the base, bit for bit.

    Each edit is a pair of a key and a value. With a reader, a point's condition is the mean of the values, weighted by
    how near the point's key is to theirs, beside a slot that stands for no edit; a point at which the edits together
    weigh less than `FLOOR` is left alone, bit for bit, in whatever batch. Without a reader the condition is the plain
    mean of the values, the same for every point (Garnelo et al., "Conditional neural processes", ICML 2018).

    The order of the edits does not matter, but for roundings. Points need their own rows at the layers.

    Args:
        base: the network as it was; kept as the submodule `base`, in eval mode.
        layers: names of modules that run once; their outputs are (n, width), (n, width, ...) or (n, tokens, width).
        values: (edits, sum of the widths), added at every position of the layers' outputs, or (edits, positions, sum of
            the widths), at each its own.
        keys: (edits, features), from the reader; None without one.
        reader: makes keys of what the layers return and the last one takes, and weights of keys.

    Raises:
        InvalidInput: no such layers, or pairs that are none.
    """

    keys: Tensor | None
    values: Tensor
    carries: ClassVar[str] = "the edits' values, which the network carries beside the original weights"
    exports: ClassVar[bool] = False

    def __init__(
        self,
        base: nn.Module,
        layers: Sequence[str],
        values: Tensor,
        keys: Tensor | None = None,
        reader: Reader | None = None,
    ) -> None:
        super().__init__(base)
        self.layers = list(layers)
        self.widths = [width(base, name) for name in self.layers]
        if values.ndim not in (2, 3) or values.shape[-1] != sum(self.widths):
            raise InvalidInput(f"Values have {sum(self.widths)} numbers for each edit, got {tuple(values.shape)}.")
        if (keys is None) != (reader is None) or (keys is not None and len(keys) != len(values)):
            raise InvalidInput("A reader needs a key for each of the values, and keys need a reader.")
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)
        self.reader = reader
        self.floor = FLOOR

    def __len__(self) -> int:
        return len(self.values)

    @property
    def settings(self) -> dict[str, Any]:
        return {"layers": self.layers}

    @property
    def change(self) -> dict[str, Tensor]:
        return {"values": self.values.detach()}

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Conditioned:
        reader = None
        if "keys" in tensors:
            inner = tensors["reader.inner.weight"]
            with torch.device("meta"):  # weights of the sizes that are named may not fit in memory
                reader = Reader(inner.shape[1], inner.shape[0], tensors["reader.outer.weight"].shape[0]).to(inner.dtype)
        made = cls(base, settings["layers"], tensors["values"], tensors.get("keys"), reader)
        made.fill(tensors)
        return made

    def without(self, edits: Sequence[int] | Tensor) -> Conditioned:
        """Return the network without some of its edits, by number: they are forgotten."""
        stays = torch.ones(len(self), dtype=torch.bool)
        stays[torch.as_tensor(edits, dtype=torch.long)] = False
        keys = None if self.keys is None else self.keys[stays]
        return Conditioned(self.base, self.layers, self.values[stays], keys, self.reader)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not len(self):
            return self.base(*args, **kwargs)
        if self.reader is None:
            return passed(self.base, self.layers, args, kwargs, self.values.mean(0, keepdim=True))[0]
        y, seen = passed(self.base, self.layers, args, kwargs)
        if not isinstance(y, Tensor) or len(y) != len(seen):
            raise UnsupportedModel(
                f"Layers {', '.join(self.layers)} see {len(seen)} rows where the network returns "
                f"{len(y) if isinstance(y, Tensor) else type(y).__name__}; one for each point is needed. Choose others."
            )
        assert self.keys is not None
        weights = self.reader.weights(self.reader(seen), self.keys)
        near = weights.sum(1) >= self.floor
        if not bool(near.any()):
            return y
        weights = torch.where(near[:, None], weights, torch.zeros_like(weights))
        condition = (weights @ self.values.flatten(1)).reshape(-1, *self.values.shape[1:])
        edited, _ = passed(self.base, self.layers, args, kwargs, condition)
        return torch.where(near.reshape(-1, *[1] * (y.ndim - 1)), edited, y)


class Standard(nn.Module):
    """Numbers (n, numbers) in units of their spread.

    Args:
        numbers: of these for one point.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))

    def standard(self, seen: Tensor) -> Tensor:
        """Return the numbers in units of their spread."""
        return (seen - self.mean) / self.scale


class Reader(Standard):
    """Makes keys (n, features) of what layers return and the last one takes (n, numbers), and weights of keys.

    A point's weights are the softmax over `nearness - exp(sharpness) d^2 / 8` of the squared distances d^2 to all
    keys, and 0 for no edit at all.

    Args:
        numbers: of these for one point.
        hidden: units.
        features: of a key.
    """

    def __init__(self, numbers: int, hidden: int, features: int) -> None:
        super().__init__(numbers)
        with torch.random.fork_rng(devices=[]):
            self.inner, self.outer = nn.Linear(numbers, hidden), nn.Linear(hidden, features)
        self.nearness, self.sharpness = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, seen: Tensor) -> Tensor:
        key: Tensor = self.outer(torch.relu(self.inner(self.standard(seen))))
        return key

    def weights(self, points: Tensor, keys: Tensor) -> Tensor:
        """Return (n, edits), whose rows sum to less than 1."""
        apart = (points.square().sum(1)[:, None] + keys.square().sum(1) - 2 * points @ keys.T).clamp(min=0)
        scores = self.nearness - self.sharpness.exp() * apart / 8
        return torch.cat([torch.zeros_like(scores[:, :1]), scores], 1).softmax(1)[:, 1:]


def width(model: nn.Module, layer: str) -> int:
    """Return how many numbers a layer returns: for each point, or for each position of it.

    Raises:
        InvalidInput: there is no such layer, or it does not say.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise InvalidInput(f"Layer {layer!r} not found. Layers: {', '.join(name for name in modules if name)}.")
    module = modules[layer]
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor) and bias.ndim == 1:
        return len(bias)
    for name in ("out_features", "out_channels", "num_features", "embedding_dim"):
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    raise InvalidInput(
        f"Layer {layer!r} ({type(module).__name__}) does not say how wide its outputs are: name another."
    )


def inputs_of(module: nn.Module) -> int:
    """Return how many numbers of each position a layer is known to take; 0 where that is not known."""
    told = (getattr(module, name, None) for name in ("in_features", "in_channels"))
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, Tensor) and isinstance(bias, Tensor) and bias.ndim == 1 and weight.ndim == 2:
        of_its_shape = weight.numel() // len(bias) if len(bias) in weight.shape else 0  # GPT-2's have no such names
    else:
        of_its_shape = 0
    return next((count for count in told if isinstance(count, int)), of_its_shape)


def seen_of(model: nn.Module, layers: Sequence[str]) -> int:
    """Return how many numbers `passed` tells of each point."""
    return sum(width(model, name) for name in layers) + inputs_of(model.get_submodule(layers[-1]))


def passed(
    base: nn.Module,
    layers: Sequence[str],
    args: Any,
    kwargs: Any,
    condition: Tensor | None = None,
    positions: dict[str, int] | None = None,
) -> tuple[Any, Tensor]:
    """Run a network and return its outputs, and (n, `seen_of`) what layers return and the last one takes, the mean
    over positions.

    Args:
        base: the network.
        layers: names of its modules.
        args, kwargs: what it is called with.
        condition: (n or 1, sum of widths), added to what the layers return, at every position; or (n or 1, positions,
            sum of widths), at each its own.
        positions: told how many each layer has, by name.

    Raises:
        UnsupportedModel: a layer does not run exactly once, returns no rows of numbers, or has other positions.
    """
    seen: dict[str, Tensor] = {}
    parts = iter(()) if condition is None else iter(torch.split(condition, [width(base, name) for name in layers], -1))
    with ExitStack() as stack:
        for name in layers:
            stack.enter_context(_watched(base, name, seen, next(parts, None), name == layers[-1], positions))
        y = base(*args, **kwargs)
    for name in layers:
        if name not in seen:
            raise UnsupportedModel(f"Layer {name!r} does not run in a pass of the network. Choose another layer.")
    if len({len(each) for each in seen.values()}) > 1:
        raise UnsupportedModel(f"Layers {', '.join(layers)} see different numbers of rows. Choose others.")
    return y, torch.cat([seen[name] for name in layers], 1)


@contextmanager
def _watched(
    base: nn.Module,
    layer: str,
    seen: dict[str, Tensor],
    added: Tensor | None,
    last: bool,
    positions: dict[str, int] | None,
) -> Iterator[None]:
    """Note what a layer returns, and the last one takes; add a condition (n or 1, ..., width) to what it returns."""

    def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        if layer in seen:
            raise UnsupportedModel(f"Layer {layer!r} runs more than once in a pass. Choose another layer.")
        if not isinstance(out, Tensor) or out.ndim < 2:
            raise UnsupportedModel(f"Layer {layer!r} returns no rows of numbers. Choose another layer.")
        axis = _axis(module, out)
        told = [given[0], out] if last and inputs_of(module) else [out]
        seen[layer] = torch.cat([_of_points(each, _axis(module, each)) for each in told], 1)
        places = out.movedim(axis, -1).shape[1:-1]
        count = math.prod(places)
        if positions is not None:
            positions[layer] = count
        if added is None:
            return None
        if added.ndim == 2:
            places = torch.Size([1] * len(places))
        elif added.shape[1] != count:
            raise UnsupportedModel(
                f"Layer {layer!r} returns {count} positions, and its conditions were made for "
                f"{added.shape[1]}: give inputs of the edits' size, or conditions that all positions share."
            )
        return out + added.to(out.dtype).reshape(len(added), *places, -1).movedim(-1, axis)

    handle = base.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _of_points(values: Tensor, axis: int) -> Tensor:
    """Return (n, features), the mean over positions."""
    return values if values.ndim == 2 else values.movedim(axis, 1).flatten(2).mean(2)


def _axis(module: nn.Module, out: Tensor) -> int:
    """Return which axis of a layer's outputs holds the features: the last, but for images and signals the second."""
    if isinstance(module, (nn.Linear, nn.LayerNorm)) or out.ndim == 2:
        return out.ndim - 1
    signals = isinstance(module, (*CONVOLUTIONS, nn.BatchNorm1d))
    return 1 if out.ndim > 3 or signals else out.ndim - 1
