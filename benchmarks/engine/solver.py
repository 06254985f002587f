"""The minimal-norm solver on decoupled layers and last layers of the MNIST networks, two checkouts side by side.

`python -m benchmarks.engine.solver '{"net": "9x100", "layer": "fc1", "norm": "linf", "edits": 200}'` measures one case:
the first N fog digits as edits, with margin 0.05, no locality set (for "drift" it measures, but asks nothing) or the
first clean training digits as a hard one. Counted are the rows, the solver and, where there is no change, the
conflict that is named; not counted are reading the data and the network's judgement afterwards.

`python -m benchmarks.engine.solver --against CHECKOUT` measures every case here and in another checkout, in turns, and
stores both with their ratio in `results/solver.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.mnist.one import warm_up
from nnrepair.deadline import Deadline
from nnrepair.domains.vision import mnist, mnist_fog, relu_mlp
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.methods.minimal_norm.demands import demands_of
from nnrepair.solver.minnorm import Infeasible
from nnrepair.solver.norms import NAMES
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.spec import problem as problems

#: Clean digits that "drift" is measured on.
MEASURED_ON = 10_000
MARGIN = 0.05


def cases() -> Iterator[dict[str, Any]]:
    """Yield the cases that have a target: all layers and norms, more edits, kept points, and a contradiction."""
    for net, norm in product(("3x100", "9x100"), NAMES):
        for layer in range(int(net[0]), 0, -1):
            yield {"net": net, "layer": f"fc{layer}", "norm": norm, "edits": 200}
    for net, norm in product(("3x100", "9x100"), NAMES):
        yield {"net": net, "layer": "fc1", "norm": norm, "edits": 1000}
    for net, norm in product(("3x100", "9x100"), ("drift", "l1")):
        last = "fc" + net[0]
        yield {"net": net, "layer": last, "norm": norm, "edits": 100, "kept": 10_000}
        yield {"net": net, "layer": last, "norm": norm, "edits": 100, "kept": 60_000}
    for norm in ("drift", "mean+max"):
        yield {"net": "9x100", "layer": "fc9", "norm": norm, "edits": 1000, "kept": 10_000}
    yield {"net": "9x100", "layer": "fc9", "norm": "mean+max", "edits": 1000}


def case(net: str, layer: str, norm: str, edits: int, kept: int = 0) -> dict[str, Any]:
    """Solve one case."""
    model, fog, train = relu_mlp(net), mnist_fog(), mnist("train")
    clean = train[: kept or MEASURED_ON]
    posed = problems.pose(
        model,
        (fog.inputs[:edits], fog.labels[:edits]),
        (clean.inputs, clean.labels) if kept or norm == "drift" else None,
    )
    demands = demands_of(posed, MARGIN, "hard" if kept else "none")
    names = [f"{layer}.weight", f"{layer}.bias"]
    warm_up()

    def work() -> dict[str, Any]:
        line = Linearization(posed.model, names, posed.edits.inputs, [d.inputs for d in demands[1:]])
        metric = line.metric(clean.inputs, posed.kind) if norm == "drift" else None
        repair = ExactRepair(line, demands, norm, metric, 1e-6, "decoupled", _limit())
        try:
            found = repair.run()
        except Infeasible as reason:
            return {"status": "infeasible", **named(reason)}
        except NotSolvedError as reason:
            return {"status": f"not solved: {reason}"}
        answer = {"objective": found.objective, "gap": found.gap, "missed": found.missed, "rows": found.conditions.m}
        return answer | {"status": "solved"} | found.stats

    return measure.measured(work)


def _limit() -> Any:
    """Return no limit, as this checkout's repairs take it, or others' wish for no progress bar."""
    fields = {field.name for field in dataclasses.fields(ExactRepair)}
    return Deadline() if "deadline" in fields else False


def named(reason: Infeasible) -> dict[str, Any]:
    """Name the conflict, with this checkout's function or the one that others have."""
    try:
        from nnrepair.methods.minimal_norm.conflicts import conflict
    except ImportError:
        from nnrepair.methods.minimal_norm import affine

        edits, with_locality = affine.conflict(reason)  # type: ignore[attr-defined]
        return {"conflict": len(edits), "with_locality": with_locality}
    found = conflict(reason)
    return {"conflict": len(found.edits), "with_locality": found.with_locality, "smallest": found.smallest}


if __name__ == "__main__":
    from benchmarks.engine.against import Comparison  # other checkouts may lack it

    about = "first N fog digits, margin 0.05; CPU seconds of rows, solver and conflict, here and in another checkout"
    Comparison(Path(__file__), Path(__file__).parent / "results" / "solver.json", about, limit=(120, 20)).main(
        cases, case
    )
