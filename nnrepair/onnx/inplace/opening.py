"""Read any ONNX file for a repair in place: where it is cut, what is behind, and where its numbers are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.errors import InvalidInput, UnsupportedModel, first_line
from nnrepair.extras import needed
from nnrepair.files import as_path
from nnrepair.onnx.attempts import Plan, read_graph
from nnrepair.onnx.inplace.branches import unfolded, with_fixed
from nnrepair.onnx.inplace.choosing import elsewhere, layer_of, output_of, passed_over
from nnrepair.onnx.inplace.cut import Cut
from nnrepair.onnx.inplace.deployed import ordered, ports_of
from nnrepair.onnx.inplace.graph import Graph, is_float
from nnrepair.onnx.inplace.integers import with_floats
from nnrepair.onnx.inplace.module import AGREE, InPlace, Place, Source
from nnrepair.onnx.inplace.runtime import Port, Runtime
from nnrepair.onnx.inplace.stored import Stored
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.onnx.node import Refused
from nnrepair.onnx.reader import parsed

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.inliner

Array = npt.NDArray[Any]
#: Points on which what was read is compared with onnxruntime.
FEW = 4
#: Sizes that are tried where a file leaves some open.
OPEN = (1, 2, 3, 4, 5, 6, 7, 8, 16, 28, 32, 64, 128, 224, 256, 512, 576, 1024, 4096, 16000)


def in_place(
    path: str | os.PathLike[str],
    *,
    layer: str | None = None,
    output: str | None = None,
    example: Any = None,
    fixed: Mapping[str, Any] | None = None,
    deadline: Deadline = NEVER,
) -> InPlace:
    """Read any ONNX file that onnxruntime runs as a module whose last layer can be repaired.

    Operators before the layer may be any that onnxruntime knows; those behind it must be among those that `load` reads.
    Files without an axis for points, or for one point only, run point by point.

    Args:
        path: a file, with its weights in it or beside it.
        layer: a node, its result or its weight; by default the last Gemm, MatMul, Conv or ConvTranspose, also of
            integers, whose weight is its own and was learned.
        output: the value to return, also one inside; by default the first output of floating-point numbers.
        example: some inputs (n, ...): a tensor, a tuple of tensors, or a dictionary by the names of the file's inputs;
            by default they are made up.
        fixed: numbers or arrays that take the place of inputs, by name, such as one that decides which branch runs.
        deadline: looked at between the steps of reading.

    Raises:
        InvalidInput: the file is missing or damaged, or has no such layer or output.
        UnsupportedModel: onnxruntime does not run it, there is no such layer, or what follows it cannot be read.
        OutOfTime: it is too late.

    Example:
        >>> model = in_place("model.onnx")  # doctest: +SKIP
        >>> result = nnrepair.fix(model, (mistakes, labels), kept)  # doctest: +SKIP
        >>> result.model.save("repaired.onnx")  # doctest: +SKIP
    """
    try:
        return _read(as_path(path, "onnx.in_place"), layer, output, example, dict(fixed or {}), deadline)
    except (OutOfTime, InvalidInput, UnsupportedModel):
        raise
    except Refused as refusal:
        raise UnsupportedModel(f"{path} {refusal}") from refusal
    except (MemoryError, RecursionError) as error:
        raise UnsupportedModel(f"{path} is too large or too deep to be read: {type(error).__name__}.") from error
    except Exception as error:  # a damaged file may break anything
        raise InvalidInput(f"{path} is malformed: {type(error).__name__}: {first_line(error)}") from error


def _read(
    path: Path, layer: str | None, output: str | None, example: Any, fixed: Mapping[str, Any], deadline: Deadline
) -> InPlace:
    proto = parsed(path, deadline)
    if not proto.graph.output:
        raise InvalidInput(f"{path} is not an ONNX model, or it was cut short: it returns nothing.")
    kept = {tensor.name for tensor in proto.graph.initializer}
    kept |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
    proto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
    plain, ways = unfolded(with_fixed(proto, fixed), fixed)
    graph = with_floats(plain)
    target = output_of(graph, output)
    node = layer_of(graph, target, layer)
    notes = [] if layer is not None else passed_over(graph, target, node)
    graph = with_floats(plain, node.output[0])
    cut = Cut(graph, graph.producers[node.output[0]], target)
    deadline.check()
    ports = ports_of(graph, target)
    if example is not None:
        example = _given(ports, example, fixed)
        ports = [_meant(port, x) for port, x in zip(ports, example, strict=True)]
    seen = _seen(cut, ports, example, deadline)
    kept |= ways.keys()
    weights = {name: found for name, found in cut.weights().items() if found.name in kept or found.frozen}
    suffix, places = _suffix(cut, seen, weights, deadline)
    notes += [f"{name} stays: {place.stored.frozen}" for name, place in places.items() if place.stored.frozen]
    if not any(parameter.requires_grad for parameter in suffix.parameters()):
        raise UnsupportedModel(f"{path}: nothing behind the cut can be changed: {'; '.join(notes) or 'no weights'}.")
    if (scores := _scores(cut)) is not None:
        notes.append(f"the output is a probability; output={scores!r} would be the scores before it")
    if seen.runtime.mixes:
        notes.append("points run one by one: the file scales numbers by all that run together")
    source = Source(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        digest=_digest(cut, places.values()),
        cut=cut,
        ports=seen.runtime.ports,
        names=tuple(seen.values),
        rounding=max((AGREE[found.array.dtype] for found in weights.values() if is_float(found.array)), default=1e-3),
        example=seen.points,
        notes=tuple(notes),
        scores=scores,
        fixed=dict(fixed),
        ways=ways,
    )
    model = InPlace(source, seen.runtime, suffix, places).eval()
    with torch.no_grad():
        model(*seen.points)
    return model


def _digest(cut: Cut, places: Iterable[Place]) -> str:
    """Return the hash of all of a graph that cannot be changed."""
    free = {place.stored.name for place in places if not place.stored.frozen}
    digest = hashlib.sha256(f"{cut.output} {cut.crossing}".encode())
    for node in cut.graph.before([cut.output]):
        digest.update(node.SerializeToString(deterministic=True) if node.output[0] not in free else b"")
    for name, tensor in cut.graph.stored.items():
        digest.update(b"" if name in free else tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _scores(cut: Cut) -> str | None:
    """Return what the sigmoid or softmax reads that computes the output; None where none does."""
    producers = cut.graph.producers
    node = producers[cut.output]
    while node.op_type in ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear") and node.input[0] in producers:
        node = producers[node.input[0]]
    found = node.input[0] if node.op_type in ("Sigmoid", "Softmax", "LogSoftmax") else None
    return found if found in producers and found not in cut.graph.added and cut.layer.output[0] != cut.output else None


@dataclass(frozen=True)
class _Seen:
    """What a graph computes at one point.

    Attributes:
        runtime: of what is before the cut.
        points: inputs (n, ...) that were tried.
        values: what crosses the cut, and the output, at the first point, as the graph computes it.
    """

    runtime: Runtime
    points: tuple[Tensor, ...]
    values: dict[str, Array]

    @property
    def is_open(self) -> bool:
        """Whether the file leaves sizes of its inputs open."""
        return any(port.shape is None or None in port.shape[1:] for port in self.runtime.ports)

    def is_whole(self, name: str) -> bool:
        """Whether a value that crosses the cut has no axis for points."""
        ports = {port.name: port for port in self.runtime.ports}
        return not ports[name].rows if name in ports else self.runtime.is_whole(self.values[name])

    def shape(self, cut: Cut, name: str, open_sizes: bool) -> tuple[np.dtype[Any], list[int | str]]:
        """Return type and shape of a value that crosses the cut; texts for sizes that are not known, if asked for."""
        ports, whole = [port.name for port in self.runtime.ports], self.is_whole(name)
        if name in ports:
            place = ports.index(name)
            dtype, sizes = self.runtime.ports[place].dtype, [*self.points[place].shape[1:]]
        else:
            dtype, sizes = self.values[name].dtype, [*self.values[name].shape[0 if whole else 1 :]]
        found: list[int | str] = [*sizes]
        if open_sizes:
            info = cut.graph.types.get(name)
            known = [d.dim_value for d in info.shape.dim] if info is not None and info.HasField("shape") else []
            known = known[0 if whole else 1 :]
            known = known if len(known) == len(sizes) else [0] * len(sizes)
            found = [
                now if now == size else f"{name}.{k}" for k, (now, size) in enumerate(zip(sizes, known, strict=True))
            ]
        return dtype, found if whole else [self.runtime.together or "batch", *found]


def _seen(cut: Cut, ports: Sequence[Port], example: tuple[Tensor, ...] | None, deadline: Deadline) -> _Seen:
    """Run a graph on some points, given or made up."""
    before = cut.before()
    runtime, names = Runtime(before, ports), [one.name for one in before.graph.output]
    points, made = _tried(runtime, example, deadline)
    values = dict(zip(names, made, strict=True))
    size = values[cut.output].shape[:1]
    if any(not port.rows and port.shape and len(port.shape) > 1 and port.shape[:1] == size for port in ports):
        ports = [replace(port, rows=port.rows or (port.shape or (0,))[:1] == size) for port in ports]
        return _seen(cut, ports, example, deadline)  # so many points at a time
    return _Seen(runtime, points, values)


def _given(ports: Sequence[Port], example: Any, fixed: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return a few of the inputs that a caller gives, in the order of the file."""
    if isinstance(example, Mapping):
        example = ordered(ports, {name: x for name, x in example.items() if name not in fixed})
    given = tuple(example) if isinstance(example, tuple | list) else (example,)
    if len(given) != len(ports) or not all(isinstance(x, Tensor) and x.ndim for x in given):
        wanted = ", ".join(map(str, ports))
        raise InvalidInput(f"example must be a tensor (n, ...) for each of the inputs {wanted}.")
    return tuple(x[:FEW] for x in given)


def _meant(port: Port, x: Tensor) -> Port:
    """Return an input whose first axis is no axis for points where points (n, ...) have all of its axes."""
    whole = port.shape is not None and x.ndim == len(port.shape) + 1 and (not port.shape or x.shape[1] != 1)
    return replace(port, rows=False) if whole else port


def _tried(
    runtime: Runtime, example: tuple[Tensor, ...] | None, deadline: Deadline
) -> tuple[tuple[Tensor, ...], list[Array]]:
    """Return inputs on which the graph runs, and what it computes there for the first point."""
    ports = runtime.ports
    if example is not None:
        return example, runtime.of_one([one[:1] for one in example], deadline)
    failure: Exception | None = None
    open_sizes = any(port.shape is None or None in port.shape[1:] for port in ports)
    for size in OPEN if open_sizes else OPEN[:1]:
        deadline.check()
        made = tuple(_made_up(port, size) for port in ports)
        try:
            return made, runtime.of_one([one[:1] for one in made], deadline)
        except UnsupportedModel as error:
            failure = error
    raise UnsupportedModel(f"{failure} Give some inputs that it takes: example=.") from failure


def _made_up(port: Port, size: int) -> Tensor:
    """Return two inputs between 0 and 1, or of zeros and ones; `size` where the file leaves one open."""
    if port.shape is None:
        raise UnsupportedModel(f"The file does not say which shape its input {port.name!r} has.")
    item = [size if one is None else one for one in (port.shape[1:] if port.rows else port.shape)]
    generator = np.random.default_rng(0)
    numbers = generator.random((2, *item)) if port.dtype.kind == "f" else generator.integers(0, 2, (2, *item))
    return torch.from_numpy(np.asarray(numbers).astype(port.dtype))


def _suffix(
    cut: Cut, seen: _Seen, weights: Mapping[str, Stored], deadline: Deadline
) -> tuple[nn.Module, dict[str, Place]]:
    """Return the module behind the cut, and where its parameters are kept."""
    generator, graph = np.random.default_rng(0), cut.graph
    probes = dict[str, Array]()  # numbers by which a twin's parameters tell of which constants they are made
    for name in weights:
        array = graph.value(name)
        probes[name] = generator.uniform(0.5, 1.5, array.shape).astype(np.float16).astype(array.dtype)
    try:
        suffix, twin = _modules(cut, seen, ({}, probes), deadline)
    except Refused as refusal:
        inner = ", ".join([node.output[0] for node in cut.behind if node.output[0] not in graph.added][:8])
        raise UnsupportedModel(
            f"What follows layer {cut.layer.name or cut.layer.output[0]!r} {refusal} Choose a later layer, or an "
            f"output before that: {inner}.{elsewhere(graph, [cut.output])}"
        ) from refusal
    known, places = dict(twin.named_parameters()), dict[str, Place]()
    for name, parameter in suffix.named_parameters():
        found = None if name not in known else _place(graph, known[name].detach().numpy(), probes, weights)
        places[name] = found or Place("", Stored(name, np.zeros(0), "it is no single tensor of the file"), np.zeros(0))
        parameter.requires_grad_(not places[name].stored.frozen)
    return suffix, places


def _modules(cut: Cut, seen: _Seen, constants: Sequence[Mapping[str, Array]], deadline: Deadline) -> list[OnnxGraph]:
    """Return what is behind the cut, with each of some numbers for its constants.

    Raises:
        Refused: it cannot be read.
    """
    whole = frozenset(name for name in cut.crossing if seen.is_whole(name))
    together = seen.runtime.together
    plans = [] if whole else [Plan(batch=together, free=together is None)]
    plans.append(Plan(alone=True, bare=whole))
    kinds = [True, False] if seen.is_open else [False]
    for open_sizes in kinds:  # where several values have sizes that belong together, those that were seen
        shapes = {name: seen.shape(cut, name, open_sizes) for name in cut.crossing}
        try:
            made = [read_graph(cut.suffix(shapes, given), cut.output, deadline, plans) for given in constants]
        except Refused:
            if open_sizes == kinds[-1]:
                raise
            continue
        if not open_sizes or _takes(made[0], seen, cut):  # a size that is left open may have been fixed to another one
            return made
    raise AssertionError("the last kind returns or raises")


def _takes(model: OnnxGraph, seen: _Seen, cut: Cut) -> bool:
    """Tell whether a model takes values of the sizes that were seen."""
    for each in model.inputs:
        _, sizes = seen.shape(cut, each.name, False)
        item = sizes[0 if seen.is_whole(each.name) else 1 :]
        if any(stated not in (None, size) for stated, size in zip(each.shape, item, strict=True)):
            return False
    return True


def _place(graph: Graph, array: Array, probes: Mapping[str, Array], weights: Mapping[str, Stored]) -> Place | None:
    """Return which constant a parameter was made of, found by the numbers that the constants have in a twin."""
    for name, probe in probes.items():
        for transposed in (False, True) if probe.size == array.size else ():
            turned = np.ascontiguousarray(array.T if transposed else array)
            if np.array_equal(turned.reshape(probe.shape), probe):
                return Place(name, weights[name], graph.value(name), transposed)
    return None
