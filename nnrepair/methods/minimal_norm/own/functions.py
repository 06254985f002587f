"""Functions that a caller writes about a change: an objective and side conditions, checked before anything is solved.

Both take the change as a dictionary, from the names of the chosen parameters to cvxpy variables of their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nnrepair import provenance
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.extras import needed
from nnrepair.jacobian.factors import Group
from nnrepair.solver.metric import Metric
from nnrepair.solver.rows import Array

#: From the change of each parameter, by name, to a convex cvxpy expression, or to a list of cvxpy constraints.
Own = Callable[[Mapping[str, Any]], Any]


def cvxpy() -> Any:
    """Return the package.

    Raises:
        MissingExtra: it is not installed.
    """
    with needed("cvxpy", "An objective or constraints of your own need cvxpy"):
        import cvxpy as package
    return package


def told(function: Own) -> str:
    """Return a function as people know it, with some digits that change with what it does: 'few_neurons#1f02ab'."""
    name = getattr(function, "__name__", None)
    return repr(function) if name is None else f"{name}#{provenance.digest(function)[:6]}"


class Change(dict[str, Any]):
    """The variables by parameter name; a name that is not there is an error that says which are."""

    def __missing__(self, name: object) -> Any:
        hint = near_matches(str(name), self)
        raise InvalidInput(f"The change has no parameter {name!r}.{hint} Those that may change: {', '.join(self)}.")


def objective_of(function: Own, change: Change) -> Any:
    """Return the expression that is to be minimised.

    Raises:
        InvalidInput: it is no real number that cvxpy knows to be convex.
    """
    cp = cvxpy()
    given = function(change)
    if isinstance(given, (cp.Minimize, cp.Maximize)):
        raise InvalidInput("The objective must return the expression that is to be minimised, not a cvxpy objective.")
    if isinstance(given, (int, float)):
        given = cp.Constant(given)
    if not isinstance(given, cp.Expression):
        raise InvalidInput(f"The objective must return a cvxpy expression, got {type(given).__name__}.")
    if not given.is_scalar() or not given.is_real():
        raise InvalidInput(f"The objective must be one real number, got shape {given.shape}: take cp.sum or cp.norm.")
    _refuse_others(cp, cp.Minimize(given), [], "The objective is not convex, as far as cvxpy's rules show")
    return given


def constraints_of(function: Own | None, change: Change) -> list[Any]:
    """Return the side conditions.

    Raises:
        InvalidInput: these are no convex constraints.
    """
    if function is None:
        return []
    cp = cvxpy()
    given = function(change)
    if not isinstance(given, (list, tuple)):
        raise InvalidInput(f"constraints must return a list of cvxpy constraints, got {type(given).__name__}.")
    for number, one in enumerate(given):
        where = f"Constraint {number}"
        if not isinstance(one, cp.constraints.constraint.Constraint):
            raise InvalidInput(f"{where} is no cvxpy constraint but {one!r}: compare an expression by ==, <= or >=.")
        _refuse_others(cp, cp.Minimize(0), [one], f"{where} ({one}) is not convex, as far as cvxpy's rules show")
    return list(given)


def _refuse_others(cp: Any, objective: Any, constraints: list[Any], what: str) -> None:
    problem = cp.Problem(objective, constraints)
    if problem.is_mixed_integer():
        raise InvalidInput("Integer and boolean variables cannot be used in an objective or constraints.")
    if problem.is_dcp():
        return
    try:
        problem.get_problem_data(cp.CLARABEL)
    except cp.DCPError as error:
        raise InvalidInput(f"{what}. {error}") from error
    raise InvalidInput(f"{what}.")


def norm_of(name: str, groups: list[Group], metric: Metric | None) -> Own:
    """Return one of the built-in norms as an objective, to be used with constraints.

    Args:
        name: see `MinimalNorm`.
        groups: the chosen parameters, as they lie in the flat change.
        metric: for "drift" and "fisher".
    """
    sides: list[tuple[Array | None, Array | None]] = [(None, None)] * len(groups)
    if metric is not None:
        sides = list(metric.sides)

    def norm(change: Mapping[str, Any]) -> Any:
        cp = cvxpy()
        matrices = [_matrix(cp, group, change) for group in groups]
        if name == "nuclear":
            if len(groups) != 1 or groups[0].plain is not None:
                raise InvalidInput("norm='nuclear' needs exactly one linear or convolution layer; choose one layer.")
            return cp.normNuc(matrices[0])
        matrices = [m if left is None else left.T @ m for m, (_, left) in zip(matrices, sides, strict=True)]
        measured = [
            matrix if factor is None else matrix @ factor if factor.ndim == 2 else cp.multiply(matrix, factor[None])
            for matrix, (factor, _) in zip(matrices, sides, strict=True)
        ]
        entries = cp.hstack([cp.vec(matrix, order="C") for matrix in measured])
        if name == "mean+max":
            return cp.sum(cp.abs(entries)) / entries.size + cp.max(cp.abs(entries))
        return cp.norm(entries, {"l1": 1, "linf": "inf"}.get(name, 2))

    return norm


def _matrix(cp: Any, group: Group, change: Mapping[str, Any]) -> Any:
    """Return the change of a group of parameters as a matrix, of a plain one as one row."""
    if group.plain is not None:
        return cp.reshape(change[group.plain], (1, group.head.size), order="C")
    sides = [change[n].T if n in group.head.transposed else change[n] for n in group.head.shapes]
    parts = [cp.reshape(side, (group.head.out, -1), order="C") for side in sides]
    return cp.hstack(parts)
