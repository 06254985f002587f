"""Which other layers could satisfy what a layer cannot, to first order: advice, within a budget of seconds."""

from __future__ import annotations

from nnrepair.deadline import Deadline, OutOfTime
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian import layers
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.methods.minimal_norm.demands import demands_of
from nnrepair.methods.minimal_norm.search import MOST_LAYERS
from nnrepair.solver.minnorm import Infeasible
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.spec.network import plain
from nnrepair.spec.problem import Problem

#: Seconds for all layers together, where the time limit leaves as much.
SECONDS = 5.0


def feasible_elsewhere(
    problem: Problem, margin: float, locality: str, gap: float, names: list[str], deadline: Deadline
) -> tuple[list[str], list[str]]:
    """Return other layers than those of the parameters `names` whose linearisation satisfies all demands.

    Args:
        problem, margin, locality, gap: what is asked, see `MinimalNorm`.
        names: of the parameters that cannot do it.
        deadline: of the whole repair; no more than `SECONDS` of what it leaves are used.

    Returns:
        Layers that can, and those for which there was no time.
    """
    budget = Deadline(min(SECONDS, max(deadline.left(), 0.0)), deadline.say)
    found, untried = list[str](), list[str]()
    others = {layer: layers.choose(problem.model, layers.trainable(problem.model, layer)) for layer in _some(problem)}
    others = {layer: chosen for layer, chosen in others.items() if not set(chosen) & set(names)}
    for count, (layer, chosen) in enumerate(others.items()):
        mine = budget.part(len(others) - count, f"could {plain(layer)} do it? ")
        try:
            mine.check()
            demands = demands_of(problem, margin, locality)
            line = Linearization(problem.model, chosen, problem.edits.inputs, [d.inputs for d in demands[1:]])
            ExactRepair(line, demands, "l2", None, gap, "decoupled", mine).run()
        except OutOfTime:
            untried.append(plain(layer))
        except (Infeasible, NotSolvedError, InvalidInput, UnsupportedModel):
            continue
        else:
            found.append(plain(layer))
    return found, untried


def _some(problem: Problem) -> list[str]:
    return layers.candidates(problem.model)[-MOST_LAYERS:]
