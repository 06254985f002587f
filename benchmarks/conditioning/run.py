"""Conditioning on the tasks of the editing benchmark: true and random labels, one edit, several and many at once.

A conditioned network can pass for a good editor by having learned which labels are right. So the same mistakes also get
labels drawn at random, and what other mistakes become is counted: an editor leaves these alone, a classifier of foggy
digits mends them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import nnrepair
from benchmarks import measure
from benchmarks.editing import DOMAINS
from nnrepair import Edits, EditScope
from nnrepair.domains.base import Task
from nnrepair.methods import CNPConditioning, Editor

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "conditioning.json"
ABOUT = "Conditioning: edits with true and random labels, from the original network, by how many at once"
#: Seconds after which an editor is given up.
LIMIT = 3600.0
#: Repairs, each of so many edits at once, that one figure is a mean of.
REPAIRS = {1: 30, 10: 10, 50: 1, 100: 1}


@dataclass(frozen=True)
class Case:
    """An editor of one network.

    Attributes:
        domain, model: of the editing benchmark.
        edits: mistakes to draw from.
        others: which of the task's test sets holds other points of the mistakes' kind.
        steps: of the training.
        options: of the method.
    """

    domain: str
    model: str
    edits: int
    others: str
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)


CASES = {
    "mnist": Case("mnist", "3x100", 100, "fog", 3500),
    "mnist, mean": Case("mnist", "3x100", 100, "fog", 3500, {"form": "mean"}, (0,)),
    "cifar": Case("cifar", "resnet20", 50, "jpeg", 2500),
    "cifar, mean": Case("cifar", "resnet20", 50, "jpeg", 2500, {"form": "mean"}, (0,)),
    "cora, both layers": Case("cora", "gcn", 50, "test", 700),
    "cora": Case("cora", "gcn", 50, "test", 900, {"layers": "convs.1", "locality_weight": 30.0}),
}


def trained(name: str, seed: int) -> Row:
    """Train an editor and return what its repairs come to."""
    case = CASES[name]
    task = DOMAINS[case.domain].task(case.model, seed, case.edits)
    cpu = time.process_time()
    editor = CNPConditioning(**case.options).prepare(task.model, task.any_edits(), steps=case.steps, seed=seed)
    row: Row = {"prepare_cpu_seconds": time.process_time() - cpu, "steps": case.steps, "stopped": editor.stopped}
    row |= {"numbers": sum(t.numel() for t in editor.learned.values()), "layers": list(layers_of(editor, task))}
    for labels in ("true", "random"):
        row[labels] = {str(k): figures(task, editor, labels, k, case.others, seed) for k in REPAIRS if k <= case.edits}
    return row


def layers_of(editor: Editor, task: Task) -> list[str]:
    """Return the layers that an editor conditions."""
    found: list[str] = editor.restored(task.model).layers
    return found


def figures(task: Task, editor: Editor, labels: str, count: int, others: str, seed: int) -> Row:
    """Return the means over repairs of `count` edits with true or random labels."""
    first = next(iter(task.test_set))
    found: list[Row] = []
    for edits, scope in drawn(task, labels, count, seed):
        cpu = time.process_time()
        result = nnrepair.fix(
            task.model, edits, method=editor, edit_scope=scope, test_set=dict(task.test_set), throw=False, seed=seed
        )
        spent, report = time.process_time() - cpu, result.report
        found.append({"success_rate": report.success_rate, "cpu_seconds": spent, "edit_seconds": report.seconds})
        found[-1] |= {"drawdown_points": report.tests[first].drawdown_points}
        found[-1] |= {"others_changed": 1 - report.tests[others].locality}
        if report.generalization_rate is not None:
            found[-1]["generalization_rate"] = report.generalization_rate
    return {name: fmean(row[name] for row in found if name in row) for name in found[0]} | {"repairs": len(found)}


def drawn(task: Task, labels: str, count: int, seed: int) -> Iterator[tuple[Edits, EditScope | None]]:
    """Yield edits of a task, with their neighbours; random labels may be those that the network gives already."""
    generator = torch.Generator().manual_seed(seed)
    right: Tensor = task.edits.criterion.labels  # type: ignore[attr-defined]
    classes, of = int(right.max()) + 1, task.edit_scope.of
    assert of is not None
    for _ in range(REPAIRS[count]):
        mine = torch.randperm(len(right), generator=generator)[:count]
        wanted = right[mine] if labels == "true" else torch.randint(classes, (count,), generator=generator)
        place = torch.full((len(right),), -1)
        place[mine] = torch.arange(count)
        near = torch.nonzero(place[of] >= 0).flatten()
        owner = place[of[near]]
        scope = EditScope(task.edit_scope.inputs[near], wanted[owner], owner) if len(near) else None
        yield Edits(task.edits.inputs[mine], wanted), scope


def run() -> None:
    """Measure what is not measured yet, each row in a process of its own."""
    cases = [{"name": name, "seed": seed} for name, case in CASES.items() for seed in case.seeds]
    measure.missing(RESULTS, trained, cases, ABOUT, LIMIT, ["benchmarks.conditioning.run"])
