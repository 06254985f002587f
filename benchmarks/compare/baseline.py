"""What `check` proves of the same: two networks stacked, "the advice is the same" as a property, cell by cell.

Of random cells the share that holds, and the CPU seconds for a cell, say how much volume is proved in a given time.
One measurement: `python -m benchmarks.compare.baseline '{"network": "2_8", "grid": 8, "most": 1000}'`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import measure
from benchmarks.compare.acas import FIRST, LIMIT, REPAIRS, RESULTS, materialise
from nnrepair import onnx
from nnrepair.domains import acas
from nnrepair.verify import Box, Case, Halfspace, Options, Property, check

#: Cells on a side of the grid, and boxes that a check may bound; cells that are drawn.
GRIDS, MOST, CELLS, SEED = (4, 8, 16), 300, 20, 0


class Both(nn.Module):
    """Two networks side by side."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.before(x).flatten(1), self.after(x).flatten(1)], 1)


def unsafe(outputs: int) -> tuple[tuple[Halfspace, ...], ...]:
    """Return the ways in which the smallest output goes from one to another."""

    def wins(k: int, at: int) -> list[Halfspace]:
        rows = ({at + k: 1, at + i: -1} for i in range(outputs) if i != k)
        return [Halfspace(tuple(Fraction(row.get(i, 0)) for i in range(2 * outputs)), Fraction(0)) for row in rows]

    return tuple((*wins(k, 0), *wins(j, outputs)) for k in range(outputs) for j in range(outputs) if j != k)


def one(network: str, grid: int, most: int) -> dict[str, Any]:
    """Check random cells of a grid over the whole domain."""
    before = acas.network(*map(int, network.split("_")))
    with tempfile.TemporaryDirectory() as folder:
        after = Path(folder) / before.name
        materialise().materialised(before, REPAIRS / "results" / f"N_{network}" / "patch.safetensors", after)
        both = Both(onnx.load(before), onnx.load(after))
    low, high = np.array(acas.DOMAIN).T
    width, rng, found = (high - low) / grid, np.random.default_rng(SEED), list[tuple[str, float]]()
    for cell in rng.integers(grid, size=(CELLS, 5)):
        box = Box((low + cell * width).reshape(1, 1, 5), (low + (cell + 1) * width).reshape(1, 1, 5))
        result = check(both, Property([Case(box, unsafe(5))], 10), certificate=False, options=Options(most=most))
        found.append((result.verdict, result.cpu_seconds))
    verdicts = [verdict for verdict, _ in found]
    seconds = sum(cpu for _, cpu in found)
    return {
        "cells": CELLS,
        "holds": verdicts.count("holds"),
        "violated": verdicts.count("violated"),
        "cpu_seconds": seconds,
        "share_each_second": verdicts.count("holds") / grid**5 / seconds,
        "commit": measure.commit(),
    }


def run() -> None:
    """Measure the grids on three networks."""
    path, rows = RESULTS / "baseline.json", measure.load(RESULTS / "baseline.json")
    cases = [{"network": name, "grid": grid, "most": MOST} for name in FIRST[:3] for grid in GRIDS]
    for case in tqdm(cases, desc="baseline"):
        if not any(case.items() <= row.items() for row in rows):
            rows.append(case | measure.in_fresh_process("benchmarks.compare.baseline", case, timeout=LIMIT))
            measure.save(path, rows, f"check of stacked networks, {CELLS} random cells (seed {SEED}) of each grid")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(one(**json.loads(sys.argv[1]))))
