"""Bounds of what goes into ReLUs, by what the loose ones of each box add: a compiled kernel for chains of matrices.

Where the sign of a unit is known all over a box, its ReLU is no more than a factor of 1 or 0. So what goes into a unit
is affine in the input and in the loose ReLUs before it,

    z = T . s,      s = (1, x, h),      h the values of earlier loose ReLUs,

and only these are substituted, a layer at a time, from the last to the first; before that, each h is bounded as any
number from 0 to its upper bound. T is computed forward, once for both bounds of a unit, and the rows of a layer go
through products of small matrices together. For a box with few loose ReLUs that is far less work than whole matrices
backward.

Rounding. For every unit let `|z - T . s| <= e` and `|T| . |s| <= S` all over the box, with |h| at most its upper bound.
With W restricted to units of known sign, a matrix gives T' = fl(W T + b), and so

    e' = |W| e + gamma (|W| S + |b| + S')

where S' is computed of T' itself. gamma = 2 N 2^-53, with N above the number of operations of any sum here, is twice
what the sum needs, which covers the rounding of e' and S'. Its last term covers what sums lose that begin with T'.

Substitution takes a coefficient a on h to one on z, `a slope` above and `a floor` below, and then to `a slope T`. That
is off by |a| e, as z is, and by gamma |a| (S + |z| + |h| + |shift|): products, the sums that they join, intercepts. The
last step over the box is off by gamma (|row| . |x| + |c|). All of it is subtracted. `UNDERFLOW` is added to every e and
subtracted from every bound: with magnitudes below `LIMIT` no product that underflows, times a value, comes near it.
NaN, from coefficients that overflow where an input is zero, improves no bound.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.verify.reading.activations.relu import ReLU
from nnrepair.verify.reading.affine import Affine, Dense, Diagonal
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.compiled import Kernels, kernels

#: Networks with more ReLUs are bounded by whole matrices.
MOST = 1000
#: Multiplications between two looks at the clock, at most: well under a second.
WORK = 1_000_000_000


class Chain:
    """The matrices of a chain, one after the other, and the kernels that read them."""

    def __init__(self, graph: Graph, compiled: Kernels) -> None:
        self.compiled = compiled
        sizes, bent, weights, biases = [graph.inputs], list[bool](), list[Tensor](), list[Tensor]()
        for node in graph.nodes[1:]:
            if node.affine is None:
                bent[-1] = True
                continue
            sizes.append(node.size)
            bent.append(False)
            weights.append(matrix(node.affine).reshape(-1))
            biases.append(node.affine.bias)
        while not bent[-1]:  # outputs are nothing that a ReLU reads
            for part in (sizes, bent, weights, biases):
                part.pop()
        self.sizes, self.bent = np.array(sizes), np.array(bent)
        self.weights, self.biases = torch.cat(weights).numpy(), torch.cat(biases).numpy()
        self.together = max(1, WORK // (graph.hidden**2 * (1 + graph.inputs + graph.hidden)))

    @classmethod
    def of(cls, graph: Graph, deadline: Deadline) -> Chain | None:
        """Return the matrices of a network; None where the kernels cannot read them, or there are none in time."""
        found = kernels(deadline) if _is_readable(graph) else None
        return None if found is None else cls(graph, found)

    def tightened(
        self, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor, deadline: Deadline
    ) -> tuple[Tensor, Tensor]:
        """Return tighter bounds (boxes, units), as far as these decide which ReLUs are loose.

        Args:
            lower, upper: the boxes (boxes, inputs).
            low, high: bounds that hold already.
            deadline: when it has passed, this raises OutOfTime.
        """
        low, high = (end.clone(memory_format=torch.contiguous_format) for end in (low, high))
        lower, upper = lower.contiguous(), upper.contiguous()
        for start in deadline.each(range(0, len(low), self.together)):
            some = [part[start : start + self.together].numpy() for part in (lower, upper, low, high)]
            self.compiled.tighten(self.sizes, self.bent, self.weights, self.biases, *some)
        return low, high


def matrix(affine: Affine) -> Tensor:
    """Return the matrix (outputs, inputs) of a map of a chain."""
    return affine.weight if isinstance(affine, Dense) else torch.diag(affine.apply(torch.ones_like(affine.bias)))


def _is_readable(graph: Graph) -> bool:
    """Tell whether a network is a chain of exact matrices and ReLUs that fits."""
    if graph.device.type != "cpu" or not graph.bent or graph.hidden > MOST:
        return False
    for k, node in enumerate(graph.nodes[1:], 1):
        is_matrix = isinstance(node.affine, Dense | Diagonal) and not node.affine.inexact and node.affine.off is None
        if node.sources != (k - 1,) or not (is_matrix or isinstance(node.activation, ReLU)):
            return False
        if node.activation is not None and graph.nodes[k - 1].affine is None:
            return False
    return True
