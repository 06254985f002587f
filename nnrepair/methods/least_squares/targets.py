"""What a layer should return for edits to hold: in closed form where it is the last, by descent where others follow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnrepair.jacobian.tangents import gradients
from nnrepair.spec.criteria import Criterion, flat

#: Conditions that are met one after another, at most, before the outputs of one point are given up.
CONDITIONS = 1000
#: By how much more than what is missing a condition is met, so that a few rounds suffice.
MORE = 1.01


def at_outputs(criterion: Criterion, y: Tensor, aim: float) -> Tensor:
    """Return outputs (n, ...) near y at which every point has all its conditions met by at least `aim`.

    The condition that is missed by most is met, by the shortest way, again and again: for a class, its score rises as
    much as that of the runner-up falls.

    Args:
        criterion: of n points.
        y: (n, ...) float64.
        aim: in output units.
    """
    y, one = y.clone(), criterion.resolve(y)
    for _ in range(CONDITIONS):
        least, condition = flat(one.slack(y)).min(1)
        missed = torch.nonzero(~(least >= aim)).flatten()
        if not len(missed):
            break
        rows = flat(one.rows(missed, condition[missed], y).to(y))
        size = rows.square().sum(1).clamp(min=torch.finfo(y.dtype).tiny)
        step = (MORE * (aim - least[missed]) / size)[:, None] * rows
        y[missed] += step.reshape(len(missed), *y.shape[1:])
    return y


def inside(
    missed: Callable[[Tensor], tuple[Tensor, Tensor]], values: Tensor, *, steps: int, lr: float, longest: float
) -> Tensor:
    """Return (edits, out) what a layer's values should gain at the edits' keys, so that the edits hold.

    Adam lowers the edits' loss, as in ROME (Meng et al., 2022), which also pulls gains towards zero and stops late;
    here the gain of an edit is left alone once it holds, and none is made where all of them do.

    Args:
        missed: for gains (edits, out), every edit's loss (edits,), differentiable, and whether it holds, (edits,) bool.
        values: (edits, out) what the layer returns there now.
        steps, lr: of Adam, the step size relative to the typical size of the values.
        longest: no gain is longer than so many times its value, or a typical one.
    """
    typical = float(values.square().mean().sqrt()) or 1.0
    size = values.norm(dim=1).clamp(min=typical * values.shape[1] ** 0.5)
    gains = torch.zeros_like(values).requires_grad_(True)
    optimizer = torch.optim.Adam([gains], lr=lr * typical)
    for step in range(steps + 1):
        losses, holds = missed(gains)
        losses, holds = losses.to(values.device), holds.to(values.device)
        if bool(holds.all()) or step == steps or not bool(torch.isfinite(losses.detach()).all()):
            break
        (gradient,) = gradients(losses[~holds].sum(), [gains], again=False)
        before = gains.detach().clone()
        gains.grad = torch.zeros_like(gains) if gradient is None else gradient.nan_to_num()
        optimizer.step()
        with torch.no_grad():
            gains[holds] = before[holds]
            gains *= (longest * size / gains.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None]
    return gains.detach()
