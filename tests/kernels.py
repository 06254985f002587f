"""The compiled kernels as plain Python, with changes of their text."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import nnrepair.verify.search as search


def plain(name: str, *changes: tuple[str, str]) -> ModuleType:
    """Return a kernel of this name as plain Python, each old text, which must be there once, replaced by a new one."""
    file = Path(search.__file__).with_name(f"{name}.py")
    text = file.read_text().replace(
        "from numba import njit", "njit = lambda *types, **options: lambda function: function"
    )
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    made = ModuleType(name)
    exec(compile(text, str(file), "exec", dont_inherit=True), vars(made))
    return made
