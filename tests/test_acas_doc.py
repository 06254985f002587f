"""The tutorial docs/acas-xu.md, run as a reader would; it needs the ACAS Xu files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tutorial import ROOT, run_as_written

PAGE = ROOT / "docs" / "acas-xu.md"


@pytest.mark.slow
@pytest.mark.data
def test_the_tutorial_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Any) -> None:
    data_dir(
        *(f"acasxu/onnx/ACASXU_run2a_{name}_batch_2000.onnx" for name in ("1_7", "2_9")),
        *(f"acasxu/vnnlib/prop_{number}.vnnlib" for number in (1, 3, 4, 8)),
    )
    run_as_written(PAGE, tmp_path, monkeypatch)
    assert (tmp_path / "encounter.png").stat().st_size > 1000


def test_every_picture_and_page_that_it_names_is_there() -> None:
    named = set(re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()))
    assert len(named) > 5 and all((PAGE.parent / name).is_file() for name in named)
