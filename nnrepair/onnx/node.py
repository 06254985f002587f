"""One node of an ONNX graph, as the functions of operators.py see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnrepair.extras import needed

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx

Array = npt.NDArray[Any]
Shape = list[int | None]  # with the batch; None where a size is open

# Shape arithmetic (x.view(x.size(0), -1)) runs once, with this number in place of the batch size; wherever it comes out
# as a size, the batch is meant. No size is negative, and only operators that move numbers about may touch it.
BATCH = -4_846_791_580_151_137_091


# Most numbers in one value of one point; also, most that constants may grow to when they are computed from small ones.
LIMIT = 2**26

#: The types of numbers that a model may take.
DTYPES: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
}


class Refused(Exception):
    """The graph or one of its nodes cannot be read, for the reason given."""


@dataclass(frozen=True)
class File:
    """What all nodes of a file share; `batch` is the size of the batch where the file fixes it."""

    opset: int
    dtype: np.dtype[Any]
    batch: int | None


def _counts_points(value: Array) -> bool:
    """Tell whether the size of the batch is among the numbers of a constant."""
    return value.dtype == np.int64 and bool((value == BATCH).any())


def operator(node: onnx.NodeProto) -> str:
    """Return the name of an operator, with its domain where that is not ONNX's own."""
    return str(node.op_type) if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


class Node:
    """One ONNX node; its inputs are constants, or names of values that exist only when the model runs."""

    def __init__(
        self,
        proto: onnx.NodeProto,
        values: Mapping[str, Array | str],
        shapes: Mapping[str, Shape],
        file: File,
    ) -> None:
        self.name: str = proto.name or proto.output[0]
        self.op: str = operator(proto)
        self.names: tuple[str, ...] = tuple(proto.input)
        self.inputs = [values.get(name) for name in self.names]
        self.output: str = proto.output[0]
        self.outputs: tuple[str, ...] = tuple(name for name in proto.output if name)
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self.shapes = [
            [*value.shape] if isinstance(value, np.ndarray) else shapes.get(name)
            for name, value in zip(self.names, self.inputs, strict=True)
        ]
        self.batch, self.opset, self.dtype = file.batch, file.opset, file.dtype

    def get(self, attribute: str, default: Any) -> Any:
        """Return an attribute."""
        return self.attributes.get(attribute, default)

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def constant(self, index: int) -> Array:
        """Return an input that must be known now."""
        value = self.sizes(index)
        if _counts_points(value):
            raise Refused(f"its input {self.names[index]!r} depends on how many points run together")
        return value

    def sizes(self, index: int) -> Array:
        """Return an input that must be known now, but for BATCH among its numbers."""
        value = self.inputs[index]
        if not isinstance(value, np.ndarray):
            raise Refused(f"its input {self.names[index]!r} must be constant")
        return value

    def weight(self, index: int) -> Tensor:
        """Return a copy of a constant floating-point input."""
        array = self.constant(index)
        if array.dtype.kind != "f":
            raise Refused(f"its constant {self.names[index]!r} has type {array.dtype}, expected floating point")
        if array.size == 0:
            raise Refused(f"its constant {self.names[index]!r} of shape {array.shape} is empty")
        return torch.from_numpy(np.array(array, order="C"))

    def axes(self) -> int:
        """Return the number of axes of the first input, with the batch."""
        shape = self.shapes[0]
        if shape is None:
            raise Refused("the number of axes of its input is not known before the model runs")
        return len(shape)

    def axis(self, axis: int) -> int:
        """Return an axis counted from the front, which must not be the batch."""
        axis = axis if axis > 0 else axis % self.axes()
        if axis == 0:
            raise Refused("its axis 0 is the batch")
        return axis
