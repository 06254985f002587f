"""Second moments of what maps are applied to: how far a change of their weights moves their outputs on average."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nnrepair.jacobian.factors import Group
from nnrepair.jacobian.taps import TappedModel, numpy
from nnrepair.solver.rows import Array
from nnrepair.spec.inputs import AnyInputs, batches, independent

#: Relative ridge on second moments: dead features would be free to move otherwise.
RIDGE = 1e-3


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
        tap = model.used(model.prepare(inputs if index is None else inputs[index]))
        for k, group in enumerate(groups):
            for a in group.applied_to(tap.uses[group.tapped]):
                flat = a.reshape(-1, a.shape[-1])
                moments[k] = moments[k] + numpy(flat.T @ flat)
    return [moment / len(inputs) for moment in moments]


def root(C: Array) -> Array:
    """Return the Cholesky factor of a second moment and its ridge."""
    mean = float(np.trace(C)) / len(C)
    if mean < 1e-200:  # keys that are zero throughout tell no change from another
        return np.eye(len(C))
    C[np.diag_indices_from(C)] += RIDGE * mean
    return np.asarray(np.linalg.cholesky(C), np.float64)
