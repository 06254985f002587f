"""One measurement in one process: CPU seconds, wall seconds and peak memory above the process's base."""

from __future__ import annotations

import io
import json
import os
import platform
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, redirect_stdout
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What is otherwise imported when it is first used: no figure is to pay for that.
import nnrepair.fix
import nnrepair.onnx.reader
import nnrepair.properties  # noqa: F401
from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically
from nnrepair.processes import Failure, in_processes

#: Modules that torch and nnrepair import when they are first needed (the first, by every optimizer, takes seconds).
LAZY = ("torch._dynamo", "scipy.sparse.linalg", "highspy")
ROOT = Path(__file__).resolve().parents[1]


def measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run `work` and return its answer with cpu_seconds, wall_seconds and peak_mib above what was used before."""
    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    base = _status_mib("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    answer = work()
    answer["cpu_seconds"] = time.process_time() - cpu
    answer["wall_seconds"] = time.perf_counter() - wall
    answer["peak_mib"] = _status_mib("VmHWM") - base
    return answer


def _status_mib(key: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1024


def in_fresh_process(module: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Run `python -m module JSON` with one thread in a process of its own and return the JSON that it prints last."""
    ((_, answer),) = in_processes(partial(_printed, module), [arguments], seconds=timeout, fresh=True)
    return _status(answer)


def _printed(module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    os.chdir(ROOT)
    sys.argv = [module, json.dumps(arguments)]
    with redirect_stdout(io.StringIO()) as said:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    answer: dict[str, Any] = json.loads(said.getvalue().strip().splitlines()[-1])
    return answer


def each_in_its_process(
    work: Callable[..., dict[str, Any]],
    cases: Sequence[dict[str, Any]],
    timeout: float,
    preload: Sequence[str],
    jobs: int | None = 1,
) -> Generator[tuple[dict[str, Any], dict[str, Any]], None, None]:
    """Yield each case with the answer of `work(**case)`, or a status that says why there is none.

    Each case has a process that has imported the modules `preload` and done nothing else. For rows that take less time
    than the imports (several seconds); `in_fresh_process` repeats them. Any backend of joblib will do.
    """
    given = partial(_with_keywords, work)
    with closing(in_processes(given, cases, jobs, seconds=timeout, fresh=True, preload=preload)) as answers:
        for case, answer in answers:
            yield case, _status(answer)


def _with_keywords(work: Callable[..., dict[str, Any]], case: dict[str, Any]) -> dict[str, Any]:
    return work(**case)


def _status(answer: dict[str, Any] | Failure) -> dict[str, Any]:
    if isinstance(answer, Failure):  # the row says what happened, and the next one is measured
        return {"status": str(answer) if answer.kind == "time" else f"failed: {answer}"}
    return answer


def machine() -> dict[str, Any]:
    """Return versions and machine, for every result file."""
    packages = ("torch", "numpy", "scipy", "highspy")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": {p: version(p) for p in packages},
        "threads": 1,
        "date": time.strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """Return the commit that is measured, `-dirty` where files other than results have changed since."""

    def git(*said: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *said], capture_output=True, text=True, check=False).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/*/results/*")
    return git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")


def save(path: Path, rows: list[dict[str, Any]], about: str) -> None:
    """Write a result file, atomically; called after every row so that a kill loses nothing."""
    content = json.dumps({"about": about, **made_with(path, rows), "rows": rows}, indent=1)
    write_atomically(path, (content + "\n").encode())


def missing(
    path: Path,
    work: Callable[..., dict[str, Any]],
    cases: Sequence[dict[str, Any]],
    about: str,
    timeout: float,
    preload: Sequence[str],
) -> None:
    """Measure the cases, told apart by name and seed, that a result file lacks; store it after each.

    Args:
        path: the result file.
        work: returns the row of a case, without its name and seed.
        cases: arguments of `work`.
        about: what the file is about.
        timeout: of each case, in seconds.
        preload: modules of the package and the benchmarks that every process imports first.
    """
    rows = load(path)
    done = {(row["name"], row["seed"]) for row in rows}
    cases = [case for case in cases if (case["name"], case["seed"]) not in done]
    for case, found in each_in_its_process(work, cases, timeout, [*preload, *LAZY]):
        rows.append({"name": case["name"], "seed": case["seed"], "commit": commit()} | found)
        save(path, rows, about)


def made_with(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return versions and machine for the head of a result file.

    The head of a file that is there already stays, since it is about its rows; rows that were added on another machine
    or with other versions get these as their own `made_with`.
    """
    now = machine()
    stored = _content(path) if path.exists() else {"rows": []}
    head = {key: stored[key] for key in now if key in stored}
    if not stored["rows"] or head | {"date": ""} == now | {"date": ""}:
        return now
    for row in rows:
        if row not in stored["rows"]:
            row["made_with"] = now
    return head


def load(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a result file, none when it does not exist.

    Raises:
        InvalidInput: it is damaged.
    """
    rows: list[dict[str, Any]] = _content(path)["rows"] if path.exists() else []
    return rows


def _content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if all(isinstance(row, dict) for row in content["rows"]):
            return content
        raise ValueError("a row is no dictionary")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput(
            f"{path} is damaged ({error}). Restore it, or delete it to measure its rows again."
        ) from error
