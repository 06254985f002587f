"""The Newton kernel: convex quadratic programs over multipliers, 0 <= y <= cap."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nnqp(
    K: Array, h: Array, cap: Array | None = None, free: NDArray[np.bool_] | None = None, max_steps: int = 40
) -> Array:
    """Return argmin y'Ky/2 - h'y over 0 <= y <= cap.

    Block principal pivoting (Kostreva 1978; Júdice & Pires 1994): a handful of Cholesky factorisations of the free
    block. Where it cycles (nearly singular K), an interior point finds which multipliers are free.

    Args:
        K: (m, m) symmetric positive definite.
        h: (m,).
        cap: (m,), inf where a multiplier is free to grow.
        free: (m,) a guess of the multipliers between zero and the cap; fewer and better guesses are faster.
        max_steps: pivoting steps before giving up on them.
    """
    upper = np.full(len(h), np.inf) if cap is None else cap
    y, settled = _pivot(K, h, upper, np.where(h > 0 if free is None else free, 1, 0), max_steps)
    if not settled:
        inside = _interior(K, h, upper)
        state = np.where(inside <= 1e-9 * inside.max(initial=0.0), 0, np.where(inside >= upper * (1 - 1e-9), 2, 1))
        y, settled = _pivot(K, h, upper, state, max_steps)
        if not settled:
            y = inside
    return np.clip(y, 0.0, upper)


def _pivot(K: Array, h: Array, upper: Array, state: NDArray[np.int64], max_steps: int) -> tuple[Array, bool]:
    """Pivot from `state` (0: at zero, 1: free, 2: at the cap); return (y, whether it is optimal)."""
    best, patience = len(h) + 1, 10
    y = np.zeros(len(h))
    slope_tolerance = 1e-10 * max(float(np.abs(h).max(initial=0.0)), 1e-300)
    for _ in range(max_steps):
        free, capped = np.flatnonzero(state == 1), np.flatnonzero(state == 2)
        y = np.zeros(len(h))
        y[capped] = upper[capped]
        if len(free):
            target = h[free] - (K[np.ix_(free, capped)] @ y[capped] if len(capped) else 0.0)
            factor = scipy.linalg.cho_factor(K[np.ix_(free, free)], lower=True, check_finite=False)
            y[free] = scipy.linalg.cho_solve(factor, target, check_finite=False)
        busy = np.concatenate([free, capped])
        slope = K[:, busy] @ y[busy] - h
        size_tolerance = 1e-12 * max(float(np.abs(y).max(initial=0.0)), 1e-300)
        to_zero = (state == 1) & (y < -size_tolerance)
        to_cap = (state == 1) & (y > upper + size_tolerance)
        to_free = ((state == 0) & (slope < -slope_tolerance)) | ((state == 2) & (slope > slope_tolerance))
        wrong = to_zero | to_cap | to_free
        count = int(wrong.sum())
        if count == 0:
            return y, True
        if count < best:
            best, patience = count, 10
        elif patience > 0:
            patience -= 1
        else:  # Murty's rule: one at a time cannot cycle, but it may take long
            only = int(np.flatnonzero(wrong)[-1])
            wrong = np.zeros(len(h), bool)
            wrong[only] = True
        state = np.where(wrong & to_zero, 0, np.where(wrong & to_cap, 2, np.where(wrong & to_free, 1, state)))
    return y, False


def _interior(K: Array, h: Array, upper: Array, tolerance: float = 1e-13) -> Array:
    """Solve the same program by a primal-dual interior point (Mehrotra's predictor and corrector)."""
    bounded = np.isfinite(upper)
    scale = float(np.abs(h).max(initial=0.0)) or 1.0
    y = np.full(len(h), scale / max(float(np.diag(K).mean()), 1e-300))
    y = np.where(bounded, np.minimum(y, upper / 2), y)
    low = np.full(len(h), scale)  # multipliers of y >= 0
    high = np.where(bounded, scale, 0.0)  # multipliers of y <= upper
    count = len(h) + int(bounded.sum())
    for _ in range(100):
        room = np.where(bounded, upper - y, 1.0)
        slope = K @ y - h
        mu = float(y @ low + high @ np.where(bounded, room, 0.0)) / count
        at_rest = mu <= tolerance * scale * float(y.max()) and np.abs(slope - low + high).max() <= 1e-11 * scale
        if at_rest or min(float(y.min()), float(room.min())) < 1e-200:
            break
        system = K.copy()
        system[np.diag_indices_from(system)] += low / y + high / room
        factor = scipy.linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        point = (y, low, room, high)
        ahead = _newton(factor, slope, point, bounded, np.zeros(len(h)), np.zeros(len(h)))
        reach = _longest(point, ahead)
        moved = [v + reach * dv for v, dv in zip(point, ahead, strict=True)]
        after = float(moved[0] @ moved[1] + np.where(bounded, moved[2] * moved[3], 0.0).sum()) / count
        goal = mu * max(after / mu, 0.0) ** 3
        low_goal, high_goal = goal - ahead[0] * ahead[1], np.where(bounded, goal - ahead[2] * ahead[3], 0.0)
        move = _newton(factor, slope, point, bounded, low_goal, high_goal)
        length = 0.995 * _longest(point, move)
        y, low, high = y + length * move[0], low + length * move[1], high + length * move[3]
    return y


_Point = tuple[Array, Array, Array, Array]  # y, its lower multipliers, the room below its cap, the upper multipliers


def _newton(
    factor: Any, slope: Array, point: _Point, bounded: NDArray[np.bool_], low_goal: Array, high_goal: Array
) -> _Point:
    """Return the Newton step towards complementarity products `low_goal` and `high_goal`."""
    y, low, room, high = point
    right = low_goal / y - np.where(bounded, high_goal / room, 0.0) - slope
    dy = scipy.linalg.cho_solve(factor, right, check_finite=False)
    d_high = np.where(bounded, (high_goal + high * dy) / room - high, 0.0)
    return dy, (low_goal - low * dy) / y - low, np.where(bounded, -dy, 0.0), d_high


def _longest(point: _Point, move: _Point) -> float:
    """Return the longest step, at most 1, that keeps every part positive."""
    pairs = zip(point, move, strict=True)
    return min(1.0, *(float((-v[dv < 0] / dv[dv < 0]).min(initial=np.inf)) for v, dv in pairs))
