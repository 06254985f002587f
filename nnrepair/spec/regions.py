"""Regions of inputs over which something must hold: line segments and flat convex polygons."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.rounding import first
from nnrepair.spec.inputs import Inputs

#: Points may lie off their polygon's plane, and angles may bend inward, by this share of the polygon's size.
FLATNESS = 1e-6


class Regions(Inputs):
    """n bounded regions of inputs, as `Edits(regions, labels)` takes them: one label or condition per region.

    Attributes:
        corners: for each region its corners, (k, ...) in float64, in order; the region is their convex hull.
    """

    corners: list[Tensor]

    def __len__(self) -> int:
        return len(self.corners)

    @abstractmethod
    def __getitem__(self, index: Tensor) -> Regions:
        """Return the regions `index` (int64 or bool tensor)."""

    def to(self, like: Tensor) -> Self:
        """Return the regions as they are: they are split in float64 on the CPU."""
        return self

    def call(self, model: nn.Module) -> Tensor:
        """Refuse: a region has no single output."""
        raise InvalidInput(f"{self!r} have no single outputs; nnrepair.fix splits regions, nothing else reads them.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.corners[0].shape[1:])

    def _chosen(self, index: Tensor) -> list[int]:
        each: list[int] = torch.arange(len(self))[torch.as_tensor(index).cpu()].reshape(-1).tolist()
        return each


class Segments(Regions):
    """The straight lines from `start` to `end`, endpoints included.

    >>> Segments(torch.zeros(2, 3), torch.ones(2, 3))
    2 segments of inputs of shape (3,)

    Args:
        start, end: (n, ...) inputs.

    Raises:
        InvalidInput: unequal shapes, NaN, or a segment whose two ends are equal.
    """

    def __init__(self, start: Any, end: Any) -> None:
        start, end = _doubles(start, "start"), _doubles(end, "end")
        if start.shape != end.shape or start.ndim < 2 or len(start) == 0:
            raise InvalidInput(
                f"Segments needs start and end of one shape (segments, ...), got {tuple(start.shape)} and "
                f"{tuple(end.shape)}."
            )
        empty = torch.nonzero((start == end).flatten(1).all(1)).flatten().tolist()
        if empty:
            raise InvalidInput(
                f"Segments {first(empty)} have no length: start and end are equal. Give such points as plain edits."
            )
        self.corners = list(torch.stack([start, end], 1))

    def __getitem__(self, index: Tensor) -> Segments:
        both = torch.stack([self.corners[k] for k in self._chosen(index)])
        return Segments(both[:, 0], both[:, 1])

    def __repr__(self) -> str:
        return f"{len(self)} segments of inputs of shape {self.shape}"


class Polygons(Regions):
    """Flat convex polygons, border and interior.

    >>> Polygons(torch.tensor([[[0.0, 0], [1, 0], [1, 1], [0, 1]]]))
    1 polygons of inputs of shape (2,)

    Args:
        vertices: (n, k, ...), or a sequence of n tensors (k_i, ...): the corners of each, at least three, in order
            around the polygon (either way).

    Raises:
        InvalidInput: fewer than three corners, NaN, equal corners, no area, corners off one plane, or not convex.
    """

    def __init__(self, vertices: Tensor | Sequence[Any]) -> None:
        several = isinstance(vertices, Tensor) or not len(vertices) or hasattr(vertices[0], "__len__")
        if not several or len(vertices) == 0:
            raise InvalidInput("Polygons needs a tensor (polygons, corners, ...) or a list of tensors (corners, ...).")
        self.corners = [_doubles(v, f"polygon {k}") for k, v in enumerate(vertices)]
        for k, corners in enumerate(self.corners):
            fault = _fault(corners)
            if fault:
                raise InvalidInput(f"Polygon {k} {fault}")
        shapes = {tuple(corners.shape[1:]) for corners in self.corners}
        if len(shapes) != 1:
            raise InvalidInput(f"All polygons need inputs of one shape, got {sorted(shapes)}.")

    def __getitem__(self, index: Tensor) -> Polygons:
        return Polygons([self.corners[k] for k in self._chosen(index)])

    def __repr__(self) -> str:
        return f"{len(self)} polygons of inputs of shape {self.shape}"


def plane(corners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (coordinates, axes, sizes) of points (k, ...): centred coordinates (k, d) along orthonormal axes (d, ...).

    Axes come by falling size (singular values of the centred points), so the first two span a flat polygon.
    """
    flat = corners.flatten(1)
    U, sizes, axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    return U * sizes, axes, sizes


def _doubles(given: Any, what: str) -> Tensor:
    """Return inputs (n, ...) in float64."""
    try:
        values: Tensor = torch.as_tensor(given).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"Regions: {what} must be a tensor of inputs ({error}).") from None
    if values.ndim == 0:
        raise InvalidInput(f"Regions: {what} must be a tensor of inputs, got a single number.")
    bad = [k for k, value in enumerate(values) if not bool(torch.isfinite(value).all())]
    if bad:
        raise InvalidInput(f"Regions: {what} must be finite; NaN or infinity in inputs {first(bad)}.")
    return values + 0.0  # -0.0 becomes 0.0, so that equal regions look equal


def _fault(corners: Tensor) -> str:
    """Return what is wrong with a polygon's corners (k, ...), or an empty string."""
    if corners.ndim < 2 or len(corners) < 3:
        return f"needs at least three corners (corners, ...), got shape {tuple(corners.shape)}."
    if corners[0].numel() < 2:
        return "needs inputs of at least two numbers; over one number, use Segments."
    side = corners.roll(-1, 0) - corners
    equal = torch.nonzero((side == 0).flatten(1).all(1)).flatten().tolist()
    if equal:
        return f"has equal corners, {equal[0]} and {(equal[0] + 1) % len(corners)}; remove one of them."
    points, _, sizes = plane(corners)
    if sizes[1] <= 1e-12 * sizes[0]:
        return "has no area: its corners lie on one line. Use Segments."
    if len(sizes) > 2 and sizes[2] > FLATNESS * sizes[0]:
        return f"is not flat: corners lie off the best plane by up to {float(points[:, 2:].abs().max()):.2g}."
    side = points[:, :2].roll(-1, 0) - points[:, :2]
    after = side.roll(-1, 0)
    turn = torch.atan2(side[:, 0] * after[:, 1] - side[:, 1] * after[:, 0], (side * after).sum(1))
    total = float(turn.sum())
    turn = turn if total > 0 else -turn
    if bool((turn < -FLATNESS).any()) or abs(abs(total) - 2 * math.pi) > 0.1:
        return "is not convex, or its corners are not in order around it. Split it into convex polygons."
    return ""
