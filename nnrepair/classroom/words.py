"""What a repair did, in plain words."""

from __future__ import annotations

from nnrepair.classroom.lesson import ODDS, Reading, Repair
from nnrepair.classroom.material import COPIES
from nnrepair.classroom.proof import Proof
from nnrepair.plot.page import LEFT_OPEN
from nnrepair.results.certificate import at_most

#: How to read the picture of a change of the last layer.
ROWS = " Each row belongs to one of the ten digits, each column to something that the layers before look for."


def outcome(repair: Repair) -> str:
    """Return what happened, in a sentence or two."""
    if repair.ok:
        return f"The network now reads this digit as {repair.label}."
    keeps = f"keeps {kept(repair):,} digits right which the network learned from"
    earlier = ", and all your earlier repairs" if repair.earlier and repair.choice.remember else ""
    if repair.result.outcome.status == "infeasible":
        return (
            f"This cannot be done: no change of this layer reads the digit as {repair.label} and {keeps}{earlier}. "
            f"Nothing was changed. Try another way to repair."
        )
    return (
        f"This way did not get there: no change was found that reads the digit as {repair.label} and {keeps}"
        f"{earlier}. Nothing was changed. Try another way to repair, or ask for less on the slider."
    )


def guessed(reading: Reading, guess: int | None, label: int | None) -> str:
    """Return what the network reads, beside what a student guessed and what the digit is."""
    found = "" if guess is None else ", as you guessed" if guess == reading.decision else f"; you guessed {guess}"
    right = "" if label is None else " It is right." if reading.decision == label else f" It is {a(label)}."
    return f"The network reads {reading.decision}{found}.{right}"


def a(digit: int) -> str:
    """Return a digit with its article.

    >>> a(7), a(8)
    ('a 7', 'an 8')
    """
    return f"{'an' if digit == 8 else 'a'} {digit}"


def findings(repair: Repair) -> list[tuple[str, str]]:
    """Return what was measured, as (word of the field, sentence in plain words)."""
    label, (was, now) = repair.label, repair.copies
    stayed = repair.counted - len(repair.changed)
    broken, mended, other = (repair.count(effect) for effect in ("broken", "mended", "still wrong"))
    found = [
        ("Success", f"The digit is read as {label}{odds(repair)}."),
        (
            "Generalization",
            f"Of {COPIES} copies of the digit, each a little turned, moved and resized, {now} are read as {label}. "
            f"Before the repair {was} were.",
        ),
        (
            "Locality",
            f"Of {repair.counted:,} other digits, which the repair never saw, {stayed:,} are read as before. Of the "
            f"rest, {broken} were right and are wrong now, {mended} were wrong and are right now, and {other} were "
            "wrong and are wrong in another way.",
        ),
    ]
    if repair.earlier:
        found.insert(1, ("Earlier repairs", f"{sum(repair.earlier)} of {len(repair.earlier)} still hold."))
    return found


def odds(repair: Repair) -> str:
    """Return how clearly the digit has to win."""
    times = ODDS[repair.choice.odds]
    return "" if times == 1 else f", at least {times:,} times as likely as any other"


def kept(repair: Repair) -> int:
    """Return how many of the digits that the network learned from a repair was asked to keep: those that were right."""
    found = repair.result.report.side_effects
    return 0 if found is None else found.points - sum(found.free.values())


def moved(repair: Repair) -> str:
    """Return how many numbers of the network changed, and how far."""
    change = repair.result.report.weight_change
    count, size, largest = change.nonzeros or 0, change.parameters.numbers, change.linf or 0.0
    return f"{count:,} of {size:,} numbers in the network moved, none by more than {at_most(largest, 2)}."


def proved(repair: Repair, proof: Proof | None) -> tuple[str, str]:
    """Return (state, sentence): "proved", "claimed" or "nothing", and what that is about."""
    if not repair.way.exact or repair.result.certificate is None:
        return "nothing", "Nothing is proved about this way to repair: all that is known was measured."
    digits = "your digits" if repair.earlier and repair.choice.remember else "the digit"
    claim = (
        f"of all changes of the last layer that make {digits} as clearly right, and keep {kept(repair):,} that the "
        "network learned from as clearly right, none disturbs the scores of what it learned from less"
    )
    if proof is None:
        return "claimed", f"Not checked yet, so not proved. The claim: {claim}. An independent program can check it."
    if not proof.accepted:
        return "claimed", f"The check did not end in a proof, so this is only a claim: {claim}. {proof.said}"
    left = 100 * (max(0.0, repair.result.certificate.gap) + LEFT_OPEN)
    return "proved", f"Proved by an independent program: {claim} by more than {at_most(left, 2)} %."
