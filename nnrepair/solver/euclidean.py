"""The smallest Euclidean change: a non-negative quadratic program on the Gram matrix of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nnrepair.solver.conditions import ROW_TOLERANCE, Conditions, Infeasible
from nnrepair.solver.interior import System
from nnrepair.solver.norms import Array
from nnrepair.solver.quadratic import idle, interior, nnqp, size_of

#: Where rows are nearly dependent, rounding may leave this much.
LOOSE = 1e-6
#: Ridge on the Gram matrix of rows of length one, and the smallest to which it is lowered where progress is slow.
RIDGE, LEAST_RIDGE = 1e-11, 1e-15
#: Rows that are pivoted whatever the number of weights.
FEW = 200
#: Bound on proximal steps, each of which shrinks what the ridge leaves.
REFINEMENTS = 30


def euclidean(
    conditions: Conditions,
    free: NDArray[np.bool_] | None = None,
    *,
    rough: bool = False,
    tick: Callable[[], None] = idle,
) -> Array:
    """Return multipliers y of the smallest Euclidean change d = G^T y.

    Args:
        conditions: the rows.
        free: a guess of which multipliers are positive.
        rough: whether it is enough to be near.
        tick: called before each factorisation; what it raises ends the work.

    Raises:
        Infeasible: the rows contradict each other.
    """
    sets = conditions.rows.independent()
    size = None if len(sets) == 1 else size_of(conditions.need)
    y = np.zeros(conditions.m)
    for which in sets:
        part = conditions if size is None else conditions.take(which)
        part = replace(part, rows=part.rows.narrowed())
        try:
            y[which] = _euclidean(part, None if free is None else free[which], size, rough, tick)
        except Infeasible as reason:
            ray = np.zeros(conditions.m)
            ray[which] = reason.ray
            raise Infeasible(conditions, ray) from None
    return y


def _euclidean(
    conditions: Conditions, free: NDArray[np.bool_] | None, size: float | None, rough: bool, tick: Callable[[], None]
) -> Array:
    """Return the multipliers of rows that share weights.

    Args:
        conditions, free, rough, tick: as for `euclidean`.
        size: of the needs, to which tolerances are relative.
    """
    if conditions.rows.m > max(conditions.rows.n, FEW):
        return _many(conditions, size, rough, tick)
    return _few(conditions, free, size, tick)


def _many(conditions: Conditions, size: float | None, rough: bool, tick: Callable[[], None]) -> Array:
    """Return the multipliers of more rows than weights: an interior point says which rows bind, the others wait."""
    rows, need = conditions.rows, conditions.need
    scale = size_of(need) if size is None else size
    one = np.ones(rows.n)
    gram = cache(rows.gram)

    def contradict(y: Array) -> bool:
        tick()
        return Infeasible(conditions, y / max(float(y.max()), 1e-300)).certain

    y = interior(
        lambda x: rows.matvec(rows.rmatvec(x)),
        lambda slack: System(rows, one, slack, lambda: gram().copy()).solve,
        need,
        conditions.cap,
        ended=contradict,
    )
    if contradict(y):
        raise Infeasible(conditions, y / float(y.max()))
    slack = rows.matvec(rows.rmatvec(y)) - need
    binds = y / max(float(y.max()), 1e-300) > slack / scale
    if rough:
        return np.where(binds, y, 0.0)
    while True:
        some = np.flatnonzero(binds)
        y = np.zeros(len(need))
        try:
            y[some] = _few(conditions.take(some), None, scale, tick)
        except Infeasible as reason:
            y[some] = reason.ray
            raise Infeasible(conditions, y) from None
        missed = need - rows.matvec(rows.rmatvec(y))
        new = (missed > ROW_TOLERANCE * scale) & ~binds
        if not new.any():
            return y
        binds |= new


def _few(conditions: Conditions, free: NDArray[np.bool_] | None, size: float | None, tick: Callable[[], None]) -> Array:
    """Return the multipliers, by active sets of the Gram matrix."""
    rows, h, cap = conditions.rows, conditions.need, conditions.cap
    K, hard = rows.gram(), np.isinf(conditions.cap)
    each = np.diag(K).copy()
    stuck = (each == 0) & (h > 0) & hard
    if stuck.any():
        raise Infeasible(conditions, stuck.astype(float))
    each[each == 0] = 1.0  # of soft rows that nothing moves
    size = size_of(h) if size is None else size
    tolerance = ROW_TOLERANCE * size
    ridge, last = RIDGE, np.inf
    y, missed = np.zeros(len(h)), h
    for step in range(REFINEMENTS):
        system = K.copy()
        system[np.diag_indices_from(system)] += ridge * each
        # The slope is that of the rows themselves, so that rounding in K is taken back as the ridge is.
        y = nnqp(system, missed + system @ y, cap, free, tick=tick)
        free = y > 0
        missed = h - rows.matvec(rows.rmatvec(y))
        worst = float(missed[hard].max(initial=0.0))
        if worst <= tolerance:
            return y
        reason = Infeasible(conditions, y / max(float(y.max()), 1e-300))
        if reason.certain:
            raise reason
        if step >= 5 and worst > last / 10:
            if ridge <= LEAST_RIDGE:
                break
            ridge = max(LEAST_RIDGE, ridge / 10)
        last = worst
    if worst <= LOOSE * size:
        return y
    raise reason
