"""Rows of a Jacobian, kept as factors: what a linear program over a network's weights is made of.

Row r is the gradient of one condition's slack with respect to the chosen weights. For a linear map `W a + b` used at
P positions (1 for a fully connected layer, the output pixels for a convolution) that gradient is
`sum_p delta[r, p] outer [a[p], 1]`, so it is stored as delta and a: (P * (out + in)) numbers instead of out * in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.csgraph
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Entries of a temporary array; larger work is done in chunks.
CHUNK = 8_000_000
#: What a turn of a loop costs, in multiplications.
TURN = 2e6


@dataclass(frozen=True)
class Factored:
    """Rows of one linear map.

    Attributes:
        delta: (m, P, out) gradients at the map's output.
        point: (m,) the point of each row, an index into `inputs`.
        inputs: (points, P, inp) what the map was applied to, with a column of ones where a bias is repaired too.
    """

    delta: Array
    point: Index
    inputs: Array

    @property
    def m(self) -> int:
        return len(self.point)

    @property
    def out(self) -> int:
        return int(self.delta.shape[2])

    @property
    def inp(self) -> int:
        return int(self.inputs.shape[2])

    @property
    def n(self) -> int:
        return self.out * self.inp

    def matvec(self, d: Array) -> Array:
        points, positions = self.inputs.shape[:2]
        moved = self.inputs.reshape(points * positions, self.inp) @ d.reshape(self.out, self.inp).T
        if points == 1:
            return np.asarray(self.delta.reshape(self.m, -1) @ moved.ravel())
        width = positions * self.out
        moved = moved.reshape(points, width)[self.point]
        return np.asarray(np.einsum("ro,ro->r", self.delta.reshape(self.m, width), moved))

    def rmatvec(self, y: Array) -> Array:
        points, positions = self.inputs.shape[:2]
        pick = scipy.sparse.csr_array((y, (self.point, np.arange(self.m))), shape=(points, self.m))
        gathered = (pick @ self.delta.reshape(self.m, positions * self.out)).reshape(points * positions, self.out)
        return np.asarray(gathered.T @ self.inputs.reshape(points * positions, self.inp)).ravel()

    def columns(self, where: Index) -> Array:
        o, i = np.divmod(where, self.inp)
        total = np.zeros((self.m, len(where)))
        for p in range(self.delta.shape[1]):
            total += self.delta[:, p, o] * self.inputs[self.point, p][:, i]
        return total

    def dense(self, outputs: slice) -> Array:
        """Return (m, outputs, inp): the rows themselves, for some outputs."""
        delta = self.delta[:, :, outputs]
        rows = np.empty((self.m, delta.shape[2], self.inp))
        step = max(1, CHUNK // max(1, self.inputs.shape[1] * self.inp))
        for start in range(0, self.m, step):
            part = slice(start, start + step)
            rows[part] = delta[part].transpose(0, 2, 1) @ self.inputs[self.point[part]]
        return rows

    def gram(self) -> Array:
        if self.delta.shape[1] == 1:
            delta, inputs = self.delta[:, 0], self.inputs[:, 0]
            across = inputs @ inputs.T
            return (delta @ delta.T) * across[np.ix_(self.point, self.point)]
        total = np.zeros((self.m, self.m))
        step = max(1, CHUNK // max(1, self.m * self.inp))
        for start in range(0, self.out, step):
            flat = self.dense(slice(start, start + step)).reshape(self.m, -1)
            total += flat @ flat.T
        return total

    def distinct(self) -> Factored:
        """Return the same rows with each point once, however often rows of it joined."""
        number: dict[bytes, int] = {}
        same = np.array([number.setdefault(one.tobytes(), len(number)) for one in self.inputs], np.int64)
        first = np.empty(len(number), np.int64)
        first[same[::-1]] = np.arange(len(same))[::-1]
        return Factored(self.delta, same[self.point], self.inputs[first])

    @cached_property
    def _by_point(self) -> tuple[Index, Array, Array, Index]:
        """Return the rows' order by point, their delta so ordered, the points, and where the rows of each begin."""
        distinct = self.distinct()
        order = np.argsort(distinct.point, kind="stable")
        start = np.searchsorted(distinct.point[order], np.arange(len(distinct.inputs) + 1))
        return order, np.ascontiguousarray(self.delta[order, 0].T), distinct.inputs[:, 0], start

    @cached_property
    def _reached(self) -> list[Index]:
        """Return per output the rows that reach it."""
        return [np.flatnonzero(delta) for delta in self.delta[:, 0].T]

    def weighed(self, weight: Array) -> Array:
        weight = weight.reshape(self.out, self.inp)
        total = np.zeros((self.m, self.m))
        if self.delta.shape[1] > 1:
            root = np.sqrt(weight)
            step = max(1, CHUNK // max(1, self.m * self.inp))
            for start in range(0, self.out, step):
                outputs = slice(start, start + step)
                flat = (self.dense(outputs) * root[outputs]).reshape(self.m, -1)
                total += flat @ flat.T
            return total
        points = len(self._by_point[2])
        if sum(len(rows) ** 2 for rows in self._reached) * self.inp < points**2 * self.n / 2 + TURN * points:
            for rows, delta, root in zip(self._reached, self.delta[:, 0].T, np.sqrt(weight), strict=True):
                flat = self.inputs[self.point[rows], 0] * delta[rows, None] * root
                total[np.ix_(rows, rows)] += flat @ flat.T
            return total
        # Rows of one point share the products of its inputs with those of the points that follow.
        order, delta, inputs, starts = self._by_point
        counts = np.diff(starts)
        for p, start in enumerate(starts[:-1]):
            mine = delta[:, start : starts[p + 1]]
            active = np.flatnonzero(mine.any(1))
            across = (weight[active] * inputs[p]) @ inputs[p:].T
            reached = np.repeat(across, counts[p:], axis=1) * delta[active, start:]
            total[start : starts[p + 1], start:] = mine[active].T @ reached
        upper = np.triu(total)
        whole = upper + np.triu(upper, 1).T
        back = np.empty_like(order)
        back[order] = np.arange(self.m)
        return np.asarray(whole[np.ix_(back, back)])

    def between(self, left: Array, across: Array, right: Array) -> Array:
        """Return (m, m): <A, left B right + across B^T across> / 2 of rows as matrices; left, right symmetric."""
        if self.delta.shape[1] > 1:
            rows = self.dense(slice(None))
            moved = left @ rows @ right + across @ rows.transpose(0, 2, 1) @ across
            return np.asarray(rows.reshape(self.m, -1) @ moved.reshape(self.m, -1).T) / 2
        delta, inputs = self.delta[:, 0], self.inputs[:, 0]
        mixed = (delta @ across @ inputs.T)[:, self.point]
        same = (inputs @ right @ inputs.T)[np.ix_(self.point, self.point)]
        return np.asarray((delta @ left @ delta.T) * same + mixed * mixed.T) / 2

    def normal(self, weight: Array) -> Array:
        if self.delta.shape[1] > 1:
            flat = self.dense(slice(None)).reshape(self.m, -1)
            return np.asarray((flat.T * weight) @ flat)
        total = np.zeros((self.out, self.inp, self.out, self.inp))
        delta = scipy.sparse.csc_array(self.delta[:, 0])
        inputs = self.inputs[:, 0]
        for o in range(self.out):
            mine = np.zeros(self.m)
            mine[delta.indices[delta.indptr[o] : delta.indptr[o + 1]]] = delta.data[
                delta.indptr[o] : delta.indptr[o + 1]
            ]
            for other in range(o, self.out):
                both = slice(delta.indptr[other], delta.indptr[other + 1])
                rows = delta.indices[both]
                share = weight[rows] * mine[rows] * delta.data[both]
                if share.any():
                    at = np.bincount(self.point[rows], share, len(inputs))
                    points = np.flatnonzero(at)
                    some = inputs[points]
                    total[o, :, other] = some.T @ (some * at[points, None])
                    total[other, :, o] = total[o, :, other].T
        return total.reshape(self.n, self.n)

    def lengths(self) -> Array:
        if self.delta.shape[1] == 1:
            return _lengths(self.delta[:, 0]) * _lengths(self.inputs[:, 0])[self.point]
        total = np.zeros(self.m)
        step = max(1, CHUNK // max(1, self.m * self.inp))
        for start in range(0, self.out, step):
            total = np.hypot(total, _lengths(self.dense(slice(start, start + step)).reshape(self.m, -1)))
        return total

    def scaled(self, by: Array) -> Factored:
        return Factored(self.delta * by[:, None, None], self.point, self.inputs)

    def take(self, which: Index) -> Factored:
        kept, point = np.unique(self.point[which], return_inverse=True)
        return Factored(self.delta[which], point, self.inputs[kept])

    def narrowed(self) -> Factored:
        """Return the rows without the outputs and inputs that none of them reaches, with the same Gram matrix."""
        return Factored(
            self.delta[:, :, self.delta.any((0, 1))], self.point, self.inputs[:, :, self.inputs.any((0, 1))]
        )

    def folded(self) -> Factored:
        """Return the same rows as matrices where a map is used at more positions than it has inputs: they are smaller.

        All rows then belong to one point, whose positions are the units of the map's inputs.
        """
        if self.inputs.shape[1] <= self.inp:
            return self
        delta = np.empty((self.m, self.inp, self.out))
        step = max(1, CHUNK // max(1, self.inputs.shape[1] * self.inp))
        for start in range(0, self.m, step):
            part = slice(start, start + step)
            delta[part] = self.inputs[self.point[part]].transpose(0, 2, 1) @ self.delta[part]
        return Factored(delta, np.zeros(self.m, np.int64), np.eye(self.inp)[None])

    def joined(self, other: Factored) -> Factored:
        if len(self.inputs) == 1 and np.array_equal(self.inputs, other.inputs):
            point = np.concatenate([self.point, other.point])
            return Factored(np.concatenate([self.delta, other.delta]), point, self.inputs)
        positions = max(self.delta.shape[1], other.delta.shape[1])
        return Factored(
            np.concatenate([_padded(self.delta, positions), _padded(other.delta, positions)]),
            np.concatenate([self.point, other.point + len(self.inputs)]),
            np.concatenate([_padded(self.inputs, positions), _padded(other.inputs, positions)]),
        )


@dataclass(frozen=True)
class Dense:
    """Rows (m, n) of any other parameters, as they are."""

    rows: Array

    @property
    def m(self) -> int:
        return int(self.rows.shape[0])

    @property
    def n(self) -> int:
        return int(self.rows.shape[1])

    def matvec(self, d: Array) -> Array:
        return np.asarray(self.rows @ d)

    def rmatvec(self, y: Array) -> Array:
        return np.asarray(self.rows.T @ y)

    def columns(self, where: Index) -> Array:
        return self.rows[:, where]

    def gram(self) -> Array:
        return np.asarray(self.rows @ self.rows.T)

    def weighed(self, weight: Array) -> Array:
        return np.asarray((self.rows * weight) @ self.rows.T)

    def normal(self, weight: Array) -> Array:
        return np.asarray((self.rows.T * weight) @ self.rows)

    def lengths(self) -> Array:
        return _lengths(self.rows)

    def scaled(self, by: Array) -> Dense:
        return Dense(self.rows * by[:, None])

    def take(self, which: Index) -> Dense:
        return Dense(self.rows[which])

    def joined(self, other: Dense) -> Dense:
        return Dense(np.concatenate([self.rows, other.rows]))


Block = Factored | Dense


@dataclass(frozen=True)
class Rows:
    """Rows over all chosen parameters: blocks side by side, one per parameter group. Behaves as a matrix (m, n)."""

    blocks: tuple[Block, ...]

    @property
    def m(self) -> int:
        return self.blocks[0].m

    @property
    def n(self) -> int:
        return sum(b.n for b in self.blocks)

    @property
    def matrix_shape(self) -> tuple[int, int] | None:
        """(out, inp) when the chosen parameters are one linear map."""
        block = self.blocks[0]
        return (block.out, block.inp) if len(self.blocks) == 1 and isinstance(block, Factored) else None

    def split(self, d: Array) -> list[Array]:
        """Return the parts of a flat vector (n,) that belong to the blocks."""
        return np.split(d, np.cumsum([b.n for b in self.blocks])[:-1])

    def matvec(self, d: Array) -> Array:
        """Return G d, (m,)."""
        total = np.zeros(self.m)
        for block, part in zip(self.blocks, self.split(d), strict=True):
            total += block.matvec(part)
        return total

    def rmatvec(self, y: Array) -> Array:
        """Return G^T y, (n,)."""
        return np.concatenate([b.rmatvec(y) for b in self.blocks])

    def columns(self, where: Index) -> Array:
        """Return G[:, where], (m, k); `where` ascending."""
        starts = np.cumsum([0] + [b.n for b in self.blocks])
        cuts = np.searchsorted(where, starts)
        return np.concatenate(
            [b.columns(where[cuts[k] : cuts[k + 1]] - starts[k]) for k, b in enumerate(self.blocks)], axis=1
        )

    def gram(self) -> Array:
        """Return G G^T, (m, m)."""
        total = np.zeros((self.m, self.m))
        for block in self.blocks:
            total += block.gram()
        return total

    def weighed(self, weight: Array) -> Array:
        """Return G diag(weight) G^T, (m, m), for weights (n,) >= 0."""
        total = np.zeros((self.m, self.m))
        for block, part in zip(self.blocks, self.split(weight), strict=True):
            total += block.weighed(part)
        return total

    def normal(self, weight: Array) -> Array:
        """Return G^T diag(weight) G, (n, n), for weights (m,)."""
        if len(self.blocks) == 1:
            return self.blocks[0].normal(weight)
        whole = self.columns(np.arange(self.n))
        return np.asarray((whole.T * weight) @ whole)

    def lengths(self) -> Array:
        """Return the Euclidean length of every row, (m,)."""
        return np.asarray(np.hypot.reduce([b.lengths() for b in self.blocks]))

    def scaled(self, by: Array) -> Rows:
        """Return the rows, each multiplied by its number in `by` (m,)."""
        return Rows(tuple(b.scaled(by) for b in self.blocks))

    def independent(self) -> list[Index]:
        """Return the rows in sets that have no weight in common, ascending: what one asks for costs the others nothing.

        A map's weights are taken apart by its outputs alone.
        """
        if not all(isinstance(b, Factored) for b in self.blocks):
            return [np.arange(self.m)]
        reached = scipy.sparse.hstack([scipy.sparse.csr_array(b.delta.any(1)) for b in self.blocks])  # type: ignore[union-attr]
        graph = scipy.sparse.block_array([[None, reached], [reached.T, None]])
        _, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
        order = np.argsort(label[: self.m], kind="stable")
        cuts = np.flatnonzero(np.diff(label[order])) + 1
        return np.split(order, cuts)

    def narrowed(self) -> Rows:
        """Return the rows without weights that none of them reaches, as far as that is cheap: same Gram matrix."""
        return Rows(tuple(b.narrowed() if isinstance(b, Factored) else b for b in self.blocks))

    def take(self, which: Index) -> Rows:
        """Return the chosen rows."""
        return Rows(tuple(b.take(which) for b in self.blocks))

    def joined(self, other: Rows) -> Rows:
        """Return these rows followed by the others."""
        return Rows(tuple(a.joined(b) for a, b in zip(self.blocks, other.blocks, strict=True)))  # type: ignore[arg-type]


def stacked(parts: Sequence[Factored]) -> Factored:
    """Return rows of the same points one after another: `joined`, without repeating the points' inputs."""
    delta, point = (np.concatenate([getattr(p, name) for p in parts]) for name in ("delta", "point"))
    return Factored(delta, point, parts[0].inputs)


def _padded(x: Array, positions: int) -> Array:
    """Return x (k, P, ...) with zeros at further positions: a map is used at more of them where inputs are larger."""
    missing = positions - x.shape[1]
    return np.concatenate([x, np.zeros((x.shape[0], missing, x.shape[2]))], 1) if missing else x


def _lengths(x: Array) -> Array:
    """Return (m,) the Euclidean lengths of the rows of x, not finite where x is not.

    Squares of small numbers must not vanish.
    """
    largest = np.abs(x).max(1, initial=0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(largest * np.linalg.norm(x / np.where(largest > 0, largest, 1.0)[:, None], axis=1))
