"""Proximal points: from the Euclidean answer to the rows that bind and the coordinates that are free in another norm.

d <- argmin norm(d) + |d - d_k|^2 / (2 step). Each step's dual is smooth with curvature `step * G P G^T`, P the
derivative of the norm's proximal map: Newton's model is again a non-negative quadratic program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nnrepair.solver.conditions import Conditions
from nnrepair.solver.norms import Array, Proximal, ProximalNorm
from nnrepair.solver.quadratic import idle, nnqp, size_of
from nnrepair.solver.solution import price

#: Newton steps per proximal point, and the shortest step along a Newton direction.
NEWTON_STEPS, SHORTEST = 40, 1e-4


@dataclass(frozen=True)
class _Value:
    """The dual of a proximal step at y: its value, its slope, and the proximal point there."""

    y: Array
    value: float
    slope: Array
    near: Proximal


@dataclass(frozen=True)
class _Dual:
    """The dual of the proximal step from d0, with a small proximal term around y0, so that it is strictly convex."""

    conditions: Conditions
    norm: ProximalNorm
    d0: Array
    y0: Array
    step: float
    damping: float
    tick: Callable[[], None]

    def at(self, y: Array) -> _Value:
        rows, h = self.conditions.rows, self.conditions.need
        u = self.d0 + self.step * rows.rmatvec(y)
        near = self.norm.prox(u, self.step)
        p = near.point
        value = (u @ u - (u - p) @ (u - p)) / (2 * self.step) - self.norm.value(p) - h @ y
        value += self.damping / 2 * ((y - self.y0) ** 2).sum()
        return _Value(y, float(value), rows.matvec(p) - h + self.damping * (y - self.y0), near)

    def minimum(self, tolerance: float) -> tuple[_Value, bool, int]:
        """Return the minimum, whether it was reached, and the Newton steps taken."""
        cap = self.conditions.cap
        here = self.at(self.y0)
        for taken in range(NEWTON_STEPS):
            y, slope = here.y, here.slope
            inside = np.where(y > 0, np.where(y < cap, np.abs(slope), np.maximum(slope, 0)), np.maximum(-slope, 0))
            if inside.max() <= tolerance:
                return here, True, taken
            curvature = self.step * here.near.curvature(self.conditions.rows)
            curvature[np.diag_indices_from(curvature)] += self.damping
            move = nnqp(curvature, curvature @ y - slope, cap, tick=self.tick) - y
            after = self._along(here, move)
            if after is None:
                return here, False, taken + 1
            here = after
        return here, False, NEWTON_STEPS

    def _along(self, here: _Value, move: Array) -> _Value | None:
        """Return the first of the steps 1, 1/2, ... along a direction that lowers the value enough."""
        length = 1.0
        while True:
            new = self.at(here.y + length * move)
            enough = new.value <= here.value + 1e-4 * length * (here.slope @ move) + 1e-13 * abs(here.value)
            if enough or length < SHORTEST:
                return None if length < SHORTEST else new
            length *= 0.5


def proximal_points(
    conditions: Conditions,
    norm: ProximalNorm,
    d: Array,
    y: Array,
    step: float,
    gap: float,
    looseness: float = 1.0,
    max_outer: int = 40,
    tick: Callable[[], None] = idle,
) -> tuple[Array, Array, int]:
    """Return (d, y, Newton steps): a change and multipliers close to optimal for the rows in use.

    Semismooth Newton on the dual of each proximal step (Li, Sun & Toh 2018 for such methods). Stops when the gap is
    small or progress ends. `tick` is called before each factorisation; what it raises ends the work.
    """
    h = conditions.need
    damping = 1e-5 * looseness * step  # fixed: growing with the step it would slow y down
    best, steps = 0.0, 0
    for _ in range(max_outer):
        dual = _Dual(conditions, norm, d, y, step, damping, tick)
        found, converged, taken = dual.minimum(1e-6 * looseness * size_of(h))
        d, y, steps = found.near.point, found.y, steps + taken
        best = max(best, float(h @ y) / max(1.0, norm.dual(conditions.rows.rmatvec(y))))
        size = norm.value(d) + price(conditions, d)
        # A point that still misses rows may be smaller than the bound: that is no success.
        if not converged or abs(size - best) * 10 <= gap * size:
            break
        step *= 3.0
    return d, y, steps
