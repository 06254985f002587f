"""One measurement in one process: CPU seconds, wall seconds and peak memory above the process's base."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# What is otherwise imported when it is first used: no figure is to pay for that.
import nnrepair.fix
import nnrepair.onnx.reader
import nnrepair.properties  # noqa: F401
from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically

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
    """Run `python -m module JSON` with one thread and return the JSON that it prints last."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", module, json.dumps(arguments)]
    try:
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"status": f"not finished in {timeout:.0f} s"}
    if done.returncode:
        return {"status": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
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
    """Return the commit that is measured, `-dirty` where files have changed since."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def save(path: Path, rows: list[dict[str, Any]], about: str) -> None:
    """Write a result file, atomically; called after every row so that a kill loses nothing."""
    content = json.dumps({"about": about, **made_with(path, rows), "rows": rows}, indent=1)
    write_atomically(path, (content + "\n").encode())


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


def in_forked_process(
    work: Callable[..., dict[str, Any]], arguments: dict[str, Any], timeout: float, preload: list[str]
) -> dict[str, Any]:
    """Run `work(**arguments)` with one thread in a process of its own and return its answer.

    The process is forked from one that has imported the modules `preload` and done nothing else. For rows that take
    less time than the imports (several seconds); `in_fresh_process` repeats them.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)  # type: ignore[attr-defined]
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not mine.poll(timeout):
            return {"status": f"not finished in {timeout:.0f} s"}
        answer: dict[str, Any] = mine.recv()
        return answer
    except EOFError:
        process.join()
        return {"status": f"failed: the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        mine.close()


def _answer(pipe: Connection, work: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> None:
    warnings.simplefilter("ignore")
    try:
        answer = work(**arguments)
    except Exception as error:  # the row says what happened, and the next one is measured
        answer = {"status": f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    pipe.send(answer)
