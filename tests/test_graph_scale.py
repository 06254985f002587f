"""Graphs at scale: against PyTorch Geometric's own forward pass, plain loops, and repairs on the whole graph."""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import randn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import nnrepair
from benchmarks.graph.reddit import reddit_like, statistics
from nnrepair import DataUnavailable, InvalidInput, UnsupportedModel
from nnrepair.domains.graphs.cached import CachedNetwork, CachedNodes, cached
from nnrepair.domains.graphs.data import reddit
from nnrepair.domains.graphs.graph import Graph, NodeEdits, NodeLocality, Nodes, induced
from nnrepair.domains.graphs.large import Csr, LargeGraph
from nnrepair.domains.graphs.layerwise import evaluate
from nnrepair.jacobian import keys
from nnrepair.jacobian.head import AffineHead
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods import FineTune, MinimalNorm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pyg = pytest.importorskip("torch_geometric.nn")


def messy(nodes: int = 40, edges: int = 300, features: int = 6, classes: int = 4, seed: int = 0) -> Graph:
    """A directed graph with parallel edges, self loops, one of them twice, and nodes that nothing points to."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(nodes, (edges,), generator=generator)
    target = torch.randint(3, nodes, (edges,), generator=generator)  # nothing points to 0, 1 and 2
    extra = torch.tensor([[5, 5, 7, 8, 8, 8], [5, 5, 7, 9, 9, 9]])
    edge_index = torch.cat([torch.stack([source, target]), extra], 1)
    return Graph(randn(nodes, features, seed=seed), edge_index, torch.arange(nodes) % classes)


def net(kind: str, graph: Graph, hidden: int = 5, layers: int = 2, seed: int = 0, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = getattr(pyg, kind)(graph.num_features, hidden, layers, graph.num_classes, **options)
        for name, value in model.named_buffers():  # a normalisation that has seen something
            if name.endswith(("running_mean", "running_var")):
                value.copy_(torch.rand(value.shape) + 0.5)
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(p)
    return model.eval()


@torch.no_grad()
def own_forward(model: nn.Module, graph: Any) -> Tensor:
    y: Tensor = model(graph.x, graph.edge_index)
    return y


BOTH = pytest.mark.parametrize("kind", ["GCN", "GraphSAGE"])


def close(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=1e-4 if a.dtype == torch.float32 else 1e-10, atol=1e-5)


# --- edges grouped by target ---


def test_edges_are_grouped_by_target() -> None:
    graph = messy()
    csr = Csr.of(graph.edge_index, 40)
    dense = torch.zeros(40, 40).index_put_((graph.edge_index[1], graph.edge_index[0]), torch.tensor(1.0), True)
    again = torch.zeros(40, 40).index_put_((csr.edge_index()[1], csr.edge_index()[0]), torch.tensor(1.0), True)
    assert torch.equal(dense, again)
    assert torch.equal(csr.degrees, dense.sum(1).long()) and torch.equal(csr.loops, dense.diag().long())
    h = randn(40, 3)
    close(csr.gather(h, slice(0, 40)), dense @ h)
    close(csr.gather(h, slice(1, 9), mean=True), (dense @ h / dense.sum(1, keepdim=True).clamp(min=1))[1:9])
    assert torch.equal(csr.gather(h, slice(0, 3)), torch.zeros(3, 3))
    assert csr.source.dtype == torch.int32 and len(csr) == graph.edge_index.shape[1]


def test_32_bit_edges_are_taken_too() -> None:
    graph = messy()
    assert torch.equal(Csr.of(graph.edge_index.int(), 40).source, Csr.of(graph.edge_index, 40).source)


def test_groups_cover_every_edge_once_and_stay_small() -> None:
    csr = Csr.of(messy().edge_index, 40)
    parts = list(csr.groups(most=20))
    assert [nodes.start for nodes, _ in parts[1:]] == [nodes.stop for nodes, _ in parts[:-1]]
    assert parts[0][0].start == 0 and parts[-1][0].stop == 40 and parts[-1][1].stop == len(csr)
    for nodes, edges in parts:
        assert edges.stop - edges.start <= 20 or nodes.stop - nodes.start == 1


def test_subgraphs_are_those_of_the_list_of_edges() -> None:
    graph, nodes = messy(), torch.tensor([9, 5, 30, 8, 7, 2])
    ours = LargeGraph.of(graph).induced(nodes)
    theirs = induced(graph.edge_index, nodes, 40)
    assert sorted(ours.edge_index.t().tolist()) == sorted(theirs.t().tolist())
    assert torch.equal(ours.x, graph.x[nodes]) and torch.equal(ours.y, graph.y[nodes])
    with pytest.raises(InvalidInput, match="different from each other"):
        LargeGraph.of(graph).induced([1, 1])


@pytest.mark.parametrize(
    ("edges", "nodes", "message"),
    [
        (torch.tensor([[0], [4]]), 4, "points to node 4, but the graph has nodes 0..3"),
        (torch.tensor([[-1], [0]]), 4, "points to node -1"),
        (torch.tensor([[0.0], [1.0]]), 4, "of int64, got torch.float32"),
        (torch.tensor([[0, 1]]), 4, r"must be \(2, edges\)"),
        (torch.eye(4).to_sparse(), 4, "adjacency cannot be used"),
        (torch.tensor([[0], [1]]), 0, "1 to 2147483647 nodes"),
    ],
)
def test_edges_that_cannot_be_used(edges: Tensor, nodes: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Csr.of(edges, nodes)


def test_arrays_that_are_no_groups() -> None:
    with pytest.raises(InvalidInput, match="pointer must ascend"):
        Csr(torch.tensor([0, 2, 1]), torch.tensor([0], dtype=torch.int32))
    with pytest.raises(InvalidInput, match="source must be a vector of torch.int32"):
        Csr(torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(InvalidInput, match="points to node 3"):
        Csr(torch.tensor([0, 1]), torch.tensor([3], dtype=torch.int32))


def test_features_that_cannot_be_used() -> None:
    graph = messy()
    csr = Csr.of(graph.edge_index, 40)
    x = graph.x.clone()
    x[7, 1] = torch.nan
    with pytest.raises(InvalidInput, match=r"NaN or infinity, at nodes \[7\]"):
        LargeGraph(x, csr, graph.y)
    with pytest.raises(InvalidInput, match="39 rows of features"):
        LargeGraph(x[:-1], csr, graph.y)
    with pytest.raises(InvalidInput, match=r"LargeGraph.of\(data\)"):
        LargeGraph(graph.x, graph.edge_index, graph.y)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"Labels y must be int64, one per node \(40,\)"):
        LargeGraph(graph.x, csr, graph.y.float())
    with pytest.raises(InvalidInput, match="Tensor lacks x, edge_index, y"):
        LargeGraph.of(graph.x)


def test_data_of_pytorch_geometric_is_taken() -> None:
    from torch_geometric.data import Data

    graph = messy()
    data = Data(x=graph.x, edge_index=graph.edge_index, y=graph.y[:, None])
    large = LargeGraph.of(data)
    assert torch.equal(large.y, graph.y) and large.train_mask is None and LargeGraph.of(large) is large


def test_no_edges_at_all() -> None:
    graph = Graph(randn(4, 6), torch.zeros(2, 0, dtype=torch.int64), torch.arange(4))
    for kind in ("GCN", "GraphSAGE"):
        close(evaluate(net(kind, graph), graph), own_forward(net(kind, graph), graph))


@BOTH
def test_a_neighbourhood_is_all_that_outputs_depend_on(kind: str) -> None:
    graph = messy(nodes=60, edges=90)
    model, nodes = net(kind, graph), torch.tensor([9, 5, 33])
    part = LargeGraph.of(graph).neighbourhood(nodes, hops=3 if kind == "GCN" else 2)
    assert torch.equal(part.nodes[part.index], nodes) and len(part.nodes) < 60
    assert len(part.nodes.unique()) == len(part.nodes)
    with torch.no_grad():
        y = Nodes(part.x, part.edge_index, part.index).call(model)
    close(y, own_forward(model, graph)[nodes])


@pytest.mark.parametrize("hops", [-1, 1.5, True])
def test_hops_are_counted(hops: Any) -> None:
    with pytest.raises(InvalidInput, match="hops must be a whole number >= 0"):
        LargeGraph.of(messy()).neighbourhood([0], hops=hops)


def test_all_layers_are_tuned_on_a_neighbourhood() -> None:
    graph = messy(nodes=80, edges=90)
    large = LargeGraph.of(graph)
    model = net("GraphSAGE", graph)
    nodes, labels = edits_of(model, graph, 2)
    kept = torch.tensor([n for n in range(60, 80) if n not in nodes.tolist()])
    part = large.neighbourhood(torch.cat([nodes, kept]), hops=2)
    assert len(part.nodes) < 80
    edits, locality = (Nodes(part.x, part.edge_index, index) for index in part.index.split([2, len(kept)]))
    result = nnrepair.fix(model, (edits, labels), locality, method=FineTune(lr=0.01))
    y = evaluate(result.model, large)
    assert torch.equal(y[nodes].argmax(1), labels)
    with torch.no_grad():
        close(y[kept], locality.call(result.model))


def test_a_neighbourhood_that_is_too_large() -> None:
    with pytest.raises(InvalidInput, match="more than most=50"):
        LargeGraph.of(messy()).neighbourhood([9, 10], hops=2, most=50)


# --- layer by layer ---

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("GCN", {}),
    ("GCN", {"hidden": 11, "layers": 3}),
    ("GCN", {"layers": 1}),
    ("GCN", {"normalize": False}),
    ("GCN", {"add_self_loops": False}),
    ("GCN", {"improved": True, "bias": False}),
    ("GCN", {"norm": "batch_norm", "act": "tanh"}),
    ("GCN", {"norm": "batch_norm", "act_first": True}),
    ("GraphSAGE", {}),
    ("GraphSAGE", {"hidden": 11, "layers": 3}),
    ("GraphSAGE", {"layers": 1}),
    ("GraphSAGE", {"aggr": "sum"}),
    ("GraphSAGE", {"root_weight": False, "bias": False}),
    ("GraphSAGE", {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}}),
    ("GraphSAGE", {"act": None, "dropout": 0.5}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=[f"{k}-{'-'.join(o) or 'plain'}" for k, o in OPTIONS])
def test_layer_by_layer_equals_the_networks_own_forward(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    graph = messy()
    model = net(kind, graph, **options).to(dtype)
    expected = own_forward(model, Graph(graph.x.to(dtype), graph.edge_index, graph.y))
    for block in (1, 7, 1000):
        close(evaluate(model, graph, block=block), expected)
    close(cached(model, graph, block=7).outputs(), expected)


@BOTH
def test_features_stay_as_they_are(kind: str) -> None:
    graph = LargeGraph.of(messy())
    before = graph.x.clone()
    evaluate(net(kind, messy(), hidden=9), graph)  # wider: messages come before the map
    cached(net(kind, messy(), layers=1), graph)
    assert torch.equal(graph.x, before)


@BOTH
def test_dropout_is_off_and_the_mode_stays(kind: str) -> None:
    graph = messy()
    model = net(kind, graph, dropout=0.5)
    expected = own_forward(model, graph)
    model.train()
    close(evaluate(model, graph), expected)
    assert model.training and model.dropout.training


class _Largest(TorchDispatchMode):
    """Remember the rows and the size of every floating tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.dtype.is_floating_point:
                self.shapes.add(tuple(tensor.shape))
        return out


@BOTH
@pytest.mark.parametrize("hidden", [4, 9])
def test_nothing_is_as_large_as_edges_times_hidden(kind: str, hidden: int) -> None:
    graph = LargeGraph.of(messy(nodes=50, edges=5000))
    model = net(kind, messy(), hidden=hidden)
    for work in (evaluate, cached):
        with _Largest() as seen:
            work(model, graph, block=8)
        rows = {shape[0] for shape in seen.shapes if len(shape) == 2}
        assert max(np.prod(shape) for shape in seen.shapes) <= 50 * 9
        states = {shape for shape in seen.shapes if len(shape) == 2 and shape[0] == 50}
        assert states <= {(50, 6), (50, hidden), (50, 4)} | {(50, 1)}
        assert all(count == 50 or count <= max(8, hidden) for count in rows)


def test_all_that_is_not_understood_is_listed_at_once() -> None:
    graph = messy()
    model = net("GraphSAGE", graph, jk="cat", norm="graph_norm", aggr="max", project=True, normalize=True)
    model.convs[1] = pyg.GATConv(5, 5)
    with pytest.raises(UnsupportedModel) as error:
        evaluate(model, graph)
    for part in ("jk='cat'", "norms.0: GraphNorm", "aggr='max'", "project=True", "normalize=True", "convs.1: GATConv"):
        assert part in str(error.value)
    assert "whole=True" in str(error.value)
    with pytest.raises(UnsupportedModel, match="aggr='max'"):
        cached(model, graph)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("GCN", {"cached": True}, "cached=True"),
        ("GCN", {"flow": "target_to_source"}, "flow='target_to_source'"),
        ("GCN", {"norm": "layer_norm"}, "LayerNorm.*looks at other nodes"),
        ("GCN", {"act": lambda h: h - h.mean(0)}, "act="),
        ("GCN", {"act": nn.Softmax2d()}, "act=Softmax2d"),
        ("GCN", {"act": nn.LogSoftmax(dim=0)}, "act=LogSoftmax"),
    ],
)
def test_options_that_are_not_understood(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        evaluate(net(kind, messy(), **options), messy())


def test_hooks_are_not_skipped_in_silence() -> None:
    model = net("GCN", messy())
    model.convs[0].register_forward_hook(lambda module, inputs, y: 2 * y)
    with pytest.raises(UnsupportedModel, match=r"convs\.0: forward hooks"):
        evaluate(model, messy())


def test_other_networks_run_on_the_whole_graph_when_asked() -> None:
    graph = messy()
    model = net("GAT", graph).train()
    with pytest.raises(UnsupportedModel, match="GATConv"):
        evaluate(model, graph)
    y = evaluate(model, graph, whole=True)
    assert model.training
    close(y, own_forward(model.eval(), graph))
    with pytest.raises(UnsupportedModel, match="Linear cannot be run layer by layer"):
        evaluate(nn.Linear(6, 2), graph)


def test_blocks_must_be_positive() -> None:
    with pytest.raises(InvalidInput, match="block must be a positive number"):
        evaluate(net("GCN", messy()), messy(), block=0)


# --- edits without the graph ---


@BOTH
def test_a_cached_network_is_the_model(kind: str) -> None:
    graph = messy()
    model = net(kind, graph)
    network, expected = cached(model, graph), own_forward(model, graph)
    close(network.outputs(), expected)
    close(network.logits, expected)
    nodes = torch.tensor([3, 0, 39, 3])
    close(network(nodes).detach(), expected[nodes])
    close(network(graph.x[nodes], nodes).detach(), expected[nodes])
    mine = {name: p for name, p in model.named_parameters() if name.startswith("convs.1.")}
    assert network.layer == "convs.1" and dict(network.named_parameters()).keys() == mine.keys()
    assert all(torch.equal(p, mine[name]) for name, p in network.named_parameters())
    assert len(network) == 40 and kind in repr(network)


def test_later_changes_of_the_model_do_not_show() -> None:
    graph = messy()
    model = net("GCN", graph)
    network = cached(model, graph)
    expected = network.outputs()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(network.outputs(), expected)
    close(evaluate(network.restore(), graph), expected)


@BOTH
def test_copies_share_the_keys(kind: str) -> None:
    network = cached(net(kind, messy()), messy())
    twin = copy.deepcopy(network).double()
    assert all(a is b for a, b in zip(twin.keys, network.keys, strict=True))
    assert twin(torch.tensor([1])).dtype == torch.float64
    assert network(torch.tensor([1])).dtype == torch.float32


def edits_of(model: nn.Module, graph: Graph, count: int = 1) -> tuple[Tensor, Tensor]:
    """Some nodes that the model gets wrong, and what they should be."""
    wrong = torch.nonzero(own_forward(model, graph).argmax(1) != graph.y).flatten()[:count]
    return wrong, graph.y[wrong]


@BOTH
def test_the_repair_is_that_on_the_whole_graph(kind: str) -> None:
    graph = messy()
    model = net(kind, graph)
    nodes, labels = edits_of(model, graph)
    kept = torch.arange(20, 40)
    method = MinimalNorm(layer="convs.1", norm="drift")
    network = cached(model, graph)
    before = copy.deepcopy(network.state_dict())
    ours = nnrepair.fix(network, (nodes, labels), kept, method=method, test_set=(torch.arange(40), graph.y))
    theirs = nnrepair.fix(model, NodeEdits(graph, nodes), NodeLocality(graph, kept, None), method=method)
    assert isinstance(ours.model, CachedNetwork) and ours.report.success_rate == 1.0
    restored = network.restore(ours.model)
    assert type(restored) is type(model)
    close(evaluate(restored, graph), network.outputs(ours.model))
    close(own_forward(restored, graph), network.outputs(ours.model))
    torch.testing.assert_close(own_forward(restored, graph), own_forward(theirs.model, graph), rtol=1e-3, atol=1e-3)
    right = [(y.argmax(1) == graph.y).double().mean() for y in (network.logits, network.outputs(ours.model))]
    assert ours.report.tests["test set"].drawdown_points == pytest.approx(100 * float(right[0] - right[1]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert ours.patch is not None
    assert all(name.startswith("convs.1.") for name in ours.patch.new)


@BOTH
def test_the_last_layer_is_one_linear_map_of_keys_that_are_known(kind: str) -> None:
    network = cached(net(kind, messy()), messy()).double()
    names, nodes = [name for name, _ in network.named_parameters()], torch.arange(10)
    line = Linearization(network, names, nodes)
    assert line.ends_affine and line.independent
    said = network.keys_of(nodes, names)
    mine = dict(network.named_parameters())
    found = keys.keys(network(nodes), mine, AffineHead.of(mine))
    assert said is not None and found is not None
    close(said, found)
    for name in names:
        some = network.keys_of(nodes, [name])
        assert some is not None and some.shape[1] == network.get_parameter(name).reshape(4, -1).shape[1]


def test_node_numbers_are_no_points_of_a_certificate() -> None:
    graph = messy()
    model = net("GCN", graph)
    network = cached(model, graph)
    result = nnrepair.fix(network, edits_of(model, graph), method=MinimalNorm(layer="convs.1.lin", norm="l2"))
    assert result.report.success_rate == 1.0 and result.certificate is None


@BOTH
def test_fine_tuning_the_last_layer(kind: str) -> None:
    graph = messy()
    model = net(kind, graph)
    nodes, labels = edits_of(model, graph)
    network = cached(model, graph)
    result = nnrepair.fix(
        network, (network.nodes(nodes), labels), network.nodes(range(20, 40)), method=FineTune(lr=0.05)
    )
    assert result.report.success_rate == 1.0
    close(own_forward(network.restore(result.model), graph), network.outputs(result.model))


def test_one_after_another() -> None:
    graph = messy()
    model = net("GraphSAGE", graph)
    edits = edits_of(model, graph, 3)
    method = MinimalNorm(layer="convs.1", norm="drift", locality="none")
    network = cached(model, graph)
    history = nnrepair.fix(network, edits, torch.arange(40), method=method, mode="successive", throw=False)
    assert len(history.steps) == 3
    close(evaluate(network.restore(history.model), graph), network.outputs(history.model))


class _Beside(nn.Module):
    """A frozen network plus a map of each node's own features."""

    def __init__(self, base: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.base, self.own = base, nn.Linear(features, classes)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        y: Tensor = self.base(x, *rest) + self.own(x)
        return y


@BOTH
def test_nodes_know_their_own_features_for_networks_around(kind: str) -> None:
    graph = messy()
    model = net(kind, graph)
    network = cached(model, graph)
    nodes = network.nodes(torch.tensor([4, 9, 1]))
    assert torch.equal(nodes.own(), graph.x[[4, 9, 1]]) and torch.equal(nodes.frozen(), network.logits[[4, 9, 1]])
    around = _Beside(copy.deepcopy(network), 6, 4)
    with torch.no_grad():
        y = nodes.call(around)
        restored = network.restore(around)
        assert isinstance(restored, _Beside)
        close(restored(graph.x, graph.edge_index)[[4, 9, 1]], y)
        assert nodes.call(copy.deepcopy(around).double()).dtype == torch.float64


def test_cached_nodes_are_inputs() -> None:
    network = cached(net("GCN", messy()), messy())
    nodes = network.nodes(torch.arange(40) < 3)
    assert isinstance(nodes, nnrepair.Inputs) and nodes.independent
    assert len(nodes) == 3 and nodes[torch.tensor([2])].index.tolist() == [2]
    assert nodes.to(torch.zeros(1)) is nodes and repr(nodes) == "CachedNodes(3 of 40 nodes)"
    both = nodes.joined(network.nodes([7]))
    assert isinstance(both, CachedNodes) and both.index.tolist() == [0, 1, 2, 7]
    graph = messy()
    plain = Nodes(graph.x, graph.edge_index, [0, 1, 2]), Nodes(graph.x, graph.edge_index, torch.arange(40))
    assert torch.equal(nodes.hops(network.nodes(range(40)), 2), plain[0].hops(plain[1], 2))
    assert nodes.joined(torch.zeros(1)) is None and nodes.hops(plain[1], 2) is None
    assert nodes.joined(cached(net("GCN", messy()), messy()).nodes([7])) is None


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (torch.tensor([40]), "Node 40 is outside the graph, which has nodes 0..39"),
        (torch.tensor([-1, 2]), "Node -1 is outside"),
        (torch.tensor([0.0]), "takes node numbers"),
        (torch.zeros(40, dtype=torch.bool), r"Of a mask, give mask.nonzero\(\).flatten\(\)"),
        (torch.zeros(2, 2, dtype=torch.int64), "takes node numbers"),
    ],
)
def test_wrong_node_numbers(nodes: Tensor, message: str) -> None:
    network = cached(net("GCN", messy()), messy())
    with pytest.raises(InvalidInput, match=message):
        network(nodes)
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(network, (nodes, torch.zeros(len(nodes), dtype=torch.int64)), method="ft")
    with pytest.raises(InvalidInput):
        network.nodes([40])


def test_networks_that_cannot_be_restored() -> None:
    graph = messy()
    network, other = cached(net("GCN", graph), graph), cached(net("GCN", graph), graph)
    with pytest.raises(InvalidInput, match="cached from another model"):
        network.restore(other)
    with pytest.raises(InvalidInput, match="got Linear"):
        network.restore(nn.Linear(1, 1))


def test_a_cached_network_is_not_written_to_files() -> None:
    import pickle

    with pytest.raises(InvalidInput, match="restore"):
        pickle.dumps(cached(net("GCN", messy()), messy()))


# --- Reddit, and graphs like it ---


def test_a_graph_like_reddit_has_what_it_claims() -> None:
    graph = reddit_like(nodes=3000, edges=60_000, features=20, classes=7, homophily=0.7, seed=3)
    found = statistics(graph)
    assert (found.nodes, found.edges, found.features, found.classes) == (3000, 60_000, 20, 7)
    assert found.homophily == 0.7 and found.loops == 0 and found.parallel == 0
    assert found.degree_mean == 20.0 and found.degree_max > 100 and 0.9 < found.degree_log_sigma < 1.4
    source, target = graph.edge_index
    forward, backward = ({*zip(a.tolist(), b.tolist(), strict=True)} for a, b in ((source, target), (target, source)))
    assert forward == backward and len(forward) == 60_000
    assert graph.train_mask is not None and graph.val_mask is not None and graph.test_mask is not None
    parts = torch.stack([graph.train_mask, graph.val_mask, graph.test_mask])
    assert bool((parts.sum(0) == 1).all()) and parts.sum(1).tolist() == [1980, 300, 720]
    assert 1.5 < found.largest_class / found.smallest_class < 4.0
    assert [float(graph.x.mean()), float(graph.x.std())] == pytest.approx([0.0, 1.2], abs=0.2)


def test_the_same_seed_gives_the_same_graph() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, c = (reddit_like(400, 4000, 5, 4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.x, b.x) and torch.equal(a.edges.source, b.edges.source) and torch.equal(a.y, b.y)
    assert not torch.equal(a.x, c.x) and not torch.equal(a.edges.source[:100], c.edges.source[:100])
    assert torch.equal(state[0], torch.get_rng_state()) and np.array_equal(state[1], np.random.get_state()[1])


def test_small_chunks_change_nothing_about_the_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("benchmarks.graph.reddit", "nnrepair.domains.graphs.large"):
        monkeypatch.setattr(f"{module}.CHUNK", 64)
    graph = reddit_like(400, 6000, 5, 4)
    found = statistics(graph)
    assert found.edges == 6000 and found.homophily == 0.77 and found.parallel == found.loops == 0


def test_degrees_without_a_tail() -> None:
    assert statistics(reddit_like(1000, 20_000, 3, 4, degree_sigma=0.0, spread=1e6)).degree_log_sigma < 0.3


def test_features_tell_the_class_and_neighbours_tell_more() -> None:
    graph = reddit_like(2000, 60_000, 50, 5, signal=1.0)
    means = torch.stack([graph.x[graph.y == k].mean(0) for k in range(5)])
    averaged = graph.edges.gather(graph.x, slice(0, 2000), mean=True)
    alone, around = (((x @ means.T).argmax(1) == graph.y).double().mean() for x in (graph.x, averaged))
    assert 0.3 < alone < around


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": 4001}, "edges must be even"),
        ({"nodes": 7, "edges": 10}, "two nodes per class"),
        ({"edges": 400 * 399}, "no room for"),
        ({"homophily": 1.0}, "homophily must be between 0 and 1"),
        ({"partner": 2.0}, "partner must be from 0 to 1"),
        ({"signal": float("nan")}, "signal must be"),
        ({"degree_sigma": -1.0}, "degree_sigma must be"),
        ({"classes": 1}, "classes must be an integer of at least 2"),
        ({"features": 2.5}, "features must be an integer"),
    ],
)
def test_graphs_that_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        reddit_like(**({"nodes": 400, "edges": 4000, "features": 5, "classes": 4} | options))


def test_statistics_are_counts() -> None:
    edges = torch.tensor([[0, 0, 1, 2, 2], [1, 1, 0, 2, 0]])
    found = asdict(statistics(Graph(torch.eye(4), edges, torch.tensor([0, 0, 1, 1]))))
    assert found == {
        "nodes": 4,
        "edges": 5,
        "features": 4,
        "classes": 2,
        "homophily": 0.8,
        "node_homophily": pytest.approx((1 + 0.5 + 1) / 3),
        "degree_mean": 1.25,
        "degree_median": 1.5,
        "degree_max": 2,
        "degree_log_sigma": pytest.approx(float(np.log([2, 2, 1]).std(ddof=1))),
        "isolated": 1,
        "loops": 1,
        "parallel": 1,
        "largest_class": 0.5,
        "smallest_class": 0.5,
    }


def test_reddit_comes_through_pytorch_geometric(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import torch_geometric.datasets

    small = messy()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch_geometric.datasets, "Reddit", lambda folder: [small])
    graph = reddit()
    assert len(graph.edges) == small.edge_index.shape[1] and graph.x is small.x

    def offline(folder: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch_geometric.datasets, "Reddit2", offline)
    with pytest.raises(DataUnavailable, match=r"(?s)no network.*copy that folder here"):
        reddit("Reddit2")
    with pytest.raises(InvalidInput, match="Did you mean 'Reddit'"):
        reddit("Redit")  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux")
def test_the_benchmark_measures_a_small_graph() -> None:
    scale = pytest.importorskip("benchmarks.graph.scale")
    row = scale.case(4000, "GCN", hidden=8, trained_on=300, kept=100, edits=2)
    assert row["status"] == "measured" and row["edits"] == 2 and len(row["each"]) == 2
    assert row["graph"]["edges"] == 4000 and row["success_rate"] == 1.0
    assert row["cached_differs_by"] <= 1e-4 * row["logits_max"]
    assert row["restored_differs_by"] <= 1e-4 * row["logits_max"]
    assert row["inference_differs_by"] <= 1e-4 * row["logits_max"]
