"""From a checked ONNX graph to an OnnxGraph: what is constant, what runs when, and what each module is called."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from nnrepair.deadline import NEVER, Deadline
from nnrepair.extras import needed
from nnrepair.onnx.constants import FOLDERS, folded, folded_size
from nnrepair.onnx.modules import Constant, OnnxGraph, Step
from nnrepair.onnx.node import BATCH, DTYPES, LIMIT, Array, File, Node, Refused, Shape, operator
from nnrepair.onnx.operators import HANDLERS, JOINS, SAME

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.defs
    import onnx.numpy_helper
    import onnx.shape_inference

# The newest operator set whose operators are known here; later ones may give an operator another meaning.
NEWEST = 28
# Most numbers that onnx may write down to follow sizes from Shape to Reshape; real networks have a handful each time.
FOLLOWED = 2**18
# Most levels of submodules: Python walks through them recursively.
DEPTH = 30


class Importer:
    """Read one graph node by node; `values` are constants or names of values that steps compute."""

    def __init__(self, proto: onnx.ModelProto, deadline: Deadline = NEVER) -> None:
        self.graph, self.deadline = proto.graph, deadline
        deadline.check()
        self.opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.values: dict[str, Array | str] = {t.name: onnx.numpy_helper.to_array(t) for t in self.graph.initializer}
        self.unsupported, readable = _sorted_out(self.graph)
        self.shapes = _shapes(proto, readable)
        self.dtype = np.dtype(np.float32)  # of the input
        self.uses = Counter(name for node in self.graph.node for name in node.input)
        self.uses.update(output.name for output in self.graph.output)
        self.modules: dict[str, nn.Module] = {}
        self.steps: dict[str, Step] = {}  # by output
        self.sharing = Counter[str]()  # how many steps a module serves
        self.taken = set[str]()  # paths that modules have, or that lead to them
        self.numbers = Counter[str]()  # how often a path was wanted again
        self.room = max(LIMIT, 4 * sum(math.prod(t.dims) for t in _stored(self.graph)))

    def build(self) -> OnnxGraph:
        """Return the model in eval mode, or raise Refused with everything that cannot be read."""
        source, target = self._ends()
        file = File(self.opset, self.dtype, self.shapes[source][0] or None)
        problems: list[str] = []
        lost = set[str]()  # what nodes that are refused would have computed
        for proto in self.graph.node:
            self.deadline.check()
            node = Node(proto, self.values, self.shapes, file)
            missing = [name for name in node.names if name and name not in self.values]
            if node.op in self.unsupported or not lost.isdisjoint(missing):
                pass  # it may be readable, but what it reads is not
            else:
                try:
                    self.values[node.output] = self._value(node, missing)
                    continue
                except Refused as refusal:
                    problems.append(f"{node.op} {node.name!r}: {refusal}")
            lost.update(node.outputs)
        problems += [f"operator {op}: {', '.join(map(repr, names))}" for op, names in sorted(self.unsupported.items())]
        output = self.values.get(target)
        if problems or not isinstance(output, str):
            listed = "\n  ".join(problems or [f"the output {target!r} is not computed from the input"])
            supported = ", ".join(sorted(HANDLERS.keys() | SAME))
            raise Refused(f"uses what cannot be read:\n  {listed}\nSupported operators: {supported}.")
        model = OnnxGraph([*self.steps.values()], source, output, self.shapes[source][1:])
        for name, module in self.modules.items():
            _attach(model, name, module)
        return model.eval()

    def _ends(self) -> tuple[str, str]:
        """Return the names of the input and the output; check both, and what else is said of the whole file."""
        inputs = [value for value in self.graph.input if value.name not in self.values]
        outputs = [value.name for value in self.graph.output]
        for kind, names in (("inputs", [value.name for value in inputs]), ("outputs", outputs)):
            if len(names) != 1:
                raise Refused(f"has {len(names)} {kind} ({', '.join(map(repr, names))}), expected exactly one.")
        source = inputs[0].name
        shape, dtype = self.shapes.get(source, []), DTYPES.get(inputs[0].type.tensor_type.elem_type)
        if len(shape) < 2:
            raise Refused(f"has an input of shape {tuple(shape)}, expected (batch, ...) with two or more axes.")
        if 0 in shape[1:]:
            raise Refused(f"has an input of shape {tuple(shape)}, which holds no numbers.")
        if dtype is None:
            given = onnx.TensorProto.DataType.Name(inputs[0].type.tensor_type.elem_type)
            raise Refused(f"takes inputs of type {given}, expected {', '.join(map(str, DTYPES.values()))}.")
        newest = onnx.defs.onnx_opset_version()
        if not 7 <= self.opset <= newest:
            raise Refused(
                f"uses opset {self.opset}, expected 7 to {newest}, the newest that the installed onnx knows. "
                "Convert it with onnx.version_converter."
            )
        sizes = {name: math.prod(size or 1 for size in dims[1:]) for name, dims in self.shapes.items()}
        largest = max(sizes, key=lambda name: sizes[name])
        if sizes[largest] > LIMIT:
            raise Refused(
                f"needs {sizes[largest]} numbers for one point in its value {largest!r}, more than {LIMIT}. "
                "Use smaller inputs, or split the network."
            )
        self.values[source], self.dtype = source, dtype
        return source, outputs[0]

    def _value(self, node: Node, missing: list[str]) -> Array | str:
        """Return what the node's output is, with a new step if it must be computed when the model runs."""
        if missing:
            raise Refused(f"it reads {missing[0]!r}, which is neither a first output nor a dense constant")
        if not node.output:
            raise Refused("its first output has no name")
        since = onnx.defs.get_schema(node.op, self.opset).since_version
        if since > NEWEST:
            raise Refused(f"its definition changed in opset {since}; definitions up to opset {NEWEST} are known")
        source = next((value for value in node.inputs if isinstance(value, str)), None)
        if node.op in FOLDERS and source is None:
            return self._folded(node)
        if node.op == "Shape":
            return self._shape_of(node)
        if node.op in SAME:
            if node.has(2) and node.constant(2).any():
                raise Refused("it is in training mode; export the model in eval mode")
            return self.values[node.names[0]]
        if node.op not in HANDLERS:
            raise Refused("it is supported on constants only")
        if source is None:
            raise Refused("it works on constants alone: store its result, as tools that simplify ONNX files do")
        if self._adds_bias(node) or self._shifts_by_zero(node):
            return source
        name = self._place(HANDLERS[node.op](node), node)
        read = range(len(node.inputs)) if node.op in JOINS else range(1)
        inputs = tuple(self._source(node, index) for index in read)
        shape = self.shapes.get(node.output, [])
        if 0 in shape[1:]:
            raise Refused(f"its result of shape {tuple(shape)} is empty")
        self._step(Step(name, inputs, node.output))
        return node.output

    def _step(self, step: Step) -> None:
        self.steps[step.output] = step
        self.sharing[step.module] += 1

    def _spend(self, size: int, what: str) -> None:
        """Count numbers that are computed or copied while reading; a small file can ask for more than there is room."""
        if size > self.room:
            raise Refused(
                f"{what} takes {size} numbers where {self.room} are left for constants that are computed or repeated; "
                "simplify the model, or store the constant itself"
            )
        self.room -= size

    def _folded(self, node: Node) -> Array:
        self._spend(folded_size(node), "its constant result")
        return folded(node)

    def _shape_of(self, node: Node) -> Array:
        shape = self.shapes.get(node.names[0], [None, None])
        if None in shape[1:]:
            raise Refused("the shape that it asks for is not known before the model runs")
        return np.array([BATCH, *shape[1:]][node.get("start", 0) : node.get("end", None)], dtype=np.int64)

    def _adds_bias(self, node: Node) -> bool:
        """Make the constant part of the nn.Linear whose output it is added to, if that is what this Add means."""
        step = next((self.steps[name] for name in node.names if name in self.steps and self.uses[name] == 1), None)
        index = next((i for i, value in enumerate(node.inputs) if isinstance(value, np.ndarray)), None)
        if node.op != "Add" or step is None or index is None:
            return False
        layer = self.modules[step.module]
        if not isinstance(layer, nn.Linear) or layer.bias is not None:
            return False
        bias = node.weight(index)
        if tuple(bias.shape) not in ((layer.out_features,), (1, layer.out_features)) or self.sharing[step.module] > 1:
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
        if name not in self.steps:
            module = self._free_name(_clean(name))
            self._add(module, Constant(node.weight(index)))
            self._step(Step(module, (), name))
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
        self._add(name, module)
        return name

    def _add(self, name: str, module: nn.Module) -> None:
        self._spend(sum(t.numel() for t in (*module.parameters(), *module.buffers())), "its copy of a constant")
        self.modules[name] = module
        self.taken.update(_paths(name))

    def _free_name(self, wanted: str) -> str:
        """Return the wanted name; a number follows where it is taken, and no other module holds it."""
        *outer, _ = _paths(wanted)
        wanted = name = wanted.replace(".", "_") if any(part in self.modules for part in outer) else wanted
        while name in self.taken:
            self.numbers[wanted] += 1
            name = f"{wanted}_{self.numbers[wanted] + 1}"
        return name


def _paths(name: str) -> Iterator[str]:
    """Give 'a', 'a.b' and 'a.b.c' for 'a.b.c'."""
    return itertools.accumulate(name.split("."), "{}.{}".format)


def _stored(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Return the dense constants of a graph."""
    return [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]


def _sorted_out(graph: onnx.GraphProto) -> tuple[dict[str, list[str]], list[onnx.NodeProto]]:
    """Return the names of nodes whose operators are not supported, by operator, and the nodes that may be read.

    Not among these are operators for constants that read what depends on the input: the rest is for onnx's shape
    inference, whose Slice ends the process where a size before it came out negative (onnx 1.23).
    """
    unsupported: dict[str, list[str]] = {}
    readable: list[onnx.NodeProto] = []
    constants = {tensor.name for tensor in graph.initializer}
    moving = {value.name for value in graph.input} - constants
    for node in graph.node:
        op, moves = operator(node), not moving.isdisjoint(node.input)
        known = op in HANDLERS.keys() | SAME | FOLDERS.keys()
        fits = op == "Shape" or op in SAME or op in (HANDLERS if moves else FOLDERS)
        if not known:
            unsupported.setdefault(op, []).append(node.name or node.output[0])
        elif fits:
            readable.append(node)
        if op != "Shape" and (moves or not fits):
            moving.update(node.output)
    return unsupported, readable


def _shapes(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, Shape]:
    """Infer shapes from that of the input; what the file says of other values is not needed, and may be wrong."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    complete = len(nodes) == len(proto.graph.node)
    for field in ("value_info", *([] if complete else ["node"])):
        bare.graph.ClearField(field)
    bare.graph.node.extend([] if complete else nodes)
    for value in bare.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if _size(dim) is None:
                dim.ClearField("value")
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    follow = _followed(bare.graph) < FOLLOWED
    graph = onnx.shape_inference.infer_shapes(bare, check_type=complete, strict_mode=complete, data_prop=follow).graph
    return {
        info.name: [_size(dim) for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.HasField("shape")
    }


def _followed(graph: onnx.GraphProto) -> int:
    """Return how many numbers onnx writes down where it follows sizes through a graph; each Concat may double them."""
    known = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer if len(tensor.dims) < 2}
    for node in graph.node:
        given = [known.get(name, 0) for name in node.input]
        tensors = [attribute.t for attribute in node.attribute if attribute.HasField("t") and len(attribute.t.dims) < 2]
        given += [math.prod(tensor.dims) for tensor in tensors]
        made = sum(given) if node.op_type == "Concat" else max(given, default=0)
        known.update(dict.fromkeys(node.output, made))
    return sum(known.values())


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    known = dim.HasField("dim_value") and dim.dim_value >= 0  # some exporters write -1 for an open size
    return int(dim.dim_value) if known else None


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


def _path(parts: Sequence[str]) -> str:
    return ".".join(_clean(part) for part in parts[-DEPTH:])


def _layer_of(weight: str) -> str:
    """Return the module path that a weight's name tells: 'block.fc1.weight' -> 'block.fc1', otherwise ''."""
    path, _, last = weight.rpartition(".")
    return _path(path.split(".")) if path and last == "weight" else ""


def _readable(node: Node) -> str:
    """Make a module path of a node's name: '/block/fc1/Gemm' -> 'block.fc1', 'Operation_1_MatMul' -> 'Operation_1'."""
    short = re.sub(rf"[/_.]{node.op}(_\d+)?$", "", node.name)
    return _path([part for part in short.split("/") if part]) or node.op.lower()
