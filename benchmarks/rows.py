"""Rows of the editing benchmark as groups and as tables; nothing but the committed result files is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.editing import DOMAINS, MODES, Row
from nnrepair.results import markdown

#: The two that every other experiment is compared with, in this order; the rest follows by name.
BASELINES = ("minimal-norm", "ft")


@dataclass(frozen=True)
class Group:
    """The rows of one experiment, on one model and in one mode: one for each seed."""

    domain: str
    model: str
    mode: str
    experiment: str
    rows: Sequence[Row]

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if "success_rate" in row]

    def values(self, key: str) -> list[float]:
        """Return a measure over the seeds; `test NAME` is the drawdown on another test set."""
        if key.startswith("test "):
            return [row["tests"][key.removeprefix("test ")]["drawdown_points"] for row in self.finished]
        return [row[key] for row in self.finished if row.get(key) is not None]

    def mean(self, key: str) -> float:
        return fmean(self.values(key))


def result_files(domain: str) -> list[dict[str, Any]]:
    """Return a domain's result files, read."""
    return [json.loads(path.read_text()) for path in sorted((DOMAINS[domain].folder / "results").glob("*.json"))]


def groups(domain: str) -> list[Group]:
    """Return what was measured in a domain: by model, mode and experiment, the baselines first."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for file in result_files(domain):
        for row in file["rows"]:
            if "experiment" in row:  # the folder of MNIST holds other results too
                found.setdefault((row["model"], row["mode"], row["experiment"]), []).append(row)
    modes = list(MODES)
    order = sorted(found, key=lambda key: (key[0], modes.index(key[1]), *rank(key[2])))
    return [Group(domain, *key, found[key]) for key in order]


def rank(experiment: str) -> tuple[int, str]:
    """Return what experiments are sorted by: the baselines, then the names."""
    place = next((k for k, name in enumerate(BASELINES) if experiment == name), len(BASELINES))
    return (0 if experiment.startswith(BASELINES[0]) else place), experiment


def spread(values: Sequence[float], form: str, scale: float = 1.0) -> str:
    """Return mean ± standard deviation over the seeds."""
    if not values:
        return "–"
    values = [scale * value for value in values]
    mean = f"{fmean(values):{form}}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):{form}}"


def seeds_of(group: Group) -> str:
    """Return how many seeds there are, or how many of them finished and what the others came to."""
    bad = sorted({row["status"] for row in group.rows if "success_rate" not in row})
    return f"{len(group.finished)} of {len(group.rows)}: {'; '.join(bad)}" if bad else str(len(group.rows))


def experiments(found: Sequence[Group]) -> str:
    """Return what each name stands for."""
    told = {group.experiment: group.rows[0] for group in found}
    return markdown.table(
        ["experiment", "method", "options"],
        [[name, f"`{row['method']}`", _options(row["options"])] for name, row in sorted(told.items(), key=_by_rank)],
    )


def _by_rank(item: tuple[str, Row]) -> tuple[int, str]:
    return rank(item[0])


def _options(options: Row) -> str:
    parts = []
    for name, value in sorted(options.items()):
        if name == "penalties":
            value = ", ".join(
                f"{p['kind']}({', '.join(f'{k}={v}' for k, v in p.items() if k != 'kind')})" for p in value
            )
        parts.append(f"{name} = {value}")
    return "; ".join(parts) or "–"


def seconds_of(found: Sequence[Group]) -> float:
    """Return the CPU seconds of all rows."""
    return sum(row["cpu_seconds"] for group in found for row in group.finished)
