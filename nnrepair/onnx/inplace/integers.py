"""Layers that multiply small integers, read as what they mean: products of numbers that lie on grids.

onnxruntime quantises networks in three ways. Pairs of `QuantizeLinear` and `DequantizeLinear` around ordinary layers
say themselves what they mean. Operators such as `QLinearConv` have scales and zero points as inputs; of
`MatMulInteger` and `ConvInteger` a `Mul` behind a `Cast` has them. Here each of the latter two becomes the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nnrepair.extras import needed
from nnrepair.onnx.inplace.graph import Graph, attribute, reads
from nnrepair.onnx.node import operator

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.numpy_helper
    from onnx import ModelProto, NodeProto, TensorProto

Array = npt.NDArray[Any]
Rule = Callable[["Rewriting", NodeProto], "list[NodeProto] | None"]
#: Before this operator set there is one scale for a tensor.
SCALES = 13


def with_floats(graph: Graph, layer: str | None = None) -> Graph:
    """Return a graph whose layers of integers are layers of numbers on grids.

    Args:
        graph: as the file has it.
        layer: the result of a layer in such a graph: those before it stay as they are, and this one reads its input as
            the file rounds it. Later ones read theirs unrounded where each tensor gets a scale of its own, so that
            gradients lead through them.
    """
    known = _replaced(graph, 0, exact=False)
    if layer is not None:
        places = {one.output[0]: index for index, made in known.found for one in made if one.output[0] == layer}
        start = next(iter(places.values()), None)
        if start is None:
            start = next(k for k, node in enumerate(graph.nodes) if layer in node.output)
        known = _replaced(graph, start, exact=True)
    if not known.found:
        return graph
    values = {name for _, nodes in known.found for node in nodes for name in node.output}
    return Graph(known.model(), graph.given, values - graph.producers.keys())


def _replaced(graph: Graph, start: int, exact: bool) -> Rewriting:
    rewriting = Rewriting(graph)
    for index, node in enumerate(graph.nodes):
        rewriting.rounds = exact and index == start
        rule = RULES.get(operator(node)) if index >= start else None
        made = None if rule is None else rule(rewriting, node)
        if made is not None:
            rewriting.found.append((index, made))
    return rewriting


@dataclass
class Rewriting:
    """What replaces layers of integers.

    Attributes:
        graph: as it is.
        found: the places of layers of integers among the nodes, and what takes the place of each: the last of these
            gives a value of the graph.
        gone: values of the graph that are not needed then.
        tensors: constants that the new nodes read.
        rounds: whether inputs are read as they are rounded.
    """

    graph: Graph
    found: list[tuple[int, list[NodeProto]]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    tensors: list[TensorProto] = field(default_factory=list)
    rounds: bool = False

    def model(self) -> ModelProto:
        """Return the model in which they are replaced."""
        made, instead = ModelProto(), {nodes[-1].output[0]: nodes for _, nodes in self.found}
        made.CopyFrom(self.graph.proto)
        del made.graph.node[:]
        for node in self.graph.nodes:
            if node.output[0] not in self.gone:
                made.graph.node.extend(instead.get(node.output[0], [node]))
        made.graph.initializer.extend(self.tensors)
        return made

    @property
    def several_scales(self) -> bool:
        """Whether a tensor may have a scale for each output."""
        sets = self.graph.proto.opset_import
        return any(one.version >= SCALES for one in sets if one.domain in ("", "ai.onnx"))

    def weight(self, of: str, name: str, scale: Array, zero: str, axis: int) -> NodeProto:
        """Return what makes numbers of a constant of integers; `axis` is that of its scales, where it has several."""
        array = self.graph.value(name)
        shift = self.graph.value(zero) if zero else np.zeros((), array.dtype)
        shape: tuple[int, ...] = () if scale.size == shift.size == 1 else (array.shape[axis],)
        names = [name, self._constant(_sized(scale.astype(np.float32), shape), f"{of}.{name}.scale")]
        if shift.any() or array.dtype != np.int32:
            names.append(self._constant(_sized(shift, shape), f"{of}.{name}.zero"))
        made = onnx.helper.make_node("DequantizeLinear", names, [f"{of}.{name}.numbers"])
        if shape:
            made.attribute.append(onnx.helper.make_attribute("axis", axis))
        return made

    def points(self, of: str, name: str, scale: str, zero: str) -> NodeProto:
        """Return what makes numbers of a layer's input."""
        node, made = self.graph.producers.get(name), f"{of}.input"
        if not self.rounds and node is not None and operator(node) == "DynamicQuantizeLinear":
            return onnx.helper.make_node("Identity", [node.input[0]], [made])
        return onnx.helper.make_node("DequantizeLinear", [name, scale, *([zero] if zero else [])], [made])

    def is_grid(self, name: str, *scales: str) -> bool:
        """Whether a constant holds small integers, with constant scales that this operator set allows."""
        graph = self.graph
        if name not in graph.fixed or graph.value(name).dtype.kind not in "iu" or graph.value(name).ndim < 2:
            return False
        known = [scale for scale in scales if scale]
        if any(scale not in graph.fixed for scale in known):
            return False
        return self.several_scales or all(graph.value(scale).size == 1 for scale in known)

    def _constant(self, array: Array, name: str) -> str:
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return name


def _sized(array: Array, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(np.broadcast_to(array.ravel(), shape)) if shape else array.reshape(shape)


def _given(node: NodeProto, count: int) -> list[str]:
    return [*node.input, *[""] * count][:count]


def _integer(of: str, axis: int) -> Rule:
    """Return what reads `MatMulInteger` or `ConvInteger`: its scales are in products behind it."""

    def rule(rewriting: Rewriting, node: NodeProto) -> list[NodeProto] | None:
        graph, (x, w, zero, w_zero) = rewriting.graph, _given(node, 4)
        source = graph.producers.get(x)
        if source is None or operator(source) not in ("DynamicQuantizeLinear", "QuantizeLinear"):
            return None
        x_scale = source.output[1] if operator(source) == "DynamicQuantizeLinear" else source.input[1]
        if not rewriting.is_grid(w, w_zero):
            return None
        found = _scaled(rewriting, node.output[0], x_scale)
        if found is None:
            return None
        result, scale = found
        place = axis % graph.value(w).ndim
        if scale.size not in (1, graph.value(w).shape[place]) or (scale.size > 1 and not rewriting.several_scales):
            return None
        before = rewriting.points(result, x, x_scale, zero)
        weight = rewriting.weight(result, w, scale, w_zero, place)
        layer = onnx.helper.make_node(of, [before.output[0], weight.output[0]], [result], name=node.name)
        layer.attribute.extend(node.attribute)
        return [before, weight, layer]

    return rule


def _scaled(rewriting: Rewriting, name: str, x_scale: str) -> tuple[str, Array] | None:
    """Return which value is a product of integers as a number, and its weight's scale; None where none is found."""
    graph, gone, scale = rewriting.graph, [name], None
    node, seen = _only_user(graph, name), False
    if node is None or operator(node) != "Cast":
        return None
    while not seen or scale is None:
        gone.append(node.output[0])
        after = _only_user(graph, node.output[0])
        if after is None or operator(after) != "Mul":
            break
        other = next((one for one in after.input if one != node.output[0]), "")
        product = graph.producers.get(other)
        factors = list(product.input) if product is not None and operator(product) == "Mul" else [other]
        constants = [graph.value(one) for one in factors if one in graph.fixed]
        if any(one != x_scale and one not in graph.fixed for one in factors) or len(constants) > 1:
            break
        seen |= x_scale in factors
        scale = constants[0] if constants and scale is None else scale
        node = after
    if not seen:
        return None
    rewriting.gone.update(gone[:-1] if gone[-1] == node.output[0] else gone)
    return node.output[0], np.ones((), np.float32) if scale is None else scale


def _only_user(graph: Graph, name: str) -> NodeProto | None:
    users = [node for node in graph.nodes if name in reads(node)]
    return users[0] if len(users) == graph.uses[name] == 1 else None


def _linear(of: str, axis: int) -> Rule:
    """Return what reads `QLinearMatMul` or `QLinearConv`."""

    def rule(rewriting: Rewriting, node: NodeProto) -> list[NodeProto] | None:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = _given(node, 9)
        return _rounding(rewriting, node, of, axis, (x, x_scale, x_zero), (w, w_scale, w_zero), bias, (y_scale, y_zero))

    return rule


def _gemm(rewriting: Rewriting, node: NodeProto) -> list[NodeProto] | None:
    x, x_scale, x_zero, w, w_scale, w_zero, bias, y_scale, y_zero = _given(node, 9)
    axis = 0 if attribute(node, "transB", 0) else 1
    ends = (y_scale, y_zero)
    return _rounding(rewriting, node, "Gemm", axis, (x, x_scale, x_zero), (w, w_scale, w_zero), bias, ends)


def _rounding(
    rewriting: Rewriting,
    node: NodeProto,
    of: str,
    axis: int,
    points: tuple[str, str, str],
    weight: tuple[str, str, str],
    bias: str,
    result: tuple[str, str],
) -> list[NodeProto] | None:
    """Return a layer with scales for its input, weight and result; without a scale the result is not rounded."""
    graph, (x, x_scale, x_zero), (w, w_scale, w_zero) = rewriting.graph, points, weight
    if x_scale not in graph.fixed or not rewriting.is_grid(w, w_scale, w_zero):
        return None
    place, scale = axis % graph.value(w).ndim, graph.value(w_scale)
    name = node.output[0]
    nodes = [rewriting.points(name, x, x_scale, x_zero), rewriting.weight(name, w, scale, w_zero, place)]
    if bias:
        nodes.append(rewriting.weight(name, bias, graph.value(x_scale) * scale, "", 0))
    inputs = [one.output[0] for one in nodes]
    last = name if not result[0] else f"{name}.numbers"
    layer = onnx.helper.make_node(of, inputs, [last], name=node.name)
    layer.attribute.extend(node.attribute)
    nodes.append(layer)
    if result[0]:
        nodes.append(onnx.helper.make_node("QuantizeLinear", [last, *filter(None, result)], [name]))
    return nodes


def _to_float(rewriting: Rewriting, node: NodeProto) -> list[NodeProto] | None:
    """Read com.microsoft::MatMulIntegerToFloat: a product, its scales and a bias in one."""
    x, w, x_scale, w_scale, x_zero, w_zero, bias = _given(node, 7)
    if not rewriting.is_grid(w, w_scale, w_zero):
        return None
    return _product(rewriting, node, [rewriting.points(node.output[0], x, x_scale, x_zero)], w, w_scale, w_zero, bias)


def _dynamic(rewriting: Rewriting, node: NodeProto) -> list[NodeProto] | None:
    """Read com.microsoft::DynamicQuantizeMatMul: the same, and its input is rounded by itself."""
    x, w, w_scale, w_zero, bias = _given(node, 5)
    if not rewriting.is_grid(w, w_scale, w_zero):
        return None
    numbers, parts = f"{node.output[0]}.input", [f"{node.output[0]}.input.{k}" for k in range(3)]
    before = [onnx.helper.make_node("Identity", [x], [numbers])]
    if rewriting.rounds:
        before = [
            onnx.helper.make_node("DynamicQuantizeLinear", [x], parts),
            onnx.helper.make_node("DequantizeLinear", parts, [numbers]),
        ]
    return _product(rewriting, node, before, w, w_scale, w_zero, bias)


def _product(
    rewriting: Rewriting, node: NodeProto, before: list[NodeProto], w: str, w_scale: str, w_zero: str, bias: str
) -> list[NodeProto]:
    graph, name = rewriting.graph, node.output[0]
    weight = rewriting.weight(name, w, graph.value(w_scale), w_zero, graph.value(w).ndim - 1)
    last = name if not bias else f"{name}.product"
    inputs = [before[-1].output[0], weight.output[0]]
    made = [*before, weight, onnx.helper.make_node("MatMul", inputs, [last], name=node.name)]
    return [*made, onnx.helper.make_node("Add", [last, bias], [name])] if bias else made


def _of_several(of: str, count: int) -> Rule:
    """Return what reads an operator of small integers as the ordinary one of `count` values."""

    def rule(rewriting: Rewriting, node: NodeProto) -> list[NodeProto] | None:
        given = _given(node, 3 * count + 2)
        if attribute(node, "channels_last", 0) or any(not given[3 * k] for k in range(count)):
            return None
        name, parts = node.output[0], list[NodeProto]()
        for k in range(count):
            inputs = [one for one in given[3 * k : 3 * k + 3] if one]
            parts.append(onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}.input.{k}"]))
        made = onnx.helper.make_node(of, [one.output[0] for one in parts], [f"{name}.numbers"], name=node.name)
        made.attribute.extend(one for one in node.attribute if one.name not in ("opset", "channels_last"))
        rounded = [f"{name}.numbers", *(one for one in given[3 * count :] if one)]
        return [*parts, made, onnx.helper.make_node("QuantizeLinear", rounded, [name])]

    return rule


RULES: dict[str, Rule] = {
    "MatMulInteger": _integer("MatMul", -1),
    "ConvInteger": _integer("Conv", 0),
    "QLinearMatMul": _linear("MatMul", -1),
    "QLinearConv": _linear("Conv", 0),
    "com.microsoft::QGemm": _gemm,
    "com.microsoft::MatMulIntegerToFloat": _to_float,
    "com.microsoft::DynamicQuantizeMatMul": _dynamic,
    "com.microsoft::QLinearAdd": _of_several("Add", 2),
    "com.microsoft::QLinearMul": _of_several("Mul", 2),
    "com.microsoft::QLinearLeakyRelu": _of_several("LeakyRelu", 1),
    "com.microsoft::QLinearSigmoid": _of_several("Sigmoid", 1),
    "com.microsoft::QLinearSoftmax": _of_several("Softmax", 1),
    "com.microsoft::QLinearAveragePool": _of_several("AveragePool", 1),
    "com.microsoft::QLinearGlobalAveragePool": _of_several("GlobalAveragePool", 1),
}
