from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Residual, Tied, clusters, mistakes, mlp, randn, seeded
from reference.fisher import fisher_by_loops, linear_fisher, logistic_fisher, moved
from scipy.linalg import hadamard
from torch import Tensor, nn

import nnrepair
from nnrepair import (
    Argmin,
    Edits,
    InvalidInput,
    LocalitySet,
    Near,
    Threshold,
)
from nnrepair.jacobian import fisher
from nnrepair.methods import FineTune
from nnrepair.methods.fine_tune import penalties
from nnrepair.methods.fine_tune.penalties import (
    EWC,
    KL,
    L2,
    L2Ball,
    Labels,
    LInf,
    Penalty,
    between,
    fisher_diagonal,
)
from nnrepair.spec.kinds import Binary, Classes, Regression
from nnrepair.spec.problem import Problem, pose

quick = settings(deadline=None, derandomize=True, max_examples=60)
HALF = (torch.bfloat16, torch.float16)
EVERY_DTYPE = (torch.float32, torch.float64, *HALF)


def task(
    dtype: torch.dtype = torch.float32, *, labels: bool = False
) -> tuple[nn.Sequential, tuple[Tensor, Tensor], LocalitySet]:
    """Return a network, its mistakes, and a locality set."""
    model = mlp(4, 16, 3, seed=1).to(dtype).eval()
    x = randn(6, 4, seed=5, dtype=dtype)
    kept = clusters(60, 4, seed=6).to(dtype)
    with torch.no_grad():
        right = model(kept).argmax(1)
    return model, (x, mistakes(model, x)), LocalitySet(kept, right) if labels else LocalitySet(kept)


def problem(locality: bool = True) -> Problem:
    model, edits, kept = task()
    return pose(model, edits, kept if locality else None)


def tuned(penalty: Penalty, **more: Any) -> nnrepair.RepairResult:
    model, edits, kept = task()
    return nnrepair.fix(model, edits, kept, method=FineTune(penalties=[penalty], **more), throw=False)


# Size of the change --------------------------------------------------------------------------------------------------


def exactly_within(old: Tensor, new: Tensor, radius: float) -> bool:
    """Compare in rational arithmetic."""
    from fractions import Fraction

    pairs = zip(old.detach().flatten().double().tolist(), new.detach().flatten().double().tolist(), strict=True)
    return all(abs(Fraction(b) - Fraction(a)) <= Fraction(radius) for a, b in pairs)


@given(
    st.sampled_from(EVERY_DTYPE),
    st.floats(1e-6, 10.0),
    st.lists(st.floats(-100.0, 100.0), min_size=1, max_size=6),
    st.integers(0, 99),
)
@quick
def test_linf_bounds_are_exact_and_tight(dtype: torch.dtype, radius: float, values: list[float], seed: int) -> None:
    old = torch.tensor(values, dtype=torch.float64).to(dtype)
    regularizer = LInf(radius).start(None, {"w": old}, torch.Generator())  # type: ignore[arg-type]
    for sign in (1.0, -1.0):
        wide = torch.promote_types(dtype, torch.float32)  # what half precision is stepped in
        new = {"w": (old.to(wide) + sign * 1e4 * (1 + randn(len(values), seed=seed).abs().to(wide)))}
        regularizer.project(new)
        end = new["w"].to(dtype)
        assert torch.equal(end.to(wide), new["w"])
        assert exactly_within(old, end, radius)
        beyond = torch.nextafter(end, torch.full_like(end, sign * torch.inf))
        assert not any(exactly_within(a, b, radius) for a, b in zip(old, beyond, strict=True))
        regularizer.project(new)  # a second time changes nothing
        assert torch.equal(new["w"].to(dtype), end)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("interpolate", ["none", "auto"])
def test_linf_is_exact_in_repairs(dtype: torch.dtype, interpolate: Any) -> None:
    model, edits, _ = task(dtype)
    method = FineTune(lr=0.1, steps=40, penalties=[LInf(0.1)], interpolate=interpolate)
    result = nnrepair.fix(model, edits, method=method, throw=False)
    assert result.report.weight_change.linf > 0.09
    for old, new in zip(model.parameters(), result.model.parameters(), strict=True):
        assert exactly_within(old, new, 0.1)


def test_relative_linf_goes_by_each_parameter() -> None:
    model, edits, _ = task()
    method = FineTune(lr=0.1, steps=40, penalties=[LInf(0.1, relative=True)])
    result = nnrepair.fix(model, edits, method=method, throw=False)
    for old, new in zip(model.parameters(), result.model.parameters(), strict=True):
        old, new = old.detach(), new.detach()
        radius = 0.1 * float(old.double().square().mean().sqrt())
        assert exactly_within(old, new, radius)
        assert float((new - old).abs().max()) > 0.99 * radius


@given(st.sampled_from(EVERY_DTYPE), st.floats(1e-4, 10.0), st.integers(0, 99))
@quick
def test_l2_ball_is_exact_and_keeps_what_is_inside(dtype: torch.dtype, radius: float, seed: int) -> None:
    old = {"a": randn(5, 4, seed=seed).to(dtype), "b": randn(7, seed=seed + 1).to(dtype)}
    wide = torch.promote_types(dtype, torch.float32)
    for length in (0.5, 1.5, 1e4):
        change = {n: randn(*w.shape, seed=seed + 2).to(wide) for n, w in old.items()}
        whole = float(torch.cat([c.flatten() for c in change.values()]).norm())
        new = {n: w.to(wide) + change[n] * (length * radius / whole) for n, w in old.items()}
        size = change_of(old, new)
        before = {n: w.clone() for n, w in new.items()}
        L2Ball(radius).start(None, old, torch.Generator()).project(new)  # type: ignore[arg-type]
        assert change_of(old, new) <= radius
        if size <= radius:
            assert all(torch.equal(new[n], before[n]) for n in new)
        elif dtype not in HALF:
            assert change_of(old, new) > 0.99 * radius


def change_of(old: dict[str, Tensor], new: dict[str, Tensor]) -> float:
    return float(torch.cat([(new[n].to(w.dtype).double() - w.double()).flatten() for n, w in old.items()]).norm())


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_l2_ball_is_exact_in_repairs(dtype: torch.dtype) -> None:
    model, edits, _ = task(dtype)
    result = nnrepair.fix(model, edits, method=FineTune(lr=0.1, steps=40, penalties=[L2Ball(0.3)]), throw=False)
    assert 0.1 < change_of(model.state_dict(), result.model.state_dict()) <= 0.3


@pytest.mark.parametrize("penalties", [[LInf(0.05), L2Ball(0.3)], [L2Ball(0.3), LInf(0.05)]])
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_bounds_compose(penalties: list[Penalty], dtype: torch.dtype) -> None:
    model, edits, _ = task(dtype)
    result = nnrepair.fix(model, edits, method=FineTune(lr=0.1, steps=40, penalties=penalties), throw=False)
    squares = 0.0
    for old, new in zip(model.parameters(), result.model.parameters(), strict=True):
        assert exactly_within(old, new, 0.05)
        squares += float((new.detach().double() - old.detach().double()).square().sum())
    assert squares**0.5 <= 0.3


def test_success_grows_with_the_radius() -> None:
    rates = [tuned(LInf(radius), lr=0.01, steps=200).report.success_rate for radius in (0.001, 0.03, 0.1, 1.0)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] == 1.0


@given(st.sampled_from((torch.float32, torch.float64, torch.bfloat16)), st.integers(0, 99), st.floats(0, 1))
@quick
def test_between_stays_between(dtype: torch.dtype, seed: int, share: float) -> None:
    a, b = randn(20, seed=seed).to(dtype), randn(20, seed=seed + 1).to(dtype)
    c = between(a, b, share)
    assert c.dtype == dtype
    assert ((torch.minimum(a, b) <= c) & (c <= torch.maximum(a, b))).all()
    assert torch.equal(between(a, b, 0.0), a)


@pytest.mark.parametrize(
    ("make", "weights"), [(L2, (0.0, 0.03, 0.1, 0.3)), (KL, (0.0, 0.1, 1.0, 3.0)), (EWC, (0.0, 1.0, 3.0, 10.0))]
)
def test_heavier_penalties_change_less(make: Any, weights: tuple[float, ...]) -> None:
    sizes, moved, lost = [], [], []
    model, _, kept = task()
    with torch.no_grad():
        before = model(kept.inputs)
    for weight in weights:
        result = tuned(make(weight), steps=300)
        assert result.outcome.ok
        sizes.append(result.report.weight_change.l2)
        lost.append(1 - (result.report.locality or 0))
        with torch.no_grad():
            moved.append(float((result.model(kept.inputs) - before).square().mean()))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.5 * moved[0]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < lost[0]
    if make is not KL:  # which holds outputs, not weights
        assert sizes == sorted(sizes, reverse=True)


def test_l2_is_the_squared_size_of_the_change() -> None:
    old = {"a": randn(3, 2), "b": randn(4)}
    regularizer = L2(2.0).start(problem(), old, torch.Generator())
    zero = regularizer.loss(old, None, None)
    assert zero == 0
    loss = regularizer.loss({"a": old["a"] + 1.0, "b": old["b"] - 2.0}, None, None)
    torch.testing.assert_close(loss, torch.tensor(2.0 * (6 * 1 + 4 * 4)))


# KL ------------------------------------------------------------------------------------------------------------------


def test_kl_is_zero_at_the_start() -> None:
    task = problem()
    regularizer = KL(3.0).start(task, {}, torch.Generator())
    assert regularizer.watches
    assert task.locality is not None
    y = task.model(task.locality.inputs).double()
    assert regularizer.loss({}, y, torch.arange(60)) == 0


@pytest.mark.parametrize("lowest", [False, True])
def test_kl_is_the_divergence_from_the_old_model(lowest: bool) -> None:
    model, (x, labels), kept = task()
    given = pose(model, (x, Argmin(labels)) if lowest else (x, labels), kept)
    index, y = torch.tensor([4, 1, 30]), randn(3, 3, dtype=torch.float64)
    loss = KL(3.0).start(given, {}, torch.Generator()).loss({}, y, index)
    sign = -1 if lowest else 1
    p, q = (sign * model(kept.inputs[index]).double()).softmax(1), (sign * y).softmax(1)
    torch.testing.assert_close(loss, 3 * (p * (p / q).log()).sum(1).mean())


def test_kl_compares_outputs_where_there_are_no_classes() -> None:
    model, (x, _), kept = task()
    given = pose(model, (x, Near(torch.zeros(6, 3), 0.1)), kept)
    y = randn(60, 3, dtype=torch.float64)
    loss = KL(3.0).start(given, {}, torch.Generator()).loss({}, y, torch.arange(60))
    torch.testing.assert_close(loss, 3 * (model(kept.inputs).double() - y).square().mean())


@pytest.mark.parametrize(("outputs", "batch_size", "watched"), [(4096, 256, 4), (2**15, 256, 1), (64, 20, 20)])
def test_of_points_with_many_numbers_a_step_watches_few(
    outputs: int, batch_size: int, watched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a step on images runs the network on 256 of them."""
    model, x, kept = mlp(3, outputs, seed=1), randn(1, 3, seed=2), randn(30, 3, seed=3)
    with torch.no_grad():
        target = model(x) + 0.05
    seen: list[Tensor] = []
    ordinary = penalties._Divergence.loss

    def watching(self: Any, weights: Any, y: Tensor, index: Tensor) -> Any:
        assert len(y) == len(index)
        torch.testing.assert_close(self.old[index], model(kept[index]).double(), rtol=1e-4, atol=1e-5)
        seen.append(index)
        return ordinary(self, weights, y, index)

    monkeypatch.setattr(penalties._Divergence, "loss", watching)
    method = FineTune(lr=1e-3, penalties=[KL(1.0)], batch_size=batch_size)
    assert nnrepair.fix(model, Edits(x, Near(target, 0.04)), kept, method=method).outcome.ok
    assert {len(index) for index in seen} == {watched}
    assert len(torch.cat(seen).unique()) > watched  # others in every step


def test_the_fisher_information_is_computed_once_for_independent_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, edits, kept = task()
    calls = []
    ordinary = penalties.fisher_diagonal

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return ordinary(*args, **kwargs)

    monkeypatch.setattr(penalties, "fisher_diagonal", counted)
    method = FineTune(lr=0.01, penalties=[EWC(1.0, points=20)])
    tests = {"kept": (kept.inputs, Near(model(kept.inputs).detach(), 0.1))}
    history = nnrepair.fix(model, edits, kept, method=method, mode="independent", seed=3, test_set=tests)
    assert history.success_rate == 1 and len(calls) == 1
    alone = nnrepair.fix(model, (edits[0][5:], edits[1][5:]), kept, method=method, seed=3, test_set=tests)
    last = history.steps[-1].side_effects["kept"]
    assert len(calls) == 2 and alone.report.tests["kept"].moved == last.moved


# Fisher information --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fisher_of_logistic_regression(classes: int, dtype: torch.dtype) -> None:
    x, model = randn(40, 3, seed=3, dtype=dtype), mlp(3, classes, seed=4).to(dtype)
    found = fisher_diagonal(model, "0", x)
    weight, bias = logistic_fisher(model(x).detach().double().softmax(1).numpy(), x.double().numpy())
    assert found["0.weight"].dtype == dtype
    torch.testing.assert_close(found["0.weight"].double(), torch.from_numpy(weight), rtol=1e-5, atol=0)
    torch.testing.assert_close(found["0.bias"].double(), torch.from_numpy(bias), rtol=1e-5, atol=0)


@pytest.mark.parametrize("labels", ["exact", "empirical"])
@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("make", [Residual, Tied, lambda: mlp(4, 6, 3)])
def test_fisher_is_what_loops_find(make: Any, labels: Labels, lowest: bool) -> None:
    model, x = seeded(make).double(), randn(7, 4, dtype=torch.float64)
    names = [n for n, _ in model.named_parameters()]
    targets = torch.arange(7) % 3
    found = fisher_diagonal(model, names, x, labels=labels, targets=targets, kind=Classes(lowest))
    expected = fisher_by_loops(model, names, x, None if labels == "exact" else targets, -1.0 if lowest else 1.0)
    assert list(found) == names
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("kind", [Binary(), Binary(torch.tensor([0.7], dtype=torch.float64)), Regression()])
def test_fisher_of_answers_and_numbers_in_closed_form(kind: Any, outputs: int) -> None:
    x, model = randn(40, 3, seed=3, dtype=torch.float64), mlp(3, outputs, seed=4).double()
    y = model(x).detach().numpy()
    p = 1 / (1 + np.exp(-(y - float(kind.threshold)))) if isinstance(kind, Binary) else y
    weight, bias = linear_fisher(p * (1 - p) if isinstance(kind, Binary) else np.ones_like(y), x.numpy())
    found = fisher_diagonal(model, "0", x, kind=kind)
    np.testing.assert_allclose(found["0.weight"], weight, rtol=1e-9)
    np.testing.assert_allclose(found["0.bias"], bias, rtol=1e-9)
    drawn = fisher_diagonal(model, "0", x, kind=kind, labels="sampled", draws=500)
    np.testing.assert_allclose(drawn["0.weight"], weight, rtol=0.1)


KINDS = {"classes": Classes(), "lowest": Classes(True), "answers": Binary(), "numbers": Regression()}
KINDS["both"] = Binary(numbers=torch.tensor([False, True, False]))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_fisher_is_the_divergence_that_is_measured(kind: Any) -> None:
    """Signs of a Hadamard matrix: on average over them, products of two different weights cancel exactly."""
    model, x = mlp(4, 7, 3, seed=1, activation=nn.Tanh).double(), randn(9, 4, dtype=torch.float64)
    old, size = model(x).detach(), 1e-4
    for name, parameter in model.named_parameters():
        signs = hadamard(32).astype(float)[:, : parameter.numel()]
        networks = moved(model, name, signs, size)
        measured = np.mean([float(kind.divergence(old, m(x).detach()).mean()) for m in networks])
        expected = float(fisher_diagonal(model, name, x, kind=kind)[name].sum()) * size**2 / 2
        assert measured == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_scores_of_drawn_labels_are_zero_on_average_and_the_root_of_fisher(kind: Any) -> None:
    y, generator = randn(2, 3, dtype=torch.float64), torch.Generator().manual_seed(3)
    many = y.repeat(20_000, 1)
    scores = kind.score(many, kind.sample(many, generator)).reshape(20_000, 2, 3)
    root = kind.root(y, 100)
    torch.testing.assert_close(scores.mean(0), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=0.02)
    outer = torch.einsum("snk,snl->nkl", scores, scores) / 20_000
    torch.testing.assert_close(outer, torch.einsum("nrk,nrl->nkl", root, root), rtol=0.06, atol=0.02)


def test_many_outputs_are_drawn() -> None:
    model, x = mlp(3, 130, seed=4).double(), randn(40, 3, seed=3, dtype=torch.float64)
    found = fisher_diagonal(model, "0", x, kind=Regression())
    weight, _ = linear_fisher(np.ones((40, 130)), x.numpy())
    np.testing.assert_allclose(found["0.weight"].sum(0), weight.sum(0), rtol=0.05)


def test_sampled_labels_are_drawn_from_the_model() -> None:
    model, x = mlp(2, 3, seed=4).double(), randn(5, 2, seed=3, dtype=torch.float64)
    drawn = torch.multinomial(model(x).detach().softmax(1), 1, generator=torch.Generator().manual_seed(8))[:, 0]
    found = fisher_diagonal(model, "0", x, labels="sampled", generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(found, fisher_diagonal(model, "0", x, labels="empirical", targets=drawn))


def test_sampled_labels_come_close_to_the_expectation() -> None:
    model, x = mlp(2, 3, seed=4).double(), randn(5, 2, seed=3, dtype=torch.float64)
    found = fisher_diagonal(model, "0", x.repeat(4000, 1), labels="sampled")
    for name, exact in fisher_diagonal(model, "0", x).items():
        torch.testing.assert_close(found[name], exact, rtol=0.03, atol=0)


@pytest.mark.parametrize("numbers", [1, 100, 500])
def test_fisher_does_not_depend_on_the_chunks(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(4, 6, 3).double(), randn(11, 4, dtype=torch.float64)
    whole = fisher_diagonal(model, ["0", "2"], x)
    monkeypatch.setattr(fisher, "MOST_NUMBERS", numbers)
    torch.testing.assert_close(fisher_diagonal(model, ["0", "2"], x), whole, rtol=1e-12, atol=0)


def test_many_classes_are_cut_to_the_most_probable(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(4, 9).double(), randn(11, 4, dtype=torch.float64)
    whole = fisher_diagonal(model, "0", x)["0.weight"]
    monkeypatch.setattr(fisher, "MOST_CLASSES", 6)
    less = fisher_diagonal(model, "0", x)["0.weight"]
    assert (less < whole).all() and (less > 0.2 * whole).all()


class NoVmap(nn.Module):
    """Takes a decision from a number, which cannot be vectorised."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if float(x.detach().abs().sum()) >= 0 else x


@dataclass(frozen=True)
class OnGraph:
    """Nodes of a path: every node sees itself and its neighbours."""

    x: Tensor
    index: Tensor
    independent = False

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor) -> OnGraph:
        return OnGraph(self.x, self.index[index])

    def to(self, like: Tensor) -> OnGraph:
        return OnGraph(self.x.to(like), self.index.to(like.device))

    def seen(self) -> Tensor:
        near = self.x.clone()
        near[1:] += self.x[:-1]
        near[:-1] += self.x[1:]
        return near

    def call(self, model: nn.Module) -> Tensor:
        return model(self.seen())[self.index]


def test_fisher_of_models_and_inputs_that_cannot_be_vectorised() -> None:
    model, x = mlp(4, 6, 3).double(), randn(11, 4, dtype=torch.float64)
    nodes = OnGraph(x, torch.tensor([7, 0, 3]))
    vectorised = fisher_diagonal(model, ["0", "2"], nodes.seen()[nodes.index])
    torch.testing.assert_close(fisher_diagonal(model, ["0", "2"], nodes), vectorised, rtol=1e-12, atol=0)

    other = NoVmap().double()
    found = fisher_diagonal(other, "net", x)
    for name, value in fisher_diagonal(model, ["0", "2"], x).items():
        torch.testing.assert_close(found[f"net.{name}"], value, rtol=1e-12, atol=0)


def test_fisher_of_some_points() -> None:
    model, x = mlp(4, 3), randn(50, 4)
    a, b = (fisher_diagonal(model, "0", x, points=10, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(a["0.weight"], b["0.weight"])
    assert torch.equal(
        fisher_diagonal(model, "0", x, points=50)["0.weight"], fisher_diagonal(model, "0", x)["0.weight"]
    )


@pytest.mark.parametrize("dtype", HALF)
def test_fisher_of_half_precision_is_float32(dtype: torch.dtype) -> None:
    model, x = mlp(4, 3), randn(20, 4)
    found = fisher_diagonal(model.to(dtype), "0", x.to(dtype))["0.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fisher_diagonal(model.float(), "0", x)["0.weight"], rtol=0.05, atol=1e-4)


def test_the_global_random_state_stays() -> None:
    before = torch.get_rng_state()
    fisher_diagonal(mlp(4, 3), "0", randn(5, 4), labels="sampled")
    assert torch.equal(torch.get_rng_state(), before)


# EWC -----------------------------------------------------------------------------------------------------------------


def test_ewc_weighs_the_change_by_the_fisher_information() -> None:
    given = problem()
    assert given.locality is not None
    old = {n: p.detach() for n, p in given.model.named_parameters()}
    regularizer = EWC(6.0, floor=0.5).start(given, old, torch.Generator())
    fisher = fisher_diagonal(given.model, ["0", "2"], given.locality.inputs)
    mean = torch.cat([f.flatten() for f in fisher.values()]).mean()
    change = {n: randn(*w.shape, seed=3) for n, w in old.items()}
    loss = regularizer.loss({n: w + change[n] for n, w in old.items()}, None, None)
    torch.testing.assert_close(loss, sum(3.0 * ((fisher[n] + 0.5 * mean) * change[n] ** 2).sum() for n in old))


def test_ewc_is_the_second_order_of_kl_where_the_fisher_information_is_diagonal() -> None:
    """One input at a time and one bias: F has a single entry."""
    model = mlp(1, 2).double()
    model[0].weight.data.zero_()
    given = pose(model, (torch.zeros(1, 1, dtype=torch.float64), [int(model[0].bias.argmin())]),
                  torch.zeros(3, 1, dtype=torch.float64))  # fmt: skip
    old = {"0.bias": model[0].bias.detach()}
    new = {"0.bias": old["0.bias"] + torch.tensor([1e-3, 0.0], dtype=torch.float64)}
    ewc = EWC(2.0, floor=0.0).start(given, old, torch.Generator()).loss(new, None, None)
    y = new["0.bias"].expand(3, 2)
    kl = KL(2.0).start(given, old, torch.Generator()).loss(new, y, torch.arange(3))
    torch.testing.assert_close(ewc, kl, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["answers", "numbers"])
def test_ewc_is_the_second_order_of_kl_for_answers_and_numbers(kind: str) -> None:
    model, x = mlp(1, 4).double(), torch.zeros(3, 1, dtype=torch.float64)
    y = model(x[:1]).detach()
    target = Threshold((y <= 0).long()) if kind == "answers" else Near(y + 1, 0.1)
    given = pose(model, Edits(x[:1], target), x)
    old = {"0.bias": model[0].bias.detach()}
    for k in range(4):
        new = {"0.bias": old["0.bias"] + 1e-3 * torch.eye(4, dtype=torch.float64)[k]}
        ewc = EWC(2.0, floor=0.0).start(given, old, torch.Generator()).loss(new, None, None)
        kl = KL(2.0).start(given, old, torch.Generator()).loss(new, new["0.bias"].expand(3, 4), torch.arange(3))
        torch.testing.assert_close(ewc, kl, rtol=1e-3, atol=0)


def test_kl_of_answers_is_that_of_coins() -> None:
    model, kept = mlp(4, 8, 2).double(), randn(5, 4, dtype=torch.float64)
    given = pose(model, (kept[:1] + 1, torch.tensor([[1, 0]])), kept)
    y = randn(5, 2, seed=3, dtype=torch.float64)
    loss = KL(3.0).start(given, {}, torch.Generator()).loss({}, y, torch.arange(5))
    p, q = model(kept).detach().sigmoid(), y.sigmoid()
    coins = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(loss, 3 * coins.sum(1).mean())


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
def test_ewc_repairs_answers_and_numbers(labels: Labels) -> None:
    model, x, kept = mlp(4, 16, 2, seed=1), randn(4, 4, seed=5), randn(30, 4, seed=6)
    with torch.no_grad():
        y, before = model(x), model(kept)
    method = FineTune(lr=0.01, penalties=[EWC(1.0, labels)])
    for wrong, right in (((y <= 0).long(), (before > 0).long()), (Near(y + 0.3, 0.1), Near(before, 0.1))):
        assert nnrepair.fix(model, Edits(x, wrong), LocalitySet(kept, right), method=method).outcome.ok


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
def test_ewc_repairs(labels: Labels) -> None:
    model, edits, kept = task(labels=True)
    result = nnrepair.fix(model, edits, kept, method=FineTune(lr=0.01, penalties=[EWC(1.0, labels, points=20)]))
    assert result.outcome.ok


def test_ewc_with_an_infinitely_heavy_weight_changes_nothing() -> None:
    model, edits, kept = task()
    method = FineTune(optimizer="sgd", lr=1e-12, steps=20, penalties=[EWC(1e10)])
    result = nnrepair.fix(model, edits, kept, method=method, throw=False)
    assert result.report.weight_change.linf < 1e-8


# Messages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2(-1.0), "L2: weight must be a finite number >= 0, got -1"),
        (lambda: LInf(0.0), "LInf: radius must be a finite number > 0, got 0"),
        (lambda: L2Ball(float("inf")), "L2Ball: radius must be a finite number > 0, got inf"),
        (lambda: KL("1"), "KL: weight must be a finite number >= 0, got '1'"),  # type: ignore[arg-type]
        (lambda: EWC(1.0, "exactly"), "Unknown labels 'exactly'. Did you mean 'exact'"),  # type: ignore[arg-type]
        (lambda: EWC(1.0, points=0), "points must be an integer >= 1 or None, got 0"),
        (lambda: EWC(1.0, floor=-1.0), "floor must be a finite number >= 0"),
        (lambda: fisher_diagonal(mlp(2, 2), "0", randn(3, 2), labels="empirical"), "one target per point, got none"),
        (lambda: fisher_diagonal(mlp(2, 1), "0", randn(3, 2)), r"\(points, classes, ...\), got \(3, 1\). Give kind="),
        (lambda: fisher_diagonal(mlp(2, 2), "1", randn(3, 2)), "Layer '1' not found"),
    ],
)
def test_messages(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("penalty", [KL(1.0), EWC(1.0)])
def test_penalties_on_a_missing_locality_set(penalty: Penalty) -> None:
    model, edits, _ = task()
    with pytest.raises(InvalidInput, match=rf"{type(penalty).__name__}.*give a locality set, or .*L2"):
        nnrepair.fix(model, edits, method=FineTune(penalties=[penalty]))


def test_empirical_ewc_needs_labels() -> None:
    model, edits, kept = task()
    with pytest.raises(InvalidInput, match='needs labels beside the locality set.*labels="exact"'):
        nnrepair.fix(model, edits, kept, method=FineTune(penalties=[EWC(1.0, "empirical")]))
