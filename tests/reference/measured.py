"""Every figure of a report, computed anew from the two networks with numpy alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]


@dataclass(frozen=True)
class Reading:
    """How a task's outputs are read.

    Attributes:
        holds: outputs (n, outputs) and labels (n, ...) -> (n,) bool.
        decide: outputs -> (n, decisions), or None where they stand for numbers.
        labelled: labels -> (n, decisions) bool, which decisions a point with labels has; None for all.
    """

    holds: Callable[[Array, Array], Array]
    decide: Callable[[Array], Array] | None
    labelled: Callable[[Array], Array] | None = None


def highest(y: Array, labels: Array) -> Array:
    others = np.where(np.eye(y.shape[1], dtype=bool)[labels], -np.inf, y)
    return y[np.arange(len(y)), labels] > others.max(1)


CLASSES = Reading(highest, lambda y: y.argmax(1)[:, None])
LOWEST = Reading(lambda y, labels: highest(-y, labels), lambda y: y.argmin(1)[:, None])


def threshold(at: float) -> Reading:
    def holds(y: Array, labels: Array) -> Array:
        labels = labels.reshape(len(labels), -1)
        return ((labels < 0) | ((y > at) & (labels == 1)) | ((y < at) & (labels == 0))).all(1)

    return Reading(holds, lambda y: y > at, lambda labels: labels.reshape(len(labels), -1) >= 0)


def near(tol: float) -> Reading:
    return Reading(lambda y, target: (np.abs(y - target.reshape(len(target), -1)) <= tol).all(1), None)


def run(model: nn.Module, x: Tensor) -> Array:
    """Return (n, outputs) in float64, in the network's own arithmetic."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        y = twin(x.to(next(twin.parameters()).dtype))
    return np.asarray(y.reshape(len(x), -1).double().numpy())


def kept(
    reading: Reading, before: Array, after: Array, labels: Array | None, tolerance: float | None, free: bool
) -> dict[str, Any]:
    """Return the fields of `SideEffects`."""
    n = len(before)
    found: dict[str, Any] = dict.fromkeys(("accuracy_before", "accuracy_after", "drawdown", "drawdown_points"))
    held = np.ones(n, bool)
    if labels is not None:
        held, now = reading.holds(before, labels), reading.holds(after, labels)
        a, b = held.sum() / n, now.sum() / n
        found = {"accuracy_before": a, "accuracy_after": b, "drawdown_points": 100 * (a - b)}
        found["drawdown"] = None if a == 0 else (a - b) / a
    found |= {"points": n, "locality": None, "decisions": 0, "moved": None, "left_out": {}, "free": {}, "measures": {}}
    if labels is not None and reading.decide is None:
        errors = [((y - labels.reshape(n, -1).astype(np.float64)) ** 2).mean() for y in (before, after)]
        found["measures"] = {"mean squared error": errors, "share within tolerance": [a, b]}
    if free and not held.all():
        found["free"] = {"did not hold before": int((~held).sum())}
    if reading.decide is None:
        change = np.abs(after - before)
        within = None if tolerance is None else (change <= tolerance).all(1).sum() / n
        found["moved"] = {"tolerance": tolerance, "within": within, "mean": change.mean(), "largest": change.max()}
    else:
        changed = reading.decide(before) != reading.decide(after)
        if labels is not None and reading.labelled is not None:
            changed &= reading.labelled(labels)
        found |= {"locality": (~changed.any(1)).sum() / n, "decisions": changed.shape[1]}
    return found


def size(arrays: list[Array]) -> dict[str, Any]:
    """Return the fields of `Size`."""
    x = np.concatenate([a.astype(np.float64).ravel() for a in arrays]) if arrays else np.zeros(0)
    norms = {"l1": np.abs(x).sum(), "l2": np.sqrt((x**2).sum()), "linf": np.abs(x).max(initial=0.0)}
    return {"numbers": x.size, "nonzeros": int((x != 0).sum())} | norms


def change(
    before: nn.Module, after: nn.Module, place: Callable[[str], str | None] = lambda name: name
) -> dict[str, Any]:
    """Return the sizes of `WeightChange`; `place` says what a tensor of the old network is called in the new one."""
    old, new = (
        {n: t.detach().numpy() for n, t in [*m.named_parameters(), *m.named_buffers()]} for m in (before, after)
    )
    parameters = {n for n, _ in before.named_parameters()}
    there = {n: p for n in old if (p := place(n)) is not None}
    moved = {n: new[p].astype(np.float64) - old[n].astype(np.float64) for n, p in there.items()}
    return {
        "parameters": size([d for n, d in moved.items() if n in parameters]),
        "buffers": size([d for n, d in moved.items() if n not in parameters]),
        "added": size([a for n, a in new.items() if n not in there.values()]),
        "removed": size([a for n, a in old.items() if n not in there]),
    }
