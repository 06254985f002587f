"""What is known of a region, seen along two of its inputs: for maps. In float64: a picture, no claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnrepair.verify.comparing.tree import DIFFERS, MAYBE, SURE, Tree
from nnrepair.verify.comparing.volumes import UNIT

Array = NDArray[np.float64]
#: How kinds are stored, which `Tree.known` numbers so; those that are no claim come first.
KINDS = ("unknown", "changed", "same", "identical")
#: So many parts are added up at once.
TOGETHER = 20_000


@dataclass(frozen=True)
class Map:
    """Cells of two inputs, each with all that the other inputs can be.

    Attributes:
        shares: (kinds, rows, columns), of the region's volume in a cell, by KINDS; NaN where there is none of it.
        across, up: the ends of the region along both inputs.
        whole: (kinds,), shares of the whole region.
    """

    shares: Array
    across: tuple[float, float]
    up: tuple[float, float]
    whole: Array


def seen(trees: Sequence[Tree], axes: tuple[int, int], cells: int, *, partly: bool) -> Map:
    """Return a map of so many cells along each of two inputs that vary; the lowest row is the first.

    Args:
        trees: the parts of the region.
        axes: both inputs, across and up.
        cells: how many.
        partly: whether a part that is known to a share of its volume counts as that mixture all over; else as unknown.
    """
    low = np.min([tree.lower[0] for tree in trees], 0)
    high = np.max([tree.upper[0] for tree in trees], 0)
    edges = [np.linspace(low[d], high[d], cells + 1) for d in axes]
    rest = trees[0].free.copy()
    rest[list(axes)] = False
    volume = np.zeros((len(KINDS), cells, cells))
    for tree in trees:
        leaves, known = tree.leaves()
        mixture = _mixture(tree.own[leaves] / UNIT, known) if partly else np.eye(len(KINDS))[known]
        for start in range(0, len(leaves), TOGETHER):
            some = slice(start, start + TOGETHER)
            lower, upper = tree.lower[leaves[some]], tree.upper[leaves[some]]
            others = np.prod(((upper - lower) / np.where(rest, high - low, 1))[:, rest], 1)
            across, up = (_overlap(lower[:, d], upper[:, d], edge) for d, edge in zip(axes, edges, strict=True))
            for kind, share in enumerate((mixture[some] * others[:, None]).T):
                volume[kind] += (up * share[:, None]).T @ across
    total = volume.sum(0)
    shares = np.divide(volume, total, out=np.full_like(volume, np.nan), where=total > 0)
    ends = [(float(low[d]), float(high[d])) for d in axes]
    return Map(shares, ends[0], ends[1], volume.sum((1, 2)) / total.sum())


def _mixture(own: Array, known: NDArray[np.int64]) -> Array:
    """Return which share of each part is of which kind (n, kinds), from `Tree.own` and what is known all over it."""
    identical = np.where(known == KINDS.index("identical"), 1.0, 1 - own[:, DIFFERS])
    same = np.where(known == KINDS.index("same"), 1.0, 1 - own[:, MAYBE]) - identical
    changed = np.where(known == KINDS.index("changed"), 1.0, own[:, SURE])
    found = np.stack([1 - same.clip(0) - identical - changed, changed, same, identical], 1)
    return np.asarray(found.clip(0, 1))


def _overlap(lower: Array, upper: Array, edges: Array) -> Array:
    """Return which share of each cell (n, cells) an interval of each part covers."""
    inside = np.minimum(upper[:, None], edges[1:]) - np.maximum(lower[:, None], edges[:-1])
    return np.asarray(np.maximum(inside, 0.0) / (edges[1:] - edges[:-1]))
