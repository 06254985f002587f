"""Every figure of a report, against figures computed anew: kinds of outputs x methods, and what methods may return."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp, randn, seeded
from reference import measured
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Argmin, Edits, EditScope, Linear, LocalitySet, Near, Threshold
from nnrepair.methods import EGNN, Capabilities, FineTune, Method, MinimalNorm, Proposal
from nnrepair.methods.fine_tune.penalties import EWC, KL
from nnrepair.results.history import History
from nnrepair.wrappers.decoupled import Decoupled
from nnrepair.wrappers.stitched import OwnMLP, Stitched

POINTS, SCOPE = 30, 7
#: What depends on the machine or is words; words have tests of their own.
WORDS = ("seconds", "method", "notes")


@dataclass(frozen=True)
class Task:
    """A network of one kind, and how to ask for what it gets wrong.

    Attributes:
        make: the network on 4 features.
        reading: how the reference reads its outputs.
        wrong: outputs (n, ...) -> labels that none of them satisfies; `right`: labels that all do.
        target: labels -> what is given to nnrepair.
    """

    make: Callable[[], nn.Module]
    reading: measured.Reading
    wrong: Callable[[Tensor], Tensor]
    right: Callable[[Tensor], Tensor]
    target: Callable[[Tensor], Any] = lambda labels: labels


def second(y: Tensor) -> Tensor:
    return y.topk(2, 1).indices[:, 1]


def not_all(y: Tensor) -> Tensor:
    """Ask for the opposite of the first answer, for another one as it is, and for nothing of the third."""
    labels = (y > 0).long()
    labels[:, 0] = 1 - labels[:, 0]
    labels[:, 2] = -1
    return labels


def some(y: Tensor) -> Tensor:
    labels = (y > 0).long()
    labels[::3, 1] = -1
    return labels


TOL = 0.05
TASKS = {
    "classes": Task(lambda: mlp(4, 10, 3), measured.CLASSES, second, lambda y: y.argmax(1)),
    "lowest": Task(lambda: mlp(4, 10, 3), measured.LOWEST, lambda y: second(-y), lambda y: y.argmin(1), Argmin),
    "one logit (n, 1)": Task(
        lambda: mlp(4, 10, 1), measured.threshold(0.0), lambda y: (y[:, 0] <= 0).long(), lambda y: (y[:, 0] > 0).long()
    ),
    "one logit (n,)": Task(
        lambda: mlp(4, 10, 1).append(nn.Flatten(0)), measured.threshold(0.0), lambda y: y <= 0, lambda y: y > 0
    ),
    "one number, threshold 0.2": Task(
        lambda: mlp(4, 10, 1),
        measured.threshold(0.2),
        lambda y: (y <= 0.2).long(),
        lambda y: (y > 0.2).long(),
        lambda labels: Threshold(labels, threshold=0.2),
    ),
    "several answers": Task(lambda: mlp(4, 10, 4), measured.threshold(0.0), not_all, some),
    "numbers": Task(lambda: mlp(4, 10, 2), measured.near(TOL), lambda y: y + 0.2, lambda y: y, lambda y: Near(y, TOL)),
    "images": Task(
        lambda: mlp(4, 10, 12).append(nn.Unflatten(1, (3, 2, 2))),
        measured.near(TOL),
        lambda y: y + 0.2,
        lambda y: y,
        lambda y: Near(y, TOL),
    ),
}
METHODS: dict[str, Callable[[], Method]] = {
    "last layer": lambda: MinimalNorm("2"),
    "hidden layer": lambda: MinimalNorm("0", norm="l2", locality="none"),
    "decoupled": lambda: MinimalNorm("0", norm="l2", architecture="decoupled", locality="soft"),
    "ft": lambda: FineTune(lr=0.01, steps=60),
    "ft+kl": lambda: FineTune(lr=0.01, steps=60, penalties=[KL(1.0)]),
    "ewc": lambda: FineTune(lr=0.01, steps=60, penalties=[EWC(1.0)], rehearsal=8),
    "egnn": lambda: EGNN(steps=60, lr=0.01),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())


@dataclass
class Posed:
    """A task with its points."""

    task: Task
    model: nn.Module
    x: Tensor
    labels: Tensor
    points: dict[str, Tensor]
    answers: dict[str, Tensor]

    @classmethod
    def of(cls, task: Task) -> Posed:
        model = task.make().eval()
        x, points = randn(3, 4, seed=5), {name: randn(POINTS, 4, seed=k) for k, name in enumerate(("kept", "tests"), 6)}
        points["scope"] = x[[0, 0, 0, 2, 2, 2, 2]] + 0.05 * randn(SCOPE, 4, seed=9)
        with torch.no_grad():
            labels, answers = task.wrong(model(x)), {name: task.right(model(p)) for name, p in points.items()}
            answers["scope"] = labels[[0, 0, 0, 2, 2, 2, 2]]
            for name in ("kept", "tests"):  # some points that the network gets wrong
                answers[name][:4] = task.wrong(model(points[name][:4]))
        return cls(task, model, x, labels, points, answers)

    def target(self, name: str) -> Any:
        return self.task.target(self.answers[name])

    def fix(self, method: Method, labelled: bool, **more: Any) -> Any:
        kept = LocalitySet(self.points["kept"], self.target("kept") if labelled else None)
        return nnrepair.fix(
            self.model,
            Edits(self.x, self.task.target(self.labels)),
            kept,
            method=method,
            test_set={"labelled": (self.points["tests"], self.target("tests")), "plain": self.points["tests"]},
            edit_scope=EditScope(self.points["scope"], self.target("scope"), of=[0, 0, 0, 2, 2, 2, 2]),
            throw=False,
            **more,
        )

    def kept(self, after: nn.Module, name: str, labelled: bool, free: bool = False) -> dict[str, Any]:
        before, now = (measured.run(m, self.points[name]) for m in (self.model, after))
        labels = self.answers[name].numpy() if labelled else None
        tolerance = None if labelled else float(torch.tensor(TOL))
        return measured.kept(self.task.reading, before, now, labels, tolerance, free)

    def holds(self, model: nn.Module, x: Tensor, labels: Tensor) -> Any:
        return self.task.reading.holds(measured.run(model, x), labels.numpy())


def same(found: Any, expected: Any, where: str = "report") -> None:
    """Compare nested dictionaries of figures; none may be missing or added."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys(), where
        for name, value in expected.items():
            same(found[name], value, f"{where}, {name}")
    elif isinstance(expected, float):
        assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-12), where
    elif isinstance(expected, list) and expected and all(isinstance(each, float) for each in expected):
        assert found == pytest.approx([float(each) for each in expected], rel=1e-9, abs=1e-12), where
    else:
        assert found == expected, where


@every_task
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_figure_is_what_it_says(task: Task, method: Callable[[], Method], labelled: bool) -> None:
    posed = Posed.of(task)
    result = posed.fix(method(), labelled)
    before, after = posed.model, result.model
    found = result.report.as_dict()
    found = {name: value for name, value in found.items() if name not in WORDS}
    was, holds = (posed.holds(m, posed.x, posed.labels) for m in (before, after))
    scope = posed.holds(after, posed.points["scope"], posed.answers["scope"])
    kept = posed.kept(after, "kept", labelled, free=True)
    expected: dict[str, Any] = {
        "edits": 3,
        "held_before": was.tolist(),
        "held_after": holds.tolist(),
        "success_rate": holds.sum() / 3,
        "generalization_rate": (scope[:3].mean() + scope[3:].mean()) / 2,
        "scope_points": SCOPE,
        "scope_edits": 2,
        "asked": "edits",
        "side_effects": kept,
        "locality": kept["locality"],
        "locality_points": POINTS,
        "drawdown": kept["drawdown"],
        "drawdown_points": kept["drawdown_points"],
        "tests": {
            "labelled": posed.kept(after, "tests", labelled=True),
            "plain": posed.kept(after, "tests", labelled=False),
        },
    }
    change = found.pop("weight_change")
    same(found, expected)
    compare_sizes(change, before, after)
    json.dumps(result.report.as_dict(), allow_nan=False)
    assert not was.any()
    if type(after) is type(before):
        assert result.patch is not None
        assert all(
            torch.equal(a, b)
            for a, b in zip(result.patch.apply(before).state_dict().values(), after.state_dict().values(), strict=True)
        )


def compare_sizes(change: dict[str, Any], before: nn.Module, after: nn.Module) -> None:
    """Compare with what state dictionaries say, for the classes that methods of this package return."""
    wrapped = isinstance(after, Decoupled | Stitched)
    sizes = measured.change(before, after, lambda name: f"base.{name}" if wrapped else name)
    same({name: change[name] for name in sizes}, sizes, "weight change")
    if isinstance(after, Decoupled):
        own = measured.size([buffer.numpy() for name, buffer in after.named_buffers() if name.startswith("change_")])
    elif isinstance(after, Stitched):
        start = dict(after.mlp.named_buffers())
        own = measured.size(
            [
                (p.detach() - start["_start_" + n.removeprefix("layers.").replace(".", "_", 1)]).double().numpy()
                for n, p in after.mlp.named_parameters()
            ]
        )
    else:
        own = measured.change(before, after)["parameters"]
    same({name: change[name] for name in ("l1", "l2", "linf", "nonzeros")}, {n: own[n] for n in own if n != "numbers"})
    assert change["why"] == "" and bool(change["differences"]) == wrapped


@every_task
@pytest.mark.parametrize("mode", ["independent", "successive"])
def test_every_figure_of_a_history_is_what_it_says(task: Task, mode: Any) -> None:
    posed = Posed.of(task)
    history = posed.fix(FineTune(lr=0.01, steps=60), True, mode=mode)
    assert isinstance(history, History)
    steps, networks = history.as_dict()["steps"], []
    for k, step in enumerate(steps):  # the same steps, one call each
        start = posed.model if mode == "independent" or not networks else networks[-1]
        upto = slice(k, k + 1) if mode == "independent" else slice(k + 1)
        edits = Edits(posed.x[upto], task.target(posed.labels[upto]))
        alone = nnrepair.fix(start, edits, method=FineTune(lr=0.01, steps=60), throw=False)
        networks.append(alone.model)
        held = posed.holds(alone.model, posed.x, posed.labels)
        scope = posed.holds(alone.model, posed.points["scope"], posed.answers["scope"])
        kept = {
            "locality set": posed.kept(alone.model, "kept", True, free=True),
            "labelled": posed.kept(alone.model, "tests", True),
            "plain": posed.kept(alone.model, "tests", False),
        }
        same(step["side_effects"], kept, f"step {k}")
        assert step["edits"] == [k] and step["held"] == [held[k]]
        assert step["rehearsed"] == (k if mode == "successive" else 0)
        assert step["retained"] == pytest.approx(held[: k + 1].mean())
        same(step["generalization"], [[scope[:3].mean()], [None], [scope[3:].mean()]][k], f"step {k}")
    if mode == "successive":
        last = posed.holds(history.model, posed.x, posed.labels)
        assert history.success_retain_rate == pytest.approx(last.mean())
        change = measured.change(posed.model, history.model)
        same(history.as_dict()["weight_change"]["parameters"], change["parameters"])
    else:
        assert history.weight_change is None
        rates = [step["side_effects"]["labelled"]["drawdown_points"] for step in steps]
        assert history.side_effects["labelled"].drawdown_points == pytest.approx(np.mean(rates))
    json.dumps(history.as_dict(), allow_nan=False)
    assert f"{sum(history.held_after)}" and str(history)


# What a method may return --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Returns:
    """A method that returns whatever is made of the network."""

    make: Callable[[nn.Module], nn.Module]
    capabilities = Capabilities("test", False, "wrapped", True, True, True)

    def repair(self, problem: Any) -> Proposal:
        return Proposal(self.make(copy.deepcopy(problem.model)))


class Beside(nn.Module):
    """A network with something beside it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.more = base, nn.Parameter(torch.tensor([0.5, -1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.more
        return y


class Net(nn.Module):
    """A network with buffers, one of which is not part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.act, self.out = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LeakyReLU(), nn.Linear(8, 3)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, torch.inf]), persistent=False)
        self.tied = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.act(self.norm(self.fc(x))))
        return y


def edit(change: Callable[[Any], Any]) -> Callable[[nn.Module], nn.Module]:
    def make(net: nn.Module) -> nn.Module:
        with torch.no_grad():
            change(net)
        return net

    return make


class Low(nn.Module):
    """A linear layer with a low-rank term."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.full((1, 8), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + x @ self.b.T @ self.a.T
        return y


def widened(net: Any) -> None:
    net.out = seeded(lambda: nn.Linear(8, 3, bias=False), 3)


#: What is done -> numbers added and removed, changed parameters and buffers, and words of the report.
RETURNED: dict[str, tuple[Callable[[nn.Module], nn.Module], tuple[int, int, int, int], str]] = {
    "a wrapper": (Beside, (3, 0, 0, 0), "the part 'base' of a Beside"),
    "a wrapper of a changed network": (
        lambda net: Beside(edit(lambda n: n.out.bias.add_(1.0))(net)),
        (3, 0, 3, 0),
        "the part 'base' of a Beside",
    ),
    "a layer with a term added": (
        edit(lambda net: setattr(net, "out", Low(net.out))),
        (11, 0, 0, 0),
        "out: Linear -> Low",
    ),
    "another layer": (edit(widened), (0, 3, 24, 0), "removed"),
    "another activation": (edit(lambda net: setattr(net, "act", nn.Tanh())), (0, 0, 0, 0), "act: LeakyReLU -> Tanh"),
    "another setting": (
        edit(lambda net: setattr(net.act, "negative_slope", 0.5)),
        (0, 0, 0, 0),
        "act.negative_slope: 0.01 -> 0.5",
    ),
    "a hook": (
        edit(lambda net: net.out.register_forward_hook(lambda module, x, y: y + 1)),
        (0, 0, 0, 0),
        "out.forward hooks: 0 -> 1",
    ),
    "another dtype": (lambda net: net.double(), (0, 0, 0, 0), "torch.float32 -> torch.float64"),
    "another shape": (
        edit(lambda net: setattr(net, "norm", nn.Identity())),
        (0, 8 * 4 + 1, 0, 0),
        "norm: BatchNorm1d -> Identity",
    ),
    "statistics": (edit(lambda net: net.norm.running_mean.add_(1.0)), (0, 0, 0, 8), "8 of 20 in buffers"),
    "a buffer outside the state": (edit(lambda net: net.mask[:1].add_(1.0)), (0, 0, 0, 1), "not part of the state"),
    "weights": (edit(lambda net: net.out.bias.add_(1.0)), (0, 0, 3, 0), "3 of 83"),
    "nothing": (lambda net: net, (0, 0, 0, 0), "0 of 83"),
}


@pytest.mark.parametrize(("make", "counts", "words"), RETURNED.values(), ids=RETURNED.keys())
def test_what_a_method_returns_has_its_own_size(make: Any, counts: tuple[int, ...], words: str) -> None:
    net, x = seeded(Net).eval(), randn(3, 4)
    with torch.no_grad():
        labels = second(net(x))
    result = nnrepair.fix(net, (x, labels), randn(20, 4, seed=2), method=Returns(make), throw=False)
    change = result.report.weight_change
    found = change.added.numbers, change.removed.numbers, change.parameters.nonzeros, change.buffers.nonzeros
    assert found == counts
    assert words in str(result) and words in "; ".join(f"{a} {b}" for a, b in change.rows())
    patchable = not (counts[0] or counts[1] or change.differences)
    assert (result.patch is None) == (not patchable)
    if patchable:
        assert (change.nonzeros, change.why) == (counts[2] + counts[3], "")
    else:
        assert change.l1 is change.l2 is change.linf is change.nonzeros is None
        assert "not one number: the networks do not have the same parts" in str(result)
        assert "weights changed" not in str(result)
    json.dumps(result.report.as_dict(), allow_nan=False)


def test_what_cannot_be_found_is_not_called_zero() -> None:
    net, x = seeded(Net).eval(), randn(3, 4)

    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.more = nn.Linear(4, 3), [0.0]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x) + self.more[0] * torch.tensor([1.0, 2.0, 3.0])
            return y

    net = seeded(Sly).eval()
    with torch.no_grad():
        labels = second(net(x))

    def make(net: Any) -> Any:
        net.more = [5.0]
        return net

    result = nnrepair.fix(net, (x, labels), method=Returns(make), throw=False)
    assert result.report.weight_change.l2 is None and result.patch is None
    assert "what did is not known" in str(result)


def test_sizes_that_are_not_finite_are_not_given() -> None:
    net, x = seeded(Net).eval(), randn(3, 4)
    with torch.no_grad():
        labels = second(net(x))
    make = edit(lambda net: net.out.weight.fill_(torch.nan))
    result = nnrepair.fix(net, (x, labels), x + 1, method=Returns(make), throw=False)
    assert result.report.weight_change.l2 is None
    assert result.report.locality == 0.0  # not a number is no decision
    assert result.report.success_rate == 0.0
    assert "some of the new numbers are not finite" in str(result)
    json.dumps(result.report.as_dict(), allow_nan=False)


def test_outputs_that_are_not_finite_have_no_distance() -> None:
    net, x = mlp(4, 8, 2), randn(3, 4)
    make = edit(lambda net: net[2].weight.fill_(torch.nan))
    target = Near(net(x).detach() + 1, 0.1)
    result = nnrepair.fix(net, Edits(x, target), x + 1, method=Returns(make), throw=False)
    assert result.report.side_effects is not None and result.report.side_effects.moved is not None
    assert (result.report.side_effects.moved.mean, result.report.side_effects.moved.within) == (None, 0.0)
    assert "some outputs are not finite" in str(result)
    json.dumps(result.report.as_dict(), allow_nan=False)


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.tanh(self.a(x)))
            return y

    net, x = seeded(Tied), randn(2, 3)
    with torch.no_grad():
        labels = second(net(x))
    result = nnrepair.fix(net, (x, labels), method=Returns(edit(lambda n: n.a.weight.add_(1.0))), throw=False)
    change = result.report.weight_change
    assert (change.nonzeros, change.parameters.numbers, change.l1) == (9, 15, pytest.approx(9.0))


def test_a_network_stitched_again_is_compared_with_what_it_was() -> None:
    base, x = mlp(4, 8, 3), randn(4, 4)
    net = Stitched(base, OwnMLP(4, 3)).eval()
    with torch.no_grad():
        net.mlp.layers[1].bias.add_(0.1)
        labels = second(net(x))
    result = nnrepair.fix(net, (x, labels), method=EGNN(kl=0, rehearsal=0), throw=False)
    change = result.report.weight_change
    sizes = measured.change(net, result.model)
    same({"parameters": change.as_dict()["parameters"]}, {"parameters": sizes["parameters"]})
    assert change.l2 == pytest.approx(sizes["parameters"]["l2"])


# What is said --------------------------------------------------------------------------------------------------------


def test_regression_never_speaks_of_decisions() -> None:
    for name in ("numbers", "images"):
        posed = Posed.of(TASKS[name])
        for labelled in (True, False):
            result = posed.fix(FineTune(lr=0.01, steps=20), labelled)
            texts = [str(result), result._repr_html_()]
            texts.append(str(posed.fix(FineTune(lr=0.01, steps=20), labelled, mode="successive")))
            for text in texts:
                assert "decision" not in text
                assert "outputs within 0.05 of before at" in text and "mean absolute change" in text
            assert ("drawdown" in str(result.report.side_effects)) == labelled


def test_one_logit_is_a_decision() -> None:
    model, x = mlp(4, 24, 1), randn(50, 4)
    with torch.no_grad():
        right = (model(x)[:, 0] > 0).long()
    for labels in (1 - right[:3], right[:3] == 0):
        for method in ("auto", "ft", "ft+kl", "ewc", "egnn"):
            result = nnrepair.fix(model, (x[:3], labels), x[5:], method=method, throw=False)
            same_now = float(((result.model(x[5:])[:, 0] > 0) == (right[5:] == 1)).double().mean())
            assert result.report.locality == same_now
            assert "of 45 decisions unchanged" in str(result)
            assert result.outcome.ok or method in ("ewc", "egnn")  # which hold back more


@pytest.mark.parametrize("labels", [[2, 0], [-1, 0], [0, 3]])
def test_labels_of_one_logit_are_yes_or_no(labels: list[int]) -> None:
    with pytest.raises(nnrepair.InvalidInput, match=r"labels 1 \(above\)|every output of points \[0\] is free"):
        nnrepair.fix(mlp(4, 8, 1), (randn(2, 4), labels))


def test_classes_of_one_logit_are_refused() -> None:
    """Labels alone are read as its sign; who writes Argmax means classes, and these there are none of."""
    x = randn(2, 4)
    for given in (Argmax([0, 0]), Argmax([0, 0]) & Argmax([0, 0]), Argmin([0, 0])):
        with pytest.raises(nnrepair.InvalidInput, match="use Threshold"):
            nnrepair.fix(mlp(4, 8, 1), Edits(x, given))


def test_labels_beside_a_threshold_are_about_it() -> None:
    """Labels alone are; a threshold that is written out stays."""
    model, x = mlp(4, 8, 1), randn(30, 4)
    with torch.no_grad():
        y = model(x)[:, 0]
    edits = Edits(x[:1], Threshold([int(y[0] <= 0.3)], threshold=0.3))
    for labels in ((y > 0.3).long(), y > 0.3):
        result = nnrepair.fix(model, edits, (x[1:], labels[1:]), test_set=(x, Threshold(y > 0)), method="ft")
        assert result.report.side_effects is not None and result.report.side_effects.accuracy_before == 1.0
        assert result.report.tests["test set"].accuracy_before == 1.0
        with torch.no_grad():
            after = result.model(x)[:, 0]
        assert result.report.side_effects.accuracy_after == float(((after > 0.3) == (y > 0.3))[1:].double().mean())
        assert result.report.tests["test set"].accuracy_after == float(((after > 0) == (y > 0)).double().mean())


def test_a_threshold_of_probabilities_is_asked_for() -> None:
    model, x = mlp(4, 8, 1).append(nn.Sigmoid()), randn(4, 4)
    with torch.no_grad():
        labels = (model(x)[:, 0] <= 0.5).long()
    for given in (labels, labels == 1, Threshold(labels)):
        with pytest.raises(nnrepair.InvalidInput, match=r"ends in a sigmoid.*Threshold\(labels, threshold=0.5\)"):
            nnrepair.fix(model, (x, given))
    result = nnrepair.fix(model, (x, Threshold(labels, threshold=0.5)), (x + 1, labels), method="ft", throw=False)
    assert result.report.success_rate == 1.0
    with torch.no_grad():
        right = float(((result.model(x + 1)[:, 0] > 0.5).long() == labels).double().mean())
    assert (
        result.report.side_effects is not None and result.report.side_effects.accuracy_after == right
    )  # read at 0.5 too


def test_one_hot_labels_are_told_what_they_were_taken_for() -> None:
    model, x = mlp(4, 8, 3), randn(3, 4)
    result = nnrepair.fix(model, (x, torch.eye(3).long()), method="ft", throw=False)
    assert any("one yes-or-no answer per output" in note for note in result.report.notes)
    partly = torch.eye(3).long()
    partly[0, 1] = -1
    assert not nnrepair.fix(model, (x, partly), method="ft", throw=False).report.notes


def test_decisions_beside_numbers() -> None:
    """Two heads, a yes-or-no answer and a number: kept points keep the answer, and the report says so."""
    model, x = mlp(4, 8, 2), randn(3, 4)
    y = model(x).detach()
    answer = Threshold(torch.stack([(y[:, 0] <= 0).long(), torch.full((3,), -1)], 1))
    number = Near(torch.stack([y[:, 0], y[:, 1] + 0.3], 1), torch.tensor([torch.inf, 0.1]))
    for criterion in (answer & number, number & answer):
        result = nnrepair.fix(model, Edits(x, criterion), randn(20, 4, seed=3), method="ft", throw=False)
        kept = randn(20, 4, seed=3)
        with torch.no_grad():
            unchanged = float(((model(kept) > 0) == (result.model(kept) > 0))[:, 0].double().mean())
        assert result.report.locality == unchanged
        assert result.report.side_effects is not None and result.report.side_effects.decisions == 1
        assert any("decisions only" in note for note in result.report.notes)
    mixed = nnrepair.fix(
        model, Edits(x, Argmax(y.argmin(1)) & Near(y, 2.0)), randn(20, 4, seed=3), method="ft", throw=False
    )
    assert mixed.report.locality is not None


def test_labels_of_kept_points_say_what_outputs_are() -> None:
    """Edits of plain conditions beside labelled points: decisions are measured, with a test set without labels too."""
    model, x = mlp(4, 8, 3), randn(20, 4)
    y = model(x).detach()
    edits = Edits(x[:2], Linear(torch.eye(3)[:1], [1.0], points=2))
    result = nnrepair.fix(model, edits, (x[2:], y[2:].argmax(1)), test_set=x, method="ft+kl", throw=False)
    with torch.no_grad():
        unchanged = float((result.model(x).argmax(1) == y.argmax(1)).double().mean())
    assert result.report.tests["test set"].locality == unchanged
    assert nnrepair.fix(model, edits, x[2:], method="ft", throw=False).report.locality is None


def test_free_points_are_counted() -> None:
    model, x = mlp(4, 8, 3), randn(20, 4)
    y = model(x).detach()
    labels = y.argmax(1)
    labels[:5] = second(y[:5])
    result = nnrepair.fix(model, (x[:1] + 2, second(model(x[:1] + 2).detach())), (x, labels), method="ft")
    assert result.report.side_effects is not None and result.report.side_effects.free == {"did not hold before": 5}
    assert "5 of them did not hold before: free to change" in str(result)


def test_the_edit_scope_says_whose_mean_it_is() -> None:
    model, x = mlp(4, 8, 3), randn(3, 4)
    y = second(model(x).detach())
    scope = EditScope(torch.cat([x[:1], randn(9, 4, seed=4)]), torch.cat([y[:1], y[:1].repeat(9)]), of=[0] + [1] * 9)
    result = nnrepair.fix(model, (x, y), method="ft", edit_scope=scope)
    held = Argmax(scope.criterion.labels).holds(result.model(scope.inputs))
    assert result.report.generalization_rate == pytest.approx((float(held[0]) + float(held[1:].double().mean())) / 2)
    assert "mean over the 2 of 3 edits that have some of its 10 points" in str(result)
    plain = nnrepair.fix(model, (x, y), method="ft", edit_scope=EditScope(scope.inputs, scope.criterion))
    assert "of the 10 points of the edit scope" in str(plain)


def test_points_that_a_penalty_left_out_are_counted() -> None:
    model, x = mlp(4, 8, 3), randn(3, 4)
    method = FineTune(penalties=[EWC(1.0, points=10)], steps=5)
    result = nnrepair.fix(model, (x, second(model(x).detach())), randn(40, 4, seed=1), method=method, throw=False)
    assert "Fisher information of 10 of 40 points of the locality set" in str(result)


def test_answers_that_contradict_each_other_are_refused_and_kept_ones_noted() -> None:
    model, x = mlp(4, 8, 2), randn(4, 4)
    twice = x[[0, 0, 1]]
    for labels in ([[1, 0], [1, 1], [0, 0]], [[-1, 0], [1, 1], [0, 0]]):
        with pytest.raises(nnrepair.InvalidInput, match=r"edits 0 and 1 \(labels \["):
            nnrepair.fix(model, (twice, labels))
    with pytest.raises(nnrepair.InvalidInput, match=r"edits 0 and 1 \(labels 1 and 0\)"):
        nnrepair.fix(mlp(4, 8, 1), (twice, [True, False, False]))
    assert nnrepair.fix(model, (twice, [[1, -1], [-1, 0], [0, 0]]), method="ft", throw=False)  # both can hold
    with torch.no_grad():
        wrong = (model(x) <= 0).long()
    clash = nnrepair.fix(model, (x[:2], wrong[:2]), x, method="ft", throw=False)
    assert any("edits 0, 1 are points of the locality set too" in note for note in clash.report.notes)


def test_a_sequence_about_numbers_resumes(tmp_path: Any) -> None:
    posed, method = Posed.of(TASKS["numbers"]), FineTune(lr=0.01, steps=20)
    whole = posed.fix(method, False, mode="successive", resume=tmp_path / "run.safetensors")
    again = posed.fix(method, False, mode="successive", resume=tmp_path / "run.safetensors")
    assert [step.as_dict() for step in again.steps] == [step.as_dict() for step in whole.steps]
    assert again.steps[0].side_effects["plain"].moved is not None
    assert again.curves()["moved plain"] == [step.side_effects["plain"].moved.mean for step in again.steps]


def test_the_drift_norm_says_what_it_measures() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm, self.out = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.norm(self.fc(x)))
            return y

    model, x = seeded(Scaled).eval(), randn(20, 4)
    with torch.no_grad():
        labels, y = second(model(x[:1])), model(x[:1])

    def said(layer: Any, edits: Edits) -> str:
        method = MinimalNorm(layer, norm="drift", locality="none")
        return nnrepair.fix(model, edits, x[1:], method=method, throw=False).report.notes[0]

    assert "root mean square change of the layer's output" in said("out", Edits(x[:1], labels))
    assert "nats by which decisions move" in said("norm", Edits(x[:1], labels))
    assert "mean square change of the outputs" in said("norm", Edits(x[:1], Near(y + 0.1, 0.05)))
    both = said(["out", "norm"], Edits(x[:1], labels))
    assert "layer's output" in both and "for other parameters" in both
