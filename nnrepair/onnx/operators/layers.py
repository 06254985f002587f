"""Layers with weights: products of matrices, convolutions, tables of vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nnrepair.onnx import modules as ops
from nnrepair.onnx.node import Node, Refused, Use
from nnrepair.onnx.operators.building import Handler, Made, filled, joined, spatial
from nnrepair.onnx.operators.windows import window


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Make a linear layer from a weight (in, out) and a bias that is (out,), (1, out), or a single number."""
    inputs, outputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    return filled(layer, weight=weight.T, bias=None if bias is None else bias.reshape(-1).expand(outputs))


def _scaled(node: Node, weight: Tensor, name: str) -> Tensor | None:
    """Multiply weights by a factor: exactly, as proofs are about the weights that the file stores; else None."""
    factor = float(node.get(name, 1.0))
    made = weight * factor
    if weight.dtype == torch.float64:
        exact = factor == 0 or math.frexp(abs(factor))[0] == 0.5  # a power of two
    else:
        exact = torch.equal(made.double(), weight.double() * factor)
    return made if exact or bool(weight.isnan().any()) else None


def _gemm(node: Node) -> Made:
    turn_a, turn_b = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    if node.axes() != 2:
        raise Refused(f"its input has {node.axes()} axes, expected a matrix")
    shifted = node.has(2) and node.get("beta", 1.0) != 0
    product = ops.Product(node.get("alpha", 1.0), node.get("beta", 1.0), turn_a, turn_b)
    general = Use(product, [0, 1, 2] if shifted else [0, 1])
    if not node.fixed(1) or (shifted and not node.fixed(2)):
        return general
    weight = _scaled(node, node.weight(1), "alpha")
    bias = _scaled(node, node.weight(2), "beta") if shifted else None
    if weight is None or weight.ndim != 2 or (shifted and bias is None):
        return general
    weight = weight.t() if turn_b else weight
    if bias is not None and bias.numel() != 1 and tuple(bias.shape) not in ((weight.shape[1],), (1, weight.shape[1])):
        return general
    layer = _linear(weight, bias)
    return nn.Sequential(ops.Permute([1, 0]), layer) if turn_a else layer


def _matmul(node: Node) -> Made:
    if node.fixed(1) and not node.fixed(0):
        weight = node.weight(1)
        return _linear(weight) if weight.ndim == 2 else ops.RightMatMul(weight)
    if node.fixed(0) and not node.fixed(1):
        weight = node.weight(0)
        if weight.ndim == 2 and node.axes(1) >= 2:
            return Use(nn.Sequential(ops.Transposed(), _linear(weight.t()), ops.Transposed()), [1])
        return Use(ops.LeftMatMul(weight), [1])
    return joined(node, ops.Function("MatMul"))


def _conv(node: Node) -> Made:
    groups = node.get("group", 1)
    if not node.fixed(1) or (node.has(2) and not node.fixed(2)):
        kernel = node.shape(1)[2:]
        if any(size is None for size in kernel):
            raise Refused("the size of its kernel is not known before the model runs")
        (_, stride, padding, dilation), pad = window(node, 0.0, [size or 0 for size in kernel])
        pads = [n for each in reversed(padding) for n in (each, each)]
        before = pad or ([ops.Pad(pads, "constant")] if any(pads) else [])
        return joined(node, ops.RuntimeConv(stride, dilation, groups, before[0] if before else None))
    weight, bias = node.weight(1), node.weight(2) if node.has(2) else None
    outputs, inputs, *size = weight.shape
    sizes, pad = window(node, 0.0, size)
    layer = spatial("Conv", len(size))(inputs * groups, outputs, *sizes, groups, bias=bias is not None, device="meta")
    conv = filled(layer, weight=weight, bias=bias)
    return nn.Sequential(*pad, conv) if pad else conv


def _conv_transpose(node: Node) -> Made:
    weight, bias, groups = node.weight(1), node.weight(2) if node.has(2) else None, node.get("group", 1)
    inputs, outputs, *kernel = weight.shape
    axes = len(kernel)
    stride, dilation = (list(node.get(name, [1] * axes)) for name in ("strides", "dilations"))
    extra, pads = list(node.get("output_padding", [0] * axes)), list(node.get("pads", [0] * 2 * axes))
    if list(node.get("kernel_shape", kernel)) != kernel:
        raise Refused(f"kernel_shape={node.get('kernel_shape', None)} is not that of its weight, {kernel}")
    if any(len(given) != axes for given in (stride, dilation, extra)) or len(pads) != 2 * axes:
        raise Refused(f"its attributes do not fit {axes} spatial axes")
    pairs = _cut(node, pads, [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)], stride, extra)
    inside = all(low == high >= 0 for low, high in pairs)
    room = all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True))
    padding = [low for low, _ in pairs] if inside and room else [0] * axes
    layer = spatial("ConvTranspose", axes)(
        inputs,
        outputs * groups,
        kernel,
        stride,
        padding,
        extra if room else 0,
        groups,
        bias is not None,
        dilation,
        device="meta",
    )
    made = filled(layer, weight=weight, bias=bias)
    if inside and room:
        return made
    if not room:
        raise Refused(f"output_padding={extra} is not smaller than strides={stride} or dilations={dilation}")
    return nn.Sequential(made, ops.Crop(pairs))


def _cut(node: Node, pads: list[int], spans: list[int], stride: list[int], extra: list[int]) -> list[tuple[int, int]]:
    """Return how much is cut off before and after along each axis: as the file says, or as its output shape does."""
    axes, auto = len(spans), node.text("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Refused(f"auto_pad={auto} is not known")
    wanted = node.get("output_shape", None)
    if wanted is None and auto not in ("SAME_UPPER", "SAME_LOWER"):
        return [*zip(pads[:axes], pads[axes:], strict=True)]
    sizes = node.shape()[2:]
    if any(size is None for size in sizes):
        raise Refused("its padding depends on sizes that are not known before the model runs")
    old = [size or 0 for size in sizes]
    new = [s * k for s, k in zip(old, stride, strict=True)] if wanted is None else list(wanted)[-axes:]
    pairs = []
    for size, after, step, span, more in zip(old, new, stride, spans, extra, strict=True):
        total = step * (size - 1) + more + span - after
        total = max(total, 0) if wanted is None else total
        half = total // 2
        pairs.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
    return pairs


def _embedding(node: Node) -> Made:
    table = node.weight(0)
    rows, size = table.shape
    layer = ops.Embedding(rows, size, device="meta")
    return Use(filled(layer, weight=table), [1])


def gather(node: Node) -> Made:
    """Read Gather: an embedding, one entry of an axis, or entries that other values name."""
    axis = node.get("axis", 0)
    if node.fixed(0) and not node.fixed(1) and axis == 0:
        array = node.constant(0)
        if array.ndim == 2 and array.dtype.kind == "f":
            return _embedding(node)
    axis = node.axis(axis)
    if node.fixed(1) and node.constant(1).ndim == 0:
        index, size = int(node.constant(1)), node.shape()[axis]
        if size is not None and not -size <= index < size:
            raise Refused(f"its index {index} leaves the {size} entries of axis {axis}")
        return ops.Select(axis, index)
    return joined(node, ops.Gather(axis))


def _einsum(node: Node) -> Made:
    return joined(node, ops.Einsum(node.text("equation", "").replace(" ", "")))


def _fused(node: Node) -> Made:
    if (
        any(node.get(name, 0) for name in ("transA", "transB", "transBatchA", "transBatchB"))
        or node.get("alpha", 1.0) != 1
    ):
        raise Refused("it transposes or scales")
    return _matmul(node)


HANDLERS: dict[str, Handler] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gather": gather,
    "Einsum": _einsum,
    "com.microsoft::FusedMatMul": _fused,
}
