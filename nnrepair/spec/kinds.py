"""What a network's outputs stand for: one class per point, a yes-or-no answer per output, or plain numbers.

What a decision is, what keeping a point means, and how far two outputs are apart all follow from it. Criteria say which
kind it is (`kind_of`); a network itself does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nnrepair.spec.criteria import (
    Argmax,
    Argmin,
    Between,
    Criterion,
    Near,
    Threshold,
    by_position,
    flat,
)
from nnrepair.spec.ranks import Above, TopK


class Kind(ABC):
    """How outputs `y` (n, ...) are read.

    Outputs stand for a distribution of labels. `divergence` is its Kullback-Leibler divergence, whose curvature is the
    Fisher information F: for a small change d of one point's flat outputs, 1/2 d^T F d. `root` and `score` give F as
    a sum and as an expectation.
    """

    #: Whether outputs stand for decisions; without, there is nothing but their size.
    decides: bool = True

    @abstractmethod
    def decide(self, y: Tensor) -> Tensor:
        """Return (n, decisions): what the outputs decide."""

    @abstractmethod
    def unchanged(self, y: Tensor, tol: float) -> Criterion:
        """Return the criterion of the same decisions; where there are none, of outputs within `tol`."""

    @abstractmethod
    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        """Return (n,): the divergence of the new distribution from the old one, in nats."""

    @abstractmethod
    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return labels (n, ...) drawn from the distribution, on the CPU."""

    @abstractmethod
    def score(self, y: Tensor, labels: Tensor) -> Tensor:
        """Return (n, outputs): the gradient of a label's log-probability at the outputs."""

    @abstractmethod
    def root(self, y: Tensor, most: int) -> Tensor | None:
        """Return (n, k, outputs): for every point k <= most rows r, with sum_k r^T r = F.

        Of more classes than `most`, the most probable ones, which leaves F a little too small; None where no `most`
        terms come close to the sum.
        """

    @abstractmethod
    def labels(self, criterion: Criterion) -> Tensor | None:
        """Return the labels (n, ...) that a criterion names, as `score` takes them, or None."""


@dataclass(frozen=True)
class Classes(Kind):
    """One score per class, at every position; the highest wins (the lowest, for `Argmin`): softmaxes, independent.

    >>> Classes().decide(torch.tensor([[0.0, 2.0]]))
    tensor([[1]])

    Args:
        lowest_wins: the lowest score wins; the softmax is that of -y.
        axis: of the outputs, the classes.
    """

    lowest_wins: bool = False
    axis: int = 1

    @property
    def _sign(self) -> float:
        return -1.0 if self.lowest_wins else 1.0

    def _scores(self, y: Tensor) -> Tensor:
        """Return (n, positions, classes), of which the highest wins."""
        return self._sign * by_position(y, self.axis)

    def _back(self, rows: Tensor, y: Tensor) -> Tensor:
        """Return (..., positions, classes) in the order of flat outputs: (..., outputs)."""
        if y.ndim == 2:
            return rows.flatten(-2)
        shape = list(y.movedim(self.axis, -1).shape[1:])
        lead = rows.shape[:-2]
        axis = self.axis - 1 + len(lead) if self.axis > 0 else self.axis
        return rows.reshape(*lead, *shape).movedim(-1, axis).flatten(len(lead))

    def decide(self, y: Tensor) -> Tensor:
        return self._scores(y).argmax(2)

    def unchanged(self, y: Tensor, tol: float) -> Criterion:
        labels = self.decide(y).reshape(y.movedim(self.axis, -1).shape[:-1])
        return (Argmin if self.lowest_wins else Argmax)(labels, axis=self.axis)

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        before, after = (F.log_softmax(self._scores(y), 2) for y in (old, new))
        return F.kl_div(after, before, reduction="none", log_target=True).sum((1, 2))

    def _p(self, y: Tensor) -> Tensor:
        return F.softmax(self._scores(y.double()), 2)

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        p = self._p(y).cpu()
        drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator)[:, 0]
        return drawn.reshape(y.movedim(self.axis, -1).shape[:-1])

    def score(self, y: Tensor, labels: Tensor) -> Tensor:
        p = self._p(y)
        labels = labels.to(y.device).reshape(p.shape[:2])
        found = self._sign * (F.one_hot(labels.clamp(min=0), p.shape[2]) - p)
        return self._back(torch.where(labels[..., None] < 0, 0.0, found), y)

    def root(self, y: Tensor, most: int) -> Tensor | None:
        p = self._p(y)
        positions, classes = p.shape[1:]
        if positions > 1 and positions * classes > most:
            return None
        share, label = p.topk(min(classes, most), 2)
        rows = self._sign * share.sqrt()[..., None] * (F.one_hot(label, classes) - p[:, :, None])
        apart = rows.new_zeros(len(p), positions, rows.shape[2], positions, classes)
        each = torch.arange(positions, device=y.device)
        apart[:, each, :, each] = rows.movedim(1, 0)
        return self._back(apart.flatten(1, 2), y)

    def labels(self, criterion: Criterion) -> Tensor | None:
        return criterion.labels if isinstance(criterion, Argmax) else None


@dataclass(frozen=True, eq=False)
class Binary(Kind):
    """One yes-or-no answer per output: yes above the threshold. Each is a coin with P(yes) = sigmoid(y - threshold).

    >>> Binary().decide(torch.tensor([0.5, -0.5]))
    tensor([[ True],
            [False]])

    Args:
        threshold: (1,) or (outputs,).
        numbers: (outputs,) bool, outputs that are no answers but numbers, as in `Regression` (another part of the
            criterion bounds them); None where all are answers.
    """

    threshold: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    numbers: Tensor | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binary) and torch.equal(self.threshold, other.threshold)

    def __hash__(self) -> int:
        return hash(tuple(self.threshold.tolist()))

    def _logits(self, y: Tensor) -> Tensor:
        return flat(y) - self.threshold.to(flat(y))

    def answers(self, y: Tensor) -> Tensor:
        """Return (outputs,) bool: which outputs are answers."""
        if self.numbers is None:
            return torch.ones(flat(y).shape[1], dtype=torch.bool, device=y.device)
        return ~self.numbers.to(y.device)

    def decide(self, y: Tensor) -> Tensor:
        return (self._logits(y) > 0)[:, self.answers(y)]

    def unchanged(self, y: Tensor, tol: float) -> Criterion:
        labels = torch.where(self.answers(y), (self._logits(y) > 0).long(), -1)
        return Threshold(labels.reshape(y.shape), self.threshold)

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        before, after = self._logits(old), self._logits(new)
        yes, no = (torch.sigmoid(s * before) * (F.logsigmoid(s * before) - F.logsigmoid(s * after)) for s in (1, -1))
        return torch.where(self.answers(old), yes + no, (after - before).square() / 2).sum(1)

    def _p(self, y: Tensor) -> Tensor:
        return torch.sigmoid(self._logits(y.double()))

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        coins = torch.bernoulli(self._p(y).cpu(), generator=generator)
        return coins if self.numbers is None else torch.where(self.numbers, Regression().sample(y, generator), coins)

    def score(self, y: Tensor, labels: Tensor) -> Tensor:
        given = flat(labels.to(y.device)).double()
        coins = torch.where(given < 0, 0.0, given - self._p(y))
        return torch.where(self.answers(y), coins, given - flat(y))

    def root(self, y: Tensor, most: int) -> Tensor | None:
        p = self._p(y)
        size = torch.where(self.answers(y), (p * (1 - p)).sqrt(), 1.0)
        return None if p.shape[1] > most else torch.diag_embed(size)

    def labels(self, criterion: Criterion) -> Tensor | None:
        return criterion.labels if isinstance(criterion, Threshold) else None


@dataclass(frozen=True)
class Regression(Kind):
    """Plain numbers, each a normal distribution around the output with standard deviation 1, in output units.

    There are no decisions. The divergence is half the squared distance, and F is the identity.
    """

    decides = False

    def decide(self, y: Tensor) -> Tensor:
        return flat(y)[:, :0]

    def unchanged(self, y: Tensor, tol: float) -> Criterion:
        return Near(y, tol)

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        return flat(new - old).square().sum(1) / 2

    def sample(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return flat(y).double().cpu() + torch.randn(flat(y).shape, generator=generator, dtype=torch.float64)

    def score(self, y: Tensor, labels: Tensor) -> Tensor:
        return flat(labels.to(y.device)).double() - flat(y).double()

    def root(self, y: Tensor, most: int) -> Tensor | None:
        size = flat(y).shape[1]
        return None if size > most else torch.eye(size, dtype=torch.float64, device=y.device).expand(len(y), -1, -1)

    def labels(self, criterion: Criterion) -> Tensor | None:
        return criterion.target if isinstance(criterion, Near) else None


def leaves(criterion: Criterion) -> Iterator[Criterion]:
    """Yield the criteria that a joined criterion is made of."""
    parts = getattr(criterion, "parts", None)
    if parts is None:
        yield criterion
    else:
        for part in parts:
            yield from leaves(part)


def kind_of(*criteria: Criterion | None) -> Kind:
    """Return the kind of the outputs that criteria speak of: of the first one with decisions, else plain numbers.

    Of a criterion that joins several, the first part with decisions decides.

    >>> kind_of(Near(torch.zeros(1, 3), 0.1), Argmin([2]))
    Classes(lowest_wins=True, axis=1)
    """
    for criterion in criteria:
        parts = [] if criterion is None else list(leaves(criterion))
        for part in parts:
            if isinstance(part, Argmax):
                lowest = all(isinstance(p, Argmin) for p in parts if isinstance(p, Argmax))
                return Classes(lowest, 1 if part.axis is None else part.axis)
            if isinstance(part, Above | TopK):
                return Classes()
            if isinstance(part, Threshold):
                return Binary(part.threshold, _numbers(parts))
    return Regression()


def _numbers(parts: list[Criterion]) -> Tensor | None:
    """Return (outputs,) bool: which outputs are bounded as numbers and have no label; None where none is."""
    answered = [(flat(p.labels) >= 0).any(0).cpu() for p in parts if isinstance(p, Threshold)]
    bounded = [torch.isfinite(flat(p.tol)).any(0).cpu() for p in parts if isinstance(p, Near)]
    labels = next(p.labels for p in parts if isinstance(p, Threshold))
    for part in parts:
        if isinstance(part, Between):
            low, high = part.bounds(torch.zeros(len(part), *labels.shape[1:]))
            bounded.append((torch.isfinite(low) | torch.isfinite(high)).any(0).cpu())
    if not bounded:
        return None
    numbers = torch.stack(bounded).any(0) & ~torch.stack(answered).any(0)
    return numbers if bool(numbers.any()) else None


def is_mixed(criterion: Criterion) -> bool:
    """Whether a criterion asks for decisions and bounds outputs as numbers too."""
    return len({isinstance(part, Argmax | Threshold | Above | TopK) for part in leaves(criterion)}) == 2
