"""A suite's results as one HTML page: verdicts beside published answers, and what is solved within which time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from nnrepair.pages.templates import style
from nnrepair.rounding import counted, percent
from nnrepair.verify.suite.stored import STATUSES, Row

#: The plot, in pixels: its size, and room for axes on the left and below.
WIDTH, HEIGHT, LEFT, BELOW = 640, 300, 56, 40
#: Times below this are drawn as this, in seconds.
LEAST = 0.01
SHEET = """
.scroll { overflow-x: auto; }
table.suite { width: 100%; border-collapse: collapse; font-size: .9rem; }
table.suite th, table.suite td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
table.suite td.number { text-align: right; font-variant-numeric: tabular-nums; }
table.suite th { color: inherit; font-weight: 600; vertical-align: bottom; }
table.suite td.name { overflow-wrap: anywhere; min-width: 8rem; }
svg.cactus { width: 100%; max-width: 46rem; height: auto; } svg.cactus text { font-size: 12px; fill: var(--soft); }
svg.cactus .axis { stroke: var(--line); } svg.cactus polyline { fill: none; stroke-width: 2.5; }
svg.cactus .here { stroke: var(--now); } svg.cactus .there { stroke: var(--was); stroke-dasharray: 6 4; }
svg.cactus text.here { fill: var(--now); stroke: none; } svg.cactus text.there { fill: var(--was); stroke: none; }
"""


def page(
    title: str, about: str, rows: Sequence[Row], expected: Sequence[str | None], best: Sequence[float | None]
) -> str:
    """Return the page.

    Args:
        title, about: heading, and a sentence on when and where this was run.
        rows: what came out for each instance.
        expected: the published answer of each, None where nobody knows.
        best: the fastest published time of each in seconds, None where nobody says.

    Seconds of this run are of CPU time, which does not depend on what else the machine does.
    """
    solved = [row for row in rows if row.status in ("holds", "violated")]
    known = [(row, answer) for row, answer in zip(rows, expected, strict=True) if answer is not None]
    wrong = sum(row.status in ("holds", "violated") and row.status != answer for row, answer in known)
    here = sorted(row.cpu_seconds for row in solved)
    there = sorted(seconds for seconds in best if seconds is not None)
    share = percent(len(solved) / max(1, len(rows)))
    lead = f"{len(solved)} of {counted(len(rows), 'instance is', 'instances are')} solved ({share})."
    if known:
        lead += f" Of {len(known)} with a published answer {wrong} {'is' if wrong == 1 else 'are'} answered otherwise."
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>\n<style>\n{style()}\n{SHEET}</style>\n</head>\n<body>\n<main>",
            f'<h1>{escape(title)}</h1>\n<p class="lead">{lead}</p>\n<p class="fine">{escape(about)}</p>',
            f'<div class="tiles">{_tiles(rows, wrong, bool(known))}</div>',
            f"<section>\n<h2>Solved within a time</h2>\n{_cactus(here, there)}\n</section>",
            f"<section>\n<h2>Every instance</h2>\n{_table(rows, expected, best)}\n</section>",
            "</main>\n</body>\n</html>\n",
        ]
    )


def _tiles(rows: Sequence[Row], wrong: int, compared: bool) -> str:
    counts = [(status, sum(row.status == status for row in rows), "") for status in STATUSES]
    if compared:
        counts.append(("other than published", wrong, " bad" if wrong else " good"))
    return "".join(f'<div class="tile{kind}"><b>{n}</b><span>{name}</span></div>' for name, n, kind in counts)


def _cactus(here: Sequence[float], there: Sequence[float]) -> str:
    """Return a picture of how many instances each took at most so long, and what it says in words."""
    if not here:
        return "<p>None is solved.</p>"
    decades = range(math.floor(math.log10(LEAST)), max(0, math.ceil(math.log10(max(*here, *there, 1.0)))) + 1)
    most = max(len(here), len(there))

    def x(count: float) -> float:
        return LEFT + (WIDTH - LEFT - 90) * count / most

    def y(seconds: float) -> float:
        share = (math.log10(max(seconds, LEAST)) - decades[0]) / (decades[-1] - decades[0])
        return HEIGHT - BELOW - (HEIGHT - BELOW - 10) * share

    drawn = []
    for decade in decades:
        at = y(10.0**decade)
        drawn.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**decade:g} s</text>')
    for count in sorted({0, most // 2, most}):
        drawn.append(f'<text x="{x(count):.1f}" y="{HEIGHT - BELOW + 18}" text-anchor="middle">{count}</text>')
    drawn.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">instances, by the time that each took</text>')
    for kind, name, times in (("here", "this run", here), ("there", "published", there)):
        if times:
            points = " ".join(f"{x(k + 1):.1f},{y(seconds):.1f}" for k, seconds in enumerate(times))
            drawn.append(f'<polyline class="{kind}" points="{x(0):.1f},{y(times[0]):.1f} {points}"/>')
            last = f'x="{x(len(times)) + 6:.1f}" y="{y(times[-1]) + (4 if kind == "here" else -8):.1f}"'
            drawn.append(f'<text class="{kind}" {last}>{name}</text>')
    words = f"This run solved {counted(len(here), 'instance')}, the slowest in {here[-1]:.3g} s of CPU time."
    if there:
        published = counted(len(there), "instance")
        words += f" Published: for {published} the fastest time of any tool, each measured on another machine."
    label = escape(words, quote=True)
    picture = (
        f'<svg class="cactus" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'
    )
    return f'<figure>{picture}<figcaption class="fine">{words}</figcaption></figure>'


def _table(rows: Sequence[Row], expected: Sequence[str | None], best: Sequence[float | None]) -> str:
    head = "verdict|published|CPU s|fastest elsewhere, s|network|property|why"
    lines = ["<tr>" + "".join(f'<th scope="col">{name}</th>' for name in head.split("|")) + "</tr>"]
    for row, answer, seconds in zip(rows, expected, best, strict=True):
        is_wrong = answer is not None and row.status in ("holds", "violated") and row.status != answer
        mark = ' class="not"' if is_wrong or row.status == "error" else ""
        reason = escape(row.reason.strip().split("\n")[-1])
        lines.append(
            f'<tr><td{mark}>{row.status}</td><td>{answer or "–"}</td><td class="number">{row.cpu_seconds:.2f}</td>'
            f'<td class="number">{"–" if seconds is None else f"{seconds:.2f}"}</td>'
            f'<td class="name">{escape(row.onnx)}</td><td class="name">{escape(row.vnnlib)}</td>'
            f'<td class="name">{reason}</td></tr>'
        )
    return f'<div class="scroll"><table class="suite">\n{chr(10).join(lines)}\n</table></div>'
