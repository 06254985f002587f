"""An ONNX graph cut in front of one of its layers: what is before may be anything, what is behind becomes a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nnrepair.extras import needed
from nnrepair.onnx.inplace.choosing import by_hand, weight_of
from nnrepair.onnx.inplace.graph import Graph, is_float, reads
from nnrepair.onnx.inplace.stored import Stored, stored
from nnrepair.onnx.node import operator

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.numpy_helper
    from onnx import ModelProto, NodeProto, TensorProto

Array = npt.NDArray[Any]


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
        inner: the same of the values before it, the largest of all.
    """

    graph: Graph
    layer: NodeProto
    output: str
    behind: list[NodeProto] = field(init=False)
    crossing: list[str] = field(init=False)
    step: float = field(init=False, default=0.0)
    inner: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        graph, later = self.graph, set[str]()
        chosen = list[NodeProto]()
        for node in graph.before([self.output]):
            if node is self.layer or not later.isdisjoint(reads(node)):
                chosen.append(node)
                later.update(node.output)
        left = [name for node in chosen for name in reads(node)]
        counting, counts = dict[int, NodeProto](), self._counting()
        while left:
            name = left.pop()
            if name not in later and name in counts:
                node = graph.producers[name]
                later.update(node.output)
                counting[id(node)] = node
                left += [] if operator(node) == "Shape" else reads(node)
        mine = {id(node) for node in chosen} | counting.keys()
        self.behind = [node for node in graph.nodes if id(node) in mine]
        read = dict.fromkeys(name for node in self.behind for name in reads(node))
        self.crossing = [name for name in read if name not in graph.fixed and name not in later]

    def _counting(self) -> set[str]:
        """Return the values that depend on nothing but the sizes of others."""
        found, fixed = set[str](), self.graph.fixed
        for node in self.graph.nodes:
            moving = [name for name in reads(node) if name not in fixed]
            if operator(node) == "Shape" or (moving and found.issuperset(moving)):
                found.update(name for name in node.output if name not in fixed)
        return found

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
                    if node is not self.layer and name == weight_of(self.graph, node) and (why := by_hand(array)):
                        found[name] = replace(found[name], frozen=found[name].frozen or f"{name!r} has {why}")
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
                    scale = float(np.max(self.graph.value(node.input[1])))
                    self.inner = max(self.inner, scale)
                    if any(self.output in one.output for one in users):
                        self.step = scale
                    continue
            if op == "DequantizeLinear" and node.input[0] in gone:
                node = onnx.helper.make_node("Identity", [gone[node.input[0]]], list(node.output), name=node.name)
            found.append(node)
        return found
