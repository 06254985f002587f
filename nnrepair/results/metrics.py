"""The field's measures as pure functions of outputs, decisions and criteria.

Definitions follow the survey by Mazzia et al. (2023). Where sources disagree, both readings are here:

* drawdown is relative in the survey (`drawdown`) and in points in the papers on graphs (`drawdown_points`);
* locality is accuracy kept in the survey (drawdown), and decisions unchanged elsewhere (`locality`), even wrong ones;
* the edit score is an average in the survey's text (`edit_score`, between 0 and 1), and a sum in its equation;
* rates "right after" an edit's own step (success rate SR, generalization rate GR, edit score ES) become *retain rates*
  (SRR, GRR, ESR) when the same functions are given the outputs of the last network of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from nnrepair.spec.criteria import Criterion


def success_rate(criterion: Criterion, y: Tensor) -> float:
    """Return the share of points whose criterion holds.

    >>> import torch
    >>> from nnrepair import Argmax
    >>> success_rate(Argmax([0, 0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    0.5
    """
    return float(criterion.holds(y).double().mean())


def generalization_rates(holds: Tensor, of: Tensor | None, edits: int) -> list[float | None]:
    """Return for each edit the share of its own points of the edit scope that hold; the rate GR is their mean.

    >>> import torch
    >>> generalization_rates(torch.tensor([True, True, False]), torch.tensor([0, 2, 2]), 3)
    [1.0, None, 0.5]

    Args:
        holds: (points,) bool.
        of: (points,) the edit that each point belongs to; None: all points belong to every edit.
        edits: their number.
    """
    if of is None:
        return [float(holds.double().mean())] * edits
    of = of.to(holds.device)
    count = torch.bincount(of, minlength=edits).tolist()
    held = torch.bincount(of, holds.double(), minlength=edits).tolist()
    return [h / c if c else None for h, c in zip(held, count, strict=True)]


def mean_rate(rates: Sequence[float | None]) -> float | None:
    """Return the mean of the rates that exist, or None where none does."""
    known = [rate for rate in rates if rate is not None]
    return fmean(known) if known else None


def edit_score(success: float, generalization: float | None) -> float:
    """Return the mean of success rate and generalization rate; success alone where there is no edit scope.

    The survey's text says average, its equation 12 prints the sum: that is twice this value.

    >>> edit_score(1.0, 0.5)
    0.75
    """
    return success if generalization is None else (success + generalization) / 2


def retainability(success: float, retained: float) -> float:
    """Return which share of what a sequence of edits achieved is still there at its end: SRR / SR (0 without success).

    >>> retainability(0.5, 0.25)
    0.5
    """
    return retained / success if success > 0 else 0.0


def scalability(one_by_one: float, together: float) -> float:
    """Return which share of the success of edits repaired one by one is left when they are repaired together.

    The survey asks for this property and gives no formula; this is the ratio of two success rates (0 without success).

    >>> scalability(1.0, 0.75)
    0.75
    """
    return together / one_by_one if one_by_one > 0 else 0.0


def drawdown(before: float, after: float) -> float | None:
    """Return the relative loss of accuracy, 1 - after / before (None when there was none to lose)."""
    return 1 - after / before if before > 0 else None


def drawdown_points(before: float, after: float) -> float:
    """Return the loss of accuracy in percentage points."""
    return 100 * (before - after)


def before_and_after(criterion: Criterion, before: Tensor, after: Tensor) -> dict[str, list[float]]:
    """Return what a criterion measures of outputs (n, ...) that are numbers, by name: before and after a repair.

    Numbers that are not finite are left out.

    >>> import torch
    >>> from nnrepair import Near
    >>> before_and_after(Near(torch.zeros(1, 1), 0.5), torch.zeros(1, 1), torch.ones(1, 1))
    {'mean squared error': [0.0, 1.0], 'share within tolerance': [1.0, 0.0]}
    """
    now = criterion.measures(after)
    pairs = {name: [value, now[name]] for name, value in criterion.measures(before).items()}
    return {name: pair for name, pair in pairs.items() if all(map(math.isfinite, pair))}


def locality(before: Tensor, after: Tensor) -> float:
    """Return the share of points whose decisions, (n,) or (n, several), are all the same before and after."""
    return float((before == after).reshape(len(before), -1).all(1).double().mean())
