"""What a repair did on points that were no edits: decisions and accuracy, or how far numbers moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nnrepair.rounding import counted, percent, percentage_points


@dataclass(frozen=True)
class Moved:
    """How far outputs that stand for no decisions are from what they were.

    Attributes:
        tolerance: the largest change of any output that counts as none (None where the points have a criterion of their
            own), and `within`: the share of points where no output changed by more.
        mean, largest: absolute change of an output, over all outputs of all points (None where one is not finite).
    """

    tolerance: float | None
    within: float | None
    mean: float | None
    largest: float | None

    def words(self, points: int) -> str:
        """Return it in words, of so many points."""
        within = ""
        if self.tolerance is not None and self.within is not None:
            share = f"{percent(self.within)} of {counted(points, 'point')}"
            within = f"outputs within {self.tolerance:.3g} of before at {share}; "
        if self.mean is None or self.largest is None:
            return f"{within}some outputs are not finite now"
        return f"{within}mean absolute change {self.mean:.3g}, largest {self.largest:.3g}"


@dataclass(frozen=True)
class SideEffects:
    """What a repair did on points that were no edits.

    Attributes:
        points: how many were measured.
        accuracy_before, accuracy_after: share of them whose labels hold, or whose criterion does (None without).
        drawdown: relative loss of accuracy, negative when it rose (None where there was none to lose);
            `drawdown_points`: the same in percentage points.
        locality: share of them whose decisions are unchanged, right or wrong (None where outputs are numbers).
        decisions: decisions per point: 1 for classes, one per output for yes-or-no answers, 0 for numbers.
        moved: for numbers, how far they are from before.
        free: why so many of these points were no condition of the repair: reason -> how many.
        left_out: why so many more points that were given were not measured: reason -> how many.
        measures: for points whose own criterion is about numbers, by name, a measure before and after: "mean squared
            error", "share within tolerance" (see `Criterion.measures`).
    """

    points: int
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    drawdown: float | None = None
    drawdown_points: float | None = None
    locality: float | None = None
    decisions: int = 1
    moved: Moved | None = None
    free: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    measures: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> SideEffects:
        """Return what `dataclasses.asdict` made plain."""
        moved = plain.get("moved")
        return cls(**plain | {"moved": None if moved is None else Moved(**moved)})

    @property
    def stayed(self) -> str:
        """What stayed, in words."""
        said = []
        if self.locality is not None:
            what = counted(self.points, "decision")
            if self.decisions != 1:
                what = f"{counted(self.points, 'point')} with all {self.decisions} decisions"
            said.append(f"{percent(self.locality)} of {what} unchanged")
        for name, (before, after) in self.measures.items():
            number = percent if name.startswith("share") else "{:.3g}".format
            said.append(f"{name} {number(before)} before, {number(after)} now")
        if self.moved is not None:
            said.append(self.moved.words(self.points))
        said += [f"{count} of them {why}: free to change" for why, count in self.free.items()]
        said += [f"{count} more left out: they {why}" for why, count in self.left_out.items()]
        return "; ".join(said)

    @property
    def lost(self) -> str:
        """Drawdown in words, empty without labels."""
        if self.drawdown_points is None:
            return ""
        relative = "" if self.drawdown is None else f" ({percent(self.drawdown)} relative)"
        return f"{percentage_points(self.drawdown_points)} points{relative}"

    def __str__(self) -> str:
        lost = "" if self.drawdown_points is None else f"drawdown {percentage_points(self.drawdown_points)} points, "
        return f"{lost}{self.stayed}"
