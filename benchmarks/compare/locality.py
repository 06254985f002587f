"""Repairs of ACAS Xu by which outputs stay bit for bit: `repair_property(locality="outputs")`, against those stored.

    python -m benchmarks run --domain compare --part locality        all specified repairs; resumes

What is compared: at how many random states outside of the boxes of the repaired properties all outputs are the same
bits, and the decision is the same; and whether every property is proved again. Of some of them it is also proved on how
much of the volume outputs are identical, by certificates that the independent program checks.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import measure
from benchmarks.compare.acas import REPAIRS, RESULTS, WHOLE, judged, materialise
from nnrepair import onnx, repair_property
from nnrepair.cli.model_file import ModelFile
from nnrepair.deadline import Deadline
from nnrepair.domains import acas
from nnrepair.properties.head import Head
from nnrepair.results.result import RepairResult
from nnrepair.verify import Box
from nnrepair.verify.compare import Asked, compared
from nnrepair.verify.comparing.certificate import GRID
from nnrepair.verify.comparing.regions import boxes_of, pieces, volume

STATES, SEED, LIMIT = 100_000, 2, 116.0
#: Of these repairs it is proved that outputs are identical on so much of the volume, where that takes no longer than so
#: many CPU seconds: those that leave most outputs as they are, and those of which few units moved.
PROVING = ("N_2_3", "N_4_5", "N_5_2", "N_2_8", "N_5_3", "N_5_7", "N_4_7", "N_4_1", "N_3_9", "N_4_9", "N_2_6", "N_4_3")
AIM, SECONDS, PATIENCE = 0.71, 600.0, 6000.0


def outside(numbers: Sequence[int]) -> list[Box]:
    """Return boxes of all states outside of the boxes of properties, but for those about (nearly) all."""
    whole = Box(*zip(*acas.DOMAIN, strict=True))
    holes = [box for number in numbers for box in boxes_of(acas.property_file(number))]
    return pieces(whole, [box for box in holes if volume(box) < WHOLE * volume(whole)])


def drawn(boxes: Sequence[Box]) -> Tensor:
    """Return random states of boxes, (n, 1, 1, 5)."""
    generator = np.random.default_rng(SEED)
    shares = np.array([float(volume(box)) for box in boxes])
    parts = []
    for box, count in zip(boxes, generator.multinomial(STATES, shares / shares.sum()).tolist(), strict=True):
        low, high = box.outer
        parts.append(low + (high - low) * generator.random((count, len(low))))
    return torch.from_numpy(np.concatenate(parts)).float().reshape(-1, 1, 1, 5)


def stays(before: nn.Module, after: nn.Module, x: Tensor) -> dict[str, Any]:
    """Return at how many states outputs and decisions are the same, and how large the change of the last layer is."""
    with torch.no_grad():
        y, z = before(x).flatten(1), after.eval()(x).flatten(1)
    one, two = (Head.of(model, (1, 1, 5)).weight for model in (before, after))
    moved = one != two
    return {
        "identical": float((y == z).all(1).double().mean()),
        "same": float((y.argmin(1) == z.argmin(1)).double().mean()),
        "weights": int(moved.sum()),
        "units": int(moved[:, :-1].any(0).sum()),
        "bias": bool(moved[:, -1].any()),
        "l1": float((two - one).abs().sum()),
    }


def repaired(unit: Any) -> tuple[list[int], list[int], RepairResult]:
    """Return the properties of a unit that are repaired, those that are kept, and the repair."""
    rows = importlib.import_module("units").read_rows(REPAIRS / "results" / unit.name)
    wanted = [row["property"] for row in rows if row["role"] == "repair"]
    keep = [row["property"] for row in rows if row["role"] == "keep"]
    result = repair_property(
        unit.network,
        [acas.property_file(number) for number in wanted],
        keep=[acas.property_file(number) for number in keep],
        locality_set=acas.locality_set(onnx.load(unit.network)),
        locality="outputs",
        timeout=LIMIT,
        throw=False,
        seed=importlib.import_module("repair").SEED,
    )
    return wanted, keep, result


def proved(network: str) -> dict[str, Any]:
    """Repair the properties of a unit anew, and prove on how much of the volume outside all outputs are identical."""
    sys.path.append(str(REPAIRS))
    (unit,) = (each for each in importlib.import_module("units").units() if each.name == network)
    wanted, _, result = repaired(unit)
    boxes = outside(wanted)
    same = stays(onnx.load(unit.network), result.model, drawn(boxes))["identical"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / unit.network.name
        ModelFile.load(unit.network).write(result.model, file)
        started = time.process_time()
        asked, deadline = Asked("argmin", until=max(0.0, same - AIM)), Deadline(SECONDS, clock=time.process_time)
        found = compared(unit.network, file, boxes, asked, deadline)
        seconds = time.process_time() - started
        assert found.certificate is not None
        answer = judged(found.certificate.save(Path(folder) / "c.npz"), unit.network, file)
    return answer | {
        "claimed": found.certificate.identical / GRID,
        "volume_identical": float(found.identical),
        "boxes": found.boxes,
        "cpu_seconds": seconds,
        "commit": measure.commit(),
    }


def one(unit: Any) -> dict[str, Any]:
    """Repair the properties of one unit anew, and measure both repairs."""
    model = onnx.load(unit.network)
    started = time.process_time()
    wanted, keep, result = repaired(unit)
    seconds = time.process_time() - started
    x = drawn(outside(wanted))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / unit.network.name
        materialise().materialised(unit.network, REPAIRS / "results" / unit.name / "patch.safetensors", file)
        stored = stays(model, onnx.load(file), x)
    found = stays(model, result.model, x)
    return {
        "properties": wanted,
        "outcome": result.outcome.status,
        "proved": [proof.name for proof in result.proofs if proof.result.holds],
        "of": len(wanted) + len(keep),
        "cpu_seconds": seconds,
        **found,
        "stored": stored,
        "commit": measure.commit(),
    }


def run() -> None:
    """Measure all specified repairs."""
    torch.set_num_threads(1)
    sys.path.append(str(REPAIRS))
    units = importlib.import_module("units")
    path = RESULTS / "locality.json"
    rows = measure.load(path)
    about = f"repair_property, locality='outputs'; {STATES} states (seed {SEED})"
    for unit in tqdm(units.units(), desc="locality"):
        known = units.read_rows(REPAIRS / "results" / unit.name)
        wanted = any(row["role"] == "repair" and units.is_specified(row) for row in known)
        if wanted and not any(row["unit"] == unit.name for row in rows):
            rows.append({"unit": unit.name} | one(unit))
            measure.save(path, rows, about)
    path = RESULTS / "identical.json"
    rows = measure.load(path)
    about = f"compare, identical outputs, until about {AIM:.0%} are proved, {SECONDS:g} CPU s at most"
    for network in tqdm(PROVING, desc="volumes"):
        if not any(row["unit"] == network for row in rows):
            found = measure.in_fresh_process("benchmarks.compare.locality", {"network": network}, timeout=PATIENCE)
            rows.append({"unit": network} | found)
            measure.save(path, rows, about)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(proved(**json.loads(sys.argv[1]))))
