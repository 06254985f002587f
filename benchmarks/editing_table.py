"""Write docs/results-editing.md, its figures and its lines in docs/results.md from the committed result files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import nnrepair
from benchmarks.editing import DOMAINS, MODES
from benchmarks.figures import curves, pareto
from benchmarks.figures import generality as generality_figure
from benchmarks.generality import table as generality
from benchmarks.rows import Group, experiments, groups, rank, result_files, seconds_of, seeds_of, spread
from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import percent

DOCS = Path(__file__).resolve().parents[1] / "docs"
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
seed is another split. Networks: GCN, GraphSAGE and GAT (one head). Kept: the training nodes. Test set: 500 nodes. Edit
scope: the neighbours of each edited node in its class.""",
}
MODE_TITLES = {
    "independent": "each edit alone, from the original network",
    "successive": "one after another, every step asked for all edits so far",
    "successive-no-rehearsal": "one after another, every step asked for its own edit only",
    "batch": "all at once",
}


def _shown() -> list[str]:
    return [domain for domain in TITLES if domain in DOMAINS]


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
        row = [group.experiment, *(spread(group.values(key), form, scale) for _, key, form, scale in columns)]
        out.append([*row, seeds_of(group)])
    return markdown.table(["experiment", *(title for title, *_ in columns), "seeds"], out)


def section(domain: str) -> str:
    """Return a domain's part of the page, empty where nothing was measured."""
    found = groups(domain)
    if not any(group.finished for group in found):
        return ""
    counts = sorted({row["edits"] for group in found for row in group.finished})
    parts = [f"## {TITLES[domain]}\n\n{TASKS[domain]}\n"]
    parts.append(
        f"{' or '.join(map(str, counts))} edits per row; {seconds_of(found):.0f} CPU s in all for these rows.\n\n"
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
        rows.append([model, told, spread(known, ".1f"), f"{with_scope:.0f}"])
    head = ["before any edit", "accuracy %", "of the edit scope right %", "edits with a scope"]
    return f"{markdown.table(head, rows)}\n\n"


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

{markdown.table(head, rows)}
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
        for name in sorted({group.experiment for group in found}, key=rank):
            cells = []
            for mode, key in keys:
                group = _one(domain, model, name, mode)
                cells.append("–" if group is None else _told(group, key))
            if set(cells) != {"–"}:
                rows.append([f"`{name}`", *cells])
        parts.append(f"{TITLES[domain]} ({model}):\n\n{markdown.table(['experiment', *columns], rows)}\n")
    return "\n".join(parts)


def _told(group: Group, key: str) -> str:
    """Return a share and the drawdown, and how many seeds finished where some did not."""
    some = "" if len(group.finished) == len(group.rows) else f" ({len(group.finished)} of {len(group.rows)} seeds)"
    return f"{percent(group.mean(key), 0).removesuffix('%')}, {group.mean('drawdown_points'):.2f}{some}"


def methods() -> str:
    """Return the survey's table of methods, from their own declarations."""
    head, *rows = nnrepair.methods.table()
    return markdown.table(head, rows)


def filled(text: str) -> str:
    """Return docs/how-to-choose.md with its generated parts."""
    for name, content in (("choice", choice()), ("generality", generality.choice()), ("methods", methods())):
        start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"
    return text


def page() -> str:
    """Return docs/results-editing.md."""
    files = [
        file for domain in _shown() for file in result_files(domain) if any("experiment" in row for row in file["rows"])
    ]
    about = "Nothing was measured yet."
    if files:
        latest = max(files, key=lambda file: file["date"])
        packages = [{"Python": file["python"], **file["versions"]} for file in files]
        numbers = {name: sorted({each[name] for each in packages if name in each}) for name in packages[0]}
        versions = ", ".join(f"{name} {' or '.join(some)}" for name, some in numbers.items())
        about = f"Measured on {latest['machine']},\n{versions}, one thread,\n"
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

{chr(10).join(part for part in [*map(section, _shown()), generality.section(), long_sequences()] if part)}"""


def _one(domain: str, model: str, experiment: str, mode: str) -> Group | None:
    wanted = (model, mode, experiment)
    some = (group for group in groups(domain) if (group.model, group.mode, group.experiment) == wanted)
    return next((group for group in some if group.finished), None)


def readme() -> list[str]:
    """Return the line for the README: edits one after another, by the default and by plain fine-tuning."""
    ours, base = (_one("cifar", "resnet20", name, "successive") for name in ("minimal-norm", "ft"))
    if ours is None or base is None:
        return []
    count, seeds = ours.finished[0]["edits"], min(len(ours.finished), len(base.finished))
    kept, lost = ([g.mean(key) for g in (ours, base)] for key in ("success_retain_rate", "drawdown_points"))
    return [
        f"* **{count} photographs that are misread, one after another** (ResNet-20 on CIFAR-10, mean of {seeds} runs): "
        f"after the last repair {percent(kept[0], 0)} of them are right, for {lost[0]:.2f} points of accuracy on other "
        f"photographs. Plain fine-tuning: {percent(kept[1], 0)}, for {lost[1]:.2f} points."
    ]


def told() -> list[str]:
    """Return the lines for docs/results.md: what is left of a sequence of edits, by method."""
    lines = []
    for domain, what in (
        ("mnist", "foggy digits that a 3x100 network misreads"),
        ("cifar", "photographs that a ResNet-20 gets wrong"),
        ("cora", "papers that a graph network mislabels"),
    ):
        found = [g for g in groups(domain) if g.mode == "successive" and g.finished]
        base = next((group for group in found if group.experiment == "ft"), None)
        if base is None:
            continue
        found = [group for group in found if group.model == base.model and len(group.finished) >= len(base.finished)]
        ours = next((group for group in found if group.experiment == "minimal-norm"), None)
        rest = [group for group in found if group not in (base, ours)]
        best = max(
            rest, key=lambda g: (round(g.mean("success_retain_rate"), 2), -g.mean("drawdown_points")), default=None
        )
        chosen = [group for group in (base, ours, best) if group is not None]
        told = [f"`{group.experiment}` {_left(group)}" for group in chosen]
        count, seeds = base.finished[0]["edits"], min(len(group.finished) for group in chosen)
        lines.append(
            f"- {count} {what}, repaired one after another ({seeds} seeds): {'; '.join(told)} (plain fine-tuning, the "
            "default, and the best of the others here; [results](results-editing.md))."
        )
    return lines


def _left(group: Group) -> str:
    kept, near = group.mean("success_retain_rate"), group.mean("generalization_retain_rate")
    lost = group.mean("drawdown_points")
    return f"keeps {percent(kept, 0)} (neighbours {percent(near, 0)}) with {lost:.2f} points drawdown"


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
    if generality.RESULTS.exists():
        generality_figure(folder / "generality.png")


if __name__ == "__main__":
    write()
