"""What an output must satisfy: linear conditions on each point's output, joined by *and* and *or*.

A criterion belongs to a batch of points. It answers three questions about the batch's outputs: which points hold
(`holds`), by how much (`slack`), and with which gradient (`rows`). The last two are all that a linear program needs:
condition r of point i is `A[i, r] . y[i] >= b[i, r]`, its slack is `A[i, r] . y[i] - b[i, r]`, and `rows` returns
chosen A[i, r] without ever building the whole array, so a thousand classes cost no more than the rows in use.
Gradient descent asks a fourth: one number per point to lower (`loss`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnrepair.errors import InvalidInput


def flat(y: Tensor) -> Tensor:
    """Return outputs of any shape (n, ...) as (n, outputs)."""
    return y.flatten(1) if y.ndim > 1 else y[:, None]


class Criterion(ABC):
    """Conditions on the outputs `y` of n points, shape (n, ...)."""

    #: Whether a slack of exactly zero fails (a tie between two classes is no decision).
    strict: bool = False
    #: Whether it was made from labels alone, which a model with a single output may read otherwise (`problem.fitted`).
    plain: bool = False
    #: Whether it is a disjunction, of which `resolve` takes a branch.
    chooses: bool = False
    #: How many classes its labels number, where they are a data set's own and that says it.
    numbered: int | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of points."""

    @abstractmethod
    def __getitem__(self, index: Tensor) -> Criterion:
        """Return the criterion of the points `index` (int64 or bool tensor)."""

    @abstractmethod
    def slack(self, y: Tensor) -> Tensor:
        """Return (n, conditions): how far each condition is from failing, negative where it fails."""

    @abstractmethod
    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        """Return (k, ...): the gradient of each chosen slack with respect to its point's output."""

    @abstractmethod
    def check(self, y: Tensor) -> None:
        """Raise InvalidInput unless outputs of y's shape can be judged by this criterion."""

    def loss(self, y: Tensor, margin: float = 0.0) -> Tensor:
        """Return (n,): what gradient descent lowers until the conditions hold, here the sum of what each one misses.

        Args:
            y: (n, ...) outputs, through which gradients flow.
            margin: aim for slacks of at least this, in output units.
        """
        return F.relu(margin - flat(self.slack(y))).sum(1)

    def resolve(self, y: Tensor, group: Tensor | None = None) -> Criterion:
        """Return a criterion without *or* that implies this one, choosing the branch that is nearest at `y`.

        Args:
            y: (n, ...) outputs.
            group: (n,) integers; points of one group take the same branch, whose worst point is the nearest to holding.
        """
        return self

    def margin(self, y: Tensor) -> Tensor:
        """Return (n,): the smallest slack of each point."""
        return flat(self.slack(y)).amin(1)

    def holds(self, y: Tensor) -> Tensor:
        """Return (n,) bool: which points satisfy every condition. NaN never holds."""
        margin = self.margin(y)
        return margin > 0 if self.strict else margin >= 0

    def measures(self, y: Tensor) -> dict[str, float]:
        """Return how well outputs (n, ...) meet it as numbers, by name; nothing where it asks for decisions."""
        return {}

    def typical_slack(self, y: Tensor) -> float:
        """Return the size of a comfortable slack in output units, from which default margins are taken."""
        slack = self.slack(y)
        slack = slack[torch.isfinite(slack)].abs()
        return float(slack.median()) * 0.1 if slack.numel() else 0.0

    def __and__(self, other: Criterion) -> AllOf:
        return AllOf(self, other)

    def __or__(self, other: Criterion) -> AnyOf:
        return AnyOf(self, other)


class _Joined(Criterion):
    def __init__(self, *parts: Criterion) -> None:
        if not parts or len({len(p) for p in parts}) != 1:
            sizes = [len(p) for p in parts]
            raise InvalidInput(f"{type(self).__name__} joins criteria of equally many points, got {sizes}.")
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: Tensor) -> Criterion:
        return type(self)(*(p[index] for p in self.parts))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    def check(self, y: Tensor) -> None:
        for part in self.parts:
            part.check(y)

    def typical_slack(self, y: Tensor) -> float:
        return min(p.typical_slack(y) for p in self.parts)


class AllOf(_Joined):
    """Every part holds (`a & b`)."""

    def holds(self, y: Tensor) -> Tensor:
        return torch.stack([p.holds(y) for p in self.parts]).all(0)

    def slack(self, y: Tensor) -> Tensor:
        return torch.cat([p.slack(y) for p in self.parts], 1)

    def loss(self, y: Tensor, margin: float = 0.0) -> Tensor:
        """Return (n,): the sum over the parts."""
        return torch.stack([p.loss(y, margin) for p in self.parts]).sum(0)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        row = torch.zeros(len(point), *y.shape[1:], dtype=y.dtype, device=y.device)
        start = 0
        for part in self.parts:
            width = part.slack(y[:1].expand(len(part), *y.shape[1:])).shape[1]
            mine = (condition >= start) & (condition < start + width)
            if mine.any():
                row[mine] = part.rows(point[mine], condition[mine] - start, y)
            start += width
        return row

    def measures(self, y: Tensor) -> dict[str, float]:
        return {name: value for part in self.parts for name, value in part.measures(y).items()}

    def resolve(self, y: Tensor, group: Tensor | None = None) -> Criterion:
        return AllOf(*(p.resolve(y, group) for p in self.parts))


class AnyOf(_Joined):
    """At least one part holds (`a | b`). A linear program takes, per point, the part that is nearest to holding."""

    chooses = True

    def margin(self, y: Tensor) -> Tensor:
        return torch.stack([p.margin(y) for p in self.parts]).amax(0)

    def holds(self, y: Tensor) -> Tensor:
        return torch.stack([p.holds(y) for p in self.parts]).any(0)

    def slack(self, y: Tensor) -> Tensor:
        """Return (n, 1): the margin of the nearest part; `resolve` first to see its single conditions."""
        return self.margin(y)[:, None]

    def loss(self, y: Tensor, margin: float = 0.0) -> Tensor:
        """Return (n,): the smallest among the parts, so that each point follows one of them."""
        return torch.stack([p.loss(y, margin) for p in self.parts]).amin(0)

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        raise InvalidInput("A disjunction has no single gradient: call resolve(y) first.")

    def resolve(self, y: Tensor, group: Tensor | None = None) -> Criterion:
        parts = [p.resolve(y, group) for p in self.parts]
        margin = torch.stack([p.margin(y) for p in parts])
        if group is None:
            return Chosen(parts, margin.argmax(0))
        group = group.to(y.device)
        worst = margin.new_full((len(parts), int(group.max()) + 1), torch.inf)
        worst.scatter_reduce_(1, group.expand_as(margin), margin, "amin")
        return Chosen(parts, worst.argmax(0)[group])


class Chosen(Criterion):
    """Of several criteria, the one named for each point (what a disjunction becomes once it is decided)."""

    chooses = True

    def __init__(self, parts: Sequence[Criterion], choice: Tensor) -> None:
        self.parts, self.choice = list(parts), choice

    def __len__(self) -> int:
        return len(self.choice)

    def __getitem__(self, index: Tensor) -> Criterion:
        return Chosen([p[index] for p in self.parts], self.choice[index])

    def check(self, y: Tensor) -> None:
        for part in self.parts:
            part.check(y)

    def typical_slack(self, y: Tensor) -> float:
        return min(p.typical_slack(y) for p in self.parts)

    def slack(self, y: Tensor) -> Tensor:
        slacks = [p.slack(y) for p in self.parts]
        out = y.new_full((len(self), max(s.shape[1] for s in slacks)), torch.inf)
        for k, slack in enumerate(slacks):
            mine = self.choice.to(y.device) == k
            out[mine, : slack.shape[1]] = slack[mine]
        return out

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        row = torch.zeros(len(point), *y.shape[1:], dtype=y.dtype, device=y.device)
        choice = self.choice.to(point.device)[point]
        for k, part in enumerate(self.parts):
            mine = choice == k
            if mine.any():
                row[mine] = part.rows(point[mine], condition[mine], y)
        return row

    def holds(self, y: Tensor) -> Tensor:
        each = torch.stack([p.holds(y) for p in self.parts])
        return each.gather(0, self.choice.to(y.device)[None])[0]

    def loss(self, y: Tensor, margin: float = 0.0) -> Tensor:
        """Return (n,): the chosen part's loss."""
        each = torch.stack([p.loss(y, margin) for p in self.parts])
        return each.gather(0, self.choice.to(y.device)[None])[0]
