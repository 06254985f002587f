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
from nnrepair.plot import page as plot_page
from nnrepair.plot.maps import Part, maps
from nnrepair.plot.pixels import png
from nnrepair.plot.templates import template

FOLDER = Path(__file__).parent
#: Folders of our templates and of those that reports share with us.
FOLDERS = (FOLDER, Path(plot_page.__file__).parent)
#: A result shows at most so many other digits, and so many layers.
MOST_CHANGED, MOST_MAPS = 60, 2
#: The plane of a curve in SVG units: its size, and what its marks need on the left and below.
WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 360, 190, 40, 34, 10


@cache
def _parts() -> Any:
    return template("parts.html", *FOLDERS).module


def styles() -> str:
    """Return the style sheet of live and static pages."""
    sheets = (FOLDERS[1] / "page.css", FOLDERS[0] / "room.css")
    return "\n".join(sheet.read_text() for sheet in sheets)


def image(picture: Tensor) -> str:
    """Return a digit (1, 1, side, side) as a data URL."""
    return png(picture[0, 0].double().numpy())


def intro() -> str:
    """Return what the page is for."""
    return str(_parts().intro())


def picks(lesson: Lesson) -> str:
    """Return buttons with the digits to pick; each has its number as `data-pick`."""
    return str(_parts().picks([image(digit.image) for digit in lesson.picks]))


def looked_at(digit: Digit) -> str:
    """Return a digit alone, before it is read."""
    return str(_parts().looked_at(image(digit.image)))


def reading(found: Reading, guess: int | None, label: int | None) -> str:
    """Return what the network reads, and the share that it gives each of the ten digits."""
    return str(_parts().reading(words.guessed(found, guess, label), found.shares, found.decision, label))


def result(repair: Repair, material: Material, proof: Proof | None = None) -> str:
    """Return what a repair did; each other digit that changed is a button with its number as `data-other`."""
    return str(_parts().result(shown(repair, material), checked(repair, proof)))


def shown(repair: Repair, material: Material) -> Part:
    """Return what `result` puts on the page, but for what is proved."""
    changed = sorted(repair.changed, key=lambda each: ("broken", "still wrong", "mended").index(each.effect))
    return {
        "ok": repair.ok,
        "outcome": words.outcome(repair),
        "image": image(repair.digit.image),
        "before": repair.before.decision,
        "after": repair.after.decision,
        "findings": words.findings(repair),
        "counted": repair.counted,
        "changed": [_changed(each, material) for each in changed[:MOST_CHANGED]],
        "count": len(changed),
        "moved": words.moved(repair),
        "changes": maps(repair.result, MOST_MAPS),
    }


def _changed(each: Changed, material: Material) -> Part:
    picture = image(material.others.inputs[each.other : each.other + 1])
    return {"image": picture, "effect": each.effect, "what": words.a(each.label), **asdict(each)}


def checked(repair: Repair, proof: Proof | None) -> Part:
    """Return what is proved of a repair."""
    state, text = words.proved(repair, proof)
    return {"state": state, "text": text, "said": proof.said.splitlines() if proof and proof.accepted else []}


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
    return str(_parts().sides([(each.way.name, each.way.told) for each in repairs], rows))


def detail(digit: Digit, was: int, now: int) -> str:
    """Return one of the other digits, large."""
    return str(_parts().detail(image(digit.image), words.a(digit.label or 0), was, now))


def path(repairs: Sequence[Repair], material: Material) -> str:
    """Return the repairs so far, and the curve of what they kept."""
    right = float((material.decisions == material.others.labels).double().mean())
    held = [1.0, *((sum(each.earlier) + each.ok) / (len(each.earlier) + 1) for each in repairs)]
    series = [
        ("held", "your repairs that still hold", held),
        ("same", "other digits read as at the start", [1.0, *(each.same for each in repairs)]),
        ("right", "other digits read rightly", [right, *(each.right for each in repairs)]),
    ]
    steps = [(image(r.digit.image), r.before.decision, r.label, r.way.name) for r in repairs]
    return str(_parts().path(steps, _curve(series)))


def _curve(series: Sequence[tuple[str, str, Sequence[float]]]) -> Part:
    """Return places of marks and lines in a plane of WIDTH x HEIGHT, from a round share below all values to 100 %."""
    low = min(int(10 * min(values)) / 10 for _, _, values in series)
    low = min(low, 0.9)
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
