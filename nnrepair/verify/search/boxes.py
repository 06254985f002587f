"""Branch and bound over boxes of inputs: bound, clip, split where the relaxation is loose, until nothing is open.

A box is closed when one row of its job is positive on all of it, or when clipping by what the rows allow leaves
nothing. All jobs are searched together, in batches, depth first, so that memory stays small.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.branch import BranchAndBound
from nnrepair.verify.search.jobs import Columns, Confirm, Jobs, Options, Part, any_confirmed
from nnrepair.verify.search.relaxation import Linear, Relaxation

#: What a split wins back of the looseness of a box, as a share; measured on ACAS Xu networks.
HOPELESS = 0.15
#: Numbers that a batch of boxes may need at once, and multiplications of one pass through the network.
BATCH_NUMBERS, BATCH_WORK = 64_000_000, 2_000_000_000
#: The corners of boxes that cannot be split are replayed whatever floats say, for the first so many of them.
LAST_RESORT = 1000


@dataclass
class _Boxes(Part):
    lower: Tensor
    upper: Tensor
    low: Tensor  # (boxes, units): bounds that hold already
    high: Tensor
    job: Tensor
    node: Tensor
    share: Tensor
    bound: Tensor


@dataclass
class SplitTree:
    """The splits, in the order in which they were made; without them if they are not `wanted`."""

    size: int
    wanted: bool
    parent: list[Tensor] = field(default_factory=list)
    dim: list[Tensor] = field(default_factory=list)
    cut: list[Tensor] = field(default_factory=list)
    child: list[Tensor] = field(default_factory=list)

    def split(self, parent: Tensor, dim: Tensor, cut: Tensor) -> Tensor:
        """Record splits; return the ids of the lower children, each followed by the upper one's."""
        child = self.size + 2 * torch.arange(len(parent), device=parent.device)
        self.size += 2 * len(parent)
        if not self.wanted:
            return child
        for part, value in zip((self.parent, self.dim, self.cut, self.child), (parent, dim, cut, child), strict=True):
            part.append(value.cpu())
        return child

    def forget(self) -> None:
        """Drop the splits: nothing will be proved."""
        self.wanted = False
        for part in (self.parent, self.dim, self.cut, self.child):
            part.clear()

    def preorder(self, jobs: int) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """Return dim and cut of all nodes, each tree in preorder."""
        dim = np.full(self.size, -1, np.int16)
        cut, child = np.zeros(self.size), np.zeros(self.size, np.int64)
        if self.parent:
            parent = torch.cat(self.parent).numpy()
            dim[parent], cut[parent] = torch.cat(self.dim).numpy(), torch.cat(self.cut).numpy()
            child[parent] = torch.cat(self.child).numpy()
        order = np.empty(self.size, np.int64)
        stack, inner, first = list(range(jobs))[::-1], (dim >= 0).tolist(), child.tolist()
        for place in range(self.size):
            node = stack.pop()
            order[place] = node
            if inner[node]:
                stack += (first[node] + 1, first[node])
        return dim[order], cut[order][dim[order] >= 0]


def cuts(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return where to cut boxes along each input, in short numbers if possible, and where that halves them."""
    middle = (lower + upper) / 2
    cut = middle.float().double()
    cut = torch.where((cut > lower) & (cut < upper), cut, middle)
    return cut, (cut > lower) & (cut < upper)


class Search(BranchAndBound[_Boxes]):
    """The search over boxes.

    Args:
        graph: the network.
        jobs: what to prove.
        confirm: called with points that seem to be counterexamples.
        options: how.
        deadline: when to end.
        proof: whether to record how boxes were split.
    """

    first_attack = 256

    def __init__(
        self,
        graph: Graph,
        jobs: Jobs,
        confirm: Confirm,
        options: Options,
        deadline: Deadline = NEVER,
        proof: bool = True,
    ) -> None:
        super().__init__(graph, jobs, confirm, options.most, deadline)
        self.options, self.proof = options, proof
        self.splits = SplitTree(len(jobs), proof)
        self.reach = torch.maximum(jobs.lower.abs(), jobs.upper.abs()).amax(0)

    def _batch(self) -> int:
        """What a cache holds, unless the network is large."""
        usual, faster = (256, 1) if self.graph.device.type == "cpu" else (16_384, 50)
        rows = max(self.jobs.rows.shape[1], self.graph.inputs)
        fits = min(BATCH_NUMBERS // (self.graph.size * rows), BATCH_WORK // max(1, self.graph.work))
        return self.options.batch or max(1, min(usual, faster * fits))

    def _roots(self) -> list[_Boxes]:
        jobs = self.jobs
        self.bounder = Bounder(self.graph, jobs.lower.amin(0), jobs.upper.amax(0), deadline=self.deadline)
        self.offset = self.bounder.rounding.raised(jobs.rows, jobs.offset)
        n = len(jobs)
        low, high = (end.expand(n, -1) for end in self.bounder.root)
        each = torch.arange(n, device=low.device)
        share = low.new_full((n,), 1 / n)
        bound = low.new_full((n,), -torch.inf)
        return [_Boxes(jobs.lower, jobs.upper, low, high, each, each.clone(), share, bound)]

    def _halves(self, boxes: _Boxes, stuck: int) -> tuple[_Boxes, _Boxes] | None:
        opened = self._bound(boxes)
        if opened is None:
            return None
        children, lost = self._split(opened)
        if len(lost) and stuck < LAST_RESORT and self._violated(lost, everywhere=True):
            return None
        if len(lost):
            self.splits.forget()
        return children, lost.boxes

    def _tree(self) -> tuple[NDArray[np.int16], NDArray[np.float64]] | None:
        return self.splits.preorder(len(self.jobs)) if self.proof else None

    def _bound(self, boxes: _Boxes) -> _Opened | None:
        """Return what stays open, clipped, or None when a counterexample was confirmed."""
        jobs, last = self.jobs, len(self.graph.nodes) - 1
        chain = self.bounder.chain
        if chain is not None:
            boxes.low, boxes.high = chain.tightened(boxes.lower, boxes.upper, boxes.low, boxes.high, self.deadline)
        bounder, live = self.bounder.restricted(self.graph.alive(boxes.high))
        known = (boxes.low, boxes.high) if live is None else (boxes.low[:, live], boxes.high[:, live])
        if chain is not None:
            relaxation = Relaxation.of(bounder.graph, *known)
        else:
            relaxation = bounder.relax(boxes.lower, boxes.upper, known)
            places = slice(None) if live is None else live
            boxes.low[:, places], boxes.high[:, places] = relaxation.joined(boxes.lower)
        n, m = self.offset[boxes.job].shape
        which = torch.arange(n, device=boxes.job.device).repeat_interleave(m)
        coefficients: list[Tensor | None] = []
        A = jobs.rows[boxes.job].reshape(n * m, -1)
        bound = bounder.backward(relaxation, last, A, which, coefficients=coefficients)
        bound.c = bound.c - self.offset[boxes.job].reshape(-1)
        value = bound.minimum(boxes.lower[which], boxes.upper[which]).reshape(n, m)
        best, row = jobs.best(value, boxes.job)
        index = (~(best > 0)).nonzero()[:, 0]
        lower, upper = boxes.lower[index], boxes.upper[index]
        if self.options.clip:
            for r in self.deadline.each(range(m)):
                lower, upper = self._clip(bound[index * m + r], lower, upper)
            kept = (lower <= upper).all(1)
            index, lower, upper = index[kept], lower[kept], upper[kept]
        chosen = index * m + row[index]
        coefficients = [None if a is None else a[chosen] for a in coefficients]
        opened = _Opened(
            boxes[index], bounder, lower, upper, relaxation[index], best[index], bound[chosen], coefficients
        )
        if self.options.steps and len(index):
            opened = self._improved(opened, row[index])
        return None if len(opened) and self._violated(opened) else opened

    def _improved(self, opened: _Opened, row: Tensor) -> _Opened:
        """Try better slopes for the best row of every open box, and clip by what they give."""
        job, last = opened.boxes.job, len(self.graph.nodes) - 1
        best, bound = opened.bounder.improve(
            opened.relaxation,
            last,
            self.jobs.rows[job, row],
            self.offset[job, row],
            opened.lower,
            opened.upper,
            self.options.steps,
        )
        lower, upper = opened.lower, opened.upper
        if self.options.clip:
            lower, upper = self._clip(bound, lower, upper)
        opened.lower, opened.upper = lower, upper
        opened.value, opened.bound = torch.fmax(best, opened.value), bound
        return opened[(~(best > 0) & (lower <= upper).all(1)).nonzero()[:, 0]]

    def _clip(self, bound: Linear, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes around {x: A x + c <= 0}, rounded outward; lower > upper where nothing is left."""
        A, c = bound.A, bound.c
        least = torch.minimum(A * lower, A * upper)
        slack = 4 * (A.shape[1] + 4) * EPS * ((A.abs() * self.reach).sum(1) + c.abs())
        rest = (least.sum(1) + c - slack)[:, None] - least
        limit = -rest / torch.where(A == 0, 1.0, A)
        limit = limit + torch.where(A > 0, 1.0, -1.0) * (4 * EPS * limit.abs() + 1e-300)
        finite = torch.isfinite(limit)
        upper = torch.where((A > 0) & (limit < upper) & finite, limit, upper)
        lower = torch.where((A < 0) & (limit > lower) & finite, limit, lower)
        return lower, upper

    def _violated(self, opened: _Opened, everywhere: bool = False) -> bool:
        """Ask the network itself at the corners where the bounds are lowest, if floats say so or `everywhere`."""
        x, job = opened.bound.corner(opened.lower, opened.upper), opened.boxes.job
        depth = self.jobs.depth(self.graph(x, self.deadline), job)
        return any_confirmed(self.confirm, x, job, depth, -torch.inf if everywhere else 0.0)

    def _split(self, opened: _Opened) -> tuple[_Boxes, _Opened]:
        """Return the halves of the open boxes, and the boxes that cannot be halved."""
        width = opened.upper - opened.lower
        if self.options.attribute:
            score = opened.bounder.attribution(opened.relaxation, opened.coefficients, width)
        else:
            score = width / (self.jobs.upper - self.jobs.lower)[opened.boxes.job].clamp(min=1e-300)
        cut, can = cuts(opened.lower, opened.upper)
        score = torch.where(can, torch.fmax(score, width * 1e-12), -1.0)
        good = can.any(1)
        lost = opened[(~good).nonzero()[:, 0]]
        index = good.nonzero()[:, 0]
        opened, score, cut = opened[index], score[index], cut[index]
        boxes = opened.boxes
        boxes.lower, boxes.upper, boxes.bound = opened.lower, opened.upper, opened.value
        dim = score.argmax(1)
        halves = self._halved(boxes, dim, cut)
        # Where the bound lacks more than a split wins back, bounding the halves would be in vain: quarter the box.
        hopeless = (opened.value + HOPELESS * score.sum(1) < 0) if self.options.attribute else ~good[index]
        if bool(hopeless.any()):
            score[torch.arange(len(dim), device=dim.device), dim] /= 2
            again = hopeless.repeat(2).nonzero()[:, 0]
            parents, dim = halves[again], score.argmax(1).repeat(2)[again]
            cut, can = cuts(parents.lower, parents.upper)
            fits = can.gather(1, dim[:, None])[:, 0]
            quarters = self._halved(parents[fits], dim[fits], cut[fits])
            stays = torch.ones(len(halves), dtype=torch.bool, device=dim.device)
            stays[again[fits]] = False
            halves = _Boxes.joined([halves[stays], quarters])
        return halves, lost

    def _halved(self, boxes: _Boxes, dim: Tensor, cuts: Tensor) -> _Boxes:
        """Return the lower halves, then the upper ones."""
        each = torch.arange(len(dim), device=dim.device)
        cut = cuts[each, dim]
        child = self.splits.split(boxes.node, dim, cut)
        below, above = boxes.upper.clone(), boxes.lower.clone()
        below[each, dim], above[each, dim] = cut, cut
        return _Boxes(
            torch.cat([boxes.lower, above]),
            torch.cat([below, boxes.upper]),
            boxes.low.repeat(2, 1),
            boxes.high.repeat(2, 1),
            boxes.job.repeat(2),
            torch.cat([child, child + 1]),
            (boxes.share / 2).repeat(2),
            boxes.bound.repeat(2),
        )


@dataclass
class _Opened(Columns):
    """Boxes that were bounded and stay open, with what is known about them."""

    boxes: _Boxes
    bounder: Bounder  # for all of these boxes
    lower: Tensor  # clipped
    upper: Tensor
    relaxation: Relaxation
    value: Tensor  # the best row's bound
    bound: Linear  # of that row
    coefficients: list[Tensor | None]
