"""Linear lower bounds by substitution (CROWN, Zhang et al. 2018).

For an unstable ReLU h = relu(z) with l <= z <= u the lines `slope z + shift` above and `floor z` below enclose it.
Substituting backwards from `A . v_k` (v_k the value of node k) to the input gives `A0 . x + c <= A . v_k`. The same
lines, followed forward, say where that bound is attained and which inputs make it loose. For rounding see `magnitudes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.affine import Affine, in_pieces
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.magnitudes import UNDERFLOW, Rounding
from nnrepair.verify.search.relaxation import Linear, Relaxation


class Substitution:
    """Lines around ReLUs, substituted backward and followed forward.

    Args:
        graph: the network.
        rounding: over the root box that contains all boxes.
        deadline: when it has passed, everything here raises OutOfTime.
    """

    def __init__(self, graph: Graph, rounding: Rounding, deadline: Deadline = NEVER) -> None:
        self.graph, self.rounding, self.deadline = graph, rounding, deadline
        self.place = {k: i for i, k in enumerate(graph.relus)}

    def backward(
        self,
        relaxation: Relaxation,
        node: int,
        A: Tensor,
        box: Tensor,
        *,
        floor: Sequence[Tensor] | None = None,
        force: Sequence[Tensor] | None = None,
        keep: list[Tensor | None] | None = None,
    ) -> Linear:
        """Return linear lower bounds of `A . v_node` over each row's box.

        Args:
            relaxation: of the boxes.
            node: whose value the rows are about.
            A: (rows, size of the node).
            box: (rows,), the box of each row.
            floor: other slopes of the lines below, per ReLU node (rows, neurons).
            force: multipliers of conditions `z >= 0` (positive) or `z <= 0` (negative) on what goes into ReLUs, per
                ReLU node (rows, neurons); the bounds then hold wherever the conditions do.
            keep: filled with the coefficients (rows, neurons) on what comes out of each ReLU node.
        """
        if keep is not None:
            keep[:] = [None] * len(self.place)
        pending: dict[int, Tensor] = {node: A}
        rho = self.rounding.rho
        c = A.new_zeros(len(A))
        for k in range(node, -1, -1):
            if k not in pending:
                continue
            self.deadline.check()
            A = pending.pop(k)
            current = self.graph.nodes[k]
            if current.relu is not None:
                i = self.place[k]
                if keep is not None:
                    keep[i] = A
                slope, shift = relaxation.slope[i].index_select(0, box), relaxation.shift[i].index_select(0, box)
                below = relaxation.floor[i].index_select(0, box) if floor is None else floor[i]
                negative = A.clamp(max=0)
                c += shift.mul_(negative).sum(1)
                c -= A @ rho[k] - 2 * (negative @ rho[k])  # |A| . rho without forming |A|
                part = torch.addcmul((A - negative).mul_(below), negative, slope)
                if force is not None:  # z >= 0 gives A z >= (A - f) z for f >= 0, and likewise below
                    part -= force[i]
                    c -= force[i].abs() @ rho[k]
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

    def attained(
        self,
        relaxation: Relaxation,
        node: int,
        x: Tensor,
        keep: Sequence[Tensor | None],
        box: Tensor | slice = slice(None),
        floor: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return the values of nodes 0..node at which the relaxation attains its bound, each (rows, size).

        The lines that `backward` chose are followed forward from the corner x where each row is least: a row applied
        to the last of these values is its bound.

        Args:
            relaxation, node, floor: as given to `backward`.
            x: (rows, inputs), see `Linear.corner`.
            keep: the coefficients that `backward` kept.
            box: (rows,), the box of each row; all of them one by one if left out.
        """
        values, i = [x], 0
        for current in self.graph.nodes[1 : node + 1]:
            self.deadline.check()
            first = values[current.sources[0]]
            if current.affine is not None:
                values.append(self._pieces(current.affine, current.affine.apply, first) + current.affine.bias)
            elif current.relu is None:
                values.append(sum((values[s] for s in current.sources[1:]), first))
            else:
                A, below = keep[i], (relaxation.floor[i][box] if floor is None else floor[i]) * first
                above = relaxation.slope[i][box] * first + relaxation.shift[i][box]
                values.append(below if A is None else torch.where(A < 0, above, below))
                i += 1
        return values

    def attribution(self, relaxation: Relaxation, keep: Sequence[Tensor | None], width: Tensor) -> Tensor:
        """Return (boxes, inputs): how much of a bound's looseness a split of each input could take away.

        Only what the relaxation of an unstable ReLU loses can be won back. The loss of each, for the row being proved,
        is shared over the inputs by how far they move that ReLU.

        Args:
            relaxation: of the boxes.
            keep: the coefficients that `backward` kept, of one row for each box.
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
            elif node.relu is None:
                moves.append(sum((moves[s] for s in node.sources[1:]), first))
            else:
                A = keep[i]
                if A is not None:
                    share = first.abs() * width[:, :, None]
                    share = share / share.sum(1, keepdim=True).clamp(min=1e-300)
                    total = total + (share @ relaxation.lost(i, A)[:, :, None])[:, :, 0]
                moves.append(first * relaxation.slope[i][:, None, :])
                i += 1
        return total.nan_to_num(0.0)

    def _pieces(self, affine: Affine, map: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return what one of an affine map's functions does to x (rows, size)."""
        return in_pieces(map, x, affine.work, self.deadline)
