"""What did not change: volumes, shares against sampling, certificates."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import seeded
from torch import nn

import nnrepair
from nnrepair.errors import InvalidInput
from nnrepair.verify import Box, Comparison, compare
from nnrepair.verify.comparing.regions import pieces, volume, without
from nnrepair.verify.comparing.volumes import UNIT, at_most


def network(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    """Return a fully connected ReLU network with random weights."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layer = nn.Linear(before, after)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(after, before, generator=generator) / math.sqrt(before))
            layer.bias.copy_(torch.randn(after, generator=generator) / 3)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def changed(model: nn.Sequential, layers: tuple[int, ...], seed: int, size: float, bias: bool) -> nn.Sequential:
    """Return a copy with a few other weights in some layers."""
    generator, other = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    with torch.no_grad():
        for k in layers:
            layer = other[k]
            assert isinstance(layer, nn.Linear)
            column = int(torch.randint(layer.in_features, (), generator=generator))
            layer.weight[:, column] += size * torch.randn(layer.out_features, generator=generator)
            if bias:
                layer.bias += size * torch.randn(layer.out_features, generator=generator)
    return other


def sampled(before: nn.Module, after: nn.Module, box: Box, count: int = 20_000) -> tuple[float, float]:
    """Return the shares of random inputs with the same outputs, and with another highest output."""
    low, high = (torch.tensor([float(v) for v in end]) for end in (box.lower, box.upper))
    x = low + (high - low) * torch.rand(count, len(low), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y, z = before(x), after(x)
    return float((y == z).all(1).double().mean()), float((y.argmax(1) != z.argmax(1)).double().mean())


# Volumes -------------------------------------------------------------------------------------------------------------


def exact_share(a: list[Fraction], t: Fraction) -> Fraction:
    """Return P(a . u <= t) for u uniform over the unit cube: the formula in fractions, and nothing else."""
    a = [v for v in a if v]
    if not a:
        return Fraction(int(t >= 0))
    total = Fraction(0)
    for corner in itertools.product((0, 1), repeat=len(a)):
        rest = t - sum(v for v, one in zip(a, corner, strict=True) if one)
        total += (-1) ** sum(corner) * max(rest, Fraction(0)) ** len(a)
    return total / (math.factorial(len(a)) * math.prod(a))


slopes = st.lists(
    st.floats(0, 1e6, allow_subnormal=False).map(lambda v: 0.0 if v < 1e-9 else v), min_size=1, max_size=6
)


@given(slopes, st.floats(-0.1, 1.1))
@settings(deadline=None)
def test_shares_of_half_spaces_enclose_the_exact_ones(a: list[float], level: float) -> None:
    t = level * sum(a)
    exact = min(max(exact_share([Fraction(v) for v in a], Fraction(t)), Fraction(0)), Fraction(1)) * UNIT
    low, high = (int(at_most(np.array([a]), np.array([t]), up)[0]) for up in (False, True))
    assert low <= exact <= high
    assert high - low <= 1e-6 * UNIT or not any(a) or min(v for v in a if v) < 1e-6 * sum(a)


def test_shares_of_many_inputs_keep_the_largest() -> None:
    a, t = np.array([[4.0, 3, 2, 2, 1, 1, 0.1, 0.05, 0.01]]), np.array([6.0])
    exact = exact_share([Fraction(v) for v in a[0].tolist()], Fraction(6))
    low, high = (Fraction(int(at_most(a, t, up)[0]), UNIT) for up in (False, True))
    assert low <= exact <= high
    assert high - low < Fraction(1, 10)


def test_what_is_not_finite_says_nothing() -> None:
    a, t = np.array([[math.nan, 1], [math.inf, 1], [1, 1], [1, 1]]), np.array([1, 1, math.nan, math.inf])
    assert at_most(a, t, up=True).tolist() == [UNIT] * 4
    assert at_most(a, t, up=False).tolist() == [0] * 4


# Regions -------------------------------------------------------------------------------------------------------------


boxes = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), min_size=2, max_size=2).map(
    lambda ends: Box([a for a, _ in ends], [a + w for a, w in ends])
)


@given(st.lists(boxes, min_size=1, max_size=3), st.lists(boxes, max_size=2))
@settings(deadline=None)
def test_pieces_are_the_region_without_the_holes(given_: list[Box], holes: list[Box]) -> None:
    def inside(many: list[Box], x: tuple[Fraction, Fraction]) -> int:
        return sum(box.contains(x) for box in many)

    cells = [(Fraction(2 * i + 1, 2), Fraction(2 * j + 1, 2)) for i in range(14) for j in range(14)]
    wanted = [x for x in cells if inside(given_, x) and not inside(holes, x)]
    if not wanted:
        with pytest.raises(InvalidInput, match="Nothing of the region is left"):
            pieces(given_, holes)
        return
    found = pieces(given_, holes)
    assert [x for x in cells if inside(found, x) == 1] == wanted
    assert sum(map(volume, found)) == len(wanted)


def test_a_box_without_another_that_does_not_touch_it_is_itself() -> None:
    box = Box([0, 0], [1, 1])
    assert without(box, Box([1, 0], [2, 1])) == [box]


def test_points_and_boxes_that_fix_other_inputs_are_refused() -> None:
    for region in (Box([0, 1], [0, 1]), [Box([0, 1], [1, 1]), Box([0, 0], [0, 1])]):
        with pytest.raises(InvalidInput, match="a width in some input"):
            pieces(region)


def test_a_hole_in_a_plane() -> None:
    plane = Box([0, 0, Fraction(1, 3)], [1, 1, Fraction(1, 3)])
    assert sum(map(volume, pieces(plane, Box([0, 0, 0], [1, Fraction(1, 4), 1])))) == Fraction(3, 4)
    assert pieces(plane, Box([0, 0, Fraction(1, 2)], [1, 1, 1])) == [plane]


# Comparisons ---------------------------------------------------------------------------------------------------------


def assert_right(found: Comparison, before: nn.Module, after: nn.Module, box: Box) -> None:
    """Compare what is proved with random inputs, within five standard deviations, and what follows from it."""
    same_outputs, other = sampled(before, after, box)
    spread = 5 / math.sqrt(4 * 20_000)
    assert found.identical <= same_outputs + spread
    assert found.changed - spread <= other <= 1 - found.same + spread
    assert 0 <= found.identical <= found.same <= 1 - found.changed <= 1
    for witness in found.witnesses:
        assert witness.before.argmax() != witness.after.argmax()
        assert box.contains(witness.input)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("layers", "bias"),
    [((4,), False), ((4,), True), ((2,), False), ((0, 2, 4), True)],
    ids=["last", "bias", "hidden", "all"],
)
def test_shares_bracket_what_sampling_finds(layers: tuple[int, ...], bias: bool, seed: int) -> None:
    before = network((2, 8, 8, 3), seed)
    after = changed(before, layers, seed + 100, 0.5, bias)
    box = Box([-1, -1], [1, 1])
    found = compare(before, after, box, until=0.05, timeout=20)
    assert_right(found, before, after, box)
    assert found.unknown <= 0.05


@pytest.mark.parametrize("decision", ["argmax", "argmin"])
def test_decisions_alone_take_fewer_boxes_than_outputs_too(decision: Literal["argmax", "argmin"]) -> None:
    before = network((2, 8, 8, 3), 16)
    after = changed(before, (4,), 100, 0.5, False)
    box = Box([-1, -1], [1, 1])
    both, alone = (compare(before, after, box, decision=decision, until=0.01, identical=way) for way in (True, False))
    assert alone.unknown <= 0.01
    assert alone.boxes <= both.boxes
    assert alone.identical <= alone.same
    if decision == "argmax":
        assert_right(alone, before, after, box)


def test_bounds_that_no_flip_needs_are_not_split_for() -> None:
    before = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        before[0].weight.copy_(torch.eye(2))
        before[0].bias.zero_()
        before[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        before[2].bias.copy_(torch.tensor([0.0, 0.0, 5.0]))  # the last output always wins, by 4 and more
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[2].weight[0, 0] = 1.5
        after[2].bias[0] = 0.1
    found = compare(before, after, Box([0, 0], [1, 1]))
    assert (found.same, found.boxes) == (1, 1)


def test_it_converges_to_the_exact_shares() -> None:
    before, after = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        before.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        after.weight.copy_(torch.tensor([[1.25, 0.0], [0.0, 1.0]]))
    found = compare(before, after, Box([0, 0], [1, 1]), until=1e-7)
    assert found.same <= Fraction(9, 10) <= 1 - found.changed  # y > x before, y > 1.25 x after
    assert found.unknown <= 1e-7


def test_units_that_are_off_prove_identical_outputs() -> None:
    before = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        before[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        before[0].bias.copy_(torch.tensor([0.0, 0.5]))
        before[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        before[2].bias.copy_(torch.tensor([1.0, 0.0]))
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[2].weight[1, 1] = 1.5  # of the unit max(0.5 - x, 0), which is zero on the right half
    found = compare(before, after, Box([0], [1]))
    assert 0.5 - 1e-6 < found.identical <= 0.5
    assert found.same == 1  # 0.75 at most, against 1 and more


def test_equal_networks_are_identical_everywhere_at_once() -> None:
    model = network((3, 6, 4), 0)
    found = compare(model, copy.deepcopy(model), Box([0, 0, 0], [1, 1, 1]))
    assert (found.identical, found.same, found.changed, found.boxes) == (1, 1, 0, 1)


def test_inputs_that_are_fixed_leave_a_plane() -> None:
    before = network((3, 8, 8, 3), 2)
    after = changed(before, (4,), 9, 0.5, True)
    box = Box([-1, Fraction(1, 3), -1], [1, Fraction(1, 3), 1])  # which is no float
    found = compare(before, after, box, until=0.02, timeout=20)
    assert_right(dataclasses.replace(found, witnesses=()), before, after, box)
    assert found.volume == 4
    assert found.unknown <= 0.02
    assert found.certificate is None
    assert "fix no input" in found.reason


def test_a_criterion_is_a_decision() -> None:
    before = network((2, 6, 1), 1)
    after = changed(before, (2,), 5, 0.7, True)
    box = Box([-1, -1], [1, 1])
    found = compare(before, after, box, decision=nnrepair.Threshold([1]), until=0.02)
    low, high = (torch.tensor([float(v) for v in end]) for end in (box.lower, box.upper))
    x = low + (high - low) * torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other = float(((before(x) > 0) != (after(x) > 0)).double().mean())
    assert found.changed - 0.02 <= other <= 1 - found.same + 0.02
    assert found.unknown <= 0.02


def test_more_time_proves_more_and_goes_on_from_where_it_was() -> None:
    before = network((3, 10, 10, 3), 3)
    after = changed(before, (4,), 7, 0.3, False)
    box, found = Box([-1, -1, -1], [1, 1, 1]), None
    for until in (0.5, 0.2, 0.1):
        again = compare(before, after, box, until=until, resume=found)
        if found is not None:
            assert again.boxes >= found.boxes
            assert again.same >= found.same
            assert again.identical >= found.identical
            assert again.changed >= found.changed
        found = again
    assert found is not None
    same = [moment.same for moment in found.history]
    assert same == sorted(same)
    with pytest.raises(InvalidInput, match="other networks"):
        compare(before, changed(before, (4,), 8, 0.3, False), box, resume=found)


def test_models_stay_as_they_are_and_time_limits_are_kept() -> None:
    before = network((4, 30, 30, 3), 0).train()
    after = changed(before, (4,), 0, 0.2, True)
    state = {name: value.clone() for name, value in before.state_dict().items()}
    found = compare(before, after, Box([-1] * 4, [1] * 4), timeout=1.0)
    assert found.wall_seconds < 6
    assert before.training
    assert all(bool((value == before.state_dict()[name]).all()) for name, value in state.items())
    assert "time limit" in found.reason


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decision": "max"}, "decision must be"),
        ({"decision": nnrepair.Argmax([0, 1])}, "about one point"),
        ({"timeout": 0}, "timeout must be"),
        ({"until": 1.0}, "until must be"),
        ({"region": Box([0], [1])}, "cannot be called"),
        ({"after": network((2, 4, 4), 0)}, "as many numbers"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object], message: str) -> None:
    asked = {"before": network((2, 4, 3), 0), "after": network((2, 4, 3), 1), "region": Box([0, 0], [1, 1])} | wrong
    with pytest.raises(InvalidInput, match=message):
        compare(**asked)  # type: ignore[arg-type]


# What else may differ, or come before the last map -------------------------------------------------------------------


def normalised(eps: float) -> nn.Sequential:
    """Return a network that differs from others of its kind in a number beside its weights alone."""
    model = network((2, 4, 4, 3), 0)
    return nn.Sequential(model[0], nn.LayerNorm(4, eps=eps), *model[2:]).eval()


def test_numbers_beside_weights_tell_networks_apart() -> None:
    before, after, box = normalised(1e-5), normalised(5.0), Box([-1, -1], [1, 1])
    same_outputs, other = sampled(before, after, box)
    assert same_outputs == 0 and other > 0.05
    found = compare(before, after, box, timeout=3, until=0.5)
    assert found.identical == 0
    assert_right(found, before, after, box)
    assert compare(before, normalised(1e-5), box, until=0.5).identical == 1


class Cast(nn.Module):
    """A network whose hidden values are rounded to a shorter type."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.first, _, self.last = network((2, 4, 3), 0)
        self.kind = kind
        with torch.no_grad():
            self.last.weight *= 0.05  # what rounding does must stay below what a reader may be off by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.first(x).to(self.kind).float()))
        return y


def test_types_that_values_are_rounded_to_tell_networks_apart() -> None:
    box = Box([-1, -1], [1, 1])
    found = compare(Cast(torch.float16), Cast(torch.bfloat16), box, timeout=3, until=0.5)
    assert found.identical == 0
    assert compare(Cast(torch.float16), Cast(torch.float16), box, until=0.5).identical == 1


class Residual(nn.Module):
    """A network whose last ReLUs read a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, _, self.inner, _, self.last = network((2, 6, 6, 3), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        y: torch.Tensor = self.last(torch.relu(h + self.inner(h)))
        return y


@pytest.mark.parametrize(
    "before",
    [
        Residual(),
        nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.ReLU(), nn.Linear(6, 3)),
        nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.ReLU(), nn.Linear(6, 3)),
        nn.Sequential(nn.ReLU(), nn.Linear(2, 3)),
    ],
    ids=["sum", "tanh", "relu", "input"],
)
def test_last_relus_may_read_anything(before: nn.Module) -> None:
    after = copy.deepcopy(before)
    last = list(after.modules())[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[0] += 0.3
    box = Box([-1, -1], [1, 1])
    found = compare(before, after, box, timeout=10, until=0.05)
    assert_right(found, before, after, box)
    if isinstance(before, nn.Sequential) and len(before) == 2:
        assert 0.2 < found.identical <= Fraction(1, 4)  # where both inputs are negative
    assert compare(before, copy.deepcopy(before), box).identical == 1


def test_what_convolutions_share_is_bounded_once() -> None:
    layers = [nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)]
    before, box = nn.Sequential(*layers), Box([-1] * 4, [1] * 4)
    assert compare(before, copy.deepcopy(before), box).identical == 1
    other = copy.deepcopy(before)
    with torch.no_grad():
        next(iter(other.parameters()))[0] += 0.1
    assert compare(before, other, box, timeout=1).identical == 0


def test_another_criterion_is_another_decision() -> None:
    before, after = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        before.weight.copy_(torch.tensor([[1.0, 0.0]]))
        after.weight.copy_(torch.tensor([[1.0, 1e-3]]))
    one, two = (nnrepair.Linear(torch.ones(1, 1, 1), torch.tensor([[at]])) for at in (0.0, 1e-5))
    found = compare(before, after, Box([-1, -1], [1, 1]), decision=one, until=0.01)
    with pytest.raises(InvalidInput, match="another decision"):
        compare(before, after, Box([-1, -1], [1, 1]), decision=two, resume=found)


def test_what_ended_before_it_began_is_gone_on_from() -> None:
    before = network((2, 8, 8, 3), 3)
    after, box = changed(before, (4,), 7, 0.3, False), Box([-1, -1], [1, 1])
    found = compare(before, after, box, until=0.2)
    late = compare(before, after, box, timeout=1e-9, resume=found)
    assert (late.same, late.boxes) == (0, 0)
    assert "what resume= found is not counted, and still there" in late.reason
    later = compare(before, after, box, timeout=1e-9, resume=late)
    again = compare(before, after, box, until=0.19, resume=later)
    assert again.boxes > found.boxes and again.same >= found.same and again.changed >= found.changed
    nothing = compare(before, after, box, timeout=1e-9)
    assert compare(before, after, box, until=0.2, resume=nothing).boxes == found.boxes
    with pytest.raises(InvalidInput, match="was stored"):
        compare(before, after, box, resume=dataclasses.replace(found, state=None))


# Doors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"until": "x"}, "until must be a share of the region from 0 to less than 1, got 'x'"),
        ({"until": None}, "until must be"),
        ({"until": True}, "until must be"),
        ({"witnesses": "3"}, "witnesses must be a whole number, at least 0, got '3'"),
        ({"witnesses": -1}, "witnesses must be"),
        ({"witnesses": 2.5}, "witnesses must be"),
        ({"region": None}, "region must be a Box, a list of these, a Property or a VNN-LIB file, got NoneType None"),
        ({"region": 5}, "region must be .* got int 5"),
        ({"region": []}, "region must be"),
        ({"region": [Box([0, 0], [1, 1]), None]}, "region must be .* got list"),
        ({"outside": 5}, "outside must be .* got int 5"),
        ({"resume": "x"}, "resume must be an earlier Comparison of the same networks, got str"),
        ({"after": None}, "model must be a torch.nn.Module or an ONNX file, got NoneType"),
        ({"after": 5}, "model must be .* got int"),
    ],
)
def test_wrong_questions_are_refused(given: dict[str, Any], said: str) -> None:
    before = network((2, 4, 3), 0)
    asked = {"after": before, "region": Box([-1, -1], [1, 1])} | given
    with pytest.raises(InvalidInput, match=said):
        compare(before, **asked)


@pytest.mark.parametrize("size", [1e80, 1e-90, 1.7e308])
def test_volumes_may_be_too_large_or_too_small_for_floats(size: float) -> None:
    before = nn.Sequential(*(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)))
    with torch.no_grad():
        for k, p in enumerate(before.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    after = copy.deepcopy(before)
    with torch.no_grad():
        list(after.parameters())[1][0] += 0.1
    one, found = (compare(before, after, Box([-w] * 4, [w] * 4), until=0.4, timeout=20) for w in (1.0, size))
    assert found.volume == (2 * Fraction(size)) ** 4
    if size < 1e100:  # larger numbers prove nothing
        assert found.unknown <= 0.4
        assert found.same <= 1 - one.changed and one.same <= 1 - found.changed  # without biases both are alike
    assert all(0 <= moment.same <= 1 and 0 <= moment.changed <= 1 for moment in found.history)


def test_networks_of_which_the_program_reads_no_certificate_have_none() -> None:
    for outputs in (1, 65):
        before = network((2, 3, outputs), 0)
        after = changed(before, (2,), 1, 0.1, True)
        found = compare(before, after, Box([-1, -1], [1, 1]), timeout=0.5)
        assert found.certificate is None
        assert "have 2 to 64 outputs" in found.reason


def test_what_is_known_of_points_needs_points() -> None:
    before = network((2, 4, 3), 0)
    found = compare(before, copy.deepcopy(before), Box([-1, -1], [1, 1]))
    assert found.known(torch.zeros(2, 2, requires_grad=True)).tolist() == ["identical"] * 2
    assert found.known([]).tolist() == []
    for points in ("x", None, 5, [0, 0], [[0]], [[0, 0, 0]], [["a", "b"]]):
        with pytest.raises(InvalidInput, match=r"points must be numbers \(n, 2\)"):
            found.known(points)


class Divided(nn.Module):
    """A network that divides by a number."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.first, self.by = nn.Linear(2, 2).double(), torch.tensor(by, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.first(x) / self.by
        return y


def test_numbers_with_the_same_rounded_inverse_are_two() -> None:
    by = next(c for c in (3.0 + k / 1024 for k in range(1000)) if 1 / c == 1 / math.nextafter(c, 9.0))
    model, other = seeded(lambda: Divided(by)), seeded(lambda: Divided(math.nextafter(by, 9.0)))
    square = Box([-1, -1], [1, 1])
    assert compare(model, other, square, timeout=0.5).identical == 0
    assert compare(model, seeded(lambda: Divided(by)), square, timeout=0.5).identical == 1


@pytest.mark.parametrize(
    "middle", [nn.GELU, lambda: nn.LayerNorm(4), lambda: nn.BatchNorm1d(4), nn.Identity, lambda: nn.Softplus(beta=3)]
)
def test_one_network_twice_is_identical_whatever_it_does(middle: Callable[[], nn.Module]) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 4), middle(), nn.Linear(4, 3))).eval()
    found = compare(model, copy.deepcopy(model), Box([-1, -1], [1, 1]), timeout=5)
    assert (found.identical, found.same, found.changed) == (1, 1, 0) and not found.witnesses
