"""The search over ReLU phases agrees with that over boxes, and with itself where there is nothing to split."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest
import torch
from networks import mlp
from test_search import hard, jobs, minimum, network, refuse, spike
from torch import Tensor, nn

from nnrepair.deadline import Deadline
from nnrepair.verify import Box, Case, Halfspace, Options, Property, check
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search import phases
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.jobs import Found, Jobs
from nnrepair.verify.search.phases import PhaseSearch
from nnrepair.verify.search.slopes import Ascent


def search(graph: Graph, what: Jobs, seconds: float = 20, confirm: Any = refuse, **options: Any) -> Found:
    def report(share: float, boxes: int) -> None:
        assert -1e-9 <= share <= 1 + 1e-9

    return PhaseSearch(graph, what, confirm, deadline=Deadline(seconds, clock=time.thread_time), **options).run(report)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_narrow_properties_are_proved(seed: int) -> None:
    graph = network(seed)
    found = search(graph, hard(graph, 0.05), steps=500)
    assert (found.closed, found.violated, found.share, found.worst, found.stuck) == (True, False, 1.0, None, 0)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_false_is_closed(seed: int) -> None:
    graph = network(seed)
    x = 2 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    found = search(graph, jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], float(graph(x).min()))])), 0.3)
    assert not found.closed and not found.violated and found.tree is None
    assert 0 <= found.share < 1 and found.worst is not None and found.worst <= 0


@pytest.mark.parametrize("seed", range(5))
def test_ways_to_split_never_contradict_each_other(seed: int) -> None:
    model = mlp(2, 8, 8, 2, seed=seed)
    graph = lower(model, (2,))
    least = minimum(graph, torch.tensor([1.0, -1.0]))
    for gap, verdict in ((0.05, "holds"), (-0.02, "violated")):
        row = Halfspace((Fraction(1), Fraction(-1)), Fraction(least - gap))
        prop = Property([Case(Box([-1, -1], [1, 1]), ((row,),))], 2)
        verdicts = {s: check(model, prop, timeout=20, options=Options(split=s)).verdict for s in ("inputs", "relus")}
        assert verdicts["inputs"] == verdict
        assert verdicts["relus"] in (verdict, "unknown")  # it may stop before its multipliers have converged


def test_phases_that_exclude_each_other() -> None:
    """relu(x) - relu(x - 1e-3) ... : no x has the second neuron on and the first one off."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0], [-1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -0.5, 0.25]))
        model[2].weight.copy_(torch.tensor([[1.0, -2, 0], [0, 1, 1], [1, 0, -1]]))
        model[2].bias.copy_(torch.tensor([-0.1, -0.2, 0.1]))
        model[4].weight.copy_(torch.tensor([[1.0, 1.0, -0.5]]))
        model[4].bias.zero_()
    graph = lower(model, (1,))
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64)[:, None]
    least = float(graph(x).min())
    assert search(graph, jobs(([-1.0], [1.0], [([1.0], least - 0.05)])), steps=300, root_steps=0).closed
    assert not search(graph, jobs(([-1.0], [1.0], [([1.0], least + 0.01)])), 1, steps=3).closed


def test_no_unstable_relu() -> None:
    """Far from every kink the network is affine; what plain bounds leave open cannot be split."""
    model = mlp(2, 6, 1)
    graph = lower(model, (2,))
    low, high = [100.0, 100.0], [100.1, 100.1]
    least = minimum(graph, torch.ones(1), 100.0, 100.1)
    closed = search(graph, jobs((low, high, [([1.0], least - 1e-3)])))
    assert closed.closed and closed.tree is not None
    assert [part.tolist() for part in closed.tree] == [[-1], []]  # one leaf: proved without a split
    opened = search(graph, jobs((low, high, [([1.0], least + 1e-3)])))
    assert not opened.closed and opened.stuck == 1 and opened.worst is not None and opened.worst <= 0


def test_networks_without_relus() -> None:
    graph = lower(nn.Linear(2, 1), (2,))
    low, high = [-1.0, -1.0], [1.0, 1.0]
    least = minimum(graph, torch.ones(1))
    assert search(graph, jobs((low, high, [([1.0], least - 1e-6)]))).closed
    assert search(graph, jobs((low, high, [([1.0], least + 1e-6)]))).stuck == 1


def test_single_points() -> None:
    graph = network()
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    y, point = float(graph(x)), x[0].tolist()
    assert search(graph, jobs((point, point, [([1.0], y - 1e-9)]))).closed
    assert not search(graph, jobs((point, point, [([1.0], y)])), 2).closed


def test_several_boxes_and_rows() -> None:
    graph = network(1, outputs=2)
    low, high = [-1.0, -1.0], [1.0, 1.0]
    one, two = (minimum(graph, torch.tensor(a)) for a in ([1.0, 0.0], [0.0, 1.0]))
    what = jobs(
        (low, high, [([1.0, 0.0], one - 0.05)]),
        ([-0.2, -0.2], [0.3, 0.3], [([1.0, 0.0], 100.0), ([0.0, 1.0], two - 0.02)]),
        (low, high, [([0.0, 1.0], two - 0.05), ([1.0, 0.0], 100.0)]),
        outputs=2,
    )
    assert search(graph, what).closed
    seen: list[Tensor] = []

    def confirm(points: Tensor, job: Tensor) -> bool:
        seen.append(job)
        return True

    false = jobs((low, high, [([1.0, 0.0], one - 0.05)]), (low, high, [([0.0, 1.0], two + 0.05)]), outputs=2)
    found = search(graph, false, confirm=confirm)
    assert found.violated and not found.closed and set(seen[-1].tolist()) == {1}


def test_time_limits() -> None:
    graph = network()
    what = jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], minimum(graph, torch.ones(1)) + 1e-9)]))
    found = search(graph, what, -1)
    assert not found.closed and not found.violated and found.tree is None and 0 <= found.share < 1


def test_weights_that_overflow_prove_nothing() -> None:
    model = mlp(2, 4, 4, 1).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e200)
    found = search(lower(model, (2,)), jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], -1e308)])), 0.5)
    assert not found.closed


@pytest.mark.parametrize("seed", range(8))
def test_one_unsafe_point_keeps_a_search_open(seed: int) -> None:
    graph, _ = spike(seed)
    assert not search(graph, jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], 1e-9)])), 0.2).closed


def test_an_unsafe_point_next_to_a_kink() -> None:
    """2 |x - 0.02| + relu(x) - 0.02 is 0 at 0.02 alone, where the third ReLU is only just on."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([-0.02, 0.02, 0.0], dtype=torch.float64))
        model[2].weight.copy_(torch.tensor([[2.0, 2.0, 1.0]]))
        model[2].bias.fill_(-0.02)
    graph = lower(model, (1,))
    assert not search(graph, jobs(([-1.0], [1.0], [([1.0], 1e-9)])), 2, steps=300).closed


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardswish])
def test_what_is_foreseen_of_a_split_holds_on_its_side(activation: Any) -> None:
    graph = lower(mlp(2, 6, 6, 1, seed=3, activation=activation), (2,))
    ones = torch.ones(2, dtype=torch.float64)
    bounder, units = Bounder(graph, -ones, ones), graph.hidden
    relaxation = bounder.relax(-ones[None], ones[None])
    A, offset, free = torch.ones(1, 1).double(), torch.full((1,), 1e3).double(), torch.zeros(1, units).double()
    parts = [free[:, graph.nodes[k].units] for k in graph.bent]
    ascent = Ascent(bounder, relaxation, len(graph.nodes) - 1, A, offset, -ones[None], ones[None], parts)
    best, _ = ascent.run(4, 0.5)
    x = 2 * torch.rand(3000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    values = graph.values(x)
    z = torch.cat([values[graph.nodes[k].sources[0]] for k in graph.bent], 1)
    point = graph.points(*relaxation.joined(-ones[None]))[0]
    is_loose = torch.cat([lines.loose for lines in relaxation.lines], 1)[0]
    row, each = torch.zeros(units, dtype=torch.long), torch.arange(units)
    sides = [ascent.halved(row, each, side) for side in (1.0, -1.0)]
    for side, value in zip((1.0, -1.0), sides, strict=True):
        there = side * (z - point) >= 0
        least = torch.where(there, values[-1] - offset, torch.inf).amin(0)
        assert bool((value <= least + 1e-9)[is_loose].all())
    assert bool((torch.maximum(*sides) > best + 1e-6)[is_loose].any())  # and some say more than is known of the whole
    whole = ascent.relaxation.lines[0].slope
    assert torch.equal(whole, relaxation.lines[0].slope) and ascent.floor[0].shape == whole.shape  # nothing has changed


@pytest.mark.parametrize("seed", [1, 2])
def test_units_that_are_tried_take_far_fewer_parts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = lower(mlp(4, 16, 16, 1, seed=seed), (4,))
    x = 2 * torch.rand(20_000, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    what = jobs(([-1.0] * 4, [1.0] * 4, [([1.0], float(graph(x).min()) - 0.1)]))
    found = search(graph, what)
    assert found.closed and found.boxes < 100
    monkeypatch.setattr(phases, "CANDIDATES", 1)
    assert not search(graph, what, most=10 * found.boxes).closed
