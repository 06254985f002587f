from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import randn
from torch import Tensor

from nnrepair import (
    Above,
    AllOf,
    AnyOf,
    Argmax,
    Argmin,
    Between,
    Criterion,
    InvalidInput,
    Linear,
    Near,
    Threshold,
    TopK,
)
from nnrepair.spec.kinds import Classes, kind_of

POINTS, OUTPUTS = 4, 3
quick = settings(deadline=None, derandomize=True, max_examples=60)


@st.composite
def criteria(draw: Any, deep: bool = True) -> Criterion:
    kinds = [
        "argmax",
        "argmin",
        "threshold",
        "linear",
        "near",
        "between",
        "above",
        "topk",
        *(["and", "or"] if deep else []),
    ]
    kind = draw(st.sampled_from(kinds))
    seed = draw(st.integers(0, 999))
    if kind == "threshold":
        labels = torch.randint(-1, 2, (POINTS, OUTPUTS), generator=torch.Generator().manual_seed(seed))
        labels[:, seed % OUTPUTS] = labels[:, seed % OUTPUTS].abs()  # not all free
        at = draw(st.sampled_from([0.0, 0.3, [0.1, -0.2, 0.0]]))
        return Threshold(labels, at, draw(st.sampled_from([0.0, 0.5])))
    if kind in ("argmax", "argmin"):
        labels = torch.randint(OUTPUTS, (POINTS,), generator=torch.Generator().manual_seed(seed))
        return (Argmax if kind == "argmax" else Argmin)(labels, draw(st.sampled_from([0.0, 0.5])))
    if kind == "linear":
        return Linear(randn(POINTS, 2, OUTPUTS, seed=seed), randn(POINTS, 2, seed=seed + 1))
    draws = torch.Generator().manual_seed(seed)
    if kind == "between":
        low, width = randn(POINTS, OUTPUTS, seed=seed) - 1, draw(st.sampled_from([0.5, 2.0, torch.inf]))
        return Between(torch.where(torch.arange(OUTPUTS) == seed % OUTPUTS, -torch.inf, low), low + width)
    if kind == "above":
        order = torch.stack([torch.randperm(OUTPUTS, generator=draws) for _ in range(POINTS)])
        lower = torch.where(torch.arange(2) == seed % 3, -1, order[:, 1:])
        return Above(order[:, 0], lower, draw(st.sampled_from([0.0, 0.5])))
    if kind == "topk":
        labels = torch.randint(-1, OUTPUTS, (POINTS, 2), generator=draws)
        labels[:, 0] = labels[:, 0].abs()
        return TopK(labels, draw(st.sampled_from([1, 2])), draw(st.sampled_from([0.0, 0.5])))
    if kind == "near":
        tol = draw(st.sampled_from([0.3, 1.5, torch.inf]))
        return Near(randn(POINTS, OUTPUTS, seed=seed), torch.tensor([1.0, tol, 1.0]))
    a, b = draw(criteria(deep=False)), draw(criteria())
    return a & b if kind == "and" else a | b


outputs = st.builds(lambda seed: randn(POINTS, OUTPUTS, seed=seed, dtype=torch.float64), st.integers(0, 999))


@given(criteria(), criteria(), outputs)
@quick
def test_and_holds_iff_both_hold(a: Criterion, b: Criterion, y: Tensor) -> None:
    assert torch.equal((a & b).holds(y), a.holds(y) & b.holds(y))
    torch.testing.assert_close((a & b).margin(y), torch.minimum(a.margin(y), b.margin(y)))


@given(criteria(), criteria(), outputs)
@quick
def test_or_holds_iff_one_does(a: Criterion, b: Criterion, y: Tensor) -> None:
    assert torch.equal((a | b).holds(y), a.holds(y) | b.holds(y))
    torch.testing.assert_close((a | b).margin(y), torch.maximum(a.margin(y), b.margin(y)))


@given(criteria(), outputs, outputs)
@quick
def test_a_resolved_criterion_implies_the_original(a: Criterion, y0: Tensor, y: Tensor) -> None:
    resolved = a.resolve(y0)
    assert len(resolved) == len(a)
    assert (a.holds(y) | ~resolved.holds(y)).all()
    assert torch.equal(resolved.holds(y0), a.holds(y0))  # nothing is lost where it was decided


@given(criteria(), outputs)
@quick
def test_holds_goes_with_the_margin(a: Criterion, y: Tensor) -> None:
    margin = a.margin(y)
    assert a.holds(y)[margin > 0].all()
    assert not a.holds(y)[margin < 0].any()


@given(criteria(), outputs)
@quick
def test_rows_are_the_gradient_of_slack(a: Criterion, y: Tensor) -> None:
    a = a.resolve(y)
    y = y.requires_grad_(True)
    slack = a.slack(y).flatten(1)
    point, condition = torch.nonzero(torch.isfinite(slack)).T
    rows = a.rows(point, condition, y.detach())
    assert len(rows) == len(point)
    for row, p, c in zip(rows, point, condition, strict=True):
        (expected,) = torch.autograd.grad(slack[p, c], y, retain_graph=True)
        torch.testing.assert_close(row, expected[p])
        assert not expected[torch.arange(POINTS) != p].any()


@given(criteria(), outputs, st.sampled_from([0.0, 0.3]))
@quick
def test_loss_is_a_number_per_point_with_a_gradient_where_a_point_fails(a: Criterion, y: Tensor, margin: float) -> None:
    y = y.requires_grad_(True)
    for b in (a, a.resolve(y.detach())):
        loss = b.loss(y, margin)
        assert loss.shape == (POINTS,)
        assert torch.isfinite(loss).all() and (loss >= 0).all()
        (slope,) = torch.autograd.grad(loss.sum(), y)
        assert torch.isfinite(slope).all()
        failing = b.margin(y) < margin
        assert (loss[failing] > 0).all()
        assert (slope.abs().sum(1)[failing] > 0).all()
        index = torch.tensor([2, 0])
        torch.testing.assert_close(b[index].loss(y[index], margin), loss[index])
        for i in range(POINTS):  # no point's loss depends on another's output
            (own,) = torch.autograd.grad(b.loss(y, margin)[i], y)
            assert not own[torch.arange(POINTS) != i].any()


@pytest.mark.parametrize(("kind", "sign"), [(Argmax, 1), (Argmin, -1)])
def test_loss_of_classes_is_the_cross_entropy(kind: type[Argmax], sign: int) -> None:
    y, labels = randn(POINTS, OUTPUTS, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(kind(labels).loss(y), F.cross_entropy(sign * y, labels, reduction="none"))
    wider = y.scatter_add(1, labels[:, None], torch.full((POINTS, 1), -sign * 0.75, dtype=torch.float64))
    expected = F.cross_entropy(sign * wider, labels, reduction="none")
    torch.testing.assert_close(kind(labels, margin=0.5).loss(y, 0.25), expected)
    assert torch.isfinite(Argmax([0]).loss(torch.tensor([[-1e4, 1e4, 0.0]]))).all()


def test_loss_of_conditions_is_what_they_miss() -> None:
    y = torch.tensor([[0.0, 2.0]])
    assert Linear([[1.0, 0.0], [0.0, 1.0]], [0.5, 1.0], points=1).loss(y).tolist() == [0.5]
    assert Linear([[1.0, 0.0], [0.0, 1.0]], [0.5, 1.0], points=1).loss(y, margin=1.25).tolist() == [2.0]
    near = Near(torch.zeros(1, 2), torch.tensor([0.5, torch.inf]))
    assert near.loss(y).tolist() == [0.0]
    assert Near(torch.zeros(1, 2), 0.5).loss(y).tolist() == [1.5]
    assert not torch.isfinite(near.loss(torch.tensor([[torch.nan, 0.0]]))).any()


def test_loss_of_joined_criteria() -> None:
    y = randn(POINTS, OUTPUTS, dtype=torch.float64)
    a, b = Argmax([0, 1, 2, 0]), Near(torch.zeros(POINTS, OUTPUTS), 0.3)
    torch.testing.assert_close((a & b).loss(y), a.loss(y) + b.loss(y))
    torch.testing.assert_close((a | b).loss(y), torch.minimum(a.loss(y), b.loss(y)))
    resolved = (a | b).resolve(y)
    expected = torch.where(a.margin(y) >= b.margin(y), a.loss(y), b.loss(y))
    torch.testing.assert_close(resolved.loss(y), expected)


@given(criteria(), outputs, st.permutations(range(POINTS)))
@quick
def test_a_subset_judges_its_points_alike(a: Criterion, y: Tensor, order: list[int]) -> None:
    index = torch.tensor(order[:2])
    for b in (a, a.resolve(y)):
        assert len(b[index]) == 2
        assert torch.equal(b[index].holds(y[index]), b.holds(y)[index])
        torch.testing.assert_close(b[index].margin(y[index]), b.margin(y)[index])
    mask = torch.tensor([True, False, True, True])
    assert torch.equal(a[mask].holds(y[mask]), a.holds(y)[mask])


@given(criteria())
@quick
def test_nan_never_holds(a: Criterion) -> None:
    assert not a.holds(torch.full((POINTS, OUTPUTS), torch.nan)).any()


def test_ties_do_not_hold() -> None:
    y = torch.tensor([[1.0, 1.0, 0.0]])
    assert not Argmax([0]).holds(y).any()
    assert not Argmax([1]).holds(y).any()
    assert not Argmin([0]).holds(torch.zeros(1, 3)).any()
    assert Argmax([0]).holds(torch.tensor([[1.0, 0.999, 0.0]])).all()


def test_a_margin_is_reached_when_met_exactly() -> None:
    assert Argmax([0], margin=0.5).holds(torch.tensor([[1.0, 0.5]])).all()
    assert not Argmax([0], margin=0.5).holds(torch.tensor([[1.0, 0.75]])).any()
    assert Argmin([0], margin=0.5).holds(torch.tensor([[0.5, 1.0]])).all()


def test_a_threshold_has_two_sides_and_belongs_to_neither() -> None:
    y = torch.tensor([[0.5], [0.25], [0.75]])
    assert Threshold([1, 1, 1], 0.5).holds(y).tolist() == [False, False, True]
    assert Threshold([0, 0, 0], 0.5).holds(y).tolist() == [False, True, False]
    assert Threshold([0, 0, 1], 0.5, margin=0.25).holds(y).tolist() == [False, True, True]  # met exactly
    assert Threshold([True, False, True], 0.5).margin(y).tolist() == [0.0, 0.25, 0.25]


def test_thresholds_of_several_answers() -> None:
    y = torch.tensor([[1.0, -1.0, 9.0], [1.0, 1.0, -9.0]])
    several = Threshold([[1, 0, -1], [1, 0, -1]])
    assert several.holds(y).tolist() == [True, False]
    assert several.slack(y).tolist() == [[1.0, 1.0, torch.inf], [1.0, -1.0, torch.inf]]
    assert several.typical_slack(y) == 1.0  # free outputs do not count
    assert Threshold([[1, 1, 1]] * 2, [0.5, -2.0, 0.0]).slack(y).tolist() == [[0.5, 1.0, 9.0], [0.5, 3.0, -9.0]]
    masks = Threshold(torch.ones(2, 1, 3, dtype=torch.bool))
    masks.check(y)  # axes of size 1 do not matter
    assert masks.holds(y[:, None]).tolist() == [False, False]


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
def test_loss_of_answers_is_the_binary_cross_entropy(shape: tuple[int, ...]) -> None:
    y = randn(*shape, dtype=torch.float64)
    labels = torch.arange(y.numel()).reshape(shape) % 2
    expected = F.binary_cross_entropy_with_logits(y - 0.3, labels.double(), reduction="none").reshape(5, -1).sum(1)
    torch.testing.assert_close(Threshold(labels, 0.3).loss(y), expected)
    beyond = F.binary_cross_entropy_with_logits((y - 0.3) - 0.5 * (2 * labels - 1), labels.double(), reduction="none")
    torch.testing.assert_close(Threshold(labels, 0.3, margin=0.25).loss(y, 0.25), beyond.reshape(5, -1).sum(1))


def test_near_is_a_box_around_the_target() -> None:
    near = Near(torch.tensor([[0.0, 1.0]]), torch.tensor([0.5, torch.inf]))
    assert near.holds(torch.tensor([[0.5, 99.0]])).all()
    assert not near.holds(torch.tensor([[0.75, 1.0]])).any()
    assert near.margin(torch.tensor([[0.25, 7.0]])).tolist() == [0.25]


def test_near_takes_whole_number_targets() -> None:
    assert Near(torch.tensor([[3, 4]]), tol=0.5).holds(torch.tensor([[3.25, 3.75]])).all()


def test_criteria_of_images() -> None:
    y = randn(2, 3, 4, 4, dtype=torch.float64)
    near = Near(torch.zeros(2, 3, 4, 4), tol=10.0)
    assert near.holds(y).all()
    assert near.rows(torch.tensor([1, 0]), torch.tensor([5, 60]), y).shape == (2, 3, 4, 4)
    linear = Linear(torch.ones(1, 48), torch.tensor([0.0]), points=2)
    torch.testing.assert_close(linear.margin(y), y.flatten(1).sum(1))


def test_criteria_of_one_number_per_point() -> None:
    y = torch.tensor([0.25, 3.0])
    assert Near(torch.zeros(2), tol=1.0).holds(y).tolist() == [True, False]
    assert Linear([[1.0]], [1.0], points=2).holds(y).tolist() == [False, True]


def test_linear_takes_whole_numbers_and_lists() -> None:
    assert Linear([[1, -1]], [0], points=2).holds(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Argmax(torch.tensor([0.5])), "must be integers, one per point .*got shape .*float32"),
        (lambda: Argmax(torch.tensor(3)), r"got shape \(\)"),
        (lambda: Argmax([[0, -100], [-100, -100]]), r"points \[1\] have no label but -100"),
        (lambda: Argmax([[0, 1]]).check(torch.zeros(1, 2, 2)), "axis=1.*or.*axis=-1"),
        (lambda: Argmax([[0, 1]]).check(torch.zeros(1, 3, 4)), r"the model returns \(1, 3, 4\)"),
        (lambda: Argmax([[0]]).check(torch.zeros(1, 4)), r"labels.squeeze\(1\)"),
        (lambda: Threshold([[0], [1]]).check(torch.zeros(2, 4)), r"labels.squeeze\(1\)"),
        (lambda: Argmax([3, 1]).check(torch.zeros(2, 3)), "counted from 1; .* labels - 1"),
        (lambda: Argmax([[255, 1]]).check(torch.zeros(1, 2, 3)), "Argmax.labels, ignore=255"),
        (lambda: Above([0], [0]), r"at points \[0\] an output is to score above itself"),
        (lambda: Above([0], [[-1, -1]]), "no output is to score lower"),
        (lambda: Above([0.5], [1]), "Above: higher must be integers"),
        (lambda: Above([0, 1], [1]), r"shapes \(2,\) and \(1,\)"),
        (lambda: Above([0], [7]).check(torch.zeros(1, 3)), r"numbered 0\.\.2, and 7"),
        (lambda: Above([0], [1], margin=-1), "margin"),
        (lambda: TopK([0], 0), "k must be a whole number"),
        (lambda: TopK(["cat"], 1), "TopK: labels must be integers"),
        (lambda: TopK([[-1, -1]], 1), "at least one label"),
        (lambda: TopK([0], 3).check(torch.zeros(1, 3)), "give a smaller k"),
        (lambda: TopK([0], 2).check(torch.zeros(2, 3)), "about 1 points, but there are 2"),
        (lambda: TopK([0], 2).rows(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 3)), "resolve"),
        (lambda: Between(0.0, 1.0), "needs points=n"),
        (lambda: Between(1.0, 0.0, points=1), "no higher than the upper"),
        (lambda: Between(points=2), r"nothing is asked of points \[0, 1\]"),
        (lambda: Between(torch.zeros(2, 3), torch.ones(4)), "do not fit each other"),
        (
            lambda: Between(torch.zeros(2, 3)).check(torch.zeros(2, 4)),
            r"bounds of shape \(2, 3\), but outputs are \(2, 4\)",
        ),
        (lambda: Between(0.0, points=1, at=(5,)).check(torch.zeros(1, 4)), r"at=\(5,\) is no output"),
        (lambda: Between(torch.zeros(2, 3), at=1), "with at, bounds are one per point"),
        (lambda: Near(torch.zeros(2), 1.0).check(torch.zeros(2, 1)), r"target\[:, None\]"),
        (lambda: Near(torch.zeros(2, 1), 1.0, units="kelvin"), r"a pair \(mean, scale\).*got str"),
        (lambda: Near(torch.zeros(2, 1), 1.0, units=(0.0, 0.0)), "finite and not 0"),
        (lambda: Near(torch.zeros(2, 1), 1.0, units=([0.0, 1.0, 2.0], 1.0)), "do not fit values of shape"),
        (lambda: Argmax([True]), "integers"),
        (lambda: Argmax([0], margin=-1.0), "must be a finite number >= 0, got -1"),
        (
            lambda: Threshold([0.0, 1.0]),
            r"bool or the integers .*got shape \(2,\), torch.float32. Use \(labels > 0.5\)",
        ),
        (lambda: Threshold(torch.tensor(1)), r"got shape \(\)"),
        (lambda: Threshold([0, 2]), r"1 \(above\), 0 \(below\) or -1 \(free\), got 2.*one class per point"),
        (lambda: Threshold([[1, 0], [-1, -1]]), r"every output of points \[1\] is free"),
        (lambda: Threshold([1], margin=-1.0), "margin must be a finite number >= 0"),
        (lambda: Threshold([1], float("nan")), r"finite number, or one for each of 1 outputs, got \[nan\]"),
        (lambda: Threshold([[1, 0]], [0.0, 1.0, 2.0]), "one for each of 2 outputs"),
        (lambda: Threshold([1, 0]).check(torch.zeros(3, 1)), "2 labels for 3 inputs"),
        (lambda: Threshold([1, 0]).check(torch.zeros(2, 2)), r"one answer per output, .* are \(2, 2\)"),
        (lambda: Linear([1.0], [0.0]), r"got A \(1,\)"),
        (lambda: Linear([[1.0]], [0.0, 1.0]), r"b \(2,\)"),
        (lambda: Linear([[1.0]], [0.0]), "needs points=n"),
        (lambda: Linear([[torch.nan]], [0.0], points=1), "finite"),
        (lambda: Near(torch.zeros(2, 3), torch.ones(2)), r"tol of shape \(2,\) does not broadcast .*\(2, 3\)"),
        (lambda: Near(torch.zeros(2, 3), 0.0), "tol positive"),
        (lambda: Near(torch.tensor([[torch.nan]]), 1.0), "finite"),
        (lambda: Argmax([0]) & Argmax([0, 1]), r"equally many points, got \[1, 2\]"),
        (lambda: AllOf(), "AllOf joins"),
        (lambda: AnyOf(Argmax([0]), Argmax([0, 1])), "AnyOf joins"),
        (lambda: Argmax([0, 3]).check(torch.zeros(2, 3)), r"0\.\.2 .*label 3 at index 1 does not\."),
        (lambda: Argmax([3, -1, 0]).check(torch.zeros(3, 3)), "nor do 1 others"),
        (lambda: Argmax([0]).check(torch.zeros(2, 3)), "1 labels for 2 inputs"),
        (lambda: Argmax([0]).check(torch.zeros(1, 3, 2)), "Use Threshold, Near or Linear"),
        (lambda: Near(torch.zeros(1, 2), 1.0).check(torch.zeros(1, 3)), r"\(1, 2\), but outputs are \(1, 3\)"),
        (lambda: Linear([[1.0]], [0.0], points=2).check(torch.zeros(3, 1)), "2 points, but there are 3"),
        (lambda: Linear([[1.0]], [0.0], points=2).check(torch.zeros(2, 3)), "expects 1 outputs, the model returns 3"),
        (lambda: (Argmax([0]) | Argmax([1])).rows(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 2)), "resolve"),
    ],
)
def test_messages(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


def test_joined_criteria_are_checked_part_by_part() -> None:
    with pytest.raises(InvalidInput, match="label 5 at index 0"):
        (Argmax([0]) & Argmax([5])).check(torch.zeros(1, 3))


# Positions, ranks and units ------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.sampled_from([1, -1]), st.sampled_from([Argmax, Argmin]), st.sampled_from([0.0, 0.4]))
@quick
def test_labels_of_positions_are_labels_at_each_of_them(
    seed: int, axis: int, kind: type[Argmax], margin: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(POINTS, 2, 5, 3, generator=draw, dtype=torch.float64)  # (n, height, width, classes)
    labels = torch.randint(3, (POINTS, 2, 5), generator=draw)
    labels[:, 1, seed % 5] = -100
    y = scores.movedim(-1, axis).requires_grad_(True)
    criterion = kind(labels, margin)
    criterion.check(y)
    alone = kind(labels.reshape(-1).clamp(min=0), margin)
    asked, rows = labels.reshape(-1) != -100, scores.reshape(-1, 3)
    holds = alone.holds(rows) | ~asked
    assert torch.equal(criterion.holds(y), holds.reshape(POINTS, -1).all(1))
    margins = torch.where(asked, alone.margin(rows), torch.inf).reshape(POINTS, -1)
    torch.testing.assert_close(criterion.margin(y), margins.amin(1))
    torch.testing.assert_close(criterion.loss(y), (alone.loss(rows) * asked).reshape(POINTS, -1).sum(1))
    slack = criterion.slack(y)
    point, condition = torch.nonzero(torch.isfinite(slack)).T
    some = torch.arange(0, len(point), 7)
    for row, p, c in zip(criterion.rows(point[some], condition[some], y), point[some], condition[some], strict=True):
        (expected,) = torch.autograd.grad(slack[p, c], y, retain_graph=True)
        torch.testing.assert_close(row, expected[p])
    index = torch.tensor([2, 0])
    assert torch.equal(criterion[index].holds(y[index]), criterion.holds(y)[index])


@given(st.integers(0, 999), st.sampled_from([1, -1]), st.booleans())
@quick
def test_classes_of_positions_are_classes_at_each_of_them(seed: int, axis: int, lowest: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    old, new = (torch.randn(POINTS, 4, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    kind, alone = Classes(lowest, axis), Classes(lowest)
    y, flat_y = old.movedim(-1, axis), old.reshape(-1, 3)
    assert torch.equal(kind.decide(y), alone.decide(flat_y).reshape(POINTS, 4))
    assert kind.unchanged(y, 0.0).holds(y).all()
    far = alone.divergence(flat_y, new.reshape(-1, 3)).reshape(POINTS, 4).sum(1)
    torch.testing.assert_close(kind.divergence(y, new.movedim(-1, axis)), far)
    labels = kind.sample(y, draw)
    assert labels.shape == (POINTS, 4)
    score = alone.score(flat_y, labels.reshape(-1)).reshape(POINTS, 4, 3).movedim(-1, axis).flatten(1)
    torch.testing.assert_close(kind.score(y, labels), score)
    root = kind.root(y, 12)
    assert root is not None
    fisher = torch.einsum("nko,nkp->nop", root, root)
    probabilities = torch.softmax((-1 if lowest else 1) * old, 2)
    for n in range(POINTS):  # blocks, one for each position
        blocks = torch.block_diag(*(torch.diag(p) - torch.outer(p, p) for p in probabilities[n]))
        order = torch.arange(12).reshape(4, 3).movedim(-1, 0 if axis == 1 else -1).flatten()
        torch.testing.assert_close(fisher[n], blocks[order][:, order])
    assert kind.root(y, 11) is None


def test_shapes_say_where_the_classes_are() -> None:
    assert kind_of(checked(Argmax([[0, 1]]), torch.zeros(1, 3, 2))) == Classes(axis=1)
    assert kind_of(checked(Argmax([[0, 1]]), torch.zeros(1, 2, 3))) == Classes(axis=-1)
    assert kind_of(checked(Argmax([[0, 1]], axis=2), torch.zeros(1, 2, 2))) == Classes(axis=-1)
    assert kind_of(TopK([1], 2)) == kind_of(Above([1], [0])) == Classes()


def checked(criterion: Criterion, y: Tensor) -> Criterion:
    criterion.check(y)
    return criterion


def test_of_a_group_all_points_get_one_way() -> None:
    y = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 3.0, 2.0, 1.0]])
    way = TopK([[3], [3]], 2).resolve(y, torch.tensor([0, 0]))
    assert isinstance(way, Above) and torch.equal(way.lower[0].sort().values, way.lower[1].sort().values)


@pytest.mark.parametrize("scaler", ["pair", "standard", "minmax", "robust"])
def test_targets_in_the_users_units(scaler: str) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    degrees = randn(30, 2, seed=3, dtype=torch.float64) * torch.tensor([5.0, 0.1]) + torch.tensor([20.0, 1.0])
    made = {
        "standard": preprocessing.StandardScaler,
        "minmax": preprocessing.MinMaxScaler,
        "robust": preprocessing.RobustScaler,
    }
    units: Any = (degrees.mean(0), degrees.std(0))
    y = (degrees - units[0]) / units[1]
    if scaler != "pair":
        units = made[scaler]().fit(degrees.numpy())
        y = torch.from_numpy(units.transform(degrees.numpy()))
    target, tol = degrees + torch.tensor([0.4, 0.0]), torch.tensor([0.5, 0.01])
    near = Near(target, tol, units=units)
    assert near.holds(y).all() and not Near(target, 0.3 * tol, units=units).holds(y).any()
    measured = near.measures(y)
    assert measured["mean squared error"] == pytest.approx(0.08)
    between = Between(degrees - 0.1, degrees + 0.1, units=units)
    assert between.holds(y).all() and not Between(degrees + 0.001, degrees + 1, units=units).holds(y).any()
    index = torch.tensor([4, 1])
    assert near[index].measures(y[index])["mean squared error"] == pytest.approx(0.08)
    torch.testing.assert_close(between[index].margin(y[index]), between.margin(y)[index])


def test_one_output_alone_between_bounds() -> None:
    y = torch.tensor([[[0.1, 9.0], [0.2, 0.9]]])
    veto = Between(high=0.3, at=(1, 0), points=1)
    assert veto.holds(y).all() and not Between(high=0.1, at=(1, 0), points=1).holds(y).any()
    assert veto.rows(torch.tensor([0]), torch.tensor([6]), y).nonzero().tolist() == [[0, 1, 0]]
