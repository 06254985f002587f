"""One node of an ONNX graph, as the functions of `operators` see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nnrepair.extras import needed
from nnrepair.onnx.sizes import Size

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx

Array = npt.NDArray[Any]

# Stands among the sizes of a graph that was cut out of another for how many points run together.
BATCH = -4_846_791_580_151_137_091

# Most numbers in one value of one point; also, most that constants may grow to when they are computed from small ones.
LIMIT = 2**26

#: The types of numbers that a model may take or have as constants.
DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}
#: Those of floating point.
FLOATS = {number: dtype for number, dtype in DTYPES.items() if dtype.is_floating_point}


class Refused(Exception):
    """The graph or one of its nodes cannot be read, for the reason given."""


@dataclass(frozen=True)
class Use:
    """What a node becomes: a module, and what it reads.

    Attributes:
        operands: numbers of the node's inputs, or names of values.
        several: whether the module returns a tuple, one for each output of the node.
    """

    module: nn.Module
    operands: Sequence[int | str] = (0,)
    several: bool = False


@dataclass(frozen=True)
class File:
    """What all nodes of a file share; `batch` is the size of the batch where the file fixes it and any may run."""

    opset: int
    batch: int | None


def operator(node: onnx.NodeProto) -> str:
    """Return the name of an operator, with its domain where that is not ONNX's own."""
    return str(node.op_type) if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


class Node:
    """One ONNX node; its inputs are constants, or names of values that exist only when the model runs.

    A constant may have `Size`s among its numbers: what depends on the shapes of such values.
    """

    def __init__(
        self,
        proto: onnx.NodeProto,
        values: Mapping[str, Array | str],
        examples: Mapping[str, Sequence[Tensor]],
        file: File,
    ) -> None:
        self.name: str = proto.name or next(iter(proto.output), "") or proto.op_type
        self.op: str = operator(proto)
        self.names: tuple[str, ...] = tuple(proto.input)
        self.inputs = [values.get(name) if name else None for name in self.names]
        self.output: str = next(iter(proto.output), "")
        self.outputs: tuple[str, ...] = tuple(proto.output)
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self.examples = examples
        self.batch, self.opset = file.batch, file.opset

    def get(self, attribute: str, default: Any) -> Any:
        """Return an attribute."""
        return self.attributes.get(attribute, default)

    def text(self, attribute: str, default: str) -> str:
        """Return an attribute that is a word."""
        value = self.get(attribute, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def given(self) -> list[int]:
        """Return the numbers of all inputs that are given."""
        return [index for index in range(len(self.inputs)) if self.has(index)]

    def fixed(self, index: int) -> bool:
        """Tell whether an input is a constant, without sizes that depend on the input of the model."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return isinstance(value, np.ndarray) and value.dtype != object

    def constant(self, index: int) -> Array:
        """Return an input that must be known now."""
        value = self.sizes(index)
        if value.dtype == object:
            raise Refused(
                f"its input {self.names[index]!r} depends on the shapes of values, such as how many points run together"
            )
        return value

    def sizes(self, index: int) -> Array:
        """Return an input that must be known now, but for `Size`s among its numbers."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(value, np.ndarray):
            raise Refused(
                f"its input {self.names[index]!r} must be constant" if index < len(self.names) else "no input"
            )
        return value

    def integers(self, index: int, attribute: str) -> list[int] | None:
        """Return whole numbers that are an input or, in older operator sets, an attribute; None where neither is."""
        if self.has(index):
            return [int(number) for number in self.constant(index).ravel()]
        found = self.get(attribute, None)
        return None if found is None else [int(number) for number in (found if isinstance(found, list) else [found])]

    def number(self, index: int, attribute: str, default: float) -> float:
        """Return a number that is an input or, in older operator sets, an attribute."""
        return float(self.constant(index).item()) if self.has(index) else float(self.get(attribute, default))

    def weight(self, index: int) -> Tensor:
        """Return a copy of a constant floating-point input."""
        array = self.constant(index)
        if array.dtype.kind != "f":
            raise Refused(f"its constant {self.names[index]!r} has type {array.dtype}, expected floating point")
        if array.size == 0:
            raise Refused(f"its constant {self.names[index]!r} of shape {array.shape} is empty")
        return tensor(array)

    def shape(self, index: int = 0) -> list[int | None]:
        """Return the shape of an input; None where it is not always the same."""
        value = self.inputs[index]
        if isinstance(value, np.ndarray):
            return [*value.shape]
        assert value is not None
        shapes = [example.shape for example in self.examples[value]]
        if len({len(shape) for shape in shapes}) > 1:
            raise Refused(f"the number of axes of its input {self.names[index]!r} depends on sizes")
        return [sizes[0] if len({*sizes}) == 1 else None for sizes in zip(*shapes, strict=True)]

    def dtype(self, index: int = 0) -> torch.dtype:
        """Return the type of the numbers of an input."""
        value = self.inputs[index]
        if isinstance(value, np.ndarray):
            return torch.int64 if value.dtype == object else tensor(value.ravel()[:1]).dtype
        assert value is not None
        return self.examples[value][0].dtype

    def axes(self, index: int = 0) -> int:
        """Return the number of axes of an input, with the batch."""
        return len(self.shape(index))

    def counts_rows(self, size: Size) -> bool:
        """Tell whether a size that depends on shapes is that of the first axis of the first input."""
        name = self.inputs[0]
        if not isinstance(name, str):
            return False
        made = [size.value({each: x[k].shape for each, x in self._tensors().items()}) for k in range(2)]
        return made == [x.shape[0] for x in self.examples[name]]

    def _tensors(self) -> dict[str, Sequence[Tensor]]:
        return {name: each for name, each in self.examples.items() if isinstance(each[0], Tensor)}

    def axis(self, axis: int, more: int = 0) -> int:
        """Return an axis of the first input counted from the front; `more` axes may be behind."""
        rank = self.axes() + more
        if not -rank <= axis < max(rank, 1):
            raise Refused(f"axis={axis} is none of the {rank} axes of its input")
        return int(axis % max(rank, 1))


def tensor(array: Array) -> Tensor:
    """Return a constant as a tensor of its own.

    Raises:
        Refused: its type is none that models may have.
    """
    array = np.array(array, order="C")
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise Refused(f"a constant has type {array.dtype}, which cannot be read") from None


def depends(numbers: Sequence[Any], first: int = 1) -> tuple[list[Any], list[str]]:
    """Return sizes with the values that they depend on called by places from `first` on, and these values' names."""
    names = list(dict.fromkeys(name for size in numbers if isinstance(size, Size) for name in size.values()))
    places = {name: place for place, name in enumerate(names, first)}
    return [size.placed(places) if isinstance(size, Size) else size for size in numbers], names
