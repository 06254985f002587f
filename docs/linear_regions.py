"""Draw docs/linear-regions.png: a slice of an ACAS Xu network before and after a region edit. Needs ACAS Xu data.

python -m docs.linear_regions [slice]
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from torch import Tensor, nn

from benchmarks.regions.acas import LAYER, MEAN, RANGE, REPAIRED, phi_8, slices
from nnrepair import Edits, Polygons, fix, onnx
from nnrepair.domains import acas
from nnrepair.methods import MinimalNorm
from nnrepair.regions.splitting import split

HERE = Path(__file__).parent
HOLDS, BREAKS = "#eef3f8", "#d95f02"


def draw(model: nn.Module, corners: Tensor, window: Tensor, ax: Axes) -> None:
    """Draw the linear regions of one slice, and where phi_8 fails, interpolated between corners of each region."""
    pieces = split(model, Polygons(corners[None]))
    x = measured(pieces.points)
    rings = [pieces.corners[p, : pieces.count[p]] for p in range(len(pieces))]
    ax.add_collection(PolyCollection([x[ring].numpy() for ring in rings], facecolors=HOLDS, edgecolors="none"))
    broken = [part for ring in rings if len(part := below(x[ring], slack(pieces.outputs[ring]))) > 2]
    ax.add_collection(PolyCollection([part.numpy() for part in broken], facecolors=BREAKS, edgecolors=BREAKS))
    outlines = [x[ring].numpy() for ring in rings]
    ax.add_collection(PolyCollection(outlines, facecolors="none", edgecolors="#5b6b7b", linewidths=0.35))
    ax.set_xlim(*window[:, 0].tolist())
    ax.set_ylim(*window[:, 1].tolist())
    ax.set_xlabel("distance (ft)")


def slack(y: Tensor) -> Tensor:
    """Return (n,) how much less the better of the two allowed advices scores than all others."""
    return y[:, 2:].amin(1) - y[:, :2].amin(1)


def below(x: Tensor, height: Tensor) -> Tensor:
    """Return the corners of the part of a polygon (k, 2) on which a function of its corners is negative."""
    kept = []
    for k in range(len(x)):
        a, b = height[k - 1], height[k]
        if a * b < 0:
            kept.append(x[k - 1] + (x[k] - x[k - 1]) * a / (a - b))
        if b < 0:
            kept.append(x[k])
    return torch.stack(kept) if kept else x[:0]


def measured(points: Tensor) -> Tensor:
    """Return (n, 2) distance in feet and angle in degrees."""
    raw = points * torch.tensor(RANGE) + torch.tensor(MEAN)
    return torch.stack([raw[:, 0], raw[:, 1] * 180 / math.pi], 1)


def main(number: int) -> None:
    model = onnx.load(acas.network(2, 9))
    regions = Polygons(slices()[:REPAIRED])
    result = fix(model, Edits(regions, phi_8(REPAIRED)), method=MinimalNorm(layer=LAYER, norm="mean+max"))
    corners = regions.corners[number]
    pieces = split(model, Polygons(corners[None]))
    wrong = measured(pieces.points[slack(pieces.outputs) < 0])
    low, high = wrong.amin(0), wrong.amax(0)
    window = torch.stack([low - 0.25 * (high - low), high + 0.25 * (high - low)])
    whole = measured(corners)
    window = window.clamp(whole.amin(0), whole.amax(0))
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for ax, network, title in zip(axes, (model, result.model), ("before", "after"), strict=True):
        draw(network, corners, window, ax)
        ax.set_title(f"{title}: N$_{{2,9}}$, slice {number}", loc="left", fontsize="medium")
    axes[0].set_ylabel("angle to the intruder (°)")
    figure.savefig(HERE / "linear-regions.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
