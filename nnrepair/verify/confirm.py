"""Is a whole repair right? Its points, regions and properties, each judged and told in a line."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.deadline import Deadline, OutOfTime, required_seconds
from nnrepair.errors import InvalidInput
from nnrepair.rounding import counted
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.network import shape_of_one
from nnrepair.spec.regions import Regions
from nnrepair.verify import vnnlib
from nnrepair.verify.check import check
from nnrepair.verify.over import Over
from nnrepair.verify.points import Points, eval_copy, listed
from nnrepair.verify.property import Property
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.result import CheckResult, Counterexample, Verdict

Claim = Property | str | Path


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
    required_seconds(timeout)
    deadline = Deadline(timeout)
    over = [(name, inputs, criterion) for name, inputs, criterion, _ in points if isinstance(inputs, Regions)]
    sets = [Points(*each) for each in points if not isinstance(each[1], Regions)]
    model = eval_copy(model)
    shape = shape_of_one(model, sets[0].inputs if sets else over[0][1].corners[0])
    vars(model)["item_shape"] = shape  # for properties, whose boxes may be flat
    properties = _properties(property)
    late = CheckResult("unknown", reason="" if timeout is None else f"the time limit of {timeout:g} s was reached")
    try:
        graph = lower(model, shape, deadline)
        _require_sizes(properties, graph, deadline)
    except OutOfTime:
        return replace(late, cpu_seconds=time.process_time() - cpu, wall_seconds=time.monotonic() - started)
    answers = _Answers(model, graph.outputs, deadline, late, settings)
    for each in sets:
        answers.judge(each)
    for region in over:
        answers.check_regions(*region)
    for claim in properties:
        answers.check_property(*claim)
    return replace(answers.together(), cpu_seconds=time.process_time() - cpu, wall_seconds=time.monotonic() - started)


class _Answers:
    """What is known of a repaired network so far.

    Args:
        model: the network.
        outputs: how many it has.
        deadline: when to end.
        late: the answer once that has passed.
        settings: for `check`.
    """

    def __init__(
        self, model: nn.Module, outputs: int, deadline: Deadline, late: CheckResult, settings: dict[str, Any]
    ) -> None:
        self.model, self.outputs, self.deadline, self.late, self.settings = model, outputs, deadline, late, settings
        self.verdicts, self.shares, self.reasons = list[Verdict](), list[float](), list[str]()
        self.results, self.of_properties = list[CheckResult](), list[CheckResult]()
        self.found: Counterexample | None = None

    def judge(self, points: Points) -> None:
        """Judge a set of points."""
        judged = points.judge(self.model, self.deadline)
        right, wrong = judged.holds & judged.run, judged.fails & ~judged.run
        unsure = ~right & ~wrong
        self.verdicts.append("violated" if bool(wrong.any()) else "unknown" if bool(unsure.any()) else "holds")
        said = f"{points.name}: {int(right.sum())} of {len(right)} confirmed"
        if len(right) < points.all:
            said += f" (of {points.all}; the others did not hold before the repair either)"
        if bool(wrong.any()):
            said += f"; {int(wrong.sum())} certainly wrong: {points.named(wrong)}"
            self.found = self.found or points.counterexample(self.model, judged, int(wrong.nonzero()[0, 0]))
        if bool(unsure.any()):
            when = " before the time limit" if self.deadline.passed else ""
            said += f"; {int(unsure.sum())} too close to tell{when}: {points.named(unsure)}"
        self.reasons.append(said)
        self.shares.append(float(right.double().mean()) if len(right) else 1.0)

    def check_regions(self, name: str, regions: Regions, criterion: Criterion) -> None:
        """Check that a criterion holds on regions, each for itself."""
        here = [self._region(corners, criterion[torch.tensor([k])]) for k, corners in enumerate(regions.corners)]
        verdicts = [result.verdict for result in here]
        said = f"{name}: {verdicts.count('holds')} of {counted(len(regions), 'region')} confirmed"
        for verdict, word in (("violated", "certainly wrong"), ("unknown", "open")):
            which = [k for k, each in enumerate(verdicts) if each == verdict]
            if which:
                said += f"; {len(which)} {word}: {listed(which)}"
        if self.found is None and "violated" in verdicts:
            k = verdicts.index("violated")
            self.found = _placed(self.model, regions.corners[k], here[k].counterexample)
        self.results += here
        self.verdicts += verdicts
        self.reasons.append(said)
        self.shares.append(verdicts.count("holds") / len(regions))

    def check_property(self, name: str, claim: Claim) -> None:
        """Check a property."""
        result = self._checked(self.model, claim)
        self.results.append(result)
        self.of_properties.append(result)
        self.verdicts.append(result.verdict)
        self.shares.append(1.0 if result.holds else result.proved)
        self.reasons.append(f"{name}: {result.verdict}{f' ({result.reason})' if result.reason else ''}")
        self.found = self.found or result.counterexample

    def together(self) -> CheckResult:
        """Return all answers as one."""
        alone = len(self.results) == len(self.of_properties) == 1
        return CheckResult(
            verdict=next((v for v in ("violated", "unknown") if v in self.verdicts), "holds"),
            counterexample=self.found,
            boxes=sum(result.boxes for result in self.results),
            certificate=self.of_properties[0].certificate if alone else None,
            proved=min(self.shares),
            worst_bound=min((r.worst_bound for r in self.results if r.worst_bound is not None), default=None),
            reason="\n".join(self.reasons),
        )

    def _region(self, corners: Tensor, criterion: Criterion) -> CheckResult:
        if self.deadline.passed:
            return self.late
        along = Over(self.model, corners)
        return self._checked(along, along.property(criterion, self.outputs))

    def _checked(self, network: nn.Module, claim: Claim) -> CheckResult:
        left = self.deadline.left()
        if left <= 0:
            return self.late
        return check(network, claim, timeout=left if math.isfinite(left) else None, **self.settings)


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


def _properties(given: Any) -> list[tuple[str, Claim]]:
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


def _require_sizes(properties: Sequence[tuple[str, Claim]], graph: Graph, deadline: Deadline) -> None:
    """Refuse properties that do not fit, before the long computation."""
    for name, one in properties:
        loaded = one if isinstance(one, Property) else vnnlib.load(one, deadline)
        if (loaded.inputs, loaded.outputs) != (graph.inputs, graph.outputs):
            raise InvalidInput(
                f"{name} is about {loaded.inputs} inputs and {loaded.outputs} outputs, but the network has "
                f"{graph.inputs} and {graph.outputs}."
            )
