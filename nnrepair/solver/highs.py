"""The linear-programming solver HiGHS, silent: its own constructor prints a banner on stdout."""

from __future__ import annotations

import highspy
import numpy as np
import scipy.sparse

from nnrepair.solver.norms import Array
from nnrepair.solver.quadratic import NotSolvedError


class _Silent(highspy.Highs):
    """Says nothing before it can be told to say nothing: the constructor enables callbacks, and that prints."""

    def enableCallbacks(self) -> None:
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]


def solver(**options: str | float | bool) -> highspy.Highs:
    """Return a solver that prints nothing and computes on one thread, with HiGHS's options as given."""
    made = _Silent()  # type: ignore[no-untyped-call]
    for name, value in ({"output_flag": False, "threads": 1} | options).items():
        made.setOptionValue(name, value)
    return made


def minimum(
    cost: Array, rows: scipy.sparse.csc_array, low: Array, high: Array, *, tolerance: float
) -> tuple[Array, Array]:
    """Return (x, multipliers of the rows): argmin cost.x over x >= 0 and low <= rows x <= high.

    Raises:
        NotSolvedError: no optimum was found.
    """
    program = highspy.HighsLp()
    program.num_row_, program.num_col_ = rows.shape
    program.col_cost_, program.col_lower_, program.col_upper_ = cost, np.zeros(len(cost)), np.full(len(cost), np.inf)
    program.row_lower_, program.row_upper_ = low, high
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_, program.a_matrix_.index_ = rows.indptr, rows.indices
    program.a_matrix_.value_ = rows.data
    made = solver(presolve="off", primal_feasibility_tolerance=tolerance, dual_feasibility_tolerance=tolerance)
    made.passModel(program)
    made.run()
    answer = made.getSolution()
    x = np.asarray(answer.col_value)
    if len(x) != len(cost) or made.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise NotSolvedError(f"HiGHS could not solve a linear program: {made.getModelStatus()}")
    return x, np.asarray(answer.row_dual)
