"""Write README.md from the rows among the results, and from nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from units import RESULTS, ROWS, Row, is_full, is_specified, read_rows

from nnrepair.results import markdown

README = Path(__file__).parent / "README.md"
#: Of each set: instances that VNN-COMP's networks violate.
SPECIFIED, FULL, NETWORKS, INSTANCES = 36, 47, 45, 186


def stored(results: Path = RESULTS) -> list[Row]:
    """Return the rows of all units, in order of their names."""
    folders = sorted(path.parent for path in results.glob(f"N_*/{ROWS}"))
    return [row for folder in folders for row in read_rows(folder)]


def agreement(row: Row) -> float:
    """Return the share of advisories that are unchanged outside of what was repaired."""
    kept: float = row["agreement"]["same"] / max(row["agreement"]["compared"], 1)
    return kept


def share(counts: dict[str, int] | None) -> str:
    """Return "same / compared" in per cent, without hiding that a few of many are not the same."""
    if counts is None or not counts["compared"]:
        return "–"
    value = counts["same"] / counts["compared"]
    return "100" if value == 1 else f"{min(100 * value, 99.9999):.4f}"


def totals(name: str, rows: Sequence[Row], expected: int) -> list[str]:
    """Return the cells of one set."""
    if not rows:
        return [name, f"0 of {expected}", *["–"] * 6]
    units = {row["unit"]: row for row in rows}
    cpu = [row["cost"]["repair_cpu_seconds"] for row in units.values()]
    kept = sorted(agreement(row) for row in rows)
    held_out = sum(row["violations"]["held_out"] for row in rows)
    safe = sum(row["violations"]["safe"] for row in rows)
    lost = sum(len(row["drawdown"]["lost"]) for row in units.values())
    proved = sum(row["proved"] for row in rows)
    return [
        name,
        f"{proved} of {expected}",
        f"{safe} of {held_out}",
        f"{100 * statistics.median(kept):.4f} %",
        f"{100 * kept[0]:.4f} %",
        f"{lost} of {sum(row['drawdown']['held'] for row in units.values())}",
        f"{sum(cpu):.0f} s",
        f"{statistics.median(cpu):.1f} s",
    ]


def instance(row: Row) -> list[object]:
    """Return the cells of one violated instance."""
    change, points, regret = row["change"], row["violations"], row["regret"]
    size = f"{row['certificate_bytes'] / 1024:.1f} KiB" if row["proved"] else row["recheck"] or row["after"]
    picture = f"pictures/acas-{row['network']}.png"
    name = f"[N_{{{row['network'].replace('_', ',')}}}]({picture}) phi_{row['property']}"
    sets = [text for text, member in (("full", is_full(row)), ("specified", is_specified(row))) if member]
    return [
        name,
        ", ".join(sets) or "–",
        points["found"],
        f"{100 * points['safe'] / points['held_out']:.2f}" if points["held_out"] else "–",
        ", ".join(layer.rpartition("_")[2] for layer in change["layers"]),
        change["weights"],
        f"{change['l1']:.3g} / {change['linf']:.3g}",
        "–" if row["margin"] is None else f"{row['margin']:.2g}",
        share(row["agreement"]),
        share(row["region"]),
        share(row["neighbourhood"]),
        f"{regret['mean']:.2g} / {regret['max']:.2g}" if regret["changed"] else "–",
        len(row["drawdown"]["lost"]),
        row["boxes"],
        f"{row['cost']['repair_cpu_seconds']:.1f}",
        size,
    ]


def over_whole(rows: Sequence[Row]) -> str:
    """Say for which instances the domain has no outside of the property."""
    seen = dict.fromkeys(
        f"{row['unit']}: {row['agreement']['over']}" for row in rows if "states where" in row["agreement"]["over"]
    )
    return "; ".join(seen) or "none"


def about(rows: Sequence[Row]) -> str:
    """Say what it was measured on."""
    if not rows:
        return "Nothing has been measured yet."
    machines = dict.fromkeys(row["cost"]["machine"] for row in rows)
    used = dict.fromkeys(", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows)
    seeds = rows[0]["seeds"]
    return (
        f"Measured on {'; '.join(machines)}; {'; '.join(used)}. Every network in one thread of one process. "
        f"Seeds: {seeds['repair']} for the repair, {seeds['measures']} for the measures."
    )


HEAD = [
    "instance",
    "set",
    "violations before",
    "now safe, %",
    "layers",
    "weights",
    "l1 / largest change",
    "margin",
    "agreement, %",
    "in the region, %",
    "around it, %",
    "regret, mean / max",
    "lost",
    "boxes",
    "CPU s",
    "certificate",
]


def page(results: Path = RESULTS) -> str:
    """Return README.md."""
    rows = stored(results)
    repairs = [row for row in rows if row["role"] == "repair"]
    full = [row for row in rows if is_full(row)]
    sets: dict[str, Any] = {
        "specified": [row for row in repairs if is_specified(row)],
        "full": [row for row in repairs if is_full(row)],
    }
    accepted, networks = sum(row["proved"] for row in full), len({row["unit"] for row in full})
    states = rows[0]["states"] if rows else 0
    size = sum(row["certificate_bytes"] or 0 for row in full) / 1024
    recheck = sum({row["unit"]: row["cost"]["recheck_cpu_seconds"] for row in full}.values())
    peak = max((row["cost"]["peak_mib"] for row in rows), default=0.0)
    whole = sum({row["unit"]: row["cost"]["cpu_seconds"] for row in rows}.values())
    return f"""# ACAS Xu, repaired and proved

Written by `python verification/acas/audit.py` from `results/*/{ROWS}`; a test compares them.

45 networks, ten properties, 186 instances of VNN-COMP, of which {
        FULL
    } are violated. All that is violated on one network
is repaired jointly with `nnrepair.repair_property`, and all that holds is kept. On the repaired networks
**{accepted} of {INSTANCES} instances hold, each with a certificate that `verification/check.py` accepted**
({networks} of {NETWORKS} networks; {size:.0f} KiB of certificates, accepted in {recheck:.0f} CPU s).

{
        markdown.table(
            [
                "set",
                "repaired and proved",
                "held-out violations now safe",
                "median agreement",
                "worst agreement",
                "properties lost",
                "CPU time",
                "median CPU time",
            ],
            [totals("specified", sets["specified"], SPECIFIED), totals("full", sets["full"], FULL)],
        )
    }

*Specified* are the instances for which Katz et al. 2017 state the property: phi_2 on N_{{x>=2,y}}, phi_7 on N_{{1,9}}
and phi_8 on N_{{2,9}}. There phi_7 is repaired alone, in a second patch, since phi_3 and phi_4 exclude N_{{1,7}} to
N_{{1,9}}. *Full* is everything that VNN-COMP checks and finds violated. CPU time is that of the repair of a network,
with its own checks and proofs, in at most {peak:.0f} MiB. With a check of every property before, the certificates'
recheck and all measures it was {whole:.0f} CPU s.

{about(rows)}

## Instances

* *violations before*: different violated states of the original network that an attack with another seed than the
  repair's finds (0 where only the checker's search finds any); *now safe*: the share of these (at most 2000, stored)
  that are safe in the repaired network.
* *layers*: the linear layers that change, by number (7 is the last); *weights*: how many numbers change; *l1 / largest
  change*: by how much.
* *margin*: the slack that counterexamples had to reach, in units of the network's scores.
* *agreement*: unchanged advisories among {states:,} uniform states of the domain, those in the boxes of the repaired
  properties left out. Where such a box is almost the whole domain, states are left out where the original violates the
  property: {over_whole(repairs)}.
* *in the region*: unchanged advisories among 100 000 uniform states of the property's box, unsafe ones left out.
  *around it*: the same in the box inflated 3 times, without what was repaired; – where this leaves hardly a state.
* *regret*: by how much the original network scores a changed advisory worse than its own, over the same states as
  *agreement*. *lost*: properties of the network that held before and are not proved now.
* *boxes*: how many the proof bounds. *CPU s*: of the repair of the network, all of its properties together.

{markdown.table(HEAD, map(instance, sorted(repairs, key=lambda row: (row["network"], row["property"], row["unit"]))))}

## What is proved, and in which arithmetic

A certificate is accepted when `verification/check.py`, which shares no code with the package, has bounded every part of
every box again: in float64, with every rounding error accounted for, for the real-valued function of the weights that
the repaired ONNX file stores (float32). Runs in float32 round, and may differ from it where an output comes within
rounding of the border. Boxes and unsafe sets are those of the public VNN-LIB files, in exact fractions. Agreement,
regret and held-out violations are measured, in float32, and prove nothing.

## Reproduce

    python verification/acas/repair.py --all --jobs 2 --out again
    python verification/acas/materialise.py --results again --out networks
    python verification/acas/audit.py --results again
    python docs/encounters.py networks verification/acas/pictures

The first can be killed, and goes on where it was. The second writes 45 networks; the third checks hashes, certificates
and measures, and exits with 1 if anything differs. Without `--results` both take what is committed, and the third
writes this page; the fourth draws the pictures behind the names of networks. Networks and properties come from
`NNREPAIR_DATA` or are downloaded once, with pinned hashes.

On a cluster, the workers need nnrepair, and this folder, that of the data and that of `--out` under the same names;
then two lines take the sweep to dask (`import joblib, repair; from dask.distributed import Client`):

    client = Client("scheduler:8786")
    with joblib.parallel_config(backend="dask"): repair.main(["--all", "--out", "shared/results"])

or to ray (`import joblib, repair; from ray.util.joblib import register_ray`):

    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=-1): repair.main(["--all", "--out", "shared/results"])
"""
