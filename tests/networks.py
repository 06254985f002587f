"""Tiny networks and repair tasks that many tests share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M")


def seeded(make: Callable[[], M], seed: int = 0) -> M:
    """Make something with its own random state."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def randn(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mlp(*sizes: int, seed: int = 0, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    def make() -> nn.Sequential:
        parts: list[nn.Module] = []
        for a, b in pairwise(sizes):
            parts += [nn.Linear(a, b), activation()]
        return nn.Sequential(*parts[:-1])

    return seeded(make, seed)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mid, self.out = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inp(x))
        return self.out(h + torch.tanh(self.mid(h)))


class Tied(nn.Module):
    """Two layers that own one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


def mistakes(model: nn.Module, x: Tensor) -> Tensor:
    """Return labels that the model gets wrong on every point: its second choice."""
    with torch.no_grad():
        return model(x).topk(2, dim=1).indices[:, 1]


def clusters(points: int, size: int, seed: int = 0, centers: int = 5) -> Tensor:
    """Return points in a few tight groups, which a small layer can keep while it changes elsewhere."""
    middle = 1.5 * randn(centers, size, seed=seed)
    return middle[torch.arange(points) % centers] + 0.02 * randn(points, size, seed=seed + 1)
