"""What bounding finds: lines around every activation, and linear bounds of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nnrepair.verify.reading.activations.base import Activation, Lines
from nnrepair.verify.reading.graph import Graph


@dataclass
class Relaxation:
    """What is known about the units of a batch of boxes; every list has one (boxes, units) tensor per activation node.

    Attributes:
        kinds: the activation of each node.
        lower, upper: bounds of what goes into each unit.
        lines: around each unit, for these bounds.
    """

    kinds: list[Activation] = field(default_factory=list)
    lower: list[Tensor] = field(default_factory=list)
    upper: list[Tensor] = field(default_factory=list)
    lines: list[Lines] = field(default_factory=list)

    def add(self, kind: Activation, low: Tensor, high: Tensor) -> None:
        """Add the next activation node, given bounds of what goes into it."""
        low, high = low.nan_to_num(-torch.inf, torch.inf, -torch.inf), high.nan_to_num(torch.inf, torch.inf, -torch.inf)
        self.kinds.append(kind)
        self.lower.append(low)
        self.upper.append(high)
        self.lines.append(kind.relax(low, high))

    @classmethod
    def of(cls, graph: Graph, low: Tensor, high: Tensor) -> Relaxation:
        """Return what bounds (boxes, units) of what goes into all units say."""
        made = cls()
        for kind, k in zip(graph.activations, graph.bent, strict=True):
            units = graph.nodes[k].units
            made.add(kind, low[:, units], high[:, units])
        return made

    def joined(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of all units side by side, (boxes, units); there may be none."""
        return torch.cat([boxes[:, :0], *self.lower], 1), torch.cat([boxes[:, :0], *self.upper], 1)

    def lost(self, i: int, A: Tensor) -> Tensor:
        """Return (boxes, units): what the lines of one node lose at most, multiplied by coefficients A."""
        return self.kinds[i].lost(self.lines[i], self.lower[i], self.upper[i], A)

    def __getitem__(self, index: Tensor) -> Relaxation:
        return self._made(lambda parts: parts[0][index], [self])

    @classmethod
    def stacked(cls, parts: Sequence[Relaxation]) -> Relaxation:
        """Return several, of boxes in the same network, as one."""
        return cls._made(torch.cat, parts)

    @classmethod
    def _made(cls, map: Callable[[list[Tensor]], Tensor], parts: Sequence[Relaxation]) -> Relaxation:
        """Return what a map makes of every tensor of some parts."""
        lower, upper = (
            [map(list(each)) for each in zip(*ends, strict=True)]
            for ends in ([part.lower for part in parts], [part.upper for part in parts])
        )
        lines = [Lines.made(map, each) for each in zip(*(part.lines for part in parts), strict=True)]
        return cls(parts[0].kinds, lower, upper, lines)


@dataclass
class Linear:
    """`A . x + c` for each row: A (rows, inputs), c (rows,)."""

    A: Tensor
    c: Tensor

    def minimum(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the least value over each row's box (rows, inputs); its rounding error is part of c already."""
        middle, radius = (lower + upper) / 2, (upper - lower) / 2
        return self.c + (self.A * middle).sum(1) - (self.A.abs() * radius).sum(1)

    def corner(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the point of each row's box where it is least; the middle along inputs that it does not depend on."""
        middle, radius = (lower + upper) / 2, (upper - lower) / 2
        return torch.clamp(middle - self.A.sign() * radius, lower, upper)

    def __getitem__(self, index: Tensor) -> Linear:
        return Linear(self.A[index], self.c[index])
