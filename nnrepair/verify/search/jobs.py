"""What a search is given and what it returns: jobs, options, and how it ended.

A job is a box and one conjunction of halfspaces in which no output may lie: `rows . y <= offset` for every row.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.errors import InvalidInput
from nnrepair.rounding import counted
from nnrepair.verify.property import Halfspace, Property

#: Tells whether one of the points (n, inputs), each with its job, is a counterexample that counts.
Confirm = Callable[[Tensor, Tensor], bool]
#: So many points are replayed at once, the deepest.
REPLAYED = 16
#: A property may have so many numbers, in all its rows and boxes; and all open parts of a search together.
MOST_NUMBERS, MOST_OPEN = 200_000_000, 64_000_000
#: Numbers that are written between two looks at the clock.
PIECE_NUMBERS = 5_000_000
#: A part that cannot be split further leaves nothing to be proved. The search for a counterexample goes on for so many
#: boxes, and a few for each job.
AFTER_STUCK, FOR_EACH = 20_000, 4
#: Without a time limit so many boxes are spent where only unsafe sets without interior are left.
FLAT_BOXES = 300_000


@dataclass(frozen=True)
class Options:
    """How to search; the defaults are what measurements on ACAS Xu networks chose.

    Attributes:
        split: what to split; "auto" is inputs where there are few of them, else ReLUs.
        batch: boxes bounded at once; None is 256 on a CPU (its cache) and 16 384 on a GPU.
        steps: improvement steps for the slopes of an open box; 0 for none.
        clip, attribute: False for plain search: no clipping, longest edge (what benchmarks compare with).
        most: give up, with verdict "unknown", once so many boxes were bounded; None for no limit.
    """

    split: Literal["auto", "inputs", "relus"] = "auto"
    batch: int | None = None
    steps: int = 4
    clip: bool = True
    attribute: bool = True
    most: int | None = None


@dataclass
class Columns:
    """Values for n parts side by side, as a subclass names them; fields that have no index are common to all parts."""

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(*(_chosen(value, index) for value in vars(self).values()))

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the parts of several, one after the other; tensors only."""
        return cls(*(torch.cat(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))


def _chosen(value: Any, index: Tensor | slice) -> Any:
    if isinstance(value, list):
        return [_chosen(each, index) for each in value]
    return value[index] if hasattr(value, "__getitem__") else value


@dataclass
class Jobs(Columns):
    """What is to be proved, T jobs of at most m rows; shorter conjunctions are padded, see `real`.

    Attributes:
        lower, upper: (T, inputs).
        rows, offset: (T, m, outputs) and (T, m).
        real: (T, m) bool, False for what fills up.
        flat: (T,) bool, whether the unsafe set is known to have no interior; None if none of them is.
    """

    lower: Tensor
    upper: Tensor
    rows: Tensor
    offset: Tensor
    real: Tensor
    flat: Tensor | None = None

    @classmethod
    def of(cls, property: Property, device: torch.device | None = None, deadline: Deadline = NEVER) -> Jobs:
        """Return a property in float64, every box and every unsafe set rounded outward; one job for each way to fail.

        Jobs come in the order of the property's cases and of their unsafe sets.

        Raises:
            InvalidInput: that is more than fits in memory. OutOfTime: the deadline passed.
        """
        count = sum(len(case.unsafe) for case in property.cases)
        most = max(1, max((len(conjunction) for case in property.cases for conjunction in case.unsafe), default=1))
        numbers = count * most * property.outputs + (2 * count * property.inputs if len(property.cases) > 1 else 0)
        if numbers > MOST_NUMBERS:
            raise InvalidInput(
                f"The property has {count} ways to be unsafe, of up to {most} conditions on {property.outputs} outputs "
                f"each: {numbers} numbers, expected at most {MOST_NUMBERS}. Check its parts one by one."
            )
        distinct: dict[int, tuple[int, Halfspace]] = {}  # by id: ways to fail share their rows
        ends, box, sizes, places = list[Any](), list[int](), list[int](), list[int]()
        for k, case in enumerate(property.cases):
            ends.append(case.box.outer)
            for conjunction in case.unsafe:
                deadline.check()
                box.append(k)
                sizes.append(len(conjunction))
                places += [distinct.setdefault(id(row), (len(distinct), row))[0] for row in conjunction]
        coefficients, bounds = _table([row for _, row in distinct.values()], property.outputs, deadline)
        low, high = torch.from_numpy(np.array(ends)).unbind(1)
        low, high = (end.expand(count, -1) if len(end) == 1 else end[box] for end in (low, high))
        real = torch.arange(most) < torch.tensor(sizes)[:, None]
        rows = torch.from_numpy(np.zeros((count, most, property.outputs)))  # writes nothing yet, unlike torch's
        offset = torch.zeros(count, most, dtype=torch.float64)
        together = max(1, PIECE_NUMBERS // (most * property.outputs))
        filled = torch.split(torch.tensor(places, dtype=torch.long), _sums(sizes, together))
        for k, here in enumerate(filled):
            deadline.check()
            some = slice(k * together, (k + 1) * together)
            rows[some][real[some]], offset[some][real[some]] = coefficients[here], bounds[here]
        return cls(*(part.to(device or "cpu") for part in (low, high, rows, offset, real)))

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Return the first job of each run of jobs that have the same box, and which run each job belongs to."""
        new = torch.ones(len(self), dtype=torch.bool, device=self.lower.device)
        if self.lower.stride(0):
            new[1:] = ((self.lower[1:] != self.lower[:-1]) | (self.upper[1:] != self.upper[:-1])).any(1)
        else:
            new[1:] = False
        return new.nonzero()[:, 0], new.cumsum(0) - 1

    def depth(self, y: Tensor, job: Tensor) -> Tensor:
        """Return how deep outputs (n, outputs) lie in their job's unsafe set; positive is inside."""
        return self.depth_and_row(y, job)[0]

    def depth_and_row(self, y: Tensor, job: Tensor) -> tuple[Tensor, Tensor]:
        """Return also which row says so, (n,)."""
        value = torch.bmm(self.rows[job], y[:, :, None])[:, :, 0] - self.offset[job]
        most, row = value.masked_fill(~self.real[job], -torch.inf).max(1)
        return -most, row

    def best(self, value: Tensor, job: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest of the rows' bounds (n, m), and whose it is; what is not finite is no bound."""
        value = torch.where(self.real[job], value, -torch.inf).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        best, row = value.max(1)
        return best, row


def _sums(sizes: Sequence[int], together: int) -> list[int]:
    """Return the sums of so many sizes each, one after the other."""
    return [sum(sizes[k : k + together]) for k in range(0, len(sizes), together)]


def _table(rows: Sequence[Halfspace], outputs: int, deadline: Deadline) -> tuple[Tensor, Tensor]:
    """Return the coefficients (rows, outputs) and bounds (rows,) of halfspaces."""
    coefficients, bounds = np.zeros((len(rows), outputs)), np.zeros(len(rows))
    for k, row in enumerate(rows):
        deadline.check()
        scale = _scale(row.coefficients)  # so that nothing underflows that matters
        coefficients[k], bounds[k] = [float(c * scale) for c in row.coefficients], _up(row.bound * scale)
    return torch.from_numpy(coefficients), torch.from_numpy(bounds)


@dataclass
class Found:
    """How a search ended.

    Attributes:
        closed: every box of every job was closed. violated: a counterexample was confirmed.
        boxes: how many were bounded. share: how much of the volume is closed, 0 to 1.
        worst: the lowest bound among open boxes, None when there are none.
        stuck: parts that could not be split further.
        tree: dim (n,) and cut (inner nodes,) in preorder, all jobs in order; None unless closed.
        limit: what ended it, where that was no verdict and not the deadline.
    """

    closed: bool
    violated: bool
    boxes: int
    share: float
    worst: float | None
    stuck: int
    tree: tuple[NDArray[np.int16], NDArray[np.float64]] | None
    limit: str = ""

    def limits(self, deadline: Deadline, timeout: float | None) -> list[str]:
        """Return what ended the search, where that was no verdict: at most one limit."""
        if deadline.passed:
            where = f" while {deadline.doing}" if not self.boxes else ""
            return [f"the time limit of {timeout:g} s was reached{where}"]
        return [self.limit] if self.limit else []


#: The end of a search that had no time to bound anything.
NOTHING = Found(False, False, 0, 0.0, -math.inf, 0, None)


class Part(Columns):
    """Parts of jobs; among the columns are the job, its share of the volume, and the bound that is known of it."""

    job: Tensor
    share: Tensor
    bound: Tensor


P = TypeVar("P", bound=Part)


class Open(Generic[P]):
    """The parts that are open, the newest on top, and those that cannot be split further, of which only sums are kept.

    Args:
        batch: how many to take at a time.
        jobs: what they are parts of.
        most: end after so many boxes; None for no limit.
        deadline: of the search.
    """

    def __init__(self, batch: int, jobs: Jobs, most: int | None, deadline: Deadline) -> None:
        self.batch, self.jobs, self.most, self.deadline = batch, jobs, most, deadline
        self.parts, self.numbers = list[P](), 0
        self.stuck, self.stuck_share, self.stuck_bound = 0, 0.0, math.inf
        self.end = math.inf

    def push(self, parts: P) -> None:
        if len(parts):
            self.parts.append(parts)
            self.numbers += _numbers(parts)

    def pop(self) -> P:
        """Take the newest parts, a batch at most; few where they take much memory, as that leaves fewer siblings."""
        taken: list[P] = []
        room = self.batch if self.numbers < MOST_OPEN // 2 else 1
        while self.parts and room:
            part = self.parts.pop()
            self.numbers -= _numbers(part)
            if len(part) > room:
                self.push(part[: len(part) - room])
                part = part[len(part) - room :]
            taken.append(part)
            room -= len(part)
        return taken[0].joined(taken)

    def lose(self, parts: P, boxes: int) -> None:
        """Count parts that cannot be split, the first of them after so many boxes."""
        self.end = min(self.end, boxes + AFTER_STUCK + FOR_EACH * len(self.jobs))
        self.stuck += len(parts)
        self.stuck_share += float(parts.share.sum())
        self.stuck_bound = min(self.stuck_bound, float(parts.bound.min()))

    def closed_share(self) -> float:
        """Return how much of the volume is neither open nor stuck."""
        return 1 - sum(float(part.share.sum()) for part in self.parts) - self.stuck_share

    def limit(self, boxes: int) -> str:
        """Return why a search should end after so many boxes; or nothing."""
        if self.most is not None and boxes >= self.most:
            return f"the limit of {counted(self.most, 'box', 'boxes')} was reached"
        flat = self.jobs.flat if math.isinf(self.deadline.end) and boxes >= FLAT_BOXES else None
        if flat is not None and all(bool(flat[part.job].all()) for part in self.parts):
            return f"after {boxes} boxes only unsafe sets without interior are left"
        if self.numbers > MOST_OPEN:
            return f"more parts are open than fit in memory ({MOST_OPEN} numbers)"
        return "after a part that cannot be split nothing can be proved" if boxes >= self.end else ""

    def found(self, boxes: int, limit: str = "") -> Found:
        """Return how a search ended that found neither a proof nor a counterexample."""
        bounds = [self.stuck_bound, *(float(part.bound.min()) for part in self.parts)]
        worst = min(bounds) if self.parts or self.stuck else None
        return Found(False, False, boxes, self.closed_share(), worst, self.stuck, None, limit)


def _numbers(parts: Columns) -> int:
    """Return how many numbers parts keep; what they have in common counts once."""
    return sum(value.numel() if value.stride(0) else value[0].numel() for value in vars(parts).values())


def _scale(coefficients: Sequence[Fraction]) -> Fraction:
    """Return the power of two that brings the largest coefficient to between 1/2 and 2."""
    largest = max(map(abs, coefficients), default=Fraction(0))
    bits = largest.numerator.bit_length() - largest.denominator.bit_length() if largest else 0
    return Fraction(1, 2**bits) if bits >= 0 else Fraction(2**-bits)


def _up(value: Fraction) -> float:
    """Return a float that is not below a fraction."""
    try:
        near = float(value)
    except OverflowError:
        return math.inf if value > 0 else -sys.float_info.max
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)


def any_confirmed(confirm: Confirm, x: Tensor, job: Tensor, depth: Tensor, least: float = 0.0) -> bool:
    """Ask `confirm` about the deepest of the points x that seem to be counterexamples, `least` deep in unsafe sets."""
    inside = (depth >= least).nonzero()[:, 0]
    deepest = inside[depth[inside].argsort(descending=True)][:REPLAYED]
    return bool(len(deepest)) and confirm(x[deepest], job[deepest])
