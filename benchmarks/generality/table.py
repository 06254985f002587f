"""What docs say of generality beside locality, from the committed result file alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.generality.run import NETWORKS, RESULTS, settings
from benchmarks.rows import spread
from nnrepair.results import markdown
from nnrepair.rounding import percent

Row = dict[str, Any]
TITLES = {"3x100": "MNIST, 3x100", "9x100": "MNIST, 9x100", "resnet20": "CIFAR-10, ResNet-20"}


@dataclass(frozen=True)
class Point:
    """What one method reaches on one network: a row for each seed."""

    network: str
    series: str
    point: str
    rows: Sequence[Row]

    def values(self, key: str) -> list[float]:
        """Return a measure over the seeds; "other" is what accuracy rose by on the second test set, in points."""
        if key == "other":
            return [-next(iter(row["tests"].values()))["drawdown_points"] for row in self.rows]
        return [row[key] for row in self.rows]


def points(network: str) -> list[Point]:
    """Return what was measured on a network, in the order of the benchmark."""
    rows = [row for row in json.loads(RESULTS.read_text())["rows"] if row["network"] == network]
    found = []
    for setting in settings(NETWORKS[network]):
        name = (setting.series, setting.point)
        mine = [row for row in rows if (row["series"], row["point"]) == name and "success_rate" in row]
        if mine:
            found.append(Point(network, *name, mine))
    return found


def table(network: str) -> str:
    """Return one network's table."""
    columns = (
        ("edits that hold %", "success_rate", ".1f", 100.0),
        ("generalization %", "generalization_rate", ".1f", 100.0),
        ("others right, points", "other", ".1f", 1.0),
        ("drawdown, points", "drawdown_points", ".2f", 1.0),
        ("unchanged %", "locality", ".1f", 100.0),
        ("CPU s", "cpu_seconds", ".1f", 1.0),
    )
    rows = [
        [
            each.series,
            each.point,
            *(spread(each.values(key), form, scale) for _, key, form, scale in columns),
            str(len(each.rows)),
        ]
        for each in points(network)
    ]
    return markdown.table(["method", "asked", *(title for title, *_ in columns), "seeds"], rows)


def section() -> str:
    """Return the section of docs/results-editing.md, empty where nothing was measured."""
    if not RESULTS.exists():
        return ""
    file = json.loads(RESULTS.read_text())
    commits = " and ".join(dict.fromkeys(row["commit"][:7] for row in file["rows"]))
    versions = ", ".join(f"{name} {number}" for name, number in file["versions"].items())
    parts = "\n".join(f"### {TITLES[name]}\n\n{table(name)}\n" for name in NETWORKS if points(name))
    return f"""## Generality beside locality

`python -m benchmarks run --domain generality`. Measured on {file["date"]}, commit {commits}, one thread,
{versions}; other work ran on the machine.

All edits at once: 100 foggy digits with 10 000 clean digits kept, or 50 JPEG images, in the last layer, with 2500 kept.
*Neighbours demanded*: every edit comes with four further copies that must hold too, each in a fog of its own or moved
by a pixel diagonally; *wanted*: the same four as `Edits(..., neighbours=...)`, which may fail. None of them is in the
edit scope, whose copies are drawn alike (other fogs) or are of another kind (mirrored, moved up, down, left, right).
*Margin*: in units of the outputs, in place of the default, 5 % of the typical distance between the two best classes.
*Others right*: by how much accuracy rises on other foggy digits; for CIFAR-10 on lossless images, where it can but
fall.

![Generalization against drawdown](generality.png)

{parts}"""


def choice() -> str:
    """Return the lines of docs/how-to-choose.md: minimal norm beside fine-tuning, each with and without neighbours."""
    series = ("minimal norm, first layer", "minimal norm, middle layer", "minimal norm, last layer")
    shown = (*series, "minimal norm, all layers", "fine-tuning + KL", "fine-tuning + rehearsal")
    head = ["method", "asked", *(f"{TITLES[name]}: generalization %, drawdown" for name in NETWORKS)]
    found = {(p.network, p.series, p.point): p for name in NETWORKS for p in points(name)}
    named = dict.fromkeys((s.series, s.point) for name in NETWORKS for s in settings(NETWORKS[name]))
    rows = []
    for one, asked in named:
        cells = [_told(found.get((name, one, asked))) for name in NETWORKS]
        if one in shown and set(cells) != {"–"}:
            rows.append([one, asked, *cells])
    return markdown.table(head, rows)


def _told(point: Point | None) -> str:
    if point is None:
        return "–"
    told = f"{100 * fmean(point.values('generalization_rate')):.0f}, {fmean(point.values('drawdown_points')):.2f}"
    held = fmean(point.values("success_rate"))
    return told if held == 1 else f"{told} ({percent(held, 0)} of edits hold)"
