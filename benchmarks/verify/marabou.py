"""Marabou on the first images of the fully connected networks, beside the checker's answers in images-hundred.json.

    python -m benchmarks.verify.marabou PYTHON      resumes where it was stopped

PYTHON is one that has maraboupy and numpy. The package does not depend on Marabou, which brings a program of its own
for some systems.
File: benchmarks/verify/results/images-marabou.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks import measure
from benchmarks.verify.images import HARD, LIMIT, RESULTS, network
from nnrepair.verify import Box

IMAGES = 25
WORKER = Path(__file__).parents[1] / "baselines" / "marabou.py"


def run(python: str) -> None:
    """Ask Marabou about every image that the network reads right."""
    path = RESULTS / "images-marabou.json"
    rows = measure.load(path)
    about = f"Marabou, first {IMAGES} test images, limit {LIMIT:g} s of wall time each"
    for name, radius in HARD:
        model, images, labels = network(name, IMAGES)
        with torch.no_grad():
            right = (model(images).argmax(1) == labels).nonzero()[:, 0]
        done = {row["image"] for row in rows if (row["network"], row["radius"]) == (name, radius)}
        todo = [k for k in right.tolist() if k not in done]
        if not todo:
            continue
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        numbers = {f"weight{k}": layer.weight.detach().double().numpy() for k, layer in enumerate(layers)}
        numbers |= {f"bias{k}": layer.bias.detach().double().numpy() for k, layer in enumerate(layers)}
        boxes = [Box.around(images[k], radius, 0, 1).outer for k in todo]
        low, high = (np.stack([np.asarray(box[end], np.float64).ravel() for box in boxes]) for end in (0, 1))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cases.npz"
            np.savez(file, low=low, high=high, label=labels[todo].numpy(), **numbers)
            command = [python, "-W", "ignore", str(WORKER), str(file), f"{LIMIT:.0f}"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
                assert worker.stdout is not None
                for k, line in zip(tqdm(todo, desc=f"{name}, {radius:g}"), worker.stdout, strict=False):
                    rows.append({"network": name, "radius": radius, "image": k} | json.loads(line))
                    measure.save(path, rows, about)


if __name__ == "__main__":
    run(sys.argv[1])
