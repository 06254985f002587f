"""Run the benchmarks of region edits, one fresh process each, resumable (`python -m benchmarks run`)."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import measure

RESULTS = Path(__file__).parent / "results"
#: Seconds after which the baseline is given up ("not finished").
LIMIT = 600.0


def _run(name: str, module: str, cases: list[dict[str, Any]], about: str) -> None:
    path = RESULTS / name
    rows = measure.load(path)
    for case in tqdm(cases, desc=module):
        if not any(case.items() <= row.items() for row in rows):
            rows.append(case | _named(case, measure.in_fresh_process(module, case, LIMIT + 120)))
            measure.save(path, rows, about)


def _named(case: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """Keep what was asked where the answer says it in other words (the margin that was used, for one)."""
    return {f"{key}_used" if key in case else key: value for key, value in answer.items()}


def run_slices() -> None:
    """PRDNN's Task 3."""
    cases: list[dict[str, Any]] = [
        {"solver": "ours", "kind": "corners", "margin": 0.0},
        {"solver": "baseline", "margin": 0.0, "time_limit": LIMIT},
        {"solver": "ours", "kind": "regions", "margin": 0.0, "verify": True},
        {"solver": "ours", "kind": "regions", "margin": None, "verify": True},
        {"solver": "ours", "kind": "regions", "margin": 0.001, "verify": True},
        {"solver": "ours", "kind": "corners", "margin": 0.001},
    ]
    _run(
        "acas.json", "benchmarks.regions.acas", cases, "ten slices of ACAS Xu N_{2,9}, phi_8, last layer, mean+max norm"
    )


def run_lines() -> None:
    """PRDNN's Task 2."""
    cases: list[dict[str, Any]] = [
        {"edits": edits, "layer": layer, "solver": solver}
        for layer, edits, solver in product(("fc3", "fc2"), (10, 25, 50, 100), ("nnrepair", "prdnn"))
        if layer == "fc3" or edits == 10 or solver == "nnrepair"
    ]
    _run("lines.json", "benchmarks.regions.lines", cases, "segments from clean to foggy digits, margin 0.05, mean+max")
