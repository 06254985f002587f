"""The section of docs/results-compare.md about repairs that keep outputs bit for bit, from the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnrepair.results import markdown
from nnrepair.rounding import percent, percent_at_least

FILE = Path(__file__).parent / "results" / "locality.json"
#: What was aimed at: so much of the sampled states with the same outputs.
AIM, REPAIRS = 0.85, 36


def table(rows: list[dict[str, Any]]) -> str:
    """One row for each unit."""
    out = []
    for row in rows:
        cells = []
        for each in (row["stored"], row):
            cells += [percent(each["identical"], 2), percent(each["same"], 3), f"{each['weights']}, {each['l1']:.2g}"]
        proved = f"{len(row['proved'])} of {row['of']}"
        name = row["unit"].removeprefix("N_").replace("_phi_7", "").replace("_", ",")
        out.append([f"N_{{{name}}}", ", ".join(map(str, row["properties"])), *cells, proved])
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
    tried = [row for row in rows if "volume_identical" in row]
    shares = "; ".join(
        f"N_{{{row['unit'][2:].replace('_', ',')}}} {percent_at_least(row['volume_identical'], 1)} in "
        f"{row['volume_seconds']:.0f} CPU s"
        for row in tried
    )
    volumes = (
        f"\n\n`compare` finds outputs to be identical on so much of the volume there (the aim was 70 %): {shares}. "
        "[Why that stalls](#why-it-stalls) holds for these repairs, too."
        if tried
        else ""
    )
    return f"""## Repairs that keep outputs

`repair_property(locality="outputs")` changes weights of units that are off at most states, and a bias only where
nothing else will do. Beside the stored repairs of the same properties: at how many random states outside of the
repaired boxes all outputs are the same bits, and the decision is the same ({file["about"]}). These shares are measured,
not proved.{todo}

At least {percent(AIM, 0)} of the states have the same outputs under {after} of these {len(rows)} repairs, and under
{before} of those that are stored. All properties are proved to hold, those to keep among them, under {whole}.
Decisions stay at fewer states than under the stored repair in {worse} cases.{volumes}

{table(rows)}"""
