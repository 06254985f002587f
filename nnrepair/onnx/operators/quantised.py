"""Integers times scales: QuantizeLinear, DequantizeLinear, and products of integers."""

from __future__ import annotations

import torch

from nnrepair.onnx import modules as ops
from nnrepair.onnx.node import DTYPES, Node, Refused, Use
from nnrepair.onnx.operators.building import Handler, Made, joined


def _axis(node: Node) -> int:
    return node.axis(node.get("axis", 1)) if node.axes() > 1 else 0


def _quantize(node: Node) -> Made:
    dtype = node.dtype(2) if node.has(2) else DTYPES.get(node.get("output_dtype", 0) or 2, torch.uint8)
    if dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32):
        raise Refused(f"it quantises to {dtype}")
    return joined(node, ops.Quantize(_axis(node), node.get("block_size", 0), dtype))


def _dequantize(node: Node) -> Made:
    return joined(node, ops.Dequantize(_axis(node), node.get("block_size", 0)))


def _integer_product(node: Node) -> Made:
    return joined(node, ops.IntegerProduct()) if not node.has(3) or node.has(2) else _refused()


def _refused() -> Made:
    raise Refused("it has a second zero point, and no first")


def _dynamic(node: Node) -> Made:
    return Use(ops.DynamicQuantize(), several=True)


HANDLERS: dict[str, Handler] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _integer_product,
}
