"""Mistakes imitate what the network does where it is right: BIRDNN.

After Liang et al., "Repairing deep neural networks based on behavior imitation" (2023, arXiv 2305.03365). Each edit is
given a behaviour to imitate: of the outputs at points that are right, the nearest to its own with which it would hold.
The network is then trained on both, by squared differences. The paper also finds the units that are responsible, those
which differ most on average between mistakes and points that are right; there a search of particles scales what they
return, and here `units` restricts the training to their weights.

What differs from the published code, which is for ACAS Xu and classifiers of images: points that are right are those of
the locality set, not drawn from a property's region; an edit that would hold with none of their outputs imitates the
nearest outputs with which it holds; training ends as soon as all edits hold; and units are compared by what their layer
returns, before any activation, means over positions. Edits over a region are not proved by it: `repair_property` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.jacobian.fisher import Weights
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.methods.fine_tune.penalties import Penalty, Regularizer
from nnrepair.methods.least_squares import targets
from nnrepair.rounding import counted
from nnrepair.spec.criterion import Criterion, flat
from nnrepair.spec.edits import Edits
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs
from nnrepair.wrappers.codebook import Seen

#: Points that are right to which outputs of an edit are compared, at most.
MOST = 5000


@dataclass(frozen=True)
class BIRDNN:
    """Train mistakes to imitate the nearest right behaviour of the network, and the points to keep to stay.

    Example:
        >>> BIRDNN(units=20).capabilities.only_edit_pair
        False

    Args:
        layers: names of layers or parameters, or "all" for every trainable floating-point parameter.
        units: how many units may change, those that differ most between edits and points that are right; 0 for all.
        steps, lr: of Adam; no step is taken once all edits hold.
        rehearsal: points to keep in every step's loss, drawn anew each time.
        weight: of an edit's squared difference, relative to that of a point to keep.
        margin: by how much every edit must hold, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, unknown names, or a missing locality set.
    """

    layers: str | Sequence[str] = field(default="all", metadata={"flag": "layer"})
    units: int = 0
    steps: int = 1000
    lr: float = 1e-3
    rehearsal: int = 100
    weight: float = 1.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        options.whole(self, "units", least=0)
        options.number(self, "weight", below=1e9)
        object.__setattr__(self, "layers", self._tuning.layers)

    @property
    def _tuning(self) -> FineTune:
        only = (_Responsible(self.units),) if self.units else ()
        common = {"steps": self.steps, "lr": self.lr, "margin": self.margin}
        return FineTune(self.layers, rehearsal=self.rehearsal, penalties=only, **common)  # type: ignore[arg-type]

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("regularisation", False, "same", False, True, True, regions=False)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the network in which edits imitate what it does elsewhere, see the class."""
        locality, criterion = problem.locality, problem.edits.criterion
        if locality is None or not bool(locality.holds.any()):
            raise InvalidInput(
                "BIRDNN lets mistakes imitate points at which the network is right: give a locality set with some."
            )
        before, y = problem.before.double(), problem.answers.double()
        aim = self.margin + targets.MORE * 1e-4 * criterion.typical_slack(y)
        wanted, found = imitated(criterion, y, before[locality.holds.to(before.device)][:MOST], aim)
        surrogate = replace(
            problem,
            edits=Edits(problem.edits.inputs, _Imitating(criterion, wanted, self.weight)),
            locality=replace(locality, criterion=_Imitating(locality.criterion, before, 1.0)),
        )
        proposal = self._tuning.repair(surrogate)
        if found < len(y):
            lost, they = len(y) - found, "it" if len(y) - found == 1 else "they"
            proposal.notes.append(f"{counted(lost, 'edit')} would hold with no point's outputs; {they} got others.")
        proposal.advice = "more steps or units, another lr, a larger weight, another layer, or another method"
        return proposal


def imitated(criterion: Criterion, y: Tensor, right: Tensor, aim: float) -> tuple[Tensor, int]:
    """Return (n, ...) what outputs y are to become, and how many of these are outputs of other points.

    Args:
        criterion: of n points.
        y: (n, ...) float64.
        right: (m, ...) outputs of points that are right.
        aim: by how much each is to hold.
    """
    wanted, found = targets.at_outputs(criterion, y, aim), 0
    apart = torch.cdist(flat(y), flat(right))
    for k in range(len(y)):
        same = criterion[torch.full((len(right),), k)]
        good = same.holds(right) & (same.margin(right) >= aim)
        if bool(good.any()):
            wanted[k] = right[torch.where(good, apart[k], torch.inf).argmin()]
            found += 1
    return wanted, found


class _Imitating(Criterion):
    """What is asked of outputs, reached by becoming certain others."""

    def __init__(self, asked: Criterion, wanted: Tensor, weight: float) -> None:
        self.asked, self.wanted, self.weight, self.strict = asked, wanted, weight, asked.strict

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: Tensor) -> _Imitating:
        return _Imitating(self.asked[index], self.wanted[index.to(self.wanted.device)], self.weight)

    def loss(self, y: Tensor, margin: float = 0.0) -> Tensor:
        """Return (n,): the mean squared difference from the wanted outputs."""
        return self.weight * flat(y - self.wanted.to(y)).square().mean(1)

    def slack(self, y: Tensor) -> Tensor:
        return self.asked.slack(y)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        return self.asked.rows(point, condition, y)

    def check(self, y: Tensor) -> None:
        self.asked.check(y)

    def margin(self, y: Tensor) -> Tensor:
        return self.asked.margin(y)

    def holds(self, y: Tensor) -> Tensor:
        return self.asked.holds(y)

    def typical_slack(self, y: Tensor) -> float:
        return self.asked.typical_slack(y)


@dataclass(frozen=True)
class _Responsible(Penalty):
    """Only the weights of some units change: of those whose mean differs most between edits and right points."""

    units: int

    needs_locality = True
    bounds = True

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        return _Mask(responsible(problem, list(old), self.units))


class _Mask(Regularizer):
    def __init__(self, units: dict[str, Tensor]) -> None:
        self.units = units

    @torch.no_grad()
    def redirect(self, gradient: Weights) -> Weights:
        kept = {}
        for name, part in gradient.items():
            mask = self.units.get(name)
            shape = [-1, *[1] * (part.ndim - 1)]
            kept[name] = torch.zeros_like(part) if mask is None else part * mask.to(part).reshape(shape)
        return kept


def responsible(problem: Problem, names: Sequence[str], units: int) -> dict[str, Tensor]:
    """Return, by parameter, which of its units (out,) bool differ most between the edits and the points that are right.

    Args:
        problem: with a locality set.
        names: parameters, of layers that run once and return a number, or a channel, for each of their units.
        units: how many, of all layers together.
    """
    assert problem.locality is not None
    right = torch.nonzero(problem.locality.holds).flatten().cpu()[:MOST]
    known = dict(problem.model.named_parameters(remove_duplicate=False))
    differ: dict[str, Tensor] = {}
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in names):
        seen = Seen(problem.model, layer, output=True).eval()
        axis = 1 if isinstance(problem.model.get_submodule(layer), nn.Conv1d | nn.Conv2d | nn.Conv3d) else -1
        several = [outputs(seen, inputs) for inputs in (problem.edits.inputs, problem.locality.inputs[right])]
        a, b = (y.movedim(axis, -1).flatten(0, -2).double().mean(0) for y in several)
        differ[layer] = (a - b).abs().cpu()
    least = torch.cat(list(differ.values())).sort(descending=True).values[:units][-1]
    owners = {name: differ[name.rpartition(".")[0]] for name in names}
    return {name: owner >= least for name, owner in owners.items() if len(known[name]) == len(owner)}


register("birdnn", BIRDNN)
