"""Replay: a point counts as a counterexample only if everyone who can compute the network agrees on it."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.extras import needed
from nnrepair.verify.exact import enclosure, inside
from nnrepair.verify.graph import Graph
from nnrepair.verify.property import Box, Conjunction
from nnrepair.verify.result import Counterexample


class Replay:
    """Call it with a point and an unsafe set.

    Args:
        model: the network in torch, in eval mode.
        shape: of one input.
        dtype: the network's own precision.
        graph: what the checker read, for exact arithmetic.
        path: the ONNX file, if there is one.
    """

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, graph: Graph, path: Path | None
    ) -> None:
        self.model, self.shape, self.dtype, self.graph, self.path = model, shape, dtype, graph, path
        self._session: Any = None

    def rounded(self, point: Tensor, box: Box) -> Tensor | None:
        """Return the point in the model's dtype and exactly inside the box, if there is one."""
        low, high = (torch.from_numpy(end) for end in box.inner)
        x = torch.clamp(point, low, high).to(self.dtype)
        for _ in range(2):  # rounding may have left the box by one unit
            x = torch.where(x.double() < low, torch.nextafter(x, torch.full_like(x, torch.inf)), x)
            x = torch.where(x.double() > high, torch.nextafter(x, torch.full_like(x, -torch.inf)), x)
        return x if bool(((x.double() >= low) & (x.double() <= high)).all()) else None

    def __call__(self, x: Tensor, conjunction: Conjunction) -> Counterexample | None:
        """Return the counterexample if the network, onnxruntime and exact arithmetic agree."""
        output = self.model(x.reshape(1, *self.shape).clone())[0].flatten().double()  # it may overwrite its input
        runs, replayed = [output.numpy()], ["network"]
        other = self.onnxruntime(x)
        if other is not None:
            runs.append(other)
            replayed.append("onnxruntime")
        for y in runs:
            exactly = [(Fraction(v), Fraction(v)) for v in y.tolist()] if np.isfinite(y).all() else None
            if exactly is None or not inside(conjunction, exactly):
                return None
        outputs, is_exact = enclosure(self.graph, x)
        if not inside(conjunction, outputs):
            return None
        replayed.append("exact" if is_exact else "enclosure")
        depths = [
            row.bound - sum(c * Fraction(v) for c, v in zip(row.coefficients, runs[-1].tolist(), strict=True))
            for row in conjunction
        ]
        try:
            margin = float(min(depths)) if depths else math.inf
        except OverflowError:
            margin = math.inf
        return Counterexample(x.double().numpy().copy(), runs[-1], margin, tuple(replayed))

    def onnxruntime(self, x: Tensor) -> NDArray[np.float64] | None:
        """Return what onnxruntime computes at x (inputs,); None without a file, or where it lacks an operator."""
        if self.path is None or self._session is False:
            return None
        if self._session is None:
            with needed("onnx", "Counterexamples in ONNX files are run in onnxruntime too"):
                import onnxruntime

            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = settings.inter_op_num_threads = 1
            settings.log_severity_level = 3
            try:
                self._session = onnxruntime.InferenceSession(
                    str(self.path), settings, providers=["CPUExecutionProvider"]
                )
            except Exception:  # it has no convolution of float64, for example, and says so in a class of its own
                self._session = False
                return None
        (name,) = (source.name for source in self._session.get_inputs())
        (y,) = self._session.run(None, {name: x.reshape(1, *self.shape).numpy()})
        return np.asarray(y, np.float64).reshape(-1)
