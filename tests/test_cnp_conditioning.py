"""Conditioning: exact without edits, in any order, forgetful on request, and honest about which labels are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_kinds import SEQUENCES, Attends, Recurrent
from networks import clusters, mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet, Near, UnsupportedModel
from nnrepair.methods import AnyEdits, CNPConditioning, Editor, Episode, RandomLabels
from nnrepair.methods.cnp_conditioning import ASKED, change, sketched
from nnrepair.methods.episodes import posed
from nnrepair.wrappers import Conditioned
from nnrepair.wrappers.conditioned import FLOOR, Reader, width


def network() -> nn.Module:
    return mlp(4, 12, 12, 3, seed=1)


def points() -> tuple[Tensor, Tensor]:
    x = 3 * randn(200, 4, seed=6)
    with torch.no_grad():
        return x, network()(x).argmax(1)


@pytest.fixture(scope="module")
def editor() -> Editor:
    return CNPConditioning().prepare(network(), RandomLabels(*points(), edits=3, locality=40), steps=500)


def edits(count: int = 5) -> Edits:
    x = 3 * randn(count, 4, seed=5)
    with torch.no_grad():
        return Edits(x, network()(x).argsort(1)[:, 1])


def asked(edits: Edits, problem: Any, y: Tensor) -> Tensor:
    return sketched(change(edits, problem, y)).to(y)


# The conditioned network ---------------------------------------------------------------------------------------------


def test_without_edits_it_is_the_network_bit_for_bit(editor: Editor) -> None:
    base, x = network(), randn(50, 4, seed=9)
    for form in ("attention", "mean"):
        method = CNPConditioning(form=form)  # type: ignore[arg-type]
        learned = method.begin(base, torch.Generator().manual_seed(0))
        with torch.no_grad():
            for parameter in learned.parameters():
                parameter += 0.1
        assert torch.equal(learned.empty(base)(x), base(x))
    right = Edits(x[:3], base(x[:3]).argmax(1))
    assert nnrepair.fix(base, right, method=editor).outcome.status == "nothing to do"


def test_far_points_are_left_alone_bit_for_bit_in_whatever_batch(editor: Editor) -> None:
    base, asked_for = network(), edits(1)
    made = nnrepair.fix(base, asked_for, method=editor).model
    x = torch.cat([asked_for.inputs, 3 * randn(200, 4, seed=3)])
    reader = made.reader
    weights = reader.weights(reader(seen(base, x)), made.keys).sum(1)
    far = weights < FLOOR
    assert 20 < int(far.sum()) < 201
    assert torch.equal(made(x)[far], base(x)[far]) and not torch.equal(made(x)[~far], base(x)[~far])
    assert torch.allclose(made(x[:1]), made(x)[:1], atol=1e-6)


def seen(base: nn.Module, x: Tensor) -> Tensor:
    """Return what the first two linear layers return and the second takes, as the reader sees it."""
    first = base[0](x)
    inside = torch.relu(first)
    return torch.cat([first, inside, base[2](inside)], 1)


def test_a_condition_is_the_weighted_mean_of_values_by_the_formula(editor: Editor) -> None:
    base, asked_for = network(), edits(4)
    made = nnrepair.fix(base, asked_for, method=editor).model
    assert isinstance(made, Conditioned) and made.layers == ["0", "2"]
    x = asked_for.inputs.double()
    twin, reader = base.double(), made.reader.double()
    key = reader(seen(twin, x))
    scores = reader.nearness - reader.sharpness.exp() * torch.cdist(key, made.keys.double()).square() / 8
    exp = scores.exp()
    condition = exp / (1 + exp.sum(1, keepdim=True)) @ made.values.double()
    first = twin[0](x) + condition[:, :12]
    expected = twin[4](torch.relu(twin[2](torch.relu(first)) + condition[:, 12:]))
    reader.float()
    assert torch.allclose(made(asked_for.inputs).double(), expected, atol=1e-4)


def test_the_order_of_edits_does_not_matter_and_a_dropped_pair_is_forgotten(editor: Editor) -> None:
    base, asked_for, x = network(), edits(5), randn(40, 4, seed=2)
    order = torch.tensor([3, 0, 4, 1, 2])
    one = nnrepair.fix(base, asked_for, method=editor).model
    other = nnrepair.fix(base, asked_for[order], method=editor).model
    assert torch.allclose(one(x), other(x), atol=1e-5) and len(one) == 5
    less = one.without([1, 3])
    fewer = nnrepair.fix(base, asked_for[torch.tensor([0, 2, 4])], method=editor).model
    assert torch.allclose(less(x), fewer(x), atol=1e-5) and len(less) == 3
    assert torch.equal(one.without(range(5))(x), base(x)) and len(one) == 5


def test_edits_one_after_another_come_to_the_same(editor: Editor) -> None:
    base, asked_for, x = network(), edits(5), randn(40, 4, seed=2)
    history = nnrepair.fix(base, asked_for, method=editor, mode="successive")
    at_once = nnrepair.fix(base, asked_for, method=editor)
    assert history.success_retain_rate == 1 and torch.allclose(history.model(x), at_once.model(x), atol=1e-5)


def test_a_later_edit_of_the_same_point_takes_its_place(editor: Editor) -> None:
    base, asked_for = network(), edits(2)
    first = nnrepair.fix(base, asked_for, method=editor).model
    with torch.no_grad():
        last = base(asked_for.inputs[:1]).argsort(1)[:, 0]
    again = editor.repair(posed(first, Episode(Edits(asked_for.inputs[:1], last)), 0)).model
    assert len(again) == 2 and torch.equal(again(asked_for.inputs[:1]).argmax(1), last)


@pytest.mark.parametrize(
    ("net", "layer", "x"),
    [
        (lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)), "0", (6, 2, 6, 6)),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3)), "0", (6, 3, 4)),
        (lambda: nn.Sequential(nn.Conv1d(2, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3)), "0", (6, 2, 4)),
    ],
    ids=["image", "tokens", "signal"],
)
def test_positions_share_a_condition_or_have_their_own(net: Any, layer: str, x: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    base, points = net(), randn(*x, seed=1)
    made = Conditioned(base, [layer], torch.ones(1, 5))
    first = base[0](points)
    assert torch.allclose(made(points), base[1:](first + 1), atol=1e-6)
    axis = 2 if isinstance(base[0], nn.Linear) else 1
    by_position = first.movedim(axis, -1)
    own = torch.zeros(1, by_position[0, ..., 0].numel(), 5)
    own[0, 2] = torch.arange(5.0)  # the third position alone
    expected = (by_position + own.reshape(1, *by_position.shape[1:])).movedim(-1, axis)
    assert torch.allclose(Conditioned(base, [layer], own)(points), base[1:](expected), atol=1e-6)
    short = Conditioned(base, [layer], own[:, 1:])
    with pytest.raises(UnsupportedModel, match=r"returns (\d+) positions, and its conditions were made for \d+: give"):
        short(points)


# What is learned -----------------------------------------------------------------------------------------------------


def test_what_an_edit_asks_for_is_a_direction_of_labels_and_a_lack_of_numbers() -> None:
    model, x = mlp(4, 5, 3, seed=2), randn(2, 4, seed=1)
    problem = posed(model, Episode(Edits(x, [2, 0])), 0)
    y = model(x).detach()
    found = asked(problem.edits, problem, y)
    assert found.shape == (2, ASKED) and not found[:, 3:].any()
    others = y[0, :2].softmax(0)
    assert torch.allclose(found[0, :3], torch.cat([-others, torch.ones(1)]), atol=1e-5)
    assert torch.allclose(found, asked(problem.edits, problem, y + 7.0), atol=1e-5)
    numbers = posed(model, Episode(Edits(x, Near(y + torch.tensor([1.0, 0.0, -2.0]), 0.5))), 0)
    expected = torch.tensor([0.5, 0.0, -1.5]).expand(2, 3)
    assert torch.allclose(asked(numbers.edits, numbers, y)[:, :3], expected, atol=1e-5)
    inside = torch.tensor([0.7, 0.0, -1.7]).expand(2, 3)  # by 0.2 more, and nothing where that is so already
    assert torch.allclose(change(numbers.edits, numbers, y, margin=0.2).to(y), inside, atol=1e-5)


def test_many_outputs_are_projected_with_about_their_length() -> None:
    model, x = mlp(4, 5, 300, seed=2), randn(3, 4, seed=1)
    y = model(x).detach()
    target = y + randn(3, 300, seed=4)
    problem = posed(model, Episode(Edits(x, Near(target, 1e-3))), 0)
    found = asked(problem.edits, problem, y)
    assert found.shape == (3, ASKED)
    assert torch.allclose(found.norm(dim=1), (target - y).norm(dim=1), rtol=0.35)
    assert torch.equal(found, asked(problem.edits, problem, y))


def test_numbers_are_repaired_too() -> None:
    model = mlp(3, 16, 16, 2, seed=4)
    x = clusters(100, 3, seed=2)
    with torch.no_grad():
        y = model(x)
    generator = torch.Generator().manual_seed(0)

    def episodes(seed: int) -> Any:
        while True:
            order = torch.randperm(100, generator=generator)
            mine, others = order[:2], order[2:40]
            target = y[mine] + torch.randn(2, 2, generator=generator)
            yield Episode(Edits(x[mine], Near(target, 0.2)), LocalitySet(x[others], Near(y[others], 0.2)))

    method = CNPConditioning(locality_weight=1.0)
    editor = method.prepare(model, episodes, steps=800)
    held = []
    for k in range(10):
        asked_for = Edits(x[k : k + 1], Near(y[k : k + 1] + torch.tensor([[0.8, -0.6]]), 0.3))
        held.append(nnrepair.fix(model, asked_for, method=editor, throw=False).outcome.ok)
    assert sum(held) >= 8


class Painter(nn.Module):
    """A picture (n, 1, 4, 4) to another, in which two layers have a position for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.one = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 2, 1), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.inner(x + self.one(x.flatten(1)).reshape(x.shape))))
        return y


def painter() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    base, x = Painter().eval(), randn(60, 1, 4, 4, seed=1)
    with torch.no_grad():
        return base, x, base(x)


def wrong_at(y: Tensor, generator: torch.Generator) -> Near:
    """Ask for other numbers at one pixel of each picture, and for nothing elsewhere."""
    tol, target = torch.full_like(y, torch.inf), y.clone()
    for k in range(len(y)):
        down, right = torch.randint(4, (2,), generator=generator).tolist()
        tol[k, :, down, right], target[k, :, down, right] = 0.1, y[k, :, down, right] + torch.tensor([0.9, -0.6])
    return Near(target, tol)


def test_pixels_are_repaired_where_they_are_asked_for() -> None:
    base, x, y = painter()
    generator = torch.Generator().manual_seed(0)

    def episodes(seed: int) -> Any:
        while True:
            mine, others = torch.randperm(40, generator=generator).split([3, 37])
            yield Episode(Edits(x[mine], wrong_at(y[mine], generator)), LocalitySet(x[others[:10]]))

    editor = CNPConditioning("head", each_position=True, hidden=32).prepare(base, episodes, steps=250)
    asked_for = Edits(x[40:44], wrong_at(y[40:44], generator))
    made = nnrepair.fix(base, asked_for, method=editor).model
    assert made.values.shape == (4, 16, 2) and (made.values != 0).any(2).sum(1).tolist() == [1, 1, 1, 1]
    with torch.no_grad():
        free = torch.isinf(asked_for.criterion.tol)
        assert (made(x[40:44]) - y[40:44])[free].abs().max() < 0.2  # nothing is added there but what others ask for
        other = nnrepair.fix(base, asked_for[torch.tensor([2, 0, 3, 1])], method=editor).model
        assert torch.allclose(made(x), other(x), atol=1e-5)
        assert torch.equal(made.without(range(4))(x), y)
        first = nnrepair.fix(base, asked_for[:1], method=editor).model
        assert torch.allclose(made.without([1, 2, 3])(x), first(x), atol=1e-5)
        assert torch.equal(first(x[50:]), y[50:]) or (first(x[50:]) - y[50:]).abs().max() < 0.1
    history = nnrepair.fix(base, asked_for, method=editor, mode="successive")
    assert history.success_retain_rate == 1 and torch.allclose(history.model(x), made(x), atol=1e-5)


@pytest.mark.parametrize("layers", ["one", ("head", "one")])
def test_layers_without_the_outputs_positions_have_none_of_their_own(layers: Any) -> None:
    base, x, y = painter()
    episode = Episode(Edits(x[:2], wrong_at(y[:2], torch.Generator())), LocalitySet(x[2:9]))
    with pytest.raises(InvalidInput, match=r"'one' has 1 for each point, and outputs are \(2, 2, 4, 4\). Choose other"):
        CNPConditioning(layers, each_position=True).prepare(base, [episode], steps=1)


def test_conditions_of_positions_take_edits_of_one_size() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 1)).eval()
    learned = CNPConditioning("2", each_position=True).begin(base, torch.Generator().manual_seed(0))
    small, large = randn(1, 1, 4, 4), randn(1, 1, 5, 5)
    torch.nn.init.constant_(learned.reader.nearness, -50.0)  # all points are far
    editor = Editor(CNPConditioning("2", each_position=True), learned.state_dict(), "", 1)
    first = editor.repair(posed(base, Episode(Edits(small, Near(base(small).detach() + 1, 0.1))), 0)).model
    second = posed(base, Episode(Edits(large, Near(base(large).detach() + 1, 0.1))), 0)
    with pytest.raises(InvalidInput, match="Earlier edits condition 16 positions, these 25: give edits of one size"):
        editor.repair(replace(second, model=first))


def test_episodes_of_any_edits_teach_no_labels() -> None:
    x, labels = randn(40, 4, seed=1), torch.arange(40) % 4
    scope = EditScope(x.repeat(2, 1) + 0.1, labels.repeat(2), of=torch.arange(40).repeat(2))
    everything = Episode(Edits(x, labels), LocalitySet(randn(60, 4, seed=2), torch.zeros(60).long()), scope)
    episodes = AnyEdits(everything, edits=5, locality=20)
    relabelled = others = 0
    for _, episode in zip(range(200), episodes(0), strict=False):
        mine = (episode.edits.inputs[:, None] == x).all(2).float().argmax(1)
        wanted = episode.edits.criterion.labels
        assert len(mine) <= 5 and torch.equal(episode.edits.inputs, x[mine])
        assert torch.equal(episode.edit_scope.criterion.labels, wanted[episode.edit_scope.of])
        relabelled += not torch.equal(wanted, labels[mine])
        if episode.locality_set.criterion is None:
            others += 1
            kept = (episode.locality_set.inputs[:, None] == x).all(2)
            assert kept.any(1).all() and not kept[:, mine].any()
    assert 70 < others < 130 and 70 < relabelled < 130  # each is every second one
    again = [episode.edits.inputs for _, episode in zip(range(5), episodes(3), strict=False)]
    same = [episode.edits.inputs for _, episode in zip(range(5), episodes(3), strict=False)]
    assert all(torch.equal(a, b) for a, b in zip(again, same, strict=True))


def test_any_edits_need_labels() -> None:
    edits = Edits(randn(3, 4), Near(randn(3, 2), 0.1))
    with pytest.raises(InvalidInput, match="one label for each mistake"):
        next(iter(AnyEdits(Episode(edits))(0)))


# Files, and what cannot be -------------------------------------------------------------------------------------------


def test_an_editor_and_its_repairs_are_saved(editor: Editor, tmp_path: Path) -> None:
    again = Editor.load(editor.save(tmp_path / "editor.safetensors"))
    assert again == editor
    base, asked_for, x = network(), edits(3), randn(20, 4, seed=2)
    made = nnrepair.fix(base, asked_for, method=again)
    patch = nnrepair.Patch.load(made.patch.save(tmp_path / "fix.safetensors"))
    assert torch.equal(patch.apply(base)(x), made.model(x))
    with pytest.raises(InvalidInput, match="belongs to another network"):
        nnrepair.fix(mlp(4, 12, 12, 3, seed=8), asked_for, method=editor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "men"}, "Unknown form 'men'. Did you mean 'mean'"),
        ({"each_position": 1}, "each_position must be True or False, got 1"),
        ({"hidden": 0}, "hidden must be an integer >= 1"),
        ({"features": 2.5}, "features must be an integer >= 1"),
        ({"lr": 0.0}, "lr must be a finite number > 0"),
        ({"locality_weight": -1}, "locality_weight must be a finite number >= 0"),
        ({"margin": float("nan")}, "margin must be a finite number >= 0"),
    ],
)
def test_bad_hyper_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        CNPConditioning(**options)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("9", "Layer '9' not found"),
        (("0", "0"), "each once"),
        ((), "each once"),
        ("1", "does not say how wide"),
    ],
)
def test_bad_layers_are_refused(layers: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        CNPConditioning(layers=layers).prepare(network(), RandomLabels(*points()), steps=1)


@pytest.mark.parametrize(
    ("net", "x", "layers"),
    [
        (lambda: Recurrent(nn.GRU), SEQUENCES, ["head"]),
        (Attends, SEQUENCES, ["body.linear1", "body.linear2"]),
    ],
    ids=["recurrent", "attention"],
)
def test_layers_are_chosen_among_those_that_return_one_tensor(net: Any, x: Tensor, layers: list[str]) -> None:
    torch.manual_seed(0)
    base = net().eval()
    labels = base(x).argmax(1)
    editor = CNPConditioning().prepare(base, RandomLabels(x, labels, edits=2, locality=6), steps=2)
    made = editor.restored(base)
    assert made.layers == layers
    wanted = Edits(x[:1], (labels[:1] + 1) % 3)
    assert len(nnrepair.fix(base, wanted, method=editor, throw=False).model) == 1


def test_the_plain_mean_learns_no_keys() -> None:
    mean, attention = (
        CNPConditioning(form=form).begin(network(), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        for form in ("mean", "attention")
    )
    names = set(attention.state_dict()) - set(mean.state_dict())
    assert names == {f"reader.{part}" for part in ("inner.weight", "inner.bias", "outer.weight", "outer.bias")} | {
        "reader.nearness",
        "reader.sharpness",
    }
    assert all(torch.equal(value, attention.state_dict()[name]) for name, value in mean.state_dict().items())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(torch.relu(self.inner(x))))


def test_layers_that_run_twice_or_never_or_without_rows_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="more than once"):
        Conditioned(Twice(), ["inner"], torch.ones(1, 4))(randn(2, 4))
    idle = Twice()
    idle.idle = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModel, match="does not run"):
        Conditioned(idle, ["idle"], torch.ones(1, 2))(randn(2, 4))
    base = nn.Sequential(
        nn.Flatten(0), nn.Unflatten(0, (-1, 2)), nn.Linear(2, 3), nn.Flatten(0), nn.Unflatten(0, (-1, 6))
    )
    with pytest.raises(UnsupportedModel, match="sees? .* rows"):
        Conditioned(base, ["2"], torch.ones(1, 3), torch.zeros(1, 2), Reader(3, 4, 2))(randn(3, 4))
    with pytest.raises(InvalidInput, match="not found"):
        width(base, "7")


def test_pairs_that_are_none_are_refused() -> None:
    base = mlp(4, 5, 3)
    with pytest.raises(InvalidInput, match="Values have 5 numbers"):
        Conditioned(base, ["0"], torch.ones(1, 4))
    with pytest.raises(InvalidInput, match="A reader needs a key"):
        Conditioned(base, ["0"], torch.ones(2, 5), torch.ones(1, 2), Reader(5, 4, 2))
    with pytest.raises(InvalidInput, match="A reader needs a key"):
        Conditioned(base, ["0"], torch.ones(2, 5), torch.ones(2, 2))
