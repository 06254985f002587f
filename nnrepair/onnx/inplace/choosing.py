"""Which value of an ONNX graph is looked at, and which layer before it is repaired."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from nnrepair.errors import InvalidInput, UnsupportedModel, near_matches
from nnrepair.extras import needed
from nnrepair.onnx.inplace.graph import Graph, inner_nodes, is_float, reads
from nnrepair.onnx.inplace.stored import stored
from nnrepair.onnx.node import operator

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    from onnx import NodeProto, TensorProto

Array = npt.NDArray[Any]
#: Layers that can be repaired, and which of their inputs may be the weight.
WEIGHTS = {"Gemm": (1,), "MatMul": (1, 0), "Conv": (1,), "ConvTranspose": (1,), "com.microsoft::FusedMatMul": (1, 0)}
#: Types of outputs that can be looked at, where a file tells them.
FLOATS = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
#: Names that a message lists.
LISTED = 12
#: Weights of fewer numbers tell nothing of where they come from; tables of as many numbers are weights.
FEW, HEAVY = 4, 32


def output_of(graph: Graph, wanted: str | None) -> str:
    """Return the value to look at: the one that is named, or the first output of floating-point numbers.

    Raises:
        InvalidInput: there is no such value, or it does not depend on the inputs.
        UnsupportedModel: no output has floating-point numbers.
    """
    outputs = [output.name for output in graph.proto.graph.output]
    if wanted is not None:
        if wanted not in graph.producers or wanted in graph.fixed:
            hint = near_matches(wanted, graph.producers)
            raise InvalidInput(f"The model computes no {wanted!r}.{hint} Its outputs: {', '.join(outputs)}.")
        return wanted
    types = {output.name: output.type for output in graph.proto.graph.output}
    for name in outputs:
        kind = types[name]
        numbers = kind.WhichOneof("value") in (None, "tensor_type") and kind.tensor_type.elem_type in FLOATS
        if numbers and name in graph.producers and name not in graph.fixed and layers(graph, name):
            return str(name)
    raise UnsupportedModel(
        f"No output of the model ({', '.join(outputs)}) has floating-point numbers that a layer with constant weights "
        f"decides ({', '.join(WEIGHTS)}).{elsewhere(graph, outputs)} Another value can be named with output=."
    )


def layers(graph: Graph, output: str) -> dict[str, NodeProto]:
    """Return the layers with constant weights that an output depends on, by the name of what they return, in order."""
    return {node.output[0]: node for node in graph.before([output]) if weight_of(graph, node) is not None}


def weight_of(graph: Graph, node: NodeProto) -> str | None:
    """Return the name of a layer's weight; None where it is no layer, or its weight is computed from inputs."""
    for index in WEIGHTS.get(operator(node), ()):
        if len(node.input) > index and node.input[index] in graph.fixed:
            others = [name for k, name in enumerate(node.input[:2]) if k != index]
            if all(name not in graph.fixed for name in others) and is_float(graph.value(node.input[index])):
                return str(node.input[index])
    return None


def by_hand(weight: Array) -> str:
    """Return what tells that a layer's numbers were written and not learned; '' where nothing does.

    Blurs, sums over bins, selections and identities end many networks, as layers that nobody trained.
    """
    if weight.size < FEW or not weight.any():  # zeros are what many layers begin with
        return ""
    if (weight == np.rint(weight)).all():
        return "whole numbers alone"
    if (weight == weight.flat[0]).all():
        return "one number everywhere"
    if weight.ndim > 2 and len(weight) > 1 and (weight == weight[:1]).all():
        return "the same numbers for every channel"
    if weight[0, 0].size >= FEW and (weight == np.flip(weight, tuple(range(2, weight.ndim)))).all():
        return "kernels that are mirror images of themselves"
    return ""


def passed_over(graph: Graph, output: str, layer: NodeProto) -> list[str]:
    """Say which layers behind the one that is repaired were not taken since nobody trained them."""
    found = layers(graph, output)
    later = [*found][[*found].index(layer.output[0]) + 1 :]
    reasons = {name: by_hand(graph.value(weight_of(graph, found[name]) or "")) for name in later}
    return [
        f"layer {found[name].name or name} behind it has {why}, as if written by hand; layer= takes it all the same"
        for name, why in reasons.items()
        if why
    ]


def elsewhere(graph: Graph, outputs: list[str]) -> str:
    """Say where the weights lie that lead to some outputs, where no layer was found."""
    said, others = list[str](), Counter[str]()
    for node in graph.before(outputs):
        op, name = operator(node), node.name or node.output[0]
        inside = Counter(operator(one) for one in inner_nodes(node) if operator(one) in WEIGHTS)
        if op == "If" and inside:
            read = {node.input[0], *(one for before in graph.before([node.input[0]]) for one in reads(before))}
            deciding = ", ".join(f"{one.name!r}: VALUE" for one in graph.inputs if one.name in read)
            advice = f": fixed={{{deciding}}} makes the network one of them" if deciding else ""
            said.append(f"layers lie in the branches of If {name!r}{advice}")
        elif inside:
            said.append(f"layers lie in the body of {op} {name!r}, which runs several times: none can change by itself")
        elif op not in WEIGHTS and _holds_weights(graph, node):
            others[op] += 1
    if others:
        said.append(f"weights are in {', '.join(others)}, which cannot be repaired in place")
    return f" Here {'; '.join(said)}." if said else ""


def _holds_weights(graph: Graph, node: NodeProto) -> bool:
    """Whether a node of any kind reads many constant numbers, or has a model of scikit-learn in its attributes."""
    arrays = [graph.value(name) for name in reads(node) if name in graph.fixed]
    if any(array.ndim > 1 and array.size >= HEAVY for array in arrays):
        return True
    return any(one.name.startswith(("nodes_", "coefficients", "support_vectors")) for one in node.attribute)


def layer_of(graph: Graph, output: str, wanted: str | None) -> NodeProto:
    """Return the layer to repair: the one that is named (node, result or weight), or the last one that was learned.

    Raises:
        InvalidInput: no layer has this name.
        UnsupportedModel: there is none, or its weight cannot be changed.
    """
    found = layers(graph, output)
    if not found:
        raise UnsupportedModel(
            f"No {', '.join(WEIGHTS)} with constant weights leads to {output!r}; nothing could be repaired in place."
            f"{elsewhere(graph, [output])}"
        )
    weights = {name: weight_of(graph, node) or "" for name, node in found.items()}
    kept = {name: stored(graph, weight) for name, weight in weights.items()}
    if wanted is None:
        free = [name for name in found if not kept[name].frozen]
        if not free:
            reasons = "; ".join(one.frozen for one in kept.values())
            raise UnsupportedModel(f"No layer can be changed by itself: {reasons[:400]}.")
        learned = [name for name in free if not by_hand(graph.value(weights[name]))]
        return found[(learned or free)[-1]]
    for name, node in found.items():
        if wanted in (node.name, name, *node.input[:2], kept[name].name, kept[name].name.removesuffix(".weight")):
            if kept[name].frozen and operator(node) == "MatMul":
                raise UnsupportedModel(f"Layer {wanted!r} cannot be changed by itself: {kept[name].frozen}.")
            return node
    names = [node.name or name for name, node in found.items()]
    shown = ", ".join(names[-LISTED:])
    raise InvalidInput(
        f"The model has no layer {wanted!r}.{near_matches(wanted, names)} The last of its {len(names)} layers: {shown}."
        f"{elsewhere(graph, [output])}"
    )
