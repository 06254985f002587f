"""What all tests share."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import tested
from exporting import install


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny models run faster, and repeatably, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _quick_exports() -> None:
    install()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is not None and tested() is None:
        pytest.skip("there is no GPU; NNREPAIR_DEVICE names another device (tests/devices.py)")


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make matplotlib a package that is not installed."""
    found = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.fixture
def data_dir() -> Callable[..., Path]:
    """Give the data folder: `data_dir("mnist/mnist.npz")` skips the test, naming the file, where it is missing."""

    def need(*files: str) -> Path:
        folder = os.environ.get("NNREPAIR_DATA")
        if not folder:
            pytest.skip(f"NNREPAIR_DATA is not set; this test needs {', '.join(files) or 'a data folder'}")
        missing = [file for file in files if not (Path(folder) / file).exists()]
        if missing:
            pytest.skip(f"missing in NNREPAIR_DATA: {', '.join(missing)}")
        return Path(folder)

    return need
