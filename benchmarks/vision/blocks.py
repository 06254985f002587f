"""Editable Training of ResNet-20's own convolutions: its last block, and its last stage, as training goes on.

One training for each block, of which the editor is taken and measured as time passes; a kill loses nothing, as the
training is stored and goes on. Figures are those of `benchmarks.cifar.editable`, on every tenth test image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.cifar.editable import LOCALITY, Protocol, accuracies, figures, matched
from benchmarks.cifar.task import scope
from benchmarks.vision import cifar
from benchmarks.vision.cut import BUILD, cut_resnet, seen
from nnrepair import Edits, LocalitySet
from nnrepair.domains.images.cifar import resnet20
from nnrepair.methods import EditableTraining, Editor, RandomLabels
from nnrepair.methods.editable_training import prepared

RESULTS = Path(__file__).parent / "results" / "blocks.json"
EDITORS = Path(__file__).parent / "editors"
ABOUT = "Editable Training of ResNet-20's last block and last stage, along one training each; JPEG copies of images"
LIMIT = 3600.0
SEED = 0
#: Edits of the last row of a training, by protocol; and of the others.
RANDOM, REAL, FEW = 100, 50, 30
#: Every so manieth test image says what is lost.
TESTED = 10

Row = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A training.

    Attributes:
        first: where the network is cut: the block or stage that is trained and edited.
        steps: of the whole training.
        marks: seconds of training, after each of which the editor is measured; the last is never reached.
        options: of `EditableTraining`.
    """

    first: str
    steps: int
    marks: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)


TRAININGS = {
    "layer3.2": Trained("layer3.2", 3000, (60, 160, 3000)),
    "layer3": Trained("layer3", 1200, (100, 240, 3000)),
}


def points(first: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the rest of the network from a block on, and what that sees of all images."""
    network, at = resnet20(), dict(cifar.copies())
    rest = cut_resnet(network, first)[1]
    _, _, block = first.partition(".")
    before: Callable[[Tensor], Tensor] = network.layer3[: int(block or 0)]
    if block:
        for name in ("train", "test", "lossless"):
            at[name] = seen(before, at[name])
    return rest, at


def protocols(rest: nn.Module, at: dict[str, Tensor], last: bool) -> dict[str, Protocol]:
    """Return edits with random labels and real mistakes, more for the last row; none of them has neighbours here."""
    random, real = (RANDOM, REAL) if last else (FEW, FEW)
    generator = torch.Generator().manual_seed(1000 + SEED)
    mine = torch.randperm(len(at["test"]), generator=generator)[:random]
    labels = torch.randint(int(at["test labels"].max()) + 1, mine.shape, generator=generator)
    wrong = at["test mistakes"][torch.randperm(len(at["test mistakes"]), generator=generator)[:real]]
    tests = {
        "jpeg": (at["test"][::TESTED], at["test labels"][::TESTED]),
        "lossless": (at["lossless"], at["lossless labels"]),
    }
    keep = LocalitySet(at["train"][:1], at["train labels"][:1])

    def posed(chosen: Tensor, wanted: Tensor) -> Protocol:
        x = at["test"][chosen]
        return Protocol(rest, Edits(x, wanted), scope(x[:, None], wanted), keep, tests)

    return {"random labels": posed(mine, labels), "real mistakes": posed(wrong, at["test labels"][wrong])}


def unprepared(name: str, steps: float) -> Row:
    """Return the figures of gradient descent with nothing trained, with about as many steps."""
    chosen = TRAININGS[name]
    rest, at = points(chosen.first)
    both = protocols(rest, at, False)
    editor, start = matched(both["random labels"], {"layers": chosen.first, **chosen.options}, steps, SEED)
    return _measured(editor, both) | {"start": start, "steps wanted": steps}


def _measured(editor: Editor, both: dict[str, Protocol]) -> Row:
    def work() -> Row:
        return {name: figures(protocol, editor) for name, protocol in both.items()}

    found = measure.measured(work)
    for name in both:
        del found[name]["generalization_rate"]  # of the edits themselves: they have no neighbours here
    return found


def trained(name: str, mark: float, spent: float) -> Row:
    """Train on until so many CPU seconds are spent, of which some are already, and measure the editor of then."""
    chosen = TRAININGS[name]
    rest, at = points(chosen.first)
    method = EditableTraining(layers=chosen.first, **chosen.options)
    episodes = RandomLabels(at["train"], at["train labels"], edits=1, locality=LOCALITY)
    cpu = time.process_time()
    BUILD.mkdir(exist_ok=True)
    editor = method.prepare(
        rest,
        episodes,
        steps=chosen.steps,
        seed=SEED,
        resume=BUILD / f"block-{name}.safetensors",
        seconds=max(mark - spent, 1.0),
    )
    told: Row = {"cpu_seconds": spent + time.process_time() - cpu, "steps": editor.steps, "of": chosen.steps}
    told |= {"images": len(at["train"]), "fingerprint": editor.fingerprint, "options": repr(method)}
    told["step sizes"] = editor.learned["log_rates"].exp().tolist()
    last = mark == chosen.marks[-1] or editor.steps == chosen.steps
    if last:
        EDITORS.mkdir(exist_ok=True)
        told["bytes"] = editor.save(EDITORS / f"{name}.safetensors").stat().st_size
    both = protocols(rest, at, last)
    nets = {"accuracy_before": rest, "accuracy": prepared(editor, rest)}
    accuracy = {key: accuracies(net, both["random labels"].tests) for key, net in nets.items()}
    return _measured(editor, both) | {"training": told | accuracy}


def run() -> None:
    """Measure what is not measured yet, each mark of a training in a process of its own, and what needs none."""
    rows = measure.load(RESULTS)
    known = {(row["name"], row["mark"]): row for row in rows}
    for name, chosen in TRAININGS.items():
        spent = 0.0
        for mark in chosen.marks:
            if (name, mark) not in known:
                known[name, mark] = _add(rows, trained, {"name": name, "mark": mark, "spent": spent})
            found = known[name, mark]
            if "training" not in found or found["training"]["steps"] == chosen.steps:
                break
            spent = found["training"]["cpu_seconds"]
        if (name, 0.0) not in known and "training" in found:
            taken = found["random labels"]["steps"]
            known[name, 0.0] = _add(rows, unprepared, {"name": name, "steps": taken}, mark=0.0)


def _add(rows: list[Row], work: Callable[..., Row], case: Row, **told: Any) -> Row:
    """Measure one case and store it."""
    preload = ["benchmarks.vision.blocks", "torch._dynamo", "scipy.sparse.linalg"]
    ((_, found),) = measure.each_in_its_process(work, [case], LIMIT, preload)
    row = {"name": case["name"], "mark": case.get("mark"), "commit": measure.commit()} | told | found
    rows.append(row)
    measure.save(RESULTS, rows, ABOUT)
    return row
