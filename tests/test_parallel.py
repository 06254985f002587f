"""Units beside a layer: one for each mistake (T-Patcher), or many for all (CaliNet)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Convolution, net, ring
from networks import clusters, mistakes, mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import InvalidInput, LocalitySet, UnsupportedModel
from nnrepair.domains.graphs.nodes import NodeEdits, NodeLocality
from nnrepair.methods import CaliNet, TPatcher
from nnrepair.methods.t_patcher import silenced
from nnrepair.wrappers import Parallel
from nnrepair.wrappers.parallel import Queries


@pytest.mark.parametrize("seed", range(4))
def test_a_unit_is_one_at_its_query_and_silent_at_others(seed: int) -> None:
    query, others = randn(12, seed=seed), randn(40, 12, seed=seed + 10) + 1.0
    key, silent = silenced(query, [others[:30], others[30:]], 0.5)
    assert silent
    activity = (others - query) @ key + 1
    assert activity.max() == pytest.approx(-0.5, abs=1e-3)
    assert key.norm() < 50 / float((others - query).norm(dim=1).min())  # no steeper than it must be


def test_a_point_among_others_is_heard_by_some() -> None:
    others = randn(200, 2)
    key, silent = silenced(others.mean(0), [others], 0.5)
    assert not silent and bool(torch.isfinite(key).all())
    key, silent = silenced(others[0], [others[:0]], 0.5)
    assert silent and key @ others[0] == pytest.approx(1.0)
    assert not silenced(others[0], [others[:1]], 0.5)[1]


def test_fifty_mistakes_one_after_another_are_retained() -> None:
    model = mlp(20, 60, 5, seed=1)
    x, kept = randn(50, 20, seed=2), clusters(300, 20, seed=3, centers=20)
    labels = mistakes(model, x)
    history = nnrepair.fix(model, (x, labels), kept, method=TPatcher(), mode="successive")
    assert history.success_rate == 1.0 and history.success_retain_rate == 1.0
    network = history.model
    assert isinstance(network, Parallel) and len(network) <= 50
    with torch.no_grad():
        assert torch.equal(network(kept), model(kept))  # nobody of the locality set hears any unit


def test_an_edit_that_holds_gets_no_unit() -> None:
    model, x = mlp(6, 10, 3), randn(4, 6)
    labels = torch.where(torch.arange(4) < 2, model(x).argmax(1), mistakes(model, x))
    result = nnrepair.fix(model, (x, labels), randn(20, 6, seed=4), method=TPatcher())
    assert result.stats["units"] == 2 and len(result.model) == 2


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("method", [TPatcher("conv"), CaliNet("conv", lr=0.03)])
def test_convolutions_hear_the_mean_over_positions(method: Any) -> None:
    model = seeded(Vision).eval()
    x, kept = 2 * randn(2, 2, 1, 1) + 0.3 * randn(2, 2, 5, 5), 2 * randn(30, 2, 1, 1, seed=5) + torch.ones(30, 2, 5, 5)
    result = nnrepair.fix(model, (x, mistakes(model, x)), kept, method=method, throw=False)
    assert result.report.success_rate == 1.0
    assert Queries(model, "conv")(x).shape == (2, 2)


@pytest.mark.parametrize("method", [TPatcher("last"), CaliNet("last")])
def test_graphs(method: Any) -> None:
    graph, model = ring(), net(Convolution)
    y = model(graph.x, graph.edge_index)
    wrong = torch.tensor([1, 6])
    edits = NodeEdits(graph, wrong, y[wrong].argsort(1)[:, 1])
    result = nnrepair.fix(model, edits, NodeLocality(graph, torch.tensor([3, 9, 10])), method=method, throw=False)
    assert result.report.success_rate == 1.0


def test_calinet_trains_what_is_there_further_and_begins_at_nothing() -> None:
    model, x, kept = mlp(6, 10, 3), randn(4, 6), clusters(40, 6, seed=4)
    labels = mistakes(model, x)
    first = nnrepair.fix(model, (x[:2], labels[:2]), kept, method=CaliNet(units=16))
    again = nnrepair.fix(first.model, (x, labels), kept, method=CaliNet(units=16))
    assert len(first.model) == len(again.model) == 16
    alone = nnrepair.fix(model, (x, labels), method="calinet")
    assert "no locality set" in str(alone) and alone.outcome.ok


@pytest.mark.parametrize("kind", [TPatcher, CaliNet])
def test_layers_and_options_that_cannot_be(kind: Any) -> None:
    model, x = mlp(6, 10, 3), randn(1, 6)
    asked = (x, mistakes(model, x))
    with pytest.raises(InvalidInput, match="Layer 'fc' not found"):
        nnrepair.fix(model, asked, method=kind("fc"))
    first = nnrepair.fix(model, asked, randn(20, 6, seed=3), method=kind("2")).model
    with pytest.raises(InvalidInput, match="has units beside layer '2' already"):
        nnrepair.fix(first, (x, model(x).argmax(1)), method=kind("0"))
    with pytest.raises(InvalidInput, match="layer must be the name of a module, got 3"):
        kind(3)
    with pytest.raises(InvalidInput, match="steps must be an integer"):
        kind(steps=-1)
    tokens = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).eval()
    ids = torch.tensor([[1, 2]])
    with pytest.raises(UnsupportedModel, match="does not take and return one row"):
        nnrepair.fix(tokens, (ids, mistakes(tokens, ids)), method=kind("0"))


def test_further_options_that_cannot_be() -> None:
    for options, message in (({"silence": -1}, "silence must be"), ({"most": 0}, "most must be an integer >= 1")):
        with pytest.raises(InvalidInput, match=message):
            TPatcher(**options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="units must be an integer >= 1, got 0"):
        CaliNet(units=0)


def test_without_a_locality_set_it_is_said() -> None:
    model, x = mlp(6, 10, 3), randn(2, 6)
    result = nnrepair.fix(model, (x, mistakes(model, x)), method=TPatcher())
    assert result.outcome.ok and "silent at other edits alone" in str(result)
    kept = LocalitySet(randn(500, 6, seed=9))
    crowded = nnrepair.fix(model, (x, mistakes(model, x)), kept, method=TPatcher("0"), throw=False)
    assert crowded.stats["heard"] and "active at points that should not hear them" in str(crowded)
