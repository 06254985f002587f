"""What moves numbers about: sizes may depend on the shapes of values, see `nnrepair.onnx.sizes`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from nnrepair.extras import needed
from nnrepair.onnx import modules as ops
from nnrepair.onnx.node import Array, Node, Refused, Use, depends, tensor
from nnrepair.onnx.operators.building import Handler, Made, joined
from nnrepair.onnx.sizes import Size
from nnrepair.onnx.trying import CannotRun, Mixed

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx.numpy_helper


def _whole(numbers: Array) -> list[Any]:
    return [size if isinstance(size, Size) else int(size) for size in numbers.ravel()]


def _flatten(node: Node) -> Made:
    axis, rank = node.get("axis", 1), node.axes()
    if not -rank <= axis <= rank:
        raise Refused(f"axis={axis} is none of the {rank} axes of its input")
    axis = axis % rank if axis < 0 else axis
    return nn.Flatten() if axis == 1 and rank > 1 else ops.FlattenAt(axis)


def _reshape(node: Node) -> Made:
    wanted = _whole(node.sizes(1)) if node.has(1) else [int(size) for size in node.get("shape", [])]
    shape, zero = node.shape(), not node.get("allowzero", 0)
    if not zero and 0 in wanted:
        raise Refused(f"the new shape {tuple(wanted)} is empty, as allowzero=1")
    if wanted.count(-1) > 1 or any(not isinstance(size, Size) and size < -1 for size in wanted):
        raise Refused(f"the new shape {tuple(wanted)} leaves more than one size open, or has negative ones")
    sizes = [0 if _copies(node, size, k) else size for k, size in enumerate(wanted)]
    sizes = [
        shape[k] if size == 0 and k and k < len(shape) and shape[k] is not None else size
        for k, size in enumerate(sizes)
    ]
    if any(size == 0 and k >= len(shape) for k, size in enumerate(sizes)):
        raise Refused(f"the new shape {tuple(wanted)} copies sizes that its input of {len(shape)} axes does not have")
    if node.batch is not None:
        sizes = _with_batch(node, sizes, node.batch)
    numbers, read = depends(sizes)
    return Use(ops.Reshape(numbers), [0, *read])


def _copies(node: Node, size: Any, axis: int) -> bool:
    """Tell whether a size that depends on shapes is that of the same axis of what is reshaped."""
    name = node.inputs[0]
    if not isinstance(size, Size) or not isinstance(name, str) or axis >= node.axes():
        return False
    if size == Size.of(name, axis):
        return True
    return axis == 0 and node.counts_rows(size)


def _with_batch(node: Node, sizes: list[Any], batch: int) -> list[Any]:
    """Write 0, the batch as it is, for the size that the file fixes it to."""
    name = node.inputs[0]
    shapes = [[*x.shape] for x in node.examples[name]] if isinstance(name, str) else []
    if not shapes or any(isinstance(size, Size) for size in sizes):
        return sizes
    for axis, size in enumerate(sizes[: len(shapes[0])]):
        changed = [*sizes[:axis], 0, *sizes[axis + 1 :]]
        if size == batch and shapes[0][axis] != shapes[1][axis] and all(_fits(changed, shape) for shape in shapes):
            return changed
    return sizes


def _fits(sizes: list[Any], shape: list[int]) -> bool:
    made = [shape[k] if size == 0 and k < len(shape) else size for k, size in enumerate(sizes)]
    total, rest = math.prod(shape), math.prod(size for size in made if size != -1)
    return total % max(rest, 1) == 0 if -1 in made else total == rest


def _transpose(node: Node) -> Made:
    perm = node.get("perm", None) or [*range(node.axes())][::-1]
    if sorted(perm) != [*range(node.axes())]:
        raise Refused(f"perm={perm} does not order the {node.axes()} axes of its input")
    return ops.Permute(perm)


def _squeeze(node: Node) -> Made:
    shape, axes = node.shape(), node.integers(1, "axes")
    if axes is None:
        if None in shape[1:]:
            raise Refused("which of its axes have size 1 is not known before the model runs; name them")
        if None in shape and node.batch is None:
            raise Mixed(
                f"does not treat the inputs of a batch one by one: {node.name!r} names no axes, so that it takes that "
                "of a batch of one away, and that of no other. Name its axes."
            )
        if None in shape and node.batch == 1:
            raise CannotRun(f"cannot be run: {node.name!r} names no axes, so that it takes that of the batch away.")
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    dims = sorted(node.axis(axis) for axis in axes)
    wrong = [dim for dim in dims if shape[dim] != 1]
    if wrong:
        raise Refused(f"its axes {wrong} do not have size 1 in {shape}")
    return ops.Squeeze(dims)


def _unsqueeze(node: Node) -> Made:
    axes = node.integers(1, "axes") or []
    dims = [node.axis(axis, len(axes)) for axis in axes]
    if len({*dims}) < len(dims):
        raise Refused(f"axes={axes} name an axis twice")
    return ops.Unsqueeze(dims)


def _slice(node: Node) -> Made:
    if node.has(1):
        starts, ends = _whole(node.sizes(1)), _whole(node.sizes(2))
    else:
        starts, ends = list(node.get("starts", [])), list(node.get("ends", []))
    axes, steps = node.integers(3, "axes"), node.integers(4, "steps") or [1] * len(starts)
    dims = [node.axis(axis) for axis in (range(len(starts)) if axes is None else axes)]
    if {len(dims), len(ends), len(steps)} != {len(starts)} or len({*dims}) < len(dims) or 0 in steps:
        raise Refused(f"starts={starts}, ends={ends}, axes={dims} and steps={steps} do not fit each other")
    shape, placed = node.shape(), []
    for dim, start, end, step in zip(dims, starts, ends, steps, strict=True):
        first, last, size = start, end, shape[dim]
        if step > 0 and not isinstance(end, Size) and end > 2**31 - 2:
            last = None  # to the end, however far that is
        if isinstance(start, int) and isinstance(end, int) and size is not None:
            first, last = _within(start, end, step, size)
        elif step < 0:
            first, last = _backwards(start, end)
        if (first, last, step) not in ((0, None, 1), (0, size, 1)):
            placed.append((dim, first, last, step))
    if not placed:
        return nn.Identity()
    read: list[str] = []
    numbers, read = depends([n for part in placed for n in part[1:3]])
    return Use(ops.Slice([p[0] for p in placed], numbers[::2], numbers[1::2], [p[3] for p in placed]), [0, *read])


def _within(start: int, end: int, step: int, size: int) -> tuple[int, int | None]:
    """Return ends as Python has them, for an axis of known size."""
    first, last, _ = slice(start, end, step).indices(size)
    return first, (None if step < 0 and last < 0 else last)


def _backwards(start: Any, end: Any) -> tuple[Any, Any]:
    if isinstance(start, Size) or isinstance(end, Size):
        raise Refused("it runs backwards between ends that depend on shapes")
    return (None if start > 2**31 - 2 else start), (None if end < -(2**31) + 2 else end)


def _split(node: Node) -> Made:
    axis, shape = node.axis(node.get("axis", 0)), node.shape()
    sizes, count = node.integers(1, "split"), len(node.outputs)
    total = shape[axis]
    if sizes is None:
        if total is None:
            raise Refused("the size of the axis that it splits is not known before the model runs")
        each = -(-total // count)
        sizes = [max(min(each, total - k * each), 0) for k in range(count)]
    if len(sizes) != count or min(sizes, default=0) < 0 or (total is not None and sum(sizes) != total):
        raise Refused(f"its parts {sizes} do not make up an axis of size {total}")
    starts = [sum(sizes[:k]) for k in range(count)]
    return [Use(ops.Slice([axis], [start], [start + size], [1])) for start, size in zip(starts, sizes, strict=True)]


def _concat(node: Node) -> Made:
    return joined(node, ops.Concat(node.axis(node.get("axis", 0))))


def _expand(node: Node) -> Made:
    numbers, read = depends(_whole(node.sizes(1)))
    return Use(ops.Expand(numbers), [0, *read])


def _tile(node: Node) -> Made:
    repeats = _whole(node.sizes(1))
    if len(repeats) != node.axes() or any(not isinstance(n, Size) and n < 0 for n in repeats):
        raise Refused(f"its repeats {repeats} do not fit an input of {node.axes()} axes")
    numbers, read = depends(repeats)
    return Use(ops.Tile(numbers), [0, *read])


def _filled(node: Node) -> Made:
    value = (
        onnx.numpy_helper.to_array(node.attributes["value"]) if "value" in node.attributes else np.zeros(1, np.float32)
    )
    numbers, read = depends(_whole(node.sizes(0)), 0)
    return Use(ops.Filled(numbers, tensor(value)), read)


def _range(node: Node) -> Made:
    ends = [node.sizes(k).ravel()[0] for k in range(3)]
    numbers, read = depends(
        [end if isinstance(end, Size | float) else end.item() if hasattr(end, "item") else end for end in ends], 0
    )
    whole = all(isinstance(n, int | Size) for n in numbers)
    return Use(ops.Range(numbers, torch.int64 if whole else torch.float32), read)


def _pad(node: Node) -> Made:
    mode, rank = node.text("mode", "constant"), node.axes()
    pads = _whole(node.sizes(1)) if node.has(1) else list(node.get("pads", []))
    axes = node.integers(3, "no such attribute")
    dims = [*range(rank)] if axes is None else [node.axis(axis) for axis in axes]
    if len(pads) != 2 * len(dims) or mode not in ("constant", "reflect", "edge", "wrap"):
        raise Refused(f"mode={mode} with pads={pads} is not supported")
    value = node.number(2, "value", 0.0) if mode == "constant" else 0.0
    flat: list[Any] = [0] * 2 * rank
    for k, dim in enumerate(dims):
        place = 2 * (rank - 1 - dim)
        flat[place], flat[place + 1] = pads[k], pads[len(dims) + k]
    if mode != "constant" and min((n for n in flat if not isinstance(n, Size)), default=0) < 0:
        raise Refused(f"pads={pads} cut its input, expected no negative ones")
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    numbers, read = depends(flat)
    return Use(ops.Pad(numbers, mode, value), [0, *read])


def _depth_to_space(node: Node) -> Made:
    return ops.DepthToSpace(node.get("blocksize", 1), node.text("mode", "DCR") == "CRD")


def _gather_elements(node: Node) -> Made:
    return joined(node, ops.GatherElements(node.axis(node.get("axis", 0))))


def _scatter(node: Node) -> Made:
    reduction = node.text("reduction", "none")
    if reduction not in ("none", "add", "mul", "max", "min"):
        raise Refused(f"reduction={reduction} is not known")
    return joined(node, ops.Scatter(node.axis(node.get("axis", 0)), reduction))


def _scatter_nd(node: Node) -> Made:
    reduction = node.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise Refused(f"reduction={reduction} is not supported")
    return joined(node, ops.ScatterND(reduction == "add"))


def _triangle(node: Node) -> Made:
    diagonal = int(node.constant(1).item()) if node.has(1) else 0
    return ops.Triangle(bool(node.get("upper", 1)), diagonal)


def _one_hot(node: Node) -> Made:
    depth = int(node.constant(1).item())
    return Use(ops.OneHot(depth, node.axis(node.get("axis", -1), 1)), [0, 2])


HANDLERS: dict[str, Handler] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _filled,
    "Range": _range,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": lambda node: ops.SpaceToDepth(node.get("blocksize", 1)),
    "GatherElements": _gather_elements,
    "GatherND": lambda node: joined(node, ops.GatherND(node.get("batch_dims", 0))),
    "ScatterElements": _scatter,
    "ScatterND": _scatter_nd,
    "Trilu": _triangle,
    "OneHot": _one_hot,
}
