"""All repaired ACAS Xu networks against their originals, over all states outside of the repaired boxes.

One measurement: `python -m benchmarks.compare.acas '{"network": "2_8", "seconds": 10}'`. All of them:
`python -m benchmarks run --domain compare --part acas`, one fresh process each; resumes. The budget is of CPU seconds.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import measure
from nnrepair import onnx
from nnrepair.deadline import Deadline
from nnrepair.domains import acas
from nnrepair.results import checkers
from nnrepair.verify import Box
from nnrepair.verify.compare import Asked, compared
from nnrepair.verify.comparing.certificate import GRID
from nnrepair.verify.comparing.regions import boxes_of, pieces, volume

RESULTS = Path(__file__).parent / "results"
REPAIRS = Path(__file__).resolve().parents[2] / "verification" / "acas"
#: CPU seconds for a comparison.
SECONDS = 120.0
#: Measured first: one unit moved (2_8, 4_9), two (1_5), a bias alone (5_3, 3_2), many weights (2_9).
FIRST = ("2_8", "5_3", "1_5", "3_2", "4_9", "2_9")
#: Random states at which all outputs are compared; decisions were compared at a million states by the repairs.
STATES, SEED = 100_000, 2
#: A repaired property about so much of the domain leaves no outside.
WHOLE = 0.9
LIMIT = 3000.0
#: CPU seconds of the comparisons whose certificates are all checked; of the long ones those of the networks above are,
#: as the independent program takes up to seven minutes for one.
BRIEF = 15.0


def materialise() -> ModuleType:
    """Return verification/acas/materialise.py, which rebuilds the repaired files."""
    if str(REPAIRS) not in sys.path:
        sys.path.append(str(REPAIRS))
    return importlib.import_module("materialise")


def rows_of(network: str) -> list[dict[str, Any]]:
    """Return what is known about the repaired properties of a network; nothing where nothing was violated."""
    file = REPAIRS / "results" / f"N_{network}" / "rows.jsonl"
    return [row for row in map(json.loads, file.read_text().splitlines()) if row["role"] == "repair"]


def networks() -> list[str]:
    """Return the networks that were repaired."""
    names = (path.name.removeprefix("N_") for path in sorted((REPAIRS / "results").glob("N_?_?")))
    return [name for name in names if rows_of(name)]


def region(network: str) -> list[Box]:
    """Return boxes of all states outside of the boxes of repaired properties, but for those about (nearly) all."""
    whole = Box(*zip(*acas.DOMAIN, strict=True))
    numbers = [row["property"] for row in rows_of(network)]
    holes = [box for number in numbers for box in boxes_of(acas.property_file(number))]
    return pieces(whole, [box for box in holes if volume(box) < WHOLE * volume(whole)])


def one(network: str, seconds: float, checked: bool = True) -> dict[str, Any]:
    """Compare one repaired network with its original, and have the certificate checked; that takes more time."""
    a, b = map(int, network.split("_"))
    before, boxes, rows = acas.network(a, b), region(network), rows_of(network)
    with tempfile.TemporaryDirectory() as folder:
        after = Path(folder) / before.name
        materialise().materialised(before, REPAIRS / "results" / f"N_{network}" / "patch.safetensors", after)
        started = time.process_time()
        deadline = Deadline(seconds, clock=time.process_time)
        found = compared(before, after, boxes, Asked("argmin", identical=False), deadline)
        cpu = time.process_time() - started
        answer: dict[str, Any] = {"certificate": None}
        if checked and found.certificate is not None:
            answer = judged(found.certificate.save(Path(folder) / "c.npz"), before, after)
            answer |= {f"claimed_{name}": getattr(found.certificate, name) / GRID for name in ("same", "identical")}
        same = sampled(onnx.load(before), onnx.load(after), boxes)
    change = rows[0]["change"]
    return answer | {
        "aim": "decisions",
        "properties": [row["property"] for row in rows],
        "layers": change["layers"],
        "weights": change["weights"],
        "regions": len(boxes),
        "volume": float(found.volume),
        "identical": float(found.identical),
        "same": float(found.same),
        "changed": float(found.changed),
        "boxes": found.boxes,
        "cpu_seconds": cpu,
        "witnesses": len(found.witnesses),
        "replayed": sorted({name for witness in found.witnesses for name in witness.replayed}),
        "history": [asdict(moment) for moment in found.history],
        "sampled_same": rows[0]["agreement"]["same"] / rows[0]["agreement"]["compared"],
        "sampled_states": rows[0]["agreement"]["compared"],
        "sampled_identical": same,
        "commit": measure.commit(),
    }


def judged(certificate: Path, before: Path, after: Path) -> dict[str, Any]:
    """Return what the independent program says of a certificate, and how long it is."""
    started = time.perf_counter()
    done = checkers.run("comparison", certificate, before, after)
    return {
        "certificate": done.stdout.strip(),
        "certificate_bytes": certificate.stat().st_size,
        "checker_wall_seconds": time.perf_counter() - started,
    }


def sampled(before: nn.Module, after: nn.Module, boxes: Sequence[Box]) -> float:
    """Return the share of random states of boxes at which all outputs are bit for bit the same."""
    generator = np.random.default_rng(SEED)
    shares = np.array([float(volume(box)) for box in boxes])
    counts = generator.multinomial(STATES, shares / shares.sum())
    same = 0
    for box, count in zip(boxes, counts.tolist(), strict=True):
        low, high = box.outer
        x = torch.from_numpy(low + (high - low) * generator.random((count, len(low)))).float().reshape(-1, 1, 1, 5)
        same += sum(int((_run(before, part) == _run(after, part)).all(1).sum()) for part in x.split(50_000))
    return same / STATES


def _run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(x)
    return y.flatten(1)


def run() -> None:
    """Compare all networks."""
    about = f"compare, argmin, {SECONDS:g} CPU s, outside of the repaired boxes; {STATES} states (seed {SEED})"
    first = [{"network": name, "seconds": SECONDS} for name in FIRST]
    others = [name for name in networks() if name not in FIRST]
    _measured("acas", first + [{"network": name, "seconds": SECONDS, "checked": False} for name in others], about)


def run_short() -> None:
    """Compare all networks briefly."""
    about = f"compare, argmin, {BRIEF:g} CPU s, outside of the repaired boxes"
    _measured("short", [{"network": name, "seconds": BRIEF} for name in networks()], about)


def _measured(file: str, cases: list[dict[str, Any]], about: str) -> None:
    """Measure what a result file lacks."""
    path = RESULTS / f"{file}.json"
    rows = measure.load(path)
    for case in tqdm(cases, desc="compare"):
        if not any(case.items() <= row.items() for row in rows):
            rows.append(case | measure.in_fresh_process("benchmarks.compare.acas", case, timeout=LIMIT))
            measure.save(path, rows, about)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(one(**json.loads(sys.argv[1]))))
