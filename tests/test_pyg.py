"""Graphs and nodes as PyTorch Geometric holds them, for models that take them in any way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, InvalidInput, LocalitySet
from nnrepair.domains.graphs import NodeEdits, NodeLocality
from nnrepair.methods import FineTune, MinimalNorm
from nnrepair.spec.hops import hops
from nnrepair.spec.pyg import Graphs

pyg = pytest.importorskip("torch_geometric.data", reason="it comes with the extra [graph]")
from torch_geometric.loader import DataLoader  # noqa: E402
from torch_geometric.nn import GCNConv, HeteroConv, SAGEConv, global_mean_pool  # noqa: E402

LAST = MinimalNorm(layer="head")


def graph(seed: int, label: Any = "seed") -> Any:
    draw = torch.Generator().manual_seed(seed)
    nodes = 5 + seed % 4
    y = torch.tensor([seed % 3]) if label == "seed" else label
    edges = torch.randint(nodes, (2, 12), generator=draw)
    return pyg.Data(
        x=torch.randn(nodes, 4, generator=draw), edge_index=edges, y=y, weight=torch.rand(12, generator=draw)
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = GCNConv(4, 16), nn.Linear(16, 3)

    def run(self, x: Tensor, edge_index: Tensor, weight: Tensor | None, batch: Tensor | None) -> Tensor:
        h = torch.relu(self.conv(x, edge_index, weight))
        return self.head(h if batch is None else global_mean_pool(h, batch))


class ByName(Net):
    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor | None = None, batch: Tensor | None = None) -> Any:
        return self.run(x, edge_index, weight, batch)


class ByGraph(Net):
    def forward(self, data: Any) -> Any:
        assert data.y is None  # labels never reach a model
        return {"logits": self.run(data.x, data.edge_index, data.weight, data.batch)}


class NamedBatch(Net):
    def forward(self, batch: Any) -> Tensor:
        return self.run(batch.x, batch.edge_index, batch.weight, batch.batch)


GRAPHS = [graph(k) for k in range(24)]
FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "a list": lambda graphs: graphs,
    "a batch": lambda graphs: pyg.Batch.from_data_list(graphs),
    "a loader": lambda graphs: DataLoader(graphs, batch_size=5, shuffle=True),
}


def answers(model: nn.Module, graphs: list[Any]) -> Tensor:
    batch = pyg.Batch.from_data_list(graphs)
    with torch.no_grad():
        return model.run(batch.x, batch.edge_index, batch.weight, batch.batch)  # type: ignore[operator]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [ByName, ByGraph, NamedBatch])
def test_whole_graphs_are_repaired_however_they_are_given(kind: type[Net], form: str) -> None:
    model, graphs = seeded(kind).eval(), copy.deepcopy(GRAPHS)
    wrong = answers(model, graphs[:2]).argsort(1)[:, 1]
    for one, label in zip(graphs, wrong.tolist(), strict=False):
        one.y = torch.tensor([label])
    before = [(g.x.clone(), g.y.clone()) for g in graphs]
    given = FORMS[form]
    result = nnrepair.fix(model, Edits(given(graphs[:2])), given(graphs[4:]), method=LAST)
    assert torch.equal(answers(result.model, graphs[:2]).argmax(1), wrong)
    y, labels = answers(model, graphs[4:]).argmax(1), torch.cat([g.y for g in graphs[4:]])
    right = y == labels
    assert torch.equal(answers(result.model, graphs[4:]).argmax(1)[right], y[right])
    assert (
        result.report.side_effects is not None and result.report.side_effects.accuracy_before == right.double().mean()
    )
    assert all(torch.equal(g.x, x) and torch.equal(g.y, y) for g, (x, y) in zip(graphs, before, strict=True))


@pytest.mark.parametrize("method", [MinimalNorm(layer="conv"), FineTune(lr=0.05, rehearsal=4)])
def test_hidden_layers_and_fine_tuning_on_graphs(method: Any) -> None:
    model = seeded(ByName).eval()
    wrong = answers(model, GRAPHS[:2]).argsort(1)[:, 1]
    result = nnrepair.fix(model, (GRAPHS[:2], wrong), LocalitySet(GRAPHS[4:], labels=False), method=method)
    assert result.outcome.ok


@pytest.mark.parametrize("kind", [ByName, ByGraph])
def test_nodes_of_a_graph_with_all_that_a_model_takes(kind: type[Net]) -> None:
    data, model = graph(20, torch.arange(5) % 3), seeded(kind).eval()
    y = model.run(data.x, data.edge_index, data.weight, None).detach()
    edits = NodeEdits(data, [0, 1], y.argsort(1)[:2, 1])
    kept = NodeLocality(data, torch.arange(5) > 2, None)
    assert torch.equal(edits.inputs.hops(kept.inputs, 2), hops(data.edge_index, 5, torch.tensor([0, 1]), 2)[3:])
    result = nnrepair.fix(model, edits, kept, method=LAST)
    new = result.model.run(data.x, data.edge_index, data.weight, None)
    assert torch.equal(new[:2].argmax(1), y.argsort(1)[:2, 1]) and torch.equal(new[3:].argmax(1), y[3:].argmax(1))


class Hetero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kinds = {("author", "writes", "paper"): SAGEConv((5, 4), 16), ("paper", "has", "author"): SAGEConv((4, 5), 16)}
        self.conv, self.head = HeteroConv(kinds), nn.Linear(16, 3)

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Any:
        found = self.conv(x_dict, edge_index_dict)
        return {kind: self.head(torch.relu(h)) for kind, h in found.items()}


def papers() -> Any:
    data, draw = pyg.HeteroData(), torch.Generator().manual_seed(0)
    data["paper"].x, data["author"].x = randn(20, 4), randn(9, 5, seed=1)
    data["paper"].y = torch.randint(3, (20,), generator=draw)
    edges = torch.stack([torch.randint(9, (40,), generator=draw), torch.randint(20, (40,), generator=draw)])
    data["author", "writes", "paper"].edge_index, data["paper", "has", "author"].edge_index = edges, edges.flip(0)
    return data


def test_nodes_of_one_type() -> None:
    data, model = papers(), seeded(Hetero).eval()
    y = model(data.x_dict, data.edge_index_dict)["paper"].detach()
    edits = NodeEdits(data, [1, 2], y.argsort(1)[1:3, 1], node_type="paper")
    kept = NodeLocality(data, torch.arange(20) > 4, node_type="paper")
    result = nnrepair.fix(model, edits, kept, method=LAST)
    assert result.outcome.ok and result.report.locality_points == 15
    new = result.model(data.x_dict, data.edge_index_dict)["paper"]
    assert torch.equal(new[1:3].argmax(1), y.argsort(1)[1:3, 1])


class Sampling(DataLoader):
    """As NeighborLoader, which needs another package."""

    node_sampler = None


def test_mistakes_are_told_with_what_to_do() -> None:
    model, data = seeded(ByName).eval(), papers()
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: NodeEdits(data, [0], [1]), "no node_type: name one.*paper, author"),
        (lambda: NodeEdits(data, [0], [1], node_type="papers"), "Did you mean 'paper'"),
        (lambda: NodeEdits(data, [99], [1], node_type="paper"), "Nodes .99. are outside the graph"),
        (lambda: NodeLocality(GRAPHS[0], [0], node_type="paper"), "Types: one"),
        (lambda: Edits(GRAPHS[0], [1]), "one graph is many points.*NodeEdits"),
        (lambda: Edits([GRAPHS[0], data], [1, 1]), "of one kind, got Data and HeteroData"),
        (lambda: Edits([graph(1, torch.arange(6))]), r"with one label y \(1, ...\); graph 0 has y of shape \(6,\)"),
        (lambda: LocalitySet([graph(1, torch.tensor([0.5]))]), "numbers.*Near|floating|integers"),
        (lambda: LocalitySet(Sampling(GRAPHS)), "Sampling draws other neighbours"),
        (lambda: nnrepair.fix(model, ([pyg.Data(x=randn(3, 4))], [1])), "the graph has no edge_index; it has .*x"),
    ]
    bad = graph(3)
    bad.x[0, 0] = torch.nan
    cases.append((lambda: Edits([bad]), "graph 0 has NaN or infinity in 'x'"))
    for make, message in cases:
        with pytest.raises(InvalidInput, match=message):
            make()


def test_equal_graphs_are_one_point() -> None:
    same = Graphs.of([graph(1), graph(1), graph(2)], "graphs")[0].same()
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    with pytest.raises(InvalidInput, match="Equal inputs are given different labels"):
        nnrepair.fix(seeded(ByName).eval(), ([graph(1), graph(1)], [0, 1]))
