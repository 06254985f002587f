"""Rounded and pruned networks against their originals: `equivalent`, and `check` on both networks stacked.

    python -m benchmarks run --domain compare --part equivalence        everything; resumes

Tasks after Paulsen et al. (2020, ReluDiff and NeuroDiff): ACAS Xu networks with weights rounded to float16, on the
boxes of the properties, and MNIST digits, of which all pixels move a little or some pixels move freely. There one
output is bounded; here all are. After Teuber et al. (2024, VeryDiff) whether digits of which the first network is sure
stay what they are, by a softmax of more than delta. Everything is measured in one process, one task after the other,
by either program in turn; limits are CPU seconds, and the same for both.
"""

from __future__ import annotations

import copy
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks import measure
from benchmarks.compare.acas import RESULTS
from benchmarks.compare.baseline import Both
from nnrepair import onnx
from nnrepair.deadline import Deadline
from nnrepair.domains import acas
from nnrepair.domains.vision import mnist, relu_mlp
from nnrepair.results import checkers
from nnrepair.verify import Box, Case, Equivalence, Property, check, equivalent
from nnrepair.verify.comparing.agreement import apart, elsewhere
from nnrepair.verify.comparing.regions import boxes_of
from nnrepair.verify.equivalent import Asked

#: CPU seconds for a task, and wall seconds for the check of its certificate.
LIMIT, CHECKING = 5.0, 300.0
#: Of ACAS Xu: property by property the networks it was specified for, as in the published scripts.
#: A few of those that were for all networks or most.
SOME, FEW = [(a, b) for a in range(1, 6) for b in (1, 5, 9)], [(a, a) for a in range(1, 6)]
ACAS = {1: FEW, 3: FEW, 4: FEW, 5: [(1, 1)], 6: [(1, 1)], 7: [(1, 9)], 8: [(2, 9)], 9: [(3, 3)], 10: [(4, 5)]}
TOLERANCES = ("1/20", "1/100")
#: Of MNIST: digits, how far all pixels move, in steps of 1/255, and how many pixels move freely.
DIGITS, RADII, PIXELS, SEED = 1, (3, 10), (3, 18), 0
CHANGES = ("float16", "int8", "pruned")
PRUNED = 0.1
#: Below log(delta / (1 - delta)), so that a softmax of more than delta is a margin of more than this.
SURE = {0.9: "2.197", 0.99: "4.595"}


def changed(model: nn.Module, how: str) -> nn.Module:
    """Return a copy with other weights, in float32.

    "float16" rounds them, "int8" rounds them to 255 equally spaced numbers in each tensor, "pruned" sets a tenth of
    each matrix to zero, the smallest.
    """
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            if how == "float16":
                p.copy_(p.half().float())
            elif how == "int8":
                step = p.abs().max() / 127
                p.copy_((p / step).round() * step)
            elif p.ndim > 1:
                p[p.abs() < p.abs().flatten().quantile(PRUNED)] = 0.0
    return other


def tasks() -> Iterator[dict[str, Any]]:
    """Yield what there is to measure."""
    for number, pairs in ACAS.items():
        for a, b in pairs:
            yield {
                "network": f"{a}_{b}",
                "change": "float16",
                "region": f"property {number}",
                "tolerance": TOLERANCES[0],
            }
    for a, b in SOME:
        yield {"network": f"{a}_{b}", "change": "float16", "region": "property 1", "tolerance": TOLERANCES[1]}
    regions = [*(f"all pixels {r}/255" for r in RADII), *(f"{n} pixels" for n in PIXELS)]
    for network, how, region in itertools.product(("3x100", "9x100"), CHANGES, regions):
        for digit in range(DIGITS):
            task = {"network": network, "change": how, "region": region, "digit": digit}
            yield task | {"tolerance": "1"}
            if region == regions[0]:
                yield task | {"tolerance": None}  # the decision
            if region.startswith("all"):
                yield from (task | {"tolerance": None, "delta": delta} for delta in SURE)


def region_of(task: dict[str, Any]) -> list[Box]:
    """Return the boxes of a task."""
    if "digit" not in task:
        return boxes_of(acas.property_file(int(task["region"].split()[1])))
    x = mnist("test").inputs[task["digit"]].flatten()
    if task["region"].startswith("all"):
        return [Box.around(x, int(task["region"].split()[2].split("/")[0]) / 255, 0, 1)]
    low, high = x.clone(), x.clone()
    free = np.random.default_rng([SEED, task["digit"]]).choice(len(x), int(task["region"].split()[0]), replace=False)
    low[free], high[free] = 0.0, 1.0
    return [Box(low, high)]


def models(task: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Return both networks."""
    name = task["network"]
    before: nn.Module = onnx.load(acas.network(*map(int, name.split("_")))) if "digit" not in task else relu_mlp(name)
    return before, changed(before, task["change"])


def one(task: dict[str, Any], stacked: bool) -> dict[str, Any]:
    """Measure one task by one program, within CPU seconds."""
    clock = partial(Deadline, clock=time.process_time)
    door = sys.modules[check.__module__ if stacked else equivalent.__module__]
    with patch.object(door, "Deadline", clock):
        return _measured(task, stacked)


def _measured(task: dict[str, Any], stacked: bool) -> dict[str, Any]:
    before, after = models(task)
    boxes, tolerance, margin = region_of(task), task["tolerance"], SURE.get(task.get("delta", 0.0), "0")
    outputs = 10 if "digit" in task else 5
    if stacked:
        asked = Asked.of(tolerance, "argmax", margin)
        unsafe = apart(outputs, asked.tolerance) if asked.tolerance else elsewhere(outputs, "argmax", asked.margin)
        shape = () if "digit" in task else (1, 1, 5)
        cases = [Case(_shaped(box, shape), unsafe) for box in boxes]
        result = check(Both(before, after), Property(cases, 2 * outputs), timeout=LIMIT, certificate=False)
        return _row(result) | {"proved": result.proved}
    found = equivalent(before, after, boxes, tolerance=tolerance, margin=margin, timeout=LIMIT)
    answer = _row(found) | {"proved": found.proved}
    if found.holds and tolerance != TOLERANCES[1]:
        answer |= checked(found, before, after, () if "digit" in task else (1, 1, 5))
    return answer


def _shaped(box: Box, shape: tuple[int, ...]) -> Box:
    if shape:
        box = Box(box.lower, box.upper)
        box.shape = shape
    return box


def _row(found: Any) -> dict[str, Any]:
    names = ("verdict", "boxes", "cpu_seconds", "wall_seconds")
    return {name: getattr(found, name) for name in names}


def checked(found: Equivalence, before: nn.Module, after: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what the independent program says of the certificate."""
    assert found.certificate is not None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("before.onnx", "after.onnx")]
        example = torch.zeros(2, *shape) if shape else torch.zeros(2, 784)
        for path, model in zip(files, (before, after), strict=True):
            onnx.save(model, example, path)
        proof = found.certificate.for_networks(*files).save(Path(folder) / "proof.npz")
        started = time.perf_counter()
        done = checkers.run("comparison", proof, *files, timeout=CHECKING)
    return {"certificate": done.stdout.strip(), "checker_wall_seconds": time.perf_counter() - started}


def run() -> None:
    """Measure all tasks by both programs."""
    path, rows = RESULTS / "equivalence.json", measure.load(RESULTS / "equivalence.json")
    about = f"equivalent, and check of both networks stacked; {LIMIT:g} CPU s a task; pixels drawn with seed {SEED}"
    one({"network": "1_1", "change": "float16", "region": "property 3", "tolerance": "1/20"}, False)  # compiles
    one({"network": "1_1", "change": "float16", "region": "property 3", "tolerance": "1/20"}, True)
    for task in tqdm(list(tasks()), desc="equivalence"):
        few = task["tolerance"] != TOLERANCES[1] or task["network"] in [f"{a}_{b}" for a, b in FEW]
        for stacked in (False, True) if few else (False,):
            case = task | {"program": "check" if stacked else "equivalent"}
            if not any(case.items() <= row.items() and case.get("delta") == row.get("delta") for row in rows):
                rows.append(case | one(task, stacked) | {"commit": measure.commit()})
                measure.save(path, rows, about)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run()
