"""What is true of a certificate, by onnxruntime alone: nothing here reads files as the checkers do.

Gradients are differences of outputs. A claim is called false only where it is missed clearly, by far more than such
differences, or float32 where onnxruntime has no float64, can be off.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.checkers.valid import Proof, Repair, dual_size, size_of, turned

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnxruntime

Array = np.ndarray


class Undecided(Exception):
    """onnxruntime takes a file, or a claim about it, for nothing it could run."""


class Kink(Undecided):
    """Differences of outputs do not show gradients: a kink of the network is near."""


class Mixed(Exception):
    """A network gives one point the outputs of several, or none."""


def session(proto: ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many kinds
        raise Undecided(f"onnxruntime: {error}") from error


def _widened(proto: ModelProto) -> ModelProto:
    """Give the same network in float64; one that mixes types stays as it is, and onnxruntime refuses it."""
    wide = copy.deepcopy(proto)
    constants = [*wide.graph.initializer]
    constants += [a.t for node in wide.graph.node for a in node.attribute if node.op_type == "Constant"]
    values = [v.type.tensor_type for v in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info)]
    kinds = {tensor.data_type for tensor in constants} | {value.elem_type for value in values}
    if len(kinds & {TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE}) > 1:
        return wide
    for tensor in constants:
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.FLOAT):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in values:
        if value.elem_type in (TensorProto.FLOAT16, TensorProto.FLOAT):
            value.elem_type = TensorProto.DOUBLE
    return wide


class Runner:
    """A network that onnxruntime runs, with one or two of its constants to be chosen anew in each run."""

    def __init__(self, proto: ModelProto, free: list[str] = ()) -> None:  # type: ignore[assignment]
        try:
            self._open(_widened(proto), list(free))
            self.exact = True
        except Exception:  # no float64, or another fault, which is then met again
            self._open(proto, list(free))
            self.exact = False

    def _open(self, proto: ModelProto, free: list[str]) -> None:
        own = copy.deepcopy(proto)
        self.stored = {t.name: numpy_helper.to_array(t) for t in own.graph.initializer if t.name in free}
        if sorted(self.stored) != sorted(free):
            raise Undecided("the changed weight is not stored")
        kept = [t for t in own.graph.initializer if t.name not in free]
        del own.graph.initializer[:]
        own.graph.initializer.extend(kept)
        there = {value.name for value in own.graph.input}
        for name, value in self.stored.items():
            if name not in there:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                own.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        self.session = session(own)
        names = [value.name for value in self.session.get_inputs() if value.name not in free]
        if len(names) != 1:
            raise Undecided(f"the inputs are {names}")
        self.name = names[0]
        kind = {value.name: value.type for value in self.session.get_inputs()}[self.name]
        self.dtype = {"tensor(double)": np.float64, "tensor(float)": np.float32}.get(kind, np.float32)

    def __call__(self, points: Array, **chosen: Array) -> Array:
        """Run the points as one batch."""
        fed = {name: np.asarray(chosen.get(name, value), value.dtype) for name, value in self.stored.items()}
        try:
            (y,) = self.session.run(None, {self.name: points.astype(self.dtype), **fed})
        except Exception as error:
            raise Undecided(f"onnxruntime: {error}") from error
        return np.asarray(y, np.float64)

    def one_by_one(self, points: Array, **chosen: Array) -> Array:
        """Run each point alone."""
        parts = [self(points[i : i + 1], **chosen) for i in range(len(points))]
        if any(part.shape[:1] != (1,) or part.ndim != 2 for part in parts):
            raise Mixed("one point has the outputs of several")
        return np.concatenate(parts)


def _conditions(made: Repair, outputs: int) -> tuple[Array, Array, Array]:
    """Give what the edits mean: indices of points, rows (k, outputs) and bounds."""
    chosen = made.arrays["edit_point"]
    if "edit_label" not in made.arrays:
        rows, bounds = made.arrays["edit_A"], made.arrays["edit_b"]
        return np.repeat(chosen, rows.shape[1]), rows.reshape(-1, outputs), bounds.ravel()
    sign = -1.0 if made.meta["lowest"] else 1.0
    rows = [sign * (np.eye(outputs)[k] - np.delete(np.eye(outputs), k, 0)) for k in made.arrays["edit_label"]]
    return np.repeat(chosen, outputs - 1), np.concatenate(rows), np.zeros(len(chosen) * (outputs - 1))


class _Layer:
    """The changed layer: between the certificate's matrix (outputs, inputs + 1) and what the file stores."""

    def __init__(self, made: Repair, runner: Runner) -> None:
        self.names = [made.meta["weight"], made.meta["bias"]]
        self.weight, self.bias = (runner.stored[name].astype(np.float64) for name in self.names)
        try:
            self.turned = self.weight.ndim == 4 or turned(made.base, self.names[0])
        except ValueError as error:
            raise Undecided("the weight is not that of one layer") from error
        rows = len(self.weight) if self.turned else self.weight.shape[1]
        self.shape = (rows, self.weight.size // rows + 1)
        if self.bias.shape != (rows,):
            raise Undecided("the bias is not that of the layer")

    def stored(self, change: Array) -> dict[str, Array]:
        """Give the weights with a change."""
        part = change[:, :-1]
        part = part.reshape(self.weight.shape) if self.turned else part.T
        return {self.names[0]: self.weight + part, self.names[1]: self.bias + change[:, -1]}


def _slope(base: Runner, layer: _Layer, points: Array, direction: Array, step: float) -> Array:
    """Give the first-order change of the outputs in a direction, by differences.

    Raises:
        Kink: differences of half the length are others.
    """
    size = float(np.abs(direction).max()) or 1.0
    found = []
    for h in (step, step / 2):
        ends = [base.one_by_one(points, **layer.stored(direction * (sign * h / size))) for sign in (1, -1)]
        found.append((ends[0] - ends[1]) / (2 * h) * size)
    if np.abs(found[0] - found[1]).max() > 0.01 * (1e-3 + np.abs(found[0]).max()):
        raise Kink
    return found[0]


def false(made: Repair | Proof, rng: np.random.Generator) -> str:
    """Say which claim of a certificate is clearly false, or nothing where none is shown to be.

    Raises:
        Undecided: onnxruntime does not run the files.
    """
    try:
        with np.errstate(all="ignore"):
            return _violated(made, rng) if isinstance(made, Proof) else _wrong(made)
    except Mixed as error:
        return str(error)


def _wrong(made: Repair) -> str:
    arrays, meta = made.arrays, made.meta
    names = [meta["weight"], meta["bias"]]
    base = Runner(made.base, names)
    layer, points = _Layer(made, base), arrays["points"]
    step, loose = (1e-5, 1e-4) if base.exact else (4e-3, 3e-2)
    y = base.one_by_one(points)
    scale = 1 + np.abs(y).max()
    try:
        change = np.column_stack([arrays["delta_weight"].reshape(layer.shape[0], -1), arrays["delta_bias"]])
    except ValueError as error:
        raise Undecided("the change has another shape") from error
    if change.shape != layer.shape:
        raise Undecided("the change has another shape")
    slope = _slope(base, layer, points, change, step)

    at, rows, bounds = _conditions(made, y.shape[1])
    if meta["architecture"] == "same":
        assert made.repaired is not None
        after = Runner(made.repaired, names)
        outputs = [after.one_by_one(points)]
        try:
            outputs.append(after(points))
            chosen = arrays["edit_point"]
            outputs.append(np.zeros_like(y))
            outputs[2][chosen] = after(points[chosen])  # as the edits are listed
        except (Undecided, IndexError, ValueError):
            pass  # the file takes one point at a time
        same = after.one_by_one(points, **{name: base.stored[name] for name in names})
        if np.abs(same - y).max() > loose * scale:
            return "the repaired network is not the base with other weights"
    else:
        outputs = [y + slope]
    for found in outputs:
        if found.shape != y.shape:
            return "a batch has other outputs than its points"
        if ((rows * found[at]).sum(1) < bounds - loose * scale).any():
            return "an edit does not hold"

    metric = arrays.get("metric")
    if size_of(meta["norm"], change, metric) > meta["objective"] * (1 + loose) + 1e-6:
        return "the change is larger than claimed"
    where, A, b, u = (arrays[f"row_{name}"].astype(float) for name in ("point", "A", "b", "multiplier"))
    where = where.astype(int)
    linear = made.meta["architecture"] == "decoupled" or _linear(base, layer, points, change, y, slope, loose * scale)
    missed = b - (A * (y + slope)[where]).sum(1)
    if linear and (missed > meta["margin"] + loose * scale + 1e-5).any():
        return "the change misses a condition by more than the margin"
    bound = _bound(base, layer, points, (where, A, b, u), meta["norm"], metric, y, step)
    if bound is not None and meta["lower_bound"] > bound * (1 + loose) + 1e-6:
        return "the lower bound is not proved by the multipliers"
    return ""


def _linear(base: Runner, layer: _Layer, points: Array, change: Array, y: Array, slope: Array, near: float) -> bool:
    """Tell whether the outputs are linear in the change, as far as this one shows."""
    return bool(np.abs(base.one_by_one(points, **layer.stored(change)) - y - slope).max() < near)


def _bound(
    base: Runner,
    layer: _Layer,
    points: Array,
    rows: tuple[Array, Array, Array, Array],
    norm: str,
    metric: Array | None,
    y: Array,
    step: float,
) -> float | None:
    """Give sum u (b - A f) / dualnorm(sum u G), or None where the latter is zero."""
    where, A, b, u = rows
    z = np.zeros(layer.shape)
    for place in np.ndindex(*layer.shape):
        direction = np.zeros(layer.shape)
        direction[place] = 1
        z[place] = (u * (A * _slope(base, layer, points, direction, step)[where]).sum(1)).sum()
    dual = dual_size(norm, z, metric)
    gap = float((u * (b - (A * y[where]).sum(1))).sum())
    return gap / dual if dual > 0 else None


def _violated(made: Proof, rng: np.random.Generator, count: int = 2000) -> str:
    """Say at which sampled point of the box a property is clearly violated, or nothing."""
    runner = Runner(made.network)
    lower, upper = np.array(made.lower), np.array(made.upper)
    if (lower > upper).any():
        raise Undecided("the box is empty")
    x = rng.uniform(lower, upper, (count, len(lower)))
    corner = rng.random(x.shape)
    x = np.where(corner < 0.3, lower, np.where(corner > 0.7, upper, x))
    shape = [d.dim_value for d in made.network.graph.input[0].type.tensor_type.shape.dim][1:]
    shaped = x.reshape(count, *shape)
    try:
        y = runner(shaped)
    except Undecided:  # the file takes one point at a time
        y = runner.one_by_one(shaped[:200])
    if y.ndim != 2 or len(y) not in (count, 200) or y.shape[1] != len(made.unsafe[0][0][0]):
        raise Undecided(f"outputs of shape {y.shape}")
    for rows in made.unsafe:
        if np.all([y @ np.array(a) + b < -1e-5 * (1 + abs(b)) for a, b in rows], axis=0).any():
            return "an output is unsafe"
    return ""
