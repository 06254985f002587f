"""One layer's repair: how it is made, and what came of it: a change, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.deadline import Deadline, OutOfTime
from nnrepair.errors import UnsupportedModel
from nnrepair.jacobian.factors import PROBES
from nnrepair.jacobian.layers import moved
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.suffix import Suffix
from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.methods.minimal_norm.demands import Demand
from nnrepair.methods.minimal_norm.hidden import HiddenRepair
from nnrepair.methods.minimal_norm.own.exact import Clash
from nnrepair.methods.minimal_norm.own.functions import Own, norm_of
from nnrepair.methods.minimal_norm.own.repair import OwnRepair
from nnrepair.results.certificate import Certificate
from nnrepair.solver import minnorm
from nnrepair.solver.metric import Metric
from nnrepair.solver.norms import METRICS
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.spec.criteria import flat
from nnrepair.spec.inputs import AnyInputs, independent, to_like
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem, has_choice
from nnrepair.spec.running import outputs
from nnrepair.wrappers.decoupled import Decoupled

#: What is noted of a repair that was computed in the model's own dtype.
ROUNDED = "computed in the model's own dtype, in which alone it runs; there is no certificate."


@dataclass(frozen=True)
class Settings:
    """What a repair is to be, see `MinimalNorm`; nothing is "auto" any more.

    Where there is an objective, `norm` is what that is called.
    """

    norm: str
    margin: float
    architecture: str
    gap: float
    locality: str
    max_steps: int
    objective: Own | None = None
    constraints: Own | None = None

    @property
    def own(self) -> bool:
        """Whether something of it is a function of the caller's own."""
        return self.objective is not None or self.constraints is not None


@dataclass
class Attempt:
    """One layer's repair; by functions of the caller's own with its `figures`.

    Of a hidden layer with one record per round in `steps`, and with `optimality`, see `Lagrangian.optimality`.
    """

    names: list[str]
    line: Linearization
    repair: ExactRepair | None
    model: nn.Module
    solution: minnorm.Solution | None = None
    infeasible: minnorm.Infeasible | Clash | NotSolvedError | OutOfTime | None = None
    change: dict[str, Tensor] | None = None
    steps: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] | None = None
    optimality: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> str | None:
        """Why nothing was found although it was not shown that there is nothing, or None."""
        reason = self.infeasible
        if isinstance(reason, OutOfTime):
            return "out of time; give it more, or choose a smaller layer"
        if isinstance(reason, NotSolvedError):
            return f"{reason} (a limit of the solver: there may be a repair all the same)"
        if isinstance(reason, minnorm.Infeasible) and not reason.certain:
            return f"{reason}, as far as rounding lets the solver see: the problem is ill-conditioned"
        return None

    def certificate(self, problem: Problem, margin: float) -> Certificate | None:
        """Return the proof of minimality, where there is one."""
        if self.repair is None or self.solution is None:
            return None
        return self.repair.certificate(problem, self.solution, margin)

    def stats(self, problem: Problem) -> dict[str, Any]:
        """Return the figures of the repair."""
        if self.figures is not None:
            return self.figures
        if self.solution is None:
            return {"steps": self.steps, **self.optimality}
        found: dict[str, Any] = {"objective": self.solution.objective}
        if not _chose(problem):
            found |= {"lower_bound": self.solution.lower_bound, "gap": self.solution.gap}
        return found | {"rows": self.solution.conditions.m, **self.solution.stats}

    def described(self, problem: Problem, gap: float) -> list[str]:
        """Say how the change was found, and what is not as it was asked for."""
        chose = "minimal for the alternatives that were nearest to holding, not over all of them."
        if self.figures is not None:
            return [*self.notes, *[chose] * _chose(problem)]
        if self.solution is None:
            how = (
                "same architecture by descent on the true network (augmented Lagrangian); the size of this change is "
                "not proved minimal."
            )
            if self.optimality:
                slope, owed = (f"{self.optimality[name]:.1g}" for name in ("stationarity", "complementarity"))
                how += (
                    f" Measured where descent ended: the Lagrangian's gradient is {slope} of the change's size, and "
                    f"multipliers times what their conditions miss {owed} of its square (both 0 at a local minimum)."
                )
            return [how, *self.notes]
        solution = self.solution
        notes = ["exact: outputs are affine in this layer." if self.line.ends_affine else "exact: decoupled network."]
        notes += self.notes
        if not _chose(problem) and solution.gap > gap:
            notes.append(f"the gap of {gap:g} that was asked for was not reached, only {solution.gap:.1e}.")
        if solution.missed > 10 * minnorm.ROW_TOLERANCE:
            missed = f"{solution.missed:.0e} of what they ask for"
            notes.append(f"conditions are nearly dependent, and are met up to {missed}.")
        if _chose(problem):
            notes.append(chose)
        return notes

    def missed(self, problem: Problem) -> float:
        """Return the share of the edits' neighbours that do not hold; zero where there are none."""
        near = problem.edits.neighbours
        if near is None:
            return 0.0
        return float((~near.criterion.holds(outputs(self.model, near.inputs).double())).double().mean())

    def score(self, problem: Problem, held_out: Tensor | None) -> tuple[float, float, float]:
        """Return (edits that fail, share of held-out locality points lost, mean output change), smaller is better."""
        if self.infeasible is not None:
            return (float(len(problem.edits)), 1.0, float("inf"))
        failing = float((~problem.edits.criterion.holds(outputs(self.model, problem.edits.inputs).double())).sum())
        if problem.locality is None:
            y0, y = problem.answers, outputs(self.model, problem.edits.inputs)
            return (failing, 0.0, float(flat(y - y0).norm(dim=1).mean()))
        every = torch.arange(len(problem.locality)) if held_out is None else held_out
        some, before = problem.locality[every], problem.before[every.to(problem.before.device)]
        y = outputs(self.model, some.inputs)
        lost, held = some.holds & ~some.criterion.holds(y.double()), max(1, int(some.holds.sum()))
        return (failing, float(lost.sum()) / held, float(flat(y - before).norm(dim=1).mean()))


def attempted(
    problem: Problem,
    settings: Settings,
    names: list[str],
    demands: list[Demand],
    deadline: Deadline,
    start: Attempt | None = None,
    bound: float = inf,
) -> Attempt:
    """Repair with the parameters `names` alone.

    Args:
        problem, settings, names, deadline: what to repair, how, with which parameters, and until when.
        demands: what must hold.
        start: a hidden layer's repair to start from.
        bound: see `HiddenRepair`.
    """
    if settings.architecture == "decoupled":
        return _exact(problem, settings, Suffix(problem.model, None), names, demands, deadline)
    few = problem.edits.inputs[torch.arange(min(PROBES, len(problem.edits)))]
    few = few if independent(few) else problem.edits.inputs
    cut = Suffix.of(copied(problem.model), names, few)
    line = _on_few(cut, names, demands)
    if line.ends_affine:
        found = _finely(problem, settings, cut, names, demands, deadline, few)
        if found.line.ends_affine:
            return found
    try:
        line, asked, metric = _on(cut, problem, settings, names, demands, deadline, line)
    except OutOfTime as reason:
        return Attempt(names, line, None, problem.model, infeasible=reason)
    if settings.own:
        begin = None if start is None else start.change
        return _own(problem, settings, line, metric, lambda own: own.hidden(cut, asked, begin), deadline)
    smooth = not problem.kind.decides
    hidden = HiddenRepair(line, cut, asked, settings.norm, metric, settings.max_steps, deadline, bound, smooth)
    change = hidden.run(None if start is None else start.change)
    model = moved(problem.model, change)
    return Attempt(
        names,
        line,
        None,
        model,
        change=change,
        steps=hidden.steps,
        notes=hidden.notes if line.fine else [*hidden.notes, ROUNDED],
        optimality=hidden.optimality,
    )


def _finely(
    problem: Problem,
    settings: Settings,
    cut: Suffix,
    names: list[str],
    demands: list[Demand],
    deadline: Deadline,
    few: AnyInputs,
) -> Attempt:
    """Repair where outputs are affine, in float64 throughout; where the network does not run in it, behind the cut."""
    double = copied(problem.model).double()
    try:
        fine = Suffix.of(double, names, to_like(few, next(double.parameters())))
        return _exact(problem, settings, fine, names, demands, deadline)
    except UnsupportedModel:
        return replace(_exact(problem, settings, cut, names, demands, deadline), repair=None, notes=[ROUNDED])


def _on(
    cut: Suffix,
    problem: Problem,
    settings: Settings,
    names: list[str],
    demands: list[Demand],
    deadline: Deadline,
    line: Linearization | None = None,
) -> tuple[Linearization, list[Demand], Metric | None]:
    """Return the linearisation of a network's suffix (by default made here), what is asked of that, and what is small.

    One that was made on fewer points will do where outputs are not affine.
    """

    def on(others: list[AnyInputs]) -> Linearization:
        return Linearization(cut.module, names, asked[0].inputs, others) if line is None else line

    kept = [d for d in demands if d.name == "locality"]
    asked = [replace(d, inputs=cut.values(d.inputs, deadline.check)) for d in demands if d.name != "locality"]
    near = [d.inputs for d in asked[1:]]
    stays = problem.locality
    if stays is None or not (kept or settings.norm in METRICS):
        return on(near), asked, None
    there = None
    if kept or line is None:
        there = cut.values(stays.inputs, deadline.check)
        asked += [replace(d, inputs=there if d.index is None else there[d.index]) for d in kept]
        line = on([*near, there])
    if settings.norm not in METRICS:
        return line, asked, None
    made = line

    def metric() -> Metric:
        points = cut.values(stays.inputs, deadline.check) if there is None else there
        return made.metric(points, problem.kind, deadline.check, fisher=settings.norm == "fisher")

    layers = tuple((g.weight, g.bias, g.plain, g.head.size) for g in line.groups)
    return line, asked, problem.once((settings.norm, cut.dtype, layers), metric)


def _on_few(cut: Suffix, names: list[str], demands: list[Demand]) -> Linearization:
    """Return the linearisation on a few points; on all where they influence each other."""
    inputs = [d.inputs for d in demands]
    if cut.prefix is not None or all(map(independent, inputs)):
        inputs = [cut.values(x[torch.arange(min(PROBES, len(x)))]) for x in inputs if len(x)]
    return Linearization(cut.module, names, inputs[0], inputs[1:])


def _exact(
    problem: Problem, settings: Settings, cut: Suffix, names: list[str], demands: list[Demand], deadline: Deadline
) -> Attempt:
    """Repair where outputs are affine in the change."""
    try:
        line, demands, metric = _on(cut, problem, settings, names, demands, deadline)
    except OutOfTime as reason:
        return Attempt(names, _on_few(cut, names, demands), None, problem.model, infeasible=reason)
    decoupled = settings.architecture == "decoupled"
    if not (decoupled or line.ends_affine):
        return Attempt(names, line, None, problem.model)
    if settings.own:
        return _own(problem, settings, line, metric, lambda own: own.exact(demands), deadline)
    try:
        repair = ExactRepair(line, demands, settings.norm, metric, settings.gap, settings.architecture, deadline)
        repair.native64 = next(problem.model.parameters()).dtype == torch.float64
        solution = repair.run()
    except (minnorm.Infeasible, NotSolvedError, OutOfTime) as reason:
        return Attempt(line.names, line, None, problem.model, infeasible=reason)
    change = line.unflatten(repair.change(solution))
    repaired = Decoupled(problem.model, change, line.channels) if decoupled else moved(problem.model, change)
    return Attempt(line.names, line, repair, repaired, solution=solution)


def _own(
    problem: Problem,
    settings: Settings,
    line: Linearization,
    metric: Metric | None,
    repair: Callable[[OwnRepair], dict[str, Tensor]],
    deadline: Deadline,
) -> Attempt:
    """Repair by an objective or constraints of the caller's own."""
    objective = settings.objective or norm_of(settings.norm, line.groups, metric)
    decoupled = settings.architecture == "decoupled"
    own = OwnRepair(line, objective, settings.constraints, problem.model, decoupled, settings.max_steps, deadline)
    try:
        change = repair(own)
    except (minnorm.Infeasible, Clash, NotSolvedError, OutOfTime) as reason:
        return Attempt(line.names, line, None, problem.model, infeasible=reason)
    repaired = Decoupled(problem.model, change, line.channels) if decoupled else moved(problem.model, change)
    return Attempt(line.names, line, None, repaired, change=change, notes=own.notes, figures=own.stats)


def _chose(problem: Problem) -> bool:
    """Whether alternatives had to be chosen among."""
    locality = problem.locality
    return has_choice(problem.edits.criterion) or (locality is not None and has_choice(locality.criterion))
