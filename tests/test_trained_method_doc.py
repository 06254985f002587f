"""The page docs/add-a-trained-method.md, run as a reader would: Python and shell, in order, in one empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written

from nnrepair.methods.base import REGISTRY


@pytest.mark.slow
def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(REGISTRY)
    try:
        run_as_written(ROOT / "docs" / "add-a-trained-method.md", tmp_path, monkeypatch)
        assert REGISTRY.keys() - known.keys() == {"scaled-steps"}
    finally:
        REGISTRY.pop("scaled-steps", None)
