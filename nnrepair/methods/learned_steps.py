"""Fine-tuning with learned step sizes: how far each layer moves is trained so that edits take and the rest stays.

After Li et al., "Meta-SGD" (2017), and the inner step of Sinitsin et al., "Editable neural networks" (ICLR 2020). Both
train the network too, so that it is easy to edit; here it stays as it is, and nothing but one step size for each of its
parameter tensors is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnrepair.jacobian.layers import tunable
from nnrepair.jacobian.tangents import gradients
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.methods.trainable import Trainable
from nnrepair.spec.edits import Edits, EditScope
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import call, call_with
from nnrepair.training import Descent


@dataclass(frozen=True)
class LearnedSteps(Trainable):
    """Plain gradient descent on the edits, with a step size for each parameter tensor that is learned first.

    Example:
        >>> LearnedSteps(layers="fc2").capabilities.extra_training
        True

    Args:
        layers: names of layers or parameters, or "all" for every trainable floating-point parameter.
        steps: of a repair, at most; none are taken once all edits hold.
        unrolled: of an exercise, at most; training differentiates through all of them.
        start: every step size, before training.
        lr: Adam's, on the logarithms of the step sizes.
        locality_weight: what one nat of divergence on the locality set costs, in units of the edits' loss.
        margin: by how much every edit must hold, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, or unknown layers.
    """

    layers: str | Sequence[str] = field(default="all", metadata={"flag": "layer"})
    steps: int = 100
    unrolled: int = 4
    start: float = 1e-2
    lr: float = 0.05
    locality_weight: float = 10.0
    margin: float = 0.0

    capabilities: ClassVar[Capabilities] = Capabilities("meta-learning", True, "same", True, True, True)

    def __post_init__(self) -> None:
        options.whole(self, "unrolled")
        options.number(self, "start", "lr", "locality_weight")
        tuned = FineTune(layers=self.layers, steps=self.steps, lr=self.start, optimizer="sgd", margin=self.margin)
        object.__setattr__(self, "layers", tuned.layers)

    def begin(self, model: nn.Module, generator: torch.Generator) -> Rates:
        """Return one step size for each chosen parameter."""
        return Rates(tunable(model, self.layers), self.start)

    def descent(self, learned: nn.Module, steps: int) -> Descent:
        return Descent(torch.optim.Adam(learned.parameters(), lr=self.lr), clip=10.0)

    def loss(self, learned: nn.Module, problem: Problem) -> Tensor:
        """Return the loss of the edits after some steps, of their scope, and the divergence on the locality set."""
        assert isinstance(learned, Rates)
        weights = self._stepped(learned, problem)
        points: list[Edits | EditScope] = [problem.edits, *([] if problem.scope is None else [problem.scope])]
        total = torch.stack(
            [part.criterion.loss(call_with(problem.model, weights, part.inputs).double()).mean() for part in points]
        ).sum()
        if problem.locality is not None:
            with torch.no_grad():
                before = call(problem.model, problem.locality.inputs).double()
            after = call_with(problem.model, weights, problem.locality.inputs).double()
            total = total + self.locality_weight * problem.kind.divergence(before, after).mean()
        return total

    def _stepped(self, rates: Rates, problem: Problem) -> dict[str, Tensor]:
        """Return the weights after the steps of an exercise, as functions of the step sizes."""
        known = dict(problem.model.named_parameters(remove_duplicate=False))
        weights = {name: known[name].detach().requires_grad_(True) for name in rates.names}
        for _ in range(self.unrolled):
            y = call_with(problem.model, weights, problem.edits.inputs).double()
            if bool(problem.edits.criterion.holds(y.detach()).all()):
                break
            loss = problem.edits.criterion.loss(y, self.margin).mean()
            found = gradients(loss, list(weights.values()), create_graph=True)
            weights = {
                name: weight if gradient is None else weight - rate.to(weight) * gradient
                for (name, weight), gradient, rate in zip(weights.items(), found, rates(), strict=True)
            }
        return weights

    def edit(self, learned: nn.Module, problem: Problem) -> Proposal:
        """Propose what gradient descent with the learned step sizes makes of the network."""
        assert isinstance(learned, Rates)
        rates = dict(zip(learned.names, learned().tolist(), strict=True))
        tuning = FineTune(layers=self.layers, steps=self.steps, lr=rates, optimizer="sgd", margin=self.margin)
        proposal = tuning.repair(problem)
        proposal.stats["step sizes"] = rates
        proposal.advice = "more steps, a longer training, other layers, or another method"
        return proposal


class Rates(nn.Module):
    """A step size for each name; called, it returns them (names,)."""

    def __init__(self, names: list[str], start: float) -> None:
        super().__init__()
        self.names = names
        self.log = nn.Parameter(torch.full((len(names),), math.log(start), dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.log.exp()


register("learned-steps", LearnedSteps)
