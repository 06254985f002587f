"""Second moments of what maps are applied to, and of gradients at their outputs.

The former say how far a change of a map's weights moves the map's outputs on average, both together how far it moves
the network's: the Fisher information of the weights is nearly the Kronecker product of the two (Martens & Grosse,
"Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015; for convolutions Grosse &
Martens, ICML 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from nnrepair.jacobian.factors import Group
from nnrepair.jacobian.tangents import gradients
from nnrepair.jacobian.taps import TappedModel, numpy
from nnrepair.solver.rows import Array
from nnrepair.spec.criteria import flat
from nnrepair.spec.inputs import AnyInputs, batches, independent
from nnrepair.spec.kinds import Kind

#: Relative ridge on second moments: dead features would be free to move otherwise.
RIDGE = 1e-3
#: Fisher information below this says nothing: the network is sure of all points.
SURE = 1e-12
#: Gradients are taken at so many points at most, and, with many outputs, so many of these in all.
POINTS, OUTPUTS = 2000, 1_000_000
#: Of each, those of so many rows of the Fisher information of its outputs at most; where there are more, one of a label
#: that is drawn.
ROWS = 10


def second_moments(
    model: TappedModel, groups: Sequence[Group], inputs: AnyInputs, most: int, check: Callable[[], None]
) -> list[Array]:
    """Return, for each group, the mean over points of the sum of a a^T over all uses and positions of its map.

    Args:
        model, groups, inputs: the network, its chosen maps, and the points.
        most: so many points run together.
        check: called before each batch; may raise.
    """
    moments = [np.zeros(()) for _ in groups]
    alone = independent(inputs)
    for index in batches(inputs, most) if alone else [None]:
        check()
        some = model.prepare(inputs if index is None else inputs[index])
        tap, filled = model.used(some), None if isinstance(some, Tensor) else some.filled()
        for k, group in enumerate(groups):
            for a in group.applied_to(tap.uses[group.tapped]):
                own = filled is not None and filled.shape == a.shape[:2]
                flat = a[filled] if own else a.reshape(-1, a.shape[-1])
                moments[k] = moments[k] + numpy(flat.T @ flat)
    return [moment / len(inputs) for moment in moments]


def gradient_moments(
    model: TappedModel,
    groups: Sequence[Group],
    inputs: AnyInputs,
    kind: Kind,
    most: int,
    check: Callable[[], None],
) -> list[Array]:
    """Return, for each group, the mean over points of the sum of g g^T over all uses and positions of its map.

    The gradients g at a map's output are those of the rows of the Fisher information of the network's outputs, or of
    log-probabilities of labels that are drawn. Where points influence each other, all run together, each with a label
    of its own: scores of labels are zero on average, so the products of different points vanish.

    Of a map with P positions, both moments are sums over these, P times the expected square of what the outputs move if
    every position moves them by itself: a bound of how far they move where positions add up. Of repairs of several
    layers, those that are priced so keep more than those without the P.

    Args:
        model, groups, inputs: the network, its chosen maps, and the points, of which some are drawn (by seed 0).
        kind: what outputs stand for.
        most: so many points run together.
        check: called before each batch; may raise.
    """
    generator = torch.Generator().manual_seed(0)
    alone = independent(inputs)
    if alone:
        outputs = flat(model.run(model.prepare(inputs[torch.zeros(1, dtype=torch.int64)]))[0]).shape[1]
        few = torch.randperm(len(inputs), generator=generator)[: min(POINTS, max(1, OUTPUTS // outputs))]
        inputs = inputs[few.sort().values]
    moments = [np.zeros(()) for _ in groups]
    for index in batches(inputs, most) if alone else [None]:
        check()
        y, tap = model.run(model.prepare(inputs if index is None else inputs[index]))
        uses = [use for group in groups for use in tap.uses[group.tapped]]
        for slope in slopes(kind, y.detach(), generator, alone):
            found = iter(gradients((flat(y) * slope).sum(), [use.output for use in uses]))
            for k, group in enumerate(groups):
                for use in tap.uses[group.tapped]:
                    g = use.by_position(next(found), len(use.output))
                    rows = g.reshape(-1, g.shape[-1])
                    moments[k] = moments[k] + numpy(rows.T @ rows)
    return [moment / len(inputs) for moment in moments]


def slopes(kind: Kind, y: Tensor, generator: torch.Generator, exact: bool = True) -> Iterator[Tensor]:
    """Yield (n, outputs) rows r of every point, with sum r^T r its outputs' Fisher information, or that on average.

    Args:
        kind: what outputs y (n, ...) stand for.
        generator: of labels, where they are drawn.
        exact: False draws labels, which are independent from point to point.
    """
    rows = kind.root(y, ROWS) if exact else None
    if rows is not None:
        yield from rows.to(y).unbind(1)
        return
    draws = max(1, POINTS // len(y)) if not exact else 1
    for _ in range(draws):
        yield kind.score(y, kind.sample(y, generator)).to(y) / math.sqrt(draws)


def root(C: Array, least: float = 0.0) -> Array:
    """Return the Cholesky factor of a second moment and its ridge, a share of its diagonal's mean or of `least`."""
    mean = max(float(np.trace(C)) / len(C), least)
    if mean < 1e-200:  # keys that are zero throughout tell no change from another
        return np.eye(len(C))
    C[np.diag_indices_from(C)] += RIDGE * mean
    return np.asarray(np.linalg.cholesky(C), np.float64)
