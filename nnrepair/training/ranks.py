"""Processes that train together, where whoever started them has set up torch.distributed (torchrun, a cluster).

Every one of them makes the same calls. Each takes its share of a step's points or exercises; gradients are averaged, so
that all of them take the same step, which is that of all points together up to rounding. The first one alone writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from nnrepair.errors import InvalidInput


def count() -> int:
    """Return how many processes train together; 1 where there is only this one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def share(index: Tensor) -> Tensor:
    """Return those of some points (k,) that are this process's."""
    return index[rank() :: count()]


@torch.no_grad()
def average(gradients: Sequence[Tensor]) -> None:
    """Put the mean over all processes in the place of each tensor."""
    if count() > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= count()


def most(value: int) -> int:
    """Return the largest value that any process has."""
    if count() == 1:
        return value
    largest = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def require_same(value: int, what: str) -> None:
    """Refuse what is not the same in all processes.

    Raises:
        InvalidInput: in every process.
    """
    if most(value) != -most(-value):
        raise InvalidInput(f"{what} is not the same in all {count()} processes (here {value}).")
