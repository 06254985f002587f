"""SERAC: bit for bit the base outside of learned scopes; edits are never forgotten, however many."""

from __future__ import annotations

import pytest
import torch
from graphs import Convolution, net, ring
from networks import mistakes, mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet, UnsupportedModel
from nnrepair.domains.graphs.nodes import NodeEdits, NodeLocality
from nnrepair.methods import SERAC, Editor, Episode, RandomLabels
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.problem import pose
from nnrepair.wrappers import Scoped


def near(x: Tensor, copies: int, seed: int) -> Tensor:
    return (x[:, None] + 0.1 * randn(len(x), copies, x.shape[1], seed=seed)).flatten(0, 1)


def exercise(model: nn.Module, seed: int) -> Episode:
    x = randn(3, 8, seed=seed)
    labels = mistakes(model, x)
    scope = EditScope(near(x, 4, seed + 1), labels.repeat_interleave(4), torch.arange(3).repeat_interleave(4))
    return Episode(Edits(x, labels), LocalitySet(randn(60, 8, seed=seed + 2)), scope)


@pytest.fixture(scope="module")
def prepared() -> tuple[nn.Module, Editor]:
    model = mlp(8, 40, 30, 4, seed=1)
    return model, SERAC("0").prepare(model, [exercise(model, 10 * k) for k in range(100)], steps=300)


def test_neighbours_follow_and_all_others_stay_bit_for_bit(prepared: tuple[nn.Module, Editor]) -> None:
    model, editor = prepared
    x, others = randn(20, 8, seed=5001), randn(1000, 8, seed=5002)
    labels = mistakes(model, x)
    scope = EditScope(near(x, 5, 5003), labels.repeat_interleave(5), torch.arange(20).repeat_interleave(5))
    result = nnrepair.fix(model, (x, labels), method=editor, edit_scope=scope)
    assert result.outcome.ok and result.report.generalization_rate is not None
    assert result.report.generalization_rate > 0.9
    with torch.no_grad():
        same = (result.model(others) == model(others)).all(1)
        assert same.double().mean() > 0.98
        network = result.model
        assert isinstance(network, Scoped)
        apart = torch.cdist(others @ network.projection.T, network.keys).amin(1)
        outside = network.sharpness * apart.square() > 0.6932
        assert torch.equal(network(others[outside]), model(others[outside])) and bool(outside.any())


def test_a_hundred_edits_one_after_another_are_retained(prepared: tuple[nn.Module, Editor]) -> None:
    model, editor = prepared
    x = randn(100, 8, seed=6001)
    history = nnrepair.fix(model, (x, mistakes(model, x)), method=editor, mode="successive", rehearsal=False)
    assert history.success_rate == 1.0 and history.success_retain_rate == 1.0
    assert isinstance(history.model, Scoped) and len(history.model) <= 100


def test_a_later_edit_takes_the_place_of_one_that_it_contradicts(prepared: tuple[nn.Module, Editor]) -> None:
    model, editor = prepared
    x = randn(1, 8, seed=7001)
    order = model(x).argsort(1, descending=True)[0]
    network: nn.Module = model
    for label in order[1:3]:
        network = editor.method.edit(editor.restored(network), pose(network, Edits(x, label[None]))).model
        assert isinstance(network, Scoped) and len(network) == 1
        assert network(x).argmax() == label
    assert isinstance(network, Scoped) and torch.equal(network.without([0])(x), model(x))


def test_answers_are_near_what_the_network_said(prepared: tuple[nn.Module, Editor]) -> None:
    model, editor = prepared
    x = randn(2, 8, seed=8001)
    result = nnrepair.fix(model, (x, mistakes(model, x)), method=editor)
    moved = (result.model(x) - model(x)).detach()
    assert torch.allclose(moved.sum(1), torch.zeros(2), atol=1e-5)  # one score rises as much as another falls
    assert int((moved.abs() > 1e-6).sum()) == 4


def test_graphs() -> None:
    graph, model = ring(), net(Convolution)
    y = model(graph.x, graph.edge_index)
    wrong = torch.tensor([1, 6])
    edits = NodeEdits(graph, wrong, y[wrong].argsort(1)[:, 1])
    kept = NodeLocality(graph, torch.tensor([3, 9, 10]))
    inputs: AnyInputs = kept.inputs
    with pytest.raises(InvalidInput, match="does not say how many numbers it takes"):
        SERAC("last").prepare(model, [Episode(edits, LocalitySet(inputs))], steps=1)
    editor = SERAC("last.lin").prepare(model, [Episode(edits, LocalitySet(inputs))], steps=5)
    assert nnrepair.fix(model, edits, kept, method=editor).outcome.ok


def test_options_that_cannot_be() -> None:
    with pytest.raises(InvalidInput, match="features must be an integer >= 1"):
        SERAC(features=0)
    with pytest.raises(InvalidInput, match="lr must be a finite number"):
        SERAC(lr=0)
    model, x = mlp(4, 5, 3), randn(20, 4)
    with pytest.raises(InvalidInput, match="Layer 'fc' not found"):
        SERAC("fc").prepare(model, RandomLabels(x, model(x).argmax(1), edits=1, locality=5), steps=1)


def test_answers_to_parts_of_what_a_network_returns_are_refused() -> None:
    model = mlp(4, 5, 3)
    scoped = Scoped(model, "0", torch.eye(2, 4), torch.tensor(1.0), torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(UnsupportedModel, match=r"returns \(3,\) for a point, and its answers are \(2,\)"):
        scoped(randn(6, 4))
