"""From a checked ONNX graph to an OnnxGraph: what is constant, what runs when, and what shape everything has."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.deadline import NEVER, Deadline
from nnrepair.extras import needed
from nnrepair.onnx.constants import FOLDERS, folded, folded_size, shape_of
from nnrepair.onnx.modules import Constant, Item, OnnxGraph, Permute, Sizes, Squeeze, Step, Unsqueeze
from nnrepair.onnx.naming import Names, attach, clean, layer_of, readable
from nnrepair.onnx.node import BATCH, LIMIT, Array, File, Node, Refused, Use, depends, tensor
from nnrepair.onnx.nodes import listed, opset, read_by, required, stored
from nnrepair.onnx.operators import HANDLERS, SAME
from nnrepair.onnx.sizes import Size
from nnrepair.onnx.trying import CannotRun, Entry, Mixed, run, weightless

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.defs
    import onnx.numpy_helper

# The newest operator set whose operators are known here; later ones may give an operator another meaning.
NEWEST = 28


class Importer:
    """Read one graph node by node; `values` are constants or names of values that steps compute."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        entries: Sequence[Entry],
        output: str,
        batch: int | None = None,
        alone: bool = False,
        lifted: bool = False,
        deadline: Deadline = NEVER,
    ) -> None:
        self.graph, self.deadline, self.entries, self.output = proto.graph, deadline, entries, output
        self.file, self.alone, self.lifted = File(opset(proto), batch), alone, lifted
        self.values: dict[str, Array | str] = {t.name: onnx.numpy_helper.to_array(t) for t in self.graph.initializer}
        self.values |= _counting(self.values, entries[0].input.name)
        self.examples: dict[str, list[Tensor]] = {}  # on the meta device: shapes and types alone
        self.nodes = required(self.graph, output)
        self.uses = Counter([output, *(name for node in self.nodes for name in node.input)])
        self.known = {*self.values, *(name for node in proto.graph.node for name in (*read_by(node), *node.output))}
        self.constants: dict[str, str] = {}  # values of the file that a step of their own gives when the model runs
        self.modules: dict[str, nn.Module] = {}
        self.steps: dict[str, Step] = {}  # by output
        self.shared: dict[str, bool] = {}  # whether other nodes use the weights of a module too
        self.names = Names()
        self.layers: dict[tuple[str, ...], str] = {}  # by operator and weights
        self.roots: dict[str, str] = {}  # the first name of values that have others, too
        self.room = max(LIMIT, 4 * sum(math.prod(t.dims) for t in stored(self.graph)))
        self.problems: dict[str, list[str]] = {}  # by operator
        self.lost = set[str]()  # what nodes that are refused would have computed

    def build(self) -> OnnxGraph:
        """Return the model in eval mode, or raise Refused with everything that cannot be read."""
        for entry in self.entries:
            self._enter(entry)
        self._read(self.nodes)
        result = self.values.get(self.output)
        if self.problems:
            raise Refused(f"uses what cannot be read:\n  {listed(self.problems)}")
        if not isinstance(result, str):
            raise Refused(f"uses what cannot be read:\n  the output {self.output!r} is not computed from the input")
        bare = self.alone and _bare(self.examples[result], self.entries)
        moved = _batch_axis(self.examples[result], self.entries[0])
        if moved:
            order = [moved, *(axis for axis in range(self.examples[result][0].ndim) if axis != moved)]
            result = self._own_step("points_first", Permute(order), result)
        elif bare:
            result = self._own_step("stacked", Unsqueeze([0]), result)
        first, names = self.entries[0].input, [value.name for value in self.graph.output]
        model = OnnxGraph(
            [*self.steps.values()],
            first.name,
            result,
            first.shape,
            inputs=[entry.input for entry in self.entries],
            output_names=[result if name == self.output else name for name in names],
            alone=self.alone,
            bare=bare or self.lifted,
        )
        for name, module in self.modules.items():
            attach(model, name, module)
        return model.eval()

    def _enter(self, entry: Entry) -> None:
        """Take an input of the graph; where it has no batch, the graph reads the one point without the first axis."""
        name = entry.input.name
        self.examples[name] = [torch.empty(shape, dtype=entry.dtype, device="meta") for shape in entry.shapes]
        self.values[name] = name
        if not entry.input.batched and self.alone:
            self.values[name] = self._own_step(clean(f"{name}_alone"), Squeeze([0]), name)

    def _own_step(self, name: str, module: nn.Module, *inputs: str) -> str:
        """Add a step that no node of the file is, and return the value that it gives."""
        place, value = self.names.free(name), self._unused(f"{name} of {', '.join(inputs)}")
        self._add(place, module)
        self._step(place, inputs, value)
        return value

    def _unused(self, name: str) -> str:
        """Return a name that no value has."""
        while name in self.steps or name in self.known:
            name += "'"
        return name

    def _read(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for proto in nodes:
            self.deadline.check()
            node = Node(proto, self.values, self.examples, self.file)
            missing = [name for name in node.names if name and name not in self.values]
            if self.lost.isdisjoint(missing):
                try:
                    self._take(node, missing)
                    continue
                except (CannotRun, Mixed):
                    raise
                except Refused as refusal:
                    self.problems.setdefault(node.op, []).append(f"{node.name!r}: {refusal}")
            self.lost.update(name for name in node.outputs if name)

    def _take(self, node: Node, missing: list[str]) -> None:
        """Read a node: its outputs become values."""
        if missing:
            raise Refused(f"it reads {missing[0]!r}, which is neither a first output nor a dense constant")
        _check_version(node)
        moving = any(isinstance(value, str) for value in node.inputs)
        if node.op == "If":
            return self._branch(node)
        if node.op in ("Shape", "Size"):
            self.values[node.output] = shape_of(node)
        elif node.op in SAME:
            if node.has(2) and node.constant(2).any():
                raise Refused("it is in training mode; export the model in eval mode")
            self.values[node.output] = self.values[node.names[0]]
            self.roots[node.output] = self.roots.get(node.names[0], node.names[0])
        elif moving and (self._adds_bias(node) or _shifts_by_zero(node)):
            self.values[node.output] = next(value for value in node.inputs if isinstance(value, str))
        else:
            self._compute(node, moving)

    def _compute(self, node: Node, moving: bool) -> None:
        """Compute a node's outputs: now, where all that it reads is known, otherwise by steps of the model."""
        if not moving and node.op in FOLDERS:
            try:
                self._spend(folded_size(node), "its constant result")
                self.values.update(zip(node.outputs, folded(node), strict=False))
                return
            except Refused:
                if node.op not in HANDLERS or all(node.fixed(index) for index in node.given()):
                    raise
        if node.op not in HANDLERS:
            raise Refused("it is supported on constants only")
        made = HANDLERS[node.op](node)
        uses = [each if isinstance(each, Use) else Use(each) for each in (made if isinstance(made, list) else [made])]
        now = all(node.fixed(index) for index in node.given())
        for use, output in zip(uses, node.outputs, strict=False):
            if now:
                self._spend(_size_of_result(use, node), "its constant result")
                names = node.outputs if use.several else [output]
                results = [part.numpy() for part in _computed(use, node)]
                self.values.update((name, part) for name, part in zip(names, results, strict=False) if name)
            elif output or use.several:
                self._place_step(use, node, output)

    def _place_step(self, use: Use, node: Node, output: str) -> None:
        operands = [self._operand(node, operand) for operand in use.operands]
        place = self._place(use.module, node)
        if not use.several:
            self._step(place, operands, output)
            self.values[output] = output
            return
        together = self._unused(f"results of {node.name}")
        self._step(place, operands, together)
        for index, name in enumerate(node.outputs):
            if name:
                item = self.names.free(f"{place.replace('.', '_')}_{index}")
                self._add(item, Item(index))
                self._step(item, [together], name)
                self.values[name] = name

    def _branch(self, node: Node) -> None:
        """Read the branch of an If that is always taken."""
        graph = _taken_branch(node)
        for initializer in graph.initializer:
            self.values[initializer.name] = onnx.numpy_helper.to_array(initializer)
        self.uses.update(name for inner in graph.node for name in inner.input)
        self.uses.update(value.name for value in graph.output)
        self._read(graph.node)
        for output, inner in zip(node.outputs, graph.output, strict=True):
            if inner.name in self.values:
                self.values[output] = self.values[inner.name]
            else:
                self.lost.add(output)

    def _step(self, module: str, inputs: Sequence[str], output: str) -> None:
        """Add a step, and find the shapes of what it gives."""
        results: list[list[Tensor]] = []
        twin = weightless(self.modules[module])
        for k in range(2):
            results.append(run(twin, [self.examples[name][k] for name in inputs], output))
        for made, entry in itertools.product(zip(*results, strict=True), self.entries[:1]):
            for part, shape in zip(made, entry.shapes, strict=True):
                if part.numel() > LIMIT * max(shape[0], 1):
                    raise CannotRun(
                        f"needs {part.numel() // max(shape[0], 1)} numbers for one point in {output!r}, more than "
                        f"{LIMIT}. Use smaller inputs, or split the network."
                    )
                if part.numel() == 0:
                    raise CannotRun(f"cannot be run: the result {output!r} of shape {tuple(part.shape)} is empty.")
        several: Any = results  # read by Item alone
        self.examples[output] = [result[0] for result in results] if len(results[0]) == 1 else several
        self.steps[output] = Step(module, tuple(inputs), output)

    def _spend(self, size: int, what: str) -> None:
        """Count numbers that are computed or copied while reading; a small file can ask for more than there is room."""
        if size > self.room:
            raise Refused(
                f"{what} takes {size} numbers where {self.room} are left for constants that are computed or repeated; "
                "simplify the model, or store the constant itself"
            )
        self.room -= size

    def _adds_bias(self, node: Node) -> bool:
        """Make the constant part of the nn.Linear whose output it is added to, if that is what this Add means."""
        step = next((self.steps[name] for name in node.names if name in self.steps and self.uses[name] == 1), None)
        index = next((i for i in node.given() if node.fixed(i)), None)
        if node.op != "Add" or step is None or index is None:
            return False
        layer = self.modules[step.module]
        if not isinstance(layer, nn.Linear) or layer.bias is not None or self.shared.get(step.module, True):
            return False
        array, rank = node.constant(index), len(self.examples[step.output][0].shape)
        if array.shape not in ((layer.out_features,), (1, layer.out_features)) or array.ndim > rank:
            return False
        layer.bias = nn.Parameter(node.weight(index).reshape(-1))
        return True

    def _operand(self, node: Node, operand: int | str) -> str:
        """Return the name under which an input can be read when the model runs; a constant becomes a step."""
        if isinstance(operand, str):
            return operand
        value, name = node.inputs[operand], node.names[operand]
        if isinstance(value, str):
            return value
        assert value is not None
        if name not in self.constants:
            constant, read = _module_of(value)
            self.constants[name] = self._own_step(clean(name), constant, *read)
        return self.constants[name]

    def _place(self, module: nn.Module, node: Node) -> str:
        """Name a module, a layer after its weight if possible; a layer that is there already is used again."""
        if next(module.parameters(), None) is None:
            name = self.names.free(clean(node.name))
            self._add(name, module)
            return name
        weights = (node.op, *(self.roots.get(name, name) for k, name in enumerate(node.names) if node.fixed(k)))
        name = self.layers.get(weights, "")
        if name and _alike(self.modules[name], module):
            return name
        name = self.names.free(next((path for path in map(layer_of, node.names) if path), "") or readable(node))
        self._add(name, module)
        self.layers[weights] = name
        self.shared[name] = any(self.uses[weight] > 1 for weight in weights[1:])
        return name

    def _add(self, name: str, module: nn.Module) -> None:
        self._spend(sum(t.numel() for t in (*module.parameters(), *module.buffers())), "its copy of a constant")
        self.modules[name] = module.eval()
        self.names.add(name)


def _shifts_by_zero(node: Node) -> bool:
    """Tell whether this is x - 0 or x + 0 with zeros (1, ...) of the shape of x, as ACAS Xu files begin."""
    if node.op not in ("Add", "Sub") or not isinstance(node.inputs[0], str) or not node.fixed(1):
        return False
    zeros = node.constant(1)
    return not zeros.any() and [*zeros.shape] == [1, *node.shape()[1:]]


def _batch_axis(examples: Sequence[Tensor], entry: Entry) -> int:
    """Return which axis of a result is the batch, where only one can be, and 0 else."""
    shapes, batch = [example.shape for example in examples], [shape[0] for shape in entry.shapes]
    if batch[0] == batch[1] or len({len(shape) for shape in shapes}) > 1:
        return 0
    axes = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if [*sizes] == batch]
    return axes[0] if len(axes) == 1 else 0


def _bare(examples: Sequence[Tensor], entries: Sequence[Entry]) -> bool:
    """Tell whether the result for one point needs an axis in front."""
    without = not any(entry.input.batched for entry in entries)
    return without or any(example.shape[:1] != (1,) for example in examples)


def _computed(use: Use, node: Node) -> list[Tensor]:
    """Compute the results of a module that reads constants alone."""
    with torch.no_grad():
        return run(use.module.eval(), [tensor(node.constant(int(operand))) for operand in use.operands], node)


def _size_of_result(use: Use, node: Node) -> int:
    """Return how many numbers a module that reads constants alone will compute."""
    if any(isinstance(operand, str) for operand in use.operands):
        raise Refused("it depends on shapes that are not known")
    given = [tensor(node.constant(int(operand))).to("meta") for operand in use.operands]
    return sum(part.numel() for part in run(weightless(use.module), given, node))


def _counting(values: Mapping[str, Array | str], source: str) -> dict[str, Array]:
    """Return the constants in which the number of points stands, as sizes of an input."""
    found = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype == np.int64 and value.ndim < 2 and (value == BATCH).any():
            found[name] = np.array([Size.of(source, 0) if n == BATCH else int(n) for n in value.ravel()], object)
    return found


def _check_version(node: Node) -> None:
    if not any(node.outputs):
        raise Refused("its first output has no name")
    since = onnx.defs.get_schema(node.op, node.opset).since_version if "::" not in node.op else 1
    if since > NEWEST:
        raise Refused(f"its definition changed in opset {since}; definitions up to opset {NEWEST} are known")


def _taken_branch(node: Node) -> onnx.GraphProto:
    if not node.fixed(0):
        raise CannotRun(
            f"cannot be run: which branch of the If {node.name!r} is taken depends on the input. Where one input "
            "decides that, give its value: fixed={NAME: VALUE}."
        )
    graph = node.get("then_branch" if node.constant(0).any() else "else_branch", None)
    if not isinstance(graph, onnx.GraphProto):
        raise Refused("it has no such branch")
    return graph


def _module_of(value: Array) -> tuple[nn.Module, list[str]]:
    """Return what gives a constant when the model runs, and the values whose shapes it reads."""
    if value.dtype != object:
        return Constant(tensor(value)), []
    numbers, read = depends([*value.ravel()], 0)
    whole = not any(isinstance(number, float) for number in numbers)
    return Sizes(numbers, value.shape, torch.int64 if whole else torch.float32), read


def _alike(a: nn.Module, b: nn.Module) -> bool:
    weights = zip(a.state_dict().values(), b.state_dict().values(), strict=False)
    return repr(a) == repr(b) and all(torch.equal(x, y) for x, y in weights)
