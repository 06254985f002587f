"""What the parts of the page show: pictures, sentences and curves, by the names that parts.html gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from nnrepair.classroom import words
from nnrepair.classroom.lesson import ODDS, Changed, Digit, Lesson, Reading, Repair
from nnrepair.classroom.material import COPIES, Material
from nnrepair.classroom.proof import Proof
from nnrepair.pages.pictures import png
from nnrepair.pages.templates import style, template
from nnrepair.plot import page as plot_page
from nnrepair.plot.maps import Part, maps

FOLDER = Path(__file__).parent
#: Folders of our templates and of those that reports share with us.
FOLDERS = (FOLDER, Path(plot_page.__file__).parent)
#: A result shows at most so many other digits, and so many layers.
MOST_CHANGED, MOST_MAPS = 44, 2
#: The plane of a curve in SVG units: its size, and what its marks need on the left and below.
WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 360, 190, 40, 34, 10


@cache
def _parts() -> Any:
    return template("parts.html", *FOLDERS).module


def styles() -> str:
    """Return the style sheet of live and static pages."""
    return style(FOLDER / "room.css")


def image(picture: Tensor) -> str:
    """Return a digit (1, 1, side, side) as a data URL."""
    return png(picture[0, 0].double().numpy())


def intro(material: Material) -> str:
    """Return what the page is for."""
    return str(_parts().intro(material.misread, len(material.picks)))


def picks(lesson: Lesson) -> str:
    """Return buttons with the digits to pick; each has its number as `data-pick`."""
    return str(_parts().picks([image(digit.image) for digit in lesson.picks]))


def looked_at(digit: Digit) -> str:
    """Return a digit alone, before it is read."""
    return str(_parts().looked_at(image(digit.image)))


def reading(found: Reading, guess: int | None, label: int | None) -> str:
    """Return what the network reads, and the share that it gives each of the ten digits."""
    return str(_parts().reading(words.guessed(found, guess, label), found.shares, found.decision, label))


def result(repair: Repair, material: Material) -> str:
    """Return what a repair did; each other digit that changed is a button with its number as `data-other`."""
    changed = sorted(repair.changed, key=lambda each: ("broken", "still wrong", "mended").index(each.effect))
    shown = {
        "ok": repair.ok,
        "outcome": words.outcome(repair),
        "image": image(repair.digit.image),
        "before": repair.before.decision,
        "after": repair.after.decision,
        "findings": words.findings(repair),
        "counted": repair.counted,
        "changed": [_changed(each, material) for each in changed[:MOST_CHANGED]],
        "count": len(changed),
    }
    return str(_parts().result(shown))


def known(repair: Repair, proof: Proof | None = None) -> str:
    """Return which numbers a repair moved, what of it was measured, and what is proved."""
    state, text = words.proved(repair, proof)
    said = proof.said.splitlines() if proof is not None and proof.accepted else []
    moved = {
        "moved": words.moved(repair),
        "rows": words.ROWS if repair.choice.way == "last" else "",
        "changes": maps(repair.result, MOST_MAPS),
    }
    return str(_parts().known(moved, {"state": state, "text": text, "said": said}))


def _changed(each: Changed, material: Material) -> Part:
    picture = image(material.others.inputs[each.other : each.other + 1])
    return {"image": picture, "effect": each.effect, "what": words.a(each.label), **asdict(each)}


def tradeoff(repairs: Sequence[Repair], chosen: int) -> str:
    """Return a table of what each place of the slider does."""
    most = max([1, *(repair.count("broken") for repair in repairs)])
    rows = [
        {
            "odds": f"{times:,}",
            "ok": repair.ok,
            "follow": repair.copies[1],
            "follow_share": repair.copies[1] / COPIES,
            "broken": repair.count("broken"),
            "broken_share": repair.count("broken") / most,
        }
        for times, repair in zip(ODDS, repairs, strict=True)
    ]
    return str(_parts().tradeoff(rows, chosen, COPIES))


def sides(repairs: Sequence[Repair]) -> str:
    """Return repairs of the same digit in different ways, side by side."""
    rows = [
        ("reads the digit as", [str(each.after.decision) for each in repairs]),
        (f"copies that follow, of {COPIES}", [str(each.copies[1]) for each in repairs]),
        (f"others that changed, of {repairs[0].counted:,}", [str(len(each.changed)) for each in repairs]),
        ("were right, are wrong now", [str(each.count("broken")) for each in repairs]),
        ("were wrong, are right now", [str(each.count("mended")) for each in repairs]),
        ("numbers moved", [f"{each.result.report.weight_change.nonzeros or 0:,}" for each in repairs]),
        ("proof", ["can be checked" if each.result.certificate is not None else "none" for each in repairs]),
        ("seconds", [f"{each.result.report.seconds:.2f}" for each in repairs]),
    ]
    if repairs[0].earlier:
        rows.insert(2, ("earlier repairs that hold", [f"{sum(r.earlier)} of {len(r.earlier)}" for r in repairs]))
    return str(_parts().sides([each.way.name for each in repairs], rows))


def detail(digit: Digit, was: int, now: int) -> str:
    """Return one of the other digits, large."""
    return str(_parts().detail(image(digit.image), words.a(digit.label or 0), was, now))


def path(repairs: Sequence[Repair], material: Material, low: float | None = None) -> str:
    """Return the repairs so far, and the curve of what they kept.

    Args:
        repairs: one after another.
        material: of the lesson.
        low: the share at which the curve's plane begins; None takes a round one below all that it shows.
    """
    steps = [(image(r.digit.image), r.before.decision, r.label, r.way.name) for r in repairs]
    low = lowest([repairs], material) if low is None else low
    return str(_parts().path(steps, _curve(_kept(repairs, material), low)))


def lowest(lessons: Sequence[Sequence[Repair]], material: Material) -> float:
    """Return a round share below all that the curves of some lessons show, and at most 90 %."""
    shares = [share for repairs in lessons for _, _, values in _kept(repairs, material) for share in values]
    return min(int(10 * min(shares)) / 10, 0.9)


def _kept(repairs: Sequence[Repair], material: Material) -> list[tuple[str, str, list[float]]]:
    """Return (kind, name, share after each repair) of what is to stay high."""
    right = float((material.decisions == material.others.labels).double().mean())
    held = [(sum(each.earlier) + each.ok) / (len(each.earlier) + 1) for each in repairs]
    return [
        ("held", "your repairs that still hold", [1.0, *held]),
        ("same", "other digits read as at the start", [1.0, *(each.same for each in repairs)]),
        ("right", "other digits that are right", [right, *(each.right for each in repairs)]),
    ]


def _curve(series: Sequence[tuple[str, str, Sequence[float]]], low: float) -> Part:
    """Return places of marks and lines in a plane of WIDTH x HEIGHT, from a share `low` to 100 %."""
    last = max(1, len(series[0][2]) - 1)

    def across(step: int) -> float:
        return LEFT + (WIDTH - LEFT - 12) * step / last

    def along(share: float) -> float:
        return ABOVE + (HEIGHT - ABOVE - BELOW) * (1 - share) / (1 - low)

    marks = [low + (1 - low) * part / 2 for part in range(3)]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "bottom": HEIGHT - BELOW,
        "shares": [(along(share), f"{100 * share:.0f} %") for share in marks],
        "steps": [(across(step), step) for step in range(last + 1)],
        "lines": [
            {
                "kind": kind,
                "name": name,
                "last": f"{100 * values[-1]:.1f} %",
                "points": [(across(step), along(share)) for step, share in enumerate(values)],
            }
            for kind, name, values in series
        ],
    }
