"""Provable minimal-norm repair: the smallest weight change under which every edit holds and the locality set stays.

After Sotoudeh & Thakur, "Provable repair of deep neural networks" (PLDI 2021), whose linear program this solves with
rows and columns on demand (see `minnorm`), for other norms, and with the locality set as constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from nnrepair.deadline import Deadline, required_seconds
from nnrepair.errors import InvalidInput
from nnrepair.jacobian import layers
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.minimal_norm.attempt import Attempt, Settings, attempted
from nnrepair.methods.minimal_norm.conflicts import conflict
from nnrepair.methods.minimal_norm.demands import demands_of
from nnrepair.methods.minimal_norm.elsewhere import feasible_elsewhere
from nnrepair.methods.minimal_norm.own.exact import Clash
from nnrepair.methods.minimal_norm.own.functions import Own, cvxpy, told
from nnrepair.methods.minimal_norm.search import LayerSearch
from nnrepair.progress import progress_bar
from nnrepair.solver import minnorm, norms
from nnrepair.spec.kinds import kind_of
from nnrepair.spec.problem import Problem

#: The smallest margin, relative to the typical one: a repair must survive the rounding of the model's own dtype.
SMALLEST_MARGIN = 1e-5
ADVICE = 'another layer, several layers, another margin (larger in half precision), locality="soft", or more max_steps'


@dataclass(frozen=True)
class MinimalNorm:
    """The smallest change of one layer (or several) under which every edit holds.

    Example:
        >>> MinimalNorm(layer="fc2", norm="l1").margin is None  # taken from the model
        True

    Args:
        layer: a layer's or parameter's name, several of them, or "auto": try the layers one by one and keep the repair
            that satisfies all edits with the least drawdown on held-out points of the locality set (and, of edits with
            neighbours, the fewest of these missed).
        norm: what "small" means, on the flat change d of the chosen parameters: "l1" (few weights change), "linf",
            "l2", "mean+max" (PRDNN's mean|d| + max|d|), "nuclear" (low rank; one layer), "drift" (the expected squared
            change of the layer's output over the locality set; of parameters that are no linear map, the Fisher
            information's diagonal there, see `metric.Metric`), "fisher" (of a hidden layer, or of several: how far
            the network's decisions or outputs move there, nearly; comes without a certificate); "auto" is "drift" with
            a locality set and "l2" without.
        margin: by how much every edit must hold, in output units; None takes 5 % of the model's typical distance
            between the two best classes (between an output and its threshold, of the tolerance of `Near`). It is raised
            to a few roundings of the model's own dtype where it is less, and to 1e-5 where the model tells no classes
            apart (a last layer of zeros).
            Locality points keep this margin, or the one they had if it was smaller; in a hidden layer of the same
            architecture they keep at least a tenth of that.
        architecture: "same" returns a network of the same class; for any layer but the last by descent on the true
            network. "decoupled" returns the network with separate value and activation channels, exact for
            every layer.
        gap: the certified relative distance from the minimum at which to stop.
        locality: "hard" (every kept point is a constraint), "soft" (a point may fail, for a penalty as large as
            the largest multiplier of an edit) or "none".
        max_steps: rounds of descent per layer, for layers that need it.
        time_limit: in seconds, None for none (the default; "auto" then tries no further layers after 20 s of work once
            one was repaired). What was found by then is proposed; a look at all points, once begun, is ended. Where
            edits contradict each other, other layers are tried for five seconds at most.
        objective: instead of a norm, a function of your own: from the change, a dictionary of a cvxpy variable for each
            chosen parameter, to a convex cvxpy expression that is minimised (needs cvxpy).
        constraints: a function from the same dictionary to a list of cvxpy constraints on the change.

    Raises:
        InvalidInput: unknown names, norm="drift" without a locality set, an objective together with a norm, or what
            your functions return is not convex.
    """

    layer: str | Sequence[str] = "auto"
    norm: Literal["auto", "l1", "linf", "l2", "mean+max", "nuclear", "drift", "fisher"] = "auto"
    margin: float | None = None
    architecture: Literal["same", "decoupled"] = "same"
    gap: float = 1e-6
    locality: Literal["hard", "soft", "none"] = field(default="hard", metadata={"flag": "locality-mode"})
    max_steps: int = 40
    time_limit: float | None = None
    objective: Own | None = field(default=None, repr=False)
    constraints: Own | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.norm, ("auto", *norms.NAMES), "norm"),
            (self.architecture, ("same", "decoupled"), "architecture"),
            (self.locality, ("hard", "soft", "none"), "locality"),
        ):
            if value not in known:
                raise InvalidInput(f"Unknown {what} {value!r}; choose one of {', '.join(known)}.")
        if self.margin is not None:
            options.number(self, "margin", zero=True)
        if not isinstance(self.layer, str) and not all(isinstance(name, str) for name in _listed(self.layer)):
            raise InvalidInput(f"layer must be a name or several names, got {self.layer!r}.")
        options.whole(self, "max_steps")
        required_seconds(self.time_limit, "time_limit")
        if not options.is_number(self.gap) or not 0 < self.gap < 1:
            raise InvalidInput(f"gap must lie between 0 and 1, got {self.gap!r}.")
        for what, function in self._own.items():
            if not callable(function):
                raise InvalidInput(f"{what} must be a function of the change, got {function!r}.")
        if self.objective is not None and self.norm != "auto":
            raise InvalidInput(f"Give an objective or norm={self.norm!r}, not both; an objective can add up several.")

    def __repr__(self) -> str:
        shown = {f.name: repr(getattr(self, f.name)) for f in fields(self) if f.repr}
        shown |= {what: told(function) for what, function in self._own.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"

    @property
    def _own(self) -> dict[str, Own]:
        """The functions that were given."""
        given = {"objective": self.objective, "constraints": self.constraints}
        return {what: function for what, function in given.items() if function is not None}

    @property
    def capabilities(self) -> Capabilities:
        successive = self.architecture == "same"
        return Capabilities("optimisation", False, self.architecture, True, True, successive, neighbours=True)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the smallest repair, see the class."""
        if self._own:
            cvxpy()
        norm: str = self.norm
        if self.objective is not None:
            norm = told(self.objective)
        elif norm == "auto":
            norm = "drift" if problem.locality is not None else "l2"
        if norm in norms.METRICS and problem.locality is None:
            raise InvalidInput(f'norm="{norm}" measures change on the locality set: give one, or choose norm="l2".')
        margin = self._margin(problem)
        chosen = Settings(norm, margin, self.architecture, self.gap, self.locality, self.max_steps, **self._own)
        with progress_bar("minimal norm", problem.progress, counts=False) as report:
            deadline = Deadline(self.time_limit, say=report)
            if self.layer != "auto":
                names = layers.choose(problem.model, self.layer)
                found = attempted(problem, chosen, names, demands_of(problem, margin, self.locality), deadline)
                return self._proposal(problem, chosen, found, deadline)
            search = LayerSearch(problem, chosen, deadline)
            proposal = self._proposal(problem, chosen, search.run(), deadline)
        proposal.notes.append(search.told)
        proposal.stats["layers_tried"] = search.scores
        return proposal

    def _margin(self, problem: Problem) -> float:
        if problem.locality is not None:
            criterion, y = problem.locality.criterion, problem.before
        else:
            criterion, y = problem.edits.criterion, problem.answers
        typical = criterion.typical_slack(y.double())
        decides = kind_of(criterion).decides
        rounding = 8 * torch.finfo(y.dtype).eps * float(y.abs().amax()) if decides else 0.0
        # Where classes tie there is no typical distance, and without a margin nothing would ask for a winner.
        unit = typical if typical > 0 or not decides else 1.0
        return max(self.margin if self.margin is not None else 0.05 * typical, SMALLEST_MARGIN * unit, rounding)

    def _proposal(self, problem: Problem, chosen: Settings, attempt: Attempt, deadline: Deadline) -> Proposal:
        """Return what is proposed, with advice, and where an attempt failed the layers that could do it."""
        unit = f" ({attempt.line.unit(chosen.norm, problem.kind)})" if chosen.norm in norms.METRICS else ""
        what = f"{chosen.norm} norm{unit}" if self.objective is None else f"objective {chosen.norm}"
        under = "" if self.constraints is None else f" under the constraints {told(self.constraints)}"
        size = f"small in the {what}{under}, with margin {chosen.margin:.3g}."
        stats: dict[str, Any] = {"layer": attempt.names, "norm": chosen.norm, "margin": chosen.margin}
        if attempt.limit is not None:
            notes = [f"not solved: {attempt.limit}."]
            return Proposal(problem.model, stats, notes, advice=f"{ADVICE}: {attempt.limit}")
        if isinstance(attempt.infeasible, minnorm.Infeasible | Clash):
            return self._infeasible(problem, chosen, attempt, stats, deadline)
        certificate = attempt.certificate(problem, chosen.margin)
        stats |= attempt.stats(problem)
        notes = [size, *attempt.described(problem, self.gap)]
        keeps = self.locality == "hard"
        return Proposal(attempt.model, stats, notes, certificate, keeps_locality=keeps, advice=ADVICE)

    def _infeasible(
        self, problem: Problem, chosen: Settings, attempt: Attempt, stats: dict[str, Any], deadline: Deadline
    ) -> Proposal:
        """Return what is said where no change satisfies all demands: which contradict, and which layers could do it."""
        reason = attempt.infeasible
        ours = isinstance(reason, Clash)
        assert isinstance(reason, minnorm.Infeasible | Clash)
        clash = reason if isinstance(reason, Clash) else conflict(reason, deadline)
        could, untried = list[str](), list[str]()
        if not ours:
            could, untried = feasible_elsewhere(
                problem, chosen.margin, chosen.locality, chosen.gap, attempt.names, deadline
            )
        return Proposal(
            problem.model,
            stats,
            [] if clash.smallest else ["fewer edits than those named may contradict each other already."],
            infeasible=True,
            conflict=clash.edits,
            with_locality=clash.with_locality,
            with_constraints=ours,
            layers=could,
            untried=untried,
        )


def _listed(layer: object) -> list[object]:
    return list(layer) if isinstance(layer, (list, tuple)) else [layer]


register("minimal-norm", MinimalNorm)
register("auto", MinimalNorm)
