"""What can go wrong, as exceptions that say what was given, what was expected and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NNRepairError(Exception):
    """Base class of every error that this library raises on purpose."""


class InvalidInput(NNRepairError, ValueError):
    """The caller's model, edits, options or files cannot be used as they are."""


class UnsupportedModel(NNRepairError, ValueError):
    """The model uses something that the requested operation cannot handle; all such things are listed at once."""


class DataUnavailable(NNRepairError, FileNotFoundError):
    """A data set is not on this machine and could not be fetched; the message says how to get it."""


class MissingExtra(NNRepairError, ModuleNotFoundError):
    """A package is not installed that comes with one of the extras; the message names the extra."""


class PatchError(NNRepairError, ValueError):
    """A patch file is malformed or does not belong to the model it was applied to."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of what an error says, or its kind where it says nothing.

    >>> first_line(ValueError("no such thing\nmore"))
    'no such thing'
    """
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' when a known name is close to `name`, else an empty string.

    >>> near_matches("fc9", ["fc1", "conv"])
    " Did you mean 'fc1'?"
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def printable(text: str) -> str:
    r"""Return text for one line of a terminal: control characters, which could change it, are spelt out.

    >>> printable("fc1\x1b[2J")
    'fc1\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
