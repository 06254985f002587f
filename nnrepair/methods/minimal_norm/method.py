"""Provable minimal-norm repair: the smallest weight change under which every edit holds and the locality set stays.

After Sotoudeh & Thakur, "Provable repair of deep neural networks" (PLDI 2021), whose linear program this solves with
rows and columns on demand (see `minnorm`), for other norms, and with the locality set as constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian import layers
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.methods.minimal_norm.attempt import Attempt
from nnrepair.methods.minimal_norm.conflicts import conflict
from nnrepair.methods.minimal_norm.demands import Demand, demands_of, held_out_points
from nnrepair.methods.minimal_norm.relinearise import SuccessiveRepair
from nnrepair.rounding import percent
from nnrepair.solver import minnorm, norms
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.spec.kinds import kind_of
from nnrepair.spec.network import plain
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs
from nnrepair.wrappers.decoupled import Decoupled

#: The smallest margin, relative to the typical one: a repair must survive the rounding of the model's own dtype.
SMALLEST_MARGIN = 1e-5
#: With layer="auto", at most this many layers are tried, evenly spread from input to output.
MOST_LAYERS = 8
ADVICE = 'another layer, several layers, another margin (larger in half precision), locality="soft", or more max_steps'


@dataclass(frozen=True)
class MinimalNorm:
    """The smallest change of one layer (or several) under which every edit holds.

    Example:
        >>> MinimalNorm(layer="fc2", norm="l1").margin is None  # taken from the model
        True

    Args:
        layer: a layer's or parameter's name, several of them, or "auto": try the layers one by one and keep the repair
            that satisfies all edits with the least drawdown on held-out points of the locality set.
        norm: what "small" means, on the flat change d of the chosen parameters: "l1" (few weights change), "linf",
            "l2", "mean+max" (PRDNN's mean|d| + max|d|), "nuclear" (low rank; one layer), "drift" (the expected squared
            change of the layer's output over the locality set; of parameters that are no linear map, the Fisher
            information's diagonal there, see `rows.Metric`); "auto" is "drift" with a locality set and "l2" without.
        margin: by how much every edit must hold, in output units; None takes 5 % of the model's typical distance
            between the two best classes (between an output and its threshold, of the tolerance of `Near`). It is raised
            to a few roundings of the model's own dtype where it is less, and to 1e-5 where the model tells no classes
            apart (a last layer of zeros).
            Locality points keep this margin, or the one they had if it was smaller; in a hidden layer of the same
            architecture they keep at least a tenth of that.
        architecture: "same" returns a network of the same class; for any layer but the last by successive
            linearisation. "decoupled" returns the network with separate value and activation channels, exact for
            every layer.
        gap: the certified relative distance from the minimum at which to stop.
        locality: "hard" (every kept point is a constraint), "soft" (a point may fail, for a penalty as large as
            the largest multiplier of an edit) or "none".
        max_steps: successive linearisations per layer.

    Raises:
        InvalidInput: unknown names, or norm="drift" without a locality set.
    """

    layer: str | Sequence[str] = "auto"
    norm: Literal["auto", "l1", "linf", "l2", "mean+max", "nuclear", "drift"] = "auto"
    margin: float | None = None
    architecture: Literal["same", "decoupled"] = "same"
    gap: float = 1e-6
    locality: Literal["hard", "soft", "none"] = field(default="hard", metadata={"flag": "locality-mode"})
    max_steps: int = 40

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.norm, ("auto", *norms.NAMES), "norm"),
            (self.architecture, ("same", "decoupled"), "architecture"),
            (self.locality, ("hard", "soft", "none"), "locality"),
        ):
            if value not in known:
                raise InvalidInput(f"Unknown {what} {value!r}; choose one of {', '.join(known)}.")
        if self.margin is not None and not 0 <= self.margin < float("inf"):
            raise InvalidInput(f"margin must be a finite number >= 0, got {self.margin}.")
        if not isinstance(self.layer, str) and not all(isinstance(name, str) for name in _listed(self.layer)):
            raise InvalidInput(f"layer must be a name or several names, got {self.layer!r}.")
        if self.max_steps < 1:
            raise InvalidInput(f"max_steps must be at least 1, got {self.max_steps}.")
        if not 0 < self.gap < 1:
            raise InvalidInput(f"gap must lie between 0 and 1, got {self.gap}.")

    @property
    def capabilities(self) -> Capabilities:
        successive = self.architecture == "same"
        return Capabilities("optimisation", False, self.architecture, True, True, successive)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the smallest repair, see the class."""
        norm = self.norm
        if norm == "auto":
            norm = "drift" if problem.locality is not None else "l2"
        if norm == "drift" and problem.locality is None:
            raise InvalidInput('norm="drift" measures change on the locality set: give one, or choose norm="l2".')
        margin = self._margin(problem)
        chosen = replace(self, norm=norm, margin=margin)
        if self.layer != "auto":
            names = layers.choose(problem.model, self.layer)
            attempt = chosen._attempt(problem, names, demands_of(problem, margin, self.locality))
            return chosen._proposal(problem, attempt)
        return chosen._search(problem)

    def _margin(self, problem: Problem) -> float:
        inputs, criterion = problem.edits.inputs, problem.edits.criterion
        if problem.locality is not None:
            inputs, criterion = problem.locality.inputs, problem.locality.criterion
        y = outputs(problem.model, inputs)
        typical = criterion.typical_slack(y.double())
        decides = kind_of(criterion).decides
        rounding = 8 * torch.finfo(y.dtype).eps * float(y.abs().amax()) if decides else 0.0
        # Where classes tie there is no typical distance, and without a margin nothing would ask for a winner.
        unit = typical if typical > 0 or not decides else 1.0
        return max(self.margin if self.margin is not None else 0.05 * typical, SMALLEST_MARGIN * unit, rounding)

    def _attempt(
        self, problem: Problem, names: list[str], demands: list[Demand], start: Attempt | None = None
    ) -> Attempt:
        """Repair with the parameters `names` alone."""
        probes = [d.inputs for d in demands[1:]]
        if self.norm == "drift" and problem.locality is not None:
            probes.append(problem.locality.inputs)
        line = Linearization(problem.model, names, problem.edits.inputs, probes)
        metric = None
        if self.norm == "drift":
            assert problem.locality is not None
            metric = line.metric(problem.locality.inputs, problem.kind)
        if self.architecture == "decoupled" or line.ends_affine:
            repair = ExactRepair(line, demands, self.norm, metric, self.gap, self.architecture, problem.progress)
            repair.native64 = next(problem.model.parameters()).dtype == torch.float64
            try:
                solution = repair.run()
            except (minnorm.Infeasible, NotSolvedError) as reason:
                return Attempt(names, line, None, problem.model, infeasible=reason)
            change = line.unflatten(repair.change(solution))
            repaired = self._apply(problem.model, change, line.channels)
            return Attempt(names, line, repair, repaired, solution=solution)
        successive = SuccessiveRepair(
            line, problem.model, demands, self.norm, metric, self.max_steps, self.gap, problem.progress
        )
        change = line.unflatten(successive.run(None if start is None else start.change))
        return Attempt(
            names,
            line,
            None,
            self._apply(problem.model, change),
            change=successive.flat,
            steps=successive.steps,
            notes=successive.notes,
        )

    def _apply(self, model: nn.Module, change: dict[str, torch.Tensor], channels: bool = True) -> nn.Module:
        if self.architecture == "decoupled":
            return Decoupled(model, change, channels)
        return layers.moved(model, change)

    def _search(self, problem: Problem) -> Proposal:
        """Try the layers one by one; see `layer="auto"`."""
        names = layers.candidates(problem.model)
        if not names:
            raise InvalidInput(
                "No trainable layer with a weight matrix was found; name one with MinimalNorm(layer=...)."
            )
        if len(names) > MOST_LAYERS:
            names = [names[round(k * (len(names) - 1) / (MOST_LAYERS - 1))] for k in range(MOST_LAYERS)]
        assert self.margin is not None
        held_out = held_out_points(problem)
        demands = demands_of(problem, self.margin, self.locality, without=held_out)
        attempts: list[tuple[tuple[float, float, float], str, Attempt]] = []
        tried, reasons = [], list[str]()
        for name in names:
            try:
                free = layers.trainable(problem.model, name)
                attempt = self._attempt(problem, layers.choose(problem.model, free), demands)
            except (InvalidInput, UnsupportedModel) as reason:
                tried.append(f"{plain(name)}: not possible ({reason})")
                reasons.append(f"{plain(name)}: {reason}")
                continue
            score = attempt.score(problem, held_out)
            attempts.append((score, plain(name), attempt))
            if attempt.infeasible is not None:
                tried.append(f"{plain(name)}: infeasible")
                continue
            lost = f"{percent(score[1])} of held-out points to keep are lost, " if held_out is not None else ""
            tried.append(f"{plain(name)}: {score[0]:.0f} edits fail, {lost}mean output change {score[2]:.3g}")
        if not attempts:
            others = f" Nor can {', '.join(map(plain, names[1:]))}." if len(names) > 1 else ""
            raise InvalidInput(f"No layer can be repaired. {reasons[0]}{others}")
        attempts.sort(key=lambda item: item[0])
        _, name, best = attempts[0]
        full = demands_of(problem, self.margin, self.locality)
        for _, candidate, attempt in attempts:
            settled = self._settled(problem, attempt, full)
            if settled is not None:
                name, best = candidate, settled
                break
        proposal = self._proposal(problem, best)
        proposal.notes.append(f"layer: {name} was chosen. Tried: " + "; ".join(tried) + ".")
        proposal.stats["layers_tried"] = {n: list(s) for s, n, _ in attempts}
        return proposal

    def _settled(self, problem: Problem, attempt: Attempt, full: list[Demand]) -> Attempt | None:
        """Return a repair for which held-out points are constraints like the others, or None where there is none."""
        if attempt.infeasible is not None:
            return None
        if not any(d.broken(attempt.model) for d in full):
            return attempt
        for start in (attempt, None):
            again = self._attempt(problem, attempt.names, full, start)
            if again.infeasible is None and not any(d.broken(again.model) for d in full if not d.soft):
                return again
        return None

    def _proposal(self, problem: Problem, attempt: Attempt) -> Proposal:
        """Return what is proposed, with advice, and where an attempt failed the layers that could do it."""
        assert self.margin is not None
        unit = f" ({attempt.line.drift_unit(problem.kind)})" if self.norm == "drift" else ""
        size = f"small in the {self.norm} norm{unit}, with margin {self.margin:.3g}."
        stats: dict[str, Any] = {"layer": attempt.names, "norm": self.norm, "margin": self.margin}
        if attempt.limit is not None:
            notes = [f"not solved: {attempt.limit}."]
            return Proposal(problem.model, stats, notes, advice=f"{ADVICE}: {attempt.limit}")
        if isinstance(attempt.infeasible, minnorm.Infeasible):
            clash = conflict(attempt.infeasible)
            notes = [] if clash.smallest else ["fewer edits than those named may contradict each other already."]
            return Proposal(
                problem.model,
                stats,
                notes,
                infeasible=True,
                conflict=clash.edits,
                with_locality=clash.with_locality,
                layers=self._feasible_elsewhere(problem, attempt.names),
            )
        certificate = attempt.certificate(problem, self.margin)
        stats |= attempt.stats(problem)
        notes = [size, *attempt.described(problem, self.gap)]
        keeps = self.locality == "hard"
        return Proposal(attempt.model, stats, notes, certificate, keeps_locality=keeps, advice=ADVICE)

    def _feasible_elsewhere(self, problem: Problem, names: list[str]) -> list[str]:
        """Return other layers whose linearisation satisfies all demands."""
        assert self.margin is not None
        demands = demands_of(problem, self.margin, self.locality)
        found = []
        for layer in layers.candidates(problem.model)[-MOST_LAYERS:]:
            other = layers.choose(problem.model, layers.trainable(problem.model, layer))
            if set(other) & set(names):
                continue
            try:
                line = Linearization(problem.model, other, problem.edits.inputs, [d.inputs for d in demands[1:]])
                ExactRepair(line, demands, "l2", None, self.gap, "decoupled", False).run()
            except (minnorm.Infeasible, NotSolvedError, InvalidInput, UnsupportedModel):
                continue
            found.append(plain(layer))
        return found


def _listed(layer: object) -> list[object]:
    return list(layer) if isinstance(layer, (list, tuple)) else [layer]


register("minimal-norm", MinimalNorm)
register("auto", MinimalNorm)
