"""Bounds of two networks of one shape, unit beside unit: of each of them, and of how far twins are apart.

What goes into twin ReLUs, z before and z + d after, gives D = max(z + d, 0) - max(z, 0), which lies between min(d, 0)
and max(d, 0) whatever z is (Paulsen et al. 2020, ReluDiff and NeuroDiff). For d in [l, u] the lines through the ends of
these two, over [l, u], enclose it. Here they are substituted backward: of coefficients a and b on what comes out of
twins with opposite signs, the part that they have in common is one on D, and only the rest is bounded for each
network by itself. So a bound of a difference hangs on the small d where the networks compute nearly the same, and is
never far from the two networks' own bounds where they do not.

Rounding is covered as in `magnitudes`, by |a| . rho before and |b| . rho after, twice: coefficients on z are at most
|a|, those on z + d at most |b|, as slopes are between 0 and 1; and l and u are within the sum of both magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.errors import UnsupportedModel
from nnrepair.verify.reading.activations.relu import RELU
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.magnitudes import UNDERFLOW
from nnrepair.verify.search.relaxation import Linear, Relaxation

#: Rows that are bounded at once, times units: what a cache holds.
CACHE = 200_000
#: Maps with more weights are not written out as matrices.
MOST_WEIGHTS = 20_000_000
Known = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """One node of both networks; before comes first.

    Attributes:
        weight, bias: (2, units, units before) and (2, units) of maps; None for ReLUs.
        rho: (2, units), what rounding takes, see `magnitudes`.
        folded: whether that of a map is part of the ReLUs' behind it.
    """

    weight: Tensor | None
    bias: Tensor
    rho: Tensor
    folded: bool

    def part(self, units: Tensor | slice, before: Tensor | slice) -> Step:
        """Return the same for some units, and some of those before."""
        weight = None if self.weight is None else self.weight[:, units][:, :, before]
        return Step(
            weight, self.bias[:, units] if self.weight is not None else self.bias, self.rho[:, units], self.folded
        )


class Twins:
    """Two networks of one shape over one root box.

    Args:
        before, after: chains of maps and ReLUs, with equally many units everywhere.
        lower, upper: (inputs,), the root box.
        deadline: when to end.

    Raises:
        UnsupportedModel: they are no such chains.
    """

    def __init__(self, before: Graph, after: Graph, lower: Tensor, upper: Tensor, deadline: Deadline) -> None:
        require_twins(before, after)
        self.deadline = deadline
        self.sides = [Bounder(graph, lower, upper, deadline=deadline) for graph in (before, after)]
        self.steps = [self._step(k) for k in range(len(before.nodes))]

    def _step(self, k: int) -> Step:
        nodes = [side.graph.nodes[k] for side in self.sides]
        rho = torch.stack([side.rounding.rho[k] for side in self.sides])
        maps = [node.affine for node in nodes if node.affine is not None]
        if not maps:
            return Step(None, rho.new_zeros(0), rho, False)
        every = torch.arange(nodes[0].size)
        weight = torch.stack([each.rows(every) for each in maps])
        return Step(weight, torch.stack([each.bias for each in maps]), rho, self.sides[0].rounding.folded[k])

    @property
    def root(self) -> Known:
        """Bounds (1, units) of what goes into the ReLUs of either network, all over the root box."""
        return self.sides[0].root, self.sides[1].root

    def over(self, lower: Tensor, upper: Tensor, known: Known) -> Bounds:
        """Return bounds over boxes (boxes, inputs), given some of the units that hold already, (boxes, units) each."""
        parts = []
        for side, ends in zip(self.sides, known, strict=True):
            if side.chain is None:
                parts.append(side.relax(lower, upper, ends))
            else:
                parts.append(Relaxation.of(side.graph, *side.chain.tightened(lower, upper, *ends, self.deadline)))
        return Bounds(self, lower, upper, parts)


@dataclass
class Between:
    """Lines around twin ReLUs of a batch of boxes.

    Attributes:
        slope, shift, floor: (2, boxes, units), above, and below through zero, of each of them.
        rise, base: (2, boxes, units), of D: `rise d + base`, below and above.
        near: (boxes, units) bool, where these lose less than the two networks' own lines.
        lost: (boxes, units), about what D's lines lose; `above` and `below` (2, boxes, units): what the others do.
    """

    slope: Tensor
    shift: Tensor
    floor: Tensor
    rise: Tensor
    base: Tensor
    near: Tensor
    lost: Tensor
    above: Tensor
    below: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor, l: Tensor, u: Tensor) -> Between:  # noqa: E741
        """Return lines for bounds (2, boxes, units) of what goes in, and (boxes, units) of d."""
        own = RELU.relax(low, high)
        l_, u_ = l.clamp(max=0), u.clamp(min=0)
        span = u_ - l_
        rise = torch.stack([-l_, u_]) / span.clamp(min=1e-300)
        lift = 2e-15 * span  # more than the rounding of slope and product
        base = torch.stack([-rise[0] * u_ - lift, -rise[1] * l_ + lift])
        lost = torch.maximum(u_, -l_)
        above, below = own.shift, torch.where(own.loose, torch.minimum(high, -low), 0.0)
        near = lost < torch.minimum(above[0] + below[1], above[1] + below[0])
        return cls(own.slope, own.shift, own.floor, rise, base, near, lost, above, below)


class Bounds:
    """A batch of boxes, without the units that are zero in all of them, with lines around all the others.

    Attributes:
        lower, upper: (boxes, inputs).
        known: bounds of what goes into all ReLUs, (boxes, units) of each network.
    """

    def __init__(self, twins: Twins, lower: Tensor, upper: Tensor, parts: list[Relaxation]) -> None:
        self.twins, self.lower, self.upper = twins, lower, upper
        self.known: Known = parts[0].joined(lower), parts[1].joined(lower)
        self.steps, self.lines = [twins.steps[0]], dict[int, Between]()
        live: Tensor | slice = slice(None)
        bent = twins.sides[0].graph.bent
        for k, step in enumerate(twins.steps[1:], 1):
            if k + 1 in bent:  # the units of a map that ReLUs read
                i = bent.index(k + 1)
                ends = [torch.stack([part.lower[i] for part in parts]), torch.stack([part.upper[i] for part in parts])]
                units = (ends[1] > 0).flatten(0, 1).any(0).nonzero()[:, 0]
                self.steps.append(step.part(units, live))
                low, high = (end[:, :, units] for end in ends)
                self.lines[k + 1] = Between.of(low, high, *self._apart(k, low, high))
                live = units
            elif step.weight is None:
                self.steps.append(step.part(live, live))
            else:
                self.steps.append(step.part(slice(None), live))
                live = slice(None)

    def _apart(self, k: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds (boxes, units) of what a map gives after, less what it gives before."""
        l, u = low[1] - high[0], high[1] - low[0]  # noqa: E741
        l, u = l - 1e-15 * l.abs(), u + 1e-15 * u.abs()  # noqa: E741
        on, off = (low >= 0).all(0), (high <= 0).all(0)
        box, unit = (~(on | off)).nonzero(as_tuple=True)
        step = self.steps[k]
        assert step.weight is not None
        shift, loss = step.bias[1] - step.bias[0], 2 * step.rho.sum(0)
        for start in range(0, len(box), self._together):
            b, n = box[start : start + self._together], unit[start : start + self._together]
            rows = torch.stack([-step.weight[0, n], step.weight[1, n]])
            both = torch.cat([rows, -rows], 1)
            value = self.backward(k - 1, both, torch.cat([b, b])).minimum(
                self.lower[b].repeat(2, 1), self.upper[b].repeat(2, 1)
            )
            l[b, n] = torch.fmax(l[b, n], value[: len(b)] + shift[n] - loss[n])
            u[b, n] = torch.fmin(u[b, n], shift[n] - value[len(b) :] + loss[n])
        return l, u

    @property
    def _together(self) -> int:
        widest = max(1, *(step.rho.shape[1] for step in self.steps[1:]))  # 0 where all units are off
        return max(16, CACHE // (4 * widest))

    def rows(self, A: Tensor, box: Tensor) -> Linear:
        """Return lower bounds of rows A (k, 2 outputs) of both networks' outputs, over boxes (k,)."""
        found = []
        for part, b in zip(*(torch.split(v, self._together) for v in (A, box)), strict=True):
            found.append(self.backward(len(self.steps) - 1, torch.stack(part.chunk(2, 1)), b))
        return Linear(torch.cat([each.A for each in found]), torch.cat([each.c for each in found]))

    def backward(self, k: int, A: Tensor, box: Tensor, losses: dict[int, Tensor] | None = None) -> Linear:
        """Return linear lower bounds of rows (2, rows, units) on node k, over the box of each.

        `losses` is filled with what the lines around each unit lose, (rows, units), by node.
        """
        c = A.new_zeros(A.shape[1])
        for j in range(k, 0, -1):
            self.twins.deadline.check()
            step = self.steps[j]
            if step.weight is None:
                A = self._through(j, A, box, c, losses)
            else:
                c += (A @ step.bias[:, :, None]).sum((0, 2))
                if not step.folded:
                    c -= 2 * (A.abs() @ step.rho[:, :, None]).sum((0, 2))
                A = A @ step.weight
        c -= 2 * (A.abs() @ self.steps[0].rho[:, :, None]).sum((0, 2))
        return Linear(A.sum(0), c - UNDERFLOW)

    def _through(self, j: int, A: Tensor, box: Tensor, c: Tensor, losses: dict[int, Tensor] | None) -> Tensor:
        """Return coefficients before twin ReLUs, given those after; add to c what the lines add."""
        lines = self.lines[j]
        c -= 2 * (A.abs() @ self.steps[j].rho[:, :, None]).sum((0, 2))
        smaller = torch.minimum(*A.abs())
        common = torch.where((A[0] < 0) & (A[1] > 0), smaller, torch.where((A[0] > 0) & (A[1] < 0), -smaller, 0.0))
        common = torch.where(lines.near[box], common, 0.0)
        rest = torch.stack([A[0] + common, A[1] - common])
        negative = rest.clamp(max=0)
        out = (rest - negative) * lines.floor[:, box] + negative * lines.slope[:, box]
        add = (negative * lines.shift[:, box]).sum(0)
        if losses is not None:
            losses[j] = common.abs() * lines.lost[box] + (
                (rest - negative) * lines.below[:, box] - negative * lines.above[:, box]
            ).sum(0)
        below = common > 0
        move = common * torch.where(below, lines.rise[0, box], lines.rise[1, box])
        add += common * torch.where(below, lines.base[0, box], lines.base[1, box])
        c += add.sum(1)
        return out + torch.stack([-move, move])

    def attribution(self, A: Tensor, box: Tensor) -> Tensor:
        """Return (rows, inputs): what a split of each input could win back of a row's bound over its box.

        What lines around units lose is shared over the inputs by how far they move these units.
        """
        losses = dict[int, Tensor]()
        self.backward(len(self.steps) - 1, torch.stack(A.chunk(2, 1)), box, losses)
        width = (self.upper - self.lower)[box]
        n, d = width.shape
        total, moves = torch.zeros_like(width), torch.eye(d, dtype=width.dtype).expand(n, d, d)
        for k, step in enumerate(self.steps[1:-1], 1):
            if step.weight is not None:
                moves = moves @ step.weight[0].T
            else:
                share = moves.abs() * width[:, :, None]
                share = share / share.sum(1, keepdim=True).clamp(min=1e-300)
                total = total + (share @ losses[k][:, :, None])[:, :, 0]
                moves = moves * self.lines[k].slope[0, box][:, None, :]
        return total.nan_to_num(0.0)


def require_twins(before: Graph, after: Graph) -> None:
    """Require two chains of maps and ReLUs with equally many units everywhere.

    Raises:
        UnsupportedModel: they are others.
    """
    shapes = [[(n.sources, n.size, n.affine is None) for n in graph.nodes] for graph in (before, after)]
    for graph in (before, after):
        for k, node in enumerate(graph.nodes[1:], 1):
            is_map = node.affine is not None and not node.affine.inexact and node.affine.off is None
            is_bent = node.activation is RELU and graph.nodes[k - 1].affine is not None
            if node.sources != (k - 1,) or not (is_map or is_bent):
                raise UnsupportedModel(
                    "Networks are compared unit by unit if they are chains of linear or convolution layers and ReLUs; "
                    f"node {k} of one of them is something else. `compare` takes other networks, too."
                )
            if is_map and node.size * graph.nodes[k - 1].size > MOST_WEIGHTS:
                raise UnsupportedModel(f"A layer has more than {MOST_WEIGHTS} weights when written as a matrix.")
    if shapes[0] != shapes[1] or before.nodes[-1].affine is None:
        raise UnsupportedModel(
            "Networks are compared unit by unit if they have the same layers, and end with a linear one; got layers of "
            f"{[n.size for n in before.nodes]} and of {[n.size for n in after.nodes]} units. `compare` takes others."
        )
