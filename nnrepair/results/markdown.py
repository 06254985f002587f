"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nnrepair.errors import InvalidInput


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""Return a table in Markdown, without a line end after its last row.

    >>> print(table(["norm", "size"], [["l1", 2], ["a|b", 0.5]]))
    | norm | size |
    |---|---|
    | l1 | 2 |
    | a\|b | 0.5 |

    Args:
        head: titles of the columns.
        rows: cells, as many as there are columns.

    Raises:
        InvalidInput: a row with another number of cells.
    """
    lines = [_line(head), "|" + "---|" * len(head)]
    for row in rows:
        if len(row) != len(head):
            raise InvalidInput(f"A row has {len(row)} cells in a table of {len(head)} columns: {list(row)}.")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    text = [str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(text)} |"
