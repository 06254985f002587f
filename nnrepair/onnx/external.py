"""Weights that an ONNX file keeps in files beside it: as many bytes as type and shape say, from its own folder."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nnrepair.errors import InvalidInput
from nnrepair.extras import needed

with needed("onnx", "nnrepair.onnx needs the onnx packages"):
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

#: Bytes of a model with all its weights (protobuf has no more), and of weights beyond the size of the files that hold
#: them: many tensors may share one part of a file.
MAX_BYTES, MAX_GROWTH = 2**31 - 1, 2**30
#: Bytes of a number of each type.
_BYTES: dict[int, int] = {TensorProto.DOUBLE: 8, TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}
_BYTES |= {TensorProto.INT64: 8, TensorProto.INT32: 4, TensorProto.INT16: 2, TensorProto.INT8: 1, TensorProto.BOOL: 1}
_BYTES |= {TensorProto.UINT64: 8, TensorProto.UINT32: 4, TensorProto.UINT16: 2, TensorProto.UINT8: 1}


def read_external(proto: ModelProto, path: Path) -> None:
    """Put the weights that lie outside the file `path` into `proto`.

    Raises:
        InvalidInput: they lie outside the folder, are not there, or are not what the model says.
    """
    external = [tensor for tensor in tensors(proto) if tensor.data_location == TensorProto.EXTERNAL]
    places = [_place(tensor, path.parent) for tensor in external]
    outside = [tensor.name for tensor, place in zip(external, places, strict=True) if place is None]
    if outside:
        raise InvalidInput(
            f"{path} keeps the weights {', '.join(map(repr, outside))} outside its own folder. Put the data file next "
            "to the model, or save the model as a single file."
        )
    sizes = {place: place.stat().st_size for place in places if place is not None and os.path.isfile(place)}
    most, total = min(sum(sizes.values()) + MAX_GROWTH, MAX_BYTES - proto.ByteSize()), 0
    digests: dict[Path, str] = {}
    for tensor, place in zip(external, places, strict=True):
        if place not in sizes:
            raise InvalidInput(f"{path} keeps the weights {tensor.name!r} in {str(place)[:200]!r}, which is no file.")
        try:
            start, count, checksum = _extent(tensor)
        except ValueError as error:
            raise InvalidInput(f"{path}: what it says of the weights {tensor.name!r} in {place} {error}.") from None
        total += count
        if start + count > sizes[place] or total > most:
            raise InvalidInput(
                f"{path} says that the weights {tensor.name!r} are {count} bytes from byte {start} of {place}, which "
                f"has {sizes[place]}; at most {most} bytes of weights are read. Is the file complete?"
            )
        with place.open("rb") as file:
            if checksum and place not in digests:
                digests[place] = hashlib.file_digest(file, "sha1").hexdigest()
            if checksum and checksum.lower() != digests[place]:
                raise InvalidInput(f"{place} is not the file that {path} was written with: its SHA-1 is another.")
            file.seek(start)
            tensor.raw_data = file.read(count)
        tensor.data_location = TensorProto.DEFAULT
        tensor.ClearField("external_data")


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield the dense tensors that can become weights, also those of branches and functions."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (one for node in nodes for one in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from _of_graph(graph)


def _place(tensor: TensorProto, folder: Path) -> Path | None:
    """Return the file of a tensor, after following links, if it is in the folder."""
    given = [entry.value for entry in tensor.external_data if entry.key == "location"]
    try:
        place = (folder / given[0]).resolve()
        return place if len(given) == 1 and given[0] and place.is_relative_to(folder.resolve()) else None
    except (IndexError, OSError, RuntimeError, ValueError):  # no location, a name that no file has, a circle of links
        return None


def _extent(tensor: TensorProto) -> tuple[int, int, str]:
    """Return where the numbers begin, how many bytes they are, and the hash of the file, if one is given."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) < len(tensor.external_data):
        raise ValueError("names a key twice")
    if tensor.data_type not in _BYTES or min(tensor.dims, default=0) < 0:
        raise ValueError(f"has type {tensor.data_type} and shape {list(tensor.dims)}, which are not read from there")
    size = math.prod(tensor.dims) * _BYTES[tensor.data_type]
    numbers = [entries.get(key, default) for key, default in (("offset", "0"), ("length", str(size)))]
    if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers):
        raise ValueError(f"has the offset and length {numbers}; expected whole numbers")
    start, length = map(int, numbers)
    if length != size:
        raise ValueError(f"has the length {length}; its shape {list(tensor.dims)} needs {size} bytes")
    return start, size, entries.get("checksum", "")
