"""The section of docs/results-compare.md about networks that agree, from the committed result files alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnrepair.results import markdown

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
PROGRAMS = ("equivalent", "check")


def _file(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    loaded: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    return loaded


def kind(row: Row) -> tuple[str, ...]:
    """Return what a row is about: networks, how their weights were changed, region and question."""
    if "delta" in row:
        asked = f"the decision, if softmax > {row['delta']:g}"
    else:
        asked = "the decision" if row["tolerance"] is None else f"by {number_of(row['tolerance']):g}"
    if "digit" in row:
        return row["network"], "float16, int8, pruned", row["region"], asked
    region = "properties 5 to 10" if row["region"] in [f"property {n}" for n in range(5, 11)] else row["region"]
    return "ACAS Xu", row["change"], region, asked


def number_of(text: str) -> float:
    """Return a fraction, given as text, as a float."""
    above, _, below = text.partition("/")
    return int(above) / int(below or 1)


def solved(rows: list[Row]) -> str:
    """Return how many rows have a verdict, and what they are."""
    words = [row["verdict"] for row in rows if row["verdict"] != "unknown"]
    violated = words.count("violated")
    return f"{len(words)} of {len(rows)}" + (f" ({violated} violated)" if violated else "")


def median(rows: list[Row], what: str, form: str) -> str:
    """Return the median of a figure over all rows."""
    return format(statistics.median(row[what] for row in rows), form) if rows else "–"


def table(rows: list[Row]) -> str:
    """One row for each kind of task."""
    out = []
    for key in dict.fromkeys(map(kind, rows)):
        mine = {p: [row for row in rows if kind(row) == key and row["program"] == p] for p in PROGRAMS}
        proofs = [row["certificate"] for row in mine["equivalent"] if "certificate" in row]
        accepted = f"{sum(said.startswith('Accepted') for said in proofs)} of {len(proofs)}" if proofs else "–"
        ours, base = mine["equivalent"], mine["check"]
        figures: list[Callable[[list[Row]], str]] = [
            solved,
            lambda some: median(some, "boxes", ".0f"),
            lambda some: median(some, "cpu_seconds", ".2f"),
        ]
        out.append([*key, *(f(ours) for f in figures), accepted, *(f(base) for f in figures)])
    head = "network|weights|region|differ|`equivalent`: solved|boxes|CPU s|certificates accepted"
    return markdown.table([*head.split("|"), "`check`: solved", "boxes", "CPU s"], out)


def published(rows: list[Row]) -> str:
    """Each task of which NeuroDiff's authors stored the time."""
    theirs = _file("published").get("seconds", {})
    mine = [r for r in rows if (r["region"], r["tolerance"], r["program"]) == ("property 1", "1/100", "equivalent")]
    out = []
    for row in mine:
        seconds = theirs.get(row["network"])
        out.append(
            [
                f"N_{{{row['network'].replace('_', ',')}}}",
                row["verdict"],
                row["boxes"],
                f"{row['cpu_seconds']:.1f}",
                "not in 1800" if seconds is None else f"{seconds:.1f}",
            ]
        )
    return markdown.table(["network", "`equivalent`", "boxes", "CPU s", "NeuroDiff, published, wall s"], out)


def section() -> str:
    """Return the section, nothing where nothing is measured."""
    file = _file("equivalence")
    rows: list[Row] = file["rows"]
    if not rows:
        return ""
    counts = {p: [row for row in rows if row["program"] == p] for p in PROGRAMS}
    known = {p: sum(row["verdict"] != "unknown" for row in some) for p, some in counts.items()}
    about = ", ".join(f"{k} {v}" for k, v in file["versions"].items())
    both = [
        (a["cpu_seconds"], b["cpu_seconds"])
        for a in counts["equivalent"]
        for b in counts["check"]
        if {**a, "program": 0}.items() >= {k: b[k] for k in ("network", "change", "region", "tolerance")}.items()
        and all(a.get(what) == b.get(what) for what in ("digit", "delta"))
        and "unknown" not in (a["verdict"], b["verdict"])
    ]
    ratio = statistics.median(b / a for a, b in both) if both else float("nan")
    wrong = sum("certificate" in row and not row["certificate"].startswith("Accepted") for row in counts["equivalent"])
    return f"""## Do rounded networks agree?

[`equivalent`](what-stayed.md#do-they-agree-everywhere) on the tasks of ReluDiff and NeuroDiff: networks with weights
rounded to float16 (also to int8, and with a tenth of each matrix pruned) against their originals; ACAS Xu on boxes of
the properties, MNIST digits of which all pixels move a little, or some move freely. All outputs are bounded, where
ReluDiff's program bounds one. And VeryDiff's question: whether what the first network is sure of stays decided so
(delta-Top-1 equivalence; of these networks, as its authors' are not at hand). `check` is asked the same of both
networks stacked, in the same run, of two of the tasks
with the smaller tolerance only. About the file: {file["about"]}. Measured on {file["machine"]}, Python {
        file["python"]
    }, {about}, one thread, {file["date"]}, beside other work.

Of {len(counts["equivalent"])} tasks `equivalent` solves {known["equivalent"]}, `check` {known["check"]} of
{len(counts["check"])}. Where both do, `check` takes {ratio:.1f} times the CPU time (median). Figures below are medians
over the tasks of a row, also over those that are not solved. {
        "All certificates that were checked were accepted." if not wrong else f"{wrong} certificates were not accepted."
    }

{table(rows)}

NeuroDiff's authors stored what it took them on the hardest of these, with several threads of another machine
({_file("published").get("source", "")}); so this is no race:

{published(rows)}"""
