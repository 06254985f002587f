"""Reductions, places of extremes, and normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import helper

from benchmarks.readers.draft import Draft, Value, kind_of
from benchmarks.readers.operators import Maker, _axis, _spread, _to
from benchmarks.readers.wide.guards import real, shifted


def reduced(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value | None:
        rank, keep = len(x.shape), d.pick([None, 0, 1])
        axes = [k for k in range(1, rank) if d.chance(0.6)] or ([rank - 1] if rank > 1 else [])
        if d.odd(0.1):
            axes = d.pick([[], [0], [*range(rank)]])
        source = x if op != "ReduceLogSum" else shifted(d, _to(d, x, "Abs"), 0.5)
        shape = tuple(1 if k in axes else n for k, n in enumerate(x.shape) if keep != 0 or k not in axes)
        given = [_axis(d, k, rank) for k in axes]
        if d.opset >= (13 if op == "ReduceSum" else 18):
            inputs = [d.integers(given)] if given or d.chance(0.5) else []
            return _to(d, source, op, inputs, shape if axes else (), keepdims=keep)
        return _to(d, source, op, (), shape if axes else (), axes=given or None, keepdims=keep)

    return real(make)


def arg(d: Draft, x: Value) -> Value | None:
    axis, keep = _spread(d, len(x.shape)), d.pick([None, 0, 1])
    last = d.pick([None, 0, 1]) if d.opset >= 12 else None
    options = {"axis": _axis(d, axis, len(x.shape)), "keepdims": keep, "select_last_index": last}
    made = d.node(d.pick(["ArgMax", "ArgMin"]), [x.name], **{k: v for k, v in options.items() if v is not None})
    shape = tuple(1 if k == axis else n for k, n in enumerate(x.shape) if keep != 0 or k != axis)
    if d.chance(0.3):
        return Value(made, shape, np.dtype(np.int64).type)
    return Value(d.node("Cast", [made], to=kind_of(x.dtype)), shape, x.dtype)


def top(d: Draft, x: Value) -> Value | None:
    axis = _spread(d, len(x.shape))
    size = x.shape[axis] if x.shape else 0
    if size == 0 or x.dtype == np.float16:
        return None
    k = 1 + d.below(size)
    options: dict[str, Any] = {"axis": _axis(d, axis, len(x.shape))}
    if d.opset >= 11:
        options["largest"] = d.below(2)
    inputs = [x.name, d.store(np.array([k], np.int64))] if d.opset >= 10 else [x.name]
    if d.opset < 10:
        options["k"] = k
    names = [d.name("v"), d.name("i")]
    d.nodes.append(helper.make_node("TopK", inputs, names, **options))
    shape = tuple(k if n == axis else s for n, s in enumerate(x.shape))
    if d.chance(0.3):
        return Value(d.node("Cast", [names[1]], to=kind_of(x.dtype)), shape, x.dtype)
    return Value(names[0], shape, x.dtype)


def cumulated(d: Draft, x: Value) -> Value | None:
    if x.dtype == np.float16 or len(x.shape) < 2:
        return None
    axis = d.store(np.array(_axis(d, _spread(d, len(x.shape)), len(x.shape))))
    return _to(d, x, "CumSum", [axis], exclusive=d.pick([None, 0, 1]), reverse=d.pick([None, 0, 1]))


def layer_norm(op: str) -> Maker:
    def make(d: Draft, x: Value) -> Value | None:
        rank = len(x.shape)
        if rank < 2:
            return None
        axis = 1 + d.below(rank - 1)
        shape = x.shape[axis:] if not d.odd(0.3) else x.shape[-1:]
        parts = [d.store(d.numbers(shape, x.dtype))]
        if op == "LayerNormalization" and d.chance(0.7):
            parts.append(d.store(d.numbers(shape, x.dtype)))
        return _to(d, x, op, parts, axis=axis - rank if d.chance(0.5) else axis, epsilon=d.pick([None, 1e-3]))

    return real(make)


def instance_norm(d: Draft, x: Value) -> Value | None:
    if len(x.shape) not in (3, 4, 5) or math.prod(x.shape[2:]) < 2:
        return None
    parts = [d.store(d.numbers(x.shape[1:2], x.dtype)) for _ in range(2)]
    return _to(d, x, "InstanceNormalization", parts, epsilon=d.pick([None, 1e-3]))


def group_norm(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 3 or math.prod(x.shape[1:]) < 2 or x.shape[1] == 0:
        return None
    groups = d.pick([k for k in range(1, x.shape[1] + 1) if x.shape[1] % k == 0])
    size = groups if d.opset < 21 else x.shape[1]
    parts = [d.store(d.numbers((size,), x.dtype)) for _ in range(2)]
    return _to(d, x, "GroupNormalization", parts, num_groups=groups, epsilon=d.pick([None, 1e-3]))


def standardized(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4 or math.prod(x.shape[2:]) < 2:
        return None
    return _to(d, _to(d, x, "Tanh"), "MeanVarianceNormalization", axes=[2, 3])


def lp(d: Draft, x: Value) -> Value | None:
    if len(x.shape) < 2:
        return None
    return _to(d, x, "LpNormalization", axis=_axis(d, _spread(d, len(x.shape)), len(x.shape)), p=d.pick([None, 1, 2]))


def lrn(d: Draft, x: Value) -> Value | None:
    if len(x.shape) != 4:
        return None
    return _to(
        d,
        x,
        "LRN",
        size=d.pick([1, 3, 5]),
        alpha=d.pick([None, 0.1]),
        beta=d.pick([None, 0.5]),
        bias=d.pick([None, 2.0]),
    )
