"""A picture of what becomes of edits that are repaired one after another. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnrepair.errors import InvalidInput, near_matches
from nnrepair.judge import LOCALITY
from nnrepair.plot.style import STRONG, require_matplotlib
from nnrepair.results.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sequence(histories: History | Mapping[str, History], points: str | None = None) -> Figure:
    """Draw what becomes of edits, and of everything else, while they are repaired one after another.

    Left: the share of all edits so far that hold in each step's network. Right: drawdown in points; where there are no
    labels, the share of points whose decisions changed; where there are no decisions, the mean change of outputs.

    Example:
        >>> from nnrepair import plot
        >>> figure = plot.sequence({"with rehearsal": history, "without": other})  # doctest: +SKIP
        >>> figure.savefig("sequence.png")  # doctest: +SKIP

    Args:
        histories: of `nnrepair.fix(..., mode="successive")`; several are drawn together, by name.
        points: the set of points on the right, a name in `history.side_effects`; by default the first test set, else
            the locality set; without either there is no right picture.

    Raises:
        InvalidInput: independent edits, which are no sequence, or points that a history does not have.
        MissingExtra: matplotlib is not installed.
    """
    given = {"": histories} if isinstance(histories, History) else dict(histories)
    if not given:
        raise InvalidInput("There is no history to draw.")
    for name, history in given.items():
        if history.mode != "successive":
            raise InvalidInput(f"History {name!r} is of independent edits, which have no order; draw successive ones.")
    known = list(next(iter(given.values())).side_effects)
    points = next(iter(sorted(known, key=lambda name: name == LOCALITY)), None) if points is None else points
    for name, history in given.items():
        if points is not None and points not in history.side_effects:
            hint = near_matches(points, history.side_effects)
            raise InvalidInput(
                f"History {name!r} did not watch {points!r}.{hint} It has: {', '.join(history.side_effects)}."
            )
    measures = {name: _measure(history.curves(), points) for name, history in given.items()} if points else {}
    measure = next(iter(measures.values()), "")
    if len(set(measures.values())) > 1:
        told = ", ".join(f"{name!r}: {what}" for name, what in measures.items())
        raise InvalidInput(f"The histories measure {points!r} differently ({told}); draw them apart.")
    require_matplotlib()
    from matplotlib import pyplot

    columns = 1 if points is None else 2
    figure, axes = pyplot.subplots(1, columns, figsize=(4.2 * columns, 3.2), layout="constrained", squeeze=False)
    for k, (name, history) in enumerate(given.items()):
        curves, style = history.curves(), {"color": STRONG[k % len(STRONG)], "label": name}
        axes[0, 0].plot(curves["edits"], [100 * share for share in curves["retained"]], **style)
        if points is not None:
            axes[0, 1].plot(curves["edits"], _lost(curves, points), **style)
    axes[0, 0].set(ylabel="edits so far that hold now (%)", ylim=(-4, 104))
    if points is not None:
        axes[0, 1].set(ylabel=measure)
        axes[0, 1].axhline(0, color="0.7", linewidth=0.8, zorder=0)
    for axis in axes.flat:
        axis.set_xlabel("edits, one after another")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    if len(given) > 1:
        axes[0, 0].legend(frameon=False)
    return figure


def _measure(curves: dict[str, list[float]], points: str) -> str:
    """Say what `_lost` returns."""
    if f"drawdown_points {points}" in curves:
        return f"drawdown on the {points} (points)"
    decides = f"locality {points}" in curves
    return f"{points}: decisions changed (%)" if decides else f"{points}: mean absolute change of outputs"


def _lost(curves: dict[str, list[float]], points: str) -> list[float]:
    """Return drawdown in points, else changed decisions in percent, else how far outputs moved."""
    if (drawdown := curves.get(f"drawdown_points {points}")) is not None:
        return drawdown
    unchanged = curves.get(f"locality {points}")
    return curves[f"moved {points}"] if unchanged is None else [100 * (1 - share) for share in unchanged]
