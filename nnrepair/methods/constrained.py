"""Another method's repair within what a network can hold: zeros that stay, numbers on a grid."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import nn
from torch.nn.utils import prune

from nnrepair.errors import InvalidInput
from nnrepair.methods.base import Capabilities, Method, Proposal, named
from nnrepair.methods.rounding import Rounded, settle
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs

#: Margins that are tried, in typical distances between the two best classes.
LADDER = (0.1, 0.3, 1.0, 3.0)
#: By how much conditions are to hold on a grid, in the same unit.
SMALL = 1e-3


@dataclass(frozen=True)
class _Around:
    """A method that changes what another one proposes, or for which network.

    Attributes:
        method: a name or a method that returns the same network with other weights.
    """

    method: str | Method = "auto"

    def __post_init__(self) -> None:
        if named(self.method).capabilities.returns != "same":
            name = type(self).__name__
            raise InvalidInput(
                f"{name} needs a method that changes weights; {self.method!r} puts something beside them."
            )

    @property
    def capabilities(self) -> Capabilities:
        return named(self.method).capabilities


@dataclass(frozen=True)
class KeepZeros(_Around):
    """A repair in which weights that are zero stay zero: pruned networks stay as sparse as they were.

    Networks that `torch.nn.utils.prune` has masked need this only where the mask was made permanent.

    Example:
        >>> KeepZeros("auto").capabilities.keeps_architecture
        True

    Args:
        method: a name, or a method that changes weights.
    """

    def repair(self, problem: Problem) -> Proposal:
        """Propose a repair of the network with its zeros masked."""
        twin = copied(problem.model)
        for module in twin.modules():
            for name, tensor in list(module.named_parameters(recurse=False)):
                if tensor.ndim > 1 and tensor.dtype.is_floating_point and bool((tensor == 0).any()):
                    prune.custom_from_mask(module, name, tensor != 0)  # type: ignore[no-untyped-call]
        proposal = named(self.method).repair(replace(problem, model=twin.eval()))
        made = copied(problem.model)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                place, _, leaf = name.rpartition(".")
                module = proposal.model.get_submodule(place)
                if leaf in module._parameters:
                    parameter.copy_(module.get_parameter(leaf))
                else:
                    parameter.copy_(module.get_parameter(f"{leaf}_orig") * module.get_buffer(f"{leaf}_mask"))
        notes = [*proposal.notes, "weights that were zero are zero."]
        return replace(proposal, model=made, notes=notes, certificate=None)


@dataclass(frozen=True)
class OnGrid(_Around):
    """A repair whose numbers are among those that a quantised file can hold, as `Rounded` networks say.

    The method's proposal is rounded, and numbers then move along their grids, a step at a time, until edits hold and
    points are kept. Where something is lost still, the method is asked again with a larger margin, and the best of all
    is proposed.

    Args:
        method: a name, or a method that changes weights; larger margins need one with a `margin`.
    """

    def repair(self, problem: Problem) -> Proposal:
        """Propose a rounded repair; of a network without a grid, what the method proposes."""
        method = named(self.method)
        step = max((part.step for part in problem.model.modules() if isinstance(part, Rounded)), default=None)
        if step is None:
            return method.repair(problem)
        typical = problem.edits.criterion.typical_slack(problem.answers.double())
        asked: list[Method] = [method]
        if any(one.name == "margin" for one in fields(method)):  # type: ignore[arg-type]  # methods are dataclasses
            asked += [replace(method, margin=margin * typical + 2 * step) for margin in LADDER]  # type: ignore[type-var]
        found: list[tuple[tuple[float, float], Proposal]] = []
        for one in asked:
            proposal = one.repair(problem)
            proposal.notes.append(f"numbers were rounded to those that the file can hold; asked with {one!r}.")
            nearest = _rounded(proposal.model)
            moved = copied(nearest)
            for model in (nearest, moved):
                if model is moved:
                    settle(model, problem, 1.01 * step + SMALL * typical)
                found.append((_held(model, problem, step), replace(proposal, model=model, certificate=None)))
                if found[-1][0] == (1.0, 1.0):
                    return found[-1][1]
        _, best = max(found, key=lambda each: each[0])
        return replace(best, advice="a larger margin, or another layer: this one's numbers lie on a coarse grid")


def _held(model: nn.Module, problem: Problem, step: float) -> tuple[float, float]:
    """Return the shares of edits that hold, by more than the step of the outputs, and of points that are kept."""
    margin = problem.edits.criterion.margin(outputs(model, problem.edits.inputs).double())
    if problem.locality is None:
        return float((margin > step).double().mean()), 1.0
    kept = problem.locality.criterion.holds(outputs(model, problem.locality.inputs).double())[problem.locality.holds]
    return float((margin > step).double().mean()), float(kept.double().mean()) if len(kept) else 1.0


def _rounded(model: nn.Module) -> nn.Module:
    """Return a copy of a network whose parts have taken numbers that can be stored."""
    twin = copied(model)
    for part in twin.modules():
        if isinstance(part, Rounded):
            part.round_()
    return twin
