"""Points judged with bounded rounding, against rational arithmetic written out; and the confirmation of a repair."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mistakes, mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import (
    Above,
    AllOf,
    AnyOf,
    Argmax,
    Argmin,
    Between,
    Criterion,
    Edits,
    InvalidInput,
    Linear,
    LocalitySet,
    Near,
    Threshold,
)
from nnrepair import UnsupportedModel as Unsupported
from nnrepair.deadline import NEVER
from nnrepair.domains import vision
from nnrepair.methods import MinimalNorm
from nnrepair.verify import Box, Property, points, vnnlib
from nnrepair.verify.points import check_points
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search import rational as exact
from nnrepair.verify.search.intervals import outputs_over

quick = settings(deadline=None, derandomize=True, max_examples=60)


def exactly(model: nn.Sequential, x: Tensor) -> list[Fraction]:
    """The slow twin: the network's output at one point, in fractions."""
    value = [Fraction(v) for v in x.flatten().tolist()]
    for layer in model:
        if isinstance(layer, nn.Linear):
            rows, bias = layer.weight.tolist(), layer.bias.tolist()
            value = [sum((Fraction(w) * v for w, v in zip(row, value, strict=True)), Fraction(b)) for row, b in
                     zip(rows, bias, strict=True)]  # fmt: skip
        elif isinstance(layer, nn.ReLU):
            value = [max(v, Fraction(0)) for v in value]
    return value


def truth(criterion: Criterion, i: int, y: list[Fraction]) -> bool:
    """Whether a criterion holds for point i with the output y."""
    if isinstance(criterion, AllOf):
        return all(truth(part, i, y) for part in criterion.parts)
    if isinstance(criterion, AnyOf):
        return any(truth(part, i, y) for part in criterion.parts)
    if isinstance(criterion, Argmax):
        label, sign, margin = int(criterion.labels[i]), int(criterion.sign), Fraction(criterion.margin_)
        gaps = [sign * (y[label] - v) for k, v in enumerate(y) if k != label]
        return all(gap >= margin and gap > 0 if margin == 0 else gap >= margin for gap in gaps)
    if isinstance(criterion, Threshold):
        at, margin = [Fraction(t) for t in criterion.threshold.tolist()], Fraction(criterion.margin_)
        at = at if len(at) == len(y) else at * len(y)
        gaps = [v - t if k else t - v for v, t, k in zip(y, at, criterion.labels[i].tolist(), strict=True) if k >= 0]
        return all(gap > 0 if margin == 0 else gap >= margin for gap in gaps)
    if isinstance(criterion, Linear):
        rows, bounds = criterion.A[i].tolist(), criterion.b[i].tolist()
        return all(
            sum(Fraction(a) * v for a, v in zip(row, y, strict=True)) >= Fraction(b)
            for row, b in zip(rows, bounds, strict=True)
        )
    if isinstance(criterion, Between):
        ends = zip(y, criterion.low[i].tolist(), criterion.high[i].tolist(), strict=True)
        return all((low == -math.inf or v >= Fraction(low)) and v <= Fraction(high) for v, low, high in ends)
    if isinstance(criterion, Above):
        gaps = [y[int(criterion.higher[i])] - y[k] for k in criterion.lower[i].tolist() if k >= 0]
        margin = Fraction(criterion.margin_)
        return all(gap > 0 if margin == 0 else gap >= margin for gap in gaps)
    assert isinstance(criterion, Near)
    target, tol = criterion.target[i].tolist(), criterion.tol[i].tolist()
    return all(t == math.inf or abs(v - Fraction(c)) <= Fraction(t) for v, c, t in zip(y, target, tol, strict=True))


def network(seed: int, whole: bool, scale: float) -> nn.Sequential:
    model = mlp(3, 5, 4, 3, seed=seed)
    if whole:  # small integers, so that ties are common
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((p * 3).round())
    with torch.no_grad():
        model[0].weight *= scale
    return model


def criteria(seed: int, n: int, y: Tensor, whole: bool) -> Criterion:
    """Return a criterion that is often met with equality."""
    generator = np.random.default_rng(seed)
    labels = torch.from_numpy(generator.integers(0, 3, n))
    margin = float(generator.integers(0, 2))
    A = torch.from_numpy(generator.integers(-2, 3, (n, 2, 3))).double()
    b = torch.einsum("nco,no->nc", A, y.double())  # equality, as far as float64 sees
    tol = torch.from_numpy(generator.choice([1.0, 2.0, np.inf], (n, 3)))
    kinds = [Argmax(labels), Argmax(labels, margin), Argmin(labels), Linear(A, b), Near((y + 1).double(), tol)]
    answers = torch.from_numpy(generator.integers(-1, 2, (n, 3)))
    answers[:, 0] = answers[:, 0].abs()
    kinds += [Threshold(answers, y[0].double(), margin), Threshold(answers)]  # the first point's outputs lie on it
    kinds += [Between(torch.where(tol == 1, -np.inf, y.double()), (y + 1).double())]
    kinds += [Above(labels, torch.stack([(labels + 1) % 3, torch.where(labels == 1, -1, (labels + 2) % 3)], 1), margin)]
    a, c = (kinds[k] for k in generator.integers(0, len(kinds), 2))
    return [a, a & c, a | c, (a | c) & kinds[0]][generator.integers(0, 4)]


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([1.0, 1e-150, 1e8]))
@quick
def test_small_networks_are_decided_exactly(seed: int, whole: bool, scale: float) -> None:
    model = network(seed % 50, whole, scale)
    x = randn(8, 3, seed=seed)
    x = x.round() if whole else x
    with torch.no_grad():
        criterion = criteria(seed, 8, model(x), whole)
    expected = [truth(criterion, i, exactly(model, x[i])) for i in range(8)]
    assert check_points(model, x, criterion).tolist() == expected


@given(st.integers(0, 10**6), st.booleans())
@quick
def test_large_networks_are_decided_on_the_safe_side(seed: int, whole: bool) -> None:
    model = network(seed % 50, whole, 1.0)
    x = randn(8, 3, seed=seed)
    with torch.no_grad():
        criterion = criteria(seed, 8, model(x), whole)
    expected = [truth(criterion, i, exactly(model, x[i])) for i in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "EXACT_LIMIT", 0)
        judged = points.Points("points", x, criterion).judge(model, NEVER)
    assert not judged.exact.any()
    for holds, fails, right in zip(judged.holds.tolist(), judged.fails.tolist(), expected, strict=True):
        assert (not holds or right) and (not fails or not right)


@pytest.mark.parametrize("sizes", [(4, 8, 3), (30, 40, 40, 40, 40, 10)])
def test_enclosures_contain_the_exact_outputs_and_are_narrow(sizes: tuple[int, ...]) -> None:
    model = mlp(*sizes)
    x = randn(20, sizes[0], seed=1)
    x[7] *= 1e6
    with torch.no_grad():
        graph = lower(model, (sizes[0],))
        low, high = outputs_over(graph, x.double(), x.double())
    for i in range(0, 20, 7):
        for a, v, b in zip(low[i].tolist(), exactly(model, x[i]), high[i].tolist(), strict=True):
            assert Fraction(a) <= v <= Fraction(b)
    assert float((high - low).max()) < 1e-3


def test_overflow_confirms_nothing() -> None:
    model = mlp(2, 3, 2).double()
    with torch.no_grad():
        model[0].weight.fill_(1e200)
        model[2].weight.fill_(1e200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "EXACT_LIMIT", 0)
        assert not check_points(model, torch.ones(3, 2, dtype=torch.float64), Argmax([0, 1, 0])).any()


def test_ten_thousand_images_take_seconds() -> None:
    model = mlp(784, 100, 100, 10)
    x = torch.rand(10_000, 784, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x)
    started = time.process_time()
    confirmed = check_points(model, x, Argmax(y.argmax(1)))
    assert time.process_time() - started < 20  # about one second on an idle core
    assert confirmed.all()


def test_images_and_unions_of_many_classes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 400)).eval()
    x = randn(5, 1, 8, 8)
    with torch.no_grad():
        best = model(x).topk(3, dim=1).indices
    either = AnyOf(Argmax(best[:, 1]), AnyOf(Argmax(best[:, 0]), Argmax(best[:, 2])))
    assert check_points(model, x, either).all()
    assert not check_points(model, x, AnyOf(Argmax(best[:, 1]), Argmax(best[:, 2]))).any()


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    check_points(model, torch.zeros(1, 2), Argmax([0]))
    assert model.training and model[1].training and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("inputs", "criterion", "message"),
    [
        (torch.zeros(2, 3), Argmax([0, 1]), "does not accept inputs|takes 2 inputs"),
        (torch.zeros(3, 2), Argmax([0, 1]), "3, 2.*2 points"),
        (torch.zeros(2), Argmax([0, 1]), "expected inputs"),
        (torch.tensor([[0.0, math.nan]]), Argmax([0]), "finite"),
        (torch.zeros(1, 2), Argmax([7]), "0..1"),
        (torch.zeros(1, 2), Near(torch.zeros(1, 5), 1.0), "outputs are"),
        ([[0.0, 0.0]], Argmax([0]), "plain tensor"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: Any, criterion: Criterion, message: str) -> None:
    with pytest.raises((InvalidInput, Unsupported), match=message):
        check_points(nn.Linear(2, 2), inputs, criterion)


class Odd(Criterion):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Tensor) -> Odd:
        return self

    def slack(self, y: Tensor) -> Tensor:
        return y

    def rows(self, point: Tensor, condition: Tensor, y: Tensor) -> Tensor:
        return y

    def check(self, y: Tensor) -> None:
        return


def test_unknown_criteria_and_models_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Odd cannot be checked"):
        check_points(nn.Linear(2, 2), torch.zeros(1, 2), Odd())
    with pytest.raises(Unsupported, match="Softmin"):
        check_points(nn.Sequential(nn.Linear(2, 2), nn.Softmin(-1)), torch.zeros(1, 2), Argmax([0]))
    with pytest.raises(InvalidInput, match=r"torch\.nn\.Module"):
        check_points("model.onnx", torch.zeros(1, 2), Argmax([0]))  # type: ignore[arg-type]


# The confirmation of a repair ----------------------------------------------------------------------------------------


def repaired(**options: Any) -> tuple[nnrepair.RepairResult, Tensor, Tensor]:
    model = mlp(4, 12, 12, 3)
    x = randn(6, 4, seed=1)
    labels = mistakes(model, x)
    method = MinimalNorm(layer="4", norm="l1", **options)
    result = nnrepair.fix(model, Edits(x, labels), LocalitySet(randn(40, 4, seed=2)), method=method, throw=False)
    return result, x, labels


def test_a_repair_is_confirmed() -> None:
    result = repaired(locality="none")[0]
    lost = round((1 - result.report.locality) * 40)
    assert lost > 0  # or this tests nothing
    found = result.verify()
    assert found.verdict == "violated"
    assert f"points to keep: {40 - lost} of 40 confirmed; {lost} certainly wrong" in found.reason
    assert "edits: 6 of 6 confirmed" in found.reason
    assert found.proved == pytest.approx(1 - lost / 40)
    witness = found.counterexample
    assert witness is not None and witness.replayed == ("network", "enclosure") and witness.margin > 0
    with torch.no_grad():
        y = result.model(torch.tensor(witness.input, dtype=torch.float32)[None])[0]
        keeps = mlp(4, 12, 12, 3)(torch.tensor(witness.input, dtype=torch.float32)[None]).argmax()
    assert np.array_equal(witness.output, y.double().numpy()) and y.argmax() != keeps


def test_without_locality_set_the_edits_are_all() -> None:
    model, x = mlp(4, 12, 3), randn(3, 4, seed=1)
    result = nnrepair.fix(model, Edits(x, mistakes(model, x)))
    found = result.verify()
    assert (found.verdict, found.reason, found.counterexample) == ("holds", "edits: 3 of 3 confirmed", None)
    assert found.proved == 1.0 and found.certificate is None


def test_a_locality_set_that_was_all_wrong_keeps_nothing() -> None:
    model, x = mlp(4, 12, 3), randn(3, 4, seed=1)
    far = randn(5, 4, seed=2)
    result = nnrepair.fix(model, Edits(x, mistakes(model, x)), LocalitySet(far, mistakes(model, far)))
    found = result.verify()
    assert found.verdict == "holds"
    assert "points to keep: 0 of 0 confirmed (of 5;" in found.reason
    with torch.no_grad():
        assert check_points(model, far[:0], Argmax(torch.zeros(0, dtype=torch.long))).tolist() == []


def test_failed_edits_are_named() -> None:
    result, x, labels = repaired(locality="none")
    object.__setattr__(result.asked, "edits", Edits(x, labels.where(torch.arange(6) != 2, (labels + 1) % 3)))
    found = result.verify()
    assert found.verdict == "violated"
    assert found.reason.startswith("edits: 5 of 6 confirmed; 1 certainly wrong: 2\n")
    assert np.array_equal(found.counterexample.input, x[2].double().numpy())


def test_ties_are_too_close_where_nothing_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(4, 12, 3), randn(3, 4, seed=1)
    result = nnrepair.fix(model, Edits(x, mistakes(model, x)))
    with torch.no_grad():
        y = result.model(x).double()
    object.__setattr__(result.asked, "edits", Edits(x, Linear(y[:, None, :1] * 0 + 1 * torch.eye(3)[:1], y[:, :1])))
    monkeypatch.setattr(exact, "EXACT_LIMIT", 0)
    found = result.verify()
    assert found.verdict == "unknown"
    assert "too close to tell" in found.reason
    assert str(found).startswith("unknown")


def test_the_set_is_referred_to_not_copied() -> None:
    x = randn(6, 4, seed=1)
    model = mlp(4, 12, 3)
    result = nnrepair.fix(model, Edits(x, mistakes(model, x)))
    assert result.asked is not None
    assert result.asked.edits.inputs.data_ptr() == x.data_ptr()


def test_properties_are_checked_over_their_regions(tmp_path: Path) -> None:
    model, x = mlp(4, 12, 3), randn(3, 4, seed=1)
    labels = mistakes(model, x)
    result = nnrepair.fix(model, Edits(x, labels), method=MinimalNorm(layer="2", margin=0.1))
    near = Property.on([Box.around(point, 1e-3) for point in x], Argmax(labels), outputs=3)
    found = result.verify(near)
    assert found.verdict == "holds" and found.boxes > 0 and found.certificate is not None
    assert found.reason == "edits: 3 of 3 confirmed\nproperty 1: holds"
    file = tmp_path / "near.vnnlib"
    file.write_text(vnnlib.dumps(near))
    wide = Property.on(Box.around(x[0], 5.0), Argmax(labels[:1]), outputs=3)
    both = result.verify([file, wide])
    assert both.verdict == "violated" and both.certificate is None
    assert both.reason.splitlines()[1:] == ["property near.vnnlib: holds", "property 2: violated"]
    assert wide.cases[0].box.contains(both.counterexample.input)
    late = result.verify(near, timeout=1e-9)
    assert late.verdict == "unknown" and "time limit" in late.reason


def test_flat_properties_of_image_networks() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x = randn(2, 1, 4, 4)
    labels = mistakes(model, x)
    result = nnrepair.fix(model, Edits(x, labels), method=MinimalNorm(layer="3"))
    prop = Property.on(Box.around(x[0].flatten(), 1e-6), Argmax(labels[:1]), outputs=3)
    assert result.verify(prop).verdict == "holds"
    assert not hasattr(result.model, "item_shape")


class Rows:
    """Points of a domain that is not a plain tensor."""

    independent = True

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Rows:
        return Rows(self.x[index])

    def to(self, like: Tensor) -> Rows:
        return Rows(self.x.to(like))

    def call(self, model: nn.Module) -> Tensor:
        return model(self.x)


def test_what_cannot_be_confirmed_is_refused(tmp_path: Path) -> None:
    model, x = mlp(4, 12, 3), randn(3, 4, seed=1)
    labels = mistakes(model, x)
    result = nnrepair.fix(model, Edits(x, labels))
    with pytest.raises(InvalidInput, match="3 inputs and 3 outputs, but the network has 4 and 3"):
        result.verify(Property.on(Box([0] * 3, [1] * 3), Argmax([0]), outputs=3))
    with pytest.raises(InvalidInput, match="must be an nnrepair.verify.Property"):
        result.verify([5])
    with pytest.raises(InvalidInput, match="timeout"):
        result.verify(timeout=0)
    with pytest.raises((InvalidInput, FileNotFoundError)):
        result.verify(tmp_path / "missing.vnnlib")
    rows = nnrepair.fix(model, Edits(Rows(x), labels))
    with pytest.raises(InvalidInput, match="edits: only points in a plain tensor.*Rows"):
        rows.verify()
    bare = nnrepair.RepairResult(model, result.outcome, result.report, None, None, {})
    with pytest.raises(InvalidInput, match="does not know its edits"):
        bare.verify()
    decoupled = nnrepair.fix(model, Edits(x, labels), method=MinimalNorm(layer="0", architecture="decoupled"))
    with pytest.raises(Unsupported, match="cannot read"):
        decoupled.verify()
    smooth = mlp(4, 12, 3, activation=lambda: nn.Softmin(-1))
    with pytest.raises(Unsupported, match="Softmin"):
        nnrepair.fix(smooth, Edits(x, mistakes(smooth, x))).verify()


def test_real_digits() -> None:
    pytest.importorskip("sklearn")
    train, test = vision.digits(seed=0)
    model = vision.train_classifier(vision.digits_cnn(seed=0), train, seed=0)
    with torch.no_grad():
        wrong = model(test.inputs).argmax(1) != test.labels
    edits = Edits(test.inputs[wrong], test.labels[wrong])
    method = MinimalNorm(layer="fc2", norm="l1")
    result = nnrepair.fix(model, edits, LocalitySet(train.inputs, train.labels), method=method)
    around = [Box.around(x, 1e-4) for x in edits.inputs[:3]]
    found = result.verify(Property.on(around, Argmax(test.labels[wrong][:3]), outputs=10))
    assert found.verdict == "holds"
    lines = found.reason.splitlines()
    assert lines[0] == f"edits: {len(edits)} of {len(edits)} confirmed"
    kept = int(result.asked.locality.holds.sum())
    assert lines[1].startswith(f"points to keep: {kept} of {kept} confirmed (of {len(train)};")
    assert lines[2].startswith("property 1: holds")
