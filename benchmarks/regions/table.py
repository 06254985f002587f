"""Write docs/results-regions.md and the line on regions in docs/results.md from the committed result files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import percent

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def _file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return loaded


def _number(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None else format(value, form)


def _count(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def _slices(kind: str, margin: float | None, solver: str = "ours") -> Row:
    rows = _file("acas.json")["rows"]
    return next(r for r in rows if (r["solver"], r.get("kind", kind), r["margin"]) == (solver, kind, margin))


def slices() -> str:
    """One row for each repair of the ten slices."""
    names = {
        "baseline": "PRDNN's program: labels at corners, all rows",
        "corners": "the same, rows on demand",
        "regions": "**phi_8 on every point (region edits)**",
    }
    out = []
    for r in sorted(_file("acas.json")["rows"], key=lambda r: r["solver"] != "baseline"):
        out.append(
            [
                names[r.get("kind", r["solver"])],
                "default" if r["margin"] is None else f"{r['margin']:g}",
                _number(r["objective"], ".6g"),
                f"{_count(r['rows'])} of {_count(r['all_rows'])}",
                _number(r["cpu_seconds"], ".2f"),
                _number(r["solve_seconds"], ".2f"),
                _number(r["peak_mib"], ".0f"),
                f"{r['slices_hold']} of 10",
                _number(r["least_slack"], ".2g"),
                r.get("verified", "–") + (f" ({r['verify_cpu_seconds']:.1f} s)" if "verified" in r else ""),
                f"{r['broken_phi_8']} ({r['broken']}) of {_count(r['kept'])}",
                f"{_count(r['fixed'])} of {_count(r['held_out'])} ({percent(r['fixed'] / r['held_out'], 1)})",
            ]
        )
    head = ["repair", "margin", "optimum", "rows in use", "CPU s", "of it linear program", "peak MiB"]
    head += ["slices that hold", "least slack", "`result.verify()`", "broken (of the stronger property)"]
    head += ["held-out counterexamples fixed"]
    return markdown.table(head, out)


def lines() -> str:
    """One row for each repair of MNIST lines."""
    rows = _file("lines.json")["rows"]
    out = []
    for r in (r for r in rows if r["solver"] == "nnrepair"):
        base: Row = next((b for b in rows if b["solver"] == "prdnn" and _same(b, r)), {"status": "not run (too large)"})
        finished = base.get("objective") is not None
        out.append(
            [
                f"{r['layer']} ({r['weights']})",
                r["edits"],
                _count(r["pieces"]),
                _number(r.get("success_rate"), ".0%"),
                _number(r["objective"], ".6g"),
                _number(abs(r["objective"] - base["objective"]) / base["objective"], ".0e") if finished else "–",
                f"{_count(r['rows'])} of {_count(r['all_rows'])}",
                _number(r["cpu_seconds"]),
                _number(base["cpu_seconds"]) if finished else base["status"],
                f"{base['cpu_seconds'] / r['cpu_seconds']:.1f}x" if finished else "–",
                f"{r['peak_mib']:.0f} / {_number(base.get('peak_mib') if finished else None, '.0f')}",
                r.get("verified", "–") + (f" ({r['verify_cpu_seconds']:.1f} s)" if "verified" in r else ""),
                _number(r["drawdown_points"], ".2f"),
                _number(r["fog_gain_points"], ".1f"),
            ]
        )
    head = ["layer (weights)", "lines", "linear regions", "lines that hold", "optimum", "differs from baseline's by"]
    head += ["rows in use", "CPU s", "baseline CPU s", "ratio", "peak MiB, ours / baseline", "`result.verify()`"]
    return markdown.table([*head, "clean drawdown (points)", "fog gain (points)"], out)


def _same(a: Row, b: Row) -> bool:
    return (a["layer"], a["edits"]) == (b["layer"], b["edits"])


def told() -> list[str]:
    """Return the lines for docs/results.md."""
    ours, base, whole = _slices("corners", 0.0), _slices("corners", 0.0, "baseline"), _slices("regions", None)
    total, alone = (base[key] / ours[key] for key in ("cpu_seconds", "solve_seconds"))
    return [
        "- Ten two-dimensional slices of ACAS Xu N_{2,9} repaired for phi_8 at every point: "
        f"{whole['slices_hold']} of 10 hold (`verify()`: {whole['verified']}), "
        f"{percent(whole['fixed'] / whole['held_out'], 1)} of {_count(whole['held_out'])} held-out counterexamples "
        f"fixed, {whole['broken_phi_8']} points broken, {whole['cpu_seconds']:.1f} CPU s. PRDNN's program for the "
        f"corners of these slices: {total:.0f} times less CPU time than all rows at once, {alone:.0f} times less in "
        "the linear program ([results](results-regions.md))."
    ]


def write() -> None:
    """Write docs/results-regions.md."""
    write_atomically(ROOT / "docs" / "results-regions.md", page().encode())


def page() -> str:
    """Return docs/results-regions.md."""
    data = _file("acas.json")
    about = ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    ours, base, bad = _slices("corners", 0.0), _slices("corners", 0.0, "baseline"), _slices("corners", 0.001)
    total, alone = (base[key] / ours[key] for key in ("cpu_seconds", "solve_seconds"))
    differ = abs(ours["objective"] - base["objective"]) / base["objective"]
    return f"""# Region edits: results

Generated by `python -m benchmarks table` from `benchmarks/regions/results/*.json`. Measured on {data["machine"]},
Python {data["python"]}, {about}, one thread, one fresh
process per measurement, CPU seconds, each measured once. CPU seconds on this machine drift by up to a factor of two:
trust ratios.

## Slices of ACAS Xu

Task 3 of PRDNN (Sotoudeh & Thakur, PLDI 2021): on ten slices distance x angle of N_{{2,9}}, drawn with their seed, the
last layer is repaired for phi_8 (the advice is "clear of conflict" or "weak left"), minimising mean|d| + max|d|. The
slices have {_count(ours["pieces"])} linear regions with {_count(ours["corners"])} corners, of which
{_count(ours["points"])} are distinct; splitting took {ours["split_seconds"]:.2f} CPU s.

PRDNN makes phi_8 stronger to have one label for each corner: of the two allowed advices, the one that the network
scores better there. Where the corners of one linear region get different labels, that says nothing about its inside.
Both solvers get the same rows for it: all at once by HiGHS's interior point (`benchmarks/baselines/prdnn.py`), or on
demand. **{total:.0f} times less CPU time in all, splitting included, {alone:.0f} times less for the linear program
alone** (ours with all that it reads from the network, theirs without building its rows). The optima differ by
{differ:.0e} because rows on demand never take a margin of exactly zero (they took {ours["margin_used"]:.1g}, in
float64). With a margin of 0.001, labels at corners ask for contradictory things next to a change of label: the smallest
change is {bad["objective"] / ours["objective"]:.0e} times as large, and still {10 - bad["slices_hold"]} of 10 slices
break phi_8 between the corners.

Region edits ask for phi_8 itself at every point, with one advice for each piece of a linear region, on the network in
float32 as it is published. Held-out points as in PRDNN: around the linear regions of twelve other slices,
{_count(ours["held_out"])} counterexamples and as many points that are right. "Broken" counts points at which phi_8 no
longer holds; in brackets, those whose advice is no longer the one of the stronger property. `result.verify()` proves
phi_8 on each slice with bounds that include all rounding (CPU seconds in brackets; not part of the repair).

{slices()}

## Lines from clean to foggy digits

Task 2 of PRDNN: N lines from MNIST training digits that the 3x100 network gets right to the same digits in fog, every
point to be classified right with margin 0.05, mean|d| + max|d|. The last layer stays an ordinary network; the middle
one is exact in the decoupled network, where each corner counts once per linear region. The baseline gets both corners
of every linear region, as PRDNN does, with all rows at once, and is given up after 600 s. Drawdown on the 10 000 clean
test digits, gain on the same in fog; neither was seen. The fog is this project's, not MNIST-C's: no figure here is
comparable with the paper's own.

{lines()}

Rows on demand gain least where about as many rows bind as there are weights: in the last layer, with many lines.
"""


if __name__ == "__main__":
    write()
