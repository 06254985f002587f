from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnrepair import Above, AllOf, AnyOf, Argmax, Argmin, Between, Criterion, InvalidInput, Linear, Near, Threshold
from nnrepair.verify.property import Box, Case, Conjunction, Halfspace, Property

OUTPUTS = 3
quick = settings(deadline=None, derandomize=True, max_examples=200)
whole = st.integers(-3, 3)
numbers = st.one_of(
    st.fractions(-5, 5, max_denominator=30), st.floats(allow_nan=False, allow_infinity=False).map(Fraction)
)


def unsafe(conjunctions: tuple[Conjunction, ...], y: Any) -> bool:
    return any(all(row.contains(list(map(Fraction, y))) for row in rows) for rows in conjunctions)


# Criteria and their negation


@st.composite
def criteria(draw: Any, deep: bool = True, points: int = 1) -> Criterion:
    """Draw criteria with small integers, which float64 judges exactly."""

    def integers(*shape: int, low: int = -3) -> Tensor:
        size = math.prod(shape)
        flat = draw(st.lists(st.integers(low, 3), min_size=size, max_size=size))
        return torch.tensor(flat, dtype=torch.float64).reshape(shape)

    kinds = ["argmax", "argmin", "threshold", "linear", "near", "between", "above", *(["and", "or"] if deep else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "threshold":
        answers = integers(points, OUTPUTS, low=-1).clamp(max=1).long()
        answers[:, 0] = answers[:, 0].abs()
        at = draw(st.sampled_from([0.0, 1.0, [0.0, -1.0, 2.0]]))
        return Threshold(answers, at, draw(st.sampled_from([0.0, 1.0])))
    if kind in ("argmax", "argmin"):
        labels = draw(st.lists(st.integers(0, OUTPUTS - 1), min_size=points, max_size=points))
        return (Argmax if kind == "argmax" else Argmin)(labels, draw(st.sampled_from([0.0, 1.0, 2.0])))
    if kind == "linear":
        return Linear(integers(points, 2, OUTPUTS), integers(points, 2))
    if kind == "near":
        tol = integers(points, OUTPUTS, low=1)
        return Near(integers(points, OUTPUTS), torch.where(tol == 3, torch.inf, tol))
    if kind == "between":
        low = integers(points, OUTPUTS)
        return Between(torch.where(low == 3, -torch.inf, low), integers(points, OUTPUTS, low=0) + low)
    if kind == "above":
        order = [draw(st.permutations(range(OUTPUTS))) for _ in range(points)]
        lower = [each[1:] if draw(st.booleans()) else [*each[1:-1], -1] for each in order]
        return Above([each[0] for each in order], lower, draw(st.sampled_from([0.0, 1.0])))
    a, b = draw(criteria(deep=False, points=points)), draw(criteria(points=points))
    return a & b if kind == "and" else a | b


@given(criteria(), st.lists(whole, min_size=OUTPUTS, max_size=OUTPUTS))
@example(Argmax([0]), [1, 1, 0])  # a tie is no decision
@example(Argmax([0], margin=1.0), [2, 1, 0])  # but a margin may be met exactly
@example(Argmin([2]), [1, 1, 1])
@example(Threshold([[1, 0, -1]]), [0, 0, 0])  # an output at the threshold answers nothing
@example(Threshold([[1, 0, -1]], margin=1.0), [1, -1, 0])
@example(Linear([[1.0, -1.0, 0.0]], [1.0], points=1), [2, 1, 0])
@example(Near(torch.zeros(1, 3), 1.0), [1, -1, 0])
@example(Between(0.0, 1.0, points=1), [0, 1, 1])
@example(Between(high=0.0, at=1, points=1), [1, 0, 1])
@example(Above([0], [1]), [1, 1, 0])
@quick
def test_unsafe_is_where_the_criterion_fails(criterion: Criterion, y: list[int]) -> None:
    (case,) = Property.on(Box([0], [1]), criterion, outputs=OUTPUTS).cases
    holds = bool(criterion.holds(torch.tensor([y], dtype=torch.float64))[0])
    assert holds != unsafe(case.unsafe, y)


@given(criteria(points=2), st.lists(whole, min_size=2 * OUTPUTS, max_size=2 * OUTPUTS))
@quick
def test_each_point_of_a_criterion_goes_with_its_box(criterion: Criterion, y: list[int]) -> None:
    prop = Property.on([Box([0], [1]), Box([2], [3])], criterion, outputs=OUTPUTS)
    outputs = [y[:OUTPUTS], y[OUTPUTS:]]
    holds = criterion.holds(torch.tensor(outputs, dtype=torch.float64)).tolist()
    for k, (one, y_k) in enumerate(zip(holds, outputs, strict=True)):
        assert one != prop.violated_at([2.0 * k], list(map(Fraction, y_k)))


def test_one_point_is_required_on_every_box() -> None:
    prop = Property.on([Box([0], [1]), Box([2], [3])], Argmax([1]), outputs=2)
    assert [case.unsafe for case in prop.cases] == [prop.cases[0].unsafe] * 2
    wrong = [Fraction(1), Fraction(0)]
    assert prop.violated_at([0.5], wrong) and prop.violated_at([3.0], wrong) and not prop.violated_at([1.5], wrong)


def test_decimals_of_a_criterion_are_not_rounded() -> None:
    rows = Property.on(Box([0], [1]), Near(torch.tensor([[0.1]]), tol=0.2)).cases[0].unsafe
    target, tol = Fraction(float(torch.tensor(0.1))), Fraction(float(torch.tensor(0.2)))
    assert [row.bound for (row,) in rows] == [target - tol, -target - tol]
    assert not unsafe(rows, [target - tol]) and unsafe(rows, [target - tol - Fraction(1, 10**40)])


def test_outputs_of_any_shape() -> None:
    near = Near(torch.zeros(1, 2, 3), tol=1.0)
    assert Property.on(Box([0], [1]), near).outputs == 6
    assert Property.on(Box([0], [1]), near & Linear(torch.ones(1, 6), torch.zeros(1), points=1)).outputs == 6
    assert Property.on([Box([0], [1]), Box([1], [2])], Near(torch.zeros(2), tol=1.0)).outputs == 1
    assert Property.on(Box([0], [1]), Threshold([True])).outputs == 1
    assert Property.on(Box([0], [1]), Threshold([[1, -1, 0]])).outputs == 3


def test_what_cannot_be_a_property() -> None:
    box = Box([0], [1])
    for message, region, criterion, outputs in [
        ("give outputs=", box, Argmax([0]), None),
        ("Labels must lie in 0..1", box, Argmax([2]), 2),
        ("expects 3 outputs", box, Linear(torch.ones(1, 3), torch.zeros(1), points=1), 2),
        ("target of shape", box, Near(torch.zeros(1, 2), tol=1.0), 3),
        ("about 2 points; expected 1, or 3", [box] * 3, Argmax([0, 1]), 2),
        ("at least one box", [], Argmax([0]), 2),
        ("at least one box", [], Near(torch.zeros(0, 2), tol=1.0), None),
        ("more than 100000 ways", box, AnyOf(*[Argmax([0])] * 6), 10),
        ("Chosen cannot be checked over a region", box, (Argmax([0]) | Argmin([0])).resolve(torch.zeros(1, 2)), 2),
    ]:
        with pytest.raises(InvalidInput, match=message):
            Property.on(region, criterion, outputs)
    row = Halfspace((Fraction(1),), Fraction(0))
    with pytest.raises(InvalidInput, match="at least one box"):
        Property([], 1)
    with pytest.raises(InvalidInput, match=r"equally many inputs, got \[1, 2\]"):
        Property([Case(box, ((row,),)), Case(Box([0, 0], [1, 1]), ((row,),))], 1)
    with pytest.raises(InvalidInput, match=r"2 coefficients, got \[1\]"):
        Property([Case(box, ((row,),))], 2)


def test_cases_on_the_same_box_are_joined() -> None:
    a, b = ((Halfspace((Fraction(k),), Fraction(0)),) for k in (1, 2))
    one, other = Box([0], [1]), Box([Fraction(0)], [Fraction(1, 2)])
    prop = Property([Case(one, (a,)), Case(other, (a, a)), Case(Box([0.0], [1.0]), (b, a))], 1)
    assert prop.cases == (Case(one, (a, b)), Case(other, (a,)))
    assert prop == Property(prop.cases, 1) and hash(prop) == hash(Property(prop.cases, 1))
    assert prop != Property(prop.cases[:1], 1)
    assert repr(prop) == "Property of 1 input and 1 output: 2 boxes, 3 ways to be unsafe"


def test_an_empty_conjunction_contains_everything_and_no_conjunction_nothing() -> None:
    box = Box([0], [1])
    assert Property([Case(box, ((),))], 1).violated_at([0.5], [Fraction(3)])
    assert not Property([Case(box, ())], 1).violated_at([0.5], [Fraction(3)])
    always = Property.on(box, Near(torch.zeros(1, 2), tol=torch.inf) | Argmax([0]))
    assert always.cases[0].unsafe == ()


def test_borders_belong_to_boxes_and_to_rows_that_are_not_strict() -> None:
    row, strict = (Halfspace((Fraction(1), Fraction(-1)), Fraction(1, 3), s) for s in (False, True))
    on, inside = [Fraction(1, 3), Fraction(0)], [Fraction(1, 3), Fraction(1, 10**30)]
    assert row.contains(on) and not strict.contains(on) and strict.contains(inside)
    prop = Property([Case(Box([0], [Fraction(1, 10)]), ((row, strict),))], 2)
    assert prop.violated_at([0.0], inside) and not prop.violated_at([0.0], on)
    assert not prop.violated_at([0.1], inside)  # the float 0.1 is larger than 1/10
    assert prop.violated_at([np.nextafter(0.1, 0)], inside)


# Boxes


@st.composite
def boxes(draw: Any) -> Box:
    pairs = [sorted(draw(st.tuples(numbers, numbers))) for _ in range(draw(st.integers(1, 3)))]
    return Box([low for low, _ in pairs], [high for _, high in pairs])


@given(boxes())
@example(Box([Fraction(1, 3)], [Fraction(1, 3)]))  # no float is inside
@example(Box([-1.7976931348623157e308], [1.7976931348623157e308]))
@example(Box([Fraction(1, 10**400)], [Fraction(2, 10**400)]))
@quick
def test_outer_and_inner_are_the_nearest_floats(box: Box) -> None:
    outer, inner = box.outer, box.inner
    for side, exact in ((0, box.lower), (1, box.upper)):
        away = np.inf if side else -np.inf
        for exactly, out, into in zip(exact, outer[side], inner[side], strict=True):
            sign = 1 if side else -1
            assert Fraction(into) * sign <= exactly * sign <= Fraction(out) * sign
            assert out == into if Fraction(out) == exactly else np.nextafter(into, away) == out


@given(boxes(), st.data())
@quick
def test_contains_is_exact(box: Box, data: st.DataObject) -> None:
    x = [data.draw(st.sampled_from([low, high, (low + high) / 2, low - 1, high + 1])) for low, high in pairs(box)]
    assert box.contains(x) == all(low <= v <= high for v, (low, high) in zip(x, pairs(box), strict=True))
    low, high = box.inner
    if (low <= high).all():
        assert box.contains(low) and box.contains(high)
    out = box.outer[0]
    assert box.contains(out) == all(Fraction(v) == low for v, low in zip(out, box.lower, strict=True))
    for i in range(len(box)):
        tiny = Fraction(1, 10**500)
        assert not box.contains([*box.lower[:i], box.upper[i] + tiny, *box.lower[i + 1 :]])
        assert not box.contains([*box.upper[:i], box.lower[i] - tiny, *box.upper[i + 1 :]])


def pairs(box: Box) -> list[tuple[Fraction, Fraction]]:
    return list(zip(box.lower, box.upper, strict=True))


def test_numbers_are_taken_exactly() -> None:
    assert Box([0.1], [torch.tensor(0.5).item()]).lower == (Fraction(0.1),)
    assert Box([Fraction(1, 3)], [1]).lower == (Fraction(1, 3),)
    assert Box(torch.tensor([0.1]), torch.tensor([0.5])).lower == (Fraction(float(torch.tensor(0.1))),)
    assert Box(torch.tensor([0.1]).bfloat16(), torch.tensor([1.0])).lower == (Fraction(205, 2048),)
    assert Box(np.float32([0.1]), np.float32([0.5])).lower == (Fraction(float(np.float32(0.1))),)
    for large in ([2**53 + 1], np.array([2**53 + 1]), torch.tensor([2**53 + 1])):
        assert Box([0], large).upper == (Fraction(2**53 + 1),)


def test_shapes_are_kept_and_boxes_compare_by_bounds() -> None:
    box = Box(np.zeros((2, 2)), np.ones((2, 2)))
    assert box.shape == (2, 2) and len(box) == 4 and box.contains(np.full((2, 2), 0.5))
    assert box == Box([0] * 4, [1] * 4) and hash(box) == hash(Box([0] * 4, [1] * 4))
    assert box != Box([0] * 4, [1, 1, 1, 2]) and box != "box"
    assert Box.around(np.zeros((1, 2)), 0.5).shape == (1, 2)


def test_around() -> None:
    box = Box.around([0.0, 0.9], 0.25, low=0.0, high=1.0)
    assert box.lower == (0, Fraction(0.9) - Fraction(0.25)) and box.upper == (Fraction(0.25), 1)
    assert Box.around([2.0], 0).lower == (2,)
    with pytest.raises(InvalidInput, match="empty"):  # not the border, which is farther away than 0.1
        Box.around([2.0], 0.1, low=0.0, high=1.0)
    for wrong in ({"radius": -1.0}, {"radius": math.inf}, {"radius": math.nan}, {"radius": 1.0, "low": math.nan}):
        with pytest.raises(InvalidInput, match="radius must be a finite number >= 0"):
            Box.around([0.0], **wrong)


def test_what_cannot_be_a_box() -> None:
    for message, lower, upper in [
        (r"one shape with at least one input, got \(1,\) and \(2,\)", [0], [0, 1]),
        (r"at least one input", [], []),
        (r"lower has nan at input 1", [0.0, math.nan], [1.0, 1.0]),
        (r"upper has inf at input 0", [0.0], [math.inf]),
        (r"upper has inf at input 1", [0, 0], [Fraction(1), math.inf]),
        (r"upper has 1000000.* at input 0", [0], [10**400]),
        (r"lower has wide at input 0", ["wide"], [1]),
        (r"lower > upper at 2 inputs, first at input 1: 2\.0 > 1\.0", [0, 2, 3], [1, 1, 1]),
    ]:
        with pytest.raises(InvalidInput, match=message):
            Box(lower, upper)
    with pytest.raises(InvalidInput, match="2 inputs, the point 3"):
        Box([0, 0], [1, 1]).contains([0, 0, 0])
    with pytest.raises(InvalidInput, match="the point has nan at input 1"):
        Box([0, 0], [1, 1]).contains([0, math.nan])


def test_all_of_many_parts_is_the_union_of_their_ways() -> None:
    parts = [Argmax([0]), Near(torch.zeros(1, 3), tol=2.0), Linear(torch.eye(3), torch.zeros(3), points=1)]
    box = Box([0], [1])
    each = [Property.on(box, part, outputs=3).cases[0].unsafe for part in parts]
    assert Property.on(box, AllOf(*parts)).cases[0].unsafe == tuple(way for ways in each for way in ways)


def test_halfspaces_take_numbers_exactly() -> None:
    plain = Halfspace((Fraction(1, 10), Fraction(-2)), Fraction(3))
    assert Halfspace((Fraction(1, 10), -2), 3) == plain and hash(Halfspace((Fraction(1, 10), -2), 3)) == hash(plain)
    given = Halfspace((0.1, np.int64(2**62), np.float32(0.5), torch.tensor(-2)), np.int16(7))  # type: ignore[arg-type]
    assert given.coefficients == (Fraction(0.1), 2**62, Fraction(1, 2), -2) and given.bound == 7
    y = [Fraction(0), Fraction(4), Fraction(0), Fraction(2**63 - 3)]  # numpy's integers would overflow
    assert given.contains(y)
    for message, coefficients, bound in [
        ("a halfspace has nan at place 1", (1, math.nan), 0),
        ("a halfspace has inf at place 2", (1, 0), math.inf),
        ("a halfspace has 1000000", (10**400, 0), 0),
        ("a halfspace has an integer with thousands of digits", (10**5000, 0), 0),
        ("a halfspace has None at place 0", (None, 0), 0),
    ]:
        with pytest.raises(InvalidInput, match=f"Every number must be finite in float64; {message}"):
            Halfspace(coefficients, bound)  # type: ignore[arg-type]


def test_boxes_of_extreme_numbers() -> None:
    least, most = Fraction(5e-324), Fraction(1.7976931348623157e308)
    box = Box([-0.0, -most, least / 3], [0.0, most, least])
    assert box.lower == (0, -most, least / 3) and box.contains([-0.0, 1e308, 5e-324])
    assert [v.tolist() for v in box.outer] == [[0.0, -float(most), 0.0], [0.0, float(most), 5e-324]]
    assert [v.tolist() for v in box.inner] == [[0.0, -float(most), 5e-324], [0.0, float(most), 5e-324]]
    for wrong in (most + Fraction(2) ** 970, 2**1024, -(10**5000)):
        with pytest.raises(InvalidInput, match="finite in float64; lower has"):
            Box([wrong], [wrong])
    with pytest.raises(InvalidInput, match="lower is no array of numbers"):
        Box([[1], [1, 2]], [0])


def test_what_is_no_region_criterion_or_count_is_refused() -> None:
    box, criterion = Box([0, 0], [1, 1]), Argmax([0])
    for asked, said in (
        ((None, criterion, 2), "region must be a Box, or a list of these, got NoneType"),
        (([box, 5], criterion, 2), "region must be a Box"),
        ((box, None, 2), "criterion must be one of Argmax"),
        ((box, criterion, "x"), "outputs must be a whole number above 0, got 'x'"),
        ((box, criterion, True), "outputs must be"),
    ):
        with pytest.raises(InvalidInput, match=said):
            Property.on(*asked)  # type: ignore[arg-type]
    for radius in ("x", None, float("nan")):
        with pytest.raises(InvalidInput, match="radius must be a finite number"):
            Box.around([0, 0], radius)  # type: ignore[arg-type]
    assert type(Box.around([0, 0], np.int64(1)).upper[0].numerator) is int
