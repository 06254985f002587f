"""The picture of a slice: what is drawn is what the network says there, and what does not fit is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp
from torch import nn

import nnrepair
from nnrepair import InvalidInput, plot
from nnrepair.plot.slice import _scores, _violated
from nnrepair.plot.style import PALETTE
from nnrepair.plot.view import View
from nnrepair.verify import Box, CheckResult, Counterexample, Property, check, vnnlib

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure

matplotlib.use("Agg")

UNIT = Box([0, 0, 0], [1, 2, 1])


def weighted(weight: Any, bias: Any) -> nn.Linear:
    made = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        made.weight.copy_(torch.tensor(weight, dtype=torch.float32))
        made.bias.copy_(torch.tensor(bias, dtype=torch.float32))
    return made


@pytest.fixture
def model() -> nn.Module:
    """Class 0 where input 0 > 0.5, class 1 where input 1 > 1.5 as well, else class 2; input 2 shifts the first."""
    return weighted([[1, 0, 1], [1, 10, 1], [0, 0, 0]], [-0.5, -15, 0])


@pytest.fixture
def axes() -> Any:
    return Figure(figsize=(4, 3)).add_subplot()


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def decisions(ax: Any) -> np.ndarray:
    """Return the class names that were drawn, cell by cell from below."""
    (image,) = ax.images
    shown = np.round(image.to_rgba(image.get_array())[..., :3], 3)
    names = np.full(shown.shape[:2], "", object)
    for patch, text in zip(ax.get_legend().get_patches(), texts(ax), strict=False):
        names[(shown == np.round(patch.get_facecolor()[:3], 3)).all(2)] = text
    return names


@pytest.mark.parametrize("dims", [(0, 1), (1, 0), (2, 1)])
@pytest.mark.parametrize("lowest", [False, True])
def test_every_cell_has_the_colour_of_its_decision(model: nn.Module, axes: Any, dims: Any, lowest: bool) -> None:
    plot.region(model, UNIT, dims, at=[0.7, 1.1, 0.2], resolution=21, ax=axes, lowest_wins=lowest)
    drawn = decisions(axes)
    low, high = UNIT.outer
    for row in range(21):
        for column in range(21):
            x = np.array([0.7, 1.1, 0.2])
            for dim, k in zip(dims, (column, row), strict=True):
                x[dim] = low[dim] + (high[dim] - low[dim]) * (k + 0.5) / 21
            y = model(torch.tensor(x, dtype=torch.float32)[None])[0]
            assert drawn[row, column] == f"class {int(y.argmin() if lowest else y.argmax())}"


def test_the_legend_names_what_is_there(model: nn.Module, axes: Any) -> None:
    plot.region(model, UNIT, resolution=10, ax=axes, classes=["a", "b", "c"], names=["p", "q", "r"])
    assert texts(axes) == ["a", "b"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("p", "q", "r = 0.5")
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 2))


def test_many_classes_share_the_last_colour(axes: Any) -> None:
    line = weighted([[2.0 * k, 0] for k in range(20)], [-float(k * k) for k in range(20)])
    plot.region(line, (torch.zeros(2), torch.tensor([19.0, 1])), resolution=200, ax=axes)
    assert len(texts(axes)) == len(PALETTE) + 1
    assert texts(axes)[-1] == f"{20 - len(PALETTE)} others"


def test_the_model_and_pyplot_stay_as_they_were(model: nn.Module, axes: Any) -> None:
    from matplotlib import pyplot

    network = nn.Sequential(model, nn.Dropout(0.5)).train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    settings = dict(matplotlib.rcParams)
    assert plot.region(network, UNIT, resolution=10, ax=axes) is axes
    assert pyplot.get_fignums() == [] and dict(matplotlib.rcParams) == settings
    assert network[1].training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_without_axes_a_figure_is_made(model: nn.Module, tmp_path: Path) -> None:
    ax = plot.region(model, (np.zeros(3), np.ones(3)), resolution=10)
    ax.figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


# Counterexamples


def offsets(ax: Any) -> list[tuple[str, list[list[float]]]]:
    return [(c.get_label(), c.get_offsets().tolist()) for c in ax.collections if isinstance(c, PathCollection)]


@pytest.mark.parametrize(
    "given",
    [
        Counterexample(np.array([0.25, 1, 0.75]), np.zeros(3), 0.0, ()),
        CheckResult("violated", Counterexample(np.array([0.25, 1, 0.75]), np.zeros(3), 0.0, ())),
        [CheckResult("violated", Counterexample(np.array([0.25, 1, 0.75]), np.zeros(3), 0.0, ()))],
        np.array([0.25, 1, 0.75]),
        torch.tensor([[0.25, 1, 0.75]]),
        [0.25, 1, 0.75],
    ],
)
def test_the_slice_goes_through_the_first_counterexample(model: nn.Module, axes: Any, given: Any) -> None:
    plot.region(model, UNIT, resolution=10, counterexamples=given, ax=axes)
    assert offsets(axes) == [("counterexample", [[0.25, 1.0]])]
    assert axes.get_title(loc="left") == "input 2 = 0.75"


def test_counterexamples_elsewhere_are_told_apart(model: nn.Module, axes: Any) -> None:
    plot.region(model, UNIT, resolution=10, counterexamples=[[0.25, 1, 0.75], [0.5, 0.5, 0]], ax=axes)
    assert offsets(axes) == [("counterexample", [[0.25, 1]]), ("counterexample outside the slice", [[0.5, 0.5]])]


@pytest.mark.parametrize("nothing", [(), None, CheckResult("holds"), np.zeros((0, 3)), [CheckResult("holds")]])
def test_no_counterexample_is_no_mark(model: nn.Module, axes: Any, nothing: Any) -> None:
    plot.region(model, UNIT, resolution=10, counterexamples=nothing, ax=axes)
    assert offsets(axes) == []


# Properties and proofs


def test_violations_are_hatched(model: nn.Module, axes: Any) -> None:
    prop = Property.on(Box([0, 0, 0], [1, 1, 1]), nnrepair.Argmax([0]), outputs=3)
    plot.region(model, UNIT, resolution=40, property=prop, at=[0, 0, 0.25], ax=axes)
    assert texts(axes)[-1] == "violated"
    view = View(UNIT, (0, 1), [0, 0, 0.25], np.zeros((0, 3)), 40)
    x, y = view.middles()
    found = _violated(prop, view, _scores(model, view, UNIT))
    assert np.array_equal(found, (x <= 0.25) & (y <= 1)[:, None])  # class 0 scores x - 1/4, class 2 zero


def test_a_property_that_holds_in_the_slice_is_not_hatched(model: nn.Module, axes: Any) -> None:
    prop = Property.on(Box([0.6, 0, 0], [1, 1, 1]), nnrepair.Argmax([0]), outputs=3)
    plot.region(model, UNIT, resolution=10, property=prop, ax=axes)
    assert "violated" not in texts(axes)


def rectangles(ax: Any) -> list[tuple[float, float, float, float]]:
    (drawn,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    found = []
    for path in drawn.get_paths():
        (x0, y0), (x1, y1) = path.vertices.min(0), path.vertices.max(0)
        found.append((x0, x1, y0, y1))
    return found


def test_the_boxes_of_a_proof_cover_the_slice_once(axes: Any) -> None:
    network, grid = mlp(2, 16, 16, 2), 8 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) - 4
    with torch.no_grad():
        least = float(network(grid)[:, 0].min())
    box = Box([-4, -4], [4, 4])
    prop = Property.on(box, nnrepair.Linear([[1.0, 0.0]], [least - 1e-2], points=1))
    result = check(network, prop)
    assert result.certificate is not None and result.certificate.leaves > 3
    plot.region(network, box, resolution=10, certificate=result.certificate, ax=axes)
    boxes = rectangles(axes)
    assert len(boxes) == result.certificate.leaves
    assert sum((x1 - x0) * (y1 - y0) for x0, x1, y0, y1 in boxes) == pytest.approx(64)
    for x, y in 8 * np.random.default_rng(0).random((50, 2)) - 4:
        assert sum(x0 <= x <= x1 and y0 <= y <= y1 for x0, x1, y0, y1 in boxes) == 1
    assert texts(axes)[-1] == f"proof ({len(boxes)} boxes here)"


def certificate(dim: list[int], cut: list[float], trees: int = 1) -> Any:
    return nnrepair.verify.PropertyCertificate(trees, np.array(dim, np.int16), np.array(cut), None, "", {})


def test_only_boxes_that_meet_the_slice_are_drawn(model: nn.Module, axes: Any) -> None:
    # input 2 is halved; below, input 0 at 1/4; above, input 1 at 1/2 and then at 3/2
    proof = certificate([2, 0, -1, -1, 1, -1, 1, -1, -1], [0.5, 0.25, 0.5, 1.5])
    plot.region(model, UNIT, resolution=10, certificate=proof, at=[0, 0, 0.25], ax=axes)
    assert rectangles(axes) == [(0, 0.25, 0, 2), (0.25, 1, 0, 2)]
    other = Figure().add_subplot()
    plot.region(model, UNIT, resolution=10, certificate=proof, at=[0, 0, 0.75], ax=other)
    assert rectangles(other) == [(0, 1, 0, 0.5), (0, 1, 0.5, 1.5), (0, 1, 1.5, 2)]


def test_each_tree_starts_from_its_own_region(model: nn.Module, axes: Any) -> None:
    regions = [Box([0, 0, 0], [0.5, 1, 1]), Box([0.5, 1, 0], [1, 2, 0.1]), Box([0.5, 0, 0.5], [1, 1, 1])]
    prop = Property.on(regions, nnrepair.Linear([[1.0, 0, 0]], [0.0], points=1))
    plot.region(model, UNIT, resolution=10, certificate=certificate([-1] * 3, [], 3), property=prop, ax=axes)
    assert rectangles(axes) == [(0, 0.5, 0, 1), (0.5, 1, 0, 1)]


@pytest.mark.parametrize(
    "proof",
    [
        certificate([0, -1], [0.5]),
        certificate([0, -1, -1, -1], [0.5]),
        certificate([0, -1, -1], []),
        certificate([9, -1, -1], [0.5]),
    ],
)
def test_a_damaged_proof_is_refused(model: nn.Module, axes: Any, proof: Any) -> None:
    with pytest.raises(InvalidInput, match="damaged"):
        plot.region(model, UNIT, resolution=10, certificate=proof, ax=axes)


def test_a_proof_of_something_else_is_refused(model: nn.Module, axes: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="2 trees, but there are 1"):
        plot.region(model, UNIT, certificate=certificate([-1, -1], [], 2), ax=axes)
    file = tmp_path / "p.vnnlib"
    file.write_text(vnnlib.dumps(Property.on(UNIT, nnrepair.Linear([[1.0, 0, 0]], [0.0], points=1))))
    with pytest.raises(InvalidInput, match="not about the property"):
        plot.region(model, UNIT, certificate=certificate([-1], []), property=file, ax=axes)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (0, 3)}, "two different inputs out of 0..2"),
        ({"dims": (1, 1)}, "two different inputs"),
        ({"dims": (-1, 0)}, "two different inputs"),
        ({"dims": (0, 1, 2)}, "two different inputs"),
        ({"dims": 0}, "two different inputs"),
        ({"dims": (0.5, 1)}, "two different inputs"),
        ({"resolution": 1}, "from 2 to"),
        ({"resolution": 1.5}, "from 2 to"),
        ({"resolution": True}, "from 2 to"),
        ({"at": [0, 0]}, "3 finite numbers"),
        ({"at": [0, 0, np.nan]}, "3 finite numbers"),
        ({"at": "here"}, "must be numbers"),
        ({"counterexamples": [0.5, 0.5]}, "3 finite numbers"),
        ({"counterexamples": [0.5, 0.5, np.inf]}, "3 finite numbers"),
        ({"counterexamples": "none"}, "must be numbers"),
        ({"names": ["a", "b"]}, "list of 3 names"),
        ({"classes": ["a"]}, "list of 3 names"),
        ({"classes": "abc"}, "list of 3 names"),
        ({"box": Box([0, 0], [1, 1])}, "does not accept inputs of shape"),
        ({"box": Box([0, 0, 0], [1, 0, 1])}, "Input 1 has one value"),
        ({"box": ([0, 0, float("nan")], [1, 1, 1])}, "finite"),
        ({"box": 5}, "pair"),
        ({"model": 5}, "torch.nn.Module or an ONNX file"),
        ({"model": nn.Linear(3, 1)}, "at least two outputs"),
        ({"model": weighted([[float("nan"), 0, 0], [0, 0, 0]], [0, 0])}, "NaN"),
        ({"property": Property.on(Box([0], [1]), nnrepair.Argmax([0]), outputs=3)}, "about 1 inputs"),
        ({"property": Property.on(UNIT, nnrepair.Argmax([0]), outputs=5)}, "about 5 outputs"),
    ],
)
def test_bad_input_is_refused(model: nn.Module, axes: Any, options: dict[str, Any], message: str) -> None:
    given = {"model": model, "box": UNIT, "ax": axes, "resolution": 10} | options
    with pytest.raises(InvalidInput, match=message):
        plot.region(**given)
    assert not axes.has_data()


@pytest.mark.usefixtures("no_matplotlib")
def test_missing_matplotlib_is_named(model: nn.Module) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nnrepair\[plot\]'"):
        plot.region(model, UNIT, resolution=10)


# Images and files


def test_a_network_of_images(axes: Any) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    middle = torch.full((1, 4, 4), 0.5)
    plot.region(network, Box.around(middle, 0.25), (0, 15), resolution=10, ax=axes)
    assert axes.get_title(loc="left") == "the other 14 inputs are fixed"


@pytest.mark.data
def test_acas_xu(axes: Any, data_dir: Any) -> None:
    pytest.importorskip("onnx")
    network, prop = "acasxu/onnx/ACASXU_run2a_1_1_batch_2000.onnx", "acasxu/vnnlib/prop_4.vnnlib"
    folder = data_dir(network, prop)
    result = check(folder / network, folder / prop)
    box = vnnlib.load(folder / prop).cases[0].box
    plot.region(
        folder / network, box, resolution=20, certificate=result.certificate, property=folder / prop, lowest_wins=True,
        ax=axes,
    )  # fmt: skip
    low, high = box.outer
    area = sum((x1 - x0) * (y1 - y0) for x0, x1, y0, y1 in rectangles(axes))
    assert area == pytest.approx((high[0] - low[0]) * (high[1] - low[1]))


# Sequences -----------------------------------------------------------------------------------------------------------


def histories(test_set: Any = None) -> dict[str, nnrepair.History]:
    model, x = mlp(6, 16, 3, seed=3), torch.randn(4, 6, generator=torch.Generator().manual_seed(8))
    labels = (model(x).argmax(1) + 1 + torch.arange(4) % 2) % 3

    def run(rehearsal: bool) -> nnrepair.History:
        method = nnrepair.methods.MinimalNorm("2", norm="l2")
        return nnrepair.fix(
            model, (x, labels), method=method, mode="successive", rehearsal=rehearsal, test_set=test_set, throw=False
        )

    return {"with": run(True), "without": run(False)}


def test_sequence_draws_what_the_histories_say() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    given = histories((x, mlp(6, 16, 3, seed=3)(x).argmax(1)))
    figure = plot.sequence(given)
    left, right = figure.axes
    for line, history in zip(left.lines, given.values(), strict=True):
        assert list(line.get_ydata()) == [100 * step.retained for step in history.steps]
    drawn = right.lines[0].get_ydata()
    assert list(drawn) == [step.side_effects["test set"].drawdown_points for step in given["with"].steps]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["with", "without"]


def test_sequence_draws_changed_decisions_where_there_are_no_labels() -> None:
    given = histories({"others": torch.randn(50, 6, generator=torch.Generator().manual_seed(2))})["with"]
    right = plot.sequence(given).axes[1]
    assert list(right.lines[0].get_ydata()) == [
        100 * (1 - step.side_effects["others"].locality) for step in given.steps
    ]
    assert "changed" in right.get_ylabel()


def test_sequence_without_points_is_one_picture() -> None:
    assert len(plot.sequence(histories()["with"]).axes) == 1


def test_sequence_refuses() -> None:
    given = histories()["with"]
    with pytest.raises(InvalidInput, match="did not watch 'far'"):
        plot.sequence(given, "far")
    with pytest.raises(InvalidInput, match="no history"):
        plot.sequence({})
    model, x = mlp(6, 16, 3, seed=3), torch.zeros(1, 6)
    alone = nnrepair.fix(model, (x, model(x).argmin(1)), mode="independent")
    with pytest.raises(InvalidInput, match="independent"):
        plot.sequence(alone)
