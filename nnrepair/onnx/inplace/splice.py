"""Other numbers in an ONNX file: the bytes of chosen tensors are replaced, every other byte stays where it was.

A file is a tree of protobuf fields, each with its length before it. Tensors are found by walking down this tree; what
is not on the way to one (other tensors, metadata, fields that this onnx does not know) is copied as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nnrepair.extras import needed

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    from onnx import TensorProto

Array = npt.NDArray[Any]

# Numbers of fields in onnx.proto.
_GRAPH, _NODE, _INITIALIZER, _OUTPUT, _ATTRIBUTE, _TENSOR, _NAME = 7, 1, 5, 2, 5, 5, 8
_ATTRIBUTE_NAME, _BRANCH = 1, 6
#: Wire types: a number, eight bytes, a length and so many bytes, four bytes.
_VARINT, _LONG, _BYTES, _SHORT = 0, 1, 2, 5


def spliced(content: bytes, arrays: Mapping[str, Array], ways: Mapping[str, tuple[str, ...]] | None = None) -> bytes:
    """Return the content of an ONNX file with other numbers in some of its tensors.

    Args:
        content: of the file.
        arrays: by the name of an initializer, or of what a `Constant` returns: numbers of the tensor's shape and type.
        ways: of those that lie in branches: the first result of the node that holds the branch, the branch's name, and
            so on, at last the tensor's own name.

    Raises:
        KeyError: there is no such tensor.
    """
    left = {(ways or {}).get(name, (name,)): array for name, array in arrays.items()}
    made = _rewritten(memoryview(content), {_GRAPH: lambda part: _graph(part, (), left)})
    if left:
        raise KeyError(", ".join(way[-1] for way in left))
    return content if made is None else made


def _graph(part: memoryview, place: tuple[str, ...], left: dict[tuple[str, ...], Array]) -> bytes | None:
    """Return a graph with other numbers in those of its tensors that are left to change; None where none is."""

    def tensor(way: tuple[str, ...] | None) -> Callable[[memoryview], bytes | None]:
        def change(part: memoryview) -> bytes | None:
            own = (*place, _text(part, _NAME)) if way is None else way
            return _with_numbers(bytes(part), left.pop(own)) if own in left else None

        return change

    def node(part: memoryview) -> bytes | None:
        way = (*place, _text(part, _OUTPUT))
        if way in left:
            return _rewritten(part, {_ATTRIBUTE: lambda one: _rewritten(one, {_TENSOR: tensor(way)})})
        if any(one[: len(way)] == way for one in left):
            return _rewritten(part, {_ATTRIBUTE: lambda one: branch(one, way)})
        return None

    def branch(part: memoryview, way: tuple[str, ...]) -> bytes | None:
        inside = (*way, _text(part, _ATTRIBUTE_NAME))
        return _rewritten(part, {_BRANCH: lambda one: _graph(one, inside, left)})

    return _rewritten(part, {_INITIALIZER: tensor(None), _NODE: node})


def _rewritten(part: memoryview, change: Mapping[int, Callable[[memoryview], bytes | None]]) -> bytes | None:
    """Return a message with some of its fields changed; None where nothing changed."""
    pieces: list[bytes | memoryview] = []
    done = 0
    for number, kind, start, inside, end in _fields(part):
        made = change[number](part[inside:end]) if kind == _BYTES and number in change else None
        if made is not None:
            pieces += [part[done:start], _varint(number << 3 | _BYTES), _varint(len(made)), made]
            done = end
    return b"".join([*pieces, part[done:]]) if pieces else None


def _fields(part: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the fields of a message: number, wire type, where it starts, where its content does, and where it ends."""
    place = 0
    while place < len(part):
        start = place
        tag, place = _read(part, place)
        kind, size = tag & 7, 0
        if kind == _BYTES:
            size, place = _read(part, place)
        inside = place
        if kind == _VARINT:
            _, place = _read(part, place)
        else:
            place += {_LONG: 8, _BYTES: size, _SHORT: 4}[kind]
        if place > len(part):
            raise ValueError("a field is longer than what holds it")
        yield tag >> 3, kind, start, inside, place


def _read(part: memoryview, place: int) -> tuple[int, int]:
    """Return the number that stands at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = part[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _text(part: memoryview, number: int) -> str:
    """Return the first text with this field number, '' where there is none."""
    for own, kind, _, inside, end in _fields(part):
        if own == number and kind == _BYTES:
            return bytes(part[inside:end]).decode()
    return ""


def _with_numbers(content: bytes, array: Array) -> bytes:
    """Return a tensor with other numbers, kept in the field in which it keeps them; external ones come into it."""
    tensor = TensorProto.FromString(content)
    size = array.dtype.itemsize
    if tensor.float_data:
        tensor.ClearField("float_data")
        tensor.float_data.extend(array.ravel().tolist())
    elif tensor.double_data:
        tensor.ClearField("double_data")
        tensor.double_data.extend(array.ravel().tolist())
    elif tensor.int32_data:  # halves by their bits, small integers by their values
        bits = array.view(np.uint16) if array.dtype.kind not in "iu" and size == 2 else array
        tensor.ClearField("int32_data")
        tensor.int32_data.extend(bits.ravel().astype(np.int64).tolist())
    else:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    made: bytes = tensor.SerializeToString()
    return made
