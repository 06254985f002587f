"""What a sequence of repairs goes on from: its own progress, whole; and what a full disk costs."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import randn
from sequences import LAST, Says, net, state, task
from torch import Tensor

import nnrepair
from nnrepair import (
    Edits,
    EditScope,
    History,
    InvalidInput,
    Near,
    NNRepairError,
    Patch,
    Segments,
    sequence,
)
from nnrepair.fingerprint import fingerprint
from nnrepair.methods import MinimalNorm, Proposal
from nnrepair.spec.problem import Problem


class Stop(Exception):
    pass


@pytest.mark.parametrize("mode", ["independent", "successive"])
def test_goes_on_where_it_was_stopped(mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "SAVE_EVERY", 0.0)
    model, edits, locality = task()
    file = tmp_path / "run.safetensors"
    calls: list[int] = []
    real = Says.repair

    def stops(self: Says, problem: Problem) -> Proposal:
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        return real(self, problem)

    def run(resume: Path | None) -> History:
        return nnrepair.fix(model, edits, locality, method=Says(), mode=mode, resume=resume, test_set=randn(9, 6))

    whole = run(None)
    repaired = sum(step.status != "nothing to do" for step in whole.steps)
    assert repaired >= 4
    monkeypatch.setattr(Says, "repair", stops)
    with pytest.raises(Stop):
        run(file)
    resumed = run(file)
    assert len(calls) == repaired + 1  # the step that was stopped is the only one done twice
    assert [{**s.as_dict(), "seconds": 0} for s in resumed.steps] == [
        {**s.as_dict(), "seconds": 0} for s in whole.steps
    ]
    assert resumed.held_after == whole.held_after and resumed.held_finally == whole.held_finally
    if mode == "successive":
        assert state(resumed.model) == state(whole.model)
    again = run(file)
    assert len(calls) == repaired + 1
    assert again.outcome == whole.outcome


def test_refuses_to_resume_another_sequence(tmp_path: Path) -> None:
    model, edits, locality = task()
    file = tmp_path / "run.safetensors"
    nnrepair.fix(model, edits, locality, method=LAST, mode="successive", resume=file)
    content = file.read_bytes()
    for told, arguments in (
        ("mode", {"mode": "independent"}),
        ("seed", {"seed": 3}),
        ("method", {"method": MinimalNorm("2", norm="l1")}),
        ("points: edits", {"edits": edits[[0, 1]]}),
        ("points: test set", {"test_set": torch.zeros(1, 6)}),
        ("points: other", {"test_set": {"other": locality}}),
        ("rehearsal", {"rehearsal": 1}),
        ("points: edit scope", {"edit_scope": EditScope(edits.inputs, edits.criterion, of=torch.arange(5))}),
    ):
        given: dict[str, Any] = {"edits": edits, "method": LAST, "mode": "successive"} | arguments
        with pytest.raises(InvalidInput, match=re.escape("belongs to another sequence") + f".*{told}"):
            nnrepair.fix(model, given.pop("edits"), locality, resume=file, **given)
    assert file.read_bytes() == content
    nnrepair.fix(model, edits, method=LAST).patch.save(tmp_path / "patch.safetensors")  # type: ignore[union-attr]
    with pytest.raises(InvalidInput, match="not one that a sequence"):
        nnrepair.fix(model, edits, method=LAST, mode="successive", resume=tmp_path / "patch.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(nnrepair.PatchError, match="truncated"):
        nnrepair.fix(model, edits, method=LAST, mode="successive", resume=tmp_path / "cut.safetensors")


KILLED = """
import sys, time, torch
sys.path.insert(0, {tests!r})
import nnrepair
from nnrepair import sequence
from sequences import Says, task

real = Says.repair

def slow(self, problem):
    time.sleep(0.3)
    return real(self, problem)

Says.repair = slow
sequence.SAVE_EVERY = 0.0
model, edits, locality = task()
nnrepair.fix(model, edits, locality, method=Says(), mode="successive", resume={file!r})
"""


def test_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.safetensors"
    code = KILLED.format(tests=str(Path(__file__).parent), file=str(file))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    while not file.exists() and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert file.exists()
    model, edits, locality = task()
    resumed = nnrepair.fix(model, edits, locality, method=Says(), mode="successive", resume=file)
    whole = nnrepair.fix(model, edits, locality, method=Says(), mode="successive")
    assert fingerprint(resumed.model) == fingerprint(whole.model)
    assert not list(tmp_path.glob(".*"))[1:]  # at most the temporary file of the write that was killed


def test_what_decides_a_step_belongs_to_the_stored_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the original network's outputs, or what a method prints, do not show it."""
    model, edits, locality = task()
    with torch.no_grad():
        y = model(edits.inputs)
    file = tmp_path / "run.safetensors"

    @dataclass(frozen=True)
    class Weighted(Says):
        weight: Tensor = field(default_factory=lambda: torch.zeros(2000))

    asked = {"edits": Edits(edits.inputs, Near(y + 1, 0.5)), "method": Weighted(), "edit_scope": None}
    scope = EditScope(edits.inputs, edits.criterion)
    weights = torch.zeros(2000)
    weights[1000] = 1
    changes: list[tuple[str, dict[str, Any]]] = [
        ("points: edits", {"edits": Edits(edits.inputs, Near(y - 1, 0.5))}),  # as far from holding as before
        ("method's values", {"method": Weighted(weight=weights)}),
        ("points: edit scope", {"edit_scope": scope}),
    ]

    def run(**other: Any) -> History:
        given: dict[str, Any] = asked | other
        return nnrepair.fix(model, given.pop("edits"), locality, mode="independent", resume=file, throw=False, **given)

    assert repr(Weighted(weight=weights)) == repr(Weighted())
    run()
    content = file.read_bytes()
    for told, change in changes:
        with pytest.raises(InvalidInput, match=f"another sequence.*{told}"):
            run(**change)
    monkeypatch.setattr(sequence, "versions", lambda packages: {"torch": "1.0"})
    with pytest.raises(InvalidInput, match=r"another sequence.*versions: .* there, 'torch 1\.0' now"):
        run()
    assert file.read_bytes() == content


def test_progress_over_regions_belongs_to_them(tmp_path: Path) -> None:
    model, file = net(), tmp_path / "run.safetensors"
    start, end = randn(2, 6, seed=8), randn(2, 6, seed=9)
    labels = (model(start).argmax(1) + 1) % 3

    def run(end: Tensor) -> History:
        return nnrepair.fix(
            model, Edits(Segments(start, end), labels), method=LAST, mode="successive", resume=file, throw=False
        )

    first = run(start + (end - start) / 50)
    assert run(start + (end - start) / 50).steps == first.steps
    with pytest.raises(InvalidInput, match="points: edits"):
        run(start + (end - start) / 51)


def stored(path: Path) -> tuple[Any, History]:
    """Return what runs a short sequence with its progress in a file, and its history."""
    model, edits, locality = task(3)

    def run() -> History:
        return nnrepair.fix(model, edits, locality, method=LAST, mode="successive", resume=path, test_set=randn(9, 6))

    return run, run()


def test_damaged_progress_is_refused_or_harmless(tmp_path: Path) -> None:
    file, draw = tmp_path / "run.safetensors", random.Random(0)
    run, whole = stored(file)
    content, refused = file.read_bytes(), 0
    for place in draw.sample(range(8 * len(content)), 150):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            assert run().as_dict() == whole.as_dict()
        except NNRepairError as error:
            refused += 1
            assert "Name another file, or delete it" in str(error)
            assert file.read_bytes() == flipped
    assert refused > 120
    for place in draw.sample(range(len(content)), 40):
        file.write_bytes(content[:place])
        with pytest.raises(NNRepairError, match="Name another file, or delete it"):
            run()


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("steps"),
        lambda about: about.update(steps=5),
        lambda about: about.update(steps=[]),
        lambda about: about.update(steps=[[1]]),
        lambda about: about.update(steps=["\x1b[2J"]),
        lambda about: about.update(steps=about["steps"] * 2),
        lambda about: about.update(advice=None),
        lambda about: about["steps"].reverse(),
        lambda about: about["steps"][0].pop("side_effects"),
        lambda about: about["steps"][0].update(more=1),
        lambda about: about["steps"][0].update(edits=[7]),
        lambda about: about["steps"][0].update(edits=[0.0]),
        lambda about: about["steps"][0].update(held=["yes"]),
        lambda about: about["steps"][0].update(held=[]),
        lambda about: about["steps"][0].update(status="fine"),
        lambda about: about["steps"][0].update(retained=1.5),
        lambda about: about["steps"][0].update(retained=None),
        lambda about: about["steps"][0].update(retained=True),
        lambda about: about["steps"][0].update(generalization=[2.0]),
        lambda about: about["steps"][0].update(seconds="1"),
        lambda about: about["steps"][0].update(notes="many"),
        lambda about: about["steps"][0].update(notes=[5]),
        lambda about: about["steps"][0].update(side_effects=[]),
        lambda about: about["steps"][0].update(side_effects={}),
        lambda about: about["steps"][0]["side_effects"]["locality set"].update(locality=None),
        lambda about: about["steps"][0]["side_effects"]["locality set"].update(points=-1.0),
        lambda about: about["steps"][0]["side_effects"]["locality set"].update(drawdown="none"),
        lambda about: about["steps"][0]["side_effects"]["locality set"].pop("locality"),
        lambda about: about["steps"][0]["side_effects"].update(
            {"\x1b[2J": about["steps"][0]["side_effects"]["locality set"]}
        ),
        lambda about: about.update(sequence=5),
        lambda about: about.update(sequence=[]),
        lambda about: about["sequence"].pop("seed"),
        lambda about: about["sequence"].update({"\x1b[2J": "\x1b[2J"}),
        lambda about: about["sequence"].update(seed={"a": ["x" * 10**5]}),
    ],
)
def test_forged_progress_is_refused_in_plain_text(tmp_path: Path, change: Any) -> None:
    file = tmp_path / "run.safetensors"
    run, _ = stored(file)
    patch = Patch.load(file)
    change(patch.about)
    content = patch.save(file).read_bytes()
    with pytest.raises(NNRepairError, match="Name another file, or delete it") as refused:
        run()
    assert str(refused.value).isprintable() and len(str(refused.value)) < 2000
    assert file.read_bytes() == content


def test_a_network_that_is_not_the_stored_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    run, _ = stored(file)
    patch = Patch.load(file)
    next(iter(patch.new.values())).flatten()[0] += 1
    patch.save(file)
    with pytest.raises(nnrepair.PatchError, match="do not have the fingerprint"):
        run()


@pytest.mark.parametrize("kind", ["folder", "below a file", "circle", "pipe", "full device", "too long", "no file"])
def test_progress_that_cannot_be_stored_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(Says, "repair", lambda self, problem: pytest.fail("the work began"))
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    places: dict[str, Any] = {
        "folder": tmp_path,
        "below a file": tmp_path / "file" / "run.safetensors",
        "circle": tmp_path / "circle",
        "pipe": tmp_path / "pipe",
        "full device": Path("/dev/full"),
        "too long": tmp_path / ("x" * 300),
        "no file": 5,
    }
    model, edits, _ = task(2)
    with pytest.raises(InvalidInput):
        nnrepair.fix(model, edits, method=Says(), mode="successive", resume=places[kind])
    assert sorted(os.listdir(tmp_path)) == ["circle", "file", "pipe"]
    assert not stat.S_ISREG(os.stat("/dev/full").st_mode)


def test_a_disk_that_fills_up_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "SAVE_EVERY", 0.0)
    model, edits, locality = task()
    file = tmp_path / "run.safetensors"

    def run(resume: Path | None = file) -> History:
        return nnrepair.fix(model, edits, locality, method=LAST, mode="successive", resume=resume)

    whole, written = run(None), Path.write_bytes
    for first in range(6):
        calls: list[int] = []

        def full(path: Path, content: bytes, first: int = first, calls: list[int] = calls) -> int:
            calls.append(1)
            if len(calls) > first:
                written(path, content[:100])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written(path, content)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", full)
            history = run()
        assert state(history.model) == state(whole.model) and len(calls) == 6
        assert len(history.notes) == 1 and "No space left" in history.notes[0] and str(file) in history.notes[0]
        assert f"note: {history.notes[0]}" in str(history) and history.notes[0] in history._repr_html_()
        assert history.as_dict()["notes"] == history.notes
        assert os.listdir(tmp_path) == ([file.name] if first else [])
        if first:
            assert len(Patch.load(file).about["steps"]) == min(first, 5)
            again = run()
            assert again.notes == [] and [s.held for s in again.steps] == [s.held for s in whole.steps]
            file.unlink()

    once = iter([True])

    def full_for_a_while(path: Path, content: bytes) -> int:
        if next(once, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_for_a_while)
    assert run().notes == [] and len(Patch.load(file).about["steps"]) == 5
