"""Editable Training of ResNet-20's last convolutions, `layer3.2`, in place: the paper's own recipe, at a small scale.

As in `benchmarks.cifar.editable`, with fewer edits and test images: every edit runs two convolutions on all of them.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.cifar.editable import Protocol, Row, both, matched, measure_rows, training
from nnrepair import Edits, EditScope, LocalitySet
from nnrepair.domains.images.cifar import ResNet, cifar10_jpeg, cifar10_lossless, resnet20
from nnrepair.domains.vision import Images
from nnrepair.methods import EditableTraining

RESULTS = Path(__file__).parent / "results" / "editable-training-conv.json"
#: Training images, test images, and edits of each protocol.
IMAGES, TESTED, RANDOM, REAL = 4000, 1000, 60, 30
OPTIONS: dict[str, Any] = {"layers": "block", "lr": 3e-4}
STEPS = (1000,)


class Tail(nn.Module):
    """What follows the last convolutions: the mean over pixels, and the last layer."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.linear = network.linear

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def suffix(network: ResNet) -> nn.Sequential:
    """Return the last block and what follows as a network of its own: (n, 64, 8, 8) to logits (n, 10)."""
    return nn.Sequential(OrderedDict(block=network.layer3[2], tail=Tail(network)))


@torch.no_grad()
def seen(network: ResNet, images: Images) -> Images:
    """Return what the last block sees of images."""
    found: list[Tensor] = []
    handle = network.layer3[2].register_forward_pre_hook(lambda module, given: found.append(given[0].clone()))
    for part in images.inputs.split(250):
        network(part)
    handle.remove()
    return Images(torch.cat(found), images.labels)


def posed(seed: int, network: ResNet) -> dict[str, Protocol]:
    """Return random labels and real mistakes, of the same test images; their neighbours are not looked at."""
    generator = torch.Generator().manual_seed(seed)
    images = cifar10_jpeg("test")
    test = seen(network, images[torch.randperm(len(images), generator=generator)[:TESTED]])
    lossless = seen(network, cifar10_lossless("test"))
    model = suffix(network)
    tests = {"jpeg": (test.inputs, test.labels), "lossless": (lossless.inputs, lossless.labels)}
    with torch.no_grad():
        wrong = (model(test.inputs).argmax(1) != test.labels).nonzero()[:, 0]
    mine = torch.randperm(TESTED, generator=generator)[:RANDOM]
    labels = torch.randint(10, (RANDOM,), generator=generator)
    asked = {"random labels": (mine, labels), "real mistakes": (wrong[:REAL], test.labels[wrong[:REAL]])}
    return {
        name: Protocol(
            model,
            Edits(test.inputs[some], wanted),
            EditScope(test.inputs[some], wanted, torch.arange(len(some))),
            LocalitySet(test.inputs[:1]),
            tests,
        )
        for name, (some, wanted) in asked.items()
    }


def trained(name: str, seed: int, steps: int) -> Row:
    """Train an editor, and return its figures with those of its training."""
    network = resnet20()
    images, protocols = seen(network, cifar10_jpeg("train")[:IMAGES]), posed(seed, network)
    random = protocols["random labels"]
    method, points = EditableTraining(**OPTIONS), (images.inputs, images.labels)
    editor, told = training(method, random.model, points, steps, seed, random.tests)
    return both(editor, protocols) | {"training": told}


def unprepared(name: str, seed: int, steps: float) -> Row:
    """Return the figures of gradient descent in the same convolutions, with about as many steps."""
    protocols = posed(seed, resnet20())
    editor, start = matched(protocols["random labels"], OPTIONS, steps, seed)
    return both(editor, protocols) | {"start": start, "steps wanted": steps}


def run() -> None:
    """Measure what is not measured yet, each row in a process of its own."""
    cases = [{"name": f"layer3.2, {steps} steps", "seed": 0, "steps": steps} for steps in STEPS]
    measure_rows(RESULTS, trained, cases)
    taken = [row["random labels"]["steps"] for row in measure.load(RESULTS) if "training" in row]
    measure_rows(RESULTS, unprepared, [{"name": "layer3.2, not prepared", "seed": 0, "steps": taken[-1]}])
