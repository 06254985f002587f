"""The examples of docs/how-to-choose.md, run as a reader would."""

from __future__ import annotations

from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written


def test_the_examples_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_as_written(ROOT / "docs" / "how-to-choose.md", tmp_path, monkeypatch)
