"""What is checked: a network and a property, read and compared with each other and with the network itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.deadline import Deadline
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.network import private_copy
from nnrepair.spec.network import copied, stated_shape
from nnrepair.verify import vnnlib
from nnrepair.verify.certificate import sha256
from nnrepair.verify.property import Property
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.replay import Replay


class Subject:
    """A network and a property that fit each other.

    Attributes:
        model, shape: the network in torch, and the shape of one input.
        property: what is asked; property_sha256: of its file, if it has one.
        graph: the network as the checker reads it.
        replay: runs points, exactly and in every other way there is.
    """

    def __init__(
        self, model: nn.Module | str | Path, property: Property | str | Path, device: torch.device, deadline: Deadline
    ) -> None:
        self.deadline, self.path = deadline, None if isinstance(model, nn.Module) else Path(model)
        deadline.check("reading the property")
        self.property = property if isinstance(property, Property) else vnnlib.load(property, deadline)
        self.property_sha256 = None if isinstance(property, Property) else sha256(property)
        deadline.check("reading the network")
        self.model, self.shape = self._read(model)
        dtypes = [p.dtype for p in self.model.parameters()]
        other = {str(dtype) for dtype in dtypes} - {"torch.float32", "torch.float64"}
        if other:
            raise InvalidInput(f"The model has {sorted(other)[0]} parameters; the checker reads float32 and float64.")
        dtype = dtypes[0] if dtypes else torch.float32
        self._check_shape(dtype)
        deadline.check()
        graph = lower(self.model, self.shape, deadline, self._region())
        if (graph.inputs, graph.outputs) != (self.property.inputs, self.property.outputs):
            raise InvalidInput(
                f"The property is about {self.property.inputs} inputs and {self.property.outputs} outputs, but the "
                f"network has {graph.inputs} and {graph.outputs}."
            )
        self.replay = Replay(self.model, self.shape, dtype, graph, self.path, deadline)
        deadline.check("comparing what was read with the network")
        self._compare(graph)
        self.graph = graph.to(device)

    def _read(self, model: nn.Module | str | Path) -> tuple[nn.Module, tuple[int, ...]]:
        if isinstance(model, nn.Module):
            private = private_copy(model, self.deadline).cpu()
            return private, stated_shape(private) or self.property.cases[0].box.shape or (1,)
        from nnrepair import onnx

        loaded = onnx.load(model, self.deadline)
        if None in loaded.item_shape:
            raise InvalidInput(f"{model} leaves the size of its input open ({loaded.item_shape}).")
        return loaded, tuple(size for size in loaded.item_shape if size is not None)

    def _check_shape(self, dtype: torch.dtype) -> None:
        """Call the model once, so that inputs that do not fit are reported with its own error."""
        x = torch.zeros(1, *self.shape, dtype=dtype)
        try:
            with torch.no_grad(), torch.random.fork_rng([]):
                self.model(x)
        except Exception as error:  # whatever the user's forward raises
            raise InvalidInput(
                f"The model cannot be called with one input of shape {tuple(x.shape)}. "
                f"It raises {type(error).__name__}: {error}\n"
                "A property made in Python says the shape: Box(lower, upper) keeps that of its bounds."
            ) from error

    def _region(self) -> tuple[Tensor, Tensor] | None:
        """Return the ends of the smallest box around all boxes, if they have the size of the inputs."""
        boxes = [case.box.outer for case in self.deadline.each(self.property.cases)]
        if not boxes or len(boxes[0][0]) != math.prod(self.shape):
            return None
        low, high = (torch.from_numpy(np.stack([box[end] for box in boxes])) for end in (0, 1))
        return low.amin(0), high.amax(0)

    def _compare(self, graph: Graph) -> None:
        """Compare what was read with the model itself: randomness, for example, is not seen when a model is read.

        Nor is it that a model mixes the points of a batch: it is read for one point.
        """
        cases = [self.property.cases[k * len(self.property.cases) // 6] for k in range(6)]
        low, high = (torch.from_numpy(np.stack([case.box.outer[end] for case in cases])) for end in (0, 1))
        drawn = torch.rand(6, graph.inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        double = copied(self.model, self.deadline).double()
        points = low + drawn * (high - low)
        for x in (*points[:, None], points):
            with torch.no_grad(), torch.random.fork_rng([]):
                values = graph.values(x, self.deadline)
                try:
                    y, tolerance = double(x.reshape(-1, *self.shape).clone()), 1e-6
                except RuntimeError:  # it has constants of its own type
                    y, tolerance = self.model(x.reshape(-1, *self.shape).to(self.replay.dtype)).double(), 1e-3
            if not _same(values, y, tolerance):
                raise UnsupportedModel(
                    "The checker read this model as another function than it computes. Randomness, operations that "
                    "change tensors in place, and sums over a batch may do that; remove them, or write the model to "
                    "ONNX (nnrepair.onnx.save) and check the file."
                )
        self.deadline.check()
        point = self.replay.rounded(self.replay.in_box(points[0], cases[0].box))
        run = self.replay.onnxruntime(point)
        if run is not None and not _same(graph.values(point[None].double()), run, 1e-3):
            raise UnsupportedModel(f"The checker read {self.path} as another function than onnxruntime computes.")

    def read_for(self, low: Tensor, high: Tensor) -> Graph:
        """Return the network as read for a region."""
        return lower(self.model, self.shape, self.deadline, (low.cpu(), high.cpu())).to(self.graph.device)


def _same(values: list[Tensor], y: Any, tolerance: float) -> bool:
    """Tell whether outputs equal the last of a graph's values, as far as their size lets one see."""
    y, near = (
        torch.as_tensor(y).double().reshape(len(values[-1]), -1),
        tolerance * float(torch.stack([v.abs().max() for v in values]).max()),
    )
    return not math.isfinite(near) or (y.shape == values[-1].shape and torch.allclose(y, values[-1], tolerance, near))
