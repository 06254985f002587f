"""Edits and locality set in one form: conditions on points, each with the slack that it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nnrepair.spec.criteria import Criterion
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs

#: Locality points held out to compare layers: every fifth.
HELD_OUT = 5


@dataclass(frozen=True)
class Demand:
    """Conditions that a repair must satisfy (or, when soft, may miss for a penalty).

    Attributes:
        inputs: (points, ...) network inputs.
        criterion: one criterion without *or*, aligned with the points.
        need: (points, conditions) the slack that each condition must reach.
        soft: whether a condition may be missed for a penalty.
        name: "edits" or "locality".
        index: which points these are of the set that they come from; None for all.
    """

    inputs: AnyInputs
    criterion: Criterion
    need: Tensor
    soft: bool
    name: str
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.criterion)

    def __getitem__(self, index: Tensor) -> Demand:
        """Return what is asked of some points."""
        return replace(
            self, inputs=self.inputs[index], criterion=self.criterion[index], need=self.need[index], index=None
        )

    def missed(self, y: Tensor) -> Tensor:
        """Return (points, conditions): by how much outputs y miss what is needed (<= 0 where they do not), float64."""
        missed = self.need.to(y.device) - self.criterion.slack(y.double())
        return missed.nan_to_num(nan=torch.inf, neginf=-torch.inf)

    def broken(self, model: nn.Module) -> bool:
        """Whether the model fails any of the criteria (not just their margins)."""
        return not bool(self.criterion.holds(outputs(model, self.inputs).double()).all())


def demands_of(problem: Problem, margin: float, locality: str, without: Tensor | None = None) -> list[Demand]:
    """Return the problem's demands: its edits, and the kept points of its locality set.

    Args:
        problem: the problem.
        margin: the slack that every edit must reach; kept points must keep it, or what they have if that is less.
        locality: "hard", "soft" or "none".
        without: locality points to leave out.
    """
    y = problem.answers.double().cpu()
    criterion = problem.edits.criterion.resolve(y)
    found = [Demand(problem.edits.inputs, criterion, _full(criterion, y, margin), False, "edits")]
    if locality == "none" or problem.locality is None:
        return found
    binding = problem.locality.holds.clone()
    if without is not None:
        binding[without.to(binding.device)] = False
    index = torch.nonzero(binding).flatten()
    if len(index) == 0:
        return found
    some = problem.locality[index]
    y = problem.before[index.to(problem.before.device)].double().cpu()
    criterion = some.criterion.resolve(y)
    slack = criterion.slack(y)
    found.append(Demand(some.inputs, criterion, slack.clamp(max=margin), locality == "soft", "locality", index))
    return found


def held_out_points(problem: Problem) -> Tensor | None:
    """Return the locality points that compare layers without being constraints, or None when there are too few."""
    if problem.locality is None or len(problem.locality) < 10 * HELD_OUT:
        return None
    return torch.arange(0, len(problem.locality), HELD_OUT)


def _full(criterion: Criterion, y: Tensor, margin: float) -> Tensor:
    return torch.full_like(criterion.slack(y), margin)
