"""Every page of docs/, run as a reader would; pages name only what is there.

A page whose data or packages are missing is skipped by name. How much of a page runs: see tests/tutorial.py.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tutorial import FENCE, ROOT, run_as_written

from nnrepair.classroom.lesson import MOST_REPAIRS, WAYS
from nnrepair.classroom.sessions import MOST_LESSONS
from nnrepair.cli.parser import command_line
from nnrepair.methods import REGISTRY
from nnrepair.methods.minimal_norm.own import program
from nnrepair.verify.reading.operations import HANDLERS
from nnrepair.wrappers import Wrapper

PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, *(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md")]
#: How blocks begin: the first three are run.
LANGUAGES = {"pycon", "console", "python", "text", "bash", "mermaid", "py", ""}
#: Blocks of Python that are rows of a table in a test, and not run.
ROWS = {"add-a-method.md": 1, "add-an-activation.md": 1, "language.md": 1, "your-model.md": 1}
#: Files that pages say a reader would add.
TO_BE = {"nnrepair/domains/tumours/", "benchmarks/tumours/", "benchmarks/mnist/experiments/by-heart.toml"}
#: What pages add methods, wrappers and activations to; they are gone afterwards.
ADDED_TO: tuple[dict[Any, Any], ...] = (REGISTRY, Wrapper.kinds, HANDLERS)


@dataclass(frozen=True)
class Page:
    """What a page needs beside the package, and files that it must have written."""

    packages: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    slow: bool = False
    writes: tuple[str, ...] = ()


NEEDS = {
    "acas-xu.md": Page(
        data=(
            *(f"acasxu/onnx/ACASXU_run2a_{name}_batch_2000.onnx" for name in ("1_7", "2_9")),
            *(f"acasxu/vnnlib/prop_{number}.vnnlib" for number in (1, 3, 4, 8)),
        ),
        slow=True,
        writes=("encounter.png",),
    ),
    "add-a-method.md": Page(writes=("by-heart.safetensors", "run.safetensors")),
    "add-a-trained-method.md": Page(slow=True),
    "classroom.md": Page(("nicegui",), slow=True, writes=("lesson.html",)),
    "command-line.md": Page(slow=True),
    "graphs.md": Page(("torch_geometric",), ("graphs/cora_safe.npz",), slow=True, writes=("neighbourhood.png",)),
    "images.md": Page(("torchvision",), slow=True, writes=("stripes.safetensors",)),
    "inpainting.md": Page(("PIL",)),
    "own-objectives.md": Page(("cvxpy",)),
    "properties.md": Page(slow=True, writes=("brake.png",)),
    "your-model.md": Page(("torch_geometric.nn",)),
    "quickstart.md": Page(writes=("fix.safetensors", "report.html")),
}


def runnable() -> Iterator[Any]:
    for page in PAGES:
        if FENCE.search(page.read_text()):
            needs = NEEDS.get(page.name, Page())
            marks = [pytest.mark.slow] * needs.slow + [pytest.mark.data] * bool(needs.data)
            yield pytest.param(page, needs, id=page.name, marks=marks)


@pytest.mark.parametrize(("page", "needs"), list(runnable()))
def test_a_page_runs_as_written(
    page: Path, needs: Page, data_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in needs.packages:
            pytest.importorskip(package)
    if needs.data:
        data_dir(*needs.data)
    before = [dict(known) for known in ADDED_TO]
    try:
        run_as_written(page, tmp_path, monkeypatch)
    finally:
        for known, as_it_was in zip(ADDED_TO, before, strict=True):
            known.clear()
            known.update(as_it_was)
    for name in needs.writes:
        assert (tmp_path / name).stat().st_size > 100


def test_pages_that_need_something_are_there() -> None:
    assert NEEDS.keys() <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_blocks_are_run_or_say_that_they_are_not(page: Path) -> None:
    fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
    opened = fences[::2]
    assert set(opened) <= LANGUAGES and not any(fences[1::2])
    assert opened.count("py") == ROWS.get(page.name, 0)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    linked = {name.partition("#")[0] for name in re.findall(r"\]\(([^)\s]+)\)", text) if not name.startswith("https:")}
    missing = [name for name in linked if name and not (page.parent / name).exists()]
    paths = set(re.findall(r"`((?:nnrepair|tests|docs|benchmarks|verification)/[\w/.-]+)`", text))
    missing += [name for name in paths - TO_BE if not (ROOT / name).exists()]
    assert not missing


def test_pages_say_what_the_code_says() -> None:
    own = (ROOT / "docs" / "own-objectives.md").read_text()
    assert f"at most {program.LARGEST // 10**6} million" in " ".join(own.split())
    images = (ROOT / "docs" / "images.md").read_text()
    readers = re.findall(r"`(imagenet|cifar|published|data)\.(\w+)\(", images)
    assert readers
    for module, function in readers:
        assert f"def {function}(" in (ROOT / "nnrepair/domains/images" / f"{module}.py").read_text()


def test_the_page_about_the_classroom_says_what_the_code_says() -> None:
    text = (ROOT / "docs" / "classroom.md").read_text()
    assert all(f"*{way.name}*:" in text for way in WAYS.values())
    assert f"up to {MOST_LESSONS} are open" in text and f"up to {MOST_REPAIRS} repairs" in text
    options = re.findall(r"^\| `(--[^`]+)` \|", text, re.MULTILINE)
    assert len(options) == 5
    for option in options:
        command_line().parse_args(["classroom", *option.split()])


def test_the_page_about_commands_has_all_of_them() -> None:
    (commands,) = (a for a in command_line()._actions if isinstance(a, argparse._SubParsersAction))
    text = (ROOT / "docs" / "command-line.md").read_text()
    assert re.findall(r"^\| `nnrepair ([\w-]+)` \|", text, re.MULTILINE) == list(commands.choices)
