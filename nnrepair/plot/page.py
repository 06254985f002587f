"""One self-contained HTML page about the repair of an image classifier: what is proved, what is measured, what changed.

Needs the extra `nnrepair[plot]`: pictures of pixels and weights are PNGs made by matplotlib, all else is HTML.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.extras import needed
from nnrepair.results.certificate import at_least, at_most
from nnrepair.results.result import RepairResult
from nnrepair.rounding import percent, percentage_points
from nnrepair.spec.criteria import Argmax
from nnrepair.spec.edits import Edits, LocalitySet
from nnrepair.spec.inputs import described, to_like
from nnrepair.spec.running import outputs

Array = npt.NDArray[np.float64]

#: A page shows at most this many mistakes, and a heat map at most this many cells along each axis.
MOST_MISTAKES = 60
MOST_MAPS = 4
MOST_CELLS = 512
#: Relative: the checker accepts a claimed bound and a claimed size that are off by a millionth each.
LEFT_OPEN = 2e-6

_POSITIVE, _NEGATIVE = (217, 95, 2), (44, 112, 201)  # orange and blue: told apart by colour-blind readers too


def html_report(
    before: nn.Module,
    result: RepairResult,
    edits: Edits,
    *,
    title: str = "Repair report",
    about: str = "",
    held_out: LocalitySet | None = None,
    verdict: str | None = None,
    unchecked: str = "The certificate was not checked.",
    compared: Sequence[tuple[str, RepairResult]] = (),
    classes: Sequence[str] | None = None,
    reproduce: str = "",
) -> str:
    """Return the page.

    Args:
        before: the network before the repair.
        result: what `fix` returned for it.
        edits: the images (n, height, width), (n, channels, height, width) or flat squares, with their labels.
        title, about: heading, and a sentence on model and data.
        held_out: labelled images that the repair never saw, to measure drawdown.
        verdict: what the independent checker printed when it accepted the certificate. Only this is called proved.
        unchecked: why there is no verdict, and how to get one.
        compared: other repairs of the same mistakes, with a name each.
        classes: names of the classes; their numbers by default.
        reproduce: commands or code that make the same repair again.

    Raises:
        InvalidInput: the edits are not labelled images.
    """
    page = _Page(before, result, edits, held_out, tuple(compared), classes)
    sections = [
        _headline(page, title, about, verdict),
        _claims(page, verdict, unchecked),
        _mistakes(page),
        _margins(page),
        _weights(page),
        _stayed(page),
        _minimality(page, verdict),
        _numbers(page),
        "" if not reproduce else f"<section><h2>Do it again</h2><pre>{escape(reproduce)}</pre></section>",
    ]
    return _SHELL.format(title=escape(title), style=_STYLE, body="\n".join(s for s in sections if s))


@dataclass
class _Page:
    """Both networks' outputs on the edits, and what else several sections need."""

    before: nn.Module
    result: RepairResult
    edits: Edits
    held_out: LocalitySet | None
    compared: tuple[tuple[str, RepairResult], ...]
    classes: Sequence[str] | None

    def __post_init__(self) -> None:
        if type(self.edits.criterion) is not Argmax:
            raise InvalidInput("A report about a classifier needs edits with labels: Edits(images, labels).")
        self.images = _pictures(self.edits.inputs)
        self.labels = self.edits.criterion.labels.cpu().tolist()
        self.y = [self._outputs(model, self.edits) for model in (self.before, self.result.model)]
        self.margins = [self.edits.criterion.margin(y).tolist() for y in self.y]
        self.scores = [y.softmax(1)[torch.arange(len(y)), self.labels].tolist() for y in self.y]
        self.decisions = [y.argmax(1).tolist() for y in self.y]
        held, of = self.result.report.held_after, self.edits.of
        self.holds = held if of is None else [held[edit] for edit in of.tolist()]
        #: Share of the held-out images that each network gets right, the unrepaired one first.
        self.accuracies: list[float] = []
        if self.held_out is not None and self.held_out.criterion is not None:
            models = [self.before, self.result.model, *(other.model for _, other in self.compared)]
            criterion = self.held_out.criterion
            found = [criterion.holds(self._outputs(model, self.held_out)) for model in models]
            self.accuracies = [float(holds.double().mean()) for holds in found]

    def _outputs(self, model: nn.Module, points: Edits | LocalitySet) -> Tensor:
        tensors = [*model.parameters(), *model.buffers()]
        like = next(t for t in tensors if t.dtype.is_floating_point)
        return outputs(model, to_like(points.inputs, like)).detach().double().cpu()

    def name(self, label: int) -> str:
        return escape(str(label) if self.classes is None else self.classes[label])


# Sections ------------------------------------------------------------------------------------------------------------


def _headline(page: _Page, title: str, about: str, verdict: str | None) -> str:
    report, change = page.result.report, page.result.report.weight_change
    held, count = sum(report.held_after), report.edits
    tiles = [_tile(f"{held} of {count}", "mistakes corrected", "good" if held == count else "bad")]
    if change.nonzeros is not None and change.is_patch:
        size = change.parameters.numbers + change.buffers.numbers
        tiles.append(_tile(f"{change.nonzeros:,}", f"of {size:,} numbers of the network changed"))
    elif change.nonzeros is not None:
        tiles.append(_tile(f"{change.nonzeros:,}", f"numbers: {change.of}"))
    else:
        tiles.append(_tile(f"{change.added.numbers:,}", "numbers added; what else changed is below"))
    if page.accuracies:
        tiles.append(_tile(_percent(page.accuracies[1]), f"of {len(page.held_out or ())} held-out images right"))
    elif report.locality is not None:
        tiles.append(_tile(_percent(report.locality), "of the locality set's decisions unchanged"))
    gap = _gap(page.result)
    if gap is not None and gap < 1:
        above = gap / (1 - gap) + LEFT_OPEN  # of the smallest change, where the gap is of this one
        proved = "above the smallest change possible, but for rounding of the weights"
        kind = proved if verdict else "above the smallest change (claimed, not checked)"
        tiles.append(_tile(f"≤ {_percent_up(above, 2)}", kind))
    intro = f'<p class="lead">{escape(about)}</p>' if about else ""
    verdicts = {"repaired": "Repaired", "nothing to do": "Nothing to do", "partly repaired": "Partly repaired"}
    word = verdicts.get(page.result.outcome.status, page.result.outcome.status.capitalize())
    outcome = f'<p class="outcome {"ok" if page.result.outcome.ok else "not"}"><b>{word}:</b> '
    outcome += f"{escape(page.result.outcome.message)}</p>"
    return f'<header><h1>{escape(title)}</h1>{intro}{outcome}<div class="tiles">{"".join(tiles)}</div></header>'


def _claims(page: _Page, verdict: str | None, unchecked: str) -> str:
    report = page.result.report
    if verdict:
        lines = [line for line in verdict.splitlines() if line.strip() and line.strip() != "ACCEPTED"]
        proved = "<p>An independent checker, which shares no code with the solver, accepted the certificate:</p>"
        proved += f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        proved += (
            '<p class="fine">Proofs are about real numbers; the same network in float32 may round differently.</p>'
        )
    else:
        proved = f"<p><b>Nothing yet.</b> {escape(unchecked)}</p>"
        if page.result.certificate is not None:
            proved += f'<p class="fine">Claimed, not checked: {escape(page.result.certificate.claim)}</p>'
    measured = [f"{sum(report.held_after)} of {report.edits} edits hold; {sum(report.held_before)} held before."]
    if report.locality is not None:
        measured.append(f"{_percent(report.locality, 2)} of {report.locality_points} locality decisions are unchanged.")
    if report.kept is not None:
        measured += [f"Of these, {count} {why}: free to change." for why, count in report.kept.free.items()]
    if page.accuracies:
        was, now = page.accuracies[:2]
        measured.append(
            f"Of {len(page.held_out or ())} held-out images, {_percent(was)} were right before and {_percent(now)} are "
            f"right after: a drawdown of {percentage_points(100 * (was - now), 1)} points."
        )
    if report.generalization_rate is not None:
        measured.append(f"{_percent(report.generalization_rate, 1)} of the edit scope follows.")
    items = "".join(f"<li>{line}</li>" for line in measured)
    kind = "proved" if verdict else "unproved"
    return (
        f'<div class="claims"><section class="box {kind}"><h2>Proved</h2>{proved}</section>'
        '<section class="box measured"><h2>Only measured</h2><p>By running both networks on these images, in their own '
        f"arithmetic. It says nothing about other images.</p><ul>{items}</ul></section></div>"
    )


def _mistakes(page: _Page) -> str:
    cards = []
    for i in range(min(len(page.labels), MOST_MISTAKES)):
        was, now, right = page.decisions[0][i], page.decisions[1][i], page.labels[i]
        mark = "ok" if page.holds[i] else "not"
        alt = f"image {i} of class {page.name(right)}, read as {page.name(was)} before and {page.name(now)} after"
        bars = "".join(
            f'<div class="score"><span>{when}</span>{_bar(kind, share)}<b>{_percent(share, 0)}</b></div>'
            for when, kind, share in (("before", "was", page.scores[0][i]), ("after", "now", page.scores[1][i]))
        )
        cards.append(
            f'<figure class="card"><img class="pixels" alt="{alt}" src="{_png(page.images[i])}">'
            f'<figcaption><p class="labels"><s>{page.name(was)}</s> <span aria-hidden="true">→</span> '
            f'<strong class="{mark}">{page.name(now)}{"" if page.holds[i] else " ✗"}</strong></p>'
            f'<p class="fine">score of {page.name(right)}</p>{bars}</figcaption></figure>'
        )
    more = len(page.labels) - len(cards)
    rest = f"<p>{more} more are not shown.</p>" if more else ""
    text = "Label before → label after, and the share that the network gives to the right label (softmax)."
    return f'<section><h2>The mistakes</h2><p>{text}</p><div class="grid">{"".join(cards)}</div>{rest}</section>'


def _margins(page: _Page) -> str:
    order = sorted(range(len(page.labels)), key=lambda i: page.margins[0][i])[:MOST_MISTAKES]
    values = [m[i] for m in page.margins for i in order]
    low, high = min(0.0, *values), max(0.0, *values)
    pad = 0.03 * ((high - low) or 1.0)
    low, high = low - pad, high + pad

    def at(value: float) -> float:
        return float(100 * (value - low) / (high - low))

    rows = []
    for i in order:
        was, now = page.margins[0][i], page.margins[1][i]
        left, right = sorted((at(was), at(now)))
        rows.append(
            f'<li><img class="pixels" alt="" src="{_png(page.images[i])}"><span class="track" role="img" '
            f'aria-label="margin {_signed(was)} before, {_signed(now)} after">'
            f'<i class="zero" style="left:{at(0):.2f}%"></i>'
            f'<i class="way" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
            f'<i class="dot was" style="left:{at(was):.2f}%"></i>'
            f'<i class="dot now" style="left:{at(now):.2f}%"></i></span>'
            f'<span class="value">{_signed(was)} → {_signed(now)}</span></li>'
        )
    ticks = [t for t in _ticks(low, high) if low <= t <= high]
    axis = "".join(f'<i style="left:{at(t):.2f}%">{_tick(t)}</i>' for t in ticks)
    rest = len(page.labels) - len(order)
    more = f"<p>The {len(order)} with the least margin before; {rest} more are not shown.</p>" if rest else ""
    return (
        "<section><h2>Margins of the edits</h2><p>By how much the right label's score exceeds the best other one, in "
        'logits: <span class="key was"></span> before, <span class="key now"></span> after. Right of the line, the '
        f'image is read correctly.</p>{more}<ol class="margins">{"".join(rows)}<li class="axis" aria-hidden="true">'
        f'<span></span><span class="track">{axis}</span><span class="value">logits</span></li></ol></section>'
    )


def _weights(page: _Page) -> str:
    changes = _changes(page)
    figures = [_heat_map(name, matrix, bias) for name, matrix, bias in changes[:MOST_MAPS]]
    if not figures:
        return ""
    rest = ", ".join(name for name, _, _ in changes[MOST_MAPS:])
    more = f"<p>Changed too, and not shown: {escape(rest)}.</p>" if rest else ""
    return f"<section><h2>What changed</h2>{''.join(figures)}{more}</section>"


def _heat_map(name: str, matrix: Array, bias: bool) -> str:
    rows, columns = matrix.shape
    across, along = ("", "entry") if rows == 1 and not bias else ("output", "input")
    largest = float(np.abs(matrix).max()) or 1.0
    changed = int((matrix != 0).sum())
    small = _pooled(matrix)
    share = np.abs(small) / largest
    colours = np.zeros((*small.shape, 4))
    colours[..., :3] = np.where((small > 0)[..., None], np.array(_POSITIVE), np.array(_NEGATIVE)) / 255
    colours[..., 3] = np.where(small != 0, 0.3 + 0.7 * share, 0.0)  # zero is clear, so that it suits light and dark
    marks = "".join(f"<span>{k}</span>" for k in (range(rows) if rows <= 16 else (0, rows - 1)))
    last = f"{columns - 1 - bias}" + (" &nbsp;bias" if bias else "")
    height = f"aspect-ratio:{columns}/{rows}" if rows * 8 > columns else "height:8rem"
    height += f";min-height:{0.9 * min(rows, 16):.1f}rem"  # room for the marks beside it
    alt = f"heat map of the change of {name}: {changed} of {matrix.size} numbers, largest {largest:.3g}"
    return (
        f'<figure class="map"><figcaption><b>{escape(name)}</b>: {changed:,} of {matrix.size:,} numbers change, '
        f"the largest by {largest:.3g}.</figcaption>"
        f'<div class="plot"><span class="ylabel">{across}</span><div class="ymarks">{marks}</div>'
        f'<img class="pixels" style="{height}" alt="{escape(alt)}" src="{_png_colours(colours)}">'
        f'<div class="xmarks"><span>0</span><span>{along}</span><span>{last}</span></div></div>'
        f'<div class="scale"><span>−{largest:.2g}</span><i></i><span>+{largest:.2g}</span></div></figure>'
    )


def _stayed(page: _Page) -> str:
    report, parts = page.result.report, []
    if report.locality is not None:
        same = round(report.locality * report.locality_points)
        text = f"{same:,} of {report.locality_points:,} decisions on the locality set are unchanged"
        if report.drawdown_points is not None:
            text += f"; drawdown there {percentage_points(report.drawdown_points)} points"
        parts.append(_share(report.locality, f"{text}. The repair was asked to keep these."))
    if page.accuracies:
        was, now = page.accuracies[:2]
        count = len(page.held_out or ())
        text = f"{round(now * count):,} of {count:,} held-out images are right, {round(was * count):,} were before: "
        text += f"a drawdown of {percentage_points(100 * (was - now))} points. The repair never saw these."
        parts.append(_share(now, text))
    return "" if not parts else f"<section><h2>What stayed</h2>{''.join(parts)}</section>"


def _minimality(page: _Page, verdict: str | None) -> str:
    certificate = page.result.certificate
    if certificate is None:
        return ""
    objective, bound = certificate.objective, certificate.lower_bound * (1 - LEFT_OPEN)
    share = bound / objective if objective else 1.0
    said = "Proved" if verdict else "Claimed, not checked"
    layer = escape(certificate.weight.removesuffix(".weight"))
    return (
        f'<section><h2>How far from the smallest change</h2><div class="bars"><span>this change</span>'
        f"{_bar('now', 1.0)}<b>{at_most(objective)}</b>"
        f"<span>lower bound</span>{_bar('bound', share)}<b>{at_least(bound)}</b></div>"
        f"<p>{said}: no change of {layer} under which the conditions of the certificate hold has a smaller "
        f"{escape(certificate.norm)} norm than the lower bound. Every edit had to hold by {certificate.margin:.3g} "
        f"logits. Gap: at most {_percent_up(certificate.gap + LEFT_OPEN, 4)}.</p></section>"
    )


def _numbers(page: _Page) -> str:
    results = [("this repair", page.result), *page.compared]
    heads = ["", *(escape(name) for name, _ in results)]
    rows: list[list[str]] = [
        ["edits that hold", *(f"{sum(r.report.held_after)} of {r.report.edits}" for _, r in results)]
    ]
    if page.accuracies:
        before = page.accuracies[0]
        rows.append(
            ["held-out drawdown, points", *(percentage_points(100 * (before - a)) for a in page.accuracies[1:])]
        )
    if page.result.report.locality is not None:
        shares = [r.report.locality for _, r in results]
        rows.append(["locality, decisions unchanged", *("" if s is None else _percent(s, 2) for s in shares)])
    changes = [r.report.weight_change for _, r in results]
    rows.append(["numbers changed", *(_figure(c.nonzeros, ",") for c in changes)])
    rows.append(["size, l1", *(_figure(c.l1, ".4g") for c in changes)])
    rows.append(["size, l2", *(_figure(c.l2, ".4g") for c in changes)])
    rows.append(["largest change", *(_figure(c.linf, ".3g") for c in changes)])
    gaps = [_gap(r) for _, r in results]
    rows.append(["gap to the minimum, at most", *("unknown" if g is None else _percent_up(g, 4) for g in gaps)])
    rows.append(["seconds", *(f"{r.report.seconds:.2f}" for _, r in results)])
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    notes = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(r.report.method)}</code>"
        f"{''.join(f'<br>{escape(note)}' for note in [*_what_changed(r), *r.report.notes])}</dd>"
        for name, r in results
    )
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f'<section><h2>All numbers</h2>{table}<dl class="fine">{notes}</dl></section>'


# Pieces --------------------------------------------------------------------------------------------------------------


def _what_changed(result: RepairResult) -> list[str]:
    """Return what a change is, where it is more than other values of the same parameters."""
    change = result.report.weight_change
    return [] if change.is_patch else [f"{name}: {value}" for name, value in change.rows()]


def _figure(value: float | None, form: str) -> str:
    return "not given, see below" if value is None else format(value, form)


def _gap(result: RepairResult) -> float | None:
    return None if result.certificate is None else result.certificate.gap


def _tile(number: str, text: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><b>{escape(number)}</b><span>{escape(text)}</span></div>'


def _share(share: float, text: str) -> str:
    return f'<div class="share">{_bar("now", share)}<p>{text}</p></div>'


def _bar(kind: str, share: float) -> str:
    return f'<span class="bar {kind}"><i style="width:{100 * share:.2f}%"></i></span>'


def _percent(value: float, digits: int = 1) -> str:
    text = percent(value, digits).removesuffix("%")
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def _percent_up(value: float, digits: int) -> str:
    """Write a share that is claimed to be no larger, rounded up."""
    rounded = Decimal(max(0.0, value)).scaleb(2).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING)
    return _percent(float(rounded) / 100, digits)


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between low and high, at most seven."""
    step = 10.0 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step, 5 * step) if (high - low) / s <= 6)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−") if value else "0"


def _changes(page: _Page) -> list[tuple[str, Array, bool]]:
    """Return (name, change as a matrix with the bias as its last column, whether it has one) of each changed layer."""
    patch, model = page.result.patch, page.result.model
    if patch is not None:
        named = {name: (new.double() - patch.old[name].double()).cpu().numpy() for name, new in patch.new.items()}
    elif isinstance(getattr(model, "change", None), dict):
        change: Any = model.change
        named = {name: delta.double().cpu().numpy() for name, delta in change.items()}
    else:
        return []
    found = []
    for name, delta in named.items():
        layer, _, part = name.rpartition(".")
        if part == "bias" and f"{layer}.weight" in named:
            continue
        matrix = delta.reshape(len(delta), -1) if delta.ndim > 1 else delta.reshape(1, -1)
        bias = named.get(f"{layer}.bias") if part == "weight" else None
        if bias is not None and len(bias) == len(matrix):
            matrix = np.column_stack([matrix, bias])
        found.append((layer if bias is not None else name, matrix, bias is not None))
    return found


def _pooled(matrix: Array) -> Array:
    """Return a matrix of at most MOST_CELLS x MOST_CELLS, each cell the entry of largest magnitude of its block."""
    for axis in (0, 1):
        step = -(-matrix.shape[axis] // MOST_CELLS)
        if step > 1:
            rows = np.moveaxis(matrix, axis, 0)
            rows = np.pad(rows, ((0, -len(rows) % step), (0, 0))).reshape(-1, step, rows.shape[1])
            rows = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)[:, 0]
            matrix = np.asarray(np.moveaxis(rows, 0, axis))
    return matrix


def _pictures(inputs: Any) -> Array:
    """Return (n, height, width) or (n, height, width, 3) in [0, 1]."""
    if not isinstance(inputs, Tensor):
        raise InvalidInput(f"A report about images needs a tensor of them, got {described(inputs)}.")
    images = inputs.detach().cpu().double().numpy()
    side = math.isqrt(images[0].size)
    if images.ndim == 4 and images.shape[1] == 3:
        images = np.moveaxis(images, 1, 3)
    elif images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    elif images.ndim == 2 and side * side == images.shape[1]:
        images = images.reshape(-1, side, side)
    elif images.ndim != 3:
        raise InvalidInput(
            f"A report about images needs inputs (n, height, width), (n, 1 or 3, height, width) or (n, side * side), "
            f"given {tuple(inputs.shape)}."
        )
    low, high = images.min(), images.max()
    return np.asarray((images - low) / ((high - low) or 1.0))


def _png(image: Array) -> str:
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    return _png_colours(image)


def _png_colours(colours: Array) -> str:
    with needed("plot", "Reports need matplotlib"):
        from matplotlib.image import imsave
    buffer = io.BytesIO()
    imsave(buffer, np.round(255 * colours).astype(np.uint8), format="png", metadata=_NO_METADATA)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_NO_METADATA: Any = {"Software": None}  # the same page for every version of matplotlib

_SHELL = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { --page: #f7f6f3; --card: #ffffff; --ink: #1d1f24; --soft: #5c6370; --line: #dddbd5; --rail: #e9e7e1;
  --was: #b4530a; --now: #1f63b5; --good: #17713b; --bad: #b3261e; --proved: #17713b; --measured: #1f63b5; }
@media (prefers-color-scheme: dark) { :root { --page: #15171b; --card: #1e2126; --ink: #e8e9ec; --soft: #a3a9b5;
  --line: #363b44; --rail: #31363f; --was: #f0a35e; --now: #74b0f4; --good: #6fd096; --bad: #ff8a80; --proved: #6fd096;
  --measured: #74b0f4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; margin: 0 0 .5rem; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .5rem; }
p { margin: 0 0 .75rem; max-width: 46rem; } ul { margin: 0 0 .75rem; padding-left: 1.2rem; } li { margin: 0 0 .35rem; }
section { margin-top: 2.75rem; } figure { margin: 0; }
.lead { font-size: 1.1rem; color: var(--soft); } .fine, .fine * { font-size: .875rem; color: var(--soft); }
.outcome { font-size: 1.1rem; } .ok { color: var(--good); } .not { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin-top: 1.25rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.65rem; line-height: 1.2; letter-spacing: -.01em; }
.tile span { color: var(--soft); font-size: .9rem; line-height: 1.35; display: block; }
.tile.good b { color: var(--good); } .tile.bad b { color: var(--bad); }
.claims { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem;
  margin-top: 1.5rem; }
.box { margin: 0; background: var(--card); border: 1px solid var(--line); border-top: .3rem solid;
  padding: 1.1rem 1.25rem; border-radius: .6rem; overflow-wrap: anywhere; min-width: 0; }
.proved { border-top-color: var(--proved); } .measured { border-top-color: var(--measured); }
.unproved { border-top-color: var(--soft); border-top-style: dashed; }
.pixels { image-rendering: pixelated; display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .75rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
.card > img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; image-rendering: auto; }
.card figcaption { padding: .6rem .75rem .75rem; } .card p { margin: 0; }
.labels { font-size: 1.25rem; line-height: 1.3; } .labels s { color: var(--was); text-decoration-thickness: 2px; }
.score { display: grid; grid-template-columns: 1fr auto; font-size: .8rem; line-height: 1.5; margin-top: .2rem; }
.score > span:first-child { color: var(--soft); } .score b { font-weight: 600; white-space: nowrap; }
.score .bar { grid-row: 2; grid-column: 1 / 3; height: .4rem; }
.bar { display: block; height: .55rem; background: var(--rail); border-radius: 1rem; overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 1rem; } .was i, .key.was, .dot.was { background: var(--was); }
.now i, .key.now, .dot.now { background: var(--now); } .bound i { background: var(--good); }
.key { display: inline-block; width: .75rem; height: .75rem; border-radius: 50%; vertical-align: -.05rem; }
.margins { list-style: none; padding: 0; margin: 1rem 0 0; }
.margins li { display: grid; grid-template-columns: 1.75rem 1fr 8.5rem; gap: .75rem; align-items: center;
  margin: 0 0 .3rem; }
.margins img { width: 1.75rem; height: 1.75rem; object-fit: contain; background: #000; border-radius: .2rem; }
.track { position: relative; display: block; height: 1.75rem; } .track i { position: absolute; }
.track .zero { top: -.15rem; bottom: -.15rem; border-left: 2px solid var(--soft); margin-left: -1px; }
.track .way { top: calc(50% - 1.5px); height: 3px; background: var(--line); }
.dot { width: .8rem; height: .8rem; border-radius: 50%; top: calc(50% - .4rem); margin-left: -.4rem; }
.value { text-align: right; font-variant-numeric: tabular-nums; font-size: .875rem; white-space: nowrap; }
.axis .track i { transform: translateX(-50%); font-style: normal; font-size: .8rem; color: var(--soft); }
.axis .value { color: var(--soft); }
.map { margin-top: 1rem; } .map figcaption { margin-bottom: .6rem; }
.plot { display: grid; grid-template-columns: 1.4rem auto minmax(0, 1fr); column-gap: .4rem; font-size: .8rem;
  color: var(--soft); }
.plot img { width: 100%; border: 1px solid var(--line); background: var(--card); }
.ylabel { writing-mode: vertical-rl; transform: rotate(180deg); text-align: center; }
.ymarks { display: flex; flex-direction: column; justify-content: space-around; text-align: right; line-height: 1; }
.xmarks { grid-column: 3; display: flex; justify-content: space-between; padding-top: .25rem; }
.scale { display: flex; align-items: center; gap: .5rem; margin-top: .6rem; font-size: .8rem; color: var(--soft); }
.scale i { width: 11rem; height: .7rem; border-radius: .2rem; border: 1px solid var(--line);
  background: linear-gradient(90deg, rgb(44 112 201), rgb(44 112 201 / .3) 49%, transparent 49%, transparent 51%,
  rgb(217 95 2 / .3) 51%, rgb(217 95 2)); }
.share { margin-top: .9rem; } .share .bar { height: .9rem; } .share p { margin-top: .35rem; }
.bars { display: grid; grid-template-columns: auto minmax(0, 1fr) auto; gap: .4rem .75rem; align-items: center;
  margin: .75rem 0; } .bars .bar { height: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .4rem .75rem; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; }
th:first-child { text-align: left; font-weight: 400; color: var(--soft); padding-left: 0; }
dl { margin: 1rem 0 0; overflow-wrap: anywhere; } dt { font-weight: 600; } dd { margin: 0 0 .6rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; overflow-x: auto;
  font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 32rem) { main { padding-top: 1.5rem; } .value { font-size: .8rem; } th, td { padding: .4rem; }
  .margins li { grid-template-columns: 1.75rem 1fr 7.2rem; gap: .5rem; }
  .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""
