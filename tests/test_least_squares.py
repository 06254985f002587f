"""Keys inserted in closed form: the updates are those of the papers, and hold in networks of many kinds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import Attention, Convolution, Sage, net, ring
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import clusters, mistakes, mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import AnyOf, Argmax, Edits, EditScope, InvalidInput, Linear, LocalitySet, Near, Threshold
from nnrepair.domains.graphs.nodes import NodeEdits, NodeLocality
from nnrepair.methods import LeastSquares
from nnrepair.methods.least_squares import stored
from nnrepair.methods.least_squares.insertion import exact, null_space, ridge, within
from nnrepair.methods.least_squares.linear_map import LinearMap
from nnrepair.methods.least_squares.targets import at_outputs, inside


def memory(seed: int, keys: int, inp: int = 6, out: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, what their values lack, and a second moment that tells directions apart."""
    kept = randn(40, inp, seed=seed + 1, dtype=torch.float64) * torch.logspace(0, -1.5, inp, dtype=torch.float64)
    return (
        randn(keys, inp, seed=seed, dtype=torch.float64),
        randn(keys, out, seed=seed + 2, dtype=torch.float64),
        kept.T @ kept / 40,
    )


def drift(D: Tensor, C: Tensor) -> float:
    return float(torch.trace(D @ C @ D.T))


@given(seed=st.integers(0, 10_000), keys=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_exact_is_rome_and_emmet_and_moves_other_values_least(seed: int, keys: int) -> None:
    K, R, C = memory(seed, keys)
    D = exact(K, R, torch.linalg.cholesky(C))
    scale = float(R.abs().max())
    assert (K @ D.T - R).abs().max() <= 1e-9 * scale
    inverse = torch.linalg.inv(C)
    emmet = R.T @ torch.linalg.inv(K @ inverse @ K.T) @ K @ inverse
    assert (D - emmet).abs().max() <= 1e-6 * float(emmet.abs().max())
    if keys == 1:
        k = K[0]
        rome = torch.outer(R[0], inverse @ k) / (k @ inverse @ k)
        assert (D - rome).abs().max() <= 1e-6 * float(rome.abs().max())
    away = torch.eye(6, dtype=torch.float64) - torch.linalg.pinv(K) @ K  # whatever these change, no key sees
    for other in range(3):
        feasible = D + randn(4, 6, seed=seed + 10 + other, dtype=torch.float64) @ away
        assert drift(D, C) <= drift(feasible, C) * (1 + 1e-9)


def test_nothing_lacks_nothing_moves_and_contradictions_are_met_halfway() -> None:
    K, R, C = memory(0, 3)
    root = torch.linalg.cholesky(C)
    for D in (exact(K, 0 * R, root), ridge(K, 0 * R, C, 1.0), within(K, 0 * R, torch.eye(6).double(), 1.0)):
        assert not D.any()
    twice = exact(K[[0, 0]], R[:2], root)
    assert torch.allclose(twice @ K[0], R[:2].mean(0))


@given(seed=st.integers(0, 10_000), keys=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_memit_becomes_rome_where_other_keys_weigh_nothing(seed: int, keys: int) -> None:
    K, R, C = memory(seed, keys)
    rome = exact(K, R, torch.linalg.cholesky(C))
    apart = [float((ridge(K, R, C, weight) - rome).norm() / rome.norm()) for weight in (1e-1, 1e-3, 1e-5)]
    assert apart[0] > apart[1] > apart[2] and apart[2] <= 1e-3
    if keys == 1:
        assert apart[2] <= 1e-6
    heavy = ridge(K, R, C, 1e6)
    assert drift(heavy, C) < 1e-3 * drift(rome, C)


def test_memit_minimises_what_it_weighs() -> None:
    K, R, C = memory(3, 5)
    D = ridge(K, R, C, 0.7).requires_grad_(True)
    loss = (K @ D.T - R).square().sum() + 0.7 * torch.trace(D @ C @ D.T)
    (gradient,) = torch.autograd.grad(loss, D)
    assert gradient.abs().max() < 1e-10


def test_alphaedit_leaves_the_values_of_keys_that_span_less_than_the_space() -> None:
    kept = randn(50, 3, seed=1, dtype=torch.float64) @ randn(3, 8, seed=2, dtype=torch.float64)
    P = null_space(kept.T @ kept / 50, 1e-9)
    assert round(float(P.trace())) == 5 and torch.allclose(P @ P, P)
    K, R = randn(2, 8, seed=3, dtype=torch.float64), randn(2, 4, seed=4, dtype=torch.float64)
    D = within(K, R, P, 1e-9)
    assert (kept @ D.T).abs().max() < 1e-6 and (K @ D.T - R).abs().max() < 1e-6
    published = R.T @ K @ P @ torch.linalg.inv(P @ K.T @ K @ P + 1e-9 * torch.eye(8).double())
    assert torch.allclose(D, published, atol=1e-6)


def test_alphaedit_through_fix_moves_no_kept_output() -> None:
    model, x = mlp(6, 20, 3), randn(2, 6, seed=4)
    kept = clusters(60, 6, seed=8, centers=3)
    method = LeastSquares(constraint="null-space", null=1e-4, ridge=1e-3)
    result = nnrepair.fix(model, (x, mistakes(model, x)), kept, method=method)
    with torch.no_grad():
        before, after = model(kept), result.model(kept)
    assert (after - before).abs().max() < 0.05 * (result.model(x) - model(x)).abs().max()


@pytest.mark.parametrize(
    ("criterion", "y"),
    [
        (Argmax([0, 1]), randn(2, 5)),
        (Argmax([[0, 1], [2, 2]]), randn(2, 2, 3)),
        (Threshold([[1, 0, -1], [0, 1, 1]]), randn(2, 3)),
        (Near(randn(2, 3, seed=5), 0.01), randn(2, 3)),
        (AnyOf(Argmax([0, 0]), Argmax([1, 1])), randn(2, 4)),
        (Linear([[1.0, 1.0, 0.0], [0.0, 0.0, -1.0]], [2.0, 3.0], points=2), randn(2, 3)),
    ],
    ids=["classes", "positions", "answers", "numbers", "either", "linear"],
)
def test_outputs_with_which_everything_holds_are_near(criterion: Any, y: Tensor) -> None:
    y = y.double()
    criterion.check(y)
    aim = 0.005
    found = at_outputs(criterion, y, aim)
    assert bool(criterion.holds(found).all()) and bool((criterion.margin(found) >= aim).all())
    assert torch.equal(at_outputs(criterion, found, aim), found)
    assert (found - y).norm() <= 2 * (randn(*y.shape, seed=9).double() + 3).norm()


def test_the_label_rises_as_much_as_the_runner_up_falls() -> None:
    found = at_outputs(Argmax([0]), torch.tensor([[0.0, 2.0, 1.0]]).double(), 1e-6)
    assert torch.allclose(found, torch.tensor([[1.0, 1.0, 1.0]]).double(), atol=0.02)


def test_values_inside_are_found_and_kept_short() -> None:
    model, x = mlp(6, 40, 30, 3), randn(5, 6, seed=3)
    edits, out = Edits(x, mistakes(model, x)), model[0](x).detach()

    def run(gains: Tensor) -> Tensor:
        return model[1:](out + gains)

    def missed(edits: Edits, aim: float) -> Any:
        def of(gains: Tensor) -> tuple[Tensor, Tensor]:
            y = run(gains).double()
            return edits.criterion.loss(y, aim), edits.criterion.margin(y.detach()) >= aim

        return of

    gains = inside(missed(edits, 1e-3), out, steps=300, lr=0.1, longest=50.0)
    assert bool(edits.criterion.holds(run(gains)).all())
    short = inside(missed(edits, 1e3), out, steps=50, lr=0.5, longest=0.5)
    least = float(out.square().mean().sqrt()) * 40**0.5
    assert bool((short.norm(dim=1) <= 0.5 * out.norm(dim=1).clamp(min=least) * (1 + 1e-4)).all())
    held = Edits(x, model(x).argmax(1))
    assert not inside(missed(held, 0.0), out, steps=50, lr=0.1, longest=4.0).any()


def test_neighbours_share_the_key_and_the_value() -> None:
    """An edit's key inside is the mean of its own and its neighbours', and the value is sought for all of them."""
    model, x = mlp(6, 40, 30, 3), randn(2, 6, seed=3)
    near, of = (x[:, None] + 0.5 * randn(2, 4, 6, seed=4)).flatten(0, 1), torch.arange(2).repeat_interleave(4)
    wanted = mistakes(model, x)
    method, kept = LeastSquares(layers="2", margin=0.1), randn(300, 6, seed=5)
    wider = Edits(x, wanted, neighbours=EditScope(near, wanted[of], of=of))
    alone, beside = (nnrepair.fix(model, edits, kept, method=method) for edits in (Edits(x, wanted), wider))
    reached = [float((result.model(near).argmax(1) == wanted[of]).double().mean()) for result in (alone, beside)]
    assert beside.report.success_rate == 1.0 and reached[1] > reached[0] and reached[1] > 0.7
    with pytest.raises(InvalidInput, match="must say whose each is"):
        nnrepair.fix(model, Edits(x, wanted, neighbours=(near, wanted[of])), method=method)


def images(count: int, seed: int = 0) -> Tensor:
    """Return images (count, 2, 5, 5) of different colours."""
    return 2 * randn(count, 2, 1, 1, seed=seed) + 0.5 * randn(count, 2, 5, 5, seed=seed + 1)


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2, bias=False)
        self.grouped, self.norm, self.head = nn.Conv2d(5, 5, 1, groups=5), nn.BatchNorm2d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(self.norm(self.grouped(h)).mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(9, 7), nn.Linear(7, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.words(ids)))).mean(1)


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    state = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, state[name])}


@pytest.mark.parametrize("layer", ["first", "second", "head"])
@pytest.mark.parametrize("constraint", ["exact", "ridge"])
def test_convolutions(layer: str, constraint: Any) -> None:
    model, x = seeded(Vision).eval(), images(3)
    kept = images(40, seed=7)
    result = nnrepair.fix(
        model, (x, mistakes(model, x)), kept, method=LeastSquares(layer, constraint, ridge=0.1), throw=False
    )
    assert result.report.success_rate == 1.0, result
    assert {name.partition(".")[0] for name in changed(model, result.model)} == {layer}


@pytest.mark.parametrize("layer", ["0", "3"])
def test_activations_that_work_in_place_are_no_obstacle(layer: str) -> None:
    """In torchvision's networks many convolutions are followed by one, also the last of SqueezeNet."""
    x, seen = images(2), []
    for inplace in (False, True):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            layers = [nn.Conv2d(2, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 3, 1), nn.ELU(1.0, inplace)]
            model = nn.Sequential(*layers[:2], nn.Dropout(), *layers[2:])
        seen.append(LinearMap(model.eval(), layer, [x]).seen(x))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert float(seen[0][1].min()) < 0  # before the activation
    pooled = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = nnrepair.fix(pooled, (x, mistakes(pooled, x)), images(9, seed=7), method=LeastSquares("2"), throw=False)
    assert changed(pooled, result.model)


def test_a_convolution_inserts_what_was_asked() -> None:
    model, x = seeded(Vision).eval(), randn(2, 2, 5, 5)
    layer = LinearMap(model, "second", [x])
    keys, values = layer.seen(x)
    assert keys.shape == (2, 4, 36) and values.shape == (2, 4, 5)
    weight = model.second.weight.double().flatten(1)
    assert torch.allclose(keys @ weight.T, values, atol=1e-6)
    wanted = randn(8, 5, seed=3, dtype=torch.float64)
    D = exact(keys.flatten(0, 1), wanted, torch.eye(36).double())
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, part in layer.change(D).items():
            moved.get_parameter(name).add_(part)
    got = LinearMap(moved, "second", [x]).seen(x)[1] - values
    assert torch.allclose(got.flatten(0, 1), wanted, atol=1e-5)


def test_tokens() -> None:
    model, ids = seeded(Tokens).eval(), torch.arange(12).reshape(3, 4) % 9
    labels = mistakes(model, ids)
    for layer in ("mix", "head"):
        result = nnrepair.fix(model, (ids, labels), method=LeastSquares(layer), throw=False)
        assert result.report.success_rate == 1.0
        assert changed(model, result.model) == {f"{layer}.weight", f"{layer}.bias"}


@pytest.mark.parametrize("kind", [Convolution, Sage])
@pytest.mark.parametrize("layer", ["first", "last"])
def test_graphs(kind: type[nn.Module], layer: str) -> None:
    graph, model = ring(), net(kind)
    y = model(graph.x, graph.edge_index)
    wrong = torch.tensor([1, 6])
    edits = NodeEdits(graph, wrong, y[wrong].argsort(1)[:, 1])
    kept = NodeLocality(graph, torch.tensor([3, 9, 10]))
    result = nnrepair.fix(model, edits, kept, method=LeastSquares(layer), throw=False)
    assert result.report.success_rate == 1.0
    assert {name.partition(".")[0] for name in changed(model, result.model)} == {layer}


def test_several_layers_share() -> None:
    model, x = mlp(6, 12, 10, 3), randn(3, 6, seed=2)
    labels, kept = mistakes(model, x), clusters(60, 6, seed=8)
    results = {}
    for share in ("even", "root"):
        method = LeastSquares(["0", "2", "4"], "ridge", share, ridge=0.1)
        results[share] = nnrepair.fix(model, (x, labels), kept, method=method)
        assert changed(model, results[share].model) == {f"{k}.{p}" for k in (0, 2, 4) for p in ("weight", "bias")}
    once = LeastSquares(["0", "2"], rounds=1, margin=0.0)
    assert nnrepair.fix(model, (x, labels), kept, method=once, throw=False).stats["layers"] == ["0", "2"]


def test_names_in_any_order_are_written_in_the_network_s_own() -> None:
    model, x = mlp(6, 12, 10, 3), randn(1, 6, seed=2)
    a, b = (
        nnrepair.fix(model, (x, mistakes(model, x)), method=LeastSquares(names)).model
        for names in (["2", "0"], ["0", "2"])
    )
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_frozen_parts_of_a_layer_stay() -> None:
    model, x = mlp(6, 12, 3), randn(1, 6, seed=2)
    model[2].bias.requires_grad_(False)
    result = nnrepair.fix(model, (x, mistakes(model, x)), method=LeastSquares())
    assert changed(model, result.model) == {"2.weight"}


def test_the_second_moments_keep_what_is_kept() -> None:
    model, x = mlp(8, 30, 4, seed=3), randn(1, 8, seed=2)
    kept = randn(300, 8, seed=5)
    asked, method = (x, mistakes(model, x)), LeastSquares(margin=0.5)
    moved = []
    for known in (LocalitySet(kept), None):
        result = nnrepair.fix(model, asked, known, method=method)
        with torch.no_grad():
            moved.append(float((result.model(kept) - model(kept)).square().sum(1).mean()))
        assert result.outcome.ok
    assert moved[0] < moved[1]
    assert "no locality set" in str(result)


def test_without_a_free_direction_nothing_moves_and_that_is_said() -> None:
    model, x = mlp(6, 8, 3), randn(1, 6)
    method = LeastSquares(constraint="null-space", null=0.0)
    result = nnrepair.fix(model, (x, mistakes(model, x)), randn(100, 6, seed=3), method=method, throw=False)
    assert result.outcome.status == "partly repaired" and "leave no direction free" in str(result)
    assert not changed(model, result.model)


def test_more_keys_than_a_layer_can_hold_is_said() -> None:
    model, x = mlp(3, 4, 3), randn(40, 3)
    result = nnrepair.fix(model, (x, (model(x).argmax(1) + torch.arange(40) % 3) % 3), method="rome", throw=False)
    assert result.outcome.status == "partly repaired" and "most edits held" in str(result)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("fc", "Layer 'fc' not found.* Layers: first, second, grouped, head"),
        ("norm", "'norm' .BatchNorm2d. is no linear map of one key"),
        ("grouped", "is no linear map of one key for each position"),
    ],
)
def test_layers_that_are_no_linear_maps_are_refused(layer: str, message: str) -> None:
    model, x = seeded(Vision).eval(), randn(1, 2, 5, 5)
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(model, (x, mistakes(model, x)), method=LeastSquares(layer))


def test_attention_is_no_linear_map() -> None:
    graph, model = ring(), net(Attention)
    with pytest.raises(InvalidInput, match="is no linear map"):
        nnrepair.fix(model, NodeEdits(graph, [1], [0]), method=LeastSquares("last"), throw=False)


def test_frozen_layers_are_refused() -> None:
    model, x = mlp(3, 4, 3), randn(1, 3)
    model[0].requires_grad_(False)
    with pytest.raises(InvalidInput, match=r"Layer '0' has no parameters that may change. Layers: 2\."):
        nnrepair.fix(model, (x, mistakes(model, x)), method=LeastSquares("0"))
    with pytest.raises(InvalidInput, match="no trainable layer|No trainable layer"):
        nnrepair.fix(model.requires_grad_(False), (x, mistakes(model, x)), method="rome")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraint": "exacd"}, "Unknown constraint 'exacd'. Did you mean 'exact'"),
        ({"share": 2}, "Unknown share 2"),
        ({"rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"ridge": 0}, "ridge must be a finite number > 0, got 0"),
        ({"margin": -1.0}, "margin must be a finite number >= 0"),
        ({"null": 2.0}, "null is a share, at most 1, got 2"),
        ({"lr": True}, "lr must be a finite number > 0"),
        ({"layers": [3]}, "layers must be a name or several names"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        LeastSquares(**options)


# Moments in a file ---------------------------------------------------------------------------------------------------


def test_moments_are_read_once_for_all_repairs_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, kept, file = mlp(4, 6, 3), randn(2, 4), randn(60, 4, seed=3), tmp_path / "moments.safetensors"
    edits = Edits(x, mistakes(model, x))
    method = LeastSquares("2", moments=str(file))
    first = nnrepair.fix(model, edits, kept, method=method)
    plain = nnrepair.fix(model, edits, kept, method=LeastSquares("2"))
    assert torch.equal(first.model(kept), plain.model(kept))
    monkeypatch.setattr(LinearMap, "moment", None)  # nothing is computed any more
    again = nnrepair.fix(model, edits, kept, method=method)
    alone = nnrepair.fix(model, edits, method=method)  # nor is a locality set needed
    assert torch.equal(again.model(kept), plain.model(kept)) and torch.equal(alone.model(kept), plain.model(kept))
    assert any("are those of" in note for note in alone.report.notes)


def test_moments_of_other_networks_and_layers_are_not_taken(tmp_path: Path) -> None:
    model, x, kept, file = mlp(4, 6, 3), randn(2, 4), randn(60, 4, seed=3), tmp_path / "moments.safetensors"
    edits = Edits(x, mistakes(model, x))
    nnrepair.fix(model, edits, kept, method=LeastSquares("2", moments=str(file)))
    before, other = file.read_bytes(), mlp(4, 6, 3, seed=5)
    asked = Edits(x, mistakes(other, x))
    result = nnrepair.fix(other, asked, kept, method=LeastSquares("2", moments=str(file)), throw=False)
    assert any("is of another network" in note for note in result.report.notes) and file.read_bytes() == before
    plain = nnrepair.fix(other, asked, kept, method=LeastSquares("2"), throw=False)
    assert torch.equal(result.model(kept), plain.model(kept))
    nnrepair.fix(model, edits, kept, method=LeastSquares("0", moments=str(file)), throw=False)
    assert set(stored.read(file, model) or {}) == {"0", "2"}
    file.write_bytes(before[:-9])
    with pytest.raises(nnrepair.PatchError, match="truncated"):
        nnrepair.fix(model, edits, kept, method=LeastSquares("2", moments=str(file)))
    with pytest.raises(InvalidInput, match="moments: expected a path"):
        LeastSquares("2", moments=3)  # type: ignore[arg-type]
