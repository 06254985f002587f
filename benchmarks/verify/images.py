"""Perturbations of images: fully connected MNIST networks and small convolutional ones, against a plain CROWN bound.

    python -m benchmarks.verify.images              resumes where it was stopped
    python -m benchmarks.verify.images hundred      100 images of the fully connected networks, seconds of CPU time

Every pixel may change by the radius, within [0, 1]; the property is that the decision stays. `plain` is what one CROWN
bound without splits and without optimised slopes proves, and what the same attack refutes.
Files: benchmarks/verify/results/images.json, images-hundred.json.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import measure
from nnrepair import Argmax
from nnrepair.deadline import Deadline
from nnrepair.domains import files as data
from nnrepair.domains import vision
from nnrepair.verify import Box, Property, check
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.bounds import Bounder

RESULTS = Path(__file__).parent / "results"
LIMIT = 5.0  # seconds of wall time for each image, or of CPU time where there are HUNDRED
IMAGES, HUNDRED = 50, 100
Row = dict[str, Any]

EXPERIMENTS = [
    *itertools.product(("mnist 3x100", "mnist 9x100"), (0.01, 0.02, 0.03)),
    *itertools.product(("mnist cnn",), (0.01, 0.02, 0.03)),
    *itertools.product(("cifar cnn",), (1 / 1020, 1 / 510, 1 / 255)),
]

HARD = list(itertools.product(("mnist 3x100", "mnist 9x100"), (0.03, 0.02)))


def network(name: str, count: int = IMAGES) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, images in [0, 1] that were not trained on, and their labels."""
    world, kind = name.split()
    if world == "mnist":
        train, test = vision.mnist("train", flat=False)[:10_000], vision.mnist("test", flat=kind != "cnn")
    else:
        train, test = cifar("train"), cifar("test")
    test = test[:count]
    model = vision.train_classifier(cnn(train), train, epochs=5) if kind == "cnn" else vision.relu_mlp(kind)
    return model, test.inputs, test.labels


def cnn(images: vision.Images) -> nn.Module:
    """Return two strided convolutions and two linear layers, untrained."""
    channels, side = images.inputs.shape[1], images.inputs.shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (side // 4) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def cifar(split: str) -> vision.Images:
    """Return the lossless CIFAR-10 images at hand: the first 4000 of the training set, 389 of the test set."""
    with np.load(data.locate(data.Resource("cifar10/cifar10_lossless.npz"))) as file:
        pixels, labels = file[f"x_{split}"], file[f"y_{split}"]
    return vision.Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long())


def plain(model: nn.Module, image: Tensor, label: int, radius: float) -> bool:
    """Tell whether a single CROWN bound proves that the decision stays."""
    graph = lower(model, tuple(image.shape))
    box = Box.around(image, radius, 0, 1)
    low, high = (torch.from_numpy(end) for end in box.outer)
    with torch.no_grad():
        bounder = Bounder(graph, low, high)
        rows = -torch.eye(10, dtype=torch.float64)
        rows[:, label] += 1
        rows = rows[[k for k in range(10) if k != label]]
        relaxation = bounder.relax(low[None], high[None])
        bound = bounder.backward(relaxation, len(graph.nodes) - 1, rows, torch.zeros(9, dtype=torch.long))
        return bool((bound.minimum(low, high) > 0).all())


def run(hundred: bool = False) -> None:
    """Check every image at every radius."""
    path, count = RESULTS / ("images-hundred.json" if hundred else "images.json"), HUNDRED if hundred else IMAGES
    rows = measure.load(path)
    done = {(row["network"], row["radius"], row["image"]) for row in rows}
    about = f"first {count} test images, limit {LIMIT:g} s of {'CPU' if hundred else 'wall'} time each, seed 0"
    for name, group in itertools.groupby(HARD if hundred else EXPERIMENTS, key=lambda one: one[0]):
        model, images, labels = network(name, count)
        with torch.no_grad():
            right = (model(images).argmax(1) == labels).tolist()
        cases = [(radius, k) for _, radius in group for k in range(len(images))]
        for radius, k in tqdm(cases, desc=name):
            if (name, radius, k) in done:
                continue
            row: Row = {"network": name, "radius": radius, "image": k, "correct": right[k]}
            if right[k]:
                row |= checked(model, images[k], int(labels[k]), radius, time.thread_time if hundred else None)
            rows.append(row)
            measure.save(path, rows, about)


def checked(model: nn.Module, image: Tensor, label: int, radius: float, clock: Callable[[], float] | None) -> Row:
    """Return what came out for one image, with seconds by a clock (None: the wall's), and what plain bounds prove."""
    claim = Property.on(Box.around(image, radius, 0, 1), Argmax([label]), outputs=10)
    with patch.object(sys.modules[check.__module__], "Deadline", partial(Deadline, clock=clock)):
        result = check(model, claim, timeout=LIMIT)
    started = time.process_time()
    proved = plain(model, image, label, radius)
    return {
        "verdict": result.verdict,
        "parts": result.boxes,
        "cpu_seconds": round(result.cpu_seconds, 3),
        "plain_proved": proved,
        "plain_cpu_seconds": round(time.process_time() - started, 3),
    }


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:] == ["hundred"]))
