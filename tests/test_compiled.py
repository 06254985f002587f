"""Kernels are compiled where there is time, and nothing waits for it where there is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from networks import mlp

from nnrepair import Linear
from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.verify import Box, Property, check
from nnrepair.verify.search import compiled
from nnrepair.verify.search.compiled import ENOUGH, Kernels, kernels


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """Return kernels that were never compiled."""
    made = []
    for name in ("kernel", "slope_kernel"):
        (source := tmp_path / f"{name}.py").touch()
        module: Any = ModuleType(name)
        module.__file__, module.NAME, module.SIGNATURE = str(source), "run", "void()"
        module.run = Function(tmp_path / "kept", f"{name}.run-1.py{sys.version_info.major}{sys.version_info.minor}.nbi")
        made.append(module)
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(compiled, "_modules", lambda: tuple(made))
    monkeypatch.setattr(compiled, "_compiled", compiled._compiled.__wrapped__)
    return made[0], made[1]


class Function:
    """Behaves as numba's compiled functions."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.signatures, self.closed = folder, name, list[str](), False
        self.stats = SimpleNamespace(cache_path=str(folder))

    def compile(self, signature: str) -> None:
        self.signatures.append(signature)
        (self.folder / self.name).touch()

    def disable_compile(self) -> None:
        self.closed = True


def test_without_time_nothing_is_compiled(modules: Any) -> None:
    assert kernels(Deadline(ENOUGH - 1)) is None
    assert not any(module.run.signatures for module in modules)


def test_with_time_both_are_compiled_and_it_is_said(modules: Any) -> None:
    said: list[str] = []
    found = kernels(Deadline(ENOUGH + 10, said.append))
    assert found == Kernels(modules[0].run, modules[1].run)
    assert all(module.run.signatures == ["void()"] and module.run.closed for module in modules)
    assert said == ["compiling the kernels, once for each installation"]
    again = Deadline(1.0, said.append)
    again.doing = "reading"
    assert kernels(again) == found and said[1:] == ["reading"]  # they are in this process


def test_what_lies_on_disk_takes_no_time(modules: Any) -> None:
    assert kernels(NEVER) is not None
    for module in modules:
        module.run.signatures.clear()  # another process
    assert kernels(Deadline(1.0)) is not None
    for module in modules:
        module.run.signatures.clear()
    source = Path(modules[1].__file__)
    later = time.time() + 10
    os.utime(source, (later, later))  # changed after it was compiled
    assert kernels(Deadline(1.0)) is None


def test_time_that_is_over_is_over(modules: Any) -> None:
    assert kernels(NEVER) is not None
    with pytest.raises(OutOfTime):
        kernels(Deadline(-1.0))


def test_kernels_that_do_not_compile_are_none(modules: Any) -> None:
    def fails(signature: str) -> None:
        raise RuntimeError("no place for files that are kept")

    modules[1].run.compile = fails
    assert kernels(NEVER) is None


@pytest.mark.parametrize("there", [False, True])
def test_without_numba_there_are_none(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: there or None)
    monkeypatch.setitem(sys.modules, "nnrepair.verify.search.kernel", None)  # an import of it fails
    monkeypatch.setattr(compiled, "_modules", compiled._modules.__wrapped__)
    assert kernels(NEVER) is None


def test_short_limits_are_kept_where_nothing_was_compiled(modules: Any) -> None:
    never = Property.on(Box([-1.0] * 3, [1.0] * 3), Linear([[1.0, 0.0]], [-99.0], points=1), outputs=2)
    assert check(mlp(3, 8, 8, 2), never, timeout=30).verdict == "holds"
    assert not any(module.run.signatures for module in modules)


def test_both_are_what_they_say(tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="the compiled kernels need the extra [fast]")
    from nnrepair.verify.search import kernel, slope_kernel

    found = kernels(NEVER)
    assert found == Kernels(kernel.tighten, slope_kernel.ascend)
    assert [len(function.signatures) for function in found] == [1, 1]  # type: ignore[attr-defined]
    assert all(compiled._is_kept(module) for module in (kernel, slope_kernel))


def test_what_another_python_compiled_is_none_of_this_one(modules: Any) -> None:
    for module in modules:
        module.run.name = f"{module.__name__}.run-1.py27.nbi"
    assert kernels(NEVER) is not None
    for module in modules:
        module.run.signatures.clear()
    assert kernels(Deadline(1.0)) is None


def test_functions_that_numba_does_not_compile_are_no_kernels() -> None:
    pytest.importorskip("numba", reason="the compiled kernels need the extra [fast]")
    program = (
        "from nnrepair.deadline import NEVER, Deadline\n"
        "from nnrepair.verify.search.compiled import kernels\n"
        "print(kernels(Deadline(1.0)), kernels(NEVER))\n"
    )
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "None"]
