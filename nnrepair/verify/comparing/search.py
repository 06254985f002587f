"""Split the parts that leave most unknown, neighbours together, until time is over or nothing is unknown.

Neighbouring boxes have the same units at zero, so that a batch of them needs a small part of the network only (see
`Bounder.restricted`). So open parts are kept in clusters of neighbours; all parts of a cluster are split at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.deadline import Deadline, OutOfTime
from nnrepair.verify.comparing.bounds import Comparing
from nnrepair.verify.comparing.tree import DIFFERS, MAYBE, SURE, Tree
from nnrepair.verify.comparing.volumes import UNIT

Index = NDArray[np.int64]
#: So many neighbours are split at once.
TOGETHER = 128
#: Parts that leave less unknown than this share of what the cluster's worst part does wait in a cluster of their own.
SMALL = 0.05
#: Every split that is still needed makes a part so much less promising.
PATIENCE = 1.5
#: What is smaller, as a share of the root box, is left alone.
NOTHING = 1e-15


@dataclass
class Cluster:
    """Open parts that are neighbours, with what is known of all of them."""

    parts: Index
    known: tuple[Tensor, Tensor]
    flips: NDArray[np.bool_]


class Search:
    """The search over one root box.

    Args:
        comparing: what bounds boxes.
        tree: what is known already, which is extended.
        confirm: called with inputs (n, inputs) at which the decision seems to change.
        identical: whether to split for identical outputs too.
        deadline: when to end.
    """

    def __init__(
        self,
        comparing: Comparing,
        tree: Tree,
        confirm: Callable[[Tensor], None],
        identical: bool,
        deadline: Deadline,
    ) -> None:
        self.comparing, self.tree, self.confirm, self.deadline = comparing, tree, confirm, deadline
        self.identical = identical and comparing.can_stay
        self.boxes = 0
        self.heap: list[tuple[float, int, Cluster]] = []
        self.count = 0
        known, flips = comparing.known, np.ones(len(comparing.flips.flips), bool)
        if tree.size == 1 and tree.own[0, MAYBE] == UNIT:
            self._judge(np.zeros(1, np.int64), Cluster(np.zeros(1, np.int64), known, flips))
        else:
            leaves = _leaves(tree)
            for start in range(0, len(leaves), TOGETHER):
                self._push(Cluster(leaves[start : start + TOGETHER], known, flips))

    @property
    def unknown(self) -> float:
        """What the worst open cluster leaves unknown, as a share of the root box; 0 when nothing is open."""
        return -self.heap[0][0] if self.heap else 0.0

    def step(self) -> None:
        """Split all parts of the worst cluster. When time is over meanwhile, it stays open as it was."""
        worst = heapq.heappop(self.heap)
        try:
            self._split(worst[2])
        except OutOfTime:
            heapq.heappush(self.heap, worst)
            raise

    def _split(self, cluster: Cluster) -> None:
        tree, parts = self.tree, cluster.parts
        size, nexts = tree.size, tree.next[parts]
        children = self._halved(parts, nexts[:, 0])
        twice = np.repeat(nexts[:, 1], 2)
        again = twice >= 0
        if again.any():
            tree.own[children[again]] = UNIT, 0, UNIT
            quarters = self._halved(children[again], twice[again])
            place = np.concatenate([np.flatnonzero(~again), np.repeat(np.flatnonzero(again), 2)])
            children = np.concatenate([children[~again], quarters])[place.argsort(kind="stable")]
        try:
            self._judge(children, cluster)
        except OutOfTime:
            tree.size, tree.dim[parts] = size, -1
            raise

    def _halved(self, parts: Index, dim: Index) -> Index:
        cut = cuts(self.tree.lower[parts], self.tree.upper[parts])[np.arange(len(parts)), dim]
        return self.tree.split(parts, dim, cut)

    def _judge(self, parts: Index, around: Cluster) -> None:
        """Bound parts, and open clusters of those that leave something unknown."""
        tree = self.tree
        lower, upper = (torch.from_numpy(end[parts]) for end in (tree.lower, tree.upper))
        judged = self.comparing.judge(lower, upper, around.known, around.flips, self.identical)
        tree.own[parts] = np.stack([judged.maybe, judged.sure, judged.differs], 1)
        tree.moves[parts], tree.next[parts], tree.effort[parts] = judged.moves, judged.splits.next, judged.splits.effort
        self.boxes += len(parts)
        if len(judged.points):
            self.confirm(judged.points)
        unknown = self._unknown(parts)
        splits = self._can_split(parts, judged.splits.next)
        open_ = (unknown > NOTHING) & splits
        promise = np.where(open_, unknown * PATIENCE ** -tree.effort[parts], 0.0)
        large = open_ & (promise >= SMALL * promise.max(initial=0.0))
        small = open_ & ~large
        for chosen in (large, small) if small.sum() > TOGETHER // 8 else (open_,):
            ids = parts[chosen]
            for piece in np.array_split(ids, -(-len(ids) // TOGETHER)) if len(ids) else ():
                self._push(Cluster(piece, judged.known, judged.flips))

    def _can_split(self, parts: Index, nexts: Index) -> NDArray[np.bool_]:
        """Tell which parts have room for their next splits between floats."""
        lower, upper = self.tree.lower[parts], self.tree.upper[parts]
        fits = (cuts(lower, upper) > lower) & (cuts(lower, upper) < upper)
        each = np.arange(len(parts))
        narrow = 2 * (upper - lower) <= np.spacing(np.maximum(np.abs(lower), np.abs(upper))) * 8
        return fits[each, nexts[:, 0]] & ~narrow[each, nexts[:, 0]] & ((nexts[:, 1] < 0) | ~narrow[each, nexts[:, 1]])

    def _push(self, cluster: Cluster) -> None:
        if len(cluster.parts):
            self.count += 1
            promise = self._unknown(cluster.parts) * PATIENCE ** -self.tree.effort[cluster.parts]
            heapq.heappush(self.heap, (-float(promise.mean()), self.count, cluster))

    def _unknown(self, parts: Index) -> NDArray[np.float64]:
        """Return what parts leave unknown, as shares of the root box."""
        tree = self.tree
        own = tree.own[parts].astype(float)
        open_ = own[:, MAYBE] - own[:, SURE]
        if self.identical:
            open_ = open_ + own[:, DIFFERS] - tree.moves[parts]
        unknown: NDArray[np.float64] = open_ / UNIT * tree.shares(parts)
        return unknown


def cuts(lower: NDArray[np.float64], upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where to halve boxes along each input, in short numbers if possible."""
    middle = lower / 2 + upper / 2  # their sum may be infinite
    short = middle.astype(np.float32).astype(np.float64)
    return np.where((short > lower) & (short < upper), short, middle)


def _leaves(tree: Tree) -> Index:
    """Return the leaves of a tree, neighbours next to each other."""
    found, stack = list[int](), [0]
    dim, child = tree.dim[: tree.size].tolist(), tree.child[: tree.size].tolist()
    while stack:
        node = stack.pop()
        if dim[node] >= 0:
            stack += [child[node] + 1, child[node]]
        else:
            found.append(node)
    return np.array(found)
