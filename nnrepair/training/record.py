"""How a training went, and the step sizes that most trainings here take."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """How a training went; a part of its checkpoint.

    Attributes:
        losses: the mean loss of each part of the training.
        cpu_seconds: of all steps, with those before an interruption.
    """

    losses: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    _sum: float = 0.0
    _count: int = 0
    _lap: float | None = None

    def add(self, loss: float, part: int) -> None:
        """Note the loss of a step; `part` steps make a point of the curve."""
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count == part:
            self.losses.append(round(self._sum / part, 5))
            self._sum, self._count = 0.0, 0

    def lap(self) -> None:
        """Count the CPU time since the last call, if there was one in this process."""
        now = time.process_time()
        self.cpu_seconds, self._lap = self.cpu_seconds + now - (now if self._lap is None else self._lap), now

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {name: value for name, value in vars(self).items() if name != "_lap"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over."""
        vars(self).update(state)


def warmed_cosine(step: int, steps: int) -> float:
    """Return the share of the step size: 3 % of the steps to warm up, then a cosine to zero.

    >>> warmed_cosine(0, 100), warmed_cosine(100, 100)
    (0.3333333333333333, 0.0)
    """
    warm = max(1, round(0.03 * steps))
    return min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
