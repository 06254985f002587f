"""What cuts, joins, turns and picks."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from benchmarks.readers.draft import Draft, Value, kind_of
from benchmarks.readers.operators import _axis, _spread, _to


def split(d: Draft, x: Value) -> Value | None:
    rank = len(x.shape)
    if rank < 2:
        return None
    axis = _spread(d, rank)
    size = x.shape[axis]
    if size < 2:
        return None
    first = 1 + d.below(size - 1)
    sizes, names = [first, size - first], [d.name("v"), d.name("v")]
    options: dict[str, Any] = {"axis": _axis(d, axis, rank)}
    inputs = [x.name]
    if size % 2 == 0 and d.chance(0.3):
        sizes = [size // 2] * 2
        if d.opset >= 18:
            options["num_outputs"] = 2
    elif d.opset < 13:
        options["split"] = sizes
    else:
        inputs.append(d.store(np.array(sizes, np.int64)))
    d.nodes.append(helper.make_node("Split", inputs, names, **options))
    which = d.below(2)
    d.values.append(Value(names[1 - which], (*x.shape[:axis], sizes[1 - which], *x.shape[axis + 1 :]), x.dtype))
    return Value(names[which], (*x.shape[:axis], sizes[which], *x.shape[axis + 1 :]), x.dtype)


def sliced(d: Draft, x: Value) -> Value | None:
    """Slice along several axes, in steps, with ends far outside."""
    rank = len(x.shape)
    axes = [k for k in range(1, rank) if d.chance(0.6)]
    if not axes or 0 in x.shape:
        return None
    starts, ends, steps, shape = [], [], [], [*x.shape]
    for axis in axes:
        size = x.shape[axis]
        step = d.pick([1, 1, 2, -1]) if d.opset >= 10 else 1
        start = d.below(size)
        if step > 0:
            end = d.pick([size, 2**31 - 1, 2**63 - 1, start + 1 + d.below(size - start)])
        else:
            end = d.pick([-size - 1, -(2**31), start - 1 - size])
        count = len(range(size)[slice(start, None if step < 0 and end < -size else end, step)])
        shape[axis] = count
        if count == 0:
            return None
        starts.append(start - size if d.chance(0.2) else start)
        ends.append(end)
        steps.append(step)
    given = [_axis(d, k, rank) for k in axes]
    if d.opset < 10:
        return _to(d, x, "Slice", (), tuple(shape), starts=starts, ends=ends, axes=axes)
    inputs = [d.store(np.array(n, np.int64), 0) for n in (starts, ends, given, steps)]
    return _to(d, x, "Slice", inputs, tuple(shape))


def expand(d: Draft, x: Value) -> Value | None:
    if d.opset < 8:
        return None
    shape = [n if n != 1 or k == 0 else d.pick([1, 3]) for k, n in enumerate(x.shape)]
    sizes = [1 if d.chance(0.5) or k == 0 else n for k, n in enumerate(shape)]
    sizes = [n if n == old or old == 1 else 1 for n, old in zip(sizes, x.shape, strict=True)]
    made = tuple(max(a, b) for a, b in zip(sizes, x.shape, strict=True)) if 0 not in x.shape else x.shape
    if d.chance(0.3):
        sizes = sizes[1:]
    return _to(d, x, "Expand", [d.integers(sizes)], made) if sizes else None


def tile(d: Draft, x: Value) -> Value:
    repeats = [1 if k == 0 else d.pick([1, 1, 2, 3]) for k in range(len(x.shape))]
    return _to(
        d,
        x,
        "Tile",
        [d.store(np.array(repeats, np.int64))],
        tuple(a * b for a, b in zip(repeats, x.shape, strict=True)),
    )


def pad(d: Draft, x: Value) -> Value | None:
    rank, mode = len(x.shape), d.pick(["constant", "reflect", "edge", None])
    if rank < 2 or 0 in x.shape:
        return None
    most = [min(2, n - 1) if mode == "reflect" else 2 for n in x.shape]
    before, after = ([0 if k == 0 or most[k] < 1 else d.below(most[k] + 1) for k in range(rank)] for _ in range(2))
    if mode in ("constant", None) and d.odd(0.2) and x.shape[-1] > 1:
        before[-1] = -1
    shape = tuple(a + n + b for a, n, b in zip(before, x.shape, after, strict=True))
    value = d.pick([None, 0.5, -2.0]) if mode in ("constant", None) else None
    if d.opset < 11:
        return _to(d, x, "Pad", (), shape, mode=mode, pads=[*before, *after], value=value)
    inputs = [d.store(np.array([*before, *after], np.int64), 0)]
    if value is not None:
        inputs.append(d.store(np.array(value).astype(x.dtype)))
    return _to(d, x, "Pad", inputs, shape, mode=mode)


def depth(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4:
        return None
    n, c, h, w = x.shape
    if c % 4 == 0 and c:
        return _to(
            d,
            x,
            "DepthToSpace",
            (),
            (n, c // 4, 2 * h, 2 * w),
            blocksize=2,
            mode=d.pick([None, "DCR", "CRD"]) if d.opset >= 11 else None,
        )
    if h % 2 == w % 2 == 0 and h and w and d.opset >= 13:
        return _to(d, x, "SpaceToDepth", (), (n, 4 * c, h // 2, w // 2), blocksize=2)
    return None


def flat(d: Draft, x: Value) -> Value | None:
    """Flatten behind another axis than the first, and put together again."""
    if len(x.shape) < 3 or x.shape[0] != d.batch:
        return None
    axis = 2 if d.chance(0.7) else -1
    made = d.node("Flatten", [x.name], axis=axis if axis > 0 or d.opset >= 11 else 2)
    return Value(d.node("Reshape", [made, d.integers([-1, *x.shape[1:]])]), x.shape, x.dtype)


def turned(d: Draft, x: Value) -> Value | None:
    """Move the batch away, do something there, and move it back."""
    rank = len(x.shape)
    if rank < 2:
        return None
    perm = [1, 0, *range(2, rank)]
    moved = d.node("Transpose", [x.name], perm=perm)
    inner = d.node(d.pick(["Relu", "Tanh", "Identity"]), [moved])
    return Value(d.node("Transpose", [inner], perm=perm), x.shape, x.dtype)


def gathered(d: Draft, x: Value) -> Value | None:
    """GatherElements and GatherND along the last axis, and Gather by a computed index."""
    rank = len(x.shape)
    if rank < 2 or 0 in x.shape:
        return None
    kind = d.below(3)
    if kind == 0 and d.opset >= 11:
        index = d.rng.integers(-x.shape[-1], x.shape[-1], x.shape)
        return _to(d, x, "GatherElements", [d.store(index)], axis=rank - 1) if d.batch == x.shape[0] == 1 else None
    if kind == 1:
        many = 1 + d.below(3)
        index = d.rng.integers(0, x.shape[-1], (many,))
        return _to(d, x, "Gather", [d.store(index)], (*x.shape[:-1], many), axis=rank - 1)
    place = d.node("ArgMax", [x.name], axis=rank - 1, keepdims=0)
    table = d.store(d.numbers((x.shape[-1], 3), x.dtype))
    return Value(d.node("Gather", [table, place]), (*x.shape[:-1], 3), x.dtype)


def shape_sized(d: Draft, x: Value) -> Value | None:
    """Constants as large as a value: ConstantOfShape, Range, and Expand by a shape."""
    if len(x.shape) < 2 or d.opset < 11:
        return None
    shape, kind = d.node("Shape", [x.name]), d.below(3)
    if kind == 0:
        value = helper.make_tensor("", kind_of(x.dtype), [1], [0.5])
        return _to(d, x, d.pick(["Add", "Mul"]), [d.node("ConstantOfShape", [shape], value=value)])
    if kind == 1:
        bias = d.store(d.numbers(x.shape[-1:], x.dtype))
        return _to(d, x, "Sub", [d.node("Expand", [bias, shape])])
    size = d.node("Gather", [shape, d.store(np.array(len(x.shape) - 1), 0)])
    steps = d.node("Range", [d.store(np.array(0), 0), size, d.store(np.array(1), 0)])
    return _to(d, x, "Add", [d.node("Cast", [steps], to=kind_of(x.dtype))])


def triangle(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 3:
        return None
    return _to(
        d, x, "Trilu", [d.store(np.array(d.pick([-1, 0, 1])))] if d.chance(0.5) else [], upper=d.pick([None, 0, 1])
    )


def one_hot(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 2 or d.opset < 11:
        return None
    place = d.node("ArgMax", [x.name], axis=1, keepdims=0)
    depth = x.shape[1]
    values = d.store(np.array([0, 1]).astype(x.dtype), 0)
    return Value(d.node("OneHot", [place, d.store(np.array(depth), 0), values], axis=-1), x.shape, x.dtype)


def nd(d: Draft, x: Value) -> Value | None:
    """GatherND and ScatterND within a point, ScatterElements along the last axis."""
    if len(x.shape) != 3 or 0 in x.shape:
        return None
    kind = d.below(2)
    if kind == 0 and x.shape[0] == d.batch == 1:
        index = np.stack([d.rng.integers(0, n, (1, 2)) for n in x.shape[1:]], -1)
        return _to(d, x, "GatherND", [d.store(index)], (1, 2), batch_dims=1)
    turned = d.node("Transpose", [x.name], perm=[1, 2, 0])
    if kind == 0:
        made = d.node(
            "ScatterND",
            [
                turned,
                d.store(np.array([[d.below(x.shape[1])]])),
                d.node("Slice", [turned, *(d.store(np.array([k]), 0) for k in (0, 1, 0))]),
            ],
        )
    elif x.shape[0] == d.batch == 1:
        index = d.rng.integers(0, x.shape[1], (1, x.shape[2], 1))
        updates = d.store(d.numbers((1, x.shape[2], 1), x.dtype))
        made = d.node("ScatterElements", [turned, d.store(index), updates], axis=0)
    else:
        return None
    return Value(d.node("Transpose", [made], perm=[2, 0, 1]), x.shape, x.dtype)


def counted(d: Draft, x: Value) -> Value | None:
    """Divide by how many numbers one row has."""
    if len(x.shape) < 2 or 0 in x.shape or d.opset < 10:
        return None
    row = d.node("Slice", [x.name, *(d.store(np.array([k]), 0) for k in (0, 1, 0))])
    return _to(d, x, "Div", [d.node("Cast", [d.node("Size", [row])], to=kind_of(x.dtype))])
