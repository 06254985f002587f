"""The section of docs/results-compare.md about repairs that keep outputs bit for bit, from the committed results."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from nnrepair.results import markdown
from nnrepair.rounding import percent, percent_at_least

FILE = Path(__file__).parent / "results" / "locality.json"
IDENTICAL = FILE.with_name("identical.json")
#: What was aimed at: so much of the sampled states with the same outputs.
AIM, REPAIRS = 0.85, 36
#: And so much of the volume where that is proved.
PROVED = 0.7


def table(rows: list[dict[str, Any]]) -> str:
    """One row for each unit."""
    out = []
    for row in rows:
        cells = []
        for each in (row["stored"], row):
            cells += [percent(each["identical"], 2), percent(each["same"], 3), f"{each['weights']}, {each['l1']:.2g}"]
        proved = f"{len(row['proved'])} of {row['of']}"
        out.append([_name(row), ", ".join(map(str, row["properties"])), *cells, proved])
    head = (
        "network|properties|stored: identical|same decision|weights, l1|now: identical|same decision|weights, l1|proved"
    )
    return markdown.table(head.split("|"), out)


def section() -> str:
    """Return the section, nothing where nothing is measured."""
    file: dict[str, Any] = json.loads(FILE.read_text()) if FILE.is_file() else {"rows": []}
    rows = file["rows"]
    if not rows:
        return ""
    before, after = (sum(e["identical"] >= AIM for e in some) for some in ([r["stored"] for r in rows], rows))
    worse = sum(row["same"] < row["stored"]["same"] for row in rows)
    whole = sum(len(row["proved"]) == row["of"] for row in rows)
    todo = (
        ""
        if len(rows) >= REPAIRS - 1
        else (
            f" {len(rows)} units are measured so far; "
            "`python -m benchmarks run --domain compare --part locality` goes on."
        )
    )
    return f"""## Repairs that keep outputs

`repair_property(locality="outputs")` changes weights of units that are off at most states, and a bias only where
nothing else will do. Beside the stored repairs of the same properties: at how many random states outside of the
repaired boxes all outputs are the same bits, and the decision is the same ({file["about"]}). These shares are measured,
not proved.{todo}

At least {percent(AIM, 0)} of the states have the same outputs under {after} of these {len(rows)} repairs, and under
{before} of those that are stored. All properties are proved to hold, those to keep among them, under {whole}.
Decisions stay at fewer states than under the stored repair in {worse} cases.

{table(rows)}{identical()}{searched(rows)}"""


def searched(rows: list[dict[str, Any]]) -> str:
    """Return what searches found whose certificates were not checked."""
    tried = [row for row in rows if "volume_identical" in row]
    shares = "; ".join(
        f"{_name(row)} {percent_at_least(row['volume_identical'], 1)} in {row['volume_seconds']:.0f} CPU s"
        for row in tried
    )
    return f"\n\nFound in searches of which no certificate was checked: {shares}." if tried else ""


def identical() -> str:
    """Return what is proved of the volume; nothing where nothing is measured."""
    if not IDENTICAL.is_file():
        return ""
    file: dict[str, Any] = json.loads(IDENTICAL.read_text())
    rows = sorted(file["rows"], key=lambda row: -row.get("claimed", 0.0))
    out = []
    for row in rows:
        if "claimed" not in row:
            out.append([_name(row), row["status"], "–", "–", "–", "–"])
            continue
        took, checked = f"{row['cpu_seconds']:.0f}", f"{row['checker_wall_seconds']:.0f}"
        share = percent_at_least(Fraction(row["claimed"]), 1)
        out.append([_name(row), share, took, str(row["boxes"]), row["certificate"].split(":")[0], checked])
    done = [row for row in rows if row.get("certificate", "").startswith("Accepted") and row["claimed"] >= PROVED]
    names = ", ".join(map(_name, done)) or "none"
    head = "network|identical on at least|CPU s of the search|boxes|the independent program|its wall s"
    return f"""

Of {len(rows)} of these repairs it was tried to prove on how much of the volume outside of the repaired boxes outputs
are identical ({file["about"]}; {file["date"]}). At least {percent(PROVED, 0)} are proved, by certificates that
the independent program accepts, of {len(done)}: {names}. Of the others the table has what there was time for;
[why that stalls](#why-it-stalls) holds for these repairs, too.

{markdown.table(head.split("|"), out)}"""


def _name(row: dict[str, Any]) -> str:
    return f"N_{{{row['unit'].removeprefix('N_').replace('_phi_7', '').replace('_', ',')}}}"
