"""A network as the checker knows it, whatever it is asked about it; files are read once."""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.deadline import Deadline
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.network import private_copy
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.spec.network import copied, stated_shape
from nnrepair.verify.property import Property
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.imported import Joined
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.runs import rounding_explains
from nnrepair.verify.search.replay import Replay

#: So many files are remembered, with so many bytes together, and none that is larger than a quarter of that.
FILES, BYTES = 64, 2**26


class Network:
    """What is read, and checked, once.

    Args:
        model: the network in torch, private, in eval mode and on the CPU.
        shape: of one input.
        path: the ONNX file, if there is one.
        deadline: when it has passed, reading ends with OutOfTime.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], path: Path | None, deadline: Deadline) -> None:
        self.model, self.shape, self.path = model, shape, path
        buffers = [t for t in model.buffers() if t.is_floating_point() and t.numel()]
        tensors = [*model.parameters(), *buffers]
        other = {str(t.dtype) for t in tensors} - {"torch.float32", "torch.float64"}
        if other:
            raise InvalidInput(f"The model has {sorted(other)[0]} parameters; the checker reads float32 and float64.")
        self.dtype = next((p.dtype for p in model.parameters()), torch.float32)
        self._check_inputs()
        self._check_shape()
        deadline.check()
        self.graph = lower(model, shape, deadline)
        self._replay = Replay(model, shape, self.dtype, self.graph, path)

    @classmethod
    def of(cls, model: nn.Module | str | Path, shape: tuple[int, ...] | None, deadline: Deadline) -> Network:
        """Return a module's network, or that of an ONNX file, perhaps as it was read before.

        Args:
            model: the module, which is copied, or the file.
            shape: of one input, for a module that does not say.
            deadline: when it has passed, reading ends with OutOfTime.
        """
        if not isinstance(model, str | Path):
            private = private_copy(model, deadline).cpu()  # refuses what is no module
            return cls(private, stated_shape(private) or shape or (1,), None, deadline)
        return _REMEMBERED.network(Path(model), deadline)

    @classmethod
    def read(cls, path: Path, deadline: Deadline) -> Network:
        """Return the network of an ONNX file."""
        from nnrepair import onnx

        loaded = onnx.load(path, deadline)
        for each in loaded.inputs:
            if None in each.shape:
                raise InvalidInput(f"{path} leaves the size of its input {each.name!r} open ({each.shape}).")
        if len(loaded.inputs) > 1:
            joined = Joined(loaded).eval()
            return cls(joined, (sum(joined.sizes),), path, deadline)
        return cls(loaded, tuple(size for size in loaded.item_shape if size is not None), path, deadline)

    def read_for(self, low: Tensor, high: Tensor, deadline: Deadline) -> Graph:
        """Return the network as it is best read for a region; see `lower`."""
        return lower(self.model, self.shape, deadline, (low, high))

    def replay(self, deadline: Deadline, graph: Graph | None = None) -> Replay:
        """Return what runs the network, within a deadline; a session of onnxruntime is begun once.

        Args:
            deadline: of each run.
            graph: the network as it was read for a region; None is everywhere.
        """
        mine = copy.copy(self._replay)
        mine.deadline, mine.graph = deadline, graph or self.graph
        return mine

    @cached_property
    def _double(self) -> nn.Module:
        return copied(self.model).double()

    def _check_inputs(self) -> None:
        """Refuse inputs of other numbers than boxes hold."""
        file = self.model.model if isinstance(self.model, Joined) else self.model
        inputs = file.inputs if isinstance(file, OnnxGraph) else ()
        self.dtype = max((each.dtype for each in inputs), key=lambda kind: kind.itemsize, default=self.dtype)
        for each in inputs:
            if each.dtype not in (torch.float32, torch.float64):
                raise InvalidInput(
                    f"The input {each.name!r} has numbers of type {str(each.dtype).removeprefix('torch.')}; a property "
                    "is about boxes of float32 or float64. Where other inputs move, give this one a value: check "
                    f"nnrepair.onnx.load(PATH, fixed={{{each.name!r}: VALUE}})."
                )

    def _check_shape(self) -> None:
        """Call the model once, so that inputs that do not fit are reported with its own error."""
        x = torch.zeros(1, *self.shape, dtype=self.dtype)
        try:
            with torch.no_grad(), torch.random.fork_rng([]):
                self.model(x)
        except Exception as error:  # whatever the user's forward raises
            raise InvalidInput(
                f"The model cannot be called with one input of shape {tuple(x.shape)}. "
                f"It raises {type(error).__name__}: {str(error).rstrip('.')}.\n"
                "A property made in Python says the shape: Box(lower, upper) keeps that of its bounds."
            ) from error

    def compare(self, property: Property, replay: Replay, deadline: Deadline) -> None:
        """Compare what was read with the model itself: randomness, for example, is not seen when a model is read.

        Nor is it that a model mixes the points of a batch: it is read for one point.

        Raises:
            UnsupportedModel: they differ at some point of the property's boxes.
        """
        cases = [property.cases[k * len(property.cases) // 6] for k in range(6)]
        low, high = (torch.from_numpy(np.stack([case.box.outer[end] for case in cases])) for end in (0, 1))
        drawn = torch.rand(6, self.graph.inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        points, graph = low + drawn * (high - low), replay.graph
        for x in (*points[:, None], points):
            with torch.no_grad(), torch.random.fork_rng([]):
                values = graph.values(x, deadline)
                try:
                    y, tolerance, kind = self._double(x.reshape(-1, *self.shape).clone()), 1e-6, torch.float64
                except RuntimeError:  # it has constants of its own type
                    y, tolerance, kind = (
                        self.model(x.reshape(-1, *self.shape).to(self.dtype)).double(),
                        1e-3,
                        self.dtype,
                    )
            if not _same(values, y, tolerance):
                raise UnsupportedModel(
                    rounding_explains(graph, x, y, kind, "the model", deadline)
                    or "The checker read this model as another function than it computes. Randomness, operations that "
                    "change tensors in place, and sums over a batch may do that; remove them, or write the model to "
                    "ONNX (nnrepair.onnx.save) and check the file."
                )
        deadline.check()
        point = replay.rounded(replay.in_box(points[0], cases[0].box))
        run = replay.onnxruntime(point)
        if run is not None and not _same(graph.values(point[None].double()), run, 1e-3):
            raise UnsupportedModel(
                rounding_explains(graph, point[None].double(), run, self.dtype, f"onnxruntime, {self.path},", deadline)
                or f"The checker read {self.path} as another function than onnxruntime computes."
            )


def _same(values: list[Tensor], y: Any, tolerance: float) -> bool:
    """Tell whether outputs equal the last of a graph's values, as far as their size lets one see."""
    y, near = (
        torch.as_tensor(y).double().reshape(len(values[-1]), -1),
        tolerance * float(torch.stack([v.abs().max() for v in values]).max()),
    )
    return not math.isfinite(near) or (y.shape == values[-1].shape and torch.allclose(y, values[-1], tolerance, near))


class _Remembered:
    """Files that were read last, by what they hold: most suites ask many questions about one network."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._networks = OrderedDict[tuple[str, bytes], tuple[Network, int]]()

    def network(self, path: Path, deadline: Deadline) -> Network:
        content = path.read_bytes() if path.is_file() and path.stat().st_size <= BYTES // 4 else b""
        key = str(path.resolve()), hashlib.sha256(content).digest()
        with self._lock:
            known = self._networks.get(key)
            if known is not None:
                self._networks.move_to_end(key)
                return known[0]
        network = Network.read(path, deadline)
        if content and b"location" not in content:  # what names of files are stored under that keep weights elsewhere
            self._remember(key, network, len(content))
        return network

    def _remember(self, key: tuple[str, bytes], network: Network, size: int) -> None:
        with self._lock:
            self._networks[key] = network, size
            while len(self._networks) > FILES or sum(n for _, n in self._networks.values()) > BYTES:
                self._networks.popitem(last=False)


_REMEMBERED = _Remembered()
