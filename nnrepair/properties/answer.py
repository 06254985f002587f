"""An answer to a property repair, and which of several is the best: kept states are weighed against the change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.rounding import percent
from nnrepair.verify.result import CheckResult

#: With layer="auto", the last layer is good enough when it keeps this share of the locality set.
ENOUGH = 0.998
#: A change more than this many times as large as the layer itself is not called small: something else is tried first.
LARGE = 3.0
#: A change as large as the layer itself counts as much as losing this share of the locality set.
WORTH = 1e-3


@dataclass
class Answer:
    """A network, what was proved of it, what share of the locality set it keeps, and the size of the change.

    `size` is how many times as large as the layer itself the change is, see `times_as_large`.
    """

    model: nn.Module
    proofs: dict[str, CheckResult]
    proved: bool
    kept: float
    notes: list[str]
    stats: dict[str, Any]
    conflict: list[str] | None = None
    size: float = 0.0

    @property
    def cost(self) -> float:
        """The share of the locality set that is lost, plus what the size of the change counts."""
        return 1 - self.kept + WORTH * self.size

    @property
    def good(self) -> bool:
        """Whether nothing else needs to be tried."""
        return self.proved and self.kept >= ENOUGH and self.size <= LARGE


def best(answers: Sequence[Answer]) -> Answer:
    """Return the answer with the lowest cost among the proved ones, if there are any."""
    return min(answers, key=lambda answer: (not answer.proved, answer.cost))


def times_as_large(before: nn.Module, after: nn.Module) -> float:
    """Return the change as a multiple of the layer it is made in, in l1 or in the largest entry; the largest of all.

    A layer of zeros counts as one with entries of the network's mean size.
    """
    changes, own = dict[str, list[Tensor]](), dict[str, list[Tensor]]()
    others = dict(after.named_parameters())
    for name, old in before.named_parameters():
        layer = name.rpartition(".")[0]
        own.setdefault(layer, []).append(old.detach().double().abs().flatten())
        changes.setdefault(layer, []).append((others[name].detach() - old.detach()).double().abs().flatten())
    mean = float(torch.cat([part for parts in own.values() for part in parts]).mean()) or 1.0
    found = [0.0]
    for layer, parts in own.items():
        weights, change = torch.cat(parts), torch.cat(changes[layer])
        weights = weights if bool(weights.any()) else torch.full_like(weights, mean)
        found += [float(change.sum() / weights.sum()), float(change.max() / weights.max())]
    return max(found)


def weighed(tried: Sequence[Answer]) -> Answer:
    """Return the best answer, with notes on what it was weighed against and on a large change."""
    chosen = best(tried)
    proved = [answer for answer in tried if answer.proved]
    if len(proved) > 1:
        listed = "; ".join(f"{percent(answer.kept, 4)} kept, {answer.size:.3g} times" for answer in proved)
        chosen.notes.append(f"weighed (locality set kept, change as a multiple of the layer's own weights): {listed}.")
    if chosen.proved and chosen.size > LARGE:
        chosen.notes.append(
            f"LARGE CHANGE: {chosen.size:.3g} times the layer's own weights. Look at points outside the locality set "
            'before use; try a smaller margin, fewer points to keep, or layer="all" with more of them.'
        )
    return chosen
