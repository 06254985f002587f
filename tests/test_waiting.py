"""On a terminal, and only there, a command says what it is doing; the line goes away."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnrepair.cli.waiting import waiting


def test_nothing_is_said_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("reading"):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("fails", [False, True])
def test_the_line_goes_away(fails: bool, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(ZeroDivisionError) if fails else waiting("outer", quiet=True), waiting("reading \x1b[31mit\n"):
        assert 1 / (0 if fails else 1)
    said = capsys.readouterr().err
    assert said.startswith("\rnnrepair: reading ") and said.endswith(" ...\r\x1b[K")
    assert said.count("\x1b") == 1 and "\n" not in said


def test_a_command_shows_on_a_terminal_that_it_starts(tmp_path: Path) -> None:
    control, terminal = pty.openpty()
    command = [sys.executable, "-m", "nnrepair", "check-edits", "none.onnx", "none.npz"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        said = b""
        while True:
            try:
                part = os.read(control, 1000)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
    os.close(control)
    assert process.returncode == 3
    assert said.startswith(b"\rnnrepair: starting ...\r\x1b[K") and b"nnrepair: error:" in said
