"""What runs in floats may give: bounds that hold for sums in any order, and refusals that name rounding where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp, randn
from numpy.typing import NDArray
from torch import nn

from nnrepair import Linear
from nnrepair.errors import UnsupportedModel
from nnrepair.verify import Box, Property, check, compare, equivalent
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.runs import rounding_explains, runs_over

onnx = pytest.importorskip("nnrepair.onnx", reason="ONNX files need the extra [onnx]")


def cancelling(big: float = 4e4) -> nn.Sequential:
    """Return a network in which two equal units of about 1e5 cancel; what stays is 1e-6 of a third one, and 0."""
    model = mlp(2, 3, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[big, -big / 3], [big, -big / 3], [1.0, 2.0]]))
        model[0].bias.copy_(torch.tensor([1.5 * big, 1.5 * big, 1.0]))
        model[2].weight.copy_(torch.tensor([[big / 1.1, -big / 1.1, 1e-6], [0.0, 0.0, 0.0]]))
        model[2].bias.zero_()
    return model


def summed(terms: NDArray[np.float32], order: NDArray[np.int64]) -> np.float32:
    """Return a sum in an order, rounded after each step."""
    total = np.float32(0)
    for k in order:
        total = np.float32(total + terms[k])
    return total


def run(model: nn.Sequential, x: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Run layers and ReLUs in float32, with products added in random orders."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            rows = [np.append(w * x, b) for w, b in zip(weight, bias, strict=True)]
            x = np.array([summed(row, generator.permutation(len(row))) for row in rows], np.float32)
        else:
            x = np.maximum(x, np.float32(0))
    return x


@pytest.mark.parametrize("which", range(4))
def test_runs_in_any_order_are_within_the_bounds(which: int) -> None:
    model = [mlp(2, 9, 7, 3, seed=1), mlp(2, 30, 1, seed=2), cancelling(), cancelling(3e3)][which]
    graph, generator, furthest = lower(model, (2,)), np.random.default_rng(which), 0.0
    for x in randn(40, 2, seed=which).double():
        low, high = runs_over(graph, x[None], torch.float32)
        exact = graph(x[None])
        assert (low <= exact).all() and (exact <= high).all()
        for _ in range(20):
            y = torch.from_numpy(run(model, x.float().numpy(), generator)).double()
            assert (low[0] <= y).all() and (y <= high[0]).all()
            furthest = max(furthest, float(((y - exact).abs() / (high - low)).max()))
    assert furthest > 1e-3  # the bounds are about these runs, and not merely wide


def test_a_run_that_may_overflow_has_no_bounds() -> None:
    model = mlp(2, 3, 1)
    with torch.no_grad():
        model[0].weight.fill_(1e20), model[2].weight.fill_(1e19)
    low, high = runs_over(lower(model, (2,)), torch.ones(1, 2).double(), torch.float32)
    assert low == -torch.inf and high == torch.inf
    low, high = runs_over(lower(model, (2,)), torch.ones(1, 2).double(), torch.float64)
    assert torch.isfinite(high - low).all()


def test_only_what_rounding_can_do_is_explained_by_it() -> None:
    graph, x = lower(mlp(2, 5, 3, seed=3), (2,)), randn(1, 2, seed=3).double()
    y = graph(x)
    assert rounding_explains(graph, x, y.float(), torch.float32, "torch")
    for other in (y + 1e-4, y[:, :2], torch.full_like(y, torch.nan)):
        assert not rounding_explains(graph, x, other, torch.float32, "torch")
    assert not rounding_explains(graph, x, y + 1e-9, torch.float64, "torch")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return files of the cancelling network, in float32 and in float64."""
    folder = tmp_path_factory.mktemp("networks")
    model, paths = cancelling(), (folder / "single.onnx", folder / "double.onnx")
    onnx.save(model, torch.zeros(1, 2), paths[0])
    onnx.save(onnx.load(paths[0]).double(), torch.zeros(1, 2).double(), paths[1])
    return paths


ASKED: dict[str, Any] = {
    "check": lambda path, box: check(path, Property.on(box, Linear([[1.0, 0.0]], [-1.0], points=1), outputs=2)),
    "compare": lambda path, box: compare(path, path, box, timeout=2),
    "equivalent": lambda path, box: equivalent(path, path, box, tolerance=1.0),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_file_whose_digits_all_cancel_is_refused_for_that(
    what: str, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    box, answered = Box([-1.0, -0.25], [1.0, 1.25]), ASKED[what]
    session = "nnrepair.verify.search.replay.Session.run"
    monkeypatch.setattr(session, lambda self, x: np.array([256.0, 0.0]))  # which sum comes first differs by machine
    with pytest.raises(UnsupportedModel, match=r"Rounding may decide .* gave 256\..* in float32 may give anything"):
        answered(files[0], box)
    monkeypatch.setattr(session, lambda self, x: np.array([1e6, 0.0]))  # no rounding does that
    with pytest.raises(UnsupportedModel, match="another function than onnxruntime computes"):
        answered(files[0], box)
    monkeypatch.undo()
    assert answered(files[1], box) is not None  # as the refusal advises
