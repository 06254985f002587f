"""What an optimizer steps, and the weights that this makes: the weights themselves, or thin factors of their change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nnrepair.jacobian.fisher import at_least_float


class Whole:
    """The weights themselves; of half precision, float32 copies.

    Attributes:
        stepped: by the name of each weight, the tensors that an optimizer moves.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.stepped: dict[str, list[Tensor]] = {n: [at_least_float(w.detach())] for n, w in weights.items()}

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Give what is stepped its gradients, from those of the weights."""
        for name, gradient in gradients.items():
            self.stepped[name][0].grad = gradient

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that were made; what brings them into a bound, in place, is kept."""
        return {name: whole for name, (whole,) in self.stepped.items()}


class LowRank(Whole):
    """Two thin factors of each weight's change: up (out, rank) and down (rank, inp), up being zero at first.

    After Hu et al., "LoRA: low-rank adaptation of large language models" (ICLR 2022). What differs: the change is added
    to the weights when all is done, so that the network stays what it was; it is not scaled by another number; and
    convolutions have one, as matrices of (out, inp times window).

    Args:
        weights: each of at least two dimensions.
        rank: of the change of each, at most.
        generator: of the first values of the factors.
    """

    def __init__(self, weights: Mapping[str, Tensor], rank: int, generator: torch.Generator) -> None:
        self.old = {name: at_least_float(weight.detach()) for name, weight in weights.items()}
        self.stepped = {}
        for name, weight in self.old.items():
            out, inp = weight.flatten(1).shape
            drawn = torch.randn(min(rank, out, inp), inp, generator=generator, dtype=torch.float64) / inp**0.5
            self.stepped[name] = [weight.new_zeros(out, len(drawn)), drawn.to(weight)]

    @torch.no_grad()
    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Give the factors their gradients, from those of the weights."""
        for name, gradient in gradients.items():
            up, down = self.stepped[name]
            matrix = gradient.flatten(1)
            up.grad, down.grad = matrix @ down.T, up.T @ matrix

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Return the old weights with the products of the factors added."""
        made = {name: up @ down for name, (up, down) in self.stepped.items()}
        return {name: old + made[name].reshape(old.shape) for name, old in self.old.items()}
