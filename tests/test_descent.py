"""Descent of functions with kinks, and ReLUs that are others while a network runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nnrepair.methods.minimal_norm.descent import descend
from nnrepair.methods.minimal_norm.relus import Leaky, Sizes, Smooth


def valued(x: Tensor, value: Tensor) -> tuple[float, Tensor]:
    (slope,) = torch.autograd.grad(value, x)
    return float(value.detach()), slope


def bowl(x: Tensor) -> tuple[float, Tensor]:
    """A thousand times steeper along some axes than along others; least, 0, where all are 1."""
    x = x.detach().requires_grad_(True)
    return valued(x, (torch.logspace(0, 3, len(x), dtype=x.dtype) * (x - 1).square()).sum())


def ridge(x: Tensor) -> tuple[float, Tensor]:
    """Lewis & Overton's nonsmooth Rosenbrock function; least, 0, at a kink, where both are 1."""
    x = x.detach().requires_grad_(True)
    return valued(x, 8 * (x[0].square() - x[1]).abs() + (1 - x[0]).square())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_steep_bowl(dtype: torch.dtype) -> None:
    start = torch.zeros(30, dtype=dtype)
    found = descend(bowl, start, 300)
    assert found.dtype == dtype and bowl(found)[0] < 1e-3 * bowl(start)[0] and not start.any()


def test_a_kink_does_not_end_it() -> None:
    start = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    assert ridge(descend(ridge, start, 1000))[0] < 0.05 * ridge(start)[0]


def test_no_step_leads_up_or_to_what_is_no_number() -> None:
    values: list[float] = []

    def walled(x: Tensor) -> tuple[float, Tensor]:
        value, slope = bowl(x)
        if bool((x > 0.5).any()):
            return math.nan, torch.full_like(slope, math.nan)
        values.append(value)
        return value, slope

    found = descend(walled, torch.zeros(3), 50)
    assert torch.isfinite(found).all() and bool((found <= 0.5).all()) and bowl(found)[0] == min(values)


def test_where_it_is_flat_or_no_number_nothing_moves() -> None:
    for value, slope in ((1.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)):
        assert not descend(lambda x, v=value, s=slope: (v, torch.full_like(x, s)), torch.zeros(2), 5).any()  # type: ignore[misc]


def test_relus_are_others_while_a_network_runs() -> None:
    x = torch.linspace(-3, 3, 61)
    network = nn.Sequential(nn.ReLU(), nn.Identity())
    assert torch.equal(network(x), x.relu())
    with Leaky(0.1):
        assert torch.equal(network(x), torch.where(x > 0, x, 0.1 * x))
    with Smooth(0.5, [2.0]):
        y = network(x)
    assert torch.allclose(y, (x + (x.square() + 1).sqrt()) / 2) and bool(((y - x.relu()) <= 0.5 + 1e-6).all())
    with Smooth(1e-6, [1.0]):
        assert torch.allclose(network(x), x.relu(), atol=1e-5)
    assert torch.equal(network(x), x.relu())


def test_widths_are_in_units_of_what_each_relu_is_applied_to() -> None:
    x = torch.full((4,), 3.0)
    with Sizes() as sizes:
        y = torch.relu(100 * torch.relu(-x).neg().sub(1).neg())
    assert sizes.found == pytest.approx([3.0, 100.0]) and torch.equal(y, torch.full((4,), 100.0))
    with Sizes() as none:
        torch.relu(torch.zeros(2))
    assert none.found == [1.0]  # what nothing is known of
    with Smooth(1.0, sizes.found):
        first, second = torch.relu(torch.zeros(1)), torch.relu(torch.zeros(1))
    assert (float(first), float(second)) == pytest.approx((1.5, 50.0))
