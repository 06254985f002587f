"""Editable Training: gradients through the steps, both recipes, every mode, and what cannot be."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import clusters, mistakes, mlp, randn, seeded
from patches import bits
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet, Near, UnsupportedModel
from nnrepair.fingerprint import fingerprint
from nnrepair.methods import EditableTraining, Editor, Episode, LearnedSteps, RandomLabels
from nnrepair.methods.editable_training import EditorFunction, Prepared, prepared
from nnrepair.methods.episodes import posed
from nnrepair.training import Checkpoint, Descent
from nnrepair.wrappers import EditingBlock, Inserted

#: Both recipes, for the small network below.
RECIPES = {
    "in place": EditableTraining("2", start=0.1, lr=0.01),
    "inserted": EditableTraining("2", residual=6, start=0.05, lr=0.01),
}
every_recipe = pytest.mark.parametrize("method", RECIPES.values(), ids=RECIPES.keys())


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


def asked() -> Edits:
    x = randn(4, 4, seed=5)
    return Edits(x, mistakes(network(), x))


def untrained(method: EditableTraining, model: nn.Module) -> Editor:
    learned = method.begin(model, torch.Generator().manual_seed(0))
    return Editor(method, dict(learned.state_dict()), fingerprint(model), 0)


# The gradient --------------------------------------------------------------------------------------------------------


class Frozen:
    """A kind of outputs; what later divergences start from is what the first ones started from.

    The prepared network is the reference of the edited one, and gradients do not flow through it.
    """

    decides = True

    def __init__(self, kind: Any, each: int) -> None:
        self.kind, self.each, self.calls = kind, each, 0
        self.old: list[Tensor] = []

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        if len(self.old) < self.each:
            self.old.append(old.detach())
        self.calls += 1
        return self.kind.divergence(self.old[(self.calls - 1) % self.each], new)


def exercise(model: nn.Module) -> Any:
    x = randn(30, 3, seed=3, dtype=torch.float64)
    scope = EditScope(x[2:4], [1, 0], of=[0, 1])
    edits = Edits(x[:2], mistakes(model, x[:2]))
    return posed(model, Episode(edits, LocalitySet(x[4:], [k % 3 for k in range(26)]), scope), 0)


@pytest.mark.parametrize("residual", [0, 4])
@pytest.mark.parametrize("update", ["sgd", "momentum", "rmsprop"])
@pytest.mark.parametrize("base", ["distillation", "labels"])
def test_the_gradient_through_two_steps_is_that_of_finite_differences(residual: int, update: Any, base: Any) -> None:
    model = mlp(3, 5, 5, 3, seed=2, activation=nn.Tanh).double()
    method = EditableTraining(
        "4" if residual else ("2", "4"), residual, update, start=0.02, unrolled=2, margin=5.0, base=base
    )
    problem = exercise(model)
    problem = dataclasses.replace(problem, kind=Frozen(problem.kind, 1 if base == "labels" else 2))
    learned = moved(method.begin(model, torch.Generator().manual_seed(1)), seed=9)
    found = torch.autograd.grad(method.loss(learned, problem), list(learned.parameters()))
    for seed in range(4):
        direction = [like(p, seed) for p in learned.parameters()]
        expected = sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True))
        sides = []
        for size in (1e-5, -1e-5):
            twin = moved(method.begin(model, torch.Generator().manual_seed(1)), seed=9)
            with torch.no_grad():
                for parameter, d in zip(twin.parameters(), direction, strict=True):
                    parameter += size * d
            sides.append(float(method.loss(twin, problem).detach()))
        assert expected == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-3)
    first = dataclasses.replace(method, second_order=False)
    other = torch.autograd.grad(first.loss(learned, problem), list(learned.parameters()))
    assert torch.equal(first.loss(learned, problem).detach(), method.loss(learned, problem).detach())
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(found, other, strict=True))


def moved(learned: nn.Module, seed: int) -> nn.Module:
    """Return what is learned away from where it begins: there the last layer of a new block is zero."""
    with torch.no_grad():
        for k, parameter in enumerate(learned.parameters()):
            parameter += 0.2 * like(parameter, seed + k)
    return learned


def like(parameter: Tensor, seed: int) -> Tensor:
    return randn(parameter.numel(), seed=seed, dtype=torch.float64).reshape(parameter.shape)


@pytest.mark.parametrize("update", ["sgd", "momentum", "rmsprop"])
def test_the_editor_functions_are_those_of_torch(update: Any) -> None:
    weight, gradients = randn(5, dtype=torch.float64), randn(3, 5, seed=1, dtype=torch.float64)
    learned = Prepared({"w": weight}, EditableTraining(update=update, start=0.1, decay=0.9), "00" * 32)
    state, mine = EditorFunction(learned), [weight]
    twin = nn.Parameter(weight.clone())
    optimizer: torch.optim.Optimizer = torch.optim.SGD([twin], lr=0.1, momentum=0.9 if update == "momentum" else 0.0)
    if update == "rmsprop":
        optimizer = torch.optim.RMSprop([twin], lr=0.1, alpha=0.9, eps=0)
        optimizer.state[twin] = {"step": torch.tensor(0.0), "square_avg": gradients[0].square()}  # not from zero
    for gradient in gradients:
        mine = state.step(mine, [gradient])
        twin.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(mine[0], twin, rtol=1e-6)


def test_a_gradient_of_zero_has_finite_second_derivatives() -> None:
    learned = Prepared({"w": torch.zeros(2)}, EditableTraining(update="rmsprop"), "00" * 32)
    w = torch.zeros(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(w.square().sum(), w, create_graph=True)
    (again,) = torch.autograd.grad(EditorFunction(learned).step([w], [gradient])[0].sum(), w)
    assert bool(torch.isfinite(again).all())


# Training ------------------------------------------------------------------------------------------------------------


@every_recipe
def test_training_lowers_drawdown_and_distillation_keeps_the_network(method: EditableTraining) -> None:
    x, labels = points()
    method = dataclasses.replace(method, start=0.5)
    lost, held, made = {}, {}, method.prepare(network(), episodes(), steps=150)
    for editor in (untrained(method, network()), made):
        history = nnrepair.fix(network(), asked(), method=editor, mode="independent", test_set=(x, labels), throw=False)
        held[editor.steps] = sum(history.held_after)
        lost[editor.steps] = sum(step.side_effects["test set"].drawdown for step in history.steps)
    assert held[150] == 4 and lost[150] < lost[0]
    with torch.no_grad():
        after = prepared(made, network())(x).argmax(1)
        assert float((after == labels).double().mean()) >= 0.98
        assert torch.equal(prepared(untrained(method, network()), network())(x), network()(x))


def test_first_order_training_works_too() -> None:
    method = dataclasses.replace(RECIPES["inserted"], second_order=False, update="rmsprop", start=0.01)
    assert nnrepair.fix(network(), asked(), method=method.prepare(network(), episodes(), steps=20)).outcome.ok


@every_recipe
@pytest.mark.parametrize("killed", [1, 4])
def test_a_kill_changes_nothing(
    method: EditableTraining, killed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, step, taken = tmp_path / "training.safetensors", Descent.__call__, 0
    method = dataclasses.replace(method, update="momentum")

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
            method.prepare(network(), episodes(), steps=6, resume=path)
    whole = method.prepare(network(), episodes(), steps=6)
    assert method.prepare(network(), episodes(), steps=6, resume=path) == whole


@every_recipe
def test_a_training_that_explodes_keeps_the_last_good_checkpoint(
    method: EditableTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "due", True)
    path, method = tmp_path / "training.safetensors", dataclasses.replace(method, lr=3e37)
    far = RandomLabels(1e4 * points()[0], points()[1], edits=2, locality=20)
    with pytest.warns(UserWarning, match="Training: stopped at step 2: the loss became nan"):
        made = method.prepare(network(), far, steps=9, resume=path)
    assert made.steps == 2 and all(bool(torch.isfinite(value).all()) for value in made.learned.values())
    assert path.exists()
    with pytest.warns(UserWarning, match="stopped at step 2"):  # from the checkpoint of step 1, which is still there
        assert method.prepare(network(), far, steps=9, resume=path) == made
    result = nnrepair.fix(network(), asked(), method=made, throw=False)
    assert any("training stopped at step 2: the loss became nan" in note for note in result.report.notes)


class Conv(nn.Module):
    """Convolutions, normalisation and dropout; activations in place, or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.block, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=inplace)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 3)
        self.norm.running_mean.fill_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.first(x)))
        h = self.relu(self.block(h) + h)
        return self.linear(self.drop(h.mean((2, 3))))


@pytest.mark.parametrize("method", [EditableTraining("block"), EditableTraining("linear", residual=5)])
def test_activations_in_place_and_training_mode_change_nothing(method: EditableTraining) -> None:
    x = randn(40, 1, 6, 6)
    found = []
    for inplace, mode in ((False, False), (True, False), (True, True)):
        model = seeded(lambda inplace=inplace: Conv(inplace)).train(mode)
        with torch.no_grad():
            labels = seeded(lambda: Conv(False)).eval()(x).argmax(1)
        before = bits(model)
        made = method.prepare(model, RandomLabels(x, labels, edits=2, locality=20), steps=3)
        assert bits(model) == before and model.training == mode
        result = nnrepair.fix(model, (x[:1], [int(labels[0] + 1) % 3]), method=made)
        assert result.model.training == (mode and not method.residual)  # wrappers are in eval mode
        found.append(made)
    assert found[0] == found[1] == found[2]


def test_an_activation_in_place_that_gradients_need_is_named() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu_(torch.exp(self.a(x))))

    x = randn(40, 4)
    with pytest.raises(UnsupportedModel, match="cannot be differentiated: .* Let that operation make a new tensor"):
        EditableTraining("a").prepare(Overwrites(), RandomLabels(x, torch.arange(40) % 3, locality=8), steps=3)


def test_embeddings_with_sparse_gradients_and_attention_can_be_prepared() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 8, sparse=True)
            self.attend = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attend(self.embed(x)).mean(1))

    model, x = seeded(Tokens).eval(), torch.randint(9, (40, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(x).argmax(1)
    method = EditableTraining(("embed", "attend"), start=0.01)
    made = method.prepare(model, RandomLabels(x, labels, edits=1, locality=8), steps=2)
    assert made.steps == 2


# Repairs -------------------------------------------------------------------------------------------------------------


@every_recipe
@pytest.mark.parametrize("mode", ["batch", "independent", "successive"])
def test_every_mode_and_files(method: EditableTraining, mode: str, tmp_path: Path) -> None:
    made = method.prepare(network(), episodes(), steps=30)
    again = Editor.load(made.save(tmp_path / "editor.safetensors"))
    assert again == made and again.method == method
    more = {} if mode == "batch" else {"mode": mode, "resume": tmp_path / "sequence.safetensors"}
    found = nnrepair.fix(network(), asked(), points()[0], method=made, **more)
    assert found.outcome.ok
    assert nnrepair.fix(network(), asked(), points()[0], method=again, **more).outcome == found.outcome
    if mode != "independent":
        assert isinstance(found.model, Inserted) == bool(method.residual)
        assert bits(found.patch.apply(network())) == bits(found.model)


@every_recipe
def test_a_sequence_goes_on_from_the_edited_network(method: EditableTraining) -> None:
    """Each step starts from the last one's weights, and only the first one from the prepared network."""
    made = method.prepare(network(), episodes(), steps=30)
    edits = asked()
    history = nnrepair.fix(network(), edits, method=made, mode="successive", rehearsal=False, throw=False)
    learned, model = made.restored(network()), network().eval()
    for k in range(len(edits)):
        problem = posed(model, Episode(edits[torch.tensor([k])]), 0)
        with torch.no_grad():
            held = bool(problem.edits.criterion.holds(model(problem.edits.inputs)).all())
        model = model if held else method.edit(learned, problem).model
    assert bits(model) == bits(history.model)
    first = nnrepair.fix(network(), edits[:1], method=made)
    assert first.stats["steps"] >= 0 and f"{first.stats['steps']} gradient steps" in str(first.report.notes)


def test_what_was_inserted_is_reported_and_can_be_edited_again() -> None:
    method = RECIPES["inserted"]
    made = method.prepare(network(), episodes(), steps=30)
    result = nnrepair.fix(network(), asked(), method=made)
    numbers = 12 * 6 + 6 + 6 * 12 + 12
    assert result.report.weight_change.carried == f"Inserted: {numbers} numbers, {4 * numbers} bytes"
    assert f"{numbers} numbers" in str(result)
    further = method.prepare(result.model, episodes(), steps=5)
    again = nnrepair.fix(result.model, asked(), method=further)
    assert isinstance(again.model, Inserted) and not isinstance(again.model.base, Inserted)


def test_numbers_are_edited_until_they_are_near() -> None:
    model, x = mlp(4, 12, 2, seed=1), randn(60, 4, seed=3)
    with torch.no_grad():
        y = model(x)
    exercises = [
        Episode(Edits(x[k : k + 1], Near(y[k : k + 1] + 0.3, 0.05)), LocalitySet(x[20:], Near(y[20:], 0.05)))
        for k in range(10)
    ]
    made = EditableTraining("2", residual=6, start=0.02).prepare(model, exercises, steps=20)
    assert nnrepair.fix(model, Edits(x[:1], Near(y[:1] - 0.3, 0.05)), method=made).outcome.ok


def test_too_few_steps_and_steps_that_explode_are_told() -> None:
    for values, message in (({"steps": 1, "start": 1e-6}, "most edits held"), ({"start": 1e300}, "most edits held")):
        made = untrained(dataclasses.replace(RECIPES["in place"], **values), network())
        result = nnrepair.fix(network(), asked(), method=made, throw=False)
        assert result.outcome.status == "partly repaired" and message in str(result.report.notes)
        assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())


def test_a_margin_is_kept() -> None:
    made = EditableTraining("2", start=0.1, margin=0.5).prepare(network(), episodes(), steps=5)
    result = nnrepair.fix(network(), asked(), method=made)
    with torch.no_grad():
        assert float(asked().criterion.margin(result.model(asked().inputs).double()).min()) >= 0.5


# What cannot be ------------------------------------------------------------------------------------------------------


@every_recipe
def test_another_network_is_refused(method: EditableTraining) -> None:
    made = method.prepare(network(), episodes(), steps=2)
    for other in (mlp(4, 12, 3, seed=9), mlp(4, 5, 3), network().double()):
        with pytest.raises(InvalidInput, match="belongs to another network"):
            nnrepair.fix(other, asked(), method=made)
        with pytest.raises(InvalidInput, match="belongs to another network"):
            prepared(made, other)
    other = LearnedSteps(start=0.1).prepare(network(), episodes(), steps=2)
    with pytest.raises(InvalidInput, match="prepares no network"):
        prepared(other, network())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"update": "adam"}, "Unknown update 'adam'.*Choose one of sgd, momentum, rmsprop"),
        ({"base": "distil"}, "Did you mean 'distillation'"),
        ({"residual": -1}, "residual must be an integer >= 0"),
        ({"residual": 5}, "goes before one linear layer: name it, got layers='all'"),
        ({"unrolled": 0}, "unrolled"),
        ({"steps": True}, "steps"),
        ({"start": 0}, "start must be a finite number > 0"),
        ({"lr": float("inf")}, "lr"),
        ({"decay": 1.0}, "decay must lie between 0 and 1"),
        ({"edit_weight": -1}, "edit_weight must be a finite number >= 0"),
        ({"second_order": 1}, "second_order must be True or False"),
    ],
)
def test_hyper_parameters_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        EditableTraining(**values)


def test_layers_that_cannot_be() -> None:
    for layers, residual, message in (
        ("3", 0, "Layer '3' not found"),
        ("1", 4, "'1' is none.* Linear layers: 0, 2"),
        ("nothing", 4, "Linear layers: 0, 2"),
    ):
        with pytest.raises(InvalidInput, match=message):
            EditableTraining(layers, residual).prepare(network(), episodes(), steps=1)
    with pytest.raises(InvalidInput, match="A block of 5 features .* '2' is one with 12"):
        Inserted(network(), "2", EditingBlock(5, 3))
    with pytest.raises(InvalidInput, match="'7' is no layer"):
        Inserted(network(), "7", EditingBlock(5, 3))


def test_a_layer_that_does_not_run_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(UnsupportedModel, match="'idle' does not run"):
        EditableTraining("idle", residual=3).prepare(Idle(), episodes(), steps=1)


def test_what_it_returns_depends_on_its_options() -> None:
    assert EditableTraining().capabilities.returns == "same"
    assert EditableTraining("fc", residual=3).capabilities.returns == "wrapped"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EditableTraining(["a", "b"]).layers == ("a", "b")
