"""The door of property repair: properties that fit the model and each other."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

from nnrepair.errors import InvalidInput
from nnrepair.verify import vnnlib
from nnrepair.verify.jobs import Jobs
from nnrepair.verify.property import Case, Property

#: Ways to satisfy two cases at once that are tried before they are taken to be compatible.
MOST_WAYS = 2000
#: Cases that are compared with each other.
MOST_CASES = 200


@dataclass
class Task:
    """One property and what becomes of it.

    Attributes:
        name, role: see `nnrepair.result.Proof`.
        given: what the user gave: a property, or its file.
        property, jobs: what it says.
        margin: the slack that its counterexamples must reach.
    """

    name: str
    role: Literal["repair", "keep"]
    given: Property | Path
    property: Property
    jobs: Jobs = field(init=False)
    margin: float = 0.0

    def __post_init__(self) -> None:
        self.jobs = Jobs.of(self.property)


def read_model(model: nn.Module | str | Path) -> tuple[nn.Module, Path | None]:
    """Return a private copy of the model in eval mode, and its file if it came from one."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).cpu().eval(), None
    from nnrepair import onnx

    return onnx.load(model).eval(), Path(model)


def shape_of(model: nn.Module, tasks: Sequence[Task]) -> tuple[int, ...]:
    """Return the shape of one input."""
    shape = tuple(getattr(model, "item_shape", None) or ())
    return shape if shape and None not in shape else tasks[0].property.cases[0].box.shape or (1,)


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
        name = place.name.split(".")[0] if isinstance(place, Path) else f"property {len(tasks) + 1}"
        if any(name == task.name for task in tasks):
            name = f"{name} ({len(tasks) + 1})"
        tasks.append(Task(name, role, place, read))  # type: ignore[arg-type]
    return tasks


def refuse_contradictions(tasks: Sequence[Task]) -> None:
    """Refuse properties that no network satisfies together.

    Raises:
        InvalidInput: which, and where.
    """
    cases = [(task, case) for task in tasks for case in task.property.cases][:MOST_CASES]
    for (one, a), (other, b) in itertools.combinations_with_replacement(cases, 2):
        low, high = (np.array(pair).T for pair in zip(_ends(a), _ends(b), strict=True))
        x = low.max(1)
        if (x <= high.min(1)).all() and not _possible([*a.unsafe, *b.unsafe]):
            both = one.name if one is other else f"{one.name} and {other.name}"
            raise InvalidInput(
                f"No output at all satisfies {both} at the input {[float(f'{v:.6g}') for v in x]}: no network can be "
                "repaired so that they hold. Correct or drop one of them."
            )


def _ends(case: Case) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return case.box.outer


def _possible(unsafe: Sequence[Any]) -> bool:
    """Whether some output lies in none of the conjunctions: it must leave each through one of its halfspaces."""
    unsafe = list(dict.fromkeys(unsafe))
    if any(len(conjunction) == 0 for conjunction in unsafe):
        return False
    if math.prod(len(conjunction) for conjunction in unsafe) > MOST_WAYS:
        return True
    for chosen in itertools.product(*unsafe):
        A = np.array([[float(c) for c in row.coefficients] for row in chosen])
        size = np.abs(A).max(1, initial=0.0).clip(min=1e-300)
        b = np.array([float(row.bound) for row in chosen]) / size
        beyond = np.array([not row.strict for row in chosen])  # must leave the halfspace's border too
        rows = np.hstack([A / size[:, None], -1.0 * beyond[:, None]])
        answer = linprog([*[0.0] * A.shape[1], -1.0], -rows, -b, bounds=[(None, None)] * A.shape[1] + [(0, 1)])
        if answer.status == 0 and (answer.x[-1] > 1e-7 or not beyond.any()):
            return True
    return False


def median_distance(task: Task, outputs: Any) -> float:
    """Return the median distance between a network's outputs and a task's unsafe sets, over its boxes."""
    from nnrepair.verify.falsify import random_starts

    x, job = random_starts(task.jobs, torch.Generator().manual_seed(0), 1000)
    distance = task.jobs.depth(outputs(x), job).abs()
    return float(distance.median())
