"""Whole regions to keep: what holds on them today still holds at every point after a repair, by samples and exactly."""

from __future__ import annotations

import pytest
import torch
from networks import mistakes, mlp, randn
from test_regions import holds_everywhere
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Edits, InvalidInput, Linear, LocalitySet, Polygons, RepairFailed, Segments, repair_property
from nnrepair.methods import MinimalNorm
from nnrepair.verify import Box, Property

X = randn(4, 3, seed=5)
STARTS = randn(60, 3, seed=6)
LAST = MinimalNorm("2", margin=0.01)


def net() -> nn.Sequential:
    return mlp(3, 16, 4)


def kept(size: float = 0.5) -> tuple[Segments, Tensor]:
    """Return segments on which the network decides one thing, and what."""
    moved = STARTS + size * randn(60, 3, seed=7)
    with torch.no_grad():
        y = net()(torch.stack([STARTS + t * (moved - STARTS) for t in torch.linspace(0, 1, 400)])).argmax(2)
    same = (y == y[0]).all(0)
    return Segments(STARTS[same], moved[same]), y[0][same]


def wanted() -> tuple[Tensor, Tensor]:
    return X, mistakes(net(), X)


@pytest.mark.parametrize("method", [LAST, MinimalNorm("2", margin=0.01, architecture="decoupled")], ids=["last", "two"])
def test_decisions_stay_at_every_point(method: MinimalNorm) -> None:
    regions, labels = kept()
    assert len(regions) > 30
    free = nnrepair.fix(net(), wanted(), method=method)
    assert not holds_everywhere(free.model, regions, Argmax(labels))
    result = nnrepair.fix(net(), wanted(), LocalitySet(regions, labels), method=method)
    assert result.report.success_rate == 1
    assert holds_everywhere(result.model, regions, Argmax(labels))
    assert result.report.notes[-1].startswith(f"to keep: {len(regions)} regions, ")


def test_ends_alone_do_not_keep_what_is_between() -> None:
    regions, labels = kept(1.5)
    ends = torch.cat([corners.float() for corners in regions.corners]), labels.repeat_interleave(2)
    assert not holds_everywhere(nnrepair.fix(net(), wanted(), ends, method=LAST).model, regions, Argmax(labels))
    whole = nnrepair.fix(net(), wanted(), (regions, labels), method=LAST)
    assert holds_everywhere(whole.model, regions, Argmax(labels))


def test_they_are_verified_as_a_part_of_the_repair() -> None:
    regions, labels = kept()
    result = nnrepair.fix(net(), wanted(), LocalitySet(regions, labels), method=LAST)
    answer = result.verify()
    assert answer.verdict == "holds"
    assert f"regions to keep: {len(regions)} of {len(regions)} regions confirmed" in answer.reason
    with torch.no_grad():
        result.model[2].bias[int(labels[0])] -= 100
    broken = result.verify()
    assert broken.verdict == "violated" and "regions to keep" in broken.reason


def test_beside_edits_over_regions_and_one_after_another() -> None:
    regions, labels = kept()
    edits = Edits(Segments(X, X + 0.1), wanted()[1])
    result = nnrepair.fix(net(), edits, LocalitySet(regions, labels), method=LAST)
    assert holds_everywhere(result.model, edits.inputs, edits.criterion)
    assert holds_everywhere(result.model, regions, Argmax(labels))
    history = nnrepair.fix(net(), wanted(), LocalitySet(regions, labels), method=LAST, mode="successive")
    assert history.success_retain_rate == 1
    assert holds_everywhere(history.model, regions, Argmax(labels))


def test_conditions_on_polygons_stay() -> None:
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    points = torch.cat([square, torch.cat([torch.rand(2000, 2) * 2 - 1, torch.zeros(2000, 1)], 1)])
    with torch.no_grad():
        free, y = nnrepair.fix(net(), wanted(), method=LAST).model(points), net()(points)
        rises = int((free.amax(0) - y.amax(0)).argmax())  # the output whose largest value the repair lifts most
        least = float(y[:, rises].max()) + 0.5 * float(free[:, rises].max() - y[:, rises].max())
        assert least < float(free[:, rises].max())
        at_most = Linear(-torch.eye(4)[None, rises : rises + 1], torch.tensor([[-least]]))
        result = nnrepair.fix(net(), wanted(), LocalitySet(Polygons([square]), at_most), method=LAST)
        assert float(result.model(points)[:, rises].max()) <= least + 1e-6


def test_a_hidden_layer_says_what_was_lost() -> None:
    regions, labels = kept()
    method = MinimalNorm("0", margin=0.01)
    try:
        result = nnrepair.fix(net(), wanted(), LocalitySet(regions, labels), method=method)
    except RepairFailed as failed:
        result = failed.result
    everywhere = holds_everywhere(result.model, regions, Argmax(labels))
    assert everywhere or result.outcome.status == "partly repaired"


def kinked() -> nn.Sequential:
    """Return |x| - 0.5 against 0: at 0 both units are off, which they are on neither side of it."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    values = [[[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0], [0.0, 0.0]], [-0.5, 0.0]]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    return model


def test_a_decoupled_network_holds_on_the_border_of_its_pieces_too() -> None:
    start, end, decoupled = torch.tensor([[0.0]]), torch.tensor([[1.0]]), MinimalNorm("0", architecture="decoupled")
    with pytest.raises(RepairFailed, match="infeasible"):  # at 0 no change of layer 0 is seen
        nnrepair.fix(kinked(), Edits(Segments(start, end), [0]), method=decoupled)
    inside = nnrepair.fix(kinked(), Edits(Segments(start + 0.01, end), [0]), method=decoupled)
    assert inside.report.success_rate == 1
    shifted = kinked()
    with torch.no_grad():
        shifted[2].bias.copy_(torch.tensor([-0.5, -1.0]))  # the first output wins everywhere, by 0.5 at least
    regions = LocalitySet(Segments(torch.cat([start, start - 1]), torch.cat([end, start])), [0, 0])
    method = MinimalNorm("0", margin=0.01, architecture="decoupled")
    result = nnrepair.fix(shifted, (torch.tensor([[0.0]]) + 3, [1]), regions, method=method, throw=False)
    x = torch.linspace(-1, 1, 201)[:, None]
    assert result.outcome.status != "repaired" or bool((result.model(x).argmax(1) == 0).all())


def test_what_cannot_be_kept_is_refused() -> None:
    regions, labels = kept()
    others = (labels + (torch.arange(len(labels)) == 2)) % 4
    with pytest.raises(InvalidInput, match=r"Regions to keep: \[2\] does not hold at every point today. Give it"):
        nnrepair.fix(net(), wanted(), LocalitySet(regions, others), method=LAST)
    with pytest.raises(InvalidInput, match="need labels or a criterion"):
        nnrepair.fix(net(), wanted(), regions, method=LAST)
    with pytest.raises(InvalidInput, match="GRACE repairs points, but what is to be kept is about regions"):
        nnrepair.fix(net(), wanted(), LocalitySet(regions, labels), method="grace")
    with pytest.raises(InvalidInput, match="only what nnrepair.fix keeps can be whole regions"):
        nnrepair.fix(net(), wanted(), method=LAST, test_set=LocalitySet(regions, labels))
    with pytest.raises(InvalidInput, match="must be a tensor"):
        box = Property.on(Box([-1] * 3, [1] * 3), Argmax([0]), outputs=4)
        repair_property(net(), box, locality_set=LocalitySet(regions, labels))
