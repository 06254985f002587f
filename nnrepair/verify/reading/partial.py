"""Affine maps of which some inputs are constants, and some outputs are not asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.verify.reading.affine import Affine, Dense, Diagonal, Pick, Place
from nnrepair.verify.reading.sparse import Rowwise, Sparse

#: Rows of a map are written as a matrix of so many entries at most.
MOST_ENTRIES = 250_000


class Filled(Place):
    """Free inputs at their places in a vector whose other entries are constants, within `off`."""

    off: Tensor

    def __init__(self, free: Tensor, constants: Tensor, off: Tensor) -> None:
        super().__init__(free, len(constants))
        self.bias, self.off = constants, off

    def to(self, device: torch.device) -> Filled:
        return Filled(self.index.to(device), self.bias.to(device), self.off.to(device))


class Shifted(Affine):
    """A map with another bias, within `off`."""

    off: Tensor

    def __init__(self, map: Affine, bias: Tensor, off: Tensor) -> None:
        self.map, self.bias, self.off = map, bias, off
        self.terms, self.inexact = map.terms, map.inexact

    @property
    def work(self) -> int:
        return self.map.work

    def apply(self, x: Tensor) -> Tensor:
        return self.map.apply(x)

    def magnitude(self, x: Tensor) -> Tensor:
        return self.map.magnitude(x)

    def back(self, A: Tensor) -> Tensor:
        return self.map.back(A)

    def rows(self, index: Tensor) -> Tensor:
        return self.map.rows(index)

    def to(self, device: torch.device) -> Shifted:
        return Shifted(self.map.to(device), self.bias.to(device), self.off.to(device))


def restricted(map: Affine, outputs: Tensor, inputs: Tensor, size: int) -> Affine | None:
    """Return the weights of a map between some outputs and some inputs; None where it has to stay whole.

    Args:
        map: the map.
        outputs: their numbers in order, each of which reads one of the inputs at least.
        inputs: their numbers in order.
        size: how many inputs the map has.
    """
    place = torch.full((size,), -1, dtype=torch.long, device=inputs.device)
    place[inputs] = torch.arange(len(inputs), device=inputs.device)
    if isinstance(map, Pick):
        return Pick(place[map.index[outputs]], len(inputs))
    if isinstance(map, Place):
        source = torch.full((map.outputs,), -1, dtype=torch.long, device=inputs.device)
        source[map.index] = torch.arange(len(map.index), device=inputs.device)
        return Pick(place[source[outputs]], len(inputs))
    if isinstance(map, Diagonal):
        factor = map.factor[outputs]
        if len(outputs) == len(inputs):
            return Diagonal(factor, inexact=map.inexact)
        return Sparse(place[outputs][:, None], factor[:, None], len(inputs), map.inexact)
    if isinstance(map, Sparse):
        return _sparse(map, outputs, place, len(inputs))
    if isinstance(map, Dense):
        return Dense(map.weight[outputs][:, inputs], inexact=map.inexact)
    if isinstance(map, Rowwise):
        return _rowwise(map, outputs, inputs, size)
    return None


def _sparse(map: Sparse, outputs: Tensor, place: Tensor, inputs: int) -> Sparse:
    """Return weighted sums of what is left of their entries."""
    index = place[map.index[outputs]]
    there = index >= 0
    weight = torch.ones_like(index, dtype=torch.float64) if map.weight is None else map.weight[outputs]
    _, kept = there.double().topk(int(there.sum(1).max()), 1)  # those that are there come first
    index, weight = index.gather(1, kept), (weight * there).gather(1, kept)
    plain = map.weight is None and bool((index >= 0).all())
    return Sparse(index.clamp(min=0), None if plain else weight, inputs, map.inexact)


def _rowwise(map: Rowwise, outputs: Tensor, inputs: Tensor, size: int) -> Affine | None:
    """Return the same matrix for fewer parts, or one matrix where what is left of parts differs."""
    wide, high = size // map.count, len(map.bias) // map.count
    parts, count = torch.unique(inputs // wide), len(torch.unique(inputs // wide))
    if len(inputs) % count == 0 and len(outputs) % count == 0:
        columns, rows = (inputs % wide).reshape(count, -1), (outputs % high).reshape(count, -1)
        alike = bool((columns == columns[:1]).all() and (rows == rows[:1]).all())
        if alike and torch.equal(torch.unique(outputs // high), parts):
            return Rowwise(map.one.weight[rows[0]][:, columns[0]], None, count)
    if len(outputs) * max(size, len(map.bias)) > MOST_ENTRIES:
        return None
    return Dense(map.rows(outputs)[:, inputs])
