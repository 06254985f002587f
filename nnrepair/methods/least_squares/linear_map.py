"""One layer of a network as a linear map of keys: what it is applied to, what it says, and how it changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.jacobian import layers
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.tangents import canonical
from nnrepair.spec.inputs import AnyInputs, independent
from nnrepair.spec.network import plain
from nnrepair.wrappers.codebook import Seen

#: What says, for so many dimensions, which parts of a picture hold something.
_POOLED = {
    1: nn.functional.adaptive_max_pool1d,
    2: nn.functional.adaptive_max_pool2d,
    3: nn.functional.adaptive_max_pool3d,
}


class LinearMap:
    """A layer whose outputs are (W k) at one key k of each position; a one in the key stands for a bias.

    Linear layers have a position for each token, convolutions one for each patch, and the layers of graph networks one
    for each node, whose key is what it gathers from its neighbours.

    Args:
        model: left alone.
        layer: the name of a module of it.
        points: the edits, and further points that will be asked for.

    Raises:
        InvalidInput: there is no such layer, it is frozen, or it is no linear map.
        UnsupportedModel: it does not run exactly once in a pass.
    """

    def __init__(self, model: nn.Module, layer: str, points: Sequence[AnyInputs]) -> None:
        self.layer = layer
        names = _parameters(model, layer)
        seen = Seen(model, layer, output=True).eval()
        self._linear = Linearization(seen, [f"base.{name}" for name in names], points[0], points[1:])
        if not self._linear.ends_affine:
            raise InvalidInput(
                f"Layer {plain(layer)!r} ({type(model.get_submodule(layer)).__name__}) is no linear map of one key for "
                f"each position, as linear layers, convolutions without groups, GCN and GraphSAGE have. Choose one of "
                f"{', '.join(layers.weighted(model)) or 'another network'}."
            )
        #: Of the network's parameters, those of the layer.
        self.names = names
        self._image = isinstance(model.get_submodule(layer), nn.Conv1d | nn.Conv2d | nn.Conv3d)

    def seen(self, inputs: AnyInputs) -> tuple[Tensor, Tensor]:
        """Return (n, positions, inp) keys and (n, positions, out) values, float64."""
        keys, values = self._linear.by_position(inputs)
        return keys, self.by_position(values)

    def by_position(self, values: Tensor) -> Tensor:
        """Return what the layer returns, (n, ...), or changes of that, as (n, positions, out)."""
        if self._image:
            return values.flatten(2).transpose(1, 2)
        return values.reshape(len(values), -1, values.shape[-1])

    def places(self, inputs: AnyInputs, marked: Tensor | None) -> Tensor:
        """Return (n, positions) bool, at which positions the layer sees something of marked places.

        Args:
            inputs: n points.
            marked: (n, ...) bool: pixels, where the layer is a convolution, of which a position sees its share of the
                picture; else as many places as the layer has positions. Without them all positions count.

        Raises:
            InvalidInput: other numbers of places.
        """
        keys, values = self._linear.by_position(inputs)
        count = (len(keys), keys.shape[1])
        filled = None if isinstance(inputs, Tensor) else inputs.filled()
        if marked is None:
            return filled.cpu() if filled is not None and filled.shape == count else torch.ones(count, dtype=torch.bool)
        marked, size = marked.cpu(), values.shape[2:]
        if count[1] == 1:
            return torch.ones(count, dtype=torch.bool)
        if self._image and marked.ndim == values.ndim - 1 and len(size) in _POOLED:
            return _POOLED[len(size)](marked.double(), size).flatten(1) > 0
        if marked.flatten(1).shape != count:
            raise InvalidInput(
                f"Layer {plain(self.layer)!r} works on {count[1]} positions, and places are marked in "
                f"{tuple(marked.shape)}. Mark pixels where it is a convolution, else one place for each position."
            )
        return marked.flatten(1)

    def moment(self, inputs: AnyInputs) -> Tensor:
        """Return (inp, inp) the mean of k k^T over points and positions, read in batches."""
        moment = torch.from_numpy(self._linear.second_moments(inputs)[0])
        filled = None if isinstance(inputs, Tensor) else inputs.filled()
        if filled is not None:
            return moment * len(filled) / filled.sum().item()
        few = inputs[torch.zeros(1, dtype=torch.long)] if independent(inputs) else inputs
        return moment / self._linear.by_position(few)[0].shape[1]

    @property
    def inputs(self) -> int:
        """How many numbers a key has."""
        return self._linear.groups[0].head.inp

    def change(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return a change (out, inp) of the map by the names of the network's parameters, differentiable."""
        parts = self._linear.groups[0].head.apart(matrix)
        return {name.removeprefix("base."): part for name, part in parts.items()}


def _parameters(model: nn.Module, layer: str) -> list[str]:
    """Return the trainable parameters of a module, refusing one without."""
    names = _own(model, layer)
    if not names:
        first = canonical(model)
        mine = [f"{layer}.{name}" for name, _ in model.get_submodule(layer).named_parameters()]
        shared = {first[name] for name in mine} - set(mine)
        why = f" of its own: {', '.join(sorted(shared))} is another layer's too" if shared else ""
        known = ", ".join(layers.weighted(model))
        raise InvalidInput(f"Layer {plain(layer)!r} has no parameters that may change{why}. Layers: {known}.")
    return names


def _own(model: nn.Module, layer: str) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and name.startswith(f"{layer}.")]
