"""Bounds of what goes into every activation over boxes inside one root box, sound against rounding."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.affine import PIECE_WORK, Dense
from nnrepair.verify.reading.graph import Graph, Node
from nnrepair.verify.search.forms import Form
from nnrepair.verify.search.intervals import Interval
from nnrepair.verify.search.loose import Chain
from nnrepair.verify.search.magnitudes import PIECE_SIZE, Rounding
from nnrepair.verify.search.relaxation import Linear, Relaxation
from nnrepair.verify.search.slopes import Ascent, Stack
from nnrepair.verify.search.substitution import Substitution

#: Where there are few inputs, and bounding all units of a box backwards would take so many multiplications, values are
#: followed forward as affine forms instead.
FORM_INPUTS, FORM_WORK = 24, 1_000_000_000


class Bounder(Substitution):
    """Bounds over boxes inside one root box.

    Args:
        graph: the network.
        lower, upper: (inputs,), the root box.
        refine: whether to bound the root box backwards too; its values decide how large rounding errors can be.
        deadline: when it has passed, bounding raises OutOfTime, and so does this.
    """

    def __init__(
        self,
        graph: Graph,
        lower: Tensor,
        upper: Tensor,
        refine: bool = True,
        deadline: Deadline = NEVER,
    ) -> None:
        super().__init__(graph, Rounding(graph, lower, upper, deadline), deadline)
        self.alone = self._linear_before()
        self.has_forms = refine and graph.inputs <= FORM_INPUTS and graph.hidden * graph.work >= FORM_WORK
        self.chunk = self._chunk()
        self.chain = Chain.of(graph, deadline) if refine and self.rounding.is_finite else None
        for _ in range(2):  # from coarse magnitudes to those that the bounds themselves give
            relaxation = self.relax(lower[None], upper[None], refine=refine and self.chain is None)
            self.root = relaxation.joined(lower[None])  # hold in every box inside
            if self.chain is not None:
                known = self.chain.tightened(lower[None], upper[None], *self.root, deadline)
                relaxation = self.relax(lower[None], upper[None], known, refine=False)
                self.root = relaxation.joined(lower[None])
            self.rounding.tighten(relaxation)

    def restricted(self, live: Tensor) -> tuple[Bounder, Tensor | None]:
        """Return the same bounds without units that are zero in all boxes at hand, and the places of those that stay.

        A batch of neighbouring boxes has many of them. Only chains of matrices can do without; for other networks
        this returns the bounder itself and None.

        Args:
            live: (units,) bool, False where the unit is zero in every box.
        """
        nodes = self.graph.nodes
        dense = all(node.activation is not None or isinstance(node.affine, Dense) for node in nodes[1:])
        if not dense or not all(self.rounding.folded[nodes[k].sources[0]] for k in self.graph.bent) or bool(live.all()):
            return self, None
        stays: dict[int, Tensor] = {}  # by node: the entries that are left
        for k in self.graph.bent:
            stays[k] = stays[nodes[k].sources[0]] = live[nodes[k].units].nonzero()[:, 0]
        thin = copy.copy(self)
        fewer, start = [nodes[0]], 0
        for k, node in enumerate(nodes[1:], 1):
            size = len(stays[k]) if k in stays else node.size
            units = None if node.activation is None else slice(start, start + size)
            start += 0 if units is None else size
            affine = None
            if isinstance(node.affine, Dense):
                affine = node.affine.part(stays.get(k), stays.get(node.sources[0]))
            fewer.append(Node(node.sources, size, affine, node.activation, units))
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
        """Tell for each node whether no activation comes before it; intervals of its affine maps are then exact."""
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
        """Return the units' bounds over boxes (boxes, inputs).

        Args:
            lower, upper: the boxes.
            known: bounds (boxes, units) that hold already, from boxes around these.
            refine: also bound loose units backwards, or by affine forms, not by intervals alone.
            steps: improvement steps for each of these bounds.
        """
        return self._intervals(lower, upper, known, refine, steps)[0]

    def _intervals(
        self, lower: Tensor, upper: Tensor, known: tuple[Tensor, Tensor] | None, refine: bool, steps: int = 0
    ) -> tuple[Relaxation, list[tuple[Tensor, Tensor]]]:
        """Return the units' bounds and every node's interval."""
        graph = self.graph
        relaxation = Relaxation()
        values: list[tuple[Tensor, Tensor]] = [(lower, upper)]
        forms = [Form.of_inputs(lower, upper)] if self.has_forms else []
        for k, node in enumerate(graph.nodes[1:], 1):
            self.deadline.check()
            first = values[node.sources[0]]
            if forms and node.activation is None:
                given = [forms[source] for source in node.sources]
                forms.append(given[0].through(node.affine, self.deadline) if node.affine else Form.total(given))
            if node.affine is not None:
                middle, radius = (first[0] + first[1]) / 2, (first[1] - first[0]) / 2
                center = self._pieces(node.affine, node.affine.apply, middle) + node.affine.bias
                radius = self._pieces(node.affine, node.affine.magnitude, radius) + self.rounding.rho[k]
                values.append(self.rounding.clipped(k, center - radius, center + radius))
            elif node.activation is None:
                low, high = (sum((values[s][i] for s in node.sources[1:]), first[i]) for i in (0, 1))
                values.append(self.rounding.clipped(k, low - self.rounding.rho[k], high + self.rounding.rho[k]))
            else:
                low, high = first
                if forms:
                    low, high = self._both((low, high), forms[node.sources[0]].interval())
                if known is not None:
                    low = torch.maximum(low, known[0][:, node.units])
                    high = torch.minimum(high, known[1][:, node.units])
                if refine and not forms and not self.alone[node.sources[0]]:
                    which = node.activation.loose(low, high)
                    low, high = self._refined(relaxation, node.sources[0], which, lower, upper, low, high, steps)
                relaxation.add(node.activation, low, high)
                if forms:
                    forms.append(forms[node.sources[0]].bent(node.activation, low, high))
                ends = node.activation.enclose(low, high)
                values.append(self.rounding.clipped(k, *ends) if node.activation.rounds else ends)
        return relaxation, values

    @staticmethod
    def _both(a: Interval, b: Interval) -> Interval:
        """Return what two intervals have in common; NaN is no end."""
        return torch.fmax(a[0], b[0]), torch.fmin(a[1], b[1])

    def _refined(
        self,
        relaxation: Relaxation,
        node: int,
        which: Tensor,
        lower: Tensor,
        upper: Tensor,
        low: Tensor,
        high: Tensor,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the bounds of the units that read `node`, with backward bounds for those that are wanted."""
        box, neuron = which.nonzero(as_tuple=True)
        if not len(box):
            return low, high
        low, high = low.clone(), high.clone()
        for start in range(0, len(box), self.chunk):
            b, n = box[start : start + self.chunk], neuron[start : start + self.chunk]
            twice, (source, rows, offset) = torch.cat([b, b]), self.entries(node, n)
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

    def entries(self, node: int, index: Tensor) -> tuple[int, Tensor, Tensor]:
        """Return entries (k,) of a node as rows (k, size) of another, which it reads, or its own, and offsets."""
        current = self.graph.nodes[node]
        if current.affine is not None:  # its rows are there to be picked
            return current.sources[0], current.affine.rows(index), current.affine.bias[index]
        rows = torch.nn.functional.one_hot(index, current.size).to(self.rounding.lower)
        return node, rows, rows.new_zeros(len(index))

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
        coefficients: list[Tensor | None] | None = None,
    ) -> tuple[Tensor, Linear]:
        """Choose the slopes of the lower lines so that rows become positive, one row for each box; see `Ascent`."""
        if self.chain is not None and phase is None and coefficients is None and node > 0:
            ascend = self.chain.compiled.ascend
            return Stack(self, node).ascended(ascend, relaxation, A, offset, lower, upper, steps, ahead)
        return Ascent(self, relaxation, node, A, offset, lower, upper, phase).run(steps, ahead, coefficients)
