"""Criteria of single outputs: a class that wins, answers, linear conditions, numbers near a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.spec.criterion import AllOf, AnyOf, Chosen, Criterion, flat

__all__ = ["AllOf", "AnyOf", "Argmax", "Argmin", "Chosen", "Criterion", "Linear", "Near", "Threshold", "flat"]


#: What `Criterion.measures` calls its numbers; shares are between 0 and 1.
ERROR, WITHIN, WITHIN_BOUNDS = "mean squared error", "share within tolerance", "share within bounds"


class Argmax(Criterion):
    """The class `labels[i]` scores higher than every other class by at least `margin` (strictly, when it is 0).

    >>> Argmax([1], margin=0.5).holds(torch.tensor([[0.0, 1.0]]))
    tensor([True])

    Args:
        labels: (n,) integers, or one integer for all points later.
        margin: in output units (logits).
    """

    sign: float = 1.0

    def __init__(self, labels: Tensor | Sequence[int], margin: float = 0.0) -> None:
        labels = torch.as_tensor(labels)
        if labels.ndim != 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
            given = f"shape {tuple(labels.shape)}, {labels.dtype}"
            raise InvalidInput(
                f"Labels must be a one-dimensional tensor of integers, got {given}. Use labels.long() for classes."
            )
        if not 0 <= margin < float("inf"):
            raise InvalidInput(f"A margin must be a finite number >= 0, got {margin}.")
        self.labels, self.margin_, self.strict = labels.long(), float(margin), margin == 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Argmax:
        part = type(self)(self.labels[index.to(self.labels.device)], self.margin_)
        part.plain = self.plain
        return part

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} labels, margin={self.margin_:g})"

    def check(self, y: Tensor) -> None:
        if y.ndim != 2:
            raise InvalidInput(
                f"{type(self).__name__} needs one score per class, outputs of shape (points, classes); "
                f"the model returns {tuple(y.shape)}. Use Threshold, Near or Linear for other outputs."
            )
        if len(self) != len(y):
            raise InvalidInput(f"Got {len(self)} labels for {len(y)} inputs.")
        if y.shape[1] < 2:
            raise InvalidInput(
                "The model has a single output, so there are no classes; use Threshold (yes or no), Near or Linear."
            )
        bad = torch.nonzero((self.labels < 0) | (self.labels >= y.shape[1])).flatten().tolist()
        if bad:
            raise InvalidInput(
                f"Labels must lie in 0..{y.shape[1] - 1} (the model has {y.shape[1]} classes); "
                f"label {int(self.labels[bad[0]])} at index {bad[0]} does not"
                + (f", nor do {len(bad) - 1} others." if len(bad) > 1 else ".")
            )

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, classes); a class has no condition against itself: +inf there."""
        labels = self.labels.to(y.device)[:, None]
        slack: Tensor = self.sign * (y.gather(1, labels) - y) - self.margin_
        slack.scatter_(1, labels, torch.inf)
        return slack

    def loss(self, y: Tensor, margin: float = 0.0) -> Tensor:
        """Return (n,): the cross-entropy, of -y for `Argmin`; margins are taken off the label's score.

        >>> bool(torch.isclose(Argmax([1]).loss(torch.zeros(1, 4)), torch.tensor(4.0).log()))
        True
        """
        behind = margin - self.slack(y)  # -inf for the label itself
        return torch.cat([torch.zeros_like(behind[:, :1]), behind], 1).logsumexp(1)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        row = torch.zeros(len(point), y.shape[1], dtype=y.dtype, device=y.device)
        each = torch.arange(len(point), device=y.device)
        row[each, self.labels.to(y.device)[point]] = self.sign
        row[each, condition] -= self.sign
        return row

    def typical_slack(self, y: Tensor) -> float:
        """Return the median distance between the best and the second best class."""
        best = (self.sign * y).topk(2, dim=1).values
        return float((best[:, 0] - best[:, 1]).median())


class Argmin(Argmax):
    """The class `labels[i]` scores lower than every other class (ACAS Xu advises the smallest score)."""

    sign = -1.0


class Threshold(Criterion):
    """Yes-or-no answers: an output lies above `threshold` for label 1, below it for label 0, anywhere for label -1.

    One logit answers one question (binary classification), several outputs answer one each (multi-label).

    >>> Threshold([True, False]).holds(torch.tensor([[0.2], [0.2]]))
    tensor([ True, False])
    >>> Threshold([[1, 0, -1]], margin=0.5).margin(torch.tensor([[2.0, -0.75, 9.0]]))
    tensor([0.2500])

    Args:
        labels: (n,) for one output per point, or the shape of the outputs (n, ...): bool, or the integers 0, 1 and -1.
        threshold: a number, or one for each output of a point.
        margin: in output units; each output is at least that far from its threshold (strictly on its side, when it is
            0).
    """

    def __init__(self, labels: Any, threshold: Any = 0.0, margin: float = 0.0) -> None:
        labels = torch.as_tensor(labels)
        if labels.ndim == 0 or labels.dtype.is_floating_point or labels.dtype.is_complex:
            given = f"shape {tuple(labels.shape)}, {labels.dtype}"
            raise InvalidInput(
                f"Threshold needs labels (n,) or (n, outputs), bool or the integers 0, 1 and -1, got {given}. Use "
                "(labels > 0.5) for targets between 0 and 1."
            )
        wrong = labels.long()[(labels != 0) & (labels != 1) & (labels != -1)]
        if len(wrong):
            raise InvalidInput(
                f"Threshold needs labels 1 (above), 0 (below) or -1 (free), got {int(wrong[0])}. For one class per "
                "point, give its number: integers (n,)."
            )
        empty = torch.nonzero((flat(labels.long()) < 0).all(1)).flatten().tolist()
        if empty:
            raise InvalidInput(f"Threshold: every output of points {empty[:10]} is free (-1); leave these points out.")
        if not 0 <= margin < float("inf"):
            raise InvalidInput(f"A margin must be a finite number >= 0, got {margin}.")
        threshold = torch.as_tensor(threshold, dtype=torch.float64).detach().cpu().flatten()
        outputs = labels[0].numel() if len(labels) else len(threshold)
        if len(threshold) not in (1, outputs) or not torch.isfinite(threshold).all():
            raise InvalidInput(
                f"Threshold: the threshold must be a finite number, or one for each of {outputs} outputs, got "
                f"{threshold.tolist()}."
            )
        self.labels, self.threshold, self.margin_, self.strict = labels.long(), threshold, float(margin), margin == 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Threshold:
        part = Threshold(self.labels[index.to(self.labels.device)], self.threshold, self.margin_)
        part.plain = self.plain
        return part

    def __repr__(self) -> str:
        at = f"{self.threshold.item():g}" if len(self.threshold) == 1 else f"{len(self.threshold)} numbers"
        return f"Threshold(labels of shape {tuple(self.labels.shape)}, threshold={at}, margin={self.margin_:g})"

    def check(self, y: Tensor) -> None:
        if len(self) != len(y):
            raise InvalidInput(f"Got {len(self)} labels for {len(y)} inputs.")
        mine, theirs = (tuple(size for size in t.shape[1:] if size != 1) for t in (self.labels, y))
        if mine != theirs:
            raise InvalidInput(
                f"Labels of shape {tuple(self.labels.shape)} are about one answer per output, but the model's outputs "
                f"are {tuple(y.shape)}. For one class per point, give its number: integers (n,), such as labels.long()."
            )

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, outputs); a free output has no condition: +inf there."""
        labels, y = flat(self.labels.to(y.device)), flat(y)
        slack = torch.where(labels == 0, -1.0, 1.0).to(y) * (y - self.threshold.to(y)) - self.margin_
        return torch.where((labels < 0) & ~y.isnan(), torch.inf, slack)

    def loss(self, y: Tensor, margin: float = 0.0) -> Tensor:
        """Return (n,): the binary cross-entropy of `y - threshold`, summed over the outputs that are not free.

        >>> bool(torch.isclose(Threshold([1]).loss(torch.zeros(1, 1)), torch.tensor(2.0).log()))
        True
        """
        return F.softplus(margin - self.slack(y)).sum(1)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        row = torch.zeros(len(point), y[0].numel(), dtype=y.dtype, device=y.device)
        chosen = flat(self.labels.to(y.device))[point, condition]
        row[torch.arange(len(point), device=y.device), condition] = torch.where(chosen == 0, -1.0, 1.0).to(y)
        return row.reshape(len(point), *y.shape[1:])

    def typical_slack(self, y: Tensor) -> float:
        """Return the median distance between an output and its threshold."""
        distance = (flat(y) - self.threshold.to(y)).abs()[flat(self.labels.to(y.device)) >= 0]
        return float(distance.median()) if distance.numel() else 0.0


class Linear(Criterion):
    """`A y >= b`, with y flattened per point.

    >>> Linear([[1.0, -1.0]], [0.0], points=2).holds(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    tensor([ True, False])

    Args:
        A: (conditions, outputs) for all points alike, or (n, conditions, outputs).
        b: (conditions,) or (n, conditions), in output units.
        points: n, when A and b are alike for all points.
    """

    def __init__(self, A: Any, b: Any, points: int | None = None) -> None:
        A, b = torch.as_tensor(A), torch.as_tensor(b)
        if A.ndim not in (2, 3) or b.shape != A.shape[:-1]:
            raise InvalidInput(
                "Linear(A, b) needs A of shape (conditions, outputs) or (points, conditions, outputs) and b of A's "
                f"shape without its last axis; got A {tuple(A.shape)} and b {tuple(b.shape)}."
            )
        if A.ndim == 2:
            if points is None:
                raise InvalidInput("Linear(A, b) with one A for all points needs points=n, their number.")
            A, b = A.expand(points, *A.shape), b.expand(points, *b.shape)
        if not (torch.isfinite(A).all() and torch.isfinite(b).all()):
            raise InvalidInput("Linear(A, b): A and b must be finite.")
        self.A, self.b = A, b

    def __len__(self) -> int:
        return len(self.A)

    def __getitem__(self, index: Tensor) -> Linear:
        index = index.to(self.A.device)
        return Linear(self.A[index], self.b[index])

    def __repr__(self) -> str:
        return f"Linear({self.A.shape[1]} conditions on each of {len(self)} points)"

    def check(self, y: Tensor) -> None:
        if len(self) != len(y):
            raise InvalidInput(f"Linear(A, b) is about {len(self)} points, but there are {len(y)} inputs.")
        if y[0].numel() != self.A.shape[2]:
            raise InvalidInput(f"Linear(A, b) expects {self.A.shape[2]} outputs, the model returns {y[0].numel()}.")

    def measures(self, y: Tensor) -> dict[str, float]:
        """Return the share of points that meet all conditions."""
        return {WITHIN_BOUNDS: float(self.holds(y).double().mean())}

    def slack(self, y: Tensor) -> Tensor:
        A, b = self.A.to(y), self.b.to(y)
        scores: Tensor = torch.einsum("nco,no->nc", A, flat(y))
        slack: Tensor = scores - b
        return slack

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        chosen: Tensor = self.A[point.to(self.A.device), condition.to(self.A.device)].to(y)
        return chosen.reshape(len(point), *y.shape[1:])


class Near(Criterion):
    """Every output lies within `tol` of its target (regression, inpainting; `tol=inf` leaves an output free).

    >>> Near(torch.zeros(1, 2), tol=0.5).margin(torch.tensor([[0.1, -0.2]]))
    tensor([0.3000])

    Args:
        target: (n, ...), the shape of the outputs.
        tol: a number, or a tensor that broadcasts to the target, in output units.
    """

    def __init__(self, target: Tensor, tol: float | Tensor) -> None:
        target = torch.as_tensor(target)
        target = target if target.dtype.is_floating_point else target.to(torch.get_default_dtype())
        tol = torch.as_tensor(tol, dtype=target.dtype, device=target.device)
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
        self.target, self.tol = target, tol

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: Tensor) -> Near:
        index = index.to(self.target.device)
        return Near(self.target[index], self.tol[index])

    def __repr__(self) -> str:
        return f"Near(target of shape {tuple(self.target.shape)})"

    def check(self, y: Tensor) -> None:
        if y.shape != self.target.shape:
            raise InvalidInput(f"Near: target of shape {tuple(self.target.shape)}, but outputs are {tuple(y.shape)}.")

    def measures(self, y: Tensor) -> dict[str, float]:
        """Return the mean squared error of the outputs that have a tolerance, and the share of points within it.

        >>> Near(torch.zeros(2, 1), 0.5).measures(torch.tensor([[0.0], [2.0]]))
        {'mean squared error': 2.0, 'share within tolerance': 0.5}
        """
        off = (y - self.target.to(y))[torch.isfinite(self.tol).to(y.device)]
        error = float(off.double().square().mean()) if off.numel() else 0.0
        return {ERROR: error, WITHIN: float(self.holds(y).double().mean())}

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, 2 * outputs): first how far above the lower bound, then how far below the upper one."""
        off, tol = flat(y - self.target.to(y)), flat(self.tol.to(y))
        return torch.cat([off + tol, tol - off], 1)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        size = y[0].numel()
        row = torch.zeros(len(point), size, dtype=y.dtype, device=y.device)
        row[torch.arange(len(point), device=y.device), condition % size] = torch.where(condition < size, 1.0, -1.0).to(
            y
        )
        return row.reshape(len(point), *y.shape[1:])

    def typical_slack(self, y: Tensor) -> float:
        finite = self.tol[torch.isfinite(self.tol)]
        return float(finite.median()) if finite.numel() else 0.0
