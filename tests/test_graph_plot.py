"""The picture of a node and its neighbours: what is drawn, where, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from graphs import net, ring

from nnrepair import InvalidInput
from nnrepair.domains.graphs.plot import _hops, _layout, neighbourhood

plt = pytest.importorskip("matplotlib.pyplot", reason="pictures need the extra [plot]")


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    plt.close("all")


def example() -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return a graph that decides by label, and decisions that differ at nodes 0 (edited), 1 and 6."""
    graph = ring(classes=3)
    after = graph.y.clone()
    after[[0, 1, 6]] = (after[[0, 1, 6]] + 1) % 3
    return graph, graph.y, after


def drawn(axis: Any) -> int:
    return sum(len(points.get_offsets()) for points in axis.collections if type(points).__name__ == "PathCollection")


def test_what_is_drawn() -> None:
    graph, before, after = example()
    figure = neighbourhood(before, after, graph, 0, hops=2)
    left, right = figure.axes
    inside = int((_hops(*graph.edge_index, 12, 0, 2) >= 0).sum())
    assert drawn(left) == drawn(right) == inside
    near = _hops(*graph.edge_index, 12, 0, 2) >= 0
    others = int(near[[1, 6]].sum())
    assert right.get_title().startswith(f"after: {others} neighbour")
    assert f"{others} right → wrong, 0 wrong → right" in right.get_title()
    assert f"{inside} nodes within 2 hops; {2 - others} of the other {12 - inside} changed" in left.get_xlabel()
    assert right.get_xlabel() == ""
    assert "the edited node" in [text.get_text() for text in right.get_legend().get_texts()]


def test_nodes_without_a_label_are_neither_right_nor_wrong() -> None:
    graph, before, after = example()
    labels = graph.y.clone()
    labels[1] = -1
    figure = neighbourhood(before, after, replace(graph, y=labels), 0, hops=2)
    assert "1 neighbour changed, 0 right → wrong, 0 wrong → right" in figure.axes[1].get_title()
    assert "1 right → wrong" in neighbourhood(before, after, graph, 0, hops=2).axes[1].get_title()


def test_what_is_left_out_is_said() -> None:
    graph, before, after = example()
    figure = neighbourhood(before, after, graph, 0, hops=3, most=3)
    inside = int((_hops(*graph.edge_index, 12, 0, 3) >= 0).sum())
    assert drawn(figure.axes[0]) == 3
    assert f"{inside - 3} of {inside} nodes are not drawn" in figure.axes[1].get_xlabel()


def test_networks_and_their_outputs_give_the_same_picture() -> None:
    graph = ring(classes=3)
    model, other = net(seed=0), net(seed=1)
    with torch.no_grad():
        old, new = (m(graph.x, graph.edge_index) for m in (model, other))
    titles = [neighbourhood(a, b, graph, 4).axes[1].get_title() for a, b in ((model, other), (old, new.argmax(1)))]
    assert titles[0] == titles[1]


def test_the_layout_is_the_same_every_time_and_whatever_changed() -> None:
    graph, before, after = example()
    places = []
    for decisions in (before, after, after):
        axis = neighbourhood(before, decisions, graph, 0).axes[0]
        points = [p.get_offsets() for p in axis.collections if type(p).__name__ == "PathCollection"]
        places.append(np.unique(np.round(np.concatenate(points), 9), axis=0))
    assert np.array_equal(places[0], places[1]) and np.array_equal(places[1], places[2])


def test_no_two_nodes_lie_on_each_other() -> None:
    star = np.stack([np.zeros(40, int), np.arange(1, 41)])
    positions = _layout(star, np.array([0] + [1] * 40))
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2) + np.eye(41)
    assert np.isfinite(positions).all() and distance.min() > 0.05
    assert np.array_equal(positions[0], [0, 0])
    alone = _layout(np.zeros((2, 0), int), np.array([0]))
    assert alone.tolist() == [[0, 0]]


def test_hops_follow_edges_in_either_direction() -> None:
    start, end = torch.tensor([0, 2, 2]), torch.tensor([1, 1, 3])
    assert _hops(start, end, 5, 0, 2).tolist() == [0, 1, 2, -1, -1]


def test_own_axes_and_many_classes() -> None:
    graph, _, _ = example()
    many = replace(graph, y=torch.arange(12))
    figure, axes = plt.subplots(1, 2)
    assert neighbourhood(many.y, many.y.flip(0), many, 0, hops=6, ax=axes) is figure
    labels = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert "another class" in labels and sum(label.startswith("class") for label in labels) == 9
    assert neighbourhood(graph.y, graph.y, graph, 0).axes[1].get_title() == "after: no neighbour's decision changed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": 12}, "outside the graph"),
        ({"hops": 0}, "hops must be at least 1"),
        ({"most": 1}, "most at least 2"),
        ({"before": torch.zeros(3)}, r"before must be a network, .*got \(3,\)"),
        ({"after": "model"}, "after must be a network.*got str"),
        ({"ax": [None]}, "two axes"),
        ({"classes": ["a"]}, "must name all 3 classes, given 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, Any], message: str) -> None:
    graph, before, after = example()
    arguments: dict[str, Any] = {"before": before, "after": after, "data": graph, "node": 0} | change
    with pytest.raises(InvalidInput, match=message):
        neighbourhood(**arguments)


def test_without_matplotlib(no_matplotlib: None) -> None:
    graph, before, after = example()
    with pytest.raises(ModuleNotFoundError, match="plot"):
        neighbourhood(before, after, graph, 0)
