"""The compiled kernels, and the same as plain Python, with changes of their text."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import nnrepair.verify.search as search
from nnrepair.deadline import NEVER
from nnrepair.verify.search.compiled import Kernels, kernels


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


def as_python() -> Kernels:
    """Return both as plain Python."""
    return Kernels(plain("kernel").tighten, plain("slope_kernel").ascend)


def compiled() -> Kernels:
    """Return both as compiled; without numba, skip the test."""
    pytest.importorskip("numba", reason="the compiled kernels need the extra [fast]")
    found = kernels(NEVER)
    assert found is not None
    return found
