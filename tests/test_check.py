"""check(): verdicts, what comes with them, and what is refused."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp, randn, seeded
from reference.regions import Network, Regions, violates
from torch import Tensor, nn

import nnrepair
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.verify import (
    Box,
    Case,
    CheckResult,
    Counterexample,
    Halfspace,
    Options,
    Property,
    PropertyCertificate,
    check,
    vnnlib,
)

DataDir = Callable[..., Path]
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def row(coefficients: list[Any], bound: Any, strict: bool = False) -> Halfspace:
    return Halfspace(tuple(map(Fraction, coefficients)), Fraction(bound), strict)


def never(box: Box, *ways: tuple[Halfspace, ...], outputs: int) -> Property:
    """Claim that no input of the box has an output in any of these ways."""
    return Property([Case(box, ways)], outputs)


def least(model: nn.Module, box: Box, coefficients: list[Any]) -> Fraction:
    """Return the exact minimum of a row over a box."""
    return Regions(Network(model, box.shape), box).least([Fraction(c) for c in coefficients])


def small(seed: int = 0) -> tuple[nn.Sequential, Box]:
    return mlp(2, 6, 6, 2, seed=seed), Box([-1, -1], [1, 1])


def identity(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """x, as a network with a ReLU."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).to(dtype)
    with torch.no_grad():
        for p, v in zip(model.parameters(), ([[1.0], [-1.0]], [0.0, 0.0], [[1.0, -1.0]], [0.0]), strict=True):
            p.copy_(torch.tensor(v))
    return model


def assert_counterexample(result: CheckResult, model: nn.Module, prop: Property) -> None:
    """Check a counterexample against everything that it claims."""
    found = result.counterexample
    assert result.verdict == "violated" and found is not None and not result.holds
    assert result.certificate is None
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    x = torch.from_numpy(found.input).to(dtype)
    assert found.input.dtype == found.output.dtype == np.float64
    assert torch.equal(x.double(), torch.from_numpy(found.input))  # numbers of the model's own precision
    exact, most = torch.tensor([float(v) for v in found.exact_input], dtype=torch.float64), torch.finfo(dtype).max
    assert torch.equal(x, exact.clamp(-most, most).to(dtype))  # the nearest ones
    shape = prop.cases[0].box.shape
    assert any(case.box.contains(found.exact_input) for case in prop.cases)
    network = Network(model, shape)
    assert violates(network, prop, found.exact_input)
    assert all(a <= v <= b for v, (a, b) in zip(network.at(found.exact_input), found.exact_output, strict=True))
    assert found.is_rounded == (tuple(map(Fraction, found.input.tolist())) != found.exact_input)
    with torch.no_grad():
        y = copy.deepcopy(model).eval()(x.reshape(1, *shape)).flatten().double()
    torch.testing.assert_close(torch.from_numpy(found.output), y, rtol=1e-6, atol=1e-6)
    ran = [Fraction(v) for v in found.output.tolist()]
    unsafe = (rows for case in prop.cases for rows in case.unsafe)
    assert any(all(r.contains(ran) for r in rows) for rows in unsafe) == ("network" in found.replayed)
    assert found.margin >= 0 and found.replayed[-1] in ("exact", "enclosure")
    assert f"inside the unsafe set; replayed by: {', '.join(found.replayed)}" in str(result)
    assert ("a run rounds it away" in str(result)) == ("network" not in found.replayed)
    assert ("to the exact input" in str(result)) == found.is_rounded


def assert_full_replay(result: CheckResult) -> None:
    """Check that the witness is a number of the network's own precision in the box, and that every run shows it."""
    found = result.counterexample
    assert found is not None and found.replayed[0] == "network" and not found.is_rounded


# Verdicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_verdicts_on_both_sides_of_the_exact_minimum(seed: int, dtype: torch.dtype) -> None:
    model, box = small(seed)
    model = model.to(dtype)
    edge = least(model, box, [1, -1])
    holds = never(box, (row([1, -1], edge - Fraction(1, 1000)),), outputs=2)
    result = check(model, holds)
    assert result.verdict == "holds" and result.holds and result.counterexample is None and result.reason == ""
    assert (result.proved, result.worst_bound) == (1.0, None)
    assert result.boxes >= 1 and result.wall_seconds > 0 and result.cpu_seconds > 0
    violated = never(box, (row([1, -1], edge + Fraction(1, 1000)),), outputs=2)
    found = check(model, violated)
    assert_counterexample(found, model, violated)
    assert_full_replay(found)


@pytest.mark.parametrize("distance", [1e-4, 1e-7, 1e-12, 0.0])
def test_narrow_properties_never_get_the_wrong_verdict(distance: float) -> None:
    model, box = small(2)
    edge = least(model, box, [1, 1])
    for sign, wrong in ((-1, "violated"), (1, "holds")):
        bound = edge + sign * Fraction(distance)
        for strict in (False, True):
            truth_is_tie = distance == 0
            given = check(model, never(box, (row([1, 1], bound, strict),), outputs=2), timeout=0.15).verdict
            if truth_is_tie:
                assert given != ("violated" if strict else "holds")
            else:
                assert given != wrong


@pytest.mark.parametrize("criterion", ["argmax", "linear", "near", "any", "all"])
def test_criteria(criterion: str) -> None:
    model, box = small(1)
    box = Box.around([0.3, -0.2], 0.05)
    with torch.no_grad():
        y = model(torch.tensor([[0.3, -0.2]]))
    label = y.argmax(1)
    wide = nnrepair.Near(y, 1.0)
    made = {
        "argmax": nnrepair.Argmax(label),
        "linear": nnrepair.Linear(torch.eye(2)[None], y - 1),
        "near": wide,
        "any": nnrepair.Argmax(1 - label) | wide,
        "all": nnrepair.Argmax(label) & wide,
    }[criterion]
    assert check(model, Property.on(box, made, outputs=2)).verdict == "holds"
    wrong = Property.on(box, nnrepair.Argmax(1 - label), outputs=2)
    assert_counterexample(check(model, wrong), model, wrong)


def test_nothing_unsafe_holds() -> None:
    model, box = small()
    free = Property.on(box, nnrepair.Near(torch.zeros(1, 2), torch.full((1, 2), math.inf)))
    assert free.cases[0].unsafe == ()
    result = check(model, free)
    assert (result.verdict, result.proved, result.boxes) == ("holds", 1.0, 0)
    assert result.certificate is None and result.reason.startswith("no certificate: ")
    assert check(model, free, certificate=False).reason == ""
    edge = least(model, box, [1, 1])
    other = Case(Box([-0.5, -0.5], [1, 1]), ((row([1, 1], edge - 1),),))
    assert check(model, Property([*free.cases, other], 2)).verdict == "holds"
    other = Case(Box([-0.5, -0.5], [1, 1]), ((row([1, 1], 1000),),))
    assert check(model, Property([*free.cases, other], 2)).verdict == "violated"


def test_everything_unsafe_is_violated() -> None:
    model, box = small()
    for ways in (((),), ((), (row([1, 0], -1000),))):
        prop = never(box, *ways, outputs=2)
        assert_counterexample(check(model, prop), model, prop)


def test_several_boxes_with_their_own_conditions() -> None:
    model = identity()
    parts = [Case(Box([0.5], [1]), ((row([1], 0.4),),)), Case(Box([-1], [-0.5]), ((row([-1], 0.4),),))]
    assert check(model, Property(parts, 1)).verdict == "holds"
    parts.append(Case(Box([-0.2], [0.2]), ((row([1], 0.5), row([-1], -0.1)),)))
    prop = Property(parts, 1)
    result = check(model, prop)
    assert_counterexample(result, model, prop)
    assert result.counterexample is not None and 0.1 <= result.counterexample.input[0] <= 0.2


def test_images_in_shaped_boxes() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    ).train()
    center = randn(1, 3, 3)
    box = Box.around(center, 0.02)
    with torch.no_grad():
        label = int(copy.deepcopy(model).eval()(center[None]).argmax())
    result = check(model, Property.on(box, nnrepair.Argmax([label]), outputs=2))
    assert result.verdict == "holds" and model.training
    with pytest.raises(InvalidInput, match=r"one input of shape \(1, 9\)"):
        check(model, Property.on(Box.around(center.flatten(), 0.02), nnrepair.Argmax([label]), outputs=2))


@pytest.mark.parametrize("split", ["inputs", "relus"])
def test_layers_without_relus(split: Any) -> None:
    model = nn.Linear(2, 1)
    box = Box([-1, -1], [1, 1])
    edge = least(model, box, [1])
    assert check(model, never(box, (row([1], edge + Fraction(1, 1000)),), outputs=1)).verdict == "violated"
    if split == "relus":
        options = Options(split=split)
        assert check(model, never(box, (row([1], edge - 1),), outputs=1), options=options).verdict == "holds"


def test_scalar_boxes() -> None:
    assert check(identity(), never(Box(0.0, 1.0), (row([1], -0.1),), outputs=1)).verdict == "holds"


# Boxes and floats ----------------------------------------------------------------------------------------------------


TENTH = Fraction(1, 10)
NEAR = Fraction(1, 10**12)


def test_boxes_without_a_float32_number() -> None:
    """Between 0.1 and 0.1 + 1e-12 there is no float32 number, but there are real ones."""
    thin = Box([TENTH], [TENTH + NEAR])
    assert check(identity(), never(thin, (row([1], 0.09),), outputs=1)).verdict == "holds"
    prop = never(thin, (row([1], 1),), outputs=1)
    result = check(identity(), prop)
    assert_counterexample(result, identity(), prop)
    assert result.counterexample is not None and result.counterexample.is_rounded
    assert result.counterexample.replayed == ("network", "exact")  # the nearest float32 number shows it too
    double = check(identity(torch.float64), prop)
    assert_counterexample(double, identity(torch.float64), prop)
    assert_full_replay(double)


def test_inputs_fixed_to_decimals() -> None:
    """y = x0 + x1 with x0 fixed to 0.1, which is no float of any size; every x1 >= 0.4 is a counterexample."""
    for dtype in (torch.float32, torch.float64):
        model = nn.Linear(2, 1).to(dtype)
        with torch.no_grad():
            model.weight.fill_(1.0)
            model.bias.zero_()
        fixed = never(Box([TENTH, 0], [TENTH, 1]), (row([-1], Fraction(-1, 2)),), outputs=1)
        result = check(model, fixed)
        assert_counterexample(result, model, fixed)
        found = result.counterexample
        assert found is not None and found.exact_input[0] == TENTH and found.exact_input[1] >= Fraction(2, 5)
        assert Fraction(float(found.input[1])) == found.exact_input[1]  # other inputs are numbers of the network's own
        assert found.replayed == ("network", "exact")
        assert check(model, never(Box([TENTH, 0], [TENTH, 1]), (row([-1], -1.2),), outputs=1)).verdict == "holds"


def test_violations_that_no_float_shows() -> None:
    """The only unsafe inputs lie strictly between neighbouring float32 numbers."""
    a, b = 1.0, float(np.nextafter(np.float32(1), np.float32(2)))
    quarter = (Fraction(b) - 1) / 4
    between = never(Box([a], [b]), (row([-1], -(1 + quarter)), row([1], 1 + 3 * quarter)), outputs=1)
    for options in (None, Options(split="relus")):
        result = check(identity(), between, options=options)
        assert_counterexample(result, identity(), between)
        assert result.counterexample is not None and result.counterexample.replayed == ("exact",)


def test_witnesses_that_every_run_shows_are_preferred() -> None:
    """The deepest points are ones that no float32 number comes near, but there are others."""
    step = np.float32(2) ** -23
    thin = Box([1 + Fraction(float(step)) / 3, 0], [1 + Fraction(float(step)) / 3, 1])
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float(2**23), -2.0]]))
        model.bias.fill_(-float(2**23))  # 1/3 - 2 x1 in truth, -2 x1 in float32
    prop = never(thin, (row([1], 0),), outputs=1)
    result = check(model, prop)
    assert_counterexample(result, model, prop)
    assert result.counterexample is not None and result.counterexample.replayed == ("network", "exact")


def test_single_points() -> None:
    model = identity()
    for x in (0.5, 0.0, -3.0):
        assert check(model, never(Box([x], [x]), (row([1], x - 1e-6),), outputs=1)).verdict == "holds"
        prop = never(Box([x], [x]), (row([1], x),), outputs=1)
        assert_counterexample(check(model, prop), model, prop)
        strict = check(model, never(Box([x], [x]), (row([1], x, True),), outputs=1), timeout=1)
        assert strict.verdict in ("holds", "unknown")
    third = Fraction(1, 3)
    prop = never(Box([third], [third]), (row([1], third),), outputs=1)  # the output is exactly on the border
    result = check(model, prop)
    assert_counterexample(result, model, prop)
    assert result.counterexample is not None and result.counterexample.exact_input == (third,)
    assert result.counterexample.exact_output == ((third, third),) and result.counterexample.margin == 0
    strict = check(model, never(Box([third], [third]), (row([1], third, True),), outputs=1))
    assert strict.verdict == "unknown" and "cannot be split" in strict.reason


def test_boxes_outside_the_range_of_float32() -> None:
    far = never(Box([1e300], [2e300]), (row([1], 3e300),), outputs=1)
    result = check(identity(), far)
    assert_counterexample(result, identity(), far)
    assert result.counterexample is not None and np.isfinite(result.counterexample.input).all()
    huge = never(Box([1e300], [2e300]), (row([1], 1e299),), outputs=1)  # true, but nothing that large is proved
    assert check(identity(), huge, timeout=2).verdict == "unknown"
    wide = never(Box([-1e300], [1e300]), (row([1], 0),), outputs=1)
    assert check(identity(), wide, timeout=1).verdict in ("violated", "unknown")


def test_ties() -> None:
    """y0 - y1 for two equal outputs is 0: unsafe if closed, safe if strict, and no sampling can tell."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.3], [0.3]]))
        model[2].bias.fill_(0.7)
    closed = never(Box([-1], [1]), (row([1, -1], 0),), outputs=2)
    assert_counterexample(check(model, closed), model, closed)
    strict = check(model, never(Box([-1], [1]), (row([1, -1], 0, True),), outputs=2), timeout=0.3)
    assert strict.verdict in ("holds", "unknown") and strict.counterexample is None


def test_verdicts_are_about_the_real_valued_function() -> None:
    """The float32 network says 2^26 + 1 - 2^26 = 0, the real-valued function 1, and that is what counts."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        for p, v in zip(model.parameters(), ([[0.0], [0.0]], [2.0**26, 1.0], [[1.0, 1.0]], [-(2.0**26)]), strict=True):
            p.copy_(torch.tensor(v))
        assert model(torch.zeros(1, 1)).item() != 1.0
    prop = never(Box([0], [1]), (row([1], 0.5),), outputs=1)
    assert check(model, prop).verdict == "holds"
    violated = never(Box([0], [1]), (row([-1], -0.5),), outputs=1)
    result = check(model, violated)
    assert_counterexample(result, model, violated)
    assert result.counterexample is not None and result.counterexample.replayed == ("exact",)
    assert result.counterexample.margin == 0.5 and "the unsafe output [1]; a run rounds it away" in str(result)


def test_what_every_float_computes_may_still_be_no_violation() -> None:
    """2^60 + 1 - 2^60 is 0 in float32 and float64 and 1 in truth; only exact arithmetic refuses this point."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        for p, v in zip(model.parameters(), ([[0.0], [0.0]], [2.0**60, 1.0], [[1.0, 1.0]], [-(2.0**60)]), strict=True):
            p.copy_(torch.tensor(v))
    result = check(model, never(Box([0], [1]), (row([1], 0.5),), outputs=1), timeout=0.3)
    assert result.verdict == "unknown" and "failed replay" in result.reason


# Limits --------------------------------------------------------------------------------------------------------------


def test_time_limit() -> None:
    model = mlp(4, 30, 30, 30, 2)
    box = Box([-1] * 4, [1] * 4)
    x = 2 * torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        edge = float((model(x) @ torch.tensor([1.0, -1.0])).min())
    prop = never(box, (row([1, -1], edge - 0.05),), outputs=2)
    for limit in (1e-9, 0.3):
        begun = time.monotonic()
        result = check(model, prop, timeout=limit)
        assert time.monotonic() - begun < 3
        if result.verdict == "unknown":
            assert 0 <= result.proved < 1 and f"the time limit of {limit:g} s was reached" in result.reason
            assert result.certificate is None and result.worst_bound is not None and result.worst_bound <= 0
            assert "% of the volume" in str(result) and result.reason in str(result)
        assert result.verdict != "violated"
    assert check(model, prop, timeout=1e-9).verdict == "unknown"


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_wrong_time_limits(timeout: float) -> None:
    model, box = small()
    with pytest.raises(InvalidInput, match="timeout must be a positive number"):
        check(model, never(box, (row([1, 0], 0),), outputs=2), timeout=timeout)


def test_the_same_seed_gives_the_same_result() -> None:
    model, box = small(3)
    prop = never(box, (row([1, -1], least(model, box, [1, -1]) + Fraction(1, 100)),), outputs=2)
    first, second = check(model, prop, seed=5), check(model, prop, seed=5)
    assert first.counterexample is not None and second.counterexample is not None
    assert np.array_equal(first.counterexample.input, second.counterexample.input)
    holds = never(box, (row([1, -1], least(model, box, [1, -1]) - Fraction(1, 100)),), outputs=2)
    one, two = check(model, holds, seed=1), check(model, holds, seed=2)
    assert one.certificate is not None and two.certificate is not None
    assert np.array_equal(one.certificate.cut, two.certificate.cut) and one.boxes == two.boxes


def test_nothing_of_the_user_is_touched(capfd: pytest.CaptureFixture[str]) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2)))
    model[0].weight.requires_grad_(False)
    model.train()
    model[3].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    box = Box([-1, -1], [1, 1])
    state, threads, numpy_state = torch.get_rng_state(), torch.get_num_threads(), np.random.get_state()[1].copy()
    torch.set_num_threads(2)
    try:
        for bound in (-100, 100):
            for split in ("inputs", "relus"):
                check(model, never(box, (row([1, -1], bound),), outputs=2), timeout=1, options=Options(split=split))
        with pytest.raises(InvalidInput):
            check(model, never(box, (row([1], 0),), outputs=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numpy_state)
    assert [m.training for m in model.modules()] == modes and torch.is_grad_enabled()
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert capfd.readouterr() == ("", "")


# Certificates --------------------------------------------------------------------------------------------------------


def test_certificates(tmp_path: Path) -> None:
    model, box = small(4)
    prop = never(box, (row([1, -1], least(model, box, [1, -1]) - Fraction(1, 100)),), outputs=2)
    result = check(model, prop)
    made = result.certificate
    assert made is not None and made.trees == 1 and made.network_sha256 is None and made.leaves >= 1
    with pytest.raises(InvalidInput, match="for_network"):
        made.save(tmp_path / "proof.npz")
    (tmp_path / "model.onnx").write_bytes(b"network")
    bound = made.for_network(tmp_path / "model.onnx")
    loaded = PropertyCertificate.load(bound.save(tmp_path / "proof.npz"))
    assert loaded == bound and np.array_equal(loaded.dim, bound.dim) and np.array_equal(loaded.cut, bound.cut)
    assert check(model, prop, certificate=False).certificate is None
    data = (tmp_path / "proof.npz").read_bytes()
    for bad in (data[:100], b"", b"PK", data[:-30]):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(InvalidInput, match=r"bad\.npz is not a property certificate"):
            PropertyCertificate.load(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError):
        PropertyCertificate.load(tmp_path / "none.npz")


def test_proofs_by_relus_have_no_certificate() -> None:
    model, box = small(6)
    edge, options = least(model, box, [1, -1]), Options(split="relus")
    far = check(model, never(box, (row([1, -1], edge - 10),), outputs=2), options=options)
    assert far.verdict == "holds" and far.certificate is not None and far.certificate.leaves == 1  # nothing was split
    reasons = []
    for seed in (0, 2, 4):
        model, box = small(seed)
        prop = never(box, (row([1, -1], least(model, box, [1, -1]) - Fraction(1, 50)),), outputs=2)
        result = check(model, prop, timeout=5, options=options)
        assert result.verdict != "violated"
        if result.verdict == "holds" and result.certificate is None:
            reasons.append(result.reason)
    assert reasons and all(reason.startswith("no certificate: the proof splits ReLUs") for reason in reasons)


# What is refused -----------------------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit() -> None:
    model, box = small()
    with pytest.raises(InvalidInput, match="about 2 inputs and 3 outputs, but the network has 2 and 2"):
        check(model, never(box, (row([1, 0, 0], 0),), outputs=3))
    with pytest.raises(InvalidInput, match=r"one input of shape \(1, 3\)"):
        check(model, never(Box([0] * 3, [1] * 3), (row([1, 0], 0),), outputs=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    model, box = small()
    model[2].to(dtype)  # one layer is enough
    with pytest.raises(InvalidInput, match=f"{dtype} parameters; the checker reads float32 and float64"):
        check(model, never(box, (row([1, 0], 0),), outputs=2))


def test_integer_weights_are_refused() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    with pytest.raises(InvalidInput, match="torch.int32 parameters"):
        check(Whole(), never(Box([0, 0], [1, 1]), (row([1, 0], 0),), outputs=2))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NO_CUDA), "banana"])
def test_devices_that_are_not_there(device: str) -> None:
    model, box = small()
    with pytest.raises(InvalidInput, match=f"device '{device}' cannot be used .*; device=None is the CPU"):
        check(model, never(box, (row([1, 0], 0),), outputs=2), device=device)
    assert check(model, never(box, (row([1, 0], 1000),), outputs=2), device="cpu").verdict == "violated"


def test_models_that_cannot_be_read() -> None:
    box = Box([0, 0], [1, 1])
    prop = never(box, (row([1, 0], 0),), outputs=2)
    with pytest.raises(UnsupportedModel, match=r"(?s)Softmin '1'.*Softmin '3'"):
        check(nn.Sequential(nn.Linear(2, 2), nn.Softmin(-1), nn.Linear(2, 2), nn.Softmin(-1)), prop)
    broken = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    with pytest.raises(InvalidInput, match=r"NaN or infinity in '0.weight'"):
        check(broken, prop)


@pytest.mark.parametrize("hook", [lambda *a: None, lambda module, given, output: output + 1])
def test_hooks_are_refused_whatever_they_do(hook: Any) -> None:
    """A hook may change outputs, on some inputs only; torch.fx does not record it."""
    model, box = small()
    prop = never(box, (row([1, 0], -1000),), outputs=2)
    assert check(model, prop).verdict == "holds"
    model[0].register_forward_hook(hook)
    with pytest.raises(UnsupportedModel, match="forward hooks"):
        check(model, prop)


@pytest.mark.parametrize("coefficient", ["1e-300", "1e-330"])
def test_coefficients_that_underflow_prove_nothing(coefficient: str) -> None:
    """y = x on [-2, -1] is unsafe everywhere: y <= -1, written with numbers that float64 rounds to zero or nearly."""
    tiny = Fraction(coefficient)
    prop = never(Box([-2.0], [-1.0]), (row([tiny], -tiny),), outputs=1)
    result = check(identity(), prop, timeout=2)
    assert result.verdict == "violated" and result.counterexample is not None


def test_a_model_that_overwrites_its_input_is_replayed_on_the_point_itself() -> None:
    model = nn.Sequential(nn.Hardtanh(-1, 1, inplace=True), nn.Linear(1, 1))
    with torch.no_grad():
        model[1].weight.fill_(1.0)
        model[1].bias.fill_(0.0)
    box = Box([3.0], [4.0])
    result = check(model, never(box, (row([1], 1),), outputs=1), timeout=2)
    assert result.verdict == "violated" and box.contains(result.counterexample.input)


def test_no_certificate_that_the_independent_checker_could_not_read() -> None:
    box = Box(np.zeros((1, 3, 3)), np.ones((1, 3, 3)))
    for unread, reason in ((nn.Sigmoid(), "does not know Sigmoid"), (nn.AvgPool2d(3), "does not know a map")):
        model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), unread, nn.Flatten(), nn.LazyLinear(1)).eval()
        model(torch.zeros(1, 1, 3, 3))
        result = check(model, never(box, (row([1], -1000),), outputs=1), timeout=5)
        assert result.verdict == "holds" and result.certificate is None and reason in result.reason


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    model, box = small()
    prop = never(box, (row([1, 0], 0),), outputs=2)
    with pytest.raises(InvalidInput):
        check(model, tmp_path / "none.vnnlib")
    (tmp_path / "bad.vnnlib").write_text("(declare-const X_0 Real")
    with pytest.raises(InvalidInput):
        check(model, tmp_path / "bad.vnnlib")
    pytest.importorskip("onnx")
    with pytest.raises(InvalidInput):
        check(tmp_path / "none.onnx", prop)
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x08 no network")
    with pytest.raises(InvalidInput):
        check(tmp_path / "bad.onnx", prop)


# Files ---------------------------------------------------------------------------------------------------------------


def write_onnx(path: Path, model: nn.Sequential, external: str | None = None) -> Path:
    """Write a chain of linear layers as Gemm and Relu nodes, its first weight beside it if `external` names a file."""
    onnx = pytest.importorskip("onnx")
    nodes, weights, value = [], [], "x"
    for k, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            for name, tensor in (("w", layer.weight), ("b", layer.bias)):
                weights.append(onnx.numpy_helper.from_array(tensor.detach().numpy(), f"{name}{k}"))
            nodes.append(onnx.helper.make_node("Gemm", [value, f"w{k}", f"b{k}"], [f"v{k}"], transB=1))
        else:
            nodes.append(onnx.helper.make_node("Relu", [value], [f"v{k}"]))
        value = f"v{k}"
    if external is not None:
        weights[0].ClearField("raw_data")
        weights[0].data_location = onnx.TensorProto.EXTERNAL
        weights[0].external_data.add(key="location", value=external)
    real = onnx.TensorProto.FLOAT
    ends = [[onnx.helper.make_tensor_value_info(n, real, ["n", s])] for n, s in (("x", 2), (value, 2))]
    graph = onnx.helper.make_graph(nodes, "chain", *ends, weights)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return path


def test_files_give_what_objects_give(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, box = small(4)
    edge = least(model, box, [1, -1])
    network = write_onnx(tmp_path / "model.onnx", model)
    for gap, verdict in ((-1, "holds"), (1, "violated")):
        prop = never(box, (row([1, -1], edge + Fraction(gap, 100)),), outputs=2)
        (tmp_path / "property.vnnlib").write_text(vnnlib.dumps(prop))
        from_files = check(network, tmp_path / "property.vnnlib")
        from_objects = check(model, prop)
        assert from_files.verdict == from_objects.verdict == verdict
        if verdict == "violated":
            assert_counterexample(from_files, model, prop)
            assert from_files.counterexample is not None
            assert from_files.counterexample.replayed == ("network", "onnxruntime", "exact")
        else:
            assert from_files.certificate is not None and from_objects.certificate is not None
            assert from_objects.certificate.for_network(network) == from_files.certificate
            saved = from_files.certificate.save(tmp_path / "proof.npz")
            assert PropertyCertificate.load(saved) == from_files.certificate


def test_errors_of_the_onnx_reader_come_through(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, box = small(4)
    prop = never(box, (row([1, -1], 0),), outputs=2)
    good = write_onnx(tmp_path / "model.onnx", model)
    data = good.read_bytes()
    for cut in (10, len(data) // 2, len(data) - 3):
        (tmp_path / "cut.onnx").write_bytes(data[:cut])
        with pytest.raises(InvalidInput, match=r"cut\.onnx"):
            check(tmp_path / "cut.onnx", prop)
    for place in ("../weights.bin", "missing.bin"):
        with pytest.raises(InvalidInput, match=r"away\.onnx"):
            check(write_onnx(tmp_path / "away.onnx", model, place), prop)
    (tmp_path / "weights.bin").write_bytes(model[0].weight.detach().numpy().tobytes())
    beside = check(write_onnx(tmp_path / "beside.onnx", model, "weights.bin"), prop)
    assert beside.verdict == check(model, prop).verdict


# ACAS Xu -------------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(("net", "number", "verdict"), [("1_1", 3, "holds"), ("2_1", 2, "violated")])
def test_acas(data_dir: DataDir, net: str, number: int, verdict: str) -> None:
    pytest.importorskip("onnxruntime")
    files = f"acasxu/onnx/ACASXU_run2a_{net}_batch_2000.onnx", f"acasxu/vnnlib/prop_{number}.vnnlib"
    network, prop = (data_dir(*files) / file for file in files)
    result = check(network, prop, timeout=60)
    assert result.verdict == verdict
    if result.counterexample is not None:
        import nnrepair.onnx as nonnx

        claimed, found = vnnlib.load(prop), result.counterexample
        assert claimed.cases[0].box.contains(found.input)
        assert found.replayed == ("network", "onnxruntime", "exact")
        model = nn.Sequential(*(m for m in nonnx.load(network).modules() if isinstance(m, nn.Linear)))
        chain = nn.Sequential(*[part for m in model for part in (m, nn.ReLU())][:-1])
        assert violates(Network(chain, (5,)), claimed, [Fraction(v) for v in found.input.tolist()])
    else:
        assert result.certificate is not None and result.certificate.trees == 1


@pytest.mark.data
@pytest.mark.parametrize("net", ["4_2"])
def test_acas_round_trip(data_dir: DataDir, net: str, tmp_path: Path) -> None:
    """torch, onnxruntime and the original file agree after load -> save -> load."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import nnrepair.onnx as nonnx

    file = f"acasxu/onnx/ACASXU_run2a_{net}_batch_2000.onnx"
    original, again = data_dir(file) / file, tmp_path / "again.onnx"
    model = nonnx.load(original)
    nonnx.save(model, torch.zeros(1, 1, 1, 5), again)
    x = torch.rand(40, 1, 1, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    outputs = []
    for path in (original, again):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        outputs += [torch.cat([torch.from_numpy(session.run(None, {name: part.numpy()})[0]) for part in x.split(1)])]
        with torch.no_grad():
            outputs.append(nonnx.load(path)(x))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), nonnx.load(again).parameters(), strict=True))


def test_outputs_beyond_float64_are_shown() -> None:
    """Exact arithmetic knows no largest number; what is printed does."""
    huge = Fraction(10) ** 400
    found = Counterexample(np.zeros(1), np.full(1, np.inf), math.inf, ("exact",), (Fraction(0),), ((huge, huge),))
    assert "has the unsafe output [inf]" in str(found)


def test_numbers_beyond_float64_are_no_other_function() -> None:
    """Infinities and NaN on the way say nothing about what was read; the verdict stays open."""
    model = seeded(lambda: mlp(3, 8, 8, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e35)
    result = check(model, Property.on(Box([-1e300] * 3, [1e300] * 3), nnrepair.Argmax([0]), outputs=2), timeout=5)
    assert result.verdict in ("unknown", "violated")


def test_what_is_no_seed_property_or_model_is_refused() -> None:
    model, box = small()
    prop = Property.on(box, nnrepair.Argmax([0]), outputs=2)
    for seed in ("x", None, True, 1.5, -1, 2**70):
        with pytest.raises(InvalidInput, match="seed must be a whole number from 0 to"):
            check(model, prop, seed=seed)  # type: ignore[arg-type]
    assert check(model, prop, seed=np.int64(3)).verdict == check(model, prop, seed=3).verdict  # type: ignore[arg-type]
    for wrong in (None, 5, [], box):
        with pytest.raises(InvalidInput, match="A property must be a Property or a VNN-LIB file, got"):
            check(model, wrong)  # type: ignore[arg-type]
    for wrong in (None, 5, np.zeros(2)):
        with pytest.raises(InvalidInput, match="model must be a torch.nn.Module or an ONNX file, got"):
            check(wrong, prop)  # type: ignore[arg-type]
