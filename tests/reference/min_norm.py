"""The minimal-norm problem as a text book would write it, with all rows and columns at once."""

from __future__ import annotations

import warnings
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Interior point to nine digits.
TIGHT = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}


def norm_cvxpy(d: Any, norm: str, shape: tuple[int, int] | None = None, metric: Array | None = None) -> Any:
    """Return the norm of a flat change d (n,) as an expression.

    Args:
        d: cvxpy expression.
        norm: its name.
        shape: (out, inp), for "nuclear".
        metric: (n, n), for "drift" and "fisher": the norm is |metric @ d|.
    """
    if norm == "l1":
        return cp.norm1(d)
    if norm == "linf":
        return cp.norm_inf(d)
    if norm == "l2":
        return cp.norm2(d)
    if norm == "mean+max":
        return cp.norm1(d) / d.shape[0] + cp.norm_inf(d)
    if norm == "nuclear":
        assert shape is not None
        return cp.normNuc(cp.reshape(d, shape, order="C"))
    if norm in ("drift", "fisher"):
        assert metric is not None
        return cp.norm2(metric @ d)
    raise ValueError(norm)


def minimum(objective: Any, constraints: list[Any]) -> float:
    """Return the minimum of a convex problem; infinite when it is infeasible."""
    problem = cp.Problem(cp.Minimize(objective), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # "may be inaccurate": fewer than nine digits, still more than any test asks for
        problem.solve(solver=cp.CLARABEL, **TIGHT)
    return float(problem.value)


def min_norm_cvxpy(
    G: Array,
    h: Array,
    norm: str,
    shape: tuple[int, int] | None = None,
    metric: Array | None = None,
    cap: Array | None = None,
) -> tuple[float, Array]:
    """Return (minimum, minimiser) of norm(d) subject to G d >= h; rows with a finite `cap` are priced instead."""
    d = cp.Variable(G.shape[1])
    cap = np.full(len(h), np.inf) if cap is None else cap
    hard, soft = np.flatnonzero(np.isinf(cap)), np.flatnonzero(np.isfinite(cap))
    objective = norm_cvxpy(d, norm, shape, metric)
    if len(soft):
        objective += cap[soft] @ cp.pos(h[soft] - G[soft] @ d)
    constraints = [G[hard] @ d >= h[hard]] if len(hard) else []
    value = minimum(objective, constraints)
    return value, np.zeros(G.shape[1]) if d.value is None else np.asarray(d.value)
