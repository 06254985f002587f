"""Do points satisfy a criterion? Many at once, for the real-valued function of the stored weights.

A point is a box without width: the interval bounds of its outputs differ by nothing but bounded rounding errors. Where
a condition's sign is still open after that, the point is computed again alone, in rational arithmetic if the network
is small enough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.errors import InvalidInput
from nnrepair.network import private_copy
from nnrepair.spec.criteria import (
    AllOf,
    AnyOf,
    Argmax,
    Criterion,
    Linear,
    Near,
    Threshold,
    flat,
)
from nnrepair.spec.inputs import AnyInputs, described
from nnrepair.spec.regions import Regions
from nnrepair.spec.running import outputs
from nnrepair.verify import vnnlib
from nnrepair.verify.check import check
from nnrepair.verify.over import Over
from nnrepair.verify.property import Box, Property
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.result import CheckResult, Counterexample, Verdict
from nnrepair.verify.search.intervals import outputs_over
from nnrepair.verify.search.magnitudes import TINY
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
    return _Points("check_points", inputs, criterion).judge(_eval_copy(model), NEVER).holds


@dataclass(frozen=True)
class Judged:
    """What is known about n points: which certainly satisfy the criterion, and which certainly do not, all (n,) bool.

    `run` says what the network itself returns in its own arithmetic, `exact` which points needed rational numbers.
    """

    holds: Tensor
    fails: Tensor
    run: Tensor
    exact: Tensor


class _Points:
    """Points and their criterion; `index` tells where they were in the set that they come from."""

    def __init__(self, name: str, inputs: AnyInputs, criterion: Criterion, kept: Tensor | None = None) -> None:
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
        self.index = torch.arange(len(inputs)) if kept is None else kept.nonzero()[:, 0].cpu()
        self.inputs = inputs.detach().cpu()[self.index]
        self.criterion = criterion[self.index]

    def judge(self, model: nn.Module, deadline: Deadline) -> Judged:
        """Judge points until the deadline; it is not known of the others whether they hold or fail."""
        judged = Judged(*(torch.zeros(len(self.inputs), dtype=torch.bool) for _ in range(4)))
        if not len(self.inputs):
            return judged
        shape = item_shape(model, self.inputs)
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
        return _listed(self.index[which].tolist())


def _listed(indices: list[int]) -> str:
    more = f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
    return f"{', '.join(map(str, indices[:NAMED]))}{more}"


def item_shape(model: nn.Module, inputs: Tensor) -> tuple[int, ...]:
    """Return the shape of one point as the model takes it."""
    known = getattr(model, "item_shape", None)
    if known is not None and None not in known and math.prod(known) == inputs[:1].numel():
        return tuple(known)
    return tuple(inputs.shape[1:])


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        return outputs(model, inputs)
    except RuntimeError as error:
        raise InvalidInput(
            f"The model does not accept inputs of shape {tuple(inputs.shape)}, {inputs.dtype}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _eval_copy(model: nn.Module) -> nn.Module:
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
    if isinstance(criterion, Argmax):
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
    raise InvalidInput(
        f"{type(criterion).__name__} cannot be checked with bounded rounding; use Argmax, Argmin, Threshold, Linear "
        "or Near."
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


# A whole repair ------------------------------------------------------------------------------------------------------


def confirm(
    model: nn.Module,
    points: Sequence[tuple[str, AnyInputs, Criterion, Tensor | None]],
    property: Any = None,
    *,
    timeout: float | None = None,
    **settings: Any,
) -> CheckResult:
    """Check sets of points, each (name, inputs, criterion, which are meant), and properties; see `RepairResult.verify`.

    A point counts as confirmed, or as wrong, when exact bounds and a run of the network agree about it. Inputs may be
    `Regions`; each is then checked as a property is.
    """
    started, cpu = time.monotonic(), time.process_time()
    if timeout is not None and not timeout > 0:
        raise InvalidInput(f"timeout must be a positive number of seconds or None, got {timeout}.")
    deadline = Deadline(timeout)
    over = [(name, inputs, criterion) for name, inputs, criterion, _ in points if isinstance(inputs, Regions)]
    sets = [_Points(*each) for each in points if not isinstance(each[1], Regions)]
    model = _eval_copy(model)
    shape = item_shape(model, sets[0].inputs if sets else over[0][1].corners[0])
    vars(model)["item_shape"] = shape  # for properties, whose boxes may be flat
    properties = _properties(property)
    late = CheckResult("unknown", reason="" if timeout is None else f"the time limit of {timeout:g} s was reached")
    try:
        graph = lower(model, shape, deadline)
        _require_sizes(properties, graph, deadline)
    except OutOfTime:
        return replace(late, cpu_seconds=time.process_time() - cpu, wall_seconds=time.monotonic() - started)
    verdicts: list[Verdict] = []
    shares, reasons, found = list[float](), list[str](), None
    for each in sets:
        judged = each.judge(model, deadline)
        right, wrong = judged.holds & judged.run, judged.fails & ~judged.run
        unsure = ~right & ~wrong
        verdicts.append("violated" if bool(wrong.any()) else "unknown" if bool(unsure.any()) else "holds")
        reasons.append(f"{each.name}: {int(right.sum())} of {len(right)} confirmed")
        if len(right) < each.all:
            reasons[-1] += f" (of {each.all}; the others did not hold before the repair either)"
        if bool(wrong.any()):
            reasons[-1] += f"; {int(wrong.sum())} certainly wrong: {each.named(wrong)}"
            found = found or each.counterexample(model, judged, int(wrong.nonzero()[0, 0]))
        if bool(unsure.any()):
            when = " before the time limit" if deadline.passed else ""
            reasons[-1] += f"; {int(unsure.sum())} too close to tell{when}: {each.named(unsure)}"
        shares.append(float(right.double().mean()) if len(right) else 1.0)

    def checked(network: nn.Module, claim: Property | str | Path) -> CheckResult:
        left = deadline.left()
        return late if left <= 0 else check(network, claim, timeout=left if math.isfinite(left) else None, **settings)

    def checked_region(corners: Tensor, criterion: Criterion) -> CheckResult:
        along = Over(model, corners)
        return checked(along, along.property(criterion, graph.outputs))

    results = list[CheckResult]()
    for name, regions, criterion in over:
        each_criterion = (criterion[torch.tensor([k])] for k in range(len(regions)))
        here = [
            late if deadline.passed else checked_region(corners, one)
            for corners, one in zip(regions.corners, each_criterion, strict=True)
        ]
        results += here
        found_here = [result.verdict for result in here]
        verdicts += found_here
        reasons.append(f"{name}: {found_here.count('holds')} of {len(regions)} regions confirmed")
        for verdict, said in (("violated", "certainly wrong"), ("unknown", "open")):
            which = torch.tensor([each == verdict for each in found_here])
            if bool(which.any()):
                reasons[-1] += f"; {int(which.sum())} {said}: {_listed(which.nonzero()[:, 0].tolist())}"
        shares.append(found_here.count("holds") / len(regions))
        wrong_region = next((k for k, verdict in enumerate(found_here) if verdict == "violated"), None)
        if found is None and wrong_region is not None:
            found = _placed(model, regions.corners[wrong_region], here[wrong_region].counterexample)
    for name, each_property in properties:
        result = checked(model, each_property)
        results.append(result)
        verdicts.append(result.verdict)
        shares.append(1.0 if result.holds else result.proved)
        reasons.append(f"{name}: {result.verdict}{f' ({result.reason})' if result.reason else ''}")
        found = found or result.counterexample
    return CheckResult(
        verdict=next((v for v in ("violated", "unknown") if v in verdicts), "holds"),
        counterexample=found,
        boxes=sum(result.boxes for result in results),
        cpu_seconds=time.process_time() - cpu,
        wall_seconds=time.monotonic() - started,
        certificate=results[0].certificate if len(results) == 1 and not over else None,
        proved=min(shares),
        worst_bound=min((r.worst_bound for r in results if r.worst_bound is not None), default=None),
        reason="\n".join(reasons),
    )


def _placed(model: nn.Module, corners: Tensor, along: Counterexample | None) -> Counterexample | None:
    """Return a counterexample on a region as one of the network: its place becomes an input."""
    if along is None:
        return None
    over = Over(model, corners)
    rows = zip(over.place.weight.tolist(), over.place.bias.tolist(), strict=True)
    exact = tuple(
        sum((Fraction(w) * t for w, t in zip(row, along.exact_input, strict=True)), Fraction(shift))
        for row, shift in rows
    )
    x, size = np.array([float(v) for v in exact]), len(along.output) - over.sides
    return Counterexample(x, along.output[:size], along.margin, along.replayed, exact, along.exact_output[:size])


def _properties(given: Any) -> list[tuple[str, Property | str | Path]]:
    """Return the properties with a name each."""
    several = given if isinstance(given, list | tuple) else [] if given is None else [given]
    wrong = [type(one).__name__ for one in several if not isinstance(one, Property | str | Path)]
    if wrong:
        raise InvalidInput(
            f"property must be an nnrepair.verify.Property, the path of a .vnnlib file, or a list of these; got "
            f"{', '.join(wrong)}."
        )
    return [
        (f"property {k}" if isinstance(one, Property) else f"property {Path(one).name}", one)
        for k, one in enumerate(several, 1)
    ]


def _require_sizes(properties: Sequence[tuple[str, Property | str | Path]], graph: Graph, deadline: Deadline) -> None:
    """Refuse properties that do not fit, before the long computation."""
    for name, one in properties:
        loaded = one if isinstance(one, Property) else vnnlib.load(one, deadline)
        if (loaded.inputs, loaded.outputs) != (graph.inputs, graph.outputs):
            raise InvalidInput(
                f"{name} is about {loaded.inputs} inputs and {loaded.outputs} outputs, but the network has "
                f"{graph.inputs} and {graph.outputs}."
            )
