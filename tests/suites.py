"""Suites whose properties say what happens to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnrepair.errors import InvalidInput
from nnrepair.verify import CheckResult, Counterexample, PropertyCertificate
from nnrepair.verify.suite import suite

PROOF = PropertyCertificate(1, np.array([-1], np.int16), np.zeros(0), "", "", {})


def scripted(network: Path, property: Path, **options: Any) -> CheckResult:
    """Stand in for `check`: the property file says what happens."""
    if not property.is_file():
        raise InvalidInput(f"There is no file {property.name!r}.")
    words = property.read_text().split()
    if words[0] == "unreadable":
        raise InvalidInput("line 1:\nexpected (, got )")
    if words[0] == "bug":
        raise ZeroDivisionError("ours")
    if words[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if words[0] == "slow":
        with Path(words[1]).open("a") as log:
            log.write(f"{property.stem}\n")
        time.sleep(float(words[2]))
    verdict = words[0] if words[0] in ("violated", "unknown") else "holds"
    return CheckResult(
        verdict=verdict,
        counterexample=Counterexample(np.array([0.1, 1e-30]), np.array([1 / 3]), float("inf"), ("network",))
        if verdict == "violated"
        else None,
        boxes=7,
        cpu_seconds=0.5,
        wall_seconds=options["timeout"] if words[-1] == "late" else 0.25,
        certificate=PROOF if options["certificate"] and verdict == "holds" else None,
        worst_bound=float("inf"),
    )


def one_by_one(
    work: Any, tasks: Sequence[Any], jobs: int, **options: Any
) -> Generator[tuple[Any, suite.Row], None, None]:
    for task in tasks:
        yield task, work(task)


def listed(folder: Path, **properties: str) -> Path:
    """Write a network and properties, and a list of them."""
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "vnnlib").mkdir(exist_ok=True)
    (folder / "onnx" / "net.onnx").write_text("network")
    for name, text in properties.items():
        (folder / "vnnlib" / f"{name}.vnnlib").write_text(text)
    path = folder / "instances.csv"
    path.write_text("".join(f"onnx/net.onnx,{name}.vnnlib,9\n" for name in properties))
    return path


def statuses(result: suite.SuiteResult) -> list[str]:
    return [row.status for row in result.rows]
