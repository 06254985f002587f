"""Repairs of ACAS Xu by which outputs stay bit for bit: `repair_property(locality="outputs")`, against those stored.

    python -m benchmarks run --domain compare --part locality        all specified repairs; resumes

What is compared: at how many random states outside of the boxes of the repaired properties all outputs are the same
bits, and the decision is the same; and whether every property is proved again.
"""

from __future__ import annotations

import importlib
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
from benchmarks.compare.acas import REPAIRS, RESULTS, WHOLE, materialise
from nnrepair import onnx, repair_property
from nnrepair.deadline import Deadline
from nnrepair.domains import acas
from nnrepair.properties.head import Head
from nnrepair.results.result import RepairResult
from nnrepair.verify import Box
from nnrepair.verify.compare import Asked, compared
from nnrepair.verify.comparing.regions import boxes_of, pieces, volume

STATES, SEED, LIMIT = 100_000, 2, 116.0
#: Of a few repairs it is measured what is proved of the volume, in so many CPU seconds: two of those that move one
#: unit, and for longer two of those that leave most outputs as they are.
PROVING = {"N_4_3": 40.0, "N_2_8": 40.0, "N_2_3": 600.0, "N_4_5": 600.0}


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


def proved(unit: Any) -> dict[str, Any]:
    """Return on how much of the volume outside of the repaired boxes outputs are found to be identical."""
    wanted, _, result = repaired(unit)
    started = time.process_time()
    deadline = Deadline(PROVING[unit.name], clock=time.process_time)
    found = compared(onnx.load(unit.network), result.model, outside(wanted), Asked("argmin"), deadline)
    seconds = time.process_time() - started
    return {"volume_identical": float(found.identical), "volume_same": float(found.same), "volume_seconds": seconds}


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
    for unit in tqdm([each for each in units.units() if each.name in PROVING], desc="volumes"):
        for row in rows:
            if row["unit"] == unit.name and "volume_identical" not in row:
                row |= proved(unit)
                measure.save(path, rows, about)
