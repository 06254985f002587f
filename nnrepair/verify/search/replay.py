"""Replay: a point is a counterexample if exact arithmetic says so; torch and onnxruntime run it, too."""

from __future__ import annotations

import gzip
import math
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.extras import needed
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.verify.property import Box, Conjunction, Exact
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.imported import Joined
from nnrepair.verify.result import Counterexample
from nnrepair.verify.search.rational import (
    Enclosure,
    can_be_exact,
    enclosed,
    enclosure,
    inside,
    largest,
    nearest,
    outside,
)


class Replay:
    """Call it with a point and an unsafe set.

    Args:
        model: the network in torch, in eval mode.
        shape: of one input.
        dtype: the network's own precision.
        graph: what the checker read, for exact arithmetic.
        path: the ONNX file, if there is one.
        deadline: when to end.

    Attributes:
        scores: what is computed exactly in place of the outputs, where unsafe sets only compare outputs, and this is in
            the same order; None for the outputs themselves.
    """

    scores: Graph | None = None

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        graph: Graph,
        path: Path | None,
        deadline: Deadline = NEVER,
    ) -> None:
        self.model, self.shape, self.dtype, self.graph = model, shape, dtype, graph
        self.deadline = deadline
        self.session = None if path is None else Session(path, model.model if isinstance(model, Joined) else model)

    def in_box(self, point: Tensor, box: Box, own: bool = True) -> Exact:
        """Return the point (inputs,) of floats as one exactly inside the box.

        Args:
            point: inside the smallest box of floats around the box.
            box: where.
            own: whether to take numbers of the network's own precision, wherever the box has one.
        """
        x, fits = point, torch.zeros(len(point), dtype=torch.bool)
        if own:
            low, high = map(torch.from_numpy, box.inner)
            x = torch.clamp(point, low, high).to(self.dtype)
            for _ in range(2):  # rounding may have left the box by one unit
                x = torch.where(x.double() < low, torch.nextafter(x, torch.full_like(x, torch.inf)), x)
                x = torch.where(x.double() > high, torch.nextafter(x, torch.full_like(x, -torch.inf)), x)
            fits = (x.double() >= low) & (x.double() <= high)
        given = self.deadline.each(zip(fits.tolist(), x.tolist(), point.tolist(), box.lower, box.upper, strict=True))
        return tuple(Fraction(v) if fit else min(max(Fraction(p), a), b) for fit, v, p, a, b in given)

    def rounded(self, point: Exact) -> Tensor:
        """Return the nearest numbers of the network's own precision."""
        x, most = torch.tensor([float(v) for v in point], dtype=torch.float64), torch.finfo(self.dtype).max
        return x.clamp(-most, most).to(self.dtype)

    def __call__(self, point: Exact, conjunction: Conjunction, alone: bool = False) -> Counterexample | None:
        """Return the counterexample if exact arithmetic and all runs of the network agree on it.

        Args:
            point: (inputs,), inside the box.
            conjunction: the unsafe set.
            alone: whether exact arithmetic is enough.
        """
        x = self.rounded(point)
        runs = self.runs(x)
        agreed = [name for name, y in runs.items() if self._is_inside(conjunction, y)]
        if len(agreed) < len(runs) and not alone:
            return None
        outputs, how = self._exactly(point, conjunction)
        if outputs is None:
            return None
        output = list(runs.values())[-1]
        seen = [(Fraction(v), Fraction(v)) for v in output.tolist()] if len(agreed) == len(runs) else outputs
        return Counterexample(
            x.double().numpy().copy(), output, _margin(conjunction, seen), (*agreed, how), point, tuple(outputs)
        )

    def _exactly(self, point: Exact, conjunction: Conjunction) -> tuple[Enclosure | None, str]:
        """Return the outputs of the real-valued function if they are unsafe, and how they were computed."""
        graph = self.scores or self.graph
        quick = enclosed(graph, point, self.deadline)
        if outside(conjunction, quick, self.deadline):
            return None, ""
        found, is_exact = quick, False
        if can_be_exact(graph) or not inside(conjunction, quick, self.deadline):
            try:
                found, is_exact = enclosure(graph, point, self.deadline)
            except OutOfTime:
                if not inside(conjunction, quick):
                    raise
        if not inside(conjunction, found, self.deadline):
            return None, ""
        outputs = found if self.scores is None else enclosed(self.graph, point, self.deadline)
        return outputs, "exact" if is_exact else "enclosure"

    def _is_inside(self, conjunction: Conjunction, y: NDArray[np.float64]) -> bool:
        """Tell whether an output lies in an unsafe set; what is not finite lies nowhere."""
        seen = [(Fraction(v), Fraction(v)) for v in y.tolist()] if np.isfinite(y).all() else None
        return seen is not None and inside(conjunction, seen, self.deadline)

    def runs(self, x: Tensor) -> dict[str, NDArray[np.float64]]:
        """Return the outputs of torch and, for an ONNX file, of onnxruntime at x (inputs,)."""
        output = self.model(x.reshape(1, *self.shape).clone())[0].flatten().double()  # it may overwrite its input
        other = self.onnxruntime(x)
        return {"network": output.numpy()} | ({} if other is None else {"onnxruntime": other})

    def onnxruntime(self, x: Tensor) -> NDArray[np.float64] | None:
        """Return what onnxruntime computes at x (inputs,); None without a file, or where it lacks an operator."""
        return None if self.session is None else self.session.run(x.reshape(1, *self.shape))


class Session:
    """An ONNX file in onnxruntime, which begins at the first run.

    Args:
        path: the file.
        model: the same as it was read, which knows its inputs and which of its outputs is meant.
    """

    def __init__(self, path: Path, model: nn.Module) -> None:
        self.path, self.model = path, model

    def run(self, x: Tensor) -> NDArray[np.float64] | None:
        """Return the output for one input (1, *shape), flat; None where onnxruntime lacks an operator."""
        if self._begun is None:
            return None
        if not isinstance(self.model, OnnxGraph):
            (name,) = (source.name for source in self._begun.get_inputs())
            return np.asarray(self._begun.run(None, {name: x.numpy()})[0], np.float64).reshape(-1)
        given, start, flat = dict[str, NDArray[Any]](), 0, x.reshape(-1)
        for source, each in zip(self._begun.get_inputs(), self.model.inputs, strict=True):  # readers change names
            size = math.prod(size or 1 for size in each.shape)
            shape = (1, *each.shape) if each.batched else each.shape
            mine = flat[start : start + size].to(each.dtype)
            given[source.name] = mine.reshape([size or 1 for size in shape]).numpy()
            start += size
        names = self.model.output_names
        which = names.index(self.model.output_name) if self.model.output_name in names else 0
        return np.asarray(self._begun.run(None, given)[which], np.float64).reshape(-1)

    @cached_property
    def _begun(self) -> Any:
        with needed("onnx", "Counterexamples in ONNX files are run in onnxruntime too"):
            import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        try:
            packed = self.path.suffix == ".gz"  # as competitions ship them; it was read within limits before
            file = gzip.decompress(self.path.read_bytes()) if packed else str(self.path)
            return onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        except Exception:  # it has no convolution of float64, for example, and says so in a class of its own
            return None


def _margin(conjunction: Conjunction, outputs: Enclosure) -> float:
    """Return how deep outputs that are in an unsafe set lie there, at least."""
    depths = [row.bound - largest(row, outputs) for row in conjunction]
    return max(0.0, nearest(min(depths))) if depths else math.inf
