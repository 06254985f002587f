"""Duplicate points: edits that contradict each other, or points of the locality set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.rounding import first
from nnrepair.spec.criteria import Argmax, Near, Threshold, flat
from nnrepair.spec.edits import Edits, Locality
from nnrepair.spec.inputs import AnyInputs, batches, words
from nnrepair.spec.kinds import kind_of


def refuse_contradictions(edits: Edits) -> None:
    """Refuse equal inputs with different labels, or targets too far apart: no network can satisfy both."""
    if isinstance(edits.criterion, Near):
        _refuse_apart(edits, edits.criterion)
    if not isinstance(edits.criterion, Argmax | Threshold):
        return
    hashes = _hashes(edits.inputs)
    if hashes is None:
        return
    labels = flat(edits.criterion.labels).tolist()
    groups: dict[int, list[int]] = {}
    clashes = []
    for index, group in enumerate(hashes.tolist()):
        others = groups.setdefault(group, [])
        seen = next((seen for seen in others if differ(labels[seen], labels[index])), None)
        if seen is not None and _equal(edits.inputs, seen, edits.inputs, index):
            clashes.append((seen, index))
        elif all(labels[seen] != labels[index] for seen in others):
            others.append(index)
    if clashes:
        one = {k: labels[k][0] if len(labels[k]) == 1 else labels[k] for pair in clashes[:5] for k in pair}
        shown = ", ".join(f"{a} and {b} (labels {one[a]} and {one[b]})" for a, b in clashes[:5])
        more = f", and {len(clashes) - 5} more pairs" if len(clashes) > 5 else ""
        name = "edits" if edits.of is None else "points"
        raise InvalidInput(f"Equal inputs are given different labels: {name} {shown}{more}. Remove one of each pair.")


def _refuse_apart(edits: Edits, asked: Near) -> None:
    """Refuse equal inputs whose outputs are to be within tolerances that do not meet."""
    hashes = _hashes(edits.inputs)
    if hashes is None:
        return
    target, tol = flat(asked.target).double(), flat(asked.tol).double()
    low, high = target - tol, target + tol
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(hashes.tolist()):
        others = groups.setdefault(group, [])
        for seen in others:
            apart = torch.nonzero((low[seen] > high[index]) | (low[index] > high[seen])).flatten().tolist()
            if apart and _equal(edits.inputs, seen, edits.inputs, index):
                one = f"{float(target[seen, apart[0]]):.4g} and {float(target[index, apart[0]]):.4g}"
                name = "edits" if edits.of is None else "points"
                raise InvalidInput(
                    f"Equal inputs are given targets farther apart than their tolerances: {name} {seen} and {index}, "
                    f"at {len(apart)} outputs, the first with targets {one}. Remove one, or widen the tolerances."
                )
        others.append(index)


def edits_in_locality(edits: Edits, locality: Locality) -> list[str]:
    """Return a note on edits that are also points to keep, with the decision that is to change; or nothing."""
    asked, criterion = edits.criterion, locality.criterion
    if type(criterion) is not type(asked) or kind_of(criterion) != kind_of(asked):
        return []
    if not isinstance(asked, Argmax | Threshold) or not isinstance(criterion, Argmax | Threshold):
        return []
    mine, theirs = _hashes(edits.inputs), _hashes(locality.inputs)
    if mine is None or theirs is None:
        return []
    binding = torch.nonzero(locality.holds).flatten().cpu().numpy()
    place = dict(zip(theirs[binding].tolist(), binding.tolist(), strict=True))
    labels, decisions = flat(asked.labels).tolist(), flat(criterion.labels).tolist()
    clashes = [
        edit
        for edit, point in enumerate(place.get(number, -1) for number in mine.tolist())
        if point >= 0 and differ(labels[edit], decisions[point]) and _equal(edits.inputs, edit, locality.inputs, point)
    ]
    clashes = edits.owners(clashes)
    if not clashes:
        return []
    which = f"edits {first(clashes)[1:-1]} are points"
    one = f"edit {clashes[0]} is a point"
    alone = len(clashes) == 1
    return [
        f"{one if alone else which} of the locality set too, which keeps the very decision that "
        f"{'it changes; leave it' if alone else 'they change; leave them'} out of it."
    ]


def shared_points(some: AnyInputs, others: AnyInputs) -> int:
    """Return how many of some points are among others; zero where the inputs do not say what is equal."""
    mine, theirs = _hashes(some), _hashes(others)
    return 0 if mine is None or theirs is None else int(np.isin(mine, theirs).sum())


def _hashes(inputs: AnyInputs) -> NDArray[np.uint64] | None:
    """Return (n,) a number for each point, the same for equal ones and hardly ever for others; None if not known."""
    found = []
    for step in batches(inputs):
        numbers = _words(inputs, step)
        if numbers is None:
            return None
        factors = np.random.default_rng(0).integers(1, 2**63, numbers.shape[1], dtype=np.uint64)
        found.append((numbers.astype(np.uint64) * factors).sum(1))
    return np.concatenate(found)


def _words(inputs: AnyInputs, index: Tensor) -> NDArray[np.uint32] | None:
    """Return (k, words), equal where two of the points `index` are the same; None where the inputs do not say."""
    some = inputs[index]
    rows = some if isinstance(some, Tensor) else some.same()
    if rows is not None and len(rows) != len(index):
        raise InvalidInput(f"same() must return one row for each of {len(index)} points, got {tuple(rows.shape)}.")
    return None if rows is None else words(rows)


def _equal(first: AnyInputs, one: int, second: AnyInputs, other: int) -> bool:
    """Whether two points of the same hash are the same."""
    a, b = _words(first, torch.tensor([one])), _words(second, torch.tensor([other]))
    return a is not None and b is not None and np.array_equal(a, b)


def differ(a: list[int], b: list[int]) -> bool:
    """Whether two points' labels contradict each other; -1 contradicts nothing."""
    return any(x != y and x >= 0 and y >= 0 for x, y in zip(a, b, strict=True))
