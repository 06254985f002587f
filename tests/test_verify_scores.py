"""Networks that end in a softmax: which probability is larger, the scores before it tell exactly."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from networks import mlp
from torch import Tensor, nn

import nnrepair
from nnrepair.verify import Box, Case, Halfspace, Property, check
from nnrepair.verify.reading.lowering import lower

ENDS: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: nn.Softmax(1),
    "log softmax": lambda: nn.LogSoftmax(1),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "two": lambda: nn.Sequential(nn.Softmax(1), nn.Sigmoid()),
}


class Signs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


def loud(seed: int = 0) -> nn.Sequential:
    """Return a network whose scores are so far apart that probabilities of them are 0 and 1 in floats."""
    model = mlp(2, 8, 3, seed=seed)
    with torch.no_grad():
        for p in model[-1].parameters():
            p.mul_(5000)
    return model


def box_around(model: nn.Module, clear: bool) -> tuple[Box, int]:
    """Return a box in which one class wins everywhere, or not."""
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        y = model(x)
    lead = y.topk(2, 1).values
    k = int((lead[:, 0] - lead[:, 1]).argmax() if clear else (lead[:, 0] - lead[:, 1]).argmin())
    return Box.around(x[k], 0.01 if clear else 0.2), int(y[k].argmax())


@pytest.mark.parametrize("end", ENDS)
def test_verdicts_are_those_about_scores(end: str) -> None:
    model = loud()
    whole = nn.Sequential(model, ENDS[end]())
    for clear, verdict in ((True, "holds"), (False, "violated")):
        box, label = box_around(model, clear)
        prop = Property.on(box, nnrepair.Argmax([label]), outputs=3)
        assert check(model, prop, timeout=20).verdict == verdict
        found = check(whole, prop, timeout=20)
        assert found.verdict == verdict
        if found.counterexample is not None:
            assert found.counterexample.replayed[-1] == "exact" and found.counterexample.margin >= 0
            with torch.no_grad():
                y = model.double()(torch.from_numpy(found.counterexample.input)[None])[0]
                model.float()
            assert int(y.argmax()) != label
        else:
            assert found.certificate is None and "does not know" in found.reason


@pytest.mark.parametrize("end", ["softmax", "sigmoid"])
def test_other_questions_are_about_the_outputs_themselves(end: str) -> None:
    model = nn.Sequential(mlp(2, 4, 2, seed=2), ENDS[end]())
    row = Halfspace((Fraction(1), Fraction(0)), Fraction(-1, 10))  # no probability is below 0, many scores are
    prop = Property([Case(Box([-1, -1], [1, 1]), ((row,),))], 2)
    assert check(model, prop, timeout=20).verdict == "holds"


def test_which_orders_are_known() -> None:
    def scores(*more: nn.Module) -> bool:
        graph = lower(nn.Sequential(nn.Linear(2, 4), *more), (2,))
        assert graph.scores is None or len(graph.scores.nodes) < len(graph.nodes)
        return graph.scores is not None

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 2, 2).softmax(2).flatten(1)

    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(1).flip(1)

    assert scores(nn.Softmax(1)) and scores(nn.Softmax(1), nn.Flatten()) and scores(nn.LogSoftmax(1))
    assert not scores() and not scores(nn.ReLU()) and not scores(nn.Softmax(1), nn.Linear(4, 4))
    assert not scores(Halves()), "entries of two groups have no common order"
    assert not scores(Turned())
    assert not scores(nn.GELU()), "it falls, and rises"


def test_large_numbers_before_signs_have_gradients() -> None:
    """Signs of large numbers: gradients that stand in for theirs must lead somewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 80), Signs(), nn.Linear(80, 2)).double()
    with torch.no_grad():
        for p in model[0].parameters():
            p.copy_((p * 1000).round())
        x = torch.rand(60, dtype=torch.float64) * 200
        y = model(x[None])[0]
    label = int(y.argmax())
    prop = Property.on(Box.around(x, 20.0), nnrepair.Argmax([label]), outputs=2)
    assert check(model, prop, timeout=20).verdict == "violated"
