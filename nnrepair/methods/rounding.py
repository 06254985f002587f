"""Numbers on a grid, moved a step at a time until what was asked holds: rounding to the nearest loses some of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nnrepair.spec.criterion import Criterion
from nnrepair.spec.inputs import AnyInputs, batches
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import call

#: Rounds at most, and how many single numbers are tried where several at once make nothing better.
ROUNDS, SINGLE = 60, 16


@runtime_checkable
class Rounded(Protocol):
    """A module whose numbers may have to lie on a grid, as those of `onnx.InPlace` do where its file is quantised."""

    #: How far its outputs may be from those of the network that it stands for.
    step: float

    def round_(self) -> None:
        """Take the nearest numbers that can be stored, in place."""

    def neighbours(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the next lower and the next higher numbers that can be stored, by the name of a parameter."""


class Asked:
    """What edits and kept points need, condition by condition.

    Args:
        problem: what is asked.
        margin: by how much conditions must hold; of kept points by no more than they do today.
    """

    def __init__(self, problem: Problem, margin: float) -> None:
        self._parts: list[tuple[AnyInputs, Criterion, Tensor]] = []
        edits, locality = problem.edits, problem.locality
        slack = edits.criterion.slack(problem.answers.double())
        self._parts.append((edits.inputs, edits.criterion, torch.full_like(slack, margin)))
        if locality is not None:
            slack = locality.criterion.slack(problem.before.double())
            need = slack.clamp(max=margin)
            need[~locality.holds.to(need.device)] = -torch.inf
            self._parts.append((locality.inputs, locality.criterion, need))

    def missed(self, model: nn.Module) -> Iterator[Tensor]:
        """Yield by how much conditions are missed, squared and added up, a batch of points at a time."""
        for inputs, criterion, need in self._parts:
            for part in batches(inputs):
                slack = criterion[part].slack(call(model, inputs[part]).double())
                lacking = (need[part].to(slack) - slack).clamp(min=0)
                yield lacking[torch.isfinite(lacking)].square().sum()

    def total(self, model: nn.Module) -> float:
        """Return what `missed` adds up to; infinity where outputs are no numbers."""
        with torch.no_grad():
            return float(sum(self.missed(model)))


def settle(model: nn.Module, problem: Problem, margin: float) -> None:
    """Move numbers of a rounded network on their grids, in place, until every condition holds or none gets better.

    In each round, the numbers whose next step promises most (by the gradient of what is missed) move together, fewer
    where that makes things worse: a local search, after the roundings up or down that Nagel et al. choose for
    quantised networks ("Up or down? Adaptive rounding for post-training quantization", ICML 2020).

    Args:
        model: with numbers that can be stored.
        problem: what is asked.
        margin: see `Asked`.
    """
    asked = Asked(problem, margin)
    found = {name: model.get_parameter(name) for name in _neighbours(model)}
    size = sum(parameter.numel() for parameter in found.values())
    count, missed = max(1, size // 16), asked.total(model)
    for _ in range(ROUNDS):
        if missed == 0 or not found:
            return
        gradient: dict[str, Tensor] = {name: torch.zeros_like(parameter) for name, parameter in found.items()}
        for part in asked.missed(model):
            if part.requires_grad:
                grown = torch.autograd.grad(part, [*found.values()], allow_unused=True)
                for name, more in zip(found, grown, strict=True):
                    if more is not None:
                        gradient[name] += more
        steps = {
            name: torch.where(gradient[name] < 0, above, below) - found[name].detach()
            for name, (below, above) in _neighbours(model).items()
        }
        promise = torch.cat([-(gradient[name] * steps[name]).flatten() for name in found])
        best = promise.topk(min(size, max(count, SINGLE))).indices
        best = best[promise[best] > 0]
        better = None
        while better is None and len(best):
            better = _moved(model, asked, found, steps, best[:count], missed)
            if better is None and count == 1:
                singles = (_moved(model, asked, found, steps, best[k : k + 1], missed) for k in range(1, len(best)))
                better = next((one for one in singles if one is not None), None)
                break
            count = min(size, 2 * count) if better is not None else max(1, count // 2)
        if better is None:
            return
        missed = better


def _neighbours(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the next numbers of a network's parameters, of all its parts."""
    return {
        f"{place}.{name}" if place else name: pair
        for place, part in model.named_modules()
        if isinstance(part, Rounded)
        for name, pair in part.neighbours().items()
    }


def _moved(
    model: nn.Module,
    asked: Asked,
    parameters: dict[str, nn.Parameter],
    steps: dict[str, Tensor],
    chosen: Tensor,
    missed: float,
) -> float | None:
    """Move the chosen numbers and return what is missed then; None, and no move, where that is not less."""
    taken = torch.zeros(sum(step.numel() for step in steps.values()), dtype=torch.bool)
    taken[chosen] = True
    parts = torch.split(taken, [steps[name].numel() for name in parameters])
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for (name, parameter), part in zip(parameters.items(), parts, strict=True):
            parameter.add_(steps[name] * part.reshape(parameter.shape).to(parameter.device))
    now = asked.total(model)
    if now < missed:
        return now
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    return None
