"""PRDNN's linear program as published: all rows, a dense Jacobian, 4n rows for the norm, one interior-point call.

Sotoudeh & Thakur, "Provable repair of deep neural networks" (PLDI 2021). Per point and other class l:
(J[label] - J[l]) d >= out[l] - out[label] + margin; minimise mean|d| + max|d| through |d_j| <= u_j <= t.
Their solver is Gurobi; this uses HiGHS (interior point, crossover off).
"""

from __future__ import annotations

import highspy
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from nnrepair.solver import highs


def jacobian(
    model: nn.Module, names: list[str], inputs: Tensor, labels: Tensor, margin: float
) -> tuple[np.ndarray, ...]:
    """Return the dense G (m, n) and h (m,) of all points and other classes, in float64."""
    model = model.double()
    parameters = dict(model.named_parameters())
    y = model(inputs.double())
    classes = y.shape[1]
    rows, need = [], []
    for i, label in enumerate(labels.tolist()):
        each = [torch.autograd.grad(y[i, k], [parameters[n] for n in names], retain_graph=True) for k in range(classes)]
        flat = np.stack([np.concatenate([g.numpy().ravel() for g in grads]) for grads in each])
        others = [k for k in range(classes) if k != label]
        rows.append(flat[label] - flat[others])
        need.append((y[i, others] - y[i, label] + margin).detach().numpy())
    return np.concatenate(rows), np.concatenate(need)


def solve(G: np.ndarray, h: np.ndarray, time_limit: float) -> tuple[float | None, np.ndarray | None, str]:
    """Return (objective, d, HiGHS's status); None where it did not finish."""
    m, n = G.shape
    eye, none, ones = sp.identity(n, format="csr"), sp.csr_matrix((n, 1)), np.ones((n, 1))
    empty = sp.csr_matrix((n, n))
    A = sp.vstack(
        [
            sp.hstack([sp.csr_matrix(G), sp.csr_matrix((m, n + 1))]),
            sp.hstack([eye, eye, none]),
            sp.hstack([-eye, eye, none]),
            sp.hstack([-eye, empty, ones]),
            sp.hstack([eye, empty, ones]),
        ],
        format="csc",
    )
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = A.shape[1], A.shape[0]
    lp.col_cost_ = np.concatenate([np.zeros(n), np.full(n, 1 / n), [1.0]])
    lp.col_lower_ = np.concatenate([np.full(n, -np.inf), np.zeros(n + 1)])
    lp.col_upper_ = np.full(2 * n + 1, np.inf)
    lp.row_lower_ = np.concatenate([h, np.zeros(4 * n)])
    lp.row_upper_ = np.full(A.shape[0], np.inf)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = A.indptr, A.indices, A.data
    solver = highs.solver(solver="ipm", run_crossover="off", time_limit=time_limit)
    solver.passModel(lp)
    solver.run()
    status = solver.modelStatusToString(solver.getModelStatus())
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None, None, status
    return solver.getInfo().objective_function_value, np.asarray(solver.getSolution().col_value[:n]), status
