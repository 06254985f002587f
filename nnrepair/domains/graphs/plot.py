"""A picture of an edit in a graph: what it does to a node and to those around it. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.domains.graphs.cached import CachedNetwork
from nnrepair.domains.graphs.checks import as_index, check_nodes
from nnrepair.errors import InvalidInput
from nnrepair.extras import needed
from nnrepair.plot.style import INK, OTHER, PALETTE, require_matplotlib
from nnrepair.rounding import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
#: Rounds of the layout.
_ROUNDS = 300


def neighbourhood(
    before: Any,
    after: Any,
    data: Any,
    node: int,
    hops: int = 2,
    ax: Sequence[Axes] | None = None,
    *,
    most: int = 60,
    classes: Sequence[str] | None = None,
) -> Figure:
    """Draw a node and those within some hops, with the decisions before an edit and after it side by side.

    Colours are decisions, a dark outline marks those that the edit changed, and the star is the edited node. The same
    graph is laid out in the same way every time.

    Example:
        >>> from nnrepair.domains.graphs.plot import neighbourhood
        >>> figure = neighbourhood(model, result.model, graph, node=1701)  # doctest: +SKIP
        >>> figure.savefig("neighbourhood.png")  # doctest: +SKIP

    Args:
        before: the network as it was: a module called as `model(x, edge_index)`, in eval mode; a `CachedNetwork`; or
            its outputs (n, classes) or decisions (n,) for all nodes.
        after: the repaired one, likewise.
        data: anything with `x`, `edge_index` and `y`.
        node: the edited node.
        hops: how far to go, along edges in either direction.
        ax: two axes to draw on, for before and after; a new figure if None.
        most: at most so many nodes are drawn: the nearest first, and among these the changed ones. How many are left
            out is written below.
        classes: names of all classes.

    Raises:
        InvalidInput: a node outside the graph, or outputs that are not one per node.
        MissingExtra: matplotlib is not installed.
    """
    count = len(data.x)
    (node,) = as_index([node], count).tolist()
    if hops < 1 or most < 2:
        raise InvalidInput(f"hops must be at least 1 and most at least 2, given {hops} and {most}.")
    if ax is not None and len(ax) != 2:
        raise InvalidInput(f"ax must be two axes, for before and after; given {len(ax)}.")
    old, new = (_decisions(given, data, name) for given, name in ((before, "before"), (after, "after")))
    check_nodes(count, data.y)
    y = torch.full((count,), -1) if data.y is None else data.y.reshape(count).cpu()  # -1: neither right nor wrong
    total = int(max(old.max(), new.max())) + 1
    if classes is not None and len(classes) < total:
        raise InvalidInput(f"classes must name all {total} classes, given {len(classes)} names.")
    changed = old != new
    part = _Part.of(data.edge_index, count, node, hops, changed, most)
    inside, shown = part.inside, part.shown

    require_matplotlib()
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(1, 2, figsize=(9.6, 4.6), layout="constrained")
    decided = torch.cat([old[shown], new[shown]]).tolist()
    frequent = sorted(set(decided), key=lambda c: (-decided.count(c), c))[: len(PALETTE)]
    colours = {c: PALETTE[k] for k, c in enumerate(sorted(frequent))}
    for axis, decisions in zip(ax, (old, new), strict=True):
        fills = [colours.get(c, OTHER) for c in decisions[shown].tolist()]
        _draw(axis, part.positions, part.pairs, fills, changed[shown].numpy())
    ax[0].set_title("before")
    ax[1].set_title("after: " + _told(old[inside], new[inside], y[inside], inside == node))
    left_out = inside[torch.isin(inside, shown, invert=True)]
    if len(left_out):
        more = int(changed[left_out].sum())
        ax[1].set_xlabel(f"{len(left_out)} of {len(inside)} nodes are not drawn, {more} of them changed")
    elsewhere = int(changed.sum()) - int(changed[inside].sum())
    ax[0].set_xlabel(f"{len(inside)} nodes within {hops} hops; {elsewhere} of the other {count - len(inside)} changed")
    figure: Figure = ax[0].figure  # type: ignore[assignment]
    names = {c: classes[c] if classes is not None else f"class {c}" for c in colours}
    _legend(ax[1], {names[c]: colour for c, colour in colours.items()}, other=len(frequent) < len(set(decided)))
    return figure


# What to show --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _decisions(given: Any, data: Any, name: str) -> Tensor:
    """Return (n,) what is decided at all nodes."""
    if isinstance(given, CachedNetwork):
        given = given.outputs()
    elif isinstance(given, torch.nn.Module):
        like = next((p for p in given.parameters() if p.dtype.is_floating_point), data.x)
        given = given(data.x.to(like), data.edge_index.to(like.device))
    if not isinstance(given, Tensor) or given.ndim not in (1, 2) or len(given) != len(data.x):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise InvalidInput(
            f"{name} must be a network, or its outputs ({len(data.x)}, classes), or its decisions ({len(data.x)},); "
            f"got {shape}."
        )
    return (given.argmax(1) if given.ndim == 2 else given).long().cpu()


@dataclass(frozen=True)
class _Part:
    """The part of a graph around a node.

    Attributes:
        inside: the nodes within some hops.
        shown: (k,) those that are drawn, the node itself first.
        pairs: (2, edges) the edges among these, by their place in `shown`.
        positions: (k, 2) where they are drawn.
    """

    inside: Tensor
    shown: Tensor
    pairs: NDArray[np.int64]
    positions: Array

    @classmethod
    def of(cls, edge_index: Tensor, count: int, node: int, hops: int, changed: Tensor, most: int) -> _Part:
        start, end = (row.cpu().long() for row in edge_index)
        hop = _hops(start, end, count, node, hops)
        inside = torch.nonzero(hop >= 0).flatten()
        order = np.lexsort((inside.numpy(), ~changed[inside].numpy(), hop[inside].numpy()))
        shown = inside[torch.from_numpy(order.copy())][:most].sort().values
        shown = shown[torch.argsort(hop[shown], stable=True)]  # where they lie does not depend on what changed
        number = torch.full((count,), -1)
        number[shown] = torch.arange(len(shown))
        edges = torch.stack([number[start], number[end]])
        edges = edges[:, (edges >= 0).all(0) & (edges[0] != edges[1])].sort(0).values
        pairs = torch.unique(edges, dim=1).numpy()
        return cls(inside, shown, pairs, _layout(pairs, hop[shown].numpy()))


def _hops(start: Tensor, end: Tensor, count: int, node: int, most: int) -> Tensor:
    """Return (n,) how many edges away each node is, -1 beyond `most`."""
    hop = torch.full((count,), -1)
    hop[node] = 0
    for k in range(1, most + 1):
        ring = hop == k - 1
        reached = torch.cat([end[ring[start]], start[ring[end]]])
        hop[reached[hop[reached] < 0]] = k
    return hop


def _told(old: Tensor, new: Tensor, y: Tensor, edited: Tensor) -> str:
    others = (old != new) & ~edited
    broken, mended = int((others & (old == y)).sum()), int((others & (new == y)).sum())
    if not others.any():
        return "no neighbour's decision changed"
    return f"{counted(int(others.sum()), 'neighbour')} changed, {broken} right → wrong, {mended} wrong → right"


# Where ---------------------------------------------------------------------------------------------------------------


def _layout(pairs: NDArray[np.int64], hop: NDArray[np.int64]) -> Array:
    """Return (k, 2) positions: rings by hop, then springs along edges and repulsion (Fruchterman and Reingold, 1991).

    Nothing is random. The first node stays in the middle.
    """
    with needed("plot", "Layouts need networkx"):
        import networkx

    count = len(hop)
    graph = networkx.Graph(pairs.T.tolist())
    graph.add_nodes_from(range(count))
    rings = [np.flatnonzero(hop == ring).tolist() for ring in np.unique(hop)]
    start = networkx.shell_layout(graph, rings)
    found = networkx.spring_layout(graph, k=1.6 / np.sqrt(count), pos=start, fixed=[0], iterations=_ROUNDS, seed=0)
    return np.array([found[node] for node in range(count)])


# Drawing -------------------------------------------------------------------------------------------------------------


def _draw(ax: Axes, positions: Array, pairs: NDArray[np.int64], fills: list[str], changed: NDArray[np.bool_]) -> None:
    from matplotlib.collections import LineCollection

    ax.add_collection(LineCollection(list(positions[pairs.T]), colors="0.75", linewidths=0.8, zorder=1))
    for which, outline, width, order in ((~changed, "white", 0.6, 2), (changed, INK, 2.0, 3)):
        which = which & (np.arange(len(which)) > 0)
        ax.scatter(
            positions[which, 0],
            positions[which, 1],
            s=75,
            c=[fill for fill, use in zip(fills, which, strict=True) if use] or None,
            edgecolors=outline,
            linewidths=width,
            zorder=order,
        )
    outline, width = (INK, 2.0) if changed[0] else ("0.5", 1.0)
    x, y = positions[0]
    ax.scatter(x, y, s=330, marker="*", c=fills[:1], edgecolors=outline, linewidths=width, zorder=4)
    ax.set_aspect("equal")
    ax.margins(0.06)
    ax.set(xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)


def _legend(ax: Axes, colours: dict[str, str], other: bool) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, fill: str, outline: str = "white", marker: str = "o", size: float = 8) -> Line2D:
        look = {"marker": marker, "markersize": size, "markerfacecolor": fill, "markeredgecolor": outline}
        return Line2D([], [], linestyle="none", label=label, markeredgewidth=1.6, **look)  # type: ignore[arg-type]

    key = [mark(name, colour) for name, colour in colours.items()]
    key += [mark("another class", OTHER)] if other else []
    key += [mark("decision changed", "white", INK), mark("the edited node", "white", INK, "*", 13)]
    ax.legend(handles=key, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0, frameon=False)
