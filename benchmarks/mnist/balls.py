"""Digits repaired with all that is near them: balls around misread digits, balls around others kept, all of it proved.

    python -m benchmarks run --domain mnist --part balls        resumes

Each repair is about one misread test digit: all images within a radius of it, in the largest norm, are to be read
right. The balls around other digits that are proved to be read right before are properties to keep; balls around
further digits were not mentioned to the repair, and are checked before and after.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import measure
from benchmarks.run import RESULTS
from nnrepair import Argmax, repair_property
from nnrepair.domains.vision import mnist, relu_mlp
from nnrepair.verify import Box, Property, check

#: Balls to keep, balls not mentioned, points of the locality set; seconds for each check of a repair, and of others.
KEPT, OTHERS, LOCALITY, LIMIT, LOOKING = 10, 20, 2000, 30.0, 10.0
#: Radius -> how many misread digits; of the first one a hundred balls are looked at, too.
DIGITS, HUNDRED = {0.01: 10, 0.02: 5, 0.03: 3}, 90


def ball(x: Tensor, label: Tensor, radius: float) -> Property:
    """Return that all images near one are read as its label."""
    return Property.on(Box.around(x, radius, 0, 1), Argmax([int(label)]), outputs=10)


def proved(model: nn.Module, balls: list[Property]) -> list[bool]:
    """Return of which balls it is proved, in the time of a check each."""
    return [check(model, each, timeout=LOOKING, certificate=False).holds for each in balls]


def one(model: nn.Module, number: int, radius: float, others: int = OTHERS) -> dict[str, Any]:
    """Repair the ball around one of the misread digits; look at so many balls that are not mentioned to the repair."""
    test, train = mnist("test"), mnist("train")
    x, y = test.inputs.reshape(-1, 784), test.labels
    with torch.no_grad():
        right = model(x).argmax(1) == y
    digit = int((~right).nonzero()[number, 0])
    balls = [ball(x[i], y[i], radius) for i in right.nonzero()[: KEPT + others, 0].tolist()]
    before = proved(model, balls)
    keep = [each for each, holds in zip(balls[:KEPT], before, strict=False) if holds]
    started = time.process_time()
    result = repair_property(
        model,
        ball(x[digit], y[digit], radius),
        keep=keep,
        locality_set=(train.inputs.reshape(-1, 784)[:LOCALITY], train.labels[:LOCALITY]),
        layer="last",
        timeout=LIMIT,
        throw=False,
    )
    seconds = time.process_time() - started
    after = proved(result.model, balls[KEPT:])
    with torch.no_grad():
        now = result.model(x).argmax(1) == y
    kept = [proof.result.holds for proof in result.proofs if proof.role == "keep"]
    return {
        "digit": digit,
        "label": int(y[digit]),
        "outcome": result.outcome.status,
        "proved": result.proofs[0].result.verdict if result.proofs else "unknown",
        "kept": sum(kept),
        "to_keep": len(keep),
        "others_before": sum(before[KEPT:]),
        "others_after": sum(after),
        "others_lost": sum(a and not b for a, b in zip(before[KEPT:], after, strict=True)),
        "accuracy_before": float(right.double().mean()),
        "accuracy_after": float(now.double().mean()),
        "weights": result.report.weight_change.nonzeros,
        "cpu_seconds": seconds,
        "commit": measure.commit(),
    }


def run() -> None:
    """Measure all digits and radii."""
    torch.set_num_threads(1)
    path, model = RESULTS / "balls.json", relu_mlp("3x100")
    rows = measure.load(path)
    cases = [{"number": number, "radius": radius} for radius, count in DIGITS.items() for number in range(count)]
    cases.append({"number": 0, "radius": min(DIGITS), "others": HUNDRED})
    about = f"repair_property on 3x100, {KEPT} balls kept, {LOCALITY} training digits as locality set"
    for case in tqdm(cases, desc="balls"):
        if not any(case.items() <= row.items() and case.get("others") == row.get("others") for row in rows):
            rows.append(case | one(model, **case))
            measure.save(path, rows, about)
