"""The compiled kernels, where there are any and there is time to compile them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nnrepair.deadline import Deadline

#: Compiling takes some 15 seconds, once for each installation. With less time left than this, it is done without.
ENOUGH = 60.0


class Kernels(NamedTuple):
    """Compiled functions: `kernel.tighten` and `slope_kernel.ascend`."""

    tighten: Callable[..., None]
    ascend: Callable[..., None]


def kernels(deadline: Deadline) -> Kernels | None:
    """Return what is compiled; None without numba, without the time to compile, or where that does not work."""
    modules, doing = _modules(), deadline.doing
    if modules is None:
        return None
    if not all(map(_is_kept, modules)):
        if deadline.left() < ENOUGH:
            return None
        deadline.check("compiling the kernels, once for each installation")
    found = _compiled()
    deadline.check(doing)
    return found


@cache
def _modules() -> tuple[ModuleType, ModuleType] | None:
    """Return the modules of the kernels, in the order of `Kernels`."""
    if find_spec("numba") is None:
        return None
    try:
        first, second = (import_module(f"nnrepair.verify.search.{name}") for name in ("kernel", "slope_kernel"))
    except Exception:  # of many kinds, and whole matrices do as well
        return None
    # With NUMBA_DISABLE_JIT they are plain functions, which are too slow.
    is_compiler = all(hasattr(getattr(module, module.NAME), "compile") for module in (first, second))
    return (first, second) if is_compiler else None


def _is_kept(module: ModuleType) -> bool:
    """Tell whether a kernel is compiled, or was and lies on disk."""
    function: Any = getattr(module, module.NAME)
    if function.signatures:
        return True
    source = Path(str(module.__file__))
    kind = f"py{sys.version_info.major}{sys.version_info.minor}"  # other Pythons may keep theirs beside it
    kept = Path(function.stats.cache_path or source.parent).glob(f"{source.stem}.{module.NAME}-*.{kind}*.nbi")
    return any(file.stat().st_mtime >= source.stat().st_mtime for file in kept)


@cache
def _compiled() -> Kernels | None:
    modules = _modules()
    assert modules is not None
    try:
        return Kernels(*(_compile(module) for module in modules))
    except Exception:  # as above
        return None


def _compile(module: ModuleType) -> Callable[..., None]:
    function: Any = getattr(module, module.NAME)
    function.compile(module.SIGNATURE)
    function.disable_compile()  # for other types
    found: Callable[..., None] = function
    return found
