"""Short sequences of edits, and a method that says what it is told."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from networks import clusters, mlp, randn
from torch import nn

from nnrepair import Edits, LocalitySet
from nnrepair.methods import Capabilities, MinimalNorm, Proposal
from nnrepair.spec.problem import Problem

LAST = MinimalNorm("2", norm="l2")


def net() -> nn.Sequential:
    return mlp(6, 16, 3, seed=3)


def task(edits: int = 5) -> tuple[nn.Sequential, Edits, LocalitySet]:
    model, x = net(), randn(edits, 6, seed=8)
    kept = clusters(40, 6, seed=4)
    wrong = (model(x).argmax(1) + 1 + torch.arange(edits) % 2) % 3
    return model, Edits(x, wrong), LocalitySet(kept, model(kept).argmax(1))


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Says:
    """A method that declares what it is told, and repairs like another."""

    batch: bool = True
    successive: bool = True

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("test", False, "same", True, self.batch, self.successive)

    def repair(self, problem: Problem) -> Proposal:
        return LAST.repair(problem)
