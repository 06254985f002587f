"""One recorded lesson as a single file, for a class without Python: guess, reveal, slider, questions."""

from __future__ import annotations

from nnrepair.classroom import view, words
from nnrepair.classroom.lesson import ODDS, Choice, Digit, Lesson, Repair
from nnrepair.classroom.material import Material
from nnrepair.classroom.proof import prove
from nnrepair.errors import InvalidInput
from nnrepair.pages.templates import template
from nnrepair.plot.maps import Part

#: Digits of a recorded lesson: misread ones, which are repaired, and right ones, which are only guessed.
MISREAD, RIGHT = 4, 2
#: Repairs one after another, whose curves are shown.
SEQUENCE = 8


def lesson_page(material: Material, misread: int = MISREAD) -> str:
    """Return the page.

    Args:
        material: what was recorded.
        misread: how many digits are repaired, at every place of the slider.

    Raises:
        InvalidInput: there are not so many misread digits.
    """
    lesson = Lesson(material)
    wrong = [digit for digit in lesson.picks if lesson.read(digit).decision != digit.label]
    right = [digit for digit in lesson.picks if lesson.read(digit).decision == digit.label]
    if len(wrong) < misread:
        raise InvalidInput(f"{misread} misread digits were asked for; there are {len(wrong)}. Choose another seed.")
    cards = [_card(lesson, digit, repaired=True) for digit in wrong[:misread]]
    for place, digit in enumerate(right[:RIGHT]):  # between the others, so that not every guess is "wrong"
        cards.insert(2 * place + 1, _card(lesson, digit, repaired=False))
    sequences = {
        "The smallest change of the last layer, asked for earlier repairs again each time": _sequence(lesson, wrong),
        "More training on the new digit alone": _sequence(lesson, wrong, Choice("training", remember=False)),
    }
    low = view.lowest(list(sequences.values()), material)
    page: str = template("lesson.html", *view.FOLDERS).render(
        told=material.told,
        title="Repair a network: a recorded lesson",
        styles=view.styles(),
        policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
        cards=cards,
        places=len(ODDS),
        start=Choice().odds,
        sequences=[(title, view.path(repairs, material, low)) for title, repairs in sequences.items()],
    )
    return page


def _card(lesson: Lesson, digit: Digit, repaired: bool) -> Part:
    """Return a digit to guess, and what its repair does at every place of the slider."""
    found = lesson.read(digit)
    card = {
        "looked_at": view.looked_at(digit),
        "reading": view.reading(found, None, digit.label),
        "results": [],
        "tradeoffs": [],
    }
    if repaired and digit.label is not None:
        repair = lesson.repair(digit, digit.label)
        if not repair.ok:
            raise InvalidInput(f"A recorded repair failed: {words.outcome(repair)} Choose another seed.")
        repairs = lesson.tradeoff()
        proofs = [prove(each) if each is repair else None for each in repairs]
        card["results"] = [
            view.result(each, lesson.material) + view.known(each, proof)
            for each, proof in zip(repairs, proofs, strict=True)
        ]
        card["tradeoffs"] = [view.tradeoff(repairs, place) for place in range(len(repairs))]
        lesson.undo()
    return card


def _sequence(lesson: Lesson, digits: list[Digit], choice: Choice | None = None) -> list[Repair]:
    """Return repairs one after another, of those digits that are misread when their turn comes."""
    for digit in digits[:SEQUENCE]:
        if digit.label is not None and lesson.read(digit).decision != digit.label:
            lesson.repair(digit, digit.label, choice)
    repairs = lesson.repairs.copy()
    lesson.start_over()
    return repairs
