"""Branch and bound, whatever is split: bound parts, close those that are proved, split the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, Generic

import numpy as np
from numpy.typing import NDArray

from nnrepair.deadline import Deadline, OutOfTime
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.jobs import NOTHING, Confirm, Found, Jobs, Open, P


class BranchAndBound(ABC, Generic[P]):
    """One search; `run` does it. A subclass says what a part is, how it is bounded and how it is split.

    Args:
        graph: the network.
        jobs: what to prove.
        confirm: called with points that seem to be counterexamples.
        most: give up once so many parts were bounded; None for no limit.
        deadline: when to end.
    """

    #: How many parts are bounded before the first attack, and how many random starts it has for each of them.
    first_attack: ClassVar[int]
    starts: ClassVar[int] = 1
    #: How many parts count as bounded before the loop begins.
    counted = 0

    def __init__(self, graph: Graph, jobs: Jobs, confirm: Confirm, most: int | None, deadline: Deadline) -> None:
        self.graph, self.jobs, self.confirm, self.most, self.deadline = graph, jobs, confirm, most, deadline

    def run(self, report: Callable[[float, int], None], attack: Callable[[int], bool] = lambda n: False) -> Found:
        """Search until all is closed, a counterexample is confirmed, nothing can be proved any more, or time is over.

        `attack(n)` looks for counterexamples from n random starts; it is called whenever the number of parts has
        doubled, so that it costs a fixed share of the search.
        """
        open_ = Open[P](self._batch(), self.jobs, self.most, self.deadline)
        boxes, next_attack, current = self.counted, self.first_attack, None
        try:
            for part in self._roots():
                open_.push(part)
            while open_.parts:
                share = open_.closed_share()
                report(share, boxes)
                self.deadline.check()
                if limit := open_.limit(boxes):
                    return open_.found(boxes, limit)
                current = open_.pop()
                boxes += len(current)
                violated = boxes >= next_attack and attack(self.starts * next_attack)
                next_attack = next_attack if boxes < next_attack else 2 * next_attack
                halves = None if violated else self._halves(current, open_.stuck)
                if halves is None:
                    return Found(False, True, boxes, share, None, open_.stuck, None)
                children, lost = halves
                if len(lost):
                    open_.lose(lost, boxes)
                open_.push(children)
                current = None
        except OutOfTime:
            if current is not None:
                open_.push(current)
            return open_.found(boxes) if open_.parts else NOTHING
        return open_.found(boxes) if open_.stuck else Found(True, False, boxes, 1.0, None, 0, self._tree())

    @abstractmethod
    def _batch(self) -> int:
        """Return how many parts to bound at once."""

    @abstractmethod
    def _roots(self) -> Iterable[P]:
        """Return what to begin with."""

    @abstractmethod
    def _halves(self, parts: P, stuck: int) -> tuple[P, P] | None:
        """Bound parts; return what those that stay open are split into, and those of them that cannot be split.

        None when a counterexample was confirmed.

        Args:
            parts: which.
            stuck: how many could not be split so far.
        """

    @abstractmethod
    def _tree(self) -> tuple[NDArray[np.int16], NDArray[np.float64]] | None:
        """Return how everything was split, see `Found.tree`; None where that is not known."""
