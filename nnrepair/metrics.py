"""The field's measures as pure functions of outputs, decisions and criteria.

Definitions follow the survey by Mazzia et al. (2023). Two of them differ between papers, so both are here:
drawdown is relative in the survey (`drawdown`) and in points in the papers on graphs (`drawdown_points`); locality
means accuracy kept (drawdown) or decisions unchanged (`locality`).
"""

from __future__ import annotations

from torch import Tensor

from nnrepair.criteria import Criterion


def success_rate(criterion: Criterion, y: Tensor) -> float:
    """Return the share of points whose criterion holds; generalization rate is the same over the edit scope.

    >>> import torch
    >>> from nnrepair import Argmax
    >>> success_rate(Argmax([0, 0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    0.5
    """
    return float(criterion.holds(y).double().mean())


def drawdown(before: float, after: float) -> float:
    """Return the relative loss of accuracy, 1 - after / before (0 when there was none to lose)."""
    return 1 - after / before if before > 0 else 0.0


def drawdown_points(before: float, after: float) -> float:
    """Return the loss of accuracy in percentage points."""
    return 100 * (before - after)


def locality(before: Tensor, after: Tensor) -> float:
    """Return the share of decisions (n,) that are the same before and after, right or wrong."""
    return float((before == after).double().mean())
