"""The slice that a picture shows, and whether what is to be drawn there fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnrepair.errors import InvalidInput
from nnrepair.plot.style import MOST_CELLS
from nnrepair.verify import vnnlib
from nnrepair.verify.property import Box, Property
from nnrepair.verify.result import CheckResult, Counterexample

Array = NDArray[np.float64]
Rectangle = tuple[float, float, float, float]


class View:
    """The slice: two inputs between their ends, the others fixed; checked."""

    def __init__(self, box: Box, dims: Any, at: Any, points: Array, resolution: Any) -> None:
        self.low, self.high = box.outer
        self.dims = _dims(dims, len(box))
        for d in self.dims:
            if not self.low[d] < self.high[d]:
                raise InvalidInput(f"Input {d} has one value in the box ({self.low[d]:g}); choose others with dims=.")
        if isinstance(resolution, bool) or not isinstance(resolution, int) or not 2 <= resolution <= MOST_CELLS:
            raise InvalidInput(f"resolution must be an integer from 2 to {MOST_CELLS}, got {resolution!r}.")
        self.resolution = resolution
        if at is not None:
            fixed = _numbers(at, "at")
            if fixed.size != len(box) or not np.isfinite(fixed).all():
                raise InvalidInput(f"at must be {len(box)} finite numbers, one for each input, got {fixed.size}.")
            self.at = fixed.reshape(-1)
        else:
            self.at = points[0].copy() if len(points) else self.low / 2 + self.high / 2
        self.others = [d for d in range(len(box)) if d not in self.dims]

    @property
    def extent(self) -> Rectangle:
        i, j = self.dims
        return float(self.low[i]), float(self.high[i]), float(self.low[j]), float(self.high[j])

    def middles(self) -> tuple[Array, Array]:
        """Return the middles of the cells along both axes."""
        share = (np.arange(self.resolution) + 0.5) / self.resolution
        x, y = (self.low[d] * (1 - share) + self.high[d] * share for d in self.dims)
        return x, y

    def inputs(self, rows: slice) -> Array:
        """Return the inputs (cells, inputs) of some rows of cells, from below."""
        x, y = self.middles()
        grid = np.tile(self.at, (len(y[rows]) * len(x), 1))
        grid[:, self.dims[0]], grid[:, self.dims[1]] = np.tile(x, len(y[rows])), np.repeat(y[rows], len(x))
        return grid

    def crosses(self, low: Array, high: Array) -> bool:
        """Tell whether the slice meets a box."""
        return bool(((low <= self.at) & (self.at <= high))[self.others].all())


def box_of(ends: Any) -> Box:
    """Return the box between a pair of ends."""
    try:
        lower, upper = ends
    except (TypeError, ValueError):
        raise InvalidInput(
            f"box must be a nnrepair.verify.Box or a pair (lower, upper), got {type(ends).__name__}."
        ) from None
    return Box(lower, upper)


def _dims(dims: Any, inputs: int) -> tuple[int, int]:
    try:
        i, j = (int(d) for d in dims)
        whole = [i, j] == list(dims)
    except (TypeError, ValueError):
        whole = False
    if not whole or i == j or not (0 <= i < inputs and 0 <= j < inputs):
        raise InvalidInput(f"dims must be two different inputs out of 0..{inputs - 1}, got {dims!r}.")
    return i, j


def _numbers(values: Any, name: str) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} must be numbers, got {type(values).__name__}.") from None


def points_of(given: Any, inputs: int) -> Array:
    """Return counterexamples of any kind as an array (n, inputs)."""
    if isinstance(given, CheckResult):
        given = () if given.counterexample is None else given.counterexample
    if isinstance(given, Counterexample):
        given = given.input
    if given is None:
        given = ()
    kinds = (CheckResult, Counterexample, np.ndarray, torch.Tensor)
    if isinstance(given, list | tuple) and any(isinstance(one, kinds) for one in given):
        return np.concatenate([points_of(one, inputs) for one in given])
    numbers = _numbers(given, "counterexamples")
    if numbers.size % inputs or not np.isfinite(numbers).all():
        raise InvalidInput(
            f"A counterexample is a CheckResult, a Counterexample, or {inputs} finite numbers; got an array of shape "
            f"{numbers.shape}."
        )
    return numbers.reshape(-1, inputs)


def named(given: Sequence[str] | None, count: int, option: str, what: str, default: str) -> list[str]:
    """Return as many names as there are inputs or classes: those given, or numbers."""
    if given is None:
        return [f"{default} {k}" for k in range(count)]
    if isinstance(given, str) or len(given) != count:
        raise InvalidInput(f"{option} must be a list of {count} names, one for each of the {what}; got {given!r}.")
    return [str(name) for name in given]


def property_of(given: Property | str | Path, inputs: int) -> Property:
    """Return a property about so many inputs, read where it is a file."""
    claim = given if isinstance(given, Property) else vnnlib.load(given)
    if claim.inputs != inputs:
        raise InvalidInput(f"The property is about {claim.inputs} inputs; the box has {inputs}.")
    return claim
