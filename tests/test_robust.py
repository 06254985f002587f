"""The campaigns of benchmarks/robust: samples of them, and that they see faults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robust import fuzz

SLOW = {"progress of a sequence": 15}


@pytest.mark.parametrize("name", fuzz.READERS)
def test_spoiled_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    outcomes = set()
    for index in range(SLOW.get(name, 60)):
        outcome, said = fuzz.judged(name, *fuzz.prepared(name, index, 0, tmp_path))
        assert outcome in ("read", "refused"), f"{index}: {said}"
        outcomes.add(outcome)
    assert "refused" in outcomes


@pytest.mark.parametrize("name", [name for name in fuzz.READERS if name != "property"])
def test_what_is_spoiled_was_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or refusals would mean nothing. Of random properties and networks some are refused as they are."""
    monkeypatch.setattr(fuzz, "spoiled", lambda reader, rng, content: content)
    monkeypatch.setattr(fuzz, "in_its_files", written)
    outcomes = [fuzz.judged(name, *fuzz.prepared(name, index, 0, tmp_path)) for index in (0, 40, 80, 120)]
    assert "read" in {outcome for outcome, _ in outcomes}, outcomes
    assert name == "network" or {outcome for outcome, _ in outcomes} == {"read"}, outcomes


def written(rng: Any, files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def endless(path: Path, about: Any) -> None:
    try:
        while True:
            pass
    except Exception:  # as readers do that expect anything
        pass


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda path, about: {}["x"], "foreign"),
        (lambda path, about: (path / "x").read_bytes(), "foreign"),
        (endless, "too long"),
    ],
)
def test_faults_are_seen(
    read: Callable[[Path, Any], object], outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "LIMIT", 0.1)
    monkeypatch.setitem(fuzz.READERS, "patch", replace(fuzz.READERS["patch"], read=read))
    (tmp_path / "file").touch()
    assert fuzz.judged("patch", tmp_path / "file", None)[0] == outcome


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_run_that_is_killed_ends_as_without_a_kill() -> None:
    code = "from benchmarks.robust import kills; print(kills.measured('the training of an editor', 3, 0))"
    command, here = [sys.executable, "-W", "ignore", "-c", code], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=300)
    assert "'wrong': []" in done.stdout and "'kills': 3" in done.stdout, done
