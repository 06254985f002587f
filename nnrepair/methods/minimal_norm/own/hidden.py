"""The caller's own program for a hidden layer of the same architecture: convex steps on the true network.

Sequential convex programming with an exact penalty (Fletcher, Practical Methods of Optimization, 1987): conditions are
linearised at the present change, what misses them costs a price, and no entry leaves a trust region around the present
change. A step counts only if the true network likes it. The side conditions, which are convex as they are, hold at
every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnrepair.deadline import Deadline, OutOfTime
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.suffix import Suffix
from nnrepair.methods.minimal_norm.budget import Budget
from nnrepair.methods.minimal_norm.demands import Demand, aims_of
from nnrepair.methods.minimal_norm.hidden import HiddenRepair
from nnrepair.methods.minimal_norm.own.program import Contradiction, Program
from nnrepair.methods.minimal_norm.trial import Trial
from nnrepair.solver.conditions import Conditions
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.solver.rows import Array

#: Steps aim at this many times an edit's margin, so that rounding does not take what the last one reached.
AIM = 1.01
#: Conditions with less than this many times an edit's margin to spare are in the program from the start.
NEAR = 2.0
#: A step counts where the true network gains this share of what the program promised.
KEPT = 0.1
#: How the trust region grows and shrinks.
GROWTH, SHRINKAGE = 2.0, 0.3
#: A step that fails is tried again this many times as long as it shows conditions that were not in the program.
RETRIES = 3
#: Steps end where they promise less than this share, or where the trust region is less than this share of the change.
SMALL, SMALLEST = 1e-4, 1e-4
#: What missing a margin costs at first, in objectives; how that grows where something stays missed, and how often.
PRICE, DEARER, PRICES = 1.0, 4.0, 4
#: How many times the largest multiplier is enough of a price: more makes steps short.
ENOUGH = 2.0


@dataclass
class OwnHiddenRepair:
    """The repair of chosen parameters, from the one that is small in the l2 norm.

    Attributes:
        line: the chosen parameters; moved to the change in the end.
        suffix: the network from there on, in its own dtype; never changed.
        demands: what is asked of the suffix, edits first.
        program: objective and side conditions.
        rounded: from a change to one that weights of their own dtype can make.
        max_steps: bound on convex steps, and before these on rounds of descent.
        deadline: told how far it is.
        stats: figures of the repair, in the end.
    """

    line: Linearization
    suffix: Suffix
    demands: Sequence[Demand]
    program: Program
    rounded: Callable[[Array], Array]
    max_steps: int
    deadline: Deadline
    stats: dict[str, Any] = field(default_factory=dict)

    def run(self, start: dict[str, Tensor] | None = None) -> Array:
        """Return the change (n,), from one to start from."""
        self._margin = float(self.demands[0].need.max())
        self._aims = aims_of(self.demands, AIM)
        if start is None:
            descent = HiddenRepair(self.line, self.suffix, self.demands, "l2", None, self.max_steps, self.deadline)
            start = descent.run()
        self._trial = Trial(self.line, self.suffix, self.demands)
        d = self.program.nearest(self.line.flatten(start))
        size = float(np.abs(d).max(initial=0.0)) or 1.0
        self._tags = np.zeros((0, 3), np.int64)
        self._budget = Budget()
        self._best: tuple[float, Array] | None = None
        self.stats |= {"steps": 0, "start": self.program.value(d)}
        price = PRICE * (abs(self.program.value(d)) or 1.0) / self._margin
        self._soft = price / ENOUGH
        try:
            self._join(self._looked(d), NEAR * self._margin)
            for _ in range(PRICES):
                d, price = self._descend(d, size / 2, price)
                if self._ended or self.stats["steps"] >= self.max_steps:
                    break
                price *= DEARER
        except OutOfTime:
            self.stats["late"] = True
        self.line.move(np.zeros_like(d))
        self.stats |= {"solver": "Clarabel", "met": self._best is not None}
        return self.rounded(self.program.entries.met(d)) if self._best is None else self._best[1]

    def _descend(self, d: Array, radius: float, price: float) -> tuple[Array, float]:
        """Return where convex steps end, and the price with which they did."""
        missed = self._looked(d)
        merit = self._merit(d, missed, price)
        retries, settled = 0, self.stats["steps"] > 0
        least = SMALLEST * float(np.abs(d).max(initial=0.0))
        while self.stats["steps"] < self.max_steps and radius > least:
            self.stats["steps"] += 1
            self.deadline.check(f"step {self.stats['steps']}, objective {self.program.value(d):.3g}")
            try:
                answer = self.program.solve(self._conditions(d, missed, price), (d, radius))
            except (Contradiction, NotSolvedError):  # d itself is feasible: rounding leaves no more
                break
            if merit - answer.value <= SMALL * abs(merit):
                break
            largest = float(answer.multipliers.max(initial=0.0))
            if not settled and 0 < ENOUGH * largest < price:
                price, self._soft, settled = ENOUGH * largest, largest, True
                merit = self._merit(d, missed, price)
                continue
            tried = self.program.entries.met(answer.d)
            found = self._looked(tried)
            retries = retries + 1 if self._join(found) else RETRIES
            after = self._merit(tried, found, price)
            promised, gained = merit - answer.value, merit - after
            if gained < KEPT * promised:
                if retries >= RETRIES:
                    radius *= SHRINKAGE
                    retries = 0
                continue
            retries = 0
            d, missed, merit = tried, found, after
            radius *= GROWTH if gained > 0.75 * promised else 1.0
        self._ended = self._meets(missed)
        return d, price

    def _looked(self, d: Array) -> list[Array]:
        """Return by how much the true network misses each condition at a change, which is kept if it meets them."""
        self.line.move(d)
        missed = [demand.missed(self.line.outputs_in_batches(demand.inputs)).numpy() for demand in self._aims]
        if self._meets(missed):
            self._keep(d)
        return missed

    def _meets(self, missed: list[Array]) -> bool:
        hard = [one for one, demand in zip(missed, self.demands, strict=True) if not demand.soft]
        return max(float(one.max(initial=0.0)) for one in hard) <= (AIM - 1) * self._margin

    def _merit(self, d: Array, missed: list[Array], price: float) -> float:
        """Return the objective and what misses cost."""
        dear = [self._soft if demand.soft else price for demand in self.demands]
        costs = (each * float(np.maximum(one, 0.0).sum()) for each, one in zip(dear, missed, strict=True))
        return self.program.value(d) + sum(costs)

    def _keep(self, d: Array) -> None:
        """Keep a change, as the weights' own dtype has it, if it is the best so far that meets everything."""
        change = self.rounded(self.program.entries.met(self._swept(d)))
        value = self.program.value(change)
        if self._best is not None and value >= self._best[0]:
            return
        if all(look.met for look in self._trial.look(self.line.unflatten(change))):
            self._best = (value, change)

    def _swept(self, d: Array) -> Array:
        """Return the change without what the solver left of zeros."""
        swept = self.program.entries.met(np.where(np.abs(d) < 1e-6 * np.abs(d).max(initial=0.0), 0.0, d))
        return swept if self.program.missed(swept) <= self.program.missed(d) + 1e-9 else d

    def _join(self, missed: list[Array], near: float = 0.0) -> bool:
        """Take the conditions into use that are missed, or nearly so; return whether there are new ones."""
        before = len(self._tags)
        for k, one in enumerate(missed):
            point, condition = self._budget.worst(one + near, 0.0) if one.size else (np.zeros(0, np.int64),) * 2
            new = np.stack([np.full(len(point), k), point, condition], 1)
            self._tags = np.unique(np.concatenate([self._tags, new]), axis=0)
        self._budget.end_round()
        return len(self._tags) > before

    def _conditions(self, d: Array, missed: list[Array], price: float) -> Conditions | None:
        """Return the conditions in use, linearised at d."""
        self.line.move(d)
        parts = []
        for k, demand in enumerate(self._aims):
            tag = self._tags[self._tags[:, 0] == k]
            if len(tag):
                rows = self.line.rows(demand.inputs, demand.criterion, *torch.from_numpy(tag[:, 1:]).T)
                need = missed[k][tag[:, 1], tag[:, 2]] + rows.matvec(d)
                parts.append(Conditions(rows, need, np.full(len(tag), self._soft if demand.soft else price), tag))
        return reduce(Conditions.joined, parts) if parts else None
