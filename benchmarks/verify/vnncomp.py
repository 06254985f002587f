"""Instances of 18 VNN-COMP benchmarks beside the published answers, as `nnrepair check --suite` runs them.

    python -m benchmarks.verify.vnncomp                fills build/vnncomp, resuming, and writes results/vnncomp.json
    python -m benchmarks.verify.vnncomp --clock cpu    lets time limits count the processor's time, and with
                                                       --patience SECONDS at most so many of wall time, too

The files lie in $NNREPAIR_DATA/vnncomp: instances.csv, and published.csv with the answer that most tools of the
competition agree on, how many they are, and the fastest of them. One instance at a time, one thread. Where other work
shares the cores, wall time says nothing about the code: with `--clock cpu` limits are those of an idle machine.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import measure
from nnrepair import deadline
from nnrepair.domains.files import find
from nnrepair.verify import CheckResult, check
from nnrepair.verify.suite.stored import Row
from nnrepair.verify.suite.suite import run_suite

RESULTS = Path(__file__).parent / "results"
BUILD = measure.ROOT / "build" / "vnncomp"
LIMIT = 60.0
#: Names the variable that tells processes how many seconds of wall time an instance may take at most.
PATIENCE = "NNREPAIR_PATIENCE"
ABOUT = "instances of VNN-COMP benchmarks, one at a time, beside the published answers"


def by_cpu(*arguments: Any, **options: Any) -> CheckResult:
    """Check with a limit of this process's own time, and of patience with the wall clock."""
    started, faster = time.monotonic(), options["timeout"] / float(os.environ.get(PATIENCE, "inf"))

    def seconds() -> float:
        return float(max(time.process_time(), (time.monotonic() - started) * faster))

    setattr(deadline, "time", SimpleNamespace(monotonic=seconds))  # noqa: B010 - mypy
    return check(*arguments, **options)


def published(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of published.csv by the names of network and property."""
    with path.open(newline="") as file:
        return {(row["onnx"], row["vnnlib"]): row for row in csv.DictReader(file)}


def expected(known: dict[tuple[str, str], dict[str, str]], path: Path) -> Path:
    """Write what is published as `nnrepair check --expect` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "property", "verdict", "seconds"])
        for (onnx, vnnlib), row in known.items():
            writer.writerow([Path(onnx).name, Path(vnnlib).name, row["published"], row["fastest_tool_s"]])
    return path


def rows(
    found: Iterable[Row], known: dict[tuple[str, str], dict[str, str]], clock: str, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield what is kept of each result; of files without the folder where they lie."""
    for row in found:
        said = known[row.onnx, row.vnnlib]
        yield {
            "benchmark": Path(row.onnx).parent.name,
            "network": Path(row.onnx).name.removesuffix(".onnx.gz"),
            "property": Path(row.vnnlib).name.removesuffix(".vnnlib.gz"),
            "verdict": row.status,
            "reason": row.reason.replace(f"{folder}/", ""),
            "published": {"sat": "violated", "unsat": "holds"}[said["published"]],
            "tools_agreeing": int(said["tools_agreeing"]),
            "fastest_seconds": float(said["fastest_tool_s"]),
            "year": int(said["year"]),
            "limit": row.options["timeout"],
            "clock": clock,
            "seed": row.options["seed"],
            "boxes": row.boxes,
            "replayed": [] if row.counterexample is None else row.counterexample["replayed"],
            "cpu_seconds": row.cpu_seconds,
            "wall_seconds": row.wall_seconds,
            "commit": measure.commit(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verify.vnncomp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--patience", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=BUILD)
    arguments = parser.parse_args()
    os.environ[PATIENCE] = str(arguments.patience)
    found = find("vnncomp/instances.csv")
    if found is None:
        raise SystemExit("vnncomp/instances.csv not found: set NNREPAIR_DATA to the folder that holds vnncomp.")
    known = published(found.parent / "published.csv")
    result = run_suite(
        found,
        arguments.out,
        jobs=1,
        timeout=LIMIT,
        resume=arguments.out.exists(),
        expect=expected(known, arguments.out.parent / f"{arguments.out.name}-expected.csv"),
        progress=True,
        check=by_cpu if arguments.clock == "cpu" else check,
    )
    print(result)
    measure.save(RESULTS / "vnncomp.json", list(rows(result.rows, known, arguments.clock, found.parent)), ABOUT)


if __name__ == "__main__":
    main()
