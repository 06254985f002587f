"""What a sequence of repairs returns: every step, and the measures over all of them."""

from __future__ import annotations

import html
import math
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from torch import nn

from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically
from nnrepair.results import metrics
from nnrepair.results.changes import WeightChange
from nnrepair.results.effects import Moved, SideEffects
from nnrepair.results.outcome import Outcome, Status
from nnrepair.results.page import page, steps_table
from nnrepair.results.patch import Patch, saved
from nnrepair.rounding import counted, percent, percentage_points

Mode = Literal["independent", "successive"]


@dataclass(frozen=True)
class Step:
    """One repair of a sequence, measured right after it.

    Attributes:
        edits: which edits were new in it.
        held: for each of them, whether it holds.
        status: what `fix` says of such a repair alone, see `Outcome`.
        generalization: for each of them, the share of its edit scope that holds (None where it has none).
        retained: share of all edits so far, these included, that hold in this step's network.
        side_effects: on the locality set and the test sets, by name, against the original network.
        seconds: wall time of the method.
        notes: sentences from the method.
        rehearsed: how many past edits the step was asked for too.
    """

    edits: list[int]
    held: list[bool]
    status: str
    generalization: list[float | None]
    retained: float
    side_effects: dict[str, SideEffects]
    seconds: float
    notes: list[str] = field(default_factory=list)
    rehearsed: int = 0

    @property
    def generalization_rate(self) -> float | None:
        """Mean of the shares of the edit scope that hold (None without one)."""
        return metrics.mean_rate(self.generalization)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, lists and strings (JSON)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Any) -> Step:
        """Return the step that `as_dict` wrote.

        Raises:
            InvalidInput: these are not the parts of a step.
        """
        try:
            parts = dict(plain)
            found = parts.pop("kept") if "kept" in parts else parts["side_effects"]  # "kept": as files once called them
            parts["side_effects"] = {name: SideEffects.from_dict(each) for name, each in found.items()}
            step = cls(**parts)
            right = _is_right(step)
        except (TypeError, ValueError, KeyError, AttributeError):
            right = False
        if not right:
            raise InvalidInput(f"it is damaged: {reprlib.repr(plain)} is no step of a sequence.")
        return step


def _is_right(step: Step) -> bool:
    """Tell whether a step that was read from a file has values of the right types."""
    rates = [step.retained, *(rate for rate in step.generalization if rate is not None)]
    numbers, counts = [step.seconds], [*step.edits, step.rehearsed]
    for found in step.side_effects.values():
        if (found.locality is None) != (found.decisions == 0):
            return False
        moved = found.moved
        within, sizes = ((moved.within,), (moved.tolerance, moved.mean, moved.largest)) if moved else ((), ())
        if not all(
            type(name) is str and type(pair) is list and len(pair) == 2 for name, pair in found.measures.items()
        ):
            return False
        rates += _known(found.accuracy_before, found.accuracy_after, found.locality, *within)
        numbers += [number for pair in found.measures.values() for number in pair]
        numbers += _known(found.drawdown, found.drawdown_points, *sizes)
        counts += [found.points, found.decisions, *found.free.values(), *found.left_out.values()]
    return (
        all(type(part) is list for part in (step.edits, step.held, step.generalization, step.notes))
        and all(type(number) is int for number in counts)
        and all(type(held) is bool for held in step.held)
        and len(step.edits) == len(step.held) == len(step.generalization) > 0
        and all(type(rate) is float and 0 <= rate <= 1 for rate in rates)
        and all(type(number) is float and math.isfinite(number) for number in numbers)
        and step.status in get_args(Status)
        and all(type(note) is str for note in step.notes)
    )


def _known(*numbers: float | None) -> list[float]:
    return [number for number in numbers if number is not None]


@dataclass(frozen=True)
class History:
    """The result of `fix` with mode="independent" or "successive".

    Rates "right after" are taken after each edit's own step, *retain* rates with the last network; see `metrics`.

    Attributes:
        mode: "independent" (every step starts from the original network) or "successive" (from the last one).
        steps: in order.
        outcome: "repaired" when every edit holds: right after its step (independent) or in the last network.
        held_after: (edits,) whether each edit holds right after its step.
        held_finally: (edits,) whether it holds in the last network (None for independent edits).
        generalization_retain_rate: the same mean as `generalization_rate`, in the last network (None without).
        patch: from the original to the last network (None for independent edits, or where other parts have changed).
        method: the method, with its hyper-parameters.
        weight_change: from the original to the last network (None for independent edits).
        notes: sentences about the sequence as a whole, such as progress that could not be stored.
    """

    mode: Mode
    steps: list[Step] = field(repr=False)
    outcome: Outcome
    held_after: list[bool] = field(repr=False)
    held_finally: list[bool] | None = field(repr=False)
    generalization_retain_rate: float | None
    patch: Patch | None
    method: str
    last: nn.Module | None = field(default=None, repr=False)
    weight_change: WeightChange | None = field(default=None, repr=False)
    notes: list[str] = field(default_factory=list, repr=False)

    @property
    def model(self) -> nn.Module:
        """The last network of a sequence.

        Raises:
            InvalidInput: independent edits have one network each.
        """
        if self.last is None:
            raise InvalidInput(
                "Independent edits give one network each, and none of them is kept. Repair the edit that you want "
                "alone (fix(model, edits[k:k + 1], ...) returns the same network), or use mode='batch'."
            )
        return self.last

    def save_patch(self, path: str | Path) -> Path:
        """Write the patch from the original to the last network as one safetensors file, atomically.

        Raises:
            PatchError: there is no such patch: edits were independent, or more has changed than a patch can say.
            OSError: the file cannot be written.
        """
        return saved(self.patch, path)

    def save_page(
        self,
        path: str | Path,
        *,
        title: str = "Repairs one after another",
        about: str = "",
        commands: Sequence[str] = (),
    ) -> Path:
        """Write one HTML page about the sequence, for people; it loads nothing from elsewhere.

        It shows every step, what was measured, how much of which layer changed, and how to apply the patch.

        Args:
            path: where to write.
            title, about: heading, and a sentence on network and data.
            commands: what to type for a review.

        Raises:
            MissingExtra: Jinja is not installed.
            OSError: the file cannot be written.
        """
        steps = [([self._named(step), step.status, percent(step.retained)], all(step.held)) for step in self.steps]
        said = "Whether the edits of a step hold right after it, and the share of all edits so far that hold then."
        text = page(
            self.outcome,
            self._rows(),
            change=[] if self.weight_change is None else self.weight_change.rows(),
            method=self.method,
            notes=self.notes,
            patch=self.patch,
            certificate=None,
            table=steps_table(steps, ["edits", "outcome", "hold so far"], said),
            title=title,
            about=about,
            verdict=None,
            unchecked="Sequences have no certificates.",
            commands=commands,
        )
        return write_atomically(path, text.encode())

    def _named(self, step: Step) -> str:
        return reprlib.repr(step.edits)[1:-1]

    @property
    def success_rate(self) -> float:
        """Share of edits that hold right after their step (SR)."""
        return fmean(self.held_after)

    @property
    def generalization_rate(self) -> float | None:
        """Mean over the edits of the share of their edit scope that holds right after (GR)."""
        return metrics.mean_rate([rate for step in self.steps for rate in step.generalization])

    @property
    def edit_score(self) -> float:
        """Mean of success and generalization rate (ES)."""
        return metrics.edit_score(self.success_rate, self.generalization_rate)

    @property
    def success_retain_rate(self) -> float | None:
        """Share of edits that hold in the last network (SRR); None for independent edits."""
        return None if self.held_finally is None else fmean(self.held_finally)

    @property
    def edit_retain_score(self) -> float | None:
        """Mean of the two retain rates (ESR); None for independent edits."""
        retained = self.success_retain_rate
        return None if retained is None else metrics.edit_score(retained, self.generalization_retain_rate)

    @property
    def side_effects(self) -> dict[str, SideEffects]:
        """Those on each set of points: of the last network, or the mean over independent edits."""
        if self.mode == "successive":
            return self.steps[-1].side_effects
        names = self.steps[0].side_effects
        return {name: _mean([step.side_effects[name] for step in self.steps]) for name in names}

    @property
    def seconds(self) -> float:
        """Wall time of the method over all steps."""
        return sum(step.seconds for step in self.steps)

    def worst_drawdown_points(self, name: str) -> float | None:
        """Return the largest drawdown, in points, after any step, on the locality set or the test set `name`."""
        found = [p for step in self.steps if (p := step.side_effects[name].drawdown_points) is not None]
        return max(found) if found else None

    def curves(self) -> dict[str, list[float]]:
        """Return what to plot, one number per step.

        "edits" so far; "success_rate" of them, each right after its step; "retained", the share of them that holds now;
        and per set of points "drawdown_points NAME" where it has labels, and "locality NAME", or for outputs that stand
        for no decisions "moved NAME", their mean absolute change (NaN where it is not finite).
        """
        found: dict[str, list[float]] = {"edits": [], "success_rate": [], "retained": []}
        held = count = 0
        for step in self.steps:
            held, count = held + sum(step.held), count + len(step.edits)
            found["edits"].append(count)
            found["success_rate"].append(held / count)
            found["retained"].append(step.retained)
            for name, one in step.side_effects.items():
                moved = None if one.moved is None else math.nan if one.moved.mean is None else one.moved.mean
                measures = {"locality": one.locality, "drawdown_points": one.drawdown_points, "moved": moved}
                for measure, value in measures.items():
                    if value is not None:
                        found.setdefault(f"{measure} {name}", []).append(value)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return every measure, and every step, as plain numbers, lists and strings (JSON)."""
        names = ("mode", "method", "success_rate", "generalization_rate", "edit_score", "success_retain_rate")
        rates = {name: getattr(self, name) for name in (*names, "generalization_retain_rate", "edit_retain_score")}
        side_effects = {name: asdict(found) for name, found in self.side_effects.items()}
        held = {"held_after": self.held_after, "held_finally": self.held_finally}
        change = None if self.weight_change is None else self.weight_change.as_dict()
        plain = {
            "side_effects": side_effects,
            **held,
            "weight_change": change,
            "seconds": self.seconds,
            "notes": self.notes,
        }
        return rates | plain | {"steps": [step.as_dict() for step in self.steps]}

    def _rows(self) -> list[tuple[str, str]]:
        most = max((step.rehearsed for step in self.steps), default=0)
        rehearsal = f", each with up to {counted(most, 'past edit')}" if most else ""
        size = f"{counted(len(self.held_after), 'edit')} in {counted(len(self.steps), 'step')}"
        rows = [("mode", f"{self.mode}, {size}{rehearsal}")]
        rows.append(("success rate", f"{percent(self.success_rate)} of edits, right after their step"))
        if self.generalization_rate is not None:
            rows.append(("generalization rate", f"{percent(self.generalization_rate)} right after{self._scope}"))
        if self.success_retain_rate is not None:
            rows.append(("success retain rate", f"{percent(self.success_retain_rate)} of edits, in the last network"))
        if self.generalization_retain_rate is not None:
            rows.append(("generalization retain", f"{percent(self.generalization_retain_rate)} in the last network"))
        for name, found in self.side_effects.items():
            worst = self.worst_drawdown_points(name)
            at_worst = "" if worst is None else f"; drawdown at worst {percentage_points(worst)} points"
            rows.append((name, f"{'mean over the steps: ' if self.mode == 'independent' else ''}{found}{at_worst}"))
        rows += [] if self.weight_change is None else self.weight_change.rows()
        rows.append(("seconds", f"{self.seconds:.2f}"))
        return rows

    @property
    def _scope(self) -> str:
        """Of how many edits the generalization rate is a mean, where some have no points in the edit scope."""
        rates = [rate for step in self.steps for rate in step.generalization]
        known = sum(rate is not None for rate in rates)
        return "" if known == len(rates) else f", mean over the {known} of {len(rates)} edits with points in the scope"

    def __str__(self) -> str:
        lines = [str(self.outcome), *(f"{name:<21} {value}" for name, value in self._rows())]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self._rows())
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<p><b>{html.escape(str(self.outcome))}</b></p><table>{rows}</table><ul>{notes}</ul>"


def _mean(found: list[SideEffects]) -> SideEffects:
    """Return the mean of every measure over several repairs; the largest change is that of any."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    moved = [k.moved for k in found if k.moved is not None]
    sizes = [m.largest for m in moved]
    together = (
        Moved(
            moved[0].tolerance,
            mean([m.within for m in moved]),
            mean([m.mean for m in moved]),
            None if None in sizes else max(size for size in sizes if size is not None),
        )
        if moved
        else None
    )
    return replace(
        found[0],
        accuracy_before=mean([k.accuracy_before for k in found]),
        accuracy_after=mean([k.accuracy_after for k in found]),
        drawdown=mean([k.drawdown for k in found]),
        drawdown_points=mean([k.drawdown_points for k in found]),
        locality=mean([k.locality for k in found]),
        measures={
            name: [fmean(k.measures[name][when] for k in found) for when in (0, 1)]
            for name in found[0].measures
            if all(name in k.measures for k in found)
        },
        moved=together,
    )
