"""The parts of property repair, each against something slow or obvious."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import Residual, mlp, randn
from scipy.optimize import linprog
from torch import nn

from nnrepair import Argmax, Argmin, UnsupportedModel
from nnrepair.properties.descent import Wanted, descend
from nnrepair.properties.head import Head
from nnrepair.properties.hunt import hunt, spread
from nnrepair.properties.leaves import Leaves
from nnrepair.solver.program import Contradiction, Program
from nnrepair.verify import Box, Property
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.jobs import Jobs

PROPERTY = Property.on(Box([-1, -1], [1, 0.5]), Argmax([1]), outputs=3)


def head(bias: bool = True) -> Head:
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3, bias=bias))
    for k, p in enumerate(model.parameters()):
        p.data = randn(*p.shape, seed=k)
    return Head.of(model, (2,))


@pytest.mark.parametrize("bias", [True, False])
def test_head_is_the_network(bias: bool) -> None:
    part, x = head(bias), randn(20, 2, dtype=torch.float64)
    assert torch.allclose(part.keys(x) @ part.weight.T, part.graph(x), atol=1e-12)
    change = randn(*part.weight.shape, seed=4, dtype=torch.float64) / 100
    assert torch.allclose(part.changed(change)(x), part.keys(x) @ (part.weight + change).T, atol=1e-12)
    assert torch.allclose(part.moved(change)(x.float()).double(), part.changed(change)(x), atol=1e-5)


def test_head_refuses_what_does_not_end_in_a_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with pytest.raises(UnsupportedModel, match="last operation"):
        Head.of(model, (2,))
    frozen = mlp(2, 4, 3)
    frozen[-1].weight.requires_grad_(False)
    with pytest.raises(UnsupportedModel, match="trainable as a whole"):
        Head.of(frozen, (2,))
    assert isinstance(Residual(), nn.Module)


def test_program_finds_the_optimum_of_all_rows_at_once() -> None:
    drawn = np.random.default_rng(0)
    for _ in range(10):
        rows = drawn.normal(size=(30, 8))
        need = rows @ drawn.normal(size=8) - drawn.uniform(0, 0.5, size=30)
        soft, want = drawn.normal(size=(10, 8)), drawn.normal(size=10)
        program = Program(8, unit=0.1)
        for k in range(0, 30, 10):
            program.add("rows", rows[k : k + 10], need[k : k + 10])
            program.solve()
        program.add("soft", soft, want, price=0.5)
        d = program.solve()
        value = np.abs(d).sum() + 0.5 * np.maximum(want - soft @ d, 0).sum()
        A = np.block([[rows, -rows, np.zeros((30, 10))], [soft, -soft, np.eye(10)]])
        best = linprog([1.0] * 16 + [0.5] * 10, -A, -np.concatenate([need, want]))
        assert best.status == 0 and (rows @ d >= need - 1e-6).all()
        assert value == pytest.approx(best.fun, rel=1e-6)


def test_program_names_the_rows_that_contradict_each_other() -> None:
    program = Program(2, unit=1.0)
    program.add("up", np.array([[1.0, 0]]), np.array([1.0]))
    program.add("other", np.array([[0.0, 1]]), np.array([5.0]))
    program.add("down", np.array([[-1.0, 0]]), np.array([0.0]))
    with pytest.raises(Contradiction) as caught:
        program.solve()
    assert caught.value.tags == ["up", "down"]
    assert program.without("down").solve() == pytest.approx([1.0, 5.0])


def test_bounds_of_parts_are_sound_and_attained_at_their_virtual_points() -> None:
    part, jobs = head(), Jobs.of(PROPERTY)
    change = torch.zeros_like(part.weight)
    leaves = Leaves(part, jobs, change)
    other = randn(*change.shape, seed=7, dtype=torch.float64) / 3
    for _ in range(3):
        value, keys = leaves.bound(change)
        rows = jobs.rows[leaves.job, leaves.row]
        offset = leaves.offset[leaves.job, leaves.row]
        at_point = torch.einsum("no,ow,nw->n", rows, part.weight + change, keys) - offset
        assert torch.allclose(value, at_point, atol=1e-9)
        drawn = torch.rand(200, *leaves.lower.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = leaves.lower + drawn * (leaves.upper - leaves.lower)
        seen = torch.einsum("no,sno->sn", rows, part.graph(x.reshape(-1, 2)).reshape(*x.shape[:2], 3)) - offset
        assert bool((value <= seen.amin(0) + 1e-12).all())
        # Concave in the weights: where another change is bounded, the same virtual point lies no lower.
        elsewhere = torch.einsum("no,ow,nw->n", rows, part.weight + other, keys) - offset
        assert bool((leaves.bound(other)[0] <= elsewhere + 1e-9).all())
        which = torch.arange(len(leaves))
        G, need = leaves.rows(which, keys, 0.25)
        assert np.allclose(G @ other.numpy().ravel() - need, elsewhere.numpy() - 0.25)
        leaves.split(which, change)


def test_splitting_parts_covers_the_same_volume_with_better_bounds() -> None:
    part, jobs = head(), Jobs.of(PROPERTY)
    change = torch.zeros_like(part.weight)
    leaves = Leaves(part, jobs, change)
    volume, worst = (leaves.upper - leaves.lower).prod(1).sum(), leaves.bound(change)[0].min()
    for _ in range(4):
        leaves.split(torch.arange(len(leaves))[::2], change)
        leaves.choose(change)
    assert float((leaves.upper - leaves.lower).prod(1).sum()) == pytest.approx(float(volume))
    assert float(leaves.bound(change)[0].min()) >= float(worst) - 1e-12


def test_hunt_returns_points_inside_their_boxes_and_unsafe_sets() -> None:
    part, jobs = head(), Jobs.of(PROPERTY)
    x, job = hunt(part.graph, jobs, torch.Generator().manual_seed(0))
    assert len(x) > 100
    assert bool(((x >= jobs.lower[job]) & (x <= jobs.upper[job])).all())
    assert bool((jobs.depth(part.graph(x), job) >= 0).all())
    near, of = hunt(part.graph, jobs, torch.Generator().manual_seed(0), reach=0.5)
    assert len(near) > len(x) and bool((jobs.depth(part.graph(near), of) >= -0.5).all())


def test_spread_takes_the_deepest_and_then_what_is_far_apart() -> None:
    keys = torch.cat([torch.zeros(500, 2), torch.tensor([[1.0, 0], [0, 1], [1, 1]])]).double() + 1e-6
    depth = torch.linspace(0, 1, 503)
    chosen = spread(keys, depth, torch.Generator().manual_seed(0), most=8)
    assert len(chosen) <= 8 and {500, 501, 502} <= set(chosen.tolist())
    assert spread(keys[:5], depth[:5], torch.Generator(), most=8).tolist() == [0, 1, 2, 3, 4]


def test_descent_moves_towards_the_property_and_leaves_the_model_alone() -> None:
    part, jobs = head(), Jobs.of(PROPERTY)
    before = [p.detach().clone() for p in part.model.parameters()]
    x, job = hunt(part.graph, jobs, torch.Generator().manual_seed(0))
    states = 5 * randn(500, 2, seed=3, dtype=torch.float64)
    wanted = Wanted(jobs, x[:200], job[:200], 0.1)
    labels = Argmin(part.graph(states).argmin(1))
    moved = descend(part.model, (2,), [wanted], states, labels, torch.Generator().manual_seed(0), steps=60, rate=1e-2)
    after = jobs.depth(lower(moved, (2,))(x[:200]), job[:200])
    assert float(after.mean()) < float(jobs.depth(part.graph(x[:200]), job[:200]).mean())
    assert all(torch.equal(a, b) for a, b in zip(before, part.model.parameters(), strict=True))
