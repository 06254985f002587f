"""Random networks and changes of many kinds: what is proved against random inputs, every certificate checked.

    python -m benchmarks.compare.campaign [--count 60] [--seed 0]

Networks have one to four inputs, one to three hidden layers and two to five outputs. A case is wrong if a share that is
proved contradicts what is counted on random inputs by more than 4.5 standard deviations, or if the independent program
refuses the certificate.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import math
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import measure
from benchmarks.compare.acas import RESULTS
from nnrepair import onnx
from nnrepair.verify import Box, Comparison, compare

#: Two outputs that move alike; ties on a plateau: units that are off make outputs constant and equal.
KINDS = ("last", "last and bias", "bias", "one weight", "two alike", "plateau", "hidden", "all")
STATES, DEVIATIONS, UNTIL, TIMEOUT = 20_000, 4.5, 0.03, 6.0


def network(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    """Return a fully connected ReLU network with random weights."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layer = nn.Linear(before, after)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(after, before, generator=generator) / math.sqrt(before))
            layer.bias.copy_(torch.randn(after, generator=generator) / 3)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def change(kind: str, before: nn.Sequential, rng: random.Random, generator: torch.Generator) -> nn.Sequential:
    """Return another network; on a plateau the first one changes, too."""
    size, linear = rng.choice([1.0, 0.3, 0.05]), [layer for layer in before if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        if kind == "plateau":
            linear[-2].bias -= 1.0
            linear[-1].bias.zero_()
        after = copy.deepcopy(before)
        mine = [layer for layer in after if isinstance(layer, nn.Linear)]
        last, column = mine[-1], rng.randrange(mine[-1].in_features)
        if kind in ("one weight", "plateau"):
            last.weight[rng.randrange(last.out_features), column] += size
        elif kind == "two alike":
            last.weight[:2, column] += size
        elif kind == "bias":
            last.bias[rng.randrange(last.out_features)] += size * rng.choice([1, -1])
        else:
            some = {"all": mine, "hidden": [rng.choice(mine[:-1])]}.get(kind, [last])
            for layer in some:
                weights = size * torch.randn(layer.out_features, generator=generator)
                layer.weight[:, rng.randrange(layer.in_features)] += weights
                if kind in ("all", "last and bias"):
                    layer.bias += size * torch.randn(layer.out_features, generator=generator)
    return after


def wrong(found: Comparison, before: nn.Module, after: nn.Module, box: Box, decision: str) -> str:
    """Say which share contradicts random inputs, if one does."""
    low, high = (torch.tensor([float(v) for v in end], dtype=torch.float64) for end in (box.lower, box.upper))
    drawn = torch.rand(STATES, len(low), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        y, z = (copy.deepcopy(model).double()(low + (high - low) * drawn) for model in (before, after))
    decide = torch.Tensor.argmin if decision == "argmin" else torch.Tensor.argmax
    other, same = float((decide(y, 1) != decide(z, 1)).double().mean()), float((y == z).all(1).double().mean())

    def spread(p: float) -> float:
        return DEVIATIONS * math.sqrt(max(p * (1 - p), 1e-4) / STATES)

    checks = {
        "changed": found.changed <= other + spread(other),
        "same": other <= 1 - found.same + spread(other) and (found.same < 1 or not other),
        "identical": found.identical <= same + spread(same),
    }
    return ", ".join(name for name, holds in checks.items() if not holds)


def certified(found: Comparison, before: nn.Module, after: nn.Module, inputs: int) -> str:
    """Return what the independent program makes of the certificate."""
    if found.certificate is None:
        return "none"
    folder = str(Path(__file__).resolve().parents[2] / "verification")
    if folder not in sys.path:
        sys.path.append(folder)
    program = importlib.import_module("compare")
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"{name}.onnx" for name in ("before", "after")]
        for model, file in zip((before, after), files, strict=True):
            onnx.save(model, torch.zeros(2, inputs), file)
        proof = found.certificate.for_networks(*files).save(Path(place) / "proof.npz")
        try:
            program.check(str(proof), *map(str, files))
        except program.Rejected as reason:
            return f"rejected: {reason}"
    return "accepted"


def one(seed: int) -> dict[str, Any]:
    """Return what came of one case."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    inputs, kind, decision = rng.randint(1, 4), KINDS[seed % len(KINDS)], rng.choice(["argmin", "argmax"])
    hidden = [rng.choice([4, 6, 8, 12]) for _ in range(rng.randint(1, 3))]
    before = network([inputs, *hidden, rng.randint(2, 5)], generator)
    after = change(kind, before, rng, generator)
    low = [rng.choice([-1.0, -0.5, 0.0]) for _ in range(inputs)]
    box = Box(low, [v + rng.choice([0.3, 0.5, 1.0, 1.5]) for v in low])
    found = compare(before, after, box, decision=decision, until=UNTIL, timeout=TIMEOUT)  # type: ignore[arg-type]
    return {
        "seed": seed,
        "kind": kind,
        "decision": decision,
        "same": float(found.same),
        "identical": float(found.identical),
        "changed": float(found.changed),
        "boxes": found.boxes,
        "wrong": wrong(found, before, after, box, decision),
        "certificate": certified(found, before, after, inputs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    path = RESULTS / "campaign.json"
    rows = [row for row in measure.load(path) if not given.seed <= row["seed"] < given.seed + given.count]
    rows += [one(seed) for seed in tqdm(range(given.seed, given.seed + given.count), desc="cases")]
    measure.save(path, rows, f"{STATES} inputs each, {DEVIATIONS} standard deviations, until {UNTIL:g}, {TIMEOUT:g} s")
    print(Counter((row["wrong"] or "right", row["certificate"]) for row in rows))


if __name__ == "__main__":
    main()
