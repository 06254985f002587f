"""Growth of the CPU time with edits, weights and locality points, on a network of one size at a time.

`python -m benchmarks.growth '{"edits": 100, "width": 100, "locality": 0, "norm": "l1"}'` measures one case: the middle
layer (width x width) of a ReLU network on MNIST pixels with random teacher labels as edits (the layer's output feeds
one more hidden layer), solved exactly in the decoupled network.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import nnrepair
from benchmarks.measure import measured
from benchmarks.mnist.one import warm_up
from nnrepair.domains.vision import mnist, train_classifier


def network(width: int) -> torch.nn.Module:
    """A ReLU network whose layer `middle` has width * width weights, trained briefly on real digits."""
    from collections import OrderedDict

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            OrderedDict(
                first=torch.nn.Linear(784, width),
                relu1=torch.nn.ReLU(),
                middle=torch.nn.Linear(width, width, bias=False),
                relu2=torch.nn.ReLU(),
                last=torch.nn.Linear(width, 10),
            )
        )
    return train_classifier(model, mnist("train")[:2000], epochs=3, seed=0)


def cnn() -> torch.nn.Module:
    """A CNN on 28x28 digits whose hidden layer `hidden` has 3136 * 64 = 200 704 weights."""
    from collections import OrderedDict

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            OrderedDict(
                shape=torch.nn.Unflatten(1, (1, 28, 28)),
                conv1=torch.nn.Conv2d(1, 32, 3, stride=2, padding=1),
                relu1=torch.nn.ReLU(),
                conv2=torch.nn.Conv2d(32, 64, 3, stride=2, padding=1),
                relu2=torch.nn.ReLU(),
                flatten=torch.nn.Flatten(),
                hidden=torch.nn.Linear(3136, 64, bias=False),
                relu3=torch.nn.ReLU(),
                last=torch.nn.Linear(64, 10),
            )
        )
    return train_classifier(model, mnist("train")[:4000], epochs=3, seed=0)


def case(edits: int, width: int = 0, locality: int = 0, norm: str = "l1", layer: str = "middle") -> dict[str, Any]:
    """Repair `edits` fog digits in one layer of the decoupled network."""
    from nnrepair.domains.vision import mnist_fog

    model = network(width) if width else cnn()
    layer = layer if width else "hidden"
    fog, train = mnist_fog(), mnist("train")
    kept = (train.inputs[-locality:], train.labels[-locality:]) if locality else None
    method = nnrepair.methods.MinimalNorm(layer=layer, norm=norm, architecture="decoupled")
    warm_up()

    def work() -> dict[str, Any]:
        result = nnrepair.fix(model, (fog.inputs[:edits], fog.labels[:edits]), kept, method=method, throw=False)
        keys = ("objective", "lower_bound", "gap", "rows", "rounds", "newton_steps", "linear_programs")
        answer = {k: result.stats.get(k) for k in keys}
        return answer | {"status": result.outcome.status, "success_rate": result.report.success_rate}

    weights = dict(model.named_parameters())[f"{layer}.weight"].numel()
    return measured(work) | {"weights": weights}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(case(**json.loads(sys.argv[1]))))
