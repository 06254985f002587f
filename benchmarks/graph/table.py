"""Write docs/results-graphs.md from the committed result files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks import figures
from benchmarks.editing import DOMAINS, Row
from benchmarks.editing_table import DOCS, MODE_TITLES, unedited
from benchmarks.graph.task import GRAPHS, KEPT, TRAINED
from benchmarks.rows import Group, experiments, groups, rank, result_files, seconds_of, seeds_of, spread
from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import percent

#: In the order of the loader, and gcn before sage.
MODELS = [f"{name}-{kind}" for name in GRAPHS for kind in ("gcn", "sage")]
MODES = ("independent", "successive", "batch")
#: A method that holds less of its edits than this is marked as hollow: its drawdown is not that of a repair.
MOST = 0.95


def table(some: Sequence[Group]) -> str:
    """Return one mode's table: a row per graph, network and experiment."""
    successive = some[0].mode == "successive"
    head = ["graph and network", "accuracy %", "experiment", "SR %", *(["SRR %"] if successive else []), "GR %"]
    head += [
        "DD, points",
        *([] if some[0].mode == "batch" else ["DD worst"]),
        "s per edit",
        "peak MiB",
        "seeds × edits",
    ]
    rows = []
    for group in some:
        cells = [group.model, _mean(group, "accuracy_before", ".1f", 100.0), f"`{group.experiment}`"]
        cells.append(_mean(group, "success_rate", ".1f", 100.0))
        if successive:
            cells.append(_mean(group, "success_retain_rate", ".1f", 100.0))
        cells.append(_mean(group, "generalization_rate", ".1f", 100.0))
        cells.append(spread(group.values("drawdown_points"), ".2f"))
        if some[0].mode != "batch":
            cells.append(f"{max(group.values('drawdown_points_max')):.2f}" if group.finished else "–")
        cells += [_mean(group, "edit_seconds", ".3f"), _mean(group, "peak_mib", ".0f")]
        edits = group.rows[0]["edits"]
        cells.append(f"{seeds_of(group)} × {edits}")
        rows.append(cells)
    return markdown.table(head, rows)


def _mean(group: Group, key: str, form: str, scale: float = 1.0) -> str:
    values = group.values(key)
    return f"{scale * fmean(values):{form}}" if values else "–"


def _tables(found: Sequence[Group]) -> str:
    parts = []
    for mode in MODES:
        some = [g for g in found if g.mode == mode]
        some.sort(key=lambda g: (MODELS.index(g.model), rank(g.experiment)))
        if some:
            parts.append(f"### {mode}: {MODE_TITLES[mode]}\n\n{table(some)}\n")
    return "\n".join(parts) or "Nothing was measured yet.\n"


def _sizes(folder: Path | None = None) -> list[Row]:
    """Return the rows about generated graphs of growing size."""
    path = (folder or DOMAINS["graph"].folder / "results") / "scale.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def growth(folder: Path | None = None) -> str:
    """Return the section on growth with the number of edges, empty where nothing was measured."""
    rows = [row for row in _sizes(folder) if row["status"] == "measured"]
    if not rows:
        return ""
    head = ["edges", "nodes", "network", "all nodes once: s", "peak MiB", "keys once: s", "an edit: s", "holds %"]
    head += ["DD, points", "DD worst", "process MiB"]
    return f"""## Growth with the number of edges

Generated graphs as dense as Reddit, up to its 114.6 million edges; single mistakes repaired in the last layer
(`minimal-norm`, {rows[0]["locality_points"]} kept nodes, {rows[0]["edits"]} edits, each from the network as trained).
*All nodes once* is inference in blocks, with its peak above what was held before; *keys once* is what `cached` computes
before the first edit; an *edit* is the median time of `fix`, with its checks and its judgement on the kept nodes.
Drawdown is over all nodes, and *process* is the whole process's peak, with graph, features, libraries and, up to a
million edges, the ordinary forward pass that inference in blocks is compared with.

{markdown.table(head, [_grown(row) for row in rows])}

Wall seconds on a machine that others used too; CPU seconds are in `benchmarks/graph/results/scale.json`.
"""


def _grown(row: Row) -> list[str]:
    inference, caching = row["phases"]["inference"], row["phases"]["caching"]
    return [
        f"{row['case']['edges']:,}".replace(",", " "),
        f"{row['graph']['nodes']:,}".replace(",", " "),
        row["case"]["kind"],
        f"{inference['wall_seconds']:.1f}",
        f"{inference['peak_mib']:.0f}",
        f"{caching['wall_seconds']:.1f}",
        f"{row['edit_seconds']:.2f}",
        f"{100 * row['success_rate']:.0f}",
        f"{row['drawdown_points']:.3f}",
        f"{row['drawdown_points_max']:.3f}",
        f"{row['process_mib']:.0f}",
    ]


#: What trial scripts before this library measured on Cora with a GCN: 50 edits, two random splits. Drawdown in points
#: (mean and worst) of independent edits; drawdown and share retained of a sequence without rehearsal; drawdown and
#: share held of a batch; and the experiments here that are nearest to it.
EARLIER: dict[str, tuple[str, ...]] = {
    "fine-tuning, at most 10 steps": ("2.12", "16.2", "13.6", "38", "9.4", "52", "ft"),
    "fine-tuning + L2": ("1.78", "14.3", "11.8", "37", "6.0", "26", "ft+l2"),
    "fine-tuning + L-inf": ("0.47", "3.9", "12.7", "33", "0.2", "16", "ft+linf"),
    "fine-tuning + KL, weight 1": ("1.22", "10.7", "-0.4", "22", "2.0", "100", "ft+kl-1"),
    "fine-tuning + KL, weight 10": ("0.72", "5.1", "-1.0", "14", "0.5", "100", "ft+kl-10"),
    "least squares on keys, last layer": ("0.05", "1.3", "3.4", "53", "3.4", "20", "minimal-norm"),
    "EGNN": ("1.62", "24.3", "9.2", "30", "5.4", "100", ""),
    "EGNN, 100 rehearsed training nodes": ("-0.08", "2.2", "2.4", "45", "0.8", "100", "egnn"),
}


def comparison() -> str:
    """Return the section that sets Cora's rows beside earlier figures."""
    found = {(g.mode, g.experiment): g for g in groups("cora") if g.model == "gcn" and g.finished}
    rows = []
    for name, (*told, experiment) in EARLIER.items():
        asked = [("independent", "drawdown_points", ".2f", 1.0), ("independent", "drawdown_points_max", ".1f", 1.0)]
        asked += [("successive-no-rehearsal", "drawdown_points", ".1f", 1.0)]
        asked += [("successive-no-rehearsal", "success_retain_rate", ".1f", 100.0)]
        asked += [("batch", "drawdown_points", ".1f", 1.0), ("batch", "success_rate", ".1f", 100.0)]
        cells = []
        for before, (mode, key, form, scale) in zip(told, asked, strict=True):
            group = found.get((mode, experiment))
            now = "–"
            if group is not None:
                values = group.values(key)
                now = f"{scale * (max(values) if key.endswith('max') else fmean(values)):{form}}"
            cells.append(f"{before} / {now}")
        rows.append([name, f"`{experiment}`" if experiment else "–", *cells])
    head = ["earlier", "here", "independent: DD", "worst", "sequence: DD", "SRR %", "batch: DD", "SR %"]
    return f"""## Beside earlier figures

Before this library, trial scripts followed the same protocol on Cora with a GCN: 50 edits and two random splits, on
which the same method scattered from 0.8 to 3.5 points. Each cell is *earlier / here*; sequences are those without
rehearsal of past edits, in which **no editor then kept more than 53 % of its edits**. Here methods stop as soon as the
edits hold, fine-tuning may take 100 steps where it then took 10, least squares raised one other class only, penalties
have other weights, and there are five splits: figures compare in kind and not digit by digit. With rehearsal, and for
all experiments on Cora, see [the editing page](results-editing.md).

{markdown.table(head, rows)}
"""


def page() -> str:
    """Return docs/results-graphs.md."""
    found = [group for group in groups("graph") if group.model in MODELS]
    about, about_rows = "", ""
    files = [f for f in result_files("graph") if any("experiment" in row for row in f["rows"])]
    if files:
        latest = max(files, key=lambda file: file["date"])
        versions = ", ".join(f"{name} {number}" for name, number in latest["versions"].items())
        about = f" Measured on {latest['machine']},\nPython {latest['python']}, {versions}, one thread; the last on "
        about += f"{latest['date']}."
        about_rows = f"\n{experiments(found)}\n\n{seconds_of(found):.0f} CPU s in all for these rows.\n"
    return f"""# Edits of graph networks

Generated by `python -m benchmarks table` from `benchmarks/graph/results/*.json`.{about}

## Seven real graphs

Networks of two layers and 32 hidden units, trained inductively, and validation nodes that they label wrong, repaired to
their true labels: fifty per row, twenty where all layers are tuned. A seed is another random split, with 500
validation and 500 test nodes on CiteSeer, and 2000 and 1000 on the larger graphs. Networks are trained on at most
{TRAINED} nodes and the edges among them and run on the whole graph; at most {KEPT} training nodes are kept. Cora is on
[another page](results-editing.md).

`minimal-norm` and `egnn` run on `cached` networks: what an edit cannot change is computed once, which is exact, and
their seconds do not grow with the number of edges (EGNN's do with that of features). `ft` and `ft+kl-10` tune all
layers, with a pass over the whole graph in every step, and are measured where that is affordable.

What the tables show: one by one, `minimal-norm` is the quicker and on most networks carries over to more neighbours;
`egnn` changes the accuracy elsewhere least. Of fifty edits, in sequence or at once, one small last layer holds nearly
all only at the price of other nodes, often of many; `egnn` loses little. Where nodes have few features (tolokers: ten),
`egnn` cannot tell an edited node from others, and nearly all edits fail.

SR: edits that hold after their own step; SRR: that hold in the last network of a sequence; GR: neighbours of an edited
node, in its class and no training nodes, that are right; DD: drawdown on the test nodes, in points, mean ± standard
deviation over seeds (negative: accuracy rose), and the worst after any edit of any seed. Peak memory is above what was
held before.

![Drawdown of every method on every network, by mode](graph-drawdown.png)

Hollow marks: less than {100 * MOST:.0f} % of the edits hold in the end; such drawdown is not that of a repair.

![What is left of the edits, and drawdown, along a sequence](graph-curves.png)
{about_rows}
{unedited("graph")}{_tables(found)}
{growth()}
{comparison()}"""


def told() -> list[str]:
    """Return the lines for docs/results.md: the two methods that suit graphs, and the largest graph."""
    found = [group for group in groups("graph") if group.finished]
    alone = [g for g in found if (g.mode, g.experiment) == ("independent", "minimal-norm")]
    last = [g for g in found if (g.mode, g.experiment) == ("successive", "egnn")]
    if not alone or not last:
        return []
    lost = [g.mean("drawdown_points") for g in alone]
    held = min(g.mean("success_rate") for g in alone)
    kept = [g for g in last if g.mean("success_retain_rate") >= MOST]
    least, most = min(g.mean("success_retain_rate") for g in kept), max(g.mean("drawdown_points") for g in kept)
    sizes = [row for row in _sizes() if row["status"] == "measured"]
    largest = max(sizes, key=lambda row: (row["case"]["edges"], row["edit_seconds"]))
    return [
        f"- {alone[0].rows[0]['edits']} mistakes of each of {len(alone)} networks on {len(GRAPHS)} more graphs "
        f"({seeds_of(alone[0])} splits): one by one, `minimal-norm` repairs {percent(held, 0)} of them with "
        f"{min(lost):.2f} to {max(lost):.2f} points drawdown; one after another, `egnn` keeps {percent(least, 0)} or "
        f"more with at most {most:.2f} points on {len(kept)} networks, and fails on {len(last) - len(kept)}. An edit "
        f"of a network on {largest['case']['edges'] / 1e6:.0f} million edges: {largest['edit_seconds']:.2f} s "
        "([results](results-graphs.md))."
    ]


def drawdowns(path: Path) -> None:
    """Draw the drawdown of every experiment on every network: a panel per mode, mean and spread over seeds."""
    found = [group for group in groups("graph") if group.finished]
    models = [model for model in MODELS if any(group.model == model for group in found)]
    modes = [mode for mode in MODES if any(group.mode == mode for group in found)]
    styles = figures.styles_of([group.experiment for group in found])
    fig, axes = figures.new_panels(1, len(modes), (4.2, 0.42 * len(models) + 1.0))
    for axis, mode in zip(axes[0], modes, strict=True):
        for group in (group for group in found if group.mode == mode):
            names = list(styles)
            shift = 0.6 * (names.index(group.experiment) / max(len(names) - 1, 1) - 0.5)
            values = group.values("drawdown_points")
            error = stdev(values) if len(values) > 1 else 0.0
            place = models.index(group.model) + shift
            style = styles[group.experiment] | {"linestyle": "none", "markersize": 5, "elinewidth": 0.8}
            held = group.mean("success_retain_rate" if mode == "successive" else "success_rate")
            style |= {"markerfacecolor": "white"} if held < MOST else {}
            axis.errorbar(fmean(values), place, xerr=error, **style)
        axis.set_xscale("symlog", linthresh=1)
        figures.in_points(axis.xaxis)
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set(title=mode, xlabel="drawdown (points)", ylim=(len(models) - 0.4, -0.6))
        axis.set_yticks(range(len(models)), models if axis is axes[0, 0] else [""] * len(models))
    figures.finish(fig, styles, path, line=False)


def write(folder: Path = DOCS) -> None:
    """Write the page and its pictures."""
    write_atomically(folder / "results-graphs.md", page().encode())
    found = groups("graph")
    if any(group.finished for group in found):
        drawdowns(folder / "graph-drawdown.png")
    if any("curve" in row for group in found for row in group.finished):
        figures.curves("graph", folder / "graph-curves.png")
