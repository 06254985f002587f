"""repair_property(): a violated property in, a network out for which it is proved.

Counterexamples become rows of a linear program over the last layer, whose smallest answer is attacked and checked
again (Sotoudeh & Thakur 2021 for the program; counterexample-guided as in Dreossi et al. 2018). Where the proof then
splits without end, the parts of the region become rows themselves, see `leaves`, and the smallest change between both
answers that can be proved is kept. Where the last layer cannot do it, all layers are moved first, see `descent`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.judge import Watched, about, like
from nnrepair.network import private_copy
from nnrepair.progress import progress_bar
from nnrepair.properties.answer import ENOUGH, LARGE, Answer, best, times_as_large, weighed
from nnrepair.properties.descent import Wanted, descend
from nnrepair.properties.head import Head
from nnrepair.properties.hunt import hunt
from nnrepair.properties.loop import PARTS, PRICE, THICKER, HeadRepair, LocalityStates, Lossy, Unproved
from nnrepair.properties.task import (
    Task,
    median_distance,
    read_tasks,
    refuse_contradictions,
    refuse_misfit,
    shape_of,
)
from nnrepair.results.changes import weight_change
from nnrepair.results.effects import SideEffects
from nnrepair.results.failed import RepairFailed
from nnrepair.results.outcome import Outcome
from nnrepair.results.patch import Patch
from nnrepair.results.result import Proof, RepairResult, Report
from nnrepair.solver.program import Contradiction
from nnrepair.solver.quadratic import NotSolvedError
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.edits import Locality, LocalitySet
from nnrepair.spec.kinds import Classes, kind_of
from nnrepair.spec.problem import fitted
from nnrepair.spec.running import outputs, required_seed, undisturbed
from nnrepair.verify.check import checked
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.result import CheckResult
from nnrepair.verify.search.attack import random_starts
from nnrepair.verify.search.jobs import Options

#: The margin, as a share of the median distance to the unsafe set over the region.
MARGIN = 0.125
#: Kept points keep this share of the locality set's typical slack, or what they had if that is less.
KEPT_MARGIN = 0.05
#: With locality="outputs" a weight costs this at least, and at most.
RARE, DEAR = 0.01, 100.0
#: Learning rates with which all layers are moved; the second where the first is not good enough.
RATES = (1e-4, 1e-3)


def repair_property(
    model: nn.Module | str | Path,
    property: Any,
    *,
    keep: Sequence[Any] = (),
    locality_set: Any = None,
    layer: Literal["auto", "last", "all"] = "auto",
    locality: Literal["decisions", "outputs"] = "decisions",
    margin: float | None = None,
    most_boxes: int = 100_000,
    timeout: float | None = None,
    throw: bool = True,
    progress: bool = False,
    seed: int = 0,
) -> RepairResult:
    """Return a network of the same architecture in which a property holds on its whole region, with a small change.

    The model's last operation must be a linear layer. Among the changes of that layer under which the counterexamples
    found are safe, the one with the smallest l1 norm is taken, with as few decisions of the locality set lost as
    possible; then the property is checked over its whole region, and so on until the checker says that it holds.

    Args:
        model: a module that maps (n, *shape) to (n, outputs), left untouched, or an ONNX file.
        property: what is to hold: a `nnrepair.verify.Property`, a VNN-LIB file, or a list of these, repaired jointly.
        keep: properties that hold before and must still hold; proved again, and conditions where they break.
        locality_set: points whose decisions are to stay (soft: each may fail, for a penalty): a `LocalitySet`; plain
            inputs stand for their largest output's class. Where a network's smallest output decides, give
            `LocalitySet(inputs, Argmin(decisions))`; a network with one output needs labels 0 and 1 (its sign) or a
            criterion. Points that violate a property, or whose criterion does not hold before, are left out; the report
            says how many.
        layer: "last"; "all" moves every layer by gradient descent first (needs a locality set); "auto" is "last", and
            "all" where that cannot be proved, keeps less than 99.8 % of the locality set, or changes weights by more
            than three times what they are. Of what was proved, the answer is taken that loses least, where a change as
            large as the layer itself counts as much as 0.1 % of the locality set; the notes list the others.
        locality: what is to stay on the locality set: "decisions"; or "outputs", bit for bit at as many points as
            possible. Then a weight costs as much as the odds that it is multiplied by something other than zero at one
            of these points (a bias always is), and so units are changed that are off at most of them: what
            `result.prove_locality` can see. The last layer alone is changed then.
        margin: the slack that counterexamples must reach, in output units. A smaller one makes a smaller change with a
            longer proof, until parts of the region must become conditions (see `most_boxes`), which costs more again.
            None takes 1/8 of the median distance between outputs and unsafe set over the region, and doubles it (twice
            at most) where a proof was too long but nearly done.
        most_boxes: how long a proof may be before the parts of the region become conditions themselves.
        timeout: of each check, in seconds.
        throw: raise `RepairFailed` (with the full result) when not every property is proved.
        progress: show a line on stderr.
        seed: of every random choice.

    Returns:
        The result; `proofs` holds one checked property each, with its certificate. In `report`, what is counted are the
        properties to repair, and they hold when proved. Its outcome is "nothing to do" if all of them held before.

    Raises:
        InvalidInput: model and properties do not fit; properties that no network can satisfy together; a property to
            keep that is violated already.
        UnsupportedModel: the model is not piecewise linear, or does not end in a linear layer.
        RepairFailed: not every property was proved, and `throw` is set.

    >>> import nnrepair
    >>> from nnrepair.verify import Box, Property
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> with torch.no_grad():
    ...     for p, value in zip(model.parameters(), [[[1.0], [-1]], [0.0, 0], [[1.0, 1], [0, 0]], [0.0, 0.5]]):
    ...         _ = p.copy_(torch.tensor(value))
    >>> result = nnrepair.repair_property(model, Property.on(Box([-1], [1]), nnrepair.Argmax([1]), outputs=2))
    >>> result.outcome.status, result.proofs[0].result.verdict  # |x| < 0.5 did not hold on all of [-1, 1]
    ('repaired', 'holds')
    """
    if layer not in ("auto", "last", "all"):
        raise InvalidInput(f"Unknown layer {layer!r}; choose one of auto, last, all.")
    is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if margin is not None and not (is_number and 0 < margin < float("inf")):
        raise InvalidInput(f"margin must be a finite number > 0, got {margin!r}.")
    if isinstance(most_boxes, bool) or not isinstance(most_boxes, int) or most_boxes < 1:
        raise InvalidInput(f"most_boxes must be at least 1, got {most_boxes!r}.")
    seed = required_seed(seed)
    _refuse_missing(layer, locality, locality_set)
    started = time.perf_counter()
    with undisturbed(seed), progress_bar("repair", progress, counts=False) as say:
        private = private_copy(model).cpu()
        path = None if isinstance(model, nn.Module) else Path(model)
        tasks = read_tasks(property, keep)
        options = Options(most=most_boxes)
        refuse_contradictions(tasks)
        refuse_misfit(private, tasks)
        try:
            head = Head.of(private, shape_of(private, tasks))
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{error}\nnnrepair.fix repairs points of such a model, and measures.") from error
        kept = _locality(locality_set, head.graph, tasks)
        first = [checked(path or private, t.given, t.told(say), timeout, options=options) for t in tasks]
        _refuse_broken(tasks, first)
        held = [result.holds for task, result in zip(tasks, first, strict=True) if task.role == "repair"]
        call = f"repair_property(layer={layer!r}, margin={margin}, most_boxes={most_boxes}, seed={seed})"
        if locality == "outputs":
            call, layer = call.replace("margin=", "locality='outputs', margin="), "last"
        thicker = THICKER if margin is None else 0
        work = _Work(head, tasks, kept, options, timeout, thicker, seed, say, locality == "outputs")
        if all(held):
            notes = ["every property held before; nothing was changed."]
            answer = Answer(private, {t.name: r for t, r in zip(tasks, first, strict=True)}, True, 1.0, notes, {})
        else:
            for task in tasks:
                task.margin = task.asked = margin or MARGIN * median_distance(task, head.graph)
            answer = work.repaired(layer)
    original = model if isinstance(model, nn.Module) else private
    result = work.judged(answer, held, call, time.perf_counter() - started, original)
    if throw and not result.outcome.ok:
        raise RepairFailed(result)
    return result


def _refuse_missing(layer: str, locality: str, locality_set: Any) -> None:
    """Refuse what asks for a locality set where there is none."""
    if locality not in ("decisions", "outputs"):
        raise InvalidInput(f"locality must be 'decisions' or 'outputs', got {locality!r}.")
    if locality == "outputs" and (locality_set is None or layer == "all"):
        raise InvalidInput('locality="outputs" keeps outputs of a locality set: give one, and leave layer at "auto".')
    if layer == "all" and locality_set is None:
        raise InvalidInput('layer="all" measures change on the locality set: give one, or choose layer="last".')


def _refuse_broken(tasks: Sequence[Task], first: Sequence[CheckResult]) -> None:
    broken = [t.name for t, r in zip(tasks, first, strict=True) if t.role == "keep" and r.verdict == "violated"]
    if broken:
        raise InvalidInput(
            f"{', '.join(broken)}: to be kept, but violated already. Give it as a property to repair, or drop it."
        )


@dataclass(frozen=True)
class _Locality:
    """Points (n, inputs) whose criterion holds before and should hold after.

    Attributes:
        inputs, criterion: the points; `labelled` where the criterion was given, and not made from decisions.
        left_out: why so many others of those given are not among them.
    """

    inputs: Tensor
    criterion: Criterion
    labelled: bool
    left_out: dict[str, int]


def _locality(given: Any, graph: Graph, tasks: Sequence[Task]) -> _Locality | None:
    """Return the points to keep: those that hold, and do not violate a property that is to be repaired."""
    if given is None:
        return None
    points = LocalitySet.coerce(given)
    if len(points) == 0:
        raise InvalidInput("The locality set is empty; leave it out, or give points that must stay.")
    if not isinstance(points.inputs, Tensor) or points.inputs[:1].numel() != graph.inputs:
        shape = tuple(points.inputs.shape) if isinstance(points.inputs, Tensor) else type(points.inputs).__name__
        raise InvalidInput(f"The locality set must be a tensor with {graph.inputs} numbers per point, got {shape}.")
    x = points.inputs.detach().double().cpu().reshape(len(points), -1)
    y = graph(x)
    if points.criterion is None and graph.outputs == 1:
        raise InvalidInput(
            "The network has a single output, so its points alone do not say what is to stay: give labels 0 or 1 (its "
            "sign), Threshold, or Near beside the locality set's inputs."
        )
    criterion = Classes().unchanged(y, 0.0) if points.criterion is None else fitted(points.criterion, y)
    criterion.check(y)
    held = criterion.holds(y)
    unsafe = torch.zeros_like(held)
    for task in tasks:
        for job, ends in enumerate(zip(task.jobs.lower, task.jobs.upper, strict=True)):
            inside = ((x >= ends[0]) & (x <= ends[1])).all(1)
            unsafe |= inside & (task.jobs.depth(y, torch.full((len(y),), job)) >= 0)
    reasons = {"violate a property": held & unsafe, "did not hold before": ~held}
    left_out = {why: int(some.sum()) for why, some in reasons.items() if bool(some.any())}
    index = (held & ~unsafe).nonzero()[:, 0]
    if not len(index):
        raise InvalidInput(
            "No point of the locality set holds before the repair without violating a property that is to be repaired; "
            "leave the locality set out, or give other points."
        )
    labelled = points.criterion is not None
    return _Locality(x[index], criterion[index].resolve(y[index]), labelled, left_out)


@dataclass
class _Work:
    """Everything that a repair needs, read and checked."""

    head: Head
    tasks: list[Task]
    locality: _Locality | None
    options: Options
    timeout: float | None
    thicker: int
    seed: int
    say: Callable[[str], None]
    by_activity: bool = False

    @property
    def model(self) -> nn.Module:
        """The network as it was."""
        return self.head.model

    def repaired(self, layer: str) -> Answer:
        """Try the last layer, and all layers where that is not good enough; weigh what is lost against the change."""
        tried = list[Answer]()
        if layer != "all" or self.locality is None:
            tried += self._last_layer(self.head, ENOUGH if layer == "auto" and self.locality is not None else 0.0)
        if self.locality is None or layer == "last" or (tried and best(tried).good):
            return weighed(tried)
        tried = [answer for answer in tried if answer.proved]  # it may have been given up
        complete = bool(tried) or layer == "all"
        for rate in RATES:
            moved = self._last_layer(Head.of(self._descended(rate), self.head.shape))
            for answer in moved:
                answer.notes.insert(0, "all layers were moved by gradient descent before the last one was repaired.")
            tried += moved
            if best(moved).good:
                return weighed(tried)
        if not complete:
            found = best(tried)
            tried += self._last_layer(self.head, 1 - found.cost if found.proved else 0.0)
        return weighed(tried)

    def _last_layer(self, head: Head, enough: float = 0.0) -> list[Answer]:
        """Repair the last layer of a network, again with a tenth of the penalty while the change is large."""
        price = PRICE
        answers = [self._last(head, enough, price)]
        while answers[-1].proved and answers[-1].size > LARGE and self.locality is not None and price > 1:
            price /= 10
            answers.append(self._last(head, 1 - best(answers).cost, price))
        return answers

    def _descended(self, rate: float) -> nn.Module:
        """Return the model with all layers moved towards the properties by gradient descent at a learning rate."""
        assert self.locality is not None
        generator = torch.Generator().manual_seed(self.seed)
        wanted = []
        for task in self.tasks:
            violated = hunt(self.head.graph, task.jobs, generator)
            some = torch.randperm(len(violated[0]), generator=generator)[:512]
            drawn = random_starts(task.jobs, generator, 256)
            x, job = (torch.cat([a, b[some]]) for a, b in zip(drawn, violated, strict=True))
            wanted.append(Wanted(task.jobs, x, job, task.margin * (2 if task.role == "repair" else 0.1)))
        locality = self.locality

        def say(text: str) -> None:
            self.say(f"gradient descent on all layers: {text}")

        return descend(
            self.model, self.head.shape, wanted, locality.inputs, locality.criterion, generator, rate=rate, say=say
        )

    def _last(self, head: Head, enough: float, price: float) -> Answer:
        """Repair the last layer of a network; give up when that keeps less than `enough` of the locality set."""
        for task in self.tasks:
            task.margin = task.asked  # an attempt before may have doubled it
        states, cost = None, None
        if self.locality is not None:
            keys, criterion = head.keys(self.locality.inputs), self.locality.criterion
            before = self.head.graph(self.locality.inputs)
            typical = criterion.typical_slack(before)
            need = criterion.slack(before).clamp(max=KEPT_MARGIN * typical)
            states = LocalityStates(keys, keys @ head.weight.T, criterion, need)
            if self.by_activity:
                on = (keys != 0).double().mean(0)
                cost = (on / (1 - on)).clamp(RARE, DEAR).expand_as(head.weight)
        generator = torch.Generator().manual_seed(self.seed)
        work = HeadRepair(
            head, self.tasks, states, self.options, self.timeout, generator, self.say, enough, self.thicker, price, cost
        )
        try:
            proved = work.run()
        except Contradiction as reason:
            clash = None if any(tag.endswith(PARTS) for tag in reason.tags) else reason.tags
            return Answer(self.model, {}, False, 0.0, [], self._stats(work), clash)
        except Lossy:
            return Answer(self.model, {}, False, 0.0, [], self._stats(work))
        except (Unproved, NotSolvedError):
            proved = False
        repaired, proofs = head.moved(work.change), work.proofs
        if not proved:  # what was checked last may have been another change
            proofs = {
                t.name: checked(repaired, t.given, t.told(self.say), self.timeout, options=self.options)
                for t in self.tasks
            }
        share = 1.0
        if self.locality is not None:
            y = repaired(self.locality.inputs.to(next(repaired.parameters())).reshape(-1, *head.shape))
            share = float(self.locality.criterion.holds(y.detach().double()).double().mean())
        notes = []
        if work.leaves:
            notes.append(f"parts of the region became conditions: {', '.join(work.leaves)}.")
        return Answer(
            repaired,
            proofs,
            proved,
            share,
            notes,
            {**self._stats(work), "layer": list(head.names), "from_parts": list(work.leaves)},
            size=times_as_large(self.model, repaired),
        )

    def _stats(self, work: HeadRepair) -> dict[str, Any]:
        return {**work.stats, "margins": {task.name: task.margin for task in self.tasks}}

    def judged(self, answer: Answer, held: list[bool], call: str, seconds: float, original: nn.Module) -> RepairResult:
        """Say what was proved, and measure the rest."""
        repaired = answer.model
        proofs = tuple(
            Proof(t.name, t.role, answer.proofs[t.name], t.given if isinstance(t.given, Path) else None)
            for t in self.tasks
            if t.name in answer.proofs
        )
        holds = [t.name in answer.proofs and answer.proofs[t.name].holds for t in self.tasks if t.role == "repair"]
        lost = [p.name for p in proofs if p.role == "keep" and not p.result.holds]
        widths = answer.stats.get("margins", {})
        margins = ", ".join(f"{t.name} {widths[t.name]:.3g}" for t in self.tasks if t.role == "repair" and widths)
        notes = [*answer.notes, f"margins: {margins}."] if margins else answer.notes
        report = Report(
            edits=len(holds),
            held_before=held,
            held_after=holds,
            success_rate=sum(holds) / len(holds),
            generalization_rate=None,
            side_effects=self._side_effects(repaired),
            weight_change=weight_change(self.model, repaired),
            seconds=seconds,
            method=call,
            notes=notes,
            asked="properties",
        )
        final = like(original, repaired).to(next(original.parameters()).device)
        patch = Patch.between(self.model, final, about(report))
        outcome = self._outcome(answer, held, holds, lost)
        return RepairResult(final, outcome, report, patch, None, answer.stats, None, proofs)

    def _side_effects(self, repaired: nn.Module) -> SideEffects | None:
        """Measure those on the locality set, in the model's own precision."""
        if self.locality is None:
            return None
        inputs = self.locality.inputs.to(next(self.model.parameters())).reshape(-1, *self.head.shape)
        points = LocalitySet(inputs, self.locality.criterion if self.locality.labelled else None)
        all_hold = torch.ones(len(points), dtype=torch.bool)
        criterion = self.locality.criterion
        before = outputs(self.model, points.inputs)
        watched = Watched(kind_of(criterion), Locality(points, criterion, all_hold, before))
        return replace(watched.compare(outputs(repaired, inputs)), left_out=self.locality.left_out)

    def _outcome(self, answer: Answer, held: list[bool], holds: list[bool], lost: list[str]) -> Outcome:
        names = [task.name for task in self.tasks if task.role == "repair"]
        if all(held) and not lost:
            return Outcome("nothing to do", "every property already holds; the network is returned unchanged.")
        if answer.conflict is not None:
            who = ", ".join(answer.conflict)
            advice = (
                f"no change of the last layer was found to satisfy {who} at the counterexamples, with their margins: "
            )
            advice += "none exists where a property may hold in one way only; where in several, each was tried in the "
            advice += 'nearest. Give a locality set and layer="all", another margin, or drop one of them.'
            clash = [k for k, name in enumerate(names) if name in answer.conflict]
            return Outcome("infeasible", advice, list(range(len(names))), clash)
        failing = [k for k, fine in enumerate(holds) if not fine]
        if failing or lost or not answer.proved:
            open_still = [names[k] for k in failing] + lost
            advice = f'not proved: {", ".join(open_still)}. Try a larger margin or most_boxes, or layer="all".'
            return Outcome("partly repaired", advice, failing)
        alone = "the property holds on its whole region."
        return Outcome(
            "repaired",
            alone if len(self.tasks) == 1 else f"all {len(self.tasks)} properties hold on their whole regions.",
        )
