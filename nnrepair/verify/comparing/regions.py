"""Regions as boxes that do not overlap, and what is left of them outside of other boxes: exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnrepair.errors import InvalidInput
from nnrepair.verify import vnnlib
from nnrepair.verify.property import Box, Property

Region = Box | Sequence[Box] | Property | str | Path

#: A region may come to so many boxes.
MOST = 1000


def boxes_of(region: Region, name: str = "region", least: int = 1) -> list[Box]:
    """Return the boxes of a region; of a property, or a VNN-LIB file, those that it is about.

    Raises:
        InvalidInput: it, which messages call by this name, is none of these, or has fewer boxes than this.
    """
    if isinstance(region, str | Path):
        region = vnnlib.load(region)
    found: list[Any] = [region]
    if isinstance(region, Property):
        found = [case.box for case in region.cases]
    elif not isinstance(region, Box) and isinstance(region, Iterable):
        found = list(region)
    if not all(isinstance(box, Box) for box in found) or len(found) < least:
        what = f"{type(region).__name__} {region!r:.80}"
        raise InvalidInput(f"{name} must be a Box, a list of these, a Property or a VNN-LIB file, got {what}.")
    return found


def pieces(region: Region, outside: Region = ()) -> list[Box]:
    """Return boxes that share no inside, and are together what of a region lies outside of others.

    Raises:
        InvalidInput: nothing is left, a box is a point, they have different numbers of inputs or fix different ones, or
            there are too many.
    """
    given, holes = boxes_of(region), boxes_of(outside, "outside", 0)
    if len({len(box) for box in [*given, *holes]}) > 1:
        raise InvalidInput(f"All boxes need equally many inputs, got {sorted({len(b) for b in [*given, *holes]})}.")
    varying = {tuple(free(box).tolist()) for box in given}
    if len(varying) > 1 or not any(map(any, varying)):
        raise InvalidInput(
            "What is compared are shares of a volume: a box needs a width in some input, and all boxes of a region in "
            "the same ones; the others are fixed."
        )
    kept: list[Box] = []
    for box in given:
        parts = [box]
        for hole in [*kept, *holes]:
            parts = [piece for part in parts for piece in without(part, hole)]
            if len(parts) + len(kept) > MOST:
                raise InvalidInput(f"What is left of the region comes to more than {MOST} boxes; compare it in parts.")
        kept += parts
    if not kept:
        raise InvalidInput("Nothing of the region is left outside of the boxes that were excluded.")
    return kept


def free(box: Box) -> NDArray[np.bool_]:
    """Tell which inputs vary in a box, (inputs,); others are fixed, and volumes are those of the inputs that vary."""
    return np.array([low < high for low, high in zip(box.lower, box.upper, strict=True)])


def volume(box: Box, inputs: NDArray[np.bool_] | None = None) -> Fraction:
    """Return the volume of a box, exactly: of some inputs, else of those that vary."""
    some = free(box) if inputs is None else inputs
    ends = zip(box.lower, box.upper, some.tolist(), strict=True)
    return prod((high - low for low, high, counts in ends if counts), start=Fraction(1))


def without(box: Box, hole: Box) -> list[Box]:
    """Return boxes that are together the part of a box outside of another; only borders belong to both."""
    low, high = list(box.lower), list(box.upper)
    ends = list(zip(low, high, hole.lower, hole.upper, strict=True))
    if any(max(a, c) >= min(b, d) and not c <= a == b <= d for a, b, c, d in ends):
        return [box]
    found = []
    for i, (a, b, c, d) in enumerate(ends):
        for below, above in ((a, c), (d, b)):
            if below < above:
                found.append(_box(box, [*low[:i], below, *low[i + 1 :]], [*high[:i], above, *high[i + 1 :]]))
        low[i], high[i] = max(a, c), min(b, d)
    return found


def _box(like: Box, lower: Sequence[Fraction], upper: Sequence[Fraction]) -> Box:
    """Return a box with the shape of another."""
    made = Box(lower, upper)
    made.shape = like.shape
    return made
