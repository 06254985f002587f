"""What a search is given and what it returns: jobs, options, and how it ended.

A job is a box and one conjunction of halfspaces in which no output may lie: `rows . y <= offset` for every row.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.verify.property import Property

#: Tells whether one of the points (n, inputs), each with its job, is a counterexample that counts.
Confirm = Callable[[Tensor, Tensor], bool]
#: So many points are replayed at once, the deepest.
REPLAYED = 16


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
class Jobs:
    """What is to be proved, T jobs of at most m rows; shorter conjunctions are filled up with rows that say nothing.

    Attributes:
        lower, upper: (T, inputs).
        rows, offset: (T, m, outputs) and (T, m).
        real: (T, m) bool, False for what fills up.
    """

    lower: Tensor
    upper: Tensor
    rows: Tensor
    offset: Tensor
    real: Tensor

    @classmethod
    def of(cls, property: Property, device: torch.device | None = None) -> Jobs:
        """Return a property in float64, every box and every unsafe set rounded outward; one job for each way to fail.

        Jobs come in the order of the property's cases and of their unsafe sets.
        """
        work = [(case, conjunction) for case in property.cases for conjunction in case.unsafe]
        most = max(1, max((len(conjunction) for _, conjunction in work), default=1))
        rows = torch.zeros(len(work), most, property.outputs, dtype=torch.float64)
        offset = torch.zeros(len(work), most, dtype=torch.float64)
        real = torch.zeros(len(work), most, dtype=torch.bool)
        for t, (_, conjunction) in enumerate(work):
            for r, row in enumerate(conjunction):
                scale = _scale(row.coefficients)  # so that nothing underflows that matters
                rows[t, r] = torch.tensor([float(c * scale) for c in row.coefficients], dtype=torch.float64)
                offset[t, r] = _up(row.bound * scale)
                real[t, r] = True
        ends = np.array([case.box.outer for case, _ in work]).reshape(len(work), 2, property.inputs)
        low, high = torch.from_numpy(ends).unbind(1)
        return cls(*(part.to(device or "cpu") for part in (low, high, rows, offset, real)))

    def depth(self, y: Tensor, job: Tensor) -> Tensor:
        """Return how deep outputs (n, outputs) lie in their job's unsafe set; positive is inside."""
        value = torch.einsum("nmo,no->nm", self.rows[job], y) - self.offset[job]
        return -value.masked_fill(~self.real[job], -torch.inf).amax(1)

    def best(self, value: Tensor, job: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest of the rows' bounds (n, m), and whose it is; what is not finite is no bound."""
        value = torch.where(self.real[job], value, -torch.inf).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        best, row = value.max(1)
        return best, row


@dataclass
class Found:
    """How a search ended.

    Attributes:
        closed: every box of every job was closed. violated: a counterexample was confirmed.
        boxes: how many were bounded. share: how much of the volume is closed, 0 to 1.
        worst: the lowest bound among open boxes, None when there are none.
        stuck: parts that could not be split further.
        tree: dim (n,) and cut (inner nodes,) in preorder, all jobs in order; None unless closed.
    """

    closed: bool
    violated: bool
    boxes: int
    share: float
    worst: float | None
    stuck: int
    tree: tuple[NDArray[np.int16], NDArray[np.float64]] | None


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


def any_confirmed(confirm: Confirm, x: Tensor, job: Tensor, depth: Tensor) -> bool:
    """Ask `confirm` about the deepest of the points x that seem to be counterexamples."""
    inside = (depth >= 0).nonzero()[:, 0]
    deepest = inside[depth[inside].argsort(descending=True)][:REPLAYED]
    return bool(len(deepest)) and confirm(x[deepest], job[deepest])
