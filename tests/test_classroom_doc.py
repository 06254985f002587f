"""The page docs/classroom.md, run as a reader would; what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written

from nnrepair.classroom.lesson import MOST_REPAIRS, WAYS
from nnrepair.classroom.sessions import MOST_LESSONS
from nnrepair.cli.parser import command_line

PAGE = ROOT / "docs" / "classroom.md"


@pytest.mark.slow
def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nicegui", reason="NiceGUI comes with the extra [classroom]")
    run_as_written(PAGE, tmp_path, monkeypatch)
    assert (tmp_path / "lesson.html").read_text().startswith("<!DOCTYPE html>")


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    files = re.findall(r"\]\(([^)#]+)\)", text)
    assert files and all((PAGE.parent / name).is_file() for name in files)
    assert all(f"*{way.name}*:" in text for way in WAYS.values())
    assert f"up to {MOST_LESSONS} are open" in text and f"up to {MOST_REPAIRS} repairs" in text
    options = re.findall(r"^\| `(--[^`]+)` \|", text, re.MULTILINE)
    assert len(options) == 5
    for option in options:
        command_line().parse_args(["classroom", *option.split()])
