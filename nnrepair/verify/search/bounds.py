"""Bounds of what goes into every ReLU over boxes inside one root box, sound against rounding."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.affine import PIECE_WORK, Dense
from nnrepair.verify.reading.graph import Graph, Node
from nnrepair.verify.search.magnitudes import PIECE_SIZE, Rounding
from nnrepair.verify.search.relaxation import Linear, Relaxation
from nnrepair.verify.search.slopes import Ascent
from nnrepair.verify.search.substitution import Substitution


class Bounder(Substitution):
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
        super().__init__(graph, Rounding(graph, torch.maximum(lower.abs(), upper.abs()), deadline), deadline)
        self.alone = self._linear_before()
        self.chunk = self._chunk()
        for _ in range(2):  # from coarse magnitudes to those that the bounds themselves give
            relaxation = self.relax(lower[None], upper[None], refine=refine)
            self.root = relaxation.joined(lower[None])  # hold in every box inside
            self.rounding.tighten(relaxation)

    def restricted(self, live: Tensor) -> tuple[Bounder, Tensor | None]:
        """Return the same bounds without ReLUs that are off in all boxes at hand, and the places of those that stay.

        A batch of neighbouring boxes has many of them. Only chains of matrices can do without; for other networks
        this returns the bounder itself and None.

        Args:
            live: (ReLUs,) bool, False where the ReLU is off in every box.
        """
        nodes = self.graph.nodes
        dense = all(node.relu is not None or isinstance(node.affine, Dense) for node in nodes[1:])
        if (
            not dense
            or not all(self.rounding.folded[nodes[k].sources[0]] for k in self.graph.relus)
            or bool(live.all())
        ):
            return self, None
        stays: dict[int, Tensor] = {}  # by node: the entries that are left
        for k in self.graph.relus:
            stays[k] = stays[nodes[k].sources[0]] = live[nodes[k].relu].nonzero()[:, 0]
        thin = copy.copy(self)
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
        thin.rounding = self.rounding.restricted(thin.graph, stays)
        return thin, live.nonzero()[:, 0]

    def _chunk(self) -> int:
        """Return how many neurons to bound at once: what fits a core's cache, or enough to keep a GPU busy."""
        cache, faster = (25_000, 1) if self.graph.device.type == "cpu" else (20_000_000, 100)
        many = max(32, cache // max(node.size for node in self.graph.nodes))
        hardest = max((node.affine.work for node in self.graph.nodes if node.affine is not None), default=0)
        most = faster * min(PIECE_WORK // max(1, hardest), PIECE_SIZE // self.graph.size) // 2  # two rows a neuron
        return max(1, min(many, most))

    def _linear_before(self) -> list[bool]:
        """Tell for each node whether no ReLU comes before it; interval bounds of its affine maps are then exact."""
        alone: list[bool] = []
        for node in self.graph.nodes:
            chain = node.affine is not None and len(node.sources) == 1 and node.sources[0] == 0
            alone.append(chain or not node.sources)
        return alone

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
                radius = self._pieces(node.affine, node.affine.magnitude, radius) + self.rounding.rho[k]
                values.append(self.rounding.clipped(k, center - radius, center + radius))
            elif node.relu is None:
                low, high = (sum((values[s][i] for s in node.sources[1:]), first[i]) for i in (0, 1))
                values.append(self.rounding.clipped(k, low - self.rounding.rho[k], high + self.rounding.rho[k]))
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
            A, loss = (
                torch.cat([rows, -rows]),
                torch.cat([self.rounding.rho[node][n] - offset, self.rounding.rho[node][n] + offset]),
            )
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
        """Choose the slopes of the lower lines so that rows become positive, one row for each box; see `Ascent`."""
        return Ascent(self, relaxation, node, A, offset, lower, upper, phase).run(steps, ahead, keep)
