"""How a graph may be meant: with a batch of any size, for a single point, or without any batch.

Sizes that a file leaves open are tried, two at a time: what differs then depends on the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from nnrepair.deadline import Deadline
from nnrepair.extras import needed
from nnrepair.onnx import points
from nnrepair.onnx.importer import Importer
from nnrepair.onnx.modules import Input, OnnxGraph
from nnrepair.onnx.node import DTYPES, LIMIT, Refused
from nnrepair.onnx.nodes import listed, opset, unsupported
from nnrepair.onnx.trying import CannotRun, Entry, Mixed

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnx
    import onnx.defs

#: Pairs of sizes that are tried where a file leaves some open; then single ones.
OPEN = ((64, 96), (32, 48), (224, 256), (16, 24), (8, 12), (5, 7), (3, 4), (1, 2), (128, 160), (640, 672), (8000, 9600))
SINGLE = (32, 48, 64, 28, 224, 512, 2, 3, 4, 5, 6, 7, 8, 10, 16, 20, 96, 100, 128, 256, 576, 784, 1024, 1)


@dataclass(frozen=True)
class Given:
    """An input as the file has it; sizes that it leaves open are names, or None."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | str | None, ...]

    @property
    def first(self) -> int | str | None:
        """The size that may be the batch."""
        return self.sizes[0]


@dataclass(frozen=True)
class Plan:
    """One way to understand a graph.

    Attributes:
        batch: the size that the file fixes the batch to, where any is to run.
        alone: whether each point runs by itself.
        bare: inputs that have no batch.
        lifted: whether a batch is put before what has none.
        free: whether the file leaves the size of the batch open.
    """

    batch: int | None = None
    alone: bool = False
    bare: frozenset[str] = frozenset()
    lifted: bool = False
    free: bool = False


def read_graph(
    proto: onnx.ModelProto,
    output: str,
    deadline: Deadline,
    plans: Sequence[Plan] | None = None,
    seen: Mapping[str, tuple[int, ...]] | None = None,
) -> OnnxGraph:
    """Return a graph as a model.

    Args:
        proto: the graph.
        output: the value to return.
        deadline: looked at between the steps of reading.
        plans: how it may be meant, where that is known.
        seen: shapes of single points, by the name of an input: they tell sizes that the file leaves open and that its
            operations need to know.

    Raises:
        Refused: it cannot be read, for the reason given.
        OutOfTime: it is too late.
    """
    given = _given(proto)
    unknown = unsupported(proto.graph, output)
    if unknown:
        raise Refused(f"uses what cannot be read:\n  {listed(unknown)}\nSee docs/onnx.md for what is read.")
    failures: list[Refused] = []
    for plan in _plans(given) if plans is None else plans:
        try:
            return _settled(proto, output, given, plan, seen or {}, deadline)
        except Refused as failure:
            if isinstance(failure, Mixed) and plan.free:
                raise
            failures.append(failure)
    certain = [failure for failure in failures if not isinstance(failure, CannotRun | Mixed)]
    raise (certain or failures)[-1]


def _given(proto: onnx.ModelProto) -> list[Given]:
    """Return the inputs; check them, and what else is said of the whole file."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    if not inputs:
        raise Refused("has no input.")
    newest = onnx.defs.onnx_opset_version()
    if not 7 <= opset(proto) <= newest:
        raise Refused(
            f"uses opset {opset(proto)}, expected 7 to {newest}, the newest that the installed onnx knows. "
            "Convert it with onnx.version_converter."
        )
    return [_one(value) for value in inputs]


def _one(value: onnx.ValueInfoProto) -> Given:
    kind = value.type.tensor_type
    dtype = DTYPES.get(kind.elem_type)
    if dtype is None:
        found = onnx.TensorProto.DataType.Name(kind.elem_type) if value.type.HasField("tensor_type") else "no tensor"
        known = ", ".join(str(known).removeprefix("torch.") for known in DTYPES.values())
        raise Refused(f"takes inputs of type {found}, expected {known}.")
    if not kind.HasField("shape"):
        raise Refused(f"does not say how many axes its input {value.name!r} has.")
    sizes = tuple(_size(dim) for dim in kind.shape.dim)
    if 0 in sizes[1:] or sizes == (0,):
        raise Refused(f"has an input of shape {sizes}, which holds no numbers.")
    return Given(value.name, dtype, sizes)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # some exporters write -1 for an open size
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _plans(given: Sequence[Given]) -> Iterator[Plan]:
    """Give the ways in which a graph may be meant, the likeliest first."""
    shared = {each.first for each in given if len(each.sizes) > 1 and isinstance(each.first, str)}
    fixed = {each.first for each in given if each.sizes and isinstance(each.first, int)}
    bare = {each.name for each in given if len(each.sizes) < 2 and not (each.sizes and each.first in shared)}
    free, elsewhere = not fixed, {size for each in given for size in each.sizes[1:]}
    batched = len(fixed) <= 1 and not (shared and fixed - {1}) and not shared & elsewhere
    if not bare and batched:
        batch = next(iter(fixed), None)
        yield Plan(batch=batch if isinstance(batch, int) else None, free=free)
    whole = bare | {each.name for each in given if each.sizes and isinstance(each.first, int) and each.first != 1}
    if len(given) == 1 and bare and len(given[0].sizes) == 1:
        yield Plan(bare=frozenset(bare), lifted=True)
    yield Plan(alone=True, bare=frozenset(whole), free=free and not whole)


def _settled(
    proto: onnx.ModelProto,
    output: str,
    given: Sequence[Given],
    plan: Plan,
    seen: Mapping[str, tuple[int, ...]],
    deadline: Deadline,
) -> OnnxGraph:
    """Return the model that a plan makes, for the first sizes that it runs with."""
    open_ = any(not isinstance(size, int) for each in given for size in _item(each, plan))
    failures: list[Refused] = []
    known: list[Mapping[str, tuple[int, ...]]] = [seen] if seen else []
    single: list[tuple[tuple[int, int], Mapping[str, tuple[int, ...]]]] = [((0, 0), one) for one in known]
    single += [((size, size), {}) for size in SINGLE]
    for sizes, shapes in [*((pair, {}) for pair in OPEN), *single] if open_ else [((0, 0), {})]:
        deadline.check()
        entries = [_entry(each, given, plan, sizes, shapes.get(each.name)) for each in given]
        try:
            model = _attempt(proto, output, entries, plan, deadline)
            if open_ and sizes[0] == sizes[1]:
                why = "those of the points that were given" if shapes else "the first that it runs with"
                model.notes.append(f"sizes that the file leaves open are {_sizes(entries)}: {why}")
            return model
        except Mixed as failure:
            if sizes[0] != sizes[1] or not open_:
                raise
            failures.append(failure)
        except CannotRun as failure:
            failures.append(failure)
    if not open_:
        raise failures[0]
    tried = ", ".join(str(size) for size in sorted({*SINGLE, *(size for pair in OPEN for size in pair)}))
    shown = [tuple("?" if not isinstance(size, int) else size for size in each.sizes) for each in given]
    raise CannotRun(
        f"leaves sizes of its input open ({', '.join(map(str, shown))}), and runs with none of {tried}; "
        f"the first time it {failures[0]} Fix the sizes in the file."
    )


def _sizes(entries: Sequence[Entry]) -> str:
    return ", ".join(f"{entry.input.name} {('n', *entry.input.shape)}".replace("'n'", "n") for entry in entries)


def _attempt(
    proto: onnx.ModelProto, output: str, entries: Sequence[Entry], plan: Plan, deadline: Deadline
) -> OnnxGraph:
    largest = max(torch.Size(shape[1:]).numel() for entry in entries for shape in entry.shapes)
    if largest > LIMIT:
        raise CannotRun(f"needs {largest} numbers for one point, more than {LIMIT}. Use smaller inputs.")

    def build(plan: Plan) -> OnnxGraph:
        return Importer(proto, entries, output, plan.batch, plan.alone, plan.lifted, deadline).build()

    model = build(plan)
    points.check(model, entries, deadline)
    if plan.lifted:
        one = [Entry(e.input, ((1, *e.shapes[0][1:]), (1, *e.shapes[1][1:]))) for e in entries]
        exact = Importer(proto, one, output, None, True, False, deadline).build()
        if not points.same(model, exact, one):
            raise Mixed("has inputs without a batch, and means another axis if they get one.")
    if plan.alone and plan.free:
        more = points.runs_on_more(model, entries)
        if more is not None:
            raise Mixed(f"does not treat the inputs of a batch one by one: it runs on {more} of them in its own way.")
    return model


def _item(each: Given, plan: Plan) -> tuple[int | str | None, ...]:
    return each.sizes if each.name in plan.bare else each.sizes[1:]


def _entry(
    each: Given, given: Sequence[Given], plan: Plan, sizes: tuple[int, int], seen: tuple[int, ...] | None
) -> Entry:
    """Return an input with two shapes; the name of the batch stands for 1 where it runs alone."""
    batches: set[str | None] = {
        other.first for other in given if other.name not in plan.bare and isinstance(other.first, str)
    }
    batches |= {None} if plan.alone and each.name in plan.bare and len(given) > 1 else set()
    item = tuple(1 if plan.alone and size in batches else size for size in _item(each, plan))
    if seen is not None and len(seen) == len(item):
        item = tuple(size if isinstance(size, int) else now for size, now in zip(item, seen, strict=True))
    same = sizes[0] == sizes[1]
    stated = tuple(size if isinstance(size, int) else sizes[0] if same else None for size in item)
    counts = (1, 1) if plan.alone else (2, 3)
    shapes = [
        (n, *(size if isinstance(size, int) else open_ for size in item))
        for n, open_ in zip(counts, sizes, strict=True)
    ]
    return Entry(Input(each.name, stated, each.name not in plan.bare, each.dtype), (shapes[0], shapes[1]))
