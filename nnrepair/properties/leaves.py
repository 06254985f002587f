"""The parts of a region, and what the last weights must satisfy so that linear bounds prove a property on each.

With the hidden layers fixed, the relaxation of a part does not depend on the last weights w: the bound on it is the
least value of w . h over a fixed convex set of keys h, and so concave in w. At any w the bound is attained at one key
of that set, a *virtual point*: requiring the property there is a linear row that cuts w off where the part is not
proved. (It cuts off hardly any w for which it is: bounds that a part inherits may be tighter than its own lines, and
then the virtual point lies a little outside the set. Nothing but the size of the change depends on that.) A few such
rows make parts proved by construction, where with points alone a proof would split for ever.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.jacobian.head import rows_of
from nnrepair.properties.head import Head
from nnrepair.solver.program import Array
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.jobs import Jobs
from nnrepair.verify.search.relaxation import Linear, Relaxation

#: Parts bounded together.
BATCH = 512


class Leaves:
    """All parts of a property's boxes, each with the one row of its job that is to be positive on it.

    Args:
        head: the network.
        jobs: of the property.
        change: (outputs, width), the change of the last weights at which rows are chosen.
    """

    def __init__(self, head: Head, jobs: Jobs, change: Tensor) -> None:
        self.head, self.jobs = head, jobs
        self.bounder = Bounder(head.graph, jobs.lower.amin(0), jobs.upper.amax(0))
        self.offset = self.bounder.rounding.raised(jobs.rows, jobs.offset)
        count = len(jobs.lower)
        known = tuple(end.repeat(count, 1) for end in self.bounder.root)
        self.lower, self.upper, self.job = jobs.lower, jobs.upper, torch.arange(count)
        self.relaxation = self._relaxed(self.lower, self.upper, known)
        self.row = torch.zeros(count, dtype=torch.long)
        self.choose(change)

    def __len__(self) -> int:
        return len(self.job)

    def bound(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower bounds (n,) of the chosen rows, and the virtual points (n, width) at which they are attained."""
        values, keys = [], []
        for part in _parts(len(self)):
            value, linear, coefficients = self._backward(part, self.row[part], change)
            x = linear.corner(self.lower[part], self.upper[part])
            hidden = self.bounder.attained(self.relaxation[part], self.head.source, x, coefficients)[-1]
            values.append(value)
            keys.append(self.head.extended(hidden))
        return torch.cat(values), torch.cat(keys)

    def rows(self, which: Tensor, keys: Tensor, need: float) -> tuple[Array, Array]:
        """Return what the change of the last weights must satisfy for chosen parts: rows (m, size) and need (m,)."""
        r, job = self.jobs.rows[self.job[which], self.row[which]], self.job[which]
        now = torch.einsum("mo,ow,mw->m", r, self.head.weight, keys) - self.offset[job, self.row[which]]
        return rows_of(r, keys).numpy(), (need - now).numpy()

    def choose(self, change: Tensor) -> None:
        """Choose for every part the row of its job whose bound is highest."""
        best = self.lower.new_full((len(self),), -torch.inf)
        for m in range(self.jobs.rows.shape[1]):
            row = torch.full_like(self.row, m)
            parts = _parts(len(self))
            value = torch.cat([self._backward(part, row[part], change)[0] for part in parts])
            better = self.jobs.real[self.job, m] & (value > best)
            self.row, best = torch.where(better, row, self.row), torch.where(better, value, best)

    def split(self, which: Tensor, change: Tensor) -> None:
        """Halve chosen parts where that tightens their bounds most."""
        scores = []
        for part in _parts(which):
            _, _, coefficients = self._backward(part, self.row[part], change)
            width = self.upper[part] - self.lower[part]
            score = self.bounder.attribution(self.relaxation[part], coefficients, width)
            scores.append(torch.fmax(score, width * 1e-12))
        dim = torch.cat(scores).argmax(1)[:, None]
        lower, upper = self.lower[which], self.upper[which]
        cut = ((lower + upper) / 2).gather(1, dim)
        halves = torch.cat([lower, lower.scatter(1, dim, cut)]), torch.cat([upper.scatter(1, dim, cut), upper])
        known = tuple(end.repeat(2, 1) for end in self.relaxation[which].joined(lower))
        new = self._relaxed(*halves, known)
        stays = torch.ones(len(self), dtype=torch.bool)
        stays[which] = False
        old = self.relaxation[stays.nonzero()[:, 0]]
        self.relaxation = Relaxation.stacked([old, new])
        self.lower, self.upper = torch.cat([self.lower[stays], halves[0]]), torch.cat([self.upper[stays], halves[1]])
        self.job, self.row = (torch.cat([v[stays], v[which], v[which]]) for v in (self.job, self.row))

    def _backward(self, part: Tensor, row: Tensor, change: Tensor) -> tuple[Tensor, Linear, list[Tensor | None]]:
        """Return the bounds of one row for each of some parts, the linear bounds, and their coefficients."""
        r, hidden = self.jobs.rows[self.job[part], row], self.head.graph.nodes[self.head.source].size
        A = r @ (self.head.weight + change)
        coefficients: list[Tensor | None] = []
        linear = self.bounder.backward(
            self.relaxation[part], self.head.source, A[:, :hidden], torch.arange(len(part)), coefficients=coefficients
        )
        linear.c = linear.c + A[:, hidden:].sum(1) - self.offset[self.job[part], row]
        return linear.minimum(self.lower[part], self.upper[part]), linear, coefficients

    def _relaxed(self, lower: Tensor, upper: Tensor, known: tuple[Tensor, ...]) -> Relaxation:
        parts = [self.bounder.relax(lower[i], upper[i], (known[0][i], known[1][i])) for i in _parts(len(lower))]
        return Relaxation.stacked(parts)


def _parts(count: int | Tensor) -> tuple[Tensor, ...]:
    """Return indices, or 0..count-1, in batches."""
    return torch.split(torch.arange(count) if isinstance(count, int) else count, BATCH)
