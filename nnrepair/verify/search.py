"""Branch and bound over boxes of inputs: bound, clip, split where the relaxation is loose, until nothing is open.

A box is closed when one row of its job is positive on all of it, or when clipping by what the rows allow leaves
nothing. All jobs are searched together, in batches, depth first, so that memory stays small.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.verify.bounds import EPS, Bounder, Linear, OutOfTime, Relaxation
from nnrepair.verify.graph import Graph
from nnrepair.verify.jobs import Columns, Confirm, Found, Jobs, Options, any_confirmed

#: What a split wins back of the looseness of a box, as a share; measured on ACAS Xu networks.
HOPELESS = 0.15


@dataclass
class _Boxes(Columns):
    lower: Tensor
    upper: Tensor
    low: Tensor  # (boxes, ReLUs): bounds that hold already
    high: Tensor
    job: Tensor
    node: Tensor
    share: Tensor
    bound: Tensor


@dataclass
class _Tree:
    """The splits, in the order in which they were made."""

    size: int
    parent: list[Tensor] = field(default_factory=list)
    dim: list[Tensor] = field(default_factory=list)
    cut: list[Tensor] = field(default_factory=list)
    child: list[Tensor] = field(default_factory=list)

    def split(self, parent: Tensor, dim: Tensor, cut: Tensor) -> Tensor:
        """Record splits; return the ids of the lower children, each followed by the upper one's."""
        child = self.size + 2 * torch.arange(len(parent), device=parent.device)
        self.size += 2 * len(parent)
        for part, value in zip((self.parent, self.dim, self.cut, self.child), (parent, dim, cut, child), strict=True):
            part.append(value.cpu())
        return child

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


class Search:
    """One search; `run` does it.

    Args:
        graph: the network.
        jobs: what to prove.
        confirm: called with points that seem to be counterexamples.
        options: how.
    """

    def __init__(self, graph: Graph, jobs: Jobs, confirm: Confirm, options: Options) -> None:
        self.graph, self.jobs, self.confirm, self.options = graph, jobs, confirm, options
        self.bounder = Bounder(graph, jobs.lower.amin(0), jobs.upper.amax(0))
        self.offset = self.bounder.raised(jobs.rows, jobs.offset)
        self.batch = options.batch or (256 if graph.device.type == "cpu" else 16_384)
        self.reach = torch.maximum(jobs.lower.abs(), jobs.upper.abs()).amax(0)

    def run(
        self, deadline: float, report: Callable[[float, int], None], attack: Callable[[int], bool] = lambda n: False
    ) -> Found:
        """Search until all is closed, a counterexample is confirmed, or time.monotonic() reaches the deadline.

        `attack(n)` looks for counterexamples from n random starts; it is called whenever the number of boxes has
        doubled, so that it costs a fixed share of the search.
        """
        self.bounder.deadline = deadline
        most = self.options.most or math.inf
        stack = [self._roots()]
        tree = _Tree(len(stack[0]))
        boxes, stuck, next_attack = 0, 0, 256
        stuck_share, stuck_bound = 0.0, torch.inf
        while stack:
            share = sum(float(part.share.sum()) for part in stack) + stuck_share
            report(1 - share, boxes)
            if time.monotonic() >= deadline or boxes >= most:
                worst = min(min(float(part.bound.min()) for part in stack), stuck_bound)
                return Found(False, False, boxes, 1 - share, worst, stuck, None)
            current = self._pop(stack)
            boxes += len(current)
            if boxes >= next_attack and attack(next_attack):
                return Found(False, True, boxes, 1 - share, None, stuck, None)
            next_attack = next_attack if boxes < next_attack else 2 * next_attack
            try:
                opened = self._bound(current)
            except OutOfTime:
                stack.append(current)
                continue
            if opened is None:
                return Found(False, True, boxes, 1 - share, None, stuck, None)
            children, lost = self._split(opened, tree)
            if lost is not None:
                stuck += len(lost)
                stuck_share += float(lost.share.sum())
                stuck_bound = min(stuck_bound, float(lost.bound.min()))
            if len(children):
                stack.append(children)
        if stuck:
            return Found(False, False, boxes, 1 - stuck_share, stuck_bound, stuck, None)
        return Found(True, False, boxes, 1.0, None, 0, tree.preorder(len(self.jobs.lower)))

    def _roots(self) -> _Boxes:
        jobs = self.jobs
        n = len(jobs.lower)
        low, high = (end.repeat(n, 1) for end in self.bounder.root)
        each = torch.arange(n, device=low.device)
        share = low.new_full((n,), 1 / n)
        return _Boxes(jobs.lower, jobs.upper, low, high, each, each.clone(), share, low.new_full((n,), -torch.inf))

    def _pop(self, stack: list[_Boxes]) -> _Boxes:
        """Take the newest boxes, a batch at most."""
        parts: list[_Boxes] = []
        room = self.batch
        while stack and room:
            part = stack.pop()
            if len(part) > room:
                stack.append(part[: len(part) - room])
                part = part[len(part) - room :]
            parts.append(part)
            room -= len(part)
        return _Boxes.joined(parts)

    def _bound(self, boxes: _Boxes) -> _Opened | None:
        """Return what stays open, clipped, or None when a counterexample was confirmed."""
        jobs, last = self.jobs, len(self.graph.nodes) - 1
        bounder, live = self.bounder.restricted((boxes.high > 0).any(0))
        known = (boxes.low, boxes.high) if live is None else (boxes.low[:, live], boxes.high[:, live])
        relaxation = bounder.relax(boxes.lower, boxes.upper, known)
        places = slice(None) if live is None else live
        boxes.low[:, places], boxes.high[:, places] = relaxation.joined(boxes.lower)
        n, m = self.offset[boxes.job].shape
        which = torch.arange(n, device=boxes.job.device).repeat_interleave(m)
        keep: list[Tensor | None] = []
        A = jobs.rows[boxes.job].reshape(n * m, -1)
        bound = bounder.backward(relaxation, last, A, which, keep=keep)
        bound.c = bound.c - self.offset[boxes.job].reshape(-1)
        value = bound.minimum(boxes.lower[which], boxes.upper[which]).reshape(n, m)
        best, row = jobs.best(value, boxes.job)
        index = (~(best > 0)).nonzero()[:, 0]
        lower, upper = boxes.lower[index], boxes.upper[index]
        if self.options.clip:
            for r in range(m):
                lower, upper = self._clip(bound[index * m + r], lower, upper)
            kept = (lower <= upper).all(1)
            index, lower, upper = index[kept], lower[kept], upper[kept]
        chosen = index * m + row[index]
        coefficients = [None if a is None else a[chosen] for a in keep]
        opened = _Opened(
            boxes[index], bounder, lower, upper, relaxation[index], best[index], bound[chosen], coefficients
        )
        if self.options.steps and len(index):
            opened = self._improved(opened, row[index])
        return None if self._violated(opened) else opened

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

    def _violated(self, opened: _Opened) -> bool:
        """Ask the network itself at the corners where the bounds are lowest."""
        if not len(opened):
            return False
        x, job = opened.bound.corner(opened.lower, opened.upper), opened.boxes.job
        return any_confirmed(self.confirm, x, job, self.jobs.depth(self.graph(x), job))

    def _split(self, opened: _Opened, tree: _Tree) -> tuple[_Boxes, _Boxes | None]:
        """Return the halves of the open boxes, and the boxes that cannot be halved."""
        width = opened.upper - opened.lower
        if self.options.attribute:
            score = opened.bounder.attribution(opened.relaxation, opened.coefficients, width)
        else:
            score = width / (self.jobs.upper - self.jobs.lower)[opened.boxes.job].clamp(min=1e-300)
        cut, can = self._cuts(opened.lower, opened.upper)
        score = torch.where(can, torch.fmax(score, width * 1e-12), -1.0)
        good = can.any(1)
        lost = None if bool(good.all()) else opened.boxes[(~good).nonzero()[:, 0]]
        index = good.nonzero()[:, 0]
        opened, score, cut = opened[index], score[index], cut[index]
        boxes = opened.boxes
        boxes.lower, boxes.upper, boxes.bound = opened.lower, opened.upper, opened.value
        dim = score.argmax(1)
        halves = self._halved(boxes, dim, cut, tree)
        # Where the bound lacks more than a split wins back, bounding the halves would be in vain: quarter the box.
        hopeless = (opened.value + HOPELESS * score.sum(1) < 0) if self.options.attribute else ~good[index]
        if bool(hopeless.any()):
            score[torch.arange(len(dim), device=dim.device), dim] /= 2
            again = hopeless.repeat(2).nonzero()[:, 0]
            parents, dim = halves[again], score.argmax(1).repeat(2)[again]
            cut, can = self._cuts(parents.lower, parents.upper)
            fits = can.gather(1, dim[:, None])[:, 0]
            quarters = self._halved(parents[fits], dim[fits], cut[fits], tree)
            stays = torch.ones(len(halves), dtype=torch.bool, device=dim.device)
            stays[again[fits]] = False
            halves = _Boxes.joined([halves[stays], quarters])
        return halves, lost

    @staticmethod
    def _cuts(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return where to cut boxes along each input, in short numbers if possible, and where that halves them."""
        middle = (lower + upper) / 2
        cut = middle.float().double()
        cut = torch.where((cut > lower) & (cut < upper), cut, middle)
        return cut, (cut > lower) & (cut < upper)

    @staticmethod
    def _halved(boxes: _Boxes, dim: Tensor, cuts: Tensor, tree: _Tree) -> _Boxes:
        """Return the lower halves, then the upper ones."""
        each = torch.arange(len(dim), device=dim.device)
        cut = cuts[each, dim]
        child = tree.split(boxes.node, dim, cut)
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
