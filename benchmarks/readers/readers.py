"""The four readers, each behind one function: from the bytes of a file to what computes its outputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.readers.draft import Array
from benchmarks.readers.graphs import Case
from benchmarks.readers.truth import ROUNDING
from benchmarks.verify.cases import module_at
from nnrepair import onnx as loader
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.verify.reading.activations.cast import Narrowed
from nnrepair.verify.reading.affine import EPS
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.intervals import affine_over

minimality: Any = module_at("minimality", measure.ROOT / "verification" / "minimality.py")
written: Any = module_at("written", measure.ROOT / "verification" / "written.py")


@dataclass(frozen=True)
class Reading:
    """A file as one reader understands it.

    Attributes:
        run: gives bounds (n, ...) of the outputs for points (n, ...); both are one for what computes numbers.
        inputs: how many numbers one point has.
        exact: whether overflow and NaN must be those of the file's own precision.
        single: where points run one at a time, or their axis moves to the front: what a point's output is, as it
            stands in that of the file for this point alone.
        bare: whether the file's whole input is one point.
        alone: whether the file says what it computes for one point at a time only.
        near: gives numbers in place of bounds, for points at which these are wide.
        shape: of one point as it is read, where the file leaves sizes open; else None.
    """

    run: Callable[[Array], tuple[Array, Array]]
    inputs: int
    exact: bool = False
    single: Callable[[Array], Array] | None = None
    bare: bool = False
    alone: bool = False
    near: Callable[[Array], tuple[Array, Array]] | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Reader:
    """How a file is read, with the errors that refuse it."""

    read: Callable[[Path, Case], Reading]
    refusals: tuple[type[Exception], ...]


def by_minimality(path: Path, case: Case) -> Reading:
    """verification/minimality.py: an enclosure of the outputs."""
    network = minimality.Network(path.read_bytes())

    def run(points: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            output = network.run(points.astype(np.float64))[0][network.output]
            return output.lower, output.upper

    return Reading(run, math.prod(case.shape))


def by_reading(path: Path, case: Case) -> Reading:
    """verification/written.py: the layers of a chain."""
    layers = written.read_network(path.read_bytes())

    def run(points: Array) -> tuple[Array, Array]:
        y = points.reshape(len(points), -1).astype(np.float64)
        with np.errstate(all="ignore"):
            for layer in layers:
                y = y @ layer.weight.T + layer.bias
                y[:, : layer.bent] = np.maximum(y[:, : layer.bent], 0)
        return y, y

    return Reading(run, layers[0].weight.shape[1])


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, data: bytes) -> loader.OnnxGraph:
    """Load a graph once for both of the next."""
    return loader.load(path)


def by_load(path: Path, case: Case) -> Reading:
    """nnrepair.onnx.load: a module."""
    model = _loaded(path, case.data)
    taken = model.inputs[0]
    drawn = case.shape if taken.batched else (case.points.shape[:1] if case.batch is None else ())
    shape = tuple(s if s is not None else drawn[k] if k < len(drawn) else 1 for k, s in enumerate(taken.shape))

    def run(points: Array) -> tuple[Array, Array]:
        with torch.no_grad():
            y = model(torch.from_numpy(points)).numpy()
        return y, y

    moved = model.get_submodule("points_first").dims[0] if "points_first" in dict(model.named_children()) else 0
    single: Callable[[Array], Array] | None = None
    if moved or (model.alone and taken.batched):
        single = lambda y: y[None] if model.bare else np.moveaxis(y, moved, 0)  # noqa: E731
    return Reading(run, math.prod(shape), True, single, not taken.batched, model.alone, shape=shape)


def by_lower(path: Path, case: Case) -> Reading:
    """nnrepair.verify.reading.lowering.lower: enclosures by the graph of that module."""
    graph = lower(_loaded(path, case.data), case.shape)
    shorter = [torch.empty(0, dtype=a.kind).numpy().dtype for a in graph.activations if isinstance(a, Narrowed)]
    rounding = max(ROUNDING.get(kind, ROUNDING[np.dtype(np.float32)]) for kind in (case.points.dtype, *shorter))

    def run(points: Array) -> tuple[Array, Array]:
        x = torch.from_numpy(points.reshape(len(points), -1).astype(np.float64))
        with torch.no_grad():
            low, high = _enclosed(graph, x, rounding)
        return low.numpy(), high.numpy()

    def near(points: Array) -> tuple[Array, Array]:
        with torch.no_grad():
            y = graph(torch.from_numpy(points.reshape(len(points), -1).astype(np.float64))).numpy()
        return y, y

    model = _loaded(path, case.data)
    bare = not model.inputs[0].batched
    return Reading(run, graph.inputs, bare=bare, single=by_load(path, case).single, near=near)


def _enclosed(graph: Graph, x: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Return bounds of the outputs at points (n, inputs); rounding may have gone to either side of a jump."""
    values, largest = [(x, x)], x.abs().amax(1, True) if x.shape[1] else x.sum(1, True)
    for node in graph.nodes[1:]:
        low, high = values[node.sources[0]]
        if node.affine is not None:
            values.append(affine_over(node.affine, low, high))
        elif node.activation is not None:
            near = rounding * largest if node.activation.jumps else 0.0
            values.append(node.activation.enclose(low - near, high + near))
        else:
            parts = [values[source] for source in node.sources]
            off = EPS * sum(a.abs() + b.abs() for a, b in parts)
            values.append((sum(a for a, _ in parts) - off, sum(b for _, b in parts) + off))
        if node.size:
            largest = torch.maximum(largest, torch.maximum(*(end.abs() for end in values[-1])).amax(1, True))
    return values[-1]


READERS = {
    "minimality": Reader(by_minimality, (minimality.Unreadable,)),
    "reading": Reader(by_reading, (written.Unreadable,)),
    "load": Reader(by_load, (InvalidInput, UnsupportedModel)),
    "lower": Reader(by_lower, (InvalidInput, UnsupportedModel)),
}
