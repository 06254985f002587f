"""Better slopes for the lines below units, and multipliers of the conditions that a search has set on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nnrepair.verify.search.intervals import TINY
from nnrepair.verify.search.loose import matrix
from nnrepair.verify.search.relaxation import Linear, Relaxation
from nnrepair.verify.search.substitution import Force, Substitution


class Ascent:
    """Supergradient ascent for one row on each box, with Polyak's step towards a value a little above zero.

    Where lines have no base any slopes in [0, 1] are sound, and those are chosen. On boxes with few loose ReLUs this
    comes close to the linear program over all single-neuron relaxations.

    Args:
        lines: what substitutes them.
        relaxation: of the boxes.
        node: whose value the rows are about.
        A, offset: rows (boxes, size) and (boxes,): bounds are of `A . v_node - offset`.
        lower, upper: the boxes (boxes, inputs).
        phase: per activation node (boxes, units), 1 where what goes into a unit is known to lie above the point of a
            split, -1 where below, else 0: conditions whose multipliers are then chosen too (Wang et al. 2021,
            beta-CROWN).
    """

    def __init__(
        self,
        lines: Substitution,
        relaxation: Relaxation,
        node: int,
        A: Tensor,
        offset: Tensor,
        lower: Tensor,
        upper: Tensor,
        phase: Sequence[Tensor] | None = None,
    ) -> None:
        self.lines, self.relaxation, self.node = lines, relaxation, node
        self.A, self.offset, self.lower, self.upper, self.phase = A, offset, lower, upper, phase
        self.floor = [lines.floor.clone() for lines in relaxation.lines]
        self.force = None if phase is None else [torch.zeros_like(f) for f in self.floor]
        sides = zip(relaxation.kinds, relaxation.lower, relaxation.upper, phase or (), strict=phase is not None)
        self.at = [kind.border(low, high, side) for kind, low, high, side in sides]
        self.live = torch.arange(len(A), device=A.device)  # the rows that are not positive yet
        self.best = A.new_full((len(A),), -torch.inf)
        self.found = Linear(A.new_zeros(len(A), lower.shape[1]), self.best.clone())

    def run(self, steps: int, ahead: float, coefficients: list[Tensor | None] | None = None) -> tuple[Tensor, Linear]:
        """Return the best value of each row and the linear bound that has it.

        Args:
            steps: at most so many backward passes.
            ahead: how far above zero to aim, as a share of the distance to it.
            coefficients: filled with those on what comes out of each activation node, of the last step.
        """
        found: list[Tensor | None] = []
        for step in range(steps):
            live = self.live
            slopes = self.floor if len(live) == len(self.best) else [f[live] for f in self.floor]
            forces = None if self.force is None else self._conditions(self.force)
            bound, value = self._bounded(slopes, forces, found)
            if coefficients is not None:
                _copied(coefficients, found, live, len(self.best))
            going = ~(self.best[live] > 0)
            if step == steps - 1 or not bool(going.any()):
                break
            x = bound.corner(self.lower[live], self.upper[live])
            gradient, pull = self._derivatives(x, found, slopes)
            square = sum(((g * g).sum(1) for g in (*gradient, *pull)), torch.full_like(value, TINY))
            length = ((ahead * value.abs() - value + 1e-9) / square)[:, None]
            for f, g, old, lines in zip(self.floor, gradient, slopes, self.relaxation.lines, strict=True):
                if lines.base is None:
                    f[live] = (old + length * g).clamp(0, 1)
            if self.force is not None and forces is not None and self.phase is not None:
                for f, g, condition, sign in zip(self.force, pull, forces, self.phase, strict=True):
                    on = sign[live]
                    f[live] = ((condition.multiplier + length * g) * on).clamp(min=0) * on
            self.live = live[going]
        return self.best, self.found

    def __getitem__(self, index: Tensor) -> Ascent:
        """Return the same of some rows, with the slopes and multipliers reached so far."""
        made = copy.copy(self)
        made.relaxation = self.relaxation[index]
        made.A, made.offset, made.lower, made.upper = (v[index] for v in (self.A, self.offset, self.lower, self.upper))
        made.floor = [part[index] for part in self.floor]
        made.force = None if self.force is None else [part[index] for part in self.force]
        made.at = [None if part is None else part[index] for part in self.at]
        made.phase = None if self.phase is None else [part[index] for part in self.phase]
        return made

    def halved(self, rows: Tensor, unit: Tensor, side: float) -> Tensor:
        """Return the values of rows where what goes into one unit of each lies on one side of its point.

        Slopes and multipliers stay as they are: the values are rough, and prove nothing.

        Args:
            rows: (n,), which.
            unit: (n,), of all units.
            side: 1 above the point, -1 below.
        """
        made, each = self[rows], torch.arange(len(rows), device=rows.device)
        relaxation = made.relaxation
        for i, k in enumerate(self.lines.graph.bent):
            units = self.lines.graph.nodes[k].units
            assert units is not None
            mine = ((unit >= units.start) & (unit < units.stop)).nonzero()[:, 0]
            at, kind = unit[mine] - units.start, relaxation.kinds[i]
            low, high = (ends[i][mine, at] for ends in (relaxation.lower, relaxation.upper))
            point = kind.split(low, high)
            lines = kind.relax(*((point, high) if side > 0 else (low, point)))
            relaxation.lines[i].put(mine, at, lines)
            made.floor[i][mine, at] = torch.where(lines.loose, made.floor[i][mine, at], lines.floor)
        forces = None if made.force is None else [Force(f, at) for f, at in zip(made.force, made.at, strict=True)]
        bound = self.lines.backward(relaxation, self.node, made.A, each, floor=made.floor, force=forces)
        return bound.minimum(made.lower, made.upper) - made.offset

    def _bounded(
        self, slopes: Sequence[Tensor], forces: Sequence[Force] | None, found: list[Tensor | None]
    ) -> tuple[Linear, Tensor]:
        """Bound the rows that are live, and keep what is better than before; return the bounds and their values."""
        live = self.live
        bound = self.lines.backward(
            self.relaxation, self.node, self.A[live], live, floor=slopes, force=forces, coefficients=found
        )
        bound.c = bound.c - self.offset[live]
        value = bound.minimum(self.lower[live], self.upper[live])
        value = torch.where(torch.isfinite(value), value, -torch.inf)
        better = value > self.best[live]
        chosen = live[better]
        self.best[chosen], self.found.A[chosen], self.found.c[chosen] = value[better], bound.A[better], bound.c[better]
        return bound, value

    def _conditions(self, force: Sequence[Tensor]) -> list[Force]:
        """Return the conditions of the live rows with their multipliers."""
        pairs = zip(force, self.at, strict=True)
        return [Force(f[self.live], None if at is None else at[self.live]) for f, at in pairs]

    def _derivatives(
        self, x: Tensor, found: Sequence[Tensor | None], floor: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return each live row's derivatives by slopes and by multipliers, at the corner x where its bound is least."""
        relaxation, live = self.relaxation, self.live
        values = self.lines.attained(relaxation, self.node, x, found, live, floor)
        gradient: list[Tensor] = []
        pull: list[Tensor] = []
        for current in self.lines.graph.nodes[1 : self.node + 1]:
            if current.activation is None:
                continue
            i, first = len(gradient), values[current.sources[0]]
            A = found[i]
            lines = relaxation.lines[i]
            if A is None or lines.base is not None:
                slope = torch.zeros_like(first)
            else:
                slope = torch.where(lines.loose[live], torch.where(A < 0, 0.0, A * first), 0.0)
            blocked = ((floor[i] <= 0) & (slope < 0)) | ((floor[i] >= 1) & (slope > 0))
            gradient.append(slope.masked_fill(blocked, 0.0))
            if self.phase is not None:
                at = self.at[i]
                beyond = first if at is None else first - at[live]
                pull.append(-beyond * self.phase[i][live].abs())
        later = [torch.zeros_like(f) for f in floor[len(gradient) :]]
        return gradient + later, pull + (later if self.phase is not None else [])


def _copied(coefficients: list[Tensor | None], found: Sequence[Tensor | None], live: Tensor, rows: int) -> None:
    """Copy the coefficients of the live rows into those of all."""
    if len(live) == rows:
        coefficients[:] = list(found)
        return
    for i, part in enumerate(found):
        old = coefficients[i]
        if part is not None and old is not None:
            coefficients[i] = old.index_copy(0, live, part)


class Stack:
    """A chain's matrices up to a node and what rounding takes at them, as the compiled ascent reads them.

    Args:
        lines: of a network that has a compiled kernel, see `Chain`.
        node: where rows are about.
    """

    def __init__(self, lines: Substitution, node: int) -> None:
        rho, folded = lines.rounding.rho, lines.rounding.folded
        sizes, bent, parts = [lines.graph.inputs], list[bool](), list[tuple[Tensor, ...]]()
        for k, each in enumerate(lines.graph.nodes[1 : node + 1], 1):
            if each.affine is None:
                bent[-1], parts[-1] = True, (*parts[-1][:-1], rho[k])
                continue
            sizes.append(each.size)
            bent.append(False)
            none = torch.zeros_like(rho[k])
            parts.append((matrix(each.affine).reshape(-1), each.affine.bias, none if folded[k] else rho[k], none))
        self.sizes, self.bent = np.array(sizes), np.array(bent, dtype=np.bool_)
        weights, biases, linear, after = zip(*parts, strict=True)
        self.weights, self.biases = torch.cat(weights).numpy(), torch.cat(biases).numpy()
        longer = 1 + 4 * sum(sizes) / 64  # one sum of all there is, where `magnitudes` counts 64 terms at the least
        self.rho = (torch.stack([torch.cat(linear), torch.cat(after)]) * longer).numpy()
        self.first = (rho[0] * longer).numpy()

    def ascended(
        self,
        ascend: Callable[..., None],
        relaxation: Relaxation,
        A: Tensor,
        offset: Tensor,
        lower: Tensor,
        upper: Tensor,
        steps: int,
        ahead: float,
    ) -> tuple[Tensor, Linear]:
        """Return what `Ascent.run` does, by `slope_kernel.ascend`."""
        between = relaxation.lines[: int(self.bent.sum())]
        columns = [torch.cat([getattr(each, name) for each in between], 1) for name in ("slope", "shift", "floor")]
        loose = torch.cat([each.loose for each in between], 1)
        best, found = A.new_empty(len(A)), Linear(torch.empty_like(lower), A.new_empty(len(A)))
        made = [torch.stack(columns, 1), loose]
        ends = [each.contiguous().numpy() for each in (A, offset, lower, upper, *made)]
        numbers = self.sizes, self.bent, self.weights, self.biases, self.rho, self.first
        ascend(*numbers, *ends, steps, ahead, best.numpy(), found.A.numpy(), found.c.numpy())
        return best, found
