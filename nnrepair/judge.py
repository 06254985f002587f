"""The judge: what a proposal is worth, measured from scratch in the model's own dtype."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair import metrics
from nnrepair.criteria import Criterion
from nnrepair.decoupled import Decoupled
from nnrepair.errors import InvalidInput
from nnrepair.methods.base import Method, Proposal
from nnrepair.outcome import Outcome
from nnrepair.patch import Patch
from nnrepair.problem import Problem, held_out, is_classifier, kept_edits, outputs, outputs_of
from nnrepair.result import Asked, Kept, RepairResult, Report, WeightChange
from nnrepair.spec import EditScope, LocalitySet
from nnrepair.stitched import Stitched

#: How the report calls the locality set and a test set without a name.
LOCALITY, TEST = "locality set", "test set"


class Watched:
    """Points on which repaired networks are compared with the one they came from."""

    def __init__(self, problem: Problem, points: LocalitySet, keep: Criterion) -> None:
        self.points, self._keep = points, keep
        classes = problem.classifies or is_classifier(keep)
        self._decide: Callable[[Tensor], Tensor] | None = problem.decide if classes else None
        self.before = outputs(problem.model, points.inputs)

    def compare(self, y: Tensor) -> Kept:
        """Measure what became of the points, from a network's outputs (n, ...) there."""
        held = self._keep.holds(self.before.double()), self._keep.holds(y.double())
        decided = held if self._decide is None else (self._decide(self.before), self._decide(y))
        unchanged = metrics.locality(*decided)
        if self.points.criterion is None:
            return Kept(len(self.points), None, None, None, None, unchanged)
        before, after = (float(h.double().mean()) for h in held)
        lost = metrics.drawdown(before, after), metrics.drawdown_points(before, after)
        return Kept(len(self.points), before, after, *lost, unchanged)


def watch(problem: Problem, test_set: Any) -> dict[str, Watched]:
    """Return the locality set, if there is one, and the test sets, by name.

    Raises:
        InvalidInput: a test set that the model does not accept, or one that is named like the locality set.
    """
    given = {} if test_set is None else test_set if isinstance(test_set, dict) else {TEST: test_set}
    if LOCALITY in given:
        raise InvalidInput(f"A test set cannot be called {LOCALITY!r}; choose another name.")
    found = {}
    if problem.locality is not None and problem.keep is not None:
        found[LOCALITY] = Watched(problem, problem.locality, problem.keep)
    for name, points in given.items():
        found[str(name)] = Watched(problem, *held_out(problem, points, f"test_set {str(name)!r}"))
    return found


def held(problem: Problem, model: nn.Module) -> Tensor:
    """Return (edits,) bool: which edits hold, over their whole regions where they are about regions."""
    if problem.regions is not None:
        return problem.regions.judge(model).holds
    with torch.no_grad():
        return problem.edits.criterion.holds(outputs(model, problem.edits.inputs).double())


@dataclass(frozen=True)
class Measured:
    """What a network does.

    Attributes:
        holds: (edits,) bool, which edits hold.
        generalization: for each edit, the share of its edit scope that holds (None where it has none).
        kept: what became of other points, by name.
    """

    holds: Tensor
    generalization: list[float | None]
    kept: dict[str, Kept]


def measure(model: nn.Module, problem: Problem, watched: dict[str, Watched], only: Tensor | None = None) -> Measured:
    """Measure a network; whatever can run in one pass does.

    Args:
        model: the network.
        problem: its edits and edit scope.
        watched: the other points.
        only: the edits whose scope is run; all of them by default.
    """
    scope, names = _scope(problem, only), list(watched)
    several = [watched[name].points.inputs for name in names]
    several += [] if scope is None else [scope.inputs]
    several += [] if problem.regions is not None else [problem.edits.inputs]
    y = outputs_of(model, several)
    holds = held(problem, model) if problem.regions is not None else problem.edits.criterion.holds(y.pop().double())
    rates: list[float | None] = [None] * len(holds)
    if scope is not None:
        rates = metrics.generalization_rates(scope.criterion.holds(y.pop().double()), scope.of, len(holds))
    return Measured(holds, rates, {name: watched[name].compare(one) for name, one in zip(names, y, strict=True)})


def _scope(problem: Problem, only: Tensor | None) -> EditScope | None:
    """Return the edit scope of some edits; all of it where it does not say whose it is."""
    scope = problem.scope
    if scope is None or scope.of is None or only is None:
        return scope
    mine = torch.nonzero(torch.isin(scope.of.cpu(), only)).flatten()
    return scope[mine] if len(mine) else None


def propose(problem: Problem, method: Method, before: Tensor) -> tuple[Proposal, float]:
    """Return the method's proposal and the seconds that it took; none is asked for where every edit held `before`."""
    started = time.perf_counter()
    if bool(before.all()):
        proposal = Proposal(problem.model, notes=["every edit held before; nothing was changed."])
    elif problem.regions is not None:
        proposal = problem.regions.repair(problem, method)
    else:
        proposal = method.repair(problem)
    return proposal, time.perf_counter() - started


def judge(
    model: nn.Module,
    problem: Problem,
    proposal: Proposal,
    before: Tensor,
    seconds: float,
    method: Method,
    watched: dict[str, Watched],
) -> RepairResult:
    """Measure a proposal.

    Args:
        model: as the user gave it.
        problem: what was asked.
        proposal: what the method made of it, in `seconds`.
        before: (edits,) bool, which edits held in the original.
        method: for the report.
        watched: the points to compare, from `watch`.
    """
    repaired = proposal.model
    found = measure(repaired, problem, watched)
    holds, tests = found.holds, dict(found.kept)
    failing = torch.nonzero(~holds).flatten().tolist()
    kept = tests.pop(LOCALITY, None)
    report = Report(
        edits=len(holds),
        held_before=before.tolist(),
        held_after=holds.tolist(),
        success_rate=float(holds.double().mean()),
        generalization_rate=metrics.mean_rate(found.generalization),
        drawdown=None if kept is None else kept.drawdown,
        drawdown_points=None if kept is None else kept.drawdown_points,
        locality=None if kept is None else kept.locality,
        locality_points=0 if kept is None else kept.points,
        weight_change=weight_change(model, repaired),
        seconds=seconds,
        method=repr(method),
        notes=[*proposal.notes, *(kept_edits(problem) if problem.regions is None else problem.regions.notes(repaired))],
        tests=tests,
    )
    lost = _lost(problem, repaired) if proposal.keeps_locality and not failing else 0
    outcome = outcome_of(proposal, before, failing, lost)
    patch = None
    final = repaired
    if repaired.state_dict().keys() == model.state_dict().keys():
        final = like(model, repaired)
        patch = Patch.between(model, final, about(report))
    edits = problem.edits if problem.regions is None else problem.regions.asked
    asked = Asked(edits, problem.locality, problem.keep, problem.kept)
    return RepairResult(final, outcome, report, patch, proposal.certificate, proposal.stats, asked)


def outcome_of(proposal: Proposal, before: Tensor, failing: list[int], lost: int) -> Outcome:
    """Say what happened, with advice."""
    count = len(before)
    if bool(before.all()):
        return Outcome("nothing to do", "every edit already holds; the network is returned unchanged.")
    if not failing and lost:
        advice = f"all {count} edits hold, but {lost} points of the locality set that were to be kept do not. "
        return Outcome("partly repaired", advice + 'Try another layer, a larger margin, or locality="soft".')
    if not failing:
        return Outcome("repaired", f"all {count} edits hold.")
    if proposal.infeasible:
        advice = "no change of the chosen layer satisfies all edits with their margin; "
        also = "the locality set (hard)" if proposal.with_locality else "each other"
        advice += f"edits {proposal.conflict} contradict {also} there. "
        advice += 'locality="soft" gives up single kept points instead. ' if proposal.with_locality else ""
        advice += (
            f"To first order, these layers could satisfy all edits: {', '.join(proposal.layers)}."
            if proposal.layers
            else "To first order, none of the other layers tried could either: remove an edit, lower the margin, or "
            "repair several layers at once."
        )
        return Outcome("infeasible", advice, failing, proposal.conflict, proposal.layers)
    advice = f"{len(failing)} of {count} edits do not hold: {failing[:20]}. Try {proposal.advice}."
    return Outcome("partly repaired", advice, failing)


def _lost(problem: Problem, repaired: nn.Module) -> int:
    """Return how many kept points of the locality set no longer hold."""
    if problem.locality is None or problem.keep is None or problem.kept is None:
        return 0
    holds = problem.keep.holds(outputs(repaired, problem.locality.inputs).double())
    return int((problem.kept & ~holds).sum())


def weight_change(before: nn.Module, after: nn.Module) -> WeightChange:
    """Return the size of the change; a network of another architecture says itself what it changed."""
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    if old.keys() != new.keys() and isinstance(after, (Decoupled, Stitched)):
        parts = [t.double().flatten().cpu() for t in after.change.values()]
    else:
        parts = [(new[n].detach().double() - p.detach().double()).flatten().cpu() for n, p in old.items() if n in new]
    change = torch.cat(parts)
    return WeightChange(
        l1=float(change.abs().sum()),
        l2=float(change.norm()),
        linf=float(change.abs().max()),
        nonzeros=int((change != 0).sum()),
    )


def like(model: nn.Module, repaired: nn.Module) -> nn.Module:
    """Return the repaired network with the original's mode and grad flags, module by module."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in repaired.named_modules():
        module.training = modes.get(name, False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in repaired.named_parameters():
        parameter.requires_grad_(flags.get(name, False))
    return repaired


def about(report: Report) -> dict[str, Any]:
    """Return what a patch tells a reviewer about its repair."""
    about = {k: v for k, v in report.as_dict().items() if k not in ("held_before", "held_after", "seconds")}
    try:
        about["versions"] = {"nnrepair": version("nnrepair"), "torch": torch.__version__}
    except PackageNotFoundError:  # run from a source tree that was never installed
        about["versions"] = {"torch": torch.__version__}
    return about
