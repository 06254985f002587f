"""Results of a suite as files: what one says, what it is about, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnrepair.files import write_atomically
from nnrepair.verify.suite import vnncomp
from nnrepair.verify.suite.vnncomp import Instance

FORMAT = "nnrepair-suite-2"
#: Packages whose versions decide a verdict.
PACKAGES = ("nnrepair", "torch", "numpy", "onnx", "onnxruntime")
#: No result file has more bytes.
LARGEST = 2**28
#: From best to worst.
STATUSES = ("holds", "violated", "unknown", "error")


@dataclass(frozen=True)
class Row:
    """What came out for one instance; also what its JSON file holds.

    Attributes:
        onnx, vnnlib: the files as the list names them.
        status: "holds", "violated", "unknown" or "error".
        reason: how it was decided, why it was not, or what is wrong.
        counterexample: input, output, margin and how it was confirmed, where there is one.
        certificate: name of the file in the folder of certificates, and `certificate_sha256`: of its bytes.
        network_sha256, property_sha256: of the files' bytes, None where a file could not be read.
        data_sha256: of the files beside the network in which it keeps weights, by name.
        options: what the check was asked to do.
        checked_by: the function that decided, `source_sha256` of this package, and the versions of what it uses.
        incomplete: what was asked for and could not be written.
    """

    onnx: str
    vnnlib: str
    status: str
    reason: str
    options: dict[str, Any]
    counterexample: dict[str, Any] | None = None
    boxes: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    proved: float = 0.0
    worst_bound: float | None = None
    certificate: str | None = None
    certificate_sha256: str | None = None
    network_sha256: str | None = None
    data_sha256: dict[str, str] | None = None
    property_sha256: str | None = None
    checked_by: str = ""
    source_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    incomplete: str = ""

    @property
    def word(self) -> str:
        """The status in VNN-COMP's words."""
        return vnncomp.word(self.status, timed_out=self.wall_seconds >= (self.options["timeout"] or math.inf))


def store(row: Row, path: Path) -> None:
    """Write a row to its file."""
    content = asdict(row)
    content |= {"format": FORMAT, "sha256": checksum(content)}
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def checksum(content: dict[str, Any]) -> str:
    """Return the hash of what a result file holds beside it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def stored(path: Path) -> Row | None:
    """Return what a result file holds; None when it is damaged, or none of ours."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        content = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT or content.pop("sha256") != checksum(content):
            return None
        row = Row(**content)
        numbers = (row.boxes, row.cpu_seconds, row.wall_seconds, row.proved, row.options["timeout"])
        fine = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        fine &= row.status in STATUSES and isinstance(row.versions, dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return row if fine and all(isinstance(text, str) for text in (row.status, row.reason, row.incomplete)) else None


def files_of(instance: Instance, of_network: Callable[[Path], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the hashes of all bytes that a verdict is about, None where a file cannot be read."""
    return (of_network or network_files)(instance.network) | {"property_sha256": sha256_of(instance.property)}


def network_files(network: Path) -> dict[str, Any]:
    """Return the hashes of a network and of the files in which it keeps weights."""
    data: dict[str, str | None] | None = None
    with suppress(Exception):  # what onnx and protobuf raise is many kinds; then the check fails as well
        data = {name: sha256_of(network.parent / name) for name in external_data(network)}
    readable = data is not None and None not in data.values()
    return {"network_sha256": sha256_of(network), "data_sha256": data if readable else None}


def external_data(network: Path) -> list[str]:
    """Return the names of the files in which an ONNX file keeps weights, relative to its folder."""
    content = network.read_bytes() if network.is_file() else b""
    if b"location" not in content:  # which their names are stored under
        return []
    import onnx

    tensors, messages = list[Any](), [onnx.ModelProto.FromString(content)]
    while messages:
        for _, value in messages.pop().ListFields():
            for part in value if hasattr(value, "add") else [value]:  # a repeated field, or one message or plain value
                if isinstance(part, onnx.TensorProto):
                    tensors.append(part)
                elif hasattr(part, "ListFields"):
                    messages.append(part)
    return sorted({entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"})


def sha256_of(path: Path | None) -> str | None:
    """Return the hash of a file, None where there is none that can be read."""
    try:
        if path is None or not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
