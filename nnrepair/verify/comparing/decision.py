"""What a decision is, as linear rows of the outputs, and how one decision becomes another.

A *cell* is a set of outputs with one decision: all its rows are at least zero. A *flip* is a row that is at least zero
before and at most zero after; wherever the decision changes, at least one flip does. Rows that both networks share up
to a change of zero cannot flip, but for ties, which the lowest index wins in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.spec.criteria import Criterion
from nnrepair.verify.property import Box, Property

Decision = Literal["argmin", "argmax"] | Criterion


@dataclass(frozen=True)
class Rows:
    """What is asked of outputs y: whether `weight . y + offset` is positive.

    Attributes:
        weight, offset: (rows, outputs) and (rows,).
        opposite: (rows,), the row that is the same with the other sign.
        cells: the rows of each cell; outputs have its decision where all of them are positive.
        flips: (row, cell before or -1, cell after or -1, group): wherever the decision changes, one of these rows goes
            from >= 0 to <= 0, and the outputs are in the cells. Flips of different groups exclude each other.
    """

    weight: Tensor
    offset: Tensor
    opposite: list[int]
    cells: list[list[int]]
    flips: list[tuple[int, int, int, int]]


def rows_of(decision: Decision, outputs: int) -> Rows:
    """Return a decision as rows.

    Raises:
        InvalidInput: it is none of these, does not fit, or has disjunctions of several conditions.
    """
    if isinstance(decision, str):
        if decision not in ("argmin", "argmax"):
            raise InvalidInput(f"decision must be 'argmin', 'argmax' or a criterion about one point, got {decision!r}.")
        return _extreme(outputs, 1.0 if decision == "argmin" else -1.0)
    if not isinstance(decision, Criterion) or len(decision) != 1:
        raise InvalidInput(f"decision must be 'argmin', 'argmax' or a criterion about one point, got {decision!r:.80}.")
    return _criterion(decision, outputs)


def _extreme(m: int, sign: float) -> Rows:
    """Return the rows `sign (y_j - y_k)`, k beats j, for all pairs; the cell of k has those of all j."""
    pairs = [(k, j) for k in range(m) for j in range(m) if j != k]
    place = {pair: i for i, pair in enumerate(pairs)}
    weight = torch.zeros(len(pairs), m, dtype=torch.float64)
    for i, (k, j) in enumerate(pairs):
        weight[i, j], weight[i, k] = sign, -sign
    cells = [[place[k, j] for j in range(m) if j != k] for k in range(m)]
    flips = [(place[k, j], k, j, i) for i, (k, j) in enumerate(pairs)]
    opposite = [place[j, k] for k, j in pairs]
    return Rows(weight, torch.zeros(len(pairs), dtype=torch.float64), opposite, cells, flips)


def _criterion(criterion: Criterion, outputs: int) -> Rows:
    """Return the rows that hold where a criterion does: it is lost, or won, where one of them flips."""
    (case,) = Property.on(Box([0], [0]), criterion, outputs).cases
    several = [way for way in case.unsafe if len(way) != 1]
    if several:
        raise InvalidInput(
            f"decision={criterion!r:.80} can fail in ways of several conditions at once; compare its parts one by one."
        )
    rows = [way[0] for way in case.unsafe]
    numbers = torch.tensor([[*map(float, row.coefficients), -float(row.bound)] for row in rows], dtype=torch.float64)
    numbers = numbers.reshape(len(rows), outputs + 1)
    weight, offset, n = numbers[:, :-1], numbers[:, -1], len(rows)
    flips = [(i, 0, -1, 0) for i in range(n)] + [(n + i, -1, 0, 1) for i in range(n)]
    opposite = [*range(n, 2 * n), *range(n)]
    return Rows(torch.cat([weight, -weight]), torch.cat([offset, -offset]), opposite, [list(range(n))], flips)
