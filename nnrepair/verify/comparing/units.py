"""Units that a change of the last map hangs on: where they may be other than zero, and how far they move rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.verify.comparing.batch import Batch, Coefficients, Index, Splits
from nnrepair.verify.comparing.pair import Moved
from nnrepair.verify.comparing.volumes import UNIT, Shares, at_most
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.graph import Graph

#: More than the underflow of some products and sums, and less than what counts.
TINY = 1e-290


@dataclass
class Units:
    """The units of a batch that are not known to be zero in all of its boxes.

    Attributes:
        batch: the boxes.
        columns: (units,), their columns in the change, and `place`, where they are in the batch's network.
        low, high: (boxes, units), bounds of what comes out of them.
        moved: the change.
    """

    batch: Batch
    columns: Tensor
    place: Tensor
    low: Tensor
    high: Tensor
    moved: Moved

    @classmethod
    def of(cls, batch: Batch, moved: Moved, graph: Graph) -> Units:
        """Return the units of a batch, given the whole network that the change is in."""
        node = graph.nodes[-1].sources[0]
        thin, units = batch.bounder.graph.nodes[node].units, graph.nodes[node].units
        assert thin is not None and units is not None
        columns, place = torch.arange(len(moved.units)), moved.units
        if batch.places is not None:
            where = torch.full((graph.hidden,), -1)
            where[batch.places[thin]] = torch.arange(thin.stop - thin.start)
            columns = (where[units.start + moved.units] >= 0).nonzero()[:, 0]
            place = where[units.start + moved.units[columns]]
        i = batch.bounder.place[node]
        low, high = batch.relaxation.lower[i][:, place], batch.relaxation.upper[i][:, place]
        return cls(batch, columns, place, low, high, moved)

    def rise(self, weight: Tensor) -> NDArray[np.float64]:
        """Return (boxes, rows): lower bounds of how much rows (rows, outputs) of the outputs grow by the change."""
        pull = sums_below(weight[:, :, None], self.moved.change[:, self.columns])  # (rows, units)
        shift = sums_below(weight[:, :, None], self.moved.bias[:, None])[:, 0]
        up, down = self.low.clamp(min=0) @ pull.clamp(min=0).T, self.high.clamp(min=0) @ pull.clamp(max=0).T
        total, size = up + down + shift, up - down + shift.abs()
        falling = (self.high > 0).double() @ (pull < 0).double().T > 0  # their products may be too small for a float
        sure = ~falling & (shift >= 0)  # sums of what is not negative
        return torch.where(sure, total, total - 64 * (len(self.columns) + 1) * EPS * size - TINY).numpy()

    def lowering(self, row: Tensor) -> NDArray[np.bool_]:
        """Tell which units may lower a row (outputs,) of the outputs."""
        pull = sums_below(row[None, :, None], self.moved.change[:, self.columns])[0]
        return (pull < 0).numpy()

    def shares(self) -> UnitShares:
        """Return where each of them may be other than zero."""
        batch, bounder = self.batch, self.batch.bounder
        may = np.where((self.low > 0).numpy(), UNIT, 0)
        does, bounds, found = may.copy(), np.zeros(0), Coefficients()
        box, unit = ((self.low <= 0) & (self.high > 0)).nonzero(as_tuple=True)
        k = len(box)
        if k:
            source, A, bias = bounder.entries(self._source, self.place[unit])
            rho, twice = bounder.rounding.rho[self._source][self.place[unit]], torch.cat([box, box])
            bound = bounder.backward(batch.relaxation, source, torch.cat([-A, A]), twice, coefficients=found)
            bound.c = bound.c + torch.cat([-bias - rho, bias - rho])
            least = bound.minimum(batch.lower[twice], batch.upper[twice]).numpy()
            rise = (bound.A.abs() * batch.width[twice]).numpy()
            may[box.numpy(), unit.numpy()] = at_most(rise[:k], -least[:k], True, batch.free)
            does[box.numpy(), unit.numpy()] = UNIT - at_most(rise[k:], -least[k:], True, batch.free)
            found, bounds = [None if a is None else a[:k] for a in found], least[:k]
        return UnitShares(may, does, box.numpy(), unit.numpy(), bounds, found)

    @property
    def _source(self) -> int:
        """The node of what goes into the units."""
        nodes = self.batch.bounder.graph.nodes
        return nodes[nodes[-1].sources[0]].sources[0]


@dataclass
class UnitShares:
    """The share of each box where each unit may be, and surely is, not zero: (boxes, units).

    `box` and `unit` are the pairs that were bounded, `least` the lower bounds of what goes into these units, times -1,
    and `coefficients` go with them.
    """

    may: Shares
    does: Shares
    box: Index
    unit: Index
    least: NDArray[np.float64]
    coefficients: Coefficients

    def splits(self, batch: Batch) -> Splits:
        """Return what to split so that the loosest unit of each box is bounded better."""
        found = batch.longest
        if len(self.box):
            gap = (self.may - self.does)[self.box, self.unit]
            order = np.lexsort((gap, self.box))
            last = order[np.append(np.diff(self.box[order]) != 0, True)]  # of each box, its loosest unit
            box, index = torch.from_numpy(self.box[last]), torch.from_numpy(last)
            some = [None if a is None else a[index] for a in self.coefficients]
            least = np.where(gap[last] == UNIT, self.least[last], 0.0)
            found.put(self.box[last], batch.splits(box, some, least, torch.zeros(len(box), batch.lower.shape[1])))
        return found


def sums_below(a: Tensor, b: Tensor) -> Tensor:
    """Return sums over axis 1 of products, rounded down; not below 0 if no product is, but for some below TINY."""
    terms = a * b
    terms = torch.where((terms.abs() < TINY) & (a.abs() != 1) & (a != 0) & (b != 0), -TINY, terms)  # underflow
    total = terms.sum(1)
    slack = 2 * (terms.shape[1] + 1) * EPS * terms.abs().sum(1)
    return torch.where((terms >= 0).all(1), total, total - slack)
