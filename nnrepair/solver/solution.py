"""A change with the bound that shows how small it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnrepair.solver.conditions import ROW_TOLERANCE, Conditions
from nnrepair.solver.norms import Array, Norm
from nnrepair.solver.quadratic import nnqp, size_of


@dataclass(frozen=True)
class Solution:
    """A minimal change and its proof.

    Attributes:
        d: (n,) the change.
        y: (m,) multipliers of `conditions`, scaled so that dual_norm(G^T y) <= 1.
        objective: norm(d), plus the price of soft rows that are missed.
        lower_bound: no change that satisfies the conditions is smaller.
        conditions: the rows in use at the end.
        stats: rounds, Newton steps, linear programs.
    """

    d: Array
    y: Array
    objective: float
    lower_bound: float
    conditions: Conditions
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """The relative distance from minimal that is left: (objective - lower_bound) / objective."""
        return (self.objective - self.lower_bound) / self.objective if self.objective > 0 else 0.0

    @property
    def missed(self) -> float:
        """By how much the change misses hard rows at most, as a share of the largest need."""
        missed = self.conditions.need - self.conditions.rows.matvec(self.d)
        return float(missed[np.isinf(self.conditions.cap)].max(initial=0.0)) / size_of(self.conditions.need)


def finished(conditions: Conditions, norm: Norm, d: Array, y: Array, stats: dict[str, Any]) -> Solution:
    """Close the last rounding gap: the smallest Euclidean correction that satisfies every hard row, and the bound."""
    hard = np.flatnonzero(np.isinf(conditions.cap))
    rows, need = conditions.rows.take(hard), conditions.need[hard]
    for _ in range(3):
        missed = need - rows.matvec(d)
        if missed.max(initial=0.0) <= ROW_TOLERANCE / 10 * size_of(need):
            break
        K = rows.gram()
        K[np.diag_indices_from(K)] += 1e-10
        d = d + rows.rmatvec(nnqp(K, missed))
    return judged(conditions, norm, d, y, stats)


def judged(conditions: Conditions, norm: Norm, d: Array, y: Array, stats: dict[str, Any]) -> Solution:
    """Return the change d with the bound that the multipliers y give."""
    hard = np.flatnonzero(np.isinf(conditions.cap))
    dual = norm.dual(conditions.rows.rmatvec(y))
    all_hard = len(hard) == conditions.m  # then y may also be scaled up: no cap is in the way
    y = y / max(dual if all_hard else 1.0, dual, 1e-300)
    size = norm.value(d) + price(conditions, d)
    return Solution(d, y, size, min(float(conditions.need @ y), size), conditions, stats)


def price(conditions: Conditions, d: Array) -> float:
    """Return what missing the soft rows costs."""
    soft = np.isfinite(conditions.cap)
    missed = np.maximum(conditions.need - conditions.rows.matvec(d), 0.0)
    return float(conditions.cap[soft] @ missed[soft])
