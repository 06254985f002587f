"""The 186 VNN-COMP instances of ACAS Xu, in one process: verdicts, boxes, CPU seconds, certificates and their recheck.

    python -m benchmarks.verify.acas            the checker, certificates rechecked; resumes where it was stopped
    python -m benchmarks.verify.acas plain      plain longest-edge search on the easier half, with the checker beside it
    python -m benchmarks.verify.acas without    the two hardest without optimised slopes
    python -m benchmarks.verify.acas again      after a change of the checker: are verdicts, boxes and nodes of all
                                                instances those of acas.json?

Files: benchmarks/verify/results/acas.json, acas-plain.json, acas-without.json, acas-again.json.
"""

from __future__ import annotations

import csv
import importlib
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from benchmarks import measure
from benchmarks.verify.exhaustive import plain_search
from nnrepair.domains import acas
from nnrepair.domains import files as data
from nnrepair.verify import CheckResult, Options, check, vnnlib

RESULTS = Path(__file__).parent / "results"
LIMIT = 116.0  # seconds for each instance, the competition's
PLAIN_LIMIT = 20.0
HARDEST = (("3_3", "2"), ("4_2", "2"))
Row = dict[str, Any]


def instances() -> list[tuple[str, str, Path, Path]]:
    """Return (network, property) with their files, in the competition's order."""
    return [
        (f"{a}_{b}", str(number), acas.network(a, b), acas.property_file(number)) for (a, b), number in acas.instances()
    ]


def truth() -> dict[tuple[str, str], str]:
    """Return the known verdicts by file names: agreement of the competition's tools, witnesses replayed."""
    words = {"sat": "violated", "unsat": "holds"}
    with data.locate(data.Resource("acasxu/ground_truth.csv")).open() as file:
        return {(row["network"], row["property"]): words[row["verdict"]] for row in csv.DictReader(file)}


def checker() -> ModuleType:
    """Return verification/check.py as a module; nothing installs it."""
    sys.path.insert(0, str(measure.ROOT / "verification"))
    return importlib.import_module("check")


def row_of(name: str, number: str, result: CheckResult, expected: str) -> Row:
    """Return what a result file keeps of one check."""
    return {
        "network": name,
        "property": number,
        "verdict": result.verdict,
        "expected": expected,
        "boxes": result.boxes,
        "cpu_seconds": round(result.cpu_seconds, 4),
        "wall_seconds": round(result.wall_seconds, 4),
    }


def run() -> None:
    """Check every instance, and recheck every certificate with the independent program."""
    path = RESULTS / "acas.json"
    rows, expected, recheck = measure.load(path), truth(), checker()
    done = {(row["network"], row["property"]) for row in rows}
    check(*instances()[0][2:])  # so that start-up is not counted as the first instance's
    with tempfile.TemporaryDirectory() as folder:
        for name, number, network, prop in tqdm(instances(), desc="ACAS Xu"):
            if (name, number) in done:
                continue
            result = check(network, prop, timeout=LIMIT)
            row = row_of(name, number, result, expected[network.name, prop.name])
            if result.counterexample is not None:
                row["replayed"] = list(result.counterexample.replayed)
            if result.certificate is not None:
                file = result.certificate.save(Path(folder) / f"{name}-{number}.npz")
                row |= {"certificate_bytes": file.stat().st_size, "nodes": len(result.certificate.dim)}
                started = time.process_time()
                try:
                    row["recheck"] = recheck.check(str(file), str(network), str(prop)).split(":")[0].lower()
                except recheck.Rejected as reason:
                    row["recheck"] = f"rejected: {reason}"
                row["recheck_cpu_seconds"] = round(time.process_time() - started, 4)
            rows.append(row)
            measure.save(path, rows, f"186 VNN-COMP instances, one process, float64, limit {LIMIT:g} s each, seed 0")


def run_plain() -> None:
    """Run plain search and the checker, one after the other, on the half that was easier for the checker."""
    path = RESULTS / "acas-plain.json"
    cost = {(r["network"], r["property"]): r["cpu_seconds"] for r in measure.load(RESULTS / "acas.json")}
    rows, expected = measure.load(path), truth()
    done = {(row["network"], row["property"]) for row in rows}
    easier = sorted(instances(), key=lambda one: cost[one[:2]])[: len(cost) // 2]
    for name, number, network, prop in tqdm(easier, desc="plain search"):
        if (name, number) in done:
            continue
        plain = plain_search(network, vnnlib.load(prop), PLAIN_LIMIT)
        row = row_of(name, number, check(network, prop), expected[network.name, prop.name])
        row |= {"plain_verdict": plain.verdict, "plain_boxes": plain.boxes}
        rows.append(row | {"plain_cpu_seconds": round(plain.cpu_seconds, 4)})
        measure.save(path, rows, f"plain longest-edge CROWN search, limit {PLAIN_LIMIT:g} s, beside the checker")


def run_without() -> None:
    """Check the hardest instances with and without optimised slopes."""
    path = RESULTS / "acas-without.json"
    rows, expected = measure.load(path), truth()
    done = {(row["network"], row["property"], row["steps"]) for row in rows}
    for name, number, network, prop in instances():
        for steps in (Options().steps, 0) if (name, number) in HARDEST else ():
            if (name, number, steps) not in done:
                result = check(network, prop, timeout=600, certificate=False, options=Options(steps=steps))
                rows.append(row_of(name, number, result, expected[network.name, prop.name]) | {"steps": steps})
                measure.save(path, rows, "the two hardest instances, with and without optimised slopes")


def run_again() -> None:
    """Check every instance once more and compare it with its row in acas.json; what differs is listed."""
    path, expected, differ = RESULTS / "acas-again.json", truth(), list[str]()
    stored = {(row["network"], row["property"]): row for row in measure.load(RESULTS / "acas.json")}
    rows: list[Row] = []
    for name, number, network, prop in tqdm(instances(), desc="again"):
        result, before = check(network, prop, timeout=LIMIT), stored[name, number]
        row = row_of(name, number, result, expected[network.name, prop.name])
        row["nodes"] = None if result.certificate is None else len(result.certificate.dim)
        row["same"] = all(row[key] == before.get(key) for key in ("verdict", "boxes", "nodes"))
        rows.append(row)
        differ += [] if row["same"] else [f"{name} with property {number}: {row}, was {before}"]
        measure.save(path, rows, "every instance once more: the same verdict, boxes and nodes as in acas.json?")
    print(f"{len(rows)} instances, {len(differ)} differ", *differ, sep="\n")


if __name__ == "__main__":
    {"plain": run_plain, "without": run_without, "again": run_again}.get("".join(sys.argv[1:2]), run)()
