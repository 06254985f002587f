"""One self-contained HTML page about the repair of an image classifier: what is proved, what is measured, what changed.

What the page says is prepared here, in the order of the page; how it looks is in page.html. Needs the
extra `nnrepair[plot]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.pages.pictures import png
from nnrepair.pages.templates import accepted, style, template
from nnrepair.plot.maps import Part, maps
from nnrepair.plot.pixels import pictures
from nnrepair.results.certificate import at_least, at_most
from nnrepair.results.result import RepairResult
from nnrepair.rounding import counted, percent, percentage_points, that_hold
from nnrepair.spec.criteria import Argmax
from nnrepair.spec.edits import Edits, LocalitySet
from nnrepair.spec.inputs import to_like
from nnrepair.spec.running import outputs

#: A page shows at most this many mistakes, and this many heat maps.
MOST_MISTAKES, MOST_MAPS = 60, 4
#: Relative: the checker accepts a claimed bound and a claimed size that are off by a millionth each.
LEFT_OPEN = 2e-6


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
    html: str = template("page.html", Path(__file__).parent, percent=_percent, signed=_signed).render(
        title=title,
        styles=style(),
        about=about,
        outcome=_outcome(result),
        tiles=list(_tiles(page, verdict)),
        verdict=accepted(verdict),
        unchecked=unchecked,
        measured=list(_measured(page)),
        mistakes=_mistakes(page),
        margins=_margins(page),
        changes=maps(page.result, MOST_MAPS),
        stayed=list(_stayed(page)),
        certificate=_certificate(result),
        numbers=_numbers(page),
        reproduce=reproduce,
    )
    return html


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
        if type(self.edits.criterion) is not Argmax or self.edits.criterion.labels.ndim > 1:
            raise InvalidInput("A report about a classifier needs edits with labels: Edits(images, labels).")
        self.images = pictures(self.edits.inputs)
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
        return str(label) if self.classes is None else self.classes[label]


# Parts of the page, from its top to its end ---------------------------------------------------------------------------


def _outcome(result: RepairResult) -> Part:
    words = {"repaired": "Repaired", "nothing to do": "Nothing to do", "partly repaired": "Partly repaired"}
    status = result.outcome.status
    return {
        "ok": result.outcome.ok,
        "word": words.get(status, status.capitalize()),
        "message": result.outcome.message,
    }


def _tiles(page: _Page, verdict: str | None) -> Iterator[Part]:
    report, change = page.result.report, page.result.report.weight_change
    held, count = sum(report.held_after), report.edits
    yield _tile(f"{held} of {count}", "mistakes corrected", "good" if held == count else "bad")
    if change.nonzeros is not None and change.is_patch:
        size = change.parameters.numbers + change.buffers.numbers
        yield _tile(f"{change.nonzeros:,}", f"of {size:,} numbers of the network changed")
    elif change.nonzeros is not None:
        yield _tile(f"{change.nonzeros:,}", f"numbers: {change.of}")
    else:
        yield _tile(f"{change.added.numbers:,}", "numbers added; what else changed is below")
    if page.accuracies:
        yield _tile(_percent(page.accuracies[1]), f"of {len(page.held_out or ())} held-out images right")
    elif report.locality is not None:
        yield _tile(_percent(report.locality), "of the locality set's decisions unchanged")
    gap = _gap(page.result)
    if gap is not None and gap < 1:
        above = gap / (1 - gap) + LEFT_OPEN  # of the smallest change, where the gap is of this one
        proved = "above the smallest change possible, but for rounding of the weights"
        yield _tile(
            f"≤ {_percent_up(above, 2)}", proved if verdict else "above the smallest change (claimed, not checked)"
        )


def _tile(number: str, text: str, kind: str = "") -> Part:
    return {"number": number, "text": text, "kind": kind}


def _measured(page: _Page) -> Iterator[str]:
    report = page.result.report
    held = that_hold(sum(report.held_after), report.edits, "edit")
    yield f"{held[0].upper()}{held[1:]}; {sum(report.held_before)} held before."
    if report.locality is not None:
        kept = counted(report.locality_points, "locality decision is", "locality decisions are")
        yield f"{_percent(report.locality, 2)} of {kept} unchanged."
    if report.side_effects is not None:
        yield from (f"Of these, {count} {why}: free to change." for why, count in report.side_effects.free.items())
    if page.accuracies:
        was, now = page.accuracies[:2]
        yield (
            f"Of {len(page.held_out or ())} held-out images, {_percent(was)} were right before and {_percent(now)} are "
            f"right after: a drawdown of {percentage_points(100 * (was - now), 1)} points."
        )
    if report.generalization_rate is not None:
        yield f"{_percent(report.generalization_rate, 1)} of the edit scope follows."


def _mistakes(page: _Page) -> Part:
    shown = [
        {
            "number": i,
            "image": png(page.images[i]),
            "was": page.name(page.decisions[0][i]),
            "now": page.name(page.decisions[1][i]),
            "right": page.name(page.labels[i]),
            "holds": page.holds[i],
            "scores": [("before", "was", page.scores[0][i]), ("after", "now", page.scores[1][i])],
        }
        for i in range(min(len(page.labels), MOST_MISTAKES))
    ]
    return {"shown": shown, "more": len(page.labels) - len(shown)}


def _margins(page: _Page) -> Part:
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
        places = {"left": left, "right": right, "was_at": at(was), "now_at": at(now)}
        rows.append({"image": png(page.images[i]), "was": was, "now": now} | places)
    ticks = [(at(tick), _tick(tick)) for tick in _ticks(low, high) if low <= tick <= high]
    return {"rows": rows, "more": len(page.labels) - len(order), "zero": at(0.0), "ticks": ticks}


def _stayed(page: _Page) -> Iterator[tuple[float, str]]:
    report = page.result.report
    if report.locality is not None:
        same = round(report.locality * report.locality_points)
        text = f"{same:,} of {report.locality_points:,} decisions on the locality set are unchanged"
        if report.drawdown_points is not None:
            text += f"; drawdown there {percentage_points(report.drawdown_points)} points"
        yield report.locality, f"{text}. The repair was asked to keep these."
    if page.accuracies:
        was, now = page.accuracies[:2]
        count = len(page.held_out or ())
        text = f"{round(now * count):,} of {count:,} held-out images are right, {round(was * count):,} were before: "
        yield now, f"{text}a drawdown of {percentage_points(100 * (was - now))} points. The repair never saw these."


def _certificate(result: RepairResult) -> Part | None:
    certificate = result.certificate
    if certificate is None:
        return None
    objective, bound = certificate.objective, certificate.lower_bound * (1 - LEFT_OPEN)
    return {
        "claim": certificate.claim,
        "size": at_most(objective),
        "bound": at_least(bound),
        "share": bound / objective if objective else 1.0,
        "layer": certificate.weight.removesuffix(".weight"),
        "norm": certificate.norm,
        "margin": certificate.margin,
        "gap": _percent_up(certificate.gap + LEFT_OPEN, 4),
    }


def _numbers(page: _Page) -> Part:
    results = [("this repair", page.result), *page.compared]
    rows = [("edits that hold", [f"{sum(r.report.held_after)} of {r.report.edits}" for _, r in results])]
    if page.accuracies:
        lost = [100 * (page.accuracies[0] - accuracy) for accuracy in page.accuracies[1:]]
        rows.append(("held-out drawdown, points", [percentage_points(points) for points in lost]))
    if page.result.report.locality is not None:
        shares = [r.report.locality for _, r in results]
        rows.append(("locality, decisions unchanged", ["" if s is None else _percent(s, 2) for s in shares]))
    changes = [r.report.weight_change for _, r in results]
    gaps = [_gap(r) for _, r in results]
    rows += [
        ("numbers changed", [_figure(c.nonzeros, ",") for c in changes]),
        ("size, l1", [_figure(c.l1, ".4g") for c in changes]),
        ("size, l2", [_figure(c.l2, ".4g") for c in changes]),
        ("largest change", [_figure(c.linf, ".3g") for c in changes]),
        ("gap to the minimum, at most", ["unknown" if g is None else _percent_up(g, 4) for g in gaps]),
        ("seconds", [f"{r.report.seconds:.2f}" for _, r in results]),
    ]
    notes = [(name, r.report.method, [*_what_changed(r), *r.report.notes]) for name, r in results]
    return {"heads": [name for name, _ in results], "rows": rows, "notes": notes}


# Pieces --------------------------------------------------------------------------------------------------------------


def _what_changed(result: RepairResult) -> list[str]:
    """Return what a change is, where it is more than other values of the same parameters."""
    change = result.report.weight_change
    return [] if change.is_patch else [f"{name}: {value}" for name, value in change.rows()]


def _figure(value: float | None, form: str) -> str:
    return "not given, see below" if value is None else format(value, form)


def _gap(result: RepairResult) -> float | None:
    return None if result.certificate is None else result.certificate.gap


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
