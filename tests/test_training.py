"""The training loop: what it stops for, what it keeps, and that a kill changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from graphs import net, ring
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp, randn
from torch import Tensor, nn

from nnrepair import InvalidInput
from nnrepair.deadline import Deadline
from nnrepair.domains import vision
from nnrepair.domains.graphs.graph import inductive_split, train
from nnrepair.errors import PatchError
from nnrepair.fingerprint import digest_of_state, fingerprint
from nnrepair.training import Batches, Checkpoint, Descent, Trained, Training
from nnrepair.training.checkpoint import packed, unpacked


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Net(nn.Sequential):
    """A network whose steps depend on all that there is: batch statistics, dropout masks."""

    def __init__(self) -> None:
        super().__init__(mlp(4, 8, seed=1), nn.BatchNorm1d(8), nn.Dropout(0.3), mlp(8, 3, seed=2))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]] = {
    "cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=20),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
}


def run(
    path: Path | None = None,
    *,
    steps: int = 20,
    killed: int | None = None,
    broken: int | None = None,
    seed: int = 0,
    optimizer: str = "adam",
    schedule: str | None = "cycle",
    deadline: Deadline | None = None,
) -> tuple[Trained, str]:
    """Train a small network; return what came of it, and a hash of all that a further step would depend on.

    Args:
        path: of the checkpoint, written after every step.
        steps: how many.
        killed, broken: the steps at which the run is killed, and at which the loss is no number.
        seed: of the order and the dropout masks.
        optimizer, schedule: by name.
        deadline: of the training.
    """
    model, x = Net().train(), randn(11, 4)
    order = torch.Generator().manual_seed(seed)
    batches = Batches(len(x), 3, order)
    made = OPTIMIZERS[optimizer](model.parameters())
    step = Descent(made, None if schedule is None else SCHEDULES[schedule](made), clip=1.0)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        state = {**step.state, "order": order, "batches": batches, "dropout": torch.default_generator}
        done = 0

        def loss() -> Tensor:
            nonlocal done
            at = training.state_dict()["done"]
            if at == killed:
                raise Killed
            index = batches.next()
            found = nn.functional.cross_entropy(model(x[index]), index % 3)
            return found * torch.nan if at == broken else found

        training = Training(
            loss,
            step,
            steps,
            model=model,
            state=state,
            checkpoint=None if path is None else Checkpoint(path, {"seed": str(seed)}, every=0.0),
            deadline=deadline or Deadline(),
        )
        trained = training.run()
        parts = {n: p.get_state() if isinstance(p, torch.Generator) else p.state_dict() for n, p in state.items()}
    told: dict[str, Tensor] = {}
    return trained, digest_of_state({"model": model.state_dict(), "rest": json.dumps(packed(parts, told)), **told})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", [*SCHEDULES, None])
def test_after_a_kill_it_goes_on_as_if_there_had_been_none(tmp_path: Path, optimizer: str, schedule: str) -> None:
    how = {"optimizer": optimizer, "schedule": schedule}
    path = tmp_path / "training.safetensors"
    for killed in (0, 5, 6, 19):
        with pytest.raises(Killed):
            run(path, killed=killed, **how)
    assert run(path, **how) == run(**how)
    assert run(path, killed=3, **how) == run(**how)  # it was at its end: no step is taken any more
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 19), max_size=4), st.integers(0, 3))
def test_any_number_of_kills(tmp_path_factory: pytest.TempPathFactory, kills: list[int], seed: int) -> None:
    path = tmp_path_factory.mktemp("kills") / "training.safetensors"
    for killed in sorted(kills):
        with pytest.raises(Killed):
            run(path, killed=killed, seed=seed)
    assert run(path, seed=seed) == run(seed=seed)


@pytest.mark.parametrize("killed", [None, 6, 7])
def test_a_loss_that_is_no_number_ends_it_and_the_last_good_weights_stay(tmp_path: Path, killed: int | None) -> None:
    path = tmp_path / "training.safetensors"
    if killed is not None:
        with pytest.raises(Killed):
            run(path, killed=killed)
    trained, _ = run(path, broken=7)
    assert (trained.steps, trained.stopped) == (7, "stopped at step 7: the loss became nan")
    again, _ = run(path, broken=7)
    assert again.stopped == trained.stopped


def test_the_last_good_weights() -> None:
    model, seen = mlp(1, 1), []

    def loss() -> Tensor:
        seen.append(fingerprint(model))
        return model(torch.ones(1, 1)).sum() * (torch.inf if len(seen) == 4 else 1)

    trained = Training(loss, Descent(torch.optim.SGD(model.parameters(), lr=0.1)), 9, model=model).run()
    assert trained.stopped == f"stopped at step 3: the loss became {'-' if trained.loss < 0 else ''}inf"
    assert fingerprint(model) == seen[2]


def test_weights_that_the_last_step_broke_are_put_back() -> None:
    model = mlp(1, 1)
    before = fingerprint(model)
    trained = Training(
        lambda: model(torch.ones(1, 1)).sum(), lambda loss: model[0].weight.data.fill_(torch.nan), 1, model
    )
    assert trained.run().stopped == "stopped at step 1: some weights became infinite or no number"
    assert fingerprint(model) == before


def test_nothing_left_to_do_is_no_early_stop() -> None:
    model, left = mlp(1, 1), iter([1.0, 2.0])

    def loss() -> Tensor | None:
        factor = next(left, None)
        return None if factor is None else model(torch.ones(1, 1)).sum() * factor

    trained = Training(loss, Descent(torch.optim.SGD(model.parameters(), lr=0.1)), 9).run()
    assert (trained.steps, trained.stopped) == (2, "")


def test_a_deadline_ends_it_and_it_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    trained, _ = run(path, deadline=Deadline(0.0))
    assert (trained.steps, trained.stopped) == (0, "stopped at step 0 of 20: the time limit passed")
    assert run(path) == run()


def test_it_says_how_far_it_is() -> None:
    model, told = mlp(1, 1), []
    step = Descent(torch.optim.SGD(model.parameters(), lr=0.1))
    Training(lambda: model(torch.ones(1, 1)).square().sum(), step, 3, report=told.append).run()
    assert [text.split(",")[0] for text in told] == ["step 1/3", "step 2/3", "step 3/3"]


# Files ---------------------------------------------------------------------------------------------------------------


def test_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    run(path)
    with pytest.raises(InvalidInput, match=r"another training \(seed: 0 there, 1 now\). Name another file"):
        run(path, seed=1)
    with pytest.raises(InvalidInput, match="steps: 20 there, 21 now"):
        run(path, steps=21)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    run(path)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:200], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(PatchError, match="delete it to start anew"):
            run(path)
    safetensors.torch.save_file({"x": torch.ones(1)}, path)
    with pytest.raises(PatchError, match="not a checkpoint"):
        run(path)
    with pytest.raises(InvalidInput, match="a folder"):
        run(tmp_path)


def test_a_state_of_other_shapes_is_refused(tmp_path: Path) -> None:
    path, key = tmp_path / "training.safetensors", {"seed": "0"}
    for part, other in (
        (torch.optim.Adam(mlp(2, 3).parameters()), torch.optim.Adam(mlp(3, 2).parameters())),
        (mlp(2, 3), mlp(3, 2)),
    ):
        if isinstance(part, torch.optim.Optimizer):
            part.param_groups[0]["params"][0].grad = torch.ones(3, 2)
            part.step()
        Checkpoint(path, key).save({"part": part})
        with pytest.raises(PatchError, match="shape"):
            Checkpoint(path, key).load({"part": other})


def test_a_file_that_cannot_be_written_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnrepair.training.checkpoint.write_tensors", full)
    trained, state = run(tmp_path / "training.safetensors")
    assert "progress could not be stored" in trained.note and "No space left" in trained.note
    assert state == run()[1]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
def test_what_is_packed_can_be_unpacked(value: Any) -> None:
    tensors: dict[str, Tensor] = {}
    assert repr(unpacked(json.loads(json.dumps(packed(value, tensors))), tensors)) == repr(value)


def test_what_only_a_pickle_could_hold_is_refused() -> None:
    with pytest.raises(InvalidInput, match="function cannot be stored"):
        packed({"a": [lambda x: x]}, {})


# Domains -------------------------------------------------------------------------------------------------------------


def interrupted(train: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, path: Path) -> tuple[str, str]:
    """Return fingerprints of what is trained without, and with, a kill in the middle."""
    whole = fingerprint(train())
    after, taken = Descent.__call__, 0

    def step(self: Descent, loss: Tensor) -> None:
        nonlocal taken
        after(self, loss)
        taken += 1
        if taken == 5:
            raise Killed

    monkeypatch.setattr("nnrepair.training.checkpoint.SAVE_EVERY", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "due", True)
        patched.setattr(Descent, "__call__", step)
        with pytest.raises(Killed):
            train(resume=path)
    assert path.exists()
    return whole, fingerprint(train(resume=path))


def test_images_and_graphs_go_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = vision.Images(randn(20, 4), torch.arange(20) % 3)
    whole, resumed = interrupted(
        lambda **more: vision.train_classifier(Net(), images, epochs=2, batch_size=4, seed=3, **more),
        monkeypatch,
        tmp_path / "images.safetensors",
    )
    assert whole == resumed
    graph = inductive_split(ring(), 0, 2, 2)
    whole, resumed = interrupted(
        lambda **more: train(net(), graph, epochs=9, seed=3, **more), monkeypatch, tmp_path / "graph.safetensors"
    )
    assert whole == resumed
    with pytest.raises(InvalidInput, match="images"):
        vision.train_classifier(
            Net(), images[:10], epochs=2, batch_size=4, seed=3, resume=tmp_path / "images.safetensors"
        )


def test_a_training_that_explodes_warns_and_returns_finite_weights() -> None:
    images = vision.Images(randn(20, 4), torch.arange(20) % 3)
    with pytest.warns(UserWarning, match="Training: stopped at step .* the loss became"):
        model = vision.train_classifier(mlp(4, 8, 8, 3), images, epochs=9, batch_size=4, lr=1e30)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
