"""Criteria of outputs that are numbers: near a target, or between bounds, in the model's units or in the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.rounding import counted, first
from nnrepair.spec.criterion import Criterion, flat
from nnrepair.spec.dense import dense

#: What `Criterion.measures` calls its numbers; shares are between 0 and 1.
ERROR, WITHIN, WITHIN_BOUNDS = "mean squared error", "share within tolerance", "share within bounds"


class Units:
    """What a model's outputs are in the user's units: y * scale + shift.

    >>> Units.of((20.0, 5.0)).to_model(torch.tensor([30.0]))  # degrees, with mean 20 and standard deviation 5
    tensor([2.])

    Args:
        scale, shift: one number, or one for each output.
    """

    def __init__(self, scale: Any = 1.0, shift: Any = 0.0) -> None:
        try:
            found = [torch.as_tensor(v, dtype=torch.float64).detach().cpu() for v in (scale, shift)]
        except (TypeError, ValueError, RuntimeError):
            raise InvalidInput(f"units must be numbers, got {scale!r} and {shift!r}.") from None
        self.scale, self.shift = found
        if not all(bool(torch.isfinite(v).all()) for v in found) or bool((self.scale == 0).any()):
            raise InvalidInput(f"units: a scale must be finite and not 0, got {scale!r} with the mean {shift!r}.")

    @classmethod
    def of(cls, given: Any) -> Units:
        """Return units from a pair (mean, scale), or from a scaler of scikit-learn that was fitted to the targets."""
        if given is None:
            return cls()
        if isinstance(given, Units):
            return given
        if isinstance(given, tuple | list) and len(given) == 2:
            return cls(given[1], given[0])
        scale = getattr(given, "scale_", None)
        if hasattr(given, "min_") and scale is not None:  # MinMaxScaler: scaled = x * scale_ + min_
            return cls(1 / torch.as_tensor(scale), -torch.as_tensor(given.min_) / torch.as_tensor(scale))
        for name in ("mean_", "center_"):
            if hasattr(given, name):
                centre = getattr(given, name)
                return cls(1.0 if scale is None else scale, 0.0 if centre is None else centre)
        raise InvalidInput(
            f"units must be a pair (mean, scale), with y * scale + mean what you count in, or a fitted scaler such as "
            f"sklearn.preprocessing.StandardScaler; got {type(given).__name__}."
        )

    def to_model(self, values: Tensor) -> Tensor:
        """Return values in the user's units as the model's outputs."""
        return (values - self.shift.to(values.device)) / self.scale.to(values.device)

    @property
    def plain(self) -> bool:
        """Whether the user's units are the model's."""
        return bool((self.scale == 1).all() & (self.shift == 0).all())


class Near(Criterion):
    """Every output lies within `tol` of its target (regression, inpainting; `tol=inf` leaves an output free).

    >>> Near(torch.zeros(1, 2), tol=0.5).margin(torch.tensor([[0.1, -0.2]]))
    tensor([0.3000])
    >>> Near(torch.tensor([[21.0]]), tol=1.0, units=(20.0, 5.0)).holds(torch.tensor([[0.3]]))  # 21.5 degrees
    tensor([True])

    Args:
        target: (n, ...), the shape of the outputs.
        tol: a number, or a tensor that broadcasts to the target, in the same units.
        units: what target and tol are in, where that is not what the model returns: (mean, scale), or the scaler that
            was fitted to the targets it was trained on. What is measured is in these units, too.
    """

    def __init__(self, target: Tensor, tol: float | Tensor, *, units: Any = None) -> None:
        target = dense(target, "Near: the target", "a tensor")
        target = target if target.dtype.is_floating_point else target.to(torch.get_default_dtype())
        tol = dense(tol, "Near: tol", "a number, or a tensor", target.dtype).to(target.device)
        try:
            tol = tol.broadcast_to(target.shape)
        except RuntimeError:
            raise InvalidInput(
                f"Near: tol of shape {tuple(tol.shape)} does not broadcast to the target {tuple(target.shape)}."
            ) from None
        if not torch.isfinite(target).all():
            raise InvalidInput("Near: the target must be finite; where an output is free, give it tol=inf.")
        if not (tol > 0).all():
            raise InvalidInput(
                f"Near needs every tol positive, the smallest given is {float(tol.min()):g}: no repair meets a target "
                "exactly. Give what is near enough, such as half a grey level."
            )
        self.target, self.tol, self.units = target, tol, Units.of(units)
        if not self.units.plain:
            self.target, self.tol = _converted(self.units, target), tol / self.units.scale.abs().to(tol.device)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: Tensor) -> Near:
        index = index.to(self.target.device)
        part = Near(self.target[index], self.tol[index])
        part.units = self.units
        return part

    def __repr__(self) -> str:
        return f"Near(target of shape {tuple(self.target.shape)})"

    def check(self, y: Tensor) -> None:
        if y.shape != self.target.shape:
            hint = " Give targets (n, 1): target[:, None]." if y.shape == (*self.target.shape, 1) else ""
            raise InvalidInput(
                f"Near: target of shape {tuple(self.target.shape)}, but outputs are {tuple(y.shape)}.{hint}"
            )

    def measures(self, y: Tensor) -> dict[str, float]:
        """Return the mean squared error of the outputs that have a tolerance, and the share of points within it.

        >>> Near(torch.zeros(2, 1), 0.5).measures(torch.tensor([[0.0], [2.0]]))
        {'mean squared error': 2.0, 'share within tolerance': 0.5}
        """
        off = (y - self.target.to(y)) * self.units.scale.to(y)
        off = off[torch.isfinite(self.tol).to(y.device)]
        error = float(off.double().square().mean()) if off.numel() else 0.0
        return {ERROR: error, WITHIN: float(self.holds(y).double().mean())}

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, 2 * outputs): first how far above the lower bound, then how far below the upper one."""
        off, tol = flat(y - self.target.to(y)), flat(self.tol.to(y))
        return torch.cat([off + tol, tol - off], 1)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        return _rows_of_bounds(len(point), condition, y)

    def typical_slack(self, y: Tensor) -> float:
        finite = self.tol[torch.isfinite(self.tol)]
        return float(finite.median()) if finite.numel() else 0.0


class Between(Criterion):
    """Every output lies between its bounds, ends included; infinite ones leave it free on that side.

    >>> Between(0.0, 1.0, points=2).holds(torch.tensor([[0.5], [1.5]]))
    tensor([ True, False])
    >>> Between(high=0.3, at=(1,), points=1).holds(torch.tensor([[9.0, 0.2]]))  # one output alone
    tensor([True])

    Args:
        low, high: numbers, or tensors (n, ...) of the outputs' shape.
        points: n, where the bounds are numbers.
        at: which output of a point is meant, its index without the points' axis; all others are free. By default all.
        units: what the bounds are in, see `Near`.
    """

    def __init__(
        self,
        low: Any = -torch.inf,
        high: Any = torch.inf,
        *,
        points: int | None = None,
        at: tuple[int, ...] | int | None = None,
        units: Any = None,
    ) -> None:
        bounds = [dense(v, "Between: bounds", "numbers, or tensors", torch.float64) for v in (low, high)]
        try:
            shape = np.broadcast_shapes(*(tuple(v.shape) for v in bounds))
            low, high = (v.expand(shape) for v in bounds)
        except ValueError:
            shapes = [tuple(v.shape) for v in bounds]
            raise InvalidInput(
                f"Between: bounds of shapes {shapes[0]} and {shapes[1]} do not fit each other."
            ) from None
        if low.ndim == 0:
            if points is None:
                raise InvalidInput("Between with the same bounds for all points needs points=n, their number.")
            low, high = low.expand(points), high.expand(points)
        if low.isnan().any() or high.isnan().any() or bool((low > high).any()) or bool((low == torch.inf).any()):
            raise InvalidInput("Between: every lower bound must be a number, and no higher than the upper one.")
        empty = torch.nonzero((flat(low) == -torch.inf).all(1) & (flat(high) == torch.inf).all(1)).flatten().tolist()
        if empty:
            raise InvalidInput(f"Between: nothing is asked of points {first(empty)}; leave them out.")
        if at is not None and low.ndim > 1:
            raise InvalidInput(f"Between: with at, bounds are one per point (n,), got {tuple(low.shape)}.")
        self.at = (at,) if isinstance(at, int) else None if at is None else tuple(at)
        self.units = Units.of(units)
        if not self.units.plain:
            ends = [_converted(self.units, v) for v in (low, high)]
            low, high = torch.minimum(*ends), torch.maximum(*ends)
        self.low, self.high = low, high

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, index: Tensor) -> Between:
        index = index.to(self.low.device)
        part = Between(self.low[index], self.high[index], at=self.at)
        part.units = self.units
        return part

    def __repr__(self) -> str:
        return f"Between({counted(len(self), 'point')}{'' if self.at is None else f', at={self.at}'})"

    def check(self, y: Tensor) -> None:
        if len(self) != len(y):
            raise InvalidInput(f"Between: bounds of {len(self)} points, but there are {len(y)} inputs.")
        if self.at is not None:
            sizes = tuple(y.shape[1:])
            if len(self.at) != len(sizes) or not all(-n <= k < n for k, n in zip(self.at, sizes, strict=True)):
                raise InvalidInput(f"Between: at={self.at} is no output of a point; outputs of each are {sizes}.")
        elif self.low.ndim > 1 and self.low.shape != y.shape:
            raise InvalidInput(f"Between: bounds of shape {tuple(self.low.shape)}, but outputs are {tuple(y.shape)}.")

    def measures(self, y: Tensor) -> dict[str, float]:
        """Return the share of points within their bounds."""
        return {WITHIN_BOUNDS: float(self.holds(y).double().mean())}

    def bounds(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, outputs) the lower and the upper bound of every output."""
        low, high = self.low.to(y.device), self.high.to(y.device)
        if low.ndim == 1:
            each = [v.reshape(-1, *[1] * (y.ndim - 1)) for v in (low, high)]
            if self.at is not None and len(self.at) != y.ndim - 1:
                raise InvalidInput(f"Between: at={self.at} is no output of a point; outputs of each are {y.shape[1:]}.")
            if self.at is None:
                low, high = (v.expand(y.shape) for v in each)
            else:
                place = torch.zeros(y.shape[1:], dtype=torch.bool, device=y.device)
                place[self.at] = True
                low, high = torch.where(place, each[0], -torch.inf), torch.where(place, each[1], torch.inf)
        return flat(low), flat(high)

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, 2 * outputs): first how far above the lower bound, then how far below the upper one."""
        low, high = self.bounds(y)
        return torch.cat([flat(y) - low.to(y), high.to(y) - flat(y)], 1)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        return _rows_of_bounds(len(point), condition, y)

    def typical_slack(self, y: Tensor) -> float:
        """Return half the median distance between two bounds; of single ones, that of outputs from them."""
        low, high = self.bounds(y)
        both = (high - low)[torch.isfinite(high - low)]
        return float(both.median()) / 2 if both.numel() else super().typical_slack(y)


def _converted(units: Units, values: Tensor) -> Tensor:
    """Return values in the user's units as the model's, in their own dtype."""
    try:
        made = units.to_model(values)
    except RuntimeError:
        raise InvalidInput(
            f"units of {units.scale.numel()} outputs do not fit values of shape {tuple(values.shape)}: the last axis "
            "must be the outputs."
        ) from None
    if made.shape != values.shape:
        raise InvalidInput(f"units of {units.scale.numel()} outputs do not fit values of shape {tuple(values.shape)}.")
    return made.to(values.dtype)


def _rows_of_bounds(count: int, condition: Tensor, y: Tensor) -> Tensor:
    size = y[0].numel()
    row = torch.zeros(count, size, dtype=y.dtype, device=y.device)
    row[torch.arange(count, device=y.device), condition % size] = torch.where(condition < size, 1.0, -1.0).to(y)
    return row.reshape(count, *y.shape[1:])
