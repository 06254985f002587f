"""What holds fine-tuning back: penalties that are added to its loss, and bounds that its weights are brought back into.

A penalty is a frozen dataclass of hyper-parameters with one verb, `start`, which returns a `Pull`: what it does while
the method runs. A pull may add to the loss, look at outputs on the locality set, and bring weights back after a step; a
new penalty is one class of each. Penalties compose: losses add up, and every bound here moves weights straight towards
the old ones, so that none of them breaks another's.

With theta the chosen parameters and theta0 their values before this repair (in a sequence: in the last network, so
that bounds and references are those of each step):

* `L2`, `LInf`, `L2Ball`: the size of theta - theta0; they need nothing else.
* `KL`, `EWC`: what the change does on the locality set; they need one.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrepair import layers
from nnrepair.criteria import Argmax
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.forward import call_with, gradients
from nnrepair.problem import Problem, outputs
from nnrepair.spec import AnyInputs

#: "exact" sums over at most this many classes, each point's most probable ones.
MOST_CLASSES = 100
#: Numbers in the per-sample gradients that are held at once.
MOST_NUMBERS = 2**24

Labels = Literal["exact", "sampled", "empirical"]
Weights = Mapping[str, Tensor]


class Pull:
    """A penalty at work on one repair. What a subclass does not override, it does not do."""

    #: Whether `loss` looks at outputs on the locality set.
    watches: bool = False

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
    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Pull:
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

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Pull:
        return _Quadratic(old, self.weight, None)


class _Quadratic(Pull):
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

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Pull:
        return _Box({name: (weight, self.radius * self._unit(weight)) for name, weight in old.items()})

    def _unit(self, weight: Tensor) -> float:
        return float(weight.double().square().mean().sqrt()) if self.relative else 1.0


class _Box(Pull):
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

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Pull:
        return _Ball(old, self.radius)


class _Ball(Pull):
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
    weighs the edits by 0.01 against it, which is `weight=100` here. p0 is computed once. Where the lowest score wins, p
    is the softmax of -y; where the edits speak of no classes, the penalty is `weight` times the mean squared
    difference to the old outputs.

    Args:
        weight: loss per nat (or per squared output unit); 1 to 100 is the usual range.
    """

    weight: float
    needs_locality: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive(self.weight, "KL: weight", zero=True)

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Pull:
        assert problem.locality is not None
        y = outputs(problem.model, problem.locality.inputs).double()
        return _Divergence(self.weight, y, (-1.0 if problem.lowest else 1.0) if problem.classifies else None)


class _Divergence(Pull):
    watches = True

    def __init__(self, weight: float, y: Tensor, sign: float | None) -> None:
        self.weight, self.sign = weight, sign
        self.old = y if sign is None else F.log_softmax(sign * y, 1)

    def loss(self, weights: Weights, y: Tensor | None, index: Tensor | None) -> Tensor | None:
        assert y is not None and index is not None
        old = self.old[index.to(self.old.device)]
        if self.sign is None:
            return self.weight * F.mse_loss(y, old)
        new = F.log_softmax(self.sign * y, 1)
        return self.weight * F.kl_div(new, old, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class EWC(Penalty):
    """`weight / 2 * sum (F + floor)(theta - theta0)^2`: weights that matter on the locality set stay.

    Elastic weight consolidation, Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (2017). F
    is the diagonal of the Fisher information over the locality set, from squared gradients point by point (see
    `fisher_diagonal`). Some published baselines square the gradient of a batch instead, which makes F smaller by about
    the batch size, or take F over the edits; neither is done here.

    Args:
        weight: loss per nat: up to what F leaves out beside its diagonal, this is to second order `KL` with the same
            weight.
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
        _known_labels(self.labels)
        if self.points is not None and (not isinstance(self.points, int) or self.points < 1):
            raise InvalidInput(f"EWC: points must be an integer >= 1 or None, got {self.points!r}.")

    def start(self, problem: Problem, old: Weights, generator: torch.Generator) -> Pull:
        locality = problem.locality
        assert locality is not None
        if not problem.classifies:
            raise InvalidInput(
                "EWC needs a distribution over classes, but these edits are no classification "
                f"({problem.edits.criterion!r}). Use KL, which compares outputs there, or L2."
            )
        targets = locality.criterion.labels if isinstance(locality.criterion, Argmax) else None
        if self.labels == "empirical" and targets is None:
            raise InvalidInput(
                'EWC(labels="empirical") needs labels beside the locality set\'s inputs; give them, or choose '
                'labels="exact".'
            )
        alone = isinstance(locality.inputs, Tensor) or locality.inputs.independent
        fisher = fisher_diagonal(
            problem.model,
            list(old),
            locality.inputs,
            labels=self.labels,
            targets=targets if self.labels == "empirical" else None,
            lowest=problem.lowest,
            points=self.points or (1000 if alone else 100),
            generator=generator,
        )
        mean = sum(float(f.double().sum()) for f in fisher.values()) / sum(f.numel() for f in fisher.values())
        return _Quadratic(old, self.weight / 2, {name: f + self.floor * mean for name, f in fisher.items()})


def fisher_diagonal(
    model: nn.Module,
    names: str | Sequence[str],
    inputs: AnyInputs,
    *,
    labels: Labels = "exact",
    targets: Tensor | None = None,
    lowest: bool = False,
    points: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal of a classifier's Fisher information, by parameter name.

    `F_i = 1/n sum_x E_y (d log p(y|x) / d theta_i)^2`, with p the softmax of the outputs: the mean of squared
    gradients, each of one point and one label, never the square of a mean.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> fisher_diagonal(model, "weight", torch.randn(5, 2))["weight"].shape
        torch.Size([2, 2])

    Args:
        model: (n, ...) inputs to (n, classes) outputs, in eval mode.
        names: parameters or layers, as `layers.choose` takes them.
        inputs: n points. Where they depend on each other (a graph), all of them run together.
        labels: "exact" takes the expectation over y under the model itself, one gradient per point and class (with more
            than 100 classes the 100 most probable ones of each point, and F is a lower bound); "sampled" draws one y
            per point from the model; "empirical" takes `targets`, which is another quantity, and nearly zero where the
            model is sure of them.
        targets: (n,) labels, for "empirical".
        lowest: whether the lowest score wins: p is then the softmax of the negated outputs.
        points: use at most this many points, drawn at random.
        generator: for what is random; None is a fresh one with seed 0.

    Returns:
        One tensor per parameter, in its dtype, in float32 for half precision.

    Raises:
        InvalidInput: outputs that are no scores of classes, or missing targets.
    """
    names = layers.choose(model, names)
    _known_labels(labels)
    if labels == "empirical" and (targets is None or len(targets) != len(inputs)):
        given = "none" if targets is None else f"{len(targets)} for {len(inputs)} points"
        raise InvalidInput(f'fisher_diagonal(labels="empirical") needs one target per point, got {given}.')
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    y = outputs(model, inputs)
    if y.ndim != 2 or y.shape[1] < 2:
        raise InvalidInput(f"The Fisher information needs outputs of shape (points, classes), got {tuple(y.shape)}.")
    which = torch.arange(len(y))
    if points is not None and points < len(y):
        which = torch.randperm(len(y), generator=generator)[:points].sort().values
    sign = -1.0 if lowest else 1.0
    p = F.softmax(sign * y[which].double(), 1).cpu()
    if labels == "exact":
        share, label = p.topk(min(p.shape[1], MOST_CLASSES), 1)
    elif labels == "sampled":
        label = torch.multinomial(p, 1, generator=generator)
        share = torch.ones_like(label, dtype=p.dtype)
    else:
        assert targets is not None
        label = targets.cpu()[which][:, None]
        share = torch.ones_like(label, dtype=p.dtype)
    terms = _Terms(sign, p, label, share, y)
    start = {name: dict(model.named_parameters(remove_duplicate=False))[name].detach() for name in names}
    with torch.enable_grad():
        total = _sum_of_squares(model, start, inputs, which, terms)
    return {name: (f / len(which)).to(at_least_float(start[name]).dtype) for name, f in total.items()}


@dataclass(frozen=True)
class _Terms:
    """The terms of the Fisher information: for k labels of each point, a share and d log p(label) / d output.

    Attributes:
        sign: -1 where the lowest score wins.
        p: (n, classes), label: (n, k), share: (n, k), on the CPU.
        like: outputs.
    """

    sign: float
    p: Tensor
    label: Tensor
    share: Tensor
    like: Tensor

    def slopes(self, points: slice) -> Tensor:
        """Return (points, k, classes): gradients at the outputs whose squares need no more weights."""
        hot = F.one_hot(self.label[points], self.p.shape[1])
        slopes = self.sign * self.share[points, :, None].sqrt() * (hot - self.p[points, None])
        return slopes.to(self.like)


def _sum_of_squares(
    model: nn.Module, start: dict[str, Tensor], inputs: AnyInputs, which: Tensor, terms: _Terms
) -> dict[str, Tensor]:
    """Return the sum of squared gradients over points and labels, by parameter name, float64."""
    if isinstance(inputs, Tensor):
        try:
            return _summed(start, _vectorised(model, start, inputs, which, terms))
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            pass  # some operation of the model cannot be vectorised; slower, every operation can be differentiated
    return _summed(start, _one_by_one(model, start, inputs, which, terms))


def _summed(start: Weights, parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in start.items()}
    for part in parts:
        for name, value in part.items():
            total[name] += value
    return total


def _vectorised(
    model: nn.Module, start: dict[str, Tensor], x: Tensor, which: Tensor, terms: _Terms
) -> Iterator[dict[str, Tensor]]:
    def gradients(one: Tensor, slopes: Tensor) -> Any:
        """Return the gradients (k, ...) at one point (...), by name."""
        pull: Any = torch.func.vjp(lambda weights: call_with(model, weights, one[None])[0], start)[1]
        return torch.func.vmap(pull)(slopes)[0]

    size = terms.label.shape[1] * sum(weight.numel() for weight in start.values())
    step = max(1, MOST_NUMBERS // size)
    for first in range(0, len(which), step):
        some = slice(first, first + step)
        with warnings.catch_warnings():  # about operations whose vectorised form is slow
            warnings.simplefilter("ignore")
            each = torch.func.vmap(gradients)(x[which[some]], terms.slopes(some))
        norms = {n: torch.linalg.vector_norm(at_least_float(g).flatten(0, 1), dim=0) for n, g in each.items()}
        yield {n: norm.double().square() for n, norm in norms.items()}  # one pass, and no copy of the gradients


def _one_by_one(
    model: nn.Module, start: dict[str, Tensor], inputs: AnyInputs, which: Tensor, terms: _Terms
) -> Iterator[dict[str, Tensor]]:
    leaves = {n: weight.clone().requires_grad_(True) for n, weight in start.items()}
    together = not isinstance(inputs, Tensor) and not inputs.independent
    y = call_with(model, leaves, inputs) if together else None
    for k, point in enumerate(which.tolist()):
        row = y[point] if y is not None else call_with(model, leaves, inputs[torch.tensor([point])])[0]
        for slope in terms.slopes(slice(k, k + 1))[0]:
            found = gradients(row, list(leaves.values()), slope)
            yield {
                n: torch.zeros_like(w, dtype=torch.float64) if g is None else g.double().square()
                for (n, w), g in zip(leaves.items(), found, strict=True)
            }


def at_least_float(x: Tensor) -> Tensor:
    """Return half precision as float32, everything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _known_labels(labels: str) -> None:
    known = get_args(Labels)
    if labels not in known:
        raise InvalidInput(f"Unknown labels {labels!r}.{near_matches(str(labels), known)} Choose {', '.join(known)}.")
