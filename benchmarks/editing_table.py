"""Write docs/results-editing.md, its figures and its lines in README.md from the committed result files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import nnrepair
from benchmarks.editing import DOMAINS, MODES, Row
from nnrepair.files import write_atomically

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: The two that every other experiment is compared with, in this order; the rest follows by name.
BASELINES = ("minimal-norm", "ft")

#: Domains on this page; other graphs, with their many networks, have one of their own (graph/table.py).
TITLES = {"mnist": "MNIST", "cifar": "CIFAR-10", "cora": "Cora"}
TASKS = {
    "mnist": """Handwritten digits in fog, which a fully connected network trained on clean digits gets wrong. Kept:
2000 clean training digits. Test set: the 10 000 clean test digits; *fog* is 2000 other foggy ones, where a negative
drawdown is a gain. Edit scope: each edited digit in four other fogs. The fog is this project's, not MNIST-C's.""",
    "cifar": """Photographs, saved as JPEG, that a ResNet-20 gets wrong, repaired in its last layer. Kept: 2500 JPEG
training images. Test set: the other JPEG test images; *lossless*: the up to 389 original test images that lie beside
them, which are no random sample. Edit scope: each edited image mirrored, and moved by one pixel four ways. JPEG costs
this network ten points of accuracy: no figure here is comparable with those on the originals.""",
    "cora": """Papers of a citation graph, in the validation set, that a two-layer graph network labels wrong; another
seed is another split. Kept: the training nodes. Test set: 500 nodes. Edit scope: the neighbours of each edited node
in its class.""",
}
MODE_TITLES = {
    "independent": "each edit alone, from the original network",
    "successive": "one after another, every step asked for all edits so far",
    "successive-no-rehearsal": "one after another, every step asked for its own edit only",
    "batch": "all at once",
}


@dataclass(frozen=True)
class Group:
    """The rows of one experiment, on one model and in one mode: one for each seed."""

    domain: str
    model: str
    mode: str
    experiment: str
    rows: Sequence[Row]

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if "success_rate" in row]

    def values(self, key: str) -> list[float]:
        """Return a measure over the seeds; `test NAME` is the drawdown on another test set."""
        if key.startswith("test "):
            return [row["tests"][key.removeprefix("test ")]["drawdown_points"] for row in self.finished]
        return [row[key] for row in self.finished if row.get(key) is not None]

    def mean(self, key: str) -> float:
        return fmean(self.values(key))


def _shown() -> list[str]:
    return [domain for domain in DOMAINS if domain in TITLES]


def _files(domain: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((DOMAINS[domain].folder / "results").glob("*.json"))]


def groups(domain: str) -> list[Group]:
    """Return what was measured in a domain: by model, mode and experiment, the baselines first."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for file in _files(domain):
        for row in file["rows"]:
            if "experiment" in row:  # the folder of MNIST holds other results too
                found.setdefault((row["model"], row["mode"], row["experiment"]), []).append(row)
    modes = list(MODES)
    order = sorted(found, key=lambda key: (key[0], modes.index(key[1]), *_rank(key[2])))
    return [Group(domain, *key, found[key]) for key in order]


def _rank(experiment: str) -> tuple[int, str]:
    place = next((k for k, name in enumerate(BASELINES) if experiment == name), len(BASELINES))
    return (0 if experiment.startswith(BASELINES[0]) else place), experiment


def _spread(values: Sequence[float], form: str, scale: float = 1.0) -> str:
    """Return mean ± standard deviation over the seeds."""
    if not values:
        return "–"
    values = [scale * value for value in values]
    mean = f"{fmean(values):{form}}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):{form}}"


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def table(some: Sequence[Group]) -> str:
    """Return one table: the experiments on one model in one mode."""
    successive = some[0].mode.startswith("successive")
    tests = sorted({name for group in some for row in group.finished for name in row["tests"]})
    columns = [("success %", "success_rate", ".1f", 100.0)]
    if successive:
        columns.append(("success retained %", "success_retain_rate", ".1f", 100.0))
    columns.append(("generalization %", "generalization_rate", ".1f", 100.0))
    if successive:
        columns.append(("generalization retained %", "generalization_retain_rate", ".1f", 100.0))
    columns += [("drawdown, points", "drawdown_points", ".2f", 1.0), ("relative, %", "drawdown", ".2f", 100.0)]
    if some[0].mode != "batch":
        columns.append(("worst step, points", "drawdown_points_max", ".2f", 1.0))
    columns.append(("unchanged %", "locality", ".1f", 100.0))
    columns += [(f"{name}: drawdown, points", f"test {name}", ".2f", 1.0) for name in tests]
    columns += [("s per edit", "edit_seconds", ".3f", 1.0)]
    out = []
    for group in some:
        row = [group.experiment, *(_spread(group.values(key), form, scale) for _, key, form, scale in columns)]
        out.append([*row, _seeds(group)])
    return _lines(["experiment", *(title for title, *_ in columns), "seeds"], out)


def _seeds(group: Group) -> str:
    bad = sorted({row["status"] for row in group.rows if "success_rate" not in row})
    return f"{len(group.finished)} of {len(group.rows)}: {'; '.join(bad)}" if bad else str(len(group.rows))


def experiments(found: Sequence[Group]) -> str:
    """Return what each name stands for."""
    told = {group.experiment: group.rows[0] for group in found}
    return _lines(
        ["experiment", "method", "options"],
        [[name, f"`{row['method']}`", _options(row["options"])] for name, row in sorted(told.items(), key=_by_rank)],
    )


def _by_rank(item: tuple[str, Row]) -> tuple[int, str]:
    return _rank(item[0])


def _options(options: Row) -> str:
    parts = []
    for name, value in sorted(options.items()):
        if name == "penalties":
            value = ", ".join(
                f"{p['kind']}({', '.join(f'{k}={v}' for k, v in p.items() if k != 'kind')})" for p in value
            )
        parts.append(f"{name} = {value}")
    return "; ".join(parts) or "–"


def _seconds(found: Sequence[Group]) -> float:
    return sum(row["cpu_seconds"] for group in found for row in group.finished)


def section(domain: str) -> str:
    """Return a domain's part of the page, empty where nothing was measured."""
    found = groups(domain)
    if not any(group.finished for group in found):
        return ""
    counts = sorted({row["edits"] for group in found for row in group.finished})
    parts = [f"## {TITLES[domain]}\n\n{TASKS[domain]}\n"]
    parts.append(
        f"{' or '.join(map(str, counts))} edits per row; {_seconds(found):.0f} CPU s in all for these rows.\n\n"
        f"{unedited(domain)}"
        f"![Share of edits that hold against drawdown, by mode](editing-{domain}.png)\n\n"
        f"![What is left of the edits, and drawdown, along a sequence](editing-{domain}-curves.png)\n"
    )
    parts.append(f"{experiments(found)}\n")
    for model in dict.fromkeys(group.model for group in found):
        for mode in MODES:
            some = [group for group in found if (group.model, group.mode) == (model, mode)]
            if some:
                parts.append(f"### {model}, {mode}: {MODE_TITLES[mode]}\n\n{table(some)}\n")
    return "\n".join(parts)


def unedited(domain: str) -> str:
    """Return what the networks do before any edit, empty where it was not measured."""
    path = DOMAINS[domain].folder / "results" / "tasks.json"
    if not path.exists():
        return ""
    some = json.loads(path.read_text())["rows"]
    rows = []
    for model in dict.fromkeys(row["model"] for row in some):
        mine = [row for row in some if row["model"] == model and "accuracy" in row]
        told = "; ".join(f"{name} {100 * fmean(r['accuracy'][name] for r in mine):.2f}" for name in mine[0]["accuracy"])
        known = [100 * row["generalization_before"] for row in mine if row["generalization_before"] is not None]
        with_scope = fmean(row["edits_with_scope"] for row in mine)
        rows.append([model, told, _spread(known, ".1f"), f"{with_scope:.0f}"])
    head = ["before any edit", "accuracy %", "of the edit scope right %", "edits with a scope"]
    return f"{_lines(head, rows)}\n\n"


def long_sequences() -> str:
    """Return the section on sequences of growing length, empty where nothing was measured."""
    path = DOMAINS["mnist"].folder / "results" / "long.json"
    if not path.exists():
        return ""
    head = ["edits", "method", "success %", "retained %", "drawdown, points", "CPU s", "peak MiB", "history KiB"]
    rows = [
        [
            str(row["edits"]),
            f"`{row['method']}`",
            *(f"{100 * row[key]:.1f}" for key in ("success_rate", "success_retain_rate")),
            f"{row['drawdown_points']:.2f}",
            *(f"{row[key]:.0f}" for key in ("cpu_seconds", "peak_mib", "history_kib")),
        ]
        for row in json.loads(path.read_text())["rows"]
        if "success_rate" in row
    ]
    return f"""## Long sequences

Foggy digits repaired one after another in the 3x100 network, every step asked for all edits so far; 2000 kept digits.
Peak memory is above the process's base; the history is what the result stores, as JSON.

{_lines(head, rows)}
"""


def choice() -> str:
    """Return the table of docs/how-to-choose.md: each domain's first network, the experiments that all domains have."""
    parts = []
    columns = ("alone: success %, drawdown", "one after another: retained %, drawdown", "at once: success %, drawdown")
    keys = (("independent", "success_rate"), ("successive", "success_retain_rate"), ("batch", "success_rate"))
    for domain in _shown():
        found = groups(domain)
        if not any(group.finished for group in found):
            continue
        model = found[0].model
        rows = []
        for name in sorted({group.experiment for group in found}, key=_rank):
            cells = []
            for mode, key in keys:
                group = _one(domain, model, name, mode)
                cells.append("–" if group is None else _told(group, key))
            if set(cells) != {"–"}:
                rows.append([f"`{name}`", *cells])
        parts.append(f"{TITLES[domain]} ({model}):\n\n{_lines(['experiment', *columns], rows)}\n")
    return "\n".join(parts)


def _told(group: Group, key: str) -> str:
    """Return a share and the drawdown, and how many seeds finished where some did not."""
    some = "" if len(group.finished) == len(group.rows) else f" ({len(group.finished)} of {len(group.rows)} seeds)"
    return f"{100 * group.mean(key):.0f}, {group.mean('drawdown_points'):.2f}{some}"


def methods() -> str:
    """Return the survey's table of methods, from their own declarations."""
    head, *rows = nnrepair.methods.table()
    return _lines(head, rows)


def filled(text: str) -> str:
    """Return docs/how-to-choose.md with its generated parts."""
    for name, content in (("choice", choice()), ("methods", methods())):
        start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"
    return text


def page() -> str:
    """Return docs/results-editing.md."""
    files = [file for domain in _shown() for file in _files(domain) if any("experiment" in row for row in file["rows"])]
    about = "Nothing was measured yet."
    if files:
        latest = max(files, key=lambda file: file["date"])
        versions = ", ".join(f"{name} {number}" for name, number in latest["versions"].items())
        about = f"Measured on {latest['machine']},\nPython {latest['python']}, {versions}, one thread,\n"
        about += f"every row in a process of its own; {len(files)} experiments, the last on {latest['date']}."
    return f"""# Editing: every method on real mistakes

Generated by `python -m benchmarks table` from `benchmarks/*/results/*.json`; the experiments are
`benchmarks/*/experiments/*.toml`. {about}

Every method gets the same network, the same mistakes with their true labels, and the same labelled points to keep; no
method sees the test sets. Figures are mean ± standard deviation over seeds, which draw other mistakes and points.
Weights and radii of penalties come from a few trials per domain, none from a long search. Most trials used other
seeds; the defaults were chosen on MNIST with seed 0, looking at its test set, so that figures there flatter them a
little. EWC's Fisher information is taken over fewer points than by default on MNIST and Cora, where it is slow.

* *Success*: share of edits that hold right after their own step; *retained*: in the last network of a sequence.
* *Generalization*: share of the edit scope (neighbours of the edits, never the edits themselves) with the right label.
* *Drawdown*: loss of accuracy on the test set, in percentage points and relative to the accuracy before: the mean over
  independent edits, and that of the last network of a sequence or a batch. Negative: accuracy rose. *Worst step*: the
  largest after any edit.
* *Unchanged*: share of the test set with the same decision as before, right or wrong.
* *s per edit*: wall time of the method itself, without the measuring.

{chr(10).join(part for part in [*map(section, _shown()), long_sequences()] if part)}"""


def _one(domain: str, model: str, experiment: str, mode: str) -> Group | None:
    wanted = (model, mode, experiment)
    some = (group for group in groups(domain) if (group.model, group.mode, group.experiment) == wanted)
    return next((group for group in some if group.finished), None)


def readme() -> list[str]:
    """Return the lines for the README: what is left of a sequence of edits, by method."""
    lines = []
    for domain, what in (
        ("mnist", "foggy digits that a 3x100 network misreads"),
        ("cifar", "photographs that a ResNet-20 gets wrong"),
        ("cora", "papers that a graph network mislabels"),
    ):
        found = [g for g in groups(domain) if g.mode == "successive" and g.finished]
        if not found:
            continue
        model = found[0].model
        found = [group for group in found if group.model == model]
        base = next((group for group in found if group.experiment == "ft"), None)
        ours = next((group for group in found if group.experiment == "minimal-norm"), None)
        rest = [group for group in found if group not in (base, ours)]
        best = max(
            rest, key=lambda g: (round(g.mean("success_retain_rate"), 2), -g.mean("drawdown_points")), default=None
        )
        chosen = [group for group in (base, ours, best) if group is not None]
        told = [f"`{group.experiment}` {_left(group)}" for group in chosen]
        count, seeds = found[0].finished[0]["edits"], min(len(group.finished) for group in chosen)
        lines.append(
            f"- {count} {what}, repaired one after another ({seeds} seeds): {'; '.join(told)} (plain fine-tuning, the "
            "default, and the best of the others here; [results](docs/results-editing.md))."
        )
    return lines


def _left(group: Group) -> str:
    kept, lost = group.mean("success_retain_rate"), group.mean("drawdown_points")
    return f"keeps {kept:.0%} of them with {lost:.2f} points drawdown"


# Figures -------------------------------------------------------------------------------------------------------------

#: Paul Tol's "muted" colours and three more, told apart by those who see colours differently; with markers beside them.
_COLOURS = (
    *("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#777777"),
    *("#000000", "#EE7733", "#0077BB"),
)
_MARKERS = "osD^vPX*<>hdp"


def _style(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {"color": _COLOURS[k % len(_COLOURS)], "marker": _MARKERS[k % len(_MARKERS)]}
        for k, name in enumerate(sorted(set(names), key=_rank))
    }


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(
        rows, columns, figsize=(3.5 * columns, 3.2 * rows + 0.9), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return fig, axes


def _points(axis: Any) -> None:
    """Show drawdown in plain numbers: linear between -1 and 1 points, logarithmic beyond."""
    from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

    axis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _finish(fig: Any, styles: dict[str, dict[str, Any]], path: Path, line: bool) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linewidth": 1.5} if line else {"linestyle": "none"}
    handles = [Line2D([], [], label=name, markersize=6, **style, **one) for name, one in styles.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize="small")
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)


def pareto(domain: str, path: Path) -> None:
    """Draw, for each model and mode, the share of edits that hold in the end against drawdown."""
    found = [group for group in groups(domain) if group.finished]
    styles = _style([group.experiment for group in found])
    models = list(dict.fromkeys(group.model for group in found))
    fig, axes = _panels(len(models), len(MODES))
    for group in found:
        axis = axes[models.index(group.model), list(MODES).index(group.mode)]
        key = "success_retain_rate" if group.mode.startswith("successive") else "success_rate"
        x, y = group.values("drawdown_points"), [100 * value for value in group.values(key)]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in (x, y)]
        axis.errorbar(
            fmean(x), fmean(y), xerr=spread[0], yerr=spread[1], **styles[group.experiment], markersize=6, elinewidth=0.8
        )
    for k, model in enumerate(models):
        for axis, mode in zip(axes[k], MODES, strict=True):
            axis.set_xscale("symlog", linthresh=1)
            _points(axis.xaxis)
            axis.axvline(0, color="0.6", linewidth=0.8)
            axis.set_ylim(-4, 104)
            axis.set(title=f"{model}, {mode}", xlabel="drawdown (points)")
            axis.title.set_fontsize("medium")
        axes[k, 0].set_ylabel("edits that hold at the end (%)")
    _finish(fig, styles, path, line=False)


def curves(domain: str, path: Path) -> None:
    """Draw what is left of the edits, and the drawdown, after every edit of a sequence; means over seeds."""
    found = [group for group in groups(domain) if any("curve" in row for row in group.finished)]
    styles = _style([group.experiment for group in found])
    models = list(dict.fromkeys(group.model for group in found))
    modes = [mode for mode in MODES if mode.startswith("successive")]
    panels = [(mode, key) for mode in modes for key in ("retained", "drawdown_points")]
    fig, axes = _panels(len(models), len(panels))
    for group in found:
        rows = [row["curve"] for row in group.finished if "curve" in row]
        for key, scale in (("retained", 100.0), ("drawdown_points", 1.0)):
            axis = axes[models.index(group.model), panels.index((group.mode, key))]
            means = [scale * fmean(values) for values in zip(*(row[key] for row in rows), strict=False)]
            style = styles[group.experiment] | {"markevery": (len(means) - 1, 1)}
            bold = group.experiment in BASELINES  # and above the others
            axis.plot(range(1, len(means) + 1), means, **style, linewidth=2.2 if bold else 1.2, zorder=3 if bold else 2)
    for k, model in enumerate(models):
        for axis, (mode, key) in zip(axes[k], panels, strict=True):
            axis.set_xlabel("edits so far")
            axis.set_title(f"{model}, {mode}", fontsize="medium")
            if key == "retained":
                axis.set(ylim=(-4, 104), ylabel="of them hold now (%)")
            else:
                axis.set_yscale("symlog", linthresh=1)
                _points(axis.yaxis)
                axis.axhline(0, color="0.6", linewidth=0.8)
                axis.set_ylabel("drawdown (points)")
    _finish(fig, styles, path, line=True)


def write(folder: Path = DOCS) -> None:
    """Write docs/results-editing.md and its figures."""
    write_atomically(folder / "results-editing.md", page().encode())
    choose = DOCS / "how-to-choose.md"
    write_atomically(folder / choose.name, filled(choose.read_text()).encode())
    for domain in _shown():
        found = groups(domain)
        if any(group.finished for group in found):
            pareto(domain, folder / f"editing-{domain}.png")
        if any("curve" in row for group in found for row in group.finished):
            curves(domain, folder / f"editing-{domain}-curves.png")


if __name__ == "__main__":
    write()
