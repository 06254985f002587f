"""A network without what does not depend on its inputs: where few of many inputs are free, little of it is left."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.verify.reading.affine import EPS, Affine, Diagonal
from nnrepair.verify.reading.graph import Graph, Node
from nnrepair.verify.reading.partial import Filled, Shifted, restricted
from nnrepair.verify.search.intervals import TINY, Interval, affine_over, values_over

#: A network is written anew if at most this share of its units depends on the inputs.
WORTH = 0.5


def thinned(graph: Graph, point: Tensor, deadline: Deadline) -> Graph:
    """Return the graph without entries that are constants; itself where it would keep most of its units.

    An entry is a constant if no path of weights other than zero leads to it. Bounds at any one point hold for it
    everywhere.

    Args:
        graph: the network.
        point: (inputs,), where it is defined.
        deadline: when it has passed, this raises OutOfTime.
    """
    values = values_over(graph, point[None], point[None], deadline)
    if not all(bool(torch.isfinite(end).all()) for ends in values for end in ends):
        return graph
    thin = _Thin(graph, [(low[0], high[0]) for low, high in values])
    for k in range(1, len(graph.nodes)):
        deadline.check()
        thin.take(k, deadline)
    return thin.graph() or graph


class _Thin:
    """The nodes of the smaller graph, and which entries of the old nodes they hold."""

    def __init__(self, graph: Graph, values: list[Interval]) -> None:
        self.old, self.values = graph, values
        self.nodes = [graph.nodes[0]]
        self.live = [torch.ones(graph.inputs, dtype=torch.bool, device=graph.device)]
        self.place = [0]  # of each old node: its new number; -1 where all entries are constants
        self.hidden = 0

    def take(self, k: int, deadline: Deadline) -> None:
        """Write the next node of the old graph."""
        node = self.old.nodes[k]
        first = node.sources[0]
        if node.affine is not None:
            self._affine(k, node.affine, first, deadline)
        elif node.activation is not None:
            self.live.append(self.live[first])
            count = int(self.live[first].sum())
            units = slice(self.hidden, self.hidden + count)
            self.hidden += count
            self._put(Node((self.place[first],), count, None, node.activation, units) if count else None)
        else:
            self._sum(k, node.sources)

    def graph(self) -> Graph | None:
        """Return the smaller graph with all outputs; None where it is not worth it."""
        last, old = len(self.old.nodes) - 1, self.old
        if self.hidden > WORTH * old.hidden or self.place[last] < 0:
            return None
        if not bool(self.live[last].all()):
            self._put(self._filled(last, torch.ones_like(self.live[last])))
        return Graph(self.nodes, old.device, old.regional)

    def _put(self, node: Node | None) -> int:
        """Append a node, and the place of the old node that it stands for."""
        if node is not None:
            self.nodes.append(node)
        self.place.append(-1 if node is None else len(self.nodes) - 1)
        return self.place[-1]

    def _affine(self, k: int, map: Affine, first: int, deadline: Deadline) -> None:
        live = self.live[first]
        reached = map.magnitude(live.double()[None])[0] > 0
        if self.place[first] < 0 or not bool(reached.any()):
            self.live.append(torch.zeros_like(reached))
            self._put(None)
            return
        inputs, outputs = live.nonzero()[:, 0], reached.nonzero()[:, 0]
        part = restricted(map, outputs, inputs, len(live))
        if part is None:
            self.live.append(torch.ones_like(reached))
            if not bool(live.all()):
                self.nodes.append(self._filled(first, torch.ones_like(live)))
                source = len(self.nodes) - 1
            else:
                source = self.place[first]
            self._put(Node((source,), len(reached), map))
            return
        self.live.append(reached)
        constant = [torch.where(live, 0.0, end)[None] for end in self.values[first]]
        low, high = affine_over(map, constant[0], constant[1], deadline)
        middle, off = _around(low[0, outputs], high[0, outputs])
        self._put(Node((self.place[first],), len(outputs), Shifted(part, middle, off)))

    def _sum(self, k: int, sources: tuple[int, ...]) -> None:
        live = torch.stack([self.live[s] for s in sources]).any(0)
        self.live.append(live)
        if not bool(live.any()):
            self._put(None)
            return
        parts, middle = list[int](), torch.zeros(int(live.sum()), dtype=torch.float64, device=live.device)
        off = torch.full_like(middle, TINY)
        for s in sources:
            if self.place[s] < 0:
                one, more = _around(*(end[live] for end in self.values[s]))
                off = (off + more) * (1 + 8 * EPS) + 8 * EPS * (middle.abs() + one.abs())
                middle = middle + one
            elif torch.equal(self.live[s], live):
                parts.append(self.place[s])
            else:
                self.nodes.append(self._filled(s, live))
                parts.append(len(self.nodes) - 1)
        total = Node(tuple(parts), len(middle))
        if len(parts) == len(sources):
            self._put(total)
            return
        self.nodes.append(total)
        same = Shifted(Diagonal(torch.ones_like(middle)), middle, off)
        self._put(Node((len(self.nodes) - 1,), len(middle), same))

    def _filled(self, k: int, wanted: Tensor) -> Node:
        """Return a node with the wanted entries of an old one, of which some are constants."""
        middle, off = _around(*(end[wanted] for end in self.values[k]))
        free = self.live[k][wanted].nonzero()[:, 0]
        middle[free], off[free] = 0.0, 0.0
        return Node((self.place[k],), len(middle), Filled(free, middle, off))


def _around(low: Tensor, high: Tensor) -> Interval:
    """Return the middle of intervals, and how far their ends are from it at most."""
    middle = (low + high) / 2
    return middle, torch.maximum(high - middle, middle - low) * (1 + 4 * EPS) + TINY
