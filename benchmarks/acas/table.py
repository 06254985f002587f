"""Write docs/results-acas.md and docs/acas-tradeoff.png from the committed result file alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import percent

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def _file() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / "tradeoff.json").read_text())
    return loaded


@dataclass(frozen=True)
class _Networks:
    """What verification/acas/repair.py wrote about networks repaired for all that is violated on them, jointly."""

    instances: list[Row]
    repaired: list[Row]
    kept: list[float]
    cpu: list[float]

    @property
    def proved(self) -> tuple[int, int]:
        """Of the repaired instances, and of all."""
        return sum(row["proved"] for row in self.repaired), sum(row["proved"] for row in self.instances)


def _networks() -> _Networks | None:
    files = sorted((ROOT / "verification" / "acas" / "results").glob("N_*/rows.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    rows = [row for row in rows if row["unit"] == f"N_{row['network']}"]
    repaired = [row for row in rows if row["role"] == "repair"]
    if not repaired:
        return None
    kept = [row["agreement"]["same"] / row["agreement"]["compared"] for row in repaired]
    cpu = [row["cost"]["repair_cpu_seconds"] for row in {row["unit"]: row for row in repaired}.values()]
    return _Networks(rows, repaired, kept, cpu)


def readme() -> list[str]:
    """Return the line for the README: what was violated, what it came to, and what else changed."""
    if (found := _networks()) is None:
        return []
    repaired, instances = found.proved
    return [
        f"* **{len(found.repaired)} violated safety requirements** of {len(found.cpu)} networks that advise aircraft "
        f"(ACAS Xu): {repaired} of them hold now at *every* point of their regions, with those that held before "
        f"{instances} of {len(found.instances)}, by proofs that an independent program accepted. Of a million other "
        f"situations a median of {percent(statistics.median(found.kept), 3)} get the same advice as before, "
        f"{percent(min(found.kept))} at worst. Time: a median of {statistics.median(found.cpu):.1f} s a network."
    ]


def told() -> list[str]:
    """Return the line for docs/results.md."""
    if (found := _networks()) is None:
        return []
    repaired, instances = found.proved
    kept, cpu = found.kept, found.cpu
    return [
        f"- {repaired} of the {len(found.repaired)} violated ACAS Xu instances repaired with proof, all that is "
        f"violated on a network jointly: {instances} of {len(found.instances)} instances hold on the repaired "
        f"networks, with certificates that the independent checker accepted. Of a million states outside the repaired "
        f"regions, a median of {percent(statistics.median(kept), 3)} keep their advice, {percent(min(kept))} at worst; "
        f"{sum(cpu):.0f} CPU s in all, median {statistics.median(cpu):.1f} s a network (table: "
        "`verification/acas/README.md`)."
    ]


def repairs() -> dict[str, list[Row]]:
    """Return the rows of each repair from the thinnest margin to the thickest."""
    found: dict[str, list[Row]] = {}
    for row in sorted(_file()["rows"], key=lambda row: float(row["margin"])):
        found.setdefault(name(row), []).append(row)
    return dict(sorted(found.items()))


def name(row: Row) -> str:
    """Return network and properties in words."""
    return f"N_{{{row['network'].replace('_', ',')}}} " + " + ".join(f"phi_{number}" for number in row["properties"])


def holds(row: Row) -> bool:
    return bool(row["status"] == "repaired")


def table() -> str:
    """One row for each repair and margin."""
    out = []
    for title, rows in repairs().items():
        for row in rows:
            measured = "cpu_seconds" in row
            out.append(
                [
                    title,
                    f"{row['margin']:g}",
                    row["status"],
                    *(
                        [
                            f"{row['l1']:.3g}",
                            f"{row['linf']:.2g}",
                            f"{row['proof_boxes']}",
                            f"{row['proof_cpu_seconds']:.2f}",
                            ", ".join(row["from_parts"]).replace("prop_", "phi_") or "–",
                            f"{percent(row['agreement'], 3)}",
                            f"{row['cpu_seconds']:.0f}",
                        ]
                        if measured
                        else ["–"] * 7
                    ),
                ]
            )
    head = "repair|margin|outcome|l1 of the change|largest change|proof: boxes|proof: CPU s|from parts|agreement|CPU s"
    return markdown.table(head.split("|"), out)


def page() -> str:
    """Return docs/results-acas.md."""
    file = _file()
    about = ", ".join(f"{k} {v}" for k, v in file["versions"].items())
    rows = [row for row in file["rows"] if "cpu_seconds" in row]
    count, done = len(file["rows"]), sum(map(holds, rows))
    return f"""# Repairing properties of ACAS Xu: what the margin buys

Generated by `python -m benchmarks table` from `benchmarks/acas/results/tradeoff.json`. Measured on {file["machine"]},
Python {file["python"]}, {about}, one thread, one fresh process per repair, {sum(r["cpu_seconds"] for r in rows):.0f}
CPU s in all.

The margin is the slack that counterexamples must reach, in units of the network's outputs (1 is 373.95 in the units of
the paper's scores). In {done} of {count} repairs all properties hold, by the checker. Each changes the last layer
alone, keeps phi_1, phi_3 and phi_4 where they held, and has 20 000 random states to keep. *Proof* is the check of the
repaired properties on the repaired network. *Agreement* is the share of 200 000 other random states with the same
advice as before.
*From parts*: counterexamples alone led to a proof of more than 50 000 boxes or 100 s, so that parts of the region
became conditions, see `repair_property`. Such a change has a short proof and hardly depends on the margin, but it can
be far larger than what a thicker margin asks of points alone: compare N_{{2,7}} and N_{{4,6}} on both sides of the
step. The outputs of N_{{1,8}} differ by some 1e-4 around the region, so that all its margins are thick.

![Size of the change, boxes and time of the proof, and agreement, against the margin](acas-tradeoff.png)

{table()}
"""


def figure() -> None:
    """Draw what grows and what shrinks with the margin."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    panels: Sequence[tuple[str, str]] = (
        ("l1", "size of the change (l1)"),
        ("proof_boxes", "boxes of the proof"),
        ("proof_cpu_seconds", "CPU s of the proof"),
        ("changed", "changed advice, of 200 000 states"),
    )
    fig, axes = plt.subplots(1, 4, figsize=(14, 3.9), layout="constrained")
    handles = []
    for k, (title, rows) in enumerate(repairs().items()):
        colour = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")[k % 6]  # Paul Tol's "bright"
        rows = [row | {"changed": 1 - row["agreement"]} for row in rows if "cpu_seconds" in row]
        label = title.replace("phi_", r"\varphi_").replace(" ", r"\ ")
        handles.append(Line2D([], [], color=colour, marker="o", markersize=5, label=f"${label}$"))
        for axis, (key, _) in zip(axes, panels, strict=True):
            part = rows if key in ("l1", "changed") else [row for row in rows if holds(row)]
            axis.plot([r["margin"] for r in part], [r[key] for r in part], color=colour, linewidth=1.4)
            for row in part:
                face = "white" if row["from_parts"] else colour
                mark = ("D" if row["from_parts"] else "o") if holds(row) else "x"
                axis.plot(row["margin"], row[key], mark, color=colour, markerfacecolor=face, markersize=6)
    for axis, (key, title) in zip(axes, panels, strict=True):
        axis.set(xscale="log", xlabel="margin (network units)", title=title)
        if key == "changed":
            axis.set_yscale("symlog", linthresh=2e-5)  # some changes change no advice at all
            axis.set_ylim(-2e-6, 3e-2)
            axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        else:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    plain = {"color": "#555555", "linestyle": "none", "markersize": 6}
    handles.append(Line2D([], [], marker="o", label="holds", **plain))
    handles.append(Line2D([], [], marker="D", markerfacecolor="white", label="holds, from parts", **plain))
    if not all(map(holds, _file()["rows"])):
        handles.append(Line2D([], [], marker="x", label="not shown to hold", **plain))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize="small")
    fig.savefig(ROOT / "docs" / "acas-tradeoff.png", dpi=110, metadata={"Software": None})
    plt.close(fig)


def write() -> None:
    """Write docs/results-acas.md and its figure."""
    write_atomically(ROOT / "docs" / "results-acas.md", page().encode())
    figure()
