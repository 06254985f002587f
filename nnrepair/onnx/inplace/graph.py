"""An ONNX graph as it is, of any operators: who computes what, what is constant, and how it is kept in the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nnrepair.extras import needed
from nnrepair.onnx.inplace.runtime import session
from nnrepair.onnx.node import operator

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.numpy_helper
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Array = npt.NDArray[Any]
#: Their results differ from run to run, also without any input.
_RANDOM = ("Random", "Multinomial", "Bernoulli")


class Graph:
    """The main graph of a model; every value has one name.

    Attributes:
        proto: the model, with all its weights.
        nodes: in the order in which they run.
        stored: initializers, by name.
        inputs: what a caller gives.
        fixed: names of values that do not depend on the inputs.
        given: constants that are in no file: a caller gives them.
        added: values that are in no file: they come in between.
    """

    def __init__(self, proto: ModelProto, given: Iterable[str] = (), added: Iterable[str] = ()) -> None:
        self.proto, self.nodes, self.given, self.added = (
            proto,
            list(proto.graph.node),
            frozenset(given),
            frozenset(added),
        )
        self.stored: dict[str, TensorProto] = {tensor.name: tensor for tensor in proto.graph.initializer}
        sparse = {tensor.values.name for tensor in proto.graph.sparse_initializer}
        self.inputs = [one for one in proto.graph.input if one.name not in self.stored]
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.fixed = {*self.stored, *sparse}
        for node in self.nodes:
            if not operator(node).startswith(_RANDOM) and self.fixed.issuperset(reads(node)):
                self.fixed.update(name for name in node.output if name)
        self._values: dict[str, Array] = {}

    @cached_property
    def uses(self) -> Counter[str]:
        """How often each value is read, also inside of branches and loops, or returned."""
        found = Counter(name for node in self.nodes for name in _all_reads(node))
        found.update(output.name for output in self.proto.graph.output)
        return found

    @cached_property
    def types(self) -> dict[str, Any]:
        """What onnx can infer of types and shapes of values, by name."""
        try:
            known = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph
        except Exception:  # operators that it does not know, a model that is too large: then a run tells
            known = self.proto.graph
        infos = (*known.input, *known.value_info, *known.output)
        return {info.name: info.type.tensor_type for info in infos if info.type.HasField("tensor_type")}

    def before(self, names: Iterable[str]) -> list[NodeProto]:
        """Return the nodes that compute these values, in order."""
        wanted, found = set(names), []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.output):
                found.append(node)
                wanted.update(reads(node))
        return found[::-1]

    def value(self, name: str) -> Array:
        """Return what a constant is; onnxruntime computes it where it is computed."""
        if name not in self._values:
            node = self.producers.get(name)
            if name in self.stored:
                self._values[name] = onnx.numpy_helper.to_array(self.stored[name])
            elif node is not None and (tensor := constant_tensor(node)) is not None:
                self._values[name] = onnx.numpy_helper.to_array(tensor)
            else:
                (self._values[name],) = session(self.part(self.before([name]), [], [name])).run(None, {})
        return self._values[name]

    def part(self, nodes: Iterable[NodeProto], inputs: Iterable[Any], outputs: Iterable[str]) -> ModelProto:
        """Return a model of some of the nodes, with the initializers that they read."""
        nodes = list(nodes)
        read = {name for node in nodes for name in reads(node)}
        model = ModelProto(ir_version=self.proto.ir_version, functions=self.proto.functions)
        model.opset_import.extend(self.proto.opset_import)
        model.graph.name = "part"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(tensor for name, tensor in self.stored.items() if name in read)
        sparse = self.proto.graph.sparse_initializer
        model.graph.sparse_initializer.extend(tensor for tensor in sparse if tensor.values.name in read)
        model.graph.input.extend(inputs)
        if model.ir_version < 4:  # there every initializer is an input too
            model.graph.input.extend(one for one in self.proto.graph.input if one.name in self.stored.keys() & read)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return model


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Return the tensor that a `Constant` holds; None for other nodes, and where it holds plain numbers."""
    if operator(node) != "Constant":
        return None
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def reads(node: NodeProto) -> list[str]:
    """Return the names that a node reads, each once; what its branches and bodies read of the graph around too."""
    return list(dict.fromkeys(_all_reads(node)))


def inner_nodes(node: NodeProto) -> Iterator[NodeProto]:
    """Yield the nodes of the graphs that a node holds, at any depth."""
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield inner
                yield from inner_nodes(inner)


def _all_reads(node: NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = own_names(graph)
            yield from (name for inner in graph.node for name in _all_reads(inner) if name not in own)
            yield from (one.name for one in graph.output if one.name not in own)


def own_names(graph: GraphProto) -> set[str]:
    """Return the names of all values that a graph has of its own."""
    own = {tensor.name for tensor in graph.initializer} | {one.name for one in graph.input}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    return own | {name for node in graph.node for name in node.output if name}


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return an attribute of a node."""
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def is_float(array: Array) -> bool:
    """Whether an array holds floating-point numbers that torch has too."""
    return array.dtype in (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
