"""What rounds in which rows join need, whatever solves the program of the rows in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnrepair.solver.conditions import Conditions, Separate
from nnrepair.solver.norms import Array


@dataclass(frozen=True)
class Rounds:
    """Rounds of one solution.

    Attributes:
        separate: finds further rows.
        gap: the relative distance from the minimum at which to stop.
        scale: by what prices of further rows are divided.
        stats: counts.
        report: called with a line of progress; what it raises ends the work.
    """

    separate: Separate
    gap: float
    scale: float
    stats: dict[str, Any]
    report: Callable[[str], None]

    def further(self, d: Array, using: Conditions) -> Conditions | None:
        """Return rows that d misses, with their prices, or None."""
        more = self.separate(d, using)
        return None if more is None else more.priced(self.scale)


def worst(more: Conditions, d: Array, most: int) -> Conditions:
    """Return the rows that d misses by most: what the others ask for is often settled with them."""
    if more.m <= most:
        return more
    return more.take(np.sort(np.argsort(more.rows.matvec(d) - more.need)[:most]))
