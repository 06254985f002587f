"""The house is as docs/architecture.md draws it: no import runs upwards or in a circle, and nothing is large."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).parents[1] / "nnrepair"
PAGE = PACKAGE.parent / "docs/architecture.md"
#: Lines of a file, of a class and of a function (its docstring not counted), at most; and of half of the files.
FILE, CLASS, FUNCTION, MEDIAN = 450, 250, 60, 150
#: Words with which a room's `__init__` says what it holds.
WORDS = 5


def _name(file: Path) -> str:
    """Return the module in a file."""
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text()) for name, file in FILES.items()}


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the package's modules that another imports anywhere: on top, for typing only, or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package name it"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [module for module in (inner, node.module or "") if module in FILES][:1]


@cache
def _graph() -> nx.DiGraph:
    """Return who imports whom."""
    return nx.DiGraph([(name, other) for name, tree in TREES.items() for other in _imported(tree) if other != name])


def _room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def _drawn() -> list[str]:
    """Return the rooms in the page's order: the files and folders with which lines of the tree begin."""
    (tree,) = re.findall(r"```text\nnnrepair/\n(.*?)\nverification/", PAGE.read_text(), re.DOTALL)
    rows = re.findall(r"^  ((?:\w+(?:\.py|/) +)+)", tree, re.MULTILINE)
    return [word.removesuffix(".py").removesuffix("/") for row in rows for word in row.split()]


def _picture(graph: nx.DiGraph) -> str:
    """Return the page's picture: every arrow between rooms that does not follow from others."""
    rooms = nx.DiGraph()
    for module, other in graph.edges:
        if _room(module) not in ("", "__main__") and _room(module) != _room(other):
            rooms.add_edge(_room(other), _room(module))
    order = _drawn()
    arrows = sorted(nx.transitive_reduction(rooms).edges, key=lambda arrow: [order.index(room) for room in arrow])
    return "\n".join(["```mermaid", "flowchart TD", *(f"  {one} --> {other}" for one, other in arrows), "```"])


def test_no_import_runs_in_a_circle() -> None:
    circles = [sorted(part) for part in nx.strongly_connected_components(_graph()) if len(part) > 1]
    assert not circles


def test_every_room_is_drawn_and_no_import_runs_upwards() -> None:
    order = _drawn()
    rooms = {_room(module) for module in FILES} - {"", "__main__"}
    assert sorted(order) == sorted(rooms)
    place = {room: number for number, room in enumerate(order)}
    upwards = [
        f"{module} -> {other}"
        for module, other in _graph().edges
        if _room(module) in place and place.get(_room(other), -1) > place[_room(module)]
    ]
    assert not upwards


def test_the_picture_is_what_the_imports_are() -> None:
    picture = _picture(_graph())
    assert picture in PAGE.read_text(), f"docs/architecture.md should show\n{picture}"


@pytest.mark.parametrize("room", sorted(name for name, file in FILES.items() if file.name == "__init__.py"))
def test_a_room_says_in_a_few_words_what_it_holds(room: str) -> None:
    said = ast.get_docstring(TREES[room]) or ""
    first = said.split("\n")[0]
    assert first.endswith("."), room
    assert room == "nnrepair" or len(first.split()) <= WORDS, first


def _length(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return a definition's lines, without a function's docstring."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    first = node.body[0]
    if not isinstance(node, ast.ClassDef) and ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_nothing_is_too_large_to_read() -> None:
    large = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                limit = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
                if _length(node) > limit:
                    large.append(f"{name}.{node.name}: {_length(node)} lines")
    lines = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    large += [f"{name}: {count} lines" for name, count in lines.items() if count > FILE]
    assert not large
    assert statistics.median(lines.values()) <= MEDIAN
