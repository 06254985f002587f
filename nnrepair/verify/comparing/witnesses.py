"""Inputs at which two networks decide differently: run, and computed without rounding, before anyone hears of them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.verify.comparing.decision import Rows
from nnrepair.verify.comparing.evidence import Witness
from nnrepair.verify.network import Network
from nnrepair.verify.property import Box
from nnrepair.verify.search.rational import Enclosure, enclosure

#: So many points are tried for each witness that is wanted.
TRIES = 20


class Witnesses:
    """Collects the first of the points that it is given which stand up to everything.

    Args:
        networks: before and after.
        rows: the decision.
        most: how many are wanted.
        deadline: when to end.
    """

    def __init__(self, networks: tuple[Network, Network], rows: Rows, most: int, deadline: Deadline) -> None:
        self.graphs = [network.graph for network in networks]
        self.replays = [network.replay(deadline) for network in networks]
        self.rows, self.most, self.tries, self.deadline = rows, most, TRIES * most, deadline
        self.found: list[Witness] = []
        coefficients, offset = rows.weight.tolist(), rows.offset.tolist()
        self.exact = [([*map(Fraction, row)], Fraction(b)) for row, b in zip(coefficients, offset, strict=True)]

    def confirm(self, points: Tensor, box: Box) -> None:
        """Keep those of the points (n, inputs) of a box that are witnesses, as long as some are wanted."""
        for point in points:
            if len(self.found) >= self.most or not self.tries:
                return
            self.tries -= 1
            self._try(point, box)

    def _try(self, point: Tensor, box: Box) -> None:
        exact = self.replays[0].in_box(point, box)
        x = self.replays[0].rounded(exact)
        if any(Fraction(v) != each for v, each in zip(x.tolist(), exact, strict=True)):
            return  # the box has no such number of the network's own precision
        runs = [replay.runs(x.to(replay.dtype)) for replay in self.replays]
        for before, after in zip(*(run.values() for run in runs), strict=False):
            if not self._differ(*([(Fraction(v), Fraction(v)) for v in y.tolist()] for y in (before, after))):
                return
        outputs = [enclosure(graph, exact, self.deadline) for graph in self.graphs]
        if not self._differ(*(found for found, _ in outputs)):
            return
        how = "exact" if all(is_exact for _, is_exact in outputs) else "enclosure"
        names = [name for name in runs[0] if name in runs[1]]
        last = [list(run.values())[-1] for run in runs]
        self.found.append(Witness(x.double().numpy().astype(np.float64), last[0], last[1], (*names, how)))

    def _differ(self, before: Enclosure, after: Enclosure) -> bool:
        """Tell whether two outputs certainly have different decisions."""
        one, two = self._cell(before), self._cell(after)
        return one is not None and two is not None and one != two

    def _cell(self, y: Enclosure) -> int | None:
        """Return the cell in which an output lies, -1 for outside of the only one, None where that is not certain."""
        ends = [self._ends(row, y) for row in range(len(self.exact))]
        for k, cell in enumerate(self.rows.cells):
            if all(ends[row][0] > 0 for row in cell):
                return k
            if len(self.rows.cells) == 1 and any(ends[row][1] < 0 for row in cell):
                return -1
        return None

    def _ends(self, row: int, y: Enclosure) -> tuple[Fraction, Fraction]:
        """Return the least and the largest value of a row."""
        coefficients, offset = self.exact[row]
        parts = [(c, ends) for c, ends in zip(coefficients, y, strict=True) if c]
        low = sum((c * (a if c > 0 else b) for c, (a, b) in parts), offset)
        return low, sum((c * (b if c > 0 else a) for c, (a, b) in parts), offset)
