"""The Fisher information, on its diagonal: how much each parameter matters for a network's outputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, near_matches
from nnrepair.jacobian import layers
from nnrepair.jacobian.tangents import gradients
from nnrepair.spec.criteria import flat
from nnrepair.spec.given import as_inputs
from nnrepair.spec.inputs import AnyInputs, independent
from nnrepair.spec.kinds import Classes, Kind
from nnrepair.spec.running import call, call_with, outputs

#: "exact" sums over at most this many classes, each point's most probable ones, or draws so many labels.
MOST_CLASSES = 100
#: Numbers in the per-sample gradients that are held at once.
MOST_NUMBERS = 2**24

#: Passes with labels drawn anew over which the diagonal is averaged where points influence each other.
SKETCHES = 32
#: With more gradients than this (points times classes), a default takes labels drawn at random.
GRADIENTS = 10_000

Labels = Literal["exact", "sampled", "empirical"]
Weights = Mapping[str, Tensor]


def fisher_diagonal(
    model: nn.Module,
    names: str | Sequence[str],
    inputs: AnyInputs,
    *,
    kind: Kind | None = None,
    labels: Labels = "exact",
    targets: Tensor | None = None,
    points: int | None = None,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal of a network's Fisher information, by parameter name.

    `F_i = 1/n sum_x E_y (d log p(y|x) / d theta_i)^2`, with p what the outputs stand for: the mean of squared
    gradients, each of one point and one label, never the square of a mean. To second order, a change d of the
    parameters moves p by 1/2 sum_i F_i d_i^2 nats per point, up to what F leaves out beside its diagonal.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> fisher_diagonal(model, "weight", torch.randn(5, 2))["weight"].shape
        torch.Size([2, 2])

    Args:
        model: (n, ...) inputs to (n, ...) outputs, in eval mode.
        names: parameters or layers, as `layers.choose` takes them.
        inputs: n points. Where they depend on each other (a graph), all of them run together.
        kind: what p is: `kinds.Classes()`, the default, is the softmax over (n, classes) outputs; `kinds.Binary()`
            a coin per output; `kinds.Regression()` normal distributions of standard deviation 1 (in output units),
            for which F_i is the mean squared gradient of the outputs, summed over these.
        labels: "exact" takes the expectation over y under the model itself, one gradient per point and class or output
            (with more than 100 classes the 100 most probable ones of each point, and F is a lower bound; with more
            than 100 other outputs, 100 draws per point); "sampled" draws y from the model; "empirical" takes `targets`,
            which is another quantity, and nearly zero where the model is sure of them.
        targets: (n, ...) labels, for "empirical"; values for numbers.
        points: use at most this many points, drawn at random.
        draws: of each point, for "sampled".
        generator: for what is random; None is a fresh one with seed 0.

    Returns:
        One tensor per parameter, in its dtype, in float32 for half precision.

    Raises:
        InvalidInput: outputs that are not of this kind, or missing targets.
    """
    names, kind = layers.choose(model, names), Classes() if kind is None else kind
    known_labels(labels)
    inputs = as_inputs(inputs, "fisher_diagonal")
    if labels == "empirical" and (targets is None or len(targets) != len(inputs)):
        given = "none" if targets is None else f"{len(targets)} for {len(inputs)} points"
        raise InvalidInput(f'fisher_diagonal(labels="empirical") needs one target per point, got {given}.')
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    y = outputs(model, inputs)
    if isinstance(kind, Classes) and (y.ndim < 2 or y.shape[kind.axis] < 2):
        raise InvalidInput(
            f"The Fisher information of classes needs outputs (points, classes, ...), got {tuple(y.shape)}. Give "
            "kind=kinds.Binary() for yes-or-no answers, kinds.Regression() for numbers."
        )
    which = torch.arange(len(y))
    if points is not None and points < len(y):
        which = torch.randperm(len(y), generator=generator)[:points].sort().values
    y = y[which.to(y.device)]
    terms = _Terms(kind, y.double(), y, [])
    if labels == "empirical":
        assert targets is not None
        terms.drawn.append(targets[which.to(targets.device)])
    elif labels == "sampled" or kind.root(y[:1], MOST_CLASSES) is None:
        count = draws if labels == "sampled" else MOST_CLASSES
        terms.drawn.extend(kind.sample(terms.y, generator) for _ in range(count))
    start = {name: dict(model.named_parameters(remove_duplicate=False))[name].detach() for name in names}
    with torch.enable_grad():
        total = _sum_of_squares(model, start, inputs, which, terms)
    return {name: (f / len(which)).to(at_least_float(start[name]).dtype) for name, f in total.items()}


def affordable_diagonal(model: nn.Module, names: Sequence[str], inputs: AnyInputs, kind: Kind) -> dict[str, Tensor]:
    """Return `fisher_diagonal`, exactly where that takes few gradients, else on average over labels that are drawn.

    Where points influence each other, one pass serves all of them, each with a label of its own: scores of labels are
    zero on average, so the products of different points vanish.
    """
    if independent(inputs):
        outputs_each = outputs(model, inputs[torch.tensor([0])])[0].numel()
        draws = -(-GRADIENTS // len(inputs))
        labels: Labels = "exact" if outputs_each <= draws else "sampled"
        return fisher_diagonal(model, names, inputs, kind=kind, labels=labels, draws=draws)
    known = dict(model.named_parameters(remove_duplicate=False))
    parameters, generator = [known[n] for n in names], torch.Generator().manual_seed(0)
    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in zip(names, parameters, strict=True)}
    with torch.enable_grad():
        y = call(model, inputs)
    for _ in range(SKETCHES):
        score = kind.score(y.detach(), kind.sample(y.detach(), generator))
        grads = gradients((flat(y) * score.to(y)).sum(), parameters)
        for name, g in zip(names, grads, strict=True):
            total[name] += 0.0 if g is None else g.detach().double() ** 2 / (SKETCHES * len(y))
    return total


@dataclass(frozen=True)
class _Terms:
    """The terms of the Fisher information at n points: gradients of log-probabilities at the outputs.

    Attributes:
        kind: what the outputs stand for.
        y: (n, ...) outputs, float64, and `like`: the same as they are.
        drawn: labels (n, ...), as often as they were drawn; none where the expectation is known.
    """

    kind: Kind
    y: Tensor
    like: Tensor
    drawn: list[Tensor]

    @property
    def count(self) -> int:
        """Gradients per point."""
        return self.slopes(slice(1)).shape[1]

    def slopes(self, points: slice) -> Tensor:
        """Return (points, k, ...): gradients at the outputs whose squares need no more weights."""
        y = self.y[points]
        if self.drawn:
            each = torch.stack([self.kind.score(y, label[points]) for label in self.drawn], 1)
            slopes: Tensor | None = each / len(self.drawn) ** 0.5
        else:
            slopes = self.kind.root(y, MOST_CLASSES)
        assert slopes is not None
        return slopes.to(self.like).reshape(*slopes.shape[:2], *self.like.shape[1:])


def _sum_of_squares(
    model: nn.Module, start: dict[str, Tensor], inputs: AnyInputs, which: Tensor, terms: _Terms
) -> dict[str, Tensor]:
    """Return the sum of squared gradients over points and labels, by parameter name, float64."""
    first = inputs if isinstance(inputs, Tensor) else inputs[which[:1]].loaded()
    if isinstance(first, Tensor):
        try:
            return _summed(start, _vectorised(model, start, inputs, which, terms))
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            pass  # some operation of the model cannot be vectorised; slower, every operation can be differentiated
    return _summed(start, _one_by_one(model, start, inputs, which, terms))


def _summed(start: Weights, parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in start.items()}
    for part in parts:
        for name, value in part.items():
            total[name] += value.detach()
    return total


def _vectorised(
    model: nn.Module, start: dict[str, Tensor], inputs: AnyInputs, which: Tensor, terms: _Terms
) -> Iterator[dict[str, Tensor]]:
    def gradients(one: Tensor, slopes: Tensor) -> Any:
        """Return the gradients (k, ...) at one point (...), by name."""
        pull: Any = torch.func.vjp(lambda weights: call_with(model, weights, one[None])[0], start)[1]
        return torch.func.vmap(pull)(slopes)[0]

    size = terms.count * sum(weight.numel() for weight in start.values())
    step = max(1, MOST_NUMBERS // size)
    for first in range(0, len(which), step):
        some = slice(first, first + step)
        with warnings.catch_warnings():  # about operations whose vectorised form is slow
            warnings.simplefilter("ignore")
            points = inputs[which[some]]
            x = points if isinstance(points, Tensor) else points.loaded()
            assert isinstance(x, Tensor)  # as the first one was
            each = torch.func.vmap(gradients)(x, terms.slopes(some))
        norms = {n: torch.linalg.vector_norm(at_least_float(g).flatten(0, 1), dim=0) for n, g in each.items()}
        yield {n: norm.double().square() for n, norm in norms.items()}  # one pass, and no copy of the gradients


def _one_by_one(
    model: nn.Module, start: dict[str, Tensor], inputs: AnyInputs, which: Tensor, terms: _Terms
) -> Iterator[dict[str, Tensor]]:
    leaves = {n: weight.clone().requires_grad_(True) for n, weight in start.items()}
    y = None if independent(inputs) else call_with(model, leaves, inputs)
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


def known_labels(labels: str) -> None:
    """Refuse a way to take the expectation over labels that does not exist."""
    known = get_args(Labels)
    if labels not in known:
        raise InvalidInput(f"Unknown labels {labels!r}.{near_matches(str(labels), known)} Choose {', '.join(known)}.")
