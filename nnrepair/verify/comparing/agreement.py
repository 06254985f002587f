"""Two networks agree: what that means for their outputs side by side, and the search for a proof over boxes of inputs.

Where outputs may not lie is, as everywhere, a union of conjunctions of halfspaces; a box is closed once each of these
has a row that no output of the box satisfies. All are bounded together, so that a box is split once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.verify.comparing.twins import Bounds, Twins
from nnrepair.verify.property import Box, Case, Conjunction, Halfspace, Property
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.boxes import HOPELESS, SplitTree, cuts
from nnrepair.verify.search.branch import BranchAndBound
from nnrepair.verify.search.jobs import Confirm, Jobs, Part, any_confirmed
from nnrepair.verify.search.relaxation import Linear

#: Boxes that are bounded at once, and numbers that their rows may have.
BATCH, NUMBERS = 128, 20_000_000


def apart(outputs: int, tolerance: Fraction) -> tuple[Conjunction, ...]:
    """Return where some output differs by more than a tolerance; outputs before come first, then those after."""

    def beyond(k: int, sign: int) -> Halfspace:
        row = {k: Fraction(sign), outputs + k: Fraction(-sign)}
        return Halfspace(tuple(row.get(i, Fraction(0)) for i in range(2 * outputs)), -tolerance, True)

    return tuple((beyond(k, sign),) for k in range(outputs) for sign in (1, -1))


def elsewhere(outputs: int, decision: str, margin: Fraction) -> tuple[Conjunction, ...]:
    """Return where one output wins before, by a margin at least, and another one after.

    The first of equal outputs wins. Each conjunction has a last row that follows from two of the others: that the
    winners' difference moved by more than the margin.
    """
    sign = 1 if decision == "argmax" else -1

    def row(entries: dict[int, int], bound: Fraction, strict: bool) -> Halfspace:
        return Halfspace(tuple(Fraction(sign * entries.get(i, 0)) for i in range(2 * outputs)), bound, strict)

    def wins(k: int, at: int, by: Fraction) -> list[Halfspace]:
        others = (i for i in range(outputs) if i != k)
        return [row({at + i: 1, at + k: -1}, -by, not by and i < k) for i in others]

    def moved(k: int, j: int) -> Halfspace:
        return row({j: 1, k: -1, outputs + k: 1, outputs + j: -1}, -margin, not margin or k < j)

    pairs = [(k, j) for k in range(outputs) for j in range(outputs) if j != k]
    return tuple((*wins(k, 0, margin), *wins(j, outputs, Fraction(0)), moved(k, j)) for k, j in pairs)


@dataclass
class _Boxes(Part):
    lower: Tensor
    upper: Tensor
    low: Tensor  # (boxes, units before): bounds that hold already, and likewise of the network after
    high: Tensor
    low_after: Tensor
    high_after: Tensor
    job: Tensor  # the box of the region
    node: Tensor
    share: Tensor
    bound: Tensor


class AgreementSearch(BranchAndBound[_Boxes]):
    """The search over boxes.

    Args:
        graphs: the networks.
        joint: both as one, outputs side by side.
        boxes: the region.
        unsafe: where outputs may not lie.
        jobs: the same, each box and conjunction, for attacks.
        confirm: called with points that seem to be counterexamples, and their jobs.
        deadline: when to end.
    """

    first_attack = 256

    def __init__(
        self,
        graphs: tuple[Graph, Graph],
        joint: Graph,
        boxes: Sequence[Box],
        unsafe: tuple[Conjunction, ...],
        jobs: Jobs,
        confirm: Confirm,
        deadline: Deadline,
    ) -> None:
        super().__init__(joint, jobs, confirm, None, deadline)
        self.graphs, self.ways = graphs, len(unsafe)
        self.lower, self.upper = (torch.from_numpy(np.stack([box.outer[end] for box in boxes])) for end in (0, 1))
        rows = list(dict.fromkeys(row for way in unsafe for row in way))
        each = Jobs.of(Property([Case(boxes[0], tuple((row,) for row in rows))], joint.outputs), deadline=deadline)
        self.rows, self.offset = each.rows[:, 0], each.offset[:, 0]
        place = {row: i for i, row in enumerate(rows)}
        most = max(map(len, unsafe))
        #: (ways, rows of each): which rows; a shorter one has its first row again.
        self.way = torch.tensor([[place[r] for r in (*way, *[way[0]] * (most - len(way)))] for way in unsafe])
        self.splits = SplitTree(len(boxes), True)

    def _batch(self) -> int:
        numbers = len(self.rows) * 2 * max(node.size for node in self.graph.nodes)
        return max(1, min(BATCH, NUMBERS // numbers))

    def _roots(self) -> list[_Boxes]:
        ends = self.lower.amin(0), self.upper.amax(0)
        self.twins = twins = Twins(*self.graphs, *ends, self.deadline)
        m = self.graphs[0].outputs
        for side, rows in zip(twins.sides, (self.rows[:, :m], self.rows[:, m:]), strict=True):
            self.offset = side.rounding.raised(rows, self.offset)
        n = len(self.lower)
        low, high, low_after, high_after = (end.expand(n, -1) for side in twins.root for end in side)
        each, share = torch.arange(n), torch.full((n,), 1 / n, dtype=torch.float64)
        bound = torch.full((n,), -torch.inf, dtype=torch.float64)
        return [_Boxes(self.lower, self.upper, low, high, low_after, high_after, each, each.clone(), share, bound)]

    def _halves(self, boxes: _Boxes, stuck: int) -> tuple[_Boxes, _Boxes] | None:
        known = (boxes.low, boxes.high), (boxes.low_after, boxes.high_after)
        bounds = self.twins.over(boxes.lower, boxes.upper, known)
        (boxes.low, boxes.high), (boxes.low_after, boxes.high_after) = bounds.known
        n, m = len(boxes), len(self.rows)
        box = torch.arange(n).repeat_interleave(m)
        found = bounds.rows(self.rows.repeat(n, 1), box)
        value = found.minimum(boxes.lower[box], boxes.upper[box]).reshape(n, m) - self.offset
        value = value.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        best, which = value[:, self.way].max(2)  # (boxes, ways), of the rows of each
        open_ = (best <= 0).any(1).nonzero()[:, 0]
        boxes.bound, way = best.min(1)
        row = self.way[way, which.gather(1, way[:, None])[:, 0]]
        chosen = found[open_ * m + row[open_]]
        if len(open_) and self._violated(chosen, boxes[open_], way[open_]):
            return None
        return self._split(bounds, boxes, open_, row)

    def _violated(self, bound: Linear, boxes: _Boxes, way: Tensor) -> bool:
        """Ask the networks themselves where bounds are lowest."""
        x, job = bound.corner(boxes.lower, boxes.upper), boxes.job * self.ways + way
        return any_confirmed(self.confirm, x, job, self.jobs.depth(self.graph(x, self.deadline), job))

    def _split(self, bounds: Bounds, boxes: _Boxes, index: Tensor, row: Tensor) -> tuple[_Boxes, _Boxes]:
        """Return the halves of open boxes, for the row that is nearest to hold, and the boxes that cannot be halved."""
        opened, width = boxes[index], (boxes.upper - boxes.lower)[index]
        score = bounds.attribution(self.rows[row[index]], index)
        cut, can = cuts(opened.lower, opened.upper)
        score = torch.where(can, torch.fmax(score, width * 1e-12), -1.0)
        good = can.any(1)
        if not bool(good.all()):
            self.splits.forget()
        lost, opened, score, cut = opened[~good], opened[good], score[good], cut[good]
        dim = score.argmax(1)
        halves = self._halved(opened, dim, cut)
        hopeless = opened.bound + HOPELESS * score.sum(1) < 0  # bounding the halves would be in vain
        if bool(hopeless.any()):
            score[torch.arange(len(dim)), dim] /= 2
            again = hopeless.repeat(2).nonzero()[:, 0]
            parents, dim = halves[again], score.argmax(1).repeat(2)[again]
            cut, can = cuts(parents.lower, parents.upper)
            fits = can.gather(1, dim[:, None])[:, 0]
            stays = torch.ones(len(halves), dtype=torch.bool)
            stays[again[fits]] = False
            halves = _Boxes.joined([halves[stays], self._halved(parents[fits], dim[fits], cut[fits])])
        return halves, lost

    def _halved(self, boxes: _Boxes, dim: Tensor, places: Tensor) -> _Boxes:
        """Return the lower halves, then the upper ones."""
        each = torch.arange(len(dim))
        cut = places[each, dim]
        child = self.splits.split(boxes.node, dim, cut)
        below, above = _Boxes.joined([boxes]), _Boxes.joined([boxes])
        below.upper[each, dim], above.lower[each, dim] = cut, cut
        below.node, above.node = child, child + 1
        below.share, above.share = boxes.share / 2, boxes.share / 2
        return _Boxes.joined([below, above])

    def _tree(self) -> tuple[NDArray[np.int16], NDArray[np.float64]] | None:
        return self.splits.preorder(len(self.lower)) if self.splits.wanted else None
