"""VNN-LIB 1.0: properties as text.

They are read and written without rounding.

A file asserts what a *violation* is: inputs `X_i` in boxes and outputs `Y_j` in polyhedra, joined by `and`, `or`, `not`
and `=>`. `load` returns the boxes and, for each, the ways to be unsafe. Whatever it does not understand is an error
that names the file, the line and the text: a misread property would be proved in good faith.

Words are those of SMT-LIB 2.6: white space is tab, line feed, carriage return and space, and a comment ends at a line
feed or a carriage return. Numbers may also have a sign and an exponent (`-0.5`, `1e-05`), and `and` and `or` one part,
as in the files of VNN-COMP. The limits below are stated in the errors that they lead to.
"""

from __future__ import annotations

import gc
import gzip
import io
import zlib
from pathlib import Path

from nnrepair.deadline import NEVER, Deadline
from nnrepair.errors import InvalidInput
from nnrepair.verify.property import Property
from nnrepair.verify.vnnlib import limits
from nnrepair.verify.vnnlib.reader import Reader
from nnrepair.verify.vnnlib.syntax import Source, line_after
from nnrepair.verify.vnnlib.writing import dumps

__all__ = ["dumps", "load", "loads"]


def load(path: str | Path, deadline: Deadline = NEVER) -> Property:
    """Read a VNN-LIB 1.0 file, or a gzipped one.

    Constants are taken exactly, as fractions. Clauses on the same box become one case. Nothing is guessed: strict
    bounds on inputs (`X_0 < 1`; boxes are closed), clauses whose box is empty, and clauses that say nothing about the
    outputs are refused.

    Raises:
        InvalidInput: the file cannot be read, is larger than the limits of this module, or is not a property as
            described; the message says where and why.
    """
    if not isinstance(path, str | Path):
        raise InvalidInput(
            f"A property must be a Property or a VNN-LIB file, got {type(path).__name__}. Property.on(box, criterion, "
            "outputs=...) makes one of a box and a criterion."
        )
    try:
        with Path(path).open("rb") as file:
            data = file.read(limits.MAX_BYTES + 1)
        if data[:2] == b"\x1f\x8b" and len(data) <= limits.MAX_BYTES:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(limits.MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{path} cannot be read: {reason}. Expected a .vnnlib or .vnnlib.gz file.") from None
    if len(data) > limits.MAX_BYTES:
        raise InvalidInput(
            f"{path} holds more than {limits.MAX_BYTES} bytes of text, which are read at most. Split it."
        )
    try:
        return loads(data.decode("utf-8-sig"), str(path), deadline)
    except UnicodeDecodeError as error:
        line = line_after(data[: error.start].decode("latin-1"))
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise InvalidInput(f"{path}, line {line}: {found} is not UTF-8 text. Expected a VNN-LIB file.") from None


def loads(text: str, name: str = "<string>", deadline: Deadline = NEVER) -> Property:
    """Read a property from text, as `load` does; errors call it `name`, and OutOfTime says that the deadline passed.

    >>> loads('''
    ... (declare-const X_0 Real)
    ... (declare-const Y_0 Real)
    ... (assert (and (>= X_0 -0.5) (<= X_0 0.1)))
    ... (assert (>= Y_0 3.0))
    ... ''')
    Property of 1 input and 1 output: 1 box, 1 way to be unsafe
    """
    collecting = gc.isenabled()
    gc.disable()  # it would walk the growing tree again and again, for more than half of the time
    try:
        return Reader(Source(text, name, deadline)).property()
    except (MemoryError, RecursionError) as error:
        raise InvalidInput(f"{name} needs more memory than there is ({type(error).__name__}). Split it.") from None
    finally:
        if collecting:
            gc.enable()
