"""Gradients by plain automatic differentiation, one number at a time, in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnrepair.spec.criteria import Criterion


def dense_rows(
    model: nn.Module, names: Sequence[str], x: Tensor, criterion: Criterion, point: Tensor, condition: Tensor
) -> list[dict[str, Tensor]]:
    """Return, per row, the gradient of one condition's slack by parameter name; every point is run alone."""
    model = copy.deepcopy(model).double()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = [parameters[n].requires_grad_(True) for n in names]
    rows = []
    for p, c in zip(point.tolist(), condition.tolist(), strict=True):
        one = x[p : p + 1].double() if x.dtype.is_floating_point else x[p : p + 1]
        with torch.enable_grad():
            slack = criterion[torch.tensor([p])].slack(model(one)).flatten(1)[0, c]
        grads = torch.autograd.grad(slack, chosen, allow_unused=True)
        rows.append({n: torch.zeros_like(v) if g is None else g for n, v, g in zip(names, chosen, grads, strict=True)})
    return rows


def dense_jacobian(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Return by parameter name the derivative (points, outputs, *parameter shape) of every output."""
    model = copy.deepcopy(model).double()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = [parameters[n].requires_grad_(True) for n in names]
    found: dict[str, list[list[Tensor]]] = {n: [] for n in names}
    for one in x.double() if x.dtype.is_floating_point else x:
        y = model(one[None]).flatten()
        for n in names:
            found[n].append([])
        for k in range(len(y)):
            grads = torch.autograd.grad(y[k], chosen, retain_graph=True, allow_unused=True)
            for n, v, g in zip(names, chosen, grads, strict=True):
                found[n][-1].append(torch.zeros_like(v) if g is None else g)
    return {n: torch.stack([torch.stack(point) for point in points]) for n, points in found.items()}
