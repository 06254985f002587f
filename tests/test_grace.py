"""GRACE: exact outside of its balls, and every edit holds, however they contradict each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from graphs import Attention, Convolution, Sage, net, ring
from networks import mistakes, mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, InvalidInput, LocalitySet, Near, UnsupportedModel
from nnrepair.domains.graphs.nodes import NodeEdits, Nodes
from nnrepair.methods import GRACE
from nnrepair.wrappers import Codebook


def wide(seed: int = 0) -> nn.Module:
    return mlp(6, 64, 64, 4, seed=seed).eval()


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.more = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.more(torch.relu(self.norm(self.conv(x))))).mean((2, 3)))
        return y


# Exact outside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["0", "2", "4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_outside_of_all_balls_the_output_is_the_bases_bit_for_bit(layer: str, dtype: torch.dtype, count: int) -> None:
    """Also where others of the same batch are inside: whatever a batch's size does to rounding."""
    base = wide().to(dtype)
    x = randn(3, 6, seed=5).to(dtype)
    result = nnrepair.fix(base, (x, mistakes(base, x)), method=GRACE(layer=layer, radius=0.05, steps=1000))
    book = result.model
    assert result.outcome.ok and isinstance(book, Codebook) and book.layer == layer
    points = randn(count, 6, seed=6).to(dtype)
    for batch, mixed in ((points, False), (torch.cat([x, points]), True), (torch.cat([points, x]), True)):
        with torch.no_grad():
            y, before = book(batch), base(batch)
            _, inside = book.nearest(keys_of(book, batch))
        assert bool(inside.any()) == mixed and torch.equal(y[~inside], before[~inside])
        assert int((~inside).sum()) > count // 2 or count == 1
        if mixed:
            assert torch.equal(y[inside].argmax(1), result.asked.edits.criterion.labels)


def keys_of(book: Codebook, x: Tensor) -> Tensor:
    h = x
    for name, module in book.base.named_children():
        if name == book.layer:
            return h
        h = module(h)
    raise AssertionError


@pytest.mark.parametrize("kind", [Convolution, Sage, Attention])
def test_outside_is_exact_where_later_layers_mix_points(kind: Any) -> None:
    """A hidden layer of a graph network: neighbours of an edited node that lie outside keep their outputs."""
    data, base = ring(), net(kind)
    with torch.no_grad():
        before = base(data.x, data.edge_index)
    nodes = torch.tensor([0, 3])
    edits = Edits(Nodes(data.x, data.edge_index, nodes), before.topk(2, 1).indices[nodes, 1])
    for layer in ("first", "last"):
        result = nnrepair.fix(base, edits, method=GRACE(layer=layer, radius=1e-3, steps=2000, lr=0.3), throw=False)
        after = result.model(data.x, data.edge_index)
        rest = torch.ones(len(data.x), dtype=torch.bool).index_fill_(0, nodes, False)
        assert torch.equal(after[rest], before[rest])
        held = after[nodes].argmax(1) == edits.criterion.labels
        assert bool(held.all() if layer == "last" else held.any())


class Counted(nn.Module):
    """A layer, what follows it, and how often the network has run."""

    def __init__(self, after: Any) -> None:
        super().__init__()
        self.layer, self.after, self.runs = nn.Linear(2, 2), after, 0
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(2))
            self.layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y: Tensor = self.after(self.layer(x))
        return y


@pytest.mark.parametrize(
    ("after", "runs", "edited"),
    [
        (lambda y: y, 1, [5.0, 6.0]),
        (lambda y: y + 1, 2, [6.0, 7.0]),
        (lambda y: y.add_(1), 2, [6.0, 7.0]),  # the same tensor, but written to
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_base_runs_twice_only_where_something_follows_the_layer(
    after: Any, runs: int, edited: list[float], mode: Any
) -> None:
    base = Counted(after)
    book = Codebook(base, "layer", torch.zeros(1, 2), torch.tensor([[5.0, 6.0]]), torch.tensor([0.5]))
    x = torch.tensor([[0.0, 0.1], [3.0, 4.0]])
    with mode():
        before = base(x)
        base.runs = 0
        y = book(x)
        assert base.runs == (2 if mode is torch.inference_mode else runs)  # nobody counts writing there
        assert y[0].tolist() == edited and torch.equal(y[1], before[1])
        base.runs = 0
        assert torch.equal(book(x[1:]), before[1:]) and base.runs == 1


# Every edit holds ------------------------------------------------------------------------------------------------


def contradicting(pairs: int, size: float) -> tuple[nn.Module, Edits]:
    """Return pairs of points that are near each other, with two labels, neither of which is the network's."""
    base, x = wide(), randn(pairs, 6, seed=1)
    twin = x + size * randn(pairs, 6, seed=2)
    with torch.no_grad():
        order = base(x).argsort(1)
        assert torch.equal(base(x).argmax(1), base(twin).argmax(1))
    points, labels = torch.stack([x, twin], 1).flatten(0, 1), order[:, :2].flatten()
    return base, Edits(points, labels)


@pytest.mark.parametrize("rehearsal", [True, False])
def test_near_keys_with_other_labels_all_hold_at_the_end(rehearsal: bool) -> None:
    base, edits = contradicting(50, 1e-3)
    history = nnrepair.fix(base, edits, method=GRACE(), mode="successive", rehearsal=rehearsal)
    assert history.success_rate == history.success_retain_rate == 1.0
    book = history.model
    assert isinstance(book, Codebook) and len(book) == 100
    apart = torch.cdist(book.keys.double(), book.keys.double(), compute_mode="donot_use_mm_for_euclid_dist")
    other = (book.values.detach()[:, None] != book.values.detach()).any(2)
    both = book.radii[:, None].double() + book.radii.double()
    assert bool((both <= apart * (1 + 1e-6))[other].all())  # balls of different values do not meet


def test_all_at_once() -> None:
    base, edits = contradicting(50, 1e-3)
    assert nnrepair.fix(base, edits, method=GRACE()).report.success_rate == 1.0


def test_a_point_asked_for_another_label_takes_the_place_of_its_key() -> None:
    model, x = wide(), randn(10, 6, seed=1)
    with torch.no_grad():
        order = model(x).argsort(1)
    network = model
    for label in (order[:, 0], order[:, 1], order[:, 2], order[:, 0]):
        network = nnrepair.fix(network, (x, label), method=GRACE()).model
        assert isinstance(network, Codebook) and isinstance(network.base, nn.Sequential) and len(network) == 10
        assert torch.equal(network(x).argmax(1), label)


def test_the_same_key_with_two_labels_is_told() -> None:
    base = wide()
    with torch.no_grad():
        base[0].weight[:, 0] = 0  # the first feature is unseen
        x = randn(1, 6).repeat(2, 1)
        x[1, 0] += 1
        order = base(x).argsort(1)[0]
    result = nnrepair.fix(base, (x, order[:2]), method=GRACE(), throw=False)
    assert result.report.success_rate == 0.5 and "another layer, where the edits' keys differ" in str(result.outcome)
    assert nnrepair.fix(base, (x, order[:2]), method=GRACE(layer="0", steps=2000)).report.success_rate == 1.0


@pytest.mark.parametrize(("rehearsal", "retained"), [(None, 1.0), (False, 2 / 3)])
def test_an_edit_that_a_later_ball_would_cover_gets_its_key(rehearsal: bool | None, retained: float) -> None:
    """Two points of one ball with one label need one value, and a third between them with another leaves both.

    The second holds when its turn comes, and gets no key: unless a later step is asked for it too, the third takes it.
    """
    base, x = wide(), randn(1, 6)
    step = 1e-2 * randn(1, 6, seed=4)
    points = torch.cat([x, x + step, x + step / 2])
    with torch.no_grad():
        order = base(x).argsort(1)[0]
    asked, method = (points, order[[0, 0, 1]]), GRACE(radius=10.0)
    history = nnrepair.fix(base, asked, method=method, mode="successive", rehearsal=rehearsal, throw=False)
    assert history.success_rate == 1.0 and history.success_retain_rate == pytest.approx(retained)


# What is covered -------------------------------------------------------------------------------------------------


def test_points_to_keep_lie_outside_of_balls_that_would_break_them() -> None:
    base, x, kept = wide(), randn(4, 6, seed=1), randn(500, 6, seed=2)
    result = nnrepair.fix(base, (x, mistakes(base, x)), kept, method=GRACE(radius=100.0))
    assert result.report.locality == 1.0 and result.report.success_rate == 1.0
    with torch.no_grad():
        assert torch.equal(result.model(kept).argmax(1), base(kept).argmax(1))
    alone = nnrepair.fix(base, (x, mistakes(base, x)), test_set=kept, method=GRACE(radius=100.0))
    assert alone.report.tests["test set"].locality < 1.0


def test_neighbours_follow() -> None:
    base, x = wide(), randn(4, 6, seed=1)
    labels = mistakes(base, x)
    near = x.repeat(20, 1) + 1e-3 * randn(80, 6, seed=3)
    result = nnrepair.fix(base, (x, labels), method=GRACE(), edit_scope=(near, labels.repeat(20)))
    assert result.report.generalization_rate == 1.0


def test_one_value_serves_edits_of_one_label_nearby() -> None:
    base, x = wide(), randn(1, 6) + 1e-3 * randn(8, 6, seed=3)
    labels = mistakes(base, x)
    assert len(labels.unique()) == 1
    for mode in ({}, {"mode": "successive"}):
        last = nnrepair.fix(base, (x, labels), method=GRACE(radius=0.5), **mode).model  # type: ignore[call-overload]
        assert len(last.values.detach().unique(dim=0)) == 1


def test_other_criteria() -> None:
    base, x = mlp(4, 16, 2).eval(), randn(5, 4)
    with torch.no_grad():
        wanted = base(x) + 1
    assert nnrepair.fix(base, Edits(x, Near(wanted, 0.01)), randn(50, 4, seed=3), method=GRACE()).outcome.ok


@pytest.mark.parametrize("layer", ["auto", "conv", "more", "head"])
def test_images(layer: str) -> None:
    base, x = seeded(Image).eval(), randn(3, 1, 8, 8)
    kept = randn(30, 1, 8, 8, seed=2)
    result = nnrepair.fix(base, (x, mistakes(base, x)), kept, method=GRACE(layer=layer, steps=1000, lr=0.3))
    book = result.model
    assert isinstance(book, Codebook) and book.layer == {"auto": "head"}.get(layer, layer)
    assert book.keys.shape[1] == {"conv": 1, "more": 4}.get(layer, 6)
    assert result.report.success_rate == 1.0 and result.report.locality == 1.0


def test_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.relu(self.body(x)).mean(1))
            return y

    base, x = seeded(Tokens).eval(), randn(3, 5, 4)
    result = nnrepair.fix(base, (x, mistakes(base, x)), method=GRACE(layer="body", steps=1000))
    assert result.model.keys.shape == (3, 4) and result.model.values.shape == (3, 5, 16)


@pytest.mark.parametrize("kind", [Convolution, Attention])
def test_graphs_one_after_another(kind: Any) -> None:
    data, base = ring(), net(kind)
    with torch.no_grad():
        wrong = (base(data.x, data.edge_index).argmax(1) != data.y).nonzero()[:5, 0]
    history = nnrepair.fix(base, NodeEdits(data, wrong), method=GRACE(), mode="successive")
    assert history.success_retain_rate == 1.0 and history.model.layer == "last"


# The door --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layer": 3}, "layer must be the name"),
        ({"radius": 0.0}, "radius must be a finite number > 0"),
        ({"radius": float("nan")}, "radius must be a finite number > 0"),
        ({"radius": "big"}, "radius must be a finite number > 0, or None, got 'big'"),
        ({"steps": -1}, "steps must be an integer"),
        ({"lr": 0.0}, "lr must be"),
        ({"margin": -1.0}, "margin must be"),
    ],
)
def test_hyper_parameters_that_cannot_be(given: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        GRACE(**given)


def test_layers_that_cannot_be() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head, self.spare = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.layer(torch.relu(self.layer(x))))
            return y

    model, x = seeded(Twice).eval(), randn(2, 4)
    for layer, error, words in (
        ("haed", InvalidInput, "Did you mean 'head'"),
        ("layer", UnsupportedModel, "runs 2 times in one pass"),
        ("spare", UnsupportedModel, "runs 0 times"),
    ):
        with pytest.raises(error, match=words):
            nnrepair.fix(model, (x, mistakes(model, x)), method=GRACE(layer=layer))
    segments = nnrepair.Segments(x[:1], x[1:])
    with pytest.raises(InvalidInput, match="GRACE repairs points"):
        nnrepair.fix(model, Edits(segments, [0]), method=GRACE())


def test_a_network_has_one_codebook() -> None:
    base, x, more = wide(), randn(3, 6, seed=1), randn(3, 6, seed=2)
    first = nnrepair.fix(base, (x, mistakes(base, x)), method=GRACE(layer="2", steps=1000)).model
    kept = LocalitySet(x, first(x).argmax(1))
    for layer in ("auto", "2"):
        again = nnrepair.fix(first, (more, mistakes(first, more)), kept, method=GRACE(layer=layer, steps=1000))
        assert again.report.locality == 1.0 and again.model.layer == "2" and len(again.model) == 6
    with pytest.raises(InvalidInput, match="has a codebook at layer '2' already"):
        nnrepair.fix(first, (more, mistakes(first, more)), method=GRACE(layer="4"))


def test_a_codebook_says_what_it_needs() -> None:
    base = wide()
    with pytest.raises(InvalidInput, match=r"keys \(k, features\), values \(k, ...\) and radii \(k,\), got"):
        Codebook(base, "4", torch.zeros(2, 64), torch.zeros(3, 4), torch.zeros(2))
    book = Codebook(copy.deepcopy(base), "4", torch.zeros(1, 64), torch.zeros(1, 5), torch.tensor([1e9]))
    with pytest.raises(InvalidInput, match=r"values are \(5,\), and layer '4' returns \(4,\)"):
        book(randn(2, 6))
