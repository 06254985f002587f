"""How each ONNX operator becomes a torch module with the file's weights inside: one short function each.

`HANDLERS`, at the end, says which function reads which operator. A new operator is one function and one row there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.onnx.modules import Abs, Add, Concat, Div, HardSigmoid, Max, Mean, Min, Mul, Neg, Permute, Reshape, Sub
from nnrepair.onnx.node import BATCH, LIMIT, Node, Refused


def single(number: float) -> float:
    """Round to float32: the precision of attributes, and of what stands for those that are left out."""
    return float(np.float32(number))


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
    """Make a linear layer from a weight (in, out) and a bias that is (out,), (1, out), or a single number."""
    if weight.ndim != 2:
        raise Refused(f"its weight has shape {tuple(weight.shape)}, expected a matrix")
    inputs, outputs = weight.shape
    if bias is not None and bias.numel() != 1 and tuple(bias.shape) not in ((outputs,), (1, outputs)):
        raise Refused(f"its bias has shape {tuple(bias.shape)}, expected ({outputs},): one number for each output")
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    return _filled(layer, weight=weight.T, bias=None if bias is None else bias.reshape(-1).expand(outputs))


def _scaled(node: Node, weight: Tensor, name: str) -> Tensor:
    """Multiply weights by a factor: exactly, as proofs are about the weights that the file stores."""
    factor = float(node.get(name, 1.0))
    made = weight * factor
    if weight.dtype == torch.float64:
        exact = factor == 0 or math.frexp(abs(factor))[0] == 0.5  # a power of two
    else:
        exact = torch.equal(made.double(), weight.double() * factor)
    if not exact and not bool(weight.isnan().any()):
        raise Refused(f"{name}={factor:g} cannot be multiplied into its weights without rounding; use {name}=1")
    return made


def _gemm(node: Node) -> nn.Module:
    if node.get("transA", 0):
        raise Refused("transA=1 mixes the inputs of a batch")
    weight = _scaled(node, node.weight(1), "alpha")
    bias = _scaled(node, node.weight(2), "beta") if node.has(2) else None
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
    if node.get("training_mode", 0) or len(node.outputs) > 1:
        raise Refused("it is in training mode; export the model in eval mode")
    if not node.get("spatial", 1):
        raise Refused("spatial=0 has statistics for every number of a point, expected one for each channel")
    scale, shift, mean, var = (node.weight(index) for index in range(1, 5))
    momentum = round(1 - node.get("momentum", 0.9), 6)  # torch weighs the new value, ONNX the old one
    kind, batches = _spatial("BatchNorm", max(node.axes() - 2, 1)), torch.tensor(0)
    layer = kind(len(scale), node.get("epsilon", single(1e-5)), momentum, device="meta")
    return _filled(layer, weight=scale, bias=shift, running_mean=mean, running_var=var, num_batches_tracked=batches)


def _window(node: Node, fill: float, default: Sequence[int] = ()) -> tuple[list[tuple[int, ...]], list[nn.Module]]:
    """Return kernel, stride, padding and dilation, and what pads before them where the two sides differ."""
    kernel = tuple(node.get("kernel_shape", default))
    axes, ones = len(kernel), (1,) * len(kernel)
    stride, dilation = tuple(node.get("strides", ones)), tuple(node.get("dilations", ones))
    pads, auto = tuple(node.get("pads", (0, 0) * axes)), node.get("auto_pad", b"NOTSET")
    if auto not in (b"NOTSET", b"VALID") or (auto == b"VALID" and any(pads)):
        raise Refused(f"auto_pad={auto.decode()} with pads={list(pads)} is not supported; use explicit pads")
    if min(pads, default=0) < 0:
        raise Refused(f"pads={list(pads)} cut its input, expected no negative ones")
    before, after = pads[:axes], pads[axes:]
    sizes = (node.shapes[0] or [])[2:]
    padded = math.prod((size or 1) + low + high for size, low, high in zip(sizes, before, after, strict=True))
    if padded > LIMIT:
        raise Refused(f"pads={list(pads)} make {padded} numbers of a channel, more than {LIMIT}")
    if before == after:
        return [kernel, stride, before, dilation], []
    uneven = [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    return [kernel, stride, (0,) * axes, dilation], [_spatial("ConstantPad", axes)(tuple(uneven), fill)]


def _pool_window(node: Node, fill: float) -> tuple[list[tuple[int, ...]], list[nn.Module]]:
    sizes, pad = _window(node, fill)
    kernel, pads = sizes[0], node.get("pads", (0, 0) * len(sizes[0]))
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        raise Refused(f"pads={list(pads)} are not smaller than its window {list(kernel)}")
    return sizes, pad


def _max_pool(node: Node) -> nn.Module:
    sizes, pad = _pool_window(node, -math.inf)
    if pad and node.get("ceil_mode", 0):
        raise Refused("ceil_mode=1 with uneven padding is not supported")
    pool = _spatial("MaxPool", len(sizes[0]))(*sizes, ceil_mode=bool(node.get("ceil_mode", 0)))
    return nn.Sequential(*pad, pool) if pad else pool


def _average_pool(node: Node) -> nn.Module:
    (*sizes, dilation), uneven = _pool_window(node, 0.0)
    if uneven or set(dilation) != {1}:
        raise Refused("uneven padding and dilations are not supported")
    ceil, counts_padding = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    return _spatial("AvgPool", len(dilation))(*sizes, ceil, counts_padding)


def _reduce_mean(node: Node) -> nn.Module:
    axes = node.constant(1).tolist() if node.has(1) else list(node.get("axes", []))
    if not axes and node.get("noop_with_empty_axes", 0):
        return nn.Identity()
    if not axes:
        raise Refused("it averages over all axes, and the batch with them; name the others in axes")
    return Mean([node.axis(axis) for axis in axes], bool(node.get("keepdims", 1)))


def _flatten(node: Node) -> nn.Module:
    if node.get("axis", 1) != 1:
        raise Refused(f"axis={node.get('axis', 1)}, expected axis=1, which keeps the inputs of a batch apart")
    return nn.Flatten()


def _reshape(node: Node) -> nn.Module:
    first, *others = (int(size) for size in node.sizes(1))
    shown = tuple("batch" if size == BATCH else size for size in (first, *others))
    if not others or first not in (0, -1, BATCH, node.batch) or BATCH in others:
        raise Refused(f"the new shape {shown} does not keep the batch as its first axis")
    if node.get("allowzero", 0) and 0 in (first, *others):
        raise Refused(f"the new shape {shown} is empty, as allowzero=1")
    if first == -1 and None in (node.shapes[0] or [None])[1:]:
        raise Refused(f"the new shape {shown} tells the batch only where all sizes are fixed; use 0 for the batch")
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
    if not low < high:
        raise Refused(f"min={low:g} and max={high:g} leave one value, expected min < max")
    most = float(np.finfo(node.dtype).max)
    low, high = -math.inf if low <= -most else low, math.inf if high >= most else high  # no number lies beyond these
    return nn.ReLU() if (low, high) == (0, math.inf) else nn.Hardtanh(low, high)


def _prelu(node: Node) -> nn.Module:
    slopes, axes = node.weight(1), node.axes()
    shape = tuple(slopes.shape)[-axes:]
    shape = shape[1:] if len(shape) == axes and shape[0] == 1 else shape
    channels = shape[0] if len(shape) == axes - 1 else 1
    if slopes.numel() not in (1, channels):
        raise Refused(f"its slopes have shape {tuple(slopes.shape)}, expected one number, or one for each channel")
    return _filled(nn.PReLU(slopes.numel(), device="meta"), weight=slopes.reshape(-1))


def _concat(node: Node) -> nn.Module:
    if any(isinstance(value, np.ndarray) for value in node.inputs):
        raise Refused("it joins a constant, which has no batch")
    return Concat(node.axis(node.get("axis", 0)))


def _joined(node: Node, operation: nn.Module) -> nn.Module:
    """Let an operation through whose broadcasting leaves the batch where it is."""
    parts = list(zip(node.shapes, node.inputs, strict=True))
    ranks = {None if shape is None else len(shape) for shape, value in parts if isinstance(value, str)}
    if None in ranks or len(ranks) > 1:
        raise Refused("the numbers of axes of its inputs differ, or are not known: their batches may not meet")
    for rank, value in itertools.product(ranks, node.inputs):
        if isinstance(value, np.ndarray) and (value.ndim, *value.shape[:1]) > (rank, 1):
            raise Refused(f"a constant of shape {value.shape} moves or fixes the batch of a value with {rank} axes")
    return operation


HANDLERS: dict[str, Callable[[Node], nn.Module]] = {
    "Gemm": _gemm,
    "MatMul": lambda node: _linear(node.weight(1)),
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Relu": lambda node: nn.ReLU(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.get("alpha", single(0.01))),
    "PRelu": _prelu,
    "Abs": lambda node: Abs(),
    "Neg": lambda node: Neg(),
    "Max": lambda node: _joined(node, Max()),
    "Min": lambda node: _joined(node, Min()),
    "HardSwish": lambda node: nn.Hardswish(),
    "HardSigmoid": lambda node: HardSigmoid(node.get("alpha", single(0.2)), node.get("beta", 0.5)),
    "Elu": lambda node: nn.ELU(node.get("alpha", 1.0)),
    "Sigmoid": lambda node: nn.Sigmoid(),
    "Tanh": lambda node: nn.Tanh(),
    "Softplus": lambda node: nn.Softplus(threshold=40),  # from there on log(1 + exp(x)) is x in float64
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
    "Concat": _concat,
    "Add": lambda node: _joined(node, Add()),
    "Sub": lambda node: _joined(node, Sub()),
    "Mul": lambda node: _joined(node, Mul()),
    "Div": lambda node: _joined(node, Div()),
}

# Read all their inputs when the model runs; the others read the first, and the rest are weights or settings.
JOINS = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Concat"}

# Give their first input back when the model is in eval mode.
SAME = {"Identity", "Dropout"}
