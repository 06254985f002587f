"""The tutorial docs/properties.md, run as a reader would: Python and shell, in order, in one empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written

PAGE = ROOT / "docs" / "properties.md"


@pytest.mark.slow
def test_the_tutorial_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_as_written(PAGE, tmp_path, monkeypatch)
    assert (tmp_path / "brake.png").stat().st_size > 1000


def test_every_picture_and_page_that_it_names_is_there() -> None:
    text = PAGE.read_text()
    named = set(re.findall(r"\]\(([^)#]+)\)", text))
    missing = sorted(name for name in named if not (ROOT / "docs" / name).is_file())
    assert missing in ([], ["results-properties.md"])  # the latter is generated from result files
