"""The minimal-norm engine on networks for photographs: SqueezeNet, ResNets, real mistakes and points to keep.

`python -m benchmarks.engine.vision '{"case": "squeezenet", "layer": "classifier.1"}'` measures one call of
`nnrepair.fix` in this process, and prints its row; `--add FILE...` stores such rows in `results/vision.json`. Without
arguments every case without a row runs in a process of its own, and its row is stored.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

import nnrepair
from benchmarks import measure
from nnrepair.domains.images.cifar import cifar10_jpeg, resnet20
from nnrepair.domains.images.samples import imagenet_samples
from nnrepair.domains.images.squeezenet import squeezenet as squeezenet_
from nnrepair.methods import MinimalNorm

RESULTS = Path(__file__).parent / "results" / "vision.json"
SEED = 0
ABOUT = "one call of fix with MinimalNorm(); CPU seconds on one thread, memory above the data"
#: Pixels of a photograph each way.
SIDE = 224
Asked = tuple[nn.Module, nnrepair.Edits, nnrepair.LocalitySet]


def cases() -> Iterator[dict[str, Any]]:
    """Yield what is measured."""
    for layer in ("classifier.1", "features.12.expand3x3", "features.12.expand1x1"):
        yield {"case": "squeezenet", "layer": layer}
    yield {"case": "resnet18", "layer": "auto"}
    yield {"case": "resnet50", "layer": "fc"}
    for layer in ("conv1", "layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1", "layer3.2.conv2"):
        yield {"case": "resnet20", "layer": layer}


def squeezenet(edits: int = 1000, kept: int = 1000) -> Asked:
    """Return SqueezeNet 1.1 with at most so many of the photographs that it misreads, and of those that it reads."""
    model, samples = squeezenet_(), imagenet_samples().images()
    x, labels = samples.inputs, samples.labels
    right = torch.cat([_classes(model, part) for part in torch.split(x, 50)]) == labels
    wrong, good = (~right).nonzero()[:edits, 0], right.nonzero()[:kept, 0]
    return model, nnrepair.Edits(x[wrong], labels[wrong]), nnrepair.LocalitySet(x[good], labels[good])


def resnet18() -> Asked:
    """Return a ResNet-18 with random weights, 8 images of noise for other classes and 40 to keep, at 64 pixels."""
    model, x = models.resnet18(num_classes=10).eval(), torch.randn(60, 3, 64, 64)
    return model, nnrepair.Edits(x[:8], (_classes(model, x[:8]) + 1) % 10), nnrepair.LocalitySet(x[10:50])


def resnet50() -> Asked:
    """Return a ResNet-50 with random weights, 100 images of noise for other classes and 1 000 to keep."""
    model, x = models.resnet50(num_classes=100).eval(), torch.randn(1100, 3, SIDE, SIDE)
    return model, nnrepair.Edits(x[:100], (_classes(model, x[:100]) + 1) % 100), nnrepair.LocalitySet(x[100:])


def resnet20_() -> Asked:
    """Return a ResNet-20 with the first 500 CIFAR-10 photographs that it misreads and 4 000 others to keep."""
    model, images = resnet20(), cifar10_jpeg("test")
    classes = torch.cat([_classes(model, part) for part in torch.split(images.inputs, 500)])
    wrong, good = ((classes != images.labels).nonzero()[:500, 0], (classes == images.labels).nonzero()[:4000, 0])
    return (
        model,
        nnrepair.Edits(images.inputs[wrong], images.labels[wrong]),
        nnrepair.LocalitySet(images.inputs[good], images.labels[good]),
    )


@torch.no_grad()
def _classes(model: nn.Module, x: Tensor) -> Tensor:
    classes: Tensor = model(x).argmax(1)
    return classes


MAKERS = {"squeezenet": squeezenet, "resnet18": resnet18, "resnet50": resnet50, "resnet20": resnet20_}


class Passes:
    """Count how many points run through a network's first convolution, as shares of the points that were given.

    Copies of a module share its hooks, so passes of private copies, in whatever precision, are counted too.
    """

    def __init__(self, model: nn.Module, points: int) -> None:
        self._points, self.seen = points, 0
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.seen += len(inputs[0])

    def __deepcopy__(self, memo: Any) -> Passes:
        return self

    @property
    def passes(self) -> float:
        """How many passes over all points these are."""
        return self.seen / self._points


def case(case: str, layer: str, **options: Any) -> dict[str, Any]:
    """Repair one case; `options` are its own, such as fewer edits."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model, edits, kept = MAKERS[case](**options)
    passes = Passes(model, len(edits) + len(kept))

    def work() -> dict[str, Any]:
        result = nnrepair.fix(model, edits, kept, method=MinimalNorm(layer), throw=False)
        report, steps = result.report, result.stats.get("steps", [])
        return {
            "edits": len(edits),
            "kept": len(kept),
            "status": result.outcome.status,
            "success_rate": report.success_rate,
            "locality": report.locality,
            "layers": result.stats.get("layer"),
            "rounds": len(steps),
            "evaluations": int(sum(step["evaluations"] for step in steps)),
            "size": steps[-1]["size"] if steps else result.stats.get("objective"),
            "steps": steps,
            "stationarity": result.stats.get("stationarity"),
            "complementarity": result.stats.get("complementarity"),
            "notes": report.notes,
        }

    return measure.measured(work) | {"passes": passes.passes}


def row(one: dict[str, Any]) -> dict[str, Any]:
    """Measure one case in this process."""
    return one | {"seed": SEED, "commit": measure.commit()} | case(**one)


def add(new: dict[str, Any]) -> None:
    """Store a row in place of those of the same case."""
    same = {key: new[key] for key in ("case", "layer")}
    rows = [old for old in measure.load(RESULTS) if not same.items() <= old.items()]
    measure.save(RESULTS, [*rows, new], ABOUT)


def main() -> None:
    """Measure the case of the command line, store rows from files, or measure all that have no row yet."""
    if len(sys.argv) == 2:
        print(json.dumps(row(json.loads(sys.argv[1]))))
    elif len(sys.argv) > 2:
        for file in sys.argv[2:]:
            add(json.loads(Path(file).read_text().strip().splitlines()[-1]))
    else:
        stored = measure.load(RESULTS)
        for one in cases():
            if not any(one.items() <= old.items() for old in stored):
                command = [sys.executable, "-m", "benchmarks.engine.vision", json.dumps(one)]
                done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True, check=True)
                add(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    main()
