from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from networks import clusters, mistakes, mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, InvalidInput, LocalitySet, Near
from nnrepair.domains.graphs.graph import Graph, NodeEdits, NodeLocality, Nodes
from nnrepair.methods import EGNN, named
from nnrepair.methods.egnn import _Seen
from nnrepair.methods.fine_tune.penalties import EWC, KL, L2, LInf
from nnrepair.spec.inputs import own
from nnrepair.spec.problem import pose
from nnrepair.wrappers.stitched import OwnMLP, Stitched

quick = EGNN(hidden=16, lr=0.01, rehearsal=20, kl=0.1)


class Spread(nn.Module):
    """A graph network: every node's output depends on its neighbours. Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 10, 3, seed=1)
        self.runs = 0

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        self.runs += 1
        return self.net(x.index_add(0, edge_index[1], x[edge_index[0]]))


def graph(nodes: int = 60, edges: int = 150) -> Graph:
    generator = torch.Generator().manual_seed(3)
    return Graph(
        randn(nodes, 6, seed=2),
        torch.randint(nodes, (2, edges), generator=generator),
        torch.randint(3, (nodes,), generator=generator),
    )


def wrong(model: nn.Module, data: Graph, count: int = 8) -> Tensor:
    with torch.no_grad():
        return torch.nonzero(model(data.x, data.edge_index).argmax(1) != data.y).flatten()[:count]


def right(data: Graph, edited: Tensor) -> LocalitySet:
    """Keep the decisions at other nodes."""
    others = torch.ones(data.num_nodes, dtype=torch.bool)
    others[edited] = False
    return NodeLocality(data, others, labels=None)


def points(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Edits, Tensor]:
    model = mlp(4, 16, 3, seed=1).to(dtype).eval()
    x = randn(6, 4, seed=5, dtype=dtype)
    return model, Edits(x, mistakes(model, x)), clusters(60, 4, seed=6).to(dtype)


def state(model: nn.Module) -> dict[str, bytes]:
    return {
        n: t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() for n, t in model.state_dict().items()
    }


# The stitched network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_without_edits_the_outputs_are_the_bases_bit_for_bit(dtype: torch.dtype, depth: int) -> None:
    base = nn.Sequential(nn.Flatten(), mlp(12, 8, 5)).to(dtype)
    stitched = Stitched(copy.deepcopy(base), OwnMLP(12, 5, depth=depth).to(dtype))
    x = randn(7, 3, 2, 2, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(stitched(x), base(x))
    assert all(not change.any() for change in stitched.change.values())


def test_outputs_of_any_shape_and_further_arguments() -> None:
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 6)

        def forward(self, x: Tensor, times: float, *, plus: float) -> Tensor:
            return self.net(x).reshape(-1, 2, 3) * times + plus

    stitched = Stitched(Base(), OwnMLP(4, 6))
    nn.init.ones_(stitched.mlp.layers[-1].bias)
    x = randn(5, 4)
    assert torch.equal(stitched(x, 2.0, plus=1.0), stitched.base(x, 2.0, plus=1.0) + 1)


def test_the_base_stays_frozen_and_in_eval_mode() -> None:
    stitched = Stitched(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), OwnMLP(3, 2)).train()
    assert stitched.training
    assert not any(m.training for m in stitched.base.modules())
    assert {n.split(".")[0] for n, p in stitched.named_parameters() if p.requires_grad} == {"mlp"}


def test_points_that_do_not_fit_the_mlp() -> None:
    stitched = Stitched(nn.AdaptiveAvgPool1d(2), OwnMLP(3, 2))
    with pytest.raises(InvalidInput, match=r"sees 3 features of each point .* shape \(2, 5\)"):
        stitched(torch.ones(2, 5))


def test_a_new_mlp_depends_on_its_seed_alone_and_disturbs_nothing() -> None:
    before = torch.get_rng_state()
    a, b, c = OwnMLP(4, 3, seed=1), OwnMLP(4, 3, seed=1), OwnMLP(4, 3, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert state(a) == state(b) != state(c)


# Own features --------------------------------------------------------------------------------------------------------


def test_own_features() -> None:
    assert torch.equal(own(torch.arange(12.0).reshape(2, 3, 2)), torch.arange(12.0).reshape(2, 6))
    assert own(torch.zeros(5)).shape == (5, 1)
    nodes = Nodes(torch.eye(4), torch.tensor([[0], [1]]), [2, 0])
    assert torch.equal(own(nodes), torch.eye(4)[[2, 0]])


class Opaque:
    """Points that do not say what is their own."""

    independent: ClassVar[bool] = True

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Opaque:
        return type(self)(self.x[index])

    def to(self, like: Tensor) -> Opaque:
        return type(self)(self.x.to(like))

    def call(self, model: nn.Module) -> Tensor:
        return model(self.x)


class Mean(Opaque):
    def own(self) -> Tensor:
        return self.x[:1]


def test_points_that_do_not_say_what_is_their_own() -> None:
    model, edits, _ = points()
    with pytest.raises(InvalidInput, match=r"Opaque does not say .* method own\(\)"):
        nnrepair.fix(model, Edits(Opaque(edits.inputs), edits.criterion), method=quick)
    with pytest.raises(InvalidInput, match=r"one row for each of 6 points, got \(1, 4\)"):
        nnrepair.fix(model, Edits(Mean(edits.inputs), edits.criterion), method=quick)


# Graphs --------------------------------------------------------------------------------------------------------------


def test_an_edit_does_not_reach_neighbours_through_the_base() -> None:
    data, model = graph(), Spread().eval()
    nodes = wrong(model, data)
    locality = right(data, nodes)
    result = nnrepair.fix(model, NodeEdits(data, nodes), locality, method=quick)
    assert result.report.success_rate == 1.0
    with torch.no_grad():
        before, after = model(data.x, data.edge_index), result.model(data.x, data.edge_index)
        assert torch.equal(result.model.base(data.x, data.edge_index), before)
        assert torch.equal(after, before + result.model.mlp(data.x))
        # What is added at a node is the same whatever its neighbours are.
        others = data.edge_index.flip(0)
        added = result.model(data.x, others) - model(data.x, others)
        assert torch.allclose(added, result.model.mlp(data.x), atol=1e-5)


def runs_of_the_base(edges: int, method: EGNN) -> int:
    data, model = graph(edges=edges), Spread().eval()
    nodes = wrong(model, data)
    problem = pose(model, NodeEdits(data, nodes), right(data, nodes))
    before = model.runs
    proposal = method.repair(problem)
    assert proposal.model.base.runs - before == model.runs - before  # none after it was stitched
    return model.runs - before


@pytest.mark.parametrize("edges", [20, 400])
def test_the_base_runs_once_whatever_the_steps(edges: int) -> None:
    for steps in (0, 1, 50):
        for method in (EGNN(steps=steps, lr=1e-5, rehearsal=20), EGNN(steps=steps, lr=1e-5, rehearsal=0, kl=0)):
            assert runs_of_the_base(edges, method) == 1


def test_successive_edits_keep_one_mlp() -> None:
    data, model = graph(), Spread().eval()
    nodes = wrong(model, data)
    locality = right(data, nodes)
    history = nnrepair.fix(model, NodeEdits(data, nodes), locality, method=quick, mode="successive")
    assert history.success_rate == history.success_retain_rate == 1.0
    assert isinstance(history.model, Stitched)
    assert isinstance(history.model.base, Spread)
    assert [name for name, _ in history.model.named_children()] == ["base", "mlp"]
    assert history.patch is not None
    assert state(history.patch.apply(model)) == state(history.model)
    assert state(history.patch.revert(history.model)) == state(model)


def test_independent_edits_begin_anew() -> None:
    data, model = graph(), Spread().eval()
    nodes = wrong(model, data, 3)
    locality = right(data, nodes)
    history = nnrepair.fix(model, NodeEdits(data, nodes), locality, method=quick, mode="independent", seed=4)
    for step, node in zip(history.steps, nodes.tolist(), strict=True):
        alone = nnrepair.fix(model, NodeEdits(data, [node]), locality, method=quick, seed=4)
        assert alone.report.locality == step.side_effects["locality set"].locality


def test_a_stitched_network_is_edited_further() -> None:
    model, edits, kept = points()
    first = nnrepair.fix(model, edits[torch.arange(3)], kept, method=quick).model
    again = nnrepair.fix(first, edits, kept, method=quick)
    assert state(again.model.base) == state(model)
    assert again.model.state_dict().keys() == first.state_dict().keys()
    assert again.patch is not None  # the same architecture by now
    assert state(again.patch.apply(first)) == state(again.model)
    assert all(name.startswith("mlp.layers.") for name in again.patch.new)
    change = torch.cat(
        [(b - a).detach().double().flatten() for a, b in zip(first.parameters(), again.model.parameters(), strict=True)]
    )
    assert again.report.weight_change.l2 == pytest.approx(float(change.norm()))


# Any points ----------------------------------------------------------------------------------------------------------


def test_images() -> None:
    model = nn.Sequential(seeded(lambda: nn.Conv2d(1, 3, 3), 2), nn.ReLU(), nn.Flatten(), mlp(48, 4)).eval()
    x = randn(5, 1, 6, 6)
    kept = randn(40, 1, 6, 6, seed=1)
    result = nnrepair.fix(model, (x, mistakes(model, x)), kept, method=quick)
    assert result.report.success_rate == 1.0
    assert result.report.locality > 0.8


def test_regression() -> None:
    model, edits, kept = points()
    with torch.no_grad():
        wanted = Near(model(edits.inputs) + 0.5, 0.1)
    result = nnrepair.fix(model, Edits(edits.inputs, wanted), kept, method=EGNN(lr=0.01, kl=1e-3))
    assert result.report.success_rate == 1.0


def test_float64_is_float64_throughout() -> None:
    model, edits, kept = points(torch.float64)
    result = nnrepair.fix(model, edits, kept, method=quick)
    assert {t.dtype for t in result.model.state_dict().values()} == {torch.float64}


@pytest.mark.parametrize("seed", [0, 3])
def test_seeds(seed: int) -> None:
    model, edits, kept = points()
    a, b = (nnrepair.fix(model, edits, kept, method=quick, seed=seed).model for _ in range(2))
    other = nnrepair.fix(model, edits, kept, method=quick, seed=seed + 1).model
    assert state(a) == state(b) != state(other)


def test_the_report_measures_what_was_added() -> None:
    model, edits, kept = points()
    result = nnrepair.fix(model, edits, kept, method=quick)
    change = torch.cat([t.double().flatten() for t in result.model.change.values()])
    assert result.report.weight_change.l2 == pytest.approx(float(change.norm()))
    assert all(name.startswith("mlp.") for name in result.model.change)


def test_saved_and_loaded(tmp_path: Any) -> None:
    model, edits, kept = points()
    result = nnrepair.fix(model, edits, kept, method=quick)
    twin = Stitched(copy.deepcopy(model), OwnMLP(4, 3, hidden=16))
    twin.load_state_dict(result.model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(edits.inputs), result.model(edits.inputs))


# Locality and penalties ----------------------------------------------------------------------------------------------


def test_without_a_locality_set_it_says_what_is_missing() -> None:
    model, edits, kept = points()
    assert any("no locality set" in note for note in nnrepair.fix(model, edits, method=quick).report.notes)
    assert not any("no locality set" in n for n in nnrepair.fix(model, edits, kept, method=quick).report.notes)
    with pytest.raises(InvalidInput, match=r"KL\(weight=1.0\) measures change on the locality set"):
        nnrepair.fix(model, edits, method=EGNN(penalties=[KL(1.0)]))


@pytest.mark.parametrize("penalty", [L2(1e-3), LInf(2.0), KL(0.1), EWC(0.1)], ids=lambda p: type(p).__name__)
def test_penalties(penalty: Any) -> None:
    model, edits, kept = points()
    result = nnrepair.fix(model, edits, kept, method=EGNN(lr=0.01, rehearsal=0, kl=0, penalties=[penalty]))
    assert result.outcome.ok


def test_regions_are_refused() -> None:
    model, edits, _ = points()
    segments = nnrepair.Segments(edits.inputs[:2], edits.inputs[2:4])
    with pytest.raises(InvalidInput, match="EGNN repairs points, but these edits are about regions"):
        nnrepair.fix(model, Edits(segments, [0, 1]), method=quick)


def test_a_sequence_resumes_with_its_mlp(tmp_path: Any) -> None:
    model, edits, kept = points()
    file = tmp_path / "run.safetensors"
    first, again = (nnrepair.fix(model, edits, kept, method=quick, mode="successive", resume=file) for _ in range(2))
    assert [step.as_dict() for step in again.steps] == [step.as_dict() for step in first.steps]
    assert isinstance(again.model, Stitched) and state(again.model) == state(first.model)
    assert again.weight_change == first.weight_change


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden": 0}, r"hidden must be an integer >= 1, got 0"),
        ({"hidden": 2.0}, r"hidden must be an integer >= 1, got 2.0"),
        ({"depth": True}, r"depth must be an integer >= 1, got True"),
        ({"steps": -1}, r"steps must be an integer >= 0"),
        ({"lr": 0}, r"lr must be a finite number > 0"),
        ({"kl": -1.0}, r"KL: weight must be a finite number >= 0"),
        ({"rehearsal": -1}, r"rehearsal must be an integer >= 0"),
        ({"penalties": "kl"}, r"penalties must be a list of Penalty objects"),
        ({"margin": -1.0}, r"margin must be a finite number >= 0"),
        ({"batch_size": 0}, r"batch_size must be an integer >= 1"),
    ],
)
def test_hyper_parameters_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        EGNN(**wrong)


def test_named() -> None:
    assert named("egnn") == EGNN()
    able = EGNN().capabilities
    assert (able.family, able.keeps_architecture, able.only_edit_pair) == ("architectural", False, False)
    assert not EGNN(rehearsal=0).capabilities.only_edit_pair
    assert not EGNN(kl=0).capabilities.only_edit_pair
    assert EGNN(rehearsal=0, kl=0).capabilities.only_edit_pair


def test_numbers_of_points_are_no_features() -> None:
    with pytest.raises(InvalidInput, match="no features"):
        own(torch.arange(4))


# Near the edits ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("form", ["edges", "dense", "coo", "csr"])
@pytest.mark.parametrize("most", [1, 3])
def test_hops_are_those_of_a_search(form: str, most: int) -> None:
    data = graph(40, 50)
    edges = data.edge_index
    if form != "edges":
        dense = torch.zeros(40, 40).index_put((edges[0], edges[1]), torch.ones(50))
        edges = {"dense": lambda: dense, "coo": dense.to_sparse_coo, "csr": dense.to_sparse_csr}[form]()
    beside: dict[int, set[int]] = {k: set() for k in range(40)}
    for a, b in data.edge_index.T.tolist():
        beside[a].add(b)
        beside[b].add(a)
    away, last = {3: 0, 8: 0}, {3, 8}
    for step in range(1, most + 1):
        last = {b for a in last for b in beside[a]} - away.keys()
        away |= dict.fromkeys(last, step)
    some = Nodes(data.x, edges, [3, 8])
    others = Nodes(data.x, edges, torch.arange(40))
    assert some.hops(others, most).tolist() == [away.get(k, most + 1) for k in range(40)]
    assert some.hops(Nodes(data.x, edges.clone(), [0]), most) is None


def drawn_near(method: EGNN, problem: Any, near: Tensor) -> float:
    """Return which share of what is rehearsed is near, on average."""
    rows = torch.arange(len(problem.locality))
    features = own(problem.locality.inputs)
    often = method._often(
        problem.edits.inputs,
        problem.locality,
        _Seen(own(problem.edits.inputs), rows),
        _Seen(features, rows),
    )
    assert torch.equal(often[: len(rows)], rows)
    rehearsed = often[problem.locality.holds[often]]
    return float(torch.isin(rehearsed, near).double().mean())


def test_a_share_of_what_is_rehearsed_is_near_the_edits() -> None:
    model, data = Spread().eval(), graph(200, 400)
    edited = wrong(model, data, 3)
    keep = NodeLocality(data, torch.arange(200)[~torch.isin(torch.arange(200), edited)], labels=None)
    problem = pose(model, NodeEdits(data, edited), keep)
    away = problem.edits.inputs.hops(problem.locality.inputs, 4)
    near = torch.nonzero(away <= 1).flatten()
    assert 5 <= len(near) <= 30
    assert abs(drawn_near(EGNN(near=0.25, rehearsal=4 * len(near)), problem, near) - 0.25) < 0.05
    assert drawn_near(EGNN(near=0.0, rehearsal=20), problem, near) == pytest.approx(len(near) / 197)
    method = EGNN(lr=0.01, steps=5, near=0.25, kl=0.0, rehearsal=20)
    assert nnrepair.fix(model, NodeEdits(data, edited), keep, method=method, throw=False).stats["steps"] == 5


def test_points_of_no_graph_are_near_where_their_features_are_alike() -> None:
    model, edits, kept = points()
    kept = torch.cat([kept, edits.inputs[:2] + 0.01])
    problem = pose(model, edits, LocalitySet(kept))
    near = torch.tensor([len(kept) - 2, len(kept) - 1])
    assert abs(drawn_near(EGNN(near=0.5, rehearsal=4), problem, near) - 0.5) < 0.05
    with pytest.raises(InvalidInput, match="near is a share of the rehearsed points"):
        EGNN(near=1.0)
