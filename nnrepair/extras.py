"""Optional packages: where one is needed and missing, the error says which extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from nnrepair.errors import MissingExtra


@contextmanager
def needed(extra: str, why: str) -> Iterator[None]:
    """Import packages of an extra inside.

    >>> with needed("plot", "Pictures need matplotlib"):
    ...     import matplotlib_of_another_age
    Traceback (most recent call last):
    nnrepair.errors.MissingExtra: Pictures need matplotlib: pip install 'nnrepair[plot]' ...

    Raises:
        MissingExtra: one is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, MissingExtra):
            raise
        raise MissingExtra(f"{why}: pip install 'nnrepair[{extra}]' ({error}).", name=error.name) from error


def installed(package: str = "nnrepair") -> str:
    """Return the version of a package, or that it is not installed, as ours is not when run from a source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
