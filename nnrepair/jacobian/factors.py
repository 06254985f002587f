"""Rows of chosen parameters: factors where a map is recorded at work, plain gradients elsewhere.

Every factored row is checked against automatic differentiation before factors are trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian.head import AffineHead, beside
from nnrepair.jacobian.tangents import CUT, gradients
from nnrepair.jacobian.taps import Tap, TappedModel, Use, numpy
from nnrepair.solver.rows import Array, Block, Dense, Factored, Rows, stacked
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.inputs import AnyInputs

#: Points on which the factors are checked.
PROBES = 4
#: Points whose rows are computed together.
POINTS = 256
#: Entries of the factors that may be computed together.
ENTRIES = 50_000_000
#: Entries of plain (unfactored) rows that may be held at once.
DENSE_LIMIT = 200_000_000


@dataclass(frozen=True)
class Group:
    """Parameters that share a block: a linear map's weight, bias or both; one plain parameter; or all, with keys.

    Attributes:
        weight, bias: of a map whose uses are recorded.
        plain: a parameter that is no such map.
        head: how the parameters of a map lie side by side.
    """

    weight: str | None
    bias: str | None
    plain: str | None
    head: AffineHead

    @property
    def keyed(self) -> bool:
        """Whether keys say all that there is to know."""
        return self.weight is None and self.bias is None and self.plain is None

    @property
    def names(self) -> list[str]:
        return list(self.head.shapes)

    @property
    def tapped(self) -> str:
        """The name under which the map's uses are recorded."""
        return self.weight or self.bias or ""

    def applied_to(self, uses: list[Use]) -> list[Tensor]:
        """Return per use (points, P, inp), what the map is applied to, with ones for its bias."""
        found = []
        for use in uses:
            a = use.inputs()
            a = a.reshape(len(a), -1, a.shape[-1])
            found.append(beside([a] * (self.weight is not None) + [None] * (self.bias is not None), a))
        return found

    def flat(self, values: dict[str, Tensor]) -> Array:
        """Return the parameters' values, or changes, as the flat vector that the block multiplies."""
        return numpy(values[self.plain] if self.plain is not None else self.head.matrix(values)).ravel()

    def apart(self, x: Tensor) -> dict[str, Tensor]:
        """Return the values, or changes, of a flat vector: the inverse of `flat`."""
        if self.plain is not None:
            return {self.plain: x.reshape(self.head.shapes[self.plain])}
        return self.head.apart(x.reshape(self.head.out, -1))


class Factors:
    """How the chosen parameters become rows.

    Args:
        model: whose parameters these are.
        y, tap: a run on a few points.
        independent: whether points do not influence each other.

    Attributes:
        groups: the parameters that factor, then the others.
        last: whether the only group is the model's last operation.
    """

    def __init__(self, model: TappedModel, y: Tensor, tap: Tap, independent: bool) -> None:
        self._model, self.independent, self._entries = model, independent, 0
        self.groups = self._plan(y, tap)
        uses = [] if len(self.groups) > 1 else tap.uses.get(self.groups[0].tapped, [])
        # A version above 0: the output was changed in place after the map.
        self.last = len(uses) == 1 and uses[0].is_returned(y) and y._version == 0

    @property
    def together(self) -> int:
        """How many points run together, or copies of points: fewer where a map is used at many positions."""
        return max(1, min(POINTS, ENTRIES // max(1, self._entries)))

    @property
    def head(self) -> AffineHead:
        """All chosen parameters side by side."""
        return AffineHead.of(self._model.parameters, [n for group in self.groups for n in group.head.transposed])

    def rows(self, sub: AnyInputs, criterion: Criterion, local: Tensor, point: Tensor, condition: Tensor) -> Rows:
        """Return the rows of conditions, see `Linearization.rows`.

        Args:
            sub: prepared inputs: the points that have rows, or all where they influence each other.
            criterion, point, condition: which condition of which point each row is.
            local: where among the points that have rows each row's point is.
        """
        y, tap = self._model.run(sub)
        blocks = self._factored_rows(sub, y, tap, criterion, local, point, condition)
        plain = [g.plain for g in self.groups if g.plain is not None]
        if plain:
            cotangents = criterion.rows(point, condition, y[:1].detach()).to(y)
            blocks += self._plain(y, tap, local if self.independent else point, cotangents, plain)
        return Rows(tuple(blocks))

    def _plan(self, y: Tensor, tap: Tap) -> list[Group]:
        """Decide which parameters factor, and check every factored row against automatic differentiation."""
        missing = InvalidInput(
            f"The model's output does not depend on {self._model.names}: {CUT}. Choose another layer, or a method that "
            'needs no gradients of the model (method="egnn").'
        )
        if not y.requires_grad:
            raise missing
        parameters = list(self._model.parameters.values())
        weights = torch.linspace(0.5, 1.5, y[0].numel(), dtype=y.dtype, device=y.device).reshape(y.shape[1:])

        @cache
        def true(point: int) -> dict[str, Tensor]:
            grads = gradients(y[point], parameters, weights)
            if all(g is None for g in grads):
                raise missing
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
            return dict(zip(self._model.names, filled, strict=True))

        true(0)
        self._shared = set() if self.independent else self._shared_maps(y, tap, weights, true)
        groups: list[Group] = []
        done: set[str] = set()
        for name in self._model.names:
            uses = tap.uses.get(name, [])
            if name in done or not uses or not self.independent or any(len(u.output) != len(y) for u in uses):
                continue
            is_weight = self._model.parameters[name].ndim >= 2
            bias = name.removesuffix("weight") + "bias" if name.endswith("weight") else None
            bias = bias if bias in self._model.parameters and bias not in done else None
            turned = [name] if is_weight and all(use.transposed for use in uses) else []
            group = self._group(name, bias, turned=turned) if is_weight else self._group(None, name)
            seeds = weights.expand_as(y)
            deltas = gradients(y, [u.output for u in uses], seeds)
            parts = [numpy(u.by_position(d, len(y))) for u, d in zip(uses, deltas, strict=True)]
            delta, inputs = np.concatenate(parts, 1), self._inputs_of(group, uses)
            self._entries += delta[0].size + inputs[0].size
            block = Factored(delta, np.arange(len(y)), inputs).folded()
            for point in range(len(y)):  # one at a time: a row that belongs to another point must show
                want = group.flat(true(point))
                got = block.take(np.asarray([point])).rmatvec(np.ones(1))
                most = self._model.rounding * max(np.abs(want).max(), 1e-12)
                if got.shape != want.shape or np.abs(got - want).max() > most:
                    break
            else:
                groups.append(group)
                done.update(group.names)
        return groups + [self._group(None, None, n) for n in self._model.names if n not in done]

    def _group(
        self, weight: str | None, bias: str | None, plain: str | None = None, turned: Sequence[str] = ()
    ) -> Group:
        names = [n for n in (weight, bias, plain) if n is not None]
        return Group(weight, bias, plain, AffineHead.of({n: self._model.parameters[n] for n in names}, turned))

    def _shared_maps(self, y: Tensor, tap: Tap, weights: Tensor, true: Callable[[int], dict[str, Tensor]]) -> set[str]:
        """Return the weights of maps which all of a graph's nodes share, and whose uses account for their gradients.

        Gradients reach few of these nodes, which makes rows much cheaper than automatic differentiation of the weight.
        """
        found = {n for n, uses in tap.uses.items() if uses and self._model.parameters[n].ndim == 2}
        found = {n for n in found if all(u.output.ndim == 2 for u in tap.uses[n])}
        for point in range(min(len(y), PROBES)):
            if not found:
                break
            names = sorted(found)
            want, got = true(point), self._gradients((y[point] * weights).sum(), names, tap, found)
            for name, g in zip(names, got, strict=True):
                if (g - want[name]).abs().max() > self._model.rounding * max(float(want[name].abs().max()), 1e-12):
                    found.discard(name)
        return found

    def _gradients(self, scalar: Tensor, names: list[str], tap: Tap, shared: set[str]) -> list[Tensor]:
        """Return the gradient of a scalar with respect to each named parameter, zero where it has no effect."""
        uses = [u for n in names if n in shared for u in tap.uses[n]]
        rest = [self._model.parameters[n] for n in names if n not in shared]
        grads = gradients(scalar, [*(u.output for u in uses), *rest])
        at_use, plain = iter(zip(uses, grads, strict=False)), iter(grads[len(uses) :])
        found = []
        for name in names:
            total = torch.zeros_like(self._model.parameters[name])
            if name not in shared:
                g = next(plain)
                total = total if g is None else g
            else:
                for use, delta in itertools.islice(at_use, len(tap.uses[name])):
                    if delta is not None:
                        reached = torch.nonzero(delta.abs().amax(1)).flatten()
                        total += delta[reached].T @ use.inputs()[reached]
            found.append(total.detach())
        return found

    def _inputs_of(self, group: Group, uses: list[Use]) -> Array:
        """Return (points, P, inp), what a group's map is applied to, with ones for its bias."""
        return np.concatenate([numpy(a) for a in group.applied_to(uses)], 1)

    def _factored_rows(
        self,
        sub: AnyInputs,
        y: Tensor,
        tap: Tap,
        criterion: Criterion,
        local: Tensor,
        point: Tensor,
        condition: Tensor,
    ) -> list[Block]:
        """Return the rows of every group that factors.

        Args:
            sub, y, tap: points, and how the model ran on them.
            criterion, local, point, condition: the rows: conditions of points, and where in `sub` these are.
        """
        factored = [g for g in self.groups if g.plain is None]
        if not factored:
            return []
        applied_to = [self._inputs_of(g, tap.uses[g.tapped]) for g in factored]
        passes = []
        count = self.together if len(local) > len(y) else len(local)
        for part in torch.split(torch.arange(len(local)), count):
            cotangents = criterion.rows(point[part], condition[part], y[:1].detach()).to(y)
            deltas = self._deltas(sub, y, tap, cotangents, local[part])
            at = local[part].numpy()
            passes.append([Factored(d, at, a).folded() for d, a in zip(deltas, applied_to, strict=True)])
        return [stacked(parts) for parts in zip(*passes, strict=True)]

    def _deltas(self, sub: AnyInputs, y: Tensor, tap: Tap, cotangents: Tensor, local: Tensor) -> list[Array]:
        """Return, for every group that factors, (rows, P, out): gradients at its map's outputs.

        One backward pass serves one row of every point. For several rows of a point the model runs on copies of it; for
        the map that is the model's last operation no pass is needed.
        """
        if self.last and len(uses := tap.uses[self.groups[0].tapped]) == 1:  # other points may need it more than once
            return [numpy(uses[0].by_position(cotangents, len(local)))]
        if len(torch.unique(local)) < len(local):
            assert self.independent
            y, tap = self._model.run(sub[local])
            local = torch.arange(len(local))
        seed = torch.zeros_like(y).index_put_((local,), cotangents)
        used = [tap.uses[g.tapped] for g in self.groups if g.plain is None]
        grads = iter(gradients(y, [u.output for uses in used for u in uses], seed))
        found = []
        for uses in used:
            parts = [
                u.by_position(None if d is None else d[local], len(local)) for u, d in zip(uses, grads, strict=False)
            ]
            found.append(np.concatenate([numpy(part) for part in parts], 1))
        return found

    def _plain(self, y: Tensor, tap: Tap, where: Tensor, cotangents: Tensor, names: list[str]) -> list[Block]:
        parameters = [self._model.parameters[n] for n in names]
        size = sum(p.numel() for p in parameters)
        if size * len(where) > DENSE_LIMIT:
            raise UnsupportedModel(
                f"Parameters {names} ({size} numbers) cannot be factored, and {len(where)} plain rows of them "
                "would not fit in memory. Choose a linear or convolution layer, or fewer edits."
            )
        rows: list[list[Array]] = [[] for _ in names]
        for w, cotangent in zip(where.tolist(), cotangents, strict=True):
            for k, g in enumerate(self._gradients((y[w] * cotangent).sum(), names, tap, self._shared)):
                rows[k].append(numpy(g).ravel())
        return [Dense(np.stack(r)) for r in rows]
