"""The page docs/inpainting.md, run as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written

PAGE = ROOT / "docs" / "inpainting.md"


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    run_as_written(PAGE, tmp_path, monkeypatch)


def test_every_block_is_run_and_every_file_that_it_names_is_there() -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) == {"pycon"}  # what run_as_written runs
    named = {name.partition("#")[0] for name in re.findall(r"\]\(([^)]+)\)", text)}
    named = {name for name in named if name and not name.startswith("https:")}
    assert len(named) >= 3 and all((PAGE.parent / name).is_file() for name in named)
