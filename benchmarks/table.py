"""Write docs/results-*.md, their figures and the figures in README.md from the committed result files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import comparison_table as editors
from benchmarks import editing_table as editing
from benchmarks.acas import table as acas
from benchmarks.checkers import table as checkers
from benchmarks.cifar import editable_table as editable
from benchmarks.compare import table as comparisons
from benchmarks.conditioning import table as conditioning
from benchmarks.engine import table as engine
from benchmarks.graph import table as graphs
from benchmarks.inpainting import table as inpainting
from benchmarks.language import table as language
from benchmarks.readers import table as readers
from benchmarks.regions import table as regions
from benchmarks.shipped import bert
from benchmarks.shipped import table as shipped
from benchmarks.verify import table as properties
from benchmarks.vision import table as photographs
from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import percent

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "mnist" / "results"
Row = dict[str, Any]


def _file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return loaded


def _number(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None else format(value, form)


def pairs() -> list[tuple[Row, Row]]:
    """Return (ours, baseline) for every like-for-like case."""
    rows = _file("like_for_like.json")["rows"]
    key: Callable[[Row], tuple[Any, ...]] = lambda r: (r["net"], r["layer"], r["edits"])  # noqa: E731
    base = {key(r): r for r in rows if r["solver"] == "prdnn"}
    return [(r, base[key(r)]) for r in rows if r["solver"] == "nnrepair" and key(r) in base]


def like_for_like() -> str:
    out = []
    for ours, base in pairs():
        finished = base.get("objective") is not None
        difference = abs(ours["objective"] - base["objective"]) / base["objective"] if finished else None
        out.append(
            [
                ours["net"],
                f"{ours['layer']} ({ours.get('weights', '–')})",
                str(ours["edits"]),
                _number(ours.get("cpu_seconds")),
                _number(base["cpu_seconds"]) if finished else base["status"],
                f"{base['cpu_seconds'] / ours['cpu_seconds']:.0f}x" if finished else "–",
                f"{_number(ours.get('peak_mib'), '.0f')} / {_number(base.get('peak_mib'), '.0f')}",
                ours["status"] if ours.get("objective") is None else _number(ours["objective"], ".6g"),
                _number(difference, ".0e"),
                _number(ours.get("gap"), ".0e"),
                f"{ours.get('rows', '–')} of {ours.get('all_rows', '–')}",
                _number(ours.get("drawdown_points"), ".2f"),
                _number(ours.get("fog_gain_points"), ".1f"),
            ]
        )
    head = [
        "net",
        "layer (weights)",
        "N",
        "CPU s",
        "baseline CPU s",
        "ratio",
        "peak MiB, ours / baseline",
        "optimum",
        "differs from baseline's by",
        "certified gap",
        "rows in use",
        "clean drawdown (points)",
        "fog gain (points)",
    ]
    return markdown.table(head, out)


def with_locality() -> str:
    out = []
    for r in _file("with_locality.json")["rows"]:
        chosen = ", ".join(dict.fromkeys(n.rsplit(".", 1)[0] for n in r.get("chosen") or []))
        layer = f"auto → {chosen}" if r["layer"] == "auto" else r["layer"]
        out.append(
            [
                r["net"],
                layer,
                r["norm"],
                str(r["edits"]),
                f"{r['locality']:,}".replace(",", " "),
                r["status"],
                _number(r.get("success_rate"), ".1%"),
                _number(r.get("drawdown_points"), ".2f"),
                _number(r.get("fog_gain_points"), ".1f"),
                _number(r.get("decisions_unchanged"), ".2%"),
                _number(r.get("cpu_seconds"), ".1f"),
            ]
        )
    head = ["net", "layer", "norm", "N", "locality points", "outcome", "success", "clean drawdown (points)"]
    return markdown.table([*head, "fog gain (points)", "decisions unchanged on the locality set", "CPU s"], out)


def growth() -> str:
    out = []
    for r in _file("growth.json")["rows"]:
        out.append(
            [
                r["norm"],
                str(r["edits"]),
                f"{r.get('weights', '–')}",
                str(r.get("locality", 0)),
                r["status"] if r.get("cpu_seconds") is None else _number(r["cpu_seconds"]),
                r["status"],
                _number(r.get("gap"), ".0e"),
                str(r.get("rows", "–")),
                _number(r.get("peak_mib"), ".0f"),
            ]
        )
    return markdown.table(
        ["norm", "edits", "weights", "locality points", "CPU s", "outcome", "gap", "rows", "peak MiB"], out
    )


def slopes() -> str:
    """Return the log-log slopes of CPU time, by least squares over the cases that finished."""
    rows = [r for r in _file("growth.json")["rows"] if r.get("cpu_seconds")]
    out = []
    for norm in ("l2", "l1", "mean+max"):
        for name, which in (
            ("edits", [r for r in rows if r["norm"] == norm and r.get("width") == 316 and not r.get("locality")]),
            ("weights", [r for r in rows if r["norm"] == norm and r["edits"] == 100 and not r.get("locality")]),
            ("locality", [r for r in rows if r["norm"] == norm and r.get("locality")]),
        ):
            points = [(math.log(r[name]), math.log(r["cpu_seconds"])) for r in which if r.get(name)]
            if len(points) < 3:
                continue
            mx, my = (sum(p[i] for p in points) / len(points) for i in (0, 1))
            slope = sum((x - mx) * (y - my) for x, y in points) / sum((x - mx) ** 2 for x, _ in points)
            low, high = (min(math.exp(p[0]) for p in points), max(math.exp(p[0]) for p in points))
            out.append([norm, name, f"{low:.0f} .. {high:.0f}", f"{slope:.2f}"])
    return markdown.table(["norm", "grows with", "range", "exponent"], out)


def streams() -> str:
    """Return what images in memory and on disk cost, and of what and when that was measured."""
    file = _file("streams.json")
    rows: list[Row] = file["rows"]
    out = []
    for r in rows:
        measured = "peak_mib" in r
        out.append(
            [
                f"`{r['method']}`",
                r["images"],
                _number(r.get("peak_mib"), ".0f"),
                _number(r.get("cpu_seconds"), ".1f"),
                percent(r["locality"], 3) if measured else "–",
                f"{r['success_rate'] * r['edits']:.0f} of {r['edits']}" if measured else r["status"],
            ]
        )
    head = ["method", "images", "MiB more", "CPU s", "locality", "edits hold"]
    options = "\n".join(f"* `{options}`" for options in dict.fromkeys(r["options"] for r in rows))
    commits = ", ".join(dict.fromkeys(r["commit"][:12] for r in rows))
    made = f"Measured on {file['date']} with torch {file['versions']['torch']}, commit {commits}"
    about = f"{made}; the methods:\n\n{options}"
    return f"{markdown.table(head, out)}\n\n{about}"


def balls() -> str:
    """Return the section about misread digits repaired with all that is near them."""
    if not (RESULTS / "balls.json").is_file():
        return ""
    file = _file("balls.json")
    rows: list[Row] = file["rows"]
    lost = sum(r["others_lost"] for r in rows)
    out = [
        [
            f"{r['radius']:g}",
            f"{r['digit']} ({r['label']})",
            r["outcome"],
            f"{r['kept']} of {r['to_keep']}",
            f"{r['others_before']} → {r['others_after']}" + (f" of {r['others']}" if "others" in r else ""),
            r["weights"],
            _number(100 * (r["accuracy_before"] - r["accuracy_after"]), ".2f"),
            _number(r["cpu_seconds"], ".1f"),
        ]
        for r in rows
    ]
    head = "radius|digit (label)|outcome|kept, proved|others proved|weights|drawdown (points)|CPU s"
    return f"""## Misread digits with all that is near them

One repair for each misread test digit (`benchmarks/mnist/balls.py`): *all* images within a radius of it are to be read
right, which `check` proves by splitting ReLUs (by this package's bounds: there is no certificate). Balls around ten
other digits were given as properties to keep where they were proved to be read right before, and are proved again or
named; others were not mentioned: twenty, or of how many it says. {file["about"]}.

{sum(r["outcome"] == "repaired" for r in rows)} of {len(rows)} are repaired, {sum(r["kept"] for r in rows)} of
{sum(r["to_keep"] for r in rows)} balls to keep are proved again, and of those not mentioned {lost} that were proved are
not proved afterwards.

{markdown.table(head.split("|"), out)}"""


def figure() -> None:
    """Draw CPU time against edits, weights and locality points, and ours against the baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(15, 3.8), constrained_layout=True)
    for ours, base in pairs():
        if base.get("objective") is not None:
            colour = {"fc1": "C0", "fc2": "C1", "fc3": "C2"}.get(ours["layer"], "C7")
            axes[0].loglog(base["cpu_seconds"], ours["cpu_seconds"], "o", color=colour)
    span = [1e-2, 1e3]
    for factor, label in ((1, "equal"), (10, "10x less"), (100, "100x less")):
        axes[0].plot(span, [s / factor for s in span], color="0.7", lw=1)
        axes[0].text(span[1], span[1] / factor, label, fontsize=7, ha="right", va="bottom", color="0.4")
    axes[0].set(xlabel="baseline CPU s", ylabel="ours, CPU s", title="same optimum, same run")
    rows = [r for r in _file("growth.json")["rows"] if r.get("cpu_seconds")]
    for norm, colour in (("l2", "C0"), ("l1", "C1"), ("mean+max", "C2")):
        mine = [r for r in rows if r["norm"] == norm]
        edits = [r for r in mine if r.get("width") == 316 and not r.get("locality")]
        weights = [r for r in mine if r["edits"] == 100 and r.get("width") and not r.get("locality")]
        kept = [r for r in mine if r.get("locality")]
        for axis, part, key in ((axes[1], edits, "edits"), (axes[2], weights, "weights"), (axes[3], kept, "locality")):
            part = sorted(part, key=lambda r: r[key])
            if part:
                axis.loglog([r[key] for r in part], [r["cpu_seconds"] for r in part], "o-", color=colour, label=norm)
    for axis, title in zip(axes[1:], ("edits", "weights", "locality points"), strict=True):
        axis.set(xlabel=title, ylabel="CPU s", title=f"growth with {title}")
        axis.legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    fig.savefig(ROOT / "docs" / "mnist-growth.png", dpi=130)
    plt.close(fig)


def figures() -> list[str]:
    """Return the lines for the README: one repair at once, one after another, and one with proof."""
    return [_at_once(), *editing.readme(), *acas.readme()]


def everything() -> list[str]:
    """Return the lines of docs/results.md."""
    parts = [properties.told(), regions.told(), acas.told(), editing.told(), graphs.told()]
    return [headline(), *(line for part in parts for line in part)]


def _auto() -> dict[str, Any]:
    rows: list[dict[str, Any]] = _file("with_locality.json")["rows"]
    return next(row for row in rows if (row["net"], row["layer"], row["edits"]) == ("3x100", "auto", 100))


def _at_once() -> str:
    auto = _auto()
    return (
        f"* **100 digits in fog** that a small network misreads, repaired at once: {percent(auto['success_rate'], 0)} "
        f"of them are right now, other digits in fog are read better by {auto['fog_gain_points']:.1f} points, and "
        f"accuracy on clear digits falls by {auto['drawdown_points']:.2f} points. Kept: 10 000 clear digits. Time: "
        f"{auto['cpu_seconds']:.1f} s on one core."
    )


def headline() -> str:
    """Return the first lines of docs/results.md."""
    auto = _auto()
    ratios = [(o, b["cpu_seconds"] / o["cpu_seconds"]) for o, b in pairs() if b.get("objective") is not None]
    best, ratio = max(ratios, key=lambda item: item[1])
    worst, least = min(ratios, key=lambda item: item[1])
    return (
        f"- 100 fog-corrupted MNIST digits repaired in a ReLU 3x100 network with 10 000 clean digits as locality set: "
        f"success {percent(auto['success_rate'], 0)}, drawdown {auto['drawdown_points']:.2f} points on the clean test "
        f"set, accuracy on the other fog digits {auto['fog_gain_points']:+.1f} points, {auto['cpu_seconds']:.1f} CPU s "
        f"(`{auto['layer']}` chose `{auto['chosen'][0].rsplit('.', 1)[0]}`).\n"
        f"- The same optimum as PRDNN's linear program, at {least:.1f} ({worst['net']} {worst['layer']}, "
        f"N = {worst['edits']}) to {ratio:.0f} ({best['net']} {best['layer']}, N = {best['edits']}) times the speed of "
        "solving it whole by an interior point, in CPU time."
    )


def page() -> str:
    """Return docs/results-mnist.md."""
    data = _file("like_for_like.json")
    about = ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    return f"""# MNIST: repairing fog-corrupted digits

Generated by `python -m benchmarks table` from `benchmarks/mnist/results/*.json`. Measured on {data["machine"]},
Python {data["python"]}, {about}, one thread, one fresh process per measurement, CPU seconds (medians of up to three).

## Like for like: PRDNN's linear program

Minimise mean|d| + max|d| over one layer of the decoupled network so that the first N fog digits are classified right
with margin 0.05, without locality set. The baseline (`benchmarks/baselines/prdnn.py`) builds all rows, the dense
Jacobian and 4n norm rows, and calls HiGHS's interior point without crossover. CPU time includes the Jacobian, for both.

{like_for_like()}

## With a locality set, in the same architecture

The first N fog digits as edits; the first clean training digits with their labels as hard locality set. Drawdown on the
10 000 clean test digits, gain on the fog digits that were no edits. Neither set was seen by the repair.

{with_locality()}

## Growth

Exact repair of one hidden layer in the decoupled network (`benchmarks/growth.py`); fog digits as edits. The rows with
200 704 weights are the hidden layer of a CNN.

![CPU time against the baseline, and against edits, weights and locality points](mnist-growth.png)

{growth()}

Least-squares exponents of CPU time:

{slopes()}

What limits each: with *edits*, the Cholesky factorisations of the rows that bind (cubic in their number) and, for "l1"
and "mean+max", weighed products of the points' inputs in each step (quadratic in the points); with *weights*, vectors
as long as there are weights in each step (linear), of which "l1" takes a few where they are many; with *locality
points*, forward passes over the set, one per round (linear), since few of its rows ever bind.

## Kept images in memory, and on disk

Foggy digits as edits; all 60 000 training digits kept, as a tensor or as a `DataLoader` that reads each image from a
file (`benchmarks/mnist/streams.py`). Memory beyond what the process held before the images were there, and before the
method; time includes reading them.

{streams()}

{balls()}
"""


def write() -> None:
    """Write everything that is generated."""
    write_atomically(ROOT / "docs" / "results-mnist.md", page().encode())
    figure()
    properties.write()
    readers.write()
    shipped.write()
    checkers.write()
    editable.write()
    conditioning.write()
    engine.write()
    regions.write()
    acas.write()
    comparisons.write()
    editing.write()
    editors.write()
    graphs.write()
    inpainting.write()
    language.write()
    photographs.write()
    for path, lines in ((ROOT / "README.md", figures()), (ROOT / "docs" / "results.md", everything())):
        write_atomically(path, between(path.read_text(), "results", lines).encode())
    path = ROOT / "docs" / "your-model.md"
    write_atomically(path, between(path.read_text(), "bert", bert.lines()).encode())


def between(text: str, name: str, lines: list[str]) -> str:
    """Return a page with other lines between its two comments of that name."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, rest = text.split(start)
    return f"{before}{start}\n{chr(10).join(lines)}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    write()
