"""The linear regions of networks, against exact arithmetic, dense samples and laws of geometry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp, randn, seeded
from reference.regions import Network
from reference.regions import Regions as ExactRegions
from torch import Tensor, nn

from nnrepair import InvalidInput, Polygons, Segments, UnsupportedModel
from nnrepair.regions.splitting import Pieces, split
from nnrepair.spec.regions import Regions
from nnrepair.verify import Box
from nnrepair.verify.reading.lowering import lower

SQUARE = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mid, self.out = nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.clip = nn.Hardtanh(-0.25, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.inp(x), 0.25)
        return self.out(h + self.clip(self.mid(h)))


def convolutions() -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(),
            nn.Linear(6, 3),
        )
    )  # fmt: skip


NETWORKS = {
    "one layer": (lambda: mlp(2, 8, 3), (2,)),
    "deep": (lambda: mlp(2, 9, 9, 9, 3, seed=1), (2,)),
    "residual": (lambda: seeded(Residual), (2,)),
    "no bend": (lambda: mlp(2, 3), (2,)),
    "convolutions": (convolutions, (1, 4, 4)),
}
every_network = pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS.keys())


def regions(kind: str, shape: tuple[int, ...], seed: int = 0) -> Regions:
    """Return three regions somewhere in a space of inputs."""
    size = math.prod(shape)
    if kind == "segments":
        return Segments(2 * randn(3, *shape, seed=seed), 2 * randn(3, *shape, seed=seed + 1))
    axes = torch.linalg.qr(randn(size, 2, seed=seed, dtype=torch.float64)).Q
    angles = [torch.arange(k) * 2 * math.pi / k + 0.3 for k in (3, 4, 7)]
    flat = [1.5 * torch.stack([a.cos(), a.sin()], 1).double() @ axes.T for a in angles]
    return Polygons([(points + 0.3 * k).reshape(-1, *shape) for k, points in enumerate(flat)])


def corners_of(pieces: Pieces, piece: int) -> Tensor:
    return pieces.points[pieces.corners[piece, : pieces.count[piece]]].flatten(1)


def extent(corners: Tensor) -> float:
    """Return the length of a segment, or the area of a polygon in any space (k, d)."""
    if len(corners) == 2:
        return float((corners[1] - corners[0]).norm())
    fan = corners[1:] - corners[0]
    a, b = fan[:-1], fan[1:]
    squared = (a * a).sum(1) * (b * b).sum(1) - (a * b).sum(1) ** 2
    return float(squared.clamp(min=0).sqrt().sum()) / 2


def samples(corners: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return points (count, d) of a convex hull."""
    shares = torch.rand(count, len(corners), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return (shares / shares.sum(1, keepdim=True)) @ corners


def pattern(model: nn.Module, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return (n, relus) which ReLUs are active."""
    graph = lower(model, shape)
    values = graph.values(x)
    parts = [values[graph.nodes[k].sources[0]] > 0 for k in graph.bent]
    return torch.cat(parts, 1) if parts else torch.zeros(len(x), 1, dtype=torch.bool)


@every_network
@pytest.mark.parametrize("kind", ["segments", "polygons"])
def test_pieces_tile_their_region_and_the_network_is_affine_on_each(make, shape, kind):
    model, given_regions = make(), regions(kind, shape)
    pieces = split(model, given_regions)
    double = make().double()
    assert torch.allclose(double(pieces.points), pieces.outputs, atol=1e-12)
    for k, whole in enumerate(given_regions.corners):
        mine = torch.nonzero(pieces.region == k).flatten().tolist()
        total = sum(extent(corners_of(pieces, p)) for p in mine)
        assert total == pytest.approx(extent(whole.flatten(1)), rel=1e-9)
    assert torch.equal(pieces.home[pieces.corners[:, 0]], pieces.region)
    for p in range(len(pieces)):
        at = pieces.corners[p, : pieces.count[p]]
        shares = torch.rand(20, len(at), generator=torch.Generator().manual_seed(p), dtype=torch.float64)
        shares /= shares.sum(1, keepdim=True)
        x = (shares @ pieces.points[at].flatten(1)).reshape(-1, *shape)
        assert torch.allclose(double(x), shares @ pieces.outputs[at], atol=1e-11)


@every_network
@pytest.mark.parametrize("kind", ["segments", "polygons"])
def test_every_activation_pattern_is_one_piece(make, shape, kind):
    model, given_regions = make(), regions(kind, shape, seed=5)
    pieces = split(model, given_regions)
    inner = pattern(model, pieces.centers.flatten(1), shape)
    for k, whole in enumerate(given_regions.corners):
        mine = inner[pieces.region == k]
        known = {tuple(row) for row in mine.tolist()}
        assert len(known) == len(mine), "two pieces share a pattern, so they should be one"
        found = {tuple(row) for row in pattern(model, samples(whole.flatten(1), 4000), shape).tolist()}
        assert found <= known


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_exact_arithmetic(seed):
    model = mlp(2, 4, 4, 3, seed=seed)
    pieces = split(model, Polygons(SQUARE[None]))
    exact = ExactRegions(Network(model, (2,)), Box([-1, -1], [1, 1]))
    flat = [cell for cell in exact.cells if len(cell.rays) >= 3]
    assert len(pieces) == len(flat)
    corners = {(round(float(ray[1] / ray[0]), 9), round(float(ray[2] / ray[0]), 9)) for c in flat for ray in c.rays}
    assert {(round(x, 9) + 0.0, round(y, 9) + 0.0) for x, y in pieces.points.tolist()} == corners
    for row in ([1, 0, 0], [0, -1, 1], [1, -2, 3]):
        least = float((pieces.outputs @ torch.tensor(row, dtype=torch.float64)).min())
        assert least == pytest.approx(float(exact.least(row)), abs=1e-12)


@given(data=st.data(), layers=st.lists(st.integers(1, 6), min_size=1, max_size=2))
@settings(max_examples=60, deadline=None)
def test_lines_that_meet_or_coincide(data, layers):
    """Small half-integer weights: units switch together, at corners and along edges, or nowhere."""
    model = mlp(2, *layers, 2)
    halves = st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.5, 1.0])
    with torch.no_grad():
        for p in model.parameters():
            drawn = data.draw(st.lists(halves, min_size=p.numel(), max_size=p.numel()))
            p.copy_(torch.tensor(drawn).reshape(p.shape))
    square, line = Polygons(SQUARE[None]), Segments([[-1.0, 0.5]], [[1.0, 0.5]])
    for regions, box, most in ((square, Box([-1, -1], [1, 1]), 3), (line, Box([-1, 0.5], [1, 0.5]), 2)):
        pieces, exact = split(model, regions), ExactRegions(Network(model, (2,)), box)
        assert len(pieces) == sum(len(cell.rays) >= most for cell in exact.cells)
        total = sum(extent(corners_of(pieces, p)) for p in range(len(pieces)))
        assert total == pytest.approx(extent(regions.corners[0]), rel=1e-12)
        for row in ([1, 0], [0, -1], [2, 1]):
            least = float((pieces.outputs @ torch.tensor(row, dtype=torch.float64)).min())
            assert least == pytest.approx(float(exact.least(row)), abs=1e-12)


@given(seed=st.integers(0, 10_000), layers=st.lists(st.integers(1, 12), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_corners_are_shared(seed, layers):
    model = mlp(2, *layers, 2, seed=seed)
    pieces = split(model, Polygons([SQUARE, SQUARE[:3] * 2]))
    for k in range(2):
        mine = torch.nonzero(pieces.region == k).flatten().tolist()
        rings = [pieces.corners[p, : pieces.count[p]].tolist() for p in mine]
        edges = {frozenset(pair) for ring in rings for pair in zip(ring, ring[1:] + ring[:1], strict=True)}
        vertices = {v for ring in rings for v in ring}
        assert all(len(set(ring)) == len(ring) for ring in rings)
        assert len(vertices) - len(edges) + len(rings) == 1  # Euler: nothing is torn or there twice
        assert len(vertices) == int((pieces.home == k).sum())


def test_a_line_of_zeros_is_no_cut():
    """Units that are zero all along a region, or just touch it, do not switch there."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 2.0]))
    along = split(model, Segments([[0.0, -1]], [[0.0, 1]]))
    assert len(along) == 2  # the first unit is zero throughout, the second switches, the third touches zero at an end
    assert len(split(model, Segments([[-1.0, -1]], [[1.0, -1]]))) == 2
    both = split(model, Polygons(SQUARE[None]))
    assert len(both) == 4 and len(both.points) == 9


def test_many_regions_go_in_parts(monkeypatch):
    model, some = mlp(2, 9, 9, 3), regions("segments", (2,))
    whole = split(model, some)
    monkeypatch.setattr("nnrepair.regions.splitting.TOGETHER", 1)
    parts = split(model, some)
    assert torch.equal(parts.region.bincount(), whole.region.bincount())
    assert sorted(parts.points.tolist()) == sorted(whole.points.tolist())


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).reshape(-1, 2, 2)


def test_what_cannot_be_split_is_refused():
    square = Polygons(SQUARE[None])
    with pytest.raises(UnsupportedModel, match=r"(?s)must be piecewise linear.*Sigmoid: not"):
        split(mlp(2, 3, 2, activation=nn.Sigmoid), square)
    with pytest.raises((InvalidInput, UnsupportedModel)):
        split(mlp(3, 3, 2), square)
    hooked = mlp(2, 3, 2)
    hooked[0].register_forward_hook(lambda module, given, y: y + 1)
    with pytest.raises(UnsupportedModel, match="another function"):
        split(hooked, square)
    with pytest.raises(InvalidInput, match="one row of outputs per input"):
        split(Pictures(), square)
