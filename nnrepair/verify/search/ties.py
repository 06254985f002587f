"""Unsafe sets without interior: ties between outputs, and sets that are empty.

`Argmax([1]) | Argmax([2])` fails where outputs 1 and 2 are equal, besides where another one wins: with `Y_1 <= Y_2` and
`Y_2 <= Y_1` there is a way to be unsafe that has no interior. Splitting inputs never decides it where the outputs meet
it. An exact point does, found between a point where one output is larger and a point where the other one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.verify.property import Conjunction, Exact, Halfspace
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.attack import depth_and_slope, random_starts
from nnrepair.verify.search.jobs import Jobs
from nnrepair.verify.search.rational import rational

#: Points from which a tie is sought, steps towards it, pairs of points on either side, halvings between two of them.
STARTS, STEPS, PAIRS, HALVINGS = 256, 24, 8, 60
#: Conjunctions with more numbers are not looked at, nor combinations of more rows: that would take too long.
NUMBERS, ROWS = 20_000, 24


@dataclass(frozen=True)
class Flat:
    """What is known of a conjunction without interior.

    Attributes:
        equal: the rows that can only hold with equality.
        empty: whether it certainly contains no output at all.
    """

    equal: tuple[int, ...]
    empty: bool


def flat(rows: Conjunction) -> Flat | None:
    """Tell whether a conjunction certainly has no interior, in exact arithmetic; None where it has one, or may have.

    There is none if and only if multipliers m >= 0, not all zero, have `sum m c = 0` and `sum m b <= 0`, for rows
    `c . y <= b` (Motzkin). The rows that they use then hold with equality; the set is empty if the second sum is
    negative, or if one of these rows is strict.

    >>> one, other = ((Fraction(sign), Fraction(-sign)) for sign in (1, -1))
    >>> flat((Halfspace(one, Fraction(0)), Halfspace(other, Fraction(0)))), flat((Halfspace(one, Fraction(0)),))
    (Flat(equal=(0, 1), empty=False), None)
    """
    found = _multipliers(rows)
    if found is None:
        return None
    worth = sum((m * rows[i].bound for i, m in found.items()), Fraction(0))
    if worth > 0:
        return None
    return Flat(tuple(found), worth < 0 or any(rows[i].strict for i in found))


def equation(row: Halfspace) -> str:
    """Return in words where a row holds with equality.

    >>> equation(Halfspace((Fraction(0), Fraction(1), Fraction(-1)), Fraction(0)))
    'Y_1 = Y_2'
    """
    terms = [(c, f"Y_{k}") for k, c in enumerate(row.coefficients) if c]
    if sorted(c for c, _ in terms) == [-1, 1] and not row.bound:
        return " = ".join(name for _, name in terms)
    text = " + ".join(name if c == 1 else f"{float(c):.6g} {name}" for c, name in terms)
    return f"{text or '0'} = {float(row.bound):.6g}".replace("+ -", "- ")


def sides(
    graph: Graph, job: Jobs, equal: Sequence[int], generator: torch.Generator, deadline: Deadline
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of inputs (inputs,) on either side of the first of the rows that only hold with equality.

    Signed gradient steps lead into the unsafe set of the only job, or over it. All other rows hold on both sides.
    """
    x, each = random_starts(job, generator, STARTS)
    lower, upper = job.lower[each], job.upper[each]
    size, seen = (upper - lower) / 8, list[Tensor]()
    for _ in range(STEPS):
        seen.append(x)
        _, slope = depth_and_slope(graph, job, x, each, deadline)
        x, size = torch.clamp(x + size * slope.sign(), lower, upper), size * 0.8
    value = torch.cat([graph(part, deadline) for part in seen]) @ job.rows[0].T - job.offset[0]
    others = [r for r in range(len(job.real[0])) if job.real[0, r] and r not in equal]
    holds, gap, x = (value[:, others] < 0).all(1), value[:, equal[0]], torch.cat(seen)
    above, below = (x[(holds & side).nonzero()[:, 0]] for side in (gap > 0, gap < 0))
    if not len(above) or not len(below):
        return []
    above = above[gap[holds & (gap > 0)].argsort()[:PAIRS]]
    return list(zip(above, below[torch.cdist(above, below).argmin(1)], strict=True))


def between(graph: Graph, p: Exact, q: Exact, row: Halfspace, deadline: Deadline) -> Exact | None:
    """Return a point between two inputs on either side of a row where it holds with equality, exactly.

    Raises:
        OutOfTime: the deadline passed.
        TooLong: the numbers that this takes are too long.
    """

    def at(share: Fraction) -> tuple[Exact, Fraction]:
        x = tuple(a + share * (b - a) for a, b in zip(p, q, strict=True))
        y = rational(graph, x, deadline)
        return x, sum((c * v for c, v in zip(row.coefficients, y, strict=True) if c), -row.bound)

    low, high = Fraction(0), Fraction(1)
    first, second = at(low)[1], at(high)[1]
    for _ in range(HALVINGS if first * second < 0 else 0):
        crossing = low + (high - low) * first / (first - second)  # right if the network is affine between the two
        middle = (low + high) / 2
        for share in (crossing, middle):
            x, gap = at(share)
            if not gap:
                return x
        low, high, first, second = (middle, high, gap, second) if gap * first > 0 else (low, middle, first, gap)
    return None


def _multipliers(rows: Conjunction) -> dict[int, Fraction] | None:
    """Return, by row, the multipliers above with the least second sum, for rows of which some combination is zero."""
    sizes = [max(map(abs, row.coefficients), default=Fraction(0)) for row in rows]
    nothing = [i for i, size in enumerate(sizes) if not size and rows[i].bound <= 0]
    if nothing:
        return {min(nothing, key=lambda i: (rows[i].bound, not rows[i].strict)): Fraction(1)}
    some = [i for i, size in enumerate(sizes) if size]
    if sum(len(rows[i].coefficients) for i in some) > NUMBERS:
        return None
    A = np.array([[float(c / sizes[i]) for c in rows[i].coefficients] for i in some])
    if not some or np.linalg.matrix_rank(A) == len(some):
        return None
    try:
        b = np.array([float(rows[i].bound / sizes[i]) for i in some])
    except OverflowError:
        return None
    from scipy.optimize import linprog  # slow to import, and rarely needed

    equal = np.vstack([A.T, np.ones(len(A))])
    answer = linprog(b / (np.abs(b).max() or 1.0), A_eq=equal, b_eq=[*[0.0] * A.shape[1], 1.0])
    if answer.status != 0:
        return None
    used = [i for i, m in zip(some, answer.x.tolist(), strict=True) if m > 1e-9]
    exact = _dependence([rows[i].coefficients for i in used]) if len(used) <= ROWS else None
    return None if exact is None or min(exact) <= 0 else dict(zip(used, exact, strict=True))


def _dependence(vectors: Sequence[Exact]) -> list[Fraction] | None:
    """Return the multipliers with which vectors add up to zero, the last of them 1; None unless it is the only way."""
    *others, last = vectors
    equations = [[*(v[k] for v in others), -last[k]] for k in range(len(last))]
    for column in range(len(others)):
        pivot = next((row for row in equations[column:] if row[column]), None)
        if pivot is None:
            return None
        equations.remove(pivot)
        pivot = [v / pivot[column] for v in pivot]
        equations = [[v - row[column] * p for v, p in zip(row, pivot, strict=True)] for row in equations]
        equations.insert(column, pivot)
    if any(row[-1] for row in equations[len(others) :]):
        return None
    return [*(row[-1] for row in equations[: len(others)]), Fraction(1)]
