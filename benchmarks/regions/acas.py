"""PRDNN's Task 3: ten two-dimensional slices on which N_{2,9} breaks phi_8, repaired in the last layer.

Sotoudeh & Thakur, "Provable repair of deep neural networks" (PLDI 2021). A slice spans distance and angle; heading and
both speeds are drawn with their seed, and the 22 slices with counterexamples are those that they list: ten to repair,
twelve to generalise to. Their property is phi_8 made stronger: of "clear of conflict" and "weak left", the advice must
be the one that the network scores better *at each corner*, which says nothing about the inside of a linear region whose
corners want different advice. Region edits ask for phi_8 itself, everywhere on the slices.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

import nnrepair
from benchmarks.baselines import prdnn
from benchmarks.measure import measured
from benchmarks.mnist.one import warm_up
from nnrepair import Edits, Linear, Polygons, onnx
from nnrepair.domains import acas
from nnrepair.methods import MinimalNorm
from nnrepair.methods.base import Capabilities, Proposal
from nnrepair.regions.edits import RegionEdits
from nnrepair.regions.splitting import Pieces, split
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs

LOW, HIGH = (0.0, -3.141593, -3.141593, 100.0, 0.0), (60760.0, 3.141593, 3.141593, 1200.0, 1200.0)
MEAN, RANGE = (19791.091, 0.0, 0.0, 650.0, 600.0), (60261.0, 6.28318530718, 6.28318530718, 1100.0, 1200.0)
SEED, DRAWN = 24, 100
#: Of each hundred slices drawn, those with a counterexample.
WITH_COUNTEREXAMPLES = (
    (3, 5, 7, 38, 55),
    (5, 16, 23, 48, 70, 99),
    (1, 10, 16, 38, 59, 74, 99),
    (64, 71, 89, 92),
)
REPAIRED = 10
#: Corners are moved outward from a linear region's centre by these shares to make points that are near it.
OUTWARD = (0.25, 0.5, 0.75)
LAYER = ("linear_7.weight", "linear_7.bias")


def slices() -> Tensor:
    """Return (22, 4, 5): the corners of all slices, normalised."""
    rng, found = np.random.RandomState(SEED), []
    for chosen in WITH_COUNTEREXAMPLES:
        drawn = [[rng.uniform(-0.1, 0.1), rng.uniform(600, 1200), rng.uniform(600, 1200)] for _ in range(DRAWN)]
        corners = ((0.0, -np.pi), (60760.0, -np.pi), (60760.0, -0.75 * np.pi), (0.0, -0.75 * np.pi))
        found += [[[*corner, *drawn[k]] for corner in corners] for k in chosen]
    return torch.from_numpy((np.clip(np.asarray(found), LOW, HIGH) - MEAN) / RANGE)


def wanted(y: Tensor) -> Tensor:
    """Return (n,) the advice of the stronger property at outputs y (n, 5): weak left where it scores better."""
    return (y[:, 1] < y[:, 0]).long()


def labelled(labels: Tensor, points: int) -> Linear:
    """Return the stronger property: no advice scores below the label; ties are fine, as in their linear program."""
    A = torch.zeros(2, 4, 5, dtype=torch.float64)
    for label in (0, 1):
        for row, other in enumerate(k for k in range(5) if k != label):
            A[label, row, label], A[label, row, other] = -1.0, 1.0
    return Linear(A[labels], torch.zeros(points, 4, dtype=torch.float64))


def phi_8(regions: int) -> Criterion:
    """Return phi_8: clear of conflict or weak left is minimal."""
    each = []
    for label in (0, 1):
        A = torch.zeros(3, 5, dtype=torch.float64)
        A[:, label], A[0, 2], A[1, 3], A[2, 4] = -1.0, 1.0, 1.0, 1.0
        each.append(Linear(A, torch.zeros(3, dtype=torch.float64), points=regions))
    return each[0] | each[1]


def held_out(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return (counterexamples, points that are right), equally many, on and around the twelve other slices.

    As PRDNN draws them: corners moved outward that break the stronger property, and random points that do not.
    """
    rng = np.random.RandomState(SEED)
    counterexamples, right = [], []
    for corners in slices()[REPAIRED:]:
        pieces = split(model, Polygons(corners[None]))
        real = torch.arange(pieces.corners.shape[1]) < pieces.count[:, None]
        vertices = pieces.points[pieces.corners]
        outward = vertices - pieces.centers[:, None]
        moved = torch.cat([(vertices + share * outward)[real] for share in OUTWARD])
        y = outputs(model, moved)
        broken = moved[wanted(y) != y.argmin(1)]
        low, high = corners.amin(0).numpy(), corners.amax(0).numpy()
        drawn = torch.from_numpy(rng.uniform(low, high, size=(5 * len(broken), 5)))
        y = outputs(model, drawn)
        counterexamples.append(broken)
        right.append(drawn[wanted(y) == y.argmin(1)][: len(broken)])
    return torch.cat(counterexamples), torch.cat(right)


@dataclass(frozen=True)
class Timed:
    """A method that keeps the CPU time of its own work."""

    method: MinimalNorm
    seconds: list[float] = field(default_factory=list, repr=False)

    @property
    def capabilities(self) -> Capabilities:
        return self.method.capabilities

    def repair(self, problem: Problem) -> Proposal:
        started = time.process_time()
        proposal = self.method.repair(problem)
        self.seconds.append(time.process_time() - started)
        return proposal


def all_rows(pieces: Pieces, model: nn.Module, margin: float) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return PRDNN's rows of the last layer: every corner of every piece, four each; G (m, n) is sparse."""
    features: list[Tensor] = []
    handle = last(model).register_forward_pre_hook(lambda layer, given: features.append(given[0].flatten(0, -2)))
    with torch.no_grad():
        y = model(pieces.points.reshape(-1, 1, 1, 5)).reshape(-1, 5)
    handle.remove()
    real = torch.arange(pieces.corners.shape[1]) < pieces.count[:, None]
    corner = pieces.corners[real]
    a = torch.cat([features[0], torch.ones(len(y), 1, dtype=torch.float64)], 1)[corner].numpy()
    y, labels = y[corner], wanted(y[corner])
    m, width = 4 * len(corner), a.shape[1]
    others = torch.tensor([[1, 2, 3, 4], [0, 2, 3, 4]])[labels]
    each = np.arange(width)
    column = np.stack([labels.numpy()[:, None].repeat(4, 1), others.numpy()], 2).reshape(m, 2, 1) * width + each
    value = np.repeat(a, 4, 0)[:, None] * np.asarray([-1.0, 1.0])[None, :, None]
    starts = np.arange(m + 1) * 2 * width
    G = sp.csr_matrix((value.reshape(-1), column.reshape(-1), starts), shape=(m, 5 * width))
    need = y.gather(1, labels[:, None]) - y.gather(1, others) + margin
    return G, need.reshape(-1).numpy()


def last(model: nn.Module) -> nn.Module:
    return model.get_submodule(LAYER[0].rsplit(".", 1)[0])


def baseline(margin: float, time_limit: float) -> dict[str, Any]:
    """PRDNN's linear program: all rows at once."""
    model = onnx.load(acas.network(2, 9)).double()
    seconds, changes = {}, []

    def work() -> dict[str, Any]:
        started = time.process_time()
        pieces = split(model, Polygons(slices()[:REPAIRED]))
        seconds["split"] = time.process_time() - started
        G, need = all_rows(pieces, model, margin)
        seconds["rows"] = time.process_time() - started - seconds["split"]
        objective, d, status = prdnn.solve(G, need, time_limit)
        seconds["solve"] = time.process_time() - started - seconds["split"] - seconds["rows"]
        changes.append(d)
        return {"objective": objective, "status": status, "rows": G.shape[0], "all_rows": G.shape[0]}

    answer = measured(work) | {f"{name}_seconds": value for name, value in seconds.items()}
    answer |= {"margin": margin, "seed": SEED}
    if changes[0] is None:
        return answer
    matrix = torch.from_numpy(changes[0]).reshape(5, -1)
    repaired = copy.deepcopy(model)
    with torch.no_grad():
        last(repaired).weight += matrix[:, :-1]
        last(repaired).bias += matrix[:, -1]
    return answer | quality(model, repaired)


def ours(kind: str, margin: float | None, verify: bool = False) -> dict[str, Any]:
    """Ours, on the same points ("corners") or for phi_8 on the whole slices ("regions")."""
    model = onnx.load(acas.network(2, 9))
    model = model.double() if kind == "corners" else model
    method, regions = Timed(MinimalNorm(layer=LAYER, norm="mean+max", margin=margin)), Polygons(slices()[:REPAIRED])
    seconds, results = {}, []

    def work() -> dict[str, Any]:
        started = time.process_time()
        if kind == "corners":
            pieces = split(model, regions)
            seconds["split"] = time.process_time() - started
            edits = Edits(pieces.points, labelled(wanted(pieces.outputs), len(pieces.points)))
        else:
            edits = Edits(regions, phi_8(len(regions)))
        result = nnrepair.fix(model, edits, method=method, throw=False)
        results.append(result)
        stats = result.stats
        answer = {"status": result.outcome.status, "success_rate": result.report.success_rate}
        return answer | {k: stats.get(k) for k in ("objective", "lower_bound", "gap", "rows", "margin")}

    answer = measured(work) | {f"{name}_seconds": value for name, value in seconds.items()}
    (result,) = results
    pieces = split(model, regions)
    answer |= {"solve_seconds": sum(method.seconds), "all_rows": 4 * int(pieces.count.sum()), "pieces": len(pieces)}
    answer |= {"points": len(pieces.points), "corners": int(pieces.count.sum())} | quality(model, result.model)
    answer["seed"], answer["weights_changed"] = SEED, result.report.weight_change.nonzeros
    if verify:
        checked = result.verify()
        answer |= {"verified": checked.verdict, "verify_cpu_seconds": checked.cpu_seconds}
    return answer


def quality(model: nn.Module, repaired: nn.Module) -> dict[str, Any]:
    """Return what became of the slices, and of the points around the others."""
    regions = Polygons(slices()[:REPAIRED])
    like = next(model.parameters())
    judged = RegionEdits(repaired, Edits(regions, phi_8(len(regions))), False).judge(repaired)
    counterexamples, right = (points.to(like.dtype) for points in held_out(copy.deepcopy(model).double()))
    before, after = outputs(model, counterexamples), outputs(repaired, counterexamples)
    kept, still = outputs(model, right), outputs(repaired, right)
    return {
        "slices_hold": int(judged.holds.sum()),
        "corners_failing": len(judged.failing),
        "least_slack": judged.least,
        "held_out": len(counterexamples),
        "fixed": int((wanted(before) == after.argmin(1)).sum()),
        "fixed_phi_8": int((after.argmin(1) < 2).sum()),
        "kept": len(right),
        "broken": int((wanted(kept) != still.argmin(1)).sum()),
        "broken_phi_8": int((still.argmin(1) >= 2).sum()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    arguments = json.loads(sys.argv[1])
    print(json.dumps({"baseline": baseline, "ours": ours}[arguments.pop("solver")](**arguments)))
