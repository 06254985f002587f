"""What a command is doing, as one line on a terminal that goes away with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nnrepair.errors import printable

_FROM_THE_LEFT, _CLEAR = "\r", "\x1b[K"


@contextmanager
def waiting(what: str, quiet: bool = False) -> Iterator[None]:
    """Say on stderr, where that is a terminal, what takes a while.

    Args:
        what: such as "reading model.onnx".
        quiet: whether to say nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    print(f"{_FROM_THE_LEFT}nnrepair: {printable(what)} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(_FROM_THE_LEFT + _CLEAR, end="", file=sys.stderr, flush=True)
