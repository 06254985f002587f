"""Low-rank adapters: matrices change by products of two thin ones."""

from __future__ import annotations

import pytest
import torch
from networks import clusters, mistakes, mlp, randn

import nnrepair
from nnrepair import InvalidInput
from nnrepair.methods import FineTune
from nnrepair.penalties import EWC, KL, LInf, TopShare


@pytest.mark.parametrize("penalties", [(), (KL(1.0),), (EWC(1.0),)])
def test_changes_of_matrices_have_this_rank_and_nothing_else_changes(
    penalties: tuple[object, ...],
) -> None:
    model, x = mlp(6, 12, 5, seed=1).eval(), randn(3, 6, seed=3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    method = FineTune(lr=0.03, steps=300, rank=2, penalties=penalties)  # type: ignore[arg-type]
    result = nnrepair.fix(model, (x, mistakes(model, x)), clusters(60, 6, seed=6), method=method)
    assert result.outcome.ok
    for name, value in result.model.named_parameters():
        change = (value - before[name]).detach().double()
        if change.ndim == 1:
            assert not bool(change.any())
        else:
            sizes = torch.linalg.svdvals(change)
            assert sizes[2] < 1e-4 < sizes[0]


def test_the_gradient_of_the_factors_is_that_of_the_loss() -> None:
    from nnrepair.methods.fine_tune.steps import LowRank

    old, wanted = randn(4, 3, 2, seed=1).double(), randn(4, 3, 2, seed=2).double()
    place = LowRank({"w": old}, 2, torch.Generator().manual_seed(0))
    up, down = (part.requires_grad_(True) for part in place.stepped["w"])
    with torch.no_grad():
        up += randn(4, 2, seed=3).double()
    loss = (wanted * (old + (up @ down).reshape(4, 3, 2)).sin()).sum()
    expected = torch.autograd.grad(loss, [up, down])
    place.take({"w": wanted * place.weights()["w"].cos()})
    assert all(torch.allclose(part.grad, one) for part, one in zip((up, down), expected, strict=True))  # type: ignore[arg-type]


def test_bounds_on_single_weights_and_layers_without_matrices_are_refused() -> None:
    for penalty in (LInf(0.1), TopShare(0.1)):
        with pytest.raises(InvalidInput, match="move together|moves together"):
            FineTune(rank=2, penalties=[penalty])
    model, x = mlp(4, 3, seed=1).eval(), randn(2, 4, seed=3)
    with pytest.raises(InvalidInput, match="has none"):
        nnrepair.fix(model, (x, mistakes(model, x)), method=FineTune("0.bias", rank=1))
    with pytest.raises(InvalidInput, match="rank"):
        FineTune(rank=-1)
