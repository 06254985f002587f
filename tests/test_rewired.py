"""Which way steps go: gradients that raise no loss on the locality set, and masks of weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import clusters, mistakes, mlp, randn
from torch import Tensor

import nnrepair
from nnrepair import InvalidInput, LocalitySet
from nnrepair.methods import FineTune
from nnrepair.methods.fine_tune.method import _Run
from nnrepair.methods.fine_tune.penalties import Rewired, TopShare, _Rewiring
from nnrepair.spec.problem import pose


def turned(g: Tensor, G: Tensor) -> Tensor:
    """Return the shortest g + G^T v with v >= 0, by trying every set of rows."""
    found = [g]
    for count in range(1, len(G) + 1):
        for rows in itertools.combinations(range(len(G)), count):
            A = G[list(rows)]
            v = -torch.linalg.solve(A @ A.T, A @ g)
            if bool((v >= 0).all()):
                found.append(g + A.T @ v)
    return min(found, key=lambda x: float(x.norm()))


@given(seed=st.integers(0, 10_000), parts=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_step_is_the_shortest_that_disagrees_with_no_anchor(seed: int, parts: int) -> None:
    g, G = randn(9, seed=seed).double(), randn(parts, 9, seed=seed + 1).double()
    found = _Rewiring(list(G)).redirect({"a": g[:5], "b": g[5:]})
    step = torch.cat([found["a"], found["b"]])
    assert bool((G @ step >= -1e-9).all())
    assert torch.allclose(step, turned(g, G), atol=1e-8)
    if parts == 1:  # the closed form of the paper
        v = max(0.0, -float(g @ G[0]) / float(G[0] @ G[0]))
        assert torch.allclose(step, g + v * G[0], atol=1e-10)
    if bool((G @ g >= 0).all()):
        assert torch.allclose(step, g)


def test_anchors_are_gradients_of_the_loss_on_the_locality_set() -> None:
    model, x, kept = mlp(6, 8, 3), randn(1, 6), randn(30, 6, seed=2)
    labels = model(kept).argmax(1)
    problem = pose(model, (x, mistakes(model, x)), LocalitySet(kept, labels))
    old = {name: p.detach() for name, p in model.named_parameters()}
    rewiring = Rewired(1, points=30).start(problem, old, torch.Generator().manual_seed(0))
    assert isinstance(rewiring, _Rewiring) and rewiring.basis is not None and rewiring.triangle is not None
    loss = torch.nn.functional.cross_entropy(model(kept).double(), labels)
    found = torch.cat([g.double().flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert torch.allclose((rewiring.basis @ rewiring.triangle)[:, 0], found, atol=1e-6)
    opposite = {name: -g for name, g in zip(old, found.split([p.numel() for p in old.values()]), strict=True)}
    assert all(g.abs().max() < 1e-9 for g in rewiring.redirect(opposite).values())  # nothing is left of it


def test_a_small_step_raises_no_loss_where_plain_ones_do() -> None:
    model, x, kept = mlp(8, 12, 3, seed=4), randn(6, 8, seed=5), randn(80, 8, seed=6)
    labels = model(kept).argmax(1)
    problem = pose(model, (x, mistakes(model, x)), LocalitySet(kept, labels))
    loss = torch.nn.functional.cross_entropy(model(kept), labels)
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    rises = []
    for penalties in ((), (Rewired(1),)):
        run = _Run(
            FineTune(lr=1e-2, optimizer="sgd", penalties=penalties), problem, [n for n, _ in model.named_parameters()]
        )
        first = run._next_loss()
        assert first is not None
        run._step(first)
        moved = [run.weights[n].detach() - p.detach() for n, p in model.named_parameters()]
        rises.append(sum(float((m * g).sum()) for m, g in zip(moved, slopes, strict=True)))
    assert rises[1] <= 1e-6 < rises[0]


def test_only_a_share_of_the_weights_changes() -> None:
    model, x, kept = mlp(6, 20, 3), randn(2, 6), clusters(60, 6, seed=3)
    tuned = FineTune(lr=0.01, steps=300, penalties=(TopShare(0.1),))
    result = nnrepair.fix(model, (x, mistakes(model, x)), kept, method=tuned)
    total = sum(p.numel() for p in model.parameters())
    assert 0 < result.report.weight_change.nonzeros <= int(0.1 * total)


def test_options_that_cannot_be() -> None:
    for make, message in (
        (lambda: Rewired(0), "parts must be an integer >= 1, got 0"),
        (lambda: TopShare(0.0), "share must be a finite number > 0"),
        (lambda: TopShare(1.5), "share is at most 1"),
    ):
        with pytest.raises(InvalidInput, match=message):
            make()
    model, x = mlp(6, 8, 3), randn(1, 6)
    with pytest.raises(InvalidInput, match="there is none: give a locality set"):
        nnrepair.fix(model, (x, mistakes(model, x)), method="gre")
