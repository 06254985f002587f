"""What is proved to be the same on a slice: for the encounter plots."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nnrepair.domains import acas
from nnrepair.domains.acas.slice import Maps, Slice
from nnrepair.verify import Box, Comparison, compare

#: What is proved, as it is drawn: the first for what is not in the slice.
KINDS = ("outside", "unknown", "changed", "same", "identical")


def proved(before: nn.Module | str | Path, after: nn.Module | str | Path, at: Slice, seconds: float) -> Comparison:
    """Compare two networks on all positions of a slice, for so many seconds."""
    ends = at.states(np.array([0.0, acas.MOST[0]]), np.array([-math.pi, math.pi])).double().numpy()
    box = Box(ends.min(0), ends.max(0))
    return compare(before, after, box, decision="argmin", timeout=seconds, until=0.0, certificate=False, witnesses=0)


def pixels(found: Comparison, at: Slice, maps: Maps) -> NDArray[np.int64]:
    """Return (rows, columns) which of KINDS is proved at the middle of each pixel."""
    rho, theta, inside = maps.places
    kinds = found.known(at.states(rho[inside], theta[inside]).double().numpy())
    drawn = np.zeros(inside.shape, np.int64)
    drawn[inside] = [KINDS.index(kind) for kind in kinds.tolist()]
    return drawn
