"""The page docs/own-objectives.md, run as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written

from nnrepair.methods.minimal_norm.own import program

PAGE = ROOT / "docs" / "own-objectives.md"


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cvxpy", reason="objectives of one's own need the extra [cvxpy]")
    run_as_written(PAGE, tmp_path, monkeypatch)


def test_every_block_is_run_and_the_limit_is_the_one_in_force() -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) == {"pycon"}
    assert f"at most {program.LARGEST // 10**6} million" in " ".join(text.split())
