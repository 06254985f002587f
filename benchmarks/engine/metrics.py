"""Hidden layers of the MNIST networks: what a repair costs others, by what "small" means.

`python -m benchmarks.engine.metrics '{"net": "9x100", "layer": "fc2", "norm": "fisher", "seed": 1}'` measures one call
of `nnrepair.fix`: misread digits in fog, with 10 000 clean training digits to keep. Without arguments it measures every
case that is not stored yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

import nnrepair
from benchmarks import measure
from benchmarks.engine.against import Comparison
from nnrepair.domains.vision import mnist, mnist_fog, relu_mlp
from nnrepair.methods import MinimalNorm

KEPT, EDITS, SEEDS = 10_000, 100, (1,)
NORMS = ("l2", "drift", "fisher")


def cases() -> Iterator[dict[str, Any]]:
    """Yield every layer but the last, with every norm, by seeds."""
    for seed, (net, depth) in product(SEEDS, (("3x100", 3), ("9x100", 9))):
        for layer, norm in product(range(1, depth), NORMS):
            yield {"net": net, "layer": f"fc{layer}", "norm": norm, "seed": seed}


def case(net: str, layer: str, norm: str, seed: int) -> dict[str, Any]:
    """Repair one case."""
    model, foggy, train, test = relu_mlp(net), mnist_fog(), mnist("train"), mnist("test")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = model(test.inputs)
        wrong = (model(foggy.inputs).argmax(1) != foggy.labels).nonzero()[:, 0]
    mine = wrong[torch.randperm(len(wrong), generator=generator)[:EDITS]]
    clean = torch.randperm(len(train), generator=generator)[:KEPT]
    asked = nnrepair.Edits(foggy.inputs[mine], foggy.labels[mine])
    kept = nnrepair.LocalitySet(train.inputs[clean], train.labels[clean])
    method = MinimalNorm(layer, norm)  # type: ignore[arg-type]
    nnrepair.fix(model, asked[torch.tensor([0])], method=MinimalNorm(f"fc{net[0]}", "l2"), throw=False)  # warm up

    def work() -> dict[str, Any]:
        return {"result": nnrepair.fix(model, asked, kept, method=method, throw=False)}

    found = measure.measured(work)
    result = found.pop("result")
    others = torch.ones(len(foggy), dtype=torch.bool)
    others[mine] = False
    with torch.no_grad():
        after = result.model(test.inputs)
        gained = [(f(foggy.inputs).argmax(1) == foggy.labels)[others].double().mean() for f in (model, result.model)]
    old, new = (y.double().log_softmax(1) for y in (before, after))
    lost = (before.argmax(1) == test.labels).double().mean() - (after.argmax(1) == test.labels).double().mean()
    return found | {
        "success_rate": result.report.success_rate,
        "drawdown": 100 * float(lost),
        "other fog": 100 * float(gained[1] - gained[0]),
        "nats": float((old.exp() * (old - new)).sum(1).mean()),
        "moved": float((after - before).double().square().sum(1).mean().sqrt()),
    }


if __name__ == "__main__":
    about = "100 misread digits in fog, 10 000 clean digits kept; what moves is measured on the clean test digits"
    file = Path(__file__).parent / "results" / "metrics.json"
    Comparison(Path(__file__), file, about, limit=(90, 90)).main(cases, case)
