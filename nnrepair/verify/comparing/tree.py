"""How a root box was split, what is known of every part, and what follows for the whole, in exact arithmetic."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from nnrepair.verify.comparing.volumes import UNIT
from nnrepair.verify.property import Box

#: What is known of a part: at most so much may decide differently; so much surely does; so much may differ at all.
MAYBE, SURE, DIFFERS = range(3)
#: Whether less of it says more; and so for the estimate that is summed up with these.
LESS = np.array([True, False, True, False])


@dataclass
class Tree:
    """The parts of one root box; children come after their parents, the lower one first.

    Volumes are those of the inputs that are `free`, (inputs,): the others are the same all over the region.

    Attributes:
        lower, upper: (nodes, inputs).
        own: (nodes, 3), shares in units of 1 / UNIT: what bounds of the part itself say, see MAYBE, SURE, DIFFERS.
        moves: (nodes,), the estimate that goes with DIFFERS.
        next, effort: (nodes, 2) and (nodes,), of a leaf, see `Splits`.
        dim, cut, child: how it was split; dim is -1 for a leaf.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    own: NDArray[np.int64]
    moves: NDArray[np.int64]
    next: NDArray[np.int64]
    effort: NDArray[np.float64]
    dim: NDArray[np.int16]
    cut: NDArray[np.float64]
    child: NDArray[np.int64]
    free: NDArray[np.bool_]
    size: int = 1

    @classmethod
    def root(cls, box: Box, free: NDArray[np.bool_]) -> Tree:
        """Return a tree of one part of which nothing is known."""
        lower, upper = (end[None].copy() for end in box.outer)
        own = np.array([[UNIT, 0, UNIT]])
        none, leaf = np.zeros(1, np.int64), np.full(1, -1, np.int16)
        rest = np.array([[0, -1]]), np.zeros(1), leaf, np.zeros(1), none.copy(), free
        return cls(lower, upper, own, none, *rest)

    def split(self, parents: NDArray[np.int64], dim: NDArray[np.int64], cut: NDArray[np.float64]) -> NDArray[np.int64]:
        """Split leaves; return the ids of their children, two and two. `own` is not known of these yet."""
        k = len(parents)
        self._room(self.size + 2 * k)
        first = self.size + 2 * np.arange(k)
        self.dim[parents], self.cut[parents], self.child[parents] = dim, cut, first
        for side in (0, 1):
            self.lower[first + side], self.upper[first + side] = self.lower[parents], self.upper[parents]
        self.upper[first, dim], self.lower[first + 1, dim] = cut, cut
        self.dim[first], self.dim[first + 1] = -1, -1
        self.size += 2 * k
        return np.stack([first, first + 1], 1).ravel()

    def _room(self, size: int) -> None:
        """Make arrays long enough for so many nodes."""
        if size <= len(self.dim):
            return
        more = max(size, 2 * len(self.dim)) - len(self.dim)
        for name in ("lower", "upper", "own", "moves", "next", "effort", "dim", "cut", "child"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((more, *old.shape[1:]), old.dtype)]))

    def levels(self) -> list[NDArray[np.int64]]:
        """Return the ids of all nodes by their depth."""
        found, here = [np.zeros(1, np.int64)], np.zeros(1, np.int64)
        while True:
            first = self.child[here[self.dim[here] >= 0]]
            if not len(first):
                return found
            here = np.stack([first, first + 1], 1).ravel()
            found.append(here)

    def totals(self) -> list[float]:
        """Return shares of the root box as floats, and `moves`: at each node what is best, its own or its parts'."""
        share = self.shares(np.arange(self.size))
        value = np.column_stack([self.own, self.moves])[: self.size] * share[:, None] / UNIT
        for here in self.levels()[::-1]:
            inner = here[self.dim[here] >= 0]
            parts = value[self.child[inner]] + value[self.child[inner] + 1]
            own = value[inner]
            value[inner] = np.where(LESS, np.minimum(parts, own), np.maximum(parts, own))
        return [float(v) for v in value[0]]

    def exact(self) -> tuple[list[Fraction], NDArray[np.uint8]]:
        """Return the three volumes of the root box of floats, exactly, and where each of them is taken.

        Returns:
            The volumes, and (nodes,) flags: bit q says that for the q-th volume the node's own share counts, not what
            its parts say. Bits below such a node mean nothing.
        """
        volume, scale = self._volumes()
        value = self.own[: self.size].astype(object) * volume[:, None]
        flags = np.full(self.size, 7, np.uint8)
        for here in self.levels()[::-1]:
            inner = here[self.dim[here] >= 0]
            parts = value[self.child[inner]] + value[self.child[inner] + 1]
            for q, better in ((MAYBE, np.less), (SURE, np.greater), (DIFFERS, np.less)):
                split = better(parts[:, q], value[inner, q]).astype(bool)
                value[inner[split], q] = parts[split, q]
                flags[inner[split]] &= np.uint8(255 - 2**q)
        return [Fraction(int(v), UNIT) * scale for v in value[0]], flags

    def shares(self, parts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the volumes of parts as shares of the root box, as floats; its own may be none that a float holds."""
        low, high = (end[:, self.free] / 2 for end in (self.lower, self.upper))  # widths may be too large, too
        whole = np.maximum(high[0] - low[0], np.finfo(np.float64).smallest_subnormal)
        found: NDArray[np.float64] = np.prod((high[parts] - low[parts]) / whole, 1)
        return found

    def _volumes(self) -> tuple[NDArray[np.object_], Fraction]:
        """Return the volumes (nodes,) of all parts as integers, and what to multiply them by."""
        volume, scale = np.ones(self.size, object), Fraction(1)
        for d in np.flatnonzero(self.free):
            low, high = self.lower[: self.size, d], self.upper[: self.size, d]
            ends, place = np.unique(np.concatenate([low, high]), return_inverse=True)
            exact = [Fraction(v) for v in ends.tolist()]
            unit = max(v.denominator for v in exact)  # a power of two
            whole = np.array([int(v * unit) for v in exact], object)[place]
            volume = volume * (whole[self.size :] - whole[: self.size])
            scale /= unit
        return volume, scale

    def preorder(self, flags: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.float64], NDArray[np.uint8]]:
        """Return dim, cut and flags in preorder, without what lies below nodes that settle all three volumes."""
        dim, cut, child, settled = (v[: self.size].tolist() for v in (self.dim, self.cut, self.child, flags))
        stack, dims, cuts, taken = [(0, 7)], list[int](), list[float](), list[int]()
        while stack:
            node, open_ = stack.pop()
            taken.append(open_ & settled[node])
            rest = open_ & ~settled[node]
            dims.append(dim[node] if rest else -1)
            if rest:
                cuts.append(cut[node])
                stack += [(child[node] + 1, rest), (child[node], rest)]
        return np.array(dims, np.int16), np.array(cuts), np.array(taken, np.uint8)

    def known(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return what is known at points (n, inputs): 3 identical, 2 same decision, 1 changed, 0 neither, -1 outside.

        A part tells something of its points only where it does so of all of them.
        """
        tells = self._tells()
        inside = ((points >= self.lower[0]) & (points <= self.upper[0])).all(1)
        node, found = np.zeros(len(points), np.int64), np.where(inside, tells[0], -1)
        while (inner := np.flatnonzero(inside & (self.dim[node] >= 0))).size:
            at = node[inner]
            node[inner] = self.child[at] + (points[inner, self.dim[at]] > self.cut[at])
            found[inner] = np.maximum(found[inner], tells[node[inner]])
            inside[np.setdiff1d(np.flatnonzero(inside), inner)] = False
        return found

    def leaves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids of all leaves, and what is known all over each of them, as `known` says it."""
        tells = self._tells()
        for here in self.levels():
            inner = here[self.dim[here] >= 0]
            for side in (0, 1):
                part = self.child[inner] + side
                tells[part] = np.maximum(tells[part], tells[inner])
        found = np.flatnonzero(self.dim[: self.size] < 0)
        return found, tells[found]

    def _tells(self) -> NDArray[np.int64]:
        """Return what the bounds of each part itself say all over it, (nodes,), as `known` says it."""
        own = self.own[: self.size]
        return np.where(own[:, SURE] == UNIT, 1, np.where(own[:, DIFFERS] == 0, 3, np.where(own[:, MAYBE] == 0, 2, 0)))

    def box(self, node: int) -> Box:
        """Return a part as a box."""
        return Box(self.lower[node], self.upper[node])

    def copy(self) -> Tree:
        """Return a copy that can be extended."""
        return copy.deepcopy(self)
