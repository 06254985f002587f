"""Repair of any layer in the same architecture: successive linearisation, re-checked on the true network.

Each step solves the smallest-change problem of the linearisation at the current weights, with missed conditions
penalised by `penalty / 2 * miss^2` and the step damped (Levenberg & Marquardt), and then measures the *true* network:
a step counts only when it lowers `|change|^2 / 2 + penalty / 2 * sum miss^2` there. All edits stay in every step (up to
MOST_ROWS conditions, the nearest to failing), so satisfied ones do not flip back; locality points join when a trial
breaks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods.minimal_norm.demands import Demand
from nnrepair.progress import progress_bar
from nnrepair.solver.minnorm import Conditions, Infeasible, solve
from nnrepair.solver.norms import Euclidean, make
from nnrepair.solver.quadratic import NotSolvedError, nnqp
from nnrepair.solver.rows import Array, Metric, Rows
from nnrepair.spec.network import copied
from nnrepair.spec.running import outputs

#: Rows of edits per step; the nearest to failing are kept when there are more.
MOST_ROWS = 3000
#: A missed condition's penalty, relative to what repairing it alone would cost.
PENALTY = 1e5
#: Steps aim at this many times an edit's margin, since steps towards the margin itself become ever shorter.
AIM = 1.5
#: New locality rows per look.
MOST_NEW_ROWS = 200


@dataclass
class SuccessiveRepair:
    """One layer's repair by successive linearisation.

    Attributes:
        line: the chosen parameters; moved along.
        model: the network in its own dtype, never changed.
        demands: edits first.
        norm, metric: what "small" means; other norms than l2 and drift are minimised among repairs once one is found.
        max_steps: bound on linearisations.
        flat: the change of weights in the end (n,).
        steps: one record per linearisation.
        notes: why it stopped early, for the report.
    """

    line: Linearization
    model: nn.Module
    demands: list[Demand]
    norm: str
    metric: Metric | None
    max_steps: int
    gap: float
    progress: bool
    flat: Array = field(default_factory=lambda: np.zeros(0))
    steps: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = self.demands[0]
        self.demands = [replace(first, need=first.need * AIM), *self.demands[1:]]

    def run(self, start: Array | None = None) -> Array:
        """Return the change of weights (n,) after the last accepted step."""
        self._trial = copied(self.model)
        parameters = dict(self._trial.named_parameters(remove_duplicate=False))
        self._parameters = {n: parameters[n] for n in self.line.names}
        self._start = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._locality: list[set[tuple[int, int]]] = [set() for _ in self.demands]
        size = sum(p.numel() for p in self._parameters.values())
        self.flat = np.zeros(size) if start is None else start.copy()
        with progress_bar("successive linearisation", self.progress) as report:
            damping, penalty = 1.0, 0.0
            missed = self._look(self.flat)
            worst, condition = missed[0].max(1)
            self._active = {(0, int(p), int(condition[p])) for p in torch.nonzero(worst > 0).flatten()}
            for step in range(self.max_steps):
                if self._all_hold(missed):
                    break
                self.line.move(self.flat)
                rows, need = self._rows(missed)
                K = rows.gram()
                sizes = np.diag(K)[np.diag(K) > 0]
                if len(sizes) == 0:
                    self.notes.append("stopped: no condition's gradient with respect to these parameters is not zero.")
                    break
                if step == 0:
                    penalty = PENALTY / float(np.median(sizes))
                here = self._coordinates(self.flat, rows)
                merit = self._merit(here, missed, penalty)
                try:
                    move, rows = self._direction(rows, need, K, here, damping, penalty, missed)
                except NotSolvedError as reason:
                    self.notes.append(f"stopped: {reason}.")
                    break
                length, new, value = self._line_search(here, move, rows, missed, merit, penalty)
                record = {"merit": merit, "length": length, "damping": damping, "rows": float(rows.m)}
                self.steps.append(record | {"missed": float(max(m.max() for m in missed))})
                report(f"worst miss {self.steps[-1]['missed']:.3g}, step length {length:.3g}")
                if value < merit * (1 - 1e-7):
                    self.flat = self._weights(here + length * move, rows)
                    missed = new
                    # A full step was short enough: less damping. A shortened one was too long: more damping.
                    damping = max(damping / 4, 1e-2) if length == 1.0 else damping * (4 if length == 0.5 else 16)
                else:
                    damping *= 16
                    if damping > 1e12:
                        self.notes.append(
                            "stopped: no step lowers what is missed, which does not show that none could."
                        )
                        break
            else:
                if not self._all_hold(missed):
                    self.notes.append(f"stopped after max_steps={self.max_steps} linearisations.")
            if self._all_hold(missed) and self.norm not in ("l2", "drift"):
                self._shrink(missed)
        return self.flat

    def _all_hold(self, missed: list[Tensor]) -> bool:
        """Whether, in the model's own dtype, edits have their margin and kept points a tenth of what they need."""
        edits, *kept = zip(self.demands, missed, strict=True)
        aimed_past = edits[0].need * (1 - 1 / AIM)
        return bool((edits[1] <= aimed_past).all()) and all(
            d.soft or bool((m <= 0.9 * d.need.clamp(min=0)).all()) for d, m in kept
        )

    def _set(self, flat: Array) -> None:
        with torch.no_grad():
            for name, change in self.line.unflatten(flat).items():
                self._parameters[name].copy_((self._start[name].double() + change).to(self._start[name].dtype))

    def _look(self, flat: Array) -> list[Tensor]:
        """Return how much each condition is missed on the true network with the change `flat`."""
        self._set(flat)
        return [d.missed(outputs(self._trial, d.inputs)).cpu() for d in self.demands]

    def _coordinates(self, flat: Array, rows: Rows) -> Array:
        return flat if self.metric is None else self.metric.coordinates(flat, rows)

    def _weights(self, d: Array, rows: Rows) -> Array:
        return d if self.metric is None else self.metric.unwhiten(d, rows)

    def _weight(self, k: int) -> float:
        return 1e-3 if self.demands[k].soft else 1.0

    def _merit(self, d: Array, missed: list[Tensor], penalty: float) -> float:
        total = sum(self._weight(k) * float((m.clamp(min=0) ** 2).sum()) for k, m in enumerate(missed))
        return float(d @ d) / 2 + penalty / 2 * total

    def _make(self, k: int, missed: Tensor, point: Tensor, condition: Tensor) -> tuple[Rows, Array]:
        rows = self.line.rows(self.demands[k].inputs, self.demands[k].criterion, point, condition)
        if self.metric is not None:
            rows = self.metric.whiten(rows)
        return rows, missed[point, condition].numpy()

    def _rows(self, missed: list[Tensor]) -> tuple[Rows, Array]:
        """Return the rows at the current weights: all edits' conditions within reach, and the locality rows in use."""
        edits = missed[0]
        finite = torch.isfinite(edits)
        order = torch.argsort(torch.where(finite, edits, -torch.inf).flatten(), descending=True)
        count = min(int(finite.sum()), max(MOST_ROWS, int((edits > 0).sum())))
        chosen = order[:count].sort().values
        parts = [self._make(0, edits, chosen // edits.shape[1], chosen % edits.shape[1])]
        self._keys = [np.stack([np.zeros(count, int), chosen // edits.shape[1], chosen % edits.shape[1]], 1)]
        for k in range(1, len(self.demands)):
            if self._locality[k]:
                pairs = torch.tensor(sorted(self._locality[k]))
                parts.append(self._make(k, missed[k], pairs[:, 0], pairs[:, 1]))
                self._keys.append(_keys(k, pairs))
        rows = parts[0][0]
        for part in parts[1:]:
            rows = rows.joined(part[0])
        return rows, np.concatenate([p[1] for p in parts])

    def _direction(
        self, rows: Rows, need: Array, K: Array, here: Array, damping: float, penalty: float, missed: list[Tensor]
    ) -> tuple[Array, Rows]:
        """Return the step: argmin |here + move|^2 / 2 + damping |move|^2 / 2 + penalty / 2 * missed^2, linearised."""
        for _ in range(4):
            keys = np.concatenate(self._keys)
            weights = np.asarray([self._weight(k) for k in keys[:, 0]])
            system = K.copy()
            system[np.diag_indices_from(system)] += (1 + damping) / (penalty * weights)
            guess = np.asarray([tuple(key) in self._active for key in keys.tolist()])
            y = nnqp(system, need * (1 + damping) + rows.matvec(here), free=guess)
            self._active = {tuple(key) for key in keys[y > 0].tolist()}
            move = (rows.rmatvec(y) - here) / (1 + damping)
            trial = self._look(self._weights(here + move, rows))
            more = self._broken(trial)
            if not more:
                break
            for k, pairs in more:
                self._locality[k].update(pairs)
                index = torch.tensor(pairs)
                new, new_need = self._make(k, missed[k], index[:, 0], index[:, 1])
                rows, need = rows.joined(new), np.concatenate([need, new_need])
                self._keys.append(_keys(k, index))
            K = rows.gram()
        return move, rows

    def _broken(self, trial: list[Tensor]) -> list[tuple[int, list[tuple[int, int]]]]:
        """Return the locality conditions that a trial breaks and that are not in use yet, the worst of each point."""
        found = []
        for k in range(1, len(self.demands)):
            worst, condition = trial[k].max(1)
            point = torch.nonzero(worst > 1e-2 * max(float(self.demands[0].need.max()), 1e-12)).flatten()
            point = point[torch.argsort(-worst[point])[:MOST_NEW_ROWS]]
            pairs = [(int(p), int(condition[p])) for p in point]
            pairs = [p for p in pairs if p not in self._locality[k]]
            if pairs:
                found.append((k, pairs))
        return found

    def _line_search(
        self, here: Array, move: Array, rows: Rows, missed: list[Tensor], merit: float, penalty: float
    ) -> tuple[float, list[Tensor], float]:
        """Return the step length among 1, 1/2, ... 1/64 with the least true merit (stop when it rises again)."""
        best = (0.0, missed, merit)
        length = 1.0
        while length >= 1 / 64:
            trial = self._look(self._weights(here + length * move, rows))
            value = self._merit(here + length * move, trial, penalty)
            if value < best[2]:
                best = (length, trial, value)
                if value < merit / 2:
                    break
            elif best[0] > 0:
                break
            length /= 2
        return best

    def _shrink(self, missed: list[Tensor]) -> None:
        """From a repair, move to smaller ones in the chosen norm while every condition still holds."""
        for _ in range(10):
            self.line.move(self.flat)
            rows, need = self._rows(missed)
            norm = make(self.norm, rows)
            if isinstance(norm, Euclidean):
                return
            total = need + rows.matvec(self.flat)
            tag = np.zeros((len(need), 3), np.int64)
            try:
                conditions = Conditions(rows, total, np.full(len(need), np.inf), tag)
                goal = solve(conditions, lambda d, using: None, norm, gap=1e-3).d
            except (Infeasible, NotSolvedError):
                return
            size = norm.value(self.flat)
            for length in (1.0, 0.5, 0.25, 0.125):
                flat = self.flat + length * (goal - self.flat)
                trial = self._look(flat)
                if self._all_hold(trial) and norm.value(flat) < size * (1 - 1e-3):
                    self.flat, missed = flat, trial
                    break
            else:
                return


def _keys(k: int, pairs: Tensor) -> NDArray[np.int64]:
    """Return (m, 3): which demand, point and condition each row is."""
    return np.concatenate([np.full((len(pairs), 1), k), pairs.numpy()], 1)
