"""How many parts a proof needs: an estimate from random states, and the box around each that is small enough.

    python -m benchmarks run --domain compare --part parts

From the whole domain the search goes down to one random state alone: of the two halves of a box it keeps the one with
the state, until bounds of that box say that no decision can change. A box that took d halvings is 2^-d of the domain,
if halves are equal, and stands for 2^d such boxes. So the mean of 2^d, over the share q of states that need fewest
halvings, times q, estimates the number of parts of a proof about the share q of the volume. A search that does not know
where these are bounds several times as many. The largest d of the states dominates that mean: it is no more than an
order of magnitude. Slabs (parts of which a share is proved) are not counted.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import measure
from benchmarks.compare.acas import REPAIRS, RESULTS, materialise, networks
from nnrepair.deadline import NEVER
from nnrepair.domains import acas
from nnrepair.verify import Box
from nnrepair.verify.comparing.bounds import Comparing
from nnrepair.verify.comparing.decision import rows_of
from nnrepair.verify.comparing.pair import paired
from nnrepair.verify.comparing.search import cuts
from nnrepair.verify.network import Network

#: States, and halvings at most; shares of the volume to estimate for.
STATES, SEED, DEEPEST, SHARES = 64, 0, 32, (0.5, 0.8, 0.9)
#: All layers of these changed: each box takes several times as long.
LEFT_OUT = ("1_7", "1_8", "1_9")


def halvings(before: Path, after: Path, states: int) -> tuple[list[int | None], int]:
    """Return how often the domain was halved around each state until it was settled, and how many boxes that took."""
    box = Box(*zip(*acas.DOMAIN, strict=True))
    graphs = [Network.of(path, (1, 1, 1, len(acas.DOMAIN)), NEVER).graph for path in (before, after)]
    low, high = box.outer
    comparing = Comparing(
        paired(*graphs), rows_of("argmin", graphs[0].outputs), torch.from_numpy(low), torch.from_numpy(high)
    )
    x = low + (high - low) * np.random.default_rng(SEED).random((states, len(low)))
    lower, upper, depth = np.tile(low, (states, 1)), np.tile(high, (states, 1)), np.zeros(states, int)
    settled, flips, boxes = np.zeros(states, bool), np.ones(len(comparing.flips.flips), bool), 0
    while len(live := np.flatnonzero(~settled & (depth < DEEPEST))):
        ends = torch.from_numpy(lower[live]), torch.from_numpy(upper[live])
        judged = comparing.judge(*ends, comparing.known, flips, identical=False)
        boxes += len(live)
        settled[live] = judged.maybe == 0
        for column in (0, 1):
            which = np.flatnonzero((judged.maybe > 0) & (judged.splits.next[:, column] >= 0))
            part, dim = live[which], judged.splits.next[which, column]
            cut = cuts(lower[part], upper[part])[np.arange(len(part)), dim]
            above = x[part, dim] > cut
            lower[part[above], dim[above]] = cut[above]
            upper[part[~above], dim[~above]] = cut[~above]
            depth[part] += 1
    return [int(d) if done else None for d, done in zip(depth, settled, strict=True)], boxes


def parts(depths: list[int | None], share: float) -> float | None:
    """Return about how many parts a proof about a share of the volume has; None if it takes more halvings."""
    known = sorted(d for d in depths if d is not None)
    count = round(share * len(depths))
    return sum(2.0**d for d in known[:count]) / len(depths) if count <= len(known) else None


def one(network: str, states: int) -> dict[str, Any]:
    """Estimate the parts for one network."""
    before = acas.network(*map(int, network.split("_")))
    with tempfile.TemporaryDirectory() as folder:
        after = Path(folder) / before.name
        materialise().materialised(before, REPAIRS / "results" / f"N_{network}" / "patch.safetensors", after)
        started = time.process_time()
        depths, boxes = halvings(before, after, states)
    return {"depths": depths, "boxes": boxes, "cpu_seconds": time.process_time() - started, "commit": measure.commit()}


def run() -> None:
    """Estimate for all networks of which the last layer changed."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    path = RESULTS / "parts.json"
    rows = measure.load(path)
    cases = [{"network": name, "states": STATES} for name in networks() if name not in LEFT_OUT]
    for case in tqdm(cases, desc="parts"):
        if not any(case.items() <= row.items() for row in rows):
            rows.append(case | one(**case))
            about = f"halvings of the domain around {STATES} random states (seed {SEED}), {DEEPEST} at most"
            measure.save(path, rows, about)
