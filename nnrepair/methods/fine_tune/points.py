"""The points of one step of fine-tuning: edits, rehearsed points, and those that penalties watch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnrepair.spec.criterion import flat
from nnrepair.spec.inputs import AnyInputs, appended, independent
from nnrepair.spec.kinds import Regression
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import call
from nnrepair.training import ranks

#: Numbers that a step looks at for penalties, where outputs are plain numbers: an image tells as much as many of them.
WATCHED = 2**14


@dataclass(frozen=True)
class Drawn:
    """Outputs at one step's points, and which those are.

    Of several processes each has its share of the points. What a loss here is times `share` has as its mean over all
    processes the mean over all points; `counts` is 0 for an edit that another process has too.
    """

    edits: Tensor
    index: Tensor
    rehearsed: Tensor | None
    rehearsal: Tensor
    watched: Tensor | None
    watch: Tensor
    counts: float
    share: float
    watched_share: float


class Points:
    """The points of a step: edits, rehearsed points and those that penalties watch, in one forward pass if possible."""

    def __init__(
        self, problem: Problem, batch_size: int, rehearsal: int, generator: torch.Generator, watch: bool
    ) -> None:
        self.batch_size, self.rehearsal, self.generator, self.watch = batch_size, rehearsal, generator, watch
        self.edits = problem.edits.inputs
        self.locality, self.rehearsed = None, torch.arange(0)
        if problem.locality is not None:
            self.locality = problem.locality.inputs
            self.rehearsed = torch.nonzero(problem.locality.holds).flatten().cpu()
        points = [self.edits, *([] if self.locality is None else [self.locality])]
        #: Points that penalties watch in a step, at most.
        self.most = batch_size
        if isinstance(problem.kind, Regression):
            self.most = min(self.most, max(1, WATCHED // max(1, flat(problem.answers).shape[1])))
        #: Whether processes share the points of a step; not where these influence each other.
        self.shared = ranks.count() > 1 and all(map(independent, points))
        #: Whether every step sees all edits.
        self.whole = len(self.edits) <= batch_size or not independent(self.edits)

    def run(self, network: nn.Module) -> Drawn:
        """Draw a step's points and return the outputs there."""
        index = torch.arange(len(self.edits)) if self.whole else self._some(torch.arange(len(self.edits)))
        edits = self.edits if self.whole else self.edits[index]
        rehearsal = watch = torch.arange(0)
        if self.rehearsal:
            rehearsal = self._some(self.rehearsed, self.rehearsal)
        if self.watch:
            assert self.locality is not None
            watch = torch.arange(len(self.locality))
            watch = self._some(watch, self.most) if independent(self.locality) else watch
        points, watched_points, several, mine = len(index) + len(rehearsal), len(watch), 1, index
        if self.shared:
            several, mine = ranks.count(), ranks.share(index)
            index = mine if len(mine) else index[:1]
            edits, rehearsal, watch = self.edits[index], ranks.share(rehearsal), ranks.share(watch)
        shares = float(len(mine) > 0), several / points, several * len(watch) / max(1, watched_points)
        both = torch.cat([rehearsal, watch])
        if len(both) == 0:
            return Drawn(call(network, edits), index, None, rehearsal, None, watch, *shares)
        assert self.locality is not None
        if independent(self.locality):
            y, others = _call_both(network, edits, self.locality[both])
        else:  # all points together, then those that were drawn
            y, others = _call_both(network, edits, self.locality)
            others = others[both]
        rehearsed, watched = others[: len(rehearsal)], others[len(rehearsal) :]
        some = rehearsed if len(rehearsed) else None
        return Drawn(y, index, some, rehearsal, watched if len(watch) else None, watch, *shares)

    def _some(self, index: Tensor, count: int | None = None) -> Tensor:
        """Return some of the indices at random, by default as many as fit a batch; all in order where they fit."""
        count = self.batch_size if count is None else count
        return index if len(index) <= count else index[torch.randperm(len(index), generator=self.generator)[:count]]


def _call_both(network: nn.Module, a: AnyInputs, b: AnyInputs) -> tuple[Tensor, Tensor]:
    """Return the outputs of both, from one forward pass where they can be joined."""
    joined = appended(a, b)
    if joined is None:
        return call(network, a), call(network, b)
    y = call(network, joined)
    return y[: len(a)], y[len(a) :]
