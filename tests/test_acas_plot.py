"""Encounter plots on networks whose advice is known."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nnrepair
from nnrepair.domains import acas
from nnrepair.domains.acas import plot as acas_plot
from nnrepair.domains.acas import slice as acas_slice
from nnrepair.errors import InvalidInput
from nnrepair.verify import Box, CheckResult, Counterexample, Property

matplotlib.use("Agg")

LOW, HIGH = (list(ends) for ends in zip(*acas.DOMAIN, strict=True))


class Advises(nn.Module):
    """Right of the own flight path it advises one thing, left of it another."""

    def __init__(self, right: int, left: int) -> None:
        super().__init__()
        self.right, self.left = right, left

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.ones(len(x), 5)
        scores[:, self.right] = x[:, 1].sign()
        scores[:, self.left] = -x[:, 1].sign()
        return scores


def linear(weight: Any, bias: Any) -> nn.Linear:
    made = nn.Linear(5, 5)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(weight, dtype=torch.float32))
        made.bias.copy_(torch.tensor(bias, dtype=torch.float32))
    return made


def never_clear(low: Any = LOW, high: Any = HIGH) -> Property:
    """Clear of conflict must never have the lowest score."""
    return Property.on(Box(low, high), nnrepair.Linear([[1.0, -1.0, 0, 0, 0]], [0.0], points=1))


def advice(ax: Any) -> np.ndarray:
    """Return what was drawn, pixel by pixel from below: advisories, -1 outside the domain, 5 unchanged."""
    return np.asarray(ax.images[0].get_array())


def test_left_is_above_the_flight_path() -> None:
    figure = acas_plot.encounter(Advises(2, 1), Advises(2, 3), psi=0.0, v_own=500, v_int=600, pixels=60)
    before, after, changed = (advice(ax) for ax in figure.axes)
    for drawn, right, left in ((before, 2, 1), (after, 2, 3), (changed, 5, 3)):
        assert set(drawn[:30].flat) == {-1, right} and set(drawn[30:].flat) == {-1, left}
    assert before[0, 0] == before[-1, -1] == -1  # farther than 60 760 ft
    (share,) = re.findall(r"changed: (\S+) %", figure.axes[2].get_title())
    assert float(share) == pytest.approx(50, abs=0.1)


def test_pixels_are_what_the_networks_return_at_their_middles() -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 5)) for _ in range(2)]
    state = acas.normalised(9000, 1.0, -2.0, 700, 300)
    figure = acas_plot.encounter(*networks, through=state, around=3000, pixels=20)
    below = figure.axes[3:]
    for ax, network in zip(below, networks, strict=False):
        drawn = advice(ax)
        for row, column in ((0, 0), (3, 17), (19, 8)):
            x = 9000 * math.cos(1.0) + 3000 * ((column + 0.5) / 10 - 1)
            y = 9000 * math.sin(1.0) + 3000 * ((row + 0.5) / 10 - 1)
            input = acas.normalised(math.hypot(x, y), math.atan2(y, x), -2.0, 700, 300)
            assert drawn[row, column] == int(network(input[None].float()).argmin())
    assert below[0].get_xlim() == pytest.approx([(9000 * math.cos(1.0) + d) / 1000 for d in (-3000, 3000)])


def test_the_title_speaks_of_feet_and_degrees() -> None:
    figure = acas_plot.encounter(
        Advises(1, 2), Advises(1, 2), psi=-math.pi / 2, v_own=1000, v_int=0, pixels=10, name="X"
    )
    words = " ".join(text.get_text() for text in figure.texts)
    assert "ACAS Xu X before and after the repair" in words
    assert "−90.0°" in words and "1,000 ft/s" in words and "speed 0 ft/s" in words
    assert figure.axes[2].get_title() == "what changed: 0 % of the pixels"
    assert len(figure.axes) == 3  # no state, no second row


def test_violations_are_told_and_their_slice_is_found() -> None:
    low, high = LOW.copy(), HIGH.copy()
    low[1], high[1] = 0.05, 0.2  # from ahead to the left
    low[3], high[3] = 0.2, 0.5
    claim = never_clear(low, high)
    clear = linear(np.zeros((5, 5)), [-1, 0, 0, 0, 0])
    weak = linear(np.zeros((5, 5)), [0, -1, 0, 0, 0])
    figure = acas_plot.encounter(clear, weak, property=claim, pixels=40)
    before, after, changed = (ax.get_title() for ax in figure.axes[:3])
    assert before == "before: 100 % of the region violates" and after == "after: no violating pixel"
    assert changed == "what changed: 100 % of the pixels"
    (speed,) = re.findall(r"own speed ([\d,]+) ft", " ".join(text.get_text() for text in figure.texts))
    assert float(speed.replace(",", "")) >= 0.2 * 1100 + 650 - 1
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:5] == list(acas.ADVISORIES) and labels[5:] == [
        "unchanged",
        "violates",
        "no longer violates",
        "region",
    ]


def test_a_rare_violation_comes_from_a_check() -> None:
    # clear of conflict wins only within 1e-4 of one corner of five inputs: random states do not find it
    spike = nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 5))
    with torch.no_grad():
        for parameter, value in zip(
            spike.parameters(), [[[1.0] * 5], [-2.6798], [[-1.0], [0], [0], [0], [0]], [2e-5, 0, 0, 0, 0]], strict=True
        ):
            parameter.copy_(torch.tensor(value))
    low = [h - 0.3 for h in HIGH]
    figure = acas_plot.encounter(spike, Advises(1, 2), property=never_clear(low), pixels=10)
    assert len(figure.axes) == 6


@pytest.mark.parametrize("wrap", [lambda x: x, list, lambda x: Counterexample(np.array(x), np.zeros(5), 0.0, ())])
def test_a_state_may_come_from_a_check(wrap: Any) -> None:
    state = acas.normalised(3000, 0.5, 1.0, 400, 500)
    figure = acas_plot.encounter(Advises(1, 2), Advises(1, 2), through=wrap(state.tolist()), pixels=10)
    words = " ".join(text.get_text() for text in figure.texts)
    assert "57.3°" in words and "400 ft/s" in words
    replaced = acas_plot.encounter(Advises(1, 2), Advises(1, 2), through=wrap(state.tolist()), v_own=800, pixels=10)
    assert "800 ft/s" in " ".join(text.get_text() for text in replaced.texts)


def test_a_column_shows_what_is_proved() -> None:
    before = linear([[0, 1.0, 0, 0, 0], [0, -1.0, 0, 0, 0]] + [[0.0] * 5] * 3, [0, 0, 1, 1, 1])  # split at theta = 0
    after = linear([[0, 1.0, 0, 0, 0], [0, -1.0, 0, 0, 0]] + [[0.0] * 5] * 3, [0, 0.4, 1, 1, 1])  # at -0.2 * 2 pi
    figure = acas_plot.encounter(before, after, psi=0.0, v_own=600.0, v_int=600.0, pixels=60, prove=20.0)
    (ax,) = figure.axes[3:]
    drawn, both = np.asarray(ax.images[0].get_array()), [advice(each) for each in figure.axes[:2]]
    inside = both[0] >= 0
    assert (drawn[~inside] == 0).all()
    assert (both[0] == both[1])[drawn >= 3].all()
    assert (both[0] != both[1])[drawn == 2].all()
    assert (drawn[inside] > 1).mean() > 0.95
    assert {2, 3} <= set(drawn[inside].tolist())
    assert "proved" in ax.get_title()


def test_networks_random_state_and_pyplot_stay_as_they_were(tmp_path: Path) -> None:
    from matplotlib import pyplot

    network, state = nn.Sequential(nn.Dropout(0.5), linear(np.eye(5), np.zeros(5))).train(), torch.get_rng_state()
    figure = acas_plot.encounter(network, network, property=never_clear(), pixels=10)
    assert network[0].training and torch.equal(state, torch.get_rng_state()) and pyplot.get_fignums() == []
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_region_is_a_piece_of_a_ring() -> None:
    low, high = (acas.normalised(rho, theta, 0, 600, 600).tolist() for rho, theta in ((2000, 0.25), (3000, 1.0)))
    (line,) = acas_slice.outline(never_clear(low, high).cases[0])
    distances, angles = np.hypot(*np.array(line).T), np.arctan2(*np.array(line).T[::-1])
    assert line[0] == line[-1]
    assert distances == pytest.approx(np.where(distances > 2500, 3000, 2000), abs=1e-6)
    assert (angles.min(), angles.max()) == pytest.approx((0.25, 1.0))
    rings = acas_slice.outline(never_clear([0.6, *LOW[1:]]).cases[0])
    assert [round(float(np.hypot(*ring[0]))) for ring in rings] == [55948, 60760]


def test_shares_speak_of_the_properties_that_are_broken() -> None:
    half = LOW.copy()
    half[1] = 0.0
    holds = Property.on(Box(LOW, HIGH), nnrepair.Linear([[1.0, 0, 0, 0, 0]], [-9.0], points=1))
    clear = linear(np.zeros((5, 5)), [-1, 0, 0, 0, 0])
    networks = acas_slice.Network.of(clear), acas_slice.Network.of(clear)
    claims = acas_slice.read_claims([never_clear(half), holds])
    at = acas_slice.Slice(0.0, 500.0, 500.0)
    maps = acas_slice.Maps.of(networks, at, claims, (-9000.0, 9000.0, -9000.0, 9000.0), 20)
    assert maps.words(0) == maps.words(1) == "100 % of the region violates"
    assert maps.region[10:].all() and not maps.region[:10].any() and not maps.changed.any()
    assert acas_slice.Maps.of(networks, at, claims[1:], maps.window, 20).words(0) == "no violating pixel"
    assert acas_slice.Maps.of(networks, at, [], maps.window, 20).words(0) == ""


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (1e-6, "under 0.01 %"), (0.01234, "1.23 %"), (1, "100 %")])
def test_percent(share: float, text: str) -> None:
    assert acas_slice.percent(share) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"psi": None}, "Give psi, v_own and v_int, or a state"),
        ({"psi": 4.0}, "psi must be from -3.14159 to 3.14159"),
        ({"v_own": 99}, "v_own must be from 100 to 1200"),
        ({"v_int": -1}, "v_int must be from 0 to 1200"),
        ({"v_int": float("nan")}, "v_int must be"),
        ({"through": [0.0] * 4}, "5 numbers"),
        ({"through": [[0.0] * 5]}, "one state"),
        ({"through": [0.0, 0, 0, 0, float("inf")]}, "finite"),
        ({"through": "there"}, "must be numbers"),
        ({"through": CheckResult("holds")}, "no counterexample"),
        ({"around": 0}, "around must be"),
        ({"around": 1e6}, "around must be"),
        ({"pixels": 1}, "pixels must be"),
        ({"pixels": 10.5}, "pixels must be"),
        ({"before": 5}, "Module or an ONNX file"),
        ({"before": nn.Linear(4, 5)}, "does not accept"),
        ({"after": nn.Linear(5, 4)}, "5 scores"),
        ({"after": linear(np.full((5, 5), np.nan), np.zeros(5))}, "NaN"),
        ({"property": 7}, "Property or a VNN-LIB file"),
        ({"property": Property.on(Box([0], [1]), nnrepair.Argmin([0]), outputs=5)}, "ACAS Xu has 5 and 5"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"before": Advises(1, 2), "after": Advises(1, 2), "psi": 0.0, "v_own": 500, "v_int": 500}
    given |= {"pixels": 10} | options
    with pytest.raises(InvalidInput, match=message):
        acas_plot.encounter(given.pop("before"), given.pop("after"), **given)


def test_a_property_that_holds_chooses_no_slice() -> None:
    weak = linear(np.zeros((5, 5)), [0, -1, 0, 0, 0])
    with pytest.raises(InvalidInput, match=r"breaks the property \(holds\)"):
        acas_plot.encounter(weak, weak, property=never_clear(), pixels=10)


@pytest.mark.usefixtures("no_matplotlib")
def test_missing_matplotlib_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nnrepair\[plot\]'"):
        acas_plot.encounter(Advises(1, 2), Advises(1, 2), psi=0.0, v_own=500, v_int=500, pixels=10)


@pytest.mark.data
def test_acas_xu(data_dir: Any) -> None:
    pytest.importorskip("onnx")
    data_dir("acasxu/onnx/ACASXU_run2a_2_9_batch_2000.onnx", "acasxu/vnnlib/prop_8.vnnlib")
    network = acas.network(2, 9)
    figure = acas_plot.encounter(network, network, property=acas.property_file(8), pixels=100)
    assert "$N_{2,9}$" in figure.texts[0].get_text() and r"\varphi_{8}" in figure.texts[0].get_text()
    assert "of the region violates" in figure.axes[0].get_title() and figure.axes[2].get_title().endswith(
        ": 0 % of the pixels"
    )
