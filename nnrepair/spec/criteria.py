"""Criteria of single outputs: a class that wins, answers, linear conditions; numbers: `bounds`; order: `ranks`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.rounding import counted, first
from nnrepair.spec.bounds import WITHIN_BOUNDS, Between, Near
from nnrepair.spec.criterion import AllOf, AnyOf, Chosen, Criterion, flat
from nnrepair.spec.dense import dense

__all__ = [
    "AllOf", "AnyOf", "Argmax", "Argmin", "Between", "Chosen", "Criterion", "Linear", "Near", "Threshold", "flat",
]  # fmt: skip


class Argmax(Criterion):
    """The class `labels[i]` scores higher than every other class by at least `margin` (strictly, when it is 0).

    >>> Argmax([1], margin=0.5).holds(torch.tensor([[0.0, 1.0]]))
    tensor([True])
    >>> Argmax([[1, 0, -100]]).holds(torch.tensor([[[0.0, 1.0], [3.0, 2.0], [7.0, 7.0]]]))  # three words, two classes
    tensor([True])

    Args:
        labels: (n,) integers; or (n, ...), one for every position: pixels (n, height, width) of scores (n, classes,
            height, width), tokens (n, tokens) of scores (n, tokens, classes).
        margin: in output units (logits).
        axis: which axis of the outputs are the classes, where shapes leave that open: 1 for (n, classes, ...), -1 for
            (n, ..., classes).
        ignore: the label of positions that may have any class.
    """

    sign: float = 1.0

    def __init__(
        self, labels: Tensor | Sequence[Any], margin: float = 0.0, *, axis: int | None = None, ignore: int = -100
    ) -> None:
        labels = dense(labels, f"{type(self).__name__}: labels", "integers")
        if labels.ndim == 0 or labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            given = f"shape {tuple(labels.shape)}, {labels.dtype}"
            how = "For a single point give a batch of one: x[None], [label]." if labels.ndim == 0 else ""
            raise InvalidInput(
                "Labels must be integers, one per point (n,) or per position (n, ...), got "
                f"{given}. {how or 'Use labels.long() for classes.'}"
            )
        if not 0 <= margin < float("inf"):
            raise InvalidInput(f"A margin must be a finite number >= 0, got {margin}.")
        self.labels, self.margin_, self.strict = labels.long(), float(margin), margin == 0
        self.axis, self.ignore = axis, ignore
        empty = torch.nonzero((flat(self.labels) == ignore).all(1)).flatten().tolist() if labels.numel() else []
        if empty:
            raise InvalidInput(
                f"{type(self).__name__}: points {first(empty)} have no label but {ignore}, which is none; leave them "
                "out."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Argmax:
        labels = self.labels[index.to(self.labels.device)]
        part = type(self)(labels, self.margin_, axis=self.axis, ignore=self.ignore)
        part.plain = self.plain
        return part

    def __repr__(self) -> str:
        shape = "" if self.labels.ndim == 1 else f" of shape {tuple(self.labels.shape[1:])}"
        return f"{type(self).__name__}({len(self)} labels{shape}, margin={self.margin_:g})"

    def check(self, y: Tensor) -> None:
        axis = axis_of_classes(self.labels, y, self.axis, type(self).__name__) % y.ndim
        self.axis = 1 if axis == 1 else axis - y.ndim
        if len(self) != len(y):
            raise InvalidInput(f"Got {len(self)} labels for {len(y)} inputs.")
        classes = y.shape[self.axis]
        if classes < 2:
            raise InvalidInput(
                "The model has a single output, so there are no classes; use Threshold (yes or no), Near or Linear."
            )
        outside = ((self.labels < 0) | (self.labels >= classes)) & (self.labels != self.ignore)
        bad = torch.nonzero(flat(outside).any(1)).flatten().tolist()
        if bad:
            wrong = self.labels[outside]
            raise InvalidInput(
                f"Labels must lie in 0..{classes - 1} (the model has {classes} classes); "
                f"label {int(wrong[0])} at index {bad[0]} does not"
                + (f", nor do {len(wrong) - 1} others." if len(wrong) > 1 else ".")
                + _advice_on_labels(self.labels, wrong, classes)
            )

    def scores(self, y: Tensor) -> Tensor:
        """Return outputs (n, ...) as (n, positions, classes)."""
        axis = axis_of_classes(self.labels, y, self.axis, type(self).__name__)
        return by_position(y, axis)

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, positions * classes); a class has no condition against itself, or where any will do: +inf there.

        >>> Argmax([1]).slack(torch.tensor([[0.0, 3.0, 1.0]]))
        tensor([[3., inf, 2.]])
        """
        y = self.scores(y)
        labels = self.labels.to(y.device).reshape(len(y), -1, 1)
        free = labels == self.ignore
        labels = torch.where(free, 0, labels)
        slack: Tensor = self.sign * (y.gather(2, labels) - y) - self.margin_
        slack.scatter_(2, labels, torch.inf)
        return torch.where(free & ~y.isnan(), torch.inf, slack).flatten(1)

    def loss(self, y: Tensor, margin: float = 0.0) -> Tensor:
        """Return (n,): the cross-entropy, of -y for `Argmin`; margins are taken off the label's score.

        Over positions it is summed.

        >>> bool(torch.isclose(Argmax([1]).loss(torch.zeros(1, 4)), torch.tensor(4.0).log()))
        True
        """
        behind = (margin - self.slack(y)).reshape(self.scores(y).shape)  # -inf for the label itself
        return torch.cat([torch.zeros_like(behind[..., :1]), behind], 2).logsumexp(2).sum(1)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        axis = axis_of_classes(self.labels, y, self.axis, type(self).__name__)
        rest = [size for k, size in enumerate(y.shape) if k not in (0, axis % y.ndim)]
        classes = y.shape[axis]
        row = torch.zeros(len(point), math.prod(rest), classes, dtype=y.dtype, device=y.device)
        each, place = torch.arange(len(point), device=y.device), condition // classes
        row[each, place, flat(self.labels.to(y.device))[point, place]] = self.sign
        row[each, place, condition % classes] -= self.sign
        return row.reshape(len(point), *rest, classes).movedim(-1, axis)

    def typical_slack(self, y: Tensor) -> float:
        """Return the median distance between the best and the second best class."""
        best = (self.sign * self.scores(y)).topk(2, dim=2).values
        return float((best[..., 0] - best[..., 1]).median())


def axis_of_classes(labels: Tensor, y: Tensor, axis: int | None, what: str) -> int:
    """Return which axis of outputs (n, ...) are the classes that labels (n, ...) number.

    Raises:
        InvalidInput: none, or more than one could be, and no axis was named.
    """
    axes = [axis] if axis is not None else [1] if y.ndim <= 2 else [1, -1]
    found = [k for k in axes if -y.ndim <= k < y.ndim and k % y.ndim and _without(y, k) == tuple(labels.shape[1:])]
    if len(found) == 1 or (len(found) == 2 and y.ndim == 2):
        return found[0]
    if found:
        raise InvalidInput(
            f"{what}: outputs {tuple(y.shape)} with labels {tuple(labels.shape)} may have their classes on axis 1 or "
            f"on the last one. Say which: {what}(labels, axis=1) or {what}(labels, axis=-1)."
        )
    if labels.ndim == 1:
        raise InvalidInput(
            f"{what} needs one score per class, outputs of shape (points, classes); the model returns "
            f"{tuple(y.shape)}. Use Threshold, Near or Linear for other outputs, or a label for every position."
        )
    if labels.shape == y.shape:
        raise InvalidInput(
            f"Labels of the outputs' own shape {tuple(y.shape)} are one answer per output: 1 (above), 0 (below) or -1 "
            f"(free), got {int(labels.max())}. For one class per point, give its number: integers (n,)."
        )
    squeezed = " Labels (n, 1) become (n,) by labels.squeeze(1)." if labels.shape[1:] == (1,) and y.ndim == 2 else ""
    raise InvalidInput(
        f"{what}: labels of shape {tuple(labels.shape)} need scores of shape {tuple(labels.shape[:1])} + (classes,) + "
        f"{tuple(labels.shape[1:])}, or with the classes last; the model returns {tuple(y.shape)}.{squeezed}"
    )


def _without(y: Tensor, axis: int) -> tuple[int, ...]:
    """Return the shape of one point's outputs without an axis."""
    return tuple(size for k, size in enumerate(y.shape) if k not in (0, axis % y.ndim))


def by_position(y: Tensor, axis: int) -> Tensor:
    """Return outputs (n, ...) with classes on an axis as (n, positions, classes).

    >>> by_position(torch.zeros(5, 3, 8, 8), 1).shape
    torch.Size([5, 64, 3])
    """
    moved = y.movedim(axis, -1)
    return moved.reshape(len(y), math.prod(moved.shape[1:-1]), y.shape[axis])  # also of no points


def _advice_on_labels(labels: Tensor, wrong: Tensor, classes: int) -> str:
    """Say what labels that number no class may be meant as."""
    if int(labels.max()) == classes and int(labels.min()) >= 1:
        return " Yours seem to be counted from 1; classes are counted from 0: labels - 1."
    if len(torch.unique(wrong)) == 1 and (int(wrong[0]) in (-1, 255) or labels.ndim > 1):
        return f" Where {int(wrong[0])} stands for no label, say so: Argmax(labels, ignore={int(wrong[0])})."
    return ""


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
        labels = dense(labels, "Threshold: labels", "booleans, or the integers 0, 1 and -1")
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
            raise InvalidInput(f"Threshold: every output of points {first(empty)} is free (-1); leave them out.")
        if not 0 <= margin < float("inf"):
            raise InvalidInput(f"A margin must be a finite number >= 0, got {margin}.")
        threshold = dense(threshold, "Threshold: thresholds", "numbers", torch.float64).cpu().flatten()
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
            number = "labels.squeeze(1)" if self.labels.shape[1:] == (1,) else "labels.long()"
            raise InvalidInput(
                f"Labels of shape {tuple(self.labels.shape)} are about one answer per output, but the model's outputs "
                f"are {tuple(y.shape)}. For one class per point, give its number: integers (n,), such as {number}."
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
        A, b = dense(A, "Linear: A", "a tensor"), dense(b, "Linear: b", "a tensor")
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
        return f"Linear({counted(self.A.shape[1], 'condition')} on each of {counted(len(self), 'point')})"

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
