"""Run a benchmark, one fresh process per measurement, resumable: `python -m benchmarks run --domain mnist`."""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import measure

RESULTS = Path(__file__).parent / "mnist" / "results"
#: Seconds after which the baseline is given up ("not finished").
BASELINE_LIMIT = 400.0


#: The cases that are measured three times (medians); every other once.
REPEATED = {("fc3", 50), ("fc3", 200), ("fc2", 200), ("fc1", 10), ("fc1", 100)}


def like_for_like() -> list[dict[str, Any]]:
    """The experiments against PRDNN's formulation: every layer of both networks."""
    cases = [
        {"net": "3x100", "layer": layer, "edits": n} for n, layer in product((10, 50, 100, 200), ("fc3", "fc2", "fc1"))
    ]
    cases += [{"net": "9x100", "layer": f"fc{k}", "edits": n} for n, k in product((10, 100), range(9, 0, -1))]
    cases += [{"net": "3x100", "layer": layer, "edits": 1000} for layer in ("fc3", "fc2", "fc1")]
    return cases + [{"net": "9x100", "layer": f"fc{k}", "edits": n} for n, k in product((50, 200, 1000), (9, 5, 1))]


def baseline_can(case: dict[str, Any]) -> bool:
    """Whether the baseline is worth starting: larger cases do not finish within the limit or in memory."""
    if case["layer"] == "fc1":
        return bool(case["edits"] <= 10 and case["net"] == "3x100")
    if case["layer"] == ("fc3" if case["net"] == "3x100" else "fc9"):
        return True
    return bool(case["edits"] <= (200 if case["net"] == "3x100" else 10))


def run_like_for_like() -> None:
    """Measure ours and then the baseline on each case, and store medians."""
    path = RESULTS / "like_for_like.json"
    rows = measure.load(path)
    done = {(r["net"], r["layer"], r["edits"], r["solver"]) for r in rows}
    for case in tqdm(like_for_like(), desc="like for like"):
        for solver in ("nnrepair", "prdnn"):
            if (case["net"], case["layer"], case["edits"], solver) in done:
                continue
            if solver == "prdnn" and not baseline_can(case):
                rows.append(case | {"solver": solver, "status": "not run (too large)"})
            else:
                rows.append(case | {"solver": solver} | _median(case | {"solver": solver}))
            measure.save(path, rows, "PRDNN's linear program, margin 0.05, decoupled network, first N fog digits")


def _median(case: dict[str, Any]) -> dict[str, Any]:
    arguments = {"kind": "like_for_like", **case, "time_limit": BASELINE_LIMIT}
    answers: list[dict[str, Any]] = []
    repeated = case["net"] == "3x100" and (case["layer"], case["edits"]) in REPEATED
    for _ in range(3 if repeated else 1):
        answer = measure.in_fresh_process("benchmarks.mnist.one", arguments, timeout=BASELINE_LIMIT + 60)
        if "cpu_seconds" not in answer:
            return answer
        answers.append(answer)
        if answer["cpu_seconds"] > 40:
            break
    median = {k: statistics.median(a[k] for a in answers) for k in ("cpu_seconds", "wall_seconds", "peak_mib")}
    return answers[0] | median | {"repeats": len(answers)}


def run_locality() -> None:
    """Repair with clean training digits as locality set: layers and norms, both networks."""
    path = RESULTS / "with_locality.json"
    rows = measure.load(path)
    keys = ("net", "layer", "norm", "edits", "locality")
    done = {tuple(r[k] for k in keys) for r in rows}
    cases = [
        {"net": net, "layer": layer, "norm": norm, "edits": edits, "locality": locality}
        for net, layer, norm, edits, locality in (
            ("3x100", "auto", "auto", 100, 10_000),
            ("3x100", "auto", "auto", 1000, 10_000),
            ("3x100", "fc1", "drift", 100, 10_000),
            ("3x100", "fc2", "drift", 100, 10_000),
            ("3x100", "fc3", "drift", 100, 10_000),
            ("3x100", "fc2", "l2", 100, 10_000),
            ("3x100", "fc3", "l2", 100, 10_000),
            ("3x100", "fc3", "l1", 100, 10_000),
            ("3x100", "auto", "l2", 100, 0),
            ("3x100", "fc2", "l2", 100, 0),
            ("3x100", "fc3", "l2", 100, 0),
            ("9x100", "auto", "auto", 100, 10_000),
            *(("9x100", f"fc{k}", "drift", 100, 10_000) for k in range(9, 0, -1)),
            *(("3x100", f"fc{k}", "drift", n, 10_000) for n in (10, 50, 200, 1000) for k in (3, 2, 1)),
            *(("9x100", f"fc{k}", "drift", n, 10_000) for n in (10, 50, 200) for k in range(9, 0, -1)),
        )
    ]
    for case in tqdm(cases, desc="with locality set"):
        if tuple(case[k] for k in keys) in done:
            continue
        answer = measure.in_fresh_process("benchmarks.mnist.one", {"kind": "with_locality", **case}, timeout=900)
        rows.append(case | answer)
        about = "same architecture; first N fog digits as edits, first clean training digits as hard locality set"
        measure.save(path, rows, about)


def run_growth() -> None:
    """Measure growth with edits, weights and locality points."""
    path = RESULTS / "growth.json"
    rows = measure.load(path)
    cases: list[dict[str, Any]] = []
    for norm in ("l2", "l1", "mean+max"):
        cases += [{"edits": n, "width": 316, "norm": norm} for n in (10, 32, 100, 316, 1000)]
        cases += [{"edits": 100, "width": w, "norm": norm} for w in (32, 100, 316, 1000)]
        cases.append({"edits": 200, "norm": norm})
    cases += [{"edits": n, "width": 1000, "norm": "l2"} for n in (3162, 10_000)]
    cases += [{"edits": 100, "width": 316, "norm": "l2", "locality": n} for n in (1000, 10_000, 60_000)]
    cases += [{"edits": 100, "width": 316, "norm": "l1", "locality": n} for n in (1000, 10_000, 60_000)]
    done = [{k: v for k, v in r.items() if k in ("edits", "width", "norm", "locality")} for r in rows]
    for case in tqdm(cases, desc="growth"):
        if case in done:
            continue
        done.append(case)
        rows.append(case | measure.in_fresh_process("benchmarks.growth", case, timeout=600))
        measure.save(path, rows, "exact repair of one hidden layer (decoupled network), fog digits as edits")
