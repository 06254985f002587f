"""Pages as tests: Python and shell, in order, in one empty folder, as a reader would.

What is run: `pycon`, Python with the results shown; `console`, commands with their output; `python`, whose output is
in the block `text` below it, if there is one, and may differ in its digits.
"""

from __future__ import annotations

import doctest
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from nnrepair.cli import main

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FENCE = re.compile(
    r"^```(pycon|console|python)\n((?:(?!```).*\n)*)^```$(?:\n\n```text\n((?:(?!```).*\n)*)^```$)?", re.MULTILINE
)


def up_to_digits(text: str) -> str:
    """Return a text in which every number, and every note of a report, is the same.

    Figures of trained networks differ between processors, and with them what the search for a layer tried.
    """
    return re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "0", re.sub(r"(?m)^note: .*$", "note: ", text))


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
    """Run a command in a shell; `nnrepair` with nothing but arguments in this process, as a new one imports torch."""
    if command.startswith("nnrepair ") and not set(command) & set("|<>&;$`*?~\n"):
        output, code, errors = in_this_process(shlex.split(command)[1:])
    else:
        output, code, errors = in_a_shell(command, folder)
    said = output + (f"exit code {code}\n" if code else "")
    assert doctest.OutputChecker().check_output(shown, said, FLAGS), f"$ {command}\n{said}{errors}"


def in_this_process(arguments: list[str]) -> tuple[str, int, str]:
    """Return what a command prints, its exit code, and what it says on stderr."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return output.getvalue(), code, errors.getvalue()


def in_a_shell(command: str, folder: Path) -> tuple[str, int, str]:
    environment = os.environ | {
        "PATH": f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.stdout, done.returncode, done.stderr


def run_as_written(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run every block of a page in an empty folder, and return the names that they made."""
    for package in ("onnx", "onnxscript", "onnxruntime", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(folder)
    (folder / ".bin").mkdir()
    for name, program in (("python", ""), ("nnrepair", "-m nnrepair ")):
        script = folder / ".bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {program}"$@"\n')
        script.chmod(0o755)
    said = runpy.run_path(str(ROOT / "docs" / "printed.py"))["said"]
    names: dict[str, Any] = {}
    runner = doctest.DocTestRunner(optionflags=FLAGS | doctest.FAIL_FAST)
    try:
        for number, (kind, block, shown) in enumerate(FENCE.findall(page.read_text())):
            if kind == "console":
                for command, output in commands(block):
                    run(command, output, folder)
                continue
            if kind == "python":
                assert up_to_digits(said(block, names)) == up_to_digits(shown)
                continue
            told: list[str] = []
            title = f"{page.name} {number}"  # doctest takes functions of blocks with one name for its own
            part = doctest.DocTestParser().get_doctest(block, names, title, None, 0)
            runner.run(part, out=told.append, clear_globs=False)
            assert not told, "".join(told)
            names = part.globs
    finally:
        from matplotlib import pyplot

        pyplot.close("all")
    return names
