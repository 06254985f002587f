"""Where a decision may change, and where it surely does: flip by flip, for a batch of boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.verify.comparing.batch import Batch, Index, Splits
from nnrepair.verify.comparing.decision import Rows
from nnrepair.verify.comparing.lines import Lines
from nnrepair.verify.comparing.units import Units, UnitShares
from nnrepair.verify.comparing.volumes import UNIT, Shares

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Flips:
    """The rows of a decision in two networks, side by side, and the flips that are possible at all.

    Attributes:
        rows: the decision.
        A, offset: rows (k, 2 outputs) of the joint outputs, and offsets, lowered by what rounding may take.
        later: (rows,), where the bound of each row of the network after is among these.
        flips: see `Rows`.
        outputs: returns the joint outputs at points (n, inputs).
    """

    rows: Rows
    A: Tensor
    offset: Tensor
    later: Index
    flips: list[tuple[int, int, int, int]]
    outputs: Callable[[Tensor], Tensor]

    def may(
        self, batch: Batch, possible: Mask, units: Units | None, shares: UnitShares | None
    ) -> tuple[Shares, Mask, Splits]:
        """Return the shares (boxes,) that may decide differently, which flips are possible, and what to split.

        Args:
            batch: the boxes.
            possible: (flips,), what is not known to be impossible.
            units: where the change is one of the last map, its units; `shares`: where these may be other than zero.
        """
        open_ = np.tile(possible, (len(batch), 1))
        if units is not None and self.flips:
            open_ &= ~(units.rise(self.rows.weight[[row for row, *_ in self.flips]]) >= 0)
        wanted = np.flatnonzero(open_.any(0)).tolist()
        if not wanted:
            return np.zeros(len(batch), np.int64), open_, batch.longest
        need = sorted({row for f in wanted for row in self._asked(f)})
        place = {row: i for i, row in enumerate(need)}
        lines, found = batch.lines(self.A[need], self.offset[need], torch.arange(len(batch)))
        positive = lines.least > 0
        each = np.zeros((len(batch), len(self.flips)), np.int64)
        for f in wanted:
            row, before, after, _ = self.flips[f]
            one, two = self.rows.opposite[row], int(self.later[row])
            beyond = [one, two, *self._beyond(before, 0), *self._beyond(after, 1)]
            open_[:, f] &= ~positive[:, [place[r] for r in beyond]].any(1)
            box = open_[:, f].nonzero()[0]
            each[box, f] = lines.both_fall(box, place[one], place[two])
            if units is not None and shares is not None:
                lowering = units.lowering(self.rows.weight[row])
                each[box, f] = np.minimum(each[box, f], shares.may[box][:, lowering].sum(1))
        maybe = np.minimum(self._together(each, lines, place, 0), self._together(each, lines, place, 1))
        top = self._nearest(batch, each, lines, need, place)
        every = np.arange(len(batch))
        pick = torch.from_numpy(every * len(need) + top)
        some = [None if a is None else a[pick] for a in found]
        steep = 1e-3 * torch.from_numpy(np.abs(lines.rise[every, top]))
        splits = batch.splits(torch.arange(len(batch)), some, np.minimum(lines.least[every, top], 0.0), steep)
        return np.minimum(maybe, UNIT), open_, splits

    def _nearest(self, batch: Batch, each: Shares, lines: Lines, need: list[int], place: dict[int, int]) -> Index:
        """Return for each box the bound to improve: of those that could forbid its hardest flip, the nearest to it.

        The value of a row in the middle of the box says how near: where it is not positive, no bound of the row will
        be; else what counts is that value, as a share of what lies between it and the bound.
        """
        middle = (batch.lower + batch.upper) / 2
        value = (self.outputs(middle) @ self.A[need].T + self.offset[need]).numpy()
        near = np.where(value > 0, value / (value - np.minimum(lines.least, 0.0) + 1e-300), -1.0)
        hardest = np.full(len(batch), np.inf)
        top = np.zeros(len(batch), np.int64)
        for f in np.flatnonzero(each.any(0)).tolist():
            rows = np.array([place[row] for row in self._asked(f)])
            mine = near[:, rows]
            key = mine.max(1) - 2.0 * each[:, f] / UNIT
            some = (each[:, f] > 0) & (key < hardest)
            at = np.where(mine.max(1) > 0, rows[mine.argmax(1)], place[int(self.later[self.flips[f][0]])])
            hardest[some], top[some] = key[some], at[some]
        return top

    def sure(self, batch: Batch, box: Index, open_: Mask) -> Shares:
        """Return at most the shares of some boxes that surely decide differently, given the flips possible there."""
        wanted = np.flatnonzero(open_.any(0)).tolist()
        need = sorted({row for f in wanted for row in self._inside(f)})
        if not len(box) or not need:
            return np.zeros(len(box), np.int64)
        place, groups = {row: i for i, row in enumerate(need)}, dict[int, Shares]()
        lines, _ = batch.lines(self.A[need], self.offset[need], torch.from_numpy(box))
        reach = lines.most > 0
        for f in wanted:
            one, two, *others = (place[row] for row in self._inside(f))
            some = np.flatnonzero(reach[:, [one, two, *others]].all(1))
            share = lines.both_rise(some, one, two)
            for other in others:
                share = share - lines.falls(some, other)
            best = groups.setdefault(self.flips[f][3], np.zeros(len(box), np.int64))
            best[some] = np.maximum(best[some], share)
        return np.minimum(sum(groups.values(), np.zeros(len(box), np.int64)), UNIT)

    def differ(self, y: Tensor) -> Tensor:
        """Tell for joint outputs (n, 2 outputs) whether floats say that the decisions are different."""
        values = [part @ self.rows.weight.T + self.rows.offset for part in y.chunk(2, 1)]
        cells = [torch.stack([(value[:, cell] > 0).all(1) for cell in self.rows.cells], 1) for value in values]
        if len(self.rows.cells) > 1:  # else what is not inside the only one is outside
            known = cells[0].any(1) & cells[1].any(1)
        else:
            known = torch.ones(len(y), dtype=torch.bool)
        return known & (cells[0] != cells[1]).any(1)

    def _beyond(self, cell: int, after: int) -> list[int]:
        """Return the rows of which none is positive where outputs may be in a cell, before or after."""
        rows = [] if cell < 0 else [self.rows.opposite[row] for row in self.rows.cells[cell]]
        return [int(self.later[row]) for row in rows] if after else rows

    def _asked(self, f: int) -> list[int]:
        """Return the rows whose lower bounds tell whether a flip is possible."""
        row, before, after, _ = self.flips[f]
        return [self.rows.opposite[row], int(self.later[row]), *self._beyond(before, 0), *self._beyond(after, 1)]

    def _inside(self, f: int) -> list[int]:
        """Return the rows that are all positive where a flip surely is one; the first two are nearly opposite."""
        row, before, after, _ = self.flips[f]
        first = [row, int(self.later[self.rows.opposite[row]])]
        cells = self.rows.cells
        rest = [
            *(cells[before] if before >= 0 else ()),
            *(int(self.later[r]) for r in (cells[after] if after >= 0 else ())),
        ]
        return [*first, *dict.fromkeys(r for r in rest if r not in first)]

    def _together(self, each: Shares, lines: Lines, place: dict[int, int], after: int) -> Shares:
        """Return the shares of all flips, where those out of one cell (or, after, into one) lie inside of it."""
        total, ends = np.zeros(len(each), np.int64), [flip[1 + after] for flip in self.flips]
        for cell in sorted(set(ends)):
            part = each[:, [f for f, end in enumerate(ends) if end == cell]].sum(1)
            box = (part > 0).nonzero()[0]
            for row in self._beyond(cell, after) if len(box) else ():
                if row in place:
                    part[box] = np.minimum(part[box], lines.falls(box, place[row]))
            total += part
        return total
