"""Measure what a method proposes, from scratch and in the model's own dtype."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.extras import installed
from nnrepair.methods.base import Method, Proposal
from nnrepair.request import Posed
from nnrepair.results import metrics
from nnrepair.results.changes import WeightChange, unsized, weight_change
from nnrepair.results.effects import Moved, SideEffects
from nnrepair.results.outcome import Outcome
from nnrepair.results.patch import Patch
from nnrepair.results.result import Asked, RepairResult, Report
from nnrepair.rounding import counted
from nnrepair.spec.accepted import differ_by_rounding
from nnrepair.spec.criteria import Argmax, Criterion, Near, Threshold, flat
from nnrepair.spec.duplicates import edits_in_locality
from nnrepair.spec.edits import EditScope, Locality
from nnrepair.spec.inputs import AnyInputs, to_like
from nnrepair.spec.kinds import Binary, Kind, kind_of, leaves
from nnrepair.spec.problem import Problem, held_out
from nnrepair.spec.running import outputs, outputs_of
from nnrepair.spec.scores import Scores, bare, output_of
from nnrepair.wrappers.base import Wrapper

#: How the report calls the locality set and a test set without a name.
LOCALITY, TEST = "locality set", "test set"
#: Edits that a message names; the outcome has all of them.
NAMED = 20
#: What is to be kept, one or several of them.
POINT, REGION = "point{} of the locality set that {}", "region{} that {}"


class Watched:
    """Points on which repaired networks are compared with the one they came from.

    Args:
        kind: what its outputs are, where the points' own labels do not say it.
        locality: the points, with what keeps them.
        asked: whether the repair was asked to keep them.
    """

    def __init__(self, kind: Kind, locality: Locality, asked: bool = True) -> None:
        points, criterion = locality.points, locality.criterion
        own = kind_of(points.criterion)
        self.points, self._kind, self._criterion = points, own if own.decides else kind, criterion
        assert locality.before is not None
        self.before, self._holds = locality.before.clone(), locality.holds
        self._asked = _labelled(points.criterion)
        # Without a criterion of their own, numbers are to stay within one tolerance.
        alone = points.criterion is None and isinstance(criterion, Near) and criterion.tol.numel() > 0
        self._tolerance = float(criterion.tol.flatten()[0]) if alone and isinstance(criterion, Near) else None
        free = int((~locality.holds).sum()) if asked else 0
        self._free = {"did not hold before": free} if free else {}

    def compare(self, y: Tensor) -> SideEffects:
        """Measure what became of the points, from a network's outputs (n, ...) there."""
        found = SideEffects(len(self.points), decisions=0, free=self._free)
        if self.points.criterion is not None:
            before, after = (float(self._criterion.holds(out.double()).double().mean()) for out in (self.before, y))
            found = replace(
                found,
                accuracy_before=before,
                accuracy_after=after,
                drawdown=metrics.drawdown(before, after),
                drawdown_points=metrics.drawdown_points(before, after),
                measures=metrics.before_and_after(self._criterion, self.before.double(), y.double()),
            )
        if not self._kind.decides:
            return replace(found, moved=self._moved(y))
        old, new = self._kind.decide(self.before), self._kind.decide(y)
        if self._asked is not None and isinstance(self._kind, Binary):  # an output without a label is no decision
            asked = self._asked.to(y.device)[:, self._kind.answers(y)]
            old, new = old & asked, new & asked
        elif self._asked is not None and self._asked.shape == old.shape:
            old, new = (torch.where(self._asked.to(y.device), decided, -1) for decided in (old, new))
        same = (old == new) & ~flat(y).isnan().any(1, keepdim=True)
        return replace(found, locality=metrics.locality(same, torch.ones_like(same)), decisions=old.shape[1])

    def lost(self, y: Tensor) -> int:
        """Return how many points hold no more, from a network's outputs there."""
        return int((self._holds & ~self._criterion.holds(y.double())).sum())

    def _moved(self, y: Tensor) -> Moved:
        change = flat(y.double() - self.before.double()).abs()
        within = None
        if self._tolerance is not None:
            within = float((change <= self._tolerance).all(1).double().mean())
        sizes = (float(change.mean()), float(change.max())) if bool(torch.isfinite(change).all()) else (None, None)
        return Moved(self._tolerance, within, *sizes)


def _labelled(criterion: Criterion | None) -> Tensor | None:
    """Return (n, decisions) bool: which answers, or positions, have a label; None where it is not about such."""
    found = [] if criterion is None else leaves(criterion)
    labelled = [flat(part.labels) >= 0 for part in found if isinstance(part, Argmax | Threshold)]
    return torch.stack(labelled).any(0) if labelled else None


def watch(problem: Problem, test_set: Any) -> dict[str, Watched]:
    """Return the locality set, if there is one, and the test sets, by name.

    Raises:
        InvalidInput: a test set that the model does not accept, or one that is named like the locality set.
    """
    given = {} if test_set is None else test_set if isinstance(test_set, dict) else {TEST: test_set}
    if LOCALITY in given:
        raise InvalidInput(f"A test set cannot be called {LOCALITY!r}; choose another name.")
    found = {}
    if problem.locality is not None:
        found[LOCALITY] = Watched(problem.kind, problem.locality)
    for name, points in given.items():
        try:
            measured = held_out(problem, points, f"test_set {str(name)!r}")
        except InvalidInput as error:
            if not isinstance(error.__cause__, TypeError) or test_set is not given:
                raise
            raise InvalidInput(
                f"{error} A dictionary names several test sets; points that are a model's arguments by name are "
                "LocalitySet(dictionary)."
            ) from error
        found[str(name)] = Watched(problem.kind, measured, asked=False)
    return found


@dataclass(frozen=True)
class Measured:
    """What a network does.

    Attributes:
        holds: (edits,) bool, which edits hold.
        generalization: for each edit, the share of its edit scope that holds (None where it has none).
        side_effects: on other points, by name.
        lost: how many points of the locality set hold no more.
    """

    holds: Tensor
    generalization: list[float | None]
    side_effects: dict[str, SideEffects]
    lost: int


def measure(model: nn.Module, posed: Posed, watched: dict[str, Watched], only: Tensor | None = None) -> Measured:
    """Measure a network; whatever can run in one pass does.

    Args:
        model: the network.
        posed: its edits and edit scope.
        watched: the other points.
        only: the edits whose scope is run; all of them by default.
    """
    scope, names = _scope(posed.problem, only), list(watched)
    several = [watched[name].points.inputs for name in names]
    several += [] if scope is None else [scope.inputs]
    several += [posed.edits.inputs] if posed.regions is None else []
    y = outputs_of(model, [_own(inputs, model) for inputs in several])
    if posed.regions is None:
        holds = posed.edits.together(posed.edits.criterion.holds(y.pop().double()))
    else:
        holds = posed.holds(model)
    rates: list[float | None] = [None] * len(holds)
    if scope is not None:
        rates = metrics.generalization_rates(scope.criterion.holds(y.pop().double()), scope.of, len(holds))
    on = dict(zip(names, y, strict=True))
    lost = watched[LOCALITY].lost(on[LOCALITY]) if LOCALITY in on else 0
    return Measured(holds, rates, {name: watched[name].compare(one) for name, one in on.items()}, lost)


def _own(inputs: AnyInputs, model: nn.Module) -> AnyInputs:
    """Return inputs in the dtype of a network, which a method may have changed."""
    like = next((p for p in model.parameters() if p.dtype.is_floating_point), None)
    return inputs if like is None else to_like(inputs, like)


def _scope(problem: Problem, only: Tensor | None) -> EditScope | None:
    """Return the edit scope of some edits; all of it where it does not say whose it is."""
    scope = problem.scope
    if scope is None or scope.of is None or only is None:
        return scope
    mine = torch.nonzero(torch.isin(scope.of.cpu(), only)).flatten()
    return scope[mine] if len(mine) else None


def propose(posed: Posed, method: Method, before: Tensor) -> tuple[Proposal, float]:
    """Return the method's proposal and the seconds that it took; none is asked for where every edit held `before`."""
    started = time.perf_counter()
    if bool(before.all()):
        proposal = Proposal(posed.problem.model, notes=["every edit held before; nothing was changed."])
    else:
        proposal = posed.repair(method)
    return proposal, time.perf_counter() - started


def judge(
    model: nn.Module,
    posed: Posed,
    proposal: Proposal,
    before: Tensor,
    seconds: float,
    method: Method,
    watched: dict[str, Watched],
) -> RepairResult:
    """Measure a proposal.

    Args:
        model: as the user gave it.
        posed: what was asked.
        proposal: what the method made of it, in `seconds`.
        before: (edits,) bool, which edits held in the original.
        method: for the report.
        watched: the points to compare, from `watch`.
    """
    repaired, problem = proposal.model, posed.problem
    found = measure(repaired, posed, watched)
    holds, tests = found.holds, dict(found.side_effects)
    failing = torch.nonzero(~holds).flatten().tolist()
    change = weight_change(model, repaired)
    if change.nonzeros == 0 and _says_otherwise(problem, repaired):
        change = unsized(change, "outputs changed, but no parameter, buffer or layer did: what did is not known")
    report = Report(
        edits=len(holds),
        held_before=before.tolist(),
        held_after=holds.tolist(),
        success_rate=float(holds.double().mean()),
        generalization_rate=metrics.mean_rate(found.generalization),
        side_effects=tests.pop(LOCALITY, None),
        weight_change=change,
        seconds=seconds,
        method=repr(method),
        notes=[*proposal.notes, *posed.notes_on_labels(), *posed.notes(repaired)],
        tests=tests,
        scope_points=0 if problem.scope is None else len(problem.scope),
        scope_edits=None if problem.scope is None or problem.scope.of is None else len(torch.unique(problem.scope.of)),
    )
    lost = found.lost if posed.kept is None else int((~posed.kept.judge(repaired).holds).sum())
    lost = lost if proposal.keeps_locality and not failing else 0
    points = problem.locality if posed.kept is None else None
    blocked = lost or (proposal.infeasible and proposal.with_locality)
    clash = "".join(edits_in_locality(posed.edits, points)) if blocked and points is not None else ""
    what = POINT if posed.kept is None else REGION
    outcome = outcome_of(proposal, before, failing, lost, clash, what)
    final = repaired
    if repaired.state_dict().keys() == model.state_dict().keys():
        final = like(model, repaired)
    patch = patch_of(model, final, change, about(report) | getattr(model, "patch_about", {}))
    if patch is None:
        report.notes.append("there is no patch: other values of the same parameters are not all that changed.")
    if isinstance(problem.model, Scores) and isinstance(final, Wrapper):
        report.notes.append("the network returns its scores alone; its patch goes on nnrepair.Scores(model, output).")
    answers = problem.answers if posed.regions is None else None
    whole = None if posed.kept is None else posed.kept.asked
    asked = Asked(posed.edits, points, answers, output_of(problem.model), whole)
    return RepairResult(bare(final), outcome, report, patch, proposal.certificate, proposal.stats, asked)


def outcome_of(
    proposal: Proposal,
    before: Tensor,
    failing: list[int],
    lost: int,
    clash: str = "",
    what: str = POINT,
) -> Outcome:
    """Say what happened, with advice; `clash` says what edits ask the opposite of `what` is to be kept."""
    count = len(before)
    every = "the edit holds" if count == 1 else f"all {count} edits hold"
    if bool(before.all()):
        return Outcome("nothing to do", "every edit already holds; the network is returned unchanged.")
    if not failing and lost:
        some = counted(lost, what.format("", "was"), what.format("s", "were"))
        advice = f"{every}, but {some} to be kept {'does' if lost == 1 else 'do'} not. "
        how = _sentence(clash) if clash else 'Try another layer, a larger margin, or locality="soft".'
        return Outcome("partly repaired", advice + how)
    if not failing:
        return Outcome("repaired", f"{every}.")
    if proposal.infeasible:
        advice = "no change of the chosen layer satisfies all edits with their margin; "
        also = "the locality set (hard)" if proposal.with_locality else "each other"
        one = len(proposal.conflict) == 1
        alone = one and not proposal.with_locality
        who = f"edit {proposal.conflict[0]}" if one else f"edits {_first(proposal.conflict)}"
        who = f"the conditions of {who} contradict" if alone else f"{who} contradict{'s' * one}"
        if proposal.with_constraints:
            beside = " and the locality set (hard)" if proposal.with_locality else ""
            advice += f"{who} the constraints{beside} there, not each other. Loosen the constraints, lower the "
            advice += "margin, or choose another layer or several."
            return Outcome("infeasible", advice, failing, proposal.conflict, proposal.layers)
        advice += f"{who} {also} there. "
        if clash:
            return Outcome("infeasible", advice + _sentence(clash), failing, proposal.conflict, proposal.layers)
        advice += 'locality="soft" gives up single kept points instead. ' if proposal.with_locality else ""
        if proposal.layers:
            advice += f"To first order, these layers could satisfy all edits: {', '.join(proposal.layers)}."
        elif not proposal.untried:
            advice += (
                "To first order, none of the other layers tried could either: remove an edit, lower the margin, or "
            )
            advice += "repair several layers at once."
        if proposal.untried:
            advice += f"{' ' * bool(proposal.layers)}No time was left to try {', '.join(proposal.untried)}."
        return Outcome("infeasible", advice, failing, proposal.conflict, proposal.layers)
    these = "the edit does" if count == 1 else f"{len(failing)} of {count} edits do"
    advice = f"{these} not hold: {_first(failing)}. Try {proposal.advice}."
    return Outcome("partly repaired", advice, failing)


def _sentence(text: str) -> str:
    """Return a note as a sentence of its own."""
    return f"{text[0].upper()}{text[1:]}"


def _first(edits: list[int]) -> str:
    """Return the numbers of edits as a list that fits into a sentence, with their count where some are left out."""
    if len(edits) <= NAMED:
        return str(edits)
    return f"[{', '.join(map(str, edits[:NAMED]))}, ...] ({len(edits)} of them)"


def _says_otherwise(problem: Problem, repaired: nn.Module) -> bool:
    """Whether a network's outputs on the edits differ from the original's by more than rounding."""
    before, after = (outputs(m, _own(problem.edits.inputs, m)) for m in (problem.model, repaired))
    return not (torch.equal(before, after) or (before.is_cuda and differ_by_rounding(before, after)))


def patch_of(
    model: nn.Module, repaired: nn.Module, change: WeightChange, about: dict[str, Any] | None = None
) -> Patch | None:
    """Return the patch that makes the repaired network, or None where it would not be all of the change."""
    if change.nonzeros is None or not (change.is_patch or isinstance(repaired, Wrapper)):
        return None
    return Patch.between(model, repaired, about)


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
    return about | {"versions": {"nnrepair": installed(), "torch": torch.__version__}}
