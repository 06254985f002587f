"""What happened, in one word and in advice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["repaired", "nothing to do", "partly repaired", "infeasible"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a repair.

    Attributes:
        status: "repaired" (every edit holds), "nothing to do" (every edit held before; zero change), "partly
            repaired" (some edits fail), "infeasible" (no change of the chosen parameters can satisfy all edits).
        message: one sentence of advice.
        failing: indices of the edits that do not hold.
        conflict: when infeasible, a small set of edits that cannot hold together.
        layers: when infeasible, layers that could satisfy all edits.
    """

    status: Status
    message: str
    failing: list[int] = field(default_factory=list)
    conflict: list[int] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every edit holds."""
        return self.status in ("repaired", "nothing to do")

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"
