"""What a student draws, as a picture like those of a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnrepair.errors import InvalidInput

#: A drawing has at most so many strokes, and so many points in all.
MOST_STROKES, MOST_POINTS = 60, 6000
#: Each pixel is the mean of so many points along each axis.
FINE = 8

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Paper:
    """How the digits of a data set lie in their pictures.

    Attributes:
        side: pixels along each axis of a picture.
        box: the pixels that the longer side of a digit takes.
        pen: half the width of a line, in pixels.
    """

    side: int
    box: float
    pen: float

    def draw(self, strokes: Any) -> Tensor:
        """Return a picture (1, 1, side, side) in [0, 1]: the drawing in the middle, as large as the data's digits.

        Args:
            strokes: lists of points (x, y) in the unit square, from its upper left corner.

        Raises:
            InvalidInput: nothing was drawn, or not by our page; the message is for the student.
        """
        lines = _read(strokes)
        low = np.min([line.min(0) for line in lines], 0)
        high = np.max([line.max(0) for line in lines], 0)
        scale = (self.box - 2 * self.pen) / max(float((high - low).max()), 0.05)  # a dot stays a dot
        middle = (low + high) / 2
        at = (np.arange(self.side * FINE) + 0.5) / FINE
        ink = np.zeros((len(at), len(at)), bool)
        for line in lines:
            placed = (line - middle) * scale + self.side / 2
            for start, end in zip(placed, placed[1:] if len(placed) > 1 else placed, strict=False):
                _add(ink, at, start, end, self.pen)
        shares = ink.reshape(self.side, FINE, self.side, FINE).mean((1, 3))
        return torch.from_numpy(shares).float()[None, None]


def _add(ink: npt.NDArray[np.bool_], at: Points, start: Points, end: Points, pen: float) -> None:
    """Mark what lies within `pen` of the line from start to end, looking at the part of the picture around it alone."""
    x, y = (
        slice(*np.searchsorted(at, (min(start[k], end[k]) - pen, max(start[k], end[k]) + pen)).tolist()) for k in (0, 1)
    )
    along = end - start
    dx, dy = at[x][None, :] - start[0], at[y][:, None] - start[1]
    share = np.clip((dx * along[0] + dy * along[1]) / (float(along @ along) or 1.0), 0, 1)
    ink[y, x] |= np.hypot(dx - share * along[0], dy - share * along[1]) <= pen


def _read(strokes: Any) -> list[Points]:
    """Return the strokes as arrays (points, 2)."""
    if not _is_list(strokes) or not all(_is_list(stroke) for stroke in strokes):
        raise InvalidInput("This is not a drawing. Reload the page and draw again.")
    strokes = [stroke for stroke in strokes if stroke]
    if not strokes:
        raise InvalidInput("There is nothing to read yet: draw a digit first.")
    if len(strokes) > MOST_STROKES or sum(map(len, strokes)) > MOST_POINTS:
        raise InvalidInput("That is more than one digit takes. Clear the paper and draw again.")
    for point in (point for stroke in strokes for point in stroke):
        if not (_is_list(point) and len(point) == 2 and all(_is_number(each) for each in point)):
            raise InvalidInput("This is not a drawing. Reload the page and draw again.")
    return [np.clip(np.array(stroke, float), 0, 1) for stroke in strokes]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
