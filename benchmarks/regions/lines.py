"""PRDNN's Task 2: segments from a clean MNIST digit to the same digit in fog, each to be classified right all along.

Sotoudeh & Thakur, "Provable repair of deep neural networks" (PLDI 2021): the 3x100 network, N lines from training
digits that it gets right, margin 0.05. The fog is this project's (see `nnrepair.domains.vision.fog`), not
MNIST-C's.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

import nnrepair
from benchmarks.baselines import prdnn
from benchmarks.measure import measured
from benchmarks.mnist.one import accuracy, warm_up
from nnrepair import Edits, Segments
from nnrepair.domains.vision import Images, fog, mnist, mnist_fog, relu_mlp
from nnrepair.methods import MinimalNorm
from nnrepair.regions.splitting import Pieces, split

FOG_SEED, MARGIN = 7, 0.05


def lines(model: nn.Module, count: int) -> tuple[Segments, Tensor]:
    """Return the first `count` lines of training digits that the network gets right, with their labels."""
    train = mnist("train")[: 2 * count + 20]
    with torch.no_grad():
        right = train[(model(train.inputs).argmax(1) == train.labels).nonzero()[:count, 0]]
    foggy = torch.from_numpy(fog(right.inputs.reshape(-1, 28, 28).numpy(), FOG_SEED)).float()
    return Segments(right.inputs, foggy.flatten(1)), right.labels


def all_rows(model: nn.Sequential, layer: str, pieces: Pieces, labels: Tensor) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return PRDNN's rows: both ends of every piece with the piece's activations, nine each; G (m, n) is sparse."""
    parts = list(dict(model.double().named_children()).items())
    where = [name for name, _ in parts].index(layer)
    real = torch.arange(pieces.corners.shape[1]) < pieces.count[:, None]
    piece = real.nonzero()[:, 0]
    corner, home = pieces.corners[real], pieces.region[piece]
    blocks, need = [], []
    with torch.no_grad():
        for some in torch.arange(len(corner)).split(2000):
            x, center = pieces.points[corner[some]], pieces.centers[piece[some]]
            for _, part in parts[:where]:
                x, center = part(x), part(center)
            center = parts[where][1](center)
            effect = torch.eye(center.shape[1], dtype=torch.float64).expand(len(some), -1, -1)  # (corner, unit, unit)
            for _, part in parts[where + 1 :]:
                if isinstance(part, nn.ReLU):
                    effect = effect * (center > 0)[:, :, None]
                    center = part(center)
                else:
                    effect, center = part.weight @ effect, part(center)
            y, label = pieces.outputs[corner[some]], labels[home[some]]
            others = torch.tensor([[k for k in range(y.shape[1]) if k != one] for one in label.tolist()])
            left = effect[torch.arange(len(some)), label][:, None] - effect.gather(
                1, others[:, :, None].expand(-1, -1, effect.shape[2])
            )
            a = torch.cat([x, x.new_ones(len(x), 1)], 1)
            blocks.append(
                sp.csr_matrix((left[..., None] * a[:, None, None]).reshape(left.shape[0] * left.shape[1], -1))
            )
            need.append((y.gather(1, others) - y.gather(1, label[:, None]) + MARGIN).reshape(-1))
    return sp.vstack(blocks, format="csr"), torch.cat(need).numpy()


def one(edits: int, layer: str, solver: str, time_limit: float = 600) -> dict[str, Any]:
    """Repair the first lines in one layer: the last in the same architecture, others in the decoupled network."""
    model = relu_mlp("3x100")
    regions, labels = lines(model, edits)
    weight = model.get_submodule(layer).weight
    seconds: dict[str, float] = {}
    warm_up()

    def work() -> dict[str, Any]:
        started = time.process_time()
        if solver == "prdnn":
            twin = relu_mlp("3x100")
            pieces = split(twin, regions)
            seconds["split"] = time.process_time() - started
            G, need = all_rows(twin, layer, pieces, labels)
            objective, d, status = prdnn.solve(G, need, time_limit)
            return {"objective": objective, "status": status, "rows": G.shape[0], "change": d}
        kind = "same" if layer == "fc3" else "decoupled"
        method = MinimalNorm(layer=layer, norm="mean+max", margin=MARGIN, architecture=kind)
        result = nnrepair.fix(model, Edits(regions, labels), method=method, throw=False)
        answer = {k: result.stats.get(k) for k in ("objective", "lower_bound", "gap", "rows")}
        answer["success_rate"] = result.report.success_rate
        return answer | {"status": result.outcome.status, "result": result}

    answer = measured(work) | {f"{name}_seconds": value for name, value in seconds.items()}
    change, result = answer.pop("change", None), answer.pop("result", None)
    repaired = None if result is None else result.model
    if change is not None:
        matrix = torch.from_numpy(change).reshape(weight.shape[0], -1)
        names = {f"{layer}.weight": matrix[:, :-1], f"{layer}.bias": matrix[:, -1]}
        repaired = nnrepair.Decoupled(model, names)
    pieces = split(model, regions)
    corners = int(pieces.count.sum())
    answer |= {
        "seed": FOG_SEED,
        "pieces": len(pieces),
        "points": len(pieces.points),
        "all_rows": 9 * corners,
        "weights": weight.numel(),
    }
    answer["weights"] += len(weight)
    if repaired is None:
        return answer
    clean, foggy = mnist("test"), mnist_fog()
    ends = torch.stack(regions.corners)[:, 1].float()
    answer["ends_right"] = accuracy(repaired, Images(ends, labels))
    answer["drawdown_points"] = 100 * (accuracy(model, clean) - accuracy(repaired, clean))
    answer["fog_gain_points"] = 100 * (accuracy(repaired, foggy) - accuracy(model, foggy))
    if result is not None and layer == "fc3" and edits <= 25:
        checked = result.verify(timeout=300)
        answer |= {"verified": checked.verdict, "verify_cpu_seconds": checked.cpu_seconds}
    return answer


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(one(**json.loads(sys.argv[1]))))
