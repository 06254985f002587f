"""How each ONNX operator becomes a torch module with the file's weights inside: one short function each.

`HANDLERS`, at the end, says which function reads which operator. A new operator is one function and one row there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nnrepair.extras import needed
from nnrepair.onnx.modules import Add, Concat, Div, Mean, Mul, Permute, Reshape, Sub

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx

Array = npt.NDArray[Any]

# Shape arithmetic (x.view(x.size(0), -1)) runs once, with this number in place of the batch size; wherever it comes out
# as a size, the batch is meant. A prime that no real layer size equals.
BATCH = 1_000_003


class Refused(Exception):
    """The graph or one of its nodes cannot be read, for the reason given."""


class Node:
    """One ONNX node; its inputs are constants, or names of values that exist only when the model runs."""

    def __init__(
        self, proto: onnx.NodeProto, values: Mapping[str, Array | str], rank: int | None, batch: int | None, opset: int
    ) -> None:
        self.name: str = proto.name or proto.output[0]
        self.op: str = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}::{proto.op_type}"
        self.names: tuple[str, ...] = tuple(proto.input)
        self.inputs = [values.get(name) for name in self.names]
        self.output: str = proto.output[0]
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self.rank = rank  # the number of axes of the first input
        self.batch = batch  # its size, where the file fixes it
        self.opset = opset

    def get(self, attribute: str, default: Any) -> Any:
        """Return an attribute."""
        return self.attributes.get(attribute, default)

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def constant(self, index: int) -> Array:
        """Return an input that must be known now."""
        value = self.inputs[index]
        if not isinstance(value, np.ndarray):
            raise Refused(f"its input {self.names[index]!r} must be constant")
        return value

    def weight(self, index: int) -> Tensor:
        """Return a copy of a constant floating-point input."""
        array = self.constant(index)
        if array.dtype.kind != "f":
            raise Refused(f"its constant {self.names[index]!r} has type {array.dtype}, expected floating point")
        return torch.from_numpy(np.array(array, order="C"))

    def axes(self) -> int:
        """Return the number of axes of the first input, with the batch."""
        if self.rank is None:
            raise Refused("the number of axes of its input is not known before the model runs")
        return self.rank

    def axis(self, axis: int) -> int:
        """Return an axis counted from the front, which must not be the batch."""
        axis = axis if axis > 0 else axis % self.axes()
        if axis == 0:
            raise Refused("its axis 0 is the batch")
        return axis


def _filled(layer: nn.Module, **weights: Tensor | None) -> nn.Module:
    """Give a layer, made on the meta device so that nothing is drawn at random, its weights."""
    layer.load_state_dict({name: w.contiguous() for name, w in weights.items() if w is not None}, assign=True)
    return layer


def _spatial(kind: str, axes: int) -> type[nn.Module]:
    """Return torch's class for so many spatial axes: ("Conv", 2) -> nn.Conv2d."""
    if axes not in (1, 2, 3):
        raise Refused(f"it has {axes} spatial axes, expected 1 to 3")
    layer: type[nn.Module] = getattr(nn, f"{kind}{axes}d")
    return layer


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Make a linear layer from a weight (in, out) and a bias (out,), (1, out) or (1,)."""
    if weight.ndim != 2:
        raise Refused(f"its weight has shape {tuple(weight.shape)}, expected a matrix")
    inputs, outputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    return _filled(layer, weight=weight.T, bias=None if bias is None else bias.reshape(-1).expand(outputs))


def _gemm(node: Node) -> nn.Module:
    if node.get("transA", 0):
        raise Refused("transA=1 mixes the inputs of a batch")
    weight = node.weight(1) * node.get("alpha", 1.0)
    bias = node.weight(2) * node.get("beta", 1.0) if node.has(2) else None
    return _linear(weight.t() if node.get("transB", 0) else weight, bias)


def _conv(node: Node) -> nn.Module:
    weight, bias, groups = node.weight(1), node.weight(2) if node.has(2) else None, node.get("group", 1)
    outputs, inputs, *kernel = weight.shape
    sizes, pad = _window(node, 0.0, kernel)
    layer = _spatial("Conv", len(kernel))(
        inputs * groups, outputs, *sizes, groups, bias=bias is not None, device="meta"
    )
    conv = _filled(layer, weight=weight, bias=bias)
    return nn.Sequential(*pad, conv) if pad else conv


def _batch_norm(node: Node) -> nn.Module:
    if node.get("training_mode", 0):
        raise Refused("it is in training mode; export the model in eval mode")
    scale, shift, mean, var = (node.weight(index) for index in range(1, 5))
    momentum = round(1 - node.get("momentum", 0.9), 6)  # torch weighs the new value, ONNX the old one
    kind, batches = _spatial("BatchNorm", max(node.axes() - 2, 1)), torch.tensor(0)
    layer = kind(len(scale), node.get("epsilon", 1e-5), momentum, device="meta")
    return _filled(layer, weight=scale, bias=shift, running_mean=mean, running_var=var, num_batches_tracked=batches)


def _window(node: Node, fill: float, default: Sequence[int] = ()) -> tuple[list[tuple[int, ...]], list[nn.Module]]:
    """Return kernel, stride, padding and dilation, and what pads before them where the two sides differ."""
    kernel = tuple(node.get("kernel_shape", default))
    axes, ones = len(kernel), (1,) * len(kernel)
    stride, dilation = tuple(node.get("strides", ones)), tuple(node.get("dilations", ones))
    pads = tuple(node.get("pads", (0, 0) * axes))
    if node.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Refused("auto_pad is not supported; use explicit pads")
    before, after = pads[:axes], pads[axes:]
    if before == after:
        return [kernel, stride, before, dilation], []
    uneven = [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    return [kernel, stride, (0,) * axes, dilation], [_spatial("ConstantPad", axes)(tuple(uneven), fill)]


def _max_pool(node: Node) -> nn.Module:
    sizes, pad = _window(node, -math.inf)
    pool = _spatial("MaxPool", len(sizes[0]))(*sizes, ceil_mode=bool(node.get("ceil_mode", 0)))
    return nn.Sequential(*pad, pool) if pad else pool


def _average_pool(node: Node) -> nn.Module:
    (*sizes, dilation), uneven = _window(node, 0.0)
    if uneven or set(dilation) != {1}:
        raise Refused("uneven padding and dilations are not supported")
    ceil, counts_padding = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    return _spatial("AvgPool", len(dilation))(*sizes, ceil, counts_padding)


def _reduce_mean(node: Node) -> nn.Module:
    axes = node.constant(1).tolist() if node.has(1) else node.get("axes", [0])
    return Mean([node.axis(axis) for axis in axes], bool(node.get("keepdims", 1)))


def _flatten(node: Node) -> nn.Module:
    if node.get("axis", 1) != 1:
        raise Refused(f"axis={node.get('axis', 1)}, expected axis=1, which keeps the inputs of a batch apart")
    return nn.Flatten()


def _reshape(node: Node) -> nn.Module:
    first, *others = (int(size) for size in node.constant(1))
    if not others or first not in (0, -1, BATCH, node.batch) or BATCH in others:
        raise Refused(f"the new shape {(first, *others)} does not keep the batch as its first axis")
    return Reshape([-1 if first == -1 else 0, *others])


def _transpose(node: Node) -> nn.Module:
    perm = node.get("perm", None)
    if not perm or perm[0] != 0:
        raise Refused(f"perm={perm or 'reversed'} moves the batch, expected perm[0]=0")
    return Permute(perm)


def _softmax(node: Node) -> nn.Module:
    axis = node.axis(node.get("axis", -1 if node.opset >= 13 else 1))
    if node.opset < 13 and axis != node.axes() - 1:
        raise Refused(f"axis={axis} in opset {node.opset} means all axes from there on; convert the model to opset 13")
    return nn.Softmax(axis) if node.op == "Softmax" else nn.LogSoftmax(axis)


def _clip(node: Node) -> nn.Module:
    low = node.constant(1).item() if node.has(1) else node.get("min", -math.inf)
    high = node.constant(2).item() if node.has(2) else node.get("max", math.inf)
    return nn.ReLU() if (low, high) == (0, math.inf) else nn.Hardtanh(low, high)


HANDLERS: dict[str, Callable[[Node], nn.Module]] = {
    "Gemm": _gemm,
    "MatMul": lambda node: _linear(node.weight(1)),
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Relu": lambda node: nn.ReLU(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.get("alpha", 0.01)),
    "Elu": lambda node: nn.ELU(node.get("alpha", 1.0)),
    "Sigmoid": lambda node: nn.Sigmoid(),
    "Tanh": lambda node: nn.Tanh(),
    "Softplus": lambda node: nn.Softplus(),
    "Clip": _clip,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda node: _spatial("AdaptiveAvgPool", node.axes() - 2)(1),
    "ReduceMean": _reduce_mean,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": lambda node: Concat(node.axis(node.get("axis", 0))),
    "Add": lambda node: Add(),
    "Sub": lambda node: Sub(),
    "Mul": lambda node: Mul(),
    "Div": lambda node: Div(),
}

# Read all their inputs when the model runs; the others read the first, and the rest are weights or settings.
JOINS = {"Add", "Sub", "Mul", "Div", "Concat"}

# Give their first input back when the model is in eval mode.
SAME = {"Identity", "Dropout"}

# Computed while reading, when all inputs are constants.
FOLDABLE = {"Add", "Cast", "Concat", "Constant", "Div", "Gather", "Mul", "Neg", "Reshape", "Shape", "Slice", "Sqrt"}
FOLDABLE |= {"Squeeze", "Sub", "Transpose", "Unsqueeze"}
