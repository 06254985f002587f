"""A layer's repair by an objective or constraints of the caller's own, and what can be said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nnrepair.deadline import Deadline
from nnrepair.errors import InvalidInput
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.suffix import Suffix
from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.methods.minimal_norm.demands import Demand
from nnrepair.methods.minimal_norm.own.exact import OwnExactRepair
from nnrepair.methods.minimal_norm.own.functions import Own
from nnrepair.methods.minimal_norm.own.hidden import OwnHiddenRepair
from nnrepair.methods.minimal_norm.own.program import Program
from nnrepair.solver.rows import Array

#: Of the l2 norm, with which the first conditions are found.
GAP = 1e-6


@dataclass
class OwnRepair:
    """The repair of a layer.

    Attributes:
        line: the layer's parameters.
        objective, constraints: the caller's own.
        model: the network that has the parameters, in its own dtype.
        decoupled: whether the change is kept beside the weights.
        max_steps: bound on steps where outputs are not affine in the layer.
        deadline: when to end.
        stats, notes: figures and sentences for the report, in the end.
    """

    line: Linearization
    objective: Own
    constraints: Own | None
    model: nn.Module
    decoupled: bool
    max_steps: int
    deadline: Deadline
    stats: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._program = Program(self.line, self.objective, self.constraints)
        self._start: dict[str, Tensor] = dict(self.model.named_parameters(remove_duplicate=False))
        if self.decoupled:
            self._start = {n: self._start[n].new_zeros(self._start[n].shape) for n in self.line.names}

    def exact(self, demands: list[Demand]) -> dict[str, Tensor]:
        """Return the change where outputs are affine in it.

        Raises:
            Infeasible: the edits, or edits and locality set, contradict each other, whatever the constraints.
            Clash: they contradict the constraints.
            InvalidInput: the constraints contradict each other, the objective has no minimum, or the program is too
                large.
            NotSolvedError: a solver gave up.
            OutOfTime: the deadline passed.
        """
        architecture = "decoupled" if self.decoupled else "same"
        rows = ExactRepair(self.line, demands, "l2", None, GAP, architecture, self.deadline)
        repair = OwnExactRepair(rows, self._program)
        d = self._rounded(repair.run())
        self.stats = repair.stats
        where = "decoupled network" if self.decoupled else "outputs are affine in this layer"
        how = "solved to the solver's tolerance" if self.stats["solved"] else "solved only roughly"
        self.notes.append(
            f"exact: {where}. The program over all conditions was {how} ({self.stats['solver']}); no certificate."
        )
        return self._told(d)

    def hidden(self, suffix: Suffix, demands: list[Demand], start: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Return the change of a hidden layer, from one to start from.

        Args:
            suffix: the network from the layer on.
            demands: what is asked of it.
            start: a change.

        Raises:
            InvalidInput: the constraints contradict each other, the objective has no minimum, the program is too large,
                or it has variables beside the change.
            NotSolvedError: the solver gave up before there was anything.
        """
        if not self._program.alone:
            raise InvalidInput(
                "In a hidden layer of the same architecture, an objective and constraints can have no other variables "
                'than the change\'s: write them without, or choose architecture="decoupled" or the last layer.'
            )
        repair = OwnHiddenRepair(
            self.line, suffix, demands, self._program, self._rounded, self.max_steps, self.deadline
        )
        d = repair.run(start)
        self.stats = repair.stats
        self.notes.append(
            "same architecture by convex steps on the true network; the objective is not proved to be smallest, and "
            "from another start it may become smaller."
        )
        if "late" in self.stats:
            self.notes.append("out of time: with more of it there might be a repair, or a better one.")
        elif self.stats["steps"] >= self.max_steps:
            self.notes.append(f"stopped after max_steps={self.max_steps} steps.")
        if not self.stats["met"]:
            self.notes.append("no step met everything, which does not show that nothing could.")
        return self._told(d)

    def _rounded(self, d: Array) -> Array:
        return self._program.rounded(d, self._start)

    def _told(self, d: Array) -> dict[str, Tensor]:
        """Return the change by name; say what it is worth."""
        missed = self._program.missed(d)
        self.stats = {"objective": self._program.value(d), "constraints_missed": missed, **self.stats}
        if self._program.free:
            free = ", ".join(self._program.free)
            self.notes.append(f"neither objective nor constraints say anything of {free}: free to change.")
        if self.constraints is not None:
            how = "exactly" if missed == 0 else f"up to {missed:.0e}, the solver's tolerance and the weights' rounding"
            self.notes.append(f"the returned weights meet the constraints {how}.")
        return self.line.unflatten(d)
