"""The Newton kernel: convex quadratic programs over multipliers, 0 <= y <= cap."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: What the diagonal grows by, as a share of itself, until the matrix can be factorised.
JITTERS = (0.0, 1e-13, 1e-11, 1e-9, 1e-7)
#: Solutions of a matrix that was changed, each from the last, which take the change back.
REFINEMENTS = 3
#: Steps of an interior point without progress after which rounding leaves no more.
PATIENCE = 5


def size_of(h: Array) -> float:
    """Return the size of what is asked for: the largest h, unless some are larger by far on the other side."""
    return max(float(h.max(initial=0.0)), 1e-6 * float(np.abs(h).max(initial=0.0)), 1e-300)


def idle() -> None:
    """Do nothing, between two factorisations."""


class NotSolvedError(Exception):
    """A program could not be solved in float64, or not within the rounds allowed."""


def nnqp(
    K: Array,
    h: Array,
    cap: Array | None = None,
    free: NDArray[np.bool_] | None = None,
    max_steps: int = 40,
    tick: Callable[[], None] = idle,
) -> Array:
    """Return argmin y'Ky/2 - h'y over 0 <= y <= cap.

    Block principal pivoting (Kostreva 1978; Júdice & Pires 1994): a handful of Cholesky factorisations of the free
    block. Where it cycles (nearly singular K), an interior point finds which multipliers are free. Where K is singular
    to rounding, a little is added to its diagonal and taken back by proximal steps.

    Args:
        K: (m, m) symmetric positive semidefinite, with a positive diagonal.
        h: (m,).
        cap: (m,), inf where a multiplier is free to grow.
        free: (m,) a guess of the multipliers between zero and the cap; fewer and better guesses are faster.
        max_steps: pivoting steps before giving up on them.
        tick: called before each factorisation; what it raises ends the work.

    Raises:
        NotSolvedError: numbers are not finite, or K is far from positive semidefinite.
    """
    if not (np.isfinite(K).all() and np.isfinite(h).all()):
        raise NotSolvedError("numbers of a quadratic program are out of range")
    unit = 1 / np.sqrt(np.maximum(np.diag(K), 1e-300))  # in these units the diagonal is one
    K, h = K * unit[:, None] * unit, h * unit
    upper = np.full(len(h), np.inf) if cap is None else cap / unit
    free = h > 0 if free is None else free
    for jitter in JITTERS:
        K[np.diag_indices_from(K)] = 1 + jitter
        try:
            y = _solved(K, h, upper, free, max_steps, tick)
            for _ in range(REFINEMENTS if jitter else 0):
                y = _solved(K, h + jitter * y, upper, y > 0, max_steps, tick)
        except scipy.linalg.LinAlgError:
            continue
        return y * unit
    raise NotSolvedError("the matrix of a quadratic program is not positive semidefinite")


def _solved(
    K: Array, h: Array, upper: Array, free: NDArray[np.bool_], max_steps: int, tick: Callable[[], None]
) -> Array:
    live = upper > 0
    if not live.all():  # a cap of zero leaves nothing to find
        y = np.zeros(len(h))
        if live.any():
            y[live] = _solved(K[np.ix_(live, live)], h[live], upper[live], free[live], max_steps, tick)
        return y
    y, settled = _pivot(K, h, upper, np.where(free, 1, 0), max_steps, tick)
    if not settled:
        inside = interior(lambda y: K @ y, partial(_factorised, K, tick), h, upper)
        state = np.where(inside <= 1e-9 * inside.max(initial=0.0), 0, np.where(inside >= upper * (1 - 1e-9), 2, 1))
        y, settled = _pivot(K, h, upper, state, max_steps, tick)
        if not settled:
            y = inside
    return np.clip(y, 0.0, upper)


def _pivot(
    K: Array, h: Array, upper: Array, state: NDArray[np.int64], max_steps: int, tick: Callable[[], None]
) -> tuple[Array, bool]:
    """Pivot from `state` (0: at zero, 1: free, 2: at the cap); return (y, whether it is optimal)."""
    best, patience = len(h) + 1, 10
    y = np.zeros(len(h))
    slope_tolerance = 1e-10 * size_of(h)
    for _ in range(max_steps):
        tick()
        free, capped = np.flatnonzero(state == 1), np.flatnonzero(state == 2)
        y = np.zeros(len(h))
        y[capped] = upper[capped]
        if len(free):
            target = h[free] - (K[np.ix_(free, capped)] @ y[capped] if len(capped) else 0.0)
            factor = scipy.linalg.cho_factor(K[np.ix_(free, free)].T, lower=True, overwrite_a=True, check_finite=False)
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


Solver = Callable[[Array], Array]


def _factorised(K: Array, tick: Callable[[], None], slack: Array) -> Solver:
    """Return what solves (K + diag(slack)) x = b."""
    tick()
    system = K.copy()
    system[np.diag_indices_from(system)] += slack
    factor = scipy.linalg.cho_factor(system.T, lower=True, overwrite_a=True, check_finite=False)
    return lambda b: np.asarray(scipy.linalg.cho_solve(factor, b, check_finite=False))


def interior(
    product: Solver,
    factorised: Callable[[Array], Solver],
    h: Array,
    upper: Array,
    tolerance: float = 1e-13,
    ended: Callable[[Array], bool] = lambda y: False,
) -> Array:
    """Return argmin y'Ky/2 - h'y over 0 <= y <= upper by a primal-dual interior point (Mehrotra 1992).

    Args:
        product: y -> K y.
        factorised: a diagonal (m,) -> what solves (K + diag) x = b.
        h, upper: (m,).
        tolerance: of the products of multipliers and slacks.
        ended: told y after each step; whether to stop there.
    """
    bounded = np.isfinite(upper)
    scale = float(np.abs(h).max(initial=0.0)) or 1.0
    y = np.full(len(h), scale)
    y = np.where(bounded, np.minimum(y, upper / 2), y)
    low = np.full(len(h), scale)  # multipliers of y >= 0
    high = np.where(bounded, scale, 0.0)  # multipliers of y <= upper
    count, residual = len(h) + int(bounded.sum()), np.inf
    best, least, since = y, np.inf, 0
    for _ in range(100):
        room = np.where(bounded, upper - y, 1.0)
        slope = product(y) - h
        mu = float(y @ low + high @ np.where(bounded, room, 0.0)) / count
        residual, last = float(np.abs(slope - low + high).max()), residual
        still = residual <= 1e-11 * scale or residual > last / 2  # rounding leaves no more
        small = mu <= tolerance * scale * float(y.max()) and still
        merit = residual / scale + mu / (scale * float(y.max()))
        best, least, since = (y, merit, 0) if merit < least else (best, least, since + 1)
        if small or min(float(y.min()), float(room.min())) < 1e-200 or since == PATIENCE or ended(y):
            break
        solve = factorised(low / y + high / room)
        point = (y, low, room, high)
        ahead = _newton(solve, slope, point, bounded, np.zeros(len(h)), np.zeros(len(h)))
        reach = _longest(point, ahead)
        moved = [v + reach * dv for v, dv in zip(point, ahead, strict=True)]
        after = float(moved[0] @ moved[1] + np.where(bounded, moved[2] * moved[3], 0.0).sum()) / count
        goal = mu * max(after / mu, 0.0) ** 3
        low_goal, high_goal = goal - ahead[0] * ahead[1], np.where(bounded, goal - ahead[2] * ahead[3], 0.0)
        move = _newton(solve, slope, point, bounded, low_goal, high_goal)
        length = 0.995 * _longest(point, move)
        y, low, high = y + length * move[0], low + length * move[1], high + length * move[3]
    return best


_Point = tuple[Array, Array, Array, Array]  # y, its lower multipliers, the room below its cap, the upper multipliers


def _newton(
    solve: Solver, slope: Array, point: _Point, bounded: NDArray[np.bool_], low_goal: Array, high_goal: Array
) -> _Point:
    """Return the Newton step towards complementarity products `low_goal` and `high_goal`."""
    y, low, room, high = point
    right = low_goal / y - np.where(bounded, high_goal / room, 0.0) - slope
    dy = solve(right)
    d_high = np.where(bounded, (high_goal + high * dy) / room - high, 0.0)
    return dy, (low_goal - low * dy) / y - low, np.where(bounded, -dy, 0.0), d_high


def _longest(point: _Point, move: _Point) -> float:
    """Return the longest step, at most 1, that keeps every part positive."""
    pairs = zip(point, move, strict=True)
    return min(1.0, *(float((-v[dv < 0] / dv[dv < 0]).min(initial=np.inf)) for v, dv in pairs))
