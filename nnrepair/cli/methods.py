"""`nnrepair methods`: what there is to choose from."""

from __future__ import annotations

import argparse

from nnrepair.methods import LEGEND, distinct, table
from nnrepair.methods.base import kind_of


def run(arguments: argparse.Namespace) -> int:
    """Print the table of methods, and a line about each."""
    for row in _columns(table()):
        print(row)
    print()
    print(LEGEND)
    print()
    for name, make in distinct().items():
        print(f"{name}: {(kind_of(make).__doc__ or '').strip().splitlines()[0]}")
    return 0


def _columns(table: list[list[str]]) -> list[str]:
    """Return the lines of a table of words, header first, with a rule under it."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [table[0], ["-" * width for width in widths], *table[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
