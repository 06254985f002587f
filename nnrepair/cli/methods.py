"""`nnrepair methods`: what there is to choose from."""

from __future__ import annotations

import argparse
import textwrap

from nnrepair.cli.method_options import options_of
from nnrepair.methods import LEGEND, distinct, table
from nnrepair.methods.base import kind_of, sentence


def run(arguments: argparse.Namespace) -> int:
    """Print the table of methods, and each with its options."""
    for row in _columns(table()):
        print(row)
    print()
    print(LEGEND)
    print()
    for names, make in distinct().items():
        print(f"{names}: {sentence(make)}")
    print()
    print("An option below is called --method-NAME where the command has one of the same name.")
    kinds: dict[type, list[str]] = {}
    for names, make in distinct().items():
        kinds.setdefault(kind_of(make), []).append(names)
    for kind, listed in kinds.items():
        print(f"\n{', '.join(listed)}")
        for option in options_of(kind):
            line = f"  --{option.flag} ({option.default}): {option.about}"
            print(textwrap.fill(line, 118, subsequent_indent=" " * 6, break_on_hyphens=False))
    return 0


def _columns(table: list[list[str]]) -> list[str]:
    """Return the lines of a table of words, header first, with a rule under it."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [table[0], ["-" * width for width in widths], *table[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
