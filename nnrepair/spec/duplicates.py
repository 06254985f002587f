"""Points that are there twice: edits that contradict each other, or what is to be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.spec.criteria import Argmax, Criterion, Threshold, flat
from nnrepair.spec.edits import Edits, LocalitySet
from nnrepair.spec.inputs import BATCH, AnyInputs
from nnrepair.spec.kinds import kind_of


def refuse_contradictions(edits: Edits) -> None:
    """Refuse equal inputs with different labels: no network can satisfy both."""
    if not isinstance(edits.criterion, Argmax | Threshold):
        return
    points = _identity(edits.inputs)
    if points is None:
        return
    which, labels = _numbered(points), flat(edits.criterion.labels).tolist()
    groups: dict[int, list[int]] = {}
    clashes = []
    for index, group in enumerate(which.tolist()):
        others = groups.setdefault(group, [])
        seen = next((seen for seen in others if differ(labels[seen], labels[index])), None)
        if seen is not None and np.array_equal(points[seen], points[index]):
            clashes.append((seen, index))
        elif all(labels[seen] != labels[index] for seen in others):
            others.append(index)
    if clashes:
        one = {k: labels[k][0] if len(labels[k]) == 1 else labels[k] for pair in clashes[:5] for k in pair}
        shown = ", ".join(f"{a} and {b} (labels {one[a]} and {one[b]})" for a, b in clashes[:5])
        more = f", and {len(clashes) - 5} more pairs" if len(clashes) > 5 else ""
        raise InvalidInput(f"Equal inputs are given different labels: edits {shown}{more}. Remove one of each pair.")


def kept_edits(edits: Edits, locality: LocalitySet, keep: Criterion, kept: Tensor) -> list[str]:
    """Return a note on edits that are also points to keep, with the decision that is to change; or nothing.

    Args:
        edits, locality: the points.
        keep: what keeps the latter, and `kept`: bool (points,), which of them it binds.
    """
    asked = edits.criterion
    if type(keep) is not type(asked) or kind_of(keep) != kind_of(asked):
        return []
    if not isinstance(asked, Argmax | Threshold) or not isinstance(keep, Argmax | Threshold):
        return []
    points, others = _identity(edits.inputs), _identity(locality.inputs)
    if points is None or others is None or points.shape[1:] != others.shape[1:]:
        return []
    which = _numbered(np.concatenate([points, others]))
    mine, theirs = which[: len(points)], which[len(points) :]
    binding = torch.nonzero(kept).flatten().cpu().numpy()
    place = np.full(which.max() + 1, -1)
    place[theirs[binding]] = binding
    labels, decisions = flat(asked.labels).tolist(), flat(keep.labels).tolist()
    clashes = [
        edit
        for edit, point in enumerate(place[mine].tolist())
        if point >= 0 and differ(labels[edit], decisions[point]) and np.array_equal(points[edit], others[point])
    ]
    if not clashes:
        return []
    more = ", ..." if len(clashes) > 10 else ""
    return [
        f"edits {str(clashes[:10])[1:-1]}{more} are points of the locality set too, which keeps the very decision that "
        "they change; leave them out of it."
    ]


def _identity(inputs: AnyInputs) -> NDArray[Any] | None:
    """Return (n, ...) what is equal where two points are the same, or None where the inputs do not say."""
    if not isinstance(inputs, Tensor):
        same: Callable[[], Tensor] | None = getattr(inputs, "same", None)
        if not callable(same):
            return None
        found = same()
        if len(found) != len(inputs):
            raise InvalidInput(
                f"same() must return one row for each of {len(inputs)} points, got {tuple(found.shape)}."
            )
        inputs = found
    rows = flat(inputs.detach())
    if rows.element_size() < 4:
        rows = rows.float() if rows.dtype.is_floating_point else rows.int()
    return rows.cpu().numpy()


def _numbered(points: NDArray[Any]) -> NDArray[np.int64]:
    """Return (n,) a number for each point (n, d), the same for equal ones and, all but certainly, no others."""
    words = np.ascontiguousarray(points + 0).view(np.uint32).reshape(len(points), -1)  # -0.0 is 0.0
    factors = np.random.default_rng(0).integers(1, 2**63, words.shape[1], dtype=np.uint64)
    hashed = [(words[s : s + BATCH].astype(np.uint64) * factors).sum(1) for s in range(0, len(words), BATCH)]
    return np.unique(np.concatenate(hashed), return_inverse=True)[1].reshape(-1)


def differ(a: list[int], b: list[int]) -> bool:
    """Whether two points' labels contradict each other; -1 contradicts nothing."""
    return any(x != y and x >= 0 and y >= 0 for x, y in zip(a, b, strict=True))
