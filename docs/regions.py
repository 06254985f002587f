"""Draw docs/region-*.png: where ACAS Xu networks obey a property and where not. Needs $NNREPAIR_DATA/acasxu.

python docs/regions.py
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nnrepair import plot
from nnrepair.verify import Box, check, vnnlib

DATA = Path(os.environ.get("NNREPAIR_DATA", "data")) / "acasxu"
HERE = Path(__file__).parent
NAMES = ("distance", "bearing", "heading of the intruder", "own speed", "its speed")
UNITS = ("ft", "°", "°", "ft/s", "ft/s")
ABOUT = json.loads((DATA / "normalization.json").read_text())


def measured(value: float, dim: int) -> float:
    """Return a normalised input as people measure it."""
    raw = value * ABOUT["input_range"][dim] + ABOUT["input_mean"][dim]
    return math.degrees(raw) if UNITS[dim] == "°" else raw


def told(value: float, dim: int) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0:.4g}"
    return f"{text.replace('-', '−')}{'' if UNITS[dim] == '°' else ' '}{UNITS[dim]}"


def draw(network: str, prop: int, dims: tuple[int, int], share: float | None, title: str, out: str) -> None:
    model = DATA / "onnx" / f"ACASXU_run2a_{network}_batch_2000.onnx"
    claim = DATA / "vnnlib" / f"prop_{prop}.vnnlib"
    result = check(model, claim)
    box: Box = vnnlib.load(claim).cases[0].box
    low, high = box.outer
    figure, ax = pyplot.subplots(figsize=(7.2, 4.0), layout="constrained")
    plot.region(
        model,
        box,
        dims,
        at=None if share is None else low * (1 - share) + high * share,
        resolution=500,
        counterexamples=result,
        certificate=result.certificate,
        property=claim,
        names=NAMES,
        ax=ax,
        classes=ABOUT["outputs"],
        lowest_wins=True,
    )
    at = low * (1 - share) + high * share if share is not None else result.counterexample.input
    dress(ax, dims, at, title)
    figure.savefig(HERE / out, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def dress(ax: Axes, dims: tuple[int, int], at: Any, title: str) -> None:
    """Put units on the axes, and say where the slice is."""
    for axis, dim, ends in zip((ax.xaxis, ax.yaxis), dims, (ax.get_xlim(), ax.get_ylim()), strict=True):
        low, high = (measured(end, dim) for end in ends)
        ticks = [t for t in MaxNLocator(5, steps=[1, 2, 3, 5, 10]).tick_values(low, high) if low <= t <= high]
        axis.set_ticks([ends[0] + (t - low) / (high - low) * (ends[1] - ends[0]) for t in ticks])
        axis.set_ticklabels([told(t, dim) for t in ticks])
    fixed = ", ".join(f"{NAMES[d]} {told(float(f'{measured(at[d], d):.4g}'), d)}" for d in range(5) if d not in dims)
    ax.set_title(f"{title}\n", loc="left", fontsize="medium", fontweight="bold", color="#222222")
    ax.text(0, 1.015, fixed, transform=ax.transAxes, fontsize="small", color="#555555", va="bottom")


if __name__ == "__main__":
    draw("2_9", 8, (0, 1), None, "Network 2,9 violates property 8", "region-violated.png")
    draw("2_1", 3, (1, 2), 0.3, "Network 2,1 satisfies property 3", "region-proved.png")
