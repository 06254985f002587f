"""Long sequences: foggy digits repaired one after another, every step asked for all edits so far.

`python -m benchmarks.mnist.long '{"method": "minimal-norm", "edits": 100}'` measures one sequence.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import nnrepair
from benchmarks import measure
from benchmarks.editing import DOMAINS, figures
from nnrepair.methods import FineTune, Method, MinimalNorm
from nnrepair.methods.fine_tune.penalties import KL

RESULTS = Path(__file__).parent / "results" / "long.json"
METHODS: dict[str, Method] = {
    "minimal-norm": MinimalNorm(layer="fc3", norm="drift"),
    "ft+kl-10": FineTune(penalties=[KL(10.0)], steps=100),
}
EDITS = (100, 316, 1000)
LIMIT = 1500.0


def case(method: str, edits: int) -> dict[str, Any]:
    """Repair `edits` digits one by one."""
    task = DOMAINS["mnist"].task("3x100", 0, edits)
    nnrepair.fix(task.model, task.edits[:2], task.locality_set, method=METHODS[method], throw=False)  # first-call costs

    def work() -> dict[str, Any]:
        history = nnrepair.fix(
            task.model,
            task.edits,
            task.locality_set,
            method=METHODS[method],
            mode="successive",
            test_set=dict(task.test_set),
            throw=False,
            seed=0,
        )
        row = figures(history, list(task.test_set), edits)
        row.pop("curve")
        return row | {"history_kib": len(json.dumps(history.as_dict())) / 1024}

    return measure.measured(work)


def run_long() -> None:
    """Measure sequences of growing length, each in a process of its own."""
    rows = measure.load(RESULTS)
    done = {(row["method"], row["edits"]) for row in rows}
    for edits, method in tqdm(list(product(EDITS, METHODS)), desc="long sequences"):
        if (method, edits) in done:
            continue
        asked = {"method": method, "edits": edits}
        rows.append(asked | measure.in_fresh_process("benchmarks.mnist.long", asked, LIMIT))
        about = "3x100, foggy digits one after another with rehearsal of all past edits, 2000 kept digits, seed 0"
        measure.save(RESULTS, rows, about)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(case(**json.loads(sys.argv[1]))))
