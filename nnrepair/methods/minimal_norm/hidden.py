"""Repair of any layer in the same architecture, in rounds on the true network; see `lagrangian`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from nnrepair.deadline import Deadline, OutOfTime
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.suffix import Suffix
from nnrepair.methods.minimal_norm.coordinates import Coordinates
from nnrepair.methods.minimal_norm.demands import Demand, aims_of
from nnrepair.methods.minimal_norm.lagrangian import Lagrangian
from nnrepair.methods.minimal_norm.smaller import TRIES, next_coordinates
from nnrepair.methods.minimal_norm.trial import Trial
from nnrepair.solver.metric import Metric
from nnrepair.solver.norms import make

#: Rounds aim at this many times an edit's margin, so that they do not approach it for ever.
AIM = 1.1
#: By how much the penalty grows where the worst miss did not fall to this share of what it was.
GROWTH, ENOUGH = 4.0, 0.3
#: A round that leaves this share of the worst miss got stuck.
STUCK = 0.99
#: Rounds without a worst miss smaller by a tenth after which there is no hope.
PATIENCE = 6
#: How much ReLUs let through of what is below zero where rounds found nothing, one after another.
LEAKS = (0.3, 0.1, 0.03, 0.01)
#: Where outputs are numbers, every condition is nearly an equation, and rounds would end at kinks: ReLUs are smooth so
#: far around zero in the first round, and half as far in each. Where that finds nothing, once more from further.
WIDTHS = tuple(tuple(first * 0.5**k for k in range(10)) for first in (0.5, 2.0))
#: Rounds beyond those after which there is no hope.
SHARP = 4
#: What is noted of a repair that is given up for its side effects.
GIVEN_UP = "given up: outputs to keep moved further than by another repair, with conditions still missed."
#: Rounds of each try for a smaller change in a norm that is not Euclidean, and how many evaluations all tries take at
#: most, as a share of those that the repair took.
ROUNDS, WORK = 4, 2.0


@dataclass
class HiddenRepair:
    """The repair of chosen parameters.

    Attributes:
        line: the chosen parameters, of the suffix.
        suffix: the network from there on, in its own dtype; never changed.
        demands: what is asked of the suffix, edits first.
        norm, metric: what "small" means.
        max_steps: bound on rounds.
        deadline: when to end, with what was found by then.
        bound: a mean change of outputs (at the points to keep, or else the edits); what changes more before everything
            is met is given up.
        change: of weights, by parameter name, float64, in the end.
        steps: one record per round.
        notes: what was not as it was asked for, for the report.
        optimality: of the change, in the Euclidean norms, where a repair was found: see `Lagrangian.optimality`.
    """

    line: Linearization
    suffix: Suffix
    demands: Sequence[Demand]
    norm: str
    metric: Metric | None
    max_steps: int
    deadline: Deadline
    bound: float = np.inf
    smooth: bool = False
    change: dict[str, Tensor] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    optimality: dict[str, float] = field(default_factory=dict)

    def run(self, start: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the change, from one to start from."""
        self._too_far = False
        aims = aims_of(self.demands, AIM)
        self._trial = Trial(self.line, self.suffix, self.demands)
        self.change = {n: torch.zeros_like(p) for n, p in self.line.parameters.items()} if start is None else start
        if all(look.met for look in self._trial.look(self.change)):
            return self.change
        try:
            self._descend(aims, start is not None)
        except OutOfTime:
            self.notes.append("out of time: with more of it there might be a repair, or a smaller one.")
        return self.change

    def _descend(self, aims: Sequence[Demand], anywhere: bool) -> None:
        """Find a repair from the present change, and then smaller ones in the norm that was asked for.

        Args:
            aims: what rounds aim at, edits first.
            anywhere: whether the present change need not be what edits' keys span.
        """
        coordinates = Coordinates.of(self.line.groups, self.metric, self._trial.like)
        if not anywhere:
            coordinates = coordinates.empty()
            for aim in aims:
                if aim.name != "locality":
                    coordinates = coordinates.spanning(self.line.keys(aim.inputs))
        x = coordinates.coordinates(self.change).to("cpu", torch.float64).numpy()
        begun = Lagrangian.of_edits(self._trial, aims, coordinates, x, self.deadline.check)
        if begun is None:
            self.notes.append("stopped: no condition's gradient with respect to these parameters is not zero.")
            return
        state, met = begun.turned(coordinates), False
        for widths in (*(WIDTHS if self.smooth else ()), ()):
            if not met and self._more:
                most = len(widths) + SHARP if widths else self.max_steps
                state, met = self._rounds(begun.turned(coordinates), min(most, self._more), widths=widths)
        if not met and self._more:
            state, met = self._rounds(self._leaked(begun), self._more)
        if self._too_far:
            self.notes.append(GIVEN_UP)
        elif met and self.norm in TRIES:
            self._shrink(state)
        elif met:
            self.optimality = {name: self.steps[-1][name] for name in ("stationarity", "complementarity")}
        elif len(self.steps) == self.max_steps and not met:
            self.notes.append(f"stopped after max_steps={self.max_steps} rounds.")
        elif not met:
            self.notes.append("stopped: no round lowers what is missed, which does not show that none could.")

    @property
    def _more(self) -> int:
        """How many rounds may follow."""
        return 0 if self._too_far else self.max_steps - len(self.steps)

    def _rounds(
        self,
        state: Lagrangian,
        most: int,
        found: bool = False,
        evaluations: float = np.inf,
        widths: Sequence[float] = (),
    ) -> tuple[Lagrangian, bool]:
        """Return the state after rounds until everything is met, and whether it is.

        Args:
            state: to go on from.
            most: rounds.
            found: whether `change` is a repair already, so that only another repair may replace it.
            evaluations: no further round begins after so many.
            widths: how far around zero ReLUs are smooth in the first rounds.
        """
        last = least = np.inf
        patience = PATIENCE
        for number in range(most):
            before = state.evaluations
            self._trial.width = widths[number] if number < len(widths) else 0.0
            state.minimise()
            change, missed = _float64(state.change), state.missed()
            truly = missed
            if self._trial.width > 0:
                self._trial.width = 0.0
                truly = state.noted().missed()
            looks = self._trial.look(change)
            met = all(look.met for look in looks)
            if met or not found:
                self.change = change
            used = max(0.0, *(float(miss.max()) for miss in missed if len(miss)))
            worst = max(float(look.worst.max()) for look in looks)
            self.deadline.check(f"worst miss {worst:.3g}, {state.in_use} points in use")
            self.steps.append(
                {
                    "size": float(np.linalg.norm(state.x)),
                    "missed": worst,
                    "moved": looks[-1].moved,
                    "penalty": state.penalty,
                    "points": float(state.in_use),
                    "evaluations": float(state.evaluations - before),
                    **state.optimality(truly),
                }
            )
            patience = PATIENCE if number < len(widths) or worst < 0.9 * least else patience - 1
            self._too_far = not met and looks[-1].moved > self.bound
            if met or patience == 0 or self._too_far or state.evaluations > evaluations:
                return state, met
            state.charge(missed)
            state.penalty *= GROWTH if used > ENOUGH * last else 1.0
            state.loosened(number >= len(widths) and used > STUCK * last)
            last, least = used, min(least, worst)
            state = self._joined(state, state.join(looks))
        return state, False

    def _leaked(self, state: Lagrangian) -> Lagrangian:
        """Return where rounds end in which ReLUs leak, less and less, with nothing charged.

        Units that are off at every point have no gradient; a repair that needs them is found through leaks.
        """
        begun = state.turned(state.coordinates)
        try:
            for self._trial.leak in LEAKS:
                for _ in range(2):
                    state.minimise()
                    state.charge(state.missed())
                    state.penalty *= GROWTH / 2
        finally:
            self._trial.leak = 0.0
        return replace(begun, x=state.x, evaluations=state.evaluations)

    def _joined(self, state: Lagrangian, joined: Sequence[Tensor]) -> Lagrangian:
        """Return the state in coordinates that span what the layer is applied to at further points."""
        coordinates = state.coordinates
        for demand, new in zip(self.demands, joined, strict=True):
            if len(new) and not coordinates.complete:
                coordinates = coordinates.spanning(self.line.keys(demand.inputs[new]))
        return state if coordinates is state.coordinates else state.turned(coordinates)

    def _shrink(self, state: Lagrangian) -> None:
        """From a repair that is small in the Euclidean norm, go on to smaller ones in the norm that was asked for."""
        start = least = self._size(self.change)
        best, enough = self.change, (1 + WORK) * state.evaluations
        for turn in range(TRIES[self.norm]):
            if state.evaluations > enough:
                break
            coordinates = next_coordinates(self.norm, state.coordinates, best, turn)
            state, met = self._rounds(state.turned(coordinates, best), ROUNDS, True, enough)
            if not met:
                break
            if (size := self._size(self.change)) < least:
                least, best = size, self.change
        self.change = best
        if least > 0.99 * start:
            self.notes.append(
                f"no repair was found that is smaller in the {self.norm} norm than the one in the l2 norm."
            )

    def _size(self, change: dict[str, Tensor]) -> float:
        """Return the norm of a change."""
        one = torch.zeros(1, dtype=torch.int64)
        rows = self.line.rows(self.demands[0].inputs, self.demands[0].criterion, one, one)
        return make(self.norm, rows).value(self.line.flatten(change))


def _float64(change: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.double() for name, part in change.items()}
