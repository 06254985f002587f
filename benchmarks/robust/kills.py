"""`kill -9` at random moments of long runs: what they store is whole, and resumed they end as without a kill.

    python -m benchmarks run --domain robust

A run is started in a process of its own, killed after a random time, and started again with what it stored, until it
ends. After every kill each file that it left is read; nothing that was stored may be missing or made again. What it
wrote in the end must be what a run without a kill wrote, but for the seconds that it took.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import nnrepair
from benchmarks import measure
from nnrepair import Patch, cli, onnx, sequence
from nnrepair.archives import open_npz
from nnrepair.methods import Editor, trainable
from nnrepair.spec.state import read_json, read_tensors
from nnrepair.training import Checkpoint
from nnrepair.training.checkpoint import FORMAT as CHECKPOINT
from nnrepair.training.checkpoint import unpacked
from nnrepair.verify.suite.stored import stored

RESULTS = Path(__file__).parent / "results" / "kills.json"
KILLS, SEED = 13, 20261129
#: Instances of the suite.
CHECKS = 60
#: Seconds between two writes of progress, so that a short run has many.
EVERY = 0.05
#: What differs between two runs: how long they took and where, and checksums over that.
DIFFERS = ("seconds", "cpu_seconds", "wall_seconds", "peak_mib", "files", "sha256")


@dataclass(frozen=True)
class Run:
    """A long run.

    Attributes:
        begin: writes its inputs to a folder.
        work: runs it there, going on from what is stored; returns the exit code.
        progress: what is stored, piece by piece.
        result: what it wrote in the end.
    """

    begin: Callable[[Path], object]
    work: Callable[[Path], int]
    progress: Callable[[Path], set[str]]
    result: Callable[[Path], Any]


def network(*sizes: int) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1]).eval()


def command(*said: object) -> int:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return cli.main([str(word) for word in said])


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: comparable(item) for name, item in value.items() if name not in DIFFERS}
    return [comparable(item) for item in value] if isinstance(value, list) else value


# Checks of a suite ---------------------------------------------------------------------------------------------------


def begin_suite(folder: Path) -> None:
    onnx.save(network(3, 12, 12, 2), torch.zeros(1, 3), folder / "net.onnx")
    for k in range(CHECKS):
        text = "".join(f"(declare-const X_{i} Real)\n" for i in range(3))
        text += "(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
        text += "".join(f"(assert (>= X_{i} -1))\n(assert (<= X_{i} 1))\n" for i in range(3))
        (folder / f"p{k}.vnnlib").write_text(text + f"(assert (>= Y_{k % 2} {2 + k / 30}))\n")
    (folder / "instances.csv").write_text("".join(f"net.onnx,p{k}.vnnlib,60\n" for k in range(CHECKS)))


def work_suite(folder: Path) -> int:
    places = ["--out", folder / "out", "--certificates", folder / "proofs"]
    return command("check", "--suite", folder / "instances.csv", *places, "--jobs", 2, "--resume", "--quiet")


def progress_suite(folder: Path) -> set[str]:
    found = set()
    for path in (folder / "out" / "instances").glob("[!.]*"):
        row = stored(path)
        assert row is not None, f"{path.name} is not whole"
        proof = folder / "proofs" / (row.certificate or "")
        assert row.certificate is None or proof.is_file(), f"{path.name} has lost its proof"
        found.add(path.read_text())
    for path in (folder / "proofs").glob("[!.]*"):
        with open_npz(path) as file:
            assert all(file[name] is not None for name in file.files)
    for name in ("results.csv", "summary.json"):
        path = folder / "out" / name
        assert not path.exists() or path.read_text().endswith("\n"), f"{name} is not whole"
    return found


def result_suite(folder: Path) -> Any:
    rows = [json.loads(path.read_text()) for path in sorted((folder / "out" / "instances").glob("[!.]*"))]
    proofs = {path.name: path.read_bytes() for path in sorted((folder / "proofs").glob("[!.]*"))}
    lines = [line.rsplit(",", 1)[0].split(",", 1)[1] for line in (folder / "out" / "results.csv").read_text().split()]
    return comparable(rows), proofs, lines


# A sequence of edits -------------------------------------------------------------------------------------------------


def begin_sequence(folder: Path) -> None:
    draw = np.random.default_rng(0)
    model, x = network(8, 32, 4), draw.normal(size=(40, 8)).astype(np.float32)
    onnx.save(model, torch.zeros(1, 8), folder / "net.onnx")
    np.savez(folder / "edits.npz", inputs=x, labels=(model(torch.from_numpy(x)).argmax(1).numpy() + 1) % 4)


def work_sequence(folder: Path) -> int:
    sequence.SAVE_EVERY = EVERY
    given = ["fix", folder / "net.onnx", "--edits", folder / "edits.npz", "--method", "ft", "--mode", "successive"]
    places = ["--out", folder / "out.onnx", "--patch", folder / "fix.safetensors", "--report", folder / "report.json"]
    return command(*given, *places, "--resume", folder / "run.safetensors", "--quiet")


def progress_sequence(folder: Path) -> set[str]:
    for name, read in {"out.onnx": onnx.load, "fix.safetensors": Patch.load}.items():
        assert not (folder / name).exists() or read(folder / name)
    assert not (folder / "report.json").exists() or json.loads((folder / "report.json").read_bytes())
    path = folder / "run.safetensors"
    return {json.dumps(step) for step in Patch.load(path).about["steps"]} if path.exists() else set()


def result_sequence(folder: Path) -> Any:
    patch = Patch.load(folder / "fix.safetensors")
    new = {name: value.numpy().tobytes() for name, value in patch.new.items()}
    report = comparable(json.loads((folder / "report.json").read_bytes()))
    return (folder / "out.onnx").read_bytes(), new, patch.repaired, report


# An editor that is prepared ------------------------------------------------------------------------------------------


def begin_editor(folder: Path) -> None:
    draw = np.random.default_rng(0)
    onnx.save(network(8, 32, 4), torch.zeros(1, 8), folder / "net.onnx")
    x = draw.normal(size=(60, 8)).astype(np.float32)
    np.savez(folder / "data.npz", inputs=x, labels=draw.integers(4, size=60))


def work_editor(folder: Path) -> int:
    trainable.Checkpoint = partial(Checkpoint, every=EVERY)  # type: ignore[misc, assignment]
    given = ["prepare", folder / "net.onnx", "--data", folder / "data.npz", "--method", "learned-steps"]
    places = ["--out", folder / "editor.safetensors", "--resume", folder / "run.safetensors"]
    return command(*given, "--steps", 60, *places, "--quiet")


def progress_editor(folder: Path) -> set[str]:
    assert not (folder / "editor.safetensors").exists() or Editor.load(folder / "editor.safetensors")
    path = folder / "run.safetensors"
    if not path.exists():
        return set()
    _, tensors, texts = read_tensors(path, "checkpoint", {CHECKPOINT: ("key", "state")})
    return set(map(str, range(unpacked(read_json(texts["state"]), tensors)["position"]["done"])))


def result_editor(folder: Path) -> Any:
    return (folder / "editor.safetensors").read_bytes()


# A sweep of repairs --------------------------------------------------------------------------------------------------


def one_repair(name: str, seed: int) -> dict[str, Any]:
    """Repair a few points of a small network, as a benchmark does."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
    model = network(8, 32, 4)
    result = nnrepair.fix(model, (x, (model(x).argmax(1) + 1) % 4), method=name, throw=False, seed=seed)
    return {"status": result.outcome.status, "change": result.report.weight_change.as_dict()}


def work_sweep(folder: Path) -> int:
    cases = [{"name": name, "seed": seed} for name in ("minimal-norm", "ft") for seed in range(20)]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        measure.missing(folder / "rows.json", one_repair, cases, "a sweep", 60, ["benchmarks.robust.kills"])
    return 0


def progress_sweep(folder: Path) -> set[str]:
    return {json.dumps(row, sort_keys=True) for row in measure.load(folder / "rows.json")}


def result_sweep(folder: Path) -> Any:
    return sorted(json.dumps(comparable(row), sort_keys=True) for row in measure.load(folder / "rows.json"))


RUNS = {
    "a suite of checks": Run(begin_suite, work_suite, progress_suite, result_suite),
    "a sequence of edits": Run(begin_sequence, work_sequence, progress_sequence, result_sequence),
    "the training of an editor": Run(begin_editor, work_editor, progress_editor, result_editor),
    "a sweep of repairs": Run(lambda folder: None, work_sweep, progress_sweep, result_sweep),
}


# The campaign --------------------------------------------------------------------------------------------------------


def started(run: Run, folder: Path) -> int:
    """Start a run in a process of its own, and in a group of its own; return its number."""
    pid = os.fork()
    if pid:
        with suppress(OSError):  # it did so itself
            os.setpgid(pid, pid)
        return pid
    os.setpgid(0, 0)
    try:
        os._exit(run.work(folder))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
        os._exit(99)


def ended(pid: int, seconds: float, together: bool) -> bool:
    """Wait for a process to end, at most so many seconds; then kill it, or it `together` with all that it started.

    Returns whether it ended by itself.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    (os.killpg if together else os.kill)(pid, signal.SIGKILL)
    return not os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def killed(name: str, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill a run so many times, resuming it every time; return what was found."""
    run, draw, wrong, found = RUNS[name], random.Random(f"{name} {seed}"), list[str](), Counter[str]()
    whole = folder / "whole"
    whole.mkdir()
    run.begin(whole)
    start = time.monotonic()
    code = os.waitpid(started(run, whole), 0)[1]
    seconds, expected = time.monotonic() - start, run.result(whole)
    if run.progress(whole) == set():
        wrong.append("nothing was stored by the run without a kill")
    while found["kills"] < kills:
        found["runs"] += 1
        place = folder / str(found["runs"])
        place.mkdir()
        run.begin(place)
        wrong += to_its_end(run, place, kills, draw, seconds, found)
        if not wrong and run.result(place) != expected:
            wrong.append(f"run {found['runs']} ended with another result")
        found["temporary files left"] += sum(path.name.startswith(".") for path in place.rglob("*"))
    return {"found": dict(found), "exit_code": code, "whole_seconds": seconds, "wrong": wrong}


def to_its_end(
    run: Run, place: Path, kills: int, draw: random.Random, seconds: float, found: Counter[str]
) -> list[str]:
    """Kill one run at random moments until it ends before its time, or there were enough kills."""
    wrong, before = list[str](), set[str]()
    while True:
        least = draw.choice((0, seconds / 2))  # the first half of some runs is spent on starting
        wait = draw.uniform(least, seconds) if found["kills"] < kills else math.inf
        last = ended(started(run, place), wait, draw.random() < 0.5)
        found["kills"] += not last
        try:
            now = run.progress(place)
        except Exception as error:
            return [f"{found['kills']}: {type(error).__name__}: {error}"]
        if not before <= now:
            wrong.append(f"kill {found['kills']}: {len(before - now)} of {len(before)} stored pieces were lost")
        if last:
            return wrong
        found["kills with something stored"] += bool(now)
        before = now


def measured(name: str, kills: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return {"run": name, "seed": seed} | measure.measured(partial(killed, name, kills, seed, Path(folder)))


def run() -> None:
    """Kill every run that the result file lacks."""
    rows, commit = measure.load(RESULTS), measure.commit()
    for name in RUNS:
        if (name, SEED) not in {(row["run"], row["seed"]) for row in rows}:
            rows.append(measured(name, KILLS, SEED) | {"commit": commit})
            measure.save(RESULTS, rows, "kill -9 at random moments of long runs, which are resumed")
            print(rows[-1], flush=True)
