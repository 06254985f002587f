"""A network as the checker sees it: affine maps, sums and ReLUs of flat vectors, in float64 with the exact weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.affine import Affine, in_pieces


@dataclass(frozen=True)
class Node:
    """One value of the graph: an affine map of one earlier value, the ReLU of one, or the sum of several.

    The input is node 0 and has no sources.
    """

    sources: tuple[int, ...]
    size: int
    affine: Affine | None = None
    relu: slice | None = None  # its place among all ReLUs


class Graph:
    """Nodes in the order in which they are computed; the last one is the output.

    Attributes:
        nodes: see `Node`.
        hidden: how many ReLUs there are altogether.
        size: how many values all nodes have together.
        work: how many multiplications one point takes.
    """

    def __init__(self, nodes: Sequence[Node], device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.nodes = list(nodes)
        self.inputs, self.outputs = nodes[0].size, nodes[-1].size
        self.relus = [k for k, node in enumerate(nodes) if node.relu is not None]
        self.hidden = sum(nodes[k].size for k in self.relus)
        self.size = sum(node.size for node in nodes)
        self.work = sum(node.affine.work for node in nodes if node.affine is not None)

    def to(self, device: torch.device) -> Graph:
        """Return the graph on another device."""
        moved = [Node(n.sources, n.size, n.affine.to(device), n.relu) if n.affine else n for n in self.nodes]
        return Graph(moved, device)

    def values(self, x: Tensor, deadline: Deadline = NEVER) -> list[Tensor]:
        """Return every node's value for inputs x (n, inputs), in float64."""
        values = [x]
        for node in self.nodes[1:]:
            deadline.check()
            first = values[node.sources[0]]
            if node.affine is not None:
                values.append(in_pieces(node.affine.apply, first, node.affine.work, deadline) + node.affine.bias)
            elif node.relu is not None:
                values.append(first.clamp(min=0))
            else:
                values.append(sum((values[k] for k in node.sources[1:]), first))
        return values

    def __call__(self, x: Tensor, deadline: Deadline = NEVER) -> Tensor:
        """Return the outputs (n, outputs) for inputs x (n, inputs), in float64."""
        return self.values(x, deadline)[-1]
