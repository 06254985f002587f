"""An interior point for the nuclear norm, the sum of a matrix's singular values: a semidefinite program.

    min  trace(X) / 2 + cap.r   such that   X = [U D; D^T V] is positive semidefinite,  G d - s + r = h,  s, r >= 0

(r of soft rows alone) where d is D, flat; at the minimum trace(X) / 2 is the nuclear norm of D. Its dual is h.y under
Z = [I -M; -M^T I] / 2 positive semidefinite, 0 <= y <= cap, with G^T y = M, flat: the largest singular value of M is at
most one. Steps are those of Nesterov & Todd (1997), with Mehrotra's predictor and corrector (1992), and y stays
feasible, so that every step has its bound. A row whose gradient is an outer product makes the systems as cheap as Gram
matrices. D has no part outside the span of what the rows' maps were applied to: a program is as large as that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import scipy.linalg

from nnrepair.solver.conditions import Conditions
from nnrepair.solver.interior import AWAY, CLOSE, LITTLE, MAX_STEPS, PATIENCE, again, cholesky, longest
from nnrepair.solver.levels import better, by_levels
from nnrepair.solver.norms import Array, Nuclear
from nnrepair.solver.quadratic import NotSolvedError, idle, size_of
from nnrepair.solver.rounds import Rounds
from nnrepair.solver.rows import Factored
from nnrepair.solver.solution import Solution, finished, judged

T = TypeVar("T", float, Array)

#: The share of the way to the boundary that a step takes.
SHORT = 0.98
#: Singular values below this share of the largest are those of zeros.
NOTHING = 1e-6
#: Steps that take a matrix of this rank back to the rows that bind.
RETURNS = 3


def nuclear(conditions: Conditions, norm: Nuclear, d: Array, y: Array, rounds: Rounds) -> Solution:
    """Return the change of smallest nuclear norm; arguments and errors are those of `polyhedral`."""
    unit = size_of(conditions.need)  # numbers of the size of one
    given = replace(conditions, need=conditions.need / unit)
    program = Spectral(given, norm, d / unit, y / max(1e-300, norm.dual(conditions.rows.rmatvec(y))))
    return by_levels(program, unit, rounds)


@dataclass(frozen=True)
class Inside:
    """A point between all bounds.

    Attributes:
        X: (out + inp, out + inp) in the coordinates of the program.
        y, s: (m,) multipliers and slacks.
        r: (soft rows,) what they miss.
    """

    X: Array
    y: Array
    s: Array
    r: Array


class Spectral:
    """The interior point for one set of rows.

    Args:
        conditions: the rows, of one linear map.
        norm: the nuclear norm.
        d, y: a guess of the change and the multipliers to start from.
    """

    def __init__(self, conditions: Conditions, norm: Nuclear, d: Array, y: Array) -> None:
        self.norm, self.gap = norm, np.inf
        self.unit = size_of(conditions.need)
        self._begin(conditions, d, y, AWAY)

    def _begin(self, conditions: Conditions, d: Array, y: Array, share: float) -> None:
        self.conditions = conditions
        self.soft = np.flatnonzero(np.isfinite(conditions.cap))
        block = conditions.rows.blocks[0]
        assert isinstance(block, Factored)
        block = block.distinct()
        self.left, self.right = _span(block.delta), _span(block.inputs)
        self.rows = Factored(
            np.ascontiguousarray(block.delta @ self.left), block.point, np.ascontiguousarray(block.inputs @ self.right)
        )
        D = self.left.T @ d.reshape(self.norm.out, self.norm.inp) @ self.right
        u, size, v = np.linalg.svd(D, full_matrices=False)
        away = share * float(size.mean()) + 1e-300
        X = np.block([[(u * size) @ u.T, D], [D.T, (v.T * size) @ v]]) + away * np.eye(sum(D.shape))
        y = np.maximum(y, share * float(y.mean()))
        y = np.minimum(y * (0.9 / max(self.norm.dual(conditions.rows.rmatvec(y)), 1e-300)), conditions.cap / 2)
        slack = self.rows.matvec(D.ravel()) - conditions.need
        least = share / 2 * self.unit
        self.at = Inside(X, y, np.maximum(slack, least), np.maximum(-slack, least)[self.soft])

    @property
    def d(self) -> Array:
        """The change, (n,)."""
        out = self.left.shape[1]
        return np.asarray(self.left @ self.at.X[:out, out:] @ self.right.T).ravel()

    def join(self, more: Conditions) -> None:
        """Go on with further rows."""
        y = np.concatenate([self.at.y, np.zeros(more.m)])
        self._begin(self.conditions.joined(more), self.d, y, again(self.gap))

    def tidied(self, stats: dict[str, Any]) -> Solution:
        """Return the point, or where it is no worse the matrix of low rank that it is near."""
        plain = finished(self.conditions, self.norm, self.d, self.at.y, stats)
        try:
            return better(judged(self.conditions, self.norm, self._low_rank(), self.at.y, stats), plain)
        except NotSolvedError:  # what binds depends on each other
            return plain

    def _low_rank(self) -> Array:
        """Return the change (n,) without the singular values that are all but zero, taken back to what binds."""
        at, out = self.at, self.left.shape[1]
        u, size, v = np.linalg.svd(at.X[:out, out:], full_matrices=False)
        rank = int((size > NOTHING * size[0]).sum())
        half = np.sqrt(size[:rank])
        A, B = u[:, :rank] * half, v[:rank].T * half  # D = A B^T
        bind = np.flatnonzero(at.s < at.y * self.unit / float(at.y.max()))
        rows, need = self.rows.take(bind), self.conditions.need[bind]
        inputs = rows.inputs[rows.point]
        for _ in range(RETURNS):
            missed = need - rows.matvec((A @ B.T).ravel())
            by_A = np.einsum("mpo,mpr->mor", rows.delta, inputs @ B).reshape(len(bind), -1)
            by_B = np.einsum("mpr,mpi->mir", rows.delta @ A, inputs).reshape(len(bind), -1)
            factor = cholesky(by_A @ by_A.T + by_B @ by_B.T, np.zeros(len(bind)))
            shares = scipy.linalg.cho_solve((factor, True), missed, check_finite=False)
            A, B = A + (shares @ by_A).reshape(A.shape), B + (shares @ by_B).reshape(B.shape)
        return np.asarray(self.left @ A @ (self.right @ B).T).ravel()

    def run(self, gap: float, missed: float, tick: Callable[[], None] = idle) -> int:
        """Step until the relative gap and the relative size of missed rows are small; return the steps taken.

        `tick` is called before each step; what it raises ends the work.

        Raises:
            NotSolvedError: they did not become so.
        """
        best, least, since = (self.at, self.gap), np.inf, 0
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                for taken in range(MAX_STEPS):
                    tick()
                    step = _Step(self)
                    self.gap, since = step.gap, since + 1
                    if step.off < least:
                        best, least, since = (self.at, self.gap), step.off, 0
                    if step.gap <= gap and step.missed <= missed:
                        return taken
                    if since == (LITTLE if best[1] < CLOSE else PATIENCE):
                        break
                    self.at = step.taken()
        except (NotSolvedError, np.linalg.LinAlgError):
            pass
        self.at, self.gap = best
        raise NotSolvedError("the steps of an interior point were not enough, or its numbers gave out")


class _Step:
    """One step: residuals, coordinates in which X and Z are the same diagonal, the factorised system."""

    def __init__(self, program: Spectral) -> None:
        self.program, self.at = program, program.at
        at, need, cap = program.at, program.conditions.need, program.conditions.cap
        self.soft, self.out = program.soft, program.left.shape[1]
        self.z = cap[self.soft] - at.y[self.soft]
        primal = float(np.trace(at.X)) / 2 + float(cap[self.soft] @ at.r)
        self.gap = abs(primal - float(need @ at.y)) / primal
        off = need - self._applied(at.X) + at.s
        off[self.soft] -= at.r
        self.missed = float(np.abs(off).max()) / program.unit
        self.off = _finite(self.gap + self.missed)
        Z = np.eye(len(at.X)) / 2 - self._adjoint(at.y)
        upper, lower = scipy.linalg.cholesky(Z), scipy.linalg.cholesky(at.X, lower=True)
        _, self.S, v = scipy.linalg.svd(upper @ lower)
        self.to = (lower @ v.T) / np.sqrt(self.S)  # X = to S to^T, and to^T Z to = S
        self.W = self.to @ self.to.T

    def _applied(self, X: Array) -> Array:
        return self.program.rows.matvec(X[: self.out, self.out :].ravel())

    def _adjoint(self, y: Array) -> Array:
        M = self.program.rows.rmatvec(y).reshape(self.out, -1) / 2
        return np.asarray(np.block([[np.zeros((len(M), len(M))), M], [M.T, np.zeros((M.shape[1], M.shape[1]))]]))

    def taken(self) -> Inside:
        """Return the point after the step."""
        at, soft = self.at, self.soft
        slack = at.s / at.y
        slack[soft] += at.r / self.z
        o = self.out
        self.factor = cholesky(self.program.rows.between(self.W[:o, :o], self.W[:o, o:], self.W[o:, o:]), slack)
        dX, dZ, ds, dy, dr = self._newton(-np.diag(self.S**2), -at.s * at.y, -at.r * self.z)
        a, b = self._lengths(dX, dZ, ds, dy, dr)
        count = len(self.S) + len(at.y) + len(soft)
        mu = self._total(0.0, 0.0, dX, dZ, ds, dy, dr) / count
        after = self._total(a, b, dX, dZ, ds, dy, dr) / count
        goal = mu * max(after / mu, 0.0) ** 3
        both = dX @ dZ
        dX, dZ, ds, dy, dr = self._newton(
            np.diag(goal - self.S**2) - (both + both.T) / 2,
            goal - at.s * at.y - ds * dy,
            goal - at.r * self.z + dr * dy[soft],
        )
        a, b = (min(1.0, SHORT * length) for length in self._lengths(dX, dZ, ds, dy, dr))
        X = at.X + a * (self.to @ dX @ self.to.T)
        return Inside((X + X.T) / 2, at.y + b * dy, at.s + a * ds, at.r + a * dr)

    def _newton(self, goal: Array, goal_s: Array, goal_r: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Return steps of X and Z in the common coordinates, and of s, y and r, for the changes of their products."""
        at, soft = self.at, self.soft
        E = 2 * goal / (self.S[:, None] + self.S)
        right = self.program.conditions.need - self._applied(at.X + self.to @ E @ self.to.T) + at.s + goal_s / at.y
        right[soft] -= at.r + goal_r / self.z
        dy = _finite(scipy.linalg.cho_solve((self.factor, True), right, check_finite=False))
        dZ = -self.to.T @ self._adjoint(dy) @ self.to
        return E - dZ, dZ, (goal_s - at.s * dy) / at.y, dy, (goal_r + at.r * dy[soft]) / self.z

    def _lengths(self, dX: Array, dZ: Array, ds: Array, dy: Array, dr: Array) -> tuple[float, float]:
        """Return how far primal and dual variables can go."""
        root = np.sqrt(self.S)
        lowest = [float(scipy.linalg.eigvalsh(m / root[:, None] / root, subset_by_index=[0, 0])[0]) for m in (dX, dZ)]
        X, Z = (1 / max(-low, 1e-300) for low in lowest)
        at = self.at
        return min(X, longest([at.s, at.r], [ds, dr])), min(Z, longest([at.y, self.z], [dy, -dy[self.soft]]))

    def _total(self, a: float, b: float, dX: Array, dZ: Array, ds: Array, dy: Array, dr: Array) -> float:
        """Return the sum of all products after steps of these lengths."""
        at, S = self.at, np.diag(self.S)
        linear = (at.s + a * ds) @ (at.y + b * dy) + (at.r + a * dr) @ (self.z - b * dy[self.soft])
        return float(((S + a * dX) * (S + b * dZ)).sum() + linear)


def _finite(x: T) -> T:
    """Return numbers as they are.

    Raises:
        NotSolvedError: not all are finite.
    """
    if not np.isfinite(x).all():
        raise NotSolvedError("numbers of an interior point are out of range")
    return x


def _span(x: Array) -> Array:
    """Return orthonormal columns that span the rows of x (..., width)."""
    flat = x.reshape(-1, x.shape[-1])
    width = flat.shape[1]
    if len(flat) >= width:
        return np.eye(width)
    return np.linalg.qr(flat.T)[0]
