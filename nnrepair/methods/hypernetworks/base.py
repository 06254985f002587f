"""Editors that learn what to make of gradients: what MEND and MALMEN have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.methods.base import Capabilities, Proposal
from nnrepair.methods.hypernetworks.factors import Factors, GradientFactors, Transform, weights_of
from nnrepair.methods.trainable import Trainable
from nnrepair.spec.edits import Edits, EditScope
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import call_with, outputs
from nnrepair.training import Descent

#: Exercises from which the mean and the spread of factors are taken.
MEASURED = 50
#: Outputs aim this far beyond the margin, in repairs, relative to the typical one.
BEYOND = 1e-4
ADVICE = "a longer training, more rounds, other layers, or another method"


@dataclass(frozen=True)
class Hypernetwork(Trainable):
    """An editor that transforms the gradient of the edits' losses, and takes one step; see its subclasses.

    Args:
        layers: names of linear layers or convolutions; "auto" takes the last layer with a weight.
        rank: hidden units of what transforms.
        rounds: of a repair, at most; none is made once all edits hold.
        start: the step size before training.
        lr: Adam's, on what transforms; that of step sizes is ten times as large.
        locality_weight: what one nat of divergence on the locality set costs, in units of the edits' loss.
        margin: by how much every edit must hold, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, or unknown layers.
    """

    layers: str | Sequence[str] = field(default="auto", metadata={"flag": "layer"})
    rank: int = 128
    rounds: int = 100
    start: float = 0.01
    lr: float = 1e-3
    locality_weight: float = 10.0
    margin: float = 0.0

    capabilities: ClassVar[Capabilities] = Capabilities("meta-learning", True, "same", True, True, True)

    def __post_init__(self) -> None:
        for name in ("rank", "rounds"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise InvalidInput(f"{name} must be an integer >= 1, got {count!r}.")
        for name in ("start", "lr", "locality_weight", "margin"):
            number, zero = getattr(self, name), name in ("margin", "locality_weight")
            good = isinstance(number, int | float) and not isinstance(number, bool)
            if not good or not 0 <= number < math.inf or (number == 0 and not zero):
                raise InvalidInput(f"{name} must be a finite number {'>=' if zero else '>'} 0, got {number!r}.")
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))

    @abstractmethod
    def change(self, learned: Learned, place: int, factors: Factors) -> Tensor:
        """Return (out, inp), by how much a weight is to change, differentiable.

        Args:
            learned: what is learned.
            place: which of its weights.
            factors: of the gradient of the edits' loss there.
        """

    def begin(self, model: nn.Module, generator: torch.Generator) -> Learned:
        """Return what changes nothing of the gradients yet."""
        names = weights_of(model, self.layers)
        return Learned(model, names, self.rank, self.start, generator)

    def descent(self, learned: nn.Module, steps: int) -> Descent:
        """Return Adam's steps; those of the logarithms of step sizes are larger."""
        assert isinstance(learned, Learned)
        groups = [{"params": list(learned.transforms.parameters())}]
        groups.append({"params": [learned.rates, learned.ridges], "lr": 10 * self.lr})  # type: ignore[dict-item]
        return Descent(torch.optim.Adam(groups, lr=self.lr), clip=10.0)

    def loss(self, learned: nn.Module, problem: Problem) -> Tensor:
        """Return what edits and their scope miss after a step, and the divergence on the points to keep."""
        assert isinstance(learned, Learned)
        start = learned.weights(problem.model)
        found = GradientFactors(problem.model, learned.names).at(start, problem.edits, self.margin)
        for transform, name in zip(learned.transforms, learned.names, strict=True):
            assert isinstance(transform, Transform)
            if transform.measured < MEASURED:
                transform.measure(found[name])
        after = self._stepped(learned, start, found)
        points: list[Edits | EditScope] = [problem.edits, *([] if problem.scope is None else [problem.scope])]
        terms = [p.criterion.loss(call_with(problem.model, after, p.inputs).double(), self.margin) for p in points]
        total = torch.stack([term.mean() for term in terms]).sum()
        if problem.locality is not None and self.locality_weight:
            y = call_with(problem.model, after, problem.locality.inputs).double()
            total = total + self.locality_weight * problem.kind.divergence(problem.before.double(), y).mean()
        return total

    def edit(self, learned: nn.Module, problem: Problem) -> Proposal:
        """Propose what the learned step makes of the network, taken again while edits miss."""
        assert isinstance(learned, Learned)
        edits, network = problem.edits, copied(problem.model)
        known = dict(network.named_parameters(remove_duplicate=False))
        factors = GradientFactors(problem.model, learned.names)
        y = problem.answers
        aim = self.margin + BEYOND * edits.criterion.typical_slack(y.double())
        best, most, rounds = learned.weights(network), self._holding(edits, y), 0
        now = best
        with torch.enable_grad():
            while rounds < self.rounds and most < len(edits):
                now = {n: w.detach() for n, w in self._stepped(learned, now, factors.at(now, edits, aim)).items()}
                if not all(bool(torch.isfinite(w).all()) for w in now.values()):
                    break
                rounds += 1
                with torch.no_grad():
                    for name, weight in now.items():
                        known[name].copy_(weight)
                holding = self._holding(edits, outputs(network, edits.inputs))
                if holding > most:
                    best, most = now, holding
        with torch.no_grad():
            for name, weight in best.items():
                known[name].copy_(weight)
        return Proposal(network, {"layers": learned.names, "rounds": rounds}, advice=ADVICE)

    def _holding(self, edits: Edits, y: Tensor) -> int:
        """Return how many edits hold with the margin asked for at outputs y."""
        y = y.double()
        return int((edits.criterion.holds(y) & (edits.criterion.margin(y) >= self.margin)).sum())

    def _stepped(self, learned: Learned, start: dict[str, Tensor], found: dict[str, Factors]) -> dict[str, Tensor]:
        """Return the weights after a step, as functions of what is learned."""
        return {
            name: start[name] + self.change(learned, k, found[name]).reshape(start[name].shape).to(start[name])
            for k, name in enumerate(learned.names)
        }


class Learned(nn.Module):
    """What is learned: for each weight what transforms its factors, a step size, and the logarithm of a ridge.

    Args:
        model: whose weights.
        names: these.
        rank, start: see `Hypernetwork`.
        generator: of the first values.
    """

    def __init__(self, model: nn.Module, names: list[str], rank: int, start: float, generator: torch.Generator) -> None:
        super().__init__()
        self.names = names
        weights = self.weights(model)
        sizes = [(w.numel() // len(w), len(w)) for w in weights.values()]
        self.transforms = nn.ModuleList(Transform(inp, out, rank, generator) for inp, out in sizes)
        self.rates = nn.Parameter(torch.full((len(names),), math.log(start)))
        self.ridges = nn.Parameter(torch.zeros(len(names)))
        self.to(next(iter(weights.values())))

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights that are changed, as they are in a network."""
        known = dict(model.named_parameters(remove_duplicate=False))
        return {name: known[name].detach() for name in self.names}
