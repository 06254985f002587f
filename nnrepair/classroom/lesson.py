"""One student's work: readings, repairs one after another, what each did to other digits, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.classroom.material import Material, copies
from nnrepair.errors import InvalidInput
from nnrepair.fix import fix
from nnrepair.methods import FineTune, MinimalNorm
from nnrepair.methods.base import Method
from nnrepair.results.result import RepairResult
from nnrepair.spec.edits import Edits
from nnrepair.spec.running import outputs

#: A lesson holds at most so many repairs, one after another.
MOST_REPAIRS = 12
#: Seconds after which a repair gives up, and steps of training.
SECONDS, STEPS = 2.0, 300
#: How many times as likely as any other the right digit has to be, from "break less" to "fix more".
ODDS = (1, 3, 10, 100, 1000)


@dataclass(frozen=True)
class Way:
    """A way to repair.

    Attributes:
        name, told: for students; `told` with the number of digits that are kept, as `kept`.
        method: what does it, from material and margin (in scores).
        exact: whether its change is the smallest possible, which a certificate can prove.
    """

    name: str
    told: str
    method: Callable[[Material, float], Method]
    exact: bool = False


WAYS = {
    "last": Way(
        "Smallest change",
        "The smallest change of the last layer that keeps {kept:,} digits right which the network learned from.",
        lambda material, margin: MinimalNorm(layer=material.last, margin=margin, time_limit=SECONDS),
        exact=True,
    ),
    "inner": Way(
        "Smallest change, one layer deeper",
        "The same in the layer before the last, where a change reaches fewer digits.",
        lambda material, margin: MinimalNorm(layer=material.inner, margin=margin, time_limit=SECONDS),
    ),
    "training": Way(
        "More training",
        "Train all weights on this digit alone until it is right, as one would without a tool.",
        lambda material, margin: FineTune(margin=margin, steps=STEPS),
    ),
}


@dataclass(frozen=True, eq=False)
class Digit:
    """A picture to read.

    Attributes:
        image: (1, 1, side, side).
        label: what it is, where that is known.
        other: its number among the material's others, where it is one of them.
    """

    image: Tensor
    label: int | None = None
    other: int | None = None


@dataclass(frozen=True)
class Reading:
    """What a network makes of one digit: its decision, and the share that each of the ten digits gets."""

    decision: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Changed:
    """One of the other digits that is read differently: its number, its label, and what it was and is read as."""

    other: int
    label: int
    was: int
    now: int

    @property
    def effect(self) -> str:
        """ "broken", "mended", or "still wrong"."""
        return "broken" if self.was == self.label else "mended" if self.now == self.label else "still wrong"


@dataclass(frozen=True)
class Choice:
    """How to repair: a name in WAYS, a place in ODDS, and whether earlier repairs are asked for again."""

    way: str = "last"
    odds: int = 1
    remember: bool = True

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise InvalidInput(f"There is no way {self.way!r} to repair. Choose one of {', '.join(WAYS)}.")
        if self.odds not in range(len(ODDS)):
            raise InvalidInput(f"The slider has the places 0 to {len(ODDS) - 1}; given {self.odds!r}.")


@dataclass(frozen=True, eq=False)
class Repair:
    """One repair, and what was measured of it.

    Attributes:
        digit, label: what was corrected to what.
        choice: how.
        origin: the network before, and `result`: what `fix` returned for it.
        before, after: readings of the digit.
        changed: other digits that are read differently than before this repair.
        copies: how many of COPIES copies of the digit are read as the label, before and after.
        earlier: for each earlier repair, whether it still holds.
        same: the share of the other digits that are read as by the network as trained, and `right`: that are right.
        counted: how many other digits there are; those that were repaired themselves do not count.
    """

    digit: Digit
    label: int
    choice: Choice
    origin: nn.Module = field(repr=False)
    result: RepairResult = field(repr=False)
    before: Reading
    after: Reading
    changed: tuple[Changed, ...]
    copies: tuple[int, int]
    earlier: tuple[bool, ...]
    same: float
    right: float
    counted: int

    @property
    def ok(self) -> bool:
        """Whether the digit, and every earlier one that was asked for, is read as wanted."""
        return self.result.outcome.ok

    @property
    def way(self) -> Way:
        """How it was made."""
        return WAYS[self.choice.way]

    def count(self, effect: str) -> int:
        """Return how many other digits were "broken", "mended", or are "still wrong"."""
        return sum(each.effect == effect for each in self.changed)


class Lesson:
    """The work of one student; it belongs to one browser tab and is never shared.

    >>> from nnrepair.classroom.material import material
    >>> lesson = Lesson(material("digits"))
    >>> digit = next(digit for digit in lesson.picks if lesson.read(digit).decision != digit.label)
    >>> repair = lesson.repair(digit, digit.label)
    >>> lesson.read(digit).decision == digit.label
    True
    >>> lesson.undo()
    >>> lesson.read(digit).decision == digit.label
    False
    """

    def __init__(self, material: Material) -> None:
        self.material = material
        self.repairs: list[Repair] = []
        self._found: dict[Choice, Repair] = {}
        inputs, labels = material.picks.inputs, material.picks.labels.tolist()
        self.picks = [Digit(inputs[k : k + 1], label) for k, label in enumerate(labels)]

    @property
    def model(self) -> nn.Module:
        """The network after all repairs."""
        return self.repairs[-1].result.model if self.repairs else self.material.model

    @property
    def last(self) -> Repair:
        """The last repair.

        Raises:
            InvalidInput: there is none.
        """
        if not self.repairs:
            raise InvalidInput("There is no repair yet.")
        return self.repairs[-1]

    def other(self, number: int) -> Digit:
        """Return one of the other digits, to read or repair it too."""
        images = self.material.others
        if number not in range(len(images)):
            raise InvalidInput(f"There are the other digits 0 to {len(images) - 1}; given {number!r}.")
        return Digit(images.inputs[number : number + 1], int(images.labels[number]), number)

    def draw(self, strokes: Any) -> Digit:
        """Return what was drawn, see `Paper.draw`."""
        return Digit(self.material.paper.draw(strokes))

    def read(self, digit: Digit) -> Reading:
        """Return what the network reads now."""
        return _reading(self.model, digit)

    def repair(self, digit: Digit, label: int, choice: Choice | None = None) -> Repair:
        """Repair the network so that a digit is read as `label`, and keep the result if that could be done.

        Raises:
            InvalidInput: it is read so already, it was repaired to be read otherwise, or there are MOST_REPAIRS
                repairs; the message is for the student.
        """
        if label not in range(10):
            raise InvalidInput(f"A digit is one of 0 to 9; given {label!r}.")
        if len(self.repairs) >= MOST_REPAIRS:
            raise InvalidInput(f"A lesson holds {MOST_REPAIRS} repairs. Undo one, or start over.")
        if self.read(digit).decision == label:
            raise InvalidInput(f"The network reads this as {label} already: there is nothing to repair.")
        for earlier in self.repairs:
            if earlier.label != label and torch.equal(earlier.digit.image, digit.image):
                raise InvalidInput(
                    f"You repaired this very digit to be read as {earlier.label}: it cannot be both. Undo that repair "
                    "first."
                )
        repair = self._made(self.repairs, digit, label, choice or Choice())
        if repair.ok:
            self.repairs.append(repair)
            self._found = {repair.choice: repair}
        return repair

    def alternative(self, choice: Choice) -> Repair:
        """Return what the last repair would be, made otherwise; `use` takes it.

        Raises:
            InvalidInput: there is no repair yet.
        """
        last = self.last
        if choice not in self._found:
            self._found[choice] = self._made(self.repairs[:-1], last.digit, last.label, choice)
        return self._found[choice]

    def tradeoff(self) -> list[Repair]:
        """Return the last repair at every place of the slider."""
        last = self.last
        return [self.alternative(replace(last.choice, odds=place)) for place in range(len(ODDS))]

    def use(self, repair: Repair) -> None:
        """Put an alternative in the place of the last repair.

        Raises:
            InvalidInput: it is no alternative of the last repair, or it does not do what was asked.
        """
        if self._found.get(repair.choice) is not repair or not repair.ok:
            raise InvalidInput("This repair cannot take the place of the last one.")
        self.repairs[-1] = repair

    def undo(self) -> None:
        """Take the last repair back.

        Raises:
            InvalidInput: there is none.
        """
        self.repairs.remove(self.last)
        self._found = {repair.choice: repair for repair in self.repairs[-1:]}

    def start_over(self) -> None:
        """Take all repairs back."""
        self.repairs.clear()
        self._found.clear()

    def _made(self, earlier: list[Repair], digit: Digit, label: int, choice: Choice) -> Repair:
        material = self.material
        origin = earlier[-1].result.model if earlier else material.model
        asked = [(repair.digit, repair.label) for repair in earlier]
        again = asked if choice.remember else []
        images = torch.cat([*(each.image for each, _ in again), digit.image])
        result = fix(
            origin,
            Edits(images, [*(wanted for _, wanted in again), label]),
            material.locality_set,
            method=WAYS[choice.way].method(material, math.log(ODDS[choice.odds])),
            throw=False,
            seed=0,
        )
        now = outputs(result.model, material.others.inputs).argmax(1)
        was = outputs(origin, material.others.inputs).argmax(1)
        counts = torch.ones(len(now), dtype=torch.bool)
        for each in (digit, *(each for each, _ in asked)):
            if each.other is not None:
                counts[each.other] = False
        labels = material.others.labels
        changed = ((was != now) & counts).nonzero()[:, 0].tolist()
        moved = copies(digit.image)
        follow = [int((outputs(network, moved).argmax(1) == label).sum()) for network in (origin, result.model)]
        return Repair(
            digit,
            label,
            choice,
            origin,
            result,
            before=_reading(origin, digit),
            after=_reading(result.model, digit),
            changed=tuple(Changed(k, int(labels[k]), int(was[k]), int(now[k])) for k in changed),
            copies=(follow[0], follow[1]),
            earlier=tuple(_reading(result.model, each).decision == wanted for each, wanted in asked),
            same=float((now == material.decisions)[counts].double().mean()),
            right=float((now == labels)[counts].double().mean()),
            counted=int(counts.sum()),
        )


def _reading(model: nn.Module, digit: Digit) -> Reading:
    scores = outputs(model, digit.image)[0].double()
    return Reading(int(scores.argmax()), tuple(scores.softmax(0).tolist()))
