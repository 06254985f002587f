"""Pictures of the editing benchmark's rows: edits that hold against drawdown, and both along a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.editing import MODES
from benchmarks.rows import BASELINES, groups, rank

#: Paul Tol's "muted" colours and three more, told apart by those who see colours differently; with markers beside them.
_COLOURS = (
    *("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#777777"),
    *("#000000", "#EE7733", "#0077BB"),
)
_MARKERS = "osD^vPX*<>hdp"


def styles_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each experiment, the baselines first."""
    return {
        name: {"color": _COLOURS[k % len(_COLOURS)], "marker": _MARKERS[(k + k // len(_COLOURS)) % len(_MARKERS)]}
        for k, name in enumerate(sorted(set(names), key=rank))
    }


def new_panels(rows: int, columns: int, size: tuple[float, float] = (3.5, 3.2)) -> tuple[Any, Any]:
    """Return a figure with so many panels of a size (inches), and room for a legend below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows + 0.9), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return fig, axes


def in_points(axis: Any, linear: float = 1) -> None:
    """Show drawdown in plain numbers: linear between so many points on both sides of zero, logarithmic beyond."""
    from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

    axis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{float(f'{value:.2g}'):g}"))


def finish(fig: Any, styles: dict[str, dict[str, Any]], path: Path, line: bool) -> None:
    """Add the legend, write the picture and close it."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linewidth": 1.5} if line else {"linestyle": "none"}
    handles = [Line2D([], [], label=name, markersize=6, **style, **one) for name, one in styles.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize="small")
    _save(fig, path)


#: Families of methods, as they declare them, in the order of the picture of all editors.
FAMILIES = {
    "optimisation": "#332288",
    "regularisation": "#CC6677",
    "direct": "#117733",
    "architectural": "#EE7733",
    "meta-learning": "#0077BB",
    "memory": "#882255",
}


def new_parts(rows: Sequence[int]) -> tuple[Any, Any]:
    """Return a figure with a part for each number of rows, one below the other, and room for a legend below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    heights = [0.2 * count + 0.75 for count in rows]
    fig = plt.figure(figsize=(14, sum(heights) + 0.7), layout="constrained")
    return fig, fig.subfigures(len(rows), 1, height_ratios=heights)


def panels(part: Any, count: int, names: Sequence[str], title: str) -> Any:
    """Return panels beside each other, with drawdown along them, whose rows have names and the colours of families."""
    part.suptitle(title, fontsize="medium", fontweight="bold", x=0.01, ha="left")
    axes = part.subplots(1, count, sharey=True, squeeze=False)[0]
    for axis in axes:
        axis.set_xscale("symlog", linthresh=1)
        in_points(axis.xaxis)
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set(ylim=(len(names) - 0.4, -0.6), xlabel="drawdown (points)")
        axis.set_yticks(range(len(names)), names, fontsize="small")
    return axes


def dot(axis: Any, x: float, row: int, share: float, family: str) -> None:
    """Draw one result: as full as the share of edits that hold."""
    from matplotlib.colors import to_rgba

    style = {"markeredgecolor": FAMILIES[family], "markerfacecolor": to_rgba(FAMILIES[family], share)}
    axis.plot(x, row, marker="o", markersize=7, clip_on=False, zorder=3, linestyle="none", **style)


def finish_parts(fig: Any, path: Path) -> None:
    """Add the legend of families and shares, write the picture and close it."""
    for axis in fig.axes:
        low, high = axis.get_xlim()
        axis.set_xlim(min(low, -0.2), max(high, 1.2))  # a drawdown of nothing is not to look like much
    from matplotlib.colors import to_rgba
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=colour, marker="o", markersize=7, linestyle="none", label=name)
        for name, colour in FAMILIES.items()
    ]
    for share in (1.0, 0.5, 0.0):
        style = {"markeredgecolor": "0.2", "markerfacecolor": to_rgba("0.2", share)}
        lines.append(
            Line2D(
                [],
                [],
                marker="o",
                markersize=7,
                linestyle="none",
                label=f"{share:.0%} of edits hold at the end",
                **style,
            )
        )
    fig.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize="small")
    _save(fig, path)


def _save(fig: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)


def pareto(domain: str, path: Path) -> None:
    """Draw, for each model and mode, the share of edits that hold in the end against drawdown."""
    found = [group for group in groups(domain) if group.finished]
    styles = styles_of([group.experiment for group in found])
    models = list(dict.fromkeys(group.model for group in found))
    fig, axes = new_panels(len(models), len(MODES))
    drawn = set()
    for group in found:
        axis = axes[models.index(group.model), list(MODES).index(group.mode)]
        drawn.add(axis)
        key = "success_retain_rate" if group.mode.startswith("successive") else "success_rate"
        x, y = group.values("drawdown_points"), [100 * value for value in group.values(key)]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in (x, y)]
        axis.errorbar(
            fmean(x), fmean(y), xerr=spread[0], yerr=spread[1], **styles[group.experiment], markersize=6, elinewidth=0.8
        )
    for k, model in enumerate(models):
        for axis, mode in zip(axes[k], MODES, strict=True):
            axis.set_xscale("symlog", linthresh=1)
            in_points(axis.xaxis)
            axis.axvline(0, color="0.6", linewidth=0.8)
            axis.set_ylim(-4, 104)
            axis.set(title=f"{model}, {mode}", xlabel="drawdown (points)")
            axis.title.set_fontsize("medium")
            axis.set_visible(axis in drawn)
        axes[k, 0].set_ylabel("edits that hold at the end (%)")
    finish(fig, styles, path, line=False)


def curves(domain: str, path: Path) -> None:
    """Draw what is left of the edits, and the drawdown, after every edit of a sequence; means over seeds.

    A row for every network, or for every graph with its networks beside each other.
    """
    finished = [group for group in groups(domain) if group.finished]
    found = [group for group in finished if any("curve" in row for row in group.finished)]
    styles = styles_of([group.experiment for group in finished])  # as in the other picture
    styles = {name: style for name, style in styles.items() if name in {group.experiment for group in found}}
    rows = list(dict.fromkeys(_first(group.model) for group in found))
    kinds = list(dict.fromkeys(group.model.removeprefix(_first(group.model)) for group in found))
    modes = [mode for mode in MODES if any(group.mode == mode for group in found)]
    columns = [(kind, mode, key) for kind in kinds for mode in modes for key in ("retained", "drawdown_points")]
    fig, axes = new_panels(len(rows), len(columns))
    drawn = set()
    for group in found:
        curve = [row["curve"] for row in group.finished if "curve" in row]
        row, kind = _first(group.model), group.model.removeprefix(_first(group.model))
        for key, scale in (("retained", 100.0), ("drawdown_points", 1.0)):
            axis = axes[rows.index(row), columns.index((kind, group.mode, key))]
            if axis not in drawn:
                drawn.add(axis)
                _label_curve(axis, f"{group.model}, {group.mode}", key)
            means = [scale * fmean(values) for values in zip(*(one[key] for one in curve), strict=False)]
            style = styles[group.experiment] | {"markevery": (max(len(means) - 1, 1), 1)}
            bold = group.experiment in BASELINES  # and above the others
            axis.plot(range(1, len(means) + 1), means, **style, linewidth=2.2 if bold else 1.2, zorder=3 if bold else 2)
    for axis in axes.flat:
        axis.set_visible(axis in drawn)
    finish(fig, styles, path, line=True)


#: How each series of the picture of generality looks.
SERIES = {
    "minimal norm, first layer": "#332288",
    "minimal norm, middle layer": "#0077BB",
    "minimal norm, last layer": "#88CCEE",
    "minimal norm, all layers": "#44AA99",
    "fine-tuning": "#CC6677",
    "fine-tuning + KL": "#882255",
    "fine-tuning + rehearsal": "#EE7733",
    "GRACE": "#777777",
}


def generality(path: Path) -> None:
    """Draw generalization against drawdown, means over seeds: a colour for a method, a marker for what it is asked."""
    from matplotlib.lines import Line2D

    from benchmarks.generality import table

    panels = {name: found for name in table.NETWORKS if (found := table.points(name))}
    fig, axes = new_panels(1, len(panels), (4.4, 3.8))
    for axis, (name, found) in zip(axes[0], panels.items(), strict=True):
        for series, colour in SERIES.items():
            mine = [p for p in found if p.series == series]
            margins = [_place(p) for p in mine if p.point == "as it is" or p.point.startswith("margin")]
            if margins:
                axis.plot(*zip(*margins, strict=True), color=colour, linewidth=1, zorder=2)
            for p in mine:
                whole = min(p.values("success_rate")) == 1
                style = {"color": colour, "linestyle": "none", "zorder": 3, "alpha": 1 if whole else 0.35}
                axis.plot(*_place(p), **style, **_asked(p.point))
        axis.set_xscale("symlog", linthresh=0.1)
        in_points(axis.xaxis, 0.1)
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set(ylim=(-4, 104), xlabel="drawdown (points)", title=table.TITLES[name])
        axis.title.set_fontsize("medium")
    axes[0, 0].set_ylabel("generalization (% of the edit scope)")
    lines = [Line2D([], [], color=c, marker="o", markersize=6, linestyle="none", label=s) for s, c in SERIES.items()]
    kinds = {"as it is": "default margin", "margin 1": "larger margins, in order"}
    marks = [
        Line2D([], [], color="0.3", linestyle="-" if kind == "margin 1" else "none", label=told, **_asked(kind))
        for kind, told in (kinds | {name: name for name in ("neighbours wanted", "neighbours demanded")}).items()
    ]
    faint = {"color": "0.3", "alpha": 0.35, "linestyle": "none"}
    marks.append(Line2D([], [], label="not all edits hold", **faint, **_asked("as it is")))
    style: dict[str, Any] = {
        "loc": "outside lower center",
        "ncols": 5 if len(panels) > 2 else 3,
        "frameon": False,
        "fontsize": "small",
    }
    fig.legend(handles=lines + marks, **style)
    _save(fig, path)


def _place(point: Any) -> tuple[float, float]:
    """Return drawdown in points, and generalization in percent."""
    return fmean(point.values("drawdown_points")), 100 * fmean(point.values("generalization_rate"))


def _asked(point: str) -> dict[str, Any]:
    """Return the marker of what a method is asked."""
    if point.startswith("margin"):
        return {"marker": "o", "markersize": 3.5}
    hollow = {"markerfacecolor": "white", "markersize": 8}
    return {
        "as it is": {"marker": "o", "markersize": 7},
        "neighbours wanted": {"marker": "*", "markersize": 12},
        "neighbours demanded": {"marker": "D"} | hollow,
    }[point]


def _first(model: str) -> str:
    """Return the graph of `<graph>-<network>`; other networks' names have one part."""
    return model.split("-")[0]


def _label_curve(axis: Any, title: str, key: str) -> None:
    axis.set_xlabel("edits so far")
    axis.set_title(title, fontsize="medium")
    if key == "retained":
        axis.set(ylim=(-4, 104), ylabel="of them hold now (%)")
    else:
        axis.set_yscale("symlog", linthresh=1)
        in_points(axis.yaxis)
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.set_ylabel("drawdown (points)")
