"""The worked example docs/add-an-activation.md, run as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn
from tutorial import ROOT, run_as_written

from nnrepair.verify.reading.operations import HANDLERS

PAGE = ROOT / "docs" / "add-an-activation.md"


def test_the_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (nn.Softshrink, nn.Softsign):  # so that what it adds is gone afterwards
        monkeypatch.delitem(HANDLERS, layer, raising=False)
    run_as_written(PAGE, tmp_path, monkeypatch)


def test_every_file_that_it_names_is_there() -> None:
    text = PAGE.read_text()
    files = [ROOT / name for name in re.findall(r"`((?:nnrepair|tests)/[\w/.]+)`", text)]
    pages = [ROOT / "docs" / name for name in re.findall(r"\]\(([^)#]+)\)", text)]
    assert len(files) >= 3 and all(path.exists() for path in (*files, *pages))
