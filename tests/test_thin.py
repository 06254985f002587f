"""Networks of which few inputs are free: what does not depend on them becomes constants, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import randn
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.deadline import NEVER
from nnrepair.verify import Box, Case, Halfspace, Property, check
from nnrepair.verify.parts import SearchedPart, parts_of
from nnrepair.verify.reading import partial
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.intervals import outputs_over
from nnrepair.verify.search.jobs import Jobs

A, B, C = (randn(8, 5, seed=1), randn(8, 8, seed=2), randn(3, 8, seed=3))
BIAS = randn(8, seed=4)


class Code(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def rows(x: Tensor) -> Tensor:
    return F.relu(F.linear(F.relu(F.linear(x, A, BIAS)), B))


#: Networks of six rows of five numbers.
NETWORKS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows, averaged": lambda x: F.linear(rows(x).mean(1), C),
    "rows, weighted": lambda x: F.linear((rows(x) * x[..., :1]).sum(1) / (1 + x[..., 0].abs().sum(1, True)), C),
    "several parts": lambda x: torch.cat([rows(x[:, :3]).amax(1), rows(x[:, 3:]).mean(1)], 1)[:, 4:12].sigmoid(),
    "softmax over rows": lambda x: F.linear((x[..., :1].softmax(1) * rows(x)).sum(1), C),
    "constants alone somewhere": lambda x: F.linear(rows(x[:, 1:]).mean(1) + rows(x[:, :1])[:, 0], C),
    "some outputs": lambda x: torch.cat([F.relu(x)[:, :, 0], F.linear(rows(x)[:, 3], C)], 1),
    "a convolution behind": lambda x: F.conv2d(rows(x).reshape(-1, 1, 6, 8), randn(2, 1, 3, 3, seed=5)).amax((2, 3)),
    "cumulative": lambda x: F.linear(rows(x).cumsum(1)[:, -1] * 0.5, C),
}
#: Which inputs are free.
FREE = {"one": [2], "part of a row": [10, 12], "two rows": [5, 6, 7, 8, 9, 20, 21, 22, 23, 24], "unlike": [3, 11, 12]}


def thin_and_whole(call: Callable[[Tensor], Tensor], free: list[int], seed: int = 0) -> tuple[Graph, SearchedPart]:
    model, x = Code(call), randn(30, seed=seed).double()
    low, high = x.clone(), x.clone()
    low[free] -= 0.5
    high[free] += 0.5
    outputs = int(call(torch.zeros(1, 6, 5)).numel())
    prop = Property([Case(Box(low, high), ((Halfspace((1,) + (0,) * (outputs - 1), 0),),))], outputs)
    jobs = Jobs.of(prop)
    graph = lower(model, (6, 5), region=(jobs.lower[0], jobs.upper[0]))
    (part,) = parts_of(jobs, lambda low, high: graph, graph, NEVER)
    return graph, part


@pytest.mark.parametrize("which", FREE)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_function_and_bounds_that_hold(name: str, which: str) -> None:
    graph, part = thin_and_whole(NETWORKS[name], FREE[which])
    low, high = part.jobs.lower, part.jobs.upper
    share = torch.rand(40, len(FREE[which]), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    points = torch.cat([low + share * (high - low), low, high])
    y, expected = part.graph(points), graph(part.whole(points))
    assert torch.allclose(y, expected, rtol=1e-11, atol=1e-11)
    ends = outputs_over(part.graph, points, points)
    for least, most in (ends, outputs_over(part.graph, low, high)):
        assert bool(((least <= expected + 1e-12) & (expected - 1e-12 <= most)).all())
    bounder = Bounder(part.graph, low[0], high[0])
    row = randn(1, part.graph.outputs, seed=6).double()
    bound = bounder.backward(bounder.relax(low, high), len(part.graph.nodes) - 1, row, torch.tensor([0]))
    assert float(bound.minimum(low, high)) <= float((expected @ row.T).min()) + 1e-12
    whole = Bounder(graph, *(part.whole(end)[0] for end in (low, high)))
    ends = [part.whole(end) for end in (low, high)]
    same = whole.backward(whole.relax(*ends), len(graph.nodes) - 1, row, torch.tensor([0])).minimum(*ends)
    assert float(bound.minimum(low, high)) == pytest.approx(float(same), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if name not in ("a convolution behind", "softmax over rows")]
)
def test_little_is_left(name: str) -> None:
    graph, part = thin_and_whole(NETWORKS[name], [5])
    assert part.graph.hidden <= 0.5 * graph.hidden


def test_networks_that_keep_most_stay_as_they_are() -> None:
    graph, part = thin_and_whole(NETWORKS["rows, averaged"], list(range(25)))
    assert part.graph.hidden == graph.hidden


def test_constants_say_how_far_they_are_off() -> None:
    _, part = thin_and_whole(NETWORKS["rows, averaged"], [2])
    errors = [node.affine.off for node in part.graph.nodes if isinstance(node.affine, partial.Shifted)]
    assert errors and all(bool((off > 0).all()) for off in errors)


def test_verdicts() -> None:
    model = Code(NETWORKS["rows, averaged"])
    x = randn(30, seed=0).double()
    low, high = x.clone(), x.clone()
    low[[2, 11]] -= 1.0
    high[[2, 11]] += 1.0
    seen = [float(v) for v in _sampled(model, low, high)]
    for place, verdict in ((min(seen) - 0.05, "holds"), (min(seen) + 0.02, "violated")):
        box = Box(low.reshape(6, 5), high.reshape(6, 5))
        prop = Property([Case(box, ((Halfspace((1, 0, 0), place),),))], 3)
        found = check(model, prop, timeout=30)
        assert found.verdict == verdict
        if found.counterexample is not None:
            assert len(found.counterexample.exact_input) == 30


def _sampled(model: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    share = torch.rand(5000, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share[:2000] = share[:2000].round()
    with torch.no_grad():
        return model((low + share * (high - low)).float().reshape(-1, 6, 5))[:, 0]
