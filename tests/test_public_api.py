"""What is public, and how it is called, is what tests/public_api.txt says: a change of it is seen in review.

Where a change is meant, write the list anew, and a line in CHANGELOG.md: python tests/test_public_api.py
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LIST = Path(__file__).with_name("public_api.txt")
#: Public modules, and where what they offer is defined if they have no list of their own.
MODULES = {
    "nnrepair": "",
    "nnrepair.data": "nnrepair.domains.files",
    "nnrepair.domains.acas": "",
    "nnrepair.domains.base": "nnrepair.domains.base",
    "nnrepair.domains.graphs": "",
    "nnrepair.domains.inpainting": "",
    "nnrepair.domains.vision": "",
    "nnrepair.methods": "",
    "nnrepair.metrics": "nnrepair.results.metrics",
    "nnrepair.onnx": "",
    "nnrepair.penalties": "nnrepair.methods.fine_tune.penalties",
    "nnrepair.plot": "",
    "nnrepair.splitting": "nnrepair.regions.splitting",
    "nnrepair.verify": "",
    "nnrepair.wrappers": "",
}


def names(module: ModuleType, home: str) -> list[str]:
    """Return what a module offers."""
    if not home:
        return sorted(module.__all__)
    found = vars(module).items()
    return sorted(name for name, value in found if name[0] != "_" and getattr(value, "__module__", "") == home)


def signature(value: Any) -> str:
    """Return how something is called; annotations are text already, and shown without quotes."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):  # what torch, or C, brings along
        return "(...)"
    unquoted = re.sub(r"((?:: |-> ))'([^']*)'", r"\1\2", str(found))
    anywhere = re.sub(r"\w+Path\('[^']*'\)", "Path(...)", unquoted)  # where this checkout lies
    return re.sub(r" at 0x[0-9a-f]+", "", anywhere)


def described(name: str, value: Any) -> Iterator[str]:
    """Yield a line for a function or constant; for a class one more for each of its own methods and properties."""
    if not callable(value):
        yield f"{name}: {type(value).__name__}"
        return
    yield f"{'class ' if inspect.isclass(value) else ''}{name}{signature(value)}"
    if inspect.isclass(value):
        own = [kind for kind in value.__mro__ if kind.__module__.startswith("nnrepair")]
        members = {member: found for kind in reversed(own) for member, found in vars(kind).items()}
        for member, found in sorted(members.items()):
            if member.startswith("_"):
                continue
            if isinstance(found, classmethod | staticmethod):
                yield f"    {member}{signature(getattr(value, member))}"
            elif inspect.isfunction(found):
                yield f"    {member}{signature(found)}"
            elif isinstance(found, property) or hasattr(found, "func"):  # computed once, or every time
                yield f"    {member}"


def listed() -> str:
    lines = []
    for path, home in MODULES.items():
        module = importlib.import_module(path)
        lines.append(f"# {path}")
        for name in names(module, home):
            value = getattr(module, name)
            if isinstance(value, ModuleType):
                lines.append(f"module {name}")
            else:
                lines += described(name, value)
        lines.append("")
    return "\n".join(lines)


def test_the_public_names_are_those_of_the_list() -> None:
    for package in ("onnx", "onnxscript", "torch_geometric"):
        pytest.importorskip(package)
    made, known = listed().splitlines(), LIST.read_text().splitlines()
    new, gone = [line for line in made if line not in known], [line for line in known if line not in made]
    assert made == known, f"new: {new}; gone: {gone}. Where that is meant: python tests/test_public_api.py"


if __name__ == "__main__":
    LIST.write_text(listed())
