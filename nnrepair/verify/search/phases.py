"""Branch and bound over phases of units, for inputs too wide to split: images.

A part of a job is the job's box with some units taken to be on one side of a point: ReLUs on or off. Its bound
optimises the slopes of the lines below ReLUs and the multipliers of these conditions (beta-CROWN, Wang et al. 2021). A
part that stays open is split at one of the units whose lines lose most: the one whose halves have the best bounds, as
they are without new slopes (filtered smart branching, De Palma et al. 2021). Rounding is covered as in `magnitudes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.branch import BranchAndBound
from nnrepair.verify.search.jobs import Confirm, Jobs, Part, any_confirmed
from nnrepair.verify.search.relaxation import Relaxation
from nnrepair.verify.search.slopes import Ascent

#: Parts are bounded in batches of so many numbers (units and inputs).
BATCH_NUMBERS = 200_000
#: A part's units are bounded backwards again only if the network is small enough for it (multiplications for each row).
REFINE_WORK = 5_000_000
#: Improvement steps for parts that cannot be split.
LAST_STEPS = 2000
#: Of the units that lose most so many are tried before one of them is split: where parts are bounded backwards again,
#: which costs far more, and elsewhere. So many numbers are tried at once.
CANDIDATES, FEWER, TRIED = 16, 4, 1_000_000
#: How far above zero the steps aim, as a share of the distance to it.
AHEAD = 0.5


@dataclass
class _Parts(Part):
    low: Tensor  # (parts, units): bounds that hold under the part's conditions
    high: Tensor
    phase: Tensor  # (parts, units): 1 above the point of its last split, -1 below, 0 free
    job: Tensor
    share: Tensor
    bound: Tensor


class PhaseSearch(BranchAndBound[_Parts]):
    """The search over phases. Of every job's rows only the one that plain bounds bring closest to proof is pursued.

    Args:
        graph: the network.
        jobs: what to prove.
        confirm: called with points that seem to be counterexamples.
        steps: improvement steps for the bound of a part.
        root_steps: the same for each unit of a whole box.
        most: give up once so many parts were bounded.
        deadline: when to end.
    """

    first_attack = 64
    starts = 2

    def __init__(
        self,
        graph: Graph,
        jobs: Jobs,
        confirm: Confirm,
        steps: int = 10,
        root_steps: int = 12,
        most: int | None = None,
        deadline: Deadline = NEVER,
    ) -> None:
        super().__init__(graph, jobs, confirm, most, deadline)
        self.steps, self.root_steps, self.counted, self.was_split = steps, root_steps, len(jobs), False
        self.refine = graph.hidden * graph.hidden < REFINE_WORK

    def _batch(self) -> int:
        return max(1, BATCH_NUMBERS // (self.graph.hidden + self.graph.inputs))

    def _roots(self) -> list[_Parts]:
        """Return the jobs that plain bounds leave open; `row` is for every job the one that they bring closest."""
        jobs = self.jobs
        self.bounder = Bounder(self.graph, jobs.lower.amin(0), jobs.upper.amax(0), refine=False, deadline=self.deadline)
        self.offset = self.bounder.rounding.raised(jobs.rows, jobs.offset)
        first, box = jobs.boxes()
        parts, self.row = [], torch.zeros_like(box)
        for b, job in enumerate(first.tolist()):
            lower, upper = jobs.lower[job][None], jobs.upper[job][None]
            mine = (box == b).nonzero()[:, 0]
            known = self.bounder.root
            for steps in (0, self.root_steps):  # most jobs do not need the second
                relaxation = self.bounder.relax(lower, upper, known, steps=steps)
                known = relaxation.joined(lower)
                best, self.row[mine] = self._plain(relaxation, lower, upper, mine)
                if bool((best > 0).all()):
                    break
            still = ~(best > 0)
            count = int(still.sum())
            low, high, free = (v.expand(count, -1) for v in (*known, torch.zeros_like(known[0])))
            parts.append(_Parts(low, high, free, mine[still], torch.full_like(best[still], 1 / len(jobs)), best[still]))
        return parts

    def _halves(self, parts: _Parts, stuck: int) -> tuple[_Parts, _Parts] | None:
        opened, coefficients, ascent = self._bound(parts, self.steps)
        if opened is None or not len(opened):
            return None if opened is None else (opened, opened)
        self.was_split = True
        children, last = self._split(opened, coefficients, ascent)
        lost: _Parts | None = last
        if len(last):  # affine now: nothing left to split, only better multipliers to find
            lost, _, _ = self._bound(last, LAST_STEPS)
        return None if lost is None else (children, lost)

    def _tree(self) -> tuple[NDArray[np.int16], NDArray[np.float64]] | None:
        return None if self.was_split else (np.full(len(self.jobs), -1, np.int16), np.zeros(0))

    def _plain(self, relaxation: Relaxation, lower: Tensor, upper: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of some jobs on their common box, each the best of its rows, and which row that is."""
        values, m = [], self.jobs.rows.shape[1]
        for part in torch.split(mine, max(1, self.bounder.chunk // m)):
            rows, box = self.jobs.rows[part].flatten(0, 1), torch.zeros(len(part) * m, dtype=torch.long).to(mine)
            bound = self.bounder.backward(relaxation, len(self.graph.nodes) - 1, rows, box)
            values.append(bound.minimum(lower, upper).reshape(-1, m) - self.offset[part])
        return self.jobs.best(torch.cat(values), mine)

    def _bound(self, parts: _Parts, steps: int) -> tuple[_Parts | None, list[Tensor | None], Ascent]:
        """Return the parts that stay open, with coefficients and what bounds them; None once one is violated."""
        job = parts.job
        lower, upper = self.jobs.lower[job], self.jobs.upper[job]
        known = (parts.low, parts.high)
        relaxation = self.bounder.relax(lower, upper, known, refine=self.refine and bool((parts.phase != 0).any()))
        low, high = relaxation.joined(lower)
        empty = (low > high).any(1)
        slices = [self.graph.nodes[k].units for k in self.graph.bent]
        coefficients: list[Tensor | None] = []
        last = len(self.graph.nodes) - 1
        row = self.row[job]
        rows, offset = self.jobs.rows[job, row], self.offset[job, row]
        phase = [parts.phase[:, s] for s in slices]
        ascent = Ascent(self.bounder, relaxation, last, rows, offset, lower, upper, phase)
        best, bound = ascent.run(steps, AHEAD, coefficients)
        index = (~(best > 0) & ~empty).nonzero()[:, 0]
        if len(index):
            x = bound[index].corner(lower[index], upper[index])
            if any_confirmed(self.confirm, x, job[index], self.jobs.depth(self.graph(x, self.deadline), job[index])):
                return None, coefficients, ascent
        opened = _Parts(low[index], high[index], parts.phase[index], job[index], parts.share[index], best[index])
        return opened, [None if a is None else a[index] for a in coefficients], ascent[index]

    def _split(self, opened: _Parts, coefficients: Sequence[Tensor | None], ascent: Ascent) -> tuple[_Parts, _Parts]:
        """Return both sides of one unit of each part, and the parts without loose units."""
        relaxation = ascent.relaxation
        losses = [opened.low[:, :0]]
        for i, (A, lines) in enumerate(zip(coefficients, relaxation.lines, strict=True)):
            losses.append(torch.zeros_like(lines.shift) if A is None else relaxation.lost(i, A) + 1e-30 * lines.loose)
        scores = torch.cat(losses, 1).nan_to_num(0.0)
        can = (scores > 0).any(1)
        stays, opened = opened[~can], opened[can]
        if not len(opened):
            return opened, stays
        neuron = _chosen(scores[can], can.nonzero()[:, 0], ascent, CANDIDATES if self.refine else FEWER)
        each = torch.arange(len(neuron), device=neuron.device)
        on = _Parts(opened.low.clone(), opened.high, opened.phase.clone(), opened.job, opened.share / 2, opened.bound)
        off = _Parts(opened.low, opened.high.clone(), opened.phase.clone(), opened.job, opened.share / 2, opened.bound)
        point = self.graph.points(opened.low, opened.high)[each, neuron]
        on.low[each, neuron], on.phase[each, neuron] = point, 1.0
        off.high[each, neuron], off.phase[each, neuron] = point, -1.0
        return _Parts.joined([on, off]), stays


def _chosen(scores: Tensor, part: Tensor, ascent: Ascent, most: int) -> Tensor:
    """Return the unit to split in each part: of those that lose most, the one whose halves have the best bounds.

    Args:
        scores: (parts, units), what units lose.
        part: (parts,), which those are among the rows of `ascent`.
        ascent: what bounded them.
        most: how many units of each part are tried.
    """
    count = min(most, scores.shape[1])
    score, unit = scores.topk(count, 1)
    size = max(1, TRIED // scores.shape[1])
    tried = list(zip(torch.split(part.repeat_interleave(count), size), torch.split(unit.flatten(), size), strict=True))
    sides = [torch.cat([ascent.halved(*some, side) for some in tried]).reshape(-1, count) for side in (1.0, -1.0)]
    worse, better = torch.minimum(*sides), torch.maximum(*sides)
    value = worse.clamp(max=0) + 0.1 * better.clamp(max=0)  # a side that is proved needs no more
    value = torch.where(score > 0, value.nan_to_num(-1e300), -torch.inf)  # others have nothing to split
    return unit.gather(1, value.argmax(1, keepdim=True))[:, 0]
