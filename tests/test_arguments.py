"""Networks with several arguments, by place or by name: every method of the table that can, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from networks import randn
from test_methods import every_method, ready
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet
from nnrepair.jacobian.fisher import fisher_diagonal
from nnrepair.methods import EGNN, MALMEN, MEND, FineTune, Method, MinimalNorm


class TwoInputs(nn.Module):
    """Two arrays, each through a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 48), nn.Linear(2, 48), nn.Linear(48, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(a) + self.right(b)))


class Tokens(nn.Module):
    """The mean embedding of the tokens that the mask marks, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(48, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask.to(self.embed.weight.dtype)[..., None]
        mean = (self.embed(input_ids) * weight).sum(1) / weight.sum(1)
        return self.head(torch.relu(self.hidden(mean)))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make().eval()


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    return randn(count, 4, seed=seed), randn(count, 2, seed=seed + 1)


def sentences(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, (count, 5), generator=generator)
    lengths = torch.randint(3, 6, (count, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.arange(5) < lengths}


def run(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def second(model: nn.Module, inputs: Any) -> Tensor:
    """Return what each point could be called instead."""
    return run(model, inputs).topk(2, 1).indices[:, 1]


#: A network, its edits' inputs and its locality set's.
TASKS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "two inputs": (TwoInputs, pairs(3, 1), pairs(20, 5)),
    "tokens and mask": (Tokens, sentences(3, 1), sentences(20, 2)),
}
every_task = pytest.mark.parametrize("task", TASKS)


@every_task
@every_method
def test_every_method_repairs_networks_with_several_arguments(make: Callable[[], Method], task: str) -> None:
    network, few, many = TASKS[task]
    model, labels = seeded(network), second(seeded(network), few)
    edits, locality = Edits(few, labels), LocalitySet(many, run(seeded(network), many).argmax(1))
    if isinstance(make(), EGNN) and isinstance(few, dict):
        with pytest.raises(InvalidInput, match=r"input_ids \(3, 5\) torch.int64.*given by keywords: give a tuple"):
            nnrepair.fix(model, edits, locality, method=make())
        return
    if isinstance(make(), MEND | MALMEN) and task == "tokens and mask":  # steps of the last layer alone do not arrive
        make = partial(replace, make(), layers=("hidden", "head"))
    method = ready(make, model, locality)
    method = replace(method, lr=0.02, kl=0.01, steps=3000) if isinstance(method, EGNN) else method
    scope = EditScope(few, labels, of=[0, 1, 2])
    result = nnrepair.fix(model, edits, locality, method=method, edit_scope=scope, test_set=locality)
    assert result.outcome.status == "repaired"
    assert torch.equal(run(result.model.eval(), few).argmax(1), labels)
    kept = run(result.model, many).argmax(1) == run(model, many).argmax(1)
    assert result.report.locality == pytest.approx(float(kept.double().mean()))
    assert result.report.tests["test set"].locality == result.report.locality
    assert result.report.generalization_rate == 1.0
    if make().capabilities.keeps_architecture:
        assert result.patch is not None
        assert torch.equal(run(result.patch.apply(model), many), run(result.model, many))


@every_task
@pytest.mark.parametrize("mode", ["independent", "successive"])
def test_edits_of_several_arguments_one_after_another(task: str, mode: Any) -> None:
    network, few, many = TASKS[task]
    model = seeded(network)
    method = MinimalNorm(layer="head")
    history = nnrepair.fix(model, (few, second(model, few)), LocalitySet(many), method=method, mode=mode)
    assert history.success_rate == 1.0 and len(history.steps) == 3


@every_task
def test_hidden_layers_of_the_decoupled_network(task: str) -> None:
    network, few, many = TASKS[task]
    model = seeded(network)
    labels = second(model, few)
    layer = "left" if isinstance(few, tuple) else "embed"
    method = MinimalNorm(layer=layer, architecture="decoupled")
    result = nnrepair.fix(model, (few, labels), LocalitySet(many), method=method)
    assert torch.equal(run(result.model, few).argmax(1), labels)


@every_task
def test_arguments_are_the_same_as_one_tensor_of_both(task: str) -> None:
    """The same network, as a function of one tensor, is repaired by the same change."""
    network, few, many = TASKS[task]
    model = seeded(network)

    class AsOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = seeded(network)

        def forward(self, x: Tensor) -> Tensor:
            parts = x.tensor_split([next(iter(few.values())).shape[1] if isinstance(few, dict) else 4], 1)
            return self.model(parts[0], parts[1])

    def one(inputs: Any) -> Tensor:
        return torch.cat(list(inputs.values()) if isinstance(inputs, dict) else inputs, 1)

    labels, method = second(model, few), MinimalNorm(layer="head")
    several = nnrepair.fix(model, (few, labels), LocalitySet(many), method=method)
    single = nnrepair.fix(AsOne(), (one(few), labels), one(many), method=MinimalNorm(layer="model.head"))
    torch.testing.assert_close(several.model.head.weight, single.model.model.head.weight)
    for name, value in fisher_diagonal(model, "head", few if isinstance(few, dict) else tuple(few)).items():
        torch.testing.assert_close(fisher_diagonal(AsOne(), "model.head", one(few))[f"model.{name}"], value)


def test_float64_networks_take_float_arguments_along_and_leave_integers() -> None:
    model = seeded(TwoInputs).double()
    few = pairs(3, 1)
    labels = second(model, tuple(part.double() for part in few))
    assert nnrepair.fix(model, (few, labels), method="ft").outcome.ok
    tokens = seeded(Tokens).double()
    ids = sentences(3, 1)
    assert nnrepair.fix(tokens, (ids, second(tokens, ids)), method=FineTune(lr=0.01)).outcome.ok


def test_equal_points_are_seen_in_all_their_arguments() -> None:
    ids = torch.tensor([[1, 2], [1, 2], [1, 2]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    model = seeded(Tokens)
    with pytest.raises(
        InvalidInput, match=r"Equal inputs are given different labels: edits 0 and 2 \(labels 0 and 1\)"
    ):
        nnrepair.fix(model, ({"input_ids": ids, "attention_mask": mask}, [0, 2, 1]))
    inputs = {"input_ids": ids[:2], "attention_mask": mask[:2]}
    result = nnrepair.fix(model, (inputs, second(model, inputs)), LocalitySet(inputs), method="ft")
    assert "edits 0, 1 are points of the locality set too" in " ".join(result.report.notes)


@pytest.mark.parametrize(
    ("inputs", "message"),
    {
        "unequal": ((torch.zeros(3, 4), torch.zeros(2, 2)), "one row per point in each, got as many as 0: 3, 1: 2"),
        "nan": (
            (torch.zeros(2, 4), torch.full((2, 2), torch.nan)),
            r"inputs\[1\] must be finite; NaN or infinity at \[0, 1\]",
        ),
        "names": (
            {3: torch.zeros(2, 4), "a": torch.zeros(2, 4)},
            r"by name, .*, got the keys \[3, 'a'\]",
        ),
        "a flag": ({"a": torch.zeros(2, 4), "b": True}, r"inputs\['b'\] must have one point per row"),
    }.values(),
)
def test_arguments_that_cannot_be_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Edits(inputs, [0, 1])


def test_a_model_that_takes_other_arguments_says_so() -> None:
    few = sentences(3, 1)
    few["token_type_ids"] = few["input_ids"]
    with pytest.raises(InvalidInput, match=r"the edits \(input_ids .*token_type_ids.*unexpected keyword"):
        nnrepair.fix(seeded(Tokens), (few, [0, 1, 2]))
    with pytest.raises(InvalidInput, match=r"give a tuple of tensors, with keywords a dictionary"):
        nnrepair.fix(seeded(TwoInputs), (torch.zeros(3, 4), [0, 1, 2]))
    with pytest.raises(InvalidInput, match=r"test_set 'input_ids'.*LocalitySet"):
        nnrepair.fix(seeded(Tokens), (sentences(3, 1), [0, 1, 2]), test_set=sentences(3, 2), method="ft")


def test_arguments_that_a_model_writes_to_are_refused() -> None:
    class Writes(TwoInputs):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return super().forward(a, b.relu_())

    few = pairs(3, 1)
    with pytest.raises(nnrepair.UnsupportedModel, match="writes into its inputs"):
        nnrepair.fix(seeded(Writes), (few, [0, 1, 2]))
