"""Write docs/results-compare.md from the committed result files alone."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.compare import agreement, locality_table, parts
from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import counted, percent, percent_at_least

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
#: CPU seconds at which the curve is read off.
MOMENTS = (10, 20, 40, 80, 120)
NETWORKS = 42
#: So many layers are counted, not named.
SEVERAL = 4


def _file(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    loaded: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    return loaded


def shown(network: str) -> str:
    """Return a network's name: N_{2,8}."""
    return f"N_{{{network.replace('_', ',')}}}"


def _layers(names: list[str]) -> str:
    return ", ".join(names) if len(names) < SEVERAL else f"{len(names)} layers"


def _at(row: Row, seconds: float, what: str) -> str:
    """Return a share that was proved after so many seconds."""
    known = [moment[what] for moment in row["history"] if moment["cpu_seconds"] <= seconds]
    return percent_at_least(known[-1], 1) if known else "–"


def networks(rows: list[Row]) -> str:
    """One row for each network."""
    least = ["same decision, at least", "sampled", "identical, at least", "sampled", "changed, at least"]
    return markdown.table(
        ["network", "changed", *least, "witnesses", "boxes", "CPU s"],
        [
            [
                shown(row["network"]),
                f"{counted(row['weights'], 'number')} of {_layers(row['layers'])}",
                percent_at_least(row["same"], 2),
                percent(row["sampled_same"], 4),
                percent_at_least(row["identical"], 2),
                percent(row["sampled_identical"], 2),
                percent_at_least(row["changed"], 4),
                row["witnesses"],
                row["boxes"],
                f"{row['cpu_seconds']:.0f}",
            ]
            for row in rows
        ],
    )


def curve(rows: list[Row]) -> str:
    """What was known of decisions after some time."""
    return markdown.table(
        ["network", *(f"{seconds} CPU s" for seconds in MOMENTS)],
        [[shown(row["network"]), *(_at(row, seconds, "same") for seconds in MOMENTS)] for row in rows],
    )


def baseline(rows: list[Row]) -> str:
    """What `check` proves cell by cell, and `compare` in the same time."""
    ours = {row["network"]: row for row in _file("acas")["rows"] if "same" in row}
    out = []
    for row in (row for row in rows if "holds" in row):
        mine = ours.get(row["network"])
        share = row["share_each_second"]
        rate = None if mine is None else mine["same"] / mine["cpu_seconds"]
        out.append(
            [
                shown(row["network"]),
                f"1/{row['grid']}",
                f"{row['holds']} of {row['cells']}",
                f"{row['cpu_seconds'] / row['cells']:.2f}",
                f"{100 * share:.2g} %",
                "–" if rate is None else f"{100 * rate:.2g} %",
                "–" if rate is None or not share else f"{rate / share:.3g}",
            ]
        )
    head = "network|cells|hold|CPU s a cell|volume a CPU s|`compare`: volume a CPU s|times as much"
    return markdown.table(head.split("|"), out)


def against(rows: list[Row]) -> str:
    """Return the section about `check`."""
    told = (
        f"""Random cells, at most {rows[0]["most"]} boxes each:

{baseline(rows)}"""
        if rows
        else "This is not measured yet."
    )
    return f"""## Against `check` on stacked networks

The same could be asked of [`check`](properties.md): both networks side by side, and the property that the decision is
the same, for the cells of a grid. {told}"""


def needed(rows: list[Row]) -> str:
    """How many parts a proof needs."""

    def each(row: Row) -> list[str]:
        counts = [parts.parts(row["depths"], share) for share in parts.SHARES]
        return ["not found" if count is None else f"{count:.0e}" for count in counts]

    return markdown.table(
        ["network", *(f"{share:.0%} of the volume" for share in parts.SHARES), "states settled"],
        [
            [shown(row["network"]), *each(row), f"{sum(d is not None for d in row['depths'])} of {row['states']}"]
            for row in rows
        ],
    )


def stalls(rows: list[Row], found: list[Row]) -> str:
    """Return the section about how many parts a proof needs."""
    if not rows:
        return ""
    most = parts.SHARES[-1]
    counts = sorted(parts.parts(row["depths"], most) or float("inf") for row in rows)
    rates = [row["boxes"] / row["cpu_seconds"] for row in found]
    where = f"{most:.0%} of the volume it is {counts[0]:.0e} at best and {counts[len(counts) // 2]:.0e} for the median"
    easy = f"{parts.SHARES[0]:.0%} of the volume"
    return f"""## Why it stalls

Around each of {rows[0]["states"]} random states the domain was halved until the box around the state was settled. How
often that was, says about how many parts a proof has (an order of magnitude, as few states dominate the mean). For
{where} of
{len(rows)} networks, if the search knew where to split; it does not, and bounds several times as many. The searches
above bounded {min(rates):.0f} to {max(rates):.0f} boxes a CPU second. So {easy} is within reach of minutes, but
{most:.0%} are not, and a faster kernel alone does not change that: bounds would have to be closer over large boxes.

{needed(rows)}"""


def certified(rows: list[Row]) -> str:
    """Return the section about certificates over the whole domain."""
    without = sorted({shown(row["network"]) for row in rows if "certificate" in row and len(row["layers"]) > 1})
    rows = [row for row in rows if row.get("certificate")]
    if not rows:
        return ""
    none = f" {', '.join(without)} have none, as it knows changes of the last layer alone." if without else ""
    table = markdown.table(
        ["network", "CPU s of the search", "claimed: same", "claimed: identical", "answer", "checker, wall s"],
        [
            [
                shown(row["network"]),
                f"{row['seconds']:.0f}",
                percent_at_least(row["claimed_same"], 2),
                percent_at_least(row["claimed_identical"], 2),
                row["certificate"].split(":")[0],
                f"{row['checker_wall_seconds']:.0f}",
            ]
            for row in rows
        ],
    )
    accepted = sum(row["certificate"].startswith("Accepted") for row in rows)
    return f"""## Certificates over the whole domain

The independent program went through {len(rows)} certificates, and accepted {accepted} of them. What is claimed
there, of all states outside of the boxes of the repaired properties, is proved{
        "" if accepted == len(rows) else " where it was accepted"
    }.{none}

{table}"""


def page() -> str:
    """Return docs/results-compare.md."""
    file, stacked, brief = (
        _file("acas"),
        _file("baseline"),
        [row for row in _file("short")["rows"] if "same" in row],
    )
    rows = [row for row in file["rows"] if "same" in row]
    shares = sorted(row["same"] for row in rows)
    least, middle, most = (percent_at_least(v, 1) for v in (shares[0], statistics.median(shares), shares[-1]))
    right = all(row["changed"] <= 1 - row["sampled_same"] <= 1 - row["same"] for row in rows)
    old = [shown(row["network"]) for row in rows if "aim" not in row]
    older = (
        f"{', '.join(old)} were measured by an earlier search, which split for identical outputs too." if old else ""
    )
    about = ", ".join(f"{k} {v}" for k, v in file["versions"].items())
    return f"""# What stayed the same: ACAS Xu

Generated by `python -m benchmarks table` from `benchmarks/compare/results/`. Measured on {file["machine"]}, Python
{file["python"]}, {about}, one thread, {file["date"]}; other work went on beside it, and seconds are those of the CPU.

[`compare`](what-stayed.md) on the repaired ACAS Xu networks and their originals: all states of the networks' domain
outside of the boxes of the repaired properties, five inputs, {rows[0]["seconds"]:.0f} CPU s a network. *Sampled* are a
million random states for decisions, a hundred thousand for outputs. {len(rows)} of {NETWORKS} networks are measured so
far; `python -m benchmarks run --domain compare --part acas` goes on.

{networks(rows)}

On these networks decisions are found to be the same on at least {least} to {most} of the volume, the median is
{middle}, by the bounds of this package; what is proved by certificates is below. What is found
{"brackets" if right else "does not bracket"} the sampled share of changed decisions, but widely:
five inputs need many boxes, as bounds over large boxes say little about these networks. The aim, 90 % for the median in
this time, is not reached.
{older}

At least so much has the same decision, after so many seconds:

{curve(rows)}

{stalls([row for row in _file("parts")["rows"] if "depths" in row], rows)}

{certified([*rows, *brief])}

{against(stacked["rows"])}

{agreement.section()}

{locality_table.section()}
"""


def write() -> None:
    """Write what is generated."""
    if _file("acas")["rows"]:
        write_atomically(ROOT / "docs" / "results-compare.md", page().encode())
