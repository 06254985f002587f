"""Methods that are trained first: training, its interruptions, and editors as files that belong to one network."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from networks import clusters, mistakes, mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet
from nnrepair.domains.base import Task
from nnrepair.errors import PatchError
from nnrepair.fingerprint import fingerprint
from nnrepair.methods import Capabilities, Editor, Episode, LearnedSteps, Proposal, RandomLabels, Trainable
from nnrepair.methods.base import REGISTRY
from nnrepair.methods.episodes import EpisodeStream, posed
from nnrepair.methods.trainable import FORMAT
from nnrepair.spec import accepted
from nnrepair.training import Checkpoint, Descent

QUICK = LearnedSteps(start=0.1, lr=0.2)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def network() -> nn.Module:
    return mlp(4, 12, 3, seed=1)


def points() -> tuple[Tensor, Tensor]:
    """Return points around some centres, and what the network says of them."""
    x = clusters(80, 4, seed=6)
    with torch.no_grad():
        return x, network()(x).argmax(1)


def episodes() -> RandomLabels:
    return RandomLabels(*points(), edits=2, locality=20)


def editor(**more: Any) -> Editor:
    return QUICK.prepare(network(), episodes(), **{"steps": 4, **more})


def asked() -> Edits:
    x = randn(4, 4, seed=5)
    return Edits(x, mistakes(network(), x))


# Training ------------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_drawdown() -> None:
    """The step sizes that are learned do less harm than those they start from, for edits that both make."""
    x, labels = points()
    method = LearnedSteps(start=1.0, lr=0.2, unrolled=2)
    before, after = (method.prepare(network(), episodes(), steps=n) for n in (1, 25))
    stream, losses = EpisodeStream(episodes(), 99), {1: 0.0, 25: 0.0}
    for _ in range(8):
        problem = posed(network(), stream.next(), 0)
        for made in (before, after):
            learned = method.begin(problem.model, torch.Generator())
            learned.load_state_dict(made.learned)
            losses[made.steps] += float(method.loss(learned, problem).detach())
    assert losses[25] < 0.8 * losses[1]
    held, lost = {}, {}
    for made in (before, after):
        history = nnrepair.fix(
            network(), asked(), method=made, mode="independent", test_set=(x, labels), throw=False, locality_set=x[:20]
        )
        held[made.steps] = sum(history.held_after)
        lost[made.steps] = sum(step.side_effects["test set"].drawdown for step in history.steps)
    assert held[25] == 4 and lost[25] < lost[1]


def test_gradients_of_the_loss_are_those_of_finite_differences() -> None:
    model, method = mlp(3, 5, 3, seed=2).double(), LearnedSteps(start=0.3, unrolled=3, margin=5.0)
    x = randn(30, 3, seed=3, dtype=torch.float64)
    scope = EditScope(x[2:4], [1, 0], of=[0, 1])
    problem = posed(model, Episode(Edits(x[:2], mistakes(model, x[:2])), LocalitySet(x[4:]), scope), 0)
    learned = method.begin(model, torch.Generator())
    loss = method.loss(learned, problem)
    (found,) = torch.autograd.grad(loss, [learned.log])
    for k, gradient in enumerate(found.tolist()):
        sides = []
        for change in (1e-6, -1e-6):
            moved = method.begin(model, torch.Generator())
            with torch.no_grad():
                moved.log[k] += change
            sides.append(float(method.loss(moved, problem).detach()))
        assert gradient == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_preparing_leaves_everything_as_it_was_and_the_seed_decides() -> None:
    model = network().train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, state = fingerprint(model), torch.get_rng_state()
    one, two, other = (QUICK.prepare(model, episodes(), steps=3, seed=seed) for seed in (0, 0, 1))
    assert one == two != other and hash(one) == hash(two)
    assert fingerprint(model) == before and model.training and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight)) and model[2].weight.grad is None


@pytest.mark.parametrize("killed", [1, 3, 6])
def test_a_kill_changes_nothing(killed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, step, taken = tmp_path / "training.safetensors", Descent.__call__, 0

    def counted(self: Descent, loss: Tensor) -> None:
        nonlocal taken
        step(self, loss)
        taken += 1
        if taken == killed:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "due", True)
        patched.setattr(Descent, "__call__", counted)
        with pytest.raises(Killed):
            editor(steps=6, resume=path)
    assert path.exists() == (killed > 1)
    whole = editor(steps=6)
    assert editor(steps=6, resume=path) == whole
    assert editor(steps=6, resume=path) == whole  # it was at its end
    with pytest.raises(InvalidInput, match="another training .*seed: 0 there, 1 now"):
        editor(steps=6, resume=path, seed=1)
    with pytest.raises(InvalidInput, match="first episode"):
        QUICK.prepare(network(), RandomLabels(*points(), edits=2, locality=10), steps=6, resume=path)
    with pytest.raises(InvalidInput, match="another training .*network"):
        QUICK.prepare(mlp(4, 12, 3, seed=2), episodes(), steps=6, resume=path)


@dataclasses.dataclass(frozen=True)
class Breaks(LearnedSteps):
    """Its third loss is no number."""

    def loss(self, learned: nn.Module, problem: Any) -> Tensor:
        BROKEN.append(learned.log.detach().clone())
        return super().loss(learned, problem) * (torch.nan if len(BROKEN) == 3 else 1)


BROKEN: list[Tensor] = []


def test_a_loss_that_is_no_number_is_told_and_what_was_learned_before_is_kept() -> None:
    BROKEN.clear()
    with pytest.warns(UserWarning, match="Training: stopped at step 2: the loss became nan"):
        made = Breaks(start=0.1, lr=0.2).prepare(network(), episodes(), steps=5)
    assert torch.equal(made.learned["log"], BROKEN[1])
    result = nnrepair.fix(network(), asked(), method=made)
    assert "the editor's training stopped at step 2: the loss became nan." in result.report.notes


def test_a_time_limit_ends_training_with_what_was_learned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = editor(steps=10_000, seconds=0.05)
    assert made.steps < 10_000 and "time limit" in made.stopped


# Episodes ------------------------------------------------------------------------------------------------------------


def some() -> list[Episode]:
    return [episode for episode, _ in zip(episodes()(0), range(3), strict=False)]


class HasEpisodes:
    """What domains give."""

    def episodes(self, seed: int) -> Iterator[Episode]:
        return episodes()(seed)


@pytest.mark.parametrize(
    "given", [episodes(), HasEpisodes(), some(), tuple(some()), lambda seed: some(), lambda seed: iter(some())]
)
def test_episodes_come_in_many_ways(given: Any) -> None:
    assert QUICK.prepare(network(), given, steps=5).steps == 5


def test_episodes_that_cannot_be_used() -> None:
    for given, message in (
        (3, "must be an iterable of episodes, .* got int"),
        ([], "ended after 0"),
        ([4], "Episode 0 is a int; expected an nnrepair.methods.Episode"),
        (iter(some()), "ended after 3, and cannot be had again"),
        (lambda seed: None, "got NoneType"),
    ):
        with pytest.raises(InvalidInput, match=message):
            QUICK.prepare(network(), given, steps=5)
    for more, message in (
        ({"steps": 0}, "steps must be"),
        ({"seconds": -1}, "seconds must be"),
        ({"steps": True}, "steps"),
    ):
        with pytest.raises(InvalidInput, match=message):
            editor(**more)


def test_exercises_are_posed_alike_and_the_network_is_tried_out_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    ordinary = accepted._first_run

    def counted(model: nn.Module, inputs: Any, what: str) -> Tensor:
        tried.append(what)
        return ordinary(model, inputs, what)

    monkeypatch.setattr(accepted, "_first_run", counted)
    editor()
    assert tried == ["the edits", "the locality set"]
    one, again = (posed(network(), some()[0], 0, known=known) for known in (False, True))
    assert torch.equal(one.answers, again.answers) and one.kind == again.kind
    assert one.locality is not None and again.locality is not None
    assert torch.equal(one.before, again.before) and torch.equal(one.locality.holds, again.locality.holds)
    large = nn.Linear(4, 3)
    nn.init.constant_(large.weight, 3.0)
    with pytest.raises(InvalidInput, match="not finite"):
        posed(large, Episode(Edits(torch.full((1, 4), 3e38), [1])), 0, known=True)


def test_random_labels() -> None:
    x, labels = points()
    for given in (labels, labels > 0, torch.stack([labels > 0, labels > 1], 1).long()):
        one, two = (list(zip(range(5), RandomLabels(x, given)(3), strict=False)) for _ in range(2))
        for (_, a), (_, b) in zip(one, two, strict=True):
            assert torch.equal(a.edits.inputs, b.edits.inputs) and len(a.edits) <= 4 and len(a.locality_set) == 64
            assert not (a.edits.inputs[:, None] == a.locality_set.inputs[None]).all(2).any()
    free = torch.stack([labels > 0, torch.full((80,), -1)], 1).long()
    assert (next(RandomLabels(x, free)(0)).edits.criterion.labels[:, 1] == -1).all()
    with pytest.raises(InvalidInput, match="one for each of 80 points, got torch.float32"):
        RandomLabels(x, labels.float())
    with pytest.raises(InvalidInput, match="up to 30 edits and 64 points to keep, of 80 points"):
        RandomLabels(x, labels, edits=30)


# Editors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "independent", "successive"])
def test_every_mode(mode: str, tmp_path: Path) -> None:
    more = {} if mode == "batch" else {"mode": mode, "resume": tmp_path / "sequence.safetensors"}
    made = editor()
    found = nnrepair.fix(network(), asked(), points()[0], method=made, **more)
    assert found.outcome.ok
    if mode != "batch":  # a stored sequence is known by its editor
        assert nnrepair.fix(network(), asked(), points()[0], method=editor(), **more).steps == found.steps
        with pytest.raises(InvalidInput, match="another sequence"):
            nnrepair.fix(network(), asked(), points()[0], method=editor(seed=3), **more)


def test_an_editor_is_refused_on_another_network() -> None:
    made = editor()
    for other in (mlp(4, 12, 3, seed=9), mlp(4, 5, 3), network().double()):
        with pytest.raises(InvalidInput, match=rf"belongs to another network: .* {fingerprint(other)[:12]}"):
            nnrepair.fix(other, asked(), method=made)
    repaired = nnrepair.fix(network(), asked(), method=made).model
    with pytest.raises(InvalidInput, match='mode="successive"'):
        nnrepair.fix(repaired, asked(), method=made)


def test_a_sequence_asks_for_the_rehearsal_that_the_method_declares() -> None:
    @dataclasses.dataclass(frozen=True)
    class Remembers(LearnedSteps):
        capabilities = dataclasses.replace(LearnedSteps.capabilities, rehearsal=1)

    made = Remembers(start=0.1).prepare(network(), episodes(), steps=2)
    for given, expected in ((None, [0, 1, 1, 1]), (True, [0, 1, 2, 3]), (False, [0, 0, 0, 0])):
        history = nnrepair.fix(network(), asked(), method=made, mode="successive", rehearsal=given, throw=False)
        assert [step.rehearsed for step in history.steps] == expected


def test_save_then_load_is_identity(tmp_path: Path) -> None:
    made = editor()
    path = made.save(tmp_path / "editor.safetensors")
    again = Editor.load(path)
    assert again == made and repr(again) == repr(made) and again.method == made.method
    assert repr(made).startswith("<editor ") and len(repr(made)) < 100 and "learned-steps" in repr(made)
    content = path.read_bytes()
    assert made.save(path).read_bytes() == content
    one, two = (nnrepair.fix(network(), asked(), method=m).model for m in (made, again))
    assert fingerprint(one) == fingerprint(two)
    with pytest.raises(FileNotFoundError, match="No trained editor at"):
        Editor.load(tmp_path / "none.safetensors")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = editor().save(tmp_path / "editor.safetensors")
    whole = path.read_bytes()
    for content in (b"", b"pickle", whole[:-3], whole[:100], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(PatchError):
            Editor.load(path)


def rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    """Write an editor's file anew, with a right checksum, after a change of its tensors and texts."""
    from nnrepair.spec.state import write_tensors

    with safetensors.safe_open(path, "pt") as file:
        texts = {name: file.metadata()[name] for name in ("method", "network", "about")}
    tensors = safetensors.torch.load_file(path)
    told = texts | {"about": json.loads(texts["about"])}
    change(tensors, told)
    return write_tensors(path, FORMAT, tensors, told | {"about": json.dumps(told["about"])}, "editor")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, told: told.update(method="mendel"), "method 'mendel', which is not known here.*learned-steps"),
        (lambda tensors, told: told.update(method="ft"), "which is not known here"),
        (lambda tensors, told: told.update(network="abc"), "names .* no network"),
        (lambda tensors, told: told.update(about=3), "editor"),
        (lambda tensors, told: told["about"]["items"].pop(), "editor"),
        (lambda tensors, told: told["about"]["items"][0][1]["items"].append(["lr2", 3]), "does not take .*lr2"),
        (lambda tensors, told: told["about"]["items"][0][1]["items"].append(["lr", "x"]), "does not take .*lr must"),
        (lambda tensors, told: tensors["0"].fill_(torch.nan), "'log' holds no finite numbers"),
    ],
)
def test_forged_files_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = rewritten(editor().save(tmp_path / "editor.safetensors"), change)
    with pytest.raises((InvalidInput, PatchError), match=message):
        Editor.load(path)


def test_learned_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = editor().save(tmp_path / "editor.safetensors")

    def change(tensors: dict[str, Tensor], told: dict[str, Any]) -> None:
        tensors["0"] = torch.ones(3, dtype=torch.float64)

    made = Editor.load(rewritten(path, change))
    with pytest.raises(InvalidInput, match="does not fit this network .*size mismatch"):
        nnrepair.fix(network(), asked(), method=made)


def test_a_method_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Nameless(LearnedSteps):
        pass

    made = Nameless(start=0.1).prepare(network(), episodes(), steps=1)
    assert repr(made).startswith("<editor ") and "Nameless" in repr(made)
    with pytest.raises(
        InvalidInput, match=r"Nameless has no name .* nnrepair.methods.register\('my-method', Nameless\)"
    ):
        made.save(tmp_path / "editor.safetensors")


@pytest.mark.parametrize(
    "values",
    [{"start": 0}, {"lr": float("nan")}, {"locality_weight": -1}, {"unrolled": 0}, {"steps": -1}, {"margin": -1}],
)
def test_hyper_parameters_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(values)) if "start" not in values else "start|lr"):
        LearnedSteps(**values)


def test_the_seam_is_small() -> None:
    """A method of one's own: what is learned, what an exercise teaches, and the edit."""

    @dataclasses.dataclass(frozen=True)
    class LastBias(Trainable):
        capabilities = Capabilities("test", True, "same", True, True, True)

        def begin(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
            return nn.Linear(1, 1)

        def loss(self, learned: nn.Module, problem: Any) -> Tensor:
            return learned.weight.square().sum()

        def edit(self, learned: nn.Module, problem: Any) -> Proposal:
            return Proposal(problem.model)

    REGISTRY["last-bias"] = LastBias
    try:
        made = LastBias().prepare(network(), some(), steps=2)
        assert made.capabilities.family == "test"
        assert not nnrepair.fix(network(), asked(), method=made, throw=False).outcome.ok
    finally:
        del REGISTRY["last-bias"]


def test_tasks_of_domains_have_episodes() -> None:
    x, labels = points()
    wrong = mistakes(network(), x[:6])
    everything = Episode(
        Edits(x[:6], wrong), LocalitySet(x[20:], labels[20:]), EditScope(x[6:12], wrong, of=list(range(6)))
    )
    task = Task(
        network(),
        Edits(x[12:14], mistakes(network(), x[12:14])),
        LocalitySet(x[20:], labels[20:]),
        {"all": (x, labels)},
        EditScope(x[14:16], [0, 0], of=[0, 1]),
        training=lambda: everything,
    )
    made = QUICK.prepare(task.model, task, steps=4)
    assert (
        made
        == QUICK.prepare(task.model, task.episodes, steps=4)
        == QUICK.prepare(task.model, task.episodes(0), steps=4)
    )
