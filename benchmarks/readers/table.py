"""Write docs/results-readers.md from the committed result files alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.robust import table as robust
from nnrepair.files import write_atomically
from nnrepair.results import markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "readers.json"
#: What a reader is called on the page.
READERS = {
    "minimality": "`verification/minimality.py`",
    "reading": "`verification/reading.py`",
    "load": "`nnrepair.onnx.load`",
    "lower": "`nnrepair.verify`",
}
WRITERS = {"hand": "by hand", "script": "`dynamo=False`", "dynamo": "`dynamo=True`"}
WRONG = ("difference", "crash")
#: Graphs that onnx, or onnxruntime, refuses.
UNDECIDED = ("invalid", "unconfirmed")
Row = dict[str, Any]


def totals(rows: list[Row], key: str) -> dict[str, Counter[str]]:
    """Add up what the blocks count for each reader."""
    made = {reader: Counter[str]() for reader in READERS}
    for row in rows:
        for reader, counts in row[key].items():
            made[reader].update(counts)
    return made


def by_reader(rows: list[Row]) -> str:
    out = []
    for reader, counts in totals(rows, "outcomes").items():
        known = {"agrees", "refused", "reference agrees", *WRONG, *UNDECIDED}
        rest = sum(n for word, n in counts.items() if word not in known)
        undecided = sum(counts[word] for word in UNDECIDED)
        equal = [counts["agrees"], counts["reference agrees"]]
        out.append([READERS[reader], *equal, *(counts[word] for word in WRONG), counts["refused"], undecided, rest])
    header = ["reader", "read, equal", "equal to onnx's evaluator", "different", "foreign errors", "refused"]
    return markdown.table([*header, "no graph of ONNX", "overflow, or wide"], out)


def by_operator(rows: list[Row]) -> str:
    counts = totals(rows, "operators")
    operators = sorted(set().union(*counts.values()))
    out: list[list[object]] = [[op, *(counts[reader][op] or "–" for reader in READERS)] for op in operators]
    return markdown.table(["operator", *READERS.values()], out)


def later() -> str:
    """Return what a smaller campaign found with the readers as they became after the large one."""
    path = RESULTS.with_name("readers-later.json")
    if not path.exists():
        return ""
    file = json.loads(path.read_text())
    rows: list[Row] = file["rows"]
    graphs, styles = sum(row["graphs"] for row in rows), ", ".join(dict.fromkeys(row["style"] for row in rows))
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    faults = [fault for row in rows for fault in row["faults"] if fault.split(":")[0].split()[-1] in WRONG]
    found = "\n".join(f"* `{' '.join(fault.split())}`" for fault in faults)
    seeds = ", ".join(sorted({str(row["seed"]) for row in rows}))
    return f"""
The importer reads more since then. {graphs} graphs of the styles {styles} (seed {seeds}, {file["date"]}, commit
{commits}), of which the last commits hold what mends the faults:

{by_reader(rows)}

{"No faults." if not found else "Faults, as they were told:" + chr(10) + chr(10) + found}
"""


def opsets() -> str:
    """Return the section about operator sets."""
    rows, measured = _rows("opsets")
    table = []
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = []
        for writer in WRITERS:
            mine = [row for row in rows if (row["name"], row["writer"]) == (name, writer)]
            counts = Counter(row["outcome"] for row in mine)
            right = f"{counts.pop('right', 0)} of {len(mine)}" if mine else "–"
            cells.append("; ".join([right, *(f"{n} {word}" for word, n in sorted(counts.items()))]))
        table.append([name, *cells])
    asked = sorted({row["asked"] for row in rows})
    return f"""## Operator sets

`python -m benchmarks.readers.opsets` ({measured}). Small networks of usual kinds in operator sets {asked[0]} to
{asked[-1]}: written by hand in the forms that operators had in each, or by torch's two exporters, of which the newer
begins at {min(row["asked"] for row in rows if row["writer"] == "dynamo")}. Counted are operator sets in which `load`
computes what onnxruntime does, and a repair of the last layer in place makes {rows[0]["edits"]} points get another
answer and {rows[0]["kept"]} others keep theirs, as onnxruntime runs the file that was written. "Not exported": torch
refuses to write it.

{markdown.table(["network", *WRITERS.values()], table)}
"""


def exports() -> str:
    """Return the section about what torch exports."""
    rows, measured = _rows("exports")
    table = []
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = {row["exporter"]: row for row in rows if row["model"] == name}
        cells = [_exported(mine[exporter]) if exporter in mine else "not measured" for exporter in ("script", "dynamo")]
        table.append([name, next((row["of"] for row in mine.values() if "of" in row), "–"), *cells])
    return f"""## Networks of torch and torchvision

`python -m benchmarks.readers.exports` ({measured}). Random weights, written with a free batch, read back, and compared
with onnxruntime on other points: the largest difference, relative to the largest output.

{markdown.table(["network", "parameters", WRITERS["script"], WRITERS["dynamo"]], table)}
"""


def _exported(row: Row) -> str:
    found = row.get("difference")
    return str(row["outcome"]) if found is None else f"{row['outcome']}, {found:.0e}"


def _rows(name: str) -> tuple[list[Row], str]:
    """Return the rows of a result file, and with what and when they were measured."""
    file = json.loads(RESULTS.with_name(f"{name}.json").read_text())
    about = f"torch {file['versions']['torch']}, {file['date']}, commit "
    return file["rows"], about + ", ".join(sorted({row["commit"][:7] for row in file["rows"]}))


def page() -> str:
    """Return docs/results-readers.md."""
    file = json.loads(RESULTS.read_text())
    rows: list[Row] = file["rows"]
    graphs, cpu = sum(row["graphs"] for row in rows), sum(row["cpu_seconds"] for row in rows)
    versions = rows[-1]["packages"] | file["versions"]
    about = ", ".join(f"{name} {versions[name]}" for name in ("onnx", "onnxruntime", "torch", "numpy"))
    seeds = ", ".join(sorted({str(row["seed"]) for row in rows}))
    commits = ", ".join(f"{commit} ({n} blocks)" for commit, n in Counter(row["commit"] for row in rows).most_common())
    return f"""# Reading files: results

Generated by `python -m benchmarks table` from `benchmarks/readers/results/readers.json` and
`benchmarks/robust/results/*.json`.

## Random ONNX graphs

`python -m benchmarks.readers.campaign`. Measured on
{file["machine"]}, Python {file["python"]}, {about},
one thread, seed {seeds}, {file["date"]}, commits {commits}.

Four programs here read ONNX files: the checker of repairs, the checker of properties, the importer, and the property
search, which reads what the importer made. {graphs} random graphs ({graphs / cpu:.0f} in a CPU second,
{cpu / 3600:.1f} CPU hours) went through all four, and each was compared with onnxruntime. A reader either computes
what onnxruntime computes, one point at a time and for batches of other sizes, or refuses with its own error.

The graphs have up to seven operators of every kind that any reader knows, in operator sets 1 to 28, float16 to float64:
usual attributes and odd ones, constants in every form that a file can give them (also computed by other nodes), fixed
and free batches, branches, odd names. Values are drawn with ties, zeros of both signs and large numbers.

{by_reader(rows)}

"Equal" is up to about fifty units in the last place of the largest number on the way; enclosures must hold
onnxruntime's value, and be narrow or else around a number that equals it. Where a value jumps, rounding decides: both
sides must be in the enclosure. Where onnxruntime has no kernel, onnx's own evaluator tells. "No graph of ONNX": drawn
with an attribute, a type or a shape that onnx's checker or onnxruntime refuses; there is nothing to compare with.
"Overflow, or wide": numbers that are not finite, or enclosures that hold the value and are too wide to say more.
{later()}
{opsets()}
{exports()}
## Operators

How many graphs with an operator each reader has read:

{by_operator(rows)}

{robust.sections()}"""


def write() -> None:
    """Write docs/results-readers.md."""
    write_atomically(ROOT / "docs" / "results-readers.md", page().encode())
