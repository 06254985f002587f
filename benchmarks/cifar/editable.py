"""Editable Training on CIFAR-10's ResNet-20: editors trained, and compared with what needs no training.

Two protocols. *Random labels* (Sinitsin et al., ICLR 2020): test images are to get labels drawn at random, each alone,
from the original network; *real mistakes*: test images that the network gets wrong. Drawdown is measured on the JPEG
test images, and on the few lossless ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

import nnrepair
from benchmarks import measure
from benchmarks.cifar.task import features, head, scope, shifted, task
from nnrepair import Edits, EditScope, LocalitySet
from nnrepair.domains.images.cifar import cifar10_jpeg, resnet20
from nnrepair.fingerprint import fingerprint
from nnrepair.methods import EditableTraining, Editor, FineTune, Method, MinimalNorm, RandomLabels
from nnrepair.methods.editable_training import prepared

RESULTS = Path(__file__).parent / "results" / "editable-training.json"
#: Editors that are committed, with the rows of their training in the result file.
EDITORS = Path(__file__).parent / "editors"
ABOUT = "Editable Training of ResNet-20, a block before `linear`; random labels and real mistakes, each edit alone"
LIMIT = 3600.0
SEEDS = (0, 1, 2)
#: Edits of one seed, by protocol.
RANDOM, REAL = 300, 50
#: Points to keep in one exercise, of the JPEG training images.
LOCALITY = 128
#: Random-label edits on which step sizes are chosen for a given number of steps.
CHOSEN_ON = 50

Row = dict[str, Any]
Tests = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trained:
    """A training of `EditableTraining`: its steps, and what differs from `BLOCK`."""

    steps: int = 3000
    options: dict[str, Any] = field(default_factory=dict)


BLOCK: dict[str, Any] = {"layers": "linear", "residual": 1024}
TRAINED: dict[str, Trained] = {
    "block": Trained(),
    "block, 1000 steps": Trained(1000),
    "block, 300 steps": Trained(300),
    "block, first order": Trained(options={"second_order": False}),
    "block, trained on labels": Trained(options={"base": "labels"}),
    "block, 10000 steps": Trained(10_000),
    "block, 100 steps": Trained(100),
}
#: Gradient descent of the same code with nothing trained, with a step size that makes it take as many steps.
UNPREPARED: dict[str, dict[str, Any]] = {
    "block, not prepared": BLOCK,
    "linear, not prepared": {"layers": "linear"},
}
#: What repairs without any training; the first sees the locality set of the task.
OTHERS: dict[str, tuple[Method, bool]] = {
    "minimal-norm, drift": (MinimalNorm(layer="linear", norm="drift"), True),
    "minimal-norm, l2": (MinimalNorm(layer="linear", norm="l2"), False),
    "ft": (FineTune(layers="linear", lr=0.01, steps=500), False),
}


@dataclass(frozen=True)
class Protocol:
    """Edits, each to be made alone, with what is measured after each."""

    model: nn.Module
    edits: Edits
    scope: EditScope
    locality: LocalitySet
    tests: Tests


def random_labels(seed: int) -> Protocol:
    """Edits: JPEG test images, with labels drawn at random, which may be right; tests: all images, also the edited."""
    at, generator = features(), torch.Generator().manual_seed(seed)
    mine = torch.randperm(len(at["test"]), generator=generator)[:RANDOM]
    labels = torch.randint(10, (RANDOM,), generator=generator)
    kept = task("resnet20", seed, REAL).locality_set
    network, images = resnet20(), cifar10_jpeg("test").inputs[mine]
    with torch.no_grad():
        near = torch.cat([network.features(part) for part in shifted(images).flatten(0, 1).split(250)])
    tests = {name: (at[key], at[f"{key} labels"]) for name, key in (("jpeg", "test"), ("lossless", "lossless"))}
    neighbours = scope(near.unflatten(0, (RANDOM, -1)), labels)
    return Protocol(head(network), Edits(at["test"][mine], labels), neighbours, kept, tests)


def real_mistakes(seed: int) -> Protocol:
    """Return the task of the editing benchmark with this seed, with more edits."""
    posed = task("resnet20", seed, REAL)
    return Protocol(posed.model, posed.edits, posed.edit_scope, posed.locality_set, dict(posed.test_set))


def figures(protocol: Protocol, method: Method, with_locality: bool = False) -> Row:
    """Return what comes of making each edit alone, from the original network."""
    found: list[Row] = []
    assert protocol.scope.of is not None
    for k in range(len(protocol.edits)):
        near = (protocol.scope.of == k).nonzero()[:, 0]
        result = nnrepair.fix(
            protocol.model,
            protocol.edits[torch.tensor([k])],
            protocol.locality if with_locality else None,
            method=method,
            edit_scope=EditScope(protocol.scope.inputs[near], protocol.scope.criterion[near]),
            test_set=protocol.tests,
            throw=False,
        )
        lost = {name: side.drawdown_points for name, side in result.report.tests.items()}
        row = {"held": result.outcome.ok, "changed": result.outcome.status != "nothing to do", "lost": lost}
        row |= {"seconds": result.report.seconds, "near": result.report.generalization_rate}
        found.append(row | {"steps": result.stats.get("steps", 0)})
    changed = [row for row in found if row["changed"]]
    return {
        "edits": len(found),
        "success_rate": fmean(row["held"] for row in found),
        "generalization_rate": fmean(row["near"] for row in found),
        "changed": len(changed),
        "steps": fmean(row["steps"] for row in found),
        "drawdown_points": {name: fmean(row["lost"][name] for row in found) for name in protocol.tests},
        "drawdown_points_max": {name: max(row["lost"][name] for row in found) for name in protocol.tests},
        "drawdown_points_of_changed": {name: fmean(row["lost"][name] for row in changed) for name in protocol.tests},
        "edit_seconds": fmean(row["seconds"] for row in changed),
    }


def posed(seed: int) -> dict[str, Protocol]:
    """Return both protocols."""
    return {"random labels": random_labels(seed), "real mistakes": real_mistakes(seed)}


def both(method: Method, protocols: dict[str, Protocol], with_locality: bool = False) -> Row:
    """Return the figures of a method under each protocol, and what they cost."""
    return measure.measured(
        lambda: {name: figures(protocol, method, with_locality) for name, protocol in protocols.items()}
    )


def training(
    method: EditableTraining, model: nn.Module, images: tuple[Tensor, Tensor], steps: int, seed: int, tests: Tests
) -> tuple[Editor, Row]:
    """Train an editor on images and labels, random ones to be edited; return it, and what there is to tell."""
    episodes = RandomLabels(*images, edits=1, locality=LOCALITY)
    cpu = time.process_time()
    editor = method.prepare(model, episodes, steps=steps, seed=seed)
    told: Row = {"cpu_seconds": time.process_time() - cpu, "steps": steps, "images": len(images[1])}
    told |= {"stopped": editor.stopped, "fingerprint": editor.fingerprint, "options": asdict(method)}
    told["step sizes"] = editor.learned["log_rates"].exp().tolist()
    nets = {"accuracy_before": model, "accuracy": prepared(editor, model)}
    return editor, told | {name: accuracies(net, tests) for name, net in nets.items()}


@torch.no_grad()
def accuracies(model: nn.Module, tests: Tests) -> dict[str, float]:
    """Return the share of images that a network gets right."""
    return {name: float((model(x).argmax(1) == labels).double().mean()) for name, (x, labels) in tests.items()}


def matched(protocol: Protocol, options: dict[str, Any], steps: float, seed: int) -> tuple[Editor, float]:
    """Return gradient descent with nothing trained, and the step size with which it takes about so many steps."""
    few = {name: (x[:10], labels[:10]) for name, (x, labels) in protocol.tests.items()}
    some = torch.arange(min(CHOSEN_ON, len(protocol.edits)))
    alone = replace(protocol, edits=protocol.edits[some], tests=few)

    def editor(start: float) -> Editor:
        method = EditableTraining(**{**options, "start": start})
        learned = method.begin(protocol.model, torch.Generator().manual_seed(seed))
        return Editor(method, dict(learned.state_dict()), fingerprint(protocol.model), 0)

    low, high = 1e-4, 1.0
    for _ in range(8):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if figures(alone, editor(middle))["steps"] < steps else (middle, high)
    start = math.sqrt(low * high)
    return editor(start), start


# Each in its process -------------------------------------------------------------------------------------------------


def trained(name: str, seed: int) -> Row:
    """Train an editor, store it where it is one to be committed, and return its figures with those of its training."""
    at, protocols = features(), posed(seed)
    method, random = EditableTraining(**{**BLOCK, **TRAINED[name].options}), protocols["random labels"]
    images = at["train"], at["train labels"]
    editor, told = training(method, random.model, images, TRAINED[name].steps, seed, random.tests)
    if name == "block":
        EDITORS.mkdir(exist_ok=True)
        told["bytes"] = editor.save(EDITORS / f"block-{seed}.safetensors").stat().st_size
    return both(editor, protocols) | {"training": told}


def unprepared(name: str, seed: int, steps: float) -> Row:
    """Return the figures of gradient descent with a step size that makes it take about as many steps."""
    protocols = posed(seed)
    editor, start = matched(protocols["random labels"], UNPREPARED[name], steps, seed)
    return both(editor, protocols) | {"start": start, "steps wanted": steps}


def other(name: str, seed: int) -> Row:
    """Return the figures of a method that is not trained."""
    method, with_locality = OTHERS[name]
    return both(method, posed(seed), with_locality) | {"options": repr(method)}


def run() -> None:
    """Measure what is not measured yet, each row in a process of its own."""
    _measure(trained, _seeds("block"))
    taken = {row["seed"]: row["random labels"]["steps"] for row in measure.load(RESULTS) if row["name"] == "block"}
    for name in UNPREPARED:
        _measure(unprepared, [case | {"steps": taken[case["seed"]]} for case in _seeds(name)])
    for name in OTHERS:
        _measure(other, _seeds(name))
    _measure(trained, [{"name": name, "seed": SEEDS[0]} for name in TRAINED if name != "block"])


def _seeds(name: str) -> list[Row]:
    return [{"name": name, "seed": seed} for seed in SEEDS]


def _measure(work: Callable[..., Row], cases: list[Row]) -> None:
    measure.missing(RESULTS, work, cases, ABOUT, LIMIT, ["benchmarks.cifar.editable"])
