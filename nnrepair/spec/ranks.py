"""Criteria of the order of outputs: some above others, a class among the k highest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.rounding import counted, first
from nnrepair.spec.criterion import Criterion, flat


class Above(Criterion):
    """One output of a point scores above others by at least `margin` (strictly, when it is 0).

    >>> Above([2], [0]).holds(torch.tensor([[0.0, 5.0, 1.0]]))  # the third above the first, whatever the second is
    tensor([True])

    Args:
        higher: (n,) integers, the output that is to score higher.
        lower: (n,) integers, or (n, k), those that are to score lower; -1 for none.
        margin: in output units.
    """

    def __init__(self, higher: Any, lower: Any, margin: float = 0.0) -> None:
        self.higher, lower = _integers(higher, "Above: higher"), _integers(lower, "Above: lower")
        self.lower = lower[:, None] if lower.ndim == 1 else lower
        if self.higher.ndim != 1 or self.lower.ndim != 2 or len(self.higher) != len(self.lower):
            raise InvalidInput(
                "Above(higher, lower) needs one output (n,) and one or more (n,) or (n, k) of as many points; got "
                f"shapes {tuple(self.higher.shape)} and {tuple(lower.shape)}."
            )
        same = torch.nonzero((self.lower == self.higher[:, None]).any(1)).flatten().tolist()
        none = torch.nonzero((self.lower < 0).all(1)).flatten().tolist()
        if same or none:
            what = "an output is to score above itself" if same else "no output is to score lower"
            raise InvalidInput(f"Above: at points {first(same or none)} {what}.")
        self.margin_, self.strict = _margin(margin), margin == 0

    def __len__(self) -> int:
        return len(self.higher)

    def __getitem__(self, index: Tensor) -> Above:
        index = index.to(self.higher.device)
        return Above(self.higher[index], self.lower[index], self.margin_)

    def __repr__(self) -> str:
        return f"Above({counted(len(self), 'point')}, margin={self.margin_:g})"

    def check(self, y: Tensor) -> None:
        _check_numbers(self.higher, y, "Above")
        _check_numbers(self.lower, y, "Above")

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, k); +inf where `lower` names none."""
        higher, lower, y = self.higher.to(y.device), self.lower.to(y.device), flat(y)
        slack = y.gather(1, higher[:, None]) - y.gather(1, lower.clamp(min=0)) - self.margin_
        return torch.where((lower < 0) & ~slack.isnan(), torch.inf, slack)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        row = torch.zeros(len(point), y[0].numel(), dtype=y.dtype, device=y.device)
        each = torch.arange(len(point), device=y.device)
        row[each, self.higher.to(y.device)[point]] = 1.0
        row[each, self.lower.to(y.device)[point, condition]] -= 1.0
        return row.reshape(len(point), *y.shape[1:])

    def typical_slack(self, y: Tensor) -> float:
        """Return the median distance between two outputs that are compared."""
        slack = self.slack(y) + self.margin_
        return float(slack[torch.isfinite(slack)].abs().median())


class TopK(Criterion):
    """One of some labels is among the `k` highest outputs: fewer than k others score as high.

    >>> TopK([2], 2).holds(torch.tensor([[0.0, 5.0, 1.0]]))
    tensor([True])

    Args:
        labels: (n,) integers, or several for each point: (n, m) with -1 for none, or a list of lists.
        k: how many.
        margin: in output units, above the next one.
    """

    chooses = True

    def __init__(self, labels: Any, k: int, margin: float = 0.0) -> None:
        if isinstance(labels, list | tuple) and any(isinstance(some, list | tuple) for some in labels):
            labels = _padded(labels)
        labels = _integers(labels, "TopK: labels")
        self.labels = labels[:, None] if labels.ndim == 1 else labels
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InvalidInput(f"TopK: k must be a whole number >= 1, got {k!r}.")
        if self.labels.ndim != 2 or bool((self.labels < 0).all(1).any()):
            raise InvalidInput(f"TopK needs at least one label for each point, got shape {tuple(labels.shape)}.")
        self.k, self.margin_, self.strict = k, _margin(margin), margin == 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> TopK:
        return TopK(self.labels[index.to(self.labels.device)], self.k, self.margin_)

    def __repr__(self) -> str:
        return f"TopK({counted(len(self), 'point')}, k={self.k}, margin={self.margin_:g})"

    def check(self, y: Tensor) -> None:
        _check_numbers(self.labels, y, "TopK")
        if self.k >= flat(y).shape[1]:
            raise InvalidInput(
                f"TopK: all of {flat(y).shape[1]} outputs are among the {self.k} highest; give a smaller k."
            )

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, 1): the distance of the best label from the k-th of the others; `resolve` for conditions."""
        return self._each(flat(y)).amax(1, keepdim=True)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        raise InvalidInput("Which outputs may score higher is open: call resolve(y) first.")

    def resolve(self, y: Tensor, group: Tensor | None = None) -> Criterion:
        """Return that the best label is above all but the k - 1 best others, which is one way for it to hold."""
        y = flat(y)
        label = self.labels.to(y.device).gather(1, self._each(y).argmax(1, keepdim=True))
        lower = y.scatter(1, label, -torch.inf).argsort(1, descending=True)[:, self.k - 1 : -1]
        if group is None:
            return Above(label[:, 0], lower, self.margin_)
        chosen = torch.arange(len(y), device=y.device)
        for one in torch.unique(group):
            mine = torch.nonzero(group.to(y.device) == one).flatten()
            ways = [
                Above(label[[w]].expand(len(mine), 1)[:, 0], lower[[w]].expand(len(mine), -1)) for w in mine.tolist()
            ]
            worst = torch.stack([way.margin(y[mine]).min() for way in ways])
            chosen[mine] = mine[worst.argmax()]
        return Above(label[chosen, 0], lower[chosen], self.margin_)

    def typical_slack(self, y: Tensor) -> float:
        """Return the median distance between neighbours in the order of outputs at the k-th."""
        best = flat(y).topk(self.k + 1, 1).values
        return float((best[:, -2] - best[:, -1]).median())

    def _each(self, y: Tensor) -> Tensor:
        """Return (n, m): for every label, its distance from the k-th of the others; -inf for none."""
        labels = self.labels.to(y.device)
        found = []
        for label in labels.clamp(min=0).T[..., None]:
            kth = y.scatter(1, label, -torch.inf).topk(self.k, 1).values[:, -1:]
            found.append(y.gather(1, label) - kth - self.margin_)
        each = torch.cat(found, 1)
        return torch.where((labels < 0) & ~each.isnan(), -torch.inf, each)


def _integers(given: Any, what: str) -> Tensor:
    try:
        found = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidInput(f"{what} must be integers, the numbers of outputs; got {given!r}.") from None
    if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool or found.ndim == 0:
        raise InvalidInput(f"{what} must be integers, one or more per point; got {tuple(found.shape)}, {found.dtype}.")
    return found.long()


def _padded(labels: Sequence[Any]) -> Tensor:
    rows = [list(some) if isinstance(some, list | tuple) else [some] for some in labels]
    width = max(map(len, rows), default=0)
    return _integers([row + [-1] * (width - len(row)) for row in rows], "TopK: labels")


def _margin(margin: float) -> float:
    if not 0 <= margin < float("inf"):
        raise InvalidInput(f"A margin must be a finite number >= 0, got {margin}.")
    return float(margin)


def _check_numbers(numbers: Tensor, y: Tensor, what: str) -> None:
    """Refuse numbers of outputs that the model does not have."""
    if len(numbers) != len(y):
        raise InvalidInput(f"{what} is about {len(numbers)} points, but there are {len(y)} inputs.")
    outputs = flat(y).shape[1]
    bad = numbers[(numbers < -1) | (numbers >= outputs)]
    if len(bad):
        raise InvalidInput(f"{what}: outputs are numbered 0..{outputs - 1}, and {int(bad[0])} is none of them.")
