"""Branch and bound over ReLU phases, for inputs too wide to split: images.

A part of a job is the job's box with some ReLUs taken to be on and others off. Its bound optimises the slopes of the
lines below unstable ReLUs and the multipliers of these conditions (beta-CROWN, Wang et al. 2021). A part that stays
open is split at the ReLU whose relaxation loses most. Rounding is covered as in `bounds`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnrepair.verify.bounds import Bounder, OutOfTime, Relaxation
from nnrepair.verify.graph import Graph
from nnrepair.verify.jobs import Columns, Confirm, Found, Jobs, any_confirmed

#: Parts are bounded in batches of so many numbers (ReLUs and inputs).
BATCH_NUMBERS = 200_000
#: A part's ReLUs are bounded backwards again only if the network is small enough for it (multiplications for each row).
REFINE_WORK = 5_000_000
#: Improvement steps for parts that cannot be split.
LAST_STEPS = 500


@dataclass
class _Parts(Columns):
    low: Tensor  # (parts, ReLUs): bounds that hold under the part's conditions
    high: Tensor
    phase: Tensor  # (parts, ReLUs): 1 on, -1 off, 0 free
    job: Tensor
    share: Tensor
    bound: Tensor


class PhaseSearch:
    """One search; `run` does it. Of every job's rows only the one that plain bounds bring closest to proof is pursued.

    Args:
        graph: the network.
        jobs: what to prove.
        confirm: called with points that seem to be counterexamples.
        steps: improvement steps for the bound of a part.
    """

    def __init__(
        self, graph: Graph, jobs: Jobs, confirm: Confirm, steps: int = 20, root_steps: int = 12, most: int | None = None
    ) -> None:
        self.graph, self.jobs, self.confirm = graph, jobs, confirm
        self.steps, self.root_steps, self.most = steps, root_steps, most or math.inf
        self.boxes, self.box = torch.unique(torch.cat([jobs.lower, jobs.upper], 1), dim=0, return_inverse=True)
        self.bounder = Bounder(graph, jobs.lower.amin(0), jobs.upper.amax(0), refine=False)
        self.offset = self.bounder.raised(jobs.rows, jobs.offset)
        self.batch = max(1, BATCH_NUMBERS // (graph.hidden + graph.inputs))
        self.refine = sum(graph.nodes[k].size for k in graph.relus) * graph.hidden < REFINE_WORK

    def run(
        self, deadline: float, report: Callable[[float, int], None], attack: Callable[[int], bool] = lambda n: False
    ) -> Found:
        """Search until all is closed, a counterexample is confirmed, or time.monotonic() reaches the deadline."""
        jobs = len(self.jobs.lower)
        self.bounder.deadline = deadline
        boxes, done, split, worst, stuck, next_attack = jobs, 0.0, False, torch.inf, 0, 64
        stack: list[_Parts] = []
        try:
            roots, row = self._roots()
            done = 1 - float(roots.share.sum())
            stack = [roots] if len(roots) else []
            while stack:
                report(done, boxes)
                if time.monotonic() >= deadline or boxes >= self.most:
                    raise OutOfTime
                part = stack[-1][-self.batch :]
                boxes += len(part)
                if boxes >= next_attack:
                    next_attack *= 2
                    if attack(next_attack):
                        return Found(False, True, boxes, done, None, 0, None)
                opened, keep, relaxation = self._bound(part, row, self.steps)
                if opened is None:
                    return Found(False, True, boxes, done, None, 0, None)
                rest = stack.pop()[: -self.batch]
                stack += [rest] if len(rest) else []
                done += float(part.share.sum() - opened.share.sum())
                if not len(opened):
                    continue
                children, last = self._split(opened, keep, relaxation)
                split = True
                stack += [children] if len(children) else []
                if len(last):  # affine now: nothing left to split, only better multipliers to find
                    lost, _, _ = self._bound(last, row, LAST_STEPS)
                    if lost is None:
                        return Found(False, True, boxes, done, None, 0, None)
                    done += float(last.share.sum() - lost.share.sum())
                    stuck, worst = stuck + len(lost), min([worst, *lost.bound.tolist()])
        except OutOfTime:
            worst = min([worst, *(float(part.bound.min()) for part in stack)])
            return Found(False, False, boxes, done, worst if worst < torch.inf else None, stuck, None)
        if stuck:
            return Found(False, False, boxes, done, worst, stuck, None)
        leaves = (np.full(jobs, -1, np.int16), np.zeros(0))
        return Found(True, False, boxes, 1.0, None, 0, None if split else leaves)

    def _roots(self) -> tuple[_Parts, Tensor]:
        """Return the jobs that plain bounds leave open, and for every job the row that they bring closest to proof."""
        jobs, d = self.jobs, self.graph.inputs
        parts, rows = [], torch.zeros_like(self.box)
        last = len(self.graph.nodes) - 1
        for b in range(len(self.boxes)):
            lower, upper = self.boxes[b : b + 1, :d], self.boxes[b : b + 1, d:]
            mine = (self.box == b).nonzero()[:, 0]
            n, m = jobs.real[mine].shape
            known = self.bounder.root
            for steps in (0, self.root_steps):  # most jobs do not need the second
                relaxation = self.bounder.relax(lower, upper, known, steps=steps)
                known = relaxation.joined(lower)
                bound = self.bounder.backward(
                    relaxation, last, jobs.rows[mine].reshape(n * m, -1), torch.zeros(n * m, dtype=torch.long).to(mine)
                )
                value = bound.minimum(lower, upper).reshape(n, m) - self.offset[mine]
                best, row = jobs.best(value, mine)
                if bool((best > 0).all()):
                    break
            rows[mine] = row
            still = ~(best > 0)
            count = int(still.sum())
            low, high = (ends.expand(count, -1) for ends in relaxation.joined(lower))
            share = torch.full_like(best[still], 1 / len(jobs.lower))
            parts.append(_Parts(low, high, torch.zeros_like(low), mine[still], share, best[still]))
        return _Parts.joined(parts), rows

    def _bound(self, parts: _Parts, row: Tensor, steps: int) -> tuple[_Parts | None, list[Tensor | None], Relaxation]:
        """Return the parts that stay open, with their coefficients, or None when a counterexample was confirmed."""
        job = parts.job
        lower, upper = self.jobs.lower[job], self.jobs.upper[job]
        known = (parts.low, parts.high)
        relaxation = self.bounder.relax(lower, upper, known, refine=self.refine and bool((parts.phase != 0).any()))
        low, high = relaxation.joined(lower)
        empty = (low > high).any(1)
        slices = [self.graph.nodes[k].relu for k in self.graph.relus]
        keep: list[Tensor | None] = []
        last = len(self.graph.nodes) - 1
        rows, offset = self.jobs.rows[job, row[job]], self.offset[job, row[job]]
        phase = [parts.phase[:, s] for s in slices]
        best, bound = self.bounder.improve(relaxation, last, rows, offset, lower, upper, steps, phase=phase, keep=keep)
        index = (~(best > 0) & ~empty).nonzero()[:, 0]
        if len(index):
            x = bound[index].corner(lower[index], upper[index])
            if any_confirmed(self.confirm, x, job[index], self.jobs.depth(self.graph(x), job[index])):
                return None, keep, relaxation
        opened = _Parts(low[index], high[index], parts.phase[index], job[index], parts.share[index], best[index])
        return opened, [None if a is None else a[index] for a in keep], relaxation[index]

    def _split(self, opened: _Parts, keep: Sequence[Tensor | None], relaxation: Relaxation) -> tuple[_Parts, _Parts]:
        """Return both phases of the ReLU that loses most in each part, and the parts without unstable ReLUs."""
        losses = [opened.low[:, :0]]
        for i, (A, unstable) in enumerate(zip(keep, relaxation.unstable, strict=True)):
            nothing = torch.zeros_like(relaxation.shift[i])
            losses.append(nothing if A is None else relaxation.lost(i, A) + 1e-30 * unstable)
        scores = torch.cat(losses, 1).nan_to_num(0.0)
        can = (scores > 0).any(1)
        stays, opened = opened[~can], opened[can]
        if not len(opened):
            return opened, stays
        neuron = scores[can].argmax(1)
        each = torch.arange(len(neuron), device=neuron.device)
        on = _Parts(opened.low.clone(), opened.high, opened.phase.clone(), opened.job, opened.share / 2, opened.bound)
        off = _Parts(opened.low, opened.high.clone(), opened.phase.clone(), opened.job, opened.share / 2, opened.bound)
        on.low[each, neuron], on.phase[each, neuron] = 0.0, 1.0
        off.high[each, neuron], off.phase[each, neuron] = 0.0, -1.0
        return _Parts.joined([on, off]), stays
