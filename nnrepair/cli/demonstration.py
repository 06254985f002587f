"""The demo: a real digits classifier, its real mistakes, their smallest repair, its proof, and a page about it all."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from nnrepair import onnx
from nnrepair.domains import digits, vision
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.extras import needed
from nnrepair.files import NotWritten, require_writable, write_atomically, write_or_rescue
from nnrepair.fix import fix
from nnrepair.methods import MinimalNorm
from nnrepair.plot.page import html_report
from nnrepair.results import checkers
from nnrepair.results.certificate import Certificate, at_most
from nnrepair.results.result import RepairResult
from nnrepair.rounding import percent
from nnrepair.spec.edits import LocalitySet
from nnrepair.spec.running import outputs

CHECK_SECONDS = 300

_ABOUT = """\
A small convolutional network was trained on {train} handwritten digits and misreads {edits} of {test} others. Wanted: \
the smallest change of its last layer that corrects those {edits} and keeps every training digit that it read \
correctly."""

_REPRODUCE = """\
nnrepair demo --seed {seed}

# or from Python
import nnrepair
from nnrepair.domains import vision

train, test = vision.digits(seed={seed})
model = vision.train_classifier(vision.digits_cnn(seed={seed}), train, seed={seed})
wrong = model(test.inputs).argmax(1) != test.labels
right = model(train.inputs).argmax(1) == train.labels
result = nnrepair.fix(
    model,
    nnrepair.Edits(test.inputs[wrong], test.labels[wrong]),
    nnrepair.LocalitySet(train.inputs[right], train.labels[right]),
    method=nnrepair.methods.MinimalNorm(layer="fc2", norm="l1"),
)

# and the proof
{check}"""


def run(page: Path, seed: int = 0, say: Callable[[str], object] = lambda line: None) -> bool:
    """Make the demo, write its page and files, and return whether every edit holds.

    Args:
        page: the HTML file to write; certificate and networks go to a folder of the same name beside it.
        seed: decides which digits are test digits, and the training.
        say: takes the lines to tell while it runs, such as `print`.

    Raises:
        InvalidInput: another ending, a page that cannot be written, or a seed without mistakes.
        NNRepairError: the disk filled up meanwhile; the message says where page and files are.
    """
    folder = _folder(page)
    started = time.perf_counter()
    train, test = vision.digits(seed=seed)
    task = digits.task(seed=seed)
    model, edits, held_out = task.model, task.edits, LocalitySet(*task.test_set["test"])
    say(f"Trained a classifier on {len(train)} handwritten digits ({time.perf_counter() - started:.0f} s).")
    say(f"It misreads {len(edits)} of {len(test)} test digits. Repairing them ...")
    result = fix(model, edits, task.locality_set, method=MinimalNorm(layer="fc2", norm="l1"), throw=False)
    least = fix(model, edits, task.locality_set, throw=False)

    check = _Check(None, "This repair comes without a certificate.")
    if result.certificate is not None:
        say("Writing the networks as ONNX, and checking the certificate ...")
        check = _check(folder, model, result, result.certificate, test.inputs[:1])
    html = html_report(
        model,
        result,
        edits,
        title=f"{len(edits)} misread digits",
        about=_ABOUT.format(train=len(train), test=len(test), edits=len(edits)),
        held_out=held_out,
        verdict=check.verdict,
        unchecked=check.reason,
        compared=[("least drawdown (auto)", least)],
        reproduce=_REPRODUCE.format(seed=seed, check=check.command),
    )
    missed = write_or_rescue(page, lambda path: write_atomically(path, html.encode()))
    for line in _summary(result, least, model, held_out, check):
        say(line)
    failed = [f"{each}." for each in (check.unwritten, missed) if each is not None]
    if failed:
        raise NNRepairError(" ".join(failed))
    say(f"The page       {page}")
    say(f"The files      {folder}/ (networks as ONNX, certificate, patch)")
    say(f"               {time.perf_counter() - started:.0f} s in all")
    return result.outcome.ok


def _folder(page: Path) -> Path:
    """Return where the files beside the page go, once it is clear that both can be written and nothing is missing."""
    if page.suffix not in (".html", ".htm"):
        raise InvalidInput(f"--out {page.name}: the page is written as .html.")
    folder = page.with_suffix("")
    for path in (page, folder / "certificate.npz"):
        require_writable(path)
    with needed("demo", "The demo needs scikit-learn, matplotlib and the onnx packages"):
        import matplotlib  # noqa: F401
        import onnxscript  # noqa: F401
        import sklearn  # noqa: F401
    return folder


@dataclass(frozen=True)
class _Check:
    """What the independent checker said: its proved sentences, or why there are none; and files without room."""

    verdict: str | None
    reason: str
    command: str = ""
    unwritten: NotWritten | None = None


def _check(folder: Path, model: nn.Module, result: RepairResult, certificate: Certificate, example: Tensor) -> _Check:
    """Write the files, and run the checker on them as a program of its own."""
    names = ("certificate.npz", "base.onnx", "repaired.onnx")

    def write(place: Path) -> None:
        certificate.save(place / names[0])
        onnx.save(model, example, place / names[1])
        onnx.save(result.model, example, place / names[2])
        if result.patch is not None:
            result.patch.save(place / "patch.safetensors")

    unwritten = write_or_rescue(folder, write)
    place = folder if unwritten is None else unwritten.instead
    if place is None:
        return _Check(None, f"{unwritten}.", unwritten=unwritten)
    return replace(_checked([str(place / name) for name in names]), unwritten=unwritten)


def _checked(shown: list[str]) -> _Check:
    files = (shown[0], shown[1], "--repaired", shown[2])
    command = shlex.join(["nnrepair", "certify", *files])
    try:
        done = checkers.run("minimality", *files, timeout=CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        return _Check(None, f"The checker was stopped after {CHECK_SECONDS} s. Run: {command}", command)
    except NNRepairError as error:
        return _Check(None, str(error), command)
    said = done.stdout.strip()
    if done.returncode == checkers.ACCEPTED:
        return _Check(said.removeprefix("ACCEPTED").strip(), "", command)
    return _Check(None, f"The checker did not accept the certificate: {said}", command)


def _summary(
    result: RepairResult, least: RepairResult, model: nn.Module, held_out: LocalitySet, check: _Check
) -> list[str]:
    """Return the report for a terminal."""
    report, change = result.report, result.report.weight_change
    size = change.parameters.numbers + change.buffers.numbers
    assert held_out.criterion is not None
    right = [int(held_out.criterion.holds(outputs(m, held_out.inputs)).sum()) for m in (result.model, least.model)]
    lines = ["", f"What happened  {result.outcome}"]
    assert change.nonzeros is not None and change.linf is not None  # the same network with other numbers
    lines.append(
        f"               {change.nonzeros} of {size} numbers changed, none by more than {at_most(change.linf, 3)}."
    )
    if check.verdict is None:
        lines += _wrapped("Proved", f"nothing. {check.reason}")
        if result.certificate is not None:
            lines += _wrapped("Claimed", f"not checked: {result.certificate.claim}")
    else:
        lines += _wrapped("Proved", "an independent checker accepted the certificate:")
        for sentence in check.verdict.splitlines():
            lines += _wrapped("", sentence)
    lines += _wrapped("Measured", f"{sum(report.held_after)} of {report.edits} edits hold.")
    if report.locality is not None:
        unchanged = f"{percent(report.locality)} of {report.locality_points} training decisions are unchanged."
        lines += _wrapped("", unchanged)
    lines += _wrapped("", f"{right[0]} of {len(held_out)} right test digits that the repair never saw are still right.")
    lines += _wrapped("Next to it", f'method "auto", for least drawdown: {least.outcome}')
    changed = least.report.weight_change.nonzeros
    lines += _wrapped("", f"{changed} numbers changed; {right[1]} of {len(held_out)} are still right.")
    return [*lines, ""]


def _wrapped(head: str, text: str) -> list[str]:
    width = max(60, min(120, shutil.get_terminal_size().columns))
    return textwrap.wrap(text, width, initial_indent=f"{head:<15}", subsequent_indent=" " * 15, break_long_words=False)
