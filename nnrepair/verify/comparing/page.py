"""One HTML page about what did not change between two networks: shares, how they grew, where, witnesses, the proof.

What the page says is prepared here, in the order of the page; how it looks is in page.html. Needs the
extra `nnrepair[plot]`.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnrepair.errors import InvalidInput
from nnrepair.pages.pictures import png
from nnrepair.pages.templates import accepted, style, template
from nnrepair.rounding import counted, percent, percent_at_least, percent_at_most
from nnrepair.verify.comparing.certificate import GRID, ComparisonCertificate
from nnrepair.verify.comparing.evidence import Moment, Subject, Witness
from nnrepair.verify.comparing.map import KINDS, Map, seen
from nnrepair.verify.comparing.regions import free
from nnrepair.verify.comparing.tree import Tree

Part = dict[str, Any]
#: How what was found stands, by what there is.
STANDING = {
    "verdict": "An independent checker has accepted the certificate: what that claims is proved.",
    "certificate": "These are bounds of nnrepair; what the certificate claims of them is proved once the independent "
    "checker has accepted it.",
    "none": "These are bounds of nnrepair; without a certificate nothing of them is proved.",
}
#: A page shows at most so many numbers of an input or output, and boxes of the region.
MOST_NUMBERS, MOST_BOXES = 8, 12
#: Cells along each axis of a map: where all inputs that vary are shown, where others vary too, and of its table.
FINE, COARSE, FEW = 200, 64, 4
#: What is drawn for each of KINDS: red, green, blue, and how opaque. page.css has the same. Colour-blind readers tell
#: blue from orange too.
COLOURS = np.array([[128, 128, 128, 90], [217, 95, 2, 255], [116, 173, 235, 255], [44, 112, 201, 255]]) / 255
#: Rows of the table of the curve, about; and smaller shares of a moment, which are sums in float64, are zero.
MOMENTS, ROUNDING = 8, 1e-12
REPLAYED = {"network": "torch", "exact": "exact arithmetic", "enclosure": "float64 with its rounding bounded"}


def page(
    subject: Subject,
    shares: tuple[Fraction, Fraction, Fraction, Fraction],
    trees: Sequence[Tree],
    *,
    history: Sequence[Moment],
    witnesses: Sequence[Witness],
    certificate: ComparisonCertificate | None,
    numbers: tuple[int, float],
    reason: str,
    title: str,
    about: str,
    verdict: str | None,
    unchecked: str,
    commands: Sequence[str] | None,
    names: tuple[Sequence[str] | None, Sequence[str] | None],
    axes: tuple[int, int] | None,
) -> str:
    """Return the page.

    Args:
        subject, history, witnesses, certificate, reason: of a comparison.
        shares: identical, same, changed, and the volume.
        trees: the parts of the region.
        numbers: boxes, and CPU seconds, of everything since the comparison began.
        title, about: heading, and a sentence on the networks and the region.
        verdict: what the independent program printed when it accepted the certificate. Only this is called proved.
        unchecked: why there is no verdict.
        commands: how to check the certificate.
        names: of inputs and outputs.
        axes: the inputs of the map.
    """
    if commands is not None and (isinstance(commands, str) or not isinstance(commands, Sequence)):
        raise InvalidInput(f"commands= must be a list of texts, got {commands!r:.80}.")
    named = _Names(subject, len(witnesses[0].before) if witnesses else 0, *names)
    identical, same, changed, volume = shares
    ended, _, why = reason.partition("no certificate: ")
    absent = f"There is no certificate{f': {why}' if why else ''}."
    check = ["nnrepair", "certify", "CERTIFICATE.npz", subject.before, "--repaired", subject.after]
    html: str = template("page.html", Path(__file__).parent).render(
        title=title,
        styles=style(Path(__file__).with_name("page.css")),
        about=about,
        found=_found(subject, identical, same, changed),
        standing=STANDING["verdict" if verdict else "none" if certificate is None else "certificate"],
        bar=_bar(identical, same, changed),
        verdict=accepted(verdict),
        unchecked=unchecked or (absent if certificate is None else "The certificate was not checked."),
        claim="" if certificate is None else _claim(certificate),
        facts=_facts(subject, volume, len(witnesses), numbers, ended.rstrip("; ")),
        map=_map(trees, axes, same, witnesses, named),
        curve=_curve(history),
        witnesses=[_witness(witness, subject, named) for witness in witnesses],
        networks=[("before", subject.before, subject.hashes[0]), ("after", subject.after, subject.hashes[1])],
        region=_region(subject, named),
        commands=([] if certificate is None else [shlex.join(check)]) if commands is None else commands,
    )
    return html


class _Names:
    """What inputs and outputs are called."""

    def __init__(
        self, subject: Subject, outputs: int, inputs: Sequence[str] | None, decisions: Sequence[str] | None
    ) -> None:
        self.free = np.flatnonzero(free(subject.boxes[0])).tolist()
        count = len(subject.boxes[0])
        for what, given, number in (("inputs", inputs, count), ("outputs", decisions, outputs or None)):
            if given is None:
                continue
            if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
                raise InvalidInput(f"{what}= must be a list of names, got {given!r:.80}.")
            if number is not None and len(given) != number:
                raise InvalidInput(f"{what}= are {counted(len(given), 'name')}, but there are {number} {what}.")
        self.inputs = [f"X_{k}" for k in range(count)] if inputs is None else list(inputs)
        self.given = decisions

    def output(self, k: int) -> str:
        return f"Y_{k}" if self.given is None else self.given[k]


# Parts of the page, from its top to its end --------------------------------------------------------------------------


def _found(subject: Subject, identical: Fraction, same: Fraction, changed: Fraction) -> str:
    decided = (
        f"the decision ({_decision(subject)}) is the same on at least {percent_at_least(same)} of the region's volume"
    )
    other = f"and another one on at least {percent_at_least(changed)}"
    rest = f"about the other {percent_at_most(1 - same - changed)} nothing is said"
    text = f"Of the networks before ({subject.before}) and after ({subject.after}), {decided}, {other}; {rest}."
    return f"{text} All outputs are identical on at least {percent_at_least(identical)}."


def _decision(subject: Subject) -> str:
    words = {"argmax": "the largest output", "argmin": "the smallest output"}
    return words[subject.decision] if isinstance(subject.decision, str) else f"{subject.decision!r:.80}"


def _bar(identical: Fraction, same: Fraction, changed: Fraction) -> list[Part]:
    """Return the segments of the bar, in order, and what each is worth in words."""
    rest = 1 - same - changed
    parts = (
        ("identical", identical, "identical outputs", percent_at_least(identical), "at least"),
        ("same", same - identical, "same decision", percent_at_least(same), "at least, identical outputs among it"),
        ("unknown", rest, "unknown", percent_at_most(rest), "at most; more time makes it smaller"),
        ("changed", changed, "another decision", percent_at_least(changed), "at least"),
    )
    keys = ("kind", "share", "name", "text", "how")
    return [dict(zip(keys, (kind, float(share), *words), strict=True)) for kind, share, *words in parts]


def _claim(certificate: ComparisonCertificate) -> str:
    identical, same, changed = (
        percent_at_least(Fraction(claim, GRID))
        for claim in (certificate.identical, certificate.same, certificate.changed)
    )
    return (
        f"identical outputs on at least {identical} of the region, the same {certificate.decision} on at least {same}, "
        f"another one on at least {changed}. That is a little less than was found, as the independent program bounds "
        "parts in another way."
    )


def _facts(
    subject: Subject, volume: Fraction, witnesses: int, numbers: tuple[int, float], ended: str
) -> list[tuple[str, str]]:
    facts = [
        ("decision", _decision(subject)),
        ("volume of the region", f"{_size(volume)}, in units of the inputs"),
        ("inputs with another decision", f"{witnesses} found, and replayed"),
        ("boxes bounded", f"{numbers[0]:,}"),
        ("CPU seconds", f"{numbers[1]:.2f}"),
    ]
    return [*facts, ("why it ended", ended)] if ended else facts


def _size(volume: Fraction) -> str:
    """Return a volume to six digits, also one that is too large or too small for a float."""
    try:
        if float(volume):
            return f"{float(volume):.6g}"
    except OverflowError:
        pass
    return f"{Decimal(volume.numerator) / Decimal(volume.denominator):.6g}"


def _map(
    trees: Sequence[Tree],
    axes: tuple[int, int] | None,
    same: Fraction,
    witnesses: Sequence[Witness],
    named: _Names,
) -> Part | None:
    """Return the map of two inputs and what it says in words; None where fewer vary."""
    if axes is not None and not _are_axes(axes, named.free):
        raise InvalidInput(f"axes={axes!r:.80}: expected two of the inputs that vary, which are {named.free}.")
    if len(named.free) < 2:
        return None
    x, y = (named.free[0], named.free[1]) if axes is None else axes
    others = len(named.free) - 2
    found, few = (seen(trees, (x, y), cells, partly=others > 0) for cells in (COARSE if others else FINE, FEW))
    whole = dict(zip(KINDS, found.whole.tolist(), strict=True))
    at = [[float(witness.input[x]), float(witness.input[y])] for witness in witnesses]
    alt = (
        f"Map of {named.inputs[x]} from {found.across[0]:.4g} to {found.across[1]:.4g} and {named.inputs[y]} from "
        f"{found.up[0]:.4g} to {found.up[1]:.4g}. Drawn as identical: {percent(whole['identical'])} of the region; as "
        f"the same decision: {percent(whole['same'])}; as another: {percent(whole['changed'])}; as unknown: "
        f"{percent(whole['unknown'])}. Marked: {counted(len(at), 'witness', 'witnesses')}. The table below has it "
        "in numbers."
    )
    return {
        "alt": alt,
        "image": png(_colours(found)),
        "x": named.inputs[x],
        "y": named.inputs[y],
        "across": _ends(found.across),
        "up": _ends(found.up)[::-1],
        "marks": [(_place(u, found.across), _place(v, found.up)) for u, v in at],
        "outside": bool(np.isnan(found.shares).any()),
        "others": [named.inputs[k] for k in named.free if k not in (x, y)][:MOST_NUMBERS],
        "more": max(0, others - MOST_NUMBERS),
        "partly": percent_at_least(max(0.0, float(same) - whole["same"] - whole["identical"])),
        "table": _table(few),
    }


def _are_axes(axes: Any, free: Sequence[int]) -> bool:
    """Tell whether axes are two different inputs of those that vary."""
    pair = isinstance(axes, Sequence) and len(axes) == 2 and all(isinstance(k, int | np.integer) for k in axes)
    return pair and axes[0] != axes[1] and all(k in free for k in axes)


def _colours(found: Map) -> NDArray[np.float64]:
    """Return colours (rows, columns, 4) of a map, the highest row first; kinds mix in proportion to their shares."""
    shares = np.moveaxis(np.nan_to_num(found.shares[:, ::-1]), 0, -1)
    opaque = shares * COLOURS[:, 3]
    total = opaque.sum(-1)
    mixed = (opaque @ COLOURS[:, :3]) / np.where(total > 0, total, 1)[..., None]
    return np.concatenate([mixed, total[..., None]], -1).clip(0, 1)


def _place(value: float, ends: tuple[float, float]) -> float:
    """Return where a value lies between two ends, in percent."""
    return 100 * (value - ends[0]) / (ends[1] - ends[0])


def _ends(ends: tuple[float, float]) -> list[str]:
    return [f"{value:.4g}".replace("-", "−") for value in (ends[0], sum(ends) / 2, ends[1])]


def _table(few: Map) -> Part:
    """Return the same decision's share of a map's cells, as text: the highest row first."""
    same = few.shares[KINDS.index("same")] + few.shares[KINDS.index("identical")]
    heads = [[f"{v:.3g}".replace("-", "−") for v in np.linspace(*ends, FEW + 1)] for ends in (few.across, few.up)]
    across, up = ([f"{a} to {b}" for a, b in itertools.pairwise(ends)] for ends in heads)
    rows = [["–" if math.isnan(v) else percent(v, 1) for v in row] for row in same.tolist()]
    return {"heads": across, "rows": list(zip(up, rows, strict=True))[::-1]}


def _curve(history: Sequence[Moment]) -> Part | None:
    """Return the curves of what was known over time, in percent of the picture; None where there was no time."""
    end = history[-1].cpu_seconds if history else 0.0
    if end <= 0:
        return None
    top = _top(max(_share(moment, "same") for moment in history))
    lines = []
    for kind, name in (("same", "same decision"), ("identical", "identical outputs"), ("changed", "another decision")):
        points, level = ["0,100"], 0.0
        for moment in history:  # a step: what was known stays known until more is
            at, height = 100 * moment.cpu_seconds / end, 100 - 100 * _share(moment, kind) / top
            points += [f"{at:.2f},{100 - level:.2f}", f"{at:.2f},{height:.2f}"]
            level = 100 - height
        lines.append({"kind": kind, "name": name, "points": " ".join(points)})
    chosen = dict.fromkeys(round(k * (len(history) - 1) / (MOMENTS - 1)) for k in range(MOMENTS))
    words = ("identical", "same", "changed")
    rows = [
        (f"{m.cpu_seconds:.2f}", f"{m.boxes:,}", [percent_at_least(_share(m, word)) for word in words])
        for m in (history[k] for k in chosen)
    ]
    last = history[-1]
    alt = (
        f"The share of the region with surely the same decision over CPU seconds: it grows to "
        f"{percent_at_least(_share(last, 'same'))} after {last.cpu_seconds:.3g} s. The table below has it in numbers."
    )
    marks = [f"{100 * top:.3g} %", f"{50 * top:.3g} %", "0"]
    return {"lines": lines, "rows": rows, "alt": alt, "marks": marks, "end": f"{end:.3g} s", "half": f"{end / 2:.3g} s"}


def _share(moment: Moment, kind: str) -> float:
    """Return a share of a moment, without what is the rounding of a sum."""
    value: float = getattr(moment, kind)
    return value if value > ROUNDING else 0.0


def _top(most: float) -> float:
    """Return a round share, 1 at most, that is no smaller."""
    if most > 0.5 or most <= 0:
        return 1.0
    ten = 10.0 ** math.floor(math.log10(most))
    return min(1.0, next(k * ten for k in (1, 2, 5, 10) if k * ten >= most))


def _witness(witness: Witness, subject: Subject, named: _Names) -> Part:
    was, now = (_decided(subject, y) for y in (witness.before, witness.after))
    shown = list(dict.fromkeys([*(k for k in (was, now) if k >= 0), *range(len(witness.before))]))
    rows = [
        (named.output(k), f"{witness.before[k]:.9g}", f"{witness.after[k]:.9g}", k == was, k == now)
        for k in sorted(shown[:MOST_NUMBERS])
    ]
    if was < 0:  # a criterion
        holds = [_holds(subject, y) for y in (witness.before, witness.after)]
        change = " → ".join("holds" if held else "does not hold" for held in holds)
    else:
        change = f"{named.output(was)} → {named.output(now)}"
    values = [(named.inputs[k], f"{witness.input[k]:.9g}") for k in range(len(witness.input))]
    replayed = [REPLAYED.get(name, name) for name in witness.replayed]
    return {
        "change": change,
        "numbers": values[:MOST_NUMBERS],
        "more": max(0, len(values) - MOST_NUMBERS),
        "rows": rows,
        "hidden": max(0, len(shown) - MOST_NUMBERS),
        "replayed": ", ".join(replayed[:-1]) + (" and " if len(replayed) > 1 else "") + replayed[-1],
    }


def _decided(subject: Subject, y: NDArray[np.float64]) -> int:
    """Return the output that decides, -1 where a criterion does."""
    if not isinstance(subject.decision, str):
        return -1
    return int(y.argmin() if subject.decision == "argmin" else y.argmax())


def _holds(subject: Subject, y: NDArray[np.float64]) -> bool:
    assert not isinstance(subject.decision, str)  # _decided has told
    return bool(subject.decision.holds(torch.from_numpy(y)[None]).all())


def _region(subject: Subject, named: _Names) -> Part:
    """Return the region's boxes as a table of the inputs that vary, and the values of the others."""
    varying, first = named.free[:MOST_NUMBERS], subject.boxes[0]
    fixed = [k for k in range(len(first)) if k not in set(named.free)]
    rows = [
        [f"{float(box.lower[k]):.6g} to {float(box.upper[k]):.6g}" for k in varying]
        for box in subject.boxes[:MOST_BOXES]
    ]
    return {
        "count": len(subject.boxes),
        "heads": [named.inputs[k] for k in varying],
        "rows": rows,
        "more": max(0, len(subject.boxes) - MOST_BOXES),
        "hidden": max(0, len(named.free) - MOST_NUMBERS),
        "fixed": [f"{named.inputs[k]} = {float(first.lower[k]):.6g}" for k in fixed[:MOST_NUMBERS]],
        "fixed_more": max(0, len(fixed) - MOST_NUMBERS),
    }
