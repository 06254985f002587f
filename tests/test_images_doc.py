"""The page docs/images.md, run as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tutorial import ROOT, run_as_written

PAGE = ROOT / "docs" / "images.md"


@pytest.mark.slow
def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision", reason="torchvision comes with the extra [vision]")
    run_as_written(PAGE, tmp_path, monkeypatch)


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    named = {name.partition("#")[0] for name in re.findall(r"\]\(([^)]+)\)", text)}
    assert named and all((PAGE.parent / name).is_file() for name in named)
    for module, function in re.findall(r"`(imagenet|cifar|published|data)\.(\w+)\(", text):
        source = (ROOT / "nnrepair/domains/images" / f"{module}.py").read_text()
        assert f"def {function}(" in source
