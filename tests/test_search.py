"""The search over boxes: what it closes is closed, its trees cover the root, and it always ends."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

from nnrepair.deadline import Deadline
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.boxes import Search
from nnrepair.verify.search.jobs import Found, Jobs, Options

Rows = Sequence[tuple[Sequence[float], float]]


def jobs(*each: tuple[Sequence[float], Sequence[float], Rows], outputs: int = 1) -> Jobs:
    """Make jobs of (lower, upper, rows): no output may have `a . y <= b` for all rows (a, b)."""
    most = max(1, max(len(rows) for _, _, rows in each))
    rows, offset = torch.zeros(len(each), most, outputs).double(), torch.zeros(len(each), most).double()
    real = torch.zeros(len(each), most, dtype=torch.bool)
    for t, (_, _, given) in enumerate(each):
        for r, (a, b) in enumerate(given):
            rows[t, r], offset[t, r], real[t, r] = torch.tensor(a).double(), b, True
    low, high = (torch.tensor([job[i] for job in each], dtype=torch.float64) for i in (0, 1))
    return Jobs(low, high, rows, offset, real)


def refuse(points: Tensor, job: Tensor) -> bool:
    return False


def search(graph: Graph, what: Jobs, seconds: float = 20, confirm: Any = refuse, **options: Any) -> Found:
    def report(share: float, boxes: int) -> None:
        assert -1e-9 <= share <= 1 + 1e-9

    return Search(graph, what, confirm, Options(**options), Deadline(seconds)).run(report)


def network(seed: int = 0, outputs: int = 1) -> Graph:
    return lower(mlp(2, 10, 10, outputs, seed=seed), (2,))


def minimum(graph: Graph, row: Tensor, low: float = -1.0, high: float = 1.0) -> float:
    """Return nearly the least row . y over a square, from a grid."""
    axis = torch.linspace(low, high, 201, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    return float((graph(x).detach() @ row.double()).min())


def hard(graph: Graph, gap: float = 0.01) -> Jobs:
    """Return a job that holds narrowly, so that it takes some splitting."""
    return jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], minimum(graph, torch.ones(1)) - gap)]))


def leaves(found: Found, low: Tensor, high: Tensor) -> list[list[tuple[list[float], list[float]]]]:
    """Return the boxes of the leaves of every tree, and check the preorder on the way."""
    assert found.tree is not None
    dim, cut = found.tree
    assert dim.dtype == np.int16 and cut.dtype == np.float64 and len(cut) == int((dim >= 0).sum())
    place, inner = 0, 0
    trees = []
    for a, b in zip(low.tolist(), high.tolist(), strict=True):
        stack, found_leaves = [(a, b)], []
        while stack:
            a, b = stack.pop()
            d = int(dim[place])
            place += 1
            if d < 0:
                found_leaves.append((a, b))
                continue
            at = float(cut[inner])
            inner += 1
            assert a[d] < at < b[d]
            stack.append(([*a[:d], at, *a[d + 1 :]], b))
            stack.append((a, [*b[:d], at, *b[d + 1 :]]))
        trees.append(found_leaves)
    assert place == len(dim) and inner == len(cut)
    return trees


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("attribute", [False, True])
@pytest.mark.parametrize("steps", [0, 4])
def test_trees_cover_the_root(clip: bool, attribute: bool, steps: int) -> None:
    graph = network()
    what = hard(graph)
    found = search(graph, what, clip=clip, attribute=attribute, steps=steps)
    assert (found.closed, found.violated, found.share, found.worst, found.stuck) == (True, False, 1.0, None, 0)
    assert found.tree is not None
    (tree,) = leaves(found, what.lower, what.upper)
    volumes = [math.prod(b - a for a, b in zip(*box, strict=True)) for box in tree]
    assert sum(volumes) == pytest.approx(4.0)
    assert all(volume > 0 for volume in volumes)
    if not clip:
        assert len(tree) > 1 and len(tree) <= found.boxes <= len(found.tree[0])  # some splits are made without bounding
        for low, high in tree:  # no two leaves overlap, and every leaf is proved
            x = torch.tensor(low) + torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) * (
                torch.tensor(high) - torch.tensor(low)
            )
            assert bool((graph(x.double()) > what.offset[0, 0]).all())


def test_each_option_does_something() -> None:
    graph = network(3)
    what = hard(graph, 0.002)
    boxes = [
        search(graph, what, **o).boxes for o in ({}, {"steps": 0}, {"clip": False, "attribute": False, "steps": 0})
    ]
    assert boxes[0] < boxes[1] < boxes[2]


@pytest.mark.parametrize("batch", [1, 3])
def test_small_batches_find_the_same_proof(batch: int) -> None:
    graph = network()
    what = hard(graph)
    found = search(graph, what, batch=batch)
    (tree,), (wanted,) = (leaves(each, what.lower, what.upper) for each in (found, search(graph, what)))
    assert sorted(tree) == sorted(wanted)


def test_the_same_search_twice_is_the_same() -> None:
    graph = network()
    first, second = search(graph, hard(graph)), search(graph, hard(graph))
    assert first.tree is not None and second.tree is not None and first.boxes == second.boxes
    assert all(np.array_equal(a, b) for a, b in zip(first.tree, second.tree, strict=True))


def test_jobs_with_different_numbers_of_rows() -> None:
    graph = network(1, outputs=2)
    low, high = [-1.0, -1.0], [1.0, 1.0]
    one, two = (minimum(graph, torch.tensor(a)) for a in ([1.0, 0.0], [0.0, 1.0]))
    away = (-0.2, 0.3)
    what = jobs(
        (low, high, [([1.0, 0.0], one - 0.01)]),
        ([away[0]] * 2, [away[1]] * 2, [([1.0, 0.0], 100.0), ([0.0, 1.0], two - 0.02), ([1.0, 1.0], 100.0)]),
        (low, high, [([0.0, 1.0], two - 0.01), ([1.0, 0.0], one - 0.01)]),
        outputs=2,
    )
    found = search(graph, what, clip=False)
    assert found.closed
    trees = leaves(found, what.lower, what.upper)
    assert len(trees) == 3
    for tree, a, b in zip(trees, what.lower.tolist(), what.upper.tolist(), strict=True):
        wanted = math.prod(v - u for u, v in zip(a, b, strict=True))
        assert sum(math.prod(v - u for u, v in zip(*box, strict=True)) for box in tree) == pytest.approx(wanted)


def test_rows_that_are_needed_together() -> None:
    """relu(x) <= -0.1 + ... alone may be possible; both rows never at one point, which clipping finds."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        for p, v in zip(model.parameters(), ([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 0], [0, 1]], [0.0, 0.0]), strict=True):
            p.copy_(torch.tensor(v))
    graph = lower(model, (1,))  # relu(x), relu(-x): both >= 0.1 nowhere
    what = jobs(([-1.0], [1.0], [([-1.0, 0.0], -0.1), ([0.0, -1.0], -0.1)]), outputs=2)
    for clip in (True, False):
        assert search(graph, what, clip=clip).closed
    with_both = jobs(([-1.0], [1.0], [([-1.0, 0.0], 0.0), ([0.0, -1.0], 0.0)]), outputs=2)
    assert not search(graph, with_both, 0.5).closed


@pytest.mark.parametrize("seed", range(4))
def test_nothing_false_is_closed(seed: int) -> None:
    """Where a sample is unsafe no options may close the search, whoever refuses the counterexamples."""
    graph = network(seed)
    x = 2 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    what = jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], float(graph(x).min()))]))
    for options in ({}, {"clip": False}, {"attribute": False}, {"steps": 0}):
        found = search(graph, what, 0.06, **options)
        assert not found.closed and not found.violated and found.tree is None
        assert 0 <= found.share < 1 and found.worst is not None and found.worst <= 0


def test_counterexamples_end_the_search() -> None:
    graph = network()
    least = minimum(graph, torch.ones(1))
    what = jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], least + 0.05)]))
    seen: list[tuple[Tensor, Tensor]] = []

    def confirm(points: Tensor, job: Tensor) -> bool:
        seen.append((points, job))
        return True

    found = search(graph, what, confirm=confirm)
    assert found.violated and not found.closed and found.tree is None
    points, job = seen[-1]
    assert len(seen) == 1 and len(points) == len(job) <= 16
    assert bool((points >= what.lower[0]).all() and (points <= what.upper[0]).all())
    assert bool((graph(points) <= least + 0.05).all())


def test_time_limits() -> None:
    graph = network()
    what = jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], minimum(graph, torch.ones(1)) + 1e-9)]))
    none = search(graph, what, -1)
    assert (none.closed, none.boxes, none.share, none.worst) == (False, 0, 0.0, -math.inf)
    some = search(graph, what, 0.2)
    assert not some.closed and some.boxes > 0 and 0 < some.share < 1
    assert some.worst is not None and -1 < some.worst <= 0
    begun = time.monotonic()
    search(graph, what, 0.2)
    assert time.monotonic() - begun < 2


def test_random_attacks_are_asked_for_now_and_then() -> None:
    graph, asked = network(), list[int]()

    def attack(starts: int) -> bool:
        asked.append(starts)
        return len(asked) == 2

    what = jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], minimum(graph, torch.ones(1)) + 1e-9)]))
    found = Search(graph, what, refuse, Options(), Deadline(20)).run(lambda share, boxes: None, attack)
    assert found.violated and len(asked) == 2 and asked[0] < asked[1]


# Ends ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.0, 2.0**-52, 2.0**-50])
def test_boxes_that_cannot_be_split_end(width: float) -> None:
    """y - y <= 0 everywhere: a box of few floats comes to its end, open."""
    graph = network()
    zero = jobs(([1.0, 1.0], [1.0 + width, 1.0 + width], [([0.0], 0.0)]))
    for options in ({}, {"clip": False}, {"steps": 0}):
        found = search(graph, zero, **options)
        assert not found.closed and not found.violated and found.stuck > 0
        assert found.share < 1 and found.worst is not None and found.worst <= 0


def test_single_points() -> None:
    graph = network()
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    y = float(graph(x))
    point = x[0].tolist()
    assert search(graph, jobs((point, point, [([1.0], y - 1e-9)]))).closed
    for offset in (y, y + 1e-9):
        found = search(graph, jobs((point, point, [([1.0], offset)])))
        assert not found.closed and found.stuck == 1


def test_some_inputs_without_width() -> None:
    graph = lower(mlp(3, 8, 1), (3,))
    low, high = [-1.0, 0.5, -1.0], [1.0, 0.5, 1.0]
    x = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)).double()
    least = float(graph(torch.tensor(low) + x * (torch.tensor(high) - torch.tensor(low))).min())
    for attribute in (True, False):
        found = search(graph, jobs((low, high, [([1.0], least - 0.02)])), attribute=attribute)
        assert found.closed
        assert found.tree is not None and 1 not in found.tree[0]


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_boxes_of_all_sizes(scale: float) -> None:
    model = mlp(2, 6, 1).double()
    with torch.no_grad():
        model[0].weight.div_(scale)
    graph, unit = lower(model, (2,)), lower(mlp(2, 6, 1).double(), (2,))
    gap = 0.02
    offset = minimum(unit, torch.ones(1)) - gap
    assert search(graph, jobs(([-scale, -scale], [scale, scale], [([1.0], offset)]))).closed
    assert not search(graph, jobs(([-scale, -scale], [scale, scale], [([1.0], offset + gap)])), 0.3).closed


def test_networks_without_relus() -> None:
    graph = lower(nn.Linear(2, 1), (2,))
    low, high = [-1.0, -1.0], [1.0, 1.0]
    least = minimum(graph, torch.ones(1))
    assert search(graph, jobs((low, high, [([1.0], least - 1e-6)]))).closed
    assert not search(graph, jobs((low, high, [([1.0], least + 1e-6)])), 0.3).closed


def test_networks_that_are_constant() -> None:
    model = mlp(2, 4, 1)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    graph = lower(model, (2,))
    value = float(graph(torch.zeros(1, 2).double()))
    assert search(graph, jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], value - 1e-9)]))).closed
    assert not search(graph, jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], value)])), 0.3).closed


def test_weights_that_overflow_prove_nothing() -> None:
    model = mlp(2, 4, 4, 1).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e200)
    found = search(lower(model, (2,)), jobs(([-1.0, -1.0], [1.0, 1.0], [([1.0], -1e308)])), 0.3)
    assert not found.closed


def test_convolutions_are_searched_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1))
    graph = lower(model, (1, 2, 2))
    x = randn(5000, 4, dtype=torch.float64).clamp(-1, 1)
    what = jobs(([-1.0] * 4, [1.0] * 4, [([1.0], float(graph(x).min()) - 0.3)]))
    assert search(graph, what).closed


# A single unsafe point ----------------------------------------------------------------------------------------------


def spike(seed: int) -> tuple[Graph, list[float]]:
    """Return a network that is 0 at one point and positive elsewhere, with kinks of other ReLUs close to the point."""
    rng = np.random.default_rng(seed)
    edges = {1: [-1e-3, -1e-3], 3: [1e-6, 0.25], 5: [0.0, 1.0], 7: [1e-3, 0.499]}  # by where boxes are cut
    point = np.array(edges[seed]) if seed in edges else rng.uniform(-1, 1, 2)
    w, near, a = rng.normal(size=(6, 2)), rng.uniform(-0.03, 0.03, 6), rng.normal(size=6)
    steep = 1.1 * (np.abs(a[:, None] * w)).sum()
    model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1)).double()
    eye = np.eye(2)
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(np.concatenate([eye, -eye, w])))
        model[0].bias.copy_(torch.from_numpy(np.concatenate([-point, point, near - w @ point])))
        model[2].weight.copy_(torch.from_numpy(np.concatenate([np.full(4, steep), a]))[None])
        model[2].bias.fill_(-float(a @ np.maximum(near, 0)))
    return lower(model, (2,)), point.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_one_unsafe_point_keeps_a_search_open(seed: int) -> None:
    graph, point = spike(seed)
    assert abs(float(graph(torch.tensor([point], dtype=torch.float64)))) < 1e-12
    box = ([-1.0, -1.0], [1.0, 1.0])
    for options in ({}, {"clip": False}, {"attribute": False, "steps": 0, "clip": False}):
        assert not search(graph, jobs((*box, [([1.0], 1e-9)])), 0.06, **options).closed
        assert search(graph, jobs((*box, [([1.0], -1e-3)])), **options).closed
