"""A GPU beside the CPU of its machine: are the tests of GPUs green, and what is faster where?

`python -m benchmarks.device.cuda --out FOLDER` runs tests/test_cuda.py and then every case on both devices, in five
minutes at most, and writes FOLDER/cuda.json after each case, with full tracebacks in FOLDER/cuda.log. `--device cpu
--small` goes through all of it where there is no GPU. `benchmarks/results/` does not hold these files: they are about
one machine that is lent for minutes.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import gc
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nnrepair
from benchmarks.device import elsewhere
from benchmarks.measure import ROOT, commit, machine
from nnrepair import Argmax, Edits, LocalitySet
from nnrepair.domains.images.cifar import ResNet
from nnrepair.files import write_atomically
from nnrepair.jacobian.fisher import fisher_diagonal
from nnrepair.methods import FineTune, Method, MinimalNorm
from nnrepair.penalties import KL
from nnrepair.spec.running import outputs
from nnrepair.verify import Box, Options, Property, check
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.attack import attack
from nnrepair.verify.search.jobs import Jobs

SEED = 0
#: A device's second run is timed too where the first took no longer than this, in seconds.
AGAIN = 6.0
#: Seconds that are kept for writing, at the end.
REST = 5.0


def drawn(*size: int, seed: int = SEED) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        return make().eval()


def mlp(*sizes: int) -> nn.Module:
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


@torch.no_grad()
def second_choice(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).topk(2, 1).indices[:, 1]


@dataclass(frozen=True)
class Case:
    """What is timed: `prepare` makes the work for a device, and is not timed; the work returns what is to agree."""

    name: str
    prepare: Callable[[torch.device], Callable[[], dict[str, Any]]]


def repair(make: Callable[[], nn.Module], shape: tuple[int, ...], edits: int, kept: int, method: Method) -> Any:
    """Return the preparation of a repair of a network with random weights."""

    def prepare(device: torch.device) -> Callable[[], dict[str, Any]]:
        model = seeded(make)
        x = drawn(edits, *shape, seed=1)
        wanted, locality = Edits(x, second_choice(model, x)), LocalitySet(drawn(kept, *shape, seed=2))
        model.to(device)

        def work() -> dict[str, Any]:
            result = nnrepair.fix(model, wanted, locality, method=method, throw=False)
            found: dict[str, Any] = {"status": result.outcome.status, "l2": result.report.weight_change.l2}
            found |= {"objective": result.stats.get("objective"), "steps": result.stats.get("steps")}
            found["steps"] = len(found["steps"]) if isinstance(found["steps"], list) else found["steps"]
            return found | {"locality": result.report.locality, "devices": _devices(result.model)}

        return work

    return prepare


def _devices(model: nn.Module) -> list[str]:
    return sorted({str(p.device) for p in model.parameters()})


def passes(make: Callable[[], nn.Module], shape: tuple[int, ...], count: int) -> Any:
    def prepare(device: torch.device) -> Callable[[], dict[str, Any]]:
        model, x = seeded(make).to(device), drawn(count, *shape).to(device)
        return lambda: {"sum": float(outputs(model, x).double().abs().sum())}

    return prepare


def fisher(make: Callable[[], nn.Module], names: list[str], shape: tuple[int, ...], count: int) -> Any:
    def prepare(device: torch.device) -> Callable[[], dict[str, Any]]:
        model, x = seeded(make).to(device), drawn(count, *shape).to(device)
        return lambda: {"sum": sum(float(f.sum()) for f in fisher_diagonal(model, names, x).values())}

    return prepare


def checked(sizes: tuple[int, ...], radius: float, seconds: float) -> Any:
    """Return the preparation of a check around a point; how many boxes it looked at tells the speed."""

    def prepare(device: torch.device) -> Callable[[], dict[str, Any]]:
        model, x = seeded(lambda: mlp(*sizes)), drawn(1, sizes[0], seed=3)[0] / 2
        with torch.no_grad():
            label = int(model(x[None]).argmax())
        wanted = Property.on(Box((x - radius).tolist(), (x + radius).tolist()), Argmax([label]), outputs=sizes[-1])

        def work() -> dict[str, Any]:
            found = check(model.to(device), wanted, device=device, timeout=seconds, options=Options())
            return {"verdict": found.verdict, "boxes": found.boxes, "proved": found.proved}

        return work

    return prepare


def attacked(sizes: tuple[int, ...], starts: int) -> Any:
    """Return the preparation of an attack that cannot succeed, so that all of its steps are made."""

    def prepare(device: torch.device) -> Callable[[], dict[str, Any]]:
        model = seeded(lambda: mlp(*sizes)).double()
        with torch.no_grad():
            list(model.parameters())[-1][0] += 100.0
        box = Box([-0.1] * sizes[0], [0.1] * sizes[0])
        graph = lower(model, (sizes[0],)).to(device)
        jobs = Jobs.of(Property.on(box, Argmax([0]), outputs=sizes[-1]), graph.device)

        def work() -> dict[str, Any]:
            generator = torch.Generator().manual_seed(SEED)
            return {"found": attack(graph, jobs, lambda x, job: False, generator, starts)}

        return work

    return prepare


def resnet20() -> nn.Module:
    return ResNet(20)


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=10)


def cases(small: bool) -> list[Case]:
    """Return all cases; `small` ones go through the same lines in seconds."""

    def n(count: int) -> int:
        return max(3, count // 100) if small else count

    image, photograph, last = (3, 32, 32), (3, 64, 64), MinimalNorm("linear")
    hidden, deep = MinimalNorm("layer3.2.conv2"), MinimalNorm("layer4.1.conv2", norm="l2", max_steps=n(5))
    tuned = FineTune("layer3", lr=1e-3, steps=n(100), penalties=(KL(1.0),))
    acas, seconds = (5, *[n(50)] * 6, 5), 2.0 if small else 8.0
    digits = (784, n(256), n(256), 10)
    channels = MinimalNorm("2", norm="l2", architecture="decoupled")
    side = 32 if small else 224
    return [
        Case("ResNet-20, last layer, 20 edits, 2000 kept", repair(resnet20, image, n(20), n(2000), last)),
        Case("ResNet-20, layer3.2.conv2, 10 edits, 300 kept", repair(resnet20, image, n(10), n(300), hidden)),
        Case("ResNet-20, layer3 fine-tuned, 20 edits, KL on 1000", repair(resnet20, image, n(20), n(1000), tuned)),
        Case("ResNet-18, layer4.1.conv2, 4 edits, 100 kept", repair(resnet18, photograph, n(4), n(100), deep)),
        Case(
            "784-256-256-10, decoupled, 100 edits, 2000 kept",
            repair(lambda: mlp(*digits), (784,), n(100), n(2000), channels),
        ),
        Case("ResNet-20, outputs of 20000 images", passes(resnet20, image, n(20_000))),
        Case("ResNet-18, outputs of 1000 images of 224 x 224", passes(resnet18, (3, side, side), n(1000))),
        Case("ResNet-20, Fisher of layer3, 100 images", fisher(resnet20, _third(), image, n(100))),
        Case("784-256-256-10, Fisher, 1000 points", fisher(lambda: mlp(*digits), ["0", "2", "4"], (784,), n(1000))),
        Case("5-6x50-5, attack from 50000 starts", attacked(acas, n(50_000))),
        Case("5-6x50-5, check by splitting inputs", checked(acas, 0.05 if small else 0.4, seconds)),
        Case("100-2x100-10, check by splitting ReLUs", checked((n(1000), n(100), n(100), 10), 0.03, seconds)),
    ]


def _third() -> list[str]:
    return [name for name, module in resnet20().named_modules() if name.startswith("layer3") and _is_map(module)]


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


# Timing --------------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], dict[str, Any]], device: torch.device) -> tuple[dict[str, Any], float]:
    _finish(device)
    started = time.perf_counter()
    found = work()
    _finish(device)
    return found, time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def row_of(case: Case, device: torch.device) -> dict[str, Any]:
    """Return one device's seconds, of the first run and of the second, and what it found."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work = case.prepare(device)
    found, first = timed(work, device)
    row: dict[str, Any] = {"first_seconds": first}
    if first <= AGAIN:
        found, row["seconds"] = timed(work, device)
    if device.type == "cuda":
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return row | found


class Log:
    """Where results and tracebacks go."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.log, self.content = folder / "cuda.json", folder / "cuda.log", {**about, "rows": []}
        self.log.write_text("")
        self.save()

    def save(self) -> None:
        write_atomically(self.path, (json.dumps(self.content, indent=1, default=str) + "\n").encode())

    def note(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text.rstrip() + "\n")


def run_tests(log: Log, device: str, which: str, seconds: float) -> dict[str, Any]:
    """Run the tests of GPUs in a process of their own; all that they print goes to the log."""
    if importlib.util.find_spec("pytest") is None:
        return {"status": "pytest is not installed"}
    command = [sys.executable, "-X", "faulthandler", "-m", "pytest", "-q", "tests/test_cuda.py", "-W", "default"]
    command += ["-p", "no:cacheprovider", "--durations=15", "-rfE", "--tb=long", "-p", "no:randomly"]
    command += ["-k", which] if which else []
    command += ["-n", "6"] if importlib.util.find_spec("xdist") and device == "cuda" else []
    started, code = time.monotonic(), -1
    with log.log.open("a") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=_environment(device))
        for patience, way in ((seconds, signal.SIGINT), (15, signal.SIGKILL)):  # pytest then tells what it knows
            try:
                code = process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(way)
    lines = log.log.read_text().splitlines()
    failed = [line[:300] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    summary = next((line for line in reversed(lines) if " passed" in line or " failed" in line), "no summary")
    return {"exit": code, "summary": summary, "failed": failed, "seconds": time.monotonic() - started}


def _environment(device: str) -> dict[str, str]:
    return os.environ | {"NNREPAIR_DEVICE": device, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    found = {"about": __doc__, "commit": arguments.commit or commit(), "seed": SEED, "small": arguments.small}
    found |= machine() | {"threads": torch.get_num_threads(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "gpu_mib": gpu.total_memory // 2**20, "cuda": torch.version.cuda}
        found["cudnn_tf32"] = torch.backends.cudnn.allow_tf32
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for cuda.json and cuda.log")
    parser.add_argument("--device", default="cuda", help="what is compared with the CPU; default: %(default)s")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for everything; default: %(default)s")
    parser.add_argument("--commit", default="", help="what is measured, where there is no git")
    parser.add_argument("--small", action="store_true", help="tiny cases")
    parser.add_argument("--tests", default="", metavar="EXPRESSION", help="run these tests alone, as for pytest -k")
    parser.add_argument("--no-tests", action="store_true", help="measure alone")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.limit - REST
    faulthandler.dump_traceback_later(arguments.limit, exit=True)  # whatever hangs
    if arguments.device == elsewhere.NAME:
        elsewhere.load()
    log = Log(arguments.out, about(arguments))
    print(json.dumps({k: v for k, v in log.content.items() if k not in ("about", "rows")}), flush=True)
    if not arguments.no_tests:
        log.content["tests"] = run_tests(log, arguments.device, arguments.tests, arguments.limit * 0.55)
        log.save()
        print(json.dumps(log.content["tests"], indent=1), flush=True)
    measure(log, cases(arguments.small), [torch.device(arguments.device), torch.device("cpu")], end)
    faulthandler.cancel_dump_traceback_later()
    print("done", flush=True)


def measure(log: Log, all_cases: list[Case], devices: list[torch.device], end: float) -> None:
    """Measure the cases one by one, each on every device; one that fails is told, and the next one follows."""
    longest = 0.0  # of a case so far: none begins that is as long and would end too late
    for case in all_cases:
        started = time.monotonic()
        if started + longest > end:
            log.content["rows"].append({"case": case.name, "status": "no time was left"})
            log.save()
            continue
        row: dict[str, Any] = {"case": case.name}
        for name, device in zip(("device", "cpu"), devices, strict=True):
            try:
                row[name] = row_of(copy.deepcopy(case), device)
            except Exception as error:
                log.note(f"{case.name} on {device}:\n{traceback.format_exc()}")
                row[name] = {"status": f"failed: {type(error).__name__}: {str(error)[:200]}"}
        pair = [row[name].get("seconds", row[name].get("first_seconds")) for name in ("cpu", "device")]
        row["times_faster"] = pair[0] / pair[1] if all(pair) else None
        longest = max(longest, (time.monotonic() - started) / 2)
        log.content["rows"].append(row)
        log.save()
        print(_line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    return row["case"] + ": " + "; ".join(f"{k} {_short(v)}" for k, v in row.items() if k != "case")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v is not None) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
