"""Write docs/results-engine.md from the committed result files alone."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.engine.corruptions import EDITS
from benchmarks.engine.metrics import NORMS, SEEDS
from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import percent

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
#: What rows say of how near a local minimum descent ended.
OPTIMALITY = ("stationarity", "complementarity")


def _file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return loaded


def _commits(file: dict[str, Any]) -> str:
    found = dict.fromkeys(row["commit"][:7] for row in file["rows"] if "commit" in row)
    return f", commit {' and '.join(found)}" if found else ""


def _measured(file: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in file["versions"].items())
    where = f"{file['machine']}, one thread, Python {file['python']}, {versions}"
    return f"Measured on {where}, {file['date']}{_commits(file)}."


def _seconds(side: dict[str, Any]) -> str:
    seconds = side.get("cpu_seconds")
    return side["status"] if seconds is None else f"{seconds:.2f}"


def hidden() -> str:
    """Return a row for each repair of a hidden layer."""
    rows: list[list[object]] = []
    for row in sorted(_file("hidden")["rows"], key=lambda r: (r["net"], r["norm"] != "drift", r["edits"], r["layer"])):
        sides = row["there"], row["here"]
        held = [percent(side["success_rate"]) if "success_rate" in side else "–" for side in sides]
        sizes = [f"{side['drift']:.3g}" if side.get("drift") else "–" for side in sides]
        shares = [percent(side["share"]) if "share" in side else "–" for side in sides]
        largest = [f"{side['largest']:.3g}" if "largest" in side else "–" for side in sides]
        kept = [percent(side["locality"]) if "locality" in side else "–" for side in sides]
        pairs = [" → ".join(pair) for pair in (held, map(_seconds, sides), sizes, shares, largest, kept)]
        rows.append([row["net"], row["layer"], row["norm"], row["edits"], *pairs])
    head = ["net", "layer", "norm", "N", "edits that hold", "CPU s", "drift", "weights changed", "largest", "unchanged"]
    return markdown.table(head, rows)


def metrics() -> str:
    """Return a row for each layer, and what a repair in each norm costs."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in _file("metrics")["rows"]:
        found.setdefault((row["net"], row["layer"]), {}).setdefault(row["norm"], []).append(row["here"])
    rows: list[list[object]] = []
    for layer, by_norm in sorted(found.items()):
        cells = []
        for norm in NORMS:
            sides = by_norm.get(norm, [])
            if not sides or any("nats" not in side for side in sides):
                cells += ["–"] * 4
                continue
            held, lost, nats, fog, time = (
                mean(side[what] for side in sides)
                for what in ("success_rate", "drawdown", "nats", "other fog", "cpu_seconds")
            )
            failed = "" if held == 1 else f" ({percent(held)} hold)"
            cells += [f"{1000 * nats:.3g}{failed}", f"{lost:.2f}", f"{fog:.1f}", f"{time:.1f}"]
        rows.append([*layer, *(" / ".join(cells[k::4]) for k in range(4))])
    names = " / ".join(NORMS)
    head = ["net", "layer", f"nats / 1000: {names}", "drawdown", "other fog", "CPU s"]
    return markdown.table(head, rows)


def corruptions() -> str:
    """Return a row for each layer, and what came of the most edits of each kind, over the seeds."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in _file("corruptions")["rows"]:
        found.setdefault((row["net"], row["layer"]), {}).setdefault(row["corruption"], []).append(row["here"])
    names = list(dict.fromkeys(name for kinds in found.values() for name in kinds))
    rows = [[*place, *(_repairs(found[place].get(name, [])) for name in names)] for place in sorted(found)]
    return markdown.table(["net", "layer", *names], rows)


def _repairs(sides: list[dict[str, Any]]) -> str:
    """Return how many edits hold, each repair's; the median time and drift of those in which all do."""
    if not sides:
        return "–"
    held = [percent(side["success_rate"], 1) if side.get("success_rate") else side["status"] for side in sides]
    whole = [side for side in sides if side.get("success_rate") == 1]
    told = f"{len(whole)} of {len(sides)} whole" if len(whole) == len(sides) else ", ".join(held)
    if not whole:
        return told
    return f"{told}; {median(s['cpu_seconds'] for s in whole):.1f} s; {median(s['drift'] for s in whole):.2g}"


def solver() -> str:
    """Return a row for each program."""
    rows: list[list[object]] = []
    for row in _file("solver")["rows"]:
        there, here = row["there"], row["here"]
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.1f}"
        gap = f"{here['gap']:.0e}" if "gap" in here else here["status"]
        kept = row.get("kept", 0)
        rows.append(
            [row["net"], row["layer"], row["norm"], row["edits"], kept, _seconds(there), _seconds(here), ratio, gap]
        )
    return markdown.table(["net", "layer", "norm", "N", "kept", "before, CPU s", "now, CPU s", "ratio", "gap"], rows)


def vision() -> str:
    """Return a row for each repair of a network for photographs."""
    rows: list[list[object]] = []
    for row in _file("vision")["rows"]:
        optimal = [f"{row[name]:.1g}" if row.get(name) is not None else "–" for name in OPTIMALITY]
        held = [percent(row[name]) for name in ("success_rate", "locality")]
        work = [f"{row['cpu_seconds']:.0f}", f"{row['peak_mib'] / 1024:.1f}", f"{row['passes']:.1f}"]
        layer = row["layer"] if row["layer"] != "auto" else f"auto: {(row['layers'] or ['–'])[0]}"
        rows.append([row["case"], layer, row["edits"], row["kept"], *held, *work, row["evaluations"], *optimal])
    head = ["network", "layer", "N", "kept", "edits that hold", "unchanged", "CPU s", "GiB", "passes", "evaluations"]
    return markdown.table([*head, "stationarity", "complementarity"], rows)


def page() -> str:
    """Return docs/results-engine.md."""
    first, second, third, fourth = (_file(name) for name in ("hidden", "solver", "corruptions", "metrics"))
    return f"""# The repair engine, against what it was

Generated by `python -m benchmarks table` from `benchmarks/engine/results/*.json`. Each case ran with the package as it
is and with that of an earlier commit, in turns, in processes of their own; "before → now". Other work ran on the
machine: CPU seconds are comparable within a row only.

## Hidden layers, same architecture

`python -m benchmarks.engine.hidden --against CHECKOUT`. {_measured(first)} Misread MNIST digits in fog are repaired
with 10 000 clean digits to keep; drift is the root mean square change of the layer's output on these.

{hidden()}

### What small means

`python -m benchmarks.engine.metrics`: 100 misread digits in fog, 10 000 clean digits kept, by the norm that is
minimised; means over {len(SEEDS)} seed(s). *Nats*: by how much decisions on the clean test digits move on average, in
thousandths; *drawdown* is on these, too; *other fog*: how many points more of the other digits in fog are read right.
{_measured(fourth)}

{metrics()}

### Every layer, other corruptions

`python -m benchmarks.engine.corruptions`: {EDITS} misread digits each, 10 000 clean digits kept. In how many repairs,
one for each seed, all edits hold, or else what came of each; then CPU seconds and drift, medians of those in which all
do. {_measured(third)}

{corruptions()}

## Programs of decoupled and last layers

`python -m benchmarks.engine.solver --against CHECKOUT`. {_measured(second)}

{solver()}

## Networks for photographs

`python -m benchmarks.engine.vision`. {_measured(_file("vision"))} One call of `fix` with `MinimalNorm(layer)`:
SqueezeNet 1.1 with the ImageNet samples that it misreads as edits and those that it reads to keep, a ResNet-20 with
misread CIFAR-10 test images and 4 000 others to keep, and ResNets with random weights on noise. Memory is beyond the
data; passes are those of all points through the first layer, whatever the precision; evaluations, of what follows the
layer, on the points in use. Stationarity and complementarity are [measured](what-is-proved.md), both 0 at a local
minimum.

{vision()}
"""


def write() -> None:
    """Write docs/results-engine.md."""
    write_atomically(ROOT / "docs" / "results-engine.md", page().encode())
