"""A classifier's Fisher information, on its diagonal: how much each parameter matters for what a network says."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrepair import layers
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.forward import call_with
from nnrepair.problem import outputs
from nnrepair.spec import AnyInputs

#: "exact" sums over at most this many classes, each point's most probable ones.
MOST_CLASSES = 100
#: Numbers in the per-sample gradients that are held at once.
MOST_NUMBERS = 2**24

Labels = Literal["exact", "sampled", "empirical"]
Weights = Mapping[str, Tensor]


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
    known_labels(labels)
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
            gradients = torch.autograd.grad(
                row, list(leaves.values()), slope, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            yield {n: g.double().square() for n, g in zip(leaves, gradients, strict=True)}


def at_least_float(x: Tensor) -> Tensor:
    """Return half precision as float32, everything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def known_labels(labels: str) -> None:
    """Refuse a way to take the expectation over labels that does not exist."""
    known = get_args(Labels)
    if labels not in known:
        raise InvalidInput(f"Unknown labels {labels!r}.{near_matches(str(labels), known)} Choose {', '.join(known)}.")
