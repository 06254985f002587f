"""Branches that are always taken: their operations become part of the graph around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nnrepair.errors import InvalidInput
from nnrepair.extras import needed
from nnrepair.onnx.inplace.graph import Graph, attribute, own_names
from nnrepair.onnx.node import operator

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.numpy_helper
    from onnx import GraphProto, ModelProto, NodeProto

#: Where a tensor lies that is not in the main graph: the results and attributes of the nodes that hold it, its name.
Way = tuple[str, ...]


def with_fixed(proto: ModelProto, fixed: Mapping[str, Any]) -> ModelProto:
    """Return a model some of whose inputs are constants.

    Raises:
        InvalidInput: it has no such input, or what is given is no value of it.
    """
    if not fixed:
        return proto
    made = ModelProto()
    made.CopyFrom(proto)
    inputs = {one.name: one for one in made.graph.input}
    for name, given in fixed.items():
        if name not in inputs:
            raise InvalidInput(f"fixed: the model has no input {name!r}. Its inputs: {', '.join(inputs)}.")
        kind = inputs[name].type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        try:
            array = np.asarray(given).astype(dtype)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"fixed: {name!r} takes numbers of type {dtype}, got {given!r}.") from error
        if array.size == 1 and kind.HasField("shape"):  # 16000 for one number, however many axes it has
            array = array.reshape([1] * len(kind.shape.dim))
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        made.graph.input.remove(inputs[name])
    return made


def unfolded(proto: ModelProto, given: Iterable[str] = ()) -> tuple[Graph, dict[str, Way]]:
    """Return a graph without branches that are always taken, and where in the file the tensors lie that these hold.

    Args:
        proto: the model.
        given: see `Graph`.
    """
    ways, given = dict[str, Way](), tuple(given)
    while True:
        graph = Graph(proto, given)
        node = next((one for one in graph.nodes if operator(one) == "If" and one.input[0] in graph.fixed), None)
        if node is None:
            return graph, ways
        proto = _without(proto, node, bool(graph.value(node.input[0]).any()), ways)


def _without(proto: ModelProto, node: NodeProto, taken: bool, ways: dict[str, Way]) -> ModelProto:
    """Return a model in which an If is the branch that is taken."""
    side = "then_branch" if taken else "else_branch"
    inner: GraphProto = attribute(node, side, None)
    known = {name for one in proto.graph.node for name in one.output} | own_names(proto.graph)
    names = {name: _free(name, known) for name in own_names(inner)}
    place = _inside(ways, node.output[0])
    made = ModelProto()
    made.CopyFrom(proto)
    index = next(k for k, one in enumerate(proto.graph.node) if one.output[:1] == node.output[:1])
    nodes, after = list(made.graph.node[:index]), list(made.graph.node[index + 1 :])
    for one in inner.node:
        nodes.append(_renamed(one, names))
        if operator(one) in ("Constant", "If"):
            ways[names[one.output[0]]] = (*place, side, one.output[0])
    nodes += [
        onnx.helper.make_node("Identity", [names.get(result.name, result.name)], [name])
        for name, result in zip(node.output, inner.output, strict=True)
        if name
    ]
    del made.graph.node[:]
    made.graph.node.extend([*nodes, *after])
    for tensor in inner.initializer:
        copy = made.graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
        ways[copy.name] = (*place, side, tensor.name)
    for sparse in inner.sparse_initializer:
        made.graph.sparse_initializer.add().CopyFrom(sparse)
        made.graph.sparse_initializer[-1].values.name = names[sparse.values.name]
    return made


def _inside(ways: Mapping[str, Way], result: str) -> Way:
    """Return where the If lies that gives a result."""
    return ways.get(result, (result,))


def _free(name: str, known: set[str]) -> str:
    while name in known:
        name += "'"
    known.add(name)
    return name


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """Return a node that reads and gives values under other names, also in the graphs that it holds."""
    made = NodeProto()
    made.CopyFrom(node)
    _rename(made, names)
    return made


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    for values in (node.input, node.output):
        values[:] = [names.get(name, name) for name in values]
    for one in node.attribute:
        for graph in (*one.graphs, *([one.g] if one.HasField("g") else [])):
            own = own_names(graph)
            left = {name: new for name, new in names.items() if name not in own}
            for inner in graph.node:
                _rename(inner, left)
            for result in graph.output:
                result.name = left.get(result.name, result.name)
