"""A change of weights as a vector whose Euclidean length is its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from nnrepair.jacobian.factors import Group
from nnrepair.solver.metric import Metric
from nnrepair.solver.rows import Array

#: Directions of keys that are shorter than this share of the longest key are taken for rounding.
NEGLIGIBLE = 1e-6
#: How near an entry of a change comes to its limit when coordinates are first taken.
NEARLY = 0.98


@dataclass(frozen=True)
class Part:
    """Coordinates of one group of parameters, in the dtype and on the device of its tensors.

    The smallest change of a map that does something to some keys is a sum of outer products with these keys; so a basis
    of the (whitened) keys' span is enough, and need not span more than those that were given.

    Attributes:
        group: whose changes these are: a map's (out, inp), or a plain parameter's (n,).
        like: a tensor of the coordinates' dtype and device.
        factor: of the metric, see `Metric`: (inp, inp), or (n,) on a diagonal; None where changes are measured as
            they are.
        inverse: of the factor.
        basis: (r, inp) orthonormal directions; None for all.
        scale: (n,) what every entry of a change is divided by before it is measured, with no coordinate where it is
            zero and no factor beside it; or (out, out) the same for a map's matrix, from the left; None for one.
        limit: no entry of a change comes further than this from zero.
    """

    group: Group
    like: Tensor
    factor: Tensor | None = None
    inverse: Tensor | None = None
    basis: Tensor | None = None
    scale: Tensor | None = None
    limit: float | None = None

    @classmethod
    def of(cls, group: Group, factor: Array, left: Array | None, like: Tensor) -> Part:
        """Return coordinates of all changes, measured by the metric's factors from the right and from the left."""
        diagonal = factor.ndim == 1
        inverse = 1 / factor if diagonal else _inverse(factor)
        scale = None if left is None else torch.from_numpy(_inverse(left).T.copy()).to(like)
        return cls(group, like, torch.from_numpy(factor).to(like), torch.from_numpy(inverse).to(like), scale=scale)

    @property
    def size(self) -> int:
        """The number of coordinates: entries that may not change have none."""
        if self._moving is not None:
            return len(self._moving)
        return self.group.head.size if self.basis is None else self.group.head.out * len(self.basis)

    def change(self, x: Tensor) -> dict[str, Tensor]:
        """Return the change of parameters, by name, that has coordinates x (size,); differentiable."""
        if self._directions is not None:
            x = (x.reshape(self.group.head.out, -1) @ self._directions).flatten()
        elif self.inverse is not None:
            x = x * self.inverse
        if self.scale is not None and self._moving is not None:
            x = torch.zeros_like(self.scale).index_put((self._moving,), x * self.scale[self._moving])
        elif self.scale is not None:
            x = (self.scale @ x.reshape(len(self.scale), -1)).flatten()
        if self.limit is not None:
            x = self.limit * torch.tanh(x / self.limit)
        return self.group.apart(x)

    def coordinates(self, change: Mapping[str, Tensor]) -> Tensor:
        """Return the coordinates of a change (of its part in the span, where there is a basis)."""
        x = torch.from_numpy(self.group.flat(dict(change))).to(self.like)
        if self.limit is not None:
            x = self.limit * torch.atanh((x / self.limit).clamp(-NEARLY, NEARLY))
        if self.scale is not None and self._moving is not None:
            return x[self._moving] / self.scale[self._moving]
        if self.scale is not None:
            x = torch.linalg.solve(self.scale, x.reshape(len(self.scale), -1)).flatten()
        if self.factor is not None:
            x = x * self.factor if self.factor.ndim == 1 else self._rows(x) @ self.factor
        return (x if self.basis is None else self._rows(x) @ self.basis.T).flatten()

    def spanning(self, keys: Tensor) -> Part:
        """Return coordinates with a basis that spans these keys (k, inp) too; of all changes where that is no more."""
        if self.basis is not None and len(self.basis) + len(keys) >= self.basis.shape[1]:
            return replace(self, basis=None)
        if self.basis is None or len(keys) == 0:
            return self
        keys = keys.to(self.like)
        whitened = keys if self.inverse is None else keys @ self.inverse.T
        rest = whitened
        for _ in range(2):  # what the first projection leaves by rounding, the second takes away
            rest = rest - (rest @ self.basis.T) @ self.basis
        _, length, directions = torch.linalg.svd(rest, full_matrices=False)
        new = directions[length > NEGLIGIBLE * whitened.norm(dim=1).max()]
        return replace(self, basis=torch.cat([self.basis, new]))

    @cached_property
    def _directions(self) -> Tensor | None:
        """(r, inp) what coordinates of a map, as a matrix, are multiplied by."""
        matrix = self.inverse if self.inverse is not None and self.inverse.ndim == 2 else None
        return matrix if self.basis is None else self.basis if matrix is None else self.basis @ matrix

    @cached_property
    def _moving(self) -> Tensor | None:
        """(k,) which entries may change, where each has a scale."""
        return None if self.scale is None or self.scale.ndim > 1 else torch.nonzero(self.scale).flatten()

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(self.group.head.out, -1)


def _inverse(factor: Array) -> Array:
    """Return the inverse of a lower triangular matrix, whose diagonal is not zero."""
    inverse, _ = scipy.linalg.lapack.dtrtri(factor, lower=1)
    return np.asarray(inverse, np.float64)


@dataclass(frozen=True)
class Coordinates:
    """The parts of several groups, side by side."""

    parts: Sequence[Part]

    @classmethod
    def of(cls, groups: Sequence[Group], metric: Metric | None, like: Tensor) -> Coordinates:
        """Return coordinates of all changes, in which the Euclidean length is the metric's."""
        if metric is None:
            return cls([Part(group, like) for group in groups])
        return cls([Part.of(group, *side, like) for group, side in zip(groups, metric.sides, strict=True)])

    @property
    def size(self) -> int:
        """The number of coordinates."""
        return sum(part.size for part in self.parts)

    def change(self, x: Tensor) -> dict[str, Tensor]:
        """Return the change of parameters, by name, that has coordinates x (size,); differentiable."""
        found: dict[str, Tensor] = {}
        for part, mine in zip(self.parts, torch.split(x, [part.size for part in self.parts]), strict=True):
            found |= part.change(mine)
        return found

    def coordinates(self, change: Mapping[str, Tensor]) -> Tensor:
        """Return the coordinates of a change, the inverse of `change`."""
        return torch.cat([part.coordinates(change) for part in self.parts])

    @property
    def complete(self) -> bool:
        """Whether these are coordinates of all changes."""
        return all(part.basis is None for part in self.parts)

    def empty(self) -> Coordinates:
        """Return coordinates of maps that span no key yet."""
        parts = [
            p if p.group.plain is not None else replace(p, basis=p.like.new_zeros(0, p.group.head.inp))
            for p in self.parts
        ]
        return Coordinates(parts)

    def spanning(self, keys: Sequence[Tensor | None]) -> Coordinates:
        """Return coordinates that span further keys (k, inp) of each group; None asks for all of its changes."""
        pairs = zip(self.parts, keys, strict=True)
        return Coordinates([replace(p, basis=None) if k is None else p.spanning(k) for p, k in pairs])
