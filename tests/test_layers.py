from __future__ import annotations

import pytest
import torch
from networks import Tied, mlp
from torch import nn

from nnrepair import InvalidInput
from nnrepair.jacobian import layers


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"fc1": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "act": nn.ReLU()})
        self.head = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(1))
        self.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


def test_layers_are_modules_that_own_floating_point_parameters() -> None:
    assert layers.layers(Nested()) == {
        "scale": ["scale"],
        "body.fc1": ["body.fc1.weight", "body.fc1.bias"],
        "body.norm": ["body.norm.weight", "body.norm.bias"],
        "head": ["head.weight", "head.bias"],
    }


def test_candidates_carry_a_trainable_matrix() -> None:
    model = Nested()
    assert layers.candidates(model) == ["body.fc1", "head"]
    model.head.weight.requires_grad_(False)
    assert layers.candidates(model) == ["body.fc1"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("head", ["head.weight", "head.bias"]),
        ("head.bias", ["head.bias"]),
        (["head.weight", "body.fc1"], ["head.weight", "body.fc1.weight", "body.fc1.bias"]),
        (["head", "head.weight"], ["head.weight", "head.bias"]),
        ("body", ["body.fc1.weight", "body.fc1.bias", "body.norm.weight", "body.norm.bias"]),
        ("scale", ["scale"]),
    ],
)
def test_choose(wanted: str | list[str], names: list[str]) -> None:
    assert layers.choose(Nested(), wanted) == names


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("haed", "Layer 'haed' not found. Did you mean 'head'.* Layers: .*body.fc1"),
        ("head.wieght", "Did you mean 'head.weight'"),
        ("zzz", r"'zzz' not found\. Layers:"),
        ("", "not found"),
        ([], "No layer was chosen"),
        ("body.act", "'body.act' has no floating-point parameters"),
        ("count", r"\['count'\] are integers"),
    ],
)
def test_choose_refuses(wanted: str | list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        layers.choose(Nested(), wanted)


def test_frozen_parameters_are_named() -> None:
    model = Nested()
    model.head.bias.requires_grad_(False)
    with pytest.raises(InvalidInput, match=r"\['head.bias'\] are frozen"):
        layers.choose(model, "head")


def test_a_shared_parameter_is_chosen_once() -> None:
    model = Tied()
    names = layers.choose(model, ["a", "b"])
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert len({id(parameters[n]) for n in names}) == len(names)


def test_moved_adds_a_change_to_a_copy() -> None:
    model = mlp(2, 3, 2)
    before = model[0].bias.detach().clone()
    twin = layers.moved(model, {"0.bias": torch.ones(3, dtype=torch.float64)})
    assert torch.equal(twin[0].bias, before + 1)
    assert torch.equal(model[0].bias, before)
    assert torch.equal(twin[0].weight, model[0].weight)


def test_moved_leaves_other_numbers_bit_for_bit() -> None:
    model = mlp(2, 3, 2)
    with torch.no_grad():
        model[0].bias.fill_(-0.0)
    twin = layers.moved(model, {"0.bias": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)})
    assert torch.signbit(twin[0].bias).tolist() == [False, True, True]
