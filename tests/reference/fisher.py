"""The Fisher information's diagonal, in closed form for logistic regression and by plain loops for any model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def logistic_fisher(p: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return diag(X^T D X) / n for the weights (classes, inputs) and the bias (classes,), D = p (1 - p).

    Args:
        p: (n, classes) probabilities.
        x: (n, inputs).
    """
    variance = p * (1 - p)
    return variance.T @ (x * x) / len(x), variance.mean(0)


def linear_fisher(variance: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return the same for independent outputs: variance (n, outputs), p (1 - p) of coins, 1 of unit normal numbers."""
    return variance.T @ (x * x) / len(x), variance.mean(0)


def moved(model: nn.Module, name: str, signs: NDArray[np.float64], size: float) -> list[nn.Module]:
    """Return one copy per row of signs (k, n), a parameter of n numbers moved along it."""
    found = []
    for row in signs:
        twin = copy.deepcopy(model)
        parameter = dict(twin.named_parameters())[name]
        with torch.no_grad():
            parameter += size * torch.from_numpy(row).reshape(parameter.shape).to(parameter)
        found.append(twin)
    return found


def fisher_by_loops(
    model: nn.Module, names: Sequence[str], x: Tensor, targets: Tensor | None, sign: float
) -> dict[str, Tensor]:
    """Return 1/n sum_x E_y (d log p(y|x))^2, the expectation under the model, or at the targets where there are any."""
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in names]
    total = {name: torch.zeros_like(parameters[name]) for name in names}
    for i in range(len(x)):
        log_p = (sign * model(x[i : i + 1]))[0].log_softmax(0)
        for label in range(len(log_p)):
            share = float(log_p[label].detach().exp()) if targets is None else float(label == targets[i])
            gradients = torch.autograd.grad(log_p[label], chosen, retain_graph=True)
            for name, gradient in zip(names, gradients, strict=True):
                total[name] += share * gradient**2 / len(x)
    return total
