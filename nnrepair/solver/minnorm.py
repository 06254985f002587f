"""The heart: min norm(d) subject to G d >= h, with rows and columns on demand and a duality-gap certificate.

Three stages, each a warm start of the next, all built on one Newton kernel (`nnqp`):

1. *Euclidean norm.* The dual is a non-negative quadratic program on the Gram matrix G G^T of the rows in use. The
   network is run on every edit and the whole locality set, the most violated rows join, until none is left. This is
   already the answer for the norms "l2" and "drift".
2. *Proximal points.* For any other norm, d <- argmin norm(d) + |d - d_k|^2 / (2 step). Each step's dual is smooth with
   curvature `step * G P G^T`, P the derivative of the norm's proximal map: Newton's model is again an `nnqp`. A few
   steps find which rows bind and which coordinates are free.
3. *Restricted master.* For polyhedral norms, a linear program over the binding rows and the free coordinates alone
   (HiGHS); the coordinates at the cap move together as one column. G^T y prices every other coordinate at once.

Whatever the stage, y >= 0 gives the lower bound `h.y / dual_norm(G^T y)`, so the gap that is reported is a proof.
Measured against the alternatives (all rows and columns by an interior point, columns on demand alone, proximal points
alone): see docs/how-minimal.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import highspy
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from nnrepair.solver import highs
from nnrepair.solver.norms import Array, Euclidean, Norm, Polyhedral, ProximalNorm
from nnrepair.solver.quadratic import NotSolvedError, nnqp, size_of
from nnrepair.solver.rows import Index, Rows

#: Rows count as satisfied when they miss by less than this share of the largest need.
ROW_TOLERANCE = 1e-9
#: Where rows are nearly dependent, rounding may leave this much.
LOOSE = 1e-6
#: Ridge on the Gram matrix of rows of length one, and the smallest to which it is lowered where progress is slow.
RIDGE, LEAST_RIDGE = 1e-11, 1e-15
#: Bound on proximal steps, each of which shrinks what the ridge leaves.
REFINEMENTS = 30
#: Tolerances of HiGHS are absolute; this is for needs of at most one.
FEASIBLE = 1e-10


@dataclass(frozen=True)
class Conditions:
    """Rows in use: G d >= h.

    Attributes:
        rows: G, (m, n).
        need: h, (m,).
        cap: (m,) the largest multiplier of each row: inf for a hard row, finite where missing the row by one unit
            costs that much.
        tag: (m, 3) what each row is: which demand, which point, which condition.
        by: (m,) what the rows were multiplied by, or None where they are as given.
    """

    rows: Rows
    need: Array
    cap: Array
    tag: Index
    by: Array | None = None

    @property
    def m(self) -> int:
        return len(self.need)

    def joined(self, other: Conditions) -> Conditions:
        return Conditions(
            self.rows.joined(other.rows),
            np.concatenate([self.need, other.need]),
            np.concatenate([self.cap, other.cap]),
            np.concatenate([self.tag, other.tag]),
            None if self.by is None or other.by is None else np.concatenate([self.by, other.by]),
        )

    def take(self, which: Index) -> Conditions:
        by = None if self.by is None else self.by[which]
        return Conditions(self.rows.take(which), self.need[which], self.cap[which], self.tag[which], by)

    def normalised(self) -> Conditions:
        """Return the same conditions with rows of length about one: those of other sizes would be lost in rounding.

        Lengths are powers of two, so that nothing is rounded on the way here and back.

        Raises:
            NotSolvedError: rows or needs that are not finite.
        """
        lengths = self.rows.lengths()
        if not (np.isfinite(lengths).all() and np.isfinite(self.need).all()):
            raise NotSolvedError("gradients or outputs of the model are too large for float64")
        by = np.exp2(-np.rint(np.log2(np.where(lengths > 0, lengths, 1.0))))
        return self._times(by, by)

    def as_given(self) -> Conditions:
        """Return the conditions that were `normalised`."""
        return self if self.by is None else self._times(1 / self.by, None)

    def _times(self, by: Array, now: Array | None) -> Conditions:
        return Conditions(self.rows.scaled(by), self.need * by, self.cap / by, self.tag, now)


#: Returns rows that a change violates and that are not in use yet, or None: (change, rows in use) -> rows.
Separate = Callable[[Array, Conditions], Conditions | None]


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


class Infeasible(Exception):
    """No change satisfies the rows. `ray` (m,) >= 0 shows it: G^T ray = 0 although h.ray > 0.

    The conditions are `normalised`, or as they were given to `euclidean`.
    """

    def __init__(self, conditions: Conditions, ray: Array) -> None:
        super().__init__(f"{np.count_nonzero(ray)} rows contradict each other")
        self.conditions = conditions
        self.ray = ray

    @property
    def certain(self) -> bool:
        """Whether the ray shows it: any change would have to be far larger than each row alone asks for."""
        rows, need = self.conditions.rows, self.conditions.need
        lengths = rows.lengths()
        alone = np.divide(need, lengths, out=np.zeros_like(need), where=lengths > 0)
        size = float(np.linalg.norm(rows.rmatvec(self.ray)))
        return float(need @ self.ray) > 1e6 * float(alone.max(initial=0.0)) * size


def euclidean(conditions: Conditions, free: NDArray[np.bool_] | None = None) -> Array:
    """Return multipliers y of the smallest Euclidean change d = G^T y; `free` guesses which are positive.

    Raises:
        Infeasible: the rows contradict each other.
    """
    sets = conditions.rows.independent()
    if len(sets) == 1:
        return _euclidean(conditions, free)
    y = np.zeros(conditions.m)
    for which in sets:
        part = conditions.take(which)
        y[which] = _euclidean(
            replace(part, rows=part.rows.narrowed()), None if free is None else free[which], size_of(conditions.need)
        )
    return y


def _euclidean(conditions: Conditions, free: NDArray[np.bool_] | None, size: float | None = None) -> Array:
    """Return the multipliers of rows that share weights.

    Args:
        conditions, free: as for `euclidean`.
        size: of the needs, to which tolerances are relative.
    """
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
        y = nnqp(system, missed + system @ y, cap, free)
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


def solve(
    first: Conditions,
    separate: Separate,
    norm: Euclidean | ProximalNorm,
    *,
    gap: float = 1e-6,
    max_rounds: int = 200,
    report: Callable[[str], None] = lambda text: None,
) -> Solution:
    """Return the smallest change that satisfies all rows, those in `first` and those that `separate` finds.

    Args:
        first: rows to start from, at least one.
        separate: finds violated rows among all others.
        norm: what "small" means.
        gap: the relative distance from the minimum at which to stop.
        max_rounds: bound on the rounds of each stage.
        report: called with a line of progress per round.

    Returns:
        The change, with a gap that is larger than asked for where the numbers gave out on the way.

    Raises:
        Infeasible: rows in use contradict each other.
        NotSolvedError: the numbers gave out before any change was found.
    """

    def more(d: Array, using: Conditions) -> Conditions | None:
        found = separate(d, using)
        return None if found is None else found.normalised()

    found = _solve(first.normalised(), more, norm, gap, max_rounds, report)
    by = found.conditions.by
    return replace(found, y=found.y if by is None else found.y * by, conditions=found.conditions.as_given())


def _solve(
    first: Conditions,
    separate: Separate,
    norm: Euclidean | ProximalNorm,
    gap: float,
    max_rounds: int,
    report: Callable[[str], None],
) -> Solution:
    """Solve it for rows of length one."""
    stats = {"rounds": 0, "newton_steps": 0, "linear_programs": 0}
    conditions, free = first, np.ones(first.m, bool)
    for _ in range(max_rounds):
        y = euclidean(conditions, free)
        d = conditions.rows.rmatvec(y)
        stats["rounds"] += 1
        more = separate(d, conditions)
        if more is None:
            break
        # The minimum can only grow, so a row that is dropped now and needed again later makes no cycle.
        conditions, y = _keep_busy(conditions, y, d)
        conditions, free = conditions.joined(more), np.concatenate([y > 0, np.ones(more.m, bool)])
        report(f"{conditions.m} rows")
    else:
        raise NotSolvedError(f"{max_rounds} rounds were not enough to find all rows that bind.")
    if isinstance(norm, Euclidean) or not d.any():
        return _euclidean_solution(conditions, d, y, stats)
    scale = norm.dual(d)
    conditions, y = _rescale_caps(conditions, scale), y / scale
    least = _judged(conditions, norm, d, y, stats)  # in case that nothing better comes of it
    try:
        found = _in_norm(*_keep_busy(conditions, y, d), separate, norm, d, gap, scale, stats, max_rounds, report)
    except NotSolvedError:
        return least
    feasible = found.missed <= max(10 * ROW_TOLERANCE, least.missed)
    return found if feasible and (found.gap <= gap or found.objective <= least.objective) else least


def _in_norm(
    conditions: Conditions,
    y: Array,
    separate: Separate,
    norm: ProximalNorm,
    d: Array,
    gap: float,
    scale: float,
    stats: dict[str, Any],
    max_rounds: int,
    report: Callable[[str], None],
) -> Solution:
    """Go on from the Euclidean answer (d, y) to another norm."""
    # Columns on demand alone are faster where optima are sparse (l1) or the rows are nearly as many as the weights.
    direct = isinstance(norm, Polyhedral) and (norm.max_weight == 0 or conditions.rows.n < 40 * conditions.m)
    step = 30.0 * float(d @ d) / norm.value(d)
    for _ in range(0 if direct else max_rounds):
        d, y, steps = proximal_points(conditions, norm, d, y, step, gap)
        stats["newton_steps"] += steps
        stats["rounds"] += 1
        more = separate(d, conditions)
        if more is None:
            break
        more = _rescale_caps(more, scale)
        conditions, y = conditions.joined(more), np.concatenate([y, np.zeros(more.m)])
        report(f"{conditions.m} rows, {stats['newton_steps']} Newton steps")
    if isinstance(norm, Polyhedral):
        return master(conditions, separate, norm, y, gap, scale, stats, max_rounds, report)
    for looseness in (1.0, 1e-2, 1e-4):  # where rows meet in a narrow corner, less damping gets closer
        d, y, steps = proximal_points(conditions, norm, d, y, step, gap, looseness)
        stats["newton_steps"] += steps
        solution = _finish(conditions, norm, d, y, stats)
        if solution.gap <= gap:
            break
    return solution


def _euclidean_solution(conditions: Conditions, d: Array, y: Array, stats: dict[str, Any]) -> Solution:
    """Judge (d, y) by norm(d); with soft rows, by the penalised |d|^2 / 2 + cap.missed that was minimised."""
    size = float(np.linalg.norm(d))
    worth = float(conditions.need @ y)
    soft = np.isfinite(conditions.cap)
    if soft.any():
        objective, bound = size**2 / 2 + _price(conditions, d), worth - size**2 / 2
        return Solution(d, y, objective, min(bound, objective), conditions, stats)
    return Solution(
        d, y / size if size > 0 else y, size, min(worth / size, size) if size > 0 else 0.0, conditions, stats
    )


def _rescale_caps(conditions: Conditions, scale: float) -> Conditions:
    """Prices are given for the squared Euclidean norm; a norm's multipliers are smaller by `scale`."""
    return replace(conditions, cap=conditions.cap / scale)


def _keep_busy(conditions: Conditions, y: Array, d: Array) -> tuple[Conditions, Array]:
    """Drop the rows that neither bind nor come close: whichever matters later is found again."""
    slack = conditions.rows.matvec(d) - conditions.need
    busy = np.flatnonzero((y > 0) | (slack < 0.02 * size_of(conditions.need)))
    return conditions.take(busy), y[busy]


def proximal_points(
    conditions: Conditions,
    norm: ProximalNorm,
    d: Array,
    y: Array,
    step: float,
    gap: float,
    looseness: float = 1.0,
    max_outer: int = 40,
) -> tuple[Array, Array, int]:
    """Return (d, y, Newton steps): a change and multipliers close to optimal for the rows in use.

    Semismooth Newton on the dual of the proximal step (Li, Sun & Toh 2018 for such methods), with a small proximal
    term on y as well, so that every model is strictly convex. Stops when the gap is small or progress ends.
    """
    rows, h, cap = conditions.rows, conditions.need, conditions.cap
    tolerance = 1e-6 * looseness * size_of(h)
    damping = 1e-5 * looseness * step  # fixed: growing with the step it would slow y down
    best = 0.0
    steps = 0
    for _ in range(max_outer):
        d0, y0 = d, y

        def look(y: Array, d0: Array = d0, y0: Array = y0, step: float = step) -> Any:
            u = d0 + step * rows.rmatvec(y)
            near = norm.prox(u, step)
            p = near.point
            value = (
                (u @ u - (u - p) @ (u - p)) / (2 * step) - norm.value(p) - h @ y + damping / 2 * ((y - y0) ** 2).sum()
            )
            return value, rows.matvec(p) - h + damping * (y - y0), near

        value, slope, near = look(y)
        converged = False
        for _ in range(40):
            inside = np.where(y > 0, np.where(y < cap, np.abs(slope), np.maximum(slope, 0)), np.maximum(-slope, 0))
            if inside.max() <= tolerance:
                converged = True
                break
            curvature = step * near.curvature(rows)
            curvature[np.diag_indices_from(curvature)] += damping
            move = nnqp(curvature, curvature @ y - slope, cap) - y
            steps += 1
            length = 1.0
            while True:
                trial = y + length * move
                new_value, new_slope, new_near = look(trial)
                if new_value <= value + 1e-4 * length * (slope @ move) + 1e-13 * abs(value) or length < 1e-4:
                    break
                length *= 0.5
            if length < 1e-4:
                break
            y, value, slope, near = trial, new_value, new_slope, new_near
        d = near.point
        best = max(best, float(h @ y) / max(1.0, norm.dual(rows.rmatvec(y))))
        size = norm.value(d) + _price(conditions, d)
        apart = size - best if isinstance(norm, Polyhedral) else abs(size - best) * 10  # no master will finish the rest
        if not converged or apart <= gap * size:
            break
        step *= 3.0
    return d, y, steps


def _finish(conditions: Conditions, norm: Norm, d: Array, y: Array, stats: dict[str, Any]) -> Solution:
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
    return _judged(conditions, norm, d, y, stats)


def _judged(conditions: Conditions, norm: Norm, d: Array, y: Array, stats: dict[str, Any]) -> Solution:
    """Return the change d with the bound that the multipliers y give."""
    hard = np.flatnonzero(np.isinf(conditions.cap))
    dual = norm.dual(conditions.rows.rmatvec(y))
    all_hard = len(hard) == conditions.m  # then y may also be scaled up: no cap is in the way
    y = y / max(dual if all_hard else 1.0, dual, 1e-300)
    size = norm.value(d) + _price(conditions, d)
    return Solution(d, y, size, min(float(conditions.need @ y), size), conditions, stats)


def _price(conditions: Conditions, d: Array) -> float:
    """Return what missing the soft rows costs."""
    soft = np.isfinite(conditions.cap)
    missed = np.maximum(conditions.need - conditions.rows.matvec(d), 0.0)
    return float(conditions.cap[soft] @ missed[soft])


def master(
    conditions: Conditions,
    separate: Separate,
    norm: Polyhedral,
    y: Array,
    gap: float,
    scale: float,
    stats: dict[str, Any],
    max_rounds: int,
    report: Callable[[str], None],
) -> Solution:
    """Solve the linear program over the rows in use and the coordinates that are free, adding both on demand."""
    n = conditions.rows.n
    price = norm.sum_weight
    prices = np.abs(conditions.rows.rmatvec(y))
    prices_signed = conditions.rows.rmatvec(y)
    fixed = np.where(prices > price, np.sign(prices_signed), 0.0) if norm.max_weight else np.zeros(n)
    distance = np.abs(prices - price) if norm.max_weight else -prices
    free = np.zeros(n, bool)
    count = min(n, 3 * conditions.m + 50)
    free[np.argpartition(distance, count - 1)[:count]] = True
    elastic = 1e3 * max(float(y.max()), 1e-12)
    bound = 0.0
    best_y = y / max(1e-300, norm.dual(prices_signed))
    for _ in range(max_rounds):
        where = np.flatnonzero(free)
        together = np.where(free, 0.0, fixed)
        x, level, y, missed = _restricted(conditions, norm, where, together, elastic)
        stats["linear_programs"] += 1
        d = together * level
        d[where] = x
        z = conditions.rows.rmatvec(y)
        dual = norm.dual(z)
        if dual > 0 and float(conditions.need @ y) / max(1.0, dual) > bound:
            bound, best_y = float(conditions.need @ y) / max(1.0, dual), y / max(1.0, dual)
        soft = np.isfinite(conditions.cap)
        size = norm.value(d) + float(conditions.cap[soft] @ missed[soft])
        stuck = missed[~soft].max(initial=0.0) > ROW_TOLERANCE * size_of(conditions.need)
        more = None if stuck else separate(d, conditions)
        if not stuck and more is None and size - bound <= gap * size:
            return _finish(conditions, norm, d, best_y, stats)
        report(f"{conditions.m} rows, {len(where)} columns, gap {(size - bound) / size if size else 0:.1e}")
        if norm.max_weight:
            at_cap = np.abs(x) >= level * (1 - 1e-9)
            settled = where[at_cap | (np.abs(x) <= 1e-12 * level)]
            fixed[where] = np.where(at_cap, np.sign(x), 0.0)
            worth = np.where(fixed != 0, price - fixed * z, np.abs(z) - price)
        else:
            settled = where[x == 0]
            worth = np.abs(z) - price
        free[settled[worth[settled] < -0.3 * max(price, float(np.median(np.abs(z))))]] = False
        new = np.flatnonzero((worth > 1e-10 * max(price, float(np.abs(z).max(initial=0.0)))) & ~free)
        new = new[np.argsort(-worth[new])[: max(300, conditions.m)]]
        free[new] = True
        if more is not None:
            more = _rescale_caps(more, scale)
            conditions = conditions.joined(more)
            y, best_y = (np.concatenate([v, np.zeros(more.m)]) for v in (y, best_y))
        elif len(new) == 0:
            if not stuck:
                return _finish(conditions, norm, d, best_y, stats)
            if elastic > 1e12 * max(float(best_y.max()), 1e-12):
                raise NotSolvedError("a linear program finds no change, although there is one.")
            elastic *= 1e3
    raise NotSolvedError(f"{max_rounds} linear programs were not enough to close the gap.")


def _restricted(
    conditions: Conditions, norm: Polyhedral, where: Index, together: Array, elastic: float
) -> tuple[Array, float, Array, Array]:
    """Return (x, level, y, missed): the linear program over x = d[where] and d = together * level elsewhere."""
    unit = size_of(conditions.need)
    columns = conditions.rows.columns(where)
    m, k = columns.shape
    capped = int(np.count_nonzero(together))
    has_level = norm.max_weight > 0
    moved = conditions.rows.matvec(together)[:, None] if has_level else np.zeros((m, 0))
    width = 2 * k + int(has_level) + m
    cost = np.concatenate(
        [
            np.full(2 * k, norm.sum_weight),
            [norm.max_weight + norm.sum_weight * capped] if has_level else [],
            np.where(np.isinf(conditions.cap), elastic, np.minimum(conditions.cap, elastic)),
        ]
    )
    blocks = [[scipy.sparse.csc_array(np.hstack([columns, -columns, moved])), scipy.sparse.eye_array(m, format="csc")]]
    low, high = conditions.need / unit, np.full(m, np.inf)
    if has_level:  # |d_j| <= level for the free coordinates
        eye = scipy.sparse.eye_array(k, format="csc")
        caps = scipy.sparse.hstack([eye, eye, scipy.sparse.csc_array(-np.ones((k, 1)))])
        blocks.append([caps, scipy.sparse.csc_array((k, m))])
        low, high = np.concatenate([low, np.full(k, -np.inf)]), np.concatenate([high, np.zeros(k)])
    matrix = scipy.sparse.csc_array(scipy.sparse.block_array(blocks))
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = width, matrix.shape[0]
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, np.zeros(width), np.full(width, np.inf)
    lp.row_lower_, lp.row_upper_ = low, high
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    solver = highs.solver(presolve="off", primal_feasibility_tolerance=FEASIBLE, dual_feasibility_tolerance=FEASIBLE)
    solver.passModel(lp)
    solver.run()
    answer = solver.getSolution()
    x = np.asarray(answer.col_value)
    if len(x) != width or solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise NotSolvedError(f"HiGHS could not solve a restricted master: {solver.getModelStatus()}")
    y = np.maximum(np.asarray(answer.row_dual)[:m], 0.0)
    x = x * unit
    level = float(x[2 * k]) if has_level else 0.0
    return x[:k] - x[k : 2 * k], level, y, x[2 * k + int(has_level) :]
