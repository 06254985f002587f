"""What holds fine-tuning back: penalties that are added to its loss, and bounds that its weights are brought back into.

A penalty is a frozen dataclass of hyper-parameters with one verb, `start`, which returns a `Regularizer`: what it does
while the method runs. That may add to the loss, look at outputs on the locality set, and bring weights back after a
step; a new penalty is one class of each. Penalties compose: losses add up, and every bound here moves weights straight
towards the old ones, so that none of them breaks another's.

With theta the chosen parameters and theta0 their values before this repair (in a sequence: in the last network, so
that bounds and references are those of each step):

* `L2`, `LInf`, `L2Ball`: the size of theta - theta0; they need nothing else.
* `KL`, `EWC`: what the change does on the locality set; they need one.
* `Rewired`, `TopShare`: which way steps go, and in which weights; they need one too.
"""

from __future__ import annotations

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
from nnrepair.jacobian.tangents import gradients
from nnrepair.methods import options
from nnrepair.spec.criteria import flat
from nnrepair.spec.inputs import independent
from nnrepair.spec.kinds import Kind, Regression
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import call_with


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

    def redirect(self, gradient: Weights) -> Weights:
        """Return what is to be stepped along in place of a gradient, by name, before every step."""
        return gradient

    @torch.no_grad()
    def project(self, weights: Weights) -> None:
        """Bring the weights back into a bound, in place, after every step.

        In half precision these are float32 copies; the bound must hold for their roundings.
        """


class Penalty(ABC):
    """Something that holds weights, or what they do, near their old values."""

    needs_locality: ClassVar[bool] = False
    #: Whether it says of single weights where they may go.
    bounds: ClassVar[bool] = False

    @abstractmethod
    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        """Begin a repair.

        Args:
            problem: the task; its locality set is there where the penalty `needs_locality`.
            old: the chosen parameters' values before the repair, by name.
            generator: for every random choice, on the CPU.
        """


@dataclass(frozen=True)
class L2(Penalty):
    """`weight * ||theta - theta0||^2`: small changes all over.

    This is no weight decay, which pulls towards zero instead of the old weights.

    Args:
        weight: loss per squared weight unit; 1e-3 to 10 is the usual range.
    """

    weight: float

    def __post_init__(self) -> None:
        options.number(self, "weight", zero=True, where="L2: ")

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
    bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        options.number(self, "radius", where="LInf: ")

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
    bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        options.number(self, "radius", where="L2Ball: ")

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
        options.number(self, "weight", zero=True, where="KL: ")

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
        options.number(self, "weight", "floor", zero=True, where="EWC: ")
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


@dataclass(frozen=True)
class Rewired(Penalty):
    """Steps that raise no loss on the locality set, to first order.

    After Zhong et al., "Gradient rewiring for editable graph neural network training" (GRE and GRE+, NeurIPS 2024),
    which works for any network. The locality set is split into parts, each with the gradient of its loss before the
    repair, a row of G; the gradient g becomes g + G^T v with the v >= 0 that makes it shortest, so that G (g + G^T v)
    >= 0. One part is GRE, several are GRE+. In the published code the form with one part never projects, and has the
    opposite sign; what is done here is what the paper says. Its factor of the step size is left to `lr`, and optimizers
    other than "sgd" may turn steps once more.

    Args:
        parts: of the locality set, drawn at random.
        points: of each part, at most.
    """

    parts: int = 1
    points: int = 1000
    needs_locality: ClassVar[bool] = True

    def __post_init__(self) -> None:
        options.whole(self, "parts", "points", where="Rewired: ")

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        locality = problem.locality
        assert locality is not None
        held = torch.nonzero(locality.holds).flatten().cpu()
        held = held[torch.randperm(len(held), generator=generator)]
        anchors = []
        leaves = {name: weight.detach().clone().requires_grad_(True) for name, weight in old.items()}
        for index in (part[: self.points].sort().values for part in held.tensor_split(self.parts) if len(part)):
            some = locality.inputs[index]
            loss = locality.criterion[index].loss(call_with(problem.model, dict(leaves), some).double()).mean()
            found = gradients(loss, list(leaves.values()), again=False)
            flat = [torch.zeros_like(w) if g is None else g for w, g in zip(leaves.values(), found, strict=True)]
            anchors.append(torch.cat([g.double().flatten() for g in flat]))
        return _Rewiring(anchors)


class _Rewiring(Regularizer):
    def __init__(self, anchors: Sequence[Tensor]) -> None:
        self.basis: Tensor | None = None
        self.triangle: Tensor | None = None
        if anchors:
            self.basis, self.triangle = torch.linalg.qr(torch.stack(list(anchors), 1))

    @torch.no_grad()
    def redirect(self, gradient: Weights) -> Weights:
        if self.basis is None or self.triangle is None:
            return gradient
        from scipy.optimize import nnls  # slow to import, and rarely needed

        g = torch.cat([part.double().flatten() for part in gradient.values()])
        target = -(self.basis.T @ g).cpu().numpy()
        v, _ = nnls(self.triangle.cpu().numpy(), target)
        turned = g + self.basis @ (self.triangle @ torch.from_numpy(v).to(self.triangle))
        parts = torch.split(turned, [part.numel() for part in gradient.values()])
        return {n: t.reshape(g.shape).to(g.dtype) for (n, g), t in zip(gradient.items(), parts, strict=True)}


@dataclass(frozen=True)
class TopShare(Penalty):
    """Only the weights change that matter most for the edits and least for the locality set.

    They are those of largest |g| / F^1/2, with g the gradient of the first step, and F the diagonal of the Fisher
    information over the locality set. A mask as in Yang et al., "Where to edit vision transformers" (HPRD, NeurIPS
    2024), where a trained network chooses units; this is a cheap stand-in for it, and chooses single weights.

    Args:
        share: of the chosen parameters' weights, how many may change.
        labels, points: for F, as for `EWC`.
    """

    share: float = 0.1
    labels: Labels = "exact"
    points: int | None = None
    needs_locality: ClassVar[bool] = True
    bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        options.number(self, "share", where="TopShare: ")
        if self.share > 1:
            raise InvalidInput(f"TopShare: share is at most 1, got {self.share!r}.")
        EWC(1.0, self.labels, self.points)

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Regularizer:
        fisher = EWC(1.0, self.labels, self.points).start(problem, old, generator)
        assert isinstance(fisher, _Quadratic) and fisher.fisher is not None
        return _Mask(fisher.fisher, self.share, fisher.notes)


class _Mask(Regularizer):
    def __init__(self, fisher: Weights, share: float, notes: Sequence[str]) -> None:
        self.fisher, self.share, self.notes = fisher, share, notes
        self.mask: dict[str, Tensor] = {}

    @torch.no_grad()
    def redirect(self, gradient: Weights) -> Weights:
        if not self.mask:
            scores = {n: g.abs() / self.fisher[n].to(g).sqrt().clamp(min=1e-30) for n, g in gradient.items()}
            every = torch.cat([score.flatten() for score in scores.values()])
            least = every.topk(max(1, int(self.share * every.numel()))).values[-1]
            self.mask = {n: (score >= least) & (score > 0) for n, score in scores.items()}
        return {n: g * self.mask[n] for n, g in gradient.items()}
