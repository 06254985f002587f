"""`python -m benchmarks run --domain generality`: edits all at once, by methods that differ in how far they reach.

Neighbours are given to methods as points that they may work towards ("wanted") or must reach ("demanded"). They are
drawn as the edit scope is, but are others, and are in no test set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import measure
from benchmarks.editing import DOMAINS, Row, on
from benchmarks.experiments import save
from nnrepair.domains.base import Task

RESULTS = Path(__file__).parent / "results" / "rows.json"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Network:
    """Where edits come from.

    Attributes:
        domain, model, edits, task: see `benchmarks.editing.one`.
        layers: names of what minimal norm changes -> what it is told.
        margins: beside the default, in units of the network's outputs, for layers in which they were found to help.
        tuning: what fine-tuning is told.
    """

    domain: str
    model: str
    edits: int
    task: dict[str, Any]
    layers: dict[str, Any]
    margins: tuple[float, ...]
    tuning: dict[str, Any]


def _digits(model: str) -> Network:
    depth = int(model[0])
    middle, last = f"fc{depth // 2 + 1}", f"fc{depth}"
    layers = {"first layer": "fc1", "middle layer": middle, "last layer": last}
    layers |= {"all layers": [f"fc{k}" for k in range(1, depth + 1)]}
    return Network("mnist", model, 100, {"kept": 10_000}, layers, (1.0, 3.0), {"lr": 1e-3, "steps": 300})


NETWORKS = {
    "3x100": _digits("3x100"),
    "9x100": _digits("9x100"),
    "resnet20": Network("cifar", "resnet20", 50, {}, {"last layer": "linear"}, (1.0, 3.0), {"lr": 1e-2, "steps": 500}),
}


@dataclass(frozen=True)
class Setting:
    """One method with its options.

    Attributes:
        series, point: its name, in two parts: one series is one colour.
        method, options: see `benchmarks.editing.method_of`.
        neighbours: "none", "wanted" or "demanded".
    """

    series: str
    point: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    neighbours: str = "none"


def settings(network: Network) -> Iterator[Setting]:
    """Yield what is measured on a network."""
    for name, layer in network.layers.items():
        told = {"layer": layer, "norm": "drift"}
        series = f"minimal norm, {name}"
        yield Setting(series, "as it is", "minimal-norm", told)
        for margin in network.margins if name in ("middle layer", "last layer") else ():
            yield Setting(series, f"margin {margin:g}", "minimal-norm", told | {"margin": margin})
        yield Setting(series, "neighbours wanted", "minimal-norm", told, "wanted")
        if name == "middle layer":
            yield Setting(series, "neighbours demanded", "minimal-norm", told, "demanded")
    kl = [{"kind": "KL", "weight": 10.0}]
    for series, told in (
        ("fine-tuning", {}),
        ("fine-tuning + KL", {"penalties": kl}),
        ("fine-tuning + rehearsal", {"rehearsal": 100}),
    ):
        yield Setting(series, "as it is", "ft", network.tuning | told)
        yield Setting(series, "neighbours demanded", "ft", network.tuning | told, "demanded")
    yield Setting("GRACE", "as it is", "grace")
    yield Setting("GRACE", "neighbours demanded", "grace", {}, "demanded")


def cases() -> Iterator[Row]:
    """Yield what tells one row from another, a seed after the other."""
    for seed in SEEDS:
        for name, network in NETWORKS.items():
            for setting in settings(network):
                yield {"network": name, "series": setting.series, "point": setting.point, "seed": seed}


@cache
def _task(network: str, seed: int, neighbours: str) -> Task:
    asked = NETWORKS[network]
    options = asked.task | {"neighbours": neighbours}
    return DOMAINS[asked.domain].task(asked.model, seed, asked.edits, **options)


def row(network: str, series: str, point: str, seed: int) -> Row:
    """Return the figures of one case."""
    names = {(each.series, each.point): each for each in settings(NETWORKS[network])}
    chosen = names[series, point]
    found = on(_task(network, seed, chosen.neighbours), chosen.method, chosen.options, "batch", seed)
    return {"method": chosen.method, "options": chosen.options} | found


def run(network: str) -> None:
    """Measure what is not measured yet of a network, and store it after every row; tasks are made once."""
    rows = measure.load(RESULTS)
    keys = ("network", "series", "point", "seed")
    done = {tuple(each[key] for key in keys) for each in rows}
    todo = [case for case in cases() if case["network"] == network and tuple(case.values()) not in done]
    commit = measure.commit()
    for case in tqdm(todo):
        rows.append(case | {"commit": commit} | row(**case))
        save(RESULTS, rows)
