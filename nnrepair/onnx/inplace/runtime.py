"""onnxruntime at work on a graph of any operators: points of a batch together or one by one, as the file allows."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.errors import InvalidInput, UnsupportedModel, first_line
from nnrepair.extras import needed
from nnrepair.rounding import counted

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    import onnxruntime
    from onnx import ModelProto, NodeProto

Array = npt.NDArray[Any]
#: Bytes of computed values that are kept for points that come again: a repair runs the same points many times.
KEPT = 2**28


def session(model: ModelProto | bytes) -> Any:
    """Return a session of onnxruntime on the CPU.

    Raises:
        UnsupportedModel: onnxruntime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
    content = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own
        raise UnsupportedModel(f"onnxruntime cannot run the model: {first_line(error)}") from error


@dataclass(frozen=True)
class Port:
    """What a model takes as one of its inputs.

    Attributes:
        name: of the value.
        dtype: of its numbers.
        shape: None for open sizes, None altogether where the file does not say.
        rows: whether its first axis is that of the points; otherwise each point is all of it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    rows: bool = True

    def __str__(self) -> str:
        sizes = (
            "any shape" if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        )
        return f"{self.name!r} ({sizes}) {self.dtype}"


class Runtime:
    """A graph in onnxruntime, run on points that are rows of tensors.

    A graph that has the points along the first axis of its inputs gets them together; where that axis is fixed, so many
    at a time, and where the graph refuses several, one by one. So it does where one of its inputs has no such axis.

    Args:
        model: a graph of any operators.
        ports: its inputs.

    Attributes:
        alone: whether no input has an axis for points.
        together: how many points run at once; None for any number.
        mixes: whether what it computes for a point depends on those that run with it, as numbers are scaled by the
            largest of all.
    """

    def __init__(self, model: ModelProto, ports: Sequence[Port]) -> None:
        self.ports, self.alone = tuple(ports), not any(port.rows for port in ports)
        self._session, self._lock = session(model), threading.Lock()
        self._names = [output.name for output in self._session.get_outputs()]
        sizes = [port.shape[0] for port in ports if port.rows and port.shape]
        self.together = next((size for size in sizes if size is not None), None)  # None: any number
        self.mixes = any("DynamicQuantize" in node.op_type for node in _nodes(model.graph.node))
        self._one_by_one = (self.mixes and self.together is None) or not all(port.rows for port in ports)
        self._kept: OrderedDict[bytes, list[Array]] = OrderedDict()
        self._size, self._asked = 0, False

    def __deepcopy__(self, memo: dict[int, Any]) -> Runtime:
        return self  # it does not change, and holds no weights that a repair could

    def values(self, arguments: Sequence[Tensor], deadline: Deadline = NEVER) -> list[Array]:
        """Return all outputs (n, ...) at n points, given as one tensor (n, ...) for each input.

        Raises:
            InvalidInput: they do not fit the inputs.
            UnsupportedModel: onnxruntime fails on them.
        """
        if len(arguments) != len(self.ports):
            wanted = ", ".join(map(str, self.ports))
            raise InvalidInput(f"The model takes {counted(len(self.ports), 'input')} ({wanted}), got {len(arguments)}.")
        feeds = [self._shaped(port, given) for port, given in zip(self.ports, arguments, strict=True)]
        count = len(feeds[0])
        if any(len(feed) != count for feed in feeds):
            raise InvalidInput(
                f"The inputs have {', '.join(str(len(feed)) for feed in feeds)} points; expected as many."
            )
        if count == 0:  # what one point would be tells the shapes
            one = [torch.zeros(1, *feed.shape[1:]) for feed in feeds]
            return [self._joined([value])[:0] for value in self.of_one(one, deadline)]
        if not self._one_by_one and self._looks_alone(feeds):
            self._one_by_one = True
        if not self._one_by_one:
            try:
                parts = [self._run(part, count_of, deadline) for part, count_of in self._parts(feeds)]
                if all(len(v) == n for part, n in parts for v in part):
                    return [np.concatenate(column) for column in zip(*(part for part, _ in parts), strict=True)]
            except UnsupportedModel:
                if count == 1:
                    raise
            self._one_by_one |= count > 1
        rows = [self._run([feed[k : k + 1] for feed in feeds], 1, deadline)[0] for k in range(count)]
        return [self._joined(column) for column in zip(*rows, strict=True)]

    def _looks_alone(self, feeds: list[Array]) -> bool:
        """Whether a value has no axis for points in front, which the result for several points may hide; asked once."""
        if self._asked or self.together is not None:
            return False
        self._asked = True
        try:
            return any(self.is_whole(value) for value in self._run([feed[:1] for feed in feeds], 1, NEVER)[0])
        except UnsupportedModel:  # as few points do not run, it says itself below
            return False

    def _joined(self, column: Sequence[Array]) -> Array:
        """Return the values of single points as rows."""
        return np.stack(column) if self.is_whole(column[0]) else np.concatenate(column)

    def is_whole(self, value: Array) -> bool:
        """Whether a value that was computed for one point has no axis for points."""
        return self.alone or value.shape[:1] != (1,)

    def of_one(self, arguments: Sequence[Tensor], deadline: Deadline = NEVER) -> list[Array]:
        """Return all outputs at one point as the graph computes them, with no axis for points where it has none."""
        feeds = [self._shaped(port, given) for port, given in zip(self.ports, arguments, strict=True)]
        if self.together is not None and not self._one_by_one:
            feeds = [np.concatenate([feed] * self.together) for feed in feeds]
        return self._run(feeds, 1, deadline)[0]

    def _parts(self, feeds: list[Array]) -> Iterator[tuple[list[Array], int]]:
        """Yield the points as many at a time as the graph takes, the last repeated; and how many they are."""
        size = self.together
        if size is None:
            yield feeds, len(feeds[0])
            return
        for start in range(0, len(feeds[0]), size):
            part = [feed[start : start + size] for feed in feeds]
            count = len(part[0])
            yield [np.concatenate([feed, *[feed[-1:]] * (size - count)]) for feed in part], count

    def _run(self, feeds: list[Array], count: int, deadline: Deadline) -> tuple[list[Array], int]:
        """Return the outputs of one run on some points, from before where they are the same."""
        digest = hashlib.blake2b(digest_size=16)
        for feed in feeds:
            digest.update(f"{feed.shape}".encode())
            digest.update(np.ascontiguousarray(feed).view(np.uint8).data if feed.size else b"")
        key = digest.digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key], count
        named = {
            port.name: np.asarray(feed if port.rows else feed[0]) for port, feed in zip(self.ports, feeds, strict=True)
        }
        with _until(deadline) as options:
            try:
                made = self._session.run(self._names, named, options)
            except Exception as error:  # onnxruntime raises classes of its own
                deadline.check()
                raise UnsupportedModel(f"onnxruntime failed on the points: {first_line(error)}") from error
        if not all(isinstance(value, np.ndarray) for value in made):
            raise UnsupportedModel("The model computes a sequence or a map where tensors are needed: choose output=.")
        if not self._one_by_one:
            made = [value[:count] if self.together and len(value) == self.together else value for value in made]
        self._keep(key, made)
        return made, count

    def _keep(self, key: bytes, made: list[Array]) -> None:
        size = sum(value.nbytes for value in made)
        with self._lock:
            if size > KEPT or key in self._kept:
                return
            self._kept[key] = made
            self._size += size
            while self._size > KEPT:
                _, old = self._kept.popitem(last=False)
                self._size -= sum(value.nbytes for value in old)

    def _shaped(self, port: Port, given: Tensor) -> Array:
        """Return points as the graph takes them: (n, ...) of its type; flat points get their shape."""
        if not isinstance(given, Tensor):
            raise InvalidInput(f"Input {port} needs a tensor, got {type(given).__name__}.")
        x, shape = given.detach().cpu(), port.shape
        array = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        array = array if array.dtype == port.dtype else array.astype(port.dtype)
        if shape is None:
            return array
        item = shape[1:] if port.rows else shape
        if array.ndim == len(item) + 2 and port.rows and array.shape[1] == 1 and shape[0] in (1, None):
            array = array.reshape(len(array), *array.shape[2:])  # (n, 1, ...): each point is a batch of one
        fixed = [size for size in item if size is not None]
        if array.ndim == 2 and len(fixed) == len(item) != 1 and array.shape[1] == np.prod(fixed, dtype=int):
            array = array.reshape(len(array), *fixed)
        fits = array.ndim == len(item) + 1 and all(
            want in (None, size) for want, size in zip(item, array.shape[1:], strict=False)
        )
        if not fits:
            sizes = ", ".join(["n", *("?" if size is None else str(size) for size in item)])
            raise InvalidInput(f"The model takes {port.name!r} of shape ({sizes}), given {tuple(array.shape)}.")
        return array


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes, and those of branches and loops in them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)


@contextmanager
def _until(deadline: Deadline) -> Iterator[Any]:
    """Yield options of a run that ends when time is up."""
    options = onnxruntime.RunOptions()
    left = deadline.left()
    if left == float("inf"):
        yield options
        return
    if left <= 0:
        raise OutOfTime
    timer = threading.Timer(left, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()
