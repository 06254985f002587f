"""Edits over whole regions: what was asked for holds at every point, by dense samples and by the checker."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mistakes, mlp, randn, seeded
from reference.regions import Network
from torch import Tensor, nn

import nnrepair
from nnrepair import (
    AllOf,
    Argmax,
    Argmin,
    Criterion,
    Decoupled,
    Edits,
    InvalidInput,
    Linear,
    Near,
    Polygons,
    RepairFailed,
    Segments,
    Threshold,
    UnsupportedModel,
)
from nnrepair.methods import MinimalNorm
from nnrepair.regions.edits import RegionEdits
from nnrepair.regions.splitting import split
from nnrepair.spec.criteria import Chosen
from nnrepair.spec.regions import Regions

LAST = MinimalNorm("4", margin=0.01)
A, B = Segments(randn(3, 3), randn(3, 3, seed=1)), Segments(randn(3, 3, seed=2), randn(3, 3, seed=3))
SQUARE = torch.tensor([[-1.0, -1, 0.5], [1, -1, 0], [1, 1, 0], [-1, 1, 0.5]])
POLYGONS = Polygons([SQUARE + 3, SQUARE[:3] - 3])


def net(seed: int = 0) -> nn.Sequential:
    return mlp(3, 12, 10, 4, seed=seed)


def dense(regions: Regions, count: int = 400) -> tuple[Tensor, Tensor]:
    """Return (points, which region each is of): corners and many points of every region, in float64."""
    generator = torch.Generator().manual_seed(0)
    points = []
    for corners in regions.corners:
        shares = torch.rand(count, len(corners), generator=generator, dtype=torch.float64) ** 3
        shares = torch.cat([shares / shares.sum(1, keepdim=True), torch.eye(len(corners), dtype=torch.float64)])
        points.append((shares @ corners.flatten(1)).reshape(-1, *regions.shape))
    return torch.cat(points), torch.repeat_interleave(torch.arange(len(points)), torch.tensor([len(p) for p in points]))


def holds_everywhere(model: nn.Module, regions: Regions, criterion: Criterion) -> bool:
    points, region = dense(regions)
    with torch.no_grad():
        return bool(criterion[region].holds(copy.deepcopy(model).double()(points)).all())


class Lowest(nn.Module):
    """Its second choice is the worst of the network's."""

    def forward(self, x: Tensor) -> Tensor:
        y = -net()(x)
        return y.scatter(1, y.argmax(1, keepdim=True), 1e3).scatter(1, y.argmin(1, keepdim=True), 1e4)


def labels(regions: Regions, model: nn.Module | None = None) -> Tensor:
    """Return for each region a label that is wrong at its first corner."""
    return mistakes(model or net(), torch.stack([c[0] for c in regions.corners]).float())


def halfspaces(n: int, seed: int) -> Linear:
    """Return one condition for each of n regions that the network does not satisfy."""
    return Linear(randn(n, 2, 4, seed=seed), torch.full((n, 2), 0.3))


def answers(n: int, labels: list[int] | None = None) -> Threshold:
    """Return yes-or-no answers, one of them free, of which the network does not give all."""
    return Threshold(torch.tensor([labels or [0, 1, -1, 0]]).repeat(n, 1), threshold=0.05)


def half_free(n: int) -> Near:
    return Near(torch.zeros(n, 4), torch.tensor([0.2, 0.2, torch.inf, torch.inf]))


CRITERIA: dict[str, Any] = {
    "argmax": lambda r: Argmax(labels(r)),
    "argmax with margin": lambda r: Argmax(labels(r), margin=0.2),
    "argmin": lambda r: Argmin(labels(r)),
    "linear": lambda r: halfspaces(len(r), 3),
    "answers": lambda r: answers(len(r)),
    "any of answers": lambda r: answers(len(r)) | answers(len(r), [-1, 0, 1, 0]),
    "near": lambda r: Near(torch.zeros(len(r), 4), tol=0.2),
    "all of": lambda r: AllOf(Argmax(labels(r)), Near(torch.zeros(len(r), 4), tol=1.0)),
    "any of": lambda r: halfspaces(len(r), 3) | halfspaces(len(r), 4),
    "any label": lambda r: Argmax(labels(r)) | Argmax(labels(r, Lowest())),
    "any of three labels": lambda r: Argmax(labels(r)) | Argmax(labels(r, Lowest())) | Argmax(labels(r)),
    "any of three": lambda r: halfspaces(len(r), 3) | halfspaces(len(r), 4) | Near(torch.zeros(len(r), 4), tol=0.2),
    "any of all with labels": lambda r: (Argmax(labels(r)) & halfspaces(len(r), 5)) | half_free(len(r)),
    "any of all": lambda r: (halfspaces(len(r), 3) & halfspaces(len(r), 5)) | Near(torch.zeros(len(r), 4), tol=0.2),
}


@pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA.keys())
@pytest.mark.parametrize("regions", [A, POLYGONS], ids=["segments", "polygons"])
def test_the_last_layer_is_repaired_everywhere(make, regions):
    model, criterion = net(), make(regions)
    assert not holds_everywhere(model, regions, criterion)
    before = copy.deepcopy(model.state_dict())
    result = nnrepair.fix(model, Edits(regions, criterion), method=LAST)
    assert result.report.success_rate == 1.0 and result.report.edits == len(regions)
    assert type(result.model) is type(model) and result.patch is not None and result.certificate is None
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert holds_everywhere(result.model, regions, criterion)
    assert "linear regions of the returned network" in result.report.notes[-1]
    assert ("gap" in result.stats) == (not hasattr(criterion, "parts") or isinstance(criterion, AllOf))


def test_corners_with_their_margin_are_all_that_a_repair_needs():
    """The smallest repair of the corners, given as plain points, is the smallest repair of the regions."""
    model = net().double()
    wanted = labels(A)
    pieces = split(model, A)
    points = nnrepair.fix(model, (pieces.points, wanted[pieces.home]), method=LAST)
    whole = nnrepair.fix(model, Edits(A, wanted), method=LAST)
    assert whole.stats["objective"] == pytest.approx(points.stats["objective"], rel=1e-9)
    assert whole.stats["gap"] < 1e-6


@pytest.mark.parametrize("layer", ["0", "2", "4"])
@pytest.mark.parametrize("regions", [A, POLYGONS], ids=["segments", "polygons"])
def test_any_layer_of_the_decoupled_network(layer, regions):
    model, criterion = net(), Argmax(labels(regions))
    method = MinimalNorm(layer, architecture="decoupled", margin=0.01)
    result = nnrepair.fix(model, Edits(regions, criterion), method=method)
    assert isinstance(result.model, Decoupled) and result.stats["gap"] < 1e-6
    assert holds_everywhere(result.model, regions, criterion)


def test_the_decoupled_network_is_worse_off_with_corners_seen_from_outside():
    """Why corners count once per piece: where a unit switches, f(x) + J(x) d jumps, and both sides have to hold."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for p, value in zip(model.parameters(), ([[1.0]], [0.0], [[1.0], [0.0]], [0.0, 1.0]), strict=True):
            p.copy_(torch.tensor(value))
    edits = Edits(Segments([[-1.0]], [[1.0]]), Linear([[-1.0, 1.0]], [0.5], points=1))  # fails near 1 alone
    result = nnrepair.fix(model, edits, method=MinimalNorm("0", architecture="decoupled", margin=0.0))
    judge = RegionEdits(model, edits, True).judge(result.model)
    assert bool(judge.holds.all()) and judge.least >= -1e-9
    assert holds_everywhere(result.model, edits.inputs, edits.criterion)


@pytest.mark.parametrize("layer", ["0", "2"])
def test_hidden_layers_in_the_same_architecture_are_split_again(layer):
    model, criterion = net(), Argmax(labels(A))
    result = nnrepair.fix(model, Edits(A, criterion), method=MinimalNorm(layer, margin=0.01), throw=False)
    assert type(result.model) is type(model)
    assert result.report.held_after == RegionEdits(model, Edits(A, criterion), False).judge(result.model).holds.tolist()
    if result.outcome.ok:
        assert holds_everywhere(result.model, A, criterion)


class Creeping:
    """Returns the network with a ramp in its first layer that moves on at every call: regions always move."""

    capabilities = LAST.capabilities

    def __init__(self) -> None:
        self.points: list[int] = []

    def repair(self, problem: Any) -> Any:
        from nnrepair.methods.base import Proposal

        self.points.append(len(problem.edits))
        model = copy.deepcopy(problem.model)
        with torch.no_grad():
            model[0].bias += 0.01 * len(self.points)
        return Proposal(model)


def test_what_fails_after_the_regions_moved_joins_the_edits():
    method = Creeping()
    with pytest.raises(RepairFailed) as failed:
        nnrepair.fix(net(), Edits(A, labels(A)), method=method)
    assert "does not move linear regions" in failed.value.result.report.notes[-2]
    assert len(method.points) > 2 and method.points == sorted(set(method.points))
    assert failed.value.result.report.edits == 3


@given(seed=st.integers(0, 10_000), wanted=st.integers(0, 2), other=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_the_judge_is_right(seed, wanted, other):
    model = mlp(2, 6, 6, 3, seed=seed)
    regions = Polygons([2 * randn(3, 2, seed=seed)])
    asked = Argmax([wanted]) if wanted == other else Near(torch.zeros(1, 3), 0.4) | halves(wanted, other)
    judged = RegionEdits(model, Edits(regions, asked), False).judge(model)
    assert bool(judged.holds[0]) == (len(judged.failing) == 0)
    if judged.holds[0]:
        assert holds_everywhere(model, regions, asked)
    elif isinstance(asked, Argmax):  # without alternatives, what fails is a counterexample
        assert not asked[judged.failing.region].holds(model.double()(judged.failing.point)).any()


def halves(a: int, b: int) -> Criterion:
    A = torch.zeros(1, 3)
    A[0, a], A[0, b] = 1.0, -1.0
    return Linear(A, [0.1], points=1)


def test_convolutions():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
        )
    )  # fmt: skip
    lines = Segments(randn(4, 1, 6, 6), randn(4, 1, 6, 6, seed=1))
    criterion = Argmax(labels(lines, model))
    for method in (MinimalNorm("4"), MinimalNorm("0", architecture="decoupled")):
        result = nnrepair.fix(model, Edits(lines, criterion), method=method)
        assert holds_everywhere(result.model, lines, criterion)


def test_a_disjunction_of_halfspaces_may_change_its_part_within_a_region():
    """y = (x, -x): on [-1, 1], y[0] >= 0 holds right of zero and y[1] >= 0 left of it; nothing has to change."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    either = Linear([[1.0, 0]], [0.0], points=1) | Linear([[0.0, 1]], [0.0], points=1)
    result = nnrepair.fix(model, Edits(Segments([[-1.0]], [[1.0]]), either))
    assert result.outcome.status == "nothing to do"
    pieces = RegionEdits(model, Edits(Segments([[-1.0]], [[1.0]]), either), False)._pieces
    assert len(pieces) == 2 and 0.0 in pieces.points.flatten().tolist()


def test_corners_of_one_group_take_one_alternative():
    y = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 1.0]])
    either = Argmax([0, 0, 0]) | Argmax([1, 1, 1])
    chosen = either.resolve(y, torch.tensor([0, 0, 1]))
    assert isinstance(chosen, Chosen) and chosen.choice.tolist() == [0, 0, 1]


def test_the_locality_set_is_kept():
    model, kept = net(), randn(30, 3, seed=9)
    result = nnrepair.fix(model, Edits(B, labels(B)), kept, method=MinimalNorm("4"), throw=False)
    assert result.report.locality_points == 30
    if result.outcome.ok:
        assert result.report.locality == 1.0


def test_float64_and_the_front_door():
    result = nnrepair.fix(net().double(), (A, labels(A).tolist()))
    assert result.outcome.ok and holds_everywhere(result.model, A, Argmax(labels(A)))
    assert result.asked is not None and result.asked.edits.inputs is A


def test_contradicting_regions_are_named():
    lines = Segments([[0.0, 0, 0], [0, 0, 0], [5, 5, 5]], [[1.0, 0, 0], [0, 1, 0], [5, 5, 6]])  # two share a start
    result = nnrepair.fix(net(), Edits(lines, [0, 1, 2]), method=LAST, throw=False)
    assert result.outcome.status == "infeasible" and result.outcome.conflict == [0, 1]


def test_edits_that_cannot_be_are_refused():
    model = net()
    twice = Segments(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(InvalidInput, match=r"Equal regions are given different labels: edits 0 and 1 \(labels 1 and 2"):
        nnrepair.fix(model, Edits(twice, [1, 2]))
    turned = Segments([[0.0, 0, 0], [1, 1, 1]], [[1.0, 1, 1], [0, 0, 0]])
    with pytest.raises(InvalidInput, match="Equal regions"):
        nnrepair.fix(model, Edits(turned, [1, 2]))
    with pytest.raises(InvalidInput, match="3 inputs but 2 labels"):
        Edits(A, [1, 2])
    with pytest.raises(InvalidInput, match="Labels must lie in 0..3"):
        nnrepair.fix(model, Edits(A, [1, 2, 7]))
    with pytest.raises(InvalidInput, match=r"does not accept the edits"):
        nnrepair.fix(mlp(2, 3, 2), Edits(A, [0, 1, 0]))
    with pytest.raises(InvalidInput, match="must be a torch.nn.Module"):
        nnrepair.fix("net", Edits(A, [0, 1, 0]))
    with pytest.raises(UnsupportedModel, match=r"(?s)piecewise linear.*Sigmoid"):
        nnrepair.fix(mlp(3, 5, 2, activation=nn.Sigmoid), Edits(A, [0, 1, 0]))


@pytest.mark.parametrize("regions", [A, POLYGONS], ids=["segments", "polygons"])
def test_a_repair_is_verified_over_its_whole_regions(regions):
    model, wanted = net(), labels(regions)
    result = nnrepair.fix(model, Edits(regions, wanted), method=MinimalNorm("4", margin=0.05))
    verdict = result.verify(timeout=60)
    assert verdict.verdict == "holds" and f"{len(regions)} of {len(regions)} regions confirmed" in verdict.reason
    undone = copy.copy(result)
    object.__setattr__(undone, "model", model)
    broken = undone.verify(timeout=60)
    assert broken.verdict == "violated" and "certainly wrong: 0" in broken.reason
    found = broken.counterexample
    x = torch.from_numpy(found.input)
    assert model.double()(x[None]).argmax(1) != wanted[0]
    assert [float(v) for v in found.exact_input] == found.input.tolist()
    values = Network(model, (3,)).at(found.exact_input)
    assert all(low <= v <= high for v, (low, high) in zip(values, found.exact_output, strict=True))


def test_verifying_a_triangle_says_nothing_about_the_rest_of_its_plane():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-1.0, -1], [0, 0]]))  # class 0 where x + y < 0
    corners = torch.tensor([[0.0, 0], [-1, 0], [0, -1]])
    assert not RegionEdits(model, Edits(Polygons([corners]), [0]), False).judge(model).holds[0]  # a tie
    for shift, verdict in ((-0.1, "holds"), (0.1, "violated")):
        edits = Edits(Polygons([corners + shift]), [0])
        result = nnrepair.fix(model, edits, throw=False)
        assert result.report.held_before == [verdict == "holds"]
        object.__setattr__(result, "model", model)
        assert result.verify(timeout=60).verdict == verdict


def single(seed: int = 0) -> nn.Sequential:
    return mlp(3, 12, 10, 1, seed=seed)


@pytest.mark.parametrize("regions", [A, POLYGONS], ids=["segments", "polygons"])
@pytest.mark.parametrize("either", [False, True])
def test_the_sign_of_one_output_is_repaired_everywhere(regions: Regions, either: bool) -> None:
    model = single()
    with torch.no_grad():
        wrong = (model(torch.stack([c[0] for c in regions.corners]).float())[:, 0] <= 0).long()
    asked: Any = Threshold(wrong) | Threshold(wrong, margin=0.5) if either else wrong
    result = nnrepair.fix(model, Edits(regions, asked), method=LAST)
    assert holds_everywhere(result.model, regions, Threshold(wrong))
    assert result.verify().verdict == "holds"


def test_equal_regions_with_contradicting_answers_are_refused() -> None:
    twice = Segments(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(InvalidInput, match=r"0 and 1 \(labels 1 and 0\)"):
        nnrepair.fix(single(), Edits(twice, [True, False]), method=LAST)
