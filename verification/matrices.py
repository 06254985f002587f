"""The matrices that convolutions, averages and products with constants are, for written.py; nothing is rounded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graph
from bounded import Unreadable
from reading import Array


def windows(at: Array, options: dict[str, Any]) -> Array:
    """Give the places (channels, height, width, entries) that each window over an image has; -1 in the padding."""
    top, left, bottom, right = options["pads"]
    padded = np.pad(at, ((0, 0), (top, bottom), (left, right)), constant_values=-1)
    (a, b), (down, along), (p, q) = (options[name] for name in ("kernel_shape", "strides", "dilations"))
    height, width = padded.shape[1] - (a - 1) * p, padded.shape[2] - (b - 1) * q
    cut = [padded[:, i * p : i * p + height : down, j * q : j * q + width : along] for i in range(a) for j in range(b)]
    return np.stack(cut, -1)


def affine(node: onnx_graph.Node, at: Array, constants: list[Array]) -> tuple[list[Any], Any]:
    """Give the entries of a node's matrix, and its bias, for a value at these places."""
    units = np.arange(math.prod(node.shape)).reshape(node.shape)
    if node.op in ("Gemm", "MatMul"):
        weight = constants[0] if node.options.get("transB") else constants[0].T
        bias = np.broadcast_to(constants[1], (1, *node.shape)).ravel() if len(constants) > 1 else 0.0
        return [(units[..., :, None], at[..., None, :], weight)], bias
    if node.op == "Conv":
        weight = constants[0].reshape(len(constants[0]), at.shape[0], -1)
        bias = np.repeat(constants[1], units[0].size) if len(constants) > 1 else 0.0
        seen = windows(at, node.options)  # (channels, height, width, entries)
        entries = []
        for c, part in enumerate(seen):
            for e in range(part.shape[-1]):
                inside = part[..., e] >= 0
                entries += [(each[inside], part[..., e][inside], weight[o, c, e]) for o, each in enumerate(units)]
        return entries, bias
    if node.op in ("GlobalAveragePool", "ReduceMean"):
        kept = [axis for axis in range(at.ndim) if axis not in node.options["axes"]]
        seen = at.transpose(*kept, *node.options["axes"]).reshape(units.size, -1)
    elif node.op == "AveragePool":
        seen = windows(at, node.options).reshape(units.size, -1)
    else:
        raise Unreadable(
            "its numbers would have to be rounded; only sums with weights of the file, and halves, are read"
        )
    counts = (seen >= 0).sum(1, keepdims=True)
    if node.options.get("count_include_pad"):
        counts = np.full_like(counts, seen.shape[1])
    if (counts & (counts - 1)).any():
        raise Unreadable(f"it averages over {counts.max()} entries; expected 1, 2, 4, 8, ...")
    unit, inside = np.broadcast_to(units.reshape(-1, 1), seen.shape), seen >= 0
    return [(unit[inside], seen[inside], np.broadcast_to(1.0 / counts, seen.shape)[inside])], 0.0
