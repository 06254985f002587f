"""The linear map that a network's last layer is, however it works inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import Attention, Convolution, Net, Sage, adjacency, net, ring
from networks import mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Inputs
from nnrepair.domains.graphs.graph import NodeEdits, NodeLocality, Nodes
from nnrepair.jacobian import fisher, moments
from nnrepair.jacobian.layers import choose
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods import MinimalNorm
from nnrepair.solver.rows import Factored
from nnrepair.spec.kinds import Classes

EVERY = torch.arange(12)


def nodes(layout: str = "edges", index: Tensor = EVERY) -> Nodes:
    graph = ring()
    layouts = {"dense": torch.strided, "coo": torch.sparse_coo, "csr": torch.sparse_csr}
    edges = graph.edge_index if layout == "edges" else adjacency(graph, layouts[layout])
    return Nodes(graph.x, edges, index)


def jacobian(model: nn.Module, names: list[str], inputs: Inputs) -> Tensor:
    """Return (points, outputs, parameters), the parameters one after the other."""
    model = model.double()
    known = dict(model.named_parameters())
    inputs = inputs.to(torch.zeros((), dtype=torch.float64))
    y = inputs.call(model)
    rows = []
    for value in y.flatten():
        grads = torch.autograd.grad(value, [known[n] for n in names], retain_graph=True)
        rows.append(torch.cat([g.reshape(y.shape[1], -1) for g in grads], 1).flatten())
    return torch.stack(rows).reshape(*y.shape, -1)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["edges", "dense", "coo", "csr"])
@pytest.mark.parametrize("kind", [Convolution, Sage])
def test_keys_are_the_jacobian(kind: type[nn.Module], layout: str) -> None:
    model, inputs = net(kind), nodes(layout, torch.tensor([3, 0, 11, 3]))
    names = choose(model, "last")
    line = Linearization(model, names, inputs)
    assert line.ends_affine and len(line.groups) == 1
    k = line.features(inputs)
    assert k is not None
    expected = torch.einsum("op,vi->vopi", torch.eye(3, dtype=torch.float64), k).flatten(2)
    torch.testing.assert_close(jacobian(model, names, inputs), expected)


@pytest.mark.parametrize("kind", [Convolution, Sage])
def test_outputs_move_as_the_keys_say(kind: type[nn.Module]) -> None:
    inputs = nodes()
    line = Linearization(net(kind), choose(net(kind), "last"), inputs)
    d = np.random.default_rng(0).normal(size=sum(p.numel() for p in line.parameters.values()))
    predicted = line.outputs(inputs) + line.features(inputs) @ line.matrix(d).T
    torch.testing.assert_close(line.outputs(inputs, d), predicted)
    line.move(100 * d)
    np.testing.assert_allclose(line.outputs(inputs), predicted + 99 * line.features(inputs) @ line.matrix(d).T)
    change = line.unflatten(d)
    assert list(change) == line.names
    np.testing.assert_array_equal(line.flatten(change), d)


@pytest.mark.parametrize("kind", [Convolution, Sage])
def test_rows_are_outer_products_of_one_position(kind: type[nn.Module]) -> None:
    model, inputs = net(kind), nodes()
    names = choose(model, "last")
    line = Linearization(model, names, inputs)
    point, condition = torch.tensor([5, 0, 5, 11]), torch.tensor([1, 2, 0, 1])
    labels = torch.tensor([0, 1, 2] * 4)
    rows = line.rows(inputs, Argmax(labels), point, condition)
    assert rows.matrix_shape == (3, sum(line.parameters[n].numel() for n in names) // 3)
    assert isinstance(rows.blocks[0], Factored) and rows.blocks[0].delta.shape[1] == 1
    J = jacobian(model, names, inputs)
    np.testing.assert_allclose(
        rows.columns(np.arange(rows.n)), J[point, labels[point]] - J[point, condition], atol=1e-12
    )


@pytest.mark.parametrize("kind", [Convolution, Sage])
def test_drift_is_the_second_moment_of_what_arrives_at_the_nodes(kind: type[nn.Module]) -> None:
    model, inputs = net(kind), nodes(index=torch.arange(8))
    line = Linearization(model, choose(model, "last"), nodes(index=torch.tensor([9])))
    J = jacobian(model, line.names, inputs)
    k = J[:, 0, : J.shape[2] // 3].numpy()
    C = k.T @ k / len(k)
    ridge = moments.RIDGE * np.trace(C) / len(C)
    (factor,) = line.metric(inputs).factors
    np.testing.assert_allclose(factor @ factor.T, C + ridge * np.eye(len(C)), atol=1e-12)


def test_a_part_of_a_layer_has_its_own_keys() -> None:
    model, inputs = net(Sage), nodes()
    both = Linearization(model, choose(model, "last"), inputs).features(inputs)
    own = Linearization(model, ["last.own.weight"], inputs).features(inputs)
    bias = Linearization(model, ["last.neighbours.bias"], inputs).features(inputs)
    assert both is not None and own is not None and bias is not None
    torch.testing.assert_close(both, torch.cat([both[:, :6], bias, own], 1))
    assert torch.equal(bias, torch.ones(12, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (net(Convolution, "softmax"), "last"),
        (net(Convolution, "relu"), "last"),
        (net(Sage, "softmax"), "last"),
        (net(Convolution, hidden=3), "first"),  # of the right shape, but ReLUs follow
        (net(Attention), "last.lin.weight"),
        (net(Convolution), ["first", "last"]),
    ],
)
def test_what_is_not_affine_falls_back(model: Net, layer: str | list[str]) -> None:
    inputs = nodes()
    line = Linearization(model, choose(model, layer), inputs)
    assert not line.ends_affine
    names = [g.names[0] for g in line.groups]
    J = jacobian(model, names, inputs) if len({p.shape[0] for p in line.parameters.values()}) == 1 else None
    rows = line.rows(inputs, Argmax([0] * 12), torch.tensor([4]), torch.tensor([2]))
    assert rows.n == sum(p.numel() for p in line.parameters.values())
    if J is not None and len(names) == 1:
        np.testing.assert_allclose(rows.columns(np.arange(rows.n))[0], J[4, 0] - J[4, 2], atol=1e-12)


@pytest.mark.parametrize("node", [11, 0])
def test_attention_is_not_affine_though_a_node_without_neighbours_is(node: int) -> None:
    """Node 11 of the ring attends to itself alone, with a weight of one whatever the parameters are."""
    model, graph = net(Attention), ring()
    line = Linearization(model, ["last.lin.weight"], nodes(index=torch.tensor([node])))
    assert not line.ends_affine
    with torch.no_grad():
        second = model(graph.x, graph.edge_index).topk(2, 1).indices[node, 1:]
    kept = NodeLocality(graph, [v for v in range(12) if v != node], None)
    method = MinimalNorm(layer="last.lin.weight")
    result = nnrepair.fix(model, NodeEdits(graph, [node], second), kept, method=method, throw=False)
    assert not any("exact" in note for note in result.report.notes)


def test_points_without_a_whole_are_tested_as_they_are_given() -> None:
    class Some(Nodes):
        def whole(self) -> None:
            return None

    graph, model = ring(), net(Attention)
    alone, rest = Some(graph.x, graph.edge_index, [11]), Some(graph.x, graph.edge_index, [0, 1])
    assert Linearization(model, ["last.lin.weight"], alone).ends_affine
    assert not Linearization(model, ["last.lin.weight"], alone, [rest]).ends_affine


def test_keys_of_probes_are_kept() -> None:
    model, edits, kept = net(), nodes(index=torch.tensor([3])), nodes(index=torch.tensor([0, 11]))
    line = Linearization(model, choose(model, "last"), edits, [kept])
    found = [line.features(inputs) for inputs in (edits, kept)]
    calls: list[int] = []
    line.model.register_forward_hook(lambda *_: calls.append(1))
    line.features(kept)
    assert not calls
    every = line.features(nodes())
    assert calls and every is not None
    torch.testing.assert_close(torch.cat(found), every[[3, 0, 11]])


@pytest.mark.parametrize("end", [nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh])
def test_an_activation_at_the_end_is_seen_from_one_point(end: type[nn.Module]) -> None:
    for seed in range(20):
        body, x = mlp(4, 8, 2, seed=seed), randn(1, 4, seed=seed)
        assert not Linearization(nn.Sequential(*body, end()), ["2.weight", "2.bias"], x).ends_affine


class Gated(nn.Module):
    """Affine in the last map where the first input is positive; elsewhere outputs bend."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return torch.where(x[:, :1] > 0, y, torch.tanh(y))


def test_points_to_keep_are_looked_at_too() -> None:
    model, x = seeded(Gated), randn(80, 4)
    above, below = x[x[:, 0] > 0], x[x[:, 0] < 0]
    names = ["fc.weight", "fc.bias"]
    assert Linearization(model, names, above[:2], [above[2:]]).ends_affine
    assert not Linearization(model, names, above[:2], [above[2:], below]).ends_affine
    edits = (above[:1], [(int(model(above[:1]).argmax()) + 1) % 3])
    result = nnrepair.fix(model, edits, below, method=MinimalNorm(layer="fc"), throw=False)
    assert not any("exact" in note for note in result.report.notes)


def test_what_nothing_moves_may_be_asleep() -> None:
    class Asleep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * (x[:, :1] > 0) + F.relu(self.fc(x) - 1e7) * (x[:, :1] < 0)

    class Shifted(Asleep):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x) * (x[:, :1] > 0)
            return y

    x = torch.tensor([[-1.0, 1.0, 0.0, 0.5], [1.0, 0.2, 0.3, 0.1]])
    for make, dead in ((Asleep, False), (Shifted, True)):
        assert Linearization(seeded(make), ["fc.weight"], x).ends_affine is dead
        assert not Linearization(seeded(make), ["fc.weight"], x[:1]).ends_affine


class Pooled(nn.Module):
    """A 1 x 1 convolution whose outputs are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x))).mean((2, 3))


class Scaled(nn.Module):
    """Outputs that are affine in the last map, but each on a scale of its own."""

    def __init__(self, scale: float = 0.0) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 3), torch.tensor([1.0, 1.0, 1.0 + scale])

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.to(x) * self.fc(x)


def test_other_networks_have_keys_too() -> None:
    model, x = seeded(Pooled), randn(5, 1, 6, 6)
    line = Linearization(model, ["head.weight", "head.bias"], x)
    assert line.ends_affine
    k = line.features(x)
    torch.testing.assert_close(k[:, :4], F.relu(model.double().body(x.double())).mean((2, 3)))
    same = Linearization(seeded(Scaled), ["fc.weight", "fc.bias"], randn(5, 4))
    other = Linearization(seeded(lambda: Scaled(1e-3)), ["fc.weight", "fc.bias"], randn(5, 4))
    assert same.ends_affine and not other.ends_affine


def test_a_plain_last_layer_keeps_its_own_view() -> None:
    line = Linearization(mlp(4, 5, 3), ["2.weight", "2.bias"], randn(6, 4))
    assert line.ends_affine and line.groups[0].weight == "2.weight" and not line.groups[0].keyed


def test_models_that_cannot_be_differentiated_twice_fall_back() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, g: Tensor) -> Tensor:
            return 2 * g

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.fc(x))

    line = Linearization(seeded(Doubled), ["fc.weight"], randn(5, 4))
    assert not line.ends_affine


def test_a_graph_runs_once_for_its_keys() -> None:
    model, inputs = net(), nodes()
    line = Linearization(model, choose(model, "last"), inputs)
    calls = []
    line.model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        line.features(inputs)
        line.rows(inputs, Argmax([0] * 12), torch.tensor([4]), torch.tensor([2]))
    assert not calls


@pytest.mark.parametrize("kind", [Convolution, Sage])
def test_rows_of_a_hidden_layer(kind: type[nn.Module]) -> None:
    model, inputs = net(kind), nodes()
    names = choose(model, "first")
    line = Linearization(model, names, inputs)
    rows = line.rows(inputs, Argmax([0] * 12), torch.tensor([4, 11]), torch.tensor([2, 1]))
    known = dict(model.double().named_parameters())
    y = inputs.to(torch.zeros((), dtype=torch.float64)).call(model)
    for row, (v, c) in zip(rows.columns(np.arange(rows.n)), [(4, 2), (11, 1)], strict=True):
        grads = torch.autograd.grad(y[v, 0] - y[v, c], [known[n] for n in names], retain_graph=True)
        np.testing.assert_allclose(row, line.flatten(dict(zip(names, grads, strict=True))), atol=1e-12)


def test_random_signs_give_the_fisher_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "SKETCHES", 4000)
    model, inputs = net(), nodes()
    line = Linearization(model, ["first.lin.weight"], inputs)
    (found,) = line.metric(inputs, Classes()).factors
    weight = model.double().first.lin.weight
    log_p = inputs.to(torch.zeros((), dtype=torch.float64)).call(model).log_softmax(1)
    diagonal = torch.zeros_like(weight)
    for v in range(12):
        for c in range(3):
            (g,) = torch.autograd.grad(log_p[v, c], weight, retain_graph=True)
            diagonal += log_p[v, c].exp().detach() * g**2 / 12
    expected = diagonal + moments.RIDGE * diagonal.mean()
    np.testing.assert_allclose(found**2, expected.detach().flatten(), rtol=0.15, atol=1e-3 * float(expected.max()))
