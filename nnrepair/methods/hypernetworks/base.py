"""Editors that learn what to make of gradients: what MEND, MALMEN and KnowledgeEditor have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal
from nnrepair.methods.hypernetworks.factors import Factors, GradientFactors, Standard, Transform, sizes_of, weights_of
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
        successive: whether an exercise makes its edits one after another, each in the network that the last one left,
            and asks every time for all edits so far. This is the training of Hase et al., "Do language models have
            beliefs?" (SLAG, 2021), with their edit scopes and points to keep; they do not ask for past edits again, and
            compare points to keep with the last network, where here it is the first. Gradients flow through the newest
            edit alone, as there.

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
    successive: bool = False

    capabilities: ClassVar[Capabilities] = Capabilities("meta-learning", True, "same", True, True, True)

    def __post_init__(self) -> None:
        options.whole(self, "rank", "rounds")
        options.number(self, "start", "lr")
        options.number(self, "locality_weight", "margin", zero=True)
        options.flag(self, "successive")
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

    def transform(self, inp: int, out: int, generator: torch.Generator) -> Standard:
        """Return what will see the factors of a weight (out, inp), and changes nothing of them yet."""
        return Transform(inp, out, self.rank, generator)

    def price(self, learned: Learned, divergence: Tensor, held: float) -> Tensor:
        """Return what a mean divergence on the points to keep costs, where this share of an exercise's edits held."""
        return self.locality_weight * divergence

    def begin(self, model: nn.Module, generator: torch.Generator) -> Learned:
        """Return what changes nothing of the gradients yet."""
        names = weights_of(model, self.layers)
        known = dict(model.named_parameters(remove_duplicate=False))
        sizes = [sizes_of(model, name) for name in names]
        transforms = [self.transform(inp, out, generator) for inp, out in sizes]
        return Learned(names, transforms, self.start).to(known[names[0]])

    def descent(self, learned: nn.Module, steps: int) -> Descent:
        """Return Adam's steps; those of the logarithms of step sizes are larger."""
        assert isinstance(learned, Learned)
        groups = [{"params": list(learned.transforms.parameters())}]
        groups.append({"params": [learned.rates, learned.ridges], "lr": 10 * self.lr})  # type: ignore[dict-item]
        return Descent(torch.optim.Adam(groups, lr=self.lr), clip=10.0)

    def loss(self, learned: nn.Module, problem: Problem) -> Tensor:
        """Return what edits and their scope miss after a step, and the divergence on the points to keep."""
        assert isinstance(learned, Learned)
        weights, factors = learned.weights(problem.model), GradientFactors(problem.model, learned.names)
        terms: list[Tensor] = []
        for newest, edits, scope in self._turns(problem):
            start = {name: weight.detach() for name, weight in weights.items()}
            found = factors.at(start, newest, self.margin)
            for transform, name in zip(learned.transforms, learned.names, strict=True):
                assert isinstance(transform, Standard)
                if transform.measured < MEASURED and not terms:  # later edits share what gradients flow through
                    transform.measure(found[name])
            weights = self._stepped(learned, start, found)
            terms.append(self._missed(learned, problem, weights, edits, scope))
        return torch.stack(terms).mean()

    def _turns(self, problem: Problem) -> Iterator[tuple[Edits, Edits, EditScope | None]]:
        """Yield the edits that an exercise makes together, all edits so far, and the edit scope of these."""
        edits, scope = problem.edits, problem.scope
        for k in range(len(edits) - 1) if self.successive else []:
            so_far = torch.arange(k + 1)
            near = scope.near(so_far) if scope is not None and scope.of is not None else None
            yield edits[so_far[k:]], edits[so_far], near
        yield edits[torch.tensor([len(edits) - 1])] if self.successive else edits, edits, scope

    def _missed(
        self, learned: Learned, problem: Problem, weights: dict[str, Tensor], edits: Edits, scope: EditScope | None
    ) -> Tensor:
        """Return the loss under some weights."""
        y = call_with(problem.model, weights, edits.inputs).double()
        total = edits.criterion.loss(y, self.margin).mean()
        if scope is not None:
            near = call_with(problem.model, weights, scope.inputs).double()
            total = total + scope.criterion.loss(near, self.margin).mean()
        divergence = total.new_zeros(())
        if problem.locality is not None and self.locality_weight:
            kept = call_with(problem.model, weights, problem.locality.inputs).double()
            divergence = problem.kind.divergence(problem.before.double(), kept).mean()
        return total + self.price(learned, divergence, float(edits.criterion.holds(y.detach()).double().mean()))

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
        stepped = {}
        for k, name in enumerate(learned.names):
            change = self.change(learned, k, found[name])
            change = change.T if found[name].transposed else change.reshape(start[name].shape)
            stepped[name] = start[name] + change.to(start[name])
        return stepped


class Learned(nn.Module):
    """What is learned: for each weight what sees its factors, a step size, and the logarithm of a ridge.

    Args:
        names: of the weights.
        transforms: one for each.
        start: see `Hypernetwork`.
    """

    constraint: nn.Module  # of `KnowledgeEditor`: what is allowed on the points to keep

    def __init__(self, names: list[str], transforms: Sequence[nn.Module], start: float) -> None:
        super().__init__()
        self.names = names
        self.transforms = nn.ModuleList(transforms)
        self.rates = nn.Parameter(torch.full((len(names),), math.log(start)))
        self.ridges = nn.Parameter(torch.zeros(len(names)))

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights that are changed, as they are in a network."""
        known = dict(model.named_parameters(remove_duplicate=False))
        return {name: known[name].detach() for name in self.names}
