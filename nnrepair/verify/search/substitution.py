"""Linear lower bounds by substitution (CROWN, Zhang et al. 2018).

For l <= z <= u an activation h = f(z) lies between the lines `slope z + shift` above and `floor z + base` below.
Substituting backwards from `A . v_k` (v_k the value of node k) to the input gives `A0 . x + c <= A . v_k`. The same
lines, followed forward, say where that bound is attained and which inputs make it loose. For rounding see `magnitudes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.activations.base import Lines
from nnrepair.verify.reading.affine import Affine, in_pieces
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.magnitudes import UNDERFLOW, Rounding
from nnrepair.verify.search.relaxation import Linear, Relaxation


@dataclass
class Force:
    """Conditions on what goes into units, (rows, units): `z >= at` for a positive multiplier, `z <= at` for a negative.

    `z >= at` and a multiplier f >= 0 give `A z >= (A - f) z + f at`, and likewise below. None in place of `at` is zero.
    """

    multiplier: Tensor
    at: Tensor | None

    def shift(self) -> Tensor | float:
        """Return what the conditions add to each row's bound."""
        return 0.0 if self.at is None else (self.multiplier * self.at).sum(1)


class Substitution:
    """Lines around activations, substituted backward and followed forward.

    Args:
        graph: the network.
        rounding: over the root box that contains all boxes.
        deadline: when it has passed, everything here raises OutOfTime.
    """

    def __init__(self, graph: Graph, rounding: Rounding, deadline: Deadline = NEVER) -> None:
        self.graph, self.rounding, self.deadline = graph, rounding, deadline
        self.place = {k: i for i, k in enumerate(graph.bent)}

    def backward(
        self,
        relaxation: Relaxation,
        node: int,
        A: Tensor,
        box: Tensor,
        *,
        floor: Sequence[Tensor] | None = None,
        force: Sequence[Force] | None = None,
        coefficients: list[Tensor | None] | None = None,
    ) -> Linear:
        """Return linear lower bounds of `A . v_node` over each row's box.

        Args:
            relaxation: of the boxes.
            node: whose value the rows are about.
            A: (rows, size of the node).
            box: (rows,), the box of each row.
            floor: other slopes of the lines below, per activation node (rows, units); see `Lines` for which may differ.
            force: conditions on what goes into units, per activation node; the bounds then hold wherever they do.
            coefficients: filled with those (rows, units) on what comes out of each activation node.
        """
        if coefficients is not None:
            coefficients[:] = [None] * len(self.place)
        pending: dict[int, Tensor] = {node: A}
        rho = self.rounding.rho
        c = A.new_zeros(len(A))
        for k in range(node, -1, -1):
            if k not in pending:
                continue
            self.deadline.check()
            A = pending.pop(k)
            current = self.graph.nodes[k]
            if current.activation is not None:
                i = self.place[k]
                if coefficients is not None:
                    coefficients[i] = A
                part = self._through(k, relaxation.lines[i], A, box, None if floor is None else floor[i], c)
                if force is not None:
                    part -= force[i].multiplier
                    c += force[i].shift()
                    c -= force[i].multiplier.abs() @ rho[k]
                parts = [part]
            elif current.affine is not None:
                c += A @ current.affine.bias
                if not self.rounding.folded[k]:
                    c -= A.abs() @ rho[k]
                parts = [self._pieces(current.affine, current.affine.back, A)]
            elif not current.sources:
                return Linear(A, c - A.abs() @ rho[k] - UNDERFLOW)
            else:
                c -= A.abs() @ rho[k]
                parts = [A] * len(current.sources)
            for source, part in zip(current.sources, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        return Linear(c.new_zeros(len(c), self.graph.inputs), c - UNDERFLOW)  # no row reads the input

    def _through(self, k: int, lines: Lines, A: Tensor, box: Tensor, floor: Tensor | None, c: Tensor) -> Tensor:
        """Return the coefficients before an activation node, given those after it; add to c what its lines add."""
        rho = self.rounding.rho[k]
        slope, shift = lines.slope.index_select(0, box), lines.shift.index_select(0, box)
        below = lines.floor.index_select(0, box) if floor is None else floor
        negative = A.clamp(max=0)
        c += shift.mul_(negative).sum(1)
        if lines.base is not None:
            c += lines.base.index_select(0, box).mul_(A - negative).sum(1)
        c -= A @ rho - 2 * (negative @ rho)  # |A| . rho without forming |A|
        return torch.addcmul((A - negative).mul_(below), negative, slope)

    def attained(
        self,
        relaxation: Relaxation,
        node: int,
        x: Tensor,
        coefficients: Sequence[Tensor | None],
        box: Tensor | slice = slice(None),
        floor: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return the values of nodes 0..node at which the relaxation attains its bound, each (rows, size).

        The lines that `backward` chose are followed forward from the corner x where each row is least: a row applied
        to the last of these values is its bound.

        Args:
            relaxation, node, floor: as given to `backward`.
            x: (rows, inputs), see `Linear.corner`.
            coefficients: those that `backward` filled in.
            box: (rows,), the box of each row; all of them one by one if left out.
        """
        values, i = [x], 0
        for current in self.graph.nodes[1 : node + 1]:
            self.deadline.check()
            first = values[current.sources[0]]
            if current.affine is not None:
                values.append(self._pieces(current.affine, current.affine.apply, first) + current.affine.bias)
            elif current.activation is None:
                values.append(sum((values[s] for s in current.sources[1:]), first))
            else:
                A, lines = coefficients[i], relaxation.lines[i]
                below = (lines.floor[box] if floor is None else floor[i]) * first
                below = below if lines.base is None else below + lines.base[box]
                above = lines.slope[box] * first + lines.shift[box]
                values.append(below if A is None else torch.where(A < 0, above, below))
                i += 1
        return values

    def attribution(self, relaxation: Relaxation, coefficients: Sequence[Tensor | None], width: Tensor) -> Tensor:
        """Return (boxes, inputs): how much of a bound's looseness a split of each input could take away.

        Only what the lines around a unit lose can be won back. The loss of each, for the row being proved, is shared
        over the inputs by how far they move that unit.

        Args:
            relaxation: of the boxes.
            coefficients: those that `backward` filled in, of one row for each box.
            width: (boxes, inputs), of the boxes.
        """
        n, d = width.shape
        total = torch.zeros_like(width)
        moves: list[Tensor] = [torch.eye(d, dtype=width.dtype, device=width.device).expand(n, d, d)]
        i = 0
        for node in self.graph.nodes[1:-1]:
            first = moves[node.sources[0]]
            if node.affine is not None:
                moved = self._pieces(node.affine, node.affine.apply, first.flatten(0, 1))
                moves.append(moved.reshape(n, d, node.size))
            elif node.activation is None:
                moves.append(sum((moves[s] for s in node.sources[1:]), first))
            else:
                A = coefficients[i]
                if A is not None:
                    share = first.abs() * width[:, :, None]
                    share = share / share.sum(1, keepdim=True).clamp(min=1e-300)
                    total = total + (share @ relaxation.lost(i, A)[:, :, None])[:, :, 0]
                moves.append(first * relaxation.lines[i].slope[:, None, :])
                i += 1
        return total.nan_to_num(0.0)

    def _pieces(self, affine: Affine, map: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return what one of an affine map's functions does to x (rows, size)."""
        return in_pieces(map, x, affine.work, self.deadline)
