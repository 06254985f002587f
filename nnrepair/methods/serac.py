"""Edits in a cache: a trained classifier says which points each of them is about, and these get its answer.

After Mitchell et al., "Memory-based model editing at scale" (SERAC, ICML 2022). A point is in the scope of an edit
where its embedding is near the edit's; a counterfactual model answers there, and elsewhere the network as it was. What
differs from the published code, which is for text: embeddings are a trained linear map of what a layer of the network
itself takes, not another encoder; the counterfactual model repeats the edit's answer, the outputs nearest to the
network's own with which the edit holds, where there it is a small language model that reads the edit; so that nothing
but the scope is trained; and the negative pairs that count are the tenth that is hardest to tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.jacobian.layers import modules
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.least_squares.targets import at_outputs
from nnrepair.methods.trainable import Trainable
from nnrepair.rounding import counted
from nnrepair.spec.network import copied, plain
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs, outputs_of
from nnrepair.training import Descent
from nnrepair.wrappers.codebook import distances
from nnrepair.wrappers.conditioned import inputs_of
from nnrepair.wrappers.parallel import Queries
from nnrepair.wrappers.scoped import INSIDE, Scoped, of_points

#: Exercises from which the spread of what the layer takes is measured.
MEASURED = 50
#: The share of the pairs out of scope that count, the hardest ones.
HARD = 0.1
#: Answers hold by this share of a typical margin, at least.
BEYOND = 0.05
#: Embeddings that differ by less than this part of their length stand for one point.
SAME = 1e-6


@dataclass(frozen=True)
class SERAC(Trainable):
    """Answer for an edit at the points of its scope, which is learned; weights stay as they are.

    A repair is one pass over the edits. Edits that hold already need no entry; one that is where an earlier one is
    takes its place. Dropping an entry forgets its edit (`Scoped.without`).

    Example:
        >>> SERAC(layer="fc2").capabilities.keeps_architecture
        False

    Args:
        layer: the name of a module whose inputs tell points apart; "auto" takes the last with a weight.
        features: numbers of an embedding.
        lr: Adam's.
        margin: by how much every answer is to hold, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, or a layer that is not there.
    """

    layer: str = "auto"
    features: int = 64
    lr: float = 3e-3
    margin: float = 0.0

    capabilities: ClassVar[Capabilities] = Capabilities(
        "architectural", True, "wrapped", True, True, True, regions=False, rehearsal=False
    )

    def __post_init__(self) -> None:
        options.one_layer(self)
        options.whole(self, "features")
        options.number(self, "lr")
        options.number(self, "margin", zero=True)

    def begin(self, model: nn.Module, generator: torch.Generator) -> Scope:
        """Return a scope that nothing has been learned about."""
        # A network that was repaired before is frozen, and would have no layer to choose from.
        base, layer = (model.base, model.layer) if isinstance(model, Scoped) else (model, modules(model, self.layer)[0])
        numbers = inputs_of(base.get_submodule(layer))
        if not numbers:
            kind = type(base.get_submodule(layer)).__name__
            raise InvalidInput(f"Layer {plain(layer)!r} ({kind}) does not say how many numbers it takes: name another.")
        scope = Scope(base, layer, numbers, self.features, generator)
        return scope.to(next(p for p in base.parameters() if p.dtype.is_floating_point))

    def descent(self, learned: nn.Module, steps: int) -> Descent:
        """Return Adam's steps."""
        return Descent(torch.optim.Adam(learned.parameters(), lr=self.lr), clip=10.0)

    def loss(self, learned: nn.Module, problem: Problem) -> Tensor:
        """Return the cross-entropy of which points are in the scope of which edits."""
        assert isinstance(learned, Scope)
        several = [problem.edits.inputs]
        several += [part.inputs for part in (problem.scope, problem.locality) if part is not None]
        seen = [of_points(part) for part in outputs_of(Queries(learned.base, learned.layer), several)]
        learned.measure(torch.cat(seen))
        edits, points = seen[0], torch.cat(seen)
        owner = torch.full((len(points),), -1)
        owner[: len(edits)] = torch.arange(len(edits))
        if problem.scope is not None and problem.scope.of is not None:
            owner[len(edits) : len(edits) + len(problem.scope)] = problem.scope.of
        mine = owner.to(points.device) == torch.arange(len(edits), device=points.device)[:, None]
        known = torch.ones(len(points), dtype=torch.bool, device=points.device)
        if problem.scope is not None and problem.scope.of is None:  # nobody knows whose these are
            known[len(edits) : len(edits) + len(problem.scope)] = False
        a, b = learned.embedded(edits), learned.embedded(points)
        apart = (a[:, None] - b).square().sum(2)  # differentiable where two are one
        score = -learned.sharpness.exp() * apart
        inside = -score[mine].mean()
        outside = -torch.log(-torch.expm1((score - 1e-6)[~mine & known]))
        if not outside.numel():
            return inside
        return inside + outside.topk(max(1, int(HARD * outside.numel()))).values.mean()

    def edit(self, learned: nn.Module, problem: Problem) -> Proposal:
        """Propose the network with an entry for each edit that does not hold, beside those that it has."""
        assert isinstance(learned, Scope)
        edits = problem.edits
        made = copied(problem.model) if isinstance(problem.model, Scoped) else learned.empty(problem)
        y = problem.answers.double()
        aim = self.margin + BEYOND * edits.criterion.typical_slack(y)
        own = outputs(made.base, edits.inputs)
        answers = at_outputs(edits.criterion, own.double(), aim).to(own)
        seen = of_points(outputs(Queries(made.base, made.layer), edits.inputs))
        keys = seen.to(made.projection) @ made.projection.T
        added = torch.zeros(len(edits), dtype=torch.bool)
        while True:
            holds = edits.criterion.holds(outputs(made, edits.inputs).double()).cpu()
            new = torch.nonzero(~holds & ~added).flatten()
            if not len(new):
                break
            stale = (distances(made.keys, keys[new]) <= SAME * keys[new].double().norm(dim=1)).any(1)
            kept = made.without(torch.nonzero(stale).flatten().cpu())
            held = torch.cat([kept.keys, keys[new]]), torch.cat([kept.answers, answers[new]])
            made = Scoped(kept.base, kept.layer, kept.projection, kept.sharpness, *held)
            added[new] = True
        radius = math.sqrt(-math.log(INSIDE) / float(made.sharpness))
        stats = {"layer": plain(made.layer), "edits": len(made), "added": int(added.sum()), "radius": radius}
        of = "its embedding" if len(made) == 1 else "their embeddings"
        notes = [f"{counted(len(made), 'edit is', 'edits are')} answered for, within {radius:.3g} of {of}."]
        return Proposal(made.eval(), stats, notes, advice="a longer training, another layer, or another method")


class Scope(nn.Module):
    """What is learned: a linear map that makes embeddings, and how soon scores fall with distance.

    Args:
        base, layer: the network, which is no part of what is learned, and what embeddings are made of.
        numbers: that the layer takes.
        features: of an embedding.
        generator: of the first values.
    """

    spread: Tensor
    measured: Tensor

    def __init__(self, base: nn.Module, layer: str, numbers: int, features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.__dict__["base"], self.layer = base, layer
        self.map = nn.Parameter(torch.randn(features, numbers, generator=generator) / (features * numbers) ** 0.5)
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("spread", torch.ones(numbers))
        self.register_buffer("measured", torch.tensor(0))

    base: nn.Module

    @torch.no_grad()
    def measure(self, seen: Tensor) -> None:
        """Let the spread of what the layer takes follow what is seen, at first."""
        if self.measured >= MEASURED or len(seen) < 2:
            return
        self.measured += 1
        found = seen.std(0)
        typical = float(found.square().mean().sqrt()) or 1.0
        self.spread.lerp_(found.clamp(min=1e-2 * typical), 1 / float(self.measured))

    def embedded(self, seen: Tensor) -> Tensor:
        """Return (n, features) embeddings of what the layer takes, (n, numbers)."""
        return F.linear(seen / self.spread, self.map)

    def empty(self, problem: Problem) -> Scoped:
        """Return the network without any edits."""
        answers = problem.answers[:0]
        none = self.map.detach().new_zeros(0, len(self.map))
        projection = self.map / self.spread
        return Scoped(copied(problem.model), self.layer, projection, self.sharpness.exp(), none, answers)


register("serac", SERAC)
