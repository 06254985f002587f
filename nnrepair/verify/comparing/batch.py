"""A batch of boxes, and what linear bounds say of rows over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.verify.comparing.lines import Lines
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.boxes import HOPELESS
from nnrepair.verify.search.relaxation import Relaxation

Coefficients = list[Tensor | None]
Index = NDArray[np.int64]
#: What a split leaves of the loss of a bound, measured on ACAS Xu networks; and less than so much counts as so much.
WON, LEAST = 0.6, 2e-3


@dataclass
class Splits:
    """What to do with boxes that stay open.

    Attributes:
        next: (boxes, 2), the input to split, and the one to split in the halves at once, whose bounds would say nothing
            as the bound lacks more than a split wins back; -1 where the halves may be bounded.
        effort: (boxes,), about so many splits, one after the other, until the bound is positive.
    """

    next: Index
    effort: NDArray[np.float64]

    def put(self, box: Index | NDArray[np.bool_], other: Splits) -> None:
        """Replace what is known of some boxes."""
        self.next[box], self.effort[box] = other.next, other.effort


@dataclass
class Batch:
    """Boxes (n, inputs) with bounds of all units.

    Attributes:
        bounder: of the network without units that are zero in all boxes, and `places`, which units are left; None: all.
        relaxation: of the boxes.
        free: (inputs,), which inputs vary in the region.
    """

    bounder: Bounder
    places: Tensor | None
    relaxation: Relaxation
    lower: Tensor
    upper: Tensor
    free: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lower)

    @property
    def width(self) -> Tensor:
        """Of the boxes, (n, inputs)."""
        return self.upper - self.lower

    @property
    def longest(self) -> Splits:
        """What to split of boxes of which nothing better is known."""
        return Splits(np.stack([self.width.argmax(1).numpy(), np.full(len(self), -1)], 1), np.ones(len(self)))

    def lines(self, A: Tensor, offset: Tensor, box: Tensor) -> tuple[Lines, Coefficients]:
        """Return lower bounds of rows A (rows, outputs) with offsets over each of some boxes.

        Returns:
            The bounds, and the coefficients on what comes out of each activation node, box by box, row by row.
        """
        which, found = box.repeat_interleave(len(A)), Coefficients()
        bound = self.bounder.backward(
            self.relaxation, len(self.bounder.graph.nodes) - 1, A.repeat(len(box), 1), which, coefficients=found
        )
        bound.c = bound.c + offset.repeat(len(box))
        return Lines.of(bound, self.lower[which], self.upper[which], len(box), self.free), found

    def splits(self, box: Tensor, coefficients: Coefficients, least: NDArray[np.float64], steep: Tensor) -> Splits:
        """Return what to split, of some boxes, so that one row of each is bounded better.

        Args:
            box: which boxes.
            coefficients: of the rows.
            least: (boxes,), the rows' bounds, which are to become positive.
            steep: (boxes, inputs), what else speaks for a split.
        """
        score, width = self.bounder.attribution(self.relaxation[box], coefficients, self.width[box]), self.width[box]
        loss, bound = score.sum(1), torch.from_numpy(least)
        effort = ((bound + loss) / loss.clamp(min=1e-300)).clamp(min=LEAST).log() / math.log(WON)
        score = score + steep
        longest = width / width.amax(1, keepdim=True).clamp(min=1e-300)
        score = torch.where(score.amax(1, keepdim=True) > 0, score, longest)
        score[:, torch.from_numpy(~self.free)] = -1.0
        dim, each = score.argmax(1), torch.arange(len(box))
        hopeless = bound + HOPELESS * score.sum(1) < 0
        score[each, dim] /= 2
        next_ = torch.stack([dim, torch.where(hopeless, score.argmax(1), -1)], 1)
        return Splits(next_.numpy(), torch.where(bound < 0, effort, 1.0).clamp(0.0).numpy())
