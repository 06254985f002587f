"""Slow, obvious twins of the package's fast code."""

from reference.jacobian import dense_jacobian, dense_rows
from reference.min_norm import min_norm_cvxpy, norm_cvxpy

__all__ = ["dense_jacobian", "dense_rows", "min_norm_cvxpy", "norm_cvxpy"]
