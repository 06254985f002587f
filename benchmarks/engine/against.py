"""Cases measured here, and in another checkout in turns, each in a process that may use so many CPU seconds."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure

#: What a row has beside its case.
MEASURED = ("here", "there", "ratio", "commit", "made_with")


@dataclass(frozen=True)
class Comparison:
    """A benchmark file that runs one case given as JSON, and prints what came of it.

    Attributes:
        file: the benchmark's own.
        results: where rows are stored.
        about: what the figures are.
        limit: CPU seconds after which a case is given up here, and in the other checkout.
    """

    file: Path
    results: Path
    about: str
    limit: tuple[int, int]

    def main(self, cases: Callable[[], Iterable[dict[str, Any]]], case: Callable[..., dict[str, Any]]) -> None:
        """Run the case of the command line, or all cases, here and in another checkout where one is named."""
        torch.set_num_threads(1)
        if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
            print(json.dumps(case(**json.loads(sys.argv[1]))))
            return
        parser = argparse.ArgumentParser()
        parser.add_argument("--against", type=Path, help="another checkout, for example of main")
        parser.add_argument("--only", default="", help="cases whose JSON contains this")
        arguments = parser.parse_args()
        self._run([one for one in cases() if arguments.only in json.dumps(one)], arguments.against)

    def _run(self, cases: list[dict[str, Any]], against: Path | None) -> None:
        """Measure what is not stored yet, and store it row by row."""
        self.results.parent.mkdir(exist_ok=True)
        commit = measure.commit()
        rows = measure.load(self.results)
        done = [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]
        for one in cases:
            if one in done:
                continue
            row = one | {"commit": commit}
            if against is not None:
                row["there"] = self._in(against, one, self.limit[1])
            row["here"] = self._in(measure.ROOT, one, self.limit[0])
            if against is not None:
                times = [row[where].get("cpu_seconds") for where in ("there", "here")]
                row["ratio"] = times[0] / times[1] if all(times) else None
            rows.append(row)
            print(json.dumps(row), flush=True)
            measure.save(self.results, rows, self.about)

    def _in(self, checkout: Path, one: dict[str, Any], limit: int) -> dict[str, Any]:
        """Run this benchmark's case with the package of a checkout."""
        code = (
            "import json, resource, runpy, sys, torch; limit, file, case = json.loads(sys.argv[1]); "
            "resource.setrlimit(resource.RLIMIT_CPU, (limit, limit)); torch.set_num_threads(1); "
            "print(json.dumps(runpy.run_path(file, run_name='case')['case'](**case)))"
        )
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, json.dumps([limit, str(self.file.resolve()), one])]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            why = f"not finished in {limit} CPU s" if done.returncode < 0 else f"failed: {done.stderr.strip()[-200:]}"
            return {"status": why}
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer
