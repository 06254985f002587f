"""Knowledge neurons, and where an edit would best be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import clusters, mistakes, mlp, randn
from torch import nn

import nnrepair
from nnrepair import InvalidInput, UnsupportedModel
from nnrepair.cli import main
from nnrepair.fingerprint import fingerprint
from nnrepair.jacobian.neurons import neurons


def planted() -> nn.Module:
    """Return a network whose answer 1 rests on hidden units 3 and 7 alone, among 16 that are on."""
    model = mlp(4, 16, 3, seed=1).eval()
    with torch.no_grad():
        model[0].bias.fill_(1.0)
        model[2].weight.mul_(0.01)
        model[2].weight[1, [3, 7]] = 4.0
    return model


def test_planted_neurons_are_found_and_suppressing_them_takes_the_answer_away() -> None:
    model, x = planted(), 0.2 * randn(8, 4, seed=2)
    found = neurons(model, x, torch.full((8,), 1), "2")
    assert sorted(found.chosen) == [3, 7]
    assert found.suppressed.max() < 0.5 < found.before.min()
    assert bool((found.amplified > found.before).all())
    nothing = model[2](torch.zeros(8, 16)).double().softmax(1)[:, 1]
    assert torch.allclose(found.attribution.sum(1), (found.before - nothing).cpu(), atol=1e-3)  # completeness


def test_channels_of_a_convolution_are_neurons() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = randn(4, 1, 8, 8, seed=1)
    found = neurons(model, x, model(x).argmax(1), "2")
    assert found.attribution.shape == (4, 5)


def test_the_best_place_comes_first_and_the_model_stays() -> None:
    model, x = mlp(4, 12, 3, seed=1).eval(), randn(3, 4, seed=3)
    before = fingerprint(model)
    found = nnrepair.locate(model, (x, mistakes(model, x)), clusters(100, 4, seed=6))
    assert fingerprint(model) == before
    assert {place.layer for place in found.places} == {"0", "2"}
    order = [(-place.holding, -place.unchanged, place.drift) for place in found.places]
    assert order == sorted(order)
    assert found.best in str(found)
    assert all(place.neurons is not None and place.holding == 3 for place in found.places)


def test_what_cannot_be_asked_is_refused() -> None:
    model, x = mlp(4, 12, 3, seed=1).eval(), randn(3, 4, seed=3)
    with pytest.raises(InvalidInput, match="locality set"):
        nnrepair.locate(model, (x, mistakes(model, x)), None)
    with pytest.raises(InvalidInput, match="not found"):
        nnrepair.locate(model, (x, mistakes(model, x)), x, layers=["5"])
    with pytest.raises(InvalidInput, match="classes"):
        neurons(model, x, torch.tensor([0, 1, 3]), "2")
    twice = nn.Sequential(model[0], nn.ReLU(), model[2])
    twice.append(nn.Linear(3, 12)).append(twice[2])
    with pytest.raises(UnsupportedModel, match="runs 2 times"):
        neurons(twice, x, torch.tensor([0, 1, 2]), "2")


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x = mlp(4, 6, 3, seed=1).eval(), randn(2, 4, seed=3)
    nnrepair.onnx.save(model, x[:1], tmp_path / "model.onnx")
    np.savez(tmp_path / "edits.npz", inputs=x.numpy(), labels=mistakes(model, x).numpy())
    np.savez(tmp_path / "kept.npz", inputs=clusters(40, 4, seed=6).numpy())
    given = [str(tmp_path / name) for name in ("model.onnx", "edits.npz", "kept.npz")]
    assert main(["locate", given[0], "--edits", given[1], "--locality", given[2]]) == 0
    told = capsys.readouterr().out
    assert "2 of 2" in told
    assert "Best: " in told
