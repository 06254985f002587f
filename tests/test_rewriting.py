"""Rules of networks that are rewritten: few directions, the span of C^-1 k, ROME where there is one key."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import clusters, mistakes, mlp, randn, seeded
from scipy.optimize import linprog
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, Exemplars, InvalidInput, LocalitySet, Near
from nnrepair.domains.graphs.nodes import NodeEdits
from nnrepair.domains.inpainting.networks import CNP, Completion
from nnrepair.methods import LeastSquares, Rewriting
from nnrepair.methods.least_squares.insertion import exact
from nnrepair.methods.least_squares.linear_map import LinearMap
from nnrepair.methods.rewriting import directions, least_absolute


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 6, 3, stride=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def pictures(count: int, seed: int = 0) -> Tensor:
    return 2 * randn(count, 2, 1, 1, seed=seed) + 0.5 * randn(count, 2, 9, 9, seed=seed + 1)


def snowed(count: int) -> tuple[Tensor, Tensor]:
    """Return pictures whose lower half lies under snow, and as they were."""
    road = pictures(count, seed=3)
    snow = road.clone()
    snow[:, :, 5:] = randn(2, 1, 1, seed=9) + 0.3 * randn(count, 2, 4, 9, seed=11)
    return snow, road


def change(before: nn.Module, after: nn.Module, layer: str) -> Tensor:
    """Return (out, inp) by how much a layer's map changed, its bias as the last column."""
    parts = [
        (after.get_parameter(f"{layer}.{p}") - before.get_parameter(f"{layer}.{p}")).detach().double().flatten(1)
        if p == "weight"
        else (after.get_parameter(f"{layer}.{p}") - before.get_parameter(f"{layer}.{p}")).detach().double()[:, None]
        for p in ("weight", "bias")
    ]
    return torch.cat(parts, 1)


@given(seed=st.integers(0, 10_000), keys=st.integers(1, 5), rank=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_directions_are_in_the_span_of_whitened_keys(seed: int, keys: int, rank: int) -> None:
    K = randn(keys, 6, seed=seed, dtype=torch.float64)
    kept = randn(40, 6, seed=seed + 1, dtype=torch.float64) * torch.logspace(0, -1.5, 6, dtype=torch.float64)
    C = kept.T @ kept / 40
    D = directions(K, torch.linalg.cholesky(C), rank)
    assert D.shape == (6, min(rank, keys))
    span = torch.linalg.solve(C, K.T)
    outside = D - span @ torch.linalg.lstsq(span, D).solution
    assert outside.abs().max() <= 1e-7 * D.abs().max()
    # By the slow way: the first directions of keys after a symmetric root, as the papers' code whitens them.
    sizes, axes = torch.linalg.eigh(C)
    zca = axes @ torch.diag(sizes**-0.5) @ axes.T
    slow = zca @ torch.linalg.svd(K @ zca)[2][: D.shape[1]].T
    for one, other in zip(D.T, slow.T, strict=True):
        assert abs(abs(float(one @ other)) / float(one.norm() * other.norm()) - 1) < 1e-6
    assert torch.allclose((K @ D).square().mean(0), torch.ones(D.shape[1]).double())


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 2), rows=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_absolute_differences_are_as_small_as_can_be(seed: int, rank: int, rows: int) -> None:
    X, R = randn(rows, rank, seed=seed, dtype=torch.float64), randn(rows, 2, seed=seed + 1, dtype=torch.float64)
    found = least_absolute(X, R)
    assert found.shape == (2, rank)
    for out in range(2):
        one = np.ones(rows)
        rows_of = np.block([[X.numpy(), -np.eye(rows)], [-X.numpy(), -np.eye(rows)]])
        limits = np.concatenate([R[:, out].numpy(), -R[:, out].numpy()])
        bounds = [(None, None)] * rank + [(0, None)] * rows
        best = linprog(np.concatenate([np.zeros(rank), one]), rows_of, limits, bounds=bounds).fun
        assert float((R[:, out] - X @ found[out]).abs().sum()) <= best * (1 + 1e-3) + 1e-6


def test_one_key_without_a_mask_is_rome() -> None:
    model = mlp(6, 20, 3).double()
    x, before = randn(1, 6, seed=4, dtype=torch.float64), randn(1, 6, seed=5, dtype=torch.float64)
    kept = clusters(60, 6, seed=8, centers=3).double()
    label = model(before).argmax(1)
    if bool(model(x).argmax(1) == label):
        label = (label + 1) % 3
    asked = Edits(Exemplars(x, before), label)
    result = nnrepair.fix(model, asked, kept, method=Rewriting(layer="2", steps=0), throw=False)
    layer = LinearMap(model, "2", [x, kept])
    (k, old), (_, new) = layer.seen(x), layer.seen(before)
    C = layer.moment(kept)
    C += 1e-3 * C.diagonal().mean() * torch.eye(len(C))
    inverse = torch.linalg.inv(C)
    key, missing = k[0, 0], (new - old)[0, 0]
    rome = torch.outer(missing, inverse @ key) / (key @ inverse @ key)
    assert torch.allclose(change(model, result.model, "2"), rome, atol=1e-9)
    assert torch.allclose(rome, exact(k[0], (new - old)[0], torch.linalg.cholesky(C)), atol=1e-9)
    assert torch.allclose(result.model(x), model(before), atol=1e-9)


def test_values_that_are_found_for_one_key_lie_in_rome_s_direction() -> None:
    model, x, kept = mlp(6, 20, 3), randn(1, 6, seed=4), clusters(60, 6, seed=8, centers=3)
    asked = (x, mistakes(model, x))
    a, b = (nnrepair.fix(model, asked, kept, method=each) for each in (Rewriting(), LeastSquares()))
    one, other = (torch.linalg.svd(change(model, each.model, "2"))[2][0] for each in (a, b))
    assert abs(float(one @ other)) > 1 - 1e-4


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("layer", ["first", "second"])
def test_convolutions_are_rewritten_where_the_pictures_were_changed(layer: str, rank: int) -> None:
    model = seeded(Vision).eval()
    snow, road = snowed(4)
    asked = Edits(Exemplars(snow, road), model(road).argmax(1))
    result = nnrepair.fix(model, asked, pictures(60, seed=20), method=Rewriting(layer, rank, steps=0), throw=False)
    moved = change(model, result.model, layer)
    assert int(torch.linalg.matrix_rank(moved, rtol=1e-4)) == rank
    unchanged = {n for n, p in model.named_parameters() if torch.equal(p, result.model.get_parameter(n))}
    assert unchanged == {n for n, _ in model.named_parameters() if not n.startswith(layer)}
    apart = [
        (LinearMap(each, layer, [road]).seen(snow)[1] - LinearMap(model, layer, [road]).seen(road)[1]).abs()
        for each in (model, result.model)
    ]
    mask = LinearMap(model, layer, [road]).places(snow, asked.inputs.places)
    assert 0 < int(mask.sum()) < mask.numel()
    assert float(apart[1][mask].mean()) < float(apart[0][mask].mean())
    # No other change of as many directions makes the marked places more alike, among these directions.
    again = change(model, result.model, layer)
    keys = LinearMap(model, layer, [road]).seen(snow)[0][mask]
    for seed in range(3):
        other = apart[1].new_zeros(())
        step = randn(*again.shape, seed=seed).double() @ torch.linalg.pinv(again) @ again * 0.05
        wanted = LinearMap(model, layer, [road]).seen(road)[1][mask]
        other = (LinearMap(result.model, layer, [road]).seen(snow)[1][mask] + keys @ step.T - wanted).abs().mean()
        assert float(other) >= float(apart[1][mask].mean()) * (1 - 1e-3)


def test_places_at_a_layer() -> None:
    model, x = seeded(Vision).eval(), pictures(1)
    marked = torch.zeros(1, 9, 9, dtype=torch.bool)
    marked[0, 0, 0] = True
    layer = LinearMap(model, "second", [x])
    assert layer.places(x, marked).tolist() == [[True] + [False] * 8]
    assert layer.places(x, None).all() and layer.places(x, torch.ones(1, 3, dtype=torch.bool).repeat(1, 3)).all()
    assert LinearMap(model, "head", [x]).places(x, marked).tolist() == [[True]]
    with pytest.raises(InvalidInput, match=r"'second' works on 9 positions, and places are marked in \(1, 5\)"):
        layer.places(x, torch.ones(1, 5, dtype=torch.bool))


def test_edits_hold_after_steps_in_the_same_directions() -> None:
    model = seeded(Vision).eval()
    snow, road = snowed(1)
    label = model(snow).argsort(1)[:, 0]  # not what the road is taken for, perhaps
    kept = pictures(60, seed=20)
    result = nnrepair.fix(model, Edits(Exemplars(snow, road), label), kept, method=Rewriting("second"))
    assert result.outcome.ok and result.stats["steps"] > 0
    moved = change(model, result.model, "second")
    assert int(torch.linalg.matrix_rank(moved, rtol=1e-4)) == 1
    layer = LinearMap(model, "second", [snow, kept])
    C = layer.moment(kept)
    C += 1e-3 * C.diagonal().mean() * torch.eye(len(C))
    keys = layer.seen(snow)[0][layer.places(snow, (snow != road).any(1))]
    span = torch.linalg.solve(C, keys.T)
    row = torch.linalg.svd(moved)[2][0]
    assert float((row - span @ torch.linalg.lstsq(span, row[:, None]).solution[:, 0]).norm()) < 1e-3


@pytest.mark.parametrize("mode", ["independent", "successive"])
def test_exemplars_travel_with_their_edits(mode: Any) -> None:
    model = seeded(Vision).eval()
    snow, road = snowed(3)
    asked = Edits(Exemplars(snow, road), mistakes(model, snow))
    history = nnrepair.fix(model, asked, pictures(60, seed=20), method=Rewriting("second", rank=3), mode=mode)
    assert history.success_rate == 1.0


def test_completions_are_rewritten_pixel_by_pixel() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = Completion(CNP(channels=1, width=16), 4, 4).eval()
        given = torch.cat([torch.rand(3, 1, 4, 4), torch.ones(3, 1, 4, 4)], 1)
    changed = given.clone()
    changed[:, 0, :2] = 0.9
    target = network(given).detach()
    free = torch.where((changed != given).any(1, keepdim=True), 0.002, torch.inf)
    name = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    asked = Edits(Exemplars(changed[:1], given[:1]), Near(target[:1], free[:1]))
    result = nnrepair.fix(network, asked, LocalitySet(given[1:]), method=Rewriting(name, steps=0), throw=False)
    mask = (changed != given)[:1].any(1, keepdim=True)
    before, after = ((net(changed[:1]) - target[:1]).abs()[mask].mean().item() for net in (network, result.model))
    assert after < before and result.stats["places"] == 8


def test_exemplars() -> None:
    snow, road = snowed(3)
    pair = Exemplars(snow, road)
    assert pair.places.shape == (3, 9, 9) and pair.places[:, 5:].all() and not pair.places[:, :5].any()
    part = pair[torch.tensor([2])]
    assert len(part) == 1 and torch.equal(part.changed, snow[2:]) and torch.equal(part.originals, road[2:])
    other = pair.copied()
    assert other.tensors()[0].data_ptr() != snow.data_ptr() and torch.equal(other.own(), snow)
    assert pair.to(torch.zeros((), dtype=torch.float64)).changed.dtype == torch.float64
    assert torch.equal(pair.call(nn.Identity()), snow) and pair.same().shape[0] == 3
    assert Exemplars(randn(2, 4), randn(2, 4)).places is None
    ids = torch.randint(5, (2, 3))
    several = Exemplars((ids, ids), (ids, ids), ids >= 0)
    assert len(several[torch.tensor([0])]) == 1 and len(several.tensors()) == 4 and several.about() is not several
    assert repr(pair) == "Exemplars(shape (3, 2, 9, 9), torch.float32)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"originals": randn(2, 2, 9, 9)}, "3 changed points need as many originals, got 2"),
        ({"originals": pictures(3, seed=3)[:, :, :5].repeat(1, 1, 2, 1)[:, :, :9]}, None),
        ({"places": torch.ones(3, 9, 9)}, r"places must be bool, with a row for each of 3 points, got torch.float32"),
        ({"places": torch.zeros(3, 9, 9, dtype=torch.bool)}, r"Exemplars \[0, 1, 2\] were changed nowhere"),
    ],
)
def test_exemplars_that_cannot_be(options: dict[str, Any], message: str | None) -> None:
    snow, road = snowed(3)
    if message is None:
        assert len(Exemplars(snow, options["originals"])) == 3
        return
    with pytest.raises(InvalidInput, match=message):
        Exemplars(snow, options.get("originals", road), options.get("places"))


def test_exemplars_of_graphs_are_refused() -> None:
    from graphs import ring

    nodes = NodeEdits(ring(), [1, 2], [0, 1]).inputs
    with pytest.raises(InvalidInput, match="nodes of graphs are none"):
        Exemplars(nodes, copy.copy(nodes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer must be the name"),
        ({"rank": 0}, "rank must be an integer >= 1"),
        ({"lr": 0}, "lr must be"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Rewriting(**options)
