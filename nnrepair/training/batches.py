"""Batches of points in random order, with a position that can be stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Batches:
    """The numbers 0..count-1 in batches, pass after pass, each pass in a new random order.

    >>> batches = Batches(5, 2, torch.Generator().manual_seed(0))
    >>> sorted(torch.cat([batches.next() for _ in range(batches.a_pass)]).tolist())
    [0, 1, 2, 3, 4]

    Args:
        count: how many points there are.
        size: of a batch; the last one of a pass may be smaller.
        generator: draws the order of each pass when it begins.
    """

    def __init__(self, count: int, size: int, generator: torch.Generator) -> None:
        self.count, self.size, self.generator = count, size, generator
        self._order, self._taken = torch.arange(0), count

    @property
    def a_pass(self) -> int:
        """How many batches make a pass."""
        return -(-self.count // self.size)

    def next(self) -> Tensor:
        """Return (size,) the next batch."""
        if self._taken >= self.count:
            self._order, self._taken = torch.randperm(self.count, generator=self.generator), 0
        batch = self._order[self._taken : self._taken + self.size]
        self._taken += self.size
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"order": self._order, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; the generator's state is stored beside it."""
        self._order, self._taken = state["order"], state["taken"]
