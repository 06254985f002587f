"""Networks that return more than a tensor: the scores are found, or the parts are named; layers stay the user's own."""

from __future__ import annotations

import pickle
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from networks import mistakes, mlp, randn
from patches import bits
from test_methods import every_method, ready
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, InvalidInput, LocalitySet, Scores, UnsupportedModel
from nnrepair.cli import main
from nnrepair.methods import EditableTraining, Episode, FineTune, Method, MinimalNorm
from nnrepair.verify import Box, Property, check
from nnrepair.wrappers.base import Wrapper

X, KEPT = randn(3, 6, seed=1), randn(20, 6, seed=2)
LAYER = MinimalNorm(layer="net.2")
Pair = namedtuple("Pair", "scores hidden")


@dataclass
class Found:
    logits: Tensor
    hidden: Tensor


class Model(nn.Module):
    """A network, what it returns made into something else; it remembers its last scores."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form, self.last = mlp(6, 24, 3), form, None

    def forward(self, x: Tensor) -> Any:
        self.last = self.net(x)
        return self.form(self.last)


#: What a network returns, `output=`, and where its scores are found without it.
FORMS: dict[str, tuple[Callable[[Tensor], Any], Any, bool]] = {
    "logits of an object": (lambda y: Found(y, 2 * y), "logits", True),
    "logits of a dictionary": (lambda y: {"hidden": 2 * y, "logits": y}, "logits", True),
    "a dictionary of one": (lambda y: OrderedDict(out=y), "out", True),
    "a tuple of one": (lambda y: (y, None), 0, True),
    "a list with a loss": (lambda y: [y.mean(), y], 1, True),
    "classes beside scores": (lambda y: (y.argmax(1), y), -1, True),
    "rows by chance": (lambda y: (y, y.mean(0)), 0, True),
    "a named tuple": (lambda y: Pair(y, 2 * y), "scores", False),
    "a place in a tuple": (lambda y: (2 * y, y), 1, False),
    "a name of two": (lambda y: {"a": y, "b": 2 * y}, "a", False),
    "a function": (lambda y: {"low": y[:, :1], "high": y[:, 1:]}, lambda y: torch.cat([y["low"], y["high"]], 1), False),
    "of a tensor": (lambda y: torch.cat([y, y], 1), lambda y: y[:, :3], False),
}


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_found_or_named(form: str) -> None:
    make, output, alone = FORMS[form]
    model, labels = Model(make), mistakes(mlp(6, 24, 3), X)
    before = bits(model)
    for chosen in ([None] if alone else []) + [output]:
        result = nnrepair.fix(model, (X, labels), KEPT, output=chosen, method=LAYER)
        assert result.outcome.ok and type(result.model) is Model
        assert torch.equal(result.model.net(X).argmax(1), labels)
        assert result.patch is not None and set(result.patch.new) <= {"net.2.bias", "net.2.weight"}
        assert torch.equal(result.patch.apply(model).net(X), result.model.net(X))
        assert bits(model) == before
    if not alone and form != "of a tensor":
        with pytest.raises(
            UnsupportedModel, match="several parts could be the scores. There are: .*3x[123].*output=NAME"
        ):
            nnrepair.fix(model, (X, labels), KEPT, method=LAYER)


@every_method
def test_every_method_repairs_what_returns_several_parts(make: Callable[[], Method]) -> None:
    model, kept = Model(lambda y: Pair(y, 2 * y)), LocalitySet(KEPT)
    labels = mistakes(model.net, X)
    method = ready(make, Scores(model, "scores"), kept)
    trained = make().capabilities.extra_training  # in a few steps, for other edits
    result = nnrepair.fix(model, (X, labels), kept, method=method, output="scores", test_set=kept, throw=not trained)
    assert type(result.model) is Model or isinstance(result.model, Wrapper) or method.capabilities.returns != "same"
    y = result.model(X)
    assert trained or torch.equal((y.scores if isinstance(y, Pair) else y).argmax(1), labels)
    if isinstance(result.model, Wrapper) and result.patch is not None:
        assert torch.equal(result.patch.apply(Scores(model, "scores"))(X), result.model(X))


@pytest.mark.parametrize("mode", ["independent", "successive"])
def test_sequences_resume_and_return_the_users_class(mode: Any, tmp_path: Any) -> None:
    model = Model(lambda y: (2 * y, y))
    for _ in range(2):
        history = nnrepair.fix(
            model,
            (X, mistakes(model.net, X)),
            KEPT,
            output=1,
            mode=mode,
            method=LAYER,
            resume=tmp_path / "run.safetensors",
        )
        assert history.success_rate == 1.0
    if mode == "successive":
        assert type(history.model) is Model and history.patch is not None
        history.patch.apply(model)


def test_what_is_checked_is_what_was_repaired() -> None:
    model = Model(lambda y: {"a": y, "b": -y})
    model.train()
    result = nnrepair.fix(model, (X, mistakes(model.net, X)), KEPT, output="a", method=LAYER)
    assert result.verify().holds and result.model.training
    box = Property.on(Box(X[0] - 0.001, X[0] + 0.001), Argmax([int(result.model.net(X).argmax(1)[0])]), outputs=3)
    assert check(Scores(result.model.eval(), "a"), box).holds


def test_editors_are_prepared_for_a_part() -> None:
    model = Model(lambda y: (2 * y, y))
    edits = nnrepair.Edits(X, mistakes(model.net, X))
    editor = EditableTraining(start=0.1).prepare(model, [Episode(edits, LocalitySet(KEPT))], steps=2, output=1)
    assert nnrepair.fix(model, edits, KEPT, method=editor, output=1).outcome.ok


def test_the_same_network_under_its_own_names() -> None:
    model = Model(lambda y: {"a": y}).eval()
    scores = Scores(model, "a")
    assert scores.state_dict().keys() == model.state_dict().keys()
    assert [n for n, _ in scores.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert scores.train().training and model.training and not model.eval().training
    scores(X)
    assert scores.last is model.last  # attributes, too
    twin = pickle.loads(pickle.dumps(Scores(mlp(2, 3), lambda_free)))
    assert twin(torch.zeros(1, 2)).shape == (1, 2)
    assert next(scores.double().parameters()) is next(model.parameters())


def lambda_free(y: Tensor) -> Tensor:
    return y[:, :2]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("logit", "no such part. Did you mean 'logits'.*There are: 'logits' .3x3, float32."),
        (7, "no such part.*There are"),
        (1.5, "output must be the name"),
        (True, "output must be the name"),
        (lambda y: y["hidden"].argmax(1), "returns int64 outputs"),
        (lambda y: y["nothing"], "your function of what the model returns, dict, raised KeyError"),
        (lambda y: "text", "returns str, not a tensor"),
    ],
)
def test_wrong_names_are_refused_with_the_right_ones(output: Any, message: str) -> None:
    model = Model(lambda y: {"logits": y, "hidden": 2 * y})
    with pytest.raises((InvalidInput, UnsupportedModel), match=message):
        nnrepair.fix(model, (X, [0, 1, 2]), KEPT, output=output)


def test_a_name_for_a_plain_tensor_is_refused() -> None:
    with pytest.raises(InvalidInput, match="returns a tensor and nothing else"):
        nnrepair.fix(mlp(6, 8, 3), (X, [0, 1, 2]), KEPT, output="logits")
    with pytest.raises(InvalidInput, match="must be a torch.nn.Module"):
        Scores("model", "logits")  # type: ignore[arg-type]


def test_hooks_of_the_model_still_run() -> None:
    model, seen = Model(lambda y: {"a": y, "b": y}), list[Any]()
    model.register_forward_hook(lambda m, x, y: seen.append(y))
    assert nnrepair.fix(model, (X, mistakes(model.net, X)), method=FineTune(lr=0.05), output="a").outcome.ok
    assert all(isinstance(y, dict) for y in seen) and seen


def test_the_command_line_names_an_output_too(tmp_path: Any, capsys: Any) -> None:
    model, batch = Model(lambda y: {"a": y, "b": 2 * y}), torch.export.Dim("batch")
    model.last = None
    program = torch.export.export(Exported(model), (randn(4, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    np.savez(tmp_path / "edits.npz", inputs=X.numpy(), labels=mistakes(model.net, X).numpy())
    asked = ["fix", tmp_path / "model.pt2", "--edits", tmp_path / "edits.npz", "--out", tmp_path / "out.pt2"]
    asked += ["--layer", "net.2", "--quiet"]
    for more, code in ((["--output", "a"], 0), ([], 3), (["--output", "c"], 3)):
        assert main([str(word) for word in asked + more]) == code
    said = capsys.readouterr().err
    assert "several parts could be the scores" in said and "output='c': the model returns no such part" in said
    repaired = torch.export.load(tmp_path / "out.pt2").module()
    assert torch.equal(repaired(X)["a"].argmax(1), mistakes(model.net, X))


class Exported(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net = model.net

    def forward(self, x: Tensor) -> Any:
        y = self.net(x)
        return {"a": y, "b": 2 * y}
