"""An interior point for norms that are polyhedral: all weights at once, since their rows are kept as factors.

    min  w sum|d| + M t + cap.r   such that   G d - s + r = h,  |d| <= t,  s >= 0,  r >= 0 (of soft rows alone)

With d = p - q and p + q + c = t, every condition is the sign of a variable, each with its multiplier:

    p, q: w + gamma -/+ G^T y      s: y      r: cap - y      c: gamma

(for w = 0, c = 0 and gamma is free: p and q are the distances from the two caps). Mehrotra's predictor and corrector
(1992), from any start. The weights are eliminated: what is factorised per step is `G D G^T + S` over the rows, or the
n x n matrix of the same system where the rows are more than the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from nnrepair.solver.conditions import Conditions
from nnrepair.solver.norms import Array, Polyhedral
from nnrepair.solver.quadratic import NotSolvedError, idle, size_of
from nnrepair.solver.rows import Rows

#: Steps of one call; a few dozen are usual.
MAX_STEPS = 150
#: Steps without progress after which rounding leaves no more, and how many once the gap is close.
PATIENCE, LITTLE, CLOSE = 12, 3, 1e-6
#: What the diagonal grows by, as a share of itself, until a matrix can be factorised.
JITTERS = (0.0, 1e-14, 1e-12, 1e-10, 1e-8)
#: The share of the way to the boundary that a step takes.
SHORT = 0.995
#: How far from the bounds a start is, as a share of what is typical: from another norm's answer.
AWAY = 0.1
#: Up to so many rows, the system is that of the rows: it loses fewer digits.
FEW = 500
#: Entries of G up to which every solution is refined once.
CHEAP = 100_000
#: Rows with less slack than this share of the largest weight are eliminated last.
TIGHT = 1e-6


class System:
    """(G diag(weight) G^T + diag(slack)) x = b, by a factorisation over rows or weights, whichever are fewer.

    Over weights, the rows with slack are eliminated first and those that all but bind, whose slack is lost in rounding
    beside the rest, last.

    Args:
        rows: G, (m, n).
        weight: (n,) positive.
        slack: (m,) positive.
        gram: returns G diag(weight) G^T as an array that may be changed, where that is known.

    Raises:
        NotSolvedError: the matrix cannot be factorised in float64.
    """

    def __init__(self, rows: Rows, weight: Array, slack: Array, gram: Callable[[], Array] | None = None) -> None:
        self.rows, self.weight, self.slack = rows, weight, slack
        self.over_weights = rows.m > max(FEW, 5 * rows.n // 4)
        if not self.over_weights:
            self.factor = cholesky(rows.weighed(weight) if gram is None else gram(), slack)
            return
        order = np.argsort(slack)[: rows.n]
        self.tight = order[slack[order] < TIGHT * float(weight.max())]
        self.loose = 1 / slack
        self.loose[self.tight] = 0.0
        self.inner = cholesky(rows.normal(self.loose), 1 / weight)
        if len(self.tight):
            tight = rows.take(self.tight).columns(np.arange(rows.n)).T
            self.half = scipy.linalg.solve_triangular(self.inner, tight, lower=True, check_finite=False)
            self.factor = cholesky(self.half.T @ self.half, slack[self.tight])

    def solve(self, b: Array) -> Array:
        """Return x (m,)."""
        x = self._once(b)
        if not self.over_weights and self.rows.m * self.rows.n > CHEAP:
            return x
        return x + self._once(b - self.slack * x - self.rows.matvec(self.weight * self.rows.rmatvec(x)))

    def _once(self, b: Array) -> Array:
        if not self.over_weights:
            return _solved(self.factor, b)
        right = self.rows.rmatvec(self.loose * b)
        x = np.zeros(len(b))
        if len(self.tight):
            half = scipy.linalg.solve_triangular(self.inner, right, lower=True, check_finite=False)
            x[self.tight] = _solved(self.factor, b[self.tight] - self.half.T @ half)
            right = right + self.rows.rmatvec(x)
        return np.asarray(x + self.loose * (b - self.rows.matvec(_solved(self.inner, right))))


def cholesky(K: Array, extra: Array) -> Array:
    """Return the lower factor of K + diag(extra), of which K.T is as LAPACK lays matrices out.

    Raises:
        NotSolvedError: there is none in float64.
    """
    diagonal = np.diag(K) + extra
    for jitter in JITTERS if np.isfinite(diagonal).all() else ():
        K[np.diag_indices_from(K)] = diagonal * (1 + jitter)
        try:
            return np.asarray(scipy.linalg.cholesky(K.T, lower=True, check_finite=False))
        except scipy.linalg.LinAlgError:
            continue
    raise NotSolvedError("a system of an interior point is too badly conditioned for float64")


def _solved(factor: Array, b: Array) -> Array:
    return np.asarray(scipy.linalg.cho_solve((factor, True), b, check_finite=False))


@dataclass
class Inside:
    """A point between all bounds.

    Attributes:
        x, z: variables and their multipliers, in pairs, all positive: p, q, s, then c where both |d| and its maximum
            count, then r (of the soft rows).
        gamma: (n,) the multiplier of p + q + c = t.
        t: the largest |d|.
    """

    x: list[Array]
    z: list[Array]
    gamma: Array
    t: float

    @property
    def d(self) -> Array:
        return self.x[0] - self.x[1]

    @property
    def y(self) -> Array:
        return self.z[2]


class Interior:
    """The interior point for one set of rows.

    Args:
        conditions: the rows.
        norm: what is minimised.
        d, y: a guess of the change and the multipliers to start from.
    """

    def __init__(self, conditions: Conditions, norm: Polyhedral, d: Array, y: Array) -> None:
        self.conditions, self.norm = conditions, norm
        self.soft = np.flatnonzero(np.isfinite(conditions.cap))
        self.unit = size_of(conditions.need)
        self.capped, self.both = norm.max_weight > 0, norm.max_weight > 0 and norm.sum_weight > 0
        self.at, self.gap = self._start(d, y, AWAY), np.inf

    @property
    def d(self) -> Array:
        """The change, (n,)."""
        return self.at.d

    def _start(self, d: Array, y: Array, share: float) -> Inside:
        rows, need, cap, w = self.conditions.rows, self.conditions.need, self.conditions.cap, self.norm.sum_weight
        size = float(np.abs(d).max())
        away = share * max(float(np.abs(d).mean()), 0.1 * size if self.capped else 0.0) + 1e-300
        p, q = np.maximum(d, 0) + away, np.maximum(-d, 0) + away
        t = (1 + 2 * share) * float((p + q).max()) if self.capped else 0.0
        if self.capped and not self.both:
            p, q = (t + d) / 2, (t - d) / 2
        y = np.maximum(y, share * float(y.mean()))
        y = np.minimum(y * (0.9 / max(self.norm.dual(rows.rmatvec(y)), 1e-300)), cap / 2)
        slack = rows.matvec(d) - need
        pull = rows.rmatvec(y)
        typical = float(np.abs(pull).mean()) + 1e-300
        over = np.abs(pull) - w if self.both else np.abs(pull)
        gamma = np.maximum(over, 0.0) + share * typical if self.capped else np.zeros(rows.n)
        x = [p, q, np.maximum(slack, share / 2 * self.unit)]
        z = [np.maximum(w + gamma - pull, share * typical), np.maximum(w + gamma + pull, share * typical), y]
        if self.both:
            x, z = [*x, t - p - q], [*z, gamma]
        x.append(np.maximum(-slack, share / 2 * self.unit)[self.soft])
        z.append((cap - y)[self.soft])
        return Inside(x, z, gamma, t)

    def join(self, more: Conditions) -> None:
        """Go on with further rows after those that are near to binding."""
        at, using, y = self.at, self.conditions, self.at.y
        if using.m + more.m > using.rows.n:  # drop what is far from binding: it is found again where it is needed
            busy = np.flatnonzero((at.x[2] < 0.02 * self.unit) | (y > 1e-3 * float(y.max())))
            using, y = using.take(busy), y[busy]
        self.conditions = using.joined(more)
        self.soft = np.flatnonzero(np.isfinite(self.conditions.cap))
        self.at = self._start(at.d, np.concatenate([y, np.zeros(more.m)]), again(self.gap))

    def complementarity(self) -> float:
        return sum(float(x @ z) for x, z in zip(self.at.x, self.at.z, strict=True)) / sum(map(len, self.at.x))

    def run(self, gap: float, missed: float, tick: Callable[[], None] = idle) -> int:
        """Step until the relative gap and the relative size of missed rows are small; return the steps taken.

        `tick` is called before each step; what it raises ends the work.

        Raises:
            NotSolvedError: they did not become so.
        """
        best, least = (self.at, self.gap), np.inf
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            since = 0
            for taken in range(MAX_STEPS):
                tick()
                step = _Step(self)
                if not np.isfinite(step.off):
                    break
                self.gap = step.gap
                since += 1
                if step.off < least:
                    best, least, since = (self.at, self.gap), step.off, 0
                if step.done(gap, missed):
                    return taken
                if since == (LITTLE if best[1] < CLOSE else PATIENCE):
                    break
                try:
                    step.take()
                except NotSolvedError:
                    break
        self.at, self.gap = best
        raise NotSolvedError("the steps of an interior point were not enough, or its numbers gave out")


class _Step:
    """One step: residuals, the factorised system, predictor and corrector."""

    def __init__(self, program: Interior) -> None:
        self.program, self.at = program, program.at
        at, rows, need, norm = program.at, program.conditions.rows, program.conditions.need, program.norm
        p, q, s = at.x[:3]
        zp, zq, y = at.z[:3]
        pull = rows.rmatvec(y)
        self.missed = need - rows.matvec(p - q) + s
        self.missed[program.soft] -= at.x[-1]
        self.c = at.x[3] if program.both else np.zeros(1)
        self.off_cap = at.t - p - q - self.c if program.capped else np.zeros(1)
        self.off_p, self.off_q = norm.sum_weight + at.gamma - pull - zp, norm.sum_weight + at.gamma + pull - zq
        self.off_t = norm.max_weight - float(at.gamma.sum()) if program.capped else 0.0
        price = program.conditions.cap[program.soft]
        self.primal = float(norm.sum_weight * (p + q).sum() + norm.max_weight * at.t + price @ at.x[-1])
        self.gap = abs(self.primal - float(need @ y)) / abs(self.primal)
        self.pull = float(np.abs(pull).mean()) + 1e-300
        self.off = self.gap + float(np.abs(self.missed).max()) / program.unit

    def done(self, gap: float, missed: float) -> bool:
        off = max(float(np.abs(self.off_p).max()), float(np.abs(self.off_q).max())) / self.pull
        near = float(np.abs(self.missed).max()) <= missed * self.program.unit and off <= gap
        near = near and abs(self.off_t) <= gap * max(self.program.norm.max_weight, 1e-300)
        return near and self.gap <= gap

    def take(self) -> None:
        """Move on."""
        at, program = self.at, self.program
        self._factorise()
        zero = [-x * z for x, z in zip(at.x, at.z, strict=True)]
        dx, dz, _, _ = self._newton(zero)
        a, b = longest(at.x, dx), longest(at.z, dz)
        mu, count = program.complementarity(), sum(map(len, at.x))
        parts = zip(at.x, dx, at.z, dz, strict=True)
        after = sum(float((x + a * u) @ (z + b * v)) for x, u, z, v in parts) / count
        goal = mu * max(after / mu, 0.0) ** 3
        second = [goal + first - u * v for first, u, v in zip(zero, dx, dz, strict=True)]
        dx, dz, dgamma, dt = self._newton(second)
        a, b = min(1.0, SHORT * longest(at.x, dx)), min(1.0, SHORT * longest(at.z, dz))
        x = [v + a * u for v, u in zip(at.x, dx, strict=True)]
        z = [v + b * u for v, u in zip(at.z, dz, strict=True)]
        gamma = z[3] if program.both else at.gamma + b * dgamma
        program.at = replace(at, x=x, z=z, gamma=gamma, t=at.t + a * dt)

    def _factorise(self) -> None:
        at, program = self.at, self.program
        share = [x / z for x, z in zip(at.x, at.z, strict=True)]
        self.p, self.q = share[0], share[1]
        self.over_c = share[3] if program.both else np.zeros(1)
        self.slack = at.x[2] / at.z[2]
        self.slack[program.soft] += share[-1]
        if not program.capped:
            self.system = System(program.conditions.rows, self.p + self.q, self.slack)
            return
        self.whole = self.p + self.q + self.over_c
        self.tilt = (self.p - self.q) / self.whole
        weight = (4 * self.p * self.q + (self.p + self.q) * self.over_c) / self.whole
        self.system = System(program.conditions.rows, weight, self.slack)
        self.moved = program.conditions.rows.matvec(self.tilt)
        self.answer = self.system.solve(self.moved)
        self.stiff = float(self.moved @ self.answer) + float((1 / self.whole).sum())

    def _newton(self, goal: Sequence[Array]) -> tuple[list[Array], list[Array], Array, float]:
        """Return the steps of x, z, gamma and t after which each product x z changes by `goal`, to first order."""
        at, program, rows = self.at, self.program, self.program.conditions.rows
        want = [g / z for g, z in zip(goal, at.z, strict=True)]
        p, q = want[0] - self.p * self.off_p, want[1] - self.q * self.off_q
        c = want[3] if program.both else np.zeros(1)
        move, dt, left = p - q, 0.0, np.zeros(1)
        if program.capped:
            left = p + q + c - self.off_cap
            move = move - self.tilt * left
        right = self.missed - rows.matvec(move) + want[2]
        right[program.soft] -= want[-1]
        dy = self.system.solve(right)
        if program.capped:
            dt = (float(self.moved @ dy) - self.off_t + float((left / self.whole).sum())) / self.stiff
            dy = dy - dt * self.answer
        pull = rows.rmatvec(dy)
        dgamma = (left - dt + (self.p - self.q) * pull) / self.whole if program.capped else np.zeros(1)
        dx = [p - self.p * (dgamma - pull), q - self.q * (dgamma + pull), want[2] - at.x[2] / at.z[2] * dy]
        dz = [dgamma - pull + self.off_p, dgamma + pull + self.off_q, dy]
        if program.both:
            dx, dz = [*dx, c - self.over_c * dgamma], [*dz, dgamma]
        soft = dy[program.soft]
        dx, dz = [*dx, want[-1] + at.x[-1] / at.z[-1] * soft], [*dz, -soft]
        return dx, dz, dgamma, dt


def again(gap: float) -> float:
    """Return how far from the bounds, as for `AWAY`, to go on from a point with this gap when further rows join."""
    return float(np.clip(np.sqrt(gap) / 2, 0.002, 0.02))


def longest(values: Sequence[Array], moves: Sequence[Array]) -> float:
    """Return the longest step, at most 1, that keeps every value positive."""
    pairs = zip(values, moves, strict=True)
    return min(1.0, *(float((-v[dv < 0] / dv[dv < 0]).min(initial=np.inf)) for v, dv in pairs))
