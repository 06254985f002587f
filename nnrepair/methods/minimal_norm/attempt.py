"""What came of repairing one layer: a change, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.results.certificate import Certificate
from nnrepair.solver import minnorm
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.spec.criteria import flat
from nnrepair.spec.problem import Problem, has_choice
from nnrepair.spec.running import outputs


@dataclass
class Attempt:
    """One layer's repair."""

    names: list[str]
    line: Linearization
    repair: ExactRepair | None
    model: nn.Module
    solution: minnorm.Solution | None = None
    infeasible: minnorm.Infeasible | NotSolvedError | None = None
    change: Any = None
    steps: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def limit(self) -> str | None:
        """Why nothing was found although it was not shown that there is nothing, or None."""
        reason = self.infeasible
        if isinstance(reason, NotSolvedError):
            return f"{reason} (a limit of the solver: there may be a repair all the same)"
        if reason is not None and not reason.certain:
            return f"{reason}, as far as rounding lets the solver see: the problem is ill-conditioned"
        return None

    def certificate(self, problem: Problem, margin: float) -> Certificate | None:
        """Return the proof of minimality, where there is one."""
        if self.repair is None or self.solution is None:
            return None
        return self.repair.certificate(problem, self.solution, margin)

    def stats(self, problem: Problem) -> dict[str, Any]:
        """Return the figures of the repair."""
        if self.solution is None:
            return {"steps": self.steps}
        found: dict[str, Any] = {"objective": self.solution.objective}
        if not _chose(problem):
            found |= {"lower_bound": self.solution.lower_bound, "gap": self.solution.gap}
        return found | {"rows": self.solution.conditions.m, **self.solution.stats}

    def described(self, problem: Problem, gap: float) -> list[str]:
        """Say how the change was found, and what is not as it was asked for."""
        if self.solution is None:
            how = (
                "same architecture by successive linearisation, re-checked on the true network at every step; the size "
                "of this change is not proved minimal."
            )
            return [how, *self.notes]
        solution = self.solution
        notes = ["exact: outputs are affine in this layer." if self.line.ends_affine else "exact: decoupled network."]
        if not _chose(problem) and solution.gap > gap:
            notes.append(f"the gap of {gap:g} that was asked for was not reached, only {solution.gap:.1e}.")
        if solution.missed > 10 * minnorm.ROW_TOLERANCE:
            missed = f"{solution.missed:.0e} of what they ask for"
            notes.append(f"conditions are nearly dependent, and are met up to {missed}.")
        if _chose(problem):
            notes.append("minimal for the alternatives that were nearest to holding, not over all of them.")
        return notes

    def score(self, problem: Problem, held_out: Tensor | None) -> tuple[float, float, float]:
        """Return (edits that fail, share of held-out locality points lost, mean output change), smaller is better."""
        if self.infeasible is not None:
            return (float(len(problem.edits)), 1.0, float("inf"))
        failing = float((~problem.edits.criterion.holds(outputs(self.model, problem.edits.inputs).double())).sum())
        locality = problem.locality
        if locality is None:
            y0, y = outputs(problem.model, problem.edits.inputs), outputs(self.model, problem.edits.inputs)
            return (failing, 0.0, float(flat(y - y0).norm(dim=1).mean()))
        index = torch.arange(len(locality)) if held_out is None else held_out
        inputs = locality.inputs[index]
        y0, y = outputs(problem.model, inputs), outputs(self.model, inputs)
        held = locality.holds[index.to(locality.holds.device)]
        lost = held & ~locality.criterion[index].holds(y.double())
        return (failing, float(lost.sum()) / max(1, int(held.sum())), float(flat(y - y0).norm(dim=1).mean()))


def _chose(problem: Problem) -> bool:
    """Whether alternatives had to be chosen among."""
    locality = problem.locality
    return has_choice(problem.edits.criterion) or (locality is not None and has_choice(locality.criterion))
