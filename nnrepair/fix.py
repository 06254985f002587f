"""The front door: `fix` copies the model, lets a method propose, and judges the proposal itself."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import nn

from nnrepair import metrics, regions
from nnrepair.decoupled import Decoupled
from nnrepair.errors import RepairFailed
from nnrepair.methods.base import Method, Proposal, named
from nnrepair.outcome import Outcome
from nnrepair.patch import Patch
from nnrepair.problem import Problem, build, outputs
from nnrepair.result import Asked, RepairResult, Report, WeightChange
from nnrepair.shapes import Regions
from nnrepair.spec import Edits


def fix(
    model: nn.Module,
    edits: Any,
    locality_set: Any = None,
    *,
    method: str | Method = "auto",
    edit_scope: Any = None,
    throw: bool = True,
    progress: bool = False,
    seed: int | None = None,
) -> RepairResult:
    """Return a new network in which the edits hold, the locality set stays, and the change is small.

    Example:
        >>> import nnrepair
        >>> result = nnrepair.fix(model, (mistakes, labels), locality_set=kept)  # doctest: +SKIP
        >>> result.report.success_rate  # doctest: +SKIP
        1.0

    Args:
        model: any module; it is left untouched, bit for bit, with its mode, dtype, device and gradients.
        edits: `Edits(inputs, labels)`, `Edits(inputs, criterion)`, a pair (inputs, labels), or a `TensorDataset`.
            Inputs may be `Segments` or `Polygons`: each label or condition is then about every point of its region.
        locality_set: points that must stay: inputs, a pair (inputs, labels), or a `LocalitySet`. With labels, points
            that the model gets wrong are free and drawdown is measured.
        method: "auto", another name from `nnrepair methods`, or a `Method` such as `MinimalNorm(layer="fc2")`.
        edit_scope: points that the edits should generalise to; measured, never trained on.
        throw: raise `RepairFailed` (with the full result) when not every edit holds; False returns the result.
        progress: show a progress bar on stderr.
        seed: for methods that draw random numbers; the global random state is never touched.

    Raises:
        InvalidInput: model, edits, locality set or method cannot be used; the message says what to do.
        UnsupportedModel: the model is random in eval mode, or its points influence each other.
        RepairFailed: not every edit holds, and `throw` is set.
    """
    chosen = named(method)
    with undisturbed(seed):
        private = _copy(model)
        edits = Edits.coerce(edits)
        if isinstance(edits.inputs, Regions):
            inside = not chosen.capabilities.keeps_architecture
            problem = regions.build(private, edits, locality_set, edit_scope, inside, seed=seed, progress=progress)
        else:
            problem = build(private, edits, locality_set, edit_scope, seed=seed, progress=progress)
        held = _held(problem, private)
        before = None if problem.locality is None else outputs(private, problem.locality.inputs)
        started = time.perf_counter()
        if bool(held.all()):
            proposal = Proposal(private, notes=["every edit held before; nothing was changed."])
        elif problem.regions is not None:
            proposal = problem.regions.repair(problem, chosen)
        else:
            proposal = chosen.repair(problem)
        seconds = time.perf_counter() - started
        result = _judge(model, problem, proposal, held.tolist(), before, seconds, chosen)
    if throw and not result.outcome.ok:
        raise RepairFailed(result)
    return result


@contextmanager
def undisturbed(seed: int | None) -> Iterator[None]:
    """Keep the global random state as it was, and make the work inside reproducible."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    before = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0 if seed is None else seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])


def _copy(model: Any) -> Any:
    if not isinstance(model, nn.Module):
        return model  # refused, with a proper message, by `build`
    private = copy.deepcopy(model).eval()
    for parameter in private.parameters():
        parameter.grad = None
    return private


def _judge(
    model: nn.Module,
    problem: Problem,
    proposal: Proposal,
    held_before: list[bool],
    before: torch.Tensor | None,
    seconds: float,
    method: Method,
) -> RepairResult:
    """Measure a proposal in the model's own dtype, from scratch."""
    repaired = proposal.model
    holds = _held(problem, repaired)
    failing = torch.nonzero(~holds).flatten().tolist()
    report = Report(
        edits=len(holds),
        held_before=held_before,
        held_after=holds.tolist(),
        success_rate=float(holds.double().mean()),
        generalization_rate=_generalization(problem, repaired),
        **_locality(problem, before, repaired),
        weight_change=weight_change(model, repaired),
        seconds=seconds,
        method=repr(method),
        notes=proposal.notes if problem.regions is None else [*proposal.notes, *problem.regions.notes(repaired)],
    )
    outcome = _outcome(proposal, held_before, failing, len(holds), _lost(problem, repaired))
    patch = None
    final = repaired
    if repaired.state_dict().keys() == model.state_dict().keys():
        final = like(model, repaired)
        patch = Patch.between(model, final, about(report))
    edits = problem.edits if problem.regions is None else problem.regions.asked
    asked = Asked(edits, problem.locality, problem.keep, problem.kept)
    return RepairResult(final, outcome, report, patch, proposal.certificate, proposal.stats, asked)


def _held(problem: Problem, model: nn.Module) -> torch.Tensor:
    """Return (edits,) bool: which edits hold, over their whole regions where they are about regions."""
    if problem.regions is not None:
        return problem.regions.judge(model).holds
    with torch.no_grad():
        return problem.edits.criterion.holds(outputs(model, problem.edits.inputs).double())


def _outcome(proposal: Proposal, before: list[bool], failing: list[int], count: int, lost: int) -> Outcome:
    if all(before):
        return Outcome("nothing to do", "every edit already holds; the network is returned unchanged.")
    if not failing and lost and proposal.keeps_locality:
        advice = f"all {count} edits hold, but {lost} points of the locality set that were to be kept do not. "
        return Outcome("partly repaired", advice + 'Try another layer, a larger margin, or locality="soft".')
    if not failing:
        return Outcome("repaired", f"all {count} edits hold.")
    if proposal.infeasible:
        advice = "no change of the chosen layer satisfies all edits with their margin; "
        also = "the locality set (hard)" if proposal.with_locality else "each other"
        advice += f"edits {proposal.conflict} contradict {also} there. "
        advice += (
            f"To first order, these layers could satisfy all edits: {', '.join(proposal.layers)}."
            if proposal.layers
            else "To first order, none of the other layers tried could either: remove an edit, lower the margin, or "
            "repair several layers at once."
        )
        return Outcome("infeasible", advice, failing, proposal.conflict, proposal.layers)
    advice = (
        f"{len(failing)} of {count} edits do not hold: {failing[:20]}. Try another layer, several layers, "
        'another margin (larger in half precision), locality="soft", or more max_steps.'
    )
    return Outcome("partly repaired", advice, failing)


def _generalization(problem: Problem, repaired: nn.Module) -> float | None:
    if problem.scope is None:
        return None
    return metrics.success_rate(problem.scope.criterion, outputs(repaired, problem.scope.inputs).double())


def _lost(problem: Problem, repaired: nn.Module) -> int:
    """Return how many kept points of the locality set no longer hold."""
    if problem.locality is None or problem.keep is None or problem.kept is None:
        return 0
    holds = problem.keep.holds(outputs(repaired, problem.locality.inputs).double())
    return int((problem.kept & ~holds).sum())


def _locality(problem: Problem, before: torch.Tensor | None, repaired: nn.Module) -> dict[str, Any]:
    empty: dict[str, Any] = {"drawdown": None, "drawdown_points": None, "locality": None, "locality_points": 0}
    if problem.locality is None or problem.keep is None or problem.kept is None or before is None:
        return empty
    after = outputs(repaired, problem.locality.inputs)
    held = problem.keep.holds(after.double())
    found = empty | {"locality_points": len(problem.locality)}
    if problem.classifies:
        found["locality"] = metrics.locality(problem.decide(before), problem.decide(after))
    else:
        found["locality"] = float(held.double().mean())
    if problem.locality.criterion is not None:
        was, now = float(problem.kept.double().mean()), float(held.double().mean())
        found["drawdown"] = metrics.drawdown(was, now)
        found["drawdown_points"] = metrics.drawdown_points(was, now)
    return found


def weight_change(before: nn.Module, after: nn.Module) -> WeightChange:
    """Return the size of the change; a network of another architecture says itself what it changed."""
    if isinstance(after, Decoupled):
        parts = [t.double().flatten().cpu() for t in after.change.values()]
    else:
        old, new = dict(before.named_parameters()), dict(after.named_parameters())
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
