"""One HTML page about any repair: its edits before and after, what was measured, what changed, and how to review it.

Classifiers of images have a page with pictures, `nnrepair.plot.html_report`. Needs the extra `nnrepair[plot]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nnrepair.pages.templates import accepted, style, template
from nnrepair.results.certificate import Certificate
from nnrepair.results.outcome import Outcome
from nnrepair.results.patch import Patch
from nnrepair.spec.criteria import Argmax, Argmin, Criterion, Near, Threshold, flat
from nnrepair.spec.edits import Edits
from nnrepair.spec.inputs import AnyInputs, Arguments, described
from nnrepair.spec.regions import Regions

#: A page shows at most this many points of edits, outputs of a point, numbers of an input, and changed layers.
MOST_EDITS, MOST_OUTPUTS, MOST_NUMBERS, MOST_LAYERS = 100, 4, 8, 40
#: And steps of a sequence.
MOST_STEPS = 500

Row = dict[str, Any]


def page(
    outcome: Outcome,
    rows: Sequence[tuple[str, str]],
    *,
    change: Sequence[tuple[str, str]],
    method: str,
    notes: Sequence[str],
    patch: Patch | None,
    certificate: Certificate | None,
    table: Row,
    title: str,
    about: str,
    verdict: str | None,
    unchecked: str,
    commands: Sequence[str],
) -> str:
    """Return the page.

    Args:
        outcome, rows, change, method, notes, patch, certificate: of a result and its report.
        table: of edits, `edits_table`, or of steps, `steps_table`.
        title, about: heading, and a sentence on network and data.
        verdict: what the independent checker printed when it accepted the certificate. Only this is called proved.
        unchecked: why there is no verdict.
        commands: how to review and apply the repair.
    """
    html: str = template("page.html", Path(__file__).parent).render(
        title=title,
        styles=style(),
        about=about,
        outcome=outcome,
        verdict=accepted(verdict),
        unchecked=unchecked,
        claim="" if certificate is None else certificate.claim,
        measured=rows,
        edits=table,
        layers=_layers(patch),
        change=change,
        method=method,
        notes=notes,
        commands=commands,
    )
    return html


def edits_table(edits: Edits | None, before: Tensor | None, after: Tensor | None, classes: Sequence[str] | None) -> Row:
    """Return the table of the edits' points.

    Args:
        edits: with their inputs; None where they are not known.
        before, after: (n, ...) what both networks return at their points; None where edits are about regions.
        classes: names of the classes.
    """
    if edits is None or before is None or after is None or isinstance(edits.inputs, Regions):
        return {"rows": [], "more": 0, "said": "", "heads": []}
    criterion, count = edits.criterion, min(len(before), MOST_EDITS)
    was, now = (y.detach().double().cpu() for y in (before, after))
    margins = [criterion.margin(y).tolist() for y in (was, now)]
    holds = criterion.holds(now).tolist()
    said = "What the network says, before and after; the margin is by how much what was asked for holds, in its units."
    rows = [
        {
            "name": f"{k}" if edits.of is None else f"{k} (edit {int(edits.of[k])})",
            "cells": [
                input_text(edits.inputs, k),
                wanted(criterion, k, classes),
                output_text(criterion, was[k], classes),
                output_text(criterion, now[k], classes),
                f"{margins[0][k]:+.4g} → {margins[1][k]:+.4g}".replace("-", "−"),
            ],
            "holds": bool(holds[k]),
        }
        for k in range(count)
    ]
    heads = ["input", "wanted", "before", "after", "margin", "holds"]
    return {"title": "The edits", "rows": rows, "more": len(before) - count, "said": said, "heads": heads}


def steps_table(steps: Sequence[tuple[Sequence[str], bool]], heads: Sequence[str], said: str) -> Row:
    """Return the table of the steps of a sequence: what is told of each, and whether its edits hold right after it."""
    rows = [{"name": str(k), "cells": cells, "holds": held} for k, (cells, held) in enumerate(steps[:MOST_STEPS])]
    more = max(0, len(steps) - MOST_STEPS)
    return {"title": "The steps", "rows": rows, "more": more, "said": said, "heads": [*heads, "holds"]}


def input_text(inputs: AnyInputs, k: int) -> str:
    """Return a point in few words: its numbers where there are few, else its shape."""
    if isinstance(inputs, Arguments):
        parts = {f"argument {i + 1}": part[k] for i, part in enumerate(inputs.positional)}
        parts |= {name: part[k] for name, part in inputs.keywords.items()}
        return "; ".join(f"{name} {_numbers(part)}" for name, part in parts.items())
    return _numbers(inputs[k]) if isinstance(inputs, Tensor) else f"point {k} of {described(inputs)}"


def _numbers(x: Tensor) -> str:
    if x.numel() > MOST_NUMBERS:
        if x.dtype.is_floating_point:
            return f"numbers {tuple(x.shape)}"
        shown = ", ".join(str(number) for number in x.flatten()[:MOST_NUMBERS].tolist())
        return f"{shown}, … ({x.numel()})"
    return ", ".join(f"{number:.4g}" for number in x.flatten().tolist())


def wanted(criterion: Criterion, k: int, classes: Sequence[str] | None) -> str:
    """Return what was asked of a point."""
    if isinstance(criterion, Argmax):
        lowest = "lowest: " if isinstance(criterion, Argmin) else ""
        return f"{lowest}{_name(int(criterion.labels[k]), classes)}"
    if isinstance(criterion, Threshold):
        labels = flat(criterion.labels)[k].tolist()
        said = {True: "yes", False: "no"}
        if len(labels) == 1:
            return said[bool(labels[0])]
        named = [f"{_name(j, classes)} {said[bool(label)]}" for j, label in enumerate(labels) if label >= 0]
        return _few(named)
    if isinstance(criterion, Near):
        return f"near {_few([f'{number:.4g}' for number in flat(criterion.target)[k].tolist()])}"
    return f"{type(criterion).__name__} conditions"


def output_text(criterion: Criterion, y: Tensor, classes: Sequence[str] | None) -> str:
    """Return one point's outputs: the winning class with its score, or numbers."""
    numbers = y.flatten()
    if isinstance(criterion, Argmax):
        best = int(numbers.argmin() if isinstance(criterion, Argmin) else numbers.argmax())
        return f"{_name(best, classes)} ({float(numbers[best]):.4g})"
    return _few([f"{number:.4g}" for number in numbers.tolist()])


def _few(texts: Sequence[str]) -> str:
    more = len(texts) - MOST_OUTPUTS
    return ", ".join(texts[:MOST_OUTPUTS]) + (f", … ({more} more)" if more > 0 else "")


def _name(label: int, classes: Sequence[str] | None) -> str:
    return str(label) if classes is None or label >= len(classes) else str(classes[label])


def _layers(patch: Patch | None) -> list[Row]:
    """Return the size of the change of each tensor."""
    if patch is None:
        return []
    found = []
    for name, new in list(patch.new.items())[:MOST_LAYERS]:
        old = patch.old[name].double()
        change, size = (new.double() - old).flatten(), float(old.norm())
        length = float(change.norm())
        found.append(
            {
                "name": name,
                "shape": " × ".join(str(size) for size in new.shape),
                "changed": f"{int((change != 0).sum()):,} of {change.numel():,}",
                "l1": f"{float(change.abs().sum()):.4g}",
                "l2": f"{length:.4g}",
                "largest": f"{float(change.abs().max()) if change.numel() else 0.0:.4g}",
                "share": f"{100 * length / size:.3g} %" if size else "",
            }
        )
    return found
