"""Write docs/results-editors.md: every editor, domain and mode, from the committed result files and the code alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nnrepair
from benchmarks import gates
from benchmarks.editing import DOMAINS, MODES
from benchmarks.figures import FAMILIES, dot, finish_parts, new_parts, panels
from benchmarks.language.task import METHODS as OF_LANGUAGE
from benchmarks.rows import Group, groups, rank, result_files
from nnrepair.files import write_atomically
from nnrepair.methods import distinct
from nnrepair.results import markdown
from nnrepair.rounding import percent

DOCS = Path(__file__).resolve().parents[1] / "docs"
TITLES = {
    "mnist": "digits in fog",
    "cifar": "photographs (CIFAR-10)",
    "vision": "photographs of vehicles",
    "cora": "papers (Cora)",
    "graph": "nodes of other graphs",
    "inpainting": "completed faces",
    "language": "facts in a language model",
}


def of(domain: str) -> list[Group]:
    """Return what was measured on a domain's first network, the one that most experiments share."""
    found = [group for group in groups(domain) if group.finished]
    models = [group.model for group in found]
    return [group for group in found if group.model == max(dict.fromkeys(models), key=models.count)]


def table(domain: str) -> str:
    """Return a domain's table: a row for each experiment, a cell for each mode."""
    found = of(domain)
    modes = [mode for mode in MODES if any(group.mode == mode for group in found)]
    out = []
    for name in sorted({group.experiment for group in found}, key=rank):
        mine = {group.mode: group for group in found if group.experiment == name}
        some = [*mine.values()]
        peak = max(value for group in some for value in group.values("peak_mib"))
        edits = " / ".join(sorted({str(row["edits"]) for group in some for row in group.finished}, key=int))
        seeds = " / ".join(str(count) for count in sorted({len(group.finished) for group in some}))
        cells = [_cell(mine[mode]) if mode in mine else "not run" for mode in modes]
        out.append([f"`{name}`", f"`{some[0].rows[0]['method']}`", *cells, edits, seeds, f"{peak:.0f}"])
    return markdown.table(["experiment", "method", *modes, "edits", "seeds", "peak MiB"], out)


def _cell(group: Group) -> str:
    """Return the shares of edits, neighbours and test points, drawdown, and seconds, of one experiment in one mode."""
    left = "success_retain_rate" if group.mode.startswith("successive") else "success_rate"
    near = left.replace("success", "generalization")
    shares = [group.values(key) for key in (left, near, "locality")]
    told = [percent(sum(some) / len(some), 0).removesuffix("%") if some else "–" for some in shares]
    lost, seconds = group.mean("drawdown_points"), group.mean("edit_seconds")
    return f"{' / '.join(told)}; {lost:.2f}; {seconds:.2g} s"


def missing(domain: str) -> str:
    """Return which methods were not run on a domain, by mode."""
    found = of(domain)
    lines = []
    for mode in MODES:
        ran = {group.rows[0]["method"] for group in found if group.mode == mode}
        names = [listed.split(", ") for listed in distinct()]
        names += [[name] for name in OF_LANGUAGE] if domain == "language" else []
        left = [some[0] for some in names if not ran & set(some)]
        told = ", ".join(f"`{name}`" for name in left) or "none"
        lines.append(f"* {mode}: {told if ran else 'all of them'}")
    return "\n".join(lines)


def figure(path: Path) -> None:
    """Draw drawdown, a row for each method, and how many edits hold in the end as how full its dots are.

    A part for each domain with a panel for each mode that was measured there; colours are families of methods.
    """
    found = {domain: of(domain) for domain in TITLES if domain in DOMAINS}
    rows = {domain: _by_family({group.rows[0]["method"] for group in some}) for domain, some in found.items() if some}
    fig, parts = new_parts([len(names) for names in rows.values()])
    for part, (domain, names) in zip(parts, rows.items(), strict=True):
        modes = [mode for mode in MODES if any(group.mode == mode for group in found[domain])]
        for axis, mode in zip(panels(part, len(modes), names, TITLES[domain]), modes, strict=True):
            for group in found[domain]:
                if group.mode == mode:
                    name = group.rows[0]["method"]
                    left = "success_retain_rate" if mode.startswith("successive") else "success_rate"
                    dot(axis, group.mean("drawdown_points"), names.index(name), group.mean(left), _families()[name])
            axis.set_title(mode, fontsize="medium")
    finish_parts(fig, path)


@cache
def _families() -> dict[str, str]:
    """Return the family of each method, by each of its names."""
    _, *rows = nnrepair.methods.table()
    known = {name: family for names, family, *_ in rows for name in names.split(", ")}
    return known | {name: make().capabilities.family for name, make in OF_LANGUAGE.items()}


def _by_family(names: set[str]) -> list[str]:
    """Return methods, those of a family together."""
    return sorted(names, key=lambda name: ([*FAMILIES].index(_families()[name]), name))


def page() -> str:
    """Return docs/results-editors.md."""
    shown = [domain for domain in TITLES if domain in DOMAINS and of(domain)]
    dates = [file["date"] for domain in shown for file in result_files(domain)]
    head, *rows = nnrepair.methods.table()
    parts = [
        f"## {TITLES[domain].capitalize()}: `{of(domain)[0].model}`\n\n{table(domain)}\n\nNot run, "
        f"with any options:\n\n{missing(domain)}\n"
        for domain in shown
    ]
    return f"""# Every editor, domain and mode

Generated by `python -m benchmarks table` from `benchmarks/*/results/*.json` and from what methods declare; the last row
was measured on {max(dates)}. `python -m benchmarks run --domain NAME --part editing` measures what is missing, and goes
on where it was stopped.

A cell is `edits / neighbours / unchanged; drawdown; seconds`: the share of the edits that hold, of their edit scope,
and of the test points whose decision stayed, in percent; the loss of accuracy on the test set in points; wall seconds
of the method for an edit, on machines that did other work too. In sequences shares are those of the last network. Means
over seeds. Of a domain with several networks the one with most experiments is shown; the pages of [digits, photographs
and papers](results-editing.md), [other graphs](results-graphs.md), [vehicles](results-vision.md),
[faces](results-inpainting.md) and [facts](results-language.md) have the others, options, spreads, and what follows from
an edit (portability).

![Drawdown of every method in every domain and mode; full dots: all edits hold at the end](results-editors.png)

In the picture every method has a row, in the colour of its family, and every experiment with it a dot, the fuller the
more of the edits hold at the end.

Minimality is proved, with a certificate that an independent program checks, for `minimal-norm` alone, where it changes
one layer under conditions that are linear in it; outside of their scope `grace`, `serac` and `reassure` leave every bit
of the outputs by construction. Everything else here is measured.

## What methods need and keep

From their own declarations; where a method differs from its paper, its docstring says so.

{markdown.table(head, rows)}

{gates.section()}

{chr(10).join(parts)}"""


def write() -> None:
    """Write the page and its picture."""
    write_atomically(DOCS / "results-editors.md", page().encode())
    figure(DOCS / "results-editors.png")


if __name__ == "__main__":
    write()
