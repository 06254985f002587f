"""What a graph computes: onnxruntime's answers, and how far rounding may take anybody else's from them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.reference
from onnx import numpy_helper

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnxruntime

from benchmarks.readers.draft import Array
from benchmarks.readers.graphs import POINTS, Case

#: What rounding may change, relative to the largest number on the way; about 50 units in the last place.
ROUNDING = {np.dtype(np.float64): 1e-14, np.dtype(np.float32): 6e-6, np.dtype(np.float16): 5e-2}


#: Operators that onnx's own evaluator computes wrongly below an opset (onnx 1.23): it takes the statistics of
#: BatchNormalization for those of training, puts the axes of Unsqueeze and Squeeze one after the other, drops axes in
#: GlobalMaxPool, and forgets the absolute value in the norm of LpNormalization.
UNTRUSTED = {"BatchNormalization": 14, "Unsqueeze": 13, "Squeeze": 13, "GlobalMaxPool": 99, "LpNormalization": 99}


#: Operators that divide by the deviation of what they read.
NORMS = {"InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"}
NORMS |= {"MeanVarianceNormalization"}


@dataclass(frozen=True)
class Mixed:
    """The graph does not treat the points of a batch one by one."""

    how: str


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Load a model as it stands: nothing fused, one thread, silent."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Truth:
    """onnxruntime on one graph."""

    def __init__(self, case: Case) -> None:
        self.case, self.name, self.model = case, _input(case.model).name, used(case.model)
        self.dtype, self.refusal, self.single = case.points.dtype, "", False
        try:
            self.session: Any = session(self.model)
        except Exception as error:  # onnxruntime raises many kinds
            self.session, self.refusal = None, str(error)
        if self.session is None and _has_single(self.model, self.dtype):  # it has kernels for float32
            try:
                self.model = in_single(self.model)
                self.session, self.single = session(self.model), True
                self.dtype = np.dtype(np.float32) if self.dtype == np.float64 else self.dtype
            except Exception:  # then the first refusal stands
                self.model = used(case.model)

    def run(self, batch: Array) -> Array | None:
        """Return the output for one batch, or None where onnxruntime refuses."""
        if self.session is None:
            return None
        try:
            output = np.asarray(self.session.run(None, {self.name: self._given(batch)})[0])
            return output.astype(_kind(self.case.model.graph.output[0])) if self.single else output
        except Exception as error:  # onnxruntime raises many kinds
            self.refusal = str(error)
            return None

    def _given(self, batch: Array) -> Array:
        return batch.astype(np.float32) if self.single else batch

    @cached_property
    def items(self) -> Array | Mixed | None:
        """The outputs for the points, one by one (POINTS, ...); None where onnxruntime runs on no batch."""
        return self._joined([(order, self.run(self.case.points[order])) for order in self._orders()])

    def _orders(self) -> list[list[int]]:
        """Choose points for several batches, each point beside others than before."""
        if not self.case.batch:
            return [[k] for k in range(POINTS)] + [[*range(POINTS)], [3, 1], [*range(POINTS)][::-1]]
        orders = [[(first + k) % POINTS for k in range(self.case.batch)] for first in range(0, POINTS, self.case.batch)]
        return orders + [order[::-1] for order in orders] + [[k] * self.case.batch for k in range(POINTS)]

    def _joined(self, runs: list[tuple[list[int], Array | None]]) -> Array | Mixed | None:
        """Put the rows of all runs together, if they say the same."""
        rows: list[Array | None] = [None] * POINTS
        for order, output in runs:
            if output is None:
                continue
            if output.ndim == 0 or len(output) != len(order):
                return Mixed(f"{len(order)} points give an output of shape {output.shape}")
            for k, row in zip(order, output, strict=True):
                known = rows[k]
                if known is None:
                    rows[k] = row
                elif known.shape != row.shape or not self._close(known, row):
                    return Mixed("a point's output depends on the other points")
        made = [row for row in rows if row is not None]
        return np.stack(made) if len(made) == POINTS else None

    def _close(self, a: Array, b: Array) -> bool:
        if not apart(b, b, a, self.tolerance(a)).any():
            return True
        return not self.finite or not apart(b, b, a, self.scale * self.coarsest).any()

    @property
    def rounding(self) -> float:
        return ROUNDING.get(self.dtype, 0.0)

    @cached_property
    def coarsest(self) -> float:
        """The rounding of the shortest floating-point type on the way to the outputs."""
        stored = {tensor.name for tensor in self.case.model.graph.initializer}
        kinds = {array.dtype for values in self.values for name, array in values.items() if name not in stored}
        return max([self.rounding, *(ROUNDING.get(kind, 0.0) for kind in kinds)])

    @cached_property
    def whole(self) -> tuple[Array, Array] | None:
        """Whole inputs and outputs, where a reader takes the tensor of the file for one point."""
        batches = [self.case.points[[(first + k) % POINTS for k in range(self.case.batch or 1)]] for first in range(2)]
        outputs = [self.run(batch) for batch in batches]
        made = [output.ravel() for output in outputs if output is not None]
        return (np.stack([b.ravel() for b in batches]), np.stack(made)) if len(made) == len(batches) else None

    def tolerance(self, wanted: Array) -> float:
        """Return how far rounding may move an output: first by the output itself, then by all that leads to it."""
        finite = np.abs(wanted[np.isfinite(wanted)]).astype(np.float64)
        return self.rounding * float(finite.max(initial=0.0))

    @cached_property
    def finite(self) -> bool:
        """Whether all numbers on the way to the outputs are finite."""
        return all(np.isfinite(a).all() for values in self.values for a in values.values() if a.dtype.kind == "f")

    @cached_property
    def scale(self) -> float:
        """The largest product, sum or value on the way to the outputs."""
        return max((_largest(self.model.graph, values) for values in self.values), default=0.0)

    @cached_property
    def values(self) -> list[dict[str, Array]]:
        """All values of the graph, by name, for a few batches."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        known = {output.name for output in model.graph.output}
        names = [name for node in model.graph.node for name in node.output if name and name not in known]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        runs = []
        for order in self._orders():
            points = self._given(self.case.points[order])
            try:
                made = session(model).run(None, {self.name: points})
            except Exception:  # then another batch does, or the output alone counts
                continue
            runs.append({self.name: points} | dict(zip([o.name for o in model.graph.output], made, strict=True)))
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        return [constants | values for values in runs]


def used(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without the nodes that its outputs do not need."""
    twin, wanted = onnx.ModelProto(), {output.name for output in model.graph.output}
    twin.CopyFrom(model)
    twin.graph.ClearField("node")
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if wanted & {*node.output}:
            kept.append(node)
            wanted |= _read(node)
    twin.graph.node.extend(kept[::-1])
    return twin


def _read(node: onnx.NodeProto) -> set[str]:
    inner = [each for attribute in node.attribute if attribute.HasField("g") for each in attribute.g.node]
    return set(node.input).union(*(_read(each) for each in inner))


def in_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with float32 in place of float64 and float16."""
    twin, others = onnx.ModelProto(), (onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    twin.CopyFrom(model)
    graph = twin.graph
    for tensor in (*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))):
        if tensor.data_type in others:
            single = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(single, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in others:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for cast in (node for node in graph.node if node.op_type == "Cast"):
        for attribute in cast.attribute:
            if attribute.name == "to" and attribute.i in others:
                attribute.i = onnx.TensorProto.FLOAT
    return twin


def _has_single(model: onnx.ModelProto, dtype: Any) -> bool:
    """Tell whether float32 in place of a model's own types means the same, but for rounding."""
    casts = {a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    return dtype == np.float16 or (dtype == np.float64 and onnx.TensorProto.FLOAT16 not in casts)


def _kind(value: onnx.ValueInfoProto) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _largest(graph: onnx.GraphProto, values: dict[str, Array]) -> float:
    size = {name: _size(array) for name, array in values.items()}
    found = max(size.values(), default=0.0)
    for node in graph.node:
        sizes = [size.get(name, 0.0) for name in node.input]
        if node.op_type in ("Gemm", "MatMul", "Conv", "Mul") and len(sizes) > 1:
            terms = values[node.input[1]].size if node.input[1] in values else 1
            found = max(found, sizes[0] * sizes[1] * min(terms, 64))
        elif node.op_type == "BatchNormalization":
            least = float(np.abs(values[node.input[4]].astype(np.float64)).min(initial=1.0))
            found = max(found, (sizes[0] + sizes[3]) * sizes[1] / math.sqrt(least + 1e-5))
        elif node.op_type in NORMS:
            found = max(found, sizes[0] * max([1.0, *sizes[1:2]]) * 300)  # where all are one, rounding is left
        elif node.op_type == "Div":
            divisor = np.abs(values[node.input[1]].astype(np.float64))
            least = float(divisor[divisor > 0].min(initial=1.0))
            found = max(found, sizes[0] / least, sizes[0] * sizes[1] / least**2)
    return found


def _size(array: Array) -> float:
    if array.dtype.kind not in "fiu":
        return 0.0
    numbers = np.abs(array.astype(np.float64))
    return float(numbers[np.isfinite(numbers)].max(initial=0.0))


def apart(low: Array, high: Array, wanted: Array, tolerance: float, exact: bool = True) -> Array:
    """Tell which outputs lie outside what a reader says; `exact`: where one is not finite, the other must not be."""
    with np.errstate(all="ignore"):
        low, high, wanted = (a.astype(np.float64) for a in (low, high, wanted))
        inside = (low - tolerance <= wanted) & (wanted <= high + tolerance)
        odd = ~np.isfinite(wanted)
        return np.asarray(np.where(odd, np.isfinite(low) & exact, ~inside))


def invalid(model: onnx.ModelProto) -> str:
    """Say why onnx itself finds a model invalid, or nothing."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # several kinds
        return str(error) or type(error).__name__
    return ""


def by_reference(case: Case) -> Array | None:
    """Return the outputs by onnx's own slow evaluator, for what onnxruntime has no kernels for."""
    opset = max(o.version for o in case.model.opset_import if o.domain in ("", "ai.onnx"))
    if any(node.op_type in UNTRUSTED and opset < UNTRUSTED[node.op_type] for node in case.model.graph.node):
        return None
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            evaluator = onnx.reference.ReferenceEvaluator(case.model)
            name, batch = _input(case.model).name, case.batch or 1
            parts = [
                evaluator.run(None, {name: case.points[[(first + k) % POINTS for k in range(batch)]]})[0]
                for first in range(0, POINTS, batch)
            ]
            made = np.concatenate([np.asarray(part) for part in parts])
    except Exception:  # it raises what its operators raise
        return None
    return made[:POINTS] if len(made) == len(parts) * batch else None


def opened(model: onnx.ModelProto) -> list[int | None]:
    """Return the sizes of a model's input; None for those that it leaves open."""
    dims = _input(model).type.tensor_type.shape.dim
    return [int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims]


def _input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}
    return next(value for value in model.graph.input if value.name not in constants)
