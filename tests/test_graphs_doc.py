"""The tutorial docs/graphs.md, run as a reader would."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written

PAGE = ROOT / "docs" / "graphs.md"


@pytest.mark.data
@pytest.mark.slow
def test_the_tutorial_runs_as_written(
    data_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch_geometric", reason="graph networks come with the extra [graph]")
    data_dir("graphs/cora_safe.npz")
    run_as_written(PAGE, tmp_path, monkeypatch)
    assert (tmp_path / "neighbourhood.png").stat().st_size > 1000


def test_every_block_is_run_and_every_page_that_it_names_is_there() -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) == {"pycon", "console"}  # what run_as_written runs
    named = {name.partition("#")[0] for name in re.findall(r"\]\(([^)]+)\)", text)}
    assert all((ROOT / "docs" / name).is_file() for name in named)
