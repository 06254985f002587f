"""A network as the checker sees it: affine maps, sums and activations of flat vectors, in float64, weights exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.affine import Affine, in_pieces


@dataclass(frozen=True)
class Node:
    """One value of the graph: an affine map of one earlier value, an activation of one, or the sum of several.

    The input is node 0 and has no sources.
    """

    sources: tuple[int, ...]
    size: int
    affine: Affine | None = None
    activation: Activation | None = None
    units: slice | None = None  # of an activation: its place among all units, the entries of all activation nodes


class Graph:
    """Nodes in the order in which they are computed; the last one is the output.

    Attributes:
        nodes: see `Node`.
        bent: the nodes that are activations.
        hidden: how many units they have together.
        size: how many values all nodes have together.
        work: how many multiplications one point takes.
        regional: whether another region of inputs would have it written otherwise; see `lower`.
        scores: the graph of what the outputs are made of where that is in the same order, as before a softmax; or None.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        device: torch.device | None = None,
        regional: bool = False,
        scores: Graph | None = None,
    ) -> None:
        self.device, self.regional, self.scores = device or torch.device("cpu"), regional, scores
        self.nodes = list(nodes)
        self.inputs, self.outputs = nodes[0].size, nodes[-1].size
        self.bent = [k for k, node in enumerate(nodes) if node.activation is not None]
        self.hidden = sum(nodes[k].size for k in self.bent)
        self.size = sum(node.size for node in nodes)
        self.work = sum(node.affine.work for node in nodes if node.affine is not None)

    def to(self, device: torch.device) -> Graph:
        """Return the graph on another device, itself if it is there."""
        if device == self.device:
            return self
        moved = [replace(n, affine=n.affine.to(device)) if n.affine else n for n in self.nodes]
        return Graph(moved, device, self.regional, None if self.scores is None else self.scores.to(device))

    @property
    def activations(self) -> list[Activation]:
        """The activation of each node in `bent`."""
        return [node.activation for node in self.nodes if node.activation is not None]

    def alive(self, high: Tensor) -> Tensor:
        """Return (units,) bool: which units may be other than zero in some box, given upper bounds (boxes, units)."""
        parts = [each.alive(high[:, units]).any(0) for each, units in self._units()]
        return torch.cat(parts) if parts else torch.zeros_like(high[0], dtype=torch.bool)

    def points(self, low: Tensor, high: Tensor) -> Tensor:
        """Return where to split every unit, given bounds (boxes, units) of what goes into it."""
        parts = [each.split(low[:, units], high[:, units]) for each, units in self._units()]
        return torch.cat([low[:, :0], *parts], 1)

    def _units(self) -> list[tuple[Activation, slice]]:
        """Return each activation with the place of its units."""
        return [(n.activation, n.units) for n in self.nodes if n.activation is not None and n.units is not None]

    def values(self, x: Tensor, deadline: Deadline = NEVER) -> list[Tensor]:
        """Return every node's value for inputs x (n, inputs), in float64."""
        values = [x]
        for node in self.nodes[1:]:
            deadline.check()
            first = values[node.sources[0]]
            if node.affine is not None:
                values.append(in_pieces(node.affine.apply, first, node.affine.work, deadline) + node.affine.bias)
            elif node.activation is not None:
                values.append(node.activation.apply(first))
            else:
                values.append(sum((values[k] for k in node.sources[1:]), first))
        return values

    def gradient(self, values: Sequence[Tensor], weights: Tensor, deadline: Deadline = NEVER) -> Tensor:
        """Return the gradient (n, inputs) of `weights . outputs` at points with these values of all nodes."""
        pending = {len(self.nodes) - 1: weights}
        for k in range(len(self.nodes) - 1, 0, -1):
            if k not in pending:
                continue
            deadline.check()
            node, part = self.nodes[k], pending.pop(k)
            if node.affine is not None:
                part = in_pieces(node.affine.back, part, node.affine.work, deadline)
            elif node.activation is not None:
                part = part * node.activation.derivative(values[node.sources[0]])
            for source in node.sources:
                pending[source] = pending[source] + part if source in pending else part
        return pending.get(0, torch.zeros_like(values[0]))

    def __call__(self, x: Tensor, deadline: Deadline = NEVER) -> Tensor:
        """Return the outputs (n, outputs) for inputs x (n, inputs), in float64."""
        return self.values(x, deadline)[-1]
