"""An ONNX graph cut in front of one of its layers: what is before may be anything, what is behind becomes a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nnrepair.errors import InvalidInput, UnsupportedModel, near_matches
from nnrepair.extras import needed
from nnrepair.onnx.graph import Graph, is_float, reads
from nnrepair.onnx.node import operator
from nnrepair.onnx.stored import Stored, stored

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.numpy_helper
    from onnx import ModelProto, NodeProto, TensorProto

Array = npt.NDArray[Any]
#: Layers that can be repaired, and which of their inputs may be the weight.
WEIGHTS = {"Gemm": (1,), "MatMul": (1, 0), "Conv": (1,), "ConvTranspose": (1,)}
#: Types of outputs that can be looked at, where a file tells them.
FLOATS = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
#: Names that a message lists.
LISTED = 12


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
        f"No output of the model ({', '.join(outputs)}) has floating-point numbers that a layer with weights decides "
        f"({', '.join(WEIGHTS)}; not inside of branches, loops, or in integers). Name an inner value with output=."
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


def layer_of(graph: Graph, output: str, wanted: str | None) -> NodeProto:
    """Return the layer to repair: the one that is named (node, result or weight), or the last whose weight may change.

    Raises:
        InvalidInput: no layer has this name.
        UnsupportedModel: there is none, or its weight cannot be changed.
    """
    found = layers(graph, output)
    if not found:
        raise UnsupportedModel(
            f"No {', '.join(WEIGHTS)} with constant weights leads to {output!r}; nothing could be repaired in place."
        )
    kept = {name: stored(graph, weight_of(graph, node) or "") for name, node in found.items()}
    if wanted is None:
        free = [name for name in found if not kept[name].frozen]
        if not free:
            reasons = "; ".join(one.frozen for one in kept.values())
            raise UnsupportedModel(f"No layer can be changed by itself: {reasons[:400]}.")
        return found[free[-1]]
    for name, node in found.items():
        if wanted in (node.name, name, *node.input[:2], kept[name].name, kept[name].name.removesuffix(".weight")):
            if kept[name].frozen and operator(node) == "MatMul":
                raise UnsupportedModel(f"Layer {wanted!r} cannot be changed by itself: {kept[name].frozen}.")
            return node
    names = [node.name or name for name, node in found.items()]
    shown = ", ".join(names[-LISTED:])
    raise InvalidInput(
        f"The model has no layer {wanted!r}.{near_matches(wanted, names)} The last of its {len(names)} layers: {shown}."
    )


@dataclass
class Cut:
    """What is before a layer, and what is behind it.

    Attributes:
        graph: the whole graph.
        layer: the first operation behind.
        output: the value that is looked at.
        behind: operations that depend on the layer, and what computes sizes for them, in order.
        crossing: values that these read and that are computed before them, or inputs of the graph.
        step: how far apart the numbers of the output are where it is quantised; 0 where it is not.
    """

    graph: Graph
    layer: NodeProto
    output: str
    behind: list[NodeProto] = field(init=False)
    crossing: list[str] = field(init=False)
    step: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        graph, later = self.graph, set[str]()
        chosen = list[NodeProto]()
        for node in graph.before([self.output]):
            if node is self.layer or not later.isdisjoint(reads(node)):
                chosen.append(node)
                later.update(node.output)
        left = [name for node in chosen for name in reads(node)]
        counting = dict[int, NodeProto]()
        while left:
            name = left.pop()
            if name not in later and name not in graph.fixed and self._counts(name):
                node = graph.producers[name]
                later.update(node.output)
                counting[id(node)] = node
                left += [] if operator(node) == "Shape" else reads(node)
        mine = {id(node) for node in chosen} | counting.keys()
        self.behind = [node for node in graph.nodes if id(node) in mine]
        read = dict.fromkeys(name for node in self.behind for name in reads(node))
        self.crossing = [name for name in read if name not in graph.fixed and name not in later]

    def _counts(self, name: str) -> bool:
        """Whether a value depends on nothing but the sizes of others."""
        node = self.graph.producers.get(name)
        if node is None or operator(node) == "Shape":
            return node is not None
        moving = [one for one in reads(node) if one not in self.graph.fixed]
        return bool(moving) and all(self._counts(one) for one in moving)

    @property
    def constants(self) -> list[str]:
        """The constants that the operations behind read."""
        read = dict.fromkeys(name for node in self.behind for name in reads(node))
        return [name for name in read if name in self.graph.fixed]

    def weights(self) -> dict[str, Stored]:
        """Return, by name, where floating-point constants behind are kept; single numbers are settings, no weights."""
        found = {}
        for node in self.behind:
            for name in reads(node):
                array = self.graph.value(name) if name in self.graph.fixed else np.zeros(())
                if is_float(array) and array.ndim and operator(node) not in ("Resize", "Upsample", "Clip", "Pow"):
                    found[name] = stored(self.graph, name)
        return found

    def before(self) -> ModelProto:
        """Return the model that computes what crosses the cut, and the output."""
        names = [name for name in self.crossing if name in self.graph.producers]
        return self.graph.part(self.graph.before([*names, self.output]), self.graph.inputs, [*names, self.output])

    def suffix(
        self, values: Mapping[str, tuple[np.dtype[Any], Sequence[int | str]]], constants: Mapping[str, Array]
    ) -> ModelProto:
        """Return the model behind the cut.

        Args:
            values: type and shape of what crosses it, by name; texts for sizes that are open.
            constants: numbers in place of those of the file, by name.
        """
        known = {name: constants.get(name, self.graph.value(name)) for name in self.constants}
        tensors = [onnx.numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in known.items()]
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtype), list(shape))
            for name, (dtype, shape) in values.items()
        ]
        output = onnx.helper.make_tensor_value_info(self.output, TensorProto.UNDEFINED, None)
        model = ModelProto(ir_version=max(self.graph.proto.ir_version, 4))
        model.opset_import.extend(self.graph.proto.opset_import)
        model.graph.CopyFrom(onnx.helper.make_graph(self._unrounded(), "suffix", inputs, [output], tensors))
        return model

    def _unrounded(self) -> list[NodeProto]:
        """Return the operations behind, without pairs that round to a grid: no gradient leads through them."""
        found, gone = list[NodeProto](), dict[str, str]()
        for node in self.behind:
            op = operator(node)
            if op == "QuantizeLinear" and node.output[0] != self.output:
                users = [one for one in self.behind if node.output[0] in reads(one)]
                if users and all(operator(one) == "DequantizeLinear" for one in users):
                    gone[node.output[0]] = node.input[0]
                    self.step = max(self.step, float(np.max(self.graph.value(node.input[1]))))
                    continue
            if op == "DequantizeLinear" and node.input[0] in gone:
                node = onnx.helper.make_node("Identity", [gone[node.input[0]]], list(node.output), name=node.name)
            found.append(node)
        return found
