"""What holds fine-tuning back: penalties that are added to its loss, and bounds that its weights are brought back into.

A penalty is a frozen dataclass of hyper-parameters with one verb, `start`, which returns a `Regularizer`: what it does
while the method runs. That may add to the loss, look at outputs on the locality set, and bring weights back after a
step; a new penalty is one class of each. Penalties compose: losses add up, and every bound here moves weights straight
towards the old ones, so that none of them breaks another's.

With theta the chosen parameters and theta0 their values before this repair (in a sequence: in the last network, so
that bounds and references are those of each step):

* `L2`, `LInf`, `L2Ball`: the size of theta - theta0; they need nothing else.
* `KL`, `EWC`: what the change does on the locality set; they need one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.jacobian.fisher import Labels as Labels
from nnrepair.jacobian.fisher import Weights, at_least_float, known_labels
from nnrepair.jacobian.fisher import fisher_diagonal as fisher_diagonal
from nnrepair.spec.criteria import flat
from nnrepair.spec.inputs import independent
from nnrepair.spec.kinds import Kind, Regression
from nnrepair.spec.problem import Problem


class Regularizer:
    """A penalty at work on one repair. What a subclass does not override, it does not do."""

    #: Whether `loss` looks at outputs on the locality set.
    watches: bool = False
    #: Sentences for the report: what was left out, or not exact.
    notes: Sequence[str] = ()

    def loss(self, weights: Weights, y: Tensor | None, index: Tensor | None) -> Tensor | None:
        """Return a number to add to the loss, or None.

        Args:
            weights: the chosen parameters by name, in the model's dtype, with gradients.
            y: where `watches`, (k, ...) float64 outputs with gradients at the locality points `index` (k,).
            index: see y.
        """
        return None

    @torch.no_grad()
    def project(self, weights: Weights) -> None:
        """Bring the weights back into a bound, in place, after every step.

        In half precision these are float32 copies; the bound must hold for their roundings.
        """


class Penalty(ABC):
    """Something that holds weights, or what they do, near their old values."""

    needs_locality: ClassVar[bool] = False

    @abstractmethod
    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        """Begin a repair.

        Args:
            problem: the task; its locality set is there where the penalty `needs_locality`.
            old: the chosen parameters' values before the repair, by name.
            generator: for every random choice, on the CPU.
        """


def _positive(value: float, what: str, *, zero: bool) -> None:
    good = isinstance(value, (int, float)) and math.isfinite(value) and (value >= 0 if zero else value > 0)
    if not good:
        raise InvalidInput(f"{what} must be a finite number {'>=' if zero else '>'} 0, got {value!r}.")


@dataclass(frozen=True)
class L2(Penalty):
    """`weight * ||theta - theta0||^2`: small changes all over.

    This is no weight decay, which pulls towards zero instead of the old weights.

    Args:
        weight: loss per squared weight unit; 1e-3 to 10 is the usual range.
    """

    weight: float

    def __post_init__(self) -> None:
        _positive(self.weight, "L2: weight", zero=True)

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        return _Quadratic(old, self.weight, None)


class _Quadratic(Regularizer):
    """`weight * sum F (theta - theta0)^2`, with F = 1 where none is given."""

    def __init__(self, old: Weights, weight: float, fisher: Weights | None) -> None:
        self.old, self.weight, self.fisher = old, weight, fisher

    def loss(self, weights: Weights, y: Tensor | None, index: Tensor | None) -> Tensor | None:
        terms = []
        for name, weight in weights.items():
            square = (at_least_float(weight) - at_least_float(self.old[name])).square()
            terms.append((square if self.fisher is None else self.fisher[name] * square).sum())
        return self.weight * torch.stack(terms).sum()


@dataclass(frozen=True)
class LInf(Penalty):
    """No weight moves by more than `radius`: after every step, weights are clamped to [theta0 - r, theta0 + r].

    After Zhu et al., "Modifying memories in transformer models" (2020). The bound is exact: it holds for the real
    numbers that the weights stand for, in every dtype, because its ends are rounded inwards.

    Args:
        radius: in weight units, or with `relative` as a share of each parameter's root mean square.
        relative: the size of weights differs between layers and models; 0.01 to 0.1 of it is the usual range. A
            parameter that is zero throughout cannot move then.
    """

    radius: float
    relative: bool = False

    def __post_init__(self) -> None:
        _positive(self.radius, "LInf: radius", zero=False)

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        return _Box({name: (weight, self.radius * self._unit(weight)) for name, weight in old.items()})

    def _unit(self, weight: Tensor) -> float:
        return float(weight.double().square().mean().sqrt()) if self.relative else 1.0


class _Box(Regularizer):
    def __init__(self, old: Mapping[str, tuple[Tensor, float]]) -> None:
        self.ends = {name: (_end(w, -radius), _end(w, radius)) for name, (w, radius) in old.items()}

    @torch.no_grad()
    def project(self, weights: Weights) -> None:
        for name, weight in weights.items():
            low, high = self.ends[name]
            weight.clamp_(low.to(weight.dtype), high.to(weight.dtype))


def _end(old: Tensor, radius: float) -> Tensor:
    """Return the number of old's dtype that is farthest from old in the radius's direction, but not beyond it."""
    end = (old.double() + radius).to(old.dtype)
    while bool((beyond := _beyond(old, end, abs(radius))).any()):
        end = torch.where(beyond, torch.nextafter(end, old), end)
    return end


def _beyond(old: Tensor, end: Tensor, radius: float) -> Tensor:
    """Whether |end - old| > radius, as real numbers."""
    a, b = end.double(), old.double()
    gap = a - b
    moved = gap - a
    rest = (a - (gap - moved)) - (b + moved)  # Knuth's two-sum: gap + rest is end - old exactly
    size, rest = gap.abs(), torch.where(gap < 0, -rest, rest)
    return (size > radius) | ((size == radius) & (rest > 0))


@dataclass(frozen=True)
class L2Ball(Penalty):
    """`||theta - theta0||_2 <= radius` over all chosen parameters together: a longer change is scaled after every step.

    The L2 form of `LInf`'s paper. The bound holds for the weights as they are rounded to the model's dtype.

    Args:
        radius: in weight units.
    """

    radius: float

    def __post_init__(self) -> None:
        _positive(self.radius, "L2Ball: radius", zero=False)

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        return _Ball(old, self.radius)


class _Ball(Regularizer):
    def __init__(self, old: Weights, radius: float) -> None:
        self.old, self.radius = old, radius

    @torch.no_grad()
    def project(self, weights: Weights) -> None:
        size = self._size(weights)
        if not size > self.radius:
            return
        before = {name: weight.clone() for name, weight in weights.items()}
        share, cut = self.radius / size, 2.0**-40
        while self._size(weights) > self.radius:  # rounding to the dtype may lead out again: cut a little more
            share, cut = share * max(0.0, 1 - cut), 2 * cut
            for name, weight in weights.items():
                weight.copy_(between(self.old[name], before[name], share))

    def _size(self, weights: Weights) -> float:
        """Return the length of the change of the weights as the model will have them."""
        squares = [(w.to(self.old[n].dtype).double() - self.old[n].double()).square().sum() for n, w in weights.items()]
        return float(torch.stack(squares).sum().sqrt())


def between(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Return old + share (new - old) in new's dtype, never outside of the interval between the two."""
    a, b = old.double(), new.double()
    between = (a + share * (b - a)).clamp(torch.minimum(a, b), torch.maximum(a, b))
    return between.to(new.dtype)  # rounding is monotone, so it cannot leave the interval either


@dataclass(frozen=True)
class KL(Penalty):
    """`weight * mean KL(p0 || p)` on the locality set, p0 being the old model's distribution there.

    After the locality loss of Mitchell et al., "Fast model editing at scale" (MEND, 2022), whose fine-tuning baseline
    weighs the edits by 0.01 against it, which is `weight=100` here. p0 is computed once. p is the softmax over classes
    (of -y where the lowest score wins), or for yes-or-no answers the coins sigmoid(y - threshold), one per output,
    whose divergences add up. Where outputs are plain numbers, the penalty is `weight` times their mean squared
    difference to the old ones.

    Args:
        weight: loss per nat (or per squared output unit); 1 to 100 is the usual range.
    """

    weight: float
    needs_locality: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive(self.weight, "KL: weight", zero=True)

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        assert problem.locality is not None
        return _Divergence(self.weight * _per_nat(problem), problem.kind, problem.before.double())


def _per_nat(problem: Problem) -> float:
    """Return what a nat counts: 1; numbers count by their mean square, so that images and single ones weigh alike."""
    if not isinstance(problem.kind, Regression):
        return 1.0
    return 2 / flat(problem.answers).shape[1]


class _Divergence(Regularizer):
    watches = True

    def __init__(self, weight: float, kind: Kind, old: Tensor) -> None:
        self.weight, self.kind, self.old = weight, kind, old

    def loss(self, weights: Weights, y: Tensor | None, index: Tensor | None) -> Tensor | None:
        assert y is not None and index is not None
        return self.weight * self.kind.divergence(self.old[index.to(self.old.device)], y).mean()


@dataclass(frozen=True)
class EWC(Penalty):
    """`weight / 2 * sum (F + floor)(theta - theta0)^2`: weights that matter on the locality set stay.

    Elastic weight consolidation, Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (2017). F
    is the diagonal of the Fisher information over the locality set, from squared gradients point by point (see
    `fisher_diagonal`), of what the outputs stand for: classes, yes-or-no answers, or plain numbers. Some published
    baselines square the gradient of a batch instead, which makes F smaller by about the batch size, or take F over the
    edits; neither is done here.

    Args:
        weight: loss per nat (per squared output unit for numbers): up to what F leaves out beside its diagonal, this is
            to second order `KL` with the same weight.
        labels: how the expectation over labels in F is taken: "exact", "sampled" or "empirical".
        points: at most this many points of the locality set, drawn at random; None takes 1000, and 100 where points
            depend on each other (a graph), where each of them costs as much as all.
        floor: added to F, as a share of F's mean: a weight that matters on no point (behind a dead ReLU) would be free
            to go anywhere.
    """

    weight: float
    labels: Labels = "exact"
    points: int | None = None
    floor: float = 1e-3
    needs_locality: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive(self.weight, "EWC: weight", zero=True)
        _positive(self.floor, "EWC: floor", zero=True)
        known_labels(self.labels)
        if self.points is not None and (not isinstance(self.points, int) or self.points < 1):
            raise InvalidInput(f"EWC: points must be an integer >= 1 or None, got {self.points!r}.")

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        locality = problem.locality
        assert locality is not None
        given = locality.points.criterion
        targets = None if given is None else problem.kind.labels(given)
        if self.labels == "empirical" and targets is None:
            raise InvalidInput(
                'EWC(labels="empirical") needs labels beside the locality set\'s inputs; give them, or choose '
                'labels="exact".'
            )
        most = self.points or (1000 if independent(locality.inputs) else 100)
        fisher = problem.once(
            ("EWC", self.labels, most, problem.seed, tuple(old)),
            lambda: fisher_diagonal(
                problem.model,
                list(old),
                locality.inputs,
                kind=problem.kind,
                labels=self.labels,
                targets=targets if self.labels == "empirical" else None,
                points=most,
                generator=torch.Generator().manual_seed(problem.seed),
            ),
        )
        mean = sum(float(f.double().sum()) for f in fisher.values()) / sum(f.numel() for f in fisher.values())
        importance = {name: f + self.floor * mean for name, f in fisher.items()}
        regularizer = _Quadratic(old, self.weight / 2 * _per_nat(problem), importance)
        if len(locality) > most:
            regularizer.notes = [f"EWC: Fisher information of {most} of {len(locality)} points of the locality set."]
        return regularizer
