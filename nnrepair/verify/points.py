"""Do points satisfy a criterion? Many at once, for the real-valued function of the stored weights.

A point is a box without width: the interval bounds of its outputs differ by nothing but bounded rounding errors. Where
a condition's sign is still open after that, the point is computed again alone, in rational arithmetic if the network
is small enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.errors import InvalidInput
from nnrepair.network import private_copy
from nnrepair.spec.criteria import (
    AllOf,
    AnyOf,
    Argmax,
    Between,
    Criterion,
    Linear,
    Near,
    Threshold,
    flat,
)
from nnrepair.spec.inputs import AnyInputs, described
from nnrepair.spec.network import shape_of_one
from nnrepair.spec.ranks import Above
from nnrepair.spec.running import outputs
from nnrepair.verify.property import Box, Property
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.result import Counterexample
from nnrepair.verify.search.intervals import TINY, outputs_over
from nnrepair.verify.search.rational import enclosure, inside, nearest

#: A batch of points may have so many values in all nodes, and take so many multiplications.
BATCH, BATCH_WORK = 2_000_000, 500_000_000
#: An answer names at most this many points.
NAMED = 20


def check_points(model: nn.Module, inputs: Tensor, criterion: Criterion) -> Tensor:
    """Return (n,) bool: which points certainly satisfy the criterion, whatever float64 rounds.

    False says that a point does not, or that it is too close to tell (in networks too large for rational arithmetic).

    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.eye(2))
    >>> check_points(model, torch.tensor([[0.1, 0.3], [0.3, 0.3]]), Argmax([1, 1]))  # a tie is no decision
    tensor([ True, False])

    Args:
        model: a module that maps (n, ...) to (n, outputs), taken in eval mode and left untouched.
        inputs: (n, ...).
        criterion: about n points: Argmax, Argmin, Threshold, Linear, Near, joined by & and |.

    Raises:
        InvalidInput: the inputs are no plain tensor, or do not fit the model or the criterion.
        UnsupportedModel: the model has operations that the checker cannot read.
    """
    return Points("check_points", inputs, criterion).judge(eval_copy(model), NEVER).holds


@dataclass(frozen=True)
class Judged:
    """What is known about n points: which certainly satisfy the criterion, and which certainly do not, all (n,) bool.

    `run` says what the network itself returns in its own arithmetic, `exact` which points needed rational numbers.
    """

    holds: Tensor
    fails: Tensor
    run: Tensor
    exact: Tensor


class Points:
    """Points and their criterion; `index` tells where they were in the set that they come from."""

    def __init__(self, name: str, inputs: AnyInputs, criterion: Criterion, which: Tensor | None = None) -> None:
        if not isinstance(inputs, Tensor):
            raise InvalidInput(
                f"{name}: only points in a plain tensor (n, ...) can be confirmed, got {described(inputs)}: the "
                "checker cannot see what its call() does with the model."
            )
        if inputs.ndim < 2 or len(inputs) != len(criterion):
            raise InvalidInput(
                f"{name}: expected inputs (n, ...) and a criterion about n points, got shape {tuple(inputs.shape)} and "
                f"{len(criterion)} points."
            )
        if not bool(torch.isfinite(inputs).all()):
            raise InvalidInput(f"{name}: the inputs must be finite, but some are NaN or infinite.")
        self.name, self.all = name, len(inputs)
        self.index = torch.arange(len(inputs)) if which is None else which.nonzero()[:, 0].cpu()
        self.inputs = inputs.detach().cpu()[self.index]
        self.criterion = criterion[self.index]

    def judge(self, model: nn.Module, deadline: Deadline) -> Judged:
        """Judge points until the deadline; it is not known of the others whether they hold or fail."""
        judged = Judged(*(torch.zeros(len(self.inputs), dtype=torch.bool) for _ in range(4)))
        if not len(self.inputs):
            return judged
        shape = shape_of_one(model, self.inputs)
        with torch.no_grad(), suppress(OutOfTime):
            graph = lower(model, shape, deadline)  # before the model runs: it says best what it cannot read
            x = self.inputs.double().flatten(1)
            size = max(1, min(BATCH // graph.size, BATCH_WORK // max(1, graph.work)))
            for part in torch.split(torch.arange(len(x)), size):
                y, criterion = _run(model, self.inputs[part]), self.criterion[part]
                criterion.check(y)
                deadline.check()
                judged.run[part] = criterion.holds(y.double())
                ends = outputs_over(graph, x[part], x[part], deadline)
                judged.holds[part], judged.fails[part] = _signs(criterion, *ends)
            for i in (~judged.holds & ~judged.fails).nonzero()[:, 0].tolist():
                signs = _alone(graph, x[i], self.criterion[torch.tensor([i])], deadline)
                judged.holds[i], judged.fails[i], judged.exact[i] = signs
        return judged

    def counterexample(self, model: nn.Module, judged: Judged, i: int) -> Counterexample:
        """Return the i-th point as a counterexample."""
        with torch.no_grad():
            y = outputs(model, self.inputs[i : i + 1]).double()
        margin = -float(self.criterion[torch.tensor([i])].margin(y)[0])
        replayed = ("network", "exact" if bool(judged.exact[i]) else "enclosure")
        return Counterexample(self.inputs[i].double().flatten().numpy().copy(), flat(y)[0].numpy(), margin, replayed)

    def named(self, which: Tensor) -> str:
        """Return the indices of some of the points, as their set numbers them."""
        return listed(self.index[which].tolist())


def listed(indices: list[int]) -> str:
    """Return indices as text, the first of many."""
    more = f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
    return f"{', '.join(map(str, indices[:NAMED]))}{more}"


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        return outputs(model, inputs)
    except RuntimeError as error:
        raise InvalidInput(
            f"The model does not accept inputs of shape {tuple(inputs.shape)}, {inputs.dtype}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def eval_copy(model: nn.Module) -> nn.Module:
    """Return a private copy of a module on the CPU."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    return private_copy(model).cpu()


# Signs of slacks -----------------------------------------------------------------------------------------------------


def _signs(criterion: Criterion, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return which points certainly satisfy the criterion and which certainly do not, given bounds of the outputs."""
    if isinstance(criterion, AllOf | AnyOf):
        holds, fails = (
            torch.stack(part) for part in zip(*(_signs(p, low, high) for p in criterion.parts), strict=True)
        )
        return (holds.all(0), fails.any(0)) if isinstance(criterion, AllOf) else (holds.any(0), fails.all(0))
    least, most = _slacks(criterion, low, high)
    if criterion.strict:
        return (least > 0).all(1), (most <= 0).any(1)
    return (least >= 0).all(1), (most < 0).any(1)


def _slacks(criterion: Criterion, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds (points, conditions) of all slacks; the last term of each sum is its rounding error."""
    size = torch.maximum(low.abs(), high.abs())
    if isinstance(criterion, Argmax) and criterion.labels.ndim == 1:
        if criterion.sign < 0:
            low, high = -high, -low
        label, m = criterion.labels.cpu()[:, None], criterion.margin_
        error = 8 * EPS * (size.gather(1, label) + size + m) + TINY
        least = low.gather(1, label) - high - m - error
        most = high.gather(1, label) - low - m + error
        return least.scatter(1, label, torch.inf), most.scatter(1, label, torch.inf)
    if isinstance(criterion, Threshold):
        labels, at, m = flat(criterion.labels.cpu()), criterion.threshold, criterion.margin_
        error = 8 * EPS * (size + at.abs() + m) + TINY
        below, above = torch.where(labels == 0, at - high, low - at), torch.where(labels == 0, at - low, high - at)
        least, most = (slack.masked_fill(labels < 0, torch.inf) for slack in (below - m - error, above - m + error))
        return least, most
    if isinstance(criterion, Linear):
        A, b = criterion.A.cpu().double(), criterion.b.cpu().double()
        positive, negative = A.clamp(min=0), A.clamp(max=0)

        def along(a: Tensor, y: Tensor) -> Tensor:
            product: Tensor = torch.einsum("nco,no->nc", a, y)
            return product

        error = 4 * (A.shape[2] + 8) * EPS * (along(A.abs(), size) + b.abs()) + TINY
        least = along(positive, low) + along(negative, high) - b - error
        return least, along(positive, high) + along(negative, low) - b + error
    if isinstance(criterion, Near):
        target, tol = (flat(v.cpu().double()) for v in (criterion.target, criterion.tol))
        error = 8 * EPS * (size + target.abs() + tol) + TINY
        least = torch.cat([low - target + tol - error, tol - (high - target) - error], 1)
        most = torch.cat([high - target + tol + error, tol - (low - target) + error], 1)
        free = torch.isinf(torch.cat([tol, tol], 1))
        return least.masked_fill(free, torch.inf), most.masked_fill(free, torch.inf)
    if isinstance(criterion, Between):
        lower, upper = (v.cpu().double() for v in criterion.bounds(low))
        margins = [low - lower, upper - high], [high - lower, upper - low]
        error = 8 * EPS * torch.cat([size + lower.abs(), size + upper.abs()], 1) + TINY
        free = torch.isinf(torch.cat([lower, upper], 1))
        least, most = (torch.cat(pair, 1) for pair in margins)
        return tuple(v.masked_fill(free, torch.inf) for v in (least - error, most + error))  # type: ignore[return-value]
    if isinstance(criterion, Above):
        higher, below, m = criterion.higher.cpu()[:, None], criterion.lower.cpu(), criterion.margin_
        none, below = below < 0, below.clamp(min=0)
        error = 8 * EPS * (size.gather(1, higher) + size.gather(1, below) + m) + TINY
        least = low.gather(1, higher) - high.gather(1, below) - m - error
        most = high.gather(1, higher) - low.gather(1, below) - m + error
        return least.masked_fill(none, torch.inf), most.masked_fill(none, torch.inf)
    raise InvalidInput(
        f"{type(criterion).__name__} cannot be checked with bounded rounding; use Argmax, Argmin (a label per point), "
        "Threshold, Linear, Near, Between or Above."
    )


def _alone(graph: Graph, x: Tensor, criterion: Criterion, deadline: Deadline) -> tuple[bool, bool, bool]:
    """Return the signs of one point (inputs,), and whether they are from rational arithmetic."""
    values, exactly = enclosure(graph, tuple(map(Fraction, x.tolist())), deadline)
    if exactly:
        holds = _satisfied(criterion, [low for low, _ in values])
        return holds, not holds, True
    # Too large for floats (an overflow) stays open: infinities decide nothing
    low, high = (torch.tensor([[nearest(pair[i]) for pair in values]], dtype=torch.float64) for i in (0, 1))
    above, below = _signs(criterion, low, high)
    return bool(above), bool(below), False


def _satisfied(criterion: Criterion, y: Sequence[Fraction]) -> bool:
    """Tell, exactly, whether one point's output satisfies the criterion."""
    if isinstance(criterion, AllOf | AnyOf):
        each = (_satisfied(part, y) for part in criterion.parts)
        return all(each) if isinstance(criterion, AllOf) else any(each)
    (case,) = Property.on(Box([0], [0]), criterion, outputs=len(y)).cases
    return not any(inside(conjunction, [(v, v) for v in y]) for conjunction in case.unsafe)
