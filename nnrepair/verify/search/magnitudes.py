"""How large a network's values are over a root box, and what rounding does to linear bounds there.

The coefficients that come out of each floating-point step are taken as they are; what matters is by how much the
inequality with these coefficients can fail. With gamma = N 2^-53 / (1 - N 2^-53), N the number of operations:

    affine     fl(A W) differs from A W by at most gamma |A| |W|, which moves the bound by at most gamma |A| (|W| m),
               and fl(A . b) from A . b by at most gamma |A| |b|           with m >= |value| for every x of the root box
    ReLU       a product A slope is off by at most 2^-53 |A|, times |z|; the sum of A shift by gamma |A| |z|
    others     likewise, with a bound on |slope z| + |shift| + |value| over z's interval: `Activation.terms`
    sums       each addition of coefficients or of terms is off by 2^-53 of its result

Every line is at most |A| . rho_k with rho_k = gamma (|W| m + |b| + m_k), a vector that depends on the root box alone.
So one product |A| . rho_k for each node, subtracted from c, covers all of it; N counts generously. The upper line is
shifted up until it is above the ReLU at both ends in exact arithmetic too. Infinities and NaN never prove anything.

Where one activation alone reads an affine map, the error of the map is counted at the activation: the coefficients that
reach it are at most |A| times the steepest slope.

Intervals are widened by the same rho_k, which is right for numbers up to m. So each is cut to the interval of the root
box once it is computed, which has m as its larger end: no value of the root box is lost, the centre and radius of the
next step are within m, and no line is steeper, and no `shift` larger, than those around activations over the root box.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.intervals import TINY, Interval, values_over
from nnrepair.verify.search.relaxation import Relaxation

#: Added once to every linear bound against underflow, as TINY is to every error bound. With magnitudes below LIMIT no
#: product that underflows, times a value, comes near it.
UNDERFLOW, LIMIT = 1e-200, 1e100
#: Numbers kept of the rows that are bounded at once.
PIECE_SIZE = 5_000_000


class Rounding:
    """Magnitudes and errors over one root box.

    Args:
        graph: the network.
        lower, upper: (inputs,), the root box.
        deadline: when it has passed, what takes long raises OutOfTime.

    Attributes:
        interval: of every node, bounds (size,) of its values over the root box.
        magnitude: of every node, bounds (size,) on the absolute values.
        rho: of every node (size,): `|A| . rho[k]` bounds what rounding does to the bound at node k.
        folded: for each node whether one activation alone reads it: its error is counted there.
    """

    def __init__(self, graph: Graph, lower: Tensor, upper: Tensor, deadline: Deadline) -> None:
        self.graph, self.lower, self.upper, self.deadline = graph, lower[None], upper[None], deadline
        self.folded = self._folded()
        self._take(values_over(graph, self.lower, self.upper, deadline))

    @property
    def is_finite(self) -> bool:
        """Whether linear bounds can prove anything at all."""
        return all(bool(torch.isfinite(each).all()) for each in self.rho)

    def tighten(self, relaxation: Relaxation) -> None:
        """Replace the coarse intervals by those that bounds of the whole root box give."""
        known = [(low[None], high[None]) for low, high in self.interval]
        for i, k in enumerate(self.graph.bent):
            source = self.graph.nodes[k].sources[0]
            known[source] = _both(known[source], (relaxation.lower[i][:1], relaxation.upper[i][:1]))
        self._take(values_over(self.graph, self.lower, self.upper, self.deadline, known))

    def _take(self, intervals: Sequence[Interval]) -> None:
        self.interval = [(low[0], high[0]) for low, high in intervals]
        self.magnitude = [torch.maximum(low.abs(), high.abs()) for low, high in self.interval]
        self.rho = self._errors()

    def restricted(self, graph: Graph, stays: dict[int, Tensor]) -> Rounding:
        """Return the same for a graph that keeps, of some nodes, chosen entries only."""
        thin = copy.copy(self)
        thin.graph = graph
        thin.rho, thin.magnitude, lows, highs = (
            [part[stays[k]] if k in stays else part for k, part in enumerate(parts)]
            for parts in (self.rho, self.magnitude, *zip(*self.interval, strict=True))
        )
        thin.interval = list(zip(lows, highs, strict=True))
        return thin

    def clipped(self, node: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return an interval without what no input of the root box reaches: rho covers rounding within this only."""
        return _both((low, high), self.interval[node])

    def raised(self, rows: Tensor, offset: Tensor) -> Tensor:
        """Return the offsets of rows (..., outputs) on the output, raised by what rounding may take from either.

        That is what coefficients lose that are not exact, and the final subtraction of the offset.
        """
        reach, sizes = self.magnitude[-1], list[Tensor]()
        for part in torch.split(rows, max(1, PIECE_SIZE // max(1, rows[:1].numel()))):
            self.deadline.check()
            sizes.append(part.abs() @ reach)
        return offset + 8 * EPS * (torch.cat(sizes) + offset.abs()) + 1e-290 * reach.sum()

    def _folded(self) -> list[bool]:
        """Tell for each node whether one activation alone reads it: its error is counted there."""
        readers: list[list[int]] = [[] for _ in self.graph.nodes]
        for r, node in enumerate(self.graph.nodes):
            for source in set(node.sources):
                readers[source].append(r)
        return [
            len(by) == 1 and self.graph.nodes[by[0]].activation is not None and self.graph.nodes[k].affine is not None
            for k, by in enumerate(readers)
        ]

    def _errors(self) -> list[Tensor]:
        """Return rho: `|A| . rho[k]` bounds what rounding does to the bound at node k."""
        m = self.magnitude
        if not all(bool((size < LIMIT).all()) for size in m):
            return [torch.full_like(size, torch.inf) for size in m]
        rho: list[Tensor] = []
        for k, node in enumerate(self.graph.nodes):
            terms = node.size + 4 * len(self.graph.nodes) + 64 + sum(self.graph.nodes[s].size for s in node.sources)
            if node.affine is None:
                through = torch.stack([m[s] for s in node.sources or (k,)]).sum(0)  # its own bound may be far smaller
                folded: Tensor | float = 0.0
                if node.activation is not None:
                    within = self.interval[node.sources[0]]
                    through = node.activation.terms(*within)
                    if self.folded[node.sources[0]]:
                        folded = node.activation.steepness(*within).clamp(min=1.0) * rho[node.sources[0]]
                rho.append(4 * terms * EPS * 1.01 * through + folded + TINY)
                continue
            self.deadline.check()
            gamma = (terms + node.affine.terms) * EPS * 1.01
            through = node.affine.magnitude(m[node.sources[0]][None])[0]
            error = 2 * gamma * (through + node.affine.bias.abs() + m[k]) + node.affine.inexact * through + TINY
            rho.append(error if node.affine.off is None else error + node.affine.off * (1 + 1e-9))
        return rho


def _both(a: Interval, b: Interval) -> Interval:
    """Return what two intervals have in common; NaN is no end."""
    return torch.fmax(a[0], b[0]), torch.fmin(a[1], b[1])
