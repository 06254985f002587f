"""Repair where outputs are affine in the change: the last layer, or any layer of the decoupled network.

There the solution of the linear program needs no further correction. Rows are found on demand: the network runs on
every edit and the whole locality set, and missed conditions join within a `Budget`: the worst of each point first, then
several of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods.minimal_norm.budget import Budget
from nnrepair.methods.minimal_norm.demands import Demand
from nnrepair.results.certificate import Certificate
from nnrepair.solver import norms
from nnrepair.solver.metric import Metric
from nnrepair.solver.minnorm import ROW_TOLERANCE, Conditions, Solution, solve
from nnrepair.solver.rows import Array
from nnrepair.spec.criteria import Argmax, Threshold, flat
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.problem import Problem


@dataclass
class ExactRepair:
    """The smallest change along which a linearisation satisfies all demands.

    Attributes:
        line: the chosen parameters' effect on the outputs.
        demands: edits first.
        norm, metric, gap: what "small" means, and when to stop.
        deadline: when to end at the latest.
        architecture: "same" or "decoupled", for the certificate.
    """

    line: Linearization
    demands: list[Demand]
    norm: str
    metric: Metric | None
    gap: float
    architecture: str
    deadline: Deadline
    native64: bool = False

    def __post_init__(self) -> None:
        seen = [self.line.with_features(d.inputs, self.deadline.check) for d in self.demands]
        self._base, self._features = [y for y, _ in seen], [features for _, features in seen]
        self._need = [(d.need - d.criterion.slack(y)).numpy() for d, y in zip(self.demands, self._base, strict=True)]
        self._caps = [np.inf] * len(self.demands)

    def run(self) -> Solution:
        """Return the solution, in the metric's coordinates.

        Raises:
            OutOfTime: the deadline passed.
            Infeasible: no change of the chosen parameters satisfies the hard demands.
        """
        soft = [k for k, d in enumerate(self.demands) if d.soft]
        if soft:  # missing a soft condition costs as much as the edit with the largest multiplier
            hard = [k for k in range(len(self.demands)) if k not in soft]
            alone = self._solve("l2", hard)
            dearest = float(alone.y.max(initial=0.0)) * alone.objective
            for k in soft:
                self._caps[k] = dearest
        return self._solve(self.norm, list(range(len(self.demands))))

    def _solve(self, norm: str, which: list[int]) -> Solution:
        separate = self.separation(which)
        first = separate(None, None)
        if first is None:  # everything holds with its margin already
            nothing = self.line.rows(self.demands[0].inputs, self.demands[0].criterion, *torch.zeros(2, 0).long())
            empty = Conditions(nothing, np.zeros(0), np.zeros(0), np.zeros((0, 3), np.int64))
            return Solution(np.zeros(nothing.n), np.zeros(0), 0.0, 0.0, empty)
        made = norms.make(norm, first.rows)
        return solve(
            first, separate, made, gap=self.gap, report=self.deadline.check, metric=self._discovery(norm, which)
        )

    def separation(self, which: list[int]) -> Callable[[Array | None, Conditions | None], Conditions | None]:
        """Return what finds missed conditions of some demands: (change or None for none, rows in use) -> rows."""
        budget = Budget()

        def separate(d: Array | None, using: Conditions | None) -> Conditions | None:
            found = [c for k in which if (c := self._worst(k, d, using, budget)) is not None]
            budget.end_round()
            return reduce(Conditions.joined, found) if found else None

        return separate

    def _discovery(self, norm: str, which: list[int]) -> Metric | None:
        """Return in which coordinates to look for rows before `norm` counts, None for those of the weights.

        Where many points must stay, the change that moves their outputs least misses few of them.
        """
        kept = [k for k in which if k > 0]
        if norm in (*norms.METRICS, "nuclear") or not kept or np.isfinite(self._caps).any():
            return None
        return self.line.metric(self.demands[kept[0]].inputs)

    def change(self, solution: Solution) -> Array:
        """Return the change of weights that a solution stands for."""
        d = solution.d
        return d if self.metric is None else self.metric.unwhiten(d, solution.conditions.rows)

    def _missed(self, k: int, d: Array | None) -> Array:
        demand = self.demands[k]
        if d is None:
            return self._need[k]
        features = self._features[k]
        if features is not None:
            y = self._base[k] + features @ self.line.matrix(d).T
        else:
            y = self.line.outputs_in_batches(demand.inputs, d, self.deadline.check)
        return demand.missed(y).numpy()

    def _worst(self, k: int, d: Array | None, using: Conditions | None, budget: Budget) -> Conditions | None:
        """Return the worst missed conditions of demand k that are not in use, within the budget."""
        if d is not None and self.metric is not None and using is not None:
            d = self.metric.unwhiten(d, using.rows)
        missed = self._missed(k, d)
        if using is not None:
            mine = using.tag[using.tag[:, 0] == k]
            missed = missed.copy()
            missed[mine[:, 1], mine[:, 2]] = -np.inf
        scale = max(float(self._need[0].max()), 1e-300)
        point, condition = budget.worst(missed, ROW_TOLERANCE * scale)
        if len(point) == 0:
            return None
        demand = self.demands[k]
        rows = self.line.rows(demand.inputs, demand.criterion, torch.from_numpy(point), torch.from_numpy(condition))
        if self.metric is not None:
            rows = self.metric.whiten(rows)
        tag = np.stack([np.full(len(point), k), point, condition], 1)
        return Conditions(rows, self._need[k][point, condition], np.full(len(point), self._caps[k]), tag)

    def certificate(self, problem: Problem, solution: Solution, margin: float) -> Certificate | None:
        """Return the proof of minimality, where its file format can hold it.

        That is of one linear map and hard conditions, in other norms than "fisher".
        """
        group = self.line.groups[0]
        soft = np.isfinite(solution.conditions.cap).any()
        if len(self.line.groups) != 1 or group.weight is None or soft or not isinstance(problem.edits.inputs, Tensor):
            return None
        if self.norm == "fisher":
            return None
        asked = problem.edits.criterion
        if not isinstance(asked, Argmax | Threshold) or _of_positions(asked):
            return None
        kept = None if problem.locality is None else problem.locality.inputs
        # Integers (node numbers, tokens) name points; a certificate holds points as numbers.
        if not all(_point(x, 0) is not None for x in (problem.edits.inputs, kept) if x is not None):
            return None
        busy = np.flatnonzero(solution.y > 0)
        tag = solution.conditions.tag[busy]
        points, at, row_A, row_b = [problem.edits.inputs.double().cpu().numpy()], [], [], []
        count = len(problem.edits)
        for k, point, condition in tag.tolist():
            demand = self.demands[k]
            if k == 0:
                at.append(point)
            else:
                assert kept is not None and demand.index is not None
                points.append(_numbers(kept, int(demand.index[point])))
                at.append(count)
                count += 1
            one = torch.tensor([point])  # slacks of all points, for each row, would leave gaps of gigabytes in memory
            alone, y = demand.criterion[one], self._base[k][one]
            A = alone.rows(torch.tensor([0]), torch.tensor([condition]), y)[0].flatten()
            offset = float(A @ y.flatten()) - float(alone.slack(y)[0, condition])
            row_A.append(A.numpy())
            row_b.append(offset + float(demand.need[point, condition]))
        change = self.line.unflatten(self.change(solution))
        arrays: dict[str, Any] = {
            "points": np.concatenate(points).astype(np.float64 if self.native64 else np.float32),
            "row_point": np.asarray(at, np.int64),
            "row_A": np.asarray(row_A, np.float64),
            "row_b": np.asarray(row_b, np.float64),
            "row_multiplier": solution.y[busy],
            "edit_point": np.arange(len(problem.edits)),
            "delta_weight": change[group.weight].cpu().numpy(),
        }
        arrays |= _conditions(asked) if isinstance(asked, Threshold) else {"edit_label": asked.labels.cpu().numpy()}
        if group.bias is not None:
            arrays["delta_bias"] = change[group.bias].cpu().numpy()
        if self.metric is not None:
            factor = self.metric.factors[0]
            arrays["metric"] = factor @ factor.T
        return Certificate(
            group.weight,
            group.bias,
            self.norm,
            self.architecture,
            solution.lower_bound,
            solution.objective,
            margin,
            problem.lowest_wins,
            arrays,
        )


def _of_positions(asked: Argmax | Threshold) -> bool:
    """Whether labels ask for more of a point than that one class wins."""
    return isinstance(asked, Argmax) and (asked.margin_ > 0 or asked.labels.ndim > 1)


def _conditions(asked: Threshold) -> dict[str, Array]:
    """Return edits as conditions A y >= b that imply theirs, strict or not: b is the next larger number.

    Every edit has a row per output; a free output repeats the first that is not.
    """
    labels = flat(asked.labels).cpu().numpy()
    size = labels.shape[1]
    output = np.where(labels >= 0, np.arange(size), (labels >= 0).argmax(1)[:, None])
    sign = np.where(np.take_along_axis(labels, output, 1) == 0, -1.0, 1.0)
    at = np.broadcast_to(asked.threshold.numpy(), (size,))[output]
    b = np.nextafter(sign * at + asked.margin_, np.inf)
    return {"edit_A": sign[..., None] * np.eye(size)[output], "edit_b": b}


def _numbers(inputs: AnyInputs, k: int) -> Array:
    point = _point(inputs, k)
    assert point is not None
    return np.asarray(point.double().cpu().numpy())


def _point(inputs: AnyInputs, k: int) -> Tensor | None:
    """Return (1, ...) a point's numbers, or None where it is no plain tensor of them."""
    some = inputs[torch.tensor([k])]
    point = some if isinstance(some, Tensor) else some.loaded()
    return point if isinstance(point, Tensor) and point.is_floating_point() else None
