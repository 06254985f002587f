"""Linear lower bounds of a network's values over boxes of inputs, sound against rounding (CROWN, Zhang et al. 2018).

For an unstable ReLU h = relu(z) with l <= z <= u the lines `slope z + shift` above and `floor z` below enclose it.
Substituting backwards from `A . v_k` (v_k the value of node k) to the input gives `A0 . x + c <= A . v_k`.

Rounding. The coefficients that come out of each floating-point step are taken as they are; what matters is by how much
the inequality with these coefficients can fail. With gamma = N 2^-53 / (1 - N 2^-53), N the number of operations:

    affine     fl(A W) differs from A W by at most gamma |A| |W|, which moves the bound by at most gamma |A| (|W| m),
               and fl(A . b) from A . b by at most gamma |A| |b|           with m >= |value| for every x of the root box
    ReLU       a product A slope is off by at most 2^-53 |A|, times |z|; the sum of A shift by gamma |A| |z|
    sums       each addition of coefficients or of terms is off by 2^-53 of its result

Every line is at most |A| . rho_k with rho_k = gamma (|W| m + |b| + m_k), a vector that depends on the root box alone.
So one product |A| . rho_k for each node, subtracted from c, covers all of it; N counts generously. The upper line is
shifted up until it is above the ReLU at both ends in exact arithmetic too. Infinities and NaN never prove anything.

Intervals are widened by the same rho_k, which is right for numbers up to m. So each is cut to [-m_k, m_k] once it is
computed: no value of the root box is lost, and the centre and radius of the next step, and every `shift`, are within m.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.affine import PIECE_WORK, Affine, Dense, in_pieces
from nnrepair.verify.reading.graph import Graph, Node

EPS = 2.0**-53
#: Added to every error bound, and once to every linear bound, against underflow. With magnitudes below LIMIT no product
#: that underflows, times a value, comes near the latter.
TINY, UNDERFLOW, LIMIT = 1e-280, 1e-200, 1e100
#: Numbers kept of the rows that are bounded at once.
PIECE_SIZE = 5_000_000


def outputs_over(graph: Graph, lower: Tensor, upper: Tensor, deadline: Deadline = NEVER) -> tuple[Tensor, Tensor]:
    """Return bounds of the outputs over boxes (n, inputs) by intervals alone: for points, and boxes like points.

    Each step is centre and radius, as above, with each box's own intervals as the m that bounds rounding errors.
    Infinities and NaN say that numbers became too large.
    """
    values = [(lower, upper)]
    for node in graph.nodes[1:]:
        deadline.check()
        low, high = values[node.sources[0]]
        if node.affine is not None:
            gamma = (node.affine.terms + 64) * EPS * 1.01
            size = torch.maximum(low.abs(), high.abs())
            spread = (high - low) / 2 + (2 * gamma + node.affine.inexact) * size
            center = in_pieces(node.affine.apply, (low + high) / 2, node.affine.work, deadline) + node.affine.bias
            radius = in_pieces(node.affine.magnitude, spread, node.affine.work, deadline)
            radius = (radius + 2 * gamma * node.affine.bias.abs()) * (1 + 1e-9) + TINY
            values.append((center - radius, center + radius))
        elif node.relu is not None:
            values.append((low.clamp(min=0), high.clamp(min=0)))
        else:
            each = [values[source] for source in node.sources]
            size = sum((torch.maximum(a.abs(), b.abs()) for a, b in each), torch.zeros_like(low))
            error = 4 * len(each) * EPS * size + TINY
            values.append((sum(a for a, _ in each) - error, sum(b for _, b in each) + error))
    return values[-1]


@dataclass
class Relaxation:
    """What is known about the ReLUs of a batch of boxes; every list has one (boxes, neurons) tensor per ReLU node.

    Attributes:
        lower, upper: bounds of what goes into each ReLU.
        slope, shift: the line above it.    floor: the slope of the line below it, in [0, 1].
        unstable: whether the ReLU can be on and off in the box.
    """

    lower: list[Tensor]
    upper: list[Tensor]
    slope: list[Tensor]
    shift: list[Tensor]
    floor: list[Tensor]
    unstable: list[Tensor]

    def joined(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of all ReLUs side by side, (boxes, ReLUs); there may be none."""
        return torch.cat([boxes[:, :0], *self.lower], 1), torch.cat([boxes[:, :0], *self.upper], 1)

    def lost(self, relu: int, A: Tensor) -> Tensor:
        """Return (boxes, neurons): what the lines of a ReLU node lose at most, multiplied by coefficients A."""
        below = torch.minimum(self.upper[relu], -self.lower[relu]).clamp(min=0)
        lost = A.clamp(min=0) * below - A.clamp(max=0) * self.shift[relu]
        return torch.where(self.unstable[relu], lost, 0.0)

    def __getitem__(self, index: Tensor) -> Relaxation:
        return Relaxation(*([t[index] for t in part] for part in vars(self).values()))


@dataclass
class Linear:
    """`A . x + c` for each row: A (rows, inputs), c (rows,)."""

    A: Tensor
    c: Tensor

    def minimum(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the least value over each row's box (rows, inputs); its rounding error is part of c already."""
        middle, radius = (lower + upper) / 2, (upper - lower) / 2
        return self.c + (self.A * middle).sum(1) - (self.A.abs() * radius).sum(1)

    def corner(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the point of each row's box where it is least; the middle along inputs that it does not depend on."""
        middle, radius = (lower + upper) / 2, (upper - lower) / 2
        return torch.clamp(middle - self.A.sign() * radius, lower, upper)

    def __getitem__(self, index: Tensor) -> Linear:
        return Linear(self.A[index], self.c[index])


class Bounder:
    """Bounds over boxes inside one root box.

    Args:
        graph: the network.
        lower, upper: (inputs,), the root box.
        refine: whether to bound the root box backwards too; its values decide how large rounding errors can be.
        deadline: when it has passed, bounding raises OutOfTime, and so does this.
    """

    def __init__(
        self, graph: Graph, lower: Tensor, upper: Tensor, refine: bool = True, deadline: Deadline = NEVER
    ) -> None:
        self.graph, self.deadline = graph, deadline
        self.alone = self._linear_before()
        self.place = {k: i for i, k in enumerate(graph.relus)}
        self.chunk = self._chunk()
        self.folded = self._folded()
        reach = torch.maximum(lower.abs(), upper.abs())
        self.magnitude = self._magnitudes(reach)
        self.rho = self._errors(self.magnitude)
        for _ in range(2):  # from coarse magnitudes to those that the bounds themselves give
            relaxation = self.relax(lower[None], upper[None], refine=refine)
            self.root = relaxation.joined(lower[None])  # hold in every box inside
            self.magnitude = self._magnitudes(reach, relaxation)
            self.rho = self._errors(self.magnitude)

    def _chunk(self) -> int:
        """Return how many neurons to bound at once: what fits a core's cache, or enough to keep a GPU busy."""
        cache, faster = (25_000, 1) if self.graph.device.type == "cpu" else (20_000_000, 100)
        many = max(32, cache // max(node.size for node in self.graph.nodes))
        hardest = max((node.affine.work for node in self.graph.nodes if node.affine is not None), default=0)
        most = faster * min(PIECE_WORK // max(1, hardest), PIECE_SIZE // self.graph.size) // 2  # two rows a neuron
        return max(1, min(many, most))

    def restricted(self, live: Tensor) -> tuple[Bounder, Tensor | None]:
        """Return the same bounds without ReLUs that are off in all boxes at hand, and the places of those that stay.

        A batch of neighbouring boxes has many of them. Only chains of matrices can do without; for other networks
        this returns the bounder itself and None.

        Args:
            live: (ReLUs,) bool, False where the ReLU is off in every box.
        """
        nodes = self.graph.nodes
        dense = all(node.relu is not None or isinstance(node.affine, Dense) for node in nodes[1:])
        if not dense or not all(self.folded[nodes[k].sources[0]] for k in self.graph.relus) or bool(live.all()):
            return self, None
        stays: dict[int, Tensor] = {}  # by node: the entries that are left
        for k in self.graph.relus:
            stays[k] = stays[nodes[k].sources[0]] = live[nodes[k].relu].nonzero()[:, 0]
        thin = copy.copy(self)
        thin.rho, thin.magnitude = (
            [part[stays[k]] if k in stays else part for k, part in enumerate(parts)]
            for parts in (self.rho, self.magnitude)
        )
        fewer, start = [nodes[0]], 0
        for k, node in enumerate(nodes[1:], 1):
            size = len(stays[k]) if k in stays else node.size
            relu = None if node.relu is None else slice(start, start + size)
            start += 0 if relu is None else size
            affine = None
            if isinstance(node.affine, Dense):
                affine = node.affine.part(stays.get(k), stays.get(node.sources[0]))
            fewer.append(Node(node.sources, size, affine, relu))
        thin.graph = Graph(fewer, self.graph.device)
        return thin, live.nonzero()[:, 0]

    def _linear_before(self) -> list[bool]:
        """Tell for each node whether no ReLU comes before it; interval bounds of its affine maps are then exact."""
        alone: list[bool] = []
        for node in self.graph.nodes:
            chain = node.affine is not None and len(node.sources) == 1 and node.sources[0] == 0
            alone.append(chain or not node.sources)
        return alone

    def _folded(self) -> list[bool]:
        """Tell for each node whether one ReLU alone reads it: its error is counted there, as slopes are at most 1."""
        readers: list[list[int]] = [[] for _ in self.graph.nodes]
        for r, node in enumerate(self.graph.nodes):
            for source in set(node.sources):
                readers[source].append(r)
        return [
            len(by) == 1 and self.graph.nodes[by[0]].relu is not None and self.graph.nodes[k].affine is not None
            for k, by in enumerate(readers)
        ]

    def _magnitudes(self, reach: Tensor, relaxation: Relaxation | None = None) -> list[Tensor]:
        """Return bounds on the absolute values of every node over the root box, rounded up."""
        up = 1 + 1e-9  # far above the rounding of these few sums
        m = [reach]
        for k, node in enumerate(self.graph.nodes[1:], 1):
            self.deadline.check()
            if node.affine is not None:
                grown = node.affine.magnitude(m[node.sources[0]][None])[0]
                m.append((grown * (1 + node.affine.inexact) + node.affine.bias.abs()) * up + TINY)
            elif node.relu is None:
                m.append(torch.stack([m[s] for s in node.sources]).sum(0) * up)
            else:
                source = node.sources[0]
                if relaxation is not None:
                    i = self.place[k]
                    known = torch.maximum(relaxation.lower[i][0].abs(), relaxation.upper[i][0].abs())
                    m[source] = torch.fmin(m[source], known)
                m.append(m[source])
        return m

    def _errors(self, m: list[Tensor]) -> list[Tensor]:
        """Return rho: `|A| . rho[k]` bounds what rounding does to the bound at node k."""
        if not all(bool((size < LIMIT).all()) for size in m):
            return [torch.full_like(size, torch.inf) for size in m]
        rho: list[Tensor] = []
        for k, node in enumerate(self.graph.nodes):
            terms = node.size + 4 * len(self.graph.nodes) + 64 + sum(self.graph.nodes[s].size for s in node.sources)
            if node.affine is None:
                folded = rho[node.sources[0]] if node.relu is not None and self.folded[node.sources[0]] else 0.0
                through = torch.stack([m[s] for s in node.sources or (k,)]).sum(0)  # its own bound may be far smaller
                rho.append(4 * terms * EPS * 1.01 * through + folded + TINY)
                continue
            self.deadline.check()
            gamma = (terms + node.affine.terms) * EPS * 1.01
            through = node.affine.magnitude(m[node.sources[0]][None])[0]
            rho.append(2 * gamma * (through + node.affine.bias.abs() + m[k]) + node.affine.inexact * through + TINY)
        return rho

    def raised(self, rows: Tensor, offset: Tensor) -> Tensor:
        """Return the offsets of rows (..., outputs) on the output, raised by what rounding may take from either.

        That is what coefficients lose that are not exact, and the final subtraction of the offset.
        """
        reach, sizes = self.magnitude[-1], list[Tensor]()
        for part in torch.split(rows, max(1, PIECE_SIZE // max(1, rows[:1].numel()))):
            self.deadline.check()
            sizes.append(part.abs() @ reach)
        return offset + 8 * EPS * (torch.cat(sizes) + offset.abs()) + 1e-290 * reach.sum()

    # Bounds ----------------------------------------------------------------------------------------------------------

    def relax(
        self,
        lower: Tensor,
        upper: Tensor,
        known: tuple[Tensor, Tensor] | None = None,
        refine: bool = True,
        steps: int = 0,
    ) -> Relaxation:
        """Return the ReLUs' bounds over boxes (boxes, inputs).

        Args:
            lower, upper: the boxes.
            known: bounds (boxes, ReLUs) that hold already, from boxes around these.
            refine: also bound unstable ReLUs backwards, not by intervals alone.
            steps: improvement steps for each of these bounds.
        """
        return self._intervals(lower, upper, known, refine, steps)[0]

    def _intervals(
        self, lower: Tensor, upper: Tensor, known: tuple[Tensor, Tensor] | None, refine: bool, steps: int = 0
    ) -> tuple[Relaxation, list[tuple[Tensor, Tensor]]]:
        """Return the ReLUs' bounds and every node's interval."""
        graph = self.graph
        relaxation = Relaxation([], [], [], [], [], [])
        values: list[tuple[Tensor, Tensor]] = [(lower, upper)]
        for k, node in enumerate(graph.nodes[1:], 1):
            self.deadline.check()
            first = values[node.sources[0]]
            if node.affine is not None:
                middle, radius = (first[0] + first[1]) / 2, (first[1] - first[0]) / 2
                center = self._pieces(node.affine, node.affine.apply, middle) + node.affine.bias
                radius = self._pieces(node.affine, node.affine.magnitude, radius) + self.rho[k]
                values.append(self._clipped(k, center - radius, center + radius))
            elif node.relu is None:
                low, high = (sum((values[s][i] for s in node.sources[1:]), first[i]) for i in (0, 1))
                values.append(self._clipped(k, low - self.rho[k], high + self.rho[k]))
            else:
                low, high = first
                if known is not None:
                    low = torch.maximum(low, known[0][:, node.relu])
                    high = torch.minimum(high, known[1][:, node.relu])
                if refine and not self.alone[node.sources[0]]:
                    low, high = self._refined(relaxation, node.sources[0], lower, upper, low, high, steps)
                self._append(relaxation, low, high)
                values.append((low.clamp(min=0), high.clamp(min=0)))
        return relaxation, values

    def _pieces(self, affine: Affine, map: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return what one of an affine map's functions does to x (rows, size)."""
        return in_pieces(map, x, affine.work, self.deadline)

    def _clipped(self, node: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return an interval without what no input of the root box reaches: rho covers rounding within this only."""
        return torch.fmax(low, -self.magnitude[node]), torch.fmin(high, self.magnitude[node])

    def _refined(
        self, relaxation: Relaxation, node: int, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Return the bounds of the ReLUs that read `node`, with backward bounds where they are unstable."""
        unstable = (low < 0) & (high > 0)
        box, neuron = unstable.nonzero(as_tuple=True)
        if not len(box):
            return low, high
        low, high = low.clone(), high.clone()
        for start in range(0, len(box), self.chunk):
            b, n = box[start : start + self.chunk], neuron[start : start + self.chunk]
            twice, current = torch.cat([b, b]), self.graph.nodes[node]
            if current.affine is not None:  # its rows are there to be picked
                source, rows, offset = current.sources[0], current.affine.rows(n), current.affine.bias[n]
            else:
                source, offset = node, low.new_zeros(len(n))
                rows = torch.nn.functional.one_hot(n, current.size).to(low)
            A, loss = torch.cat([rows, -rows]), torch.cat([self.rho[node][n] - offset, self.rho[node][n] + offset])
            if steps:  # towards zero, where the ReLU would be stable, but not all the way: most cannot get there
                value, _ = self.improve(
                    relaxation[twice], source, A, loss, lower[twice], upper[twice], steps, ahead=-0.7
                )
            else:
                value = self.backward(relaxation, source, A, twice).minimum(lower[twice], upper[twice]) - loss
            low[b, n] = torch.fmax(low[b, n], value[: len(b)])
            high[b, n] = torch.fmin(high[b, n], -value[len(b) :])
        return low, high

    @staticmethod
    def _append(relaxation: Relaxation, low: Tensor, high: Tensor) -> None:
        low, high = low.nan_to_num(-torch.inf, torch.inf, -torch.inf), high.nan_to_num(torch.inf, torch.inf, -torch.inf)
        unstable = (low < 0) & (high > 0)
        on = (low >= 0).to(low)
        span = torch.where(unstable, high - low, 1.0)
        slope = torch.where(unstable, high / span, on)
        # 2e-15 of the span lifts the line above the ReLU at both ends whatever the rounding of slope and product.
        shift = torch.where(unstable, -slope * low + 2e-15 * span, 0.0)
        floor = torch.where(unstable, (high > -low).to(low), on)
        for part, value in zip(vars(relaxation).values(), (low, high, slope, shift, floor, unstable), strict=True):
            part.append(value)

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
                c -= A @ self.rho[k] - 2 * (negative @ self.rho[k])  # |A| . rho without forming |A|
                part = torch.addcmul((A - negative).mul_(below), negative, slope)
                if force is not None:  # z >= 0 gives A z >= (A - f) z for f >= 0, and likewise below
                    part -= force[i]
                    c -= force[i].abs() @ self.rho[k]
                parts = [part]
            elif current.affine is not None:
                c += A @ current.affine.bias
                if not self.folded[k]:
                    c -= A.abs() @ self.rho[k]
                parts = [self._pieces(current.affine, current.affine.back, A)]
            elif not current.sources:
                return Linear(A, c - A.abs() @ self.rho[k] - UNDERFLOW)
            else:
                c -= A.abs() @ self.rho[k]
                parts = [A] * len(current.sources)
            for source, part in zip(current.sources, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        return Linear(c.new_zeros(len(c), self.graph.inputs), c - UNDERFLOW)  # no row reads the input

    def improve(
        self,
        relaxation: Relaxation,
        node: int,
        A: Tensor,
        offset: Tensor,
        lower: Tensor,
        upper: Tensor,
        steps: int,
        ahead: float = 0.5,
        phase: Sequence[Tensor] | None = None,
        keep: list[Tensor | None] | None = None,
    ) -> tuple[Tensor, Linear]:
        """Choose the slopes of the lower lines so that rows become positive; one row for each box.

        Supergradient ascent with Polyak's step towards a value a little above zero; a row stops when it is positive.
        Any slopes in [0, 1] are sound. On boxes with few unstable ReLUs this comes close to the linear program over
        all single-neuron relaxations.

        Args:
            relaxation: of the boxes.
            node: whose value the rows are about.
            A, offset: rows (boxes, size) and (boxes,): bounds are of `A . v_node - offset`.
            lower, upper: the boxes (boxes, inputs).
            steps: at most so many backward passes.
            ahead: how far above zero to aim, as a share of the distance to it.
            phase: per ReLU node (boxes, neurons), 1 where a ReLU is taken to be on, -1 where off, else 0; conditions
                whose multipliers are then chosen too (Wang et al. 2021, beta-CROWN).
            keep: filled with the coefficients on what comes out of each ReLU node, of the last step.

        Returns:
            The best value of each row and the linear bound that has it.
        """
        live = torch.arange(len(A), device=A.device)
        floor = [f.clone() for f in relaxation.floor]
        force = None if phase is None else [torch.zeros_like(f) for f in floor]
        best = A.new_full((len(A),), -torch.inf)
        found = Linear(A.new_zeros(len(A), self.graph.inputs), best.clone())
        kept: list[Tensor | None] = []
        for step in range(steps):
            slopes = floor if len(live) == len(best) else [f[live] for f in floor]
            forces = None if force is None else [f[live] for f in force]
            bound = self.backward(relaxation, node, A[live], live, floor=slopes, force=forces, keep=kept)
            bound.c = bound.c - offset[live]
            value = bound.minimum(lower[live], upper[live])
            value = torch.where(torch.isfinite(value), value, -torch.inf)
            better = value > best[live]
            chosen = live[better]
            best[chosen], found.A[chosen], found.c[chosen] = value[better], bound.A[better], bound.c[better]
            if keep is not None:
                self._keep(keep, kept, live, len(best))
            going = ~(best[live] > 0)
            if step == steps - 1 or not bool(going.any()):
                break
            x = bound.corner(lower[live], upper[live])
            gradient, pull = self._ascent(relaxation, node, live, x, kept, slopes, phase)
            square = sum(((g * g).sum(1) for g in (*gradient, *pull)), torch.full_like(value, TINY))
            length = ((ahead * value.abs() - value + 1e-9) / square)[:, None]
            for f, g, old in zip(floor, gradient, slopes, strict=True):
                f[live] = (old + length * g).clamp(0, 1)
            if force is not None and forces is not None and phase is not None:
                for f, g, old, sign in zip(force, pull, forces, phase, strict=True):
                    on = sign[live]
                    f[live] = ((old + length * g) * on).clamp(min=0) * on
            live = live[going]
        return best, found

    @staticmethod
    def _keep(keep: list[Tensor | None], kept: Sequence[Tensor | None], live: Tensor, rows: int) -> None:
        """Copy the coefficients of the live rows into those of all."""
        if len(live) == rows:
            keep[:] = list(kept)
            return
        for i, part in enumerate(kept):
            old = keep[i]
            if part is not None and old is not None:
                keep[i] = old.index_copy(0, live, part)

    def _ascent(
        self,
        relaxation: Relaxation,
        node: int,
        box: Tensor,
        x: Tensor,
        keep: Sequence[Tensor | None],
        floor: Sequence[Tensor],
        phase: Sequence[Tensor] | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return each row's derivatives by slopes and by multipliers, at the corner x where its bound is least."""
        values = self.attained(relaxation, node, x, keep, box, floor)
        gradient: list[Tensor] = []
        pull: list[Tensor] = []
        for current in self.graph.nodes[1 : node + 1]:
            if current.relu is None:
                continue
            i, first = len(gradient), values[current.sources[0]]
            A = keep[i]
            slope = torch.zeros_like(first) if A is None else torch.where(A < 0, 0.0, A * first)
            slope = torch.where(relaxation.unstable[i][box], slope, 0.0)
            blocked = ((floor[i] <= 0) & (slope < 0)) | ((floor[i] >= 1) & (slope > 0))
            gradient.append(slope.masked_fill(blocked, 0.0))
            if phase is not None:
                pull.append(-first * phase[i][box].abs())
        later = [torch.zeros_like(f) for f in floor[len(gradient) :]]
        return gradient + later, pull + (later if phase is not None else [])

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
