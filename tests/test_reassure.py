"""REASSURE: patches on linear regions, which change nothing outside of them, bit for bit."""

from __future__ import annotations

import pytest
import torch
from networks import clusters, mistakes, mlp, randn
from torch import nn

import nnrepair
from nnrepair import InvalidInput, UnsupportedModel
from nnrepair.methods import REASSURE
from nnrepair.wrappers import Regional


def hidden(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return which hidden units are on, as a slow twin: the first layer's signs."""
    return (model[0](x) > 0).detach()


def test_outputs_outside_of_the_regions_of_the_edits_are_the_same_bits() -> None:
    model, x = mlp(4, 12, 3, seed=1).eval(), randn(6, 4, seed=3)
    others = clusters(400, 4, seed=6)
    result = nnrepair.fix(model, (x, mistakes(model, x)), others, method="reassure")
    assert result.report.success_rate == 1
    inside = (hidden(model, others)[:, None] == hidden(model, x)).all(2).any(1)
    assert 0 < int(inside.sum()) < len(others)
    moved = (result.model(others) != model(others)).any(1)
    assert not bool(moved[~inside].any())
    assert bool(moved[inside].any())


def test_a_patch_is_the_smallest_shift_and_fades_towards_the_faces() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 4.0]))
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([1.0, 0.0]))
    result = nnrepair.fix(model, (torch.tensor([[2.0]]).double(), [1]), method=REASSURE(margin=0.5))
    x = torch.tensor([[2.0], [1.0], [0.0], [4.0], [-3.0]]).double()
    added = (result.model(x) - model(x)).detach()
    assert added[0].tolist() == pytest.approx([-0.75, 0.75], rel=0.02)  # half of the gap each, and the margin
    assert added[1].tolist() == pytest.approx([half / 2 for half in added[0].tolist()])
    assert torch.equal(added[2:], torch.zeros(3, 2).double())


def test_edits_of_one_region_share_its_patch_and_those_that_cannot_are_told_of() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 1.0]))
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([1.0, 0.0]))
    result = nnrepair.fix(model, (torch.tensor([[1.0], [1.5]]), [1, 1]), method="reassure")
    assert isinstance(result.model, Regional)
    assert len(result.model) == 1
    near = torch.tensor([[1.0], [1.0001]])  # what one needs reaches the other
    failed = nnrepair.fix(model, (near, [0, 1]), method="reassure", throw=False)
    assert failed.report.success_rate == 0.5
    assert any("1 edit shares a linear region" in note for note in failed.report.notes)


def test_a_sequence_extends_what_is_there() -> None:
    model, x = mlp(4, 12, 3, seed=1).eval(), randn(4, 4, seed=3)
    history = nnrepair.fix(model, (x, mistakes(model, x)), method="reassure", mode="successive")
    assert history.success_retain_rate == 1
    assert isinstance(history.model, Regional)
    assert not isinstance(history.model.base, Regional)


def test_networks_without_relus_and_margins_that_cannot_be_are_refused() -> None:
    model, x = nn.Linear(2, 2).eval(), torch.ones(1, 2)
    with pytest.raises(UnsupportedModel, match="need ReLUs"):
        nnrepair.fix(model, (x, mistakes(model, x)), method="reassure")
    with pytest.raises(InvalidInput, match="margin"):
        REASSURE(margin=-1.0)
