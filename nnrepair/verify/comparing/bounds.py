"""What is known of boxes: shares on which two networks may, and surely do, decide differently, or differ at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.comparing.batch import Batch, Index, Splits
from nnrepair.verify.comparing.decision import Rows
from nnrepair.verify.comparing.flips import Flips, Mask
from nnrepair.verify.comparing.pair import Pair
from nnrepair.verify.comparing.units import Units
from nnrepair.verify.comparing.volumes import UNIT, Shares
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.relaxation import Relaxation

#: Points of each box at which floats look for another decision.
POINTS = 4


@dataclass
class Judged:
    """What is known of boxes, each (boxes,) in units of 1 / UNIT, and what to do next.

    Attributes:
        maybe: at most so much may have another decision.
        sure: at least so much has another decision.
        differs: at most so much may have another output.
        moves: about so much does have another output; an estimate that says where splits are in vain.
        splits: what to split.
        points: (k, inputs) at which floats find another decision.
        known: bounds (units,) that hold in all boxes that are not settled, and `flips`, what is possible there.
    """

    maybe: Shares
    sure: Shares
    differs: Shares
    moves: Shares
    splits: Splits
    points: Tensor
    known: tuple[Tensor, Tensor]
    flips: Mask


class Comparing:
    """Two networks inside one root box.

    Args:
        pair: the networks.
        rows: the decision.
        lower, upper: (inputs,), the root box.
        free: (inputs,), which inputs vary in the region; None: all.
        deadline: when to end.

    Attributes:
        known: bounds (units,) that hold everywhere.
    """

    def __init__(
        self,
        pair: Pair,
        rows: Rows,
        lower: Tensor,
        upper: Tensor,
        free: Mask | None = None,
        deadline: Deadline = NEVER,
    ) -> None:
        self.pair, self.free = pair, np.ones(len(lower), bool) if free is None else free
        self.bounder = Bounder(pair.graph, lower, upper, deadline=deadline)
        self.known = self.bounder.root[0][0], self.bounder.root[1][0]
        n, nothing = len(rows.weight), torch.zeros_like(rows.weight)
        touched = ((rows.weight != 0) & self._changed()).any(1).nonzero()[:, 0]
        before, after = torch.cat([rows.weight, nothing], 1), torch.cat([nothing, rows.weight], 1)
        A, offset = torch.cat([before, after[touched]]), torch.cat([rows.offset, rows.offset[touched]])
        lowered = 2 * offset - self.bounder.rounding.raised(A, offset)
        later = np.arange(n)
        later[touched.numpy()] = n + np.arange(len(touched))
        changing = [flip for flip in rows.flips if later[flip[0]] >= n]
        self.flips = Flips(rows, A, lowered, later, changing, lambda x: pair.graph(x, deadline))
        self.generator = torch.Generator().manual_seed(0)

    @property
    def can_stay(self) -> bool:
        """Whether outputs can be proved to be the same: no bias moved, and the change is one of the last map."""
        return self.pair.moved is not None and not bool((self.pair.moved.bias != 0).any())

    def _changed(self) -> Tensor:
        """Return (outputs,) bool: which outputs may differ."""
        moved = self.pair.moved
        if moved is None:
            return torch.ones(self.pair.outputs, dtype=torch.bool)
        return (moved.change != 0).any(1) | (moved.bias != 0)

    def judge(
        self, lower: Tensor, upper: Tensor, known: tuple[Tensor, Tensor], flips: Mask, identical: bool = True
    ) -> Judged:
        """Bound boxes (boxes, inputs).

        Args:
            lower, upper: the boxes.
            known: bounds (units,) that hold in all of them.
            flips: (flips,), what may happen there at all.
            identical: whether splits are for identical outputs even where only some of the outputs can be.
        """
        if self.pair.equal:
            return _nothing(lower, known, flips)
        batch, moved = self._batch(lower, upper, known), self.pair.moved
        units = None if moved is None else Units.of(batch, moved, self.pair.graph)
        shares = units.shares() if units is not None and self.can_stay else None
        maybe, open_, splits = self.flips.may(batch, flips, units, shares)
        differs, moves = np.full(len(batch), UNIT, np.int64), np.full(len(batch), UNIT, np.int64)
        if shares is not None:
            differs = np.minimum(shares.may.sum(1), UNIT)
            moves = np.minimum(shares.does.max(1, initial=0), differs)
            mine = shares.splits(batch)
            loose = (differs > moves) & (identical | (maybe == 0) | (moves == 0))
            splits.put(loose, Splits(mine.next[loose], mine.effort[loose]))
        maybe = np.minimum(maybe, differs)
        points, box = self._points(batch, maybe)
        sure = np.zeros(len(batch), np.int64)
        sure[box] = np.minimum(self.flips.sure(batch, box, open_[box]), maybe[box])
        rest: Mask = np.logical_or(maybe > sure, differs > moves)
        return Judged(
            maybe, sure, differs, moves, splits, points, self._shared(batch, known, rest), np.any(open_[rest], axis=0)
        )

    def _batch(self, lower: Tensor, upper: Tensor, known: tuple[Tensor, Tensor]) -> Batch:
        """Return boxes with bounds of the units that are not zero in all of them."""
        low, high = (end.expand(len(lower), -1) for end in known)
        chain = self.bounder.chain
        if chain is not None:
            low, high = chain.tightened(lower, upper, low, high, self.bounder.deadline)
        bounder, places = self.bounder.restricted(self.pair.graph.alive(high))
        around = (low, high) if places is None else (low[:, places], high[:, places])
        relaxation = Relaxation.of(bounder.graph, *around) if chain is not None else bounder.relax(lower, upper, around)
        return Batch(bounder, places, relaxation, lower, upper, self.free)

    def _shared(self, batch: Batch, known: tuple[Tensor, Tensor], rest: Mask) -> tuple[Tensor, Tensor]:
        """Return bounds (units,) that hold in some of the boxes."""
        shared, some = (known[0].clone(), known[1].clone()), torch.from_numpy(rest)
        if bool(some.any()):
            here = slice(None) if batch.places is None else batch.places
            low, high = batch.relaxation.joined(batch.lower)
            shared[0][here], shared[1][here] = low[some].amin(0), high[some].amax(0)
        return shared

    def _points(self, batch: Batch, maybe: Shares) -> tuple[Tensor, Index]:
        """Return points at which floats find another decision, and their boxes, at most one for each."""
        box = torch.from_numpy(maybe.nonzero()[0])
        at = torch.rand(len(box), POINTS, batch.lower.shape[1], generator=self.generator, dtype=torch.float64)
        at[:, 0] = 0.5
        x = batch.lower[box, None] + at * batch.width[box, None]
        differ = self.flips.differ(self.pair.graph(x.flatten(0, 1), self.bounder.deadline)).reshape(len(box), POINTS)
        found = differ.any(1).nonzero()[:, 0]
        return x[found, differ[found].double().argmax(1)], box[found].numpy()


def _nothing(lower: Tensor, known: tuple[Tensor, Tensor], flips: Mask) -> Judged:
    """Return what is known of boxes in which nothing can change."""
    zero, splits = np.zeros(len(lower), np.int64), Splits(np.full((len(lower), 2), -1), np.zeros(len(lower)))
    return Judged(zero, zero, zero, zero, splits, lower[:0], known, np.zeros_like(flips))
