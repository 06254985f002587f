"""The tutorial docs/properties.md, run as a reader would: Python and shell, in order, in one empty folder."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FENCE = re.compile(r"^```(pycon|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[tuple[str, str]]:
    """Return each command with the output that is shown; a here-document belongs to its command."""
    found: list[list[str]] = []
    end = ""
    for line in block.splitlines():
        if line.startswith("$ ") and not end:
            found.append([line[2:], ""])
            here = re.search(r"<< '(\w+)'$", line)
            end = here[1] if here else ""
        elif end:
            found[-1][0] += "\n" + line
            end = "" if line == end else end
        else:
            found[-1][1] += line + "\n"
    return [(command, shown) for command, shown in found]


def run(command: str, shown: str, folder: Path) -> None:
    environment = os.environ | {
        "PATH": f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    said = done.stdout + (f"exit code {done.returncode}\n" if done.returncode else "")
    assert doctest.OutputChecker().check_output(shown, said, FLAGS), f"$ {command}\n{said}{done.stderr}"


@pytest.mark.slow
def test_the_tutorial_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "verification").symlink_to(ROOT / "verification")
    (tmp_path / ".bin").mkdir()
    for name, program in (("python", ""), ("nnrepair", "-m nnrepair ")):
        script = tmp_path / ".bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {program}"$@"\n')
        script.chmod(0o755)
    names: dict[str, Any] = {}
    text = (ROOT / "docs" / "properties.md").read_text()
    runner = doctest.DocTestRunner(optionflags=FLAGS | doctest.FAIL_FAST)
    try:
        for kind, block in FENCE.findall(text):
            if kind == "console":
                for command, shown in commands(block):
                    run(command, shown, tmp_path)
                continue
            told: list[str] = []
            part = doctest.DocTestParser().get_doctest(block, names, "properties.md", None, 0)
            runner.run(part, out=told.append, clear_globs=False)
            assert not told, "".join(told)
            names = part.globs
        assert (tmp_path / "brake.png").stat().st_size > 1000
    finally:
        from matplotlib import pyplot

        pyplot.close("all")


def test_every_picture_and_page_that_it_names_is_there() -> None:
    text = (ROOT / "docs" / "properties.md").read_text()
    named = set(re.findall(r"\]\(([^)#]+)\)", text))
    missing = sorted(name for name in named if not (ROOT / "docs" / name).is_file())
    assert missing in ([], ["results-properties.md"])  # the latter is generated from result files
