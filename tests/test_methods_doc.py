"""The tutorial docs/add-a-method.md, run as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written

from nnrepair.methods import base
from nnrepair.wrappers import Wrapper

PAGE = ROOT / "docs" / "add-a-method.md"


def test_the_tutorial_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "REGISTRY", dict(base.REGISTRY))
    monkeypatch.setattr(Wrapper, "kinds", dict(Wrapper.kinds))
    run_as_written(PAGE, tmp_path, monkeypatch)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"by-heart.safetensors", "run.safetensors"}


def test_what_is_not_run_is_the_row_alone() -> None:
    blocks = re.findall(r"^```(\w+)$", PAGE.read_text(), re.MULTILINE)
    assert blocks.count("python") == 1 and set(blocks) == {"pycon", "python"}
