from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import mistakes, mlp, randn
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import nnrepair
from nnrepair import (
    Argmax,
    Edits,
    EditScope,
    InvalidInput,
    LocalitySet,
    Near,
    RepairFailed,
    UnsupportedModel,
)
from nnrepair.methods import MinimalNorm

LAST = MinimalNorm("2")
X = randn(4, 4)


def net() -> nn.Sequential:
    return mlp(4, 8, 3)


def labels(x: Tensor = X) -> Tensor:
    return mistakes(net(), x)


def with_nan() -> Tensor:
    x = X.clone()
    x[2, 1] = torch.nan
    return x


def with_infinity() -> Tensor:
    x = X.clone()
    x[1, 0] = torch.inf
    return x


def alike() -> tuple[Tensor, list[int]]:
    return torch.cat([X, X[:2]]), [0, 1, 2, 0, 1, 1]


class Wrap(nn.Module):
    """A network with something done to its output."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.then = net(), then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.net(x))


class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.unused = net(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def broken() -> nn.Module:
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    return model


def frozen(*which: int) -> nn.Module:
    model = net()
    for k in which:
        model[k].requires_grad_(False)
    return model


def invalid(
    message: str, *, model: Callable[[], Any] = net, edits: Any = (X, [0] * 4), method: Any = LAST, **options: Any
) -> Any:
    """One row of the table: what the message says, and what is not as it should be."""
    return pytest.param(model, edits, options | {"method": method}, message)


INVALID = {
    "edits of the wrong width": invalid(
        r"does not accept the edits \(shape \(4, 3\), torch.float32\)", edits=(X[:, :3], [0] * 4)
    ),
    "fewer labels than edits": invalid("4 inputs but 2 labels", edits=(X, [0, 1])),
    "no edits": invalid("the edits are empty", edits=(X[:0], torch.zeros(0, dtype=torch.int64))),
    "a single number": invalid("one point per row", edits=(torch.tensor(1.0), [0])),
    "labels too large": invalid(
        r"0\.\.2 .*3 classes.*label 3 at index 2 does not, nor do 1 others", edits=(X, [0, 1, 3, 7])
    ),
    "labels too small": invalid("label -1 at index 1", edits=(X, [0, -1, 0, 0])),
    "float labels": invalid("of float32. For classes.*labels.long", edits=(X, torch.zeros(4))),
    "answers of another number": invalid(
        r"Labels of shape \(4, 4\) are about one answer per output, .*\(4, 3\)\. .*integers \(n,\)",
        edits=(X, torch.eye(4).long()),
    ),
    "booleans for classes": invalid(r"\(4,\) are about one answer per output.*labels\.long\(\)", edits=(X, [True] * 4)),
    "class maps": invalid(r"1 \(above\), 0 \(below\) or -1 \(free\), got 2", edits=(X, torch.full((4, 3), 2))),
    "labels that are words": invalid("Edits", edits=(X, ["cat"] * 4)),
    "NaN inputs": invalid(r"Edits: inputs must be finite; NaN or infinity at \[2\]", edits=(with_nan(), [0] * 4)),
    "infinite inputs": invalid(r"inputs must be finite; NaN or infinity at \[1\]", edits=(with_infinity(), [0] * 4)),
    "NaN parameters": invalid(r"parameters must be finite; NaN or infinity in \['2.weight'\]", model=broken),
    "contradicting edits": invalid(r"edits 0 and 4 \(labels 0 and 1\)\. Remove one", edits=alike()),
    "edits without labels": invalid("need labels or a criterion", edits=X),
    "edits that are no points": invalid(
        "Edits: inputs must be a tensor or an Inputs object, got object", edits=object()
    ),
    "edits that are None": invalid("got NoneType|need labels", edits=None),
    "no module": invalid("must be a torch.nn.Module, got function", model=lambda: lambda x: x),
    "a module class": invalid("must be a torch.nn.Module", model=lambda: nn.Linear),
    "no parameters": invalid("no floating-point parameters", model=nn.Flatten),
    "integer parameters": invalid("no floating-point parameters", model=Integers, edits=(X[:, :3], [0] * 4)),
    "a model without data": invalid("meta", model=lambda: net().to("meta")),
    "unknown layer": invalid(
        r"'2.wieght' not found. Did you mean '2.weight'", edits=(X, labels()), method=MinimalNorm("2.wieght")
    ),
    "idle layer": invalid(
        r"does not depend on \['unused.weight', 'unused.bias'\]",
        model=Idle,
        edits=(X, labels()),
        method=MinimalNorm("unused"),
    ),
    "frozen layer": invalid(r"\['2.weight', '2.bias'\] are frozen", model=lambda: frozen(2), edits=(X, labels())),
    "everything frozen": invalid("No trainable layer", model=lambda: frozen(0, 2), edits=(X, labels()), method="auto"),
    "unknown method": invalid(
        r"Unknown method 'minimal_norm'. Did you mean 'minimal-norm'", edits=(X, labels()), method="minimal_norm"
    ),
    "a method class": invalid("Method", edits=(X, labels()), method=MinimalNorm),
    "empty locality set": invalid("The locality set is empty", locality_set=X[:0]),
    "locality set of the wrong width": invalid(
        r"does not accept the locality set \(shape \(4, 2\)", locality_set=X[:, :2]
    ),
    "locality labels too large": invalid("label 3 at index 3", locality_set=(X, [0, 1, 2, 3])),
    "NaN in the locality set": invalid(
        r"LocalitySet: inputs must be finite; NaN or infinity at \[2\]", locality_set=with_nan()
    ),
    "edit scope without labels": invalid("edit scope needs labels", edit_scope=X),
    "edit scope of the wrong width": invalid("does not accept the edit scope", edit_scope=(X[:, :2], [0] * 4)),
    "infinite outputs": invalid(
        r"outputs on the edits are not finite, at indices \[0, 1, 2, 3\]", model=lambda: Wrap(lambda y: y / 0)
    ),
    "outputs of another length": invalid(r"shape \(2, 3\) for 4 points", model=lambda: Wrap(lambda y: y[:2])),
    "one number": invalid(r"shape \(\) for 4 points", model=lambda: Wrap(lambda y: y.sum())),
    "labels for images": invalid(
        r"\(4, 3, 1, 1\). Use Threshold, Near or Linear", model=lambda: Wrap(lambda y: y[:, :, None, None])
    ),
    "target of another shape": invalid(
        r"\(4, 2\), but outputs are \(4, 3\)", edits=Edits(X, Near(torch.zeros(4, 2), 1.0))
    ),
}


@pytest.mark.parametrize(("make", "edits", "options", "message"), INVALID.values(), ids=INVALID.keys())
def test_bad_input_is_explained(make: Callable[[], Any], edits: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(make(), edits, **options)


UNSUPPORTED = {
    "random in eval mode": (lambda y: y + 0.1 * torch.rand(y.shape), "Two forward passes in eval mode differ"),
    "depends on the batch": (lambda y: y - y.mean(0), "depends on the other points of its batch"),
    "depends on the size of the batch": (lambda y: y * len(y), "depends on the other points of its batch"),
    "depends on the order": (lambda y: y + torch.arange(len(y))[:, None], "depends on the other points of its batch"),
    "returns a tuple": (lambda y: (y, y), "returns tuple, in which several parts"),
    "returns no scores": (lambda y: {"label": y.argmax(1)}, "returns dict, in which no part"),
}


@pytest.mark.parametrize("count", [2, 3, 4, 9])
@pytest.mark.parametrize(("then", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_unsupported_models_are_explained(then: Callable[[Tensor], Any], message: str, count: int) -> None:
    x = randn(count, 4)
    with pytest.raises(UnsupportedModel, match=message):
        nnrepair.fix(Wrap(then), (x, [0] * count), method=MinimalNorm("net.2"))


def test_a_model_that_casts_to_its_dtype_is_repaired_in_it() -> None:
    class Insisting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float())

    result = nnrepair.fix(Insisting(), (X, labels()), method=MinimalNorm("net.2"))
    assert torch.equal(result.model(X).argmax(1), labels())


def test_errors_come_before_any_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("the method was run")

    monkeypatch.setattr(MinimalNorm, "repair", never)
    with pytest.raises(InvalidInput, match="edit scope"):
        nnrepair.fix(net(), (X, labels()), X, edit_scope=(X[:, :2], [0] * 4))


@pytest.mark.parametrize(
    "edits",
    [
        (X, labels()),
        [X, labels().tolist()],
        Edits(X, labels()),
        Edits(X, Argmax(labels())),
        (X, Argmax(labels())),
        TensorDataset(X, labels()),
        (X.numpy(), labels().numpy()),
        (X.tolist(), labels().tolist()),
        (X.double(), labels().int()),
    ],
    ids=["pair", "list", "edits", "criterion", "pair with criterion", "dataset", "numpy", "lists", "other dtypes"],
)
def test_edits_in_every_shape(edits: Any) -> None:
    result = nnrepair.fix(net(), edits, method=LAST)
    assert result.outcome.status == "repaired"
    with torch.no_grad():
        assert torch.equal(result.model(X).argmax(1), labels())


@pytest.mark.parametrize(
    "locality",
    [X + 9, (X + 9, [0] * 4), LocalitySet(X + 9), LocalitySet(X + 9, [0] * 4), TensorDataset(X + 9), (X + 9).numpy()],
)
def test_locality_sets_in_every_shape(locality: Any) -> None:
    result = nnrepair.fix(net(), (X[:1], labels()[:1]), locality, method=LAST)
    assert result.report.locality_points == 4
    assert result.report.locality is not None


def test_equal_edits_with_equal_labels_are_fine() -> None:
    x = X[[0, 0, 1]]
    assert nnrepair.fix(net(), (x, labels(x)), method=LAST).outcome.ok


def test_one_edit_is_enough() -> None:
    assert nnrepair.fix(net(), (X[:1], labels()[:1])).outcome.ok


def test_the_edit_scope_is_measured_only() -> None:
    near = X + 0.01
    scope = EditScope(torch.cat([near, near]), torch.cat([labels(), (labels() + 1) % 3]))
    with_scope = nnrepair.fix(net(), (X, labels()), method=LAST, edit_scope=scope)
    without = nnrepair.fix(net(), (X, labels()), method=LAST)
    with torch.no_grad():
        held = (with_scope.model(scope.inputs).argmax(1) == scope.criterion.labels).double().mean()
    assert with_scope.report.generalization_rate == float(held)
    assert without.report.generalization_rate is None
    assert with_scope.report.weight_change == without.report.weight_change


def test_the_report_is_what_one_measures() -> None:
    model = net()
    keep = randn(40, 4, seed=8)
    with torch.no_grad():
        before = model(keep).argmax(1)
    truth = before.clone()
    truth[:10] = (truth[:10] + 1) % 3
    result = nnrepair.fix(model, (X, labels()), (keep, truth), method=MinimalNorm("2", locality="none"))
    report = result.report
    with torch.no_grad():
        after = result.model(keep).argmax(1)
    now = float((after == truth).double().mean())
    assert report.locality == float((after == before).double().mean())
    assert report.drawdown == pytest.approx(1 - now / 0.75)
    assert report.drawdown_points == pytest.approx(75 - 100 * now)
    change = torch.cat(
        [
            (q - p).detach().double().flatten()
            for p, q in zip(model.parameters(), result.model.parameters(), strict=True)
        ]
    )
    assert report.weight_change.l1 == pytest.approx(float(change.abs().sum()))
    assert report.weight_change.l2 == pytest.approx(float(change.norm()))
    assert report.weight_change.linf == pytest.approx(float(change.abs().max()))
    assert report.weight_change.nonzeros == int((change != 0).sum())
    assert report.seconds > 0


@pytest.mark.parametrize("throw", [True, False])
def test_results_speak(throw: bool) -> None:
    result = nnrepair.fix(net(), (X, labels()), X + 9, edit_scope=(X, labels()), method=LAST, throw=throw)
    json.dumps(result.report.as_dict(), allow_nan=False)
    assert result.report.as_dict()["method"] == repr(LAST)
    text, page = str(result), result._repr_html_()
    change = result.report.weight_change
    for figure in (
        "100.00%",
        "4 of 4 edits hold",
        "0 of 4",
        "of 4 decisions unchanged",
        f"l2 {change.l2:.4g}",
        "generalization rate",
    ):
        assert figure in text
        assert figure in page
    assert "repaired: all 4 edits hold." in text
    assert "measured on 4 edits and 4 locality points" in text
    assert page.count("<tr>") == page.count("</tr>") > 4


def test_html_is_escaped() -> None:
    class Odd(MinimalNorm):
        def repair(self, problem: Any) -> Any:
            proposal = super().repair(problem)
            proposal.notes.append("<script>")
            return proposal

    result = nnrepair.fix(net(), (X, labels()), method=Odd("2"))
    assert "<script>" in str(result)
    assert "<script>" not in result._repr_html_()


def test_what_a_method_claims_is_measured_again() -> None:
    class Boasting(MinimalNorm):
        def repair(self, problem: Any) -> Any:
            return nnrepair.methods.Proposal(problem.model, {"success_rate": 1.0})

    with pytest.raises(RepairFailed, match=r"4 of 4 edits do not hold: \[0, 1, 2, 3\]") as caught:
        nnrepair.fix(net(), (X, labels()), method=Boasting())
    assert caught.value.result.report.success_rate == 0.0
    assert caught.value.result.outcome.failing == [0, 1, 2, 3]


def test_one_edit_is_no_plural() -> None:
    class Boasting(MinimalNorm):
        def repair(self, problem: Any) -> Any:
            return nnrepair.methods.Proposal(problem.model, {})

    one, kept = X[:1], LocalitySet(X[1:2], net()(X[1:2]).argmax(1))
    result = nnrepair.fix(net(), (one, labels()[:1]), kept, method=LAST)
    assert str(result).startswith("repaired: the edit holds.\nsuccess rate         100.00% (the edit holds)")
    assert "measured on 1 edit and 1 locality point, in" in str(result) and "of 1 decision unchanged" in str(result)
    failed = nnrepair.fix(net(), (one, labels()[:1]), method=Boasting(), throw=False)
    assert failed.outcome.message.startswith("the edit does not hold: [0]. Try ")
    for mode in ("independent", "successive"):
        steps = nnrepair.fix(net(), (one, labels()[:1]), method=LAST, mode=mode)
        where = "right after its own step" if mode == "independent" else "in the last network"
        assert steps.outcome.message == f"the edit holds {where}." and f"{mode}, 1 edit in 1 step" in str(steps)


def test_a_method_cannot_reach_the_users_model() -> None:
    class Vandal(MinimalNorm):
        def repair(self, problem: Any) -> Any:
            with torch.no_grad():
                for p in problem.model.parameters():
                    p.zero_()
            torch.manual_seed(0)
            torch.rand(3)
            np.random.rand(3)
            return nnrepair.methods.Proposal(problem.model)

    model = net()
    before = [p.clone() for p in model.parameters()]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    result = nnrepair.fix(model, (X, labels()), method=Vandal(), throw=False)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert result.report.weight_change.l1 == pytest.approx(float(sum(p.detach().abs().sum() for p in before)), rel=1e-5)


def test_exported_modules_can_be_repaired() -> None:
    options = ({0: torch.export.Dim("points")},)
    model = torch.export.export(net().eval(), (X,), dynamic_shapes=options).module()
    result = nnrepair.fix(model, (X, labels()), method=LAST)
    with torch.no_grad():
        assert torch.equal(result.model(X).argmax(1), labels())
    assert result.patch is not None and result.report.weight_change.differences == []


def test_a_model_may_have_an_attribute_called_change() -> None:
    model = net()
    model.change = {}
    result = nnrepair.fix(model, (X, labels()), method=LAST)
    assert result.report.weight_change.nonzeros > 0


def test_parametrized_weights_can_be_repaired() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    with torch.no_grad():
        wrong = model(X).topk(2, dim=1).indices[:, 1]
    result = nnrepair.fix(model, (X[:2], wrong[:2]), method=MinimalNorm("parametrizations.weight"))
    with torch.no_grad():
        assert torch.equal(result.model(X[:2]).argmax(1), wrong[:2])


def test_importing_prints_and_seeds_nothing() -> None:
    code = "import torch; s = torch.get_rng_state(); import nnrepair; assert torch.equal(s, torch.get_rng_state())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_repair_warns_about_nothing() -> None:
    code = (
        "import torch, nnrepair; from nnrepair.methods import MinimalNorm; "
        "m = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)); x = torch.eye(3)[:1]; "
        "nnrepair.fix(m, (x, 1 - m(x).argmax(1)), method=MinimalNorm('0', architecture='decoupled'))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_decisions_are_counted_as_unchanged_whether_right_or_wrong() -> None:
    """Also where the edits speak of no classes, but the points to keep have labels."""
    model = net()
    y = model(X).detach()
    wrong = torch.where(torch.arange(4) < 2, y.argmax(1), (y.argmax(1) + 1) % 3)
    result = nnrepair.fix(model, Edits(X, Near(y, 1.0)), LocalitySet(X, wrong), test_set=(X, Near(y + 5, 1.0)))
    assert result.outcome.status == "nothing to do"
    assert result.report.locality == 1.0
    assert result.report.tests["test set"].locality == 1.0
    assert result.report.tests["test set"].accuracy_after == 0.0


def test_a_model_that_writes_into_its_inputs_is_refused_before_it_does() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), *net())
    x = X.clone()
    with pytest.raises(UnsupportedModel, match="writes into its inputs"):
        nnrepair.fix(model, (x, labels()))
    assert torch.equal(x, X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_edits_that_the_locality_set_forbids_are_named(dtype: torch.dtype) -> None:
    model, x = mlp(5, 8, 3).to(dtype).eval(), randn(6, 5, seed=1).to(dtype)
    with torch.no_grad():
        old = model(x).argmax(1)
    new = (old + 1) % 3

    def notes(edits: object, kept: object) -> str:
        return " ".join(nnrepair.fix(model, edits, kept, method="ft", throw=False).report.notes)

    mine = (torch.cat([x[:1] + 1, x[1:3]]), new[:3])
    for kept in (x.flip(0), (x.flip(0), old.flip(0))):
        assert "edits 1, 2 are points of the locality set too" in notes(mine, kept)
    assert "locality set too" not in notes((x[1:2], new[1:2]), (x, new))  # labels that allow the change
    assert "locality set too" not in notes((x[1:2], old[1:2]), x)


def test_inputs_that_hold_nan_beside_what_the_model_sees() -> None:
    class Some:
        independent = True

        def __init__(self, x: torch.Tensor) -> None:
            self.x, self.unused = x, torch.full((len(x),), torch.nan)

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, index: object) -> Some:
            return Some(self.x[index])

        def to(self, like: torch.Tensor) -> Some:
            return self

        def call(self, model: nn.Module) -> torch.Tensor:
            return model(self.x)

    model, inputs = mlp(5, 8, 3).eval(), Some(randn(4, 5, seed=1))
    with torch.no_grad():
        new = (inputs.call(model)[:2].argmax(1) + 1) % 3
    assert nnrepair.fix(model, (inputs[:2], new), inputs[2:], method="ft").report.success_rate == 1.0


def test_seeds_are_whole_numbers() -> None:
    model, x = mlp(4, 8, 3).eval(), randn(2, 4, seed=1)
    for seed in ("x", True, 1.5, -1, 2**70):
        with pytest.raises(InvalidInput, match="seed must be a whole number from 0 to"):
            nnrepair.fix(model, (x, [0, 1]), seed=seed)  # type: ignore[call-overload]
        with pytest.raises(InvalidInput, match="seed must be a whole number from 0 to"):
            nnrepair.locate(model, (x, [0, 1]), randn(9, 4, seed=2), seed=seed)
