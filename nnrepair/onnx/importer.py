"""From a checked ONNX graph to an OnnxGraph: what is constant, what runs when, and what each module is called."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import torch
from torch import nn

from nnrepair.extras import needed
from nnrepair.onnx.modules import Constant, OnnxGraph, Step
from nnrepair.onnx.operators import BATCH, FOLDABLE, HANDLERS, JOINS, SAME, Array, Node, Refused

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.numpy_helper
    import onnx.reference
    import onnx.shape_inference


class Importer:
    """Read one graph node by node; `values` are constants or names of what steps compute, without the refused ones."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = proto.graph
        self.opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        self.values: dict[str, Array | str] = {t.name: onnx.numpy_helper.to_array(t) for t in self.graph.initializer}
        self.shapes = _shapes(proto)
        self.uses = Counter(name for node in self.graph.node for name in node.input)
        self.uses.update(output.name for output in self.graph.output)
        self.modules: dict[str, nn.Module] = {}
        self.steps: list[Step] = []

    def build(self) -> OnnxGraph:
        """Return the model in eval mode, or raise Refused with everything that cannot be read."""
        source, target = self._ends()
        shape = [size or None for size in self.shapes[source]]
        unsupported: dict[str, list[str]] = {}
        problems: list[str] = []
        for proto in self.graph.node:
            rank = len(self.shapes[proto.input[0]]) if proto.input and proto.input[0] in self.shapes else None
            node = Node(proto, self.values, rank, shape[0], self.opset)
            if node.op not in HANDLERS.keys() | SAME | FOLDABLE:
                unsupported.setdefault(node.op, []).append(node.name)
            elif all(name in self.values for name in node.names if name):
                try:
                    self.values[node.output] = self._value(node, proto)
                except Refused as refusal:
                    problems.append(f"{node.op} {node.name!r}: {refusal}")
        problems += [f"operator {op}: {', '.join(map(repr, names))}" for op, names in sorted(unsupported.items())]
        output = self.values.get(target)
        if problems or not isinstance(output, str):
            listed = "\n  ".join(problems or [f"the output {target!r} is not computed from the input"])
            supported = ", ".join(sorted(HANDLERS.keys() | SAME))
            raise Refused(f"uses what cannot be read:\n  {listed}\nSupported operators: {supported}.")
        model = OnnxGraph(self.steps, source, output, shape[1:])
        for name, module in self.modules.items():
            _attach(model, name, module)
        return model.eval()

    def _ends(self) -> tuple[str, str]:
        """Return the names of the input and the output."""
        inputs = [value.name for value in self.graph.input if value.name not in self.values]
        outputs = [value.name for value in self.graph.output]
        for kind, names in (("inputs", inputs), ("outputs", outputs)):
            if len(names) != 1:
                raise Refused(f"has {len(names)} {kind} ({', '.join(map(repr, names))}), expected exactly one.")
        shape = self.shapes.get(inputs[0], [])
        if len(shape) < 2:
            raise Refused(f"has an input of shape {tuple(shape)}, expected (batch, ...) with two or more axes.")
        if self.opset < 7:
            raise Refused(f"uses opset {self.opset}, expected 7 or later. Convert it with onnx.version_converter.")
        self.values[inputs[0]] = inputs[0]
        return inputs[0], outputs[0]

    def _value(self, node: Node, proto: onnx.NodeProto) -> Array | str:
        """Return what the node's output is, with a new step if it must be computed when the model runs."""
        source = next((value for value in node.inputs if isinstance(value, str)), None)
        if node.op in FOLDABLE and source is None:
            return self._folded(proto)
        if node.op == "Shape":
            return self._shape_of(node)
        if node.op in SAME:
            return self.values[node.names[0]]
        if source is not None and (self._adds_bias(node) or self._shifts_by_zero(node)):
            return source
        if node.op not in HANDLERS:
            raise Refused("it is supported on constants only")
        name = self._place(HANDLERS[node.op](node), node)
        read = range(len(node.inputs)) if node.op in JOINS else range(1)
        inputs = tuple(self._source(node, index) for index in read)
        self.steps.append(Step(name, inputs, node.output))
        return node.output

    def _folded(self, proto: onnx.NodeProto) -> Array:
        graph = onnx.helper.make_graph([proto], "constant", [], [onnx.ValueInfoProto(name=proto.output[0])])
        evaluator = onnx.reference.ReferenceEvaluator(graph, opsets={"": self.opset})
        outputs = evaluator.run(None, {name: self.values[name] for name in proto.input if name})
        return np.asarray(next(iter(outputs)))

    def _shape_of(self, node: Node) -> Array:
        shape = self.shapes.get(node.names[0], [None, None])
        if None in shape[1:]:
            raise Refused("the shape that it asks for is not known before the model runs")
        return np.array([BATCH, *shape[1:]][node.get("start", 0) : node.get("end", None)], dtype=np.int64)

    def _adds_bias(self, node: Node) -> bool:
        """Make the constant part of the nn.Linear whose output it is added to, if that is what this Add means."""
        step = next((s for s in self.steps if s.output in node.names and self.uses[s.output] == 1), None)
        index = next((i for i, value in enumerate(node.inputs) if isinstance(value, np.ndarray)), None)
        if node.op != "Add" or step is None or index is None:
            return False
        layer = self.modules[step.module]
        if not isinstance(layer, nn.Linear) or layer.bias is not None:
            return False
        bias, sharing = node.weight(index), sum(other.module == step.module for other in self.steps)
        if tuple(bias.shape) not in ((layer.out_features,), (1, layer.out_features)) or sharing > 1:
            return False
        layer.bias = nn.Parameter(bias.reshape(-1))
        return True

    def _shifts_by_zero(self, node: Node) -> bool:
        """Tell whether this is x - 0 or x + 0 with zeros (1, ...) of the shape of x, as ACAS Xu files begin."""
        zeros, shape = node.inputs[-1], self.shapes.get(node.names[0], [])
        if node.op not in ("Add", "Sub") or not isinstance(zeros, np.ndarray) or zeros.any():
            return False
        return [*zeros.shape] == [1, *shape[1:]]

    def _source(self, node: Node, index: int) -> str:
        """Return the name under which an input can be read when the model runs; a constant becomes a step."""
        value, name = node.inputs[index], node.names[index]
        if isinstance(value, str):
            return value
        if all(step.output != name for step in self.steps):
            module = self._free_name(_clean(name))
            self.modules[module] = Constant(node.weight(index))
            self.steps.append(Step(module, (), name))
        return name

    def _place(self, module: nn.Module, node: Node) -> str:
        """Name a module, a layer after its weight if possible; a layer that is there already is used again."""
        if next(module.parameters(), None) is None:
            name = self._free_name(_clean(node.name))
        else:
            name = _layer_of(node.names[1])
            if name in self.modules and _alike(self.modules[name], module):
                return name
            name = self._free_name(name or _readable(node))
        self.modules[name] = module
        return name

    def _free_name(self, wanted: str) -> str:
        """Return the wanted name, or one with a number where it is taken or holds other modules."""
        names = itertools.chain([wanted], (f"{wanted}_{number}" for number in itertools.count(2)))
        taken = [f"{name}." for name in self.modules]
        return next(n for n in names if not any(f"{n}.".startswith(t) or t.startswith(f"{n}.") for t in taken))


def _shapes(proto: onnx.ModelProto) -> dict[str, list[int | None]]:
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {
        info.name: [d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.HasField("shape")
    }


def _attach(model: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        if parent not in model._modules:
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    model.add_module(last, module)


def _alike(a: nn.Module, b: nn.Module) -> bool:
    weights = zip(a.state_dict().values(), b.state_dict().values(), strict=False)
    return repr(a) == repr(b) and all(torch.equal(x, y) for x, y in weights)


_EMPTY = OnnxGraph((), "", "", ())


def _clean(name: str) -> str:
    """Make one part of a module path: a word that is no attribute of a module."""
    word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    return f"{word}_" if hasattr(_EMPTY, word) else word


def _layer_of(weight: str) -> str:
    """Return the module path that a weight's name tells: 'block.fc1.weight' -> 'block.fc1', otherwise ''."""
    path, _, last = weight.rpartition(".")
    return ".".join(_clean(part) for part in path.split(".")) if path and last == "weight" else ""


def _readable(node: Node) -> str:
    """Make a module path of a node's name: '/block/fc1/Gemm' -> 'block.fc1', 'Operation_1_MatMul' -> 'Operation_1'."""
    short = re.sub(rf"[/_.]{node.op}(_\d+)?$", "", node.name)
    return ".".join(_clean(part) for part in short.split("/") if part) or node.op.lower()
