"""Two processes that train together take the steps that one takes on all points, and the first alone writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, LocalitySet
from nnrepair.methods import EditableTraining, Episode, FineTune
from nnrepair.methods.episodes import posed
from nnrepair.network import private_copy
from nnrepair.penalties import KL, L2
from nnrepair.training import Descent

X, KEPT = randn(5, 6, seed=1), randn(41, 6, seed=2)
LABELS = torch.tensor([0, 1, 2, 1, 0])
TUNED = FineTune(lr=0.01, steps=12, margin=1e3, penalties=[KL(1.0), L2(0.1)], rehearsal=7, batch_size=16)
ALONE = FineTune(lr=0.01, steps=5, margin=1e3)
EDITOR = EditableTraining(start=0.1)
STEPS = 3


def network() -> nn.Sequential:
    return mlp(6, 16, 3)


def episodes() -> list[Episode]:
    return [Episode(Edits(randn(2, 6, seed=k), [k % 3, 1]), LocalitySet(randn(6, 6, seed=50 + k))) for k in range(6)]


def tuned(method: FineTune, edits: Any = (X, LABELS)) -> dict[str, Tensor]:
    result = nnrepair.fix(network(), edits, KEPT, method=method, throw=False, seed=3)
    return dict(result.model.state_dict())


def _work(rank: int, folder: Path) -> None:
    """What each process does: write its results, and what it was told to write."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mine = folder / str(rank)
    mine.mkdir()
    editor = EDITOR.prepare(network(), episodes(), steps=STEPS, seed=1, resume=mine / "run.safetensors")
    nnrepair.fix(
        network(),
        (X, LABELS),
        method=FineTune(lr=0.05),
        mode="successive",
        throw=False,
        resume=mine / "edits.safetensors",
    )
    found = {"tuned": tuned(TUNED), "one": tuned(ALONE, (X[:1], LABELS[:1])), "learned": editor.learned}
    refused = ""
    try:  # another number of steps done, as where the file is on another machine
        EDITOR.prepare(network(), episodes(), steps=STEPS, seed=1, resume=mine / "run.safetensors")
    except nnrepair.InvalidInput as error:
        refused = str(error)
    files = sorted(path.name for path in mine.iterdir())
    torch.save({"found": found, "refused": refused, "files": files}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: Any) -> list[Any]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    said = f"import test_ranks, pathlib, sys; test_ranks._work(int(sys.argv[1]), pathlib.Path({str(folder)!r}))"
    started = [
        subprocess.Popen([sys.executable, "-c", said, str(rank)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    told = [process.communicate(timeout=300)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_all_processes_have_the_same_result(both: list[Any]) -> None:
    for name, values in both[0]["found"].items():
        assert all(torch.equal(value, both[1]["found"][name][key]) for key, value in values.items()), name


@pytest.mark.parametrize(("name", "method", "count"), [("tuned", TUNED, 5), ("one", ALONE, 1)])
def test_fine_tuning_is_that_of_all_points_together(both: list[Any], name: str, method: Any, count: int) -> None:
    expected, start = tuned(method, (X[:count], LABELS[:count])), network().state_dict()
    for key, value in both[0]["found"][name].items():
        assert not torch.equal(value, start[key])
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


def test_a_step_of_a_preparation_takes_one_exercise_for_each_process(both: list[Any]) -> None:
    model = private_copy(network())
    learned = EDITOR.begin(model, torch.Generator().manual_seed(1)).train()
    step, given = EDITOR.descent(learned, STEPS), iter(episodes())
    assert isinstance(step, Descent)
    for _ in range(STEPS):
        several = [EDITOR.loss(learned, posed(model, next(given), 1)) for _ in range(2)]
        step(torch.stack(several).mean())
    for key, value in learned.state_dict().items():
        torch.testing.assert_close(both[0]["found"]["learned"][key], value, rtol=1e-4, atol=1e-6)


def test_the_first_process_alone_writes(both: list[Any]) -> None:
    assert both[0]["files"] == ["edits.safetensors", "run.safetensors"]
    assert both[1]["files"] == []
    assert all("How far" in one["refused"] and "all 2 processes" in one["refused"] for one in both)
