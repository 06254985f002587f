"""The properties of a repair, after checks that they fit the model and each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from nnrepair.errors import InvalidInput
from nnrepair.spec.network import stated_shape
from nnrepair.verify import vnnlib
from nnrepair.verify.property import Conjunction, Halfspace, Property
from nnrepair.verify.search.attack import random_starts
from nnrepair.verify.search.jobs import Jobs
from nnrepair.verify.search.ties import flat

#: Ways to satisfy two cases at once that are tried before they are taken to be compatible.
MOST_WAYS = 2000
#: Cases that are compared with each other.
MOST_CASES = 200


@dataclass
class Task:
    """One property and what becomes of it.

    Attributes:
        name, role: see `nnrepair.results.result.Proof`.
        given: what the user gave: a property, or its file.
        property, jobs: what it says.
        asked: the slack that its counterexamples must reach.
        margin: the same, or wider where that made a proof shorter.
    """

    name: str
    role: Literal["repair", "keep"]
    given: Property | Path
    property: Property
    jobs: Jobs = field(init=False)
    asked: float = 0.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        self.jobs = Jobs.of(self.property)

    def told(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Return what to tell the progress of a check."""
        return lambda text: say(f"{self.name}: {text}")


def shape_of(model: nn.Module, tasks: Sequence[Task]) -> tuple[int, ...]:
    """Return the shape of one input."""
    return stated_shape(model) or tasks[0].property.cases[0].box.shape or (1,)


def read_tasks(property: Any, keep: Sequence[Any]) -> list[Task]:
    """Return the properties to repair, then those to keep that are not among them.

    Raises:
        InvalidInput: there is none, or one of them is neither a property nor the file of one.
    """
    wanted = list(property) if isinstance(property, list | tuple) else [property]
    if not wanted:
        raise InvalidInput("There is no property to repair: give a Property, a VNN-LIB file, or a list of these.")
    if isinstance(keep, Property | str | Path):
        keep = [keep]
    if not isinstance(keep, list | tuple):
        raise InvalidInput(f"keep must be a list of properties, got {keep!r}.")
    tasks: list[Task] = []
    for role, given in (*(("repair", p) for p in wanted), *(("keep", p) for p in keep)):
        if not isinstance(given, Property | str | Path):
            raise InvalidInput(f"A property must be a Property or a VNN-LIB file, got {type(given).__name__}.")
        place = given if isinstance(given, Property) else Path(given)
        read = place if isinstance(place, Property) else vnnlib.load(place)
        if any(read == task.property for task in tasks):
            continue
        if not any(case.unsafe for case in read.cases):
            raise InvalidInput(f"{given!r} has no unsafe outputs, so that there is nothing to repair.")
        first = tasks[0].property if tasks else read
        if (read.inputs, read.outputs) != (first.inputs, first.outputs):
            raise InvalidInput(
                f"All properties need one size: {tasks[0].name} is about {first.inputs} inputs and {first.outputs} "
                f"outputs, {given!r} about {read.inputs} and {read.outputs}."
            )
        stem = place.name.split(".")[0] if isinstance(place, Path) else f"property {len(tasks) + 1}"
        taken = {task.name for task in tasks}
        others = (f"{stem} ({k})" for k in itertools.count(2))
        name = next(each for each in itertools.chain([stem], others) if each not in taken)
        tasks.append(Task(name, role, place, read))  # type: ignore[arg-type]
    return tasks


def refuse_misfit(model: nn.Module, tasks: Sequence[Task]) -> None:
    """Refuse properties about another number of inputs or outputs than the network has.

    Raises:
        InvalidInput: what does not fit.
    """
    shape, like = shape_of(model, tasks), next(model.parameters(), torch.zeros(0))
    about = tasks[0].property
    try:
        with torch.no_grad():
            found = model(torch.zeros(1, *shape, dtype=like.dtype)).reshape(1, -1).shape[1]
    except Exception as error:  # whatever the user's forward raises
        raise InvalidInput(
            f"The model cannot be called with one input of shape {(1, *shape)}: {error}\nThe properties are about "
            f"{about.inputs} inputs; one made in Python says their shape: Box(lower, upper) keeps that of its bounds."
        ) from error
    if (math.prod(shape), found) != (about.inputs, about.outputs):
        raise InvalidInput(
            f"The properties are about {about.inputs} inputs and {about.outputs} outputs, but the network has "
            f"{math.prod(shape)} and {found}."
        )


def refuse_contradictions(tasks: Sequence[Task]) -> None:
    """Refuse properties that no network satisfies together, as far as their first MOST_CASES boxes show it.

    Raises:
        InvalidInput: which, and where.
    """
    cases = [(task, case) for task in tasks for case in task.property.cases][:MOST_CASES]
    low, high = (np.array([case.box.outer[end] for _, case in cases]) for end in (0, 1))
    for i, (one, a) in enumerate(cases):
        near = (np.maximum(low[i], low[i:]) <= np.minimum(high[i], high[i:])).all(1)
        for j in (i + np.flatnonzero(near)).tolist():
            other, b = cases[j]
            x = [max(pair) for pair in zip(a.box.lower, b.box.lower, strict=True)]
            if a.box.contains(x) and b.box.contains(x) and _impossible([*a.unsafe, *b.unsafe]):
                both = one.name if one is other else f"{one.name} and {other.name}"
                raise InvalidInput(
                    f"No output at all satisfies {both} at the input {[float(f'{float(v):.6g}') for v in x]}: no "
                    "network can be repaired so that they hold. Correct or drop one of them."
                )


def _impossible(unsafe: Sequence[Conjunction]) -> bool:
    """Tell whether certainly every output lies in one of the conjunctions: it can leave none through a halfspace."""
    unsafe = list(dict.fromkeys(unsafe))
    if math.prod(len(conjunction) for conjunction in unsafe) > MOST_WAYS:
        return False
    return all(_contradictory(chosen) for chosen in itertools.product(*unsafe))


def _contradictory(rows: Sequence[Halfspace]) -> bool:
    """Tell whether certainly no output is outside all halfspaces, in exact arithmetic."""
    outside = tuple(Halfspace(tuple(-c for c in row.coefficients), -row.bound, not row.strict) for row in rows)
    found = flat(outside)
    return found is not None and found.empty


def median_distance(task: Task, outputs: Any) -> float:
    """Return the median distance between a network's outputs and a task's unsafe sets, over its boxes; never 0."""
    each = max(16, min(1000, 20_000 // len(task.jobs.lower)))
    x, job = random_starts(task.jobs, torch.Generator().manual_seed(0), each)
    y = outputs(x)
    distance = task.jobs.depth(y, job).abs()
    return float(distance.median()) or float(distance.mean()) or 1e-3 * float(y.abs().max()) or 1e-3
