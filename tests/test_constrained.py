"""Repairs within what a network can hold: zeros that stay, also under the masks of torch's own pruning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import nnrepair
from nnrepair.errors import InvalidInput
from nnrepair.methods import FineTune, KeepZeros, MinimalNorm, OnGrid


def sparse(masked: bool) -> nn.Sequential:
    """Return a network with three weights of five at zero: by a mask, or as they are."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    for layer in (net[0], net[2]):
        prune.l1_unstructured(layer, "weight", 0.6)
        if not masked:
            prune.remove(layer, "weight")
    return net


def points(net: nn.Module) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, kept = torch.randn(2, 6), torch.randn(40, 6)
    return (x, (net(x).argmax(1) + 1) % 4), (kept, net(kept).argmax(1))


def zeros(net: nn.Module) -> list[Tensor]:
    return [net.get_submodule(name).weight == 0 for name in ("0", "2")]


@pytest.mark.parametrize("layer", ["2", "0"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "made permanent"])
def test_pruned_weights_stay_zero(layer: str, masked: bool) -> None:
    net = sparse(masked)
    edits, kept = points(net)
    method = MinimalNorm(layer=layer)
    result = nnrepair.fix(net, edits, kept, method=method if masked else KeepZeros(method))
    assert result.report.success_rate == 1.0
    assert all(map(torch.equal, zeros(net), zeros(result.model)))
    assert result.patch is not None
    assert torch.equal(result.patch.apply(net)(kept[0]), result.model(kept[0]))
    assert net.state_dict().keys() == result.model.state_dict().keys()


def test_without_being_asked_zeros_change() -> None:
    net = sparse(masked=False)
    edits, kept = points(net)
    result = nnrepair.fix(net, edits, kept, method=MinimalNorm(layer="2"))
    assert not all(map(torch.equal, zeros(net), zeros(result.model)))


def test_methods_that_add_something_are_refused() -> None:
    for around in (KeepZeros, OnGrid):
        with pytest.raises(InvalidInput, match="changes weights"):
            around("grace")
    assert KeepZeros(FineTune()).capabilities == FineTune().capabilities


def test_networks_without_a_grid_are_repaired_as_ever() -> None:
    net = sparse(masked=False)
    edits, kept = points(net)
    one, two = (
        nnrepair.fix(net, edits, kept, method=m) for m in (OnGrid(MinimalNorm(layer="2")), MinimalNorm(layer="2"))
    )
    assert all(map(torch.equal, one.model.parameters(), two.model.parameters()))
