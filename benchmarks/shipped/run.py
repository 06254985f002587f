"""Repair networks as others ship them, in place, and ask the checker about them.

Of each: whether its file is read as a whole; a repair in place of three inputs, each asked for the class that is
second best today, with other inputs' decisions to keep; what onnxruntime makes of the written file; and whether the
checker can say that a decision holds around an input. Goes on where it was stopped.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx as onnx_package
import torch
from torch import Tensor, nn

import nnrepair
from benchmarks import measure
from benchmarks.shipped.exports import export
from benchmarks.shipped.sources import ALL, FOLDER, Shipped, fetch
from nnrepair import onnx
from nnrepair.errors import NNRepairError
from nnrepair.methods import OnGrid
from nnrepair.onnx.inplace.deployed import deployed
from nnrepair.verify import Box, Property, check

RESULTS = Path(__file__).parent / "results" / "shipped.json"
ABOUT = "networks as others ship them: read, repaired in place, checked"
EDITS, SECONDS, CHECKED = 3, 900, 5.0
#: How many numbers of an input the checker is asked about, all others fixed.
FREE = 32
#: Networks that take minutes, measured last.
SLOW = (
    *("captcha, many alphabets", "captcha boxes", "body parts", "page layout", "music to notes", "text recognition"),
    *("slider captcha", "end of a turn", "text recognition, v6"),
)
#: Half the width of the box that is checked, in the unit of the inputs' range.
AROUND = 1e-3


class At(nn.Module):
    """A network's scores at one place of its output."""

    def __init__(self, model: nn.Module, place: tuple[int | slice | None, ...] | None) -> None:
        super().__init__()
        self.model, self.place = model, place

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        y: Tensor = self.model(*inputs, **named)
        return y if self.place is None else y[(slice(None), *self.place)]


def measured(name: str, seed: int) -> dict[str, Any]:
    """Return the row of a network."""
    network = next(one for one in ALL if one.name == name)
    path = _file(network)
    proto = onnx_package.load(path, load_external_data=False)
    operators = Counter(node.op_type for node in proto.graph.node if node.op_type != "Constant")
    row: dict[str, Any] = {"package": network.package, "file": path.name, "bytes": path.stat().st_size}
    row |= {"opset": proto.opset_import[0].version, "operators": dict(operators.most_common())}
    whole = _whole(path, network)
    row["read"] = "" if isinstance(whole, nn.Module) else whole
    row |= _repaired(path, network, seed)
    return row | {"check": _checked(path, network, seed), "checked": measure.commit()}


def _whole(path: Path, network: Shipped) -> nn.Module | str:
    """Return the file as a module, or why there is none."""
    try:
        return onnx.load(path, fixed=dict(network.fixed)) if network.fixed else onnx.load(path)
    except NNRepairError as error:
        return _short(error)


def _short(error: NNRepairError) -> str:
    said = str(error).replace(f"{FOLDER}{os.sep}", "").split("malformed:")[-1]
    return " ".join(said.split())[:300]


def _points(network: Shipped, seed: int, n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: draw(n, generator) for name, draw in network.inputs.items()}


def _repaired(path: Path, network: Shipped, seed: int) -> dict[str, Any]:
    points = _points(network, seed, EDITS + 2 * network.kept)
    edits, kept, test = (
        {name: x[start:end] for name, x in points.items()}
        for start, end in ((0, EDITS), (EDITS, EDITS + network.kept), (EDITS + network.kept, None))
    )
    cpu = time.process_time()
    try:
        told: dict[str, Any] = {"layer": network.layer, "example": edits, "fixed": network.fixed}
        model = onnx.in_place(path, output=network.output, **told)
        if model.scores is not None:  # of which labels say as much
            network = replace(network, output=model.scores, threshold=0.0)
            model = onnx.in_place(path, output=network.output, **told)
        view = At(model, network.pick).eval()
        with torch.no_grad():
            wanted, stays = _second(view(**edits), network), _decided(view(**kept), network)
        method = nnrepair.methods.MinimalNorm(layer=f"model.{model.layer}")
        result = nnrepair.fix(
            view,
            (edits, wanted),
            (kept, stays),
            method=OnGrid(method) if model.grids else method,
            throw=False,
            seed=seed,
        )
    except NNRepairError as error:
        return {"outcome": "refused", "why": _short(error), "seconds": time.process_time() - cpu}
    row: dict[str, Any] = {
        "outcome": result.outcome.status,
        "why": "" if result.outcome.ok else result.outcome.message,
        "layer": model.layer.removeprefix("suffix."),
        "output": model.output,
        "held_before": sum(result.report.held_before),
        "seconds": time.process_time() - cpu,
    }
    if not result.outcome.ok:
        return row
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / path.name
        try:
            result.model.model.save(out)
        except NNRepairError as error:
            return row | {"outcome": "refused", "why": _short(error)}
        before, after = (
            At(deployed(file, model.output, ports=model._source.ports, fixed=network.fixed), network.pick)
            for file in (path, out)
        )
        with torch.no_grad():
            holds = wanted.holds(after(**edits).double())
            same = {what: _same(before(**x), after(**x), network) for what, x in (("kept", kept), ("test", test))}
        changed = _changed(path, out)
    return row | {"holds": int(holds.sum()), "edits": len(holds), "points": network.kept, **same, **changed}


def _second(y: Tensor, network: Shipped) -> nnrepair.Criterion:
    """Return what is asked: the second best class, or the other answer."""
    if y.shape[1] == 1:
        return nnrepair.Threshold((y <= network.threshold).long(), network.threshold)
    return nnrepair.Argmax(y.topk(2, 1).indices[:, 1])


def _decided(y: Tensor, network: Shipped) -> nnrepair.Criterion:
    """Return what the network decides today, as labels."""
    if y.shape[1] == 1:
        return nnrepair.Threshold((y > network.threshold).long(), network.threshold)
    return nnrepair.Argmax(y.argmax(1))


def _same(before: Tensor, after: Tensor, network: Shipped) -> float:
    """Return the share of decisions that are the same."""
    return float(_decided(before, network).holds(after.double()).double().mean())


def _changed(old: Path, new: Path) -> dict[str, Any]:
    """Return which tensors of a file changed, and how many bytes."""
    a, b = old.read_bytes(), new.read_bytes()
    protos = [onnx_package.load(path, load_external_data=False) for path in (old, new)]
    pairs = zip(protos[0].graph.initializer, protos[1].graph.initializer, strict=True)
    names = [one.name for one, two in pairs if one.SerializeToString() != two.SerializeToString()]
    different = sum(x != y for x, y in zip(a, b, strict=False)) if len(a) == len(b) else None
    return {"tensors": names, "different_bytes": different}


def _checked(path: Path, network: Shipped, seed: int) -> str:
    """Return the checker's verdict on one decision in a small box around an input, or why there is none."""
    points = _points(network, seed, 1)
    real = [name for name, x in points.items() if x.dtype.is_floating_point and not _whole_numbers(x)]
    if not real:
        return "inputs are whole numbers"
    now = points.pop(real[0])
    axes = {one.name: len(one.type.tensor_type.shape.dim) for one in onnx_package.load(path).graph.input}
    fixed: dict[str, Any] = {name: x if axes[name] == x.ndim else x[0] for name, x in points.items()}
    try:
        model = At(onnx.load(path, fixed=fixed | dict(network.fixed)), network.pick).eval()
        with torch.no_grad():
            y = model(now).flatten()
        rule: nnrepair.Criterion = nnrepair.Argmax([int(y.argmax())])
        if len(y) == 1:
            rule = nnrepair.Threshold([int(y > network.threshold)], network.threshold)
        whole, start = now.flatten().double(), max(0, (now.numel() - FREE) // 2)
        lower, upper = whole.clone(), whole.clone()
        lower[start : start + FREE] -= AROUND
        upper[start : start + FREE] += AROUND
        shape = now.shape[1:]
        region = Property.on(Box(lower.reshape(shape), upper.reshape(shape)), rule, outputs=len(y))
        found = check(model, region, timeout=CHECKED, certificate=False)
        return str(found.verdict) if found.verdict != "unknown" else f"unknown after {CHECKED:g} s"
    except NNRepairError as error:
        said = _short(error).removeprefix("The checker cannot read this model: ")
        return said.split(" It reads ")[0].split("nnrepair.errors")[0]


def recheck() -> None:
    """Ask the checker about the networks of the result file, but for those that take minutes."""
    rows = measure.load(RESULTS)
    for row in sorted(rows, key=lambda row: int(row["bytes"])):
        if "checked" not in row and row["name"] not in SLOW:
            network = next(one for one in ALL if one.name == row["name"])
            row["check"], row["checked"] = _checked(_file(network), network, row["seed"]), measure.commit()
            measure.save(RESULTS, rows, ABOUT)


def _file(network: Shipped) -> Path:
    """Return the file of a network, fetched or exported where it is not there."""
    if network.package:
        return fetch(network)
    return export(network.member, FOLDER / "exports" / f"{network.member}.onnx")


def _whole_numbers(x: Tensor) -> bool:
    return bool((x == x.round()).all())


def run() -> None:
    """Measure the networks that the result file lacks."""
    cases = [{"name": one.name, "seed": 0} for one in sorted(ALL, key=lambda one: one.name in SLOW)]
    measure.missing(RESULTS, measured, cases, ABOUT, SECONDS, ("benchmarks.shipped.run",))
