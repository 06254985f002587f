"""The editing benchmark, where every method, domain and mode meets: one task, one method, one row of figures.

A domain gives a `nnrepair.domains.base.Task`: a network, real mistakes to repair, points to keep, neighbours of the
mistakes, and test sets that no method sees. `benchmarks.experiments` says which methods meet which tasks.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nnrepair
from benchmarks.language.task import METHODS
from benchmarks.measure import ROOT, measured
from nnrepair.domains.base import Task
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.methods.base import Capabilities, Method, Proposal, entry
from nnrepair.methods.fine_tune import penalties
from nnrepair.methods.trainable import Editor, Trainable
from nnrepair.provenance import digest, source
from nnrepair.results.effects import SideEffects
from nnrepair.results.history import History
from nnrepair.results.metrics import generalization_rates, mean_rate
from nnrepair.results.result import RepairResult
from nnrepair.spec.bounds import ERROR
from nnrepair.spec.given import as_criterion
from nnrepair.spec.problem import Problem, fitted
from nnrepair.spec.running import outputs_of

Row = dict[str, Any]

#: Editors that several rows need; git ignores them.
EDITORS = ROOT / "build" / "editors"
#: The ways to ask for edits -> what `nnrepair.fix` is told.
MODES: dict[str, dict[str, Any]] = {
    "independent": {"mode": "independent"},
    "successive": {"mode": "successive"},
    "successive-no-rehearsal": {"mode": "successive", "rehearsal": False},
    "batch": {"mode": "batch"},
}


@dataclass(frozen=True)
class Domain:
    """Where a domain's tasks come from: a module with `task(model_name, seed, edits, **options) -> Task`.

    Attributes:
        name: as on the command line.
        module: the module's name.
        folder: holds `defaults.toml`, `experiments/*.toml` and `results/*.json`.
    """

    name: str
    module: str
    folder: Path

    def task(self, model: str, seed: int, edits: int, **options: Any) -> Task:
        """Return one task; the same arguments give the same task."""
        make: Callable[..., Task] = importlib.import_module(self.module).task
        return make(model, seed, edits, **options)


#: Every folder here that poses tasks, by name.
DOMAINS = {
    path.parent.name: Domain(path.parent.name, f"benchmarks.{path.parent.name}.task", path.parent)
    for path in sorted(Path(__file__).parent.glob("*/task.py"))
}


def method_of(name: str, options: Mapping[str, Any]) -> Method | Trainable:
    """Return the registered method `name` with some of its hyper-parameters replaced.

    >>> method_of("minimal-norm", {"layer": "fc3", "norm": "drift"}).layer
    'fc3'

    Args:
        name: as `nnrepair methods` lists it, or a method that only language models have.
        options: its arguments; `penalties` is a list of tables, each with the penalty's class name as `kind`.

    Raises:
        InvalidInput: an unknown method, option or penalty (near matches are listed).
    """
    chosen = METHODS[name]() if name in METHODS else entry(name)()
    known = {field.name for field in fields(chosen)} if is_dataclass(chosen) else set()
    _refuse_unknown(options, known, f"option of {name}")
    made = {key: tuple(map(_penalty, value)) if key == "penalties" else value for key, value in options.items()}
    return replace(chosen, **made)  # type: ignore[type-var]


def _penalty(table: Mapping[str, Any]) -> Any:
    known = {kind.__name__: kind for kind in vars(penalties).values() if _is_penalty(kind)}
    table = dict(table)
    kind = str(table.pop("kind", ""))
    if kind not in known:
        hint = near_matches(kind, known)
        raise InvalidInput(f"A penalty needs its kind, given {kind!r}.{hint} Kinds: {', '.join(known)}.")
    _refuse_unknown(table, {field.name for field in fields(known[kind])}, f"argument of {kind}")
    return known[kind](**table)


def _is_penalty(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, penalties.Penalty) and is_dataclass(kind)


def _refuse_unknown(given: Mapping[str, Any], known: set[str], what: str) -> None:
    for name in given:
        if name not in known:
            hint = near_matches(name, known)
            raise InvalidInput(f"{name!r} is no {what}.{hint} Known: {', '.join(sorted(known)) or 'none'}.")


def one(
    domain: Domain,
    model: str,
    method: str,
    options: Mapping[str, Any],
    mode: str,
    seed: int,
    edits: int,
    task: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Row:
    """Return the figures of one method on one task; called in a process of its own."""
    return on(domain.task(model, seed, edits, **task or {}), method, options, mode, seed, training)


def on(
    posed: Task,
    method: str,
    options: Mapping[str, Any],
    mode: str,
    seed: int,
    training: Mapping[str, Any] | None = None,
) -> Row:
    """Return the figures of one method on a task that is there.

    Args:
        posed: the task.
        method, options, mode, seed: what is asked for.
        training: of a method that is trained first, on the task's episodes: `steps`, `edits` and `locality` of an
            episode, and whether their labels are to be drawn too (`any_labels`). What it costs is told apart from the
            repair. Rows that need the same editor share it, in build/editors, and say `stored`.
    """
    chosen = method_of(method, options)
    _warm_up()
    told: Row = {}
    if isinstance(chosen, Trainable):
        chosen, told["trained"] = _trained(chosen, posed, seed, **training or {})

    counted = Counted(chosen)

    def work() -> Row:
        result = nnrepair.fix(
            posed.model,
            posed.edits,
            posed.locality_set,
            method=counted,
            edit_scope=posed.edit_scope,
            test_set=dict(posed.test_set),
            throw=False,
            seed=seed,
            **MODES[mode],
        )
        row = figures(result, list(posed.test_set), len(posed.edits))
        if posed.further is not None and mode != "independent":  # which has no one network
            row["further"] = {name: round(value, 4) for name, value in posed.further(result.model).items()}
        return row

    row = measured(work)
    return row | {"repair_cpu_seconds": counted.cpu_seconds} | told


class Counted:
    """A method whose own CPU seconds are counted, without what is measured before and after."""

    def __init__(self, method: Method) -> None:
        self.method, self.cpu_seconds = method, 0.0

    def __repr__(self) -> str:
        return repr(self.method)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the method."""
        return self.method.capabilities

    def repair(self, problem: Problem) -> Proposal:
        """Propose what the method does."""
        start = time.process_time()
        try:
            return self.method.repair(problem)
        finally:
            self.cpu_seconds += time.process_time() - start


def _trained(method: Trainable, task: Task, seed: int, any_labels: bool = False, **given: Any) -> tuple[Editor, Row]:
    name = digest([method, task.model, seed, any_labels, given, source(), torch.__version__])
    EDITORS.mkdir(parents=True, exist_ok=True)
    file = EDITORS / f"{name[:24]}.safetensors"
    sizes = {key: given.pop(key) for key in ("edits", "locality") if key in given}
    exercises = task.any_edits(**sizes) if any_labels else partial(task.episodes, **sizes)
    cpu, stored = time.process_time(), file.exists()
    editor = method.prepare(task.model, exercises, seed=seed, resume=file, **given)
    told = {"steps": editor.steps, "stopped": editor.stopped, "cpu_seconds": time.process_time() - cpu}
    return editor, told | ({"stored": True} if stored else {})


def _warm_up() -> None:
    """First-call costs are paid once per process and not counted, the same for every method."""
    small = nn.Linear(2, 2)
    with torch.no_grad():
        small.weight.copy_(torch.eye(2))
        small.bias.zero_()
    x = torch.tensor([[1.0, 0.5], [2.0, 1.0], [0.0, 1.0]])
    for name in ("ft", "minimal-norm"):
        nnrepair.fix(small, (x[:1], [1]), (x[1:], [0, 1]), method=name, throw=False)


def unedited(domain: Domain, model: str, seed: int, edits: int, task: Mapping[str, Any] | None = None) -> Row:
    """Return what the network of a task does before any edit: what its edits' neighbours and its test sets get."""
    posed = domain.task(model, seed, edits, **task or {})
    scope = posed.edit_scope
    y = outputs_of(posed.model, [scope.inputs, *(inputs for inputs, _ in posed.test_set.values())])
    rates = generalization_rates(scope.criterion.holds(y[0]), scope.of, len(posed.edits))
    return {
        "generalization_before": mean_rate(rates),
        "edits_with_scope": sum(rate is not None for rate in rates),
        "accuracy": {
            name: float(fitted(as_criterion(labels, name), one).holds(one).double().mean())
            for one, (name, (_, labels)) in zip(y[1:], posed.test_set.items(), strict=True)
        },
    }


def figures(result: RepairResult | History, tests: list[str], edits: int) -> Row:
    """Return the measures of a repair as a flat row; those on test sets are about the first of `tests`.

    `drawdown_points` is the mean over independent edits, and that of the last network of a sequence or a batch.
    """
    if isinstance(result, RepairResult):
        report = result.report
        side_effects, curve = report.tests, None
        worst = side_effects[tests[0]].drawdown_points
        row: Row = {"success_rate": report.success_rate, "generalization_rate": report.generalization_rate}
        told = {"change": report.weight_change.l2, "steps": _steps(result.stats.get("steps"))}
        told["layer"] = result.stats["layer"] if "layers_tried" in result.stats else None  # the one that was found best
        row |= {key: value for key, value in told.items() if value is not None}
        seconds = report.seconds
    else:
        side_effects, worst = result.side_effects, result.worst_drawdown_points(tests[0])
        row = {
            "success_rate": result.success_rate,
            "generalization_rate": result.generalization_rate,
            "success_retain_rate": result.success_retain_rate,
            "generalization_retain_rate": result.generalization_retain_rate,
        }
        seconds = result.seconds
        curve = None if result.mode == "independent" else _curve(result, tests[0])  # those edits have no order
    first = side_effects[tests[0]]
    row |= {
        "points": first.points,
        "drawdown_points": first.drawdown_points,
        "drawdown_points_max": worst,
        "drawdown": first.drawdown,
        "locality": first.locality,
        "accuracy_before": first.accuracy_before,
        "tests": {name: _short(side_effects[name]) for name in tests[1:]},
        "edit_seconds": seconds / edits,
        "status": result.outcome.status,
    }
    return row | _numbers(result, tests[0]) | ({} if curve is None else {"curve": curve})


def _steps(told: Any) -> int | None:
    """Return how many steps a method took, where it tells the number of them, or of each what it did."""
    return len(told) if isinstance(told, list) else told


def _short(found: SideEffects) -> Row:
    told: Row = {"points": found.points, "drawdown_points": found.drawdown_points, "locality": found.locality}
    numbers = {} if found.moved is None else {"moved": found.moved.mean}
    return told | numbers | ({"measures": found.measures} if found.measures else {})


def _numbers(result: RepairResult | History, test: str) -> Row:
    """Return the measures of outputs that are numbers, before and after, and after the worst step; often none."""
    if isinstance(result, RepairResult):
        steps = [result.report.tests[test]]
        found = steps[0]
    else:
        steps = [step.side_effects[test] for step in result.steps]
        found = result.side_effects[test]
    if not found.measures:
        return {}
    worst = max(step.measures[ERROR][1] for step in steps if ERROR in step.measures)
    return {"measures": found.measures, "worst_error": worst}


def _curve(history: History, test: str) -> dict[str, list[float]]:
    """Return what the figures draw, one number per step, rounded."""
    curves = history.curves()
    names = {"success_rate": "success_rate", "retained": "retained", "drawdown_points": f"drawdown_points {test}"}
    return {name: [round(value, 3) for value in curves[key]] for name, key in names.items() if key in curves}
