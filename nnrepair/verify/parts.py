"""Parts of a property whose boxes fix the same inputs to the same numbers: each is searched in a network without these.

An input that a box leaves no choice, or the choice between two neighbouring floats, is a constant there. Images of
which a few pixels move, and queries of which one number does, become networks of few inputs, which can be split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.verify.reading.graph import Graph, Node
from nnrepair.verify.reading.partial import Filled
from nnrepair.verify.search.jobs import Jobs
from nnrepair.verify.thin import thinned

#: So many parts at most; where there would be more, only inputs that are the same in all boxes count as fixed.
MOST_PARTS = 2000


@dataclass(frozen=True)
class SearchedPart:
    """Jobs that are searched together.

    Attributes:
        graph: the network as a function of the inputs that are free.
        jobs: boxes of these inputs, and their unsafe sets.
        index: (jobs,), their numbers among all jobs.
        free: (inputs,), the numbers of the inputs.
        rest: (all inputs,), the others; what free inputs have is not used.
    """

    graph: Graph
    jobs: Jobs
    index: Tensor
    free: Tensor
    rest: Tensor

    def whole(self, points: Tensor) -> Tensor:
        """Return points (n, inputs) as those of the whole network."""
        filled = self.rest.expand(len(points), -1).clone()
        filled[:, self.free] = points
        return filled


def parts_of(
    jobs: Jobs, read: Callable[[Tensor, Tensor], Graph], graph: Graph, deadline: Deadline
) -> Iterator[SearchedPart]:
    """Yield the parts of a property.

    Args:
        jobs: all of them.
        read: reads the network for a region, given its lower and upper ends.
        graph: what it was read as for the region of all jobs.
        deadline: looked at between parts.
    """
    first, which = jobs.boxes()
    lower, upper = jobs.lower[first], jobs.upper[first]
    fixed = (upper <= torch.nextafter(lower, torch.full_like(lower, torch.inf))).all(0)
    same = fixed & (lower == lower[:1]).all(0) & (upper == upper[:1]).all(0)
    if bool(fixed.any()):
        kinds, kind = torch.unique(torch.cat([lower[:, fixed], upper[:, fixed]], 1), dim=0, return_inverse=True)
    else:
        kinds, kind = lower[:1], torch.zeros(len(first), dtype=torch.long)
    if len(kinds) > MOST_PARTS:
        fixed, kinds, kind = same, kinds[:1], torch.zeros_like(kind)
    for k in range(len(kinds)):
        deadline.check()
        index = (kind[which] == k).nonzero()[:, 0]
        mine = jobs if len(kinds) == 1 else jobs[index]
        low, high = mine.lower[0], mine.upper[0]
        if len(kinds) > 1:
            graph = read(mine.lower.amin(0), mine.upper.amax(0))
        if not bool(fixed.any()) or bool(fixed.all()):
            yield SearchedPart(graph, mine, index, torch.arange(graph.inputs), low)
            continue
        free = (~fixed).nonzero()[:, 0]
        middle = torch.where(fixed, low, 0.0)
        off = torch.where(fixed, high - low, 0.0)
        first_nodes = [Node((), len(free)), Node((0,), graph.inputs, Filled(free, middle, off))]
        rest = [replace(node, sources=tuple(s + 1 for s in node.sources)) for node in graph.nodes[1:]]
        thin = Graph([*first_nodes, *rest], graph.device, graph.regional)
        thin = thinned(thin, ((low + high) / 2)[free], deadline)
        few = replace(mine, lower=mine.lower[:, free], upper=mine.upper[:, free])
        yield SearchedPart(thin, few, index, free, low)
